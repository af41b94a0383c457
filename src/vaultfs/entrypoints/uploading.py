"""A large file on its way to a server: cut here, and only the chunks that the server lacks sent.

    read, cut, hash -> ask which are lacking -> compress -> frames of one request

The stages overlap, in windows of 8 MiB, of which at most `WINDOWS` are in memory. The server
keeps what has come in an upload session. Where the connection breaks, the server is asked how
far it got, and a new request goes on from there. Where this process dies, putting the file
again does the same: chunks that the server has are not sent a second time.
"""

from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, field
from yarl import URL

from vaultfs.adapters.files import FileSource
from vaultfs.domain.chunks import DEFAULT_CHUNKING, Chunker
from vaultfs.domain.cutting import Compressibility, Cut, cut_piece, encode
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import (
    Busy,
    ChunksMissing,
    OffsetMismatch,
    RateLimited,
    SourceChanged,
    VaultError,
)
from vaultfs.domain.frames import HEAD, MEDIA_TYPE, Named, write_chunk, write_named
from vaultfs.domain.names import parse_address
from vaultfs.domain.services.tasks import task_group
from vaultfs.entrypoints.answers import ServerError
from vaultfs.entrypoints.calling import AGAIN, PIECE, TRIES, wait
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.entrypoints.surface import Stored
from vaultfs.ports.progress import Progress
from vaultfs.ports.trees import Item

WINDOW: Final = 8 << 20
"""Bytes that are cut, asked for and compressed together."""
WINDOWS: Final = 4
"""Of them that are asked for ahead of the one that is being sent."""
LOOK: Final = 0.5
"""Seconds between two looks at how much is durable."""
_LATER: Final = (*AGAIN, ServerError, Busy, RateLimited, OffsetMismatch, ChunksMissing)
"""What may be another way when it is gone on with from where the server is."""


@define(eq=False)
class _Window:
    """Some chunks in a row."""

    cuts: list[Cut]
    known: set[Digest] = field(factory=set[Digest])
    """Those that need not be sent."""
    asked: anyio.Event = field(factory=anyio.Event)


@define(eq=False)
class Uploading:
    """One file on its way."""

    vault: RemoteVault
    path: str
    source: FileSource
    item: Item
    headers: dict[str, str]
    """Conditions."""
    parents: bool
    progress: Progress
    sent: int = 0
    """Bytes of bodies that were sent."""
    _told: int = 0
    _compressible: Compressibility = field(factory=Compressibility)

    async def run(self) -> Stored:
        """Send it. Raises what the server refuses it with, `ServerError`, `SourceChanged`."""
        number = await self._begin()
        try:
            changed = await self._send_all(number)
        except BaseException as error:
            # What has come stays, and is found by its chunks; its session need not.
            with anyio.CancelScope(shield=True), anyio.move_on_after(1), suppress(VaultError):
                await self.vault.calls.ask("DELETE", self._where(number))
            if isinstance(error, ServerError):
                kept = "what was sent is kept, and putting it again goes on from there"
                raise ServerError(f"{error.message}; {kept}") from error
            raise
        return Stored(await self.vault.stat(self.path), changed, self.sent)

    async def _begin(self) -> str:
        address = parse_address(self.path, own=self.vault.user)
        origin = self.item.origin
        notes = {
            "path": str(address),
            "mtime": "" if origin.mtime_us is None else str(origin.mtime_us),
            "mode": "" if origin.mode is None else f"{origin.mode:o}",
            "parents": str(self.parents).lower(),
        }
        told = [f"{key} {b64encode(text.encode()).decode()}" for key, text in notes.items() if text]
        headers = {"Upload-Length": str(self.item.size), "Upload-Metadata": ",".join(told)}
        answer = await self.vault.calls.ask(
            "POST", self.vault.calls.url("uploads"), headers=headers | self.headers
        )
        return answer.headers["Location"].rpartition("/")[2]

    def _where(self, number: str) -> URL:
        return self.vault.calls.url(f"uploads/{number}")

    async def _send_all(self, number: str) -> int:
        """The number of versions that it made."""
        at = tries = 0
        while True:
            try:
                return await self._send(number, at)
            except _LATER as error:
                found = at
                with suppress(ServerError):  # it may be starting anew
                    found = await self._offset(number)
                if found == self.item.size and at == found:
                    raise
                tries = 0 if found > at else tries + 1
                if tries >= TRIES:
                    if isinstance(error, VaultError):
                        raise
                    self.vault.calls.fail(error)
                at = found
                await anyio.sleep(wait(max(tries, 1)))
                await self.source.rewind(at)

    async def _offset(self, number: str) -> int:
        """Bytes that the server has."""
        answer = await self.vault.calls.ask("HEAD", self._where(number))
        return int(answer.headers["Upload-Offset"])

    async def _send(self, number: str, at: int) -> int:
        """Send everything from byte `at` on with one request."""
        cut_send, cut_receive = anyio.create_memory_object_stream[_Window](WINDOWS)
        send, receive = anyio.create_memory_object_stream[list[Buffer]](1)
        headers = {"Upload-Offset": str(at), "Content-Type": MEDIA_TYPE}
        async with task_group() as tasks, cut_receive, receive:
            tasks.start_soon(self._cut, number, cut_send)
            tasks.start_soon(self._frame, cut_receive, send)
            tasks.start_soon(self._watch, number)
            async with self.vault.calls.http.patch(
                self._where(number),
                headers=self.vault.calls.headers(headers),
                data=_Body(self, receive),
                allow_redirects=False,
            ) as answer:
                await answer.read()
                if answer.status >= 400:
                    await self.vault.calls.refuse(answer)
                if answer.headers.get("Upload-Offset") != str(self.item.size):
                    raise SourceChanged(f"{self.source.name} changed while it was read: try again")
            tasks.cancel_scope.cancel()
        self._tell(self.item.size)
        return int(answer.headers.get("Vaultfs-Changed") != "0")

    async def _cut(self, number: str, windows: MemoryObjectSendStream[_Window]) -> None:
        chunker, last = Chunker(), False
        tail: Buffer = b""
        async with task_group() as tasks, windows:
            while not last:
                buffer = bytearray(DEFAULT_CHUNKING.maximum + WINDOW)
                view = memoryview(buffer)[DEFAULT_CHUNKING.maximum - len(tail) :]
                view[: len(tail)] = tail
                filled = await self.source.readinto(view[len(tail) :])
                last = filled < WINDOW
                data = view[: len(tail) + filled]
                cuts, uncut = await to_thread.run_sync(partial(cut_piece, chunker, data, last=last))
                tail = bytes(uncut)
                window = _Window(cuts)
                tasks.start_soon(self._ask, number, window)
                await windows.send(window)

    async def _ask(self, number: str, window: _Window) -> None:
        """Find out which chunks need not be sent."""
        digests = list(dict.fromkeys(cut.digest for cut in window.cuts))
        if digests:
            window.known = await self.vault.have(digests, upload=number)
        window.asked.set()

    async def _frame(
        self,
        windows: MemoryObjectReceiveStream[_Window],
        bodies: MemoryObjectSendStream[list[Buffer]],
    ) -> None:
        async with bodies:
            await bodies.send([HEAD])
            async for window in windows:
                await window.asked.wait()
                await bodies.send(await to_thread.run_sync(self._framed, window))

    def _framed(self, window: _Window) -> list[Buffer]:
        """The frames of a window. CPU work."""
        lacking = [cut for cut in window.cuts if cut.digest not in window.known]
        encoded = iter(encode(lacking, self._compressible, prove=False))
        parts: list[Buffer] = []
        for cut in window.cuts:
            if cut.digest in window.known:
                parts.append(write_named(Named(cut.digest, len(cut.data))))
            else:
                parts += write_chunk(next(encoded))
        return parts

    async def _watch(self, number: str) -> None:
        while True:
            await anyio.sleep(LOOK)
            with suppress(VaultError):
                self._tell(await self._offset(number))

    def _tell(self, durable: int) -> None:
        if durable > self._told:
            self.progress(durable - self._told)
            self._told = durable


@define(eq=False)
class _Body(AsyncIterable[bytes]):
    """Frames as the body of a request."""

    uploading: Uploading
    parts: MemoryObjectReceiveStream[list[Buffer]]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for parts in self.parts:
            joined, size = list[Buffer](), 0
            for part in parts:
                joined.append(part)
                size += len(part)
                self.uploading.sent += len(part)
                if size >= PIECE:
                    yield b"".join(joined)
                    joined, size = [], 0
            if joined:
                yield b"".join(joined)

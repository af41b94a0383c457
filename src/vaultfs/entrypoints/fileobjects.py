"""Blocking file objects over a vault: what zipfile, pandas and the like expect.

They work in any thread but the event loop's own.
"""

import io
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import anyio
from anyio import from_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, field, frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Busy, VaultError
from vaultfs.domain.nodes import NO_PRECONDITIONS, Node, Preconditions, Version
from vaultfs.entrypoints.surface import Surface

READ_SIZE = 1 << 20
WRITE_SIZE = 1 << 20
T = TypeVar("T")


@frozen
class Loop:
    """The event loop that a vault lives in."""

    tasks: TaskGroup
    """What goes on beside the caller: it is cancelled when the vault is closed."""
    _token: EventLoopToken

    def run(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """What a coroutine function returns, from a worker thread."""
        return from_thread.run(call, *arguments, token=self._token)


class _Raw(io.RawIOBase):
    """A version's bytes, unbuffered."""

    def __init__(self, vault: Surface, path: str, version: Version) -> None:
        self._vault, self._path, self._version = vault, path, version
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._version.size}
        if whence not in base:
            raise ValueError(f"cannot seek from {whence}")
        at = base[whence] + offset
        if at < 0:
            raise ValueError(f"cannot seek to {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        for piece in self._pieces(self._at + len(view)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._at += filled
        return filled

    def readall(self) -> bytes:
        """All that is left, in one go."""
        data = b"".join(self._pieces(self._version.size))
        self._at += len(data)
        return data

    def _pieces(self, stop: int) -> Sequence[Buffer]:
        stop = min(stop, self._version.size)
        if self._at >= stop:
            return ()
        return self._vault.loop.run(self._read, self._at, stop)

    async def _read(self, start: int, stop: int) -> Sequence[Buffer]:
        pieces: list[Buffer] = []
        async with self._vault.content(self._path, self._version, start, stop) as parts:
            async for part in parts:
                pieces += part
        return pieces


class ReadFile(io.BufferedReader):
    """A version of a file, opened for reading."""

    def __init__(self, vault: Surface, path: str, version: Version) -> None:
        super().__init__(_Raw(vault, path, version), READ_SIZE)
        self._name, self._version = path, version

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return self._name

    @property
    def version(self) -> Version:
        """What is read, whatever the file becomes meanwhile."""
        return self._version


@define(eq=False)
class _Pipe:
    """The bytes on their way from a writing thread to a put."""

    pieces: MemoryObjectReceiveStream[bytes]
    rest: memoryview = field(factory=lambda: memoryview(b""))
    complete: bool = False

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if not self.rest:
                try:
                    self.rest = memoryview(await self.pieces.receive())
                except anyio.EndOfStream:
                    if not self.complete:
                        raise _AbortedError("the file was not closed") from None
                    break
            part = self.rest[: len(view) - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            self.rest = self.rest[len(part) :]
        return filled


class _AbortedError(VaultError):
    """The writer went away before the end."""


@define(eq=False)
class _Put:
    """A put that runs beside the writing thread."""

    vault: Surface
    path: str
    preconditions: Preconditions
    pipe: _Pipe
    send: MemoryObjectSendStream[bytes]
    done: anyio.Event = field(factory=anyio.Event)
    node: Node | None = None
    error: Exception | None = None

    async def run(self) -> None:
        try:
            async with self.pipe.pieces:
                self.node = await self.vault.put(
                    self.path, self.pipe, preconditions=self.preconditions
                )
        except Exception as error:  # noqa: BLE001 raised in the writing thread
            self.error = error
        finally:
            self.done.set()

    async def write(self, data: bytes) -> None:
        try:
            await self.send.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.done.wait()
            raise self.error or ValueError("the file is closed") from None

    async def finish(self, *, complete: bool) -> None:
        self.pipe.complete = complete
        await self.send.aclose()
        await self.done.wait()
        if complete and self.node is None:
            raise self.error or Busy("the vault was closed before this was stored")


class WriteFile(io.BufferedIOBase):
    """A new version of a file, opened for writing.

    It becomes the newest version when it is closed; left by an exception, or forgotten,
    it leaves nothing.
    """

    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around what can be refused: whoever opened the file may have errors of its own."""

    def __init__(self, put: _Put) -> None:
        self._put, self._run = put, put.vault.loop.run
        self._held = bytearray()
        self._size = 0
        self._writing = threading.Lock()

    @classmethod
    async def start(
        cls, vault: Surface, path: str, preconditions: Preconditions = NO_PRECONDITIONS
    ) -> "WriteFile":
        """Begin a put of what will be written."""
        send, receive = anyio.create_memory_object_stream[bytes](1)
        put = _Put(vault, path, preconditions, _Pipe(receive), send)
        vault.loop.tasks.start_soon(put.run)
        return cls(put)

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return self._put.path

    @property
    def node(self) -> Node | None:
        """The node, once the file is closed."""
        return self._put.node

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any, /) -> int:
        if self.closed:
            raise ValueError("the file is closed")
        size = memoryview(data).nbytes
        with self._writing:  # as other files: what several threads write stays whole
            self._held += data
            self._size += size
            if len(self._held) >= WRITE_SIZE:
                self._send()
        return size

    def _send(self) -> None:
        data, self._held = bytes(self._held), bytearray()
        with self.around():
            self._run(self._put.write, data)

    def close(self) -> None:
        """Make what was written the newest version; durable on return."""
        if not self.closed:
            self._end(complete=True)

    def abort(self) -> None:
        """Leave everything as it was."""
        if not self.closed:
            self._held.clear()
            self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        try:
            if self._held:
                self._send()
            with self.around():
                self._run(self._finish, complete)
        finally:
            self._put.send.close()  # if nobody else could: the vault may be closed already
            super().close()

    async def _finish(self, complete: bool) -> None:  # noqa: FBT001 called by position
        await self._put.finish(complete=complete)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        """Unlike other files, one that was forgotten is not to be taken for complete."""
        if not self.closed:
            self._put.send.close()
            super().close()

"""Blocking file objects over a vault: what zipfile, pandas and the like expect.

They work in any thread but the event loop's own.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, field

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Busy, VaultError
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Node, Version
from vaultfs.entrypoints.vault import Vault

Run = Callable[..., Any]
"""Runs a coroutine function in the vault's event loop: `run(function, *arguments)`."""
READ_SIZE = 1 << 20
WRITE_SIZE = 1 << 20


class _Raw(io.RawIOBase):
    """A version's bytes, unbuffered."""

    def __init__(self, vault: Vault, version: Version, run: Run) -> None:
        self._vault, self._version, self._run = vault, version, run
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._version.size}
        at = base[whence] + offset
        if at < 0:
            raise ValueError(f"cannot seek to {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._version.size)
        if self._at >= stop:
            return 0
        at = 0
        for piece in self._run(self._read, self._at, stop):
            view[at : at + len(piece)] = piece
            at += len(piece)
        self._at += at
        return at

    async def _read(self, start: int, stop: int) -> Sequence[Buffer]:
        pieces: list[Buffer] = []
        vault = self._vault
        async with vault.files.read(vault.user, self._version, start, stop) as parts:
            async for part in parts:
                pieces += part
        return pieces


class ReadFile(io.BufferedReader):
    """A version of a file, opened for reading."""

    def __init__(self, vault: Vault, version: Version, run: Run, name: str) -> None:
        super().__init__(_Raw(vault, version, run), READ_SIZE)
        self._name = name

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return self._name


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

    vault: Vault
    address: Address
    pipe: _Pipe
    send: MemoryObjectSendStream[bytes]
    done: anyio.Event = field(factory=anyio.Event)
    node: Node | None = None
    error: Exception | None = None

    async def run(self) -> None:
        try:
            vault = self.vault
            async with self.pipe.pieces:
                result = await vault.files.put(vault.user, self.address, self.pipe, parents=True)
            self.node = result.node
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

    def __init__(self, put: _Put, run: Run) -> None:
        self._put, self._run = put, run
        self._held = bytearray()
        self._size = 0

    @classmethod
    async def start(cls, vault: Vault, address: Address, run: Run, tasks: TaskGroup) -> "WriteFile":
        """Begin a put of what will be written."""
        send, receive = anyio.create_memory_object_stream[bytes](1)
        put = _Put(vault, address, _Pipe(receive), send)
        tasks.start_soon(put.run)
        return cls(put, run)

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return str(self._put.address)

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
        self._held += data
        self._size += size
        if len(self._held) >= WRITE_SIZE:
            self._send()
        return size

    def _send(self) -> None:
        data, self._held = bytes(self._held), bytearray()
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

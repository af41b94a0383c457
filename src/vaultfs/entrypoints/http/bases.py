"""A version in the vault as the base of a delta: read ahead where the delta goes on."""

from collections import OrderedDict
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, field

from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import VaultError
from vaultfs.domain.nodes import TreeId, Version
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.rebuilding import PIECE

WINDOWS: Final = 6
"""Pieces of the base that are kept: what a delta copies is mostly near what it copied last."""
AHEAD: Final = 2
"""Pieces that wait to be asked for, beside those that are on their way from the store."""
ALL: Final = 1 << 42
"""Pieces, more than any version has."""


@define(eq=False)
class VaultBase:
    """`version` in `tree`, in windows of a MiB.

    Where one window follows the last, those behind it are read before anybody asks: a delta
    mostly goes through its base from the front. Where it does not, as many are as were read one
    behind the other, for it may go on anywhere. A task of `tasks` does so until `close`.
    """

    files: Files
    tree: TreeId
    version: Version
    digest: Digest
    tasks: TaskGroup
    _windows: OrderedDict[int, bytes] = field(factory=OrderedDict[int, bytes])
    _ahead: MemoryObjectReceiveStream[bytes] | None = None
    _next: int = 0
    """The window behind the last that was read."""
    _row: int = ALL
    """How many are read ahead."""
    _until: int = 0
    """The window in front of which reading ahead ends."""
    _error: VaultError | None = None
    """Why there is nothing more ahead."""

    @property
    def size(self) -> int:
        return self.version.size

    async def read(self, start: int, stop: int) -> bytes:
        """Raises `DamagedContent` and failures of the store."""
        parts: list[bytes] = []
        at = start
        while at < stop:
            number, offset = divmod(at, PIECE)
            window = await self._window(number)
            parts.append(window[offset : offset + stop - at])
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Read ahead no further."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    async def _window(self, number: int) -> bytes:
        window = self._windows.get(number)
        if window is not None:
            self._windows.move_to_end(number)
            return window
        if number == self._next:
            window = await self._following(number)
        else:
            window = await self._alone(number)
        self._next = number + 1
        self._windows[number] = window
        if len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        return window

    async def _alone(self, number: int) -> bytes:
        """A window after which the delta may go on anywhere."""
        self.close()
        self._row = 1
        start = number * PIECE
        async with self.files.read(self.tree, self.version, start, start + PIECE) as parts:
            return b"".join([piece async for part in parts for piece in part])

    async def _following(self, number: int) -> bytes:
        """The window behind the last."""
        if self._ahead is None or number == self._until:
            self.close()
            self._until = number + self._row
            send, self._ahead = anyio.create_memory_object_stream[bytes](AHEAD)
            self.tasks.start_soon(self._read_on, number, self._until, send)
        try:
            window = await self._ahead.receive()
        except anyio.EndOfStream:
            assert self._error is not None
            raise self._error from None
        self._row += 1
        return window

    async def _read_on(
        self, number: int, until: int, windows: MemoryObjectSendStream[bytes]
    ) -> None:
        """Give the windows from `number` to `until`, as long as there are more, and taken."""
        with suppress(anyio.BrokenResourceError):
            async with windows:
                try:
                    await self._give(number * PIECE, until * PIECE, windows)
                except VaultError as error:  # whoever asks for the next raises it
                    self._error = error

    async def _give(self, start: int, stop: int, windows: MemoryObjectSendStream[bytes]) -> None:
        held: list[Buffer] = []
        size = 0
        async with self.files.read(self.tree, self.version, start, stop) as parts:
            async for part in parts:
                for piece in part:
                    held.append(piece)
                    size += len(piece)
                    if size >= PIECE:  # a piece is at most a chunk, so it is one window
                        data = b"".join(held)
                        await windows.send(data[:PIECE])
                        held[:], size = [data[PIECE:]], size - PIECE
        if size:
            await windows.send(b"".join(held))

"""A new content at hand, which is to be compared with one that a server has."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from anyio import to_thread
from attrs import define, field
from blake3 import blake3

from vaultfs.adapters.files import translated
from vaultfs.domain.chunks import DEFAULT_CHUNKING, Chunker
from vaultfs.domain.cutting import cut_piece
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import SourceChanged
from vaultfs.domain.signatures import SHORT, Unit
from vaultfs.domain.zipimages import image_units

if TYPE_CHECKING:
    from vaultfs.adapters.files import FileSource
    from vaultfs.ports.trees import Item

READ: Final = 4 << 20
"""Bytes that are read and cut with one hop to a thread."""


class Here(Protocol):
    """The new content."""

    async def units(self) -> list[Unit]:
        """Its chunks, or what it is known by."""
        ...

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range. Raises `SourceChanged`."""
        ...

    async def read_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Those of many short ranges."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def digest(self) -> Digest:
        """Of all of it; known once `units` were asked for."""
        ...


@define(eq=False)
class LocalFile:
    """A file as it is."""

    source: "FileSource"
    item: "Item"
    _whole: blake3 = field(factory=blake3)

    @property
    def size(self) -> int:
        return self.item.size

    @property
    def digest(self) -> Digest:
        return Digest(self._whole.digest())

    async def units(self) -> list[Unit]:
        """Raises `SourceChanged`."""
        await self.source.rewind(0)
        chunker, units, last = Chunker(), list[Unit](), False
        tail = b""
        while not last:
            buffer = bytearray(DEFAULT_CHUNKING.maximum + READ)
            view = memoryview(buffer)
            view[: len(tail)] = tail
            filled = await self.source.readinto(view[len(tail) : len(tail) + READ])
            last = filled < READ
            data = view[: len(tail) + filled]
            cut = partial(self._cut, chunker, data, len(tail), last=last)
            found, tail = await to_thread.run_sync(cut)
            units += found
        if sum(length for _, length in units) != self.size:
            raise self._changed()
        return units

    def _cut(
        self, chunker: Chunker, data: memoryview, seen: int, *, last: bool
    ) -> tuple[list[Unit], bytes]:
        """The chunks at the head of `data`, and what is left; `seen` bytes of it are hashed."""
        self._whole.update(data[seen:])
        cuts, left = cut_piece(chunker, data, last=last)
        return [(cut.digest[:SHORT], len(cut.data)) for cut in cuts], bytes(left)

    async def read(self, start: int, stop: int) -> bytes:
        [data] = await self.read_all([(start, stop)])
        return data

    async def read_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with translated(self.source.name):
            found = await to_thread.run_sync(_read_each, self.source.file.fileno(), ranges)
        if [*map(len, found)] != [stop - start for start, stop in ranges]:
            raise self._changed()
        return found

    async def whole(self) -> bytes:
        """All of it, as it was at one time. Raises `SourceChanged`."""
        data = await self.read(0, self.size)
        await self.source.rewind(self.size)
        if await self.source.readinto(memoryview(bytearray(1))):
            raise self._changed()
        return data

    def _changed(self) -> SourceChanged:
        return SourceChanged(f"{self.source.name} changed while it was read: try again")


@define(eq=False)
class LocalImage:
    """The image of a zip file of `file_size` bytes."""

    data: bytes
    codes: bytes
    file_size: int

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> Digest:
        return digest_of(self.data)

    async def units(self) -> list[Unit]:
        return await to_thread.run_sync(image_units, self.data, self.codes, self.file_size)

    async def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]

    async def read_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.data[start:stop] for start, stop in ranges]


def _read_each(descriptor: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    return [os.pread(descriptor, stop - start, start) for start, stop in ranges]

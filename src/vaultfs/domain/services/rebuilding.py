"""A content from the delta that leads to it and the base that it is from.

Whoever has the base checks it first: nothing is made before the delta's idea of it holds.
What is made is bounded by what the delta says, and compared with its digest at the end:
until then it is nothing to be shown to anybody.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol

from anyio import to_thread
from attrs import define, field, frozen
from blake3 import blake3

from vaultfs.domain.deltacodec import (
    CHECK,
    IMAGES,
    MAGIC,
    MAX_CODES,
    MAX_HEAD,
    MOST_PARTS,
    Block,
    Header,
    Images,
    Parser,
    ReadBase,
    Sealed,
    prefix_ranges,
    read_images,
)
from vaultfs.domain.deltas import Copy, Literal
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, VersionMismatch
from vaultfs.domain.matching import Difference, total
from vaultfs.domain.services import hashing
from vaultfs.domain.zipimages import MAX_IMAGE, MAX_ZIP, Tired, closed, never, opened

PIECE: Final = 1 << 20
"""Bytes that are handed on at a time."""


class Base(Protocol):
    """The content that a delta is from."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def digest(self) -> Digest:
        """Of all of it."""
        ...

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range."""
        ...


def is_between_images(began: bytes) -> bool:
    """Whether a delta that begins so, with as many bytes as tell, is between images."""
    return began.startswith(MAGIC + bytes([IMAGES]))


@define(eq=False)
class Rebuilding:
    """One content on its way."""

    base: Base
    images: bool = False
    """Whether deltas between images are taken: whole files and images are in memory then."""
    tired: Tired = never
    """Asked again and again where an image is packed, in the thread that does so."""
    mean: int = 0
    """Bytes of a step in the mean, at the least: equal blocks of many steps take no room."""
    _parser: Parser = field(factory=Parser)
    _head: Images | None = None
    _whole: blake3 = field(factory=blake3)
    _size: int = 0
    _steps: int = 0

    @property
    def digest(self) -> Digest:
        """Of what was made."""
        return Digest(self._whole.digest())

    async def run(self, delta: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The content, piece by piece. Raises what reading `delta` and the base raises,

        `VersionMismatch` if the base is another one, before anything is made, and `Corrupt`
        or `Unsupported` for a delta that is damaged.
        """
        began = b""
        async for data in delta:
            began += data
            if len(began) > len(MAGIC):
                break
        if self.images and is_between_images(began):
            made = self._from_images(began, delta)
        else:
            made = self._from_blocks(began, delta)
        async with aclosing(made):
            async for piece in made:
                yield piece
        self._check_target()

    async def _from_blocks(
        self, data: bytes, delta: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        checked = False
        while data:
            for sealed in self._parser.feed(data):
                checked = checked or self._check_base()
                async for piece in self._made(sealed):
                    yield piece
            data = await anext(delta, b"")
        self._parser.close()
        self._check_base()

    async def _from_images(
        self, data: bytes, delta: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        while (found := read_images(data)) is None:
            more = await anext(delta, b"")
            if not more or len(data) > MAX_HEAD + 2 * MAX_CODES:
                raise Corrupt("a delta was cut short")
            data += more
        self._head, at = found
        header, base = self._head.header, self.base
        self._check_base()
        if max(header.base_size, header.target_size) > MAX_ZIP:
            raise Corrupt("no zip file as large as that is laid open")
        whole = await base.read(0, base.size) if base.size else b""
        image = await to_thread.run_sync(opened, whole, self._head.base_codes)
        inner = Rebuilding(_Held(image, digest_of(image)), mean=self.mean)
        target, size = list[bytes](), 0
        async with aclosing(inner.run(chained(data[at:], delta))) as made:
            async for piece in made:
                size += len(piece)
                if size > MAX_IMAGE:
                    raise Corrupt("an image of a zip file is too large")
                target.append(piece)
        codes = self._head.target_codes
        packing = (b"".join(target), codes, header.target_size, self.tired)
        data = await to_thread.run_sync(closed, *packing)
        await hashing.see(self._whole, data)
        self._size = len(data)
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]

    @property
    def _header(self) -> Header:
        if self._head is not None:
            return self._head.header
        assert self._parser.header is not None
        return self._parser.header

    def _check_base(self) -> bool:
        header, base = self._header, self.base
        if header.base_size != base.size or header.base != base.digest[:CHECK]:
            raise VersionMismatch(
                "the delta is from another content than the one at hand", expected=None, found=None
            )
        return True

    def _check_target(self) -> None:
        header = self._header
        if self._size != header.target_size or self.digest[:CHECK] != header.target:
            raise Corrupt("what the delta led to is not what it says: get the whole file")

    async def _made(self, sealed: Sealed) -> AsyncGenerator[bytes, None]:
        header = self._header
        parts = await to_thread.run_sync(sealed.steps, header)
        self._steps += len(parts)
        if self.mean and self._steps > MOST_PARTS + self._size // self.mean:
            raise Corrupt("a delta has too many steps for what it leads to: send the whole file")
        known: dict[tuple[int, int], bytes] = {}
        if sealed.takes_prefix:
            for start, stop in prefix_ranges(parts):
                known[start, stop] = await self.base.read(start, stop)
        block = await to_thread.run_sync(sealed.open, parts, _reading(known))
        async for piece in self._laid_out(block):
            self._size += len(piece)
            if self._size > header.target_size:
                raise Corrupt("a delta leads to more bytes than it says")
            await hashing.see(self._whole, piece)
            yield piece

    async def _laid_out(self, block: Block) -> AsyncGenerator[bytes, None]:
        changed = said = 0
        held: list[bytes] = []
        size = 0
        for part in block.parts:
            match part:
                case Literal(length):
                    pieces = [block.literals[said : said + length]]
                    said += length
                case Difference(at, length):
                    old = await self.base.read(at, at + length)
                    change = block.changes[changed : changed + length]
                    pieces = [await to_thread.run_sync(total, old, change)]
                    changed += length
                case Copy(at, length):
                    for start in range(at, at + length - PIECE, PIECE):
                        held.append(await self.base.read(start, start + PIECE))
                        yield b"".join(held)
                        held, size = [], 0
                    left = (length - 1) % PIECE + 1
                    pieces = [await self.base.read(at + length - left, at + length)]
                case _:
                    continue
            held += pieces
            size += part.length
            if size >= PIECE:
                yield b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)


@frozen
class _Held:
    """A base that is in memory."""

    data: bytes
    digest: Digest

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


async def chained(data: bytes, *rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """A stream of which the beginning, or all of it, is at hand."""
    yield data
    for stream in rest:
        async for more in stream:
            yield more


def _reading(known: dict[tuple[int, int], bytes]) -> ReadBase:
    return lambda start, stop: known[start, stop]

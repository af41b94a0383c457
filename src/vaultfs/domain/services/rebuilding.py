"""A content from the delta that leads to it and the base that it is from.

Whoever has the base checks it first: nothing is made before the delta's idea of it holds.
What is made is bounded by what the delta says, and compared with its digest at the end:
until then it is nothing to be shown to anybody.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Protocol

from anyio import to_thread
from attrs import define, field
from blake3 import blake3

from vaultfs.domain.deltacodec import CHECK, Block, Header, Parser, ReadBase, Sealed, prefix_ranges
from vaultfs.domain.deltas import Copy, Literal
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Corrupt, VersionMismatch
from vaultfs.domain.matching import Difference, total

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


@define(eq=False)
class Rebuilding:
    """One content on its way."""

    base: Base
    _parser: Parser = field(factory=Parser)
    _whole: blake3 = field(factory=blake3)
    _size: int = 0

    @property
    def digest(self) -> Digest:
        """Of what was made."""
        return Digest(self._whole.digest())

    async def run(self, delta: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The content, piece by piece. Raises what reading `delta` and the base raises,

        `VersionMismatch` if the base is another one, before anything is made, and `Corrupt`
        or `Unsupported` for a delta that is damaged.
        """
        checked = False
        async for data in delta:
            for sealed in self._parser.feed(data):
                checked = checked or self._check_base()
                async for piece in self._made(sealed):
                    yield piece
        self._parser.close()
        self._check_base()
        self._check_target()

    @property
    def _header(self) -> Header:
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
        known: dict[tuple[int, int], bytes] = {}
        if sealed.takes_prefix:
            for start, stop in prefix_ranges(parts):
                known[start, stop] = await self.base.read(start, stop)
        block = await to_thread.run_sync(sealed.open, parts, _reading(known))
        async for piece in self._laid_out(block):
            self._size += len(piece)
            if self._size > header.target_size:
                raise Corrupt("a delta leads to more bytes than it says")
            if len(piece) > PIECE // 4:
                await to_thread.run_sync(self._whole.update, piece)
            else:
                self._whole.update(piece)
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


def _reading(known: dict[tuple[int, int], bytes]) -> ReadBase:
    return lambda start, stop: known[start, stop]

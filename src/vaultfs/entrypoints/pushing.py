"""A local file to a server by what the version there does not have, which nobody here has.

    signature of the version there -> copies and gaps -> finer signature of the gaps -> delta

What the server has is known by short digests; it rebuilds the file and compares the whole.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from anyio import to_thread
from attrs import define, field
from blake3 import blake3

from vaultfs.domain.chunks import DEFAULT_CHUNKING, Chunker
from vaultfs.domain.deltacodec import (
    MEDIA_TYPE,
    MOST_PARTS,
    Block,
    Header,
    Part,
    encode_block,
    write_end,
    write_header,
)
from vaultfs.domain.deltas import Copy, Delta, Literal, delta_of
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Corrupt, SourceChanged
from vaultfs.domain.matching import Gap, gaps_of, match_units
from vaultfs.domain.nodes import Version
from vaultfs.domain.services.ingest import cut_piece
from vaultfs.domain.signatures import SHORT, Unit, pieces_of, read_units
from vaultfs.entrypoints.answers import conditions, origin_headers, version_of
from vaultfs.entrypoints.surface import Stored
from vaultfs.ports.progress import Progress

if TYPE_CHECKING:
    from vaultfs.adapters.files import FileSource
    from vaultfs.domain.nodes import Preconditions
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.ports.trees import Item

READ: Final = 4 << 20
"""Bytes that are read and cut with one hop to a thread."""
STRETCH: Final = 8 << 20
"""Bytes of a gap that are worked on together, and of literals in a block."""
SAMPLE: Final = 256 << 10
"""Bytes of it that are enough to find out whether it is worth asking for more."""
ASKED: Final = 32 << 20
"""Bytes of the version there whose pieces are asked for with one request, and of a gap that are
compared with them at a time.
"""
MOST: Final = 64 << 20
"""Bytes of a delta; what is longer goes as an upload, which is not held in memory."""


@define(eq=False)
class Difference:
    """A local file as the difference to a version of a server."""

    vault: "RemoteVault"
    path: str
    source: "FileSource"
    item: "Item"
    preconditions: "Preconditions"
    progress: Progress
    sent: int = 0
    """Bytes of bodies, and of signatures."""
    _whole: blake3 = field(factory=blake3)

    async def run(self) -> Stored | None:
        """Store it. None if a delta would be no use: then nothing was sent but a question.

        Raises what the server refuses it with, `Corrupt` for signatures that are none, and
        `SourceChanged`.
        """
        headers = conditions(self.preconditions)
        calls = self.vault.calls
        answer = await calls.ask("GET", self.vault.url("signatures", self.path), headers=headers)
        self.sent += len(answer.data)
        base = version_of(answer.headers)
        if base.digest is None:
            return None
        there = read_units(answer.data)
        here = await self._units()
        steps, size = match_units(there, here)
        coarse = delta_of(size, steps)
        if size != base.size or not await self._promising(coarse, base):
            return None
        parts = await self._parts(coarse, base)
        data = await self._encoded(base, base.digest, parts)
        if data is None or len(data) >= self.item.size:
            return None
        url = self.vault.url("deltas", self.path)
        kind = {"Content-Type": MEDIA_TYPE, **origin_headers(self.item.origin)}
        stored = await calls.ask("POST", url, headers=headers | kind, data=data, again=False)
        self.sent += len(data)
        self.progress(self.item.size)
        return Stored(self.vault.node_of(stored), int(stored.headers.get("Vaultfs-Changed") != "0"))

    async def _promising(self, coarse: Delta, base: Version) -> bool:
        """Whether it is worth asking on: where few chunks are the same, a sample decides."""
        if coarse.literal * 10 <= coarse.target * 9:
            return True
        gap = max(gaps_of(coarse.steps, coarse.base), key=_length)
        size = gap.base_stop - gap.base_start
        start = gap.base_start + size // 2
        sample = gap._replace(base_start=start, base_stop=min(start + size // 4, start + SAMPLE))
        [units] = await self._ask([sample], base)
        if not units:
            return False
        middle = (gap.start + gap.stop) // 2
        near = (max(gap.start, middle - STRETCH // 2), min(gap.stop, middle + STRETCH // 2))
        here = await to_thread.run_sync(pieces_of, await self.read(*near))
        return not {digest for digest, _ in units}.isdisjoint(digest for digest, _ in here)

    async def _units(self) -> list[Unit]:
        """The chunks of the local file."""
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
        if sum(length for _, length in units) != self.item.size:
            raise SourceChanged(f"{self.source.name} changed while it was read: try again")
        return units

    def _cut(
        self, chunker: Chunker, data: memoryview, seen: int, *, last: bool
    ) -> tuple[list[Unit], bytes]:
        """The chunks at the head of `data`, and what is left; `seen` bytes of it are hashed."""
        self._whole.update(data[seen:])
        cuts, left = cut_piece(chunker, data, last=last)
        return [(cut.digest[:SHORT], len(cut.data)) for cut in cuts], bytes(left)

    async def _parts(self, coarse: Delta, base: Version) -> list[Part]:
        """The steps, with the gaps looked into."""
        gaps = gaps_of(coarse.steps, coarse.base)
        signed = await self._finer(gaps, base)
        found: list[Part] = []
        each = iter(zip(gaps, signed, strict=True))
        for step in coarse.steps:
            if isinstance(step, Copy):
                found.append(step)
                continue
            gap, units = next(each)
            if not units:
                found.append(step)
                continue
            for start in range(gap.start, gap.stop, ASKED):
                data = await self.read(start, min(gap.stop, start + ASKED))
                fine, _ = match_units(units, await to_thread.run_sync(pieces_of, data))
                found += (
                    Copy(part.at + gap.base_start, part.length) if isinstance(part, Copy) else part
                    for part in fine
                )
        return list(_joined(found))

    async def _finer(self, gaps: Sequence[Gap], base: Version) -> list[list[Unit]]:
        """The pieces of each gap's stretch of the version there; none of what was too long."""
        found: list[list[Unit]] = []
        group: list[Gap] = []
        for gap in gaps:
            size = gap.base_stop - gap.base_start
            if group and (
                sum(each.base_stop - each.base_start for each in group) + size > ASKED
                or gap.base_start < group[-1].base_stop
            ):
                found += await self._ask(group, base)
                group = []
            group.append(gap)
        return found + await self._ask(group, base)

    async def _ask(self, gaps: Sequence[Gap], base: Version) -> list[list[Unit]]:
        ranges = [(gap.base_start, gap.base_stop) for gap in gaps]
        asked = [each for each in ranges if 0 < each[1] - each[0] <= ASKED]
        if not asked:
            return [[] for _ in gaps]
        answer = await self.vault.calls.ask(
            "POST",
            self.vault.url("signatures", self.path, {"version": str(base.number)}),
            headers={"If-Match": f'"v{base.id}"'},
            data=msgspec.json.encode({"ranges": asked}),
        )
        self.sent += len(answer.data)
        units = iter(read_units(answer.data))
        found: list[list[Unit]] = []
        for start, stop in ranges:
            mine: list[Unit] = []
            left = stop - start if (start, stop) in asked else 0
            while left > 0:
                unit = next(units, (b"", 0))
                if not 0 < unit[1] <= left:
                    raise Corrupt("a signature is not of the ranges that were asked for")
                mine.append(unit)
                left -= unit[1]
            found.append(mine)
        return found

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range of the local file. Raises `SourceChanged`."""
        await self.source.rewind(start)
        buffer = bytearray(stop - start)
        view = memoryview(buffer)
        filled = 0
        while filled < len(buffer):
            read = await self.source.readinto(view[filled : filled + READ])
            if not read:
                raise SourceChanged(f"{self.source.name} changed while it was read: try again")
            filled += read
        return bytes(buffer)

    async def _encoded(self, base: Version, digest: Digest, parts: Sequence[Part]) -> bytes | None:
        """The delta, whole; None if it is not short."""
        target = Digest(self._whole.digest())
        data = [write_header(Header.of(base.size, digest, self.item.size, target))]
        blocks = size = 0
        async with aclosing(self._blocks(parts)) as each:
            async for block in each:
                data.append(await to_thread.run_sync(encode_block, block, _nothing))
                blocks, size = blocks + 1, size + len(data[-1])
                if size > MOST:
                    return None
        data.append(write_end(blocks))
        return b"".join(data)

    async def _blocks(self, parts: Sequence[Part]) -> AsyncGenerator[Block, None]:
        held: list[Part] = []
        literals: list[bytes] = []
        at = size = 0
        for part in parts:
            for piece in _split(part):
                new = piece.length if isinstance(piece, Literal) else 0
                if size + new > STRETCH or len(held) >= MOST_PARTS:
                    yield Block(tuple(held), b"", b"".join(literals))
                    held, literals, size = [], [], 0
                if new:
                    literals.append(await self.read(at, at + new))
                    size += new
                held.append(piece)
                at += piece.length
        yield Block(tuple(held), b"", b"".join(literals))


def _joined(parts: Sequence[Part]) -> Sequence[Part]:
    plain = [part for part in parts if isinstance(part, Copy | Literal)]
    size = max((part.at + part.length for part in plain if isinstance(part, Copy)), default=0)
    return delta_of(size, plain).steps


def _split(part: Part) -> Sequence[Part]:
    if isinstance(part, Literal) and part.length > STRETCH:
        whole, rest = divmod(part.length, STRETCH)
        return [Literal(STRETCH)] * whole + ([Literal(rest)] if rest else [])
    return [part]


def _nothing(start: int, stop: int) -> bytes:
    raise AssertionError(f"a block without regions asks for bytes {start} to {stop}")


def _length(gap: Gap) -> int:
    return gap.stop - gap.start

"""What of a content here is in one that only a server has, found by asking for pieces of that.

    chunks there -> copies and gaps -> pieces of the gaps, large ones first -> a delta

Whoever is asked knows the other content by short digests alone.
"""

from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

from anyio import to_thread
from attrs import define, field

from vaultfs.domain.chunks import Chunking
from vaultfs.domain.deltacodec import (
    MOST_PARTS,
    Block,
    Header,
    Part,
    ReadBase,
    Region,
    encode_block,
    prefix_ranges,
    write_end,
    write_header,
)
from vaultfs.domain.deltas import Copy, Delta, Literal, Step, delta_of
from vaultfs.domain.digests import Digest
from vaultfs.domain.matching import Gap, gaps_of, match_units
from vaultfs.domain.signatures import FINE, FINEST, MEDIUM, MOST_RANGES, Unit, pieces_of
from vaultfs.entrypoints.local_contents import Here

STRETCH: Final = 8 << 20
"""Bytes of a gap that are worked on together, and of literals in a block."""
SAMPLE: Final = 256 << 10
"""Bytes of it that are enough to find out whether it is worth asking for more."""
NEAR: Final = 2 << 10
"""Bytes on either side of a literal that it is compressed with."""
ASKED: Final = 32 << 20
"""Bytes of the version there whose pieces are asked for with one request, and of a gap that are
compared with them at a time.
"""
MOST: Final = 64 << 20
"""Bytes of a delta; what is longer goes as an upload, which is not held in memory."""
FEW: Final = 2 << 10
"""Bytes of gaps that are worth the smallest pieces, and no sample, if what stands in their place
is not much longer.
"""
MUCH: Final = 64 << 10
"""Bytes of gaps of which so many small pieces are not asked for at once."""


class Signed(NamedTuple):
    """A content of which only its chunks are known."""

    units: list[Unit]
    size: int
    digest: Digest


class Signatures(Protocol):
    """Who tells of what the other content is made."""

    @property
    def codes(self) -> bytes | None:
        """How it is laid open, if it is an image of a zip file."""
        ...

    async def pieces(self, ranges: Sequence[tuple[int, int]], cut: Chunking) -> list[list[Unit]]:
        """The pieces of ranges that are in order and do not overlap. Raises `Corrupt`."""
        ...


@define(eq=False)
class Search:
    """What of a content here is in one there."""

    here: Here
    there: Signatures

    async def delta(self, signed: Signed) -> bytes | None:
        """The delta from one to the other; None if it is not promising, or too long."""
        matched, size = match_units(signed.units, await self.here.units())
        coarse = delta_of(size, matched)
        if size != signed.size or not await self._promising(coarse):
            return None
        steps: Sequence[Step] = coarse.steps
        cuts = self._cuts(coarse)
        for cut in cuts:
            steps = await self._refined(steps, gaps_of(steps, coarse.base, context=0), cut)
        if len(cuts) > 1:
            steps = await self._refined(steps, _gaps_in_front(steps), cuts[-1])
        return await self._encoded(signed, steps)

    def _cuts(self, coarse: Delta) -> tuple[Chunking, ...]:
        """How gaps are looked into: where there is much of them, for larger pieces first."""
        if _is_little(coarse):
            return (FINEST,)
        large = coarse.literal > MUCH and self.there.codes is None
        return (MEDIUM, FINE) if large else (FINE,)

    async def _promising(self, coarse: Delta) -> bool:
        """Whether it is worth asking on: where few chunks are the same, a sample decides."""
        if coarse.literal * 10 <= coarse.target * 9 or _is_little(coarse):
            return True
        gap = max(gaps_of(coarse.steps, coarse.base, context=0), key=_length)
        size = gap.base_stop - gap.base_start
        start = gap.base_start + size // 2
        sample = gap._replace(base_start=start, base_stop=min(start + size // 4, start + SAMPLE))
        if not _holds_pieces(sample, FINE):
            return False
        [units] = await self.there.pieces([(sample.base_start, sample.base_stop)], FINE)
        middle = (gap.start + gap.stop) // 2
        near = (max(gap.start, middle - STRETCH // 2), min(gap.stop, middle + STRETCH // 2))
        here = await to_thread.run_sync(pieces_of, await self.here.read(*near))
        return not set(units).isdisjoint(here)

    async def _refined(
        self, steps: Sequence[Step], gaps: Sequence[Gap], cut: Chunking
    ) -> Sequence[Step]:
        """The steps, with the gaps looked into."""
        refined: list[list[Step]] = [[] for _ in gaps]
        for group in _grouped(await self._finer(gaps, cut)):
            read = await self.here.read_all([(each.start, each.stop) for each in group])
            found = await to_thread.run_sync(_matched, group, read, cut)
            for each, fine in zip(group, found, strict=True):
                refined[each.number] += fine
        in_gaps = iter(refined)
        joined: list[Step] = []
        for step in steps:
            joined += (step,) if isinstance(step, Copy) else next(in_gaps) or (step,)
        return _joined(joined)

    async def _finer(self, gaps: Sequence[Gap], cut: Chunking) -> list[tuple[Gap, Sequence[Unit]]]:
        """Each gap, and the pieces of its stretch of the version there, from the first on that is
        all inside it; none of what was too long.
        """
        found: list[tuple[Gap, Sequence[Unit]]] = [(gap, ()) for gap in gaps]
        left = _stretches(gaps, cut)
        while left:
            group, left = _together(left)
            pieces = await self.there.pieces([(each.start, each.stop) for each in group], cut)
            for (start, _, numbers), units in zip(group, pieces, strict=True):
                places = list(accumulate((length for _, length in units), initial=start))
                for number in numbers:
                    gap = gaps[number]
                    first = bisect_left(places, gap.base_start)
                    last = bisect_right(places, gap.base_stop) - 1
                    if first < last:
                        found[number] = (gap._replace(base_start=places[first]), units[first:last])
        return found

    async def _encoded(self, base: Signed, parts: Sequence[Part]) -> bytes | None:
        """The delta, whole; None if it is not short."""
        header = Header.of(base.size, base.digest, self.here.size, self.here.digest)
        data = [write_header(header)]
        blocks = size = 0
        async with aclosing(self._blocks(parts)) as each:
            async for block in each:
                near = await self._near(block)
                data.append(await to_thread.run_sync(encode_block, block.block, _reading(near)))
                blocks, size = blocks + 1, size + len(data[-1])
                if size > MOST:
                    return None
        data.append(write_end(blocks))
        return b"".join(data)

    async def _blocks(self, parts: Sequence[Part]) -> AsyncGenerator["_Placed", None]:
        making, literals = _Placed(), list[tuple[int, int]]()
        at = size = 0
        for part in parts:
            for piece in _split(part):
                new = piece.length if isinstance(piece, Literal) else 0
                if size + new > STRETCH or making.steps >= MOST_PARTS // 3:
                    yield making.with_literals(await self.here.read_all(literals))
                    making, literals, size = _Placed(), [], 0
                if new:
                    literals.append((at, at + new))
                    size += new
                making.add(piece, at)
                at += piece.length
        yield making.with_literals(await self.here.read_all(literals))

    async def _near(self, placed: "_Placed") -> dict[tuple[int, int], bytes]:
        """The bytes of the base that `placed` is compressed with: what is copied is here too."""
        ranges = prefix_ranges(placed.block.parts)  # one for each region, up to the most
        places = zip(ranges, placed.places, strict=False)
        here = [(at, at + stop - start) for (start, stop), at in places]
        return dict(zip(ranges, await self.here.read_all(here), strict=True))


@define(eq=False)
class _Placed:
    """A block, with what of the base stands beside its literals, and where that is here."""

    block: Block = field(factory=lambda: Block((), b"", b""))
    places: list[int] = field(factory=list[int])
    """Of each such region."""
    _parts: list[Part] = field(factory=list[Part])
    _regions: list[Region] = field(factory=list[Region])
    _last: tuple[Copy, int] | None = None
    """The copy in front, and where it is here."""
    _open: bool = False
    """Whether a literal stands in front of what is next."""

    @property
    def steps(self) -> int:
        return len(self._parts)

    def add(self, part: Part, at: int) -> None:
        """A step more, which leads to byte `at` here."""
        self._parts.append(part)
        if isinstance(part, Literal):
            if self._last is not None:
                copy, place = self._last
                size = min(copy.length, NEAR)
                behind = copy.at + copy.length
                self._region(behind - size, behind, place + copy.length - size)
            self._open, self._last = True, None
        elif isinstance(part, Copy):
            if self._open:
                self._region(part.at, part.at + min(part.length, NEAR), at)
            self._open, self._last = False, (part, at)

    def _region(self, start: int, stop: int, at: int) -> None:
        if self._regions:
            last = self._regions[-1]
            skipped = max(0, last.at + last.length - start) if last.at <= start else 0
            start, at = start + skipped, at + skipped
        if start < stop:
            self._regions.append(Region(start, stop - start))
            self.places.append(at)

    def with_literals(self, literals: Sequence[bytes]) -> "_Placed":
        """All of it: behind its steps, regions are compressed with as a whole."""
        self.block = Block((*self._parts, *self._regions), b"", b"".join(literals))
        return self


def _joined(steps: Sequence[Step]) -> Sequence[Step]:
    size = max((step.at + step.length for step in steps if isinstance(step, Copy)), default=0)
    return delta_of(size, steps).steps


class _Window(NamedTuple):
    """A part of a gap that is looked into at once, and the pieces of its stretch there."""

    number: int
    """Of the gap."""
    start: int
    stop: int
    units: Sequence[Unit]
    base_start: int


def _grouped(looked: Sequence[tuple[Gap, Sequence[Unit]]]) -> Iterator[list[_Window]]:
    """The windows of gaps of which there are pieces, as many as are looked into with one hop."""
    group, size = list[_Window](), 0
    for number, (gap, units) in enumerate(looked):
        for start in range(gap.start, gap.stop, ASKED) if units else ():
            stop = min(gap.stop, start + ASKED)
            if group and size + stop - start > ASKED:
                yield group
                group, size = [], 0
            group.append(_Window(number, start, stop, units, gap.base_start))
            size += stop - start
    if group:
        yield group


def _matched(group: Sequence[_Window], read: Sequence[bytes], cut: Chunking) -> list[list[Step]]:
    """The steps that lead to what was `read` in each window. CPU work."""
    found: list[list[Step]] = []
    for each, data in zip(group, read, strict=True):
        steps, _ = match_units(_keyed(each.units), _keyed(pieces_of(data, cut)))
        found.append(
            [
                Copy(step.at + each.base_start, step.length) if isinstance(step, Copy) else step
                for step in steps
            ]
        )
    return found


def _keyed(units: Sequence[Unit]) -> list[tuple[Unit, int]]:
    """Units that are equal only if their lengths are."""
    return [(unit, unit[1]) for unit in units]


def _split(part: Part) -> Sequence[Part]:
    if isinstance(part, Literal) and part.length > STRETCH:
        whole, rest = divmod(part.length, STRETCH)
        return [Literal(STRETCH)] * whole + ([Literal(rest)] if rest else [])
    return [part]


def _reading(near: Mapping[tuple[int, int], bytes]) -> ReadBase:
    return lambda start, stop: near[start, stop]


def _holds_pieces(gap: Gap, cut: Chunking) -> bool:
    """Whether both sides are long enough for a piece that is not all of them."""
    return min(gap.stop - gap.start, gap.base_stop - gap.base_start) > cut.minimum


def _gaps_in_front(steps: Sequence[Step]) -> list[Gap]:
    """The literals, each with what in the base stands in front of the copy that comes next.

    Nothing where that is what follows the copy before it, which `gaps_of` gives. Where content
    was moved, the beginning of it is no piece that both cut the same way.
    """
    gaps: list[Gap] = []
    at = pointer = 0
    for index, step in enumerate(steps):
        stop = at + step.length
        if isinstance(step, Copy):
            pointer = step.at + step.length
        else:
            after = steps[index + 1] if index + 1 < len(steps) else None
            size = step.length + FINE.average
            if isinstance(after, Copy) and not pointer <= after.at <= pointer + size:
                gaps.append(Gap(at, stop, max(0, after.at - size), after.at))
            else:
                gaps.append(Gap(at, stop, 0, 0))
        at = stop
    return gaps


class _Stretch(NamedTuple):
    """A range of the base that is asked about, and the numbers of the gaps that it is for."""

    start: int
    stop: int
    gaps: list[int]


def _stretches(gaps: Sequence[Gap], cut: Chunking) -> list[_Stretch]:
    """What of the base is asked about, in order; nothing that is too long, or would be one piece.

    Stretches that overlap are one: where content is repeated, many gaps have the same.
    """
    found: list[_Stretch] = []
    for number in sorted(range(len(gaps)), key=lambda number: gaps[number].base_start):
        gap = gaps[number]
        start, stop = gap.base_start, gap.base_stop
        if not _holds_pieces(gap, cut) or stop - start > ASKED:
            continue
        last = found[-1] if found else None
        if last is not None and start < last.stop and max(stop, last.stop) - last.start <= ASKED:
            last.gaps.append(number)
            found[-1] = last._replace(stop=max(stop, last.stop))
        else:
            found.append(_Stretch(start, stop, [number]))
    return found


def _together(stretches: Sequence[_Stretch]) -> tuple[list[_Stretch], list[_Stretch]]:
    """Those that are asked about with one request, in which none overlap; and the others."""
    group, left = list[_Stretch](), list[_Stretch]()
    size = end = 0
    for index, each in enumerate(stretches):
        length = each.stop - each.start
        if group and (len(group) == MOST_RANGES or size + length > ASKED):
            return group, [*left, *stretches[index:]]
        if each.start >= end:
            group.append(each)
            size, end = size + length, each.stop
        else:
            left.append(each)
    return group, left


def _is_little(coarse: Delta) -> bool:
    """Whether it takes little to ask for the smallest pieces, whatever comes of it."""
    if coarse.literal > FEW:
        return False
    gaps = gaps_of(coarse.steps, coarse.base, context=0)
    return sum(gap.base_stop - gap.base_start for gap in gaps) <= 4 * FEW


def _length(gap: Gap) -> int:
    return gap.stop - gap.start

"""A local file to a server by what the version there does not have, which nobody here has.

    signature of the version there -> copies and gaps -> finer signature of the gaps -> delta

What the server has is known by short digests; it rebuilds the file and compares the whole.
Of two zip files it is the images that are compared, with what differs laid open.
"""

from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from anyio import to_thread
from attrs import define, evolve, field

from vaultfs.domain.chunks import Chunking
from vaultfs.domain.deltacodec import (
    MEDIA_TYPE,
    MOST_PARTS,
    Block,
    Header,
    Images,
    Part,
    ReadBase,
    Region,
    encode_block,
    prefix_ranges,
    write_end,
    write_header,
    write_images,
)
from vaultfs.domain.deltas import Copy, Delta, Literal, Step, delta_of
from vaultfs.domain.digests import Digest, digest_from_hex, digest_of
from vaultfs.domain.errors import Corrupt, InvalidField, TooLarge, Unsupported
from vaultfs.domain.matching import Gap, gaps_of, match_units
from vaultfs.domain.nodes import Version
from vaultfs.domain.signatures import (
    FINE,
    FINEST,
    MEDIUM,
    MOST_RANGES,
    Unit,
    pieces_of,
    read_pieces,
    read_units,
)
from vaultfs.domain.zipimages import MAGIC, MAX_ZIP, codes_against, opened, packed_members
from vaultfs.entrypoints.answers import conditions, origin_headers, version_of
from vaultfs.entrypoints.calling import Slices
from vaultfs.entrypoints.local_contents import Here, LocalFile, LocalImage
from vaultfs.entrypoints.surface import Stored
from vaultfs.ports.progress import Progress

if TYPE_CHECKING:
    from vaultfs.adapters.files import FileSource
    from vaultfs.domain.nodes import Preconditions
    from vaultfs.entrypoints.calling import Answer
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.ports.trees import Item

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
MOST_IMAGES: Final = 4 << 20
"""Bytes of one between images: a server takes no longer ones."""
MUCH_LESS: Final = 4
"""Of a zip file so many times as long as the new one, members alone may take as much as that."""
IMAGE_UNITS: Final = 24
"""Bytes of an image's signature for each member, at the least."""
FEW: Final = 2 << 10
"""Bytes of gaps that are worth the smallest pieces, and no sample, if what stands in their place
is not much longer.
"""
MUCH: Final = 64 << 10
"""Bytes of gaps of which so many small pieces are not asked for at once."""
LITTLE: Final = 50
"""What part of a file may be asked for in vain."""


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
        there, here = There(self, base), LocalFile(self.source, self.item)
        data = await self._between_images(base, base.digest, there, here)
        if data is None:
            signed = Signed(read_units(answer.data), base.size, base.digest)
            data = await Search(here, there).delta(signed)
        if data is None or len(data) >= self.item.size:
            return None
        url = self.vault.url("deltas", self.path)
        kind = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(data))}
        headers |= kind | origin_headers(self.item.origin)
        self.sent += len(data)
        stored = await calls.ask("POST", url, headers=headers, data=Slices(data), again=False)
        self.progress(self.item.size)
        changed = int(stored.headers.get("Vaultfs-Changed") != "0")
        return Stored(self.vault.node_of(stored), changed, self.sent)

    async def _between_images(
        self, base: Version, digest: Digest, there: "There", here: "LocalFile"
    ) -> bytes | None:
        """The delta between images of two zip files; None if they are none, or gain nothing."""
        size = self.item.size
        if not len(MAGIC) <= size <= MAX_ZIP or base.size > min(MAX_ZIP, MUCH_LESS * size):
            return None
        if await here.read(0, len(MAGIC)) != MAGIC:
            return None
        with suppress(Corrupt, InvalidField, TooLarge, Unsupported):
            members = await there.members()
            whole = await here.whole()
            codes = await to_thread.run_sync(_codes, members, whole)
            if codes is None:
                return None
            laid_open = await to_thread.run_sync(opened, whole, codes[1])
            image = LocalImage(laid_open, codes[1], len(whole))
            there = evolve(there, codes=codes[0])
            inner = await Search(image, there).delta(await there.image())
            header = Header.of(base.size, digest, len(whole), digest_of(whole))
            data = write_images(Images(header, *codes)) + (inner or b"")
            return data if inner is not None and len(data) <= MOST_IMAGES else None
        return None


def _codes(olds: Sequence[Unit], whole: bytes) -> tuple[bytes, bytes] | None:
    """As `codes_against`, but None too unless the image's signature is little, or sure to pay
    because of what both have.
    """
    news = packed_members(whole)
    shared = sum(length for _, length in {unit for unit, _, _ in news}.intersection(olds))
    if len(olds) * IMAGE_UNITS > max(len(whole) // LITTLE, shared // 2):
        return None
    return codes_against(olds, news)


class Signed(NamedTuple):
    """A content of which only its chunks are known."""

    units: list[Unit]
    size: int
    digest: Digest


@define(eq=False)
class There:
    """The version that a server has, or the image of it."""

    asking: Difference
    base: Version
    codes: bytes | None = None
    """How it is laid open."""

    async def members(self) -> list[Unit]:
        """Of the zip file that it is. Raises `InvalidField` if it is none."""
        return read_units((await self._ask("GET", {"members": "true"})).data)

    async def image(self) -> Signed:
        """The image's chunks. Raises `Corrupt`, and `InvalidField` if there is no such image."""
        answer = await self._ask("POST", {}, msgspec.json.encode({"codes": self.codes}))
        try:
            size = int(answer.headers["Vaultfs-Image-Size"])
            vouched = answer.headers["Vaultfs-Image-Digest"].removeprefix("blake3=")
            return Signed(read_units(answer.data), size, digest_from_hex(vouched))
        except (KeyError, ValueError) as error:
            raise Corrupt("a signature does not say of which image it is") from error

    async def pieces(self, gaps: Sequence[Gap], cut: Chunking = FINE) -> list[list[Unit]]:
        """The pieces of each gap's stretch; none of what is too long, or would be one piece.

        Raises `Corrupt`.
        """
        ranges = [
            (gap.base_start, gap.base_stop if _holds_pieces(gap, cut) else gap.base_start)
            for gap in gaps
        ]
        asked = [each for each in ranges if 0 < each[1] - each[0] <= ASKED]
        if not asked:
            return [[] for _ in gaps]
        wanted = {"ranges": asked, "mean": cut.average, "codes": self.codes}
        answer = await self._ask("POST", {}, msgspec.json.encode(wanted))
        units = iter(read_pieces(answer.data))
        found: list[list[Unit]] = []
        for start, stop in ranges:
            mine: list[Unit] = []
            left = stop - start if stop - start <= ASKED else 0
            while left > 0:
                unit = next(units, (b"", 0))
                if not 0 < unit[1] <= left:
                    raise Corrupt("a signature is not of the ranges that were asked for")
                mine.append(unit)
                left -= unit[1]
            found.append(mine)
        return found

    async def _ask(self, method: str, query: dict[str, str], body: bytes | None = None) -> "Answer":
        vault, base = self.asking.vault, self.base
        url = vault.url("signatures", self.asking.path, {"version": str(base.number), **query})
        headers = {"If-Match": f'"v{base.id}"'}
        answer = await vault.calls.ask(method, url, headers=headers, data=body)
        self.asking.sent += len(answer.data)
        return answer


@define(eq=False)
class Search:
    """What of a content here is in one there."""

    here: Here
    there: There

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
        [units] = await self.there.pieces([sample])
        if not units:
            return False
        middle = (gap.start + gap.stop) // 2
        near = (max(gap.start, middle - STRETCH // 2), min(gap.stop, middle + STRETCH // 2))
        here = await to_thread.run_sync(pieces_of, await self.here.read(*near))
        return not set(units).isdisjoint(here)

    async def _refined(
        self, steps: Sequence[Step], gaps: Sequence[Gap], cut: Chunking
    ) -> Sequence[Step]:
        """The steps, with the gaps looked into."""
        found: list[Step] = []
        each = iter(await self._finer(gaps, cut))
        for step in steps:
            if isinstance(step, Copy):
                found.append(step)
                continue
            gap, units = next(each)
            if not units:
                found.append(step)
                continue
            for start in range(gap.start, gap.stop, ASKED):
                data = await self.here.read(start, min(gap.stop, start + ASKED))
                fine, _ = match_units(
                    _keyed(units), _keyed(await to_thread.run_sync(pieces_of, data, cut))
                )
                found += (
                    Copy(part.at + gap.base_start, part.length) if isinstance(part, Copy) else part
                    for part in fine
                )
        return _joined(found)

    async def _finer(self, gaps: Sequence[Gap], cut: Chunking) -> list[tuple[Gap, Sequence[Unit]]]:
        """Each gap, and the pieces of its stretch of the version there, from the first on that is
        all inside it; none of what was too long.
        """
        found: list[tuple[Gap, Sequence[Unit]]] = [(gap, ()) for gap in gaps]
        left = _stretches(gaps, cut)
        while left:
            group, left = _together(left)
            pieces = await self.there.pieces([stretch for stretch, _ in group], cut)
            for (stretch, numbers), units in zip(group, pieces, strict=True):
                lengths = (length for _, length in units)
                places = list(accumulate(lengths, initial=stretch.base_start))
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


def _stretches(gaps: Sequence[Gap], cut: Chunking) -> list[tuple[Gap, list[int]]]:
    """What of the base is asked about, in order, with the numbers of the gaps that it is for.

    Stretches that overlap are one: where content is repeated, many gaps have the same.
    """
    found: list[tuple[Gap, list[int]]] = []
    for number in sorted(range(len(gaps)), key=lambda number: gaps[number].base_start):
        gap, numbers = gaps[number], [number]
        if not _holds_pieces(gap, cut):
            continue
        if found:
            last, others = found[-1]
            both = last._replace(base_stop=max(last.base_stop, gap.base_stop))
            if gap.base_start < last.base_stop and both.base_stop - both.base_start <= ASKED:
                found.pop()
                others.append(number)
                gap, numbers = both, others
        found.append((gap, numbers))
    return found


def _together(
    stretches: Sequence[tuple[Gap, list[int]]],
) -> tuple[list[tuple[Gap, list[int]]], list[tuple[Gap, list[int]]]]:
    """Those that are asked about with one request, in which none overlap; and the others."""
    group, left = list[tuple[Gap, list[int]]](), list[tuple[Gap, list[int]]]()
    size = end = 0
    for index, each in enumerate(stretches):
        gap = each[0]
        length = gap.base_stop - gap.base_start
        if group and (len(group) == MOST_RANGES or size + length > ASKED):
            return group, [*left, *stretches[index:]]
        if gap.base_start >= end:
            group.append(each)
            size, end = size + length, gap.base_stop
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

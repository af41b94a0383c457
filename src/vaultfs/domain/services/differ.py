"""From one content of the vault to another: the first round on manifests, the second on bytes.

    units of two manifests -> copies and gaps -> bytes of a gap, old and new -> steps -> blocks

Pages that both manifests have are not read. Of the contents only the gaps are, on both
sides, a bounded stretch at a time. One stretch is worked on at a time in a process, and
one block encoded beside it, so that memory is bounded however many ask.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final, Generic, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.domain.chunks import Chunker
from vaultfs.domain.cutting import cut_piece
from vaultfs.domain.deltacodec import (
    MOST_PARTS,
    Block,
    Header,
    Images,
    Part,
    ReadBase,
    Region,
    encode_block,
    write_end,
    write_header,
    write_images,
)
from vaultfs.domain.deltas import Copy, Delta, Literal, Step, delta_of
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.matching import (
    Difference,
    Gap,
    difference,
    gaps_of,
    match_units,
    refine,
)
from vaultfs.domain.nodes import UserId
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.signatures import Unit as Short
from vaultfs.domain.zipimages import MAGIC, MAX_ZIP, codes_of, opened, packed_units

STRETCH: Final = 8 << 20
"""Bytes of the target that are worked on together."""
SPARE: Final = 2 << 20
"""Bytes of the base on either side of where a part of a long gap should stand."""
T = TypeVar("T")
Unit = tuple[tuple[int, Digest], int]
"""A chunk, or a page of a level, and the bytes under it."""


@define(eq=False)
class Differ:
    """One of these serves a process."""

    reader: Reader
    workers: anyio.CapacityLimiter
    working: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(1))
    encoding: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(1))

    async def steps(self, user: UserId, base: Manifest, target: Manifest) -> Delta:
        """The first round: what of the target's chunks and pages the base has."""
        old, new = await self._units(user, base, target)
        steps, size = match_units(old, new)
        return delta_of(size, steps)

    async def _units(
        self, user: UserId, base: Manifest, target: Manifest
    ) -> tuple[list[Unit], list[Unit]]:
        """Both as lists of units; pages that only one of them has are opened."""
        old: list[Unit] = [((base.level, digest), size) for digest, size in base.entries]
        new: list[Unit] = [((target.level, digest), size) for digest, size in target.entries]
        for level in range(max(base.level, target.level), 0, -1):
            shared = {key for key, _ in old} & {key for key, _ in new}
            old = await self._opened(user, old, level, shared)
            new = await self._opened(user, new, level, shared)
        return old, new

    async def _opened(
        self, user: UserId, units: Sequence[Unit], level: int, shared: set[tuple[int, Digest]]
    ) -> list[Unit]:
        found: list[Unit] = []
        for unit in units:
            (at, digest), size = unit
            if at != level or unit[0] in shared:
                found.append(unit)
                continue
            below = await self.reader.page(user, (digest, size), level)
            found += (((level - 1, each), length) for each, length in below)
        return found

    async def blocks(
        self, user: UserId, base: Manifest | None, target: Manifest, coarse: Delta
    ) -> AsyncGenerator[tuple[bytes, list[Step]], None]:
        """The blocks of a delta, encoded, each with its exact steps; the second round.

        `coarse` is what `steps` gave, or finer. Without a `base` to read, what it leaves
        open are literals. Raises `DamagedContent`, and `StoreError`.
        """
        making, stretches = _Making(), _stretches(coarse, known=base is not None)
        full: _Making | None = None  # one that is to be encoded while the next is made
        gaps = iter([stretch for stretch in stretches if isinstance(stretch, Gap)])
        ahead = await self._read_ahead(user, base, target, next(gaps, None))
        for stretch in stretches:
            if making.full(stretch):
                if full is not None:
                    yield await self._encoded(full)
                full, making = making, _Making()
            if isinstance(stretch, Copy):
                making.parts.append(stretch)
                continue
            assert ahead is not None
            old, new = ahead
            ahead = None
            encoding = None if full is None else _Later(partial(self._encoded, full))
            async with task_group() as tasks:  # what comes next is read meanwhile
                reading = _Later(partial(self._read_ahead, user, base, target, next(gaps, None)))
                tasks.start_soon(reading.run)
                if encoding is not None:
                    tasks.start_soon(encoding.run)
                async with self.working:
                    await to_thread.run_sync(making.add, stretch, old, new, limiter=self.workers)
            ahead = reading.result
            if encoding is not None:
                yield encoding.result
                full = None
        if full is not None:
            yield await self._encoded(full)
        yield await self._encoded(making)

    async def between_images(
        self, user: UserId, base: Manifest, target: Manifest, header: Header
    ) -> bytes | None:
        """The whole delta between images of two zip files; None if they are none, or too large,
        or if laying them open gains nothing.

        Memory: both files and both images, of one pair at a time: 112 MiB. Raises as `blocks`.
        """
        if max(base.size, target.size) > MAX_ZIP:
            return None
        for manifest in (base, target):
            if await self._bytes(user, manifest, 0, len(MAGIC)) != MAGIC:
                return None
        async with self.working:
            old = await self._bytes(user, base, 0, base.size)
            new = await self._bytes(user, target, 0, target.size)
            with suppress(Corrupt):
                return await to_thread.run_sync(_image_delta, old, new, header)
        return None

    async def members(self, user: UserId, manifest: Manifest) -> list[Short]:
        """The members of a zip file, as `packed_units` has them.

        Memory: the file. Raises `Corrupt` for what is none, or too large, and as `blocks`.
        """
        async with self.working:
            data = await self._zip_file(user, manifest)
            return await to_thread.run_sync(packed_units, data)

    async def signed_image(
        self,
        user: UserId,
        manifest: Manifest,
        codes: bytes,
        sign: Callable[[bytes], T],
    ) -> tuple[Digest, int, T]:
        """Digest and size of the image of a zip file, and what `sign`, CPU work, makes of it.

        Memory: the file and its image, of one at a time. Raises as `members`.
        """

        def work(data: bytes) -> tuple[Digest, int, T]:
            image = opened(data, codes)
            return digest_of(image), len(image), sign(image)

        async with self.working:
            data = await self._zip_file(user, manifest)
            return await to_thread.run_sync(work, data)

    async def _zip_file(self, user: UserId, manifest: Manifest) -> bytes:
        if manifest.size > MAX_ZIP:
            raise Corrupt("no zip file as large as that is laid open")
        return await self._bytes(user, manifest, 0, manifest.size)

    async def _read_ahead(
        self, user: UserId, base: Manifest | None, target: Manifest, gap: Gap | None
    ) -> tuple[bytes, bytes] | None:
        """The bytes of a gap, in the base and in the target."""
        if gap is None:
            return None
        old = _Later(partial(self._bytes, user, base, gap.base_start, gap.base_stop))
        new = _Later(partial(self._bytes, user, target, gap.start, gap.stop))
        async with task_group() as tasks:
            tasks.start_soon(old.run)
            tasks.start_soon(new.run)
        return old.result, new.result

    async def _encoded(self, making: "_Making") -> tuple[bytes, list[Step]]:
        async with self.encoding:
            data = await to_thread.run_sync(making.encode, limiter=self.workers)
        return data, making.steps

    async def _bytes(self, user: UserId, manifest: Manifest | None, start: int, stop: int) -> bytes:
        if manifest is None or start == stop:
            return b""
        async with self.reader.content(user, manifest, start, stop) as parts:
            return b"".join([piece async for part in parts for piece in part])


def _image_delta(old: bytes, new: bytes, header: Header) -> bytes | None:
    codes = codes_of(old, new)
    if codes is None:
        return None
    one, other = opened(old, codes[0]), opened(new, codes[1])
    return write_images(Images(header, *codes)) + delta_between(one, other)


def delta_between(old: bytes, new: bytes) -> bytes:
    """A whole delta between bytes at hand. CPU work."""
    steps, size = match_units(_units(old), _units(new))
    making, pieces = _Making(), list[bytes]()
    for stretch in _stretches(delta_of(size, steps), known=True):
        if making.full(stretch):
            pieces.append(making.encode())
            making = _Making()
        if isinstance(stretch, Copy):
            making.parts.append(stretch)
            continue
        before = old[stretch.base_start : stretch.base_stop]
        making.add(stretch, before, new[stretch.start : stretch.stop])
    pieces.append(making.encode())
    header = Header.of(len(old), digest_of(old), len(new), digest_of(new))
    return b"".join((write_header(header), *pieces, write_end(len(pieces))))


def _units(data: bytes) -> list[Unit]:
    cuts, _ = cut_piece(Chunker(), memoryview(data), last=True)
    return [((0, cut.digest), len(cut.data)) for cut in cuts]


class _Later(Generic[T]):
    """What some work in a task of its own returns."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._found: list[T] = []

    async def run(self) -> None:
        self._found.append(await self._work())

    @property
    def result(self) -> T:
        """Once `run` has returned."""
        return self._found[0]


def _stretches(coarse: Delta, *, known: bool) -> list[Copy | Gap]:
    """Copies and gaps in order; a long gap in parts, each with the base where it should stand.

    Unless the base is known, none of it.
    """
    gaps = iter(gaps_of(coarse.steps, coarse.base))
    found: list[Copy | Gap] = []
    for step in coarse.steps:
        if isinstance(step, Copy):
            found.append(step)
            continue
        gap = next(gaps)
        if not known:
            gap = gap._replace(base_stop=gap.base_start)
        count = -(-(gap.stop - gap.start) // STRETCH)
        found += [gap] if count == 1 else _parts(gap, count)
    return found


def _parts(gap: Gap, count: int) -> list[Gap]:
    size, old = gap.stop - gap.start, gap.base_stop - gap.base_start
    parts: list[Gap] = []
    for index in range(count):
        start, stop = size * index // count, size * (index + 1) // count
        first = max(0, old * index // count - SPARE)
        last = min(old, old * (index + 1) // count + SPARE, first + 2 * STRETCH)
        parts.append(
            Gap(gap.start + start, gap.start + stop, gap.base_start + first, gap.base_start + last)
        )
    return parts


@define(eq=False)
class _Making:
    """A block under way."""

    parts: list[Part] = field(factory=list[Part])
    _olds: list[tuple[int, bytes]] = field(factory=list[tuple[int, bytes]])
    """What was read of the base, and where."""
    _changes: list[bytes] = field(factory=list[bytes])
    _literals: list[bytes] = field(factory=list[bytes])
    _new: int = 0
    _old: int = 0

    def full(self, stretch: Copy | Gap) -> bool:
        """Whether a stretch more is too much."""
        if len(self.parts) >= MOST_PARTS:
            return True
        return (
            isinstance(stretch, Gap)
            and bool(self._olds)
            and (
                self._new + stretch.stop - stretch.start > STRETCH
                or self._old + stretch.base_stop - stretch.base_start > 2 * STRETCH
            )
        )

    def add(self, gap: Gap, old: bytes, new: bytes) -> None:
        """Take in a gap. CPU work."""
        if len(old) != gap.base_stop - gap.base_start or len(new) != gap.stop - gap.start:
            raise Corrupt("a content has another length than its manifest says")
        self._olds.append((gap.base_start, old))
        self._new, self._old = self._new + len(new), self._old + len(old)
        if old:
            self.parts.append(Region(gap.base_start, len(old)))
        at = 0
        for step in refine(old, new):
            data = new[at : at + step.length]
            at += step.length
            match step:
                case Literal():
                    self._literals.append(data)
                    self.parts.append(step)
                case Difference(place, length):
                    self._changes.append(difference(old[place : place + length], data))
                    self.parts.append(Difference(gap.base_start + place, length))
                case Copy(place, length):
                    self.parts.append(Copy(gap.base_start + place, length))

    def encode(self) -> bytes:
        """The block as it travels. CPU work."""
        block = Block(tuple(self.parts), b"".join(self._changes), b"".join(self._literals))
        return encode_block(block, self._reading())

    def _reading(self) -> ReadBase:
        """Gives what was read of the base; it is asked for in about the order of the regions."""
        olds, last = self._olds, 0

        def read(start: int, stop: int) -> bytes:
            nonlocal last
            for index in chain(range(last, len(olds)), range(last)):
                at, data = olds[index]
                if at <= start and stop <= at + len(data):
                    last = index
                    return data[start - at : stop - at]
            raise AssertionError("a block looks for bytes outside of its regions")

        return read

    @property
    def steps(self) -> list[Step]:
        """What the block does, for those who only ask where bytes come from."""
        return [step for part in self.parts if (step := _plain(part)) is not None]


def _plain(part: Part) -> Step | None:
    match part:
        case Region():
            return None
        case Difference(_, length):
            return Literal(length)
        case _:
            return part

"""Reading contents back: few ranged gets, some ahead, every chunk verified.

    entries of the manifest -> locations -> spans of packs -> get -> decode, verify -> bytes

Neighbouring chunks of one pack are read by one get; a few gets run ahead of the
consumer within the budget. No byte leaves before its chunk has been verified. A
damaged chunk is looked up once more, for it may have moved, and read again; if that
does not give it back, the stream ends with `DamagedContent`, never as if it were
complete.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import Corrupt, DamagedContent, Unsupported, VaultError
from vaultfs.domain.manifests import Entry, Manifest, overlapping, parse_page
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import HEADER_SIZE, decode_chunk, read_chunk
from vaultfs.domain.services.budget import BLOCK, Budget, Charge, Use
from vaultfs.domain.services.packer import pack_key
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.catalog import Catalog, Location
from vaultfs.ports.objects import IntegrityError, ObjectNotFound, ObjectStore, Span

AHEAD: Final = 4
"""Gets of one stream that run before their bytes are asked for."""
GAP: Final = 64 << 10
"""Unwanted bytes between two chunks that are cheaper to read than to skip."""
FEW: Final = 8
"""So many streams at a time have fetches of whole blocks."""
LEAST: Final = 256 << 10
"""The bytes of a fetch that many share the budget for."""
LOOKUP: Final = 512
"""Chunks located in one question to the catalog."""
SMALL: Final = 128 << 10
"""What a fetch costs for which a thread is not worth its while: decoded in some 50 us."""
UNREADABLE: Final = (Corrupt, Unsupported, IntegrityError, ObjectNotFound)
"""What a damaged chunk leads to: a flipped bit can look like the codec of a newer release."""


@frozen
class Wanted:
    """A chunk that somebody wants, and which of its bytes: `start` to `stop`."""

    digest: Digest
    length: int
    start: int
    stop: int


@define
class Fetch:
    """A span of one pack and the chunks to take from it, in order."""

    pack: Digest
    start: int
    stop: int
    chunks: list[tuple[Wanted, Location]] = field(factory=list[tuple[Wanted, Location]])

    @property
    def cost(self) -> int:
        """Bytes in memory while it is decoded; two blocks, what is left to reads, at the most."""
        return self.stop - self.start + sum(wanted.length for wanted, _ in self.chunks)

    def takes(self, place: Location, most: int) -> bool:
        """Whether the chunk at `place` can be read along, in a get of `most` bytes."""
        return (
            place.pack == self.pack
            and 0 <= place.offset - self.stop <= GAP
            and place.offset + HEADER_SIZE + place.size - self.start <= most
            and self.cost + HEADER_SIZE + GAP + place.size + place.length <= 2 * most
        )

    def add(self, wanted: Wanted, place: Location) -> None:
        self.stop = place.offset + HEADER_SIZE + place.size
        self.chunks.append((wanted, place))


def plan_fetches(chunks: Sequence[tuple[Wanted, Location]]) -> list[Fetch]:
    """The spans to read for `chunks`, in their order; neighbours share one."""
    left, fetches = deque(chunks), list[Fetch]()
    while left:
        fetches.append(next_fetch(left))
    return fetches


def next_fetch(chunks: deque[tuple[Wanted, Location]], most: int = BLOCK) -> Fetch:
    """The span to read, in a get of `most` bytes, for those that it takes off `chunks`."""
    wanted, place = chunks.popleft()
    fetch = Fetch(place.pack, place.offset, place.offset)
    fetch.add(wanted, place)
    while chunks and fetch.takes(chunks[0][1], most):
        fetch.add(*chunks.popleft())
    return fetch


Take = Callable[[Fetch, bytes], list[Buffer]]
"""Makes a piece for each chunk of a fetch from the bytes that were read. CPU work.

Raises one of `UNREADABLE` for bytes that are not what the catalog says.
"""


@define(eq=False)
class Reader:
    """One of these serves all downloads of a process."""

    objects: ObjectStore
    catalog: Catalog
    budget: Budget
    workers: anyio.CapacityLimiter
    streams: int = 0
    """How many are open."""

    @property
    def most(self) -> int:
        """Bytes of a fetch at the most: what a consumer that stands still keeps is not charged."""
        if self.streams <= FEW:
            return BLOCK
        return min(BLOCK, max(LEAST, self.budget.total // 4 // self.streams))

    @asynccontextmanager
    async def content(
        self, user: UserId, manifest: Manifest, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[list[Buffer]], None]:
        """The bytes `start` to `stop` of a content, as lists of pieces in order.

        A list holds up to some 8 MiB, less where there are many streams; a piece is at most a
        chunk. Iterating raises
        `DamagedContent`, or a `StoreError`.
        """
        end = manifest.size if stop is None else min(stop, manifest.size)
        async with self.chunks(user, self.wanted(user, manifest, start, end)) as pieces:
            yield pieces

    async def wanted(
        self, user: UserId, manifest: Manifest, start: int, stop: int
    ) -> AsyncGenerator[Wanted, None]:
        """The chunks that hold the bytes `start` to `stop` of a content, in order."""
        async for offset, (digest, length) in self.entries(user, manifest, start, stop):
            first, last = max(start - offset, 0), min(stop - offset, length)
            yield Wanted(digest, length, first, last)

    async def entries(
        self, user: UserId, manifest: Manifest, start: int, stop: int
    ) -> AsyncGenerator[tuple[int, Entry], None]:
        """The chunks of a content that hold bytes of `start` to `stop`, each with its offset."""
        stack = [(manifest.level, 0, overlapping(manifest.entries, start, stop))]
        while stack:
            level, base, found = stack[-1]
            here = next(found, None)
            if here is None:
                stack.pop()
                continue
            at, entry = base + here[0], here[1]
            if level == 0:
                yield at, entry
            else:
                below = await self.page(user, entry, level)
                stack.append((level - 1, at, overlapping(below, start - at, stop - at)))

    async def page(self, user: UserId, entry: Entry, level: int) -> tuple[Entry, ...]:
        """The entries of the manifest page that `entry` names. Raises `DamagedContent`."""
        return (await self.pages(user, [entry], level))[entry[0]]

    async def pages(
        self, user: UserId, named: Sequence[Entry], level: int
    ) -> dict[Digest, tuple[Entry, ...]]:
        """The same of several pages, which are read at once: memory is the caller's business."""
        sizes = dict(named)
        places = await self._places(user, list(sizes))
        found: dict[Digest, tuple[Entry, ...]] = {}

        async def read(fetch: Fetch) -> None:
            pages = await self.fetch(user, fetch)
            for (wanted, _), data in zip(fetch.chunks, pages, strict=True):
                found[wanted.digest] = _parsed(wanted.digest, data, level, sizes[wanted.digest])

        chunks = [(Wanted(each, at.length, 0, at.length), at) for each, at in places.items()]
        chunks.sort(key=lambda chunk: (chunk[1].pack, chunk[1].offset))  # neighbours share a get
        async with task_group() as tasks:
            for fetch in plan_fetches(chunks):
                tasks.start_soon(read, fetch)
        return found

    @asynccontextmanager
    async def chunks(
        self, user: UserId, wanted: AsyncGenerator[Wanted, None], *, take: Take | None = None
    ) -> AsyncGenerator[AsyncIterator[list[Buffer]], None]:
        """What `take` makes of the `wanted` chunks, in order: a list of pieces for each get.

        Their bytes, by default.
        """
        async with task_group() as tasks:
            stream = _Pieces(self, user, wanted, tasks, take or decoded)
            self.streams += 1
            try:
                yield stream
            finally:
                self.streams -= 1
                tasks.cancel_scope.cancel()
                stream.release()
                with anyio.CancelScope(shield=True):
                    await wanted.aclose()

    async def plan(self, user: UserId, wanted: Sequence[Wanted]) -> list[Fetch]:
        """Where to read `wanted`. Raises `DamagedContent` for a chunk the vault lost."""
        return plan_fetches(await self.placed(user, wanted))

    async def placed(self, user: UserId, wanted: Sequence[Wanted]) -> list[tuple[Wanted, Location]]:
        """Each with where it is. Raises `DamagedContent` for a chunk the vault lost."""
        places = await self._places(user, [chunk.digest for chunk in wanted])
        return [(chunk, places[chunk.digest]) for chunk in wanted]

    async def _places(self, user: UserId, digests: Sequence[Digest]) -> Mapping[Digest, Location]:
        """Where all of `digests` are. Raises `DamagedContent` for one that the vault lost."""
        places = await self.catalog.locate(user, digests)
        for digest in digests:
            if digest not in places:
                raise _lost(digest)
        return places

    async def fetch(self, user: UserId, fetch: Fetch, take: Take | None = None) -> list[Buffer]:
        """What `take` makes of a fetch; by default its pieces, verified.

        Raises `DamagedContent` or a `StoreError`.
        """
        take = take or decoded
        try:
            return await self._read(fetch, take)
        except UNREADABLE:
            # Perhaps the chunks moved, or only one of them is damaged: one by one, then.
            return [
                piece
                for wanted, _ in fetch.chunks
                for again in await self.plan(user, [wanted])
                for piece in await self._read_or_name(again, wanted.digest, take)
            ]

    async def _read_or_name(self, fetch: Fetch, digest: Digest, take: Take) -> list[Buffer]:
        """From whichever store has it right."""
        first: Exception | None = None
        for store in self.objects.readable():
            try:
                return await self._read(fetch, take, store)
            except UNREADABLE as error:
                first = first or error
        raise DamagedContent(
            f"chunk {digest.hex()} in pack {fetch.pack.hex()} is damaged: {first}", digest=digest
        ) from first

    async def _read(
        self, fetch: Fetch, take: Take, store: ObjectStore | None = None
    ) -> list[Buffer]:
        objects = store or self.objects
        data = await objects.get(pack_key(fetch.pack), Span(fetch.start, fetch.stop))
        if fetch.cost <= SMALL:
            return take(fetch, data)
        return await to_thread.run_sync(take, fetch, data, limiter=self.workers)


def _parsed(digest: Digest, data: Buffer, level: int, size: int) -> tuple[Entry, ...]:
    try:
        return parse_page(data, level=level, size=size)
    except (Corrupt, Unsupported) as error:
        raise DamagedContent(str(error), digest=digest) from error


def _lost(digest: Digest) -> DamagedContent:
    return DamagedContent(
        f"chunk {digest.hex()} is in no pack that the vault knows: bring its pack back and run"
        " `vaultfs rebuild`, or put the content again",
        digest=digest,
    )


def decoded(fetch: Fetch, data: bytes) -> list[Buffer]:
    """The contents, verified."""
    view = memoryview(data)
    pieces: list[Buffer] = []
    for wanted, place in fetch.chunks:
        at = place.offset - fetch.start
        content = decode_chunk(view[at : at + HEADER_SIZE + place.size], wanted.digest)
        if len(content) != wanted.length:
            raise Corrupt(f"chunk {wanted.digest.hex()} has another length than its manifest says")
        whole = wanted.stop - wanted.start == wanted.length
        pieces.append(content if whole else memoryview(content)[wanted.start : wanted.stop])
    return pieces


def stored(fetch: Fetch, data: bytes) -> list[Buffer]:
    """The chunks as they lie in the pack, headers in front; their contents are not verified."""
    view = memoryview(data)
    pieces: list[Buffer] = []
    for wanted, place in fetch.chunks:
        at = place.offset - fetch.start
        frame = view[at : at + HEADER_SIZE + place.size]
        found = read_chunk(frame, 0)
        if found is None or found[0].digest != wanted.digest or found[0].length != wanted.length:
            raise Corrupt(f"chunk {wanted.digest.hex()} is not where the catalog says")
        pieces.append(frame)
    return pieces


@define(eq=False)
class _Slot:
    """A fetch under way or done."""

    fetch: Fetch
    charge: Charge
    ready: anyio.Event = field(factory=anyio.Event)
    pieces: list[Buffer] = field(factory=list[Buffer])
    error: Exception | None = None


@define(eq=False)
class _Pieces:
    """The stream that `Reader.chunks` gives: an async iterator."""

    reader: Reader
    user: UserId
    wanted: AsyncGenerator[Wanted, None]
    tasks: TaskGroup
    take: Take
    _placed: deque[tuple[Wanted, Location]] = field(factory=deque[tuple[Wanted, Location]])
    """What is yet to be fetched."""
    _planned: Fetch | None = None
    """What is fetched next."""
    _slots: deque[_Slot] = field(factory=deque[_Slot])
    _at_end: bool = False

    def __aiter__(self) -> "_Pieces":
        return self

    async def __anext__(self) -> list[Buffer]:
        if not self._slots:
            fetch = await self._plan()
            if fetch is None:
                raise StopAsyncIteration
            self._start(fetch, await self.reader.budget.charge(Use.READ, fetch.cost))
        await self._start_ahead()
        slot = self._slots[0]
        await slot.ready.wait()
        self._slots.popleft()
        slot.charge.release()  # what is handed out is the consumer's
        if slot.error is not None:
            raise slot.error
        return slot.pieces

    async def _plan(self) -> Fetch | None:
        """The next fetch, unless all are done."""
        if self._planned is None:
            await self._place()
            if self._placed:
                self._planned = next_fetch(self._placed, self.reader.most)
        return self._planned

    async def _place(self) -> None:
        """See that it is known where the next chunk is, unless there is none."""
        while not self._placed and not self._at_end:
            batch: list[Wanted] = []
            while len(batch) < LOOKUP:
                chunk = await anext(self.wanted, None)
                if chunk is None:
                    self._at_end = True
                    break
                batch.append(chunk)
            if batch:
                self._placed.extend(await self.reader.placed(self.user, batch))

    async def _start_ahead(self) -> None:
        """Start gets that nobody has asked for yet, while there is room for them."""
        while len(self._slots) < AHEAD:
            fetch = await self._plan()
            if fetch is None:
                return
            charge = self.reader.budget.try_charge(Use.AHEAD, fetch.cost)
            if charge is None:
                return
            self._start(fetch, charge)

    def _start(self, fetch: Fetch, charge: Charge) -> None:
        self._planned = None
        slot = _Slot(fetch, charge)
        self._slots.append(slot)
        self.tasks.start_soon(self._run, slot)

    async def _run(self, slot: _Slot) -> None:
        try:
            slot.pieces = await self.reader.fetch(self.user, slot.fetch, self.take)
        except VaultError as error:  # raised when its turn comes: what is before it is good
            slot.error = error
        slot.ready.set()

    def release(self) -> None:
        """Give back all charges."""
        for slot in self._slots:
            slot.charge.release()

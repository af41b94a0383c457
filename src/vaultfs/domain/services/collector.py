"""Garbage collection: what nothing needs any more goes, beside everybody who writes.

    begin -> mark -> plan -> revive, condemn, discard, rewrite -> delete objects -> orphans -> end

Why that is safe is said in `domain.collection`, which also decides what goes. Here is what
reads and writes for it. Each step of the catalog is a transaction, and rows go before bytes:
a crash leaves objects that no row names, whose keys stand in the catalog as doomed, and the
next collection deletes them. Any error ends the collection; nothing that was done before is
wrong for it. One process collects at a time: a lease in the catalog sees to it, and who was
paused for longer than that is refused with `Fenced`. Any number help it to rewrite: the packs
are offered in the catalog, and claimed. Two may rewrite the same ones, for the second moves no
chunk any more: a claim saves work, and nothing rests on it.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import anyio
import msgspec
from anyio import to_thread
from attrs import define, evolve, field, frozen

from vaultfs.domain import collecting as steps
from vaultfs.domain.collection import (
    GRACE_US,
    SPARSE,
    AnyMarks,
    ChunkRow,
    PackUse,
    Plan,
    count_needed,
    marks_of,
    plan,
)
from vaultfs.domain.digests import Digest, digest_from_hex
from vaultfs.domain.errors import Busy, Conflict, Doomed, Fenced, InvalidField
from vaultfs.domain.manifests import Manifest, unpack_entries
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.operations import RecordPack
from vaultfs.domain.packs import (
    HEADER_SIZE,
    MAX_ENTRIES,
    PackBuilder,
    PackEntry,
    SealedPack,
    decode_chunk,
    read_chunk,
)
from vaultfs.domain.quantities import human
from vaultfs.domain.services.budget import Use
from vaultfs.domain.services.packer import PACK_PREFIX, Packer, Stored, pack_key
from vaultfs.domain.services.reader import UNREADABLE, Reader
from vaultfs.domain.services.tables import read_table
from vaultfs.ports.catalog import Catalog, Naming
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import ObjectInfo, ObjectNotFound, ObjectStore
from vaultfs.ports.progress import Progress, no_progress

HOUR_US: Final = 3600 * 1_000_000
PASSES: Final = 4
"""Collections in a row where there is no grace period: what one condemns the next discards."""
AT_ONCE: Final = 32
"""Pages that are read at the same time: some 10 MB, 50 at the very most."""
STEP: Final = 256
"""Packs, or objects, of one step."""
REWRITTEN_AT_ONCE: Final = 512
"""Packs whose needed chunks are looked for in one walk through the index: 20 MB of digests."""
BEAT: Final = 60.0
"""Seconds after which a collection says that it is still under way."""
PATIENCE: Final = 0.5
"""Seconds after which it is asked again whether others have done their part."""
ROOM: Final = 48 << 20
"""Bytes in memory while packs are rewritten."""


@frozen
class Options:
    """How to collect."""

    grace_us: int = GRACE_US
    """Microseconds for which packs are left alone, and then condemned."""
    dry_run: bool = False
    """Only say what would go."""
    confirmed: bool = False
    """However much it is."""
    sparse: float = SPARSE
    """Rewrite packs of which a smaller part is needed, and merge tiny ones; 0 for neither."""
    only_repack: bool = False
    """Do that alone, with packs of every age."""
    duty: float = 1.0
    """The part of the time that it works; the rest it waits."""


@frozen
class Report:
    """What a collection did, or would do."""

    collection: int = 0
    partial: bool = False
    """It was a dry run, or only rewrote packs."""
    packs: int = 0
    total: int = 0
    """Bytes of all packs."""
    needed: int = 0
    """Bytes of them that something needs."""
    young: int = 0
    """Packs that nothing needs, and that are not old enough to be condemned."""
    young_bytes: int = 0
    condemned: int = 0
    condemned_bytes: int = 0
    revived: int = 0
    discarded: int = 0
    discarded_bytes: int = 0
    rewritten: int = 0
    """Packs that were made of others: so many were left behind."""
    rewritten_bytes: int = 0
    """Bytes that were copied for it."""
    orphans: int = 0
    """Objects that no row named."""
    problems: tuple[str, ...] = ()
    """Packs that could not be rewritten, or that the index lacks."""
    listed: tuple[str, ...] = ()
    """Of a dry run: the packs that would be condemned, and why."""


class TooMuchGarbage(Conflict):
    """So much would be condemned that somebody should have a look first."""


@frozen
class Reconciliation:
    """How a store and a catalog differ, in packs."""

    named: int
    unnamed: int
    """In the store alone: they would be collected."""
    unnamed_bytes: int
    missing: tuple[str, ...]
    """In the catalog alone: files that need them are damaged."""


@define(eq=False)
class Pace:
    """Works for a part of the time."""

    duty: float
    _since: float = field(factory=time.monotonic)

    async def rest(self) -> None:
        """Called between pieces of work: waits as long as they give the others."""
        worked = time.monotonic() - self._since
        await anyio.sleep(worked * (1 / self.duty - 1) if self.duty < 1 else 0)
        self._since = time.monotonic()


@define(eq=False)
class Collector:
    """One of these serves a process."""

    objects: ObjectStore
    catalog: Catalog
    packer: Packer
    reader: Reader
    clock: Clock
    workers: anyio.CapacityLimiter

    async def run(
        self,
        options: Options | None = None,
        *,
        actor: UserId = UserId(0),  # noqa: B008 a number
        progress: Progress = no_progress,
    ) -> Report:
        """Collect, or say what would go. `progress` is told bytes of packs looked at.

        Without a grace period that is done until nothing more goes, `PASSES` times at the most.

        Memory: `Marks`, a number for each pack and a digest for each page of a manifest, and
        48 MiB, charged, while packs are rewritten. Raises `Busy` while another collection is
        under way, `Conflict` for a catalog that has to be reconciled, `TooMuchGarbage`, and
        whatever stops it. If all that was wanted is to rewrite packs, it does so for the other
        collection instead, where that has some to give.
        """
        options = options or Options()
        reports: list[Report] = []
        for _ in range(1 if options.grace_us or options.dry_run else PASSES):
            run = _Run(self, options, actor, progress)
            try:
                reports.append(await run.all())
            except Busy:
                helped = await self.help(duty=options.duty) if options.only_repack else 0
                if not helped:
                    raise
                return Report(partial=True, rewritten=helped)
            if not run.more:
                break
        return _together(reports)

    async def reconcile(
        self,
        *,
        accept: bool,
        actor: UserId = UserId(0),  # noqa: B008 a number
    ) -> "Reconciliation":
        """Compare a catalog that came from a backup with its store, by their packs.

        `accept` says that what the catalog does not name is given up: from then on it may be
        collected. Nothing is changed otherwise. Linear in the number of packs. Raises `Conflict`
        where a catalog from a backup was not rebuilt: everything would be given up.
        """
        named = unnamed = size = 0
        async with aclosing(self.objects.list(PACK_PREFIX)) as objects:
            async for info in objects:
                key = _key_of(info.key)
                if key is None or await self.catalog.has_pack(key):
                    named += key is not None
                else:
                    unnamed, size = unnamed + 1, size + info.size
        missing: list[str] = []
        after: Digest | None = None
        while page := await self.catalog.packs(after=after):
            for pack in page:
                try:
                    await self.objects.head(pack_key(pack.key))
                except ObjectNotFound:
                    missing.append(pack_key(pack.key))
            after = page[-1].key
        if accept:
            await self.catalog.collect(steps.Reconcile(), actor, micros(self.clock.now()))
        return Reconciliation(named, unnamed, size, tuple(missing))

    async def help(
        self,
        *,
        duty: float = 1.0,
        actor: UserId = UserId(0),  # noqa: B008 a number
    ) -> int:
        """Rewrite packs for the collection that another process has under way; how many.

        Until it has none to give, or is over. What a crash leaves is done by the others.
        """
        try:
            return await _Run(self, Options(duty=duty), actor, no_progress).work()
        except Fenced:
            return 0

    async def undelete(self, *, actor: UserId = UserId(0)) -> int:  # noqa: B008 a number
        """Take back all condemnations; how many."""
        return await self.catalog.collect(steps.Revive(), actor, micros(self.clock.now()))


class _Done(msgspec.Struct):
    """What came of rewriting some packs."""

    packs: int = 0
    size: int = 0
    problems: list[str] = msgspec.field(default_factory=list[str])


@define(eq=False)
class _Run:
    of: Collector
    options: Options
    actor: UserId
    progress: Progress
    number: int = 0
    report: Report = field(factory=Report)
    problems: list[str] = field(factory=list[str])
    pace: Pace = field(init=False)
    more: bool = False
    """Something was done that the next collection may go on from."""
    done: _Done = field(factory=_Done)
    """What came of the packs that are being rewritten."""
    _beaten: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.pace = Pace(self.options.duty)

    # The whole

    async def all(self) -> Report:
        holder = f"collector-{self.of.clock.new_id()}"
        self.number = await self._step(steps.Begin(holder))
        partial = self.options.dry_run or self.options.only_repack
        self.report = Report(self.number, partial)
        complete = False
        try:
            await self._collect()
            complete = True
        finally:
            self.report = evolve(self.report, problems=tuple(self.problems))
            text = msgspec.json.encode(evolve(self.report, listed=())).decode()
            with anyio.CancelScope(shield=True):
                await self._step(steps.End(self.number, complete, text))
        return self.report

    async def _collect(self) -> None:
        if not self.options.dry_run:
            await self._delete_doomed()
        marks = await self._mark()
        packs = await self._packs(marks)
        now = micros(self.of.clock.now())
        options = self.options
        found = plan(
            packs,
            self.number,
            now,
            grace_us=options.grace_us,
            young_us=0 if options.only_repack else None,
            sparse=options.sparse,
        )
        if options.only_repack:
            found = evolve(found, condemn=(), discard=())
        self.report = evolve(
            self.report,
            packs=len(packs),
            total=found.total,
            needed=sum(pack.needed for pack in packs),
            young=len(found.young),
            young_bytes=sum(pack.size for pack in found.young),
        )
        if options.dry_run:
            self._tell(found)
            return
        if found.trips and not options.confirmed:
            hours = options.grace_us / HOUR_US
            asked = "" if options.grace_us == GRACE_US else f" --grace {hours:g}"
            raise TooMuchGarbage(
                f"{human(found.condemned_bytes)} of {human(found.total)} in packs would be"
                f" condemned: see `vaultfs gc --dry-run{asked}`, and confirm it with --confirm"
            )
        await self._act(found, marks)
        self.more = bool(found.condemn or found.rewrite)
        await self._orphans(marks)

    def _tell(self, found: Plan) -> None:
        self.report = evolve(
            self.report,
            condemned=len(found.condemn),
            condemned_bytes=found.condemned_bytes,
            revived=len(found.revive),
            discarded=len(found.discard),
            discarded_bytes=sum(pack.size for pack in found.discard),
            rewritten=sum(map(len, found.rewrite)),
            rewritten_bytes=found.rewritten_bytes,
            listed=tuple(
                f"{pack_key(pack.key)}: {pack.size} bytes, nothing needs it"
                for pack in found.condemn
            ),
        )

    async def _act(self, found: Plan, marks: AnyMarks) -> None:
        now = self.report
        for some in _portions(found.revive):
            numbers = tuple(pack.number for pack in some)
            await self._step(steps.Revive(numbers))
        condemned = 0
        for some in _portions(found.condemn):
            numbers = tuple(pack.number for pack in some)
            condemned += await self._step(steps.Condemn(self.number, numbers))
        self.report = evolve(
            now,
            revived=now.revived + len(found.revive),
            condemned=now.condemned + condemned,
            condemned_bytes=now.condemned_bytes + found.condemned_bytes,
        )
        for pack in found.discard:
            await self._discard(pack)
        await self._rewrite(found.rewrite, marks)
        await self._delete_doomed()

    async def _step(self, step: steps.Step) -> int:
        at_us = micros(self.of.clock.now())
        answer = await self.of.catalog.collect(step, self.actor, at_us)
        self._beaten = time.monotonic()
        return answer

    async def _rest(self) -> None:
        """Called between pieces of work."""
        if self.number and time.monotonic() - self._beaten > BEAT:
            await self._step(steps.Beat(self.number))
        await self.pace.rest()

    # Marking

    async def _mark(self) -> AnyMarks:
        """What is needed, as it is at a moment after this was called."""
        marks = marks_of(await self.of.catalog.count_chunks(), self.number)
        pages: _Pages = {}
        async with aclosing(self.of.catalog.namings()) as namings:
            async for some in namings:
                limiter = self.of.workers
                await to_thread.run_sync(_note, marks, some, pages, limiter=limiter)
        await self._walk(marks, pages)
        return marks

    async def _walk(self, marks: AnyMarks, pages: "_Pages") -> None:
        """Note what is under `pages`, each with the level of what is on it above chunks."""
        done: set[tuple[UserId, Digest]] = set()
        while pages:
            (owner, level), waiting = next(reversed(pages.items()))  # the last: the fewest wait
            some = [waiting.popitem() for _ in range(min(AT_ONCE, len(waiting)))]
            if not waiting:
                del pages[owner, level]
            fresh = [entry for entry in some if (owner, entry[0]) not in done]
            done.update((owner, digest) for digest, _ in fresh)
            for below in (await self.of.reader.pages(owner, fresh, level)).values():
                marks.add(owner, [digest for digest, _ in below])
                if level > 1:
                    pages.setdefault((owner, level - 1), {}).update(below)
            await self._rest()

    async def _packs(self, marks: AnyMarks) -> list[PackUse]:
        """All packs, with what is needed of each."""
        needed: dict[int, int] = {}
        async with aclosing(self._rows()) as rows:
            async for some in rows:
                await to_thread.run_sync(count_needed, marks, some, needed, limiter=self.of.workers)
        packs: list[PackUse] = []
        after, now = 0, micros(self.of.clock.now())
        while page := await self.of.catalog.pack_uses(now, after=after):
            packs += [evolve(pack, needed=needed.get(pack.number, 0)) for pack in page]
            after = page[-1].number
            self.progress(sum(pack.size for pack in page))
        return packs

    async def _rows(self) -> AsyncGenerator[Sequence[ChunkRow], None]:
        after: Digest | None = None
        while rows := await self.of.catalog.chunk_rows(after=after):
            yield rows
            after = rows[-1][0]
            await self._rest()

    # Letting go

    async def _discard(self, pack: PackUse) -> None:
        digests = await self._digests(pack)
        step = steps.Discard(self.number, pack.number, digests, self.options.grace_us)
        if await self._step(step):
            self.report = evolve(
                self.report,
                discarded=self.report.discarded + 1,
                discarded_bytes=self.report.discarded_bytes + pack.size,
            )
        await self._rest()

    async def _digests(self, pack: PackUse) -> tuple[Digest, ...]:
        """What a pack holds: as it says, or else as the index does."""
        try:
            table = await read_table(self.of.objects, pack_key(pack.key), pack.size)
        except UNREADABLE:
            found = await self.of.catalog.chunks_of([pack.key])
            return tuple(digest for digest, _ in found)
        return tuple(entry.digest for entry in table)

    async def _delete_doomed(self) -> None:
        """Delete the objects that nothing names any more."""
        while keys := await self.of.catalog.doomed(limit=STEP):
            outcomes = await self.of.objects.delete_many(list(map(pack_key, keys)))
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            await self._step(steps.NoteDeleted(self.number, tuple(keys)))
            await self._rest()

    async def _orphans(self, marks: AnyMarks) -> None:
        """Doom and delete packs in the store that no row names.

        What a listing does not show stays; what it does is looked up again in the transaction
        that dooms it, so one that is recorded meanwhile stays too. So does one with a chunk that
        something needs and that has no row: the index lacks it, and `rebuild` would find it.
        """
        long_ago = micros(self.of.clock.now()) - max(self.options.grace_us, 0)
        found: list[Digest] = []
        async with aclosing(self._unnamed(long_ago)) as unnamed:
            async for key, info in unnamed:
                if await self._is_missed(info, marks):
                    self.problems.append(
                        f"{info.key} has contents that are needed, and no index knows it: run"
                        " `vaultfs rebuild`"
                    )
                    continue
                found.append(key)
                if len(found) >= STEP:
                    await self._doom(found)
                    found = []
        if found:
            await self._doom(found)
        await self._delete_doomed()

    async def _is_missed(self, info: ObjectInfo, marks: AnyMarks) -> bool:
        """Whether a pack that no row names has a chunk that is needed, and nowhere else."""
        try:
            table = await read_table(self.of.objects, info.key, info.size)
        except UNREADABLE:
            return False
        for owner in marks.owners:
            needed = [entry.digest for entry in table if marks.has(owner, entry.digest)]
            places = await self.of.catalog.locate(owner, needed) if needed else {}
            if any(digest not in places for digest in needed):
                return True
        return False

    async def _doom(self, keys: Sequence[Digest]) -> None:
        doomed = await self._step(steps.Doom(self.number, tuple(keys)))
        self.report = evolve(self.report, orphans=self.report.orphans + doomed)

    async def _unnamed(self, long_ago_us: int) -> AsyncGenerator[tuple[Digest, ObjectInfo], None]:
        """Packs in the store, put before then, that the catalog does not seem to know."""
        async with aclosing(self.of.objects.list(PACK_PREFIX)) as objects:
            async for info in objects:
                await self._rest()
                if info.modified_us > long_ago_us:
                    continue
                key = _key_of(info.key)
                if key is not None and not await self.of.catalog.has_pack(key):
                    yield key, info

    # Rewriting

    async def _rewrite(self, groups: Sequence[tuple[PackUse, ...]], marks: AnyMarks) -> None:
        waiting = list(groups)
        while waiting:
            some: list[tuple[PackUse, ...]] = []
            while waiting and sum(map(len, some)) < REWRITTEN_AT_ONCE:
                some.append(waiting.pop(0))
            wanted = await self._needed({pack.number for group in some for pack in group}, marks)
            offer = steps.OfferRewrites(self.number, tuple(_work(each, wanted) for each in some))
            await self._step(offer)
            await self._share()

    async def _share(self) -> None:
        """Rewrite what was offered, beside others who do, until all of it is done."""
        while True:
            await self.work()
            outcomes = await self.of.catalog.rewrites(self.number)
            done = [msgspec.json.decode(each, type=_Done) for each in outcomes if each is not None]
            if len(done) == len(outcomes):
                break
            await anyio.sleep(PATIENCE)
            await self._rest()
        self.problems += [problem for each in done for problem in each.problems]
        now = self.report
        self.report = evolve(
            now,
            rewritten=now.rewritten + sum(each.packs for each in done),
            rewritten_bytes=now.rewritten_bytes + sum(each.size for each in done),
        )

    async def work(self) -> int:
        """Rewrite packs that nobody else is at, until there are no more now; how many.

        Raises `Fenced` if they are another collection's than the one that is run.
        """
        packs, own = 0, self.number
        while rewrite := await self.of.catalog.claim_rewrite(micros(self.of.clock.now())):
            if own not in {0, rewrite.collection}:  # what is claimed so, others are given soon
                raise Fenced(f"collection {own} is over: another one has begun")
            self.number = rewrite.collection
            sources = msgspec.msgpack.decode(rewrite.work, type=list[_Source])
            self.done = _Done()
            await self._merge(sources)
            done = msgspec.json.encode(self.done).decode()
            await self._step(steps.NoteRewritten(self.number, rewrite.number, done))
            packs += self.done.packs
            await self._rest()
        return packs

    async def _needed(self, packs: set[int], marks: AnyMarks) -> dict[int, set[Digest]]:
        """The chunks of `packs` that are needed."""
        found: dict[int, set[Digest]] = {pack: set() for pack in packs}
        async with aclosing(self._rows()) as rows:
            async for some in rows:
                for digest, owner, pack, _ in some:
                    if pack in packs and marks.has(owner, digest):
                        found[pack].add(digest)
        return found

    async def _merge(self, sources: Sequence["_Source"]) -> None:
        """Make one pack of what is needed of `sources`, or more if those are too many chunks."""
        budget = self.of.packer.budget
        charge = await budget.charge(Use.WRITE, min(ROOM, budget.total // 2))
        try:
            made = _Made()
            for source in sources:
                if len(made.indexes) + len(source.wanted) > MAX_ENTRIES:
                    await self._finish(made)
                    made = _Made()
                await self._take(source, made)
            await self._finish(made)
        finally:
            charge.release()

    async def _finish(self, made: "_Made") -> None:
        """Store a pack that was made of others, and have its chunks read from there."""
        if not made.sources:
            return
        of = self.of
        sealed = await to_thread.run_sync(made.builder.seal, limiter=of.workers)
        stored = await of.packer.put(sealed)
        try:
            moved = await self._step(_moving(self.number, sealed, made, stored))
        except Doomed:  # there was a pack of the same bytes before
            sealed, stored = await of.packer.renamed(sealed)
            moved = await self._step(_moving(self.number, sealed, made, stored))
        if made.moves and not moved:
            return
        self.done.packs += len(made.sources)
        self.done.size += sealed.size

    async def _take(self, pack: "_Source", made: "_Made") -> None:
        """Copy the chunks that are wanted of a pack; one that is damaged stays as it is."""
        wanted = frozenset(pack.wanted)
        try:
            data = await self.of.objects.get(pack_key(pack.key))
            table = await read_table(self.of.objects, pack_key(pack.key), pack.size)
            entries = [entry for entry in table if entry.digest in wanted]
            await to_thread.run_sync(_check, data, entries, limiter=self.of.workers)
        except UNREADABLE as error:
            self.done.problems.append(f"{pack_key(pack.key)} was not rewritten: {error}")
            return
        made.take(pack.number, data, entries)


class _Source(msgspec.Struct, frozen=True):
    """A pack that is to be rewritten, and the chunks of it that are needed."""

    number: int
    key: Digest
    size: int
    wanted: list[Digest]


def _work(group: Sequence[PackUse], wanted: dict[int, set[Digest]]) -> bytes:
    sources = [
        _Source(pack.number, pack.key, pack.size, sorted(wanted[pack.number])) for pack in group
    ]
    return msgspec.msgpack.encode(sources)


@define(eq=False)
class _Made:
    """A pack that is being made of others."""

    builder: PackBuilder = field(factory=PackBuilder)
    indexes: dict[Digest, int] = field(factory=dict[Digest, int])
    moves: list[tuple[int, int]] = field(factory=list[tuple[int, int]])
    sources: list[int] = field(factory=list[int])

    def take(self, number: int, data: bytes, entries: Sequence[PackEntry]) -> None:
        """Put in `entries` of the pack `number`, whose bytes are `data`."""
        for entry in entries:
            if entry.digest not in self.indexes:
                found = read_chunk(data, entry.offset)
                assert found is not None
                self.indexes[entry.digest] = len(self.indexes)
                self.builder.add(found[0]._replace(stored=bytes(found[0].stored)))
            self.moves.append((self.indexes[entry.digest], number))
        self.sources.append(number)


def _moving(collection: int, sealed: SealedPack, made: _Made, stored: Stored) -> steps.MoveChunks:
    head = (sealed.key, sealed.size, sealed.crc32c, stored.store, sealed.entries, ())
    record = RecordPack(*head, stored.also, stored.epoch)
    return steps.MoveChunks(collection, record, tuple(made.moves), tuple(made.sources))


def _check(data: bytes, entries: Sequence[PackEntry]) -> None:
    """Raise `Corrupt` or `Unsupported` unless all `entries` can be read. CPU work."""
    view = memoryview(data)
    for entry in entries:
        decode_chunk(view[entry.offset : entry.offset + HEADER_SIZE + entry.size], entry.digest)


_Pages = dict[tuple[UserId, int], dict[Digest, int]]
"""Pages that are to be walked: by owner and level, the bytes of content under each."""


def _note(marks: AnyMarks, namings: Sequence[Naming], pages: _Pages) -> None:
    """Note what `namings` name, and the pages among it in `pages`. CPU work."""
    for owner, manifest, entries in namings:
        if manifest is None:
            assert entries is not None
            marks.add(owner, [digest for digest, _ in unpack_entries(entries)])
            continue
        found = Manifest.decode(manifest)
        marks.add(owner, [digest for digest, _ in found.entries])
        if found.level:
            pages.setdefault((owner, found.level), {}).update(found.entries)


def _key_of(name: str) -> Digest | None:
    """The pack's key that an object has in its name; None for what is none of ours."""
    try:
        return digest_from_hex(name.removeprefix(PACK_PREFIX))
    except InvalidField:
        return None


def _together(reports: Sequence[Report]) -> Report:
    """What several collections in a row did."""
    first, last = reports[0], reports[-1]
    counted = {
        name: sum(getattr(report, name) for report in reports)
        for name in (
            *("condemned", "condemned_bytes", "revived", "discarded", "discarded_bytes"),
            *("rewritten", "rewritten_bytes", "orphans"),
        )
    }
    problems = tuple(problem for report in reports for problem in report.problems)
    return evolve(last, packs=first.packs, total=first.total, problems=problems, **counted)


def _portions(packs: Sequence[PackUse]) -> list[Sequence[PackUse]]:
    return [packs[start : start + STEP] for start in range(0, len(packs), STEP)]

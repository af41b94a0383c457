"""The packer: puts chunks of all transfers into packs, and commits what stands in them.

There is one open pack in a process. It is sealed when it is full; or when commits
wait for it, or writers for budget, and no other pack is on its way. So a lone put is
durable at once, and of many at the same time, those that arrive while one pack is
being written go into the next one together: group commit without a timer.

A sealed pack is stored, then recorded in the catalog, in one transaction with the
versions that waited for it. A crash leaves at most an object that no row names.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import define, evolve, field

from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Busy, Doomed, OutcomeUnknown, PlacementChanged
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.operations import Done, Outcome, RecordPack, Refused, Unit
from vaultfs.domain.packs import PackBuilder, SealedPack, StoredChunk, raw_chunk, read_chunk
from vaultfs.domain.services.budget import MIB, Budget, Charge
from vaultfs.domain.services.buffers import Rooms
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    PutMode,
    StoreError,
)

PACK_PREFIX = "packs/"
ATTEMPTS: Final = 5
"""To record a pack, each under another key or in other stores."""
GATHERED: Final = 4 * MIB
"""Packs of so many bytes are gathered in one piece of memory before they are hashed and put."""
TINY: Final = 16 << 10
"""Cutting, hashing, compressing or sealing so many bytes takes no longer than a hop to a thread."""
ALONE: Final = 2 * MIB
"""A pack of so many bytes that somebody waits for does not wait for others on their way: with a
store at the end of a slow link, the last pack of a file would be alone on it.
"""


def pack_key(digest: Digest) -> str:
    """The key under which the pack `digest` is stored."""
    return PACK_PREFIX + digest.hex()


class Stored(NamedTuple):
    """Where a pack is."""

    epoch: int
    """Of what said where it was to be put."""
    store: str
    also: tuple[str, ...]


@define(eq=False)
class _Commit:
    """Units that wait for a pack, and then for their outcomes."""

    units: tuple[Unit, ...]
    outcomes: list[Outcome] = field(factory=list[Outcome])


@define(eq=False)
class OpenPack:
    """A pack from its first chunk until it is recorded, or has failed."""

    number: int
    """Ascending: of two packs of one packer the later has the higher number."""
    builder: PackBuilder = field(factory=PackBuilder)
    owners: dict[UserId, dict[int, None]] = field(factory=dict[UserId, dict[int, None]])
    """Which entries each user sent: the keys of an ordered set."""
    charges: list[Charge] = field(factory=list[Charge])
    commits: list[_Commit] = field(factory=list[_Commit])
    wanted: bool = False
    """Somebody waits for it and nothing more is to come."""
    accepts: bool = True
    """Commits can still join the transaction that records it."""
    settled: anyio.Event = field(factory=anyio.Event)
    on_recorded: list[Callable[[], None]] = field(factory=list[Callable[[], None]])
    """Called before anybody who waits goes on."""
    error: Exception | None = None
    numbers: tuple[int, ...] = ()
    """Of the packs that its chunks are in, as the catalog has it: mostly its own alone."""

    @property
    def recorded(self) -> bool:
        """Whether it is durable and the catalog knows it."""
        return self.settled.is_set() and self.error is None

    async def wait(self) -> None:
        """Until it is recorded. Raises why it could not be stored."""
        await self.settled.wait()
        if self.error is not None:
            raise self.error


@define
class Placed:
    """What a commit has to wait for, and to claim, for its chunks to be the user's."""

    packs: set[OpenPack] = field(factory=set[OpenPack])
    foreign: list[Digest] = field(factory=list[Digest])
    """Chunks that are, or will be, recorded for others only."""
    relies: set[int] = field(factory=set[int])
    """Numbers of packs that are recorded already: see `Unit.relies`."""

    def take(self, other: "Placed") -> None:
        """Add what `other` has. Of packs that are recorded the number is kept: there are many."""
        self.packs |= other.packs
        self.relies |= other.relies
        self.foreign += other.foreign
        self.settle()

    def settle(self) -> None:
        """Keep of packs that are recorded the number alone."""
        recorded = [pack for pack in self.packs if pack.recorded]
        self.packs.difference_update(recorded)
        for pack in recorded:
            self.relies.update(pack.numbers)

    def when_recorded(self, call: Callable[[], None]) -> None:
        """Have `call` called once all packs are recorded, now if they are; never if one fails."""
        left = [pack for pack in self.packs if not pack.recorded]
        if not left:
            call()
            return

        def one() -> None:
            left.pop()
            if not left:
                call()

        for pack in tuple(left):
            pack.on_recorded.append(one)


@define(eq=False)
class Packer:
    """One of these serves all transfers of a process, from its one event loop."""

    objects: ObjectStore
    catalog: Catalog
    clock: Clock
    budget: Budget
    workers: anyio.CapacityLimiter
    """CPU work goes through it."""
    tasks: TaskGroup
    _open: OpenPack | None = None
    _pending: dict[Digest, OpenPack] = field(factory=dict[Digest, OpenPack])
    """Chunks that are in a pack which is not yet recorded."""
    _rooms: Rooms = field(factory=Rooms)
    _under_way: int = 0
    _count: int = 0

    def __attrs_post_init__(self) -> None:
        self.budget.on_short = self._poke

    def pending(self, digest: Digest) -> OpenPack | None:
        """The pack on its way that has this chunk, if there is one."""
        return self._pending.get(digest)

    def sent(self, user: UserId, digest: Digest) -> OpenPack | None:
        """The same, if `user` is among those who sent it."""
        pack = self._pending.get(digest)
        if pack is None or pack.builder.index(digest) not in pack.owners.get(user, ()):
            return None
        return pack

    def add(self, user: UserId, chunks: Sequence[StoredChunk], charge: Charge) -> "Placed":
        """Put `chunks` into packs. Takes over `charge`.

        A chunk that came meanwhile from elsewhere is not put in twice.
        """
        placed = Placed()
        home: OpenPack | None = None
        for chunk in chunks:
            pack = self._pending.get(chunk.digest)
            if pack is None:
                home = pack = self._put(chunk)
            self.own(placed, pack, user, chunk.digest)
        if home is None:
            charge.release()
        else:
            home.charges.append(charge)
        self._poke()
        return placed

    def own(self, placed: "Placed", pack: OpenPack, user: UserId, digest: Digest) -> None:
        """Count `user` among those who sent the chunk `digest` of `pack`."""
        placed.packs.add(pack)
        owned = pack.owners.setdefault(user, {})
        index = pack.builder.index(digest)
        if index in owned:
            return
        if pack.accepts:
            owned[index] = None
        else:
            placed.foreign.append(digest)

    def _put(self, chunk: StoredChunk) -> OpenPack:
        if self._open is not None and self._open.builder.full:
            self._seal()
        if self._open is None:
            self._count += 1
            self._open = OpenPack(self._count)
        self._open.builder.add(chunk)
        self._pending[chunk.digest] = self._open
        return self._open

    def _poke(self) -> None:
        """Seal the open pack if now is the time."""
        pack = self._open
        if pack is None:
            return
        wanted = pack.wanted and pack.builder.size >= ALONE
        short = pack.wanted or self.budget.writers_wait
        if pack.builder.full or wanted or (short and not self._under_way):
            self._seal()

    def _seal(self) -> None:
        pack, self._open = self._open, None
        if pack is not None:
            self._under_way += 1
            self.tasks.start_soon(self._store, pack)

    async def _store(self, pack: OpenPack) -> None:
        """Make `pack` durable and record it with the commits that joined."""
        error: Exception | None = Busy("the vault was closed before this was stored")
        try:
            sealed, stored = await self._sealed_and_put(pack)
            pack.accepts = False
            await self._record_somehow(pack, sealed, stored)
            error = None
        except Exception as failure:  # noqa: BLE001 whoever waits for the pack raises it
            error = failure
        finally:
            pack.accepts, pack.error = False, error
            for digest in pack.builder.digests:
                del self._pending[digest]
            pack.builder = PackBuilder()  # whoever still waits needs none of its entries
            self._under_way -= 1
            pack.settled.set()
            if error is None:
                for call in pack.on_recorded:
                    call()
            for charge in pack.charges:
                charge.release()
            self._poke()

    async def _sealed_and_put(self, pack: OpenPack) -> "tuple[SealedPack, Stored]":
        """The pack, durable in the store; large ones are gathered, and their blocks let go of."""
        size = pack.builder.size
        if size <= TINY:
            sealed = pack.builder.seal()
            return sealed, await self.put(sealed)
        room = self._rooms.take() if size >= GATHERED else None
        if room is None:
            sealed = await to_thread.run_sync(pack.builder.seal, limiter=self.workers)
            return sealed, await self.put(sealed)
        try:
            view = memoryview(room)
            sealed = await to_thread.run_sync(pack.builder.seal, view, limiter=self.workers)
            for charge in pack.charges:
                charge.let_go()
            return sealed, await self.put(sealed)
        finally:
            self._rooms.give(room)

    async def put(self, sealed: SealedPack) -> "Stored":
        """Store a pack wherever it has to be; one that is there already is looked at.

        Raises why it could not be stored.
        """
        targets = self.objects.targets()
        if len(targets.stores) == 1:
            [(name, store)] = targets.stores.items()
            await self._put_into(store, sealed)
            return Stored(targets.epoch, name, ())
        missed: dict[str, StoreError] = {}

        async def one(name: str, store: ObjectStore) -> None:
            try:
                await self._put_into(store, sealed)
            except StoreError as error:
                missed[name] = error

        async with task_group() as tasks:
            for name, store in targets.stores.items():
                tasks.start_soon(one, name, store)
        for name, error in missed.items():
            if name == targets.primary or not targets.degrades:
                raise error
        also = targets.stores.keys() - {targets.primary} - missed.keys()
        return Stored(targets.epoch, targets.primary, tuple(also))

    async def _put_into(self, store: ObjectStore, sealed: SealedPack) -> None:
        key = pack_key(sealed.key)
        try:
            await store.put(key, sealed.parts)
        except ObjectExists:
            if not await self._is_whole(store, key, sealed.key):
                await store.put(key, sealed.parts, mode=PutMode.OVERWRITE)

    async def _is_whole(self, store: ObjectStore, key: str, digest: Digest) -> bool:
        """Whether the object that is there has its digest, as keys promise: disks decay."""
        try:
            data = await store.get(key)
        except (ObjectNotFound, IntegrityError):
            return False
        return await to_thread.run_sync(digest_of, data, limiter=self.workers) == digest

    async def _record_somehow(self, pack: OpenPack, sealed: SealedPack, stored: "Stored") -> None:
        """Record a pack, under another key or in other stores if need be."""
        for _ in range(ATTEMPTS):
            try:
                await self._record(pack, sealed, stored)
            except Doomed:
                sealed, stored = await self.renamed(sealed)
            except PlacementChanged:
                await self.objects.refresh()
                sealed, stored = await self._again(sealed)
            else:
                return
        raise Busy("where packs are put has changed again and again: try later")

    async def _again(self, sealed: SealedPack) -> "tuple[SealedPack, Stored]":
        """Have a pack, whose bytes are let go of, in all stores that it has to be in by now."""
        data = await self.objects.get(pack_key(sealed.key))
        whole = evolve(sealed, parts=(data,))
        return whole, await self.put(whole)

    async def renamed(self, sealed: SealedPack) -> "tuple[SealedPack, Stored]":
        """The same pack, stored under another key: one chunk more, which nobody asks for.

        A pack of these bytes is being deleted, or was lately. Raises `Busy` if that has already
        got what was stored.
        """
        try:
            data = await self.objects.get(pack_key(sealed.key))
        except ObjectNotFound as error:
            raise Busy("a pack of the same bytes is being deleted just now: try again") from error
        extra = self.clock.new_id().encode()
        renamed = await to_thread.run_sync(
            _with_one_more, sealed, data, extra, limiter=self.workers
        )
        return renamed, await self.put(renamed)

    async def _record(self, pack: OpenPack, sealed: SealedPack, stored: "Stored") -> None:
        claims = tuple((user, tuple(indexes)) for user, indexes in pack.owners.items())
        record = RecordPack(
            sealed.key,
            sealed.size,
            sealed.crc32c,
            stored.store,
            sealed.entries,
            claims,
            stored.also,
            stored.epoch,
        )
        op_id = f"pack-{sealed.key.hex()[:32]}"
        unit = Unit(UserId(0), micros(self.clock.now()), op_id, (record,))
        # Some of them need the pack, which may be refused while they are not.
        waiting = [unit for commit in pack.commits for unit in commit.units]
        units = [unit, *(each.needing(recorded=(sealed.key,)) for each in waiting)]
        outcomes = await self.catalog.apply(units)
        if isinstance(outcomes[0], Refused):
            raise outcomes[0].error
        pack.numbers = outcomes[0].results[0].packs
        at = 1
        for commit in pack.commits:
            commit.outcomes = outcomes[at : at + len(commit.units)]
            at += len(commit.units)

    async def commit(
        self, units: Sequence[Unit], needs: set[OpenPack], *, wait: bool = True
    ) -> list[Outcome]:
        """The outcomes of `units`, once every pack in `needs` is recorded, which they rely on.

        Unless `wait` is false, the newest pack is not left open for more to come.
        """
        if not needs:
            return await self.catalog.apply(units)
        newest = max(needs, key=lambda pack: pack.number)
        older = needs - {newest}
        if wait and newest.builder.size >= ALONE:  # it goes beside those, not behind them
            newest.wanted = True
            self._poke()
        for pack in older:
            await pack.wait()
        if not newest.accepts:
            await newest.wait()
            return await self.catalog.apply(_relying(units, needs))
        commit = _Commit(tuple(_relying(units, older)))
        newest.commits.append(commit)
        try:
            if wait:
                newest.wanted = True
                self._poke()
            await newest.wait()
        except OutcomeUnknown as error:  # it names the transaction's first unit: the pack's
            raise OutcomeUnknown(error.message, op_id=units[0].op_id) from error
        except BaseException:
            if newest.accepts:
                newest.commits.remove(commit)
            raise
        return commit.outcomes

    def flush(self) -> None:
        """Leave the open pack open no longer."""
        if self._open is not None:
            self._open.wanted = True
            self._poke()


def _with_one_more(sealed: SealedPack, data: bytes, extra: bytes) -> SealedPack:
    """`sealed`, which is `data`, and behind its chunks one that is `extra`."""
    builder = PackBuilder()
    for entry in sealed.entries:
        found = read_chunk(data, entry.offset)
        if found is None or found[0].digest != entry.digest:
            raise Busy("a pack of the same bytes is being deleted just now: try again")
        builder.add(found[0])
    builder.add(raw_chunk(digest_of(extra), extra))
    return builder.seal()


def _relying(units: Sequence[Unit], packs: set[OpenPack]) -> Sequence[Unit]:
    """`units`, which rely on `packs` too."""
    if not packs:
        return units
    numbers = {number for pack in packs for number in pack.numbers}
    return [unit.needing(numbers) for unit in units]


def done(outcome: Outcome) -> Done:
    """The outcome of a unit that must not be refused. Raises why it was."""
    if isinstance(outcome, Refused):
        raise outcome.error
    return outcome

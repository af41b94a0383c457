"""Migrations of whole vaults: every phase, every way out, and what can go wrong on the way."""

from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import anyio
import pytest
from attrs import define, field
from tests.faults import (
    FOUR_PACKS,
    CatalogAround,
    add_user,
    assert_sound,
    at,
    put,
    random_bytes,
    read,
    state_of,
)

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.adapters.wrappers.placed import SHADOWED, PlacedObjectStore
from vaultfs.domain.errors import (
    Busy,
    CatalogUnavailable,
    Conflict,
    InvalidField,
    OutcomeUnknown,
)
from vaultfs.domain.migrating import CLAIM_US, Claimed, NoteCopied, Propose, Step
from vaultfs.domain.migration import Blocked, Command, Level, Phase, Placement
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import Outcome, Unit
from vaultfs.domain.services.collector import Options
from vaultfs.domain.services.migrator import Migrator
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, compose, write_marker
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.objects import (
    ObjectInfo,
    ObjectStore,
    OutOfSpace,
    Payload,
    PermissionDenied,
    PutMode,
    Span,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
    Throttled,
    Unauthenticated,
    WrongStore,
)

T = TypeVar("T")
CLAIM: Final = timedelta(microseconds=CLAIM_US)


class Crash(Exception):
    """The process dies here."""


@define(eq=False)
class Effects:
    """Counts what changes something, and crashes at the one with the number `at`.

    A process that is dead changes nothing more, whatever its code still tries.
    """

    at: int | None = None
    seen: int = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.at is not None and self.seen >= self.at:
            raise Crash


class Switched(StoreAround):
    """A store that fails as `fault` says as long as there is one, at reads or writes."""

    def __init__(self, inner: MemoryObjectStore, effect: Callable[[], None]) -> None:
        super().__init__(inner)
        self.memory = inner
        self.effect = effect
        self.reads: type[StoreError] | None = None
        self.writes: type[StoreError] | None = None

    def down(self, error: type[StoreError] | None = StoreUnavailable) -> None:
        self.reads = self.writes = error

    @property
    def packs(self) -> set[str]:
        return {key for key in self.memory.objects if key.startswith("packs/")}

    def _see(self, error: type[StoreError] | None, operation: str, key: str) -> None:
        if error is not None:
            raise error(backend=self.name, operation=operation, key=key)

    async def head(self, key: str) -> ObjectInfo:
        self._see(self.reads, "head", key)
        return await super().head(key)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        self._see(self.reads, "get", key)
        return await super().get(key, span)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        self.effect()
        self._see(self.writes, "put", key)
        await super().put(key, data, mode=mode)
        self.effect()

    async def probe(self) -> None:
        self._see(self.writes, "probe", "")
        await super().probe()


class CrashingCatalog(CatalogAround):
    def __init__(self, inner: Catalog, effect: Callable[[], None]) -> None:
        super().__init__(inner)
        self._effect = effect

    async def _around(self, call: Awaitable[T]) -> T:
        try:
            self._effect()
        except Crash:
            call.close()  # type: ignore[attr-defined]
            raise
        found = await call
        self._effect()
        return found

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        return await self._around(super().apply(units))

    async def migrate(self, step: Step, actor: UserId, at_us: int) -> int:
        return await self._around(super().migrate(step, actor, at_us))

    async def claim_copies(
        self, store: str, at_us: int, *, after: int = 0, limit: int = 16
    ) -> list[Claimed]:
        return await self._around(super().claim_copies(store, at_us, after=after, limit=limit))


@define(eq=False)
class World:
    """A catalog, two stores, and the vaults that are open on them."""

    catalog: Catalog
    clock: ManualClock = field(factory=ManualClock)
    effects: Effects = field(factory=Effects)
    stores: dict[str, Switched] = field(factory=dict[str, Switched])
    kept: dict[str, bytes] = field(factory=dict[str, bytes])
    """What the files hold."""

    def __attrs_post_init__(self) -> None:
        for name in "st":
            memory = MemoryObjectStore(name, clock=self.clock)
            self.stores[name] = Switched(memory, self.effects)

    @property
    def source(self) -> Switched:
        return self.stores["s"]

    @property
    def target(self) -> Switched:
        return self.stores["t"]

    @asynccontextmanager
    async def server(self) -> AsyncGenerator[Vault, None]:
        """A process that has the vault open."""
        catalog = CrashingCatalog(self.catalog, self.effects)
        first = await catalog.placement() or Placement(0, Phase.SETTLED, "s")

        async def load() -> Placement:
            return await catalog.placement() or first

        store = PlacedObjectStore(dict[str, ObjectStore](self.stores), first, load)
        settings = Settings(Path("memory"), FOUR_PACKS, 2)
        async with compose(settings, store, catalog, self.clock) as vault:
            yield vault

    async def phase(self) -> Phase:
        now = await self.catalog.placement()
        return Phase.SETTLED if now is None else now.phase

    async def put(self, vault: Vault, name: str, *more: str) -> None:
        for each in (name, *more):
            self.kept[each] = random_bytes(3000, f"{each} {len(self.kept)}")
            await put(vault, f"/{each}", self.kept[each])

    async def remove(self, vault: Vault, name: str) -> None:
        """Delete a file, empty the trash, and collect what it held."""
        del self.kept[name]
        await vault.files.delete(vault.user, at(f"/{name}"))
        for node, _ in await vault.catalog.trash(vault.user.tree):
            await vault.files.purge(vault.user, OWNER, node.id)
        await vault.collector().run(Options(grace_us=0, confirmed=True))

    async def check(self, vault: Vault) -> None:
        """Everything is as it was put, and every pack where its rows say that it is."""
        await assert_sound(vault)
        for name, data in self.kept.items():
            assert await read(vault, f"/{name}") == data
        assert {f"/{name}" for name in self.kept} <= (await state_of(vault)).keys()
        rows = {f"packs/{row.key.hex()}" for row in await self.catalog.packs()}
        now = await self.catalog.placement()
        if now is None:
            return
        primary = self.stores[now.primary]
        assert rows <= primary.packs | self.stores[now.read_order[-1]].packs
        for name in now.stores:
            counts = await self.catalog.copy_counts(name)
            assert counts.there <= len(rows & self.stores[name].packs)


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    catalog = await SqliteCatalog.open(None)
    await add_user(catalog, OWNER)
    yield World(catalog)
    await catalog.aclose()


@pytest.fixture
async def vault(world: World) -> AsyncGenerator[Vault, None]:
    """A vault with some files."""
    async with world.server() as vault:
        await write_marker(world.source, await world.catalog.vault_id())
        await world.put(vault, "one", "two", "three")
        yield vault


@pytest.fixture
async def mover(vault: Vault) -> Migrator:
    return await vault.migrator()


async def to_phase(mover: Migrator, phase: Phase) -> None:
    """Go on to `phase` by the shortest way, from the beginning."""
    await mover.start("t", Level.ALL)
    ways: dict[Phase, tuple[Command, ...]] = {
        Phase.COPYING: (),
        Phase.DUAL: (Command.DUAL,),
        Phase.ABORTED: (Command.ABORT,),
    }
    ways[Phase.SOAK] = (*ways[Phase.DUAL], Command.CUTOVER)
    ways[Phase.ROLLED_BACK] = (*ways[Phase.SOAK], Command.ROLLBACK)
    ways[Phase.DETACHED] = (*ways[Phase.SOAK], Command.DETACH)
    ways[Phase.REVERSING] = (*ways[Phase.DETACHED], Command.ROLLBACK)
    ways[Phase.RETIRED] = (*ways[Phase.DETACHED], Command.RETIRE)
    for command in ways[phase]:
        if command is Command.CUTOVER:
            assert await mover.run()
        await mover.follow(command)


async def carry_out(mover: Migrator) -> None:
    """Whatever is left of a migration, from wherever it is."""
    while True:
        now = await mover.catalog.placement()
        match now.phase if now is not None else None:
            case Phase.COPYING | Phase.DUAL:
                await mover.run()
                await mover.advance()
                if (await mover.status()).placement.phase is Phase.DUAL:
                    await mover.run()
                    await mover.follow(Command.CUTOVER)
            case Phase.SOAK:
                await mover.follow(Command.DETACH)
            case Phase.DETACHED | Phase.RETIRED:
                await mover.retire("s")
            case Phase.SETTLED:
                assert now is not None
                if now.source == "t":
                    return
                await mover.start("t", Level.ALL)
            case _:
                await mover.start("t", Level.ALL)


# The whole way


async def test_a_vault_moves_while_it_is_used(world: World, vault: Vault, mover: Migrator) -> None:
    async def use(word: str) -> None:
        await world.put(vault, f"{word}-a", f"{word}-b", "two")
        await world.remove(vault, f"{word}-a")
        await world.check(vault)

    await use("before")
    now = await mover.start("t", Level.ALL)
    assert (now.phase, now.source, now.target) == (Phase.COPYING, "s", "t")
    await use("copying")
    assert await mover.run()
    await mover.advance()
    assert await world.phase() is Phase.DUAL
    await use("dual")
    await mover.run()
    await mover.follow(Command.CUTOVER)
    assert vault.objects.name == "t"
    await use("soak")
    await mover.run()
    await mover.follow(Command.ROLLBACK)
    await use("rolled back")
    await mover.run()
    await mover.follow(Command.DUAL)
    await use("dual again")
    assert await mover.run()
    await mover.follow(Command.CUTOVER)
    await mover.run()
    await mover.follow(Command.DETACH)
    await use("detached")
    await mover.retire("s")
    await use("settled")
    assert not world.source.memory.objects
    assert "marker/vault.json" in world.target.memory.objects
    now = await mover.start("s", Level.ALL)
    assert (now.source, now.target) == ("t", "s")
    assert await mover.run()


async def test_reads_are_compared_while_packs_go_to_both(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    assert await mover.run()
    for _ in range(2 * SHADOWED):
        await read(vault, "/one")
    assert await mover.compare() == ()
    damaged = dict(world.target.memory.objects)
    for key in world.target.packs:
        damaged[key] = bytes(len(damaged[key]))
    world.target.memory.objects.update(damaged)
    for _ in range(2 * SHADOWED):
        await read(vault, "/one")
    [key] = await mover.compare()
    with pytest.raises(Blocked, match="1 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    assert await mover.run()
    assert world.target.memory.objects[key] == world.source.memory.objects[key]
    world.target.memory.objects.update(world.source.memory.objects)
    await mover.follow(Command.CUTOVER)
    await world.check(vault)
    assert await mover.compare() == (), "there is nothing to compare with any more"


async def test_what_is_not_there_yet_is_no_difference(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    for _ in range(2 * SHADOWED):
        await read(vault, "/one")
    assert await mover.compare() == ()
    world.target.down()
    for _ in range(2 * SHADOWED):
        await read(vault, "/one")
    assert await mover.compare() == ()


async def test_progress_is_counted(world: World, vault: Vault, mover: Migrator) -> None:
    before = await mover.status()
    assert (before.placement.phase, before.counts) == (Phase.SETTLED, None)
    await mover.start("t", Level.ALL)
    status = await mover.status()
    assert status.counts is not None
    assert (status.counts.packs, status.counts.there) == (3, 0)
    told: list[int] = []
    await mover.run(progress=told.append)
    status = await mover.status()
    assert status.counts is not None
    assert status.counts.there == status.counts.read_back == 3
    assert sum(told) == status.counts.there_size == status.counts.size
    assert status.unread == 0


async def test_pausing_stops_copying_alone(world: World, vault: Vault, mover: Migrator) -> None:
    await mover.start("t")
    assert (await mover.pause(paused=True)).paused
    assert not await mover.run()
    assert not world.target.packs
    await world.put(vault, "more")
    await mover.pause(paused=False)
    assert await mover.run()
    assert len(world.target.packs) == 4


# Ways back


async def test_a_rollback_keeps_what_was_put_since(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.SOAK)
    await world.put(vault, "since", "two")
    await mover.follow(Command.ROLLBACK)
    assert vault.objects.name == "s"
    world.target.memory.objects.clear()
    world.target.down()
    for name, data in world.kept.items():
        assert await read(vault, f"/{name}") == data


async def test_a_rollback_takes_no_answer_of_the_new_store(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.SOAK)
    await world.put(vault, "since")
    world.target.down()
    await mover.follow(Command.ROLLBACK)
    assert await read(vault, "/since") == world.kept["since"]


async def scrub(world: World, vault: Vault) -> int:
    """How many packs are damaged where they are read first."""
    world.clock.advance(timedelta(days=60))
    return len((await vault.scrubber().run()).problems)


def damage(store: Switched) -> str:
    """Damage a pack; its key."""
    key = min(store.packs)
    whole = store.memory.objects[key]
    store.memory.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    return key


async def test_a_migration_is_given_up_though_a_pack_is_damaged_where_it_was(
    world: World, vault: Vault, mover: Migrator
) -> None:
    damage(world.source)
    assert await scrub(world, vault) == 1
    await mover.start("t", Level.ALL)
    assert not await mover.run()
    assert len((await mover.status()).failures) == 1
    await mover.follow(Command.ABORT)
    await mover.follow(Command.END)
    await world.put(vault, "more")


async def test_a_pack_that_was_damaged_in_the_old_store_leaves_the_way_back_open(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    assert await mover.run()
    key = damage(world.source)
    world.target.down()
    assert await scrub(world, vault) == 1
    world.target.down(None)
    with pytest.raises(Blocked, match="1 packs are not in s"):
        await mover.follow(Command.ABORT)
    await mover.follow(Command.CUTOVER)
    await mover.follow(Command.ROLLBACK)
    for name, data in world.kept.items():
        assert await read(vault, f"/{name}") == data
    assert await mover.run()
    assert world.source.memory.objects[key] == world.target.memory.objects[key]
    await mover.follow(Command.ABORT)
    await world.check(vault)


async def test_after_detaching_all_is_copied_back_first(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DETACHED)
    await world.put(vault, "since", "two")
    await vault.recovery.backup()
    assert len(world.source.packs) == 3
    await mover.follow(Command.ROLLBACK)
    with pytest.raises(Blocked, match="2 packs are not in s"):
        await mover.follow(Command.REVERSED)
    await world.put(vault, "reversing")
    await world.check(vault)
    assert await mover.run()
    await mover.advance()
    assert await world.phase() is Phase.ROLLED_BACK
    await world.check(vault)
    await mover.follow(Command.ABORT)
    await mover.follow(Command.END)
    world.target.memory.objects.clear()
    await world.check(vault)
    assert len(await vault.recovery.backups()) == 1


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.DUAL, Phase.ROLLED_BACK])
async def test_giving_it_up_leaves_everything_where_it_was(
    phase: Phase, world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, phase)
    await world.put(vault, "more")
    await mover.follow(Command.ABORT)
    await world.put(vault, "more still")
    await mover.follow(Command.END)
    world.target.memory.objects.clear()
    await world.check(vault)
    await carry_out(mover)
    await world.check(vault)


# What is in the way


async def test_a_pack_that_is_missing_or_damaged_is_listed_and_never_counted(
    world: World, vault: Vault, mover: Migrator
) -> None:
    missing, damaged, _ = sorted(world.source.packs)
    bytes_of = {key: world.source.memory.objects[key] for key in (missing, damaged)}
    del world.source.memory.objects[missing]
    world.source.memory.objects[damaged] = bytes_of[damaged][:-1] + b"?"
    await mover.start("t", Level.DIGEST)
    assert not await mover.run()
    failures = (await mover.status()).failures
    assert {f"packs/{each.key.hex()}" for each in failures} == {missing, damaged}
    assert world.target.packs.isdisjoint({missing, damaged})
    await mover.advance()
    assert await world.phase() is Phase.COPYING, "two of three are far from all"
    await mover.follow(Command.DUAL)
    with pytest.raises(Blocked, match="2 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    world.source.memory.objects.update(bytes_of)
    assert await mover.retry() == 2
    assert await mover.run()
    await mover.follow(Command.CUTOVER)
    await world.check(vault)


async def test_packs_go_to_both_once_all_but_one_in_a_hundred_are_there(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await world.put(vault, *(f"more-{number}" for number in range(98)))
    missing = sorted(world.source.packs)[:2]
    kept = {key: world.source.memory.objects.pop(key) for key in missing}
    await mover.start("t", Level.DIGEST)
    assert not await mover.run()
    await mover.advance()
    assert await world.phase() is Phase.COPYING, "two of 101 are missing"
    world.source.memory.objects[missing[0]] = kept[missing[0]]
    await mover.retry()
    assert not await mover.run()
    await mover.advance()
    assert await world.phase() is Phase.DUAL
    with pytest.raises(Blocked, match="1 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)


async def test_what_decays_in_the_new_store_is_read_back_and_copied_again(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.COPYING)
    key, *_ = sorted(world.source.packs)
    world.target.memory.objects[key] = b"left of something else"
    assert await mover.run()
    assert world.target.memory.objects[key] == world.source.memory.objects[key]


@pytest.mark.parametrize("error", [StoreUnavailable, Throttled])
async def test_a_store_that_does_not_answer_uses_no_attempts_up(
    error: type[StoreError], world: World, vault: Vault, mover: Migrator
) -> None:
    await mover.start("t", Level.ALL)
    world.target.down(error)
    for _ in range(20):
        assert not await mover.run()
    assert (await mover.status()).failures == ()
    world.target.down(None)
    assert await mover.run()


@define(eq=False)
class Hindered(CatalogAround):
    """A catalog whose notes of copies fail a few times; with `after`, once they are made."""

    inner: Catalog
    error: Exception
    times: int
    after: bool = False

    async def migrate(self, step: Step, actor: UserId, at_us: int) -> int:
        if not isinstance(step, NoteCopied) or not self.times:
            return await super().migrate(step, actor, at_us)
        self.times -= 1
        if self.after:
            await super().migrate(step, actor, at_us)
        raise self.error


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (Busy("others are writing the same"), False),
        (CatalogUnavailable("the server is starting"), False),
        (OutcomeUnknown("the connection was lost in a commit", op_id="x"), False),
        (OutcomeUnknown("the connection was lost in a commit", op_id="x"), True),
    ],
)
async def test_what_was_copied_is_noted_again_by_a_busy_catalog(
    error: Exception, after: bool, world: World, vault: Vault, mover: Migrator
) -> None:
    await mover.start("t", Level.DIGEST)
    mover.catalog = Hindered(mover.catalog, error, 2, after)
    assert await mover.run()
    await world.check(vault)


class Blow(Exception):
    """A bug, of whatever kind."""


async def test_whoever_breaks_off_gives_back_what_was_claimed(
    world: World, vault: Vault, mover: Migrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mover.start("t", Level.DIGEST)

    async def broken(key: str, span: Span | None = None) -> bytes:
        raise Blow

    async def hanging(key: str, span: Span | None = None) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(world.source, "get", broken)
    for _ in range(7):  # more often than a pack is tried
        with pytest.raises(Blow):
            await mover.run()
    monkeypatch.setattr(world.source, "get", hanging)
    with anyio.move_on_after(0.1) as scope:
        await mover.run()
    assert scope.cancelled_caught
    monkeypatch.undo()
    assert (await mover.status()).failures == ()
    assert await mover.run()  # by a clock that stood still
    await world.check(vault)


async def test_a_store_that_is_full_is_listed(world: World, vault: Vault, mover: Migrator) -> None:
    await mover.start("t", Level.ALL)
    world.target.writes = OutOfSpace
    assert not await mover.run()
    assert len((await mover.status()).failures) == 3
    world.target.writes = None
    assert await mover.retry() == 3
    assert await mover.run()


@pytest.mark.parametrize(
    "error", [StoreUnavailable, Throttled, OutOfSpace, Unauthenticated, PermissionDenied]
)
@pytest.mark.parametrize(
    "phase", [Phase.COPYING, Phase.DUAL, Phase.SOAK, Phase.ROLLED_BACK, Phase.DETACHED]
)
async def test_what_works_while_the_new_store_fails(
    phase: Phase, error: type[StoreError], world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, phase)
    world.target.writes = error
    if error is StoreUnavailable:
        world.target.reads = error
    for name in ("one", "two", "three"):
        assert await read(vault, f"/{name}") == world.kept[name]
    if phase in {Phase.COPYING, Phase.DUAL}:
        await world.put(vault, "more")
    else:
        with pytest.raises(error):
            await put(vault, "/refused", b"x" * 3000)
    world.target.down(None)
    await world.put(vault, "again")
    await mover.retry()
    await mover.run()
    await world.check(vault)


@pytest.mark.parametrize("error", [Unauthenticated, PermissionDenied])
async def test_credentials_that_are_wrong_from_the_start_are_refused(
    error: type[StoreError], world: World, vault: Vault, mover: Migrator
) -> None:
    world.target.down(error)
    with pytest.raises(error):
        await mover.start("t")
    assert await world.catalog.placement() is None
    await world.put(vault, "more")
    await world.check(vault)


@pytest.mark.parametrize("error", [Unauthenticated, PermissionDenied])
async def test_credentials_that_expire_are_failures_until_there_are_others(
    error: type[StoreError], world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    world.target.down(error)
    assert not await mover.run()
    status = await mover.status()
    assert status.counts is not None
    assert (len(status.failures), status.counts.there) == (3, 0)
    with pytest.raises(Blocked, match="t does not work"):
        await mover.follow(Command.CUTOVER)
    world.target.down(None)
    with pytest.raises(Blocked, match="3 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    assert await mover.retry() == 3
    assert await mover.run()
    await mover.follow(Command.CUTOVER)
    world.target.down(error)
    await mover.follow(Command.ROLLBACK)
    for name, data in world.kept.items():
        assert await read(vault, f"/{name}") == data


@pytest.mark.parametrize("error", [StoreUnavailable, Throttled, Unauthenticated])
async def test_the_way_back_waits_for_the_old_store(
    error: type[StoreError], world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DETACHED)
    world.source.down(error)
    await world.put(vault, "since", "two")
    await mover.follow(Command.ROLLBACK)
    assert not await mover.run()
    with pytest.raises(Blocked, match="2 packs are not in s"):
        await mover.follow(Command.REVERSED)
    for name, data in world.kept.items():
        assert await read(vault, f"/{name}") == data
    world.source.down(None)
    await mover.retry()
    assert await mover.run()
    await mover.advance()
    assert await world.phase() is Phase.ROLLED_BACK
    await world.check(vault)


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.SETTLED])
async def test_everything_is_started_anew_in_any_phase(phase: Phase, world: World) -> None:
    async with world.server() as vault:
        await write_marker(world.source, await world.catalog.vault_id())
        await world.put(vault, "one", "two", "three")
        if phase is Phase.DRAFT:
            await world.catalog.migrate(Propose("s", "t", Level.ALL), UserId(0), 0)
            await write_marker(world.target, await world.catalog.vault_id())
        else:
            await to_phase(await vault.migrator(), phase)
    async with world.server() as one, world.server() as two:
        assert await world.phase() is phase
        await world.check(one)
        await world.put(one, "four", "five")
        await world.check(two)
        await world.remove(two, "four")
    async with world.server() as vault:
        mover = await vault.migrator()
        if phase is Phase.REVERSING:
            assert await mover.run()
            await mover.advance()
        if phase in {Phase.REVERSING, Phase.ROLLED_BACK}:
            await mover.follow(Command.DUAL)
        if phase is Phase.ABORTED:
            await mover.follow(Command.END)
        await carry_out(mover)
        await world.check(vault)
    assert not world.source.memory.objects


async def test_the_store_of_another_vault_is_refused(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await write_marker(world.target, "0" * 32)
    with pytest.raises(WrongStore):
        await mover.start("t")
    assert await world.catalog.placement() is None


async def test_a_store_that_overwrites_what_it_is_to_create_is_refused(
    world: World, vault: Vault, mover: Migrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, right = world.target.memory, world.target.memory.put

    async def put_anyway(key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await right(key, data, mode=PutMode.OVERWRITE)

    monkeypatch.setattr(store, "put", put_anyway)
    with pytest.raises(StoreMisconfigured, match="overwritten"):
        await mover.start("t")
    assert await world.catalog.placement() is None


async def test_a_store_that_nobody_named_is_refused(vault: Vault, mover: Migrator) -> None:
    with pytest.raises(InvalidField, match="no store is called u"):
        await mover.start("u")
    with pytest.raises(InvalidField):
        await mover.start("s")


async def test_there_is_no_cutover_to_a_store_that_is_down(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    assert await mover.run()
    world.target.down()
    with pytest.raises(Blocked, match="t does not work"):
        await mover.follow(Command.CUTOVER)
    assert await world.phase() is Phase.DUAL
    await world.put(vault, "more")
    world.target.down(None)
    assert await mover.run()
    await mover.follow(Command.CUTOVER)
    await world.check(vault)


async def test_one_store_under_two_names_is_refused(
    world: World, vault: Vault, mover: Migrator
) -> None:
    world.target.memory.objects = world.source.memory.objects
    with pytest.raises(InvalidField, match="t is where everything is"):
        await mover.start("t")
    assert await world.phase() is Phase.SETTLED
    await world.check(vault)
    assert not [key for key in world.source.memory.objects if key.startswith("probe/")]


class Within(MutableMapping[str, bytes]):
    """The objects of a store that is somewhere among those of another."""

    def __init__(self, objects: dict[str, bytes], prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix

    def __getitem__(self, key: str) -> bytes:
        return self._objects[self._prefix + key]

    def __setitem__(self, key: str, data: bytes) -> None:
        self._objects[self._prefix + key] = data

    def __delitem__(self, key: str) -> None:
        del self._objects[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        size = len(self._prefix)
        return (key[size:] for key in list(self._objects) if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@pytest.mark.parametrize("prefix", ["packs/inner/", "packs/", "backups/inner/", "marker/"])
async def test_a_store_among_the_objects_of_the_other_is_refused(
    prefix: str, world: World, vault: Vault, mover: Migrator
) -> None:
    objects = Within(world.source.memory.objects, prefix)
    world.target.memory.objects = objects  # type: ignore[assignment]
    with pytest.raises(InvalidField, match="t is within s"):
        await mover.start("t")
    assert await world.phase() is Phase.SETTLED
    await world.check(vault)


async def test_a_store_that_is_too_small_is_refused(
    world: World, mover: Migrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def room() -> int:
        return 8_000

    monkeypatch.setattr(world.target, "room", room)
    with pytest.raises(OutOfSpace, match="room for 8000 bytes, and the packs are 9"):
        await mover.start("t")
    assert await world.phase() is Phase.SETTLED


async def test_of_two_operators_one_is_too_late(world: World, mover: Migrator) -> None:
    seen = (await mover.start("t")).epoch
    await mover.follow(Command.DUAL, seen)
    for call in (
        mover.follow(Command.ABORT, seen),
        mover.pause(paused=True, if_epoch=seen),
    ):
        with pytest.raises(Conflict, match="somebody else was faster"):
            await call
    assert await world.phase() is Phase.DUAL


async def test_retiring_takes_the_name(world: World, vault: Vault, mover: Migrator) -> None:
    await to_phase(mover, Phase.DETACHED)
    with pytest.raises(InvalidField, match="not what is given up"):
        await mover.retire("t")
    assert len(world.source.packs) == 3
    assert await mover.retire("s") == 4
    assert await world.phase() is Phase.SETTLED
    await world.check(vault)


async def test_who_retires_late_deletes_nothing_that_was_copied_since(
    world: World, vault: Vault, mover: Migrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_phase(mover, Phase.DETACHED)
    right = world.source.memory.list

    async def list_and_wait(
        prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        found = [info async for info in right(prefix, start_after=start_after)]
        monkeypatch.setattr(world.source.memory, "list", right)
        async with world.server() as faster:  # retires it meanwhile, and moves back
            other = await faster.migrator()
            await other.retire("s")
            await other.start("s", Level.ALL)
            assert await other.run()
        for info in found:
            yield info

    monkeypatch.setattr(world.source.memory, "list", list_and_wait)
    with pytest.raises(Conflict, match="somebody else was faster"):
        await mover.retire("s")
    assert len(world.source.packs) == 3
    await mover.follow(Command.DUAL)
    await mover.follow(Command.CUTOVER)
    await mover.follow(Command.DETACH)
    await world.check(vault)


async def test_backups_move_along(world: World, vault: Vault, mover: Migrator) -> None:
    backup = await vault.recovery.backup()
    await to_phase(mover, Phase.DUAL)
    other = await vault.recovery.backup(keep=9)
    await mover.run()
    await mover.follow(Command.CUTOVER)
    await mover.follow(Command.DETACH)
    await mover.retire("s")
    names = {each.name for each in await vault.recovery.backups()}
    assert names == {backup.name, other.name}


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.DUAL, Phase.SOAK, Phase.DETACHED])
async def test_the_index_is_made_anew_in_any_phase(
    phase: Phase, world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, phase)
    await world.put(vault, "more")
    rebuilt = await vault.recovery.rebuild()
    assert (rebuilt.packs, rebuilt.problems) == (4, ())
    await world.check(vault)
    await carry_out(mover)
    await world.check(vault)


@pytest.mark.parametrize(
    ("phase", "there"),
    [
        (Phase.COPYING, {"s"}),
        (Phase.DUAL, {"s"}),
        (Phase.SOAK, {"s", "t"}),
        (Phase.DETACHED, {"t"}),
        (Phase.REVERSING, {"t"}),
        (Phase.ROLLED_BACK, {"s", "t"}),
    ],
)
async def test_a_new_index_knows_which_store_has_what(
    phase: Phase, there: set[str], world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, phase)
    await world.put(vault, "more")
    await vault.recovery.rebuild()
    for name in "st":
        rows = {f"packs/{pack.key.hex()}" for pack in await world.catalog.packs_in(name)}
        assert rows == (world.stores[name].packs if name in there else set())
    await world.check(vault)


async def test_a_new_index_leaves_the_way_back_as_it_was(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.SOAK)
    await world.put(vault, "since")
    lost = min(world.target.packs)
    del world.target.memory.objects[lost]
    assert (await vault.recovery.rebuild()).problems == ()
    with pytest.raises(Blocked, match="1 packs are not verified in t"):
        await mover.follow(Command.DETACH)
    await mover.follow(Command.ROLLBACK)
    world.target.down()
    for name, data in world.kept.items():
        assert await read(vault, f"/{name}") == data


async def test_a_new_index_takes_no_leftovers_for_copies(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    assert await mover.run()
    key = min(world.source.packs)
    whole = world.source.memory.objects[key]
    world.target.memory.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    await vault.recovery.rebuild()
    with pytest.raises(Blocked, match="3 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    assert await mover.run()
    assert world.target.memory.objects[key] == whole
    await mover.follow(Command.CUTOVER)
    await world.check(vault)


async def test_a_scrub_copies_nothing(world: World, vault: Vault, mover: Migrator) -> None:
    await mover.start("t", Level.DIGEST)
    await world.catalog.claim_copies("t", 0)
    world.clock.advance(timedelta(days=60))
    scrub = await vault.scrubber().run()
    assert (scrub.packs, scrub.problems) == (3, ())
    await mover.follow(Command.DUAL)
    with pytest.raises(Blocked, match="3 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    assert await mover.run()


async def test_a_scrub_finds_what_is_damaged_in_the_store_that_is_read(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.SOAK)
    key, *_ = sorted(world.target.packs)
    whole = world.target.memory.objects[key]
    world.target.memory.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    world.clock.advance(timedelta(days=60))
    spoilt, world.source.memory.objects[key] = world.source.memory.objects[key], b"spoilt too"
    scrub = await vault.scrubber().run()
    assert (len(scrub.problems), scrub.repaired) == (1, ())
    with pytest.raises(Blocked, match="1 packs are not verified in t"):
        await mover.follow(Command.DETACH)
    world.source.memory.objects[key] = spoilt
    world.clock.advance(CLAIM * 2)
    assert await mover.run()
    assert world.target.memory.objects[key] == whole
    await mover.follow(Command.DETACH)
    await world.check(vault)


async def test_a_scrub_repairs_what_another_store_has(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.SOAK)
    one, other, *_ = sorted(world.target.packs)
    whole = dict(world.target.memory.objects)
    world.target.memory.objects[one] = whole[one][:-1] + bytes([whole[one][-1] ^ 1])
    del world.target.memory.objects[other]
    world.clock.advance(timedelta(days=60))
    scrub = await vault.scrubber().run()
    assert (scrub.problems, scrub.files) == ((), ())
    assert sorted(scrub.repaired) == [one, other]
    assert world.target.memory.objects == whole
    await mover.follow(Command.DETACH)
    await world.check(vault)


async def test_what_the_new_store_has_lost_is_found_and_copied_again(
    world: World, vault: Vault, mover: Migrator
) -> None:
    await to_phase(mover, Phase.DUAL)
    assert await mover.reconcile() == ()
    assert await mover.run()
    assert await mover.reconcile() == ()
    one, other, *_ = sorted(world.target.packs)
    whole = dict(world.target.memory.objects)
    del world.target.memory.objects[one]
    world.target.memory.objects[other] = whole[other][:-1]
    assert sorted(await mover.reconcile()) == [one, other]
    with pytest.raises(Blocked, match="2 packs are not verified in t"):
        await mover.follow(Command.CUTOVER)
    assert await mover.run()
    assert world.target.memory.objects == whole
    await mover.follow(Command.CUTOVER)
    await world.check(vault)


# Other servers


async def test_a_server_that_hears_of_nothing_puts_where_it_is_looked_for(
    world: World, vault: Vault, mover: Migrator
) -> None:
    async with AsyncExitStack() as stack:
        late: dict[Phase, Vault] = {}
        await mover.start("t", Level.ALL)
        for phase, command in (
            (Phase.COPYING, Command.DUAL),
            (Phase.DUAL, Command.CUTOVER),
            (Phase.SOAK, Command.DETACH),
        ):
            late[phase] = await stack.enter_async_context(world.server())
            await mover.run()
            await mover.follow(command)
        for phase, server in late.items():
            assert isinstance(server.objects, PlacedObjectStore)
            assert server.objects.placement.phase is phase
            await world.put(server, f"late-{phase}")
            await world.check(vault)
        await mover.retire("s")
        await world.check(vault)
        for server in late.values():
            for name, data in world.kept.items():
                assert await read(server, f"/{name}") == data


async def test_a_server_that_knows_one_store_alone_records_nothing_that_lacks(
    world: World, vault: Vault, mover: Migrator
) -> None:
    settings = Settings(Path("memory"), FOUR_PACKS, 2)
    async with compose(settings, world.source, world.catalog, world.clock) as plain:
        await mover.start("t", Level.ALL)
        await world.put(plain, "copying")
        await mover.follow(Command.DUAL)
        await world.put(plain, "dual")
        assert await mover.run()
        await mover.follow(Command.CUTOVER)
        with pytest.raises(StoreMisconfigured, match="nothing says where that is"):
            await put(plain, "/soak", b"x" * 3000)
    await world.check(vault)


# Crashes


async def scenario(world: World) -> None:
    """A migration with writes between; from the beginning or from where it broke off."""
    async with world.server() as vault:
        mover = await vault.migrator()
        await carry_out(mover)


async def test_it_goes_on_after_a_crash_anywhere() -> None:
    number = 0
    while True:
        number += 1
        catalog = await SqliteCatalog.open(None)
        try:
            await add_user(catalog, OWNER)
            world = World(catalog)
            async with world.server() as vault:
                await write_marker(world.source, await catalog.vault_id())
                await world.put(vault, "one", "two")
            world.effects.seen, world.effects.at = 0, number
            crashed = False
            try:
                await scenario(world)
            except Crash:
                crashed = True
            world.effects.at = None
            async with world.server() as vault:
                await world.check(vault)
            world.clock.advance(CLAIM)
            await scenario(world)
            async with world.server() as vault:
                await world.check(vault)
            assert not world.source.memory.objects
        finally:
            await catalog.aclose()
        if not crashed:
            break
    assert number > 20

"""A migration beside writers, copiers and collections, in any order: no pack is ever lost.

What decides and what changes the catalog is the product's own: `domain.migration` and the
programs of `adapters.sql`, run on SQLite in memory, a transaction at a time. Around them
servers that hear of changes late, copiers, a collector and an operator are simulated as
coroutines that stop between two effects; which one goes on, which crashes, and which store is
down is decided by a seed. Stores that nobody goes by any more are emptied. With each rule of
safety taken away, a pack is lost before long.
"""

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import suppress
from random import Random
from typing import Any, Final, TypeVar

import pytest
from attrs import define, evolve, field

from vaultfs.adapters.sql import collections, placements, stock
from vaultfs.adapters.sql.connections import drive, open_writer
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.statements import Program, Run
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain import collecting, migrating
from vaultfs.domain import operations as ops
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Busy, Conflict, Doomed, Fenced, PlacementChanged
from vaultfs.domain.migration import Command, Level, Phase, Placement
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import Unit

# pyright: reportPrivateUsage=false

SERVERS: Final = 3
STORES: Final = ("a", "b")
STEPS: Final = int(os.environ.get("VAULTFS_SIMULATED", "300000"))

Actor = Generator[None, None, None]
T = TypeVar("T")


class Lost(AssertionError):
    """A pack that was recorded cannot be read."""


class Down(Exception):
    """The store does not answer."""


@define(eq=False)
class World:
    """The catalog, the stores, and what each server thinks."""

    random: Random
    now: int = 10**15
    serial: int = 0
    stores: dict[str, set[Digest]] = field(factory=lambda: {name: set[Digest]() for name in STORES})
    down: dict[str, int] = field(factory=dict[str, int])
    """Until which step a store does not answer."""
    at: int = 0
    servers: list[Placement] = field(factory=list[Placement])
    """The placement as each server has it."""
    settled: dict[str, int] = field(factory=dict[str, int])
    """How often something was done."""
    connection: sqlite3.Connection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = open_writer(None, create=True)[0]
        self.connection.execute("PRAGMA synchronous = OFF")
        self.servers = [self.placement() for _ in range(SERVERS)]

    def count(self, what: str) -> None:
        self.settled[what] = self.settled.get(what, 0) + 1

    # Transactions

    def placement(self) -> Placement:
        rows = self.rows(stock.PLACEMENT)
        return stock.to_placement(rows[0]) if rows else Placement(0, Phase.SETTLED, "a")

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def record(self, pack: ops.RecordPack) -> None:
        unit = self._unit(pack)
        self._transact(lambda tx: run_unit(tx, unit, []))

    def migrate(self, step: migrating.Step) -> int:
        return self._answer(lambda tx: placements.execute(step, self._unit(), tx))

    def collect(self, step: collecting.Step) -> int:
        return self._answer(lambda tx: collections.execute(step, self._unit(), tx))

    def claim(self, store: str) -> list[migrating.Claimed]:
        return self._answer(
            lambda tx: placements.claim(store, self.serial % 7, 8, self._unit(), tx)
        )

    def _unit(self, *operations: ops.Operation) -> Unit:
        self.serial += 1
        return Unit(UserId(0), self.now, f"op-{self.serial}", operations)

    def _answer(self, program: Callable[[Transaction], Program[T]]) -> T:
        answers: list[T] = []

        def run(tx: Transaction) -> Program[None]:
            answers.append((yield from program(tx)))

        self._transact(run)
        return answers[-1]

    def _transact(self, program: Callable[[Transaction], Program[None]]) -> None:
        tx = Transaction()
        self.connection.execute("BEGIN")
        try:
            drive(self.connection, program(tx))
            drive(self.connection, finish(tx))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    # Stores

    def _ask(self, store: str) -> set[Digest]:
        if self.down.get(store, 0) > self.at:
            raise Down(store)
        return self.stores[store]

    def put(self, store: str, key: Digest) -> None:
        self._ask(store).add(key)

    def delete(self, store: str, key: Digest) -> None:
        self._ask(store).discard(key)

    def has(self, store: str, key: Digest) -> bool:
        return key in self._ask(store)

    # What has to hold

    def check(self) -> None:
        """Whoever goes by the present placement can read every pack, and rows do not lie."""
        now = self.placement()
        for (key,) in self.rows("SELECT key FROM packs"):
            if not any(key in self.stores[store] for store in now.read_order):
                raise Lost(f"{key.hex()[:8]} is in none of {now.read_order}: {now.phase}")
        places = self.rows(
            "SELECT p.key, l.backend FROM packs p JOIN pack_locations l ON l.pack = p.id"
            f" WHERE l.state IN {placements.THERE}"
        )
        for key, store in places:
            if store in now.stores and key not in self.stores[store]:
                raise Lost(f"{key.hex()[:8]} is said to be in {store}, and is not: {now.phase}")


# Servers


def writer(world: World, server: int) -> Actor:
    """Put a pack by what the server knows, and record it: as `services.packer`."""
    world.serial += 1
    key = digest_of(b"pack %d" % world.serial)
    yield from wait(world, 3)
    for _ in range(5):
        now = world.servers[server]
        written = yield from put(world, key, now)
        if not now.covered(frozenset(written)):
            return
        if world.random.random() < 0.05:  # a server that stands still
            yield from wait(world, 1500)
        try:
            pack = ops.RecordPack(key, 100, None, written[0], (), (), tuple(written[1:]), now.epoch)
            world.record(pack)
        except PlacementChanged:
            world.count("changed")
            yield
            world.servers[server] = world.placement()
            if not any(key in world.stores[each] for each in world.servers[server].read_order):
                return  # its bytes are let go of
        except Doomed:
            return
        else:
            world.count("recorded")
            return


def put(world: World, key: Digest, now: Placement) -> Generator[None, None, list[str]]:
    """The stores that `key` was put into, the first one first."""
    written: list[str] = []
    for store in sorted(now.write_set, key=lambda name: name != now.primary):
        with suppress(Down):
            world.put(store, key)
            written.append(store)
        yield from wait(world, 2)
    return written


def refresher(world: World, server: int) -> Actor:
    """A server hears of what has changed, sooner or later."""
    yield from wait(world, 60)
    world.servers[server] = world.placement()


def copier(world: World, _: int) -> Actor:
    """Copy what is claimed: as `services.migrator`."""
    now = world.placement()
    if now.copies is None or now.paused:
        return
    source, target = now.copies
    yield
    claimed = world.claim(target)
    yield
    noted: list[tuple[int, int, str | None]] = []
    for pack in claimed:
        if world.random.random() < 0.02:  # one that stands still
            yield from wait(world, 1500)
        error = yield from copy(world, pack.key, source, target)
        noted.append((pack.number, 1, error))
    if noted:
        world.migrate(migrating.NoteCopied(target, tuple(noted), claimed[0].since))
        world.count("copied")


def copy(world: World, key: Digest, source: str, target: str) -> Generator[None, None, str | None]:
    """Why a pack was not copied."""
    try:
        if not world.has(source, key):
            return "not there"
        yield
        world.put(target, key)
        yield
        return None if world.has(target, key) else "not there either"
    except Down:
        return "down"


def wait(world: World, most: int) -> Actor:
    for _ in range(world.random.randrange(most)):
        yield


# Collections


def collector(world: World, server: int) -> Actor:
    """Throw packs away, from the stores that the server knows of: as `services.collector`."""
    try:
        number = world.collect(collecting.Begin(f"collector-{world.serial}"))
    except Busy:
        return
    try:
        rows = world.rows("SELECT id, condemned FROM packs ORDER BY id")
        yield
        for pack, condemned in rows:
            if condemned is not None:
                world.count("discarded")
                world.collect(collecting.Discard(number, pack, (), 0))
            elif world.random.random() < 0.2:
                world.collect(collecting.Condemn(number, (pack,)))
            yield
        for (key,) in world.rows("SELECT key FROM doomed WHERE deleted IS NULL"):
            for store in sorted(world.servers[server].stores):
                world.delete(store, key)
                yield
            world.collect(collecting.NoteDeleted(number, (key,)))
        world.collect(collecting.End(number, complete=True, report="{}"))
    except (Fenced, Down):
        with suppress(Fenced):
            world.collect(collecting.End(number, complete=False, report="{}"))


# Operators


def operator(world: World, _: int) -> Actor:
    """Do anything at any time; what nobody goes by any more is emptied."""
    random = world.random
    yield from wait(world, 20)
    now = world.placement()
    if now.phase is Phase.SETTLED:
        other = next(name for name in STORES if name != now.source)
        world.stores[other].clear()  # whatever was left of an older migration
        yield from wait(world, 20)
        with suppress(Conflict):
            world.migrate(migrating.Propose(now.source, other, Level.DIGEST))
        return
    able = [
        *(Command.START, Command.DUAL, Command.CUTOVER, Command.CUTOVER, Command.ROLLBACK),
        *(Command.REVERSED, Command.DETACH, Command.RETIRE, Command.END),
        *((Command.ABORT,) if random.random() < 0.08 else ()),
    ]
    for command in random.sample(able, len(able)):
        with suppress(Conflict):
            world.migrate(migrating.Follow(command))
            world.count(command)
            break
    if random.random() < 0.2 and now.copies is not None:
        yield
        with suppress(Conflict):
            world.migrate(migrating.Pause(paused=not now.paused))
            yield from wait(world, 30)
            world.migrate(migrating.Pause(paused=False))
    if now.copies is not None:
        world.migrate(migrating.Retry(now.copies[1]))
    if (now := world.placement()).phase is Phase.RETIRED:
        yield from wait(world, 10)
        if world.placement() == now:
            world.stores[now.source].clear()


# Running it


def simulate(seed: int, steps: int) -> World:
    """`steps` effects of everybody. Raises `Lost`."""
    random = Random(seed)
    world = World(random)
    try:
        run(world, random, steps)
    finally:
        world.connection.close()
    return world


def run(world: World, random: Random, steps: int) -> None:
    """`steps` effects in `world`. Raises `Lost`."""
    kinds = (writer, refresher, copier, collector, operator)
    weights = random.choice(((6, 3, 10, 1, 4), (4, 1, 12, 1, 6), (6, 4, 8, 1, 8)))
    actors: list[Actor] = []
    for world.at in range(steps):
        world.now += random.randrange(3_000_000)
        if random.random() < 0.001:
            world.down[random.choice(STORES)] = world.at + random.randrange(200)
        while len(actors) < 14:
            [kind] = random.choices(kinds, weights)
            actors.append(kind(world, random.randrange(SERVERS)))
        place = random.randrange(len(actors))
        if random.random() < 0.003:
            actors.pop(place).close()  # a crash
            continue
        before = world.connection.total_changes
        try:
            next(actors[place])
        except StopIteration:
            actors.pop(place)
        if world.connection.total_changes != before and not world.at % 7:
            world.check()
    world.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_pack_is_ever_lost(seed: int) -> None:
    world = simulate(seed, STEPS // 3)
    done = world.settled
    assert done["recorded"] > STEPS // 400, done
    assert done["copied"] > STEPS // 800, done
    assert done["discarded"] > STEPS // 3000, done
    assert done["changed"] > STEPS // 100_000, done
    assert all(done.get(command, 0) for command in Command), done


# Each rule of safety, taken away


def no_epoch(patch: pytest.MonkeyPatch) -> None:
    """Commits do not look whether the placement is another by now."""

    def stores(op: ops.RecordPack, _: int | None) -> Program[frozenset[str]]:
        yield from ()
        return op.written

    patch.setattr(stock, "_stores", stores)


def everywhere(patch: pytest.MonkeyPatch) -> None:
    """Locations are noted for stores that are not written any more."""
    right = stock._stores

    def stores(op: ops.RecordPack, epoch: int | None) -> Program[frozenset[str]]:
        yield from right(op, epoch)
        return op.written

    patch.setattr(stock, "_stores", stores)


def old_puts_count(patch: pytest.MonkeyPatch) -> None:
    """What was put before a store was emptied counts."""

    def kept(op: ops.RecordPack) -> Program[frozenset[str]]:
        yield from ()
        return op.written

    patch.setattr(stock, "_kept", kept)


def old_copies_count(patch: pytest.MonkeyPatch) -> None:
    """What was copied for an older migration counts."""
    note = placements._PROGRAMS[migrating.NoteCopied]

    def note_copied(tx: Transaction, unit: Unit, step: migrating.NoteCopied) -> Program[int]:
        [(begun,)] = yield Run(placements.SINCE, (stock.since(step.store),))
        return (yield from note(tx, unit, evolve(step, since=begun)))

    patch.setitem(placements._PROGRAMS, migrating.NoteCopied, note_copied)


def nothing_lacks(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks what is not in the other store."""
    patch.setattr(placements, "LACKING", "SELECT 0 WHERE $1 <> ''")


def notes_first(patch: pytest.MonkeyPatch) -> None:
    """Copiers note what they are about to put."""

    def note_first(world: World, store: str) -> list[migrating.Claimed]:
        claimed = claim(world, store)
        noted = tuple((pack.number, 1, None) for pack in claimed)
        if claimed:
            world.migrate(migrating.NoteCopied(store, noted, claimed[0].since))
        return claimed

    claim = World.claim
    patch.setattr(World, "claim", note_first)


def failures_count(patch: pytest.MonkeyPatch) -> None:
    """A copy that failed is taken for done."""

    def migrate(world: World, step: migrating.Step) -> int:
        if isinstance(step, migrating.NoteCopied):
            step = evolve(step, packs=tuple((number, 1, None) for number, *_ in step.packs))
        return right(world, step)

    right = World.migrate
    patch.setattr(World, "migrate", migrate)


MUTANTS = (
    *(no_epoch, everywhere, old_puts_count, old_copies_count),
    *(nothing_lacks, notes_first, failures_count),
)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_any_rule_a_pack_is_lost(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(Lost):
        for seed in range(10):
            simulate(seed, 30_000)

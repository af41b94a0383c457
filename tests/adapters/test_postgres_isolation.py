"""Each rule of isolation on PostgreSQL: what holds with it does not hold without it.

A scenario lets two servers, or a server and somebody who raises an epoch, meet at the very
moment that a rule is there for. It is run with all rules, and must succeed; and with one
rule taken away, and must fail.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import asyncpg
import pytest
from anyio.abc import TaskGroup
from attrs import define, evolve, field
from tests.contracts.callers import Caller, add_user

from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.postgres_connections import Database, Readers
from vaultfs.adapters.sql.postgres_driver import Ids
from vaultfs.adapters.sql.postgres_locks import EPOCHS, TREES, Locks
from vaultfs.adapters.sql.postgres_swaps import SLACK, SWAP
from vaultfs.adapters.sql.postgres_writer import PostgresWriter
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import Busy, LeaseExpired
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.names import Path
from vaultfs.domain.operations import AddToken, Done, Outcome, Refused, TouchToken, Unit
from vaultfs.domain.services.locks import Locks as LockManager
from vaultfs.domain.services.locks import open_locks
from vaultfs.domain.tokens import Token


@define(eq=False)
class SteppedWriter(PostgresWriter):
    """Waits before each commit until it may go on, if `stops`; tries nothing twice."""

    attempts: int = 1
    stops: bool = False
    ready: anyio.Event = field(factory=anyio.Event)
    """It is about to commit."""
    go: anyio.Event = field(factory=anyio.Event)
    swaps: int = 0
    """Changes of locks that were made by one statement."""

    async def _swap(self, connection: Any, this: Any) -> bool:
        done = await super()._swap(connection, this)
        self.swaps += done
        return done

    def fall_back(self, seconds: float) -> None:
        """Reckon with a time that is too early, as after a pause of the machine."""
        self._clock.hear(self._clock.now() - seconds)

    async def _commit(self, connection: Any, this: Any) -> None:
        self.ready.set()
        if self.stops:
            await self.go.wait()
        await super()._commit(connection, this)


@define(eq=False)
class Server:
    """One of the servers of a database."""

    catalog: PostgresCatalog
    writer: SteppedWriter
    me: Caller


@define(eq=False)
class Stage:
    """A database with two users, `me` and `you`, and a connection to look at it."""

    url: str
    tasks: TaskGroup
    watcher: "asyncpg.Connection[asyncpg.Record]"

    @asynccontextmanager
    async def server(
        self, locks: Locks, *, stops: bool = False, now: int = 0
    ) -> AsyncGenerator[Server, None]:
        database = Database(self.url)
        readers = Readers(database)
        writer = SteppedWriter(database, Ids(readers.reserve), locks, stops=stops)
        catalog = PostgresCatalog(database, readers, writer, "the vault")
        try:
            yield Server(catalog, writer, Caller(catalog, await catalog.user("me"), now=now))
        finally:
            await catalog.aclose()

    @asynccontextmanager
    async def somebody(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]", None]:
        """A transaction of somebody else; taken back unless it is ended inside."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute("BEGIN")
            yield connection
        finally:
            await connection.close()

    def start(self, work: Callable[[], Awaitable[Any]]) -> "Step":
        step = Step()
        self.tasks.start_soon(step.run, work)
        return step

    async def waiting(self, count: int, *steps: "Step") -> None:
        """Until so many connections wait for a lock, or one of `steps` is over."""
        with anyio.fail_after(10):
            while not any(step.over.is_set() for step in steps):
                sql = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
                if await self.watcher.fetchval(sql) >= count:
                    return
                await anyio.sleep(0.01)


@define(eq=False)
class Step:
    """What somebody does meanwhile."""

    over: anyio.Event = field(factory=anyio.Event)
    result: Any = None
    error: Exception | None = None

    async def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.result = await work()
        except Exception as error:  # noqa: BLE001 `end` raises it
            self.error = error
        finally:
            self.over.set()

    async def end(self) -> Any:
        with anyio.fail_after(10):
            await self.over.wait()
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    catalog = await PostgresCatalog.open(database, create=True)
    for name in ("me", "you"):
        await add_user(catalog, name)
    me = Caller(catalog, await catalog.user("me"))
    await me.mkdir("/a")
    await me.mkdir("/b")
    await catalog.aclose()
    watcher = await asyncpg.connect(database)
    # The key of the feed would find a number out that is used twice; it is not to help here.
    await watcher.execute("ALTER TABLE changes DROP CONSTRAINT changes_pkey")
    async with anyio.create_task_group() as tasks:
        yield Stage(database, tasks, watcher)
    await watcher.close()


Scenario = Callable[[Stage, Locks], Awaitable[None]]


async def two_moves(stage: Stage, locks: Locks) -> None:
    """Each of two moves puts one folder into the other: both together would make a circle."""
    async with (
        stage.server(locks, stops=True, now=10**12) as one,
        stage.server(locks, now=2 * 10**12) as other,
    ):
        first = stage.start(lambda: one.me.outcome(one.me.move_op("/a", "/b/a")))
        await one.writer.ready.wait()
        second = stage.start(lambda: other.me.outcome(other.me.move_op("/b", "/a/b")))
        await stage.waiting(1, second)
        one.writer.go.set()
        assert isinstance(await first.end(), Done)
        outcome = await second.end()
        assert await other.catalog.check() == []
        assert isinstance(outcome, Refused)


async def two_puts(stage: Stage, locks: Locks) -> None:
    """Two changes of one tree take the next number of its feed."""
    async with (
        stage.server(locks, stops=True, now=10**12) as one,
        stage.server(locks, now=2 * 10**12) as other,
    ):
        first = stage.start(lambda: one.me.put("/x", size=3))
        await one.writer.ready.wait()
        second = stage.start(lambda: other.me.put("/y", size=4))
        await stage.waiting(1, second)
        one.writer.go.set()
        await first.end()
        await second.end()
        assert len(await other.me.feed()) == 4  # which is dense
        assert await other.me.used() == 7


async def opposite_trees(stage: Stage, locks: Locks) -> None:
    """Two transactions change two trees, each beginning with another."""
    async with (
        stage.server(locks, now=10**12) as one,
        stage.server(locks, now=2 * 10**12) as other,
        stage.somebody() as somebody,
    ):
        await somebody.execute("SELECT 1 FROM trees WHERE id = 1 FOR UPDATE")
        first = stage.start(lambda: in_both_trees(one, ("me", "you")))
        await stage.waiting(1, first)
        second = stage.start(lambda: in_both_trees(other, ("you", "me")))
        await stage.waiting(2, second)
        await somebody.execute("COMMIT")
        for step in (first, second):
            assert all(isinstance(each, Done) for each in await step.end())


async def in_both_trees(server: Server, users: tuple[str, ...]) -> list[Outcome]:
    callers = [evolve(server.me, user=await server.catalog.user(name)) for name in users]
    units = [caller.unit(caller.put_op(f"/{caller.now}")) for caller in callers]
    return await server.catalog.apply(units)


async def opposite_tokens(stage: Stage, locks: Locks) -> None:
    """Two transactions note the use of two tokens, in two orders."""
    async with (
        stage.server(locks, now=10**12) as one,
        stage.server(locks, now=2 * 10**12) as other,
        stage.somebody() as somebody,
    ):
        user = one.me.user.id
        for name in ("t1", "t2"):
            token = Token(name, user, "", "read", b"", None, None, 1, None, None, None)
            await one.me.do(AddToken(token))
        await somebody.execute("SELECT 1 FROM tokens WHERE id = 't1' FOR UPDATE")
        first = stage.start(lambda: touch(one, "t1", "t2"))
        await stage.waiting(1, first)
        second = stage.start(lambda: touch(other, "t2", "t1"))
        await stage.waiting(2, second)
        await somebody.execute("COMMIT")
        await first.end()
        await second.end()


async def touch(server: Server, *tokens: str) -> None:
    me = server.me
    units = [Unit(me.user.id, me.now, f"{me.now}-{name}", (TouchToken(name),)) for name in tokens]
    await server.catalog.apply(units)


def raising(epoch: str) -> Scenario:
    """Somebody raises an epoch while a commit that has read it is under way."""

    async def scenario(stage: Stage, locks: Locks) -> None:
        async with (
            stage.server(locks, stops=True, now=10**12) as one,
            stage.somebody() as somebody,
        ):
            put = stage.start(lambda: one.me.put("/x"))
            await one.writer.ready.wait()
            sql = "UPDATE epochs SET value = value + 1 WHERE name = $1"
            raised = stage.start(lambda: somebody.execute(sql, epoch))
            try:
                await stage.waiting(1, raised)
                assert not raised.over.is_set(), "a commit is under way that has read it"
            finally:
                one.writer.go.set()
            await put.end()
            await raised.end()

    return scenario


async def both_epochs(stage: Stage, locks: Locks) -> None:
    """Somebody raises one epoch after the other, in the order in which they are read."""
    async with stage.server(locks, now=10**12) as one, stage.somebody() as somebody:
        await somebody.execute("UPDATE epochs SET value = value + 1 WHERE name = 'placement'")
        put = stage.start(lambda: one.me.put("/x"))
        await stage.waiting(1, put)
        await somebody.execute("UPDATE epochs SET value = value + 1 WHERE name = 'gc'")
        await somebody.execute("COMMIT")
        await put.end()


async def tree_and_epoch(stage: Stage, locks: Locks) -> None:
    """Somebody changes a tree's row and then raises an epoch."""
    async with stage.server(locks, now=10**12) as one, stage.somebody() as somebody:
        await somebody.execute("SELECT 1 FROM trees WHERE id = 1 FOR UPDATE")
        put = stage.start(lambda: one.me.put("/x"))
        await stage.waiting(1, put)
        await somebody.execute("UPDATE epochs SET value = value + 1 WHERE name = 'placement'")
        await somebody.execute("COMMIT")
        await put.end()


@asynccontextmanager
async def swapping(server: Server) -> AsyncGenerator[LockManager, None]:
    """The locks of a server that has lately changed them, so that its next change is a swap."""
    async with open_locks(server.catalog.lock_store(), SystemClock()) as locks:
        for _ in range(2):
            async with locks.hold(locks.new_owner(), server.me.tree, {("b",): Mode.X}):
                pass
        assert server.writer.swaps
        yield locks


async def write_and_lock(stage: Stage, locks: Locks) -> None:
    """Somebody locks what a commit that is under way has found free."""
    async with (
        stage.server(locks, stops=True, now=10**12) as one,
        stage.server(locks) as other,
        swapping(other) as theirs,
    ):
        put = stage.start(lambda: one.me.put("/a/x"))
        await one.writer.ready.wait()
        wanted: dict[Path, Mode] = {("a",): Mode.X}
        asked = stage.start(lambda: theirs.acquire(Owner("o"), one.me.tree, wanted))
        try:
            await stage.waiting(1, asked)
            assert not asked.over.is_set(), "it would have the folder alone"
        finally:
            one.writer.go.set()
        await put.end()
        await asked.end()


async def two_locks(stage: Stage, locks: Locks) -> None:
    """Somebody locks what another has locked since they looked."""
    async with (
        stage.server(locks) as one,
        stage.server(locks) as other,
        swapping(one) as mine,
        open_locks(other.catalog.lock_store(), SystemClock()) as theirs,
    ):
        wanted: dict[Path, Mode] = {("a",): Mode.X}
        await theirs.acquire(Owner("a"), one.me.tree, wanted)
        assert await mine.try_hold(Owner("b"), one.me.tree, wanted) is None


async def late_renewal(stage: Stage, locks: Locks) -> None:
    """Somebody renews a lease that has run out while their machine stood still."""
    async with stage.server(locks) as one, swapping(one) as mine:
        before = one.writer.swaps
        token = await mine.acquire(Owner("a"), one.me.tree, {("a",): Mode.X}, ttl=0.2)
        assert one.writer.swaps > before
        await anyio.sleep(0.3)
        one.writer.fall_back(0.3)
        renewed = False
        with suppress(LeaseExpired):
            await mine.renew(Owner("a"), one.me.tree, token, ttl=60)
            renewed = True
        assert not renewed


async def lock_and_new_tables(stage: Stage, locks: Locks) -> None:
    """Somebody puts other tables in the place of a catalog's, beginning with that of trees."""
    async with stage.server(locks) as one, stage.somebody() as somebody, swapping(one) as mine:
        wanted: dict[Path, Mode] = {("a",): Mode.X}
        await somebody.execute("LOCK TABLE trees IN ACCESS EXCLUSIVE MODE")
        asked = stage.start(lambda: mine.acquire(Owner("o"), one.me.tree, wanted))
        await stage.waiting(1, asked)
        await somebody.execute("LOCK TABLE lock_state IN ACCESS EXCLUSIVE MODE")
        await somebody.execute("COMMIT")
        await asked.end()


ALL = Locks()


def without(what: str) -> Locks:
    return Locks(tuple(each for each in ALL.statements if each[0] != what))


def instead(what: str, old: str, new: str) -> Locks:
    """The rules with other words in one of them."""
    assert old in dict(ALL.statements)[what]
    return Locks(
        tuple(
            (name, sql.replace(old, new) if name == what else sql) for name, sql in ALL.statements
        )
    )


def swap_with(old: str, new: str = "") -> Locks:
    """The rules with other words where locks are swapped."""
    assert old in SWAP
    return Locks(swap=SWAP.replace(old, new))


EPOCHS_FIRST = Locks((("epochs", EPOCHS), ("trees", TREES)))

SCENARIOS: dict[str, Scenario] = {
    "two moves": two_moves,
    "two puts": two_puts,
    "opposite trees": opposite_trees,
    "opposite tokens": opposite_tokens,
    "placement is raised": raising("placement"),
    "gc is raised": raising("gc"),
    "both epochs are raised": both_epochs,
    "a tree and an epoch": tree_and_epoch,
    "a write and a lock": write_and_lock,
    "two locks": two_locks,
    "a late renewal": late_renewal,
    "a lock and new tables": lock_and_new_tables,
}
MUTATIONS: dict[str, tuple[str, Locks]] = {
    "trees are not locked (moves)": ("two moves", without("trees")),
    "trees are not locked (feed)": ("two puts", without("trees")),
    "trees are read without a lock": ("two puts", instead("trees", " FOR UPDATE", "")),
    "trees are locked as they come": (
        "opposite trees",
        instead("trees", "ORDER BY id", "ORDER BY array_position($1::bigint[], id)"),
    ),
    "tokens are not locked": ("opposite tokens", without("tokens")),
    "placement is not read": ("placement is raised", without("epochs")),
    "gc is not read": ("gc is raised", without("epochs")),
    "placement is read without a lock": (
        "placement is raised",
        instead("epochs", " FOR SHARE", ""),
    ),
    "gc is read without a lock": ("gc is raised", instead("epochs", " FOR SHARE", "")),
    "gc is read before placement": (
        "both epochs are raised",
        instead("epochs", "ORDER BY name DESC", "ORDER BY name"),
    ),
    "epochs are read before trees": ("a tree and an epoch", EPOCHS_FIRST),
    "a swap does not lock the tree": ("a write and a lock", swap_with(" FOR UPDATE")),
    "a swap compares nothing": ("two locks", swap_with("l.version = $2", "$2::bigint > 0")),
    "a swap believes its clock": (
        "a late renewal",
        swap_with(f"BETWEEN $4 AND $4 + {SLACK}", ">= $4"),
    ),
    "a swap begins with its own table": (
        "a lock and new tables",
        swap_with("WITH mine", "WITH own AS (SELECT 1 FROM lock_state), mine"),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_it_holds_with_every_rule(stage: Stage, name: str) -> None:
    await SCENARIOS[name](stage, ALL)


@pytest.mark.parametrize("name", MUTATIONS)
async def test_it_does_not_hold_without_the_rule(stage: Stage, name: str) -> None:
    scenario, locks = MUTATIONS[name]
    # A wrong state, or a deadlock, of which either side may be the victim.
    with pytest.raises((AssertionError, Busy, asyncpg.DeadlockDetectedError)):
        await SCENARIOS[scenario](stage, locks)

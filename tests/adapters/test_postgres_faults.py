"""A catalog on PostgreSQL whose connection is cut in a commit, or whose server goes away."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import anyio
import asyncpg
import pytest
from anyio.abc import SocketStream
from attrs import define
from tests.contracts.callers import Caller, add_user, pack_of
from tests.contracts.catalog_batches import Op, run
from tests.postgres import Postgres, serving

from vaultfs.adapters.sql import postgres_writer
from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.postgres_connections import Database, Readers
from vaultfs.adapters.sql.postgres_driver import Ids
from vaultfs.adapters.sql.postgres_writer import PostgresWriter
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import CatalogUnavailable, OutcomeUnknown
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.operations import AddUser, SetQuota
from vaultfs.domain.services.locks import open_locks

Cut = Literal["before", "after"]
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@define(eq=False)
class Cable:
    """Lies between a catalog and its server, and is cut when a commit goes through it."""

    upstream: int
    port: int = 0
    cut: Cut | None = None
    """Before the server has seen the next commit, or after it has answered."""
    dead: bool = False
    """Nobody gets through."""
    cuts: int = 0
    dies: bool = False
    """Once it was cut, it stays so."""
    swaps: bool = False
    """Whether locks are changed by statements that commit by themselves, which count as well."""
    deaf: bool = False
    """What the server answers gets lost."""

    async def carry(self, client: SocketStream) -> None:
        async with client:
            if self.dead:
                return
            async with (
                await anyio.connect_tcp("127.0.0.1", self.upstream) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._back, server, client)
                await self._forth(client, server)
                tasks.cancel_scope.cancel()

    async def _forth(self, client: SocketStream, server: SocketStream) -> None:
        try:
            while True:
                data = await client.receive()
                if self.cut is not None and (data.endswith(b"COMMIT\0") or self._swaps(data)):
                    cut, self.cut = self.cut, None
                    self.cuts, self.dead = self.cuts + 1, self.dies
                    if cut == "after":
                        self.deaf = True
                        await server.send(data)
                        await anyio.sleep(0.2)
                    return
                await server.send(data)
        except GONE:
            pass

    def _swaps(self, data: bytes) -> bool:
        """Whether it commits a change of locks by itself: it has the state, and one statement."""
        return b'{"boot":"database"' in data and self.swaps

    async def _back(self, server: SocketStream, client: SocketStream) -> None:
        try:
            while True:
                data = await server.receive()
                if not self.deaf:
                    await client.send(data)
        except GONE:
            await client.aclose()
        finally:
            self.deaf = False


@asynccontextmanager
async def laid(postgres: Postgres) -> AsyncGenerator[Cable, None]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    cable = Cable(postgres.port)
    cable.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, cable.carry)
        yield cable
        tasks.cancel_scope.cancel()


@pytest.fixture
async def cable(postgres: Postgres) -> AsyncIterator[Cable]:
    async with laid(postgres) as cable:
        yield cable


@pytest.fixture
async def me(database: str, cable: Cable, postgres: Postgres) -> AsyncIterator[Caller]:
    through = database.replace(f":{postgres.port}/", f":{cable.port}/")
    catalog = await PostgresCatalog.open(through, create=True)
    yield Caller(catalog, await add_user(catalog, "me"))
    await catalog.aclose()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_happens_once(
    me: Caller, cable: Cable, cut: Cut
) -> None:
    for number in range(3):
        cable.cut = cut
        made = await me.put(f"/{number}")
        assert await me.find(f"/{number}") == made
    assert cable.cuts == 3
    assert len(await me.feed()) == 3
    assert await me.used() == 30
    assert await me.catalog.check() == []


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_so_do_changes_that_no_feed_has(me: Caller, cable: Cable, cut: Cut) -> None:
    cable.cut = cut
    await me.do(AddUser("bob"))
    cable.cut = cut
    await me.do(SetQuota(me.tree, 5000))
    cable.cut = cut
    await me.do(pack_of("p", "ab", me.user.id))
    assert cable.cuts == 3
    assert [user.name for user in await me.catalog.users()] == ["bob", "me"]
    assert [row.kind for row in await me.catalog.audit()] == ["add-user", "add-user", "set-quota"]
    assert len(await me.catalog.packs()) == 1


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_so_do_batches(me: Caller, cable: Cable, cut: Cut) -> None:
    ops: list[Op] = [{"op": "mkdir", "path": "/new", "on_conflict": "rename"}]
    for number in range(3):
        cable.cut = cut
        outcome = await run(me, *ops)
        assert outcome.ended[0].renamed == bool(number)
    assert cable.cuts == 3
    assert await me.names() == ["new", "new (2)", "new (3)"]


async def meddle(database: str) -> None:
    """Have the next change of locks made in a transaction, as if another had changed them."""
    connection = await asyncpg.connect(database)
    await connection.execute("UPDATE lock_state SET version = version + 1")
    await connection.close()


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_who_waits_for_a_lock_hears_of_a_release_whose_answer_is_lost(
    me: Caller, cable: Cable, database: str, cut: Cut, *, swaps: bool
) -> None:
    cable.swaps = swaps
    async with open_locks(me.catalog.lock_store(), SystemClock()) as locks:
        one, other = locks.new_owner(), locks.new_owner()
        held = await locks.acquire(one, me.tree, {("f",): Mode.X})

        async def wait() -> None:
            token = await locks.acquire(other, me.tree, {("f",): Mode.X})
            await locks.release(other, me.tree, token)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not (await locks.snapshot(me.tree)).queued:
                await anyio.sleep(0.01)
            if not swaps:
                await meddle(database)
            cable.cut = cut
            await locks.release(one, me.tree, held)
        assert cable.cuts == 1
        assert (await locks.snapshot(me.tree)).held == ()


@define(eq=False)
class Overtaken(PostgresWriter):
    """Before it asks what became of a commit, others change the same locks."""

    others: Callable[[], Awaitable[object]] | None = None

    async def _begin(self, connection: Any, this: Any) -> Any:
        if this.in_doubt_until and self.others is not None:
            others, self.others = self.others, None
            await others()
        return await super()._begin(connection, this)


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_nor_is_a_lock_had_twice_if_another_server_changes_them_meanwhile(
    me: Caller,
    cable: Cable,
    postgres: Postgres,
    database: str,
    cut: Cut,
    *,
    swaps: bool,
) -> None:
    where = Database(database.replace(f":{postgres.port}/", f":{cable.port}/"))
    readers = Readers(where)
    writer = Overtaken(where, Ids(readers.reserve))
    mine, yours = (
        PostgresCatalog(where, readers, writer, "me"),
        await PostgresCatalog.open(database),
    )
    cable.swaps = swaps
    async with (
        open_locks(mine.lock_store(), SystemClock()) as locks,
        open_locks(yours.lock_store(), SystemClock()) as theirs,
    ):
        for _ in range(2):
            async with locks.hold(locks.new_owner(), me.tree, {("f",): Mode.X}):
                pass
        if not swaps:
            await meddle(database)
        writer.others = partial(
            theirs.acquire, theirs.new_owner(), me.tree, {("g",): Mode.X}, ttl=60
        )
        cable.cut = cut
        owner = locks.new_owner()
        await locks.acquire(owner, me.tree, {("f",): Mode.S})
        held = [each for each in (await locks.snapshot(me.tree)).held if each.owner == owner]
        assert len(held) == cable.cuts == 1
    await yours.aclose()
    await mine.aclose()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_if_nobody_can_be_asked_the_outcome_is_unknown_until_somebody_can(
    me: Caller, cable: Cable, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writer, "RESOLVE_WITHIN", 0.6)
    cable.cut, cable.dies = cut, True
    with pytest.raises(OutcomeUnknown) as unknown:
        await me.do(me.put_op("/f"), op_id="the one")
    assert unknown.value.op_id == "the one"
    with pytest.raises(CatalogUnavailable):
        await me.put("/g")
    cable.dead = False
    assert bool(await me.catalog.outcome("the one")) == (cut == "after")
    assert (await me.find("/f") is not None) == (cut == "after")
    await me.put("/g")
    assert await me.catalog.check() == []


async def test_a_connection_that_died_unseen_is_replaced(
    me: Caller, postgres: Postgres, database: str
) -> None:
    await me.put("/a")
    name = database.rpartition("/")[2]
    for number in range(3):
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        if number % 2:
            assert await me.names() == ["a", "b0"]
        await me.put(f"/b{number // 2 * 2}", f"{number}")
    assert await me.names() == ["a", "b0", "b2"]


@pytest.mark.slow
async def test_a_server_that_is_stopped_is_told_of_and_then_gone_on_with() -> None:
    with serving() as postgres, postgres.database() as url:
        catalog = await PostgresCatalog.open(url, create=True)
        me = Caller(catalog, await add_user(catalog, "me"))
        await me.put("/a")
        postgres.stop()
        for _ in range(2):
            with pytest.raises(CatalogUnavailable, match="cannot be reached"):
                await me.put("/b")
            with pytest.raises(CatalogUnavailable, match="cannot be reached"):
                await me.names()
            with pytest.raises(CatalogUnavailable, match="cannot be reached"):
                async with catalog.reindex():
                    pytest.fail("there is no server")
        postgres.start()
        assert await me.names() == ["a"]
        await me.put("/b")
        assert await me.names() == ["a", "b"]
        await catalog.aclose()

"""Locks in PostgreSQL, of one server and of two."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import asyncpg
import pytest
from tests.contracts.callers import Caller, add_user
from tests.contracts.locks import TREE, F, LockContract, SharedLockContract, both

from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import Locked
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.operations import Refused
from vaultfs.domain.services.locks import Locks, open_locks

pytestmark = pytest.mark.slow


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Locks, None]:
    catalog = await PostgresCatalog.open(url, create=True)
    try:
        while len(await catalog.users()) < TREE + 1:  # the trees that are locked are there
            await add_user(catalog, f"user{len(await catalog.users())}")
        async with open_locks(catalog.lock_store(), SystemClock()) as locks:
            yield locks
    finally:
        await catalog.aclose()


class TestOneServer(LockContract):
    @pytest.fixture
    def opened(self, database: str) -> AbstractAsyncContextManager[Locks]:
        return opened(database)


class TestTwoServers(SharedLockContract):
    @pytest.fixture
    def opened(self, database: str) -> AbstractAsyncContextManager[tuple[Locks, Locks]]:
        return both(opened(database), opened(database))


async def test_neither_of_two_servers_starves(database: str) -> None:
    taken = [0, 0]

    async def work(number: int, locks: Locks) -> None:
        while sum(taken) < 200:
            async with locks.hold(locks.new_owner(), TREE, {F: Mode.X}):
                taken[number] += 1

    async with opened(database) as one, opened(database) as two, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(work, 0, one)
            tasks.start_soon(work, 1, two)
    assert min(taken) >= sum(taken) / 5, taken


async def test_a_write_at_one_server_is_held_to_the_locks_of_another(database: str) -> None:
    catalog = await PostgresCatalog.open(database, create=True)
    try:
        async with opened(database) as locks:
            me = Caller(catalog, await catalog.user("user0"))
            await me.do(me.put_op("/d/f", parents=True))
            owner = locks.new_owner()
            token = await locks.acquire(owner, me.tree, {F: Mode.X}, ttl=1)
            outcome = await me.outcome(me.put_op("/d/f"))
            assert isinstance(outcome, Refused)
            assert isinstance(outcome.error, Locked)
            await me.do(me.put_op("/d/g"))
            with anyio.fail_after(10):  # the lease runs out by the clock of the database
                while isinstance(await me.outcome(me.put_op("/d/f")), Refused):
                    await anyio.sleep(0.1)
            assert await locks.find(owner, me.tree, token) is None
    finally:
        await catalog.aclose()


async def test_locks_of_a_catalog_that_was_put_in_the_place_of_another_are_seen(
    database: str,
) -> None:
    async with opened(database) as one, opened(database) as two:
        for name in ("a", "b"):
            await one.acquire(one.new_owner(), TREE, {(name,): Mode.X})
        connection = await asyncpg.connect(database)
        await connection.execute("DELETE FROM lock_state")  # as who loads a dump does
        await connection.close()
        for path in (("a",), F):
            await two.acquire(two.new_owner(), TREE, {path: Mode.X})
        assert await one.try_hold(one.new_owner(), TREE, {F: Mode.X}) is None

"""Locks in a catalog's database, of one process and of several."""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest
from tests.contracts.locks import TREE, A, B, C, F, LockContract, SharedLockContract, both, queued

from vaultfs.adapters.sql import lockview
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import LeaseExpired
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.services.locks import Locks, open_locks


@asynccontextmanager
async def opened(path: Path | None) -> AsyncGenerator[Locks, None]:
    catalog = await SqliteCatalog.open(path, create=True)
    try:
        async with open_locks(catalog.lock_store(), SystemClock()) as locks:
            yield locks
    finally:
        await catalog.aclose()


class TestInMemory(LockContract):
    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[Locks]:
        return opened(None)


class TestInAFile(LockContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> AbstractAsyncContextManager[Locks]:
        return opened(tmp_path / "catalog.db")


class TestTwo(SharedLockContract):
    FAIR = 10  # SQLite lets in whoever happens to ask; it does not queue

    @pytest.fixture
    def opened(self, tmp_path: Path) -> AbstractAsyncContextManager[tuple[Locks, Locks]]:
        return both(opened(tmp_path / "catalog.db"), opened(tmp_path / "catalog.db"))


async def test_leases_survive_and_tokens_grow_across_openings(tmp_path: Path) -> None:
    tokens: list[int] = []
    for number in range(3):
        async with opened(tmp_path / "catalog.db") as locks:
            held = [each.token for each in (await locks.snapshot(TREE)).held]
            assert held == tokens
            path = ("d", str(number))
            tokens.append(await locks.acquire(A, TREE, {path: Mode.X}, ttl=60))
    assert tokens == sorted(set(tokens))


async def test_a_catalog_that_was_brought_back_has_no_locks_and_larger_tokens() -> None:
    one, other = await SqliteCatalog.open(None), await SqliteCatalog.open(None)
    try:
        clock = SystemClock()
        async with open_locks(one.lock_store(), clock) as locks:
            before = await locks.acquire(A, TREE, {F: Mode.X}, ttl=60)
        await other.load(one.dump())
        async with open_locks(other.lock_store(), clock) as locks:
            assert (await locks.snapshot(TREE)).held == ()
            assert await locks.acquire(A, TREE, {F: Mode.X}, ttl=60) > before + (1 << 31)
    finally:
        await one.aclose()
        await other.aclose()


async def fail(locks: Locks) -> None:
    """Ask for a lock in a transaction that fails."""
    from vaultfs.adapters.sql import execution

    def finish(_: object) -> None:
        raise AttributeError("a bug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "finish", finish)
        with pytest.raises(AttributeError):
            await locks.acquire(B, TREE, {("g",): Mode.X})


async def test_a_transaction_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    async with opened(tmp_path / "catalog.db") as locks:
        await locks.acquire(A, TREE, {F: Mode.X}, ttl=60)
        await fail(locks)
        assert await locks.try_hold(C, TREE, {("g",): Mode.X}, ttl=60) is not None
        assert {each.owner for each in (await locks.snapshot(TREE)).held} == {A, C}


async def test_a_process_whose_first_transaction_failed_says_in_the_next_that_it_lives(
    tmp_path: Path,
) -> None:
    path = tmp_path / "catalog.db"
    async with both(opened(path), opened(path)) as (one, two):
        await fail(one)
        async with one.hold(A, TREE, {F: Mode.X}):
            assert await two.try_hold(B, TREE, {F: Mode.X}) is None


async def test_a_process_that_holds_something_lives_on_after_a_transaction_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockview, "BEAT", 0.05)
    monkeypatch.setattr(lockview, "DEAD_AFTER", 1.0)
    path = tmp_path / "catalog.db"
    async with both(opened(path), opened(path)) as (one, two), one.hold(A, TREE, {F: Mode.X}):
        await fail(one)
        await anyio.sleep(1.2)
        assert await two.try_hold(B, TREE, {F: Mode.X}) is None


async def test_who_waits_in_a_process_that_was_taken_for_dead_is_told(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    async with both(opened(path), opened(path)) as (one, two), two.hold(A, TREE, {F: Mode.X}):

        async def wait() -> None:
            with pytest.raises(LeaseExpired):
                await one.acquire(B, TREE, {F: Mode.X})

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await queued(one, B)
                with closing(sqlite3.connect(path)) as database, database:
                    silent = f"UPDATE lock_sessions SET seen = seen - {lockview.DEAD_AFTER}"
                    database.execute(f"{silent} WHERE id = ?", (one.store.session,))
                assert await two.try_hold(C, TREE, {("g",): Mode.X}, ttl=60)
                assert (await two.snapshot(TREE)).queued == ()


async def test_what_a_process_held_before_the_machine_was_started_anew_is_given_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "catalog.db"
    async with both(opened(path), opened(path)) as (one, two), two.hold(A, TREE, {F: Mode.X}):
        with closing(sqlite3.connect(path)) as database, database:
            earlier = "UPDATE lock_sessions SET boot = 'before', seen = seen + 1000000"
            database.execute(f"{earlier} WHERE id = ?", (two.store.session,))
        assert await one.try_hold(B, TREE, {F: Mode.X}, ttl=60)

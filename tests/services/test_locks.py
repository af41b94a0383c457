"""The locks of one process, in its memory."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tests.contracts.locks import TREE, A, B, F, LockContract, queued

from vaultfs.adapters import memorylocks
from vaultfs.adapters.memory import ManualClock
from vaultfs.adapters.memorylocks import MemoryLockStore
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import Busy, DeadlockFound
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Grant, Owner
from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.services import lockwaits
from vaultfs.domain.services.lockchanges import drop, unconvert
from vaultfs.domain.services.locks import Locks, open_locks

T = TypeVar("T")


class TestInMemory(LockContract):
    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[Locks]:
        clock = SystemClock()
        return open_locks(MemoryLockStore(clock), clock)


async def test_the_time_of_a_lease_that_was_waited_for_begins_when_it_is_had() -> None:
    clock = ManualClock()
    async with open_locks(MemoryLockStore(clock), clock) as locks:
        async with locks.hold(A, TREE, {F: Mode.X}), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: locks.acquire(B, TREE, {F: Mode.X}, ttl=10))
            await queued(locks, B)
            clock.advance(timedelta(seconds=6))
            for each in (await locks.snapshot(TREE)).held:
                await locks.release(each.owner, TREE, each.token)
        [held] = (await locks.snapshot(TREE)).held
        assert (held.owner, held.expires_in) == (B, 10)


async def test_who_gives_back_what_ran_out_wakes_who_has_it_by_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memorylocks, "LOOK_EVERY", 60)
    clock = ManualClock()
    async with (
        open_locks(MemoryLockStore(clock), clock) as locks,
        anyio.create_task_group() as all_,
    ):
        token = await locks.acquire(A, TREE, {F: Mode.X}, ttl=10)
        all_.start_soon(lambda: locks.acquire(B, TREE, {F: Mode.X}))
        await queued(locks, B)
        clock.advance(timedelta(seconds=11))
        await locks.let_go(A, TREE, token)
        all_.cancel_scope.deadline = anyio.current_time() + 5
        await anyio.wait_all_tasks_blocked()
    assert not all_.cancel_scope.cancelled_caught


async def test_a_large_circle_is_told_whole_and_its_message_is_one_to_read() -> None:
    clock = ManualClock()
    owners = [Owner(f"o{number}") for number in range(12)]
    async with (
        open_locks(MemoryLockStore(clock), clock) as locks,
        anyio.create_task_group() as tasks,
    ):
        for number, owner in enumerate(owners):
            await locks.acquire(owner, TREE, {("c", str(number)): Mode.X})
        for number, owner in enumerate(owners[:-1]):
            wanted: dict[tuple[str, ...], Mode] = {("c", str(number + 1)): Mode.X}
            tasks.start_soon(locks.acquire, owner, TREE, wanted)
            await queued(locks, owner)
        with pytest.raises(DeadlockFound) as caught:
            await locks.acquire(owners[-1], TREE, {("c", "0"): Mode.X})
        message = caught.value.message
        assert {each.owner for each in caught.value.circle} == set(owners)
        assert message.startswith(
            "waiting for /c/0 would never end: o11 waits for /c/0 (X), which o0 holds /c/0 (X); o0"
        )
        assert message.endswith("; o3 waits for /c/4 (X), which o4 holds /c/4 (X) and 7 more")
        tasks.cancel_scope.cancel()


class FailingStore(MemoryLockStore):
    """A store that is shared, and fails a few times when it is told to."""

    failures: int = 0

    def at_once(self, tree: TreeId, *, timed: bool = False) -> LockTable | None:
        return None

    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,
    ) -> T:
        await checkpoint()
        if self.failures:
            self.failures -= 1
            raise Busy("another process is writing")
        return await super().change(tree, work, undo)


async def test_what_cannot_be_given_back_now_is_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockwaits, "RETRY_EVERY", 0.01)
    clock = SystemClock()
    store = FailingStore(clock)
    async with open_locks(store, clock) as locks:
        async with locks.hold(A, TREE, {F: Mode.X}):
            store.failures = 3
        assert store.failures == 2
        with anyio.fail_after(5):
            while store.failures:
                await anyio.sleep(0.01)
            async with locks.hold(B, TREE, {F: Mode.X}):
                pass


@pytest.mark.parametrize("granted", [False, True])
async def test_what_cannot_be_taken_back_now_is_later(
    monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    monkeypatch.setattr(lockwaits, "RETRY_EVERY", 0.01)
    clock = SystemClock()
    store = FailingStore(clock)
    async with open_locks(store, clock) as locks, locks.hold(A, TREE, {F: Mode.X}) as held:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: locks.acquire(B, TREE, {F: Mode.S}))
            await queued(locks, B)
            store.failures = 3
            tasks.cancel_scope.cancel()
        assert store.failures
        if granted:  # before it could be taken back
            await give_back(store, held.token)
        with anyio.fail_after(5):
            while any((await locks.snapshot(TREE)).queued) or store.failures:
                await anyio.sleep(0.01)
            while any(each.owner == B for each in (await locks.snapshot(TREE)).held):
                await anyio.sleep(0.01)


async def give_back(store: MemoryLockStore, token: int) -> None:
    """Give the grant back, whether the store fails or not."""
    await MemoryLockStore.change(store, TREE, lambda locks: locks.table.release(token))


async def test_who_waits_is_told_when_nobody_can_tell_any_more() -> None:
    clock = SystemClock()
    store = FailingStore(clock)
    async with open_locks(store, clock) as locks:
        async with locks.hold(A, TREE, {F: Mode.X}):

            async def wait() -> None:
                with pytest.raises(Busy):
                    await locks.acquire(B, TREE, {F: Mode.X})

            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await queued(locks, B)
                    store.failures = 1
        snapshot = await locks.snapshot(TREE)
        assert (snapshot.held, snapshot.queued) == ((), ())


class LateStore(FailingStore):
    """A store whose callers hear of what they changed when they are cancelled, if they say how."""

    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,
    ) -> T:
        result = await super().change(tree, work, undo)
        if undo is not None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await super().change(tree, lambda locks: undo(locks, result))
        return result


async def test_what_is_taken_back_is_not_what_its_owner_asked_for_beside_it() -> None:
    clock = SystemClock()
    store, token = LateStore(clock), 0
    async with open_locks(store, clock) as locks:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: locks.acquire(A, TREE, {F: Mode.X}))
            with anyio.fail_after(5):
                while not (await locks.snapshot(TREE)).held:
                    await anyio.sleep(0.001)
            other = await store.change(TREE, lambda each: each.table.request(A, {("g",): Mode.X}))
            assert isinstance(other, Grant)
            token = other.token
            tasks.cancel_scope.cancel()
        held = (await locks.snapshot(TREE)).held
        assert [each.token for each in held] == [token]


def test_an_upgrade_is_taken_back_of_what_its_grant_still_has() -> None:
    locks, one, other = TreeLocks(), ("1", "f"), ("1", "g")
    grant = locks.table.request(A, {one: Mode.S, other: Mode.S})
    assert isinstance(grant, Grant)
    locks.table.convert(grant.id, {one: Mode.X, other: Mode.X})
    locks.table.release(grant.id, [other])
    unconvert(locks, 0, grant.id, {one: Mode.S, other: Mode.S})
    assert grant.items == {one: Mode.S}
    drop(grant.id, locks)
    drop(grant.id, locks)
    assert not locks.table.nodes

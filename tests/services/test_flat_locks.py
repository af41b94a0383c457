"""What whole-file locks of a user always did: on a flat reference, and on the lock manager."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from vaultfs.adapters.memorylocks import MemoryLockStore
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import User, UserId
from vaultfs.domain.services.holds import from_threads
from vaultfs.domain.services.locks import open_locks

ANN, BOB = (User(UserId(number), name, None, 0) for number, name in ((1, "ann"), (2, "bob")))


class UserLocks(Protocol):
    def lock_file_for_user(self, user: User, path: Path) -> AbstractAsyncContextManager[Any]: ...
    def lock_user_files(
        self, user: User, paths: Iterable[Path] | None = None
    ) -> AbstractAsyncContextManager[Any]: ...


class FlatLocks:
    """The reference: a lock for each file, taken in order, and a count of them for the tree."""

    def __init__(self) -> None:
        self._held: dict[UserId, set[Path]] = {}
        self._whole: set[UserId] = set()
        self._changed = anyio.Condition()

    def lock_file_for_user(self, user: User, path: Path) -> AbstractAsyncContextManager[None]:
        return self.lock_user_files(user, (path,))

    @asynccontextmanager
    async def lock_user_files(
        self, user: User, paths: Iterable[Path] | None = None
    ) -> AsyncGenerator[None, None]:
        wanted = None if paths is None else set(paths)
        async with self._changed:
            while not self._free(user.id, wanted):
                await self._changed.wait()
            if wanted is None:
                self._whole.add(user.id)
            else:
                self._held.setdefault(user.id, set()).update(wanted)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    if wanted is None:
                        self._whole.remove(user.id)
                    else:
                        self._held[user.id] -= wanted
                    self._changed.notify_all()

    def _free(self, user: UserId, wanted: set[Path] | None) -> bool:
        held = self._held.get(user, set())
        return user not in self._whole and not (held if wanted is None else held & wanted)


@pytest.fixture(params=["flat", "tree"])
async def locks(request: pytest.FixtureRequest) -> AsyncGenerator[UserLocks, None]:
    if request.param == "flat":
        yield FlatLocks()
        return
    clock = SystemClock()
    async with open_locks(MemoryLockStore(clock), clock) as locks:
        yield locks


async def can(context: AbstractAsyncContextManager[Any]) -> bool:
    """Whether it is had at once."""
    with anyio.move_on_after(0.05):
        async with context:
            return True
    return False


async def test_a_file_is_one_task_s_at_a_time(locks: UserLocks) -> None:
    async with locks.lock_file_for_user(ANN, ("a",)):
        assert not await can(locks.lock_file_for_user(ANN, ("a",)))
        assert await can(locks.lock_file_for_user(ANN, ("b",)))
        assert await can(locks.lock_file_for_user(BOB, ("a",)))
    assert await can(locks.lock_file_for_user(ANN, ("a",)))


async def test_files_are_had_together(locks: UserLocks) -> None:
    async with locks.lock_user_files(ANN, [("a",), ("b",), ("a",)]):
        assert not await can(locks.lock_user_files(ANN, [("b",), ("c",)]))
        assert await can(locks.lock_file_for_user(ANN, ("c",)))


async def test_the_whole_tree_is_had_when_no_file_is(locks: UserLocks) -> None:
    async with locks.lock_file_for_user(ANN, ("d", "a")):
        assert not await can(locks.lock_user_files(ANN))
        assert await can(locks.lock_user_files(BOB))
    async with locks.lock_user_files(ANN):
        assert not await can(locks.lock_file_for_user(ANN, ("d", "a")))


async def test_a_failure_gives_back(locks: UserLocks) -> None:
    with pytest.raises(ZeroDivisionError):
        async with locks.lock_user_files(ANN, [("a",)]):
            raise ZeroDivisionError
    assert await can(locks.lock_user_files(ANN))


async def test_opposite_orders_do_not_deadlock(locks: UserLocks) -> None:
    done = 0

    async def work(*paths: Path) -> None:
        nonlocal done
        for _ in range(20):
            async with locks.lock_user_files(ANN, paths):
                await checkpoint()
        done += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, ("a",), ("b",))
            tasks.start_soon(work, ("b",), ("a",))
            tasks.start_soon(work, ("b",), ("c",), ("a",))
    assert done == 3


async def test_who_is_cancelled_while_waiting_has_nothing(locks: UserLocks) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(locks.lock_file_for_user(ANN, ("a",)))
        assert not await can(locks.lock_user_files(ANN, [("a",), ("b",)]))
        assert await can(locks.lock_file_for_user(ANN, ("b",)))
    assert await can(locks.lock_user_files(ANN))


async def test_threads_exclude_each_other_and_tasks() -> None:
    clock = SystemClock()
    async with open_locks(MemoryLockStore(clock), clock) as locks:
        bridge, inside, most = from_threads(locks), 0, 0

        def work() -> None:
            nonlocal inside, most
            for _ in range(20):
                with bridge.lock_file_for_user(ANN, ("a",), timeout=10) as held:
                    assert held.token
                    inside += 1
                    most = max(most, inside)
                    inside -= 1

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(to_thread.run_sync, work)
            async with locks.lock_user_files(ANN):
                assert not inside
        assert most == 1


async def test_the_bridge_for_threads_refuses_the_thread_of_the_loop() -> None:
    clock = SystemClock()
    async with open_locks(MemoryLockStore(clock), clock) as locks:
        bridge = from_threads(locks)
        with pytest.raises(RuntimeError, match="async with"), bridge.lock_user_files(ANN):
            pytest.fail("it would wait for itself")

"""Those of this process who wait for locks: how they are told, and how they leave.

A request that waits is taken back when its caller is cancelled or its time is over, and
a grant that comes at the same moment is given back.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from vaultfs.domain.errors import LeaseExpired, LockTimedOut, VaultError
from vaultfs.domain.lockitems import who
from vaultfs.domain.lockmodes import Mode, Resource
from vaultfs.domain.locknodes import Blocker, Waiting
from vaultfs.domain.locktrees import News, TreeLocks
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.services.lockchanges import drop, unconvert, who_waits
from vaultfs.domain.services.signals import Signal
from vaultfs.ports.clock import Clock
from vaultfs.ports.locks import LockStore

Asked = TypeVar("Asked", bound=tuple[Any, ...])
RETRY_EVERY: Final = 1.0
"""Seconds between tries to give back what could not be given back."""


class Waiter(Signal):
    """A request of this process that waits."""

    __slots__ = ("error", "grant")

    def __init__(self) -> None:
        super().__init__()
        self.grant: int | None = None
        self.error: VaultError | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known what became of it."""
        return self.is_set and self.error is None

    def settle(self, grant: int | None) -> None:
        """It became `grant`, or nothing."""
        self.grant, self.error = grant, None
        self.set()

    def fail(self, error: VaultError) -> None:
        """Nobody can tell any more what becomes of it, unless it is known."""
        if not self.is_set:
            self.error = error
            self.set()

    def check(self) -> None:
        """Raise why nobody can tell, if that is so."""
        if self.error is not None:
            raise self.error


@define(eq=False)
class LockWaits:
    """The waiting of `Locks`."""

    store: LockStore
    clock: Clock
    _tasks: TaskGroup
    _waiters: dict[tuple[TreeId, int], Waiter] = field(factory=dict[tuple[TreeId, int], Waiter])
    _early: dict[tuple[TreeId, int], int | None] = field(
        factory=dict[tuple[TreeId, int], int | None]
    )
    """What became of requests whose callers do not know yet that they wait."""
    _asking: int = 0
    """Callers that may be about to learn that they wait."""
    _watching: bool = False

    def __attrs_post_init__(self) -> None:
        self.store.listen(self._hear)

    def _hear(self, tree: TreeId, news: News) -> None:
        if not self._asking:
            self._early.clear()  # of callers who have gone
        for request, grant in news:
            self._settle((tree, request), grant)

    def _settle(self, key: tuple[TreeId, int], grant: int | None) -> None:
        waiter = self._waiters.get(key)
        if waiter is not None:
            waiter.settle(grant)
        elif self._asking:
            self._early[key] = grant

    async def _queued(
        self,
        tree: TreeId,
        ask: Callable[[TreeLocks], Asked],
        undo: Callable[[TreeLocks, Asked], None],
    ) -> Asked:
        """What `ask` returns, which begins with an answer: what becomes of it can be waited for."""
        self._asking += 1
        try:
            asked = await self.store.change(tree, ask, undo)
            if isinstance(asked[0], Waiting):
                key = (tree, asked[0].id)
                self._waiters[key] = waiter = Waiter()
                if key in self._early:
                    waiter.settle(self._early.pop(key))
            return asked
        finally:
            self._asking -= 1

    async def _wait(
        self,
        tree: TreeId,
        request: int,
        timeout: float | None,
        before: dict[Resource, Mode] | None = None,
    ) -> int:
        """The token of the grant that a request becomes; `before` if it converts one."""
        key = (tree, request)
        waiter = self._waiters.get(key)
        if waiter is None:
            waiter = self._waiters[key] = Waiter()
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._look_around)
        try:
            if timeout is None:
                await waiter.wait()
            else:
                with anyio.move_on_after(timeout):
                    await waiter.wait()
            if not waiter.is_set:
                await self._give_up(key, waiter, timeout)
            waiter.check()
        except BaseException:
            await self._leave(key, waiter, before)
            raise
        del self._waiters[key]
        if waiter.grant is None:
            raise LeaseExpired("the lease ran out, or what was to be changed, while it waited")
        return waiter.grant

    async def _give_up(
        self, key: tuple[TreeId, int], waiter: Waiter, timeout: float | None
    ) -> None:
        """Raise that the time is over, unless it was granted in the last moment."""

        def leave(locks: TreeLocks) -> tuple[Blocker, ...] | None:
            request = locks.table.waiting.get(key[1])
            if request is None:
                return None
            blockers = tuple(locks.table.blockers(request))
            locks.table.cancel(key[1])
            locks.changed = True
            return blockers

        with anyio.CancelScope(shield=True):
            blockers = await self.store.change(key[0], leave)
            if blockers is not None:
                waiter.settle(None)
                raise LockTimedOut(
                    f"not had in {timeout:g} seconds: {who(blockers)}", blockers=blockers
                )
            await waiter.wait()  # it is on its way
            waiter.check()

    async def _leave(
        self, key: tuple[TreeId, int], waiter: Waiter, before: dict[Resource, Mode] | None
    ) -> None:
        """Have neither the request nor what it became; later, if the store cannot do it now."""

        async def leave() -> None:
            if not waiter.settled or waiter.grant is not None:
                await self._take_back(key, waiter, before)
            del self._waiters[key]

        with anyio.CancelScope(shield=True):
            await self._now_or_later(leave)

    async def _now_or_later(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do what has to be done in the end: if not now, then when it can be."""
        try:
            await work()
        except VaultError:
            self._tasks.start_soon(self._later, work)

    async def _later(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do what could not be done now: nobody else would, while we live."""
        while True:
            await anyio.sleep(RETRY_EVERY)
            with suppress(VaultError):
                await work()
                return

    async def _take_back(
        self, key: tuple[TreeId, int], waiter: Waiter, before: dict[Resource, Mode] | None
    ) -> None:
        """Have neither the request nor what it became. Not to be cancelled."""

        def leave(locks: TreeLocks) -> bool:
            """Whether it had become something that this process is yet to be told."""
            if key[1] in locks.table.waiting:
                locks.table.cancel(key[1])
                locks.changed = True
                return False
            return not waiter.settled

        if await self.store.change(key[0], leave):
            await waiter.wait()
        if waiter.grant is not None:
            token = waiter.grant
            if before is None:
                undo = partial(drop, token)
            else:
                undo = partial(unconvert, request=0, token=token, before=before)
            await self.store.change(key[0], undo)

    async def _look_around(self) -> None:
        """See that those who wait hear of what others do, and of leases that run out."""
        try:
            while self._waiters:
                await self.store.news({tree for tree, _ in self._waiters})
                for tree in {tree for tree, _ in self._waiters}:
                    await self._look_at(tree)
        except VaultError as error:
            for waiter in self._waiters.values():
                waiter.fail(error)
        finally:
            self._watching = False

    async def _look_at(self, tree: TreeId) -> None:
        known = [key for key in self._waiters if key[0] == tree]
        waiting = await self.store.change(tree, who_waits)
        for key in known:
            waiter = self._waiters.get(key)
            if waiter is not None and not waiter.settled and key[1] not in waiting:
                waiter.settle(None)  # this process was taken for dead

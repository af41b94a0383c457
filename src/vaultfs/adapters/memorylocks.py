"""Locks in the memory of one process: for tests, and for whoever has a vault alone."""

from collections.abc import Callable, Collection
from typing import Final, TypeVar

import anyio
from attrs import define, field

from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId
from vaultfs.ports.clock import Clock
from vaultfs.ports.locks import Listener, LockStore

T = TypeVar("T")

LOOK_EVERY: Final = 0.05
"""Seconds after which those who wait look whether a lease has run out."""


def _nobody(tree: TreeId, news: object) -> None:
    """Where nobody listens."""


@define(eq=False)
class MemoryLockStore(LockStore):
    """Nothing outlives it, and nothing in it waits for anything."""

    clock: Clock
    _listener: Listener = _nobody
    _trees: dict[TreeId, TreeLocks] = field(factory=dict[TreeId, TreeLocks])

    @property
    def session(self) -> str:
        return ""

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def _now(self, tree: TreeId) -> TreeLocks:
        """The locks of `tree`, at this moment."""
        locks = self._trees.get(tree)
        if locks is None:
            locks = self._trees[tree] = TreeLocks()
        locks.table.tick(self.clock.monotonic())
        return locks

    def at_once(self, tree: TreeId, *, timed: bool = False) -> LockTable | None:
        locks = self._trees.get(tree)
        if timed or locks is None or locks.table.leases:
            locks = self._now(tree)
        return locks.table

    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,  # noqa: ARG002 nothing comes between
    ) -> T:
        locks = self._now(tree)
        result = work(locks)
        news = locks.settle("")
        if news:
            self._listener(tree, news)
        return result

    async def look(self, tree: TreeId, work: Callable[[TreeLocks], T]) -> T:
        return work(self._now(tree))

    async def news(self, trees: Collection[TreeId]) -> None:  # noqa: ARG002 there is one clock
        await anyio.sleep(LOOK_EVERY)

    async def live(self) -> None:
        await anyio.sleep_forever()

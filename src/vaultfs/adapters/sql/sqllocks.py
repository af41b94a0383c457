"""Locks in the database of a catalog, for all processes that have it open.

They are changed by the catalog's writer, together with the units and the other calls that
wait for it at that time.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar
from uuid import uuid4

import anyio
from anyio import get_cancelled_exc_class

from vaultfs.adapters.sql import lockview
from vaultfs.adapters.sql.grouping import GroupCommit, Job
from vaultfs.adapters.sql.lockview import LockCache
from vaultfs.adapters.sql.statements import Program
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.errors import VaultError
from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId
from vaultfs.ports.locks import Listener, LockStore

T = TypeVar("T")


class SqlLockStore(LockStore):
    """The locks of one open catalog, through its `writer`, which knows `cache` of them."""

    def __init__(self, writer: GroupCommit, cache: LockCache, *, alone: bool) -> None:
        self._writer = writer
        self._cache = cache
        self._shared = not alone
        cache.session = cache.session or uuid4().hex

    @abstractmethod
    async def _locks(self, tree: TreeId) -> TreeLocks:
        """The locks of `tree` as they are now, read beside the writer."""

    @property
    def session(self) -> str:
        return self._cache.session

    def listen(self, listener: Listener) -> None:
        self._cache.listener = listener

    def at_once(self, tree: TreeId, *, timed: bool = False) -> LockTable | None:  # noqa: ARG002
        return None  # a commit is to be waited for

    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,
    ) -> T:
        job = Job(program=partial(_change, self._cache, tree, work), tree=tree)
        try:
            await self._writer.do(job)
        except get_cancelled_exc_class():
            if job.begun:
                with anyio.CancelScope(shield=True):
                    await self._take_back(tree, job, undo)
            raise
        result: T = job.result
        return result

    async def _take_back(
        self, tree: TreeId, job: Job, undo: Callable[[TreeLocks, T], None] | None
    ) -> None:
        async with self._writer.turn:
            pass  # the transaction that has it is over
        if undo is not None and job.error is None and job.result is not None:
            result: T = job.result
            await self.change(tree, lambda locks: undo(locks, result))

    async def look(self, tree: TreeId, work: Callable[[TreeLocks], T]) -> T:
        return work(await self._locks(tree))

    async def live(self) -> None:
        """Say now and then that this process lives, while it holds anything; until cancelled."""
        while True:
            await anyio.sleep(lockview.BEAT)
            if self._shared and self._cache.in_use:
                with suppress(VaultError):  # the next may be in time
                    await self._writer.do(Job(program=self._beat))

    def _beat(self, tx: Transaction) -> Program[None]:
        return lockview.beat(tx.locks)


def _change(
    cache: LockCache, tree: TreeId, work: Callable[[TreeLocks], T], tx: Transaction
) -> Program[T]:
    return lockview.change(tx.locks, cache, tree, work)

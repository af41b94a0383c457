"""Locks in the SQLite database of a catalog, for all processes that have it open.

They are changed by the catalog's writer, together with the units and the other calls that
wait for it at that time. Processes hear of each other by looking: the database has a number
that every commit of another connection changes, and asking for it costs microseconds.
"""

import sqlite3
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

import anyio
from anyio import get_cancelled_exc_class

from vaultfs.adapters.sql import lockview
from vaultfs.adapters.sql.connections import drive
from vaultfs.adapters.sql.lockview import LockView
from vaultfs.adapters.sql.statements import Program
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.adapters.sql.writer import Job, Writer
from vaultfs.domain.errors import VaultError
from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId
from vaultfs.ports.locks import Listener, LockStore

T = TypeVar("T")
Query = Callable[[sqlite3.Connection], Any]

LOOK_EVERY: Final = 0.01
"""Seconds between two looks whether another process has written."""
LOOKS: Final = 25
"""After so many, time alone may have changed something."""


class SqliteLockStore(LockStore):
    """The locks of one open catalog. `read` runs a query beside the writer."""

    def __init__(
        self, writer: Writer, read: Callable[[Query], Coroutine[Any, Any, Any]], *, alone: bool
    ) -> None:
        self._writer = writer
        self._read = read
        self._shared = not alone
        self._seen = -1
        writer.locks.session = writer.locks.session or uuid4().hex

    @property
    def session(self) -> str:
        return self._writer.locks.session

    def listen(self, listener: Listener) -> None:
        self._writer.locks.listener = listener

    def at_once(self, tree: TreeId) -> LockTable | None:  # noqa: ARG002 a commit is to be waited for
        return None

    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,
    ) -> T:
        def program(tx: Transaction) -> Program[T]:
            return lockview.change(tx.locks, self._writer.locks, tree, work)

        job = Job(program=program)
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
        if undo is not None and job.error is None:
            result: T = job.result
            await self.change(tree, lambda locks: undo(locks, result))

    async def look(self, tree: TreeId, work: Callable[[TreeLocks], T]) -> T:
        def read(connection: sqlite3.Connection) -> TreeLocks:
            return drive(connection, lockview.locks_of(LockView(self.session), tree))

        return work(await self._read(read))

    async def news(self, trees: Collection[TreeId]) -> None:
        for _ in range(LOOKS):
            await anyio.sleep(LOOK_EVERY)
            if self._shared and await self._read(partial(self._moved, trees)):
                return

    def _moved(self, trees: Collection[TreeId], connection: sqlite3.Connection) -> bool:
        """Whether another connection has written the locks of one of `trees`."""
        number = connection.execute("PRAGMA data_version").fetchone()[0]
        if number == self._seen:
            return False
        self._seen = number
        known = self._writer.locks.trees
        for tree in trees:
            row = connection.execute("SELECT version FROM lock_state WHERE tree = ?", (tree,))
            found = row.fetchone()
            if found is not None and known.get(tree, (0,))[0] != found[0]:
                return True
        return False

    async def live(self) -> None:
        """Say now and then that this process lives, while it holds anything; until cancelled."""
        while True:
            await anyio.sleep(lockview.BEAT)
            if self._shared and self._writer.locks.in_use:
                with suppress(VaultError):  # the next may be in time
                    await self._writer.do(Job(program=self._beat))

    def _beat(self, tx: Transaction) -> Program[None]:
        return lockview.beat(tx.locks, self._writer.locks)

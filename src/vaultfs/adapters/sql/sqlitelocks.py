"""Locks in the SQLite database of a catalog.

Processes hear of each other by looking: the database has a number that every commit of
another connection changes, and asking for it costs microseconds.
"""

import sqlite3
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, Final

import anyio

from vaultfs.adapters.sql import lockview
from vaultfs.adapters.sql.connections import drive
from vaultfs.adapters.sql.lockview import LockView
from vaultfs.adapters.sql.sqllocks import SqlLockStore
from vaultfs.adapters.sql.writer import Writer
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId

Query = Callable[[sqlite3.Connection], Any]

LOOK_EVERY: Final = 0.01
"""Seconds between two looks whether another process has written."""
LOOKS: Final = 25
"""After so many, time alone may have changed something."""


class SqliteLockStore(SqlLockStore):
    """The locks of one open catalog. `read` runs a query beside the writer."""

    def __init__(
        self, writer: Writer, read: Callable[[Query], Coroutine[Any, Any, Any]], *, alone: bool
    ) -> None:
        super().__init__(writer, writer.locks, alone=alone)
        self._read = read
        self._seen = -1

    async def _locks(self, tree: TreeId) -> TreeLocks:
        def read(connection: sqlite3.Connection) -> TreeLocks:
            return drive(connection, lockview.locks_of(LockView(self.session), tree))

        found: TreeLocks = await self._read(read)
        return found

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
        known = self._cache.trees
        for tree in trees:
            row = connection.execute("SELECT version FROM lock_state WHERE tree = ?", (tree,))
            found = row.fetchone()
            if found is not None and known.get(tree, (0,))[0] != found[0]:
                return True
        return False

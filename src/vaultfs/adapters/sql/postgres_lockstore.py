"""Locks in the PostgreSQL database of a catalog, for all servers that share it.

The row of a tree is locked first, as for every change of the tree (`postgres_locks`): so the
locks of a tree change one after another, and the calls of one server that come meanwhile
go together, in one statement if they can (`postgres_swaps`). The database tells the time.
Servers wake each other by NOTIFY, and look again twice a second in case they were not.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from vaultfs.adapters.sql import lockview
from vaultfs.adapters.sql.lockview import SHARED_CLOCK, LockView
from vaultfs.adapters.sql.postgres_connections import Database, Readers, is_lost
from vaultfs.adapters.sql.postgres_driver import Driver
from vaultfs.adapters.sql.postgres_swaps import CHANNEL
from vaultfs.adapters.sql.postgres_writer import CLOCK, PostgresWriter
from vaultfs.adapters.sql.sqllocks import SqlLockStore
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.nodes import TreeId

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

LOOK_EVERY: Final = 0.5
"""Seconds after which to look again, whether anybody has called or not."""


class PostgresLockStore(SqlLockStore):
    """The locks of one open catalog; `aclose` lets go of the connection that listens."""

    def __init__(self, writer: PostgresWriter, readers: Readers, database: Database) -> None:
        super().__init__(writer, writer.lock_cache, alone=False)
        self._postgres = writer
        self._readers = readers
        self._database = database
        self._listening: Connection | None = None
        self._called = anyio.Event()

    async def _locks(self, tree: TreeId) -> TreeLocks:
        async def read(connection: "Connection") -> TreeLocks:
            now = float(await connection.fetchval(CLOCK))
            view = LockView(self.session, now, SHARED_CLOCK)
            driver = Driver(connection, self._postgres.ids)
            return await driver.drive(lockview.locks_of(view, tree))

        return await self._readers.run(read)

    async def news(self, trees: Collection[TreeId]) -> None:  # noqa: ARG002 a call says little
        with suppress(OSError), anyio.move_on_after(LOOK_EVERY):
            await self._listen()
            await self._called.wait()
        if self._called.is_set():
            self._called = anyio.Event()

    async def _listen(self) -> None:
        """Have a connection that listens; without one, looking now and then has to do."""
        if self._listening is not None and not self._listening.is_closed():
            return
        try:
            connection = await self._database.connect()
            self._listening = connection
            await connection.add_listener(CHANNEL, self._heard)
        except Exception as error:
            if not is_lost(error):
                raise
            await anyio.sleep(LOOK_EVERY)

    def _heard(self, *_: Any) -> None:
        self._called.set()

    async def aclose(self) -> None:
        """Listen no longer."""
        if self._listening is not None:
            connection, self._listening = self._listening, None
            connection.terminate()

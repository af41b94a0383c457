"""The writing side of the SQLite catalog: one connection, used in threads."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.sql.connections import Place, translated
from vaultfs.adapters.sql.grouping import GroupCommit, Job

if TYPE_CHECKING:
    from vaultfs.adapters.sql.lockview import LockCache

T = TypeVar("T")


@define(eq=False)
class Writer(GroupCommit):
    """The one connection of a catalog that writes, and those who wait for it."""

    connection: sqlite3.Connection
    name: str
    place: Place = field(factory=Place)
    _using: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    """Held while a thread has the connection, which a catalog in memory also reads with."""
    _locks: "LockCache | None" = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in a thread on the connection."""
        async with self._using:
            with translated(self.name):
                return await to_thread.run_sync(work, self.connection)

    async def execute(self, jobs: Sequence[Job]) -> None:
        async with self._using:
            await to_thread.run_sync(self._execute, jobs)
        if self._locks is not None:
            self._locks.tell()

    @property
    def locks(self) -> "LockCache":
        """What transactions leave to those after them of what they know of locks."""
        if self._locks is None:
            from vaultfs.adapters.sql.lockview import LockCache  # noqa: PLC0415 only writers need it

            self._locks = LockCache()
        return self._locks

    def _execute(self, jobs: Sequence[Job]) -> None:
        # Those who only read a catalog are spared all that writing takes.
        from vaultfs.adapters.sql.execution import execute  # noqa: PLC0415

        execute(self.connection, self.name, self.place, self.locks, jobs)

"""The writing side of the SQLite catalog: many callers' units in few transactions.

There is no timer for group commit: while a transaction runs in its thread, callers
queue up, and the first of them takes all of those into the next one.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.sql.connections import Place, translated

if TYPE_CHECKING:
    from vaultfs.adapters.sql.lockview import LockCache
    from vaultfs.adapters.sql.statements import Program
    from vaultfs.adapters.sql.transaction import Transaction
    from vaultfs.domain.operations import Outcome, Unit

T = TypeVar("T")

ROUND: Final = 4096
"""Units that one transaction takes at the most, so that nobody waits for ever."""


@define(eq=False)
class Job:
    """A call of `apply`, or a program, that waits to be executed."""

    units: "tuple[Unit, ...]" = ()
    program: "Callable[[Transaction], Program[Any]] | None" = None
    """Instead of units. It raises a `VaultError` only before it has written anything."""
    begun: bool = False
    outcomes: "list[Outcome]" = field(factory=list["Outcome"])
    result: Any = None
    """What the program returned."""
    error: Exception | None = None


@define(eq=False)
class Writer:
    """The one connection of a catalog that writes, and those who wait for it."""

    connection: sqlite3.Connection
    name: str
    place: Place = field(factory=Place)
    turn: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    """Held by whoever writes, for as long as a reindexing takes."""
    _using: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    """Held while a thread has the connection, which a catalog in memory also reads with."""
    _locks: "LockCache | None" = None
    _jobs: list[Job] = field(factory=list[Job])

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in a thread on the connection."""
        async with self._using:
            with translated(self.name):
                return await to_thread.run_sync(work, self.connection)

    async def apply(self, units: "Sequence[Unit]") -> "list[Outcome]":
        """See `Catalog.apply`."""
        if not units:
            return []
        job = Job(tuple(units))
        await self.do(job)
        return job.outcomes

    async def do(self, job: Job) -> None:
        """Have `job` executed with all that wait by then. Raises its error.

        A cancellation that comes when it has begun does not stop it.
        """
        self._jobs.append(job)
        try:
            while not job.begun:
                async with self.turn:
                    if not job.begun:
                        await self._round()
        finally:
            if not job.begun:
                self._jobs.remove(job)
        if job.error is not None:
            raise job.error

    async def _round(self) -> None:
        """Execute what waits, in one transaction; the caller holds `turn`."""
        jobs: list[Job] = []
        size = 0
        for job in self._jobs:
            size += len(job.units)
            if jobs and size > ROUND:
                break
            jobs.append(job)
        del self._jobs[: len(jobs)]
        for job in jobs:
            job.begun = True
        with anyio.CancelScope(shield=True):
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

    def _execute(self, jobs: "Sequence[Job]") -> None:
        # Those who only read a catalog are spared all that writing takes.
        from vaultfs.adapters.sql.execution import execute  # noqa: PLC0415

        execute(self.connection, self.name, self.place, self.locks, jobs)

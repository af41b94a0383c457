"""The writing side of the SQLite catalog: many callers' units in few transactions.

There is no timer for group commit: while a transaction runs in its thread, callers
queue up, and the first of them takes all of those into the next one.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.sql.bulk import groups, put_new_files
from vaultfs.adapters.sql.connections import drive, translated
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.errors import OutcomeUnknown, VaultError
from vaultfs.domain.operations import Done, Outcome, Refused, Result, Unit

T = TypeVar("T")

ROUND: Final = 4096
"""Units that one transaction takes at the most, so that nobody waits for ever."""


@define(eq=False)
class _Job:
    """A call of `apply` that waits to be executed."""

    units: tuple[Unit, ...]
    begun: bool = False
    outcomes: list[Outcome] = field(factory=list[Outcome])
    error: Exception | None = None


class _SavepointNeededError(Exception):
    """A unit was refused after it had written."""


@define(eq=False)
class Writer:
    """The one connection of a catalog that writes, and those who wait for it."""

    connection: sqlite3.Connection
    name: str
    turn: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    """Held by whoever writes, for as long as a reindexing takes."""
    _using: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    """Held while a thread has the connection, which a catalog in memory also reads with."""
    _jobs: list[_Job] = field(factory=list[_Job])

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in a thread on the connection."""
        async with self._using:
            with translated(self.name):
                return await to_thread.run_sync(work, self.connection)

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        """See `Catalog.apply`."""
        if not units:
            return []
        job = _Job(tuple(units))
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
        return job.outcomes

    async def _round(self) -> None:
        """Execute what waits, in one transaction; the caller holds `turn`."""
        jobs: list[_Job] = []
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

    def _execute(self, jobs: Sequence[_Job]) -> None:
        """Run `jobs` in one transaction; in one each if that fails for no known reason."""
        try:
            for job, outcomes in zip(jobs, self._transact(jobs), strict=True):
                job.outcomes = outcomes
        except OutcomeUnknown as error:
            for job in jobs:
                job.error = OutcomeUnknown(error.message, op_id=job.units[0].op_id)
        except VaultError as error:
            for job in jobs:
                job.error = error
        except Exception as error:  # noqa: BLE001 a bug: only the call that has it is to fail
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self._execute([job])

    def _transact(self, jobs: Sequence[_Job], *, savepoints: bool = False) -> list[list[Outcome]]:
        """Run all units in one transaction.

        Most units that are refused have not written anything yet, so savepoints, a third
        of the statements of a plain put, are left out at first; the first unit that does
        need one has the whole transaction run again with them.
        """
        connection = self.connection
        with translated(self.name):
            connection.execute("BEGIN IMMEDIATE")
            try:
                tx = Transaction()
                run = self._unit_with_savepoint if savepoints else self._unit
                outcomes = [self._run(tx, job.units, run) for job in jobs]
                drive(connection, finish(tx))
                self._commit(jobs[0].units[0].op_id)
                return outcomes
            except _SavepointNeededError:
                connection.execute("ROLLBACK")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        return self._transact(jobs, savepoints=True)

    def _run(
        self, tx: Transaction, units: Sequence[Unit], run: Callable[[Transaction, Unit], Outcome]
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for group in groups(units):
            done = drive(self.connection, put_new_files(tx, group))
            outcomes += [run(tx, unit) for unit in group] if done is None else done
        return outcomes

    def _commit(self, op_id: str) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
                raise OutcomeUnknown(
                    f"{self.name}: the disk failed while committing: {error}", op_id=op_id
                ) from error
            raise

    def _unit(self, tx: Transaction, unit: Unit) -> Outcome:
        connection, trees, reserved = self.connection, dict(tx.trees), tx.reserved
        before = connection.total_changes
        results: list[Result] = []
        try:
            drive(connection, run_unit(tx, unit, results))
            return Done(tuple(results))
        except VaultError as error:
            if connection.total_changes - before != tx.reserved - reserved:
                raise _SavepointNeededError from error
            tx.forget(trees)
            return Refused(error, len(results))

    def _unit_with_savepoint(self, tx: Transaction, unit: Unit) -> Outcome:
        connection, trees = self.connection, dict(tx.trees)
        connection.execute("SAVEPOINT unit")
        results: list[Result] = []
        try:
            drive(connection, run_unit(tx, unit, results))
            return Done(tuple(results))
        except VaultError as error:
            connection.execute("ROLLBACK TO unit")
            tx.forget(trees)
            return Refused(error, len(results))
        finally:
            connection.execute("RELEASE unit")

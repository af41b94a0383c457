"""Executing units: what the writer's thread does with the calls that waited for it."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from attrs import define

from vaultfs.adapters.sql.bulk import groups, together
from vaultfs.adapters.sql.connections import Place, begin, drive, translated
from vaultfs.adapters.sql.grouping import Job
from vaultfs.adapters.sql.lockview import LockCache
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.errors import InvalidField, OutcomeUnknown, VaultError
from vaultfs.domain.operations import Done, Outcome, Refused, Result, Unit


class _SavepointNeededError(Exception):
    """A unit was refused after it had written, or some unit of a group was."""


def execute(
    connection: sqlite3.Connection,
    name: str,
    place: Place,
    locks: LockCache,
    jobs: Sequence[Job],
) -> None:
    """Run `jobs` in one transaction and give each its outcomes, or its error."""
    _Execution(connection, name, place, locks).execute(jobs)


@define(eq=False)
class _Execution:
    connection: sqlite3.Connection
    name: str
    place: Place
    locks: LockCache

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run `jobs` in one transaction; in one each if that fails for no known reason."""
        try:
            self._transact(jobs)
        except OutcomeUnknown as error:
            for job in jobs:
                job.error = OutcomeUnknown(error.message, op_id=_op_id([job]))
        except VaultError as error:
            for job in jobs:
                job.error = error
        except Exception as error:  # noqa: BLE001 a bug: only the call that has it is to fail
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self.execute([job])

    def _transact(self, jobs: Sequence[Job], *, savepoints: bool = False) -> None:
        """Run all jobs in one transaction.

        Most units that are refused have not written anything yet, so savepoints, a third
        of the statements of a plain put, are left out at first; the first unit that does
        need one has the whole transaction run again with them, each unit by itself.
        """
        connection = self.connection
        with translated(self.name):
            begin(connection)
            try:
                self.place.check()
                tx = Transaction(locks=self.locks.view())
                run = self._one_by_one if savepoints else self._grouped
                for job in jobs:
                    self._run_job(tx, job, run)
                drive(connection, finish(tx))
                self._commit(_op_id(jobs))
                self.locks.keep(tx.locks)
                return
            except _SavepointNeededError:
                connection.execute("ROLLBACK")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            finally:
                self.locks.settle()
        self._transact(jobs, savepoints=True)

    def _run_job(
        self,
        tx: Transaction,
        job: Job,
        run: Callable[[Transaction, Sequence[Unit]], list[Outcome]],
    ) -> None:
        if job.program is None:
            job.outcomes = run(tx, job.units)
            return
        try:
            job.error, job.result = None, drive(self.connection, job.program(tx))
        except VaultError as error:
            job.error = error

    def _grouped(self, tx: Transaction, units: Sequence[Unit]) -> list[Outcome]:
        if len(units) == 1:
            return [self._unit(tx, units[0])]
        outcomes: list[Outcome] = []
        for group in groups(units):
            try:
                done = drive(self.connection, together(tx, group))
            except InvalidField as error:
                raise _SavepointNeededError from error
            outcomes += [self._unit(tx, unit) for unit in group] if done is None else done
        return outcomes

    def _one_by_one(self, tx: Transaction, units: Sequence[Unit]) -> list[Outcome]:
        return [self._unit_with_savepoint(tx, unit) for unit in units]

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
        connection, mark, reserved = self.connection, tx.mark(), tx.reserved
        before = connection.total_changes
        results: list[Result] = []
        try:
            drive(connection, run_unit(tx, unit, results))
            return Done(tuple(results))
        except VaultError as error:
            if connection.total_changes - before != tx.reserved - reserved:
                raise _SavepointNeededError from error
            tx.forget(mark)
            return Refused(error, len(results))

    def _unit_with_savepoint(self, tx: Transaction, unit: Unit) -> Outcome:
        connection, mark = self.connection, tx.mark()
        connection.execute("SAVEPOINT unit")
        results: list[Result] = []
        try:
            drive(connection, run_unit(tx, unit, results))
            return Done(tuple(results))
        except VaultError as error:
            connection.execute("ROLLBACK TO unit")
            tx.forget(mark)
            return Refused(error, len(results))
        finally:
            connection.execute("RELEASE unit")


def _op_id(jobs: Sequence[Job]) -> str:
    """The id of the first unit or program that has one."""
    named = (each for job in jobs for each in (job.op_id, *(unit.op_id for unit in job.units)))
    return next(filter(None, named), "")

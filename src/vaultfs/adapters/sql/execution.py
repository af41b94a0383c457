"""Executing units: what the writer's thread does with the calls that waited for it."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from attrs import define

from vaultfs.adapters.sql.bulk import groups, put_new_files
from vaultfs.adapters.sql.connections import Place, drive, translated
from vaultfs.adapters.sql.grouping import Job
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.errors import OutcomeUnknown, VaultError
from vaultfs.domain.operations import Done, Outcome, Refused, Result, Unit


class _SavepointNeededError(Exception):
    """A unit was refused after it had written."""


def execute(connection: sqlite3.Connection, name: str, place: Place, jobs: Sequence[Job]) -> None:
    """Run `jobs` in one transaction and give each its outcomes, or its error."""
    _Execution(connection, name, place).execute(jobs)


@define(eq=False)
class _Execution:
    connection: sqlite3.Connection
    name: str
    place: Place

    def execute(self, jobs: Sequence[Job]) -> None:
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
                    self.execute([job])

    def _transact(self, jobs: Sequence[Job], *, savepoints: bool = False) -> list[list[Outcome]]:
        """Run all units in one transaction.

        Most units that are refused have not written anything yet, so savepoints, a third
        of the statements of a plain put, are left out at first; the first unit that does
        need one has the whole transaction run again with them.
        """
        connection = self.connection
        with translated(self.name):
            connection.execute("BEGIN IMMEDIATE")
            try:
                self.place.check()
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
        if len(units) == 1:
            return [run(tx, units[0])]
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

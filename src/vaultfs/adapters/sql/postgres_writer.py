"""The writing side of the PostgreSQL catalog: one connection, many callers' units at once."""

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import anyio
from asyncpg import exceptions as pg
from attrs import define, field

from vaultfs.adapters.sql.bulk import groups, together
from vaultfs.adapters.sql.grouping import GroupCommit, Job
from vaultfs.adapters.sql.lockview import LockCache, LockView
from vaultfs.adapters.sql.postgres_connections import (
    BUSY_AFTER,
    Database,
    can_be_repeated,
    is_lost,
    translated,
)
from vaultfs.adapters.sql.postgres_driver import Driver, Ids
from vaultfs.adapters.sql.postgres_locks import Locks
from vaultfs.adapters.sql.postgres_swaps import (
    CALL,
    NOW,
    DatabaseClock,
    TransactionNeededError,
    at_once,
    swap_of,
)
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.statements import Row
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.errors import InvalidField, OutcomeUnknown, VaultError
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.operations import Done, Operation, Outcome, Refused, Result, Unit

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

ATTEMPTS: Final = 8
"""How often a transaction is tried that others come in the way of."""
RESOLVE_WITHIN: Final = 10.0
"""Seconds for which a writer tries to learn what became of a commit."""
RESOLVE_EVERY: Final = 0.25
IDLE_WITHIN: Final = "10s"
"""So long may a writer that has stopped hold up others, who wait for longer than that."""

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
CLOCK: Final = f"SELECT {NOW}"
LOOK: Final = (
    f"SELECT t.id, coalesce(l.version, 0), c.now FROM ({CLOCK} AS now) c"
    " CROSS JOIN unnest($1::bigint[]) t(id) LEFT JOIN lock_state l ON l.tree = t.id"
)
"""The time, and the versions of the locks of trees; once those are locked."""
MARKED: Final = "SELECT state::jsonb #>> ARRAY['marks', $2, '0'] FROM lock_state WHERE tree = $1"

HAPPENED: Final = (
    "SELECT EXISTS (SELECT 1 FROM changes WHERE op_id = ANY($1::text[]))"
    " OR EXISTS (SELECT 1 FROM audit WHERE op_id = ANY($1::text[]))"
)


class _SavepointNeededError(Exception):
    """A unit was refused after it had written."""


@define(eq=False)
class _Round:
    """One transaction, however often it is tried."""

    jobs: Sequence[Job]
    savepoints: bool = False
    tries: int = 0
    renewed: bool = False
    """A connection that turned out to be dead was replaced."""
    outcomes: list[list[Outcome]] = field(factory=list[list[Outcome]])
    """What is true once the commit is known to have happened."""
    mark: str = field(factory=lambda: uuid4().hex)
    """Stands in the lock state that it has written."""
    view: LockView | None = None
    """What the last try knew of locks."""
    locked: tuple[TreeId, ...] = ()
    """The trees whose lock state it has written."""
    in_doubt_until: float = 0.0
    """The connection was lost in a commit, and nobody has said yet what became of it."""

    @property
    def units(self) -> list[Unit]:
        return [unit for job in self.jobs for unit in job.units]

    @property
    def operations(self) -> list[Operation]:
        """All that units and programs execute."""
        programs = [operation for job in self.jobs for operation in job.operations]
        return programs + [each for unit in self.units for each in unit.operations]

    @property
    def op_id(self) -> str:
        """Of the first unit or program that has one."""
        return next(filter(None, [unit.op_id for unit in self.units] + self._programs), "")

    @property
    def _programs(self) -> list[str]:
        return [job.op_id for job in self.jobs if job.op_id]

    @property
    def trees(self) -> list[TreeId]:
        """Those whose locks programs change."""
        return [job.tree for job in self.jobs if job.tree is not None]

    @property
    def only_locks_of(self) -> TreeId | None:
        """The tree, if it changes the locks of one and nothing else."""
        trees = {job.tree for job in self.jobs}
        return trees.pop() if len(trees) == 1 else None

    @property
    def keys(self) -> list[str]:
        """Of programs that exclude each other."""
        return [job.key for job in self.jobs if job.key]

    @property
    def done(self) -> list[str]:
        """The ids of what the last try executed."""
        outcomes = [outcome for each in self.outcomes for outcome in each]
        pairs = zip(self.units, outcomes, strict=True)
        return [*self._programs, *(unit.op_id for unit, each in pairs if isinstance(each, Done))]


@define(eq=False)
class PostgresWriter(GroupCommit):
    """The one connection of a catalog that writes, and those who wait for it.

    When the connection is lost before a commit was sent, nothing has happened, and the
    callers are told `CatalogUnavailable`, or it is tried once more if the connection may
    have been dead for long. When it is lost in a commit, the writer locks what the
    transaction had locked, which waits for its end, and looks whether its units are in the
    feed or the audit: if they are, it happened, and if not, it is executed again. Units that
    leave a row in neither may happen twice without a difference. Callers hear of
    `OutcomeUnknown` only if nobody can be asked for `RESOLVE_WITHIN` seconds.
    """

    database: Database
    ids: Ids
    locks: Locks = field(factory=Locks)
    attempts: int = ATTEMPTS
    lock_cache: LockCache = field(factory=LockCache)
    _connection: "Connection | None" = None
    _clock: DatabaseClock = field(factory=DatabaseClock)
    _alone: bool = False
    """Nobody else has changed the locks between the last two times that this server did."""

    async def aclose(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.terminate() if connection.is_closed() else await connection.close()

    async def execute(self, jobs: Sequence[Job]) -> None:
        try:
            for job, outcomes in zip(jobs, await self._transact(jobs), strict=True):
                job.outcomes = outcomes
            self.lock_cache.tell()
        except OutcomeUnknown as error:
            for job in jobs:
                op_id = job.units[0].op_id if job.units else job.op_id or error.op_id
                job.error = OutcomeUnknown(error.message, op_id=op_id)
        except VaultError as error:
            for job in jobs:
                job.error = error
        except Exception as error:  # noqa: BLE001 a bug: only the call that has it is to fail
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    await self.execute([job])

    async def _transact(self, jobs: Sequence[Job]) -> list[list[Outcome]]:
        """Run all units in one transaction, which is tried again where that is safe."""
        this = _Round(jobs)
        with translated(self.database.name):
            while True:
                try:
                    return await self._attempt(this)
                except _SavepointNeededError:
                    this.savepoints = True
                except Exception as error:
                    if not self._goes_on(this, error):
                        if this.in_doubt_until:
                            raise OutcomeUnknown(
                                f"{self.database.name}: the connection was lost in a commit",
                                op_id=this.op_id,
                            ) from error
                        raise
                    await anyio.sleep(self._pause(this, error))

    def _goes_on(self, this: _Round, error: Exception) -> bool:
        """Whether the transaction is worth, and safe for, another try."""
        if is_lost(error):
            self._drop()
            if this.in_doubt_until:
                return anyio.current_time() < this.in_doubt_until
            again = not this.renewed and not isinstance(error, ConnectionRefusedError)
            this.renewed = True
            return again
        this.tries += 1
        return can_be_repeated(error) and this.tries < self.attempts

    def _pause(self, this: _Round, error: Exception) -> float:
        """Seconds to wait before the next try, so that two do not meet again."""
        if is_lost(error):
            return RESOLVE_EVERY if this.in_doubt_until else 0.0
        return random.uniform(0, 0.01 * this.tries)  # noqa: S311 nothing secret

    async def _attempt(self, this: _Round) -> list[list[Outcome]]:
        connection = await self._connected()
        if not this.in_doubt_until and await self._swap(connection, this):
            return this.outcomes
        try:
            trees, locked = await self._begin(connection, this)
            driver = Driver(connection, self.ids, trees)
            if this.in_doubt_until:
                if await self._happened(connection, this):
                    await connection.execute("ROLLBACK")
                    if this.view is not None:
                        self.lock_cache.keep_news(this.view)
                    return this.outcomes
                this.in_doubt_until = 0.0
            this.view = await self._look(connection, this, locked)
            tx = Transaction(locks=this.view)
            this.outcomes = [await self._run_job(driver, tx, job, this) for job in this.jobs]
            await driver.drive(finish(tx))
            seen = tx.locks.seen.items()
            this.locked = tuple(tree for tree, (_, locks) in seen if locks.changed)
            if any(locks.news for _, (_, locks) in seen):
                await connection.execute(f"SELECT {CALL}")
        except BaseException:
            self.lock_cache.settle()
            with suppress(pg.PostgresError, pg.InterfaceError, OSError):
                await connection.execute("ROLLBACK")
            raise
        try:
            await self._commit(connection, this)
        except BaseException:
            self.lock_cache.settle()
            raise
        self.lock_cache.keep(tx.locks)
        return this.outcomes

    async def _swap(self, connection: "Connection", this: _Round) -> bool:
        """Change the locks of one tree, if that is all; False if nothing was done."""
        tree = this.only_locks_of
        known = None if tree is None else self.lock_cache.trees.get(tree)
        if tree is None or known is None or not self._alone:
            return False
        versions = {tree: known[0]}
        this.view = self.lock_cache.view_at(self._clock.now(), this.mark, versions)
        try:
            tx = Transaction(locks=this.view)
            for job in this.jobs:
                _run_at_once(job, tx)
            parameters = swap_of(this.view, tree)
            this.outcomes, this.locked = [[] for _ in this.jobs], (tree,)
            with _doubting(this):
                row = await connection.fetchrow(self.locks.swap, *parameters)
        except TransactionNeededError:
            self.lock_cache.settle()
            return False
        except BaseException:
            self.lock_cache.settle()
            raise
        self._alone = row is not None
        if row is None:
            self.lock_cache.settle()
            return False
        self._clock.hear(row[0])
        self.lock_cache.keep(this.view)
        return True

    async def _happened(self, connection: "Connection", this: _Round) -> bool:
        """Whether the last try was committed after all."""
        if this.done and await connection.fetchval(HAPPENED, this.done):
            return True
        if not this.locked:
            return False
        me = self.lock_cache.session
        marks = [await connection.fetchval(MARKED, tree, me) for tree in this.locked]
        return this.mark in marks

    async def _run_job(
        self, driver: Driver, tx: Transaction, job: Job, this: _Round
    ) -> list[Outcome]:
        if job.program is None:
            return await self._run(driver, tx, job.units, savepoints=this.savepoints)
        try:
            job.error, job.result = None, await driver.drive(job.program(tx))
        except VaultError as error:
            job.error = error
        return []

    async def _commit(self, connection: "Connection", this: _Round) -> None:
        with _doubting(this):
            ended = await connection.execute("COMMIT")
            assert ended == "COMMIT", ended

    async def _begin(
        self, connection: "Connection", this: _Round
    ) -> tuple[dict[int, Row], Sequence[TreeId]]:
        """Lock all that is changed; the rows of trees by id, and the trees that are locked."""
        operations = this.operations
        if not operations:  # one trip instead of three, which a lock would notice
            await connection.execute(f"{BEGIN};{self.locks.text_of(this.trees)}")
            return {}, list(dict.fromkeys(this.trees))
        await connection.execute(BEGIN)
        trees: dict[int, Row] = {}
        locked: Sequence[TreeId] = ()
        for what, sql, parameters in self.locks.of(operations, this.trees, this.keys):
            rows: list[Any] = await connection.fetch(sql, *parameters)
            if what == "trees":
                trees = {row[0]: row for row in rows}
                locked = parameters[0]
        return trees, locked

    async def _look(
        self, connection: "Connection", this: _Round, trees: Sequence[TreeId]
    ) -> LockView:
        """The locks of `trees`, which this transaction has locked, and the time."""
        if not trees:
            return self.lock_cache.view_at(float(await connection.fetchval(CLOCK)), this.mark, {})
        rows: list[Any] = await connection.fetch(LOOK, trees)
        versions: dict[TreeId, int] = {tree: version for tree, version, _ in rows}
        known = self.lock_cache.trees
        self._alone = all(known.get(each, (-1,))[0] == versions[each] for each in versions)
        self._clock.hear(rows[0][2])
        return self.lock_cache.view_at(rows[0][2], this.mark, versions)

    async def _run(
        self, driver: Driver, tx: Transaction, units: Sequence[Unit], *, savepoints: bool
    ) -> list[Outcome]:
        run = self._unit_with_savepoint if savepoints else self._unit
        if len(units) == 1 or savepoints:
            return [await run(driver, tx, unit) for unit in units]
        outcomes: list[Outcome] = []
        for group in groups(units):
            try:
                done = await driver.drive(together(tx, group))
            except InvalidField as error:
                raise _SavepointNeededError from error
            outcomes += [await run(driver, tx, unit) for unit in group] if done is None else done
        return outcomes

    async def _unit(self, driver: Driver, tx: Transaction, unit: Unit) -> Outcome:
        mark, before = tx.mark(), driver.writes
        results: list[Result] = []
        try:
            await driver.drive(run_unit(tx, unit, results))
            return Done(tuple(results))
        except VaultError as error:
            if driver.writes != before:
                raise _SavepointNeededError from error
            tx.forget(mark)
            return Refused(error, len(results))

    async def _unit_with_savepoint(self, driver: Driver, tx: Transaction, unit: Unit) -> Outcome:
        mark = tx.mark()
        await driver.connection.execute("SAVEPOINT unit")
        results: list[Result] = []
        try:
            await driver.drive(run_unit(tx, unit, results))
            outcome: Outcome = Done(tuple(results))
        except VaultError as error:
            await driver.connection.execute("ROLLBACK TO SAVEPOINT unit")
            tx.forget(mark)
            outcome = Refused(error, len(results))
        await driver.connection.execute("RELEASE SAVEPOINT unit")
        return outcome

    async def _connected(self) -> "Connection":
        """The connection, made anew if it is closed."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self.database.connect(by_index=True)
            await self._connection.execute(
                f"SET lock_timeout = '{BUSY_AFTER}s';"
                " SET default_transaction_isolation = 'read committed';"
                f"SET idle_in_transaction_session_timeout = '{IDLE_WITHIN}';"
                # What was acknowledged is on the disk, whatever the server does by default.
                " SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _run_at_once(job: Job, tx: Transaction) -> None:
    """Run the program of `job`. Raises `TransactionNeededError` if it asks for anything."""
    assert job.program is not None
    try:
        job.error, job.result = None, at_once(job.program(tx))
    except VaultError as error:
        job.error = error


@contextmanager
def _doubting(this: _Round) -> Generator[None, None, None]:
    """Note that nobody knows what became of a commit, if the connection is lost inside."""
    try:
        yield
    except BaseException as error:
        if is_lost(error):
            this.in_doubt_until = anyio.current_time() + RESOLVE_WITHIN
        raise

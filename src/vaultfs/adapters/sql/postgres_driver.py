"""Running programs on PostgreSQL, and the ids that they take."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio.lowlevel import checkpoint
from asyncpg import exceptions as pg
from attrs import define, field

from vaultfs.adapters.sql.postgres_dialect import INSERT_MANY_CHUNKS, native
from vaultfs.adapters.sql.statements import INSERT_CHUNKS, Program, Row, Run, RunMany
from vaultfs.adapters.sql.transaction import RESERVE, TREE
from vaultfs.domain.errors import InvalidField
from vaultfs.domain.services.tasks import task_group

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

T = TypeVar("T")

FEW: Final = 64
"""Rows that are written sooner than a task is made to wait for them."""
BLOCK: Final = 512
"""Ids that are taken at once. What is left of them at the end of a process is used by nobody."""
_IN_TRANSACTION: Final = frozenset({"audit"})
"""Ids that have to ascend in the order of commits."""


@define(eq=False)
class Ids:
    """Ids for the transactions of one process, taken in blocks and in transactions of their own.

    So a transaction holds no counter that others wait for; a crash leaves ids that are
    never used.
    """

    reserve: Callable[[str, int], Awaitable[int]]
    """Takes so many ids of a kind; the first behind them."""
    _left: dict[str, tuple[int, int]] = field(factory=dict[str, tuple[int, int]])

    async def take(self, kind: str, count: int) -> int:
        """The first of `count` ids in a row that nothing of their kind has had."""
        start, stop = self._left.get(kind, (0, 0))
        if stop - start < count:
            size = count if kind == "users" else max(count, BLOCK)
            stop = await self.reserve(kind, size)
            start = stop - size
        self._left[kind] = (start + count, stop)
        return start

    def forget(self) -> None:
        """The counters are others now."""
        self._left.clear()


@define(eq=False)
class _End:
    """How a program has ended."""

    result: Any = None
    error: Exception | None = None
    """Raised when what runs beside it is done: a statement that is cut off ruins a transaction."""


def _next(program: Program[Any], rows: list[Row] | None) -> Run | RunMany | _End:
    """What a program does when it has `rows`; None at its beginning."""
    try:
        return next(program) if rows is None else program.send(rows)
    except StopIteration as stop:
        return _End(stop.value)
    except Exception as error:  # noqa: BLE001 raised by `drive`
        return _End(error=error)


@define(eq=False)
class Driver:
    """Runs programs in one transaction."""

    connection: "Connection"
    ids: Ids
    trees: Mapping[int, Row] = field(factory=dict[int, Row])
    """Rows that the transaction has locked."""
    text: Callable[[str], str] = native
    writes: int = 0
    """Statements that have changed something, or may have made the transaction useless."""

    async def drive(self, program: Program[T]) -> T:
        """Run a program to its end.

        While the server writes many rows, whose answer is of no use, the program plans what is
        next: of a thousand moves that hides a tenth of the time.
        """
        step = _next(program, None)
        while not isinstance(step, _End):
            if isinstance(step, RunMany) and step.sql != INSERT_CHUNKS and len(step.rows) > FEW:
                async with task_group() as tasks:
                    tasks.start_soon(self._answer, step)
                    await checkpoint()  # it is sent
                    step = _next(program, [])
            else:
                step = _next(program, await self._answer(step))
        if step.error is not None:
            raise step.error
        result: T = step.result
        return result

    async def _answer(self, step: Run | RunMany) -> list[Row]:
        if isinstance(step, Run):
            return await self._run(step)
        if step.rows:
            self.writes += 1
            if step.sql == INSERT_CHUNKS:
                columns = map(list, zip(*step.rows, strict=True))
                return [(len(await self.fetch(INSERT_MANY_CHUNKS, *columns)),)]
            try:
                await self.connection.executemany(self.text(step.sql), step.rows)
            except _DOES_NOT_FIT as error:
                raise _refused(error) from error
        return []

    async def _run(self, step: Run) -> list[Row]:
        sql, parameters = step
        if sql == RESERVE and parameters[0] not in _IN_TRANSACTION:
            kind, count = parameters
            return [(await self.ids.take(kind, count) + count,)]
        if sql == TREE and parameters[0] in self.trees:
            return [self.trees[parameters[0]]]
        if not sql.startswith(_READS):
            self.writes += 1
        return await self.fetch(sql, *parameters)

    async def fetch(self, sql: str, *parameters: Any) -> list[Row]:
        """The rows of one statement."""
        try:
            rows: list[Any] = await self.connection.fetch(self.text(sql), *parameters)
        except pg.PostgresError as error:
            self.writes += 1
            if isinstance(error, _DOES_NOT_FIT):
                raise _refused(error) from error
            raise
        return rows


_READS: Final = ("SELECT", "\n    WITH")
_DOES_NOT_FIT: Final = (pg.DataError, pg.CharacterNotInRepertoireError)


def _refused(error: Exception) -> InvalidField:
    """For a value that is the fault of one unit: the others are to go on."""
    return InvalidField(f"a value that the catalog cannot hold: {error}")

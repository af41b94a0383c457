"""A change of the locks of one tree in one statement, where a transaction takes four.

Theory of operation. What this server has last seen of the locks is changed in memory, and
written if the row still has the version that was seen. The statement locks the tree's row
first, as every change of the tree does, and compares after that: so it waits for a write that
is under way and has found no lock in its way, and one that begins later finds what it wrote.

The time of the database is needed before it is asked. It is reckoned from what the database
said last, and this machine's clock since then, which gives a little less than the truth; the
statement compares, and writes nothing if it was wrong by more than `SLACK`.

A swap that finds another version, another time, or that needs to read something else, has done
nothing: the same jobs are run in a transaction. Where another server changes the same locks all
the time, a swap would miss as a rule, so after a miss there is none until nobody has come
between two transactions.
"""

from time import monotonic
from typing import Any, Final, TypeVar

from attrs import define

from vaultfs.adapters.sql.lockview import LockView, save
from vaultfs.adapters.sql.statements import Program, Run
from vaultfs.domain.nodes import TreeId

T = TypeVar("T")

SLACK: Final = 0.1
"""Seconds by which the time may have been reckoned wrong."""
CHANNEL: Final = "vaultfs_locks"
"""What servers are called on when somebody else's waiting may be over."""
CALL: Final = f"pg_notify('{CHANNEL}', '')"
NOW: Final = "extract(epoch FROM clock_timestamp())::float8"
SWAP: Final = f"""
    WITH mine AS MATERIALIZED (SELECT id FROM trees WHERE id = $1 FOR UPDATE),
    told AS MATERIALIZED (SELECT id, {NOW} AS now FROM mine),
    swapped AS (
        UPDATE lock_state l SET version = l.version + 1, state = $3 FROM told
        WHERE l.tree = told.id AND l.version = $2 AND told.now BETWEEN $4 AND $4 + {SLACK}
        RETURNING told.now
    )
    SELECT now, CASE WHEN $5 THEN {CALL}::text END FROM swapped
"""
"""Tree, version, state, time, and whether others are to be called; no row if it was a miss.

The server locks tables in the order in which they stand here, but for that of an `UPDATE`, which
would be first: so it is inside. Who puts other tables in their place begins with `trees`.
"""


class TransactionNeededError(Exception):
    """A program has to read or write something else."""


@define(eq=False)
class DatabaseClock:
    """What time it is in the database, without asking."""

    _said: float = 0.0
    _at: float = float("-inf")

    def hear(self, said: float) -> None:
        """The database has just said so."""
        self._said, self._at = said, monotonic()

    def now(self) -> float:
        """A little less than the truth; far less if nothing was heard yet."""
        return self._said + (monotonic() - self._at) if self._said else 0.0


def at_once(program: Program[T]) -> T:
    """What a program returns that asks for nothing. Raises `TransactionNeededError` if it does."""
    try:
        next(program)
    except StopIteration as stop:
        result: T = stop.value
        return result
    program.close()
    raise TransactionNeededError


def swap_of(view: LockView, tree: TreeId) -> tuple[Any, ...]:
    """The parameters of `SWAP` for what was changed. Raises `TransactionNeededError` for nothing.

    An answer that changes nothing rests on what was seen, so that has to be read again.
    """
    for written in save(view):
        assert isinstance(written, Run)
        number, version, state = written.parameters
        return number, version - 1, state, view.now, bool(view.seen[tree][1].news)
    raise TransactionNeededError

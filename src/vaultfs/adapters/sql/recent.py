"""Rows that were read a moment ago, and are still what the database has."""

import sqlite3
from typing import Any, Final

from attrs import define, field

from vaultfs.adapters.sql.connections import execute
from vaultfs.adapters.sql.statements import Row

MOST: Final = 4096
"""Rows that are kept, with one more for each query: some 4 MB of nodes."""


@define(eq=False)
class Recent:
    """The rows of queries, kept until anybody commits anything.

    SQLite tells a connection whether another one has committed since it last asked
    (`PRAGMA data_version`), in this process or in any other: nothing here has to know who
    changes what. The connection asked must be one that only reads, and always the same.
    """

    _as_of: int = -1
    _rows: dict[tuple[str, tuple[Any, ...]], list[Row]] = field(
        factory=dict[tuple[str, tuple[Any, ...]], list[Row]]
    )
    _count: int = 0

    def kept(self, sql: str, parameters: tuple[Any, ...]) -> list[Row] | None:
        """The rows of a query as they were when `fetch` was last called, if they are here."""
        return self._rows.get((sql, parameters))

    def fetch(
        self, sql: str, parameters: tuple[Any, ...], connection: sqlite3.Connection
    ) -> list[Row]:
        """The rows of a query, as they are now; for reading only, others are given them too."""
        # Asked before the rows are: a commit in between is noticed by the next to come.
        [as_of] = connection.execute("PRAGMA data_version").fetchone()
        if as_of != self._as_of or self._count > MOST:
            self._rows.clear()
            self._as_of, self._count = as_of, 0
        key = (sql, parameters)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = execute(connection, sql, parameters).fetchall()
            self._count += len(rows) + 1
        return rows

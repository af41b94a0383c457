"""Dumps: a catalog as lines of JSON, the same whatever database it came from.

    {"vaultfs-dump": 1, "schema": 1, "vault_id": "..."}
    {"table": "nodes", "rows": [[...], ...]}            many of these
    {"end": true, "lines": 12345, "digest": "..."}      BLAKE3 of all lines before

Bytes are written as hexadecimal digits. Where packs go is in it too, so that a migration goes
on from there; a vault that never moved has no such row. Ids handed out between the dump and a
load must not be handed out again, so a load moves every counter far ahead.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from blake3 import blake3

from vaultfs.adapters.sql.connections import begin
from vaultfs.adapters.sql.schema import BLOBS, DUMPED, SCHEMA
from vaultfs.domain.errors import Conflict, Corrupt, Unsupported

FORMAT: Final = 1
ROWS: Final = 2000
"""Rows that a line of a dump has at the most."""
LEAP: Final = 1 << 32
"""More ids than a catalog hands out between a backup and its loss."""
STEPS: Final = 1000
"""More steps than migrations take between a backup and the loss of the catalog."""
RAISED: Final = (
    (
        f"UPDATE epochs SET value = value + {STEPS} WHERE name = 'placement'"
        " AND EXISTS (SELECT 1 FROM placement)"
    ),
    "UPDATE placement SET epoch = (SELECT value FROM epochs WHERE name = 'placement')",
)
"""Has servers that went by a later placement than that of the dump go by that of the dump."""
UNRECONCILED: Final = "unreconciled"
"""The row of `meta` that a catalog from a dump has until it was compared with its store."""
INDEXED: Final = f"UPDATE meta SET value = 'indexed' WHERE key = '{UNRECONCILED}'"
"""Notes there that a new index was made, without which no pack is known."""
UPSERTED: Final = frozenset({"counters", "epochs"})
"""Tables whose rows are there from the start; an older dump may lack some."""
DAMAGE: Final = (
    *(ValueError, LookupError, TypeError),
    *(AttributeError, OverflowError, RecursionError),
)
"""What lines that no catalog wrote lead to: the digest that tells comes after them."""
_SQLITE_DAMAGE: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
)


class Writing:
    """The lines of a dump, and what its last line says of them."""

    def __init__(self) -> None:
        self._hasher = blake3()
        self._lines = 0

    def head(self, vault_id: str) -> bytes:
        """The first line."""
        return self._add({"vaultfs-dump": FORMAT, "schema": SCHEMA, "vault_id": vault_id})

    def rows(self, table: str, rows: Iterable[Iterable[Any]]) -> bytes:
        """A line of rows, with the columns that `DUMPED` names."""
        blobs = _blobs(table)
        return self._add({"table": table, "rows": [_written(row, blobs) for row in rows]})

    def end(self) -> bytes:
        """The last line."""
        return _line({"end": True, "lines": self._lines, "digest": self._hasher.hexdigest()})

    def _add(self, value: object) -> bytes:
        line = _line(value)
        self._hasher.update(line)
        self._lines += 1
        return line


def _blobs(table: str) -> list[int]:
    return [index for index, name in enumerate(DUMPED[table]) if (table, name) in BLOBS]


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _written(row: Iterable[Any], blobs: list[int]) -> list[Any]:
    values = list(row)
    for index in blobs:
        if values[index] is not None:
            values[index] = values[index].hex()
    return values


class Rows(NamedTuple):
    """Some rows of a table that a dump holds."""

    table: str
    rows: list[list[Any]]


class Reading:
    """What the lines of a dump say, before it is known whether they are whole."""

    def __init__(self) -> None:
        self._hasher = blake3()
        self._rest = b""
        self._lines = 0
        self._ended = False

    def feed(self, piece: bytes) -> Iterator[str | Rows]:
        """The id of the vault, and then rows, from the next bytes of the dump.

        Raises `Corrupt`, `Unsupported` and what is in `DAMAGE`.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            found = self._read(line)
            if found is not None:
                yield found

    def finish(self) -> None:
        """Raise `Corrupt` unless the end has come."""
        if not self._ended or self._rest:
            raise Corrupt("the dump of the catalog is cut short")

    def _read(self, line: bytes) -> str | Rows | None:
        value = json.loads(line)
        if self._ended:
            raise Corrupt("the dump of the catalog goes on behind its end")
        if "end" in value:
            self._ended = True
            if (value["lines"], value["digest"]) != (self._lines, self._hasher.hexdigest()):
                raise Corrupt("the dump of the catalog is damaged: its digest is another")
            return None
        self._hasher.update(line + b"\n")
        self._lines += 1
        return _head(value) if self._lines == 1 else _rows(value["table"], value["rows"])


def _head(value: dict[str, Any]) -> str:
    if value.get("vaultfs-dump") != FORMAT or value.get("schema", SCHEMA + 1) > SCHEMA:
        raise Unsupported("a newer release of vaultfs made this dump: upgrade vaultfs")
    vault_id: str = value["vault_id"]
    return vault_id


def _rows(table: str, rows: list[list[Any]]) -> Rows:
    for index in _blobs(table):
        for row in rows:
            row[index] = None if row[index] is None else bytes.fromhex(row[index])
    return Rows(table, rows)


def damaged(error: Exception) -> Corrupt:
    """What is raised for a line that no catalog wrote."""
    return Corrupt(f"the dump of the catalog is damaged: {error!r}")


# SQLite


def dump(connection: sqlite3.Connection) -> Iterator[bytes]:
    """The lines of a dump; leaves a read transaction open for the caller to end."""
    connection.execute("BEGIN")
    number = connection.execute("SELECT value FROM meta WHERE key = 'vault_id'").fetchone()[0]
    writing = Writing()
    yield writing.head(number)
    for table, columns in DUMPED.items():
        cursor = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
        while rows := cursor.fetchmany(ROWS):
            yield writing.rows(table, rows)
    yield writing.end()


class Loader:
    """Reads a dump into an empty catalog, in one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._reading = Reading()

    def begin(self) -> None:
        """Begin the transaction. Raises `Conflict` unless the catalog is empty."""
        begin(self._connection)
        for table in ("users", "packs"):
            if self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall():
                raise Conflict(f"the catalog is not empty: there are {table} in it")

    def feed(self, piece: bytes) -> None:
        """Take in the next bytes of the dump. Raises `Corrupt` or `Unsupported`."""
        try:
            for found in self._reading.feed(piece):
                self._insert(found)
        except (*DAMAGE, *_SQLITE_DAMAGE) as error:
            raise damaged(error) from error

    def finish(self) -> str:
        """Commit; the id of the vault that was dumped. Raises `Corrupt` if it has no end."""
        self._reading.finish()
        self._connection.execute("UPDATE counters SET next = next + ?", (LEAP,))
        for raised in RAISED:
            self._connection.execute(raised)
        self._connection.execute("INSERT INTO meta(key, value) VALUES (?, '')", (UNRECONCILED,))
        self._connection.execute("COMMIT")
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'vault_id'").fetchone()
        return str(row[0])

    def _insert(self, found: str | Rows) -> None:
        if isinstance(found, str):
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'vault_id'", (found,))
            return
        columns = DUMPED[found.table]
        insert = "INSERT OR REPLACE" if found.table in UPSERTED else "INSERT"
        marks = ", ".join("?" * len(columns))
        self._connection.executemany(
            f"{insert} INTO {found.table}({', '.join(columns)}) VALUES ({marks})", found.rows
        )

"""Dumps: a catalog as lines of JSON, the same whatever database it came from.

    {"vaultfs-dump": 1, "schema": 1, "vault_id": "..."}
    {"table": "nodes", "rows": [[...], ...]}            many of these
    {"end": true, "lines": 12345, "digest": "..."}      BLAKE3 of all lines before

Bytes are written as hexadecimal digits. Ids handed out between the dump and a load
must not be handed out again, so a load moves every counter far ahead.
"""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any, Final

from blake3 import blake3

from vaultfs.adapters.sql.schema import BLOBS, DUMPED, SCHEMA
from vaultfs.domain.errors import Conflict, Corrupt, Unsupported

FORMAT: Final = 1
_ROWS: Final = 2000
_LEAP: Final = 1 << 32
"""More ids than a catalog hands out between a backup and its loss."""
_DAMAGE: Final = (
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError),
    *(sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError),
)
"""What lines that no catalog wrote lead to: the digest that tells comes after them."""


def dump(connection: sqlite3.Connection) -> Iterator[bytes]:
    """The lines of a dump; leaves a read transaction open for the caller to end."""
    connection.execute("BEGIN")
    number = connection.execute("SELECT value FROM meta WHERE key = 'vault_id'").fetchone()[0]
    hasher, count = blake3(), 0
    for line in _lines(connection, number):
        hasher.update(line)
        count += line.count(b"\n")
        yield line
    yield _line({"end": True, "lines": count, "digest": hasher.hexdigest()})


def _lines(connection: sqlite3.Connection, vault_id: str) -> Iterator[bytes]:
    yield _line({"vaultfs-dump": FORMAT, "schema": SCHEMA, "vault_id": vault_id})
    for table, columns in DUMPED.items():
        blobs = [index for index, name in enumerate(columns) if (table, name) in BLOBS]
        cursor = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
        while rows := cursor.fetchmany(_ROWS):
            yield _line({"table": table, "rows": [_written(row, blobs) for row in rows]})


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _written(row: tuple[Any, ...], blobs: list[int]) -> list[Any]:
    values = list(row)
    for index in blobs:
        if values[index] is not None:
            values[index] = values[index].hex()
    return values


class Loader:
    """Reads a dump into an empty catalog, in one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._hasher = blake3()
        self._rest = b""
        self._lines = 0
        self._ended = False

    def begin(self) -> None:
        """Begin the transaction. Raises `Conflict` unless the catalog is empty."""
        self._connection.execute("BEGIN IMMEDIATE")
        for table in ("users", "packs"):
            if self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall():
                raise Conflict(f"the catalog is not empty: there are {table} in it")

    def feed(self, piece: bytes) -> None:
        """Take in the next bytes of the dump. Raises `Corrupt` or `Unsupported`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        try:
            for line in lines:
                self._line(line)
        except _DAMAGE as error:
            raise Corrupt(f"the dump of the catalog is damaged: {error!r}") from error

    def finish(self) -> str:
        """Commit; the id of the vault that was dumped. Raises `Corrupt` if it has no end."""
        if not self._ended or self._rest:
            raise Corrupt("the dump of the catalog is cut short")
        self._connection.execute("UPDATE counters SET next = next + ?", (_LEAP,))
        self._connection.execute("COMMIT")
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'vault_id'").fetchone()
        return str(row[0])

    def _line(self, line: bytes) -> None:
        value = json.loads(line)
        if self._ended:
            raise Corrupt("the dump of the catalog goes on behind its end")
        if "end" in value:
            self._ended = True
            if (value["lines"], value["digest"]) != (self._lines, self._hasher.hexdigest()):
                raise Corrupt("the dump of the catalog is damaged: its digest is another")
            return
        self._hasher.update(line + b"\n")
        self._lines += 1
        if self._lines == 1:
            self._head(value)
        else:
            self._insert(value["table"], value["rows"])

    def _head(self, value: dict[str, Any]) -> None:
        if value.get("vaultfs-dump") != FORMAT or value.get("schema", SCHEMA + 1) > SCHEMA:
            raise Unsupported("a newer release of vaultfs made this dump: upgrade vaultfs")
        self._connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'vault_id'", (value["vault_id"],)
        )

    def _insert(self, table: str, rows: list[list[Any]]) -> None:
        columns = DUMPED[table]
        for index, name in enumerate(columns):
            if (table, name) in BLOBS:
                for row in rows:
                    row[index] = None if row[index] is None else bytes.fromhex(row[index])
        marks = ", ".join("?" * len(columns))
        self._connection.executemany(
            # Counters and epochs are there from the start; an older dump may lack some.
            f"INSERT OR REPLACE INTO {table}({', '.join(columns)}) VALUES ({marks})"
            if table in {"counters", "epochs"}
            else f"INSERT INTO {table}({', '.join(columns)}) VALUES ({marks})",
            rows,
        )

"""What a folder is in step with: `.vaultfs/state.db` beside the files.

A row for each file says of which vault and path it is, which version it was when it was
last in step, and what it looked like then: so that a change here can be told from one
there. Nothing is lost with the file but that knowledge: pulls then travel whole, and
pushes ask for the path again.
"""

import os
import sqlite3
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple

from vaultfs.domain.errors import Unsupported, VaultError

FOLDER: Final = ".vaultfs"
FORMAT: Final = 1
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS files(
    name TEXT PRIMARY KEY,
    vault TEXT NOT NULL,
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    node INTEGER NOT NULL,
    content BLOB NOT NULL
) WITHOUT ROWID
"""
_NOTES: Final = "CREATE TABLE IF NOT EXISTS notes(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
_REMOTE: Final = """
CREATE TABLE IF NOT EXISTS remote(
    name TEXT PRIMARY KEY,
    node INTEGER NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID
"""
_SET: Final = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS: Final = "vault, path, version, number, size, mtime, node, content"


class StateUnusable(VaultError):
    """The state beside the files cannot be read or written."""


class InStep(NamedTuple):
    """A file when it was in step; `mtime` in nanoseconds."""

    vault: str
    path: str
    version: int
    number: int
    size: int
    mtime: int
    node: int = 0
    """Its id in the vault, if it was asked for."""
    content: bytes = b""
    """Its digest, if somebody has read it."""

    def is_as_it_was(self, status: os.stat_result) -> bool:
        """Whether nobody has written to the file since, as far as a look at it tells."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime)


class SyncState:
    """The state of one folder; blocking, and quick."""

    def __init__(self, folder: FilePath) -> None:
        self._file = folder / FOLDER / "state.db"
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def get(self, name: str) -> InStep | None:
        """What is known of the file `name` of the folder."""
        if not self._file.exists():
            return None
        rows = self._run(f"SELECT {_COLUMNS} FROM files WHERE name = ?", (name,))
        return InStep._make(rows[0]) if rows else None

    def all(self, vault: str, above: str) -> dict[str, InStep]:
        """What is known of all files that have their names in the folder `above` of a vault, which
        is "" for the top.
        """
        if not self._file.exists():
            return {}
        which = "vault = ? AND path = ? || name"
        rows = self._run(f"SELECT name, {_COLUMNS} FROM files WHERE {which}", (vault, f"{above}/"))
        return {row[0]: InStep._make(row[1:]) for row in rows}

    def forget(self, name: str) -> None:
        """Know nothing of the file any more."""
        self._run("DELETE FROM files WHERE name = ?", (name,))

    def note(self, key: str) -> str | None:
        """What was noted under `key`."""
        if not self._file.exists():
            return None
        rows = self._run("SELECT value FROM notes WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def take_note(self, key: str, value: str) -> None:
        """Note something of the folder as a whole."""
        self._run("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, value))

    def remote(self) -> dict[str, tuple[int, int]] | None:
        """Node and version of every file of the folder in the vault, as it was at the cursor.

        None if nobody has listed it yet.
        """
        if self.note("listed") is None:
            return None
        rows = self._run("SELECT name, node, version FROM remote", ())
        return {name: (node, version) for name, node, version in rows}

    def take_remote(
        self,
        cursor: str,
        now: Mapping[str, tuple[int, int]],
        before: Mapping[str, tuple[int, int]] | None,
    ) -> None:
        """Note what `remote` and the note `cursor` are to be, all of it or nothing.

        `before` is what `remote` gave.
        """
        old = before or {}
        gone = [(name,) for name in old.keys() - now.keys()]
        new = [(name, *row) for name, row in now.items() if old.get(name) != row]
        notes = [("cursor", cursor), ("listed", "")]
        with self._changing() as connection:
            if before is None:
                connection.execute("DELETE FROM remote")
            connection.executemany("DELETE FROM remote WHERE name = ?", gone)
            connection.executemany("INSERT OR REPLACE INTO remote VALUES (?, ?, ?)", new)
            connection.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?)", notes)

    def set(self, name: str, now: InStep) -> None:
        """Remember that the file is in step."""
        self._run(_SET, (name, *now))

    def set_all(self, files: Mapping[str, InStep]) -> None:
        """Remember that these files are in step."""
        with self._changing() as connection:
            connection.executemany(_SET, [(name, *now) for name, now in files.items()])

    def _run(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._changing() as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextmanager
    def _changing(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            with self._lock, self._opened() as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise StateUnusable(f"{self._file}: {error}: remove it to begin anew") from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._file.parent.mkdir(exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=10, check_same_thread=False)
            [(found,)] = connection.execute("PRAGMA user_version").fetchall()
            if found > FORMAT:
                connection.close()
                raise Unsupported(f"{self._file} is of a newer release: upgrade vaultfs")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # the worst is to ask again
            connection.execute(_TABLE)
            connection.execute(_NOTES)
            connection.execute(_REMOTE)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

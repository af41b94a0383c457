"""Connections to SQLite: opening a database, migrating it, and what its errors mean."""

import os
import re
import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from attrs import frozen

from vaultfs.adapters.sql.schema import MIGRATIONS, SCHEMA
from vaultfs.adapters.sql.statements import Program, Run
from vaultfs.domain.errors import Busy, CatalogUnavailable, InvalidField, NotAVault, Unsupported

T = TypeVar("T")

BUSY_AFTER: Final = 30.0
"""Seconds to wait for another process that writes."""
LOOK_EVERY: Final = 0.0005
"""Seconds between two looks whether it still does."""
OLDEST: Final = (3, 38, 0)
"""The first SQLite that has all that our statements use."""


_PARAMETER = re.compile(r"\$(\d+)")


@cache
def native(sql: str) -> str:
    """`sql` with its parameters as `?`: numbered ones are named ones to some Pythons."""
    return _PARAMETER.sub("?", sql)


@cache
def _prepared(sql: str) -> tuple[str, tuple[int, ...] | None]:
    """`native(sql)`, and which parameter each `?` stands for; None if they come in order."""
    order = tuple(int(number) - 1 for number in _PARAMETER.findall(sql))
    return native(sql), None if order == tuple(range(len(order))) else order


def execute(
    connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()
) -> sqlite3.Cursor:
    """Execute a statement whose parameters are written `$1`, `$2` ..."""
    text, order = _prepared(sql)
    try:
        if order is None:
            return connection.execute(text, parameters)
        return connection.execute(text, [parameters[index] for index in order])
    except OverflowError as error:
        raise _too_large() from error


class translated:  # noqa: N801 used as a verb; a class costs a quarter of a generator
    """Raise what SQLite raises as the port promises."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.DatabaseError):
            return
        if isinstance(error, sqlite3.OperationalError):
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise Busy("another process is writing: try again later") from error
            raise CatalogUnavailable(f"{self._name}: {error}{self._why(error)}") from error
        if not isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise CatalogUnavailable(
                f"{self._name}: {error}: see `vaultfs rebuild --from-backup latest`"
            ) from error

    def _why(self, error: sqlite3.OperationalError) -> str:
        """What SQLite does not say."""
        code = error.sqlite_errorcode & 0xFF
        if code in _REFUSALS and not _is_writable(self._name):
            return (
                f": the vault's folder {os.path.dirname(os.path.abspath(self._name))} cannot be"
                " written: a vault needs that, also for reading; copy it elsewhere"
            )
        return ": the disk is full: free some space" if _is_full(self._name) else ""


_REFUSALS: Final = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def _is_writable(name: str) -> bool:
    """Whether this process may write the catalog, and make files beside it."""
    folder = os.path.dirname(os.path.abspath(name))
    return os.access(folder, os.W_OK | os.X_OK) and os.access(name, os.W_OK)


def _is_full(name: str) -> bool:
    """Whether the disk that the catalog is on has no room, which SQLite calls many things."""
    try:
        found = os.statvfs(os.path.dirname(os.path.abspath(name)))
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 1 << 20


ROWS_AT_ONCE: Final = 64
"""Rows that one INSERT takes: each statement is a hand-over of the interpreter's lock."""
_VALUES = re.compile(r"VALUES \(([^)]*)\)")


@cache
def _widened(sql: str) -> str:
    """An INSERT of one row as an INSERT of `ROWS_AT_ONCE`."""
    row = re.sub(r"\$\d+", "?", _VALUES.findall(sql)[0])
    return _VALUES.sub("VALUES " + ",".join([f"({row})"] * ROWS_AT_ONCE), sql)


def _execute_many(connection: sqlite3.Connection, sql: str, rows: Sequence[Sequence[Any]]) -> int:
    """Execute `sql` for each of `rows`; how many rows that changed."""
    whole = changed = 0
    try:
        if sql.startswith("INSERT"):
            whole = len(rows) - len(rows) % ROWS_AT_ONCE
            for start in range(0, whole, ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                wide = connection.execute(_widened(sql), [*chain.from_iterable(part)])
                changed += wide.rowcount
        text, order = _prepared(sql)
        assert order is None, sql
        return changed + max(connection.executemany(text, rows[whole:]).rowcount, 0)
    except OverflowError as error:
        raise _too_large() from error


def _too_large() -> InvalidField:
    """For one unit alone: the others of its transaction are to go on."""
    return InvalidField("a number is too large for the catalog")


def drive(connection: sqlite3.Connection, program: Program[T]) -> T:
    """Run a program to its end."""
    try:
        step = next(program)
        while True:
            if isinstance(step, Run):
                step = program.send(execute(connection, step.sql, step.parameters).fetchall())
            else:
                step = program.send([(_execute_many(connection, step.sql, step.rows),)])
    except StopIteration as stop:
        result: T = stop.value
        return result


def begin(connection: sqlite3.Connection) -> None:
    """Begin a transaction that writes, once no other process does.

    SQLite by itself looks ever more rarely, ten times a second in the end, and a process
    that writes without a pause keeps the others out meanwhile.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        _insist(connection, "BEGIN IMMEDIATE")
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_AFTER * 1000:.0f}")


def _insist(connection: sqlite3.Connection, sql: str) -> None:
    """Execute `sql` once no other process is in its way."""
    until = time.monotonic() + BUSY_AFTER
    while True:
        try:
            connection.execute(sql)
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > until:
                raise
            time.sleep(LOOK_EVERY)
        else:
            return


def connect(path: FilePath | None) -> sqlite3.Connection:
    """A connection with what every one of ours has.

    Raises `sqlite3.DatabaseError` for a file that is no database.
    """
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=BUSY_AFTER,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16384")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


@frozen
class Place:
    """Which file a catalog had when it was opened: another may be put in its place."""

    path: FilePath | None = None
    file: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, path: FilePath | None) -> "Place":
        """The file that is at `path` now."""
        return cls(path) if path is None else cls(path, _file_at(path))

    def check(self) -> None:
        """Raise `CatalogUnavailable` if it is another file by now.

        A writer asks once it has the lock, which whoever replaces a catalog has to take.
        """
        if self.path is not None and _file_at(self.path) != self.file:
            raise CatalogUnavailable(
                f"{self.path} was replaced by `vaultfs rebuild --from-backup`: open the vault again"
            )


def _file_at(path: FilePath) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def open_writer(path: FilePath | None, *, create: bool) -> tuple[sqlite3.Connection, str]:
    """The writing connection of a catalog that has this release's schema, and the vault's id.

    Raises `NotAVault` if there is no file and none is to be made.
    """
    if path is not None and not create and not path.is_file():
        raise NotAVault(f"there is no catalog {path}")
    if path is not None and not create and not path.stat().st_size:
        raise NotAVault(f"{path} is empty: `vaultfs rebuild --from-backup latest` brings it back")
    if sqlite3.sqlite_version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise Unsupported(f"this Python has SQLite {sqlite3.sqlite_version}: {wanted} is needed")
    connection = connect(path)
    try:
        with one_moment(connection):  # somebody else may be making it
            _known_schema(connection, path)  # before anything of somebody else's is changed
        _insist(connection, "PRAGMA journal_mode = WAL")  # SQLite itself waits for nobody here
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found != SCHEMA:
            _migrate(connection, path)
        row = connection.execute("SELECT value FROM meta WHERE key = 'vault_id'").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, row[0]


def _known_schema(connection: sqlite3.Connection, path: FilePath | None) -> int:
    """The schema that the database has. Raises `Unsupported` or `NotAVault`."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA:
        raise Unsupported(
            f"{path}: a newer release of vaultfs made this catalog (schema {found}; this"
            f" release knows {SCHEMA}): upgrade vaultfs"
        )
    if not found and connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        raise NotAVault(f"{path} is a database of something else")
    return found


def _migrate(connection: sqlite3.Connection, path: FilePath | None) -> None:
    """Lead the database to this release's schema, in one transaction."""
    begin(connection)
    try:
        found = _known_schema(connection, path)
        for statements in MIGRATIONS[found:]:
            for statement in statements:
                connection.execute(statement)
        if not found:
            from uuid import uuid4  # noqa: PLC0415 its import takes 8 ms, and this is rare

            connection.execute("INSERT INTO meta VALUES ('vault_id', ?)", (uuid4().hex,))
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def copy_of(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A catalog in memory with what `connection` has now."""
    copy = connect(None)
    connection.backup(copy)
    return copy


@contextmanager
def one_moment(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """All reads inside see the database as it is at the first of them."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")

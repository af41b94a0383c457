"""Connections to PostgreSQL: opening a database, migrating it, and what its errors mean."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import anyio
import asyncpg
from asyncpg import exceptions as pg
from attrs import define, field, frozen

from vaultfs.adapters.sql.postgres_dialect import native_table
from vaultfs.adapters.sql.schema import MIGRATIONS, SCHEMA
from vaultfs.adapters.sql.transaction import RESERVE
from vaultfs.domain.errors import (
    Busy,
    CatalogUnavailable,
    InvalidField,
    NotAVault,
    Unsupported,
    VaultError,
)

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

T = TypeVar("T")

READERS: Final = 8
"""Connections of a process that read; one more writes."""
CONNECT_WITHIN: Final = 10.0
"""Seconds."""
BUSY_AFTER: Final = 30.0
"""Seconds to wait for another process that writes."""
OLDEST: Final = 14
"""The first PostgreSQL that has all that our statements use."""
_MIGRATING: Final = 0x76617566
"""The number of the advisory lock that whoever migrates has."""


BY_INDEX: Final = {
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
}
"""Every step along a path is a look into an index, which a planner that knows nothing yet of a
young table takes for dearer than to read all of it: ten times as long for 2,000 nodes."""


@frozen
class Database:
    """Where a database is, and as whom to go there."""

    url: str = field(repr=False)
    """With whatever secret is in it."""
    schema: str | None = None
    """The PostgreSQL schema that the tables are in, if not the one of the role."""

    @property
    def name(self) -> str:
        """For messages: without user and password."""
        parts = urlsplit(self.url)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def database(self) -> str:
        """Its name on the server."""
        return unquote(urlsplit(self.url).path.lstrip("/")) or "(the default)"

    @property
    def _settings(self) -> dict[str, str]:
        found = {"application_name": "vaultfs"}
        if self.schema is not None:
            found["search_path"] = quoted(self.schema)
        return found

    async def connect(self, *, by_index: bool = False) -> "Connection":
        """A connection of its own, for the caller to close.

        `by_index` is for what looks at a few rows at a time.
        """
        return await asyncpg.connect(
            self.url,
            timeout=CONNECT_WITHIN,
            statement_cache_size=256,
            server_settings=self._settings | (BY_INDEX if by_index else {}),
        )


@define(eq=False)
class Readers:
    """The connections that read, opened when they are needed and kept for the next reader.

    A pool of asyncpg's takes as long to lend a connection as a server to answer with a row.
    """

    database: Database
    _idle: "list[Connection]" = field(factory=list["Connection"])
    _room: anyio.Semaphore = field(
        factory=lambda: anyio.Semaphore(READERS, max_value=READERS, fast_acquire=True)
    )

    async def run(self, query: "Callable[[Connection], Awaitable[T]]") -> T:
        """What `query` returns; a connection on which it failed is used no more."""
        async with self._room:
            connection = self._take() or await self.database.connect(by_index=True)
            try:
                result = await query(connection)
            except BaseException:
                connection.terminate()
                raise
            self._idle.append(connection)
            return result

    def _take(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def reserve(self, kind: str, count: int) -> int:
        """Take so many ids of a kind, in a transaction of its own; the first behind them."""
        return int(await self.run(lambda connection: connection.fetchval(RESERVE, kind, count)))

    async def aclose(self) -> None:
        """Let go of all of them, once nobody has one."""
        while connection := self._take():
            await connection.close()


def quoted(name: str) -> str:
    """`name` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


# What goes wrong

_LOST: Final = (
    OSError,
    pg.PostgresConnectionError,
    pg.InterfaceError,
    pg.InternalClientError,
    pg.AdminShutdownError,
    pg.CrashShutdownError,
    pg.CannotConnectNowError,
    pg.IdleInTransactionSessionTimeoutError,
)
_SOMEBODY_WAS_FASTER: Final = frozenset(
    {"packs_pkey", "packs_key_key", "users_key_key", "users_pkey", "trees_pkey", "tokens_pkey"}
)
"""What two transactions that share no tree can both be about to insert."""

_REMEDIES: Final[tuple[tuple[type[Exception], type[VaultError], str], ...]] = (
    (pg.LockNotAvailableError, Busy, "another process is writing: try again later"),
    (pg.QueryCanceledError, Busy, "the server cut a statement that took too long"),
    (pg.SerializationError, Busy, "others are writing the same: try again"),
    (pg.DeadlockDetectedError, Busy, "others are writing the same: try again"),
    (
        pg.InvalidAuthorizationSpecificationError,
        CatalogUnavailable,
        "the server refuses the user or the password: see --database",
    ),
    (pg.InvalidCatalogNameError, NotAVault, "there is no such database: make it with `createdb`"),
    (pg.TooManyConnectionsError, CatalogUnavailable, "the server takes no more connections"),
    (pg.DiskFullError, CatalogUnavailable, "the disk of the server is full: free some space"),
    (
        pg.ReadOnlySQLTransactionError,
        CatalogUnavailable,
        "the server is a read-only standby: name the primary with --database",
    ),
    (
        pg.InsufficientPrivilegeError,
        CatalogUnavailable,
        "the role may not do that: it has to own the database",
    ),
    (pg.CannotConnectNowError, CatalogUnavailable, "the server is starting or stopping"),
)
"""The first class that fits decides; what was lost comes after them, a bug is raised as it is."""


_DOES_NOT_FIT: Final = (pg.DataError, pg.CharacterNotInRepertoireError)


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, or never was."""
    return isinstance(error, _LOST)


def can_be_repeated(error: BaseException) -> bool:
    """Whether the transaction, which is rolled back, may do better at another try."""
    if isinstance(error, pg.UniqueViolationError):
        return error.constraint_name in _SOMEBODY_WAS_FASTER
    return isinstance(error, pg.SerializationError | pg.DeadlockDetectedError)


@contextmanager
def translated(name: str) -> Generator[None, None, None]:
    """Raise what asyncpg raises as the port promises."""
    try:
        yield
    except _DOES_NOT_FIT as error:  # the caller is told, who need not know which database it is
        raise InvalidField(f"a value that the catalog cannot hold ({_said(error)})") from error
    except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError) as error:
        for kind, meaning, text in _REMEDIES:
            if isinstance(error, kind):
                where = "" if meaning is Busy else f"{name}: "  # a server tells it to its clients
                raise meaning(f"{where}{text} ({_said(error)})") from error
        if is_lost(error):
            raise CatalogUnavailable(
                f"{name}: the server cannot be reached ({_said(error)}): see that it is running"
            ) from error
        if isinstance(error, pg.IntegrityConstraintViolationError | pg.SyntaxOrAccessError):
            if isinstance(error, pg.UndefinedTableError):
                raise CatalogUnavailable(f"{name}: its tables are gone ({_said(error)})") from error
            raise
        raise CatalogUnavailable(f"{name}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """What the server or the system said, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


# The database


async def prepare(connection: "Connection", database: Database, *, create: bool) -> str:
    """See that the database has this release's schema; the vault's id.

    Raises `NotAVault` if it has none and none is to be made, `Unsupported` if a newer
    release made it, or for a server that is too old or of another encoding. Several may
    do so at once.
    """
    _check_server(connection, database)
    found = await _known_schema(connection, database)
    if found is None and not create:
        raise NotAVault(f"there is no vault in {database.name}: make one with `vaultfs init`")
    if found != SCHEMA:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
            await _migrate(connection, await _known_schema(connection, database) or 0)
    return str(await connection.fetchval("SELECT value FROM meta WHERE key = 'vault_id'"))


def _check_server(connection: "Connection", database: Database) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST:
        raise Unsupported(
            f"{database.name}: PostgreSQL {version.major}: {OLDEST} or newer is needed"
        )
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise Unsupported(
            f"{database.name}: its encoding is {encoding}: make it with `createdb -E UTF8`"
        )


async def _known_schema(connection: "Connection", database: Database) -> int | None:
    """The schema that the database has. Raises `Unsupported` or `NotAVault`."""
    tables = await connection.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    )
    names = {row[0] for row in tables}
    if not {"meta", "counters", "trees"} <= names:
        if names:
            raise NotAVault(f"{database.name} is a database of something else")
        return None
    found = int(await connection.fetchval("SELECT value FROM meta WHERE key = 'schema'") or 0)
    if found > SCHEMA:
        raise Unsupported(
            f"{database.name}: a newer release of vaultfs made this catalog (schema {found}; this"
            f" release knows {SCHEMA}): upgrade vaultfs"
        )
    return found


async def _migrate(connection: "Connection", found: int) -> None:
    """Lead the database from schema `found` to this release's, in the caller's transaction."""
    for statements in MIGRATIONS[found:]:
        for statement in statements:
            await connection.execute(native_table(statement))
    if not found:
        await connection.execute(
            "INSERT INTO meta(key, value) VALUES ('vault_id', $1), ('schema', '0')", uuid4().hex
        )
    await connection.execute("UPDATE meta SET value = $1 WHERE key = 'schema'", str(SCHEMA))

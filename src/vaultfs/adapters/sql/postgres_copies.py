"""Copies of a whole catalog on PostgreSQL: dumps, loads, and a new index beside the old one."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import anyio
from asyncpg import exceptions as pg
from attrs import define, evolve, field

from vaultfs.adapters.sql import dumps
from vaultfs.adapters.sql.postgres_connections import BUSY_AFTER, Database, quoted, translated
from vaultfs.adapters.sql.postgres_dialect import LOCATE, native
from vaultfs.adapters.sql.postgres_driver import Driver, Ids
from vaultfs.adapters.sql.postgres_locks import NO_WRITERS
from vaultfs.adapters.sql.programs import run_unit
from vaultfs.adapters.sql.schema import DUMPED
from vaultfs.adapters.sql.statements import to_location
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Conflict, Doomed
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import RecordPack, Unit
from vaultfs.ports.catalog import Location, Reindexing

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

_NOBODY: Final = UserId(0)
FRESH: Final = "vaultfs_new"
"""The schema in which a catalog is brought back, until it takes the place of the other."""
TABLES: Final = (
    *("meta", *DUMPED),
    *("packs", "pack_locations", "chunks", "pins"),
    *("uploads", "upload_entries", "upload_tails"),
    *("lock_state", "lock_sessions", "answers"),
    *("collections", "doomed", "scrubs"),
    *("paces", "servers", "rewrites"),
)


@asynccontextmanager
async def whole(database: Database) -> AsyncGenerator["Connection", None]:
    """A connection of its own, for one transaction that is taken back unless it is committed.

    It waits for others who write, `BUSY_AFTER` seconds at the most.
    """
    with translated(database.name):
        connection = await database.connect()
        await connection.execute(f"SET lock_timeout = '{BUSY_AFTER}s'")
    try:
        yield connection
    finally:
        with anyio.CancelScope(shield=True), suppress(pg.PostgresError, OSError, TimeoutError):
            await connection.close(timeout=5)  # which takes back what is open


# Dumps


async def dump(connection: "Connection", name: str) -> AsyncGenerator[bytes, None]:
    """The lines of a dump, all of one moment."""
    writing = dumps.Writing()
    with translated(name):
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield writing.head(
                await connection.fetchval("SELECT value FROM meta WHERE key = 'vault_id'")
            )
            for table, columns in DUMPED.items():
                # By key, which is what the first columns are, as SQLite keeps its tables.
                sql = f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2"
                cursor = await connection.cursor(sql)
                while rows := await cursor.fetch(dumps.ROWS):
                    yield writing.rows(table, rows)
            yield writing.end()


@define(eq=False)
class Loader:
    """Reads a dump into an empty catalog, in one transaction."""

    _connection: "Connection"
    _name: str
    _reading: dumps.Reading = field(factory=dumps.Reading)

    async def begin(self) -> None:
        """Begin the transaction. Raises `Conflict` unless the catalog is empty."""
        with translated(self._name):
            await self._connection.execute(f"BEGIN; {NO_WRITERS}")
            for table in ("users", "packs"):
                if await self._connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):
                    raise Conflict(f"the catalog is not empty: there are {table} in it")

    async def feed(self, piece: bytes) -> None:
        """Take in the next bytes of the dump. Raises `Corrupt` or `Unsupported`."""
        with translated(self._name):
            try:
                for found in self._reading.feed(piece):
                    await _insert(self._connection, found)
            except (*dumps.DAMAGE, *_DAMAGE) as error:
                raise dumps.damaged(error) from error

    async def finish(self) -> str:
        """Commit; the id of the vault that was dumped. Raises `Corrupt` if it has no end."""
        self._reading.finish()
        with translated(self._name):
            await self._connection.execute("UPDATE counters SET next = next + $1", dumps.LEAP)
            await self._connection.execute("; ".join(dumps.RAISED))
            await self._connection.execute(
                "INSERT INTO meta(key, value) VALUES ($1, '')", dumps.UNRECONCILED
            )
            number = await self._connection.fetchval(
                "SELECT value FROM meta WHERE key = 'vault_id'"
            )
            await self._connection.execute("ANALYZE; COMMIT")
        return str(number)


_DAMAGE: Final = (
    pg.DataError,
    pg.IntegrityConstraintViolationError,
    pg.CharacterNotInRepertoireError,
)


async def _insert(connection: "Connection", found: str | dumps.Rows) -> None:
    if isinstance(found, str):
        await connection.execute("UPDATE meta SET value = $1 WHERE key = 'vault_id'", found)
        return
    columns = DUMPED[found.table]
    if found.table in dumps.UPSERTED:
        name, value = columns
        await connection.executemany(
            f"INSERT INTO {found.table}({name}, {value}) VALUES ($1, $2)"
            f" ON CONFLICT ({name}) DO UPDATE SET {value} = EXCLUDED.{value}",
            found.rows,
        )
        return
    await connection.copy_records_to_table(found.table, records=found.rows, columns=columns)


# A new index


_CHUNKS = re.compile(r"\bchunks\b")


@cache
def _anew(sql: str) -> str:
    """A statement as PostgreSQL wants it, on the table that is to become `chunks`."""
    return _CHUNKS.sub("chunks_anew", native(sql))


CLAIM: Final = (
    "INSERT INTO chunks(digest, user, pack, start, size, length)"
    " SELECT digest, $1, pack, start, size, length FROM chunks"
    " WHERE digest = ANY($2::bytea[]) AND user = 0 ON CONFLICT DO NOTHING"
)


@define(eq=False)
class PostgresReindexing(Reindexing):
    """The new rows stand in a table of their own; user 0 has every chunk until the end."""

    _connection: "Connection"
    _ids: Ids
    _name: str
    _using: anyio.Lock = field(factory=anyio.Lock)

    @property
    def _driver(self) -> Driver:
        return Driver(self._connection, self._ids, text=_anew)

    async def begin(self) -> None:
        """Begin the transaction, with an empty index, once nobody writes."""
        with translated(self._name):
            await self._connection.execute(
                f"BEGIN; {NO_WRITERS};"
                " CREATE TABLE chunks_anew (LIKE chunks INCLUDING ALL);"
                " DELETE FROM pack_locations"
            )
            await self._renumber()

    async def _renumber(self) -> None:
        """Give packs other numbers, so that nobody relies on one for what is elsewhere now."""
        [(low, high)] = await self._connection.fetch("SELECT MIN(id), MAX(id) FROM packs")
        if low is None:
            return
        by = await self._ids.take("packs", high - low + 1) - low
        # One statement: pins refer to packs, and that is looked at behind it.
        await self._connection.execute(
            f"WITH pinned AS (UPDATE pins SET pack = pack + {by})"
            f" UPDATE packs SET id = id + {by}, rewritten = 0"
        )

    async def add_pack(self, pack: RecordPack) -> None:
        entries = tuple(range(len(pack.entries)))
        own = evolve(pack, claims=((_NOBODY, entries),))
        unit = Unit(_NOBODY, 0, "reindex", (own,))
        async with self._using:
            # One that is being deleted is left out: nothing is to be read from there.
            with translated(self._name), suppress(Doomed):
                await self._driver.drive(run_unit(Transaction(), unit, []))

    async def locate(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        async with self._using:
            with translated(self._name):
                rows = await self._driver.fetch(LOCATE, _NOBODY, list(digests))
        return dict(map(to_location, rows))

    async def claim(self, user: UserId, digests: Sequence[Digest]) -> None:
        async with self._using:
            with translated(self._name):
                await self._driver.fetch(CLAIM, user, list(digests))

    async def end(self) -> None:
        """Put the new index into the place of the old, forget packs that are no more; commit.

        Whoever had a chunk that is still there keeps it, named by a manifest or not: it may
        be one of a put that is under way.
        """
        gone = "(SELECT id FROM packs EXCEPT SELECT pack FROM pack_locations)"
        with translated(self._name):
            await self._connection.execute(
                'INSERT INTO chunks_anew(digest, "user", pack, start, size, length)'
                ' SELECT b.digest, b."user", c.pack, c.start, c.size, c.length FROM chunks b'
                ' JOIN chunks_anew c ON c.digest = b.digest AND c."user" = 0'
                " ON CONFLICT DO NOTHING;"
                ' DELETE FROM chunks_anew WHERE "user" = 0;'
                " DROP TABLE chunks;"
                " ALTER TABLE chunks_anew RENAME TO chunks;"
                " ALTER INDEX chunks_anew_pkey RENAME TO chunks_pkey;"
                f" DELETE FROM pins WHERE pack IN {gone};"
                f" DELETE FROM packs WHERE id IN {gone};"
                f" {dumps.INDEXED};"
                " ANALYZE chunks; COMMIT"
            )


# Another catalog in the place of one


async def drop_fresh(url: str) -> None:
    """Make `FRESH` an empty schema; remove what an interrupted call has left of it."""
    database = Database(url)
    with translated(database.name):
        async with whole(database) as connection:
            await connection.execute(
                f"DROP SCHEMA IF EXISTS {quoted(FRESH)} CASCADE; CREATE SCHEMA {quoted(FRESH)}"
            )


async def replace(url: str, aside: str) -> None:
    """Move the tables in `FRESH` to where the catalog's are; set those aside.

    They get into a schema called `aside`, or like it if that is taken. One transaction,
    which waits for those who write and has others wait: a crash leaves the old catalog.
    """
    database = Database(url)
    with translated(database.name):
        async with whole(database) as connection, connection.transaction():
            place = await connection.fetchval("SELECT current_schema()")
            if await _tables(connection, place):
                # Before any other: writers begin with this table, and look it up anew.
                await connection.execute("LOCK TABLE trees IN ACCESS EXCLUSIVE MODE")
                await _move(connection, place, await _free_schema(connection, aside))
            await _move(connection, FRESH, place)
            await connection.execute(f"DROP SCHEMA {quoted(FRESH)}")


async def _free_schema(connection: "Connection", name: str) -> str:
    """Make a schema called `name`, or with a number behind it if that is taken."""
    taken = {row[0] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    await connection.execute(f"CREATE SCHEMA {quoted(free)}")
    return free


async def _move(connection: "Connection", source: str, target: str) -> None:
    for table in await _tables(connection, source):
        await connection.execute(
            f"ALTER TABLE {quoted(source)}.{table} SET SCHEMA {quoted(target)}"
        )


async def _tables(connection: "Connection", schema: str) -> list[Any]:
    """Which of our tables are in a schema."""
    rows = await connection.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename = ANY($2)",
        *(schema, list(TABLES)),
    )
    return [row[0] for row in rows]

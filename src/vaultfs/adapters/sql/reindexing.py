"""A new chunk index, built in the transaction that puts it in the place of the old."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
from anyio import to_thread
from attrs import define, evolve, field

from vaultfs.adapters.sql import queries
from vaultfs.adapters.sql.connections import begin, drive, translated
from vaultfs.adapters.sql.dumps import INDEXED
from vaultfs.adapters.sql.programs import run_unit
from vaultfs.adapters.sql.schema import CHUNKS
from vaultfs.adapters.sql.statements import to_location
from vaultfs.adapters.sql.stock import claim
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Doomed
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import RecordPack, Unit
from vaultfs.ports.catalog import Location, Reindexing

T = TypeVar("T")

_NOBODY = UserId(0)


@define(eq=False)
class SqliteReindexing(Reindexing):
    """The new rows stand in the transaction; user 0 has every chunk until the end."""

    _connection: sqlite3.Connection
    _name: str
    _using: anyio.Lock = field(factory=anyio.Lock)

    async def begin(self) -> None:
        """Begin the transaction, with an empty index."""
        await self._run(_begin)

    async def end(self) -> None:
        """Commit what was taken in."""
        await self._run(_end)

    async def add_pack(self, pack: RecordPack) -> None:
        entries = tuple(range(len(pack.entries)))
        own = evolve(pack, claims=((_NOBODY, entries),))
        unit = Unit(_NOBODY, 0, "reindex", (own,))
        with suppress(Doomed):  # it is being deleted: nothing is to be read from there
            await self._run(lambda connection: drive(connection, run_unit(Transaction(), unit, [])))

    async def locate(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        rows = await self._run(partial(queries.by_digest, queries.LOCATE, _NOBODY, digests))
        return dict(map(to_location, rows))

    async def claim(self, user: UserId, digests: Sequence[Digest]) -> None:
        def run(connection: sqlite3.Connection) -> None:
            for digest in digests:
                drive(connection, claim(user, digest))

        await self._run(run)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._using:
            with translated(self._name):
                return await to_thread.run_sync(work, self._connection)


def _begin(connection: sqlite3.Connection) -> None:
    begin(connection)
    connection.execute("ALTER TABLE chunks RENAME TO chunks_before")
    connection.execute(CHUNKS)
    connection.execute("DELETE FROM pack_locations")
    _renumber(connection)


def _renumber(connection: sqlite3.Connection) -> None:
    """Give packs other numbers, so that nobody relies on one for what is elsewhere now."""
    low, high = connection.execute("SELECT MIN(id), MAX(id) FROM packs").fetchone()
    if low is None:
        return
    more = "UPDATE counters SET next = next + ? WHERE name = 'packs' RETURNING next"
    [(stop,)] = connection.execute(more, (high - low + 1,)).fetchall()
    by = stop - 1 - high
    connection.execute("UPDATE packs SET id = id + ?, rewritten = 0", (by,))
    connection.execute("UPDATE pins SET pack = pack + ?", (by,))


def _end(connection: sqlite3.Connection) -> None:
    """Drop what was for the time being, and packs that are no more; commit.

    Whoever had a chunk that is still there keeps it, named by a manifest or not: it may be
    one of a put that is under way.
    """
    connection.execute(
        "INSERT INTO chunks(digest, user, pack, start, size, length)"
        " SELECT b.digest, b.user, c.pack, c.start, c.size, c.length FROM chunks_before b"
        " JOIN chunks c ON c.digest = b.digest AND c.user = 0 WHERE true ON CONFLICT DO NOTHING"
    )
    connection.execute("DROP TABLE chunks_before")
    connection.execute("DELETE FROM chunks WHERE user = 0")
    gone = "(SELECT id FROM packs EXCEPT SELECT pack FROM pack_locations)"
    connection.execute(f"DELETE FROM pins WHERE pack IN {gone}")
    connection.execute(f"DELETE FROM packs WHERE id IN {gone}")
    connection.execute(INDEXED)
    connection.execute("COMMIT")

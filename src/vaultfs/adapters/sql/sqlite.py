"""The catalog on SQLite: one writer at a time, readers beside it.

Write-ahead log with `synchronous=FULL`: what `apply` has answered survives a power
cut. Several processes can open one database; SQLite's own lock decides among writers.
"""

import asyncio  # anyio has no word for what is to be done when the loop comes around again
import json
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.sql import dumps, queries
from vaultfs.adapters.sql.checks import CHECKS
from vaultfs.adapters.sql.connections import (
    Place,
    connect,
    copy_of,
    execute,
    one_moment,
    open_writer,
    translated,
)
from vaultfs.adapters.sql.reading import SqlCatalog, to_paths
from vaultfs.adapters.sql.recent import Recent
from vaultfs.adapters.sql.statements import (
    NODE,
    VERSION,
    Row,
    to_known,
    to_location,
    to_node,
    to_nodes,
    to_version,
)
from vaultfs.adapters.sql.writer import Writer
from vaultfs.domain.digests import Digest
from vaultfs.domain.names import key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, UserId, Version
from vaultfs.ports.catalog import (
    Known,
    Location,
    Naming,
    Reindexing,
    Trashed,
)

if TYPE_CHECKING:
    from vaultfs.adapters.sql.grouping import Job
    from vaultfs.domain.operations import Outcome, Unit
    from vaultfs.ports.locks import LockStore

T = TypeVar("T")

READERS: Final = 4
CHILDREN: Final = (
    f"SELECT {NODE} FROM nodes n WHERE n.parent = $1 AND n.key > $2"
    " AND n.trashed IS NULL ORDER BY n.key LIMIT $3"
)
NAMINGS: Final = 4096
"""Rows of what names chunks that are given at a time."""
FEW: Final = 100
"""Rows that are worth no hop to another thread."""
FEW_DIGESTS: Final = 4
"""The same of digests, each of which may be on a page of its own."""


@define(eq=False)
class SqliteCatalog(SqlCatalog):
    """`open` makes one. `path` is None for a catalog in memory, which one process has alone."""

    _path: FilePath | None
    _writer: Writer
    _id: str
    _place: Place = field(factory=Place)
    _idle: list[sqlite3.Connection] = field(factory=list[sqlite3.Connection])
    _near: sqlite3.Connection | None = None
    """For what is asked in the event loop's own thread."""
    _recent: Recent = field(factory=Recent)
    """What `_near` has read."""
    _fresh: bool = False
    """Whether it is known, in this turn of the event loop, that nobody has committed since."""
    _locks: "LockStore | None" = None
    _reading: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(READERS))

    @property
    def _name(self) -> str:
        return str(self._path or "catalog in memory")

    # Life

    @classmethod
    async def open(cls, path: FilePath | None, *, create: bool = False) -> "SqliteCatalog":
        """The catalog in the file `path`, brought to this release's schema.

        Raises `NotAVault` if there is none and it is not to be made, `Unsupported` if a
        newer release made it.
        """
        name = str(path or "catalog in memory")
        with translated(name):
            connection, number = await to_thread.run_sync(partial(open_writer, path, create=create))
        place = Place.of(path)
        return cls(path, Writer(connection, name, place), number, place)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._writer.turn:
                near = () if self._near is None else (self._near,)
                connections = (*self._idle, *near, self._writer.connection)
                self._idle, self._near = [], None
                await to_thread.run_sync(_close, connections)

    async def vault_id(self) -> str:
        return self._id

    def lock_store(self) -> "LockStore":
        if self._locks is None:
            from vaultfs.adapters.sql.sqlitelocks import SqliteLockStore  # noqa: PLC0415 rare

            self._locks = SqliteLockStore(self._writer, self._here, alone=self._path is None)
        return self._locks

    # Writing

    async def apply(self, units: "Sequence[Unit]") -> "list[Outcome]":
        return await self._writer.apply(units)

    async def _do(self, job: "Job") -> None:
        await self._writer.do(job)

    # Reading

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What `query` returns, run in a thread on a connection of its own."""
        if self._path is None:
            return await self._writer.run(query)
        async with self._reading:
            return await to_thread.run_sync(self._with_reader, query)

    def _with_reader(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with translated(self._name):
            self._place.check()
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = connect(self._path)
            try:
                return query(connection)
            finally:
                self._idle.append(connection)

    async def _few(self, sql: str, *parameters: Any) -> list[Row]:
        """The few rows of a query by index, asked for in the event loop's own thread.

        A hop to another costs several times as much as such a query, and readers wait for
        nobody in a write-ahead log (`docs/decisions/0008-point-reads.md`).

        Whether anybody has committed is asked once in a turn of the loop. Who is answered in
        that turn asked before it began: a commit that comes meanwhile comes after them.
        """
        if self._path is None:
            return await self._rows(sql, *parameters)
        rows = self._recent.kept(sql, parameters) if self._fresh else None
        if rows is None:
            rows = await self._here(partial(self._recent.fetch, sql, parameters))
            if not self._fresh:
                self._fresh = True
                asyncio.get_running_loop().call_soon(self._end_turn)
        return rows

    def _end_turn(self) -> None:
        self._fresh = False

    async def _here(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What `query` returns, run at once."""
        if self._path is None:
            return await self._read(query)
        with translated(self._name):
            self._place.check()
            if self._near is None:
                self._near = connect(self._path)
            return query(self._near)

    async def _rows(self, sql: str, *parameters: Any) -> list[Row]:
        return await self._read(partial(_fetch, sql, parameters))

    async def children(self, folder: NodeId, *, after: str = "", limit: int = 1000) -> list[Node]:
        nodes: list[Node] = []
        if limit <= FEW or not after:  # else the folder has shown to be a large one
            nodes += map(to_node, await self._few(CHILDREN, folder, after, min(limit, FEW)))
            if not len(nodes) == FEW < limit:
                return nodes
            after = key_of(nodes[-1].name)
        nodes += await self._read(partial(_children, (folder, after, limit - len(nodes))))
        return nodes

    async def current_versions(self, nodes: Sequence[NodeId]) -> dict[NodeId, Version]:
        rows = await self._rows(
            f"SELECT {VERSION} FROM json_each($1) e JOIN nodes n ON n.id = e.value"
            " JOIN versions v ON v.id = n.version",
            json.dumps(nodes),
        )
        return {version.node: version for version in map(to_version, rows)}

    async def trash(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Trashed]:
        def run(connection: sqlite3.Connection) -> list[Trashed]:
            with one_moment(connection):
                nodes = to_nodes(execute(connection, queries.TRASH, (tree, after, limit)))
                numbers = json.dumps([node.id for node in nodes])
                paths = to_paths(execute(connection, queries.PATHS, (numbers,)))
                return [Trashed(node, paths[node.id][1]) for node in nodes]

        return await self._read(run)

    async def known(self, user: UserId, digests: Sequence[Digest]) -> Known:
        ask = self._here if len(digests) <= FEW_DIGESTS else self._read
        rows = await ask(partial(queries.by_digest, queries.KNOWN, user, digests))
        return to_known(rows)

    async def locate(self, user: UserId, digests: Sequence[Digest]) -> dict[Digest, Location]:
        rows = await self._read(partial(queries.by_digest, queries.LOCATE, user, digests))
        return dict(map(to_location, rows))

    async def chunks_of(self, packs: Sequence[Digest]) -> list[tuple[Digest, Location]]:
        def scan(connection: sqlite3.Connection) -> list[tuple[Digest, Location]]:
            names = json.dumps([key.hex() for key in packs])
            rows = connection.execute(queries.CHUNKS_OF, (names,)).fetchall()
            return list(map(to_location, rows))

        return await self._read(scan)

    async def check(self) -> list[str]:
        def run(connection: sqlite3.Connection) -> list[str]:
            with one_moment(connection):
                found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
                wrong = [f"the database is damaged: {text}" for text in found if text != "ok"]
                for text, sql in CHECKS:
                    wrong += [text.format(*row) for row in connection.execute(sql).fetchmany(20)]
                return wrong

        return await self._read(run)

    # Rebuilding and copying

    @asynccontextmanager
    async def _aside(self) -> AsyncGenerator[sqlite3.Connection, None]:
        """A connection whose transaction nobody else sees before it ends; writers wait.

        A catalog in memory has one connection for all, so there it is one to a copy,
        which takes the place of the original at a clean end.
        """
        async with self._writer.turn:
            if self._path is not None:
                try:
                    yield self._writer.connection
                finally:
                    await self._roll_back()
                return
            copy = await self._writer.run(copy_of)
            try:
                yield copy
                await self._writer.run(copy.backup)
            finally:
                copy.close()

    async def _roll_back(self) -> None:
        """End the transaction, if any is open."""
        with anyio.CancelScope(shield=True), suppress(sqlite3.Error):
            await to_thread.run_sync(self._writer.connection.rollback)

    @asynccontextmanager
    async def reindex(self) -> AsyncGenerator[Reindexing, None]:
        async with self._aside() as connection:
            from vaultfs.adapters.sql.reindexing import SqliteReindexing  # noqa: PLC0415 rare

            reindexing = SqliteReindexing(connection, self._name)
            await reindexing.begin()
            yield reindexing
            await reindexing.end()

    async def dump(self) -> AsyncGenerator[bytes, None]:
        # A connection of its own: its one read transaction sees one moment.
        connection = await self._read(copy_of if self._path is None else self._another)
        try:
            pieces = dumps.dump(connection)
            with translated(self._name):
                while piece := await to_thread.run_sync(next, pieces, b""):
                    yield piece
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(connection.close)

    async def namings(self) -> AsyncGenerator[Sequence[Naming], None]:
        # As with a dump: one moment for all of it.
        connection = await self._read(copy_of if self._path is None else self._another)
        try:
            pieces = _namings(connection)
            with translated(self._name):
                while piece := await to_thread.run_sync(next, pieces, ()):
                    yield piece
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(connection.close)

    def _another(self, _: sqlite3.Connection) -> sqlite3.Connection:
        return connect(self._path)

    async def load(self, pieces: AsyncGenerator[bytes, None]) -> None:
        async with self._aside() as connection:
            loader = dumps.Loader(connection)
            with translated(self._name):
                await to_thread.run_sync(loader.begin)
                async for piece in pieces:
                    await to_thread.run_sync(loader.feed, piece)
                number = await to_thread.run_sync(loader.finish)
        self._id = number


def _fetch(sql: str, parameters: Sequence[Any], connection: sqlite3.Connection) -> list[Row]:
    return execute(connection, sql, parameters).fetchall()


def _children(parameters: Sequence[Any], connection: sqlite3.Connection) -> list[Node]:
    # From the cursor, in its thread: a row is gone before the next one is made.
    return to_nodes(execute(connection, CHILDREN, parameters))


def _namings(connection: sqlite3.Connection) -> Iterator[Sequence[Naming]]:
    connection.execute("BEGIN")
    for sql in (queries.VERSIONS_NAMING, queries.UPLOADS_NAMING):
        cursor = connection.execute(sql)
        while rows := cursor.fetchmany(NAMINGS):
            yield [Naming(*row) for row in rows]


def _close(connections: Iterable[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()

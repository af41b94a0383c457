"""The catalog on SQLite: one writer at a time, readers beside it.

Write-ahead log with `synchronous=FULL`: what `apply` has answered survives a power
cut. Several processes can open one database; SQLite's own lock decides among writers.
"""

import json
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
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
from vaultfs.adapters.sql.statements import (
    ACCESS,
    ACCESS_WIDTH,
    CHANGE,
    NODE,
    NODE_WIDTH,
    RESOLVE,
    USER,
    VERSION,
    Row,
    parse_retention,
    to_array,
    to_change,
    to_location,
    to_node,
    to_user,
    to_version,
)
from vaultfs.adapters.sql.writer import Writer
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import NotFound
from vaultfs.domain.names import Path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, User, UserId, Version
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Token
from vaultfs.ports.catalog import (
    Audited,
    Catalog,
    CatalogStats,
    Change,
    Known,
    Location,
    PackRow,
    Reindexing,
    Trashed,
    VersionRef,
)

if TYPE_CHECKING:
    from vaultfs.domain.operations import Outcome, Unit

T = TypeVar("T")

READERS: Final = 4
CHILDREN: Final = (
    f"SELECT {NODE} FROM nodes n WHERE n.parent = $1 AND n.key > $2"
    " AND n.trashed IS NULL ORDER BY n.key LIMIT $3"
)
FEW: Final = 100
"""Rows that are worth no hop to another thread."""
FEW_DIGESTS: Final = 4
"""The same of digests, each of which may be on a page of its own."""


@define(eq=False)
class SqliteCatalog(Catalog):
    """`open` makes one. `path` is None for a catalog in memory, which one process has alone."""

    _path: FilePath | None
    _writer: Writer
    _id: str
    _place: Place = field(factory=Place)
    _idle: list[sqlite3.Connection] = field(factory=list[sqlite3.Connection])
    _near: sqlite3.Connection | None = None
    """For what is asked in the event loop's own thread."""
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

    # Writing

    async def apply(self, units: "Sequence[Unit]") -> "list[Outcome]":
        return await self._writer.apply(units)

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
        """
        return await self._here(partial(_fetch, sql, parameters))

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

    async def outcome(self, op_id: str) -> tuple[Change, ...]:
        rows = await self._rows(
            f"SELECT {CHANGE} FROM changes WHERE op_id = $1 ORDER BY tree, seq", op_id
        )
        return tuple(map(to_change, rows))

    async def user(self, name: str) -> User:
        rows = await self._few(
            f"SELECT {USER} FROM users u JOIN trees t ON t.id = u.id WHERE u.key = $1",
            key_of(name),
        )
        if not rows:
            raise NotFound(f"there is no user {name}")
        return to_user(rows[0])

    async def users(self) -> list[User]:
        rows = await self._rows(
            f"SELECT {USER} FROM users u JOIN trees t ON t.id = u.id ORDER BY u.key"
        )
        return list(map(to_user, rows))

    async def token(self, number: str) -> tuple[Token, User] | None:
        rows = await self._few(
            f"SELECT {ACCESS}, {USER} FROM tokens k JOIN users u ON u.id = k.owner"
            " JOIN trees t ON t.id = u.id WHERE k.id = $1",
            number,
        )
        if not rows:
            return None
        return Token._make(rows[0][:ACCESS_WIDTH]), to_user(rows[0][ACCESS_WIDTH:])

    async def tokens(self, owner: UserId) -> list[Token]:
        rows = await self._rows(
            f"SELECT {ACCESS} FROM tokens k WHERE k.owner = $1 AND k.revoked IS NULL ORDER BY k.id",
            owner,
        )
        return list(map(Token._make, rows))

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[Audited]:
        rows = await self._rows(
            "SELECT id, at, actor, kind, subject, op_id FROM audit WHERE id > $1"
            " ORDER BY id LIMIT $2",
            *(after, limit),
        )
        return list(map(Audited._make, rows))

    async def retention(self, tree: TreeId) -> Retention:
        rows = await self._rows("SELECT retention FROM trees WHERE id = $1", tree)
        if not rows:
            raise NotFound("there is no such tree")
        return parse_retention(rows[0][0])

    async def resolve(self, tree: TreeId, path: Path) -> tuple[Node, ...]:
        rows = await self._few(RESOLVE, tree, _keys(path))
        return tuple(map(to_node, rows))

    async def file(
        self, tree: TreeId, path: Path, number: int | None = None
    ) -> tuple[tuple[Node, ...], Version | None]:
        rows = await self._few(queries.FILE, tree, _keys(path), number, len(path))
        nodes = tuple(to_node(row[:NODE_WIDTH]) for row in rows)
        if len(nodes) != len(path) + 1 or rows[-1][NODE_WIDTH] is None:
            return nodes, None
        return nodes, to_version(rows[-1][NODE_WIDTH:])

    async def children(self, folder: NodeId, *, after: str = "", limit: int = 1000) -> list[Node]:
        nodes: list[Node] = []
        if limit <= FEW or not after:  # else the folder has shown to be a large one
            nodes += map(to_node, await self._few(CHILDREN, folder, after, min(limit, FEW)))
            if not len(nodes) == FEW < limit:
                return nodes
            after = key_of(nodes[-1].name)
        nodes += await self._read(partial(_children, (folder, after, limit - len(nodes))))
        return nodes

    async def versions(
        self, node: NodeId, *, before: int | None = None, limit: int = 1000
    ) -> list[Version]:
        rows = await self._rows(
            f"SELECT {VERSION} FROM versions v WHERE v.node = $1 AND v.number < $2"
            " ORDER BY v.number DESC LIMIT $3",
            *(node, 1 << 62 if before is None else before, limit),
        )
        return list(map(to_version, rows))

    async def current_versions(self, nodes: Sequence[NodeId]) -> dict[NodeId, Version]:
        rows = await self._rows(
            f"SELECT {VERSION} FROM json_each($1) e JOIN nodes n ON n.id = e.value"
            " JOIN versions v ON v.id = n.version",
            json.dumps(nodes),
        )
        return {version.node: version for version in map(to_version, rows)}

    async def node_path(self, node: NodeId) -> tuple[TreeId, Path]:
        rows = await self._rows(queries.PATH, node)
        if not rows:
            raise NotFound(f"there is no node {node}")
        return rows[0][0], _path(rows)

    async def trash(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Trashed]:
        def run(connection: sqlite3.Connection) -> list[Trashed]:
            with one_moment(connection):
                rows = connection.execute(queries.TRASH, (tree, after, limit)).fetchall()
                return [
                    Trashed(to_node(row), _path(connection.execute(queries.PATH, row[:1])))
                    for row in rows
                ]

        return await self._read(run)

    async def files_with_history(
        self, tree: TreeId, *, after: int = 0, limit: int = 1000
    ) -> list[NodeId]:
        rows = await self._rows(
            "SELECT n.id FROM nodes n WHERE n.tree = $1 AND n.id > $2 AND n.number > 1 AND EXISTS"
            " (SELECT 1 FROM versions v WHERE v.node = n.id AND v.id <> n.version)"
            " ORDER BY n.id LIMIT $3",
            *(tree, after, limit),
        )
        return [row[0] for row in rows]

    async def changes(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Change]:
        rows = await self._rows(
            f"SELECT {CHANGE} FROM changes WHERE tree = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            *(tree, after, limit),
        )
        return list(map(to_change, rows))

    async def known(self, user: UserId, digests: Sequence[Digest]) -> Known:
        ask = self._here if len(digests) <= FEW_DIGESTS else self._read
        rows = await ask(partial(queries.by_digest, queries.KNOWN, user, digests))
        own = frozenset(digest for digest, mine in rows if mine)
        return Known(own, frozenset(digest for digest, mine in rows if not mine))

    async def locate(self, user: UserId, digests: Sequence[Digest]) -> dict[Digest, Location]:
        rows = await self._read(partial(queries.by_digest, queries.LOCATE, user, digests))
        return dict(map(to_location, rows))

    async def packs(self, *, after: Digest | None = None, limit: int = 1000) -> list[PackRow]:
        rows = await self._rows(
            "SELECT p.key, p.size, p.crc32c, l.backend FROM packs p"
            " JOIN pack_locations l ON l.pack = p.id WHERE p.key > $1 ORDER BY p.key LIMIT $2",
            *(after or b"", limit),
        )
        return list(map(PackRow._make, rows))

    async def has_pack(self, key: Digest) -> bool:
        return bool(await self._rows("SELECT 1 FROM packs WHERE key = $1", key))

    async def chunks_of(self, packs: Sequence[Digest]) -> list[tuple[Digest, Location]]:
        def scan(connection: sqlite3.Connection) -> list[tuple[Digest, Location]]:
            names = json.dumps([key.hex() for key in packs])
            rows = connection.execute(queries.CHUNKS_OF, (names,)).fetchall()
            return list(map(to_location, rows))

        return await self._read(scan)

    async def index(
        self, *, after: Digest | None = None, limit: int = 1000
    ) -> list[tuple[Digest, Location]]:
        rows = await self._rows(queries.INDEX, after or b"", limit)
        return list(map(to_location, rows))

    async def all_versions(self, *, after: int = 0, limit: int = 1000) -> list[VersionRef]:
        rows = await self._rows(
            "SELECT v.id, v.node, n.tree, v.number, v.manifest FROM versions v"
            " JOIN nodes n ON n.id = v.node WHERE v.id > $1 ORDER BY v.id LIMIT $2",
            *(after, limit),
        )
        return list(map(VersionRef._make, rows))

    async def stats(self) -> CatalogStats:
        rows = await self._rows(queries.STATS)
        return CatalogStats(*rows[0])

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


def _path(rows: Iterable[Row]) -> Path:
    """The path that the rows of `queries.PATH` are."""
    return tuple(name for _, name, parent in reversed(tuple(rows)) if parent is not None)


def _keys(path: Path) -> str:
    return to_array(map(key_of, path))


def _fetch(sql: str, parameters: Sequence[Any], connection: sqlite3.Connection) -> list[Row]:
    return execute(connection, sql, parameters).fetchall()


def _children(parameters: Sequence[Any], connection: sqlite3.Connection) -> list[Node]:
    # From the cursor, in its thread: a row is gone before the next one is made.
    return list(map(to_node, execute(connection, CHILDREN, parameters)))


def _close(connections: Iterable[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()

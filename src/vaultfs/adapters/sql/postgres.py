"""The catalog on PostgreSQL: many servers write to one database.

Each process has one connection that writes, with the units of many callers in each
transaction, and a few connections that read. What a transaction locks, and in which
order, is in `postgres_locks`; what is said differently here than to SQLite, in
`postgres_dialect`.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from attrs import define

from vaultfs.adapters.sql import queries
from vaultfs.adapters.sql.checks import CHECKS
from vaultfs.adapters.sql.grouping import Job
from vaultfs.adapters.sql.postgres_connections import (
    Database,
    Readers,
    is_lost,
    prepare,
    translated,
)
from vaultfs.adapters.sql.postgres_copies import Loader, PostgresReindexing, dump, whole
from vaultfs.adapters.sql.postgres_dialect import (
    CHILDREN,
    CHUNKS_OF,
    CURRENT,
    KNOWN,
    LOCATE,
    native,
)
from vaultfs.adapters.sql.postgres_driver import Ids
from vaultfs.adapters.sql.postgres_lockstore import PostgresLockStore
from vaultfs.adapters.sql.postgres_writer import PostgresWriter
from vaultfs.adapters.sql.reading import SqlCatalog, to_paths
from vaultfs.adapters.sql.statements import (
    Row,
    to_known,
    to_location,
    to_nodes,
    to_version,
)
from vaultfs.domain.digests import Digest
from vaultfs.domain.nodes import Node, NodeId, TreeId, UserId, Version
from vaultfs.domain.operations import Outcome, Unit
from vaultfs.ports.catalog import Known, Location, Naming, Reindexing, Trashed
from vaultfs.ports.locks import LockStore

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

NAMINGS: Final = 4096
"""Rows of what names chunks that are fetched at a time."""
T = TypeVar("T")


@define(eq=False)
class PostgresCatalog(SqlCatalog):
    """`open` makes one."""

    _database: Database
    _readers: Readers
    _writer: PostgresWriter
    _id: str
    _locks: PostgresLockStore | None = None

    # Life

    @classmethod
    async def open(
        cls, url: str, *, create: bool = False, schema: str | None = None
    ) -> "PostgresCatalog":
        """The catalog in the database at `url`, brought to this release's schema.

        Raises `NotAVault` if there is none and it is not to be made, `Unsupported` if a
        newer release made it, `CatalogUnavailable` if the server cannot be reached.
        """
        database = Database(url, schema)
        readers = Readers(database)
        with translated(database.name):
            number = await readers.run(partial(prepare, database=database, create=create))
        return cls(database, readers, PostgresWriter(database, Ids(readers.reserve)), number)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._writer.turn:
                with translated(self._name):
                    await self._writer.aclose()
                    await self._readers.aclose()
                    if self._locks is not None:
                        await self._locks.aclose()

    @property
    def _name(self) -> str:
        return self._database.name

    def lock_store(self) -> LockStore:
        if self._locks is None:
            self._locks = PostgresLockStore(self._writer, self._readers, self._database)
        return self._locks

    async def vault_id(self) -> str:
        return self._id

    # Writing

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        return await self._writer.apply(units)

    async def _do(self, job: Job) -> None:
        await self._writer.do(job)

    # Reading

    async def _read(self, query: Callable[["Connection"], Awaitable[T]]) -> T:
        """What `query` returns, asked on a connection that reads; twice if that is dead."""
        with translated(self._name):
            try:
                return await self._readers.run(query)
            except Exception as error:
                if not is_lost(error) or isinstance(error, ConnectionRefusedError):
                    raise
            return await self._readers.run(query)

    async def _rows(self, sql: str, *parameters: Any) -> list[Row]:
        async def run(connection: "Connection") -> list[Any]:
            return await connection.fetch(native(sql), *parameters)

        return await self._read(run)

    async def children(self, folder: NodeId, *, after: str = "", limit: int = 1000) -> list[Node]:
        return to_nodes(await self._rows(CHILDREN, folder, after, limit))

    async def current_versions(self, nodes: Sequence[NodeId]) -> dict[NodeId, Version]:
        rows = await self._rows(CURRENT, list(nodes))
        return {version.node: version for version in map(to_version, rows)}

    async def trash(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Trashed]:
        async def run(connection: "Connection") -> tuple[list[Any], list[Any]]:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                nodes = await connection.fetch(queries.TRASH, tree, after, limit)
                numbers = json.dumps([row[0] for row in nodes])
                return nodes, await connection.fetch(native(queries.PATHS), numbers)

        nodes, rows = await self._read(run)
        paths = to_paths(rows)
        return [Trashed(node, paths[node.id][1]) for node in to_nodes(nodes)]

    async def known(self, user: UserId, digests: Sequence[Digest]) -> Known:
        rows = await self._rows(KNOWN, user, list(digests))
        return to_known(rows)

    async def locate(self, user: UserId, digests: Sequence[Digest]) -> dict[Digest, Location]:
        return dict(map(to_location, await self._rows(LOCATE, user, list(digests))))

    async def chunks_of(self, packs: Sequence[Digest]) -> list[tuple[Digest, Location]]:
        return list(map(to_location, await self._rows(CHUNKS_OF, list(packs))))

    async def check(self) -> list[str]:
        async def run(connection: "Connection") -> list[str]:
            wrong: list[str] = []
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                for text, sql in CHECKS:
                    rows = await connection.fetch(f"{native(sql)} LIMIT 20")
                    wrong += [text.format(*row) for row in rows]
            return wrong

        return await self._read(run)

    # Rebuilding and copying

    @asynccontextmanager
    async def reindex(self) -> AsyncGenerator[Reindexing, None]:
        async with self._writer.turn, whole(self._database) as connection:
            reindexing = PostgresReindexing(connection, self._writer.ids, self._name)
            await reindexing.begin()
            yield reindexing
            await reindexing.end()

    async def dump(self) -> AsyncGenerator[bytes, None]:
        async with (
            whole(self._database) as connection,
            aclosing(dump(connection, self._name)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def namings(self) -> AsyncGenerator[Sequence[Naming], None]:
        async with whole(self._database) as connection:
            with translated(self._name):
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    for sql in (queries.VERSIONS_NAMING, queries.UPLOADS_NAMING):
                        cursor = await connection.cursor(sql)
                        while rows := await cursor.fetch(NAMINGS):
                            yield [Naming(*row) for row in rows]

    async def load(self, pieces: AsyncGenerator[bytes, None]) -> None:
        async with self._writer.turn, whole(self._database) as connection:
            loader = Loader(connection, self._name)
            await loader.begin()
            async for piece in pieces:
                await loader.feed(piece)
            self._id = await loader.finish()
            self._writer.ids.forget()

"""Claims: the catalog on PostgreSQL does what a metadata operation takes at 0.8 times the speed,
or more, of asyncpg that is given the very same statements; and a server on it takes in many single
durable puts at half the speed, or more, of asyncpg that only runs the statements of such a put.

The operations and the catalog are those of `bench.metadata`, in a PostgreSQL of its own that
flushes what it commits. `asyncpg` sends the statements that our writer was seen to send in a
rehearsal on a copy, with their parameters ready, over one connection; and for single puts over 16
at once, a transaction for each. `vaultfs` is the catalog behind its port; for single puts it is
`vaultfs serve`, which also reads, cuts, hashes, packs and stores 10 KB for each.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import asyncpg
from attrs import field, frozen
from bench.harness import Outcome, Run, fresh_folder
from bench.http import AT_ONCE, request, send, serve
from bench.metadata import (
    DEEP,
    FOLDER,
    LISTS,
    LOCATIONS,
    LOOKUPS,
    METADATA,
    NOW,
    PACKS,
    SIZE,
    STATS,
    STEPS,
    TREE,
    USER,
    Operation,
    Ours,
    Shape,
    chunks,
    digest_number,
    digests,
    done,
    encoded,
    lists,
    locations,
    moves,
    nodes,
    packs,
    puts,
    see,
    timed,
)
from bench.report import OURS, Claim, Faster, Scenario, parser, publish
from tests.postgres import Postgres, serving

from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.postgres_connections import Database, Readers
from vaultfs.adapters.sql.postgres_dialect import CHILDREN, KNOWN, LOCATE, native
from vaultfs.adapters.sql.postgres_driver import Ids
from vaultfs.adapters.sql.postgres_writer import PostgresWriter
from vaultfs.adapters.sql.statements import RESOLVE
from vaultfs.domain.digests import digest_of
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.nodes import Content, DigestState, UserId
from vaultfs.domain.operations import AddUser, PutFile, RecordPack, Unit
from vaultfs.domain.packs import Codec, Kind, PackEntry
from vaultfs.entrypoints.cli.session import tune

if TYPE_CHECKING:
    from vaultfs.adapters.sql.postgres_connections import Connection

RAW = "asyncpg"
SINGLE = "10 KB at once"
FILES, CONNECTIONS = 1000, 16
CLAIMS: tuple[Claim, ...] = (
    *(Faster(METADATA, step, RAW, 0.8) for step in STEPS.values()),
    Faster(SINGLE, "put", RAW, 0.5),
)
Statements = list[tuple[str, Sequence[Any]]]


@frozen
class Recording(Database):
    """Notes what the connections that write execute."""

    noted: Statements = field(factory=list[tuple[str, Sequence[Any]]])

    async def connect(self, *, by_index: bool = False) -> "Connection":
        connection = await super().connect(by_index=by_index)
        connection.add_query_logger(lambda query: self.noted.append((query.query, query.args)))
        return connection

    async def take(self) -> Statements:
        """What was executed since this was last asked: whole transactions."""
        await anyio.lowlevel.checkpoint()  # they are noted by callbacks
        taken = list(self.noted)
        see(taken[-1][0] == "COMMIT")
        self.noted.clear()
        return taken


@asynccontextmanager
async def opened(database: Database) -> AsyncGenerator[PostgresCatalog, None]:
    readers = Readers(database)
    catalog = PostgresCatalog(database, readers, PostgresWriter(database, Ids(readers.reserve)), "")
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def build(url: str, shape: Shape) -> None:
    """Put everything into a database that has nothing yet."""
    catalog = await PostgresCatalog.open(url, create=True)
    await catalog.apply([Unit(UserId(0), NOW, "user", (AddUser("me"),))])
    await catalog.aclose()
    connection = await asyncpg.connect(url)
    rows = list(nodes(shape))
    versions = (
        (*(n, n, 1, SIZE, digest_number(n), "verified", encoded(n), NOW, 1), None, None)
        for n in (row[0] for row in rows if row[5] == "file")
    )
    for table, records, columns in (
        ("nodes", rows, None),
        ("versions", versions, None),
        ("packs", packs(shape), PACKS),
        ("pack_locations", locations(shape), LOCATIONS),
        ("chunks", chunks(shape), None),
    ):
        await connection.copy_records_to_table(table, records=records, columns=columns)
    await connection.execute(
        "UPDATE trees SET used = (SELECT SUM(size) FROM versions);"
        " UPDATE counters SET next = next + 100000000"
    )
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    await connection.close()


# What raw statements there are


@frozen
class Script:
    """The statements of every operation, in the order in which they are to run."""

    puts: dict[int, list[Statements]]
    moves: dict[int, Statements]
    reads: dict[str, list[tuple[str, Sequence[Any]]]]


async def rehearse(url: str, shape: Shape, runs: int) -> Script:
    """What our statements are; the database is changed by it."""
    database = Recording(url)
    script = Script({}, {}, {})
    async with opened(database) as catalog:
        for run in range(1, runs + 1):
            script.puts[run] = []
            for unit in puts(run):
                done(await catalog.apply([unit]))
                script.puts[run].append(await database.take())
            done(await catalog.apply(moves(run)))
            script.moves[run] = await database.take()
        script.puts[1][0] = [each for each in script.puts[1][0] if "SET " not in each[0][:4]]
        wanted = [digests(shape, number) for number in range(LOOKUPS)]
        for step, sql in (("known", KNOWN), ("locate", LOCATE)):
            script.reads[step] = [(sql, (USER, each)) for each in wanted]
        for step, (folder, after) in lists(shape).items():
            number = (await catalog.resolve(TREE, (folder,)))[-1].id
            script.reads[step] = [(CHILDREN, (number, after, FOLDER))] * LISTS
        script.reads["stat"] = [(native(RESOLVE), (TREE, json.dumps(DEEP)))] * STATS
    return script


async def execute(connection: "Connection", statements: Statements) -> None:
    for sql, parameters in statements:
        if parameters and isinstance(parameters[0], tuple):
            await connection.executemany(sql, parameters)
        elif parameters:
            await connection.fetch(sql, *parameters)
        else:
            await connection.execute(sql)


def raw(script: Script, connection: "Connection") -> dict[str, Operation]:
    async def put(run: int) -> None:
        for statements in script.puts[run]:
            await execute(connection, statements)

    async def move(run: int) -> None:
        await execute(connection, script.moves[run])

    def reading(step: str) -> Operation:
        async def run_all(_: int) -> None:
            for sql, parameters in script.reads[step]:
                await connection.fetch(sql, *parameters)

        return run_all

    return {"put": put, "move": move, **{step: reading(step) for step in script.reads}}


async def race(postgres: Postgres, shape: Shape, runs: int) -> list[Run]:
    """Both take turns at each step, the first of one run being the second of the next."""
    results: list[Run] = []
    with postgres.database() as built:
        await build(built, shape)
        urls: dict[str, str] = {}
        for name in ("rehearsal", RAW, OURS):
            postgres.run(f'CREATE DATABASE "{name}" TEMPLATE "{built.rpartition("/")[2]}"')
            urls[name] = postgres.url(name)
        script = await rehearse(urls["rehearsal"], shape, runs)
        connection = await asyncpg.connect(urls[RAW], statement_cache_size=256)
        async with opened(Database(urls[OURS])) as catalog:
            contestants = {
                RAW: raw(script, connection),
                OURS: (await Ours.ready(catalog, shape, runs)).operations(shape),
            }
            for run in range(1, runs + 1):
                for step, label in STEPS.items():
                    for name in sorted(contestants, reverse=run % 2 == 0):
                        seconds = await timed(contestants[name][step], run)
                        results.append(Run(METADATA, name, label, run, seconds, 0))
        await connection.close()
    return results


# Single puts


def single(number: int) -> list[Unit]:
    """A pack of one chunk, and the new file that needs it."""
    digest = digest_of(b"single %d" % number)
    entry = PackEntry(digest, 8, 10_240, 10_240, Codec.RAW, Kind.DATA)
    pack = RecordPack(digest_of(digest), 10_400, 7, "local", (entry,), ((USER, (0,)),))
    content = Content(Manifest(0, ((digest, 10_240),)), digest, DigestState.VERIFIED)
    put = PutFile(TREE, (f"{number}",), content)
    return [
        Unit(UserId(0), NOW, f"pack-{number}", (pack,)),
        Unit(USER, NOW, f"single-{number}", (put,)),
    ]


async def raw_puts(postgres: Postgres, number: int) -> Run:
    """The statements of single puts, over several connections at once."""
    with postgres.database() as url:
        catalog = await PostgresCatalog.open(url, create=True)
        await catalog.apply([Unit(UserId(0), NOW, "user", (AddUser("me"),))])
        await catalog.aclose()
        with postgres.database() as copy:
            names = [each.rpartition("/")[2] for each in (copy, url)]
            postgres.run(f"DROP DATABASE {names[0]}")
            postgres.run(f"CREATE DATABASE {names[0]} TEMPLATE {names[1]}")
            database = Recording(copy)
            scripts: list[Statements] = []
            async with opened(database) as catalog:
                for index in range(FILES + 1):
                    done(await catalog.apply(single(index)))
                    scripts.append(await database.take())
        queue = iter(scripts[1:])  # the first also sets the connection up
        connections = [
            await asyncpg.connect(url, statement_cache_size=256) for _ in range(CONNECTIONS)
        ]

        async def client(connection: "Connection") -> None:
            for statements in queue:
                await execute(connection, statements)

        os.sync()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(client(connection))
        seconds = time.perf_counter() - start
        for connection in connections:
            await connection.close()
    return Run(SINGLE, RAW, "put", number, seconds, 0)


def our_puts(postgres: Postgres, folder: Path, number: int) -> Run:
    """As many puts through a server."""
    contents = [os.urandom(10_240) for _ in range(FILES)]
    with postgres.database() as url, fresh_folder(folder) as place:
        store = (place / "objects").as_uri()
        with serve("--database", url, "--store", store) as server:
            requests = [
                request("PUT", f"/v1/files/me/{index}", server.token, data)
                for index, data in enumerate(contents)
            ]
            os.sync()
            start = time.perf_counter()
            asyncio.run(send(server.port, requests, AT_ONCE))
            return Run(SINGLE, OURS, "put", number, time.perf_counter() - start, server.peak)


def main() -> int:
    options = parser(__doc__, runs=3)
    options.add_argument("--scale", type=float, default=1.0, help="1 for a million nodes (1)")
    chosen = options.parse_args()
    tune()  # garbage is collected as rarely as in every command
    shape = Shape(round(1_000_000 * chosen.scale))
    runs: list[Run] = []
    with serving(durable=True) as postgres:
        for number in range(1, chosen.runs + 1):
            runs.append(anyio.run(raw_puts, postgres, number))
            runs.append(our_puts(postgres, chosen.work, number))
        print(f"building a catalog of {shape.nodes} nodes", file=sys.stderr, flush=True)
        runs += anyio.run(race, postgres, shape, chosen.runs)
    scenarios = [Scenario(METADATA, (RAW,)), Scenario(SINGLE, (RAW,), FILES, "files")]
    return publish(scenarios, CLAIMS, Outcome(tuple(runs)), chosen)


if __name__ == "__main__":
    sys.exit(main())

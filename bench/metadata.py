"""Claim: the catalog does what a metadata operation takes at 0.8 times the speed, or more, of the
standard library's `sqlite3` that is given the very same statements in a thread.

The catalog has 2 million chunk rows and 1 million nodes (times `--scale`): folders of 1,000
files, one folder of a tenth of all, and a path 10 deep. It is built once, by bulk inserts, and
kept in the cache.

- put: a new version of an existing file, durable, in a transaction of its own; one caller
- known, locate: 1,000 digests looked up, half of which the catalog has
- list: a folder of 1,000; list, large: 1,000 from the middle of the large folder
- stat: a path 10 deep
- move: 1,000 files from one folder to another, or back, in one transaction

Contestants: `sqlite3` executes the statements and fetches their rows, one thread hop to an
operation, and none for `stat`, for which we take none; its writes are those that our writer was
seen to send in a rehearsal on a copy, with their parameters ready. Moves are rehearsed one by one
in their one transaction: that we do a group of them with fewer statements is ours to gain.
`vaultfs` is the catalog behind its port, from paths and values to nodes. Both begin with a copy of
the same file and take turns at each operation.
"""

import gc
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from attrs import define, field, frozen
from bench.corpora import add_cache_option
from bench.harness import Outcome, Run, fresh_folder, require_space
from bench.report import OURS, Claim, Faster, Scenario, parser, publish

from vaultfs.adapters.sql import queries
from vaultfs.adapters.sql.connections import connect, native
from vaultfs.adapters.sql.execution import execute as execute_jobs
from vaultfs.adapters.sql.grouping import Job
from vaultfs.adapters.sql.schema import SCHEMA
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.statements import NODE, RESOLVE
from vaultfs.adapters.sql.writer import Writer
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.names import Path as VaultPath
from vaultfs.domain.nodes import Content, DigestState, NodeId, TreeId, UserId
from vaultfs.domain.operations import AddUser, Move, PutFile, Refused, Unit
from vaultfs.domain.operations import Outcome as Answer
from vaultfs.ports.catalog import Catalog

METADATA = "metadata"
RAW = "sqlite3"
PUTS, LOOKUPS, LISTS, STATS, MOVES = 200, 20, 200, 500, 1000
"""Operations in one timed step; a move counts once for each file."""
STEPS = {
    "put": f"put a version, {PUTS} times",
    "known": f"1,000 digests known, {LOOKUPS} times",
    "locate": f"1,000 digests located, {LOOKUPS} times",
    "list": f"list a folder of 1,000, {LISTS} times",
    "large": f"list 1,000 of the large folder, {LISTS} times",
    "stat": f"stat 10 deep, {STATS} times",
    "move": f"{MOVES:,} moves in one transaction",
}
CLAIMS: tuple[Claim, ...] = tuple(Faster(METADATA, step, RAW, 0.8) for step in STEPS.values())

TREE, ROOT, USER = TreeId(1), NodeId(1), UserId(1)
NOW = 1_700_000_000_000_000
SIZE = 160 << 10
"""Bytes of every file and chunk."""
FOLDER = 1000
DEEP: VaultPath = tuple(f"deep-{depth}" for depth in range(10))
FROM, TO, LISTED, LARGE = "folder-00000", "folder-00001", "folder-00002", "large"

LIST = native(
    f"SELECT {NODE} FROM nodes n WHERE n.parent = $1 AND n.key > $2 AND n.trashed IS NULL"
    " ORDER BY n.key LIMIT $3"
)

Statements = list[tuple[str, Sequence[Any]]]
Operation = Callable[[int], Awaitable[None]]
"""All that one timed step of a run does."""


# The database


@frozen
class Shape:
    """How much there is: everything follows from the number of nodes."""

    nodes: int

    @property
    def chunks(self) -> int:
        return 2 * self.nodes

    @property
    def large(self) -> int:
        """Files in the large folder."""
        return max(3 * FOLDER, self.nodes // 10)

    @property
    def folders(self) -> int:
        """Of 1,000 files each."""
        return max(3, (self.nodes - self.large) // (FOLDER + 1))


def digest_number(number: int) -> Digest:
    return digest_of(number.to_bytes(8, "little"))


def content(number: int) -> Content:
    """A content of one chunk."""
    digest = digest_number(number)
    return Content(Manifest(0, ((digest, SIZE),)), digest, DigestState.VERIFIED)


def encoded(number: int) -> bytes:
    return content(number).manifest.encode()


def file_name(index: int) -> str:
    return f"file-{index:06}.bin"


def nodes(shape: Shape) -> Iterator[tuple[Any, ...]]:
    """The rows of all nodes but the root; the version of a file has the number of its node."""
    number, above = int(ROOT), int(ROOT)
    for name in DEEP:
        number += 1
        yield folder_row(number, above, name)
        above = number
    names = [(f"folder-{index:05}", FOLDER) for index in range(shape.folders)]
    for name, size in [*names, (LARGE, shape.large)]:
        number += 1
        folder = number
        yield folder_row(folder, ROOT, name)
        for index in range(size):
            number += 1
            file = file_name(index)
            yield (
                *(number, TREE, folder, file, file, "file", 1, number, 1, SIZE),
                *("{}", NOW, NOW, None),
            )


def folder_row(number: int, parent: int, name: str) -> tuple[Any, ...]:
    return number, TREE, parent, name, name, "folder", 1, None, 0, 0, "{}", NOW, NOW, None


def chunks(shape: Shape) -> Iterator[tuple[Any, ...]]:
    """The rows of all chunks in the order of their key, a hundred chunks to a pack."""
    for digest, number in sorted((digest_number(n), n) for n in range(shape.chunks)):
        yield digest, USER, 1 + number // 100, 8 + number % 100 * SIZE, SIZE - 48, SIZE


PACKS = ("id", "key", "size", "cipher", "created")
LOCATIONS = ("pack", "backend", "state", "verified_level", "attempts")
"""Columns of `packs` and `pack_locations` that have no default."""


def packs(shape: Shape) -> Iterator[tuple[Any, ...]]:
    """The rows of all packs."""
    for number in range(1, shape.chunks // 100 + 2):
        yield number, digest_of(b"pack %d" % number), 16 << 20, 0, NOW


def locations(shape: Shape) -> Iterator[tuple[Any, ...]]:
    """Where they are."""
    for number, *_ in packs(shape):
        yield number, "local", "present", 0, 0


def insert(
    connection: sqlite3.Connection,
    table: str,
    rows: Iterable[tuple[Any, ...]],
    columns: Sequence[str] = (),
) -> None:
    """Rows of all columns, or of those that are named."""
    width = len(columns or connection.execute(f"SELECT * FROM {table} LIMIT 0").description)
    named = f"({','.join(columns)})" if columns else ""
    marks = ",".join("?" * width)
    connection.executemany(f"INSERT INTO {table}{named} VALUES ({marks})", rows)


def fill(connection: sqlite3.Connection, shape: Shape) -> None:
    """Put everything into a catalog that has its user and nothing else."""
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -262144")
    connection.create_function("encoded", 1, encoded)
    connection.create_function("hashed", 1, digest_number)
    connection.execute("BEGIN")
    insert(connection, "nodes", nodes(shape))
    connection.execute(
        "INSERT INTO versions SELECT id, id, 1, size, hashed(id), 'verified', encoded(id), created,"
        " 1, NULL, NULL FROM nodes WHERE kind = 'file'"
    )
    insert(connection, "packs", packs(shape), PACKS)
    insert(connection, "pack_locations", locations(shape), LOCATIONS)
    insert(connection, "chunks", chunks(shape))
    connection.execute("UPDATE trees SET used = (SELECT SUM(size) FROM versions)")
    connection.execute("UPDATE counters SET next = next + 100000000")
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def build(file: Path, shape: Shape) -> None:
    """Make the catalog `file`, which has its name only once it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    catalog = await SqliteCatalog.open(new, create=True)
    await catalog.apply([Unit(UserId(0), NOW, "user", (AddUser("me"),))])
    await catalog.aclose()
    connection = connect(new)
    try:
        await to_thread.run_sync(fill, connection, shape)
    finally:
        connection.close()
    new.rename(file)


# What is done in a run


def puts(run: int) -> list[Unit]:
    """New versions of files of the large folder."""
    return [
        Unit(
            *(USER, NOW, f"put-{run}-{index}"),
            (PutFile(TREE, (LARGE, file_name(index)), content((run << 32) + index)),),
        )
        for index in range(PUTS)
    ]


def moves(run: int) -> list[Unit]:
    """All files of one folder to another, and in the next run back."""
    units: list[Unit] = []
    for index in range(MOVES):
        here, there = (FROM, file_name(index)), (TO, f"moved-{index}")
        source, target = (here, there) if run % 2 else (there, here)
        units.append(Unit(USER, NOW, f"move-{run}-{index}", (Move(TREE, source, target),)))
    return units


def digests(shape: Shape, number: int) -> list[Digest]:
    """A thousand to look up: every other one is in the catalog."""
    start = number * 104_729
    return [
        digest_number((start + 7919 * n) % shape.chunks if n % 2 else (1 << 40) + start + n)
        for n in range(1000)
    ]


def done(answers: Sequence[Answer]) -> None:
    """See that no unit was refused: what is refused is quick."""
    for answer in answers:
        if isinstance(answer, Refused):
            raise answer.error


def see(holds: bool) -> None:
    """See that an answer is the right one: a wrong one may be quick."""
    if not holds:
        raise SystemExit("an operation did not do what is measured here")


# The contestants


class Recorder(sqlite3.Connection):
    """A connection that notes what it executes."""

    noted: Statements

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.noted.append((sql, parameters))
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        raise NotImplementedError(f"noting many rows: {sql}")

    def take(self) -> Statements:
        """What was executed since this was last asked."""
        taken, self.noted = self.noted, []
        return taken


@define
class Script:
    """The statements of every operation, in the order in which they are to run."""

    puts: dict[int, list[Statements]] = field(factory=dict[int, list[Statements]])
    moves: dict[int, Statements] = field(factory=dict[int, Statements])
    reads: dict[str, list[Statements]] = field(factory=dict[str, list[Statements]])


async def rehearse(file: Path, shape: Shape, runs: int) -> Script:
    """What our statements are; `file` is changed by it."""
    script = Script()
    connection = sqlite3.connect(
        file, isolation_level=None, check_same_thread=False, factory=Recorder
    )
    connection.noted = []
    try:
        writer = Writer(connection, "rehearsal")
        for run in range(1, runs + 1):
            script.puts[run] = []
            for unit in puts(run):
                done(await writer.apply([unit]))
                script.puts[run].append(connection.take())
            jobs = [Job((unit,)) for unit in moves(run)]  # of one caller each: not grouped
            execute_jobs(connection, writer.name, writer.place, writer.locks, jobs)
            done([job.outcomes[0] for job in jobs])
            script.moves[run] = connection.take()
        for step, sql in (("known", queries.KNOWN), ("locate", queries.LOCATE)):
            script.reads[step] = []
            for number in range(LOOKUPS):
                queries.by_digest(sql, USER, digests(shape, number), connection)
                script.reads[step].append(connection.take())
        for step, (folder, after) in lists(shape).items():
            [number] = connection.execute("SELECT id FROM nodes WHERE name = ?", (folder,))
            script.reads[step] = [[(LIST, (number[0], after, FOLDER))]] * LISTS
        script.reads["stat"] = [[(native(RESOLVE), (TREE, json.dumps(DEEP)))]] * STATS
    finally:
        connection.close()
    return script


def lists(shape: Shape) -> dict[str, tuple[str, str]]:
    """For each listing the folder, and the key that it begins above."""
    return {"list": (LISTED, ""), "large": (LARGE, file_name(shape.large // 2))}


def execute(connection: sqlite3.Connection, statements: Statements) -> None:
    for sql, parameters in statements:
        connection.execute(sql, parameters).fetchall()


@frozen
class Raw:
    """`sqlite3` with the settings of our connections: one that writes, one that reads."""

    script: Script
    writer: sqlite3.Connection
    reader: sqlite3.Connection

    async def put(self, run: int) -> None:
        for statements in self.script.puts[run]:
            await to_thread.run_sync(execute, self.writer, statements)

    async def move(self, run: int) -> None:
        await to_thread.run_sync(execute, self.writer, self.script.moves[run])

    def reading(self, step: str) -> Operation:
        async def run_all(_: int) -> None:
            for statements in self.script.reads[step]:
                await to_thread.run_sync(execute, self.reader, statements)

        return run_all

    async def stat(self, _: int) -> None:
        for statements in self.script.reads["stat"]:
            execute(self.reader, statements)

    def operations(self) -> dict[str, Operation]:
        reads = {step: self.reading(step) for step in self.script.reads}
        return {"put": self.put, **reads, "stat": self.stat, "move": self.move}


@frozen
class Ours:
    """The catalog behind its port."""

    catalog: Catalog
    folders: dict[str, NodeId]
    wanted: tuple[list[Digest], ...]
    puts: dict[int, list[Unit]]
    moves: dict[int, list[Unit]]

    @staticmethod
    async def ready(catalog: Catalog, shape: Shape, runs: int) -> "Ours":
        """With all values made that a caller would have at hand."""
        return Ours(
            catalog,
            {name: (await catalog.resolve(TREE, (name,)))[-1].id for name in (LISTED, LARGE)},
            tuple(digests(shape, number) for number in range(LOOKUPS)),
            {run: puts(run) for run in range(1, runs + 1)},
            {run: moves(run) for run in range(1, runs + 1)},
        )

    async def put(self, run: int) -> None:
        for unit in self.puts[run]:
            done(await self.catalog.apply([unit]))

    async def known(self, _: int) -> None:
        for each in self.wanted:
            see(len((await self.catalog.known(USER, each)).own) == FOLDER // 2)

    async def locate(self, _: int) -> None:
        for each in self.wanted:
            see(len(await self.catalog.locate(USER, each)) == FOLDER // 2)

    def listing(self, folder: str, after: str) -> Operation:
        number = self.folders[folder]

        async def run_all(_: int) -> None:
            for _ in range(LISTS):
                see(len(await self.catalog.children(number, after=after)) == FOLDER)

        return run_all

    async def stat(self, _: int) -> None:
        for _ in range(STATS):
            see(len(await self.catalog.resolve(TREE, DEEP)) == len(DEEP) + 1)

    async def move(self, run: int) -> None:
        done(await self.catalog.apply(self.moves[run]))

    def operations(self, shape: Shape) -> dict[str, Operation]:
        listings = {step: self.listing(*which) for step, which in lists(shape).items()}
        return {
            "put": self.put,
            "known": self.known,
            "locate": self.locate,
            **listings,
            "stat": self.stat,
            "move": self.move,
        }


# The race


async def race(file: Path, folder: Path, shape: Shape, runs: int) -> Outcome:
    """Both take turns at each step, the first of one run being the second of the next."""
    copies = {name: folder / f"{name}.db" for name in ("rehearsal", RAW, OURS)}
    for copy in copies.values():
        shutil.copyfile(file, copy)
    script = await rehearse(copies["rehearsal"], shape, runs)
    catalog = await SqliteCatalog.open(copies[OURS])
    results: list[Run] = []
    with closing(connect(copies[RAW])) as writer, closing(connect(copies[RAW])) as reader:
        contestants = {
            RAW: Raw(script, writer, reader).operations(),
            OURS: (await Ours.ready(catalog, shape, runs)).operations(shape),
        }
        # What was made ready is no contestant's, so neither is to pay for a walk through it.
        gc.collect()
        gc.freeze()
        for run in range(1, runs + 1):
            for step, label in STEPS.items():
                for name in sorted(contestants, reverse=run % 2 == 0):
                    seconds = await timed(contestants[name][step], run)
                    results.append(Run(METADATA, name, label, run, seconds, 0))
    await catalog.aclose()
    return Outcome(tuple(results))


async def timed(operation: Operation, run: int) -> float:
    os.sync()
    start = time.perf_counter()
    await operation(run)
    return time.perf_counter() - start


def main() -> int:
    options = parser(__doc__, runs=5)
    options.add_argument("--scale", type=float, default=1.0, help="1 for a million nodes (1)")
    add_cache_option(options)
    chosen = options.parse_args()
    shape = Shape(round(1_000_000 * chosen.scale))
    file = chosen.cache / f"catalog-{SCHEMA}-{shape.nodes}.db"
    require_space(chosen.work, 3000 * shape.nodes)
    if not file.exists():
        print(f"building {file}", file=sys.stderr, flush=True)
        anyio.run(build, file, shape)
    with fresh_folder(chosen.work) as folder:
        outcome = anyio.run(race, file, folder, shape, chosen.runs)
    return publish([Scenario(METADATA, (RAW,))], CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

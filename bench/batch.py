"""Claims: one batch of 1,000 moves takes an eighth of the time of 1,000 requests one after
another, and a quarter of that of 16 at once; at most three times what the database's own driver
takes for the same statements; 1,000 mixed operations are done within half a second; what a folder
holds costs nothing where it is moved, deleted or shared; a copy of 10,000 files takes two seconds;
a batch at the limits takes 20 MiB of memory; a body that is too long is not read.

On SQLite and on a PostgreSQL of its own, which flushes what it commits; a server process each.
"""

import argparse
import asyncio
import json
import os
import socket
import sqlite3
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import asyncpg
from attrs import frozen
from bench.harness import fresh_folder, resident
from bench.http import Server, request, send, serve
from tests.batch_child import batch_of, tapped
from tests.contracts.callers import content
from tests.postgres import serving

from vaultfs.adapters.sql import batches
from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.postgres_dialect import native
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.statements import Program
from vaultfs.adapters.sql.transaction import INSERT_CHANGE, Transaction
from vaultfs.domain.batches import Batch, Mode, Outcome
from vaultfs.domain.operations import MakeFolder, PutFile, Unit
from vaultfs.ports.catalog import Catalog

Op = dict[str, Any]
AWAY = 10**12
"""Behind all numbers that feeds have."""
MOVES, RUNS, MIXED_RUNS, LARGE, COPIED = 1000, 5, 20, 100_000, 10_000


@frozen
class Place:
    """A vault of a server, and its catalog beside it."""

    name: str
    server: Server
    url: str
    """Of the database, or the file."""

    def batch(self, *ops: Op, **more: Any) -> float:
        """Seconds that a batch takes, from the request to the answer."""
        body = json.dumps({"ops": ops, **more}).encode()
        sent = request("POST", "/v1/batch", self.server.token, body)
        return timed(lambda: send(self.server.port, [sent], 1))

    def single(self, ops: Sequence[Op], at_once: int) -> float:
        sent = [
            request(
                "POST",
                "/v1/move",
                self.server.token,
                json.dumps({"source": op["src"], "target": op["dst"]}).encode(),
            )
            for op in ops
        ]
        return timed(lambda: send(self.server.port, sent, at_once))


def timed(work: Callable[[], Awaitable[None]]) -> float:
    async def run() -> float:
        start = time.perf_counter()
        await work()
        return time.perf_counter() - start

    return asyncio.run(run())


async def opened(url: str) -> Catalog:
    if url.startswith("postgresql:"):
        return await PostgresCatalog.open(url)
    return await SqliteCatalog.open(Path(url))


async def fill(url: str) -> None:
    """The files that are moved, the folder of 100,000, and that of 10,000."""
    catalog = await opened(url)
    user = await catalog.user("me")
    text = content("x")
    for folder, files in (("a", MOVES), ("large", LARGE), ("copied", COPIED - 1)):
        for start in range(0, files, 5000):
            numbers = range(start, min(start + 5000, files))
            puts = [(n, PutFile(user.tree, (folder, str(n)), text, parents=True)) for n in numbers]
            await catalog.apply([Unit(user.id, 1, f"{folder}{n}", (put,)) for n, put in puts])
    await catalog.apply([Unit(user.id, 1, "b", (MakeFolder(user.tree, ("b",)),))])
    await catalog.aclose()


def moves(there: bool) -> list[Op]:
    source, target = ("a", "b") if there else ("b", "a")
    return [{"op": "move", "src": f"/{source}/{n}", "dst": f"/{target}/{n}"} for n in range(MOVES)]


def mixed(run: int) -> list[Op]:
    """1,000 operations of all kinds on files that are there."""
    top = f"/mixed{run}"
    ops: list[Op] = [{"op": "mkdir", "path": top}]
    for number in range(142):
        ops += [
            {"op": "mkdir", "path": f"{top}/{number}", "id": f"k{number}"},
            {"op": "copy", "src": f"/a/{number}", "dst": f"{top}/{number}/c", "id": f"c{number}"},
            {"op": "set_metadata", "target": {"ref": f"c{number}"}, "merge": {"n": number}},
            {"op": "move", "src": {"ref": f"c{number}"}, "dst": f"{top}/{number}.c"},
            {"op": "copy", "src": f"/a/{number}", "dst": f"{top}/x.txt", "on_conflict": "rename"},
            {"op": "delete", "target": {"ref": f"k{number}"}, "id": f"d{number}"},
            {"op": "restore", "node": {"ref": f"d{number}"}},
        ]
    return [*ops, *({"op": "mkdir", "path": f"{top}/end{n}"} for n in range(MOVES - len(ops)))]


# The statements of a batch, sent by the driver alone

Noted = list[tuple[str, Sequence[Any]]]


@contextmanager
def noted() -> Generator[Noted, None, None]:
    """What batches and the ends of their transactions execute meanwhile."""
    found: Noted = []
    execute = batches.execute

    def watched(batch: Batch, tx: Transaction) -> Program[Outcome]:
        outcome = yield from tapped(execute(batch, tx), lambda step: found.append(step[:2]))
        if tx.changes:  # which are written when the transaction ends
            found.append((INSERT_CHANGE, [(row[0], row[1] + AWAY, *row[2:]) for row in tx.changes]))
        return outcome

    batches.execute = watched
    try:
        yield found
    finally:
        batches.execute = execute


async def against_the_driver(url: str) -> tuple[float, float]:
    """Seconds that 1,000 moves take our catalog, and a driver with the same statements."""
    catalog = await opened(url)
    user = await catalog.user("me")
    ours: list[float] = []
    theirs: list[float] = []
    for run in range(2 * RUNS):
        batch = batch_of(user, moves(run % 2 == 0), f"raw{run}", Mode.ATOMIC)
        with noted() as statements:
            start = time.perf_counter()
            outcome = await catalog.batch(batch)
            ours.append(time.perf_counter() - start)
        assert outcome.committed
        theirs.append(await replay(url, statements))
    await catalog.aclose()
    return statistics.median(ours), statistics.median(theirs)


async def replay(url: str, noted: Noted) -> float:
    if not url.startswith("postgresql:"):
        connection = sqlite3.connect(url, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        start = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for sql, rows in noted:
            if rows and isinstance(rows[0], tuple):
                connection.executemany(sql.replace("$", "?"), rows)
            else:
                connection.execute(sql.replace("$", "?"), tuple(rows)).fetchall()
        connection.execute("COMMIT")
        connection.close()
        return time.perf_counter() - start
    raw = await asyncpg.connect(url)
    start = time.perf_counter()
    async with raw.transaction():
        for sql, rows in noted:
            if rows and isinstance(rows[0], tuple):
                await raw.executemany(native(sql), rows)
            else:
                await raw.fetch(native(sql), *rows)
    took = time.perf_counter() - start
    await raw.close()
    return took


# Limits


def taken(server: Server) -> float:
    """Bytes of bodies of batches that the server has read so far."""
    with urlopen(f"{server.address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    mine = [line for line in lines if "received" in line and 'route="/v1/batch"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in mine)


def refused_early(server: Server) -> tuple[float, bool]:
    """Bytes of a body of 64 MiB that were read, and whether the answer could be."""
    before = taken(server)
    size, piece = 64 << 20, bytes(1 << 16)
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        head = request("POST", "/v1/batch", server.token)
        link.sendall(head.replace(b"Content-Length: 0", b"Content-Length: %d" % size))
        link.settimeout(0.5)
        sent = 0
        try:
            while sent < size:
                sent += link.send(piece)
        except OSError:
            pass
        link.settimeout(5)
        try:
            answer = link.recv(1 << 16)
        except OSError:
            answer = b""
    return taken(server) - before, b" 413 " in answer[:20]


def memory(place: Place) -> float:
    """MiB that a batch at the limits takes, over what a server has that has had one before.

    The first fills the database's cache of pages, which stays.
    """
    big = "y" * 3900
    ops = [
        {"op": "set_metadata", "target": f"/a/{n}", "merge": {"x": big, "n": n}, "id": f"i{n}"}
        for n in range(MOVES)
    ]
    pid = place.server.process.pid
    place.batch(*ops)
    before = sum(resident(pid)[:1])
    peak = [before]

    async def work() -> None:
        body = json.dumps({"ops": ops}).encode()
        assert len(body) < 4 << 20
        sent = request("POST", "/v1/batch", place.server.token, body)
        running = asyncio.create_task(send(place.server.port, [sent], 1))
        while not running.done():
            peak.append(resident(pid)[0])
            await asyncio.sleep(0.005)
        await running

    timed(work)
    return (max(peak) - before) / (1 << 20)


def measure(place: Place) -> None:
    def note(what: str, value: float, limit: float, unit: str = "x", sign: str = "<=") -> None:
        good = value >= limit if sign == ">=" else value <= limit
        verdict = f"{'ok' if good else 'SHORT'} ({sign} {limit:g})"
        print(f"{place.name:9} {what:44} {value:8.3g} {unit:3} {verdict}", flush=True)

    batch: list[float] = []
    one: list[float] = []
    sixteen: list[float] = []
    for run in range(RUNS):
        batch += [place.batch(*moves(True)), place.batch(*moves(False))]
        one.append(place.single(moves(True), 1))
        sixteen.append(place.single(moves(False), 16))
        if run == 0:
            seconds = (
                f"batch {batch[0]:.3f} s, single {one[0]:.2f} s, 16 at once {sixteen[0]:.2f} s"
            )
            print(f"{place.name:9} {seconds}", flush=True)
    middle = statistics.median(batch)
    note("1,000 moves: single requests / batch", statistics.median(one) / middle, 8, sign=">=")
    note("1,000 moves: 16 at once / batch", statistics.median(sixteen) / middle, 4, sign=">=")
    ours, raw = asyncio.run(against_the_driver(place.url))
    note("1,000 moves: batch / raw driver", ours / raw, 3)
    took = sorted(place.batch(*mixed(run)) for run in range(MIXED_RUNS))
    note("1,000 mixed, atomic: p95", took[-2] * 1000, 500, "ms")
    user = {"user": "bob", "role": "reader"}
    for what, op in (
        ("moving", {"op": "move", "src": "/large", "dst": "/moved"}),
        ("sharing", {"op": "grant", "target": "/moved", **user}),
        ("deleting", {"op": "delete", "target": "/moved", "recursive": True}),
    ):
        note(f"{what} a folder of 100,000 files", place.batch(op) * 1000, 20, "ms")
    copied = place.batch({"op": "copy", "src": "/copied", "dst": "/copy"})
    note("copying a folder of 10,000 files", copied, 2, "s")
    note("memory of a batch at the limits", memory(place), 20, "MiB")
    read, readable = refused_early(place.server)
    note("read of 64 MiB that are refused", read / (1 << 20), 1, "MiB")
    print(f"{place.name:9} its answer could be read: {readable}", flush=True)


@contextmanager
def places(folder: Path, only: str) -> Generator[list[Place], None, None]:
    with ExitStack() as stack:
        found: list[Place] = []
        if only in {"", "sqlite"}:
            server = stack.enter_context(serve(folder / "vault"))
            found.append(Place("sqlite", server, str(folder / "vault/catalog.db")))
        if only in {"", "postgres"}:
            url = stack.enter_context(stack.enter_context(serving(durable=True)).database())
            flags = ("--database", url, "--store", (folder / "store").as_uri())
            found.append(Place("postgres", stack.enter_context(serve(*flags)), url))
        yield found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", choices=("", "sqlite", "postgres"))
    options.add_argument("--folder", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")))
    wanted = options.parse_args()
    with fresh_folder(wanted.folder) as folder, places(folder, wanted.only) as found:
        for place in found:
            asyncio.run(fill(place.url))
            body = json.dumps({"name": "bob"}).encode()
            sent = request("POST", "/v1/users", place.server.token, body)
            timed(lambda: send(place.server.port, [sent], 1))  # noqa: B023
            measure(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())

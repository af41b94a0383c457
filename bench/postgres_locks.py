"""Claims: locks that servers share through PostgreSQL cost a commit, which many tasks share.

Each figure is beside PostgreSQL's own session advisory locks, which are flat, write nothing and
know no order, in the same PostgreSQL in the same run; it flushes what it commits. A pair is an
exclusive lock on a path of three names (a number, for advisory locks) taken and given back.

- one call in flight
- 64 tasks on 100 files; advisory locks have a connection for each task
- two server processes, 32 tasks each, on the same 100 files: how much the slower one gets
"""

import argparse
import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import asyncpg
from attrs import frozen
from tests.postgres import serving

from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.nodes import TreeId, UserId
from vaultfs.domain.operations import AddUser, Unit
from vaultfs.domain.services.locks import Locks, open_locks
from vaultfs.entrypoints.cli.session import tune

TREE = TreeId(1)
FILES = 100
Pair = Callable[[int, int], Awaitable[None]]
"""Takes and gives back, for a task, the lock on a file."""


async def rate(tasks: int, seconds: float, pair: Pair) -> float:
    """Pairs a second of so many tasks, each on files in an order of its own."""
    done = count()
    start = time.perf_counter()

    async def one(task: int) -> None:
        file = task
        while time.perf_counter() - start < seconds:
            file = (file + 7) % FILES
            await pair(task, file)
            next(done)

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(one(task))
    return next(done) / (time.perf_counter() - start)


@asynccontextmanager
async def ours(url: str) -> AsyncGenerator[Locks, None]:
    """The locks of a server on that database."""
    catalog, clock = await PostgresCatalog.open(url), SystemClock()
    try:
        async with open_locks(catalog.lock_store(), clock) as locks:
            yield locks
    finally:
        await catalog.aclose()


async def hold(locks: Locks, process: str, task: int, file: int) -> None:
    async with locks.hold(Owner(f"{process}{task}"), TREE, {("d", str(file)): Mode.X}):
        pass


async def advisory(url: str, tasks: int, seconds: float) -> float:
    connections = [await asyncpg.connect(url) for _ in range(tasks)]

    async def pair(task: int, file: int) -> None:
        await connections[task].execute("SELECT pg_advisory_lock($1)", file)
        await connections[task].execute("SELECT pg_advisory_unlock($1)", file)

    try:
        return await rate(tasks, seconds, pair)
    finally:
        for connection in connections:
            await connection.close()


async def serve(url: str, process: str, tasks: int, seconds: float) -> None:
    """One of several processes: says when it is ready, starts when told, says its figure."""
    async with ours(url) as locks:
        await hold(locks, process, 0, 0)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(await rate(tasks, seconds, partial(hold, locks, process)), flush=True)


async def two(url: str, seconds: float) -> list[float]:
    """The figures of two processes that start together."""
    words = ["-m", "bench.postgres_locks", "--seconds", str(seconds), "--server", url, "--as"]
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, *words, each, stdin=PIPE, stdout=PIPE)
        for each in ("a", "b")
    ]
    pipes = [(each.stdin, each.stdout) for each in processes if each.stdin and each.stdout]
    for _, output in pipes:
        assert await output.readline() == b"ready\n"
    for entry, _ in pipes:
        entry.write(b"go\n")
    figures = [float(await output.readline()) for _, output in pipes]
    assert [await each.wait() for each in processes] == [0, 0]
    return figures


@frozen
class Figures:
    alone: float
    many: float
    advisory_alone: float
    advisory_many: float
    servers: tuple[float, ...]

    def tell(self) -> None:
        for what, mine, theirs, least in (
            ("one call in flight", self.alone, self.advisory_alone, 0.12),
            (f"64 tasks on {FILES} files", self.many, self.advisory_many, 1.2),
        ):
            print(
                f"{what:28} {mine:8,.0f} pairs/s, advisory {theirs:8,.0f}:"
                f" {mine / theirs:5.2f} x (at least {least})"
            )
        each = " and ".join(f"{figure:,.0f}" for figure in self.servers)
        share = min(self.servers) / sum(self.servers)
        print(f"{'two servers, 32 tasks each':28} {each} pairs/s: the slower gets {share:.0%}")


async def measure(url: str, seconds: float) -> Figures:
    async with ours(url) as locks:
        pair = partial(hold, locks, "t")
        await hold(locks, "t", 0, 0)
        alone, many = await rate(1, seconds, pair), await rate(64, seconds, pair)
    flat_alone, flat_many = await advisory(url, 1, seconds), await advisory(url, 64, seconds)
    return Figures(alone, many, flat_alone, flat_many, tuple(await two(url, seconds)))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure (3)")
    parser.add_argument("--server", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="process", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    tune()  # garbage is collected as rarely as in every command
    if chosen.server:
        await serve(chosen.server, chosen.process, 32, chosen.seconds)
        return
    with serving(durable=True) as postgres, postgres.database() as url:
        catalog = await PostgresCatalog.open(url, create=True)
        await catalog.apply([Unit(UserId(0), 0, "user", (AddUser("me"),))])
        await catalog.aclose()
        for _ in range(chosen.runs):
            (await measure(url, chosen.seconds)).tell()


if __name__ == "__main__":
    asyncio.run(main())

"""Claim: hierarchical locks in one process cost little more than flat ones.

Everything in one process and one run, which collects garbage as rarely as every command of
vaultfs does; each figure next to `asyncio.Lock` doing the same with the same tasks. Peers, where
they are installed: `aiorwlock` (three nested locks, as a path of three names takes),
`readerwriterlock`, `fasteners` and the lock subsystem of Berkeley DB, in C, with intents on the
two folders (`berkeleydb`); those block threads, so only uncontended.

- pair: an exclusive lock on a path of three names through `hold()`, taken and given back; the
  nodes made and collected each time, or with the folders held by somebody else
- contended: 64 tasks on one file, 1,000 on 100 files, 1,000 on one; a turn of the loop inside
- circle: the error that tells of a circle of so many owners; the median of five
- batch: 1,000 paths at once; and 64 tasks with 100 random paths out of 1,000 each
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from itertools import cycle
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.lowlevel

from vaultfs.adapters.memorylocks import MemoryLockStore
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import DeadlockFound
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.services.locks import Locks, open_locks
from vaultfs.entrypoints.cli.session import tune

TREE = TreeId(1)
PAIRS = 20_000


async def rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return count / (time.perf_counter() - started)


async def ours(locks: Locks) -> float:
    async def run() -> None:
        for _ in range(PAIRS):
            async with locks.hold(Owner("a"), TREE, {("d", "f"): Mode.X}):
                pass

    return await rate(PAIRS, run)


async def nested(make: Callable[[], Any]) -> float:
    """Three locks inside each other; `make` makes one context manager that can be used again."""
    one, two, three = make(), make(), make()

    async def run() -> None:
        for _ in range(PAIRS):
            async with one, two, three:
                pass

    return await rate(PAIRS, run)


def nested_threads(take: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(PAIRS):
        with take(), take(), take():
            pass
    return PAIRS / (time.perf_counter() - started)


Turn = Callable[[int, int], Any]


async def contended(tasks: int, files: int, turns: int, take: Turn) -> tuple[float, float]:
    """Pairs a second, and the 99th percentile of the wait over its median."""
    waits: list[float] = []

    async def one(number: int) -> None:
        for turn in range(turns):
            asked = time.perf_counter()
            async with take(number, (number + turn * 7) % files):
                waits.append(time.perf_counter() - asked)
                await asyncio.sleep(0)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(one, number)

    speed = await rate(tasks * turns, run)
    waits.sort()
    return speed, waits[len(waits) * 99 // 100] / max(median(waits), 1e-9)


async def circle(locks: Locks, size: int) -> float:
    """Milliseconds until the one that closes it is told."""
    told, took = 0, 0.0
    owners = [Owner(f"o{number}") for number in range(size)]
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for number, owner in enumerate(owners):
            held = locks.hold(owner, TREE, {("c", str(number)): Mode.X})
            await stack.enter_async_context(held)
        for number, owner in enumerate(owners[:-1]):
            wanted: dict[tuple[str, ...], Mode] = {("c", str(number + 1)): Mode.X}
            tasks.start_soon(locks.acquire, owner, TREE, wanted)
        while len((await locks.snapshot(TREE)).queued) < size - 1:
            await anyio.lowlevel.checkpoint()
        started = time.perf_counter()
        try:
            await locks.acquire(owners[-1], TREE, {("c", "0"): Mode.X})
        except DeadlockFound as error:
            took, told = time.perf_counter() - started, len(error.circle)
        tasks.cancel_scope.cancel()
    assert told == size
    return took * 1000


async def batch(locks: Locks) -> tuple[float, float]:
    """Milliseconds to take 1,000 paths, and to give them back."""
    wanted: dict[tuple[str, ...], Mode] = {("b", str(n)): Mode.X for n in range(1000)}
    started = time.perf_counter()
    token = await locks.acquire(Owner("a"), TREE, wanted)
    taken = time.perf_counter()
    await locks.release(Owner("a"), TREE, token)
    return (taken - started) * 1000, (time.perf_counter() - taken) * 1000


async def batches(locks: Locks) -> float:
    """Locks a second; a deadlock would end it."""
    dice = Random(1)
    paths: list[tuple[str, ...]] = [("b", str(number)) for number in range(1000)]
    drawn = [[dict.fromkeys(dice.sample(paths, 100), Mode.X) for _ in range(10)] for _ in range(64)]

    async def one(number: int) -> None:
        for wanted in drawn[number]:
            async with locks.hold(Owner(f"t{number}"), TREE, wanted):
                await asyncio.sleep(0)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(one, number)

    return await rate(64 * 10 * 100, run)


def line(what: str, value: float, base: float = 0, unit: str = "pairs/s") -> None:
    ratio = f"{value / base:8.3f} x asyncio.Lock" if base else ""
    print(f"{what:44} {value:12,.2f} {unit:8} {ratio}")


async def _peer(name: str, module: Any) -> float:
    if name == "aiorwlock":

        def make() -> Any:
            return module.RWLock().writer

        return await nested(make)
    kind = module.ReaderWriterLock if name == "fasteners" else module.RWLockFair
    three = cycle([kind() for _ in range(3)])

    def take() -> Any:
        lock = next(three)
        return lock.write_lock() if name == "fasteners" else lock.gen_wlock()

    return nested_threads(take)


def berkeley(module: Any, folder: str) -> float:
    """Pairs a second of two intents and a lock, by the lock subsystem alone."""
    db = module.db
    env = db.DBEnv()
    env.open(folder, db.DB_CREATE | db.DB_INIT_LOCK | db.DB_PRIVATE | db.DB_THREAD)
    owner = env.lock_id()
    wanted = (
        (b"1", db.DB_LOCK_IWRITE),
        (b"1/d", db.DB_LOCK_IWRITE),
        (b"1/d/f", db.DB_LOCK_WRITE),
    )
    started = time.perf_counter()
    for _ in range(PAIRS):
        held = [env.lock_get(owner, name, mode) for name, mode in wanted]
        for each in reversed(held):
            env.lock_put(each)
    speed = PAIRS / (time.perf_counter() - started)
    env.close()
    return speed


async def pairs(locks: Locks) -> None:
    floor = await nested(asyncio.Lock)
    line("asyncio.Lock, three nested", floor)
    line("vaultfs, depth 3, nodes made and collected", await ours(locks), floor)
    async with locks.hold(Owner("b"), TREE, {("d", "g"): Mode.X}):
        line("vaultfs, depth 3, folders resident", await ours(locks), floor)
    for name in ("aiorwlock", "readerwriterlock", "fasteners"):
        try:
            module = import_module("readerwriterlock.rwlock" if name[0] == "r" else name)
        except ImportError:
            print(f"{name} is not installed")
            continue
        line(f"{name}, three nested", await _peer(name, module), floor)
    try:
        module = import_module("berkeleydb")
    except ImportError:
        print("berkeleydb is not installed")
        return
    with TemporaryDirectory() as folder:
        line("Berkeley DB, two intents and a lock", berkeley(module, folder), floor)


def _flat(locks: list[asyncio.Lock], _task: int, file: int) -> Any:
    return locks[file]


def _held(
    locks: Locks,
    owners: list[Owner],
    wanted: list[dict[tuple[str, ...], Mode]],
    task: int,
    file: int,
) -> Any:
    return locks.hold(owners[task], TREE, wanted[file])


async def contention(locks: Locks) -> None:
    for tasks, files, turns in ((64, 1, 200), (1000, 100, 10), (1000, 1, 10)):
        flat = [asyncio.Lock() for _ in range(files)]
        base, _ = await contended(tasks, files, turns, partial(_flat, flat))
        owners = [Owner(f"t{number}") for number in range(tasks)]
        wanted: list[dict[tuple[str, ...], Mode]] = [
            {("d", str(number)): Mode.X} for number in range(files)
        ]
        speed, tail = await contended(tasks, files, turns, partial(_held, locks, owners, wanted))
        line(f"vaultfs, {tasks} tasks on {files} files", speed, base)
        print(f"{'':44} p99 of the waits is {tail:.1f} x their median")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    tune()
    clock = SystemClock()
    async with open_locks(MemoryLockStore(clock), clock) as locks:
        for _ in range(runs):
            await pairs(locks)
            await contention(locks)
            for size in (10, 100, 1000):
                told = median([await circle(locks, size) for _ in range(5)])
                line(f"circle of {size} owners told", told, unit="ms")
            took, gave = await batch(locks)
            line("1,000 paths taken", took, unit="ms")
            line("1,000 paths given back", gave, unit="ms")
            line("64 tasks, 100 of 1,000 paths each", await batches(locks), unit="locks/s")
            print()


if __name__ == "__main__":
    asyncio.run(main())

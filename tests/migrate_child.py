"""A process that moves a vault from one folder to another, through every phase and both ways
back, and writes meanwhile; it may die, or stand still, in the middle.

    python -m tests.migrate_child WHERE FOLDER NUMBER SIGNAL

`WHERE` is the address of a PostgreSQL or a SQLite file, `FOLDER` that of the stores. It sends
itself `SIGNAL` at effect NUMBER; 0 for never. It says which files it has put, and in the end how
many effects there were. Run again, it goes on from wherever the vault is.
"""

import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
from tests.batch_child import open_catalog
from tests.faults import CountingCatalog, at, put, random_bytes

from vaultfs.adapters.local import LocalObjectStore
from vaultfs.adapters.system import SystemClock
from vaultfs.adapters.wrappers.counting import CountingObjectStore, Effect
from vaultfs.adapters.wrappers.placed import PlacedObjectStore
from vaultfs.domain.errors import Busy, NotFound
from vaultfs.domain.migration import Command, Level, Phase, Placement
from vaultfs.domain.services import migrator
from vaultfs.domain.services.collector import Options
from vaultfs.domain.services.migrator import Migrator
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.settings import MIB, Settings
from vaultfs.entrypoints.vault import Vault, compose
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.objects import ObjectStore

STORES: Final = ("s", "t")
SIZE: Final = 3000
AT_ONCE: Final = Options(grace_us=0, confirmed=True)
Told = Callable[[str], None]


@asynccontextmanager
async def opened(
    where: str, folder: Path, effect: Effect = lambda _: None
) -> AsyncGenerator[Vault, None]:
    """The vault, with `effect` called around everything that changes it."""
    catalog = await open_catalog(where)
    stores: dict[str, ObjectStore] = {}
    for name in STORES:
        stores[name] = CountingObjectStore(await LocalObjectStore.open(folder / name), effect)
    counting = CountingCatalog(catalog, effect)
    first = await catalog.placement() or Placement(0, Phase.SETTLED, STORES[0])

    async def load() -> Placement:
        return await counting.placement() or first

    try:
        placed = PlacedObjectStore(stores, first, load)
        settings = Settings(folder, 64 * MIB, 2)
        async with compose(settings, placed, counting, SystemClock()) as vault:
            yield vault
    finally:
        await catalog.aclose()
        for store in stores.values():
            await store.aclose()


def content_of(name: str) -> bytes:
    return random_bytes(SIZE, name)


async def write(vault: Vault, name: str, told: Told) -> None:
    await put(vault, f"/{name}", content_of(name))
    told(name)


async def has(vault: Vault, name: str) -> bool:
    try:
        await vault.files.stat(vault.user, at(f"/{name}"))
    except NotFound:
        return False
    return True


async def collect(vault: Vault, name: str) -> None:
    """Have garbage, and let go of it; unless somebody else is at that."""
    await put(vault, f"/{name}", content_of(name))
    await vault.files.delete(vault.user, at(f"/{name}"))
    for node, _ in await vault.files.trash(vault.user, OWNER):
        with suppress(NotFound):
            await vault.files.purge(vault.user, OWNER, node.id)
    with suppress(Busy):
        await vault.collector().run(AT_ONCE)


async def journey(vault: Vault, told: Told = lambda _: None) -> None:
    """Whatever is left of the way, from wherever the vault is."""
    mover = await vault.migrator()
    while not await has_moved(vault.catalog):
        phase = await phase_of(vault.catalog)
        match phase:
            case Phase.SETTLED:
                await mover.start("t", Level.ALL)
            case Phase.DRAFT:
                await mover.follow(Command.START)
            case Phase.RETIRED:
                await mover.retire("s")
            case Phase.COPYING | Phase.REVERSING:
                await write(vault, f"in-{phase}", told)
                await copied(mover)
                await mover.advance()
            case Phase.DUAL:
                await write(vault, "in-dual", told)
                await copied(mover)
                await collect(vault, "garbage-in-dual")
                await copied(mover)
                await mover.follow(Command.CUTOVER)
            case Phase.SOAK:
                await _after_cutover(vault, mover, told)
            case Phase.ROLLED_BACK:
                await write(vault, "in-rolled-back", told)
                await copied(mover)
                await mover.follow(Command.DUAL)
            case Phase.DETACHED if not await has(vault, "in-detached"):
                await write(vault, "in-detached", told)
                await mover.follow(Command.ROLLBACK)
            case _:
                await mover.follow(Command.RETIRE)
    await write(vault, "settled", told)


async def _after_cutover(vault: Vault, mover: Migrator, told: Told) -> None:
    if not await has(vault, "in-soak"):
        await write(vault, "in-soak", told)
        await collect(vault, "garbage-in-soak")
        await mover.follow(Command.ROLLBACK)
        return
    await copied(mover)
    await mover.follow(Command.DETACH)


async def phase_of(catalog: Catalog) -> Phase:
    now = await catalog.placement()
    return Phase.SETTLED if now is None else now.phase


async def has_moved(catalog: Catalog) -> bool:
    """Whether all is over."""
    now = await catalog.placement()
    return now is not None and now.phase is Phase.SETTLED and now.source == "t"


async def copied(mover: Migrator) -> None:
    """Copy until all is there, or there is no more to copy: what somebody else has claimed is
    waited for.
    """
    while not await mover.run():
        now = await mover.catalog.placement()
        if now is None or now.copies is None:
            return
        await anyio.sleep(0.05)


async def run(where: str, folder: Path, deadly: int, sign: int) -> None:
    count = 0
    if sign == signal.SIGSTOP:
        # In the middle of a transaction of another task SQLite would keep everybody out.
        migrator.MOST = 1  # type: ignore[misc]

    def effect(_: str) -> None:
        nonlocal count
        count += 1
        if count == deadly:
            os.kill(os.getpid(), sign)

    def told(name: str) -> None:
        sys.stdout.write(f"put {name}\n")
        sys.stdout.flush()

    async with opened(where, folder, effect) as vault:
        await journey(vault, told)
    sys.stdout.write(f"effects {count}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    place, stores, number, signal_number = sys.argv[1:]
    anyio.run(run, place, Path(stores), int(number), int(signal_number))

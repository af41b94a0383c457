"""A process that collects garbage in a vault, then scrubs it, and may kill itself in the middle.

    python -m tests.collect_child WHERE FOLDER NUMBER         dies at effect NUMBER; 0 for never
    python -m tests.collect_child WHERE FOLDER NUMBER help    only rewrites packs for another one

`WHERE` is the address of a PostgreSQL or a SQLite file, `FOLDER` that of the objects; `furnish`
has filled them. Says in the end how many effects there were, and how many packs it rewrote.
"""

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from tests.batch_child import open_catalog
from tests.faults import CountingCatalog, MemoryTree, at, put, random_bytes

from vaultfs.adapters.local import LocalObjectStore
from vaultfs.adapters.system import SystemClock
from vaultfs.adapters.wrappers.counting import CountingObjectStore, Effect
from vaultfs.domain.digests import digest_of
from vaultfs.domain.services.collector import Options
from vaultfs.domain.services.packer import PACK_PREFIX
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.settings import MIB, Settings
from vaultfs.entrypoints.vault import Vault, compose

AT_ONCE: Final = Options(grace_us=0, confirmed=True)
FILES: Final = {f"f{number}": random_bytes(30_000, number) for number in range(40)}


async def furnish(vault: Vault) -> None:
    """Have packs of every fate, pages, and an object that no row names."""
    await put(vault, "/large", random_bytes(3 * MIB, "large"))
    await put(vault, "/gone", random_bytes(2 * MIB, "gone"))
    report = await vault.transfer.put(vault.user, MemoryTree(FILES), at("/sparse"))
    assert report.complete
    for number in range(17):
        await put(vault, f"/tiny/{number}", random_bytes(5000, f"tiny-{number}"))
    for path in ("/gone", "/tiny/3", *(f"/sparse/f{number}" for number in range(25))):
        await vault.files.delete(vault.user, at(path))
    for node, _ in await vault.files.trash(vault.user, OWNER):
        await vault.files.purge(vault.user, OWNER, node.id)
    await vault.files.delete(vault.user, at("/tiny/4"))  # stays in the trash
    await vault.objects.put(f"{PACK_PREFIX}{digest_of(b'orphan').hex()}", b"orphan")


@asynccontextmanager
async def opened(
    where: str, folder: Path, effect: Effect = lambda _: None
) -> AsyncGenerator[Vault, None]:
    """The vault, with `effect` called around everything that changes it."""
    catalog, store = await open_catalog(where), await LocalObjectStore.open(folder)
    try:
        parts = CountingObjectStore(store, effect), CountingCatalog(catalog, effect)
        async with compose(Settings(folder, 64 * MIB, 2), *parts, SystemClock()) as vault:
            yield vault
    finally:
        await catalog.aclose()
        await store.aclose()


async def run(where: str, folder: Path, deadly: int, *, helps: bool) -> None:
    count = helped = 0

    def effect(_: str) -> None:
        nonlocal count
        count += 1
        if count == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    async with opened(where, folder, effect) as vault:
        if helps:
            helped = await vault.collector().help()
        else:
            await vault.collector().run(AT_ONCE)
            await vault.scrubber().run(timedelta())
    sys.stdout.write(f"effects {count} helped {helped}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    place, objects, number, *rest = sys.argv[1:]
    anyio.run(partial(run, place, Path(objects), int(number), helps=rest == ["help"]))

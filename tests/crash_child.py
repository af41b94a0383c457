"""A process that works on a vault and may kill itself in the middle.

    python -m tests.crash_child script VAULT LOCAL [NUMBER]    the steps, until effect NUMBER
    python -m tests.crash_child put VAULT LOCAL                one tree, from the folder LOCAL

Says `done NAME` on its standard output behind every step that has returned, and in the
end how many effects there were. `LOCAL` is a folder with the tree to be put.
"""

import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from tests.faults import CountingCatalog, at, put, random_bytes, upload

from vaultfs.adapters.files import LocalSource
from vaultfs.adapters.system import SystemClock
from vaultfs.adapters.wrappers.counting import CountingObjectStore, Effect
from vaultfs.entrypoints.opening import open_catalog
from vaultfs.entrypoints.settings import MIB, Settings
from vaultfs.entrypoints.vault import Vault, compose, open_store

FIRST: Final = random_bytes(3 * MIB, "first")
"""More than 16 chunks: it has a manifest page."""
SECOND: Final = FIRST[:MIB] + random_bytes(300_000, "second") + FIRST[MIB:]


async def put_tree(vault: Vault, local: Path) -> None:
    report = await vault.transfer.put(vault.user, LocalSource(local), at("/tree"))
    assert report.complete, report


async def purge(vault: Vault) -> None:
    """Purge everything in the trash."""
    for node, _ in await vault.files.trash(vault.user, vault.user.name):
        await vault.files.purge(vault.user, vault.user.name, node.id)


async def restore(vault: Vault) -> None:
    """Bring back what `delete` deleted, the newest of it if there is more."""
    for node, path in reversed(await vault.files.trash(vault.user, vault.user.name)):
        if path == ("tree", "folder-1"):
            await vault.files.restore(vault.user, vault.user.name, node.id)
            return


async def delete(vault: Vault) -> None:
    await vault.files.delete(vault.user, at("/tree/folder-1"), recursive=True)


async def move(vault: Vault) -> None:
    await vault.files.move(vault.user, at("/tree/folder-0"), at("/moved"), replace=True)


async def drop(vault: Vault) -> None:
    await vault.files.delete(vault.user, at("/tree/folder-2"), recursive=True)


Step = Callable[[Vault, Path], Awaitable[object]]

STEPS: Final[dict[str, Step]] = {
    "put": lambda vault, _: put(vault, "/file", FIRST),
    "upload": lambda vault, _: upload(vault, "/uploaded", SECOND, 1_400_000),
    "put tree": put_tree,
    "overwrite": lambda vault, _: put(vault, "/file", SECOND),
    "move": lambda vault, _: move(vault),
    "delete": lambda vault, _: delete(vault),
    "restore": lambda vault, _: restore(vault),
    "restore version": lambda vault, _: vault.files.restore_version(vault.user, at("/file"), 1),
    "drop": lambda vault, _: drop(vault),
    "purge": lambda vault, _: purge(vault),
    "rebuild": lambda vault, _: vault.recovery.rebuild(),
    "backup": lambda vault, _: vault.recovery.backup(keep=1),
}
"""What is done, in this order; each may be done again, and leads to the same."""


@asynccontextmanager
async def opened(folder: Path, effect: Effect) -> AsyncGenerator[Vault, None]:
    """The vault in `folder`, with `effect` called around everything that changes it."""
    catalog, store = await open_catalog(folder), await open_store(folder)
    try:
        parts = CountingObjectStore(store, effect), CountingCatalog(catalog, effect)
        async with compose(Settings(folder, 64 * MIB, 2), *parts, SystemClock()) as vault:
            yield vault
    finally:
        await catalog.aclose()
        await store.aclose()


async def run(
    folder: Path,
    local: Path,
    *,
    effect: Effect = lambda _: None,
    done: Callable[[str, Vault], Awaitable[None]],
) -> None:
    """Do all steps; `done` is called behind each."""
    async with opened(folder, effect) as vault:
        for name, step in STEPS.items():
            await step(vault, local)
            await done(name, vault)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _say(name: str, _: Vault | None = None) -> None:
    _print(f"done {name}")


async def _script(folder: Path, local: Path, deadly: int) -> None:
    count = 0

    def effect(what: str) -> None:
        nonlocal count
        count += 1
        if count == deadly:
            _print(f"dying {what}")
            os.kill(os.getpid(), signal.SIGKILL)

    await run(folder, local, effect=effect, done=_say)
    _print(f"effects {count}")


async def _put(folder: Path, local: Path) -> None:
    async with opened(folder, lambda _: None) as vault:
        source = LocalSource(local)
        async with aclosing(source.walk()) as batches:
            assert [batch async for batch in batches]
        await _say("opening")
        report = await vault.transfer.put(vault.user, source, at(f"/{local.name}"))
        assert report.complete, report
        await _say("put")


def main(what: str, folder: str, local: str, number: str = "0") -> None:
    if what == "script":
        anyio.run(_script, Path(folder), Path(local), int(number))
    else:
        anyio.run(_put, Path(folder), Path(local))


if __name__ == "__main__":
    main(*sys.argv[1:])

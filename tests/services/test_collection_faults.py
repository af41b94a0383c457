"""Collections that fail, or whose process is killed, at every effect: nothing that is needed is
lost, and the next collection finishes the work.

Processes are killed at a sample of the effects by default, at all with VAULTFS_CRASH_ALL=1.
"""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from tests.batch_child import open_catalog
from tests.collect_child import AT_ONCE, furnish, opened
from tests.faults import (
    ALL,
    Effects,
    State,
    add_user,
    assert_sound,
    open_memory_vault,
    quick_folder,
    state_of,
    struck,
)
from tests.postgres import Postgres
from tests.services.test_collector import sparse_vault

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.sql import collections as programs
from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.adapters.wrappers.counting import Effect
from vaultfs.domain.collection import LEASE_US
from vaultfs.domain.errors import VaultError
from vaultfs.domain.services.collector import Options
from vaultfs.domain.services.packer import PACK_PREFIX, pack_key
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.objects import ObjectInfo, ObjectStore, Span

ROOT: Final = Path(__file__).parents[2]
SAMPLE: Final = 6


class ReadsToo(StoreAround):
    """A store with `effect` called before everything that is read of it."""

    def __init__(self, inner: ObjectStore, effect: Effect) -> None:
        super().__init__(inner)
        self._effect = effect

    async def get(self, key: str, span: Span | None = None) -> bytes:
        self._effect(f"before {self.name} get {key}")
        return await self.inner.get(key, span)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:
            async for info in objects:
                self._effect(f"before {self.name} list {info.key}")
                yield info


async def assert_finished(vault: Vault, before: State) -> None:
    """What is needed is there, and nothing else."""
    assert await state_of(vault) == before
    await assert_sound(vault)
    assert await vault.catalog.doomed() == []
    stored = {info.key async for info in vault.objects.list(PACK_PREFIX)}
    assert stored == {pack_key(pack.key) for pack in await vault.catalog.packs()}
    assert (await vault.recovery.usage()).unreferenced < 2000
    assert (await vault.catalog.collections(limit=1))[0].complete


@pytest.mark.timeout(600)
@pytest.mark.slow
async def test_a_collection_that_fails_anywhere_loses_nothing_and_is_finished_later() -> None:
    number, seen, had = 0, set[str](), True
    while had:
        number += 1
        effects = Effects()
        store = ReadsToo(MemoryObjectStore(), effects)
        async with open_memory_vault(store=store, effect=effects) as vault:
            await furnish(vault)
            before = await state_of(vault)
            effects.start(number)
            with suppress(VaultError):
                await vault.collector().run(AT_ONCE)
            had = len(effects.seen) >= number
            seen.update(_kind(each) for each in effects.seen)
            effects.start(None)
            assert await state_of(vault) == before
            await assert_sound(vault)
            assert isinstance(vault.clock, ManualClock)
            vault.clock.advance(timedelta(microseconds=LEASE_US))  # its end may have failed too
            await vault.collector().run(AT_ONCE)
            await assert_finished(vault, before)
    assert number > 60
    steps = {"Begin", "Condemn", "MoveChunks", "Discard", "Doom", "NoteDeleted", "End"}
    assert seen >= {*(f"catalog {step}" for step in steps), "put", "delete_many", "get", "list"}


def _kind(effect: str) -> str:
    words = effect.split()
    return f"catalog {words[3]}" if words[1:3] == ["catalog", "collect"] else words[2]


# Processes that are killed

Place = Callable[[Path], AbstractContextManager[tuple[str, Callable[[], object]]]]
"""Where a catalog can be made, and what has the lease of a collection run out."""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "sqlite":
        return _file
    postgres: Postgres = request.getfixturevalue("postgres")

    @contextmanager
    def database(_: Path) -> Generator[tuple[str, Callable[[], object]], None, None]:
        with postgres.database() as url:
            yield url, lambda: postgres.run(_OVER, url.rpartition("/")[2])

    return database


_OVER: Final = "UPDATE collections SET seen = 0"


@contextmanager
def _file(folder: Path) -> Generator[tuple[str, Callable[[], object]], None, None]:
    file = folder / "catalog.db"

    def over() -> None:
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute(_OVER)
        connection.close()

    yield str(file), over


@pytest.mark.timeout(3600 if ALL else 300)
@pytest.mark.slow
async def test_a_collection_whose_process_is_killed_is_finished_by_the_next(place: Place) -> None:
    count = await _killed_at(0, place)
    for number in struck(count, "collections", SAMPLE):
        await _killed_at(number, place)


async def _killed_at(number: int, place: Place) -> int:
    """How many effects a collection had that was to be killed at one of them."""
    with quick_folder() as folder, place(folder) as (where, lease_over):
        objects = await _made(where, folder)
        async with opened(where, objects) as vault:
            await furnish(vault)
            before = await state_of(vault)
        done = _child(where, objects, number)
        async with opened(where, objects) as vault:
            assert await state_of(vault) == before
            await assert_sound(vault)
            lease_over()
            await vault.collector().run(AT_ONCE)
            await assert_finished(vault, before)
        return int(done.stdout.split()[1]) if done.stdout else 0


async def _made(where: str, folder: Path) -> Path:
    """Make an empty vault; where its objects are."""
    objects = folder / "objects"
    objects.mkdir()
    catalog = await open_catalog(where, create=True)
    await add_user(catalog, OWNER)
    await catalog.aclose()
    return objects


def _child(where: str, objects: Path, number: int, *rest: str) -> subprocess.CompletedProcess[str]:
    """Run a process that collects, and is killed at effect `number`, or not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.collect_child", where, str(objects), str(number), *rest],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if number else 0), done.stderr
    return done


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_processes_share_what_is_to_be_rewritten_and_one_is_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "REWRITE_US", 1_000_000)
    helped: list[str] = []

    def effect(what: str) -> None:  # others come while it is about to store its first pack
        if what.startswith("before") and " put " in what and armed and not helped:
            helped.append("")
            _child(where, objects, 1, "help")
            helped.append(_child(where, objects, 0, "help").stdout.split()[-1])

    with quick_folder() as folder, place(folder) as (where, _):
        armed, objects = False, await _made(where, folder)
        async with opened(where, objects, effect) as vault:
            await sparse_vault(vault, monkeypatch)  # five times four packs
            before, armed = await state_of(vault), True
            report = await vault.collector().run(Options(only_repack=True))
            assert helped == ["", "12"]  # one of the groups was its own, one that of the dead
            assert report.rewritten == 20
            assert await state_of(vault) == before
            await assert_sound(vault)
            await vault.collector().run(AT_ONCE)
            await assert_finished(vault, before)

"""Migrations that fail, or whose process is killed or stands still, at every effect: nothing that
was acknowledged is lost, and somebody else carries the migration to its end.

Processes are stopped at a sample of the effects by default, at all with VAULTFS_CRASH_ALL=1.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import pytest
from tests.batch_child import open_catalog
from tests.faults import (
    ALL,
    Effects,
    add_user,
    assert_sound,
    put,
    quick_folder,
    read,
    state_of,
    struck,
)
from tests.migrate_child import STORES, content_of, has_moved, journey, opened
from tests.postgres import Postgres

from vaultfs.domain import migrating
from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.vault import Vault, write_marker

ROOT: Final = Path(__file__).parents[2]
SAMPLE: Final = 6
FIRST: Final = tuple(f"before-{number}" for number in range(3))
"""Files that are there before the migration."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if ALL else 600)]

Place = Callable[[Path], AbstractContextManager[str]]
"""Where a catalog can be made."""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "sqlite":
        return _file
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda _: postgres.database()


@contextmanager
def _file(folder: Path) -> Generator[str, None, None]:
    yield str(folder / "catalog.db")


@pytest.fixture(autouse=True)
def short_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes after a process that is gone does not wait five minutes for its packs."""
    monkeypatch.setattr(migrating, "CLAIM_US", 300_000)


@asynccontextmanager
async def furnished(place: Place) -> AsyncGenerator[tuple[str, Path], None]:
    """The catalog and the stores of a vault that has not moved yet."""
    with quick_folder() as folder, place(folder) as where:
        for name in STORES:
            (folder / name).mkdir()
        catalog = await open_catalog(where, create=True)
        await add_user(catalog, OWNER)
        vault_id = await catalog.vault_id()
        await catalog.aclose()
        async with opened(where, folder) as vault:
            await write_marker(vault.objects, vault_id)
            for name in FIRST:
                await put(vault, f"/{name}", content_of(name))
        yield where, folder


async def check(vault: Vault, *names: str) -> None:
    """What was acknowledged is there, whatever else is there is right, and the rows as well."""
    await assert_sound(vault)
    for name in (*FIRST, *names):
        assert await read(vault, f"/{name}") == content_of(name)
    for path in (each for each in await state_of(vault) if each.startswith("/")):
        assert await read(vault, path) == content_of(path.removeprefix("/")), path
    await vault.objects.refresh()
    for name in vault.objects.placement.stores:  # one that is given up is being emptied
        store = vault.objects.stores[name]
        for row in await vault.catalog.packs_in(name):
            assert (await store.head(f"packs/{row.key.hex()}")).size == row.size, name


async def finish(where: str, folder: Path, *names: str) -> None:
    """Look at the vault as it is, carry the migration to its end, and look again."""
    async with opened(where, folder) as vault:
        await check(vault, *names)
        with anyio.fail_after(60):
            await journey(vault)
        await check(vault, *names, "in-copying", "in-dual", "in-soak", "in-detached", "settled")
        assert await has_moved(vault.catalog)
        assert vault.objects.name == "t"
    assert not [each for each in (folder / "s").rglob("packs/**/*") if each.is_file()]


@contextmanager
def child(
    where: str, folder: Path, number: int, sign: int
) -> Generator["subprocess.Popen[str]", None, None]:
    words = (where, str(folder), str(number), str(int(sign)))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.migrate_child", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(text: str) -> tuple[list[str], int]:
    """Which files a child has put, and how many effects it had if it came to its end."""
    lines = [line.split() for line in text.splitlines()]
    names = [line[1] for line in lines if line[0] == "put"]
    return names, next((int(line[1]) for line in lines if line[0] == "effects"), 0)


async def numbers(place: Place, seed: str) -> list[int]:
    """The effects to stop at."""
    async with furnished(place) as (where, folder):
        with child(where, folder, 0, signal.SIGKILL) as process:
            out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        names, count = told(out)
        await finish(where, folder, *names)
    assert count > 60
    return struck(count, seed, SAMPLE)


async def test_whoever_comes_after_a_killed_process_carries_on(place: Place) -> None:
    for number in await numbers(place, "killed"):
        async with furnished(place) as (where, folder):
            with child(where, folder, number, signal.SIGKILL) as process:
                out, errors = process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL, errors
            await finish(where, folder, *told(out)[0])


async def test_a_process_that_stood_still_through_all_of_it_does_no_harm(place: Place) -> None:
    for number in await numbers(place, "stopped"):
        async with furnished(place) as (where, folder):
            with child(where, folder, number, signal.SIGSTOP) as process:
                try:
                    _, status = os.waitpid(process.pid, os.WUNTRACED)
                    assert os.WIFSTOPPED(status), status
                    await finish(where, folder)
                finally:
                    process.send_signal(signal.SIGCONT)
                out, _ = process.communicate(timeout=120)  # it may be told that it is too late
            async with opened(where, folder) as vault:
                await check(vault, *told(out)[0])
                assert await has_moved(vault.catalog)


async def test_an_effect_that_fails_or_whose_answer_is_lost_is_made_good(place: Place) -> None:
    effects, number, step = Effects(), 0, 1
    while True:
        number += step
        async with furnished(place) as (where, folder):
            names: list[str] = []
            effects.start(number)
            async with opened(where, folder, effects) as vault:
                with suppress(VaultError):
                    await journey(vault, names.append)
                had = len(effects.seen) >= number
                effects.start(None)
            await finish(where, folder, *names)
        if not had:
            break
        step = 1 if ALL else max(1, len(effects.seen) // SAMPLE, 17)

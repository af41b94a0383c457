"""Processes are killed at every effect, and what they acknowledged is there, whole.

By default at a sample of the effects; at all of them with VAULTFS_CRASH_ALL=1.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import anyio
import pytest
from attrs import frozen
from tests import crash_child
from tests.faults import (
    ALL,
    State,
    assert_between,
    assert_sound,
    below,
    files_of,
    quick_folder,
    random_bytes,
    small_files,
    state_of,
    struck,
    write_tree,
)

from vaultfs.adapters.local import LocalObjectStore
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import Exists
from vaultfs.domain.integrity import Depth
from vaultfs.domain.services.packer import PACK_PREFIX
from vaultfs.domain.services.recovery import BACKUPS
from vaultfs.entrypoints.settings import MIB, Settings
from vaultfs.entrypoints.vault import MARKER, Vault, init_vault, open_vault

ROOT: Final = Path(__file__).parents[2]
SAMPLE: Final = 12
LOCAL = {**small_files(30), "large/one": random_bytes(MIB, "one")}

pytestmark = pytest.mark.slow


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Vault, None]:
    async with open_vault(Settings(folder, 64 * MIB, 2)) as vault:
        yield vault


def child(what: str, folder: Path, local: Path, number: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.crash_child", what, str(folder), str(local)]
    return subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@frozen
class Run:
    """What a run of all steps leads to: the state behind each, and how many effects there are."""

    states: tuple[State, ...]
    effects: int


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def local(place: Path) -> Path:
    folder = place / "tree"
    write_tree(folder, LOCAL)
    return folder


@pytest.fixture
async def whole_run(local: Path, place: Path) -> Run:
    folder = place / "whole"
    await init_vault(folder)
    states: list[State] = [{}]
    effects: list[str] = []

    async def done(_: str, vault: Vault) -> None:
        states.append(await state_of(vault))

    await crash_child.run(folder, local, effect=effects.append, done=done)
    assert len(states[-1]) > 20
    return Run(tuple(states), len(effects))


@pytest.mark.timeout(1800 if ALL else 300)
async def test_what_a_killed_process_acknowledged_is_there(
    whole_run: Run, local: Path, place: Path
) -> None:
    """And each step that it did not is there whole or not at all; going on converges."""
    for number in struck(whole_run.effects, "crashes", SAMPLE):
        await _killed_at(number, whole_run, local, place / f"{number}")


async def _killed_at(number: int, whole: Run, local: Path, folder: Path) -> None:
    await init_vault(folder)
    with child("script", folder, local, number) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    count = said.count("done ")
    before, after = whole.states[count], whole.states[count + 1]
    async with opened(folder) as vault:
        found = await state_of(vault)
        if list(crash_child.STEPS)[count] in {"put tree", "purge"}:
            assert_between(found, before, after)  # each file by itself
        else:
            assert found in (before, after), said
        await assert_sound(vault)
        await _assert_tidy(vault)
        assert len(await vault.recovery.backups()) <= 1
    await _goes_on(folder, local, whole)


async def _goes_on(folder: Path, local: Path, whole: Run) -> None:
    """The same steps again lead to the same, apart from how often a file was written."""

    async def done(_: str, __: Vault) -> None:
        return

    await crash_child.run(folder, local, done=done)
    async with opened(folder) as vault:
        found, wanted = await state_of(vault), whole.states[-1]
        assert {path: held[-1] for path, held in found.items()} == {
            path: held[-1] for path, held in wanted.items()
        }
        assert len(await vault.recovery.backups()) == 1
        await assert_sound(vault)


async def _assert_tidy(vault: Vault) -> None:
    """Nothing is listed but what a vault puts, and packs have the digest that they are called."""
    async for info in vault.objects.list():
        if info.key.startswith(PACK_PREFIX):
            data = await vault.objects.get(info.key)
            assert digest_of(data).hex() == info.key.removeprefix(PACK_PREFIX)
        else:
            assert info.key == MARKER or info.key.startswith(BACKUPS)


@pytest.mark.parametrize("seed", range(20 if ALL else 3))
async def test_a_tree_put_that_is_killed_at_any_time_goes_on(seed: int, place: Path) -> None:
    folder, random = place / "vault", Random(seed)
    trees = {
        "first": small_files(50, seed="first", size=1000),
        "second": small_files(2000, seed="second", size=1000),
    }
    for name, contents in trees.items():
        write_tree(place / name, contents)
    await init_vault(folder)
    with child("put", folder, place / "first") as process:
        said, _ = process.communicate(timeout=60)
    assert "done put" in said
    with child("put", folder, place / "second") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done opening\n"
        time.sleep(random.random() * 0.5)
        process.kill()
        said, _ = process.communicate(timeout=60)
    first, second = (below(f"/{name}", contents) for name, contents in trees.items())
    async with opened(folder) as vault:
        found = await state_of(vault)
        assert_between(found, first, {**first, **second})
        if "done put" in said:
            assert found == {**first, **second}
        assert (await vault.integrity.verify(Depth.FULL)).clean
        await _assert_tidy(vault)
    with child("put", folder, place / "second") as process:
        said, _ = process.communicate(timeout=60)
    assert "done put" in said
    async with opened(folder) as vault:
        assert await state_of(vault) == {**first, **second}
        await assert_sound(vault)


async def test_an_init_that_was_killed_is_taken_up_again(place: Path) -> None:
    for number in range(6):
        folder = place / f"{number}"
        command = "import sys, anyio; from pathlib import Path"
        command += "; from vaultfs.entrypoints.vault import init_vault"
        command += "; print('go', flush=True); anyio.run(init_vault, Path(sys.argv[1]))"
        arguments = [sys.executable, "-c", command, str(folder)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            process.stdout.readline()
            await anyio.sleep(0.008 * number)
            process.kill()
        with suppress(Exists):  # it may have come to its end
            await init_vault(folder)
        async with opened(folder) as vault:
            assert await files_of(vault) == []


async def test_an_init_that_got_as_far_as_its_store_is_taken_up_again(place: Path) -> None:
    folder = place / "vault"
    (folder / "objects").mkdir(parents=True)
    store = await LocalObjectStore.open(folder / "objects")
    await store.aclose()
    await init_vault(folder)
    async with opened(folder) as vault:
        assert await files_of(vault) == []


async def test_leftovers_of_a_crash_are_invisible_and_go_a_day_later(place: Path) -> None:
    folder = place / "vault"
    await init_vault(folder)
    fresh, old = (folder / "objects/.tmp" / name for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"half a pack")
    day_before = time.time() - 25 * 3600
    os.utime(old, (day_before, day_before))
    async with opened(folder) as vault:
        await _assert_tidy(vault)
        await assert_sound(vault)
    assert fresh.exists()
    assert not old.exists()

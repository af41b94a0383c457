"""Processes on one vault that are killed or stopped while they hold locks."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio import to_thread

import vaultfs
from vaultfs.domain.errors import Locked, LockTimedOut
from vaultfs.entrypoints.vault import init_vault

TOP: Final = Path(__file__).parents[2]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    await init_vault(tmp_path / "vault")
    return tmp_path / "vault"


@contextmanager
def child(*words: object) -> "Generator[subprocess.Popen[str], None, None]":
    with subprocess.Popen(
        [sys.executable, "-m", "tests.locks_child", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    text = await to_thread.run_sync(process.stdout.readline)
    assert text, "it ended"
    return text.strip()


def write(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


@pytest.mark.slow
async def test_what_a_killed_process_held_is_given_back(folder: Path) -> None:
    with child("hold", folder, "/a", 0) as process:
        await line(process)
        async with vaultfs.open(folder) as vault:
            with pytest.raises(LockTimedOut):
                async with vault.lock("/a", timeout=0.2):
                    pass
            process.kill()
            with anyio.fail_after(15):
                async with vault.lock("/a") as locked:
                    await locked.put("/a", b"mine now")
            snapshot = await vault.vault.locks.snapshot(vault.vault.user.tree)
            assert (snapshot.held, snapshot.queued) == ((), ())


async def test_a_lease_outlives_the_process_that_took_it(folder: Path) -> None:
    with child("hold", folder, "/a", 3) as process:
        name = await line(process)
    async with vaultfs.open(folder) as vault:
        with pytest.raises(Locked, match=name.split(".")[0]):
            await vault.put("/a", b"too early")
        with anyio.fail_after(10):
            async with vault.lock("/a") as locked:
                await locked.put("/a", b"in time")


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
async def test_a_stopped_holder_that_ran_out_damages_nothing(folder: Path, taken: bool) -> None:
    async with vaultfs.open(folder) as vault:
        with child("hold", folder, "/a", 1) as process:
            await line(process)
            write(process, "first")
            assert await line(process) == "stored"
            process.send_signal(signal.SIGSTOP)
            write(process, "from the grave")
            await anyio.sleep(1.2)
            if taken:
                async with vault.lock("/a", timeout=5) as locked:
                    await locked.put("/a", b"second")
            process.send_signal(signal.SIGCONT)
            assert await line(process) == "StaleToken"
        assert await vault.get("/a") == (b"second" if taken else b"first\n")


@pytest.mark.slow
async def test_a_process_that_was_taken_for_dead_has_nothing_when_it_wakes(folder: Path) -> None:
    async with vaultfs.open(folder) as vault:
        with child("hold", folder, "/a", 0) as process:
            await line(process)
            process.send_signal(signal.SIGSTOP)
            write(process, "from the grave")
            with anyio.fail_after(20):
                async with vault.lock("/a") as locked:
                    process.send_signal(signal.SIGCONT)
                    assert await line(process) == "StaleToken"
                    await locked.put("/a", b"mine")
        assert await vault.get("/a") == b"mine"


async def _added(folder: Path, guard: str) -> tuple[set[str], set[str]]:
    """What three processes were told is in the set, and what is."""
    names: set[str] = set()

    async def collect(process: "subprocess.Popen[str]") -> None:
        for _ in range(15):
            names.add(await line(process))

    async with vaultfs.open(folder) as vault:
        with (
            child("add", folder, "/set", "a", 15, guard) as one,
            child("add", folder, "/set", "b", 15, guard) as two,
            child("add", folder, "/set", "c", 15, guard) as three,
        ):
            async with anyio.create_task_group() as tasks:
                for process in (one, two, three):
                    tasks.start_soon(collect, process)
        there = set(json.loads(await vault.get("/set")))
    return names, there


async def test_guarded_additions_to_a_set_are_all_there(folder: Path) -> None:
    told, there = await _added(folder, "guarded")
    assert told == there
    assert len(there) == 45


async def test_unguarded_ones_get_lost(folder: Path) -> None:
    """Else the test above would show nothing."""
    told, there = await _added(folder, "plain")
    assert there < told

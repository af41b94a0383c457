"""Processes on one vault, in a folder or in PostgreSQL, that are killed or stopped.

`VAULTFS_NEMESIS` says how many blows the test of many of them deals instead of a few, and
`VAULTFS_SEED` which.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

import anyio
import pytest
from anyio import to_thread
from attrs import define, field
from tests.locks_child import opened
from tests.postgres import Postgres

from vaultfs.adapters.sql.lockview import BEAT, DEAD_AFTER
from vaultfs.domain.errors import Locked, LockTimedOut
from vaultfs.domain.services.lockview import Snapshot
from vaultfs.entrypoints.sdk import Vault
from vaultfs.entrypoints.settings import Settings, read_settings
from vaultfs.entrypoints.vault import init_database, init_vault

pytestmark = pytest.mark.slow  # real processes

TOP: Final = Path(__file__).parents[2]
BLOWS: Final = int(os.environ.get("VAULTFS_NEMESIS", "8"))
SEED: Final = int(os.environ.get("VAULTFS_SEED", "1"))
LEASE: Final = 0.5
NOTHING: Final = Snapshot((), (), {})


@pytest.fixture(params=["folder", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "folder":
        await init_vault(tmp_path / "vault")
        return read_settings(tmp_path / "vault")
    database: str = request.getfixturevalue("database")
    settings = read_settings(database=database, store=(tmp_path / "objects").as_uri())
    await init_database(settings)
    return settings


def environment(place: Settings) -> dict[str, str]:
    if place.database is None:
        named = {"VAULTFS_VAULT": str(place.folder)}
    else:
        named = {"VAULTFS_DATABASE": place.database, "VAULTFS_STORE": place.home.as_uri()}
    return dict(os.environ) | named


@contextmanager
def child(place: Settings, *words: object) -> "Generator[subprocess.Popen[str], None, None]":
    with subprocess.Popen(
        [sys.executable, "-m", "tests.locks_child", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
        env=environment(place),
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
async def test_what_a_killed_process_held_is_given_back(place: Settings) -> None:
    with child(place, "hold", "/a", 0) as process:
        await line(process)
        async with opened(place) as vault:
            with pytest.raises(LockTimedOut):
                async with vault.lock("/a", timeout=0.2):
                    pass
            process.kill()
            with anyio.fail_after(DEAD_AFTER + 15):  # it is much sooner where others leave it room
                async with vault.lock("/a") as locked:
                    await locked.put("/a", b"mine now")
            snapshot = await vault.vault.locks.snapshot(vault.vault.user.tree)
            assert (snapshot.held, snapshot.queued) == ((), ())


async def test_a_lease_outlives_the_process_that_took_it(place: Settings) -> None:
    with child(place, "hold", "/a", 3) as process:
        name = await line(process)
    async with opened(place) as vault:
        with pytest.raises(Locked, match=name.split(".")[0]):
            await vault.put("/a", b"too early")
        with anyio.fail_after(10):
            async with vault.lock("/a") as locked:
                await locked.put("/a", b"in time")


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
async def test_a_stopped_holder_that_ran_out_damages_nothing(place: Settings, taken: bool) -> None:
    async with opened(place) as vault:
        with child(place, "hold", "/a", 1) as process:
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
async def test_a_process_that_was_taken_for_dead_has_nothing_when_it_wakes(place: Settings) -> None:
    async with opened(place) as vault:
        with child(place, "hold", "/a", 0) as process:
            await line(process)
            process.send_signal(signal.SIGSTOP)
            write(process, "from the grave")
            with anyio.fail_after(20):
                async with vault.lock("/a") as locked:
                    process.send_signal(signal.SIGCONT)
                    assert await line(process) == "StaleToken"
                    await locked.put("/a", b"mine")
        assert await vault.get("/a") == b"mine"


async def _added(place: Settings, guard: str) -> tuple[set[str], set[str]]:
    """What three processes were told is in the set, and what is."""
    names: set[str] = set()

    async def collect(process: "subprocess.Popen[str]") -> None:
        for _ in range(15):
            names.add(await line(process))

    async with opened(place) as vault:
        with (
            child(place, "add", "/set", "a", 15, guard) as one,
            child(place, "add", "/set", "b", 15, guard) as two,
            child(place, "add", "/set", "c", 15, guard) as three,
        ):
            async with anyio.create_task_group() as tasks:
                for process in (one, two, three):
                    tasks.start_soon(collect, process)
        there = set(json.loads(await vault.get("/set")))
    return names, there


async def test_guarded_additions_to_a_set_are_all_there(place: Settings) -> None:
    told, there = await _added(place, "guarded")
    assert told == there
    assert len(there) == 45


async def test_unguarded_ones_get_lost(place: Settings) -> None:
    """Else the test above would show nothing."""
    told, there = await _added(place, "plain")
    assert there < told


# Many of them, and what befalls them


@define(eq=False)
class Adders:
    """Processes that add to one set, until they are killed."""

    place: Settings
    guard: str
    told: set[str] = field(factory=set[str])
    """What those were told is in the set."""
    running: "list[subprocess.Popen[str]]" = field(factory=list["subprocess.Popen[str]"])
    _names: "count[int]" = field(factory=count)

    async def run(self) -> None:
        """Three of them; each that dies has a successor."""
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(self._run_one)
            await self._strike(Random(SEED))
            tasks.cancel_scope.cancel()

    async def _run_one(self) -> None:
        while True:
            with child(self.place, "add", "/set", next(self._names), 10**6, self.guard) as process:
                self.running.append(process)
                try:
                    await self._listen(process)
                finally:
                    self.running.remove(process)
                    process.kill()  # which ends a wait for its next line

    async def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        read = process.stdout.readline
        while text := await to_thread.run_sync(read, abandon_on_cancel=True):
            self.told.add(text.strip())
        assert process.wait() == -signal.SIGKILL, "it gave up"

    async def _strike(self, dice: Random) -> None:
        """Each blow falls on whoever has the lock, waits for it, or does neither just then."""
        with anyio.fail_after(60):
            while len(self.running) < 3 or len(self.told) < 10:
                await anyio.sleep(0.05)
        for blow in range(BLOWS):
            await anyio.sleep(dice.uniform(0.1, 0.6))
            while len(self.running) < 3:
                await anyio.sleep(0.05)
            process = self.running[dice.randrange(3)]
            if blow % 3 == 2:
                process.send_signal(signal.SIGKILL)
            else:
                process.send_signal(signal.SIGSTOP)
                await anyio.sleep(dice.uniform(1.2, 2) * LEASE)
                process.send_signal(signal.SIGCONT)


async def _drained(vault: Vault) -> None:
    """Wait until nobody has or wants anything any more."""
    own = vault.vault
    with anyio.fail_after(2 * DEAD_AFTER):
        while await own.locks.snapshot(own.user.tree) != NOTHING:
            await anyio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("guard", [LEASE, "plain"])
async def test_only_what_a_lease_guards_survives_kills_and_stops(
    place: Settings, guard: object
) -> None:
    adders = Adders(place, str(guard))
    await adders.run()
    async with opened(place) as vault:
        there: list[str] = json.loads(await vault.get("/set"))
        if guard == "plain":
            assert adders.told - set(there), "else the other case would show nothing"
            return
        assert not adders.told - set(there)
        assert len(there) == len(set(there))
        await _drained(vault)
        async with vault.lock("/set", timeout=5) as locked:
            await locked.put("/set", b"[]")
        assert await vault.vault.locks.snapshot(vault.vault.user.tree) == NOTHING


async def test_who_lives_is_told_by_the_clock_of_the_database(
    database: str, postgres: Postgres, tmp_path: Path
) -> None:
    """A process is dead when the database has not heard of it for long, whatever its clock."""
    settings = read_settings(database=database, store=(tmp_path / "objects").as_uri())
    await init_database(settings)
    name = database.rpartition("/")[2]
    with child(settings, "hold", "/a", 0) as process:
        await line(process)
        process.send_signal(signal.SIGSTOP)  # it would say that it lives
        async with opened(settings) as vault:
            with pytest.raises(LockTimedOut):
                async with vault.lock("/a", timeout=0.2):
                    pass
            postgres.run(f"UPDATE lock_sessions SET seen = seen - {DEAD_AFTER}", name)
            async with vault.lock("/a", timeout=BEAT + 2) as locked:
                await locked.put("/a", b"mine")
            process.send_signal(signal.SIGCONT)

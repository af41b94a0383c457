"""`vaultfs sync`: two folders and a vault, kept in step; nothing anybody wrote is lost."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.entrypoints.cli_calls import Cli, clean_env, command
from tests.entrypoints.test_client import served
from tests.faults import random_bytes, read_tree, write_tree

import vaultfs
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import Path as VaultPath
from vaultfs.domain.syncplan import Step, There
from vaultfs.entrypoints.sdk import Vault
from vaultfs.entrypoints.surface import Surface
from vaultfs.entrypoints.syncing import Syncing

OLD = random_bytes(300_000, "sync")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in read_tree(folder).items()
        if not name.startswith(".vaultfs/") and ".vaultfs-" not in name
    }


def there(cli: Cli, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / f"there-{time.monotonic_ns()}"
    cli("get", "/desk", out)
    return contents(out)


def sync(cli: Cli, folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = cli.json("sync", *words, folder, "/desk", code=code)
    return found


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return tmp_path / "one"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return tmp_path / "two"


def test_two_folders_come_in_step(cli: Cli, one: Path, two: Path, tmp_path: Path) -> None:
    tree = {"a": b"1", "d/b": OLD, "d/e/é": b"3"}
    write_tree(one, tree)
    assert sync(cli, one)["pushed"] == 3
    assert sync(cli, two)["pulled"] == 3
    assert contents(two) == tree
    (two / "d" / "b").write_bytes(OLD + b"more")
    (two / "new").write_bytes(b"new")
    (two / "a").unlink()
    done = sync(cli, two)
    assert (done["pushed"], done["deleted_there"]) == (2, 1)
    if cli.server:
        assert done["travelled"] < 20_000
    done = sync(cli, one)
    assert (done["pulled"], done["deleted_here"], done["conflicts"]) == (2, 1, [])
    assert contents(one) == contents(two) == there(cli, tmp_path)
    assert contents(one) == {"d/b": OLD + b"more", "new": b"new", "d/e/é": b"3"}
    quiet = sync(cli, one)
    assert {quiet[each] for each in ("pulled", "pushed", "moved", "travelled")} == {0}


def test_where_both_changed_both_are_kept(cli: Cli, one: Path, two: Path, tmp_path: Path) -> None:
    write_tree(one, {"report.txt": b"first"})
    sync(cli, one)
    sync(cli, two)
    (one / "report.txt").write_bytes(b"by one")
    (two / "report.txt").write_bytes(b"by two")
    sync(cli, one)
    [kept] = sync(cli, two)["conflicts"]
    assert kept.startswith("report (conflict ")
    assert contents(two) == {"report.txt": b"by one", kept: b"by two"}
    sync(cli, one)
    assert contents(one) == contents(two) == there(cli, tmp_path)
    for folder in (one, two):  # the same on both sides is no conflict
        (folder / "report.txt").write_bytes(b"agreed")
        assert sync(cli, folder)["conflicts"] == []


def test_moves_move(cli: Cli, one: Path, two: Path) -> None:
    write_tree(one, {f"d/{n}": random_bytes(2000, n) for n in range(6)})
    sync(cli, one)
    sync(cli, two)
    (one / "d").rename(one / "e")
    done = sync(cli, one)
    assert (done["moved"], done["pushed"], done["travelled"]) == (6, 0, 0)
    done = sync(cli, two)
    assert (done["moved"], done["pulled"], done["deleted_here"]) == (6, 0, 0)
    assert contents(one) == contents(two)
    assert not (two / "d").exists()


def test_an_edit_beats_a_deletion(cli: Cli, one: Path, two: Path) -> None:
    write_tree(one, {"a": b"1", "b": b"2", "c": b"3"})
    sync(cli, one)
    sync(cli, two)
    (one / "a").unlink()
    (two / "a").write_bytes(b"edited")
    (two / "b").unlink()
    (one / "b").write_bytes(b"edited too")
    for folder in (one, two, one):
        sync(cli, folder)
    assert contents(one) == contents(two) == {"a": b"edited", "b": b"edited too", "c": b"3"}


def test_a_folder_that_is_gone_stops_and_asks(cli: Cli, one: Path, tmp_path: Path) -> None:
    write_tree(one, {f"{n}": b"%d" % n for n in range(20)})
    sync(cli, one)
    for each in range(15):
        (one / str(each)).unlink()
    assert cli.refused("sync", one, "/desk") == "conflict"
    assert len(there(cli, tmp_path)) == 20
    assert sync(cli, one, "--force")["deleted_there"] == 15
    cli("mv", "/desk", "/elsewhere")
    assert cli.refused("sync", one, "/desk") == "not_found"
    assert len(contents(one)) == 5
    assert cli.refused("sync", one, "/another") == "conflict"  # it is in step with /desk


def test_nothing_is_done_that_is_only_asked_for(cli: Cli, one: Path, tmp_path: Path) -> None:
    write_tree(one, {"a": b"1"})
    found = sync(cli, one, "--dry-run")
    assert found["steps"] == [{"action": "push", "path": "a", "source": None}]
    assert there(cli, tmp_path) == {}


def test_what_is_ignored_stays_here(cli: Cli, one: Path, tmp_path: Path) -> None:
    write_tree(
        one,
        {"a": b"1", "b.tmp": b"2", "cache/c": b"3", "d/keep.tmp": b"4", ".vaultignore": b""},
    )
    (one / ".vaultignore").write_text("*.tmp\ncache/\n!keep.tmp\n")
    (one / "link").symlink_to("a")
    done = sync(cli, one, code=3)
    assert done["problems"] == [{"path": "link", "reason": "a link: links are not stored"}]
    assert set(there(cli, tmp_path)) == {"a", "d/keep.tmp", ".vaultignore"}


def test_what_is_passed_over_is_not_gone(cli: Cli, one: Path, two: Path, tmp_path: Path) -> None:
    write_tree(one, {"a": b"1", "b": b"2", "d/c": b"3", "e": b"4"})
    sync(cli, one)
    sync(cli, two)
    (one / "a").unlink()
    (one / "a").symlink_to("b")  # no file any more, but it was not deleted
    (one / ".vaultignore").write_text("d/\ne\n")
    (two / "e").write_bytes(b"newer")
    sync(cli, two)
    sync(cli, one, code=3)
    assert set(there(cli, tmp_path)) == {"a", "b", "d/c", "e", ".vaultignore"}
    assert (one / "a").is_symlink()
    assert (one / "e").read_bytes() == b"4"  # what is ignored here is left alone


def test_names_that_are_one_elsewhere_are_told(cli: Cli, one: Path) -> None:
    write_tree(one, {"Readme": b"1"})
    sync(cli, one)
    (one / "README").write_bytes(b"2")
    [problem] = sync(cli, one, code=3)["problems"]
    assert problem["path"] == "README"
    assert contents(one) == {"Readme": b"1", "README": b"2"}


@pytest.mark.slow
def test_interrupted_anywhere_it_goes_on(cli: Cli, one: Path, two: Path, tmp_path: Path) -> None:
    """Killed again and again, both come in step, and every content is there."""
    random = Random(1)
    write_tree(one, {f"d{n % 5}/{n}": random.randbytes(20_000) for n in range(150)})
    env = clean_env(VAULTFS_TOKEN=cli.token)
    written = set(contents(one).values())
    for delay in (0.4, 0.5, 0.55, 0.6, 0.7, 0.9):
        for folder in (one, two):
            words = command(*cli.words, "--quiet", "sync", folder, "/desk")
            running = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
            try:
                running.wait(delay)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.wait()
    for folder in (one, two, one, two):
        sync(cli, folder)
    assert contents(one) == contents(two) == there(cli, tmp_path)
    assert set(contents(one).values()) >= written
    for left in (*one.rglob(".vaultfs-*"), *two.rglob(".vaultfs-*")):
        os.utime(left, (1, 1))
    for folder in (one, two):
        sync(cli, folder)
    assert [*one.rglob(".vaultfs-*"), *two.rglob(".vaultfs-*")] == []


@pytest.mark.slow
def test_watching_follows_both_sides(served: Cli, one: Path, two: Path) -> None:
    write_tree(one, {"a": b"1"})
    env = clean_env(VAULTFS_TOKEN=served.token)
    watching = [
        subprocess.Popen(
            command(*served.words, "--quiet", "sync", "--watch", folder, "/desk"), env=env
        )
        for folder in (one, two)
    ]
    try:
        until(lambda: (two / "a").exists() and (two / "a").read_bytes() == b"1")
        (two / "b").write_bytes(b"2")
        until((one / "b").exists)
        (one / "a").write_bytes(b"newer")
        until(lambda: (two / "a").read_bytes() == b"newer")
        os.unlink(two / "b")
        until(lambda: not (one / "b").exists())
    finally:
        for each in watching:
            each.send_signal(signal.SIGINT)
        assert [each.wait(20) for each in watching] == [130, 130]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# What the feed tells


async def test_the_feed_tells_what_a_listing_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[bool] = []
    there, all_of_it = Syncing.there, Syncing.list_files

    async def checked(self: Syncing) -> dict[VaultPath, There]:
        listed.clear()
        nodes = await there(self)
        assert nodes == await all_of_it(self)
        return nodes

    async def noted(self: Syncing) -> dict[VaultPath, There]:
        listed.append(True)
        return await all_of_it(self)

    monkeypatch.setattr(Syncing, "there", checked)
    monkeypatch.setattr(Syncing, "list_files", noted)
    random, spared = Random(1), 0
    async with vaultfs.open(tmp_path / "vault", create=True) as vault:
        await vault.mkdir("/top/in", parents=True)
        await vault.mkdir("/out")
        for number in range(40):
            for _ in range(random.randrange(4)):
                with suppress(VaultError):
                    await change(vault, random, number)
            await vault.sync(tmp_path / "local", "/top", force=True)
            spared += not listed
    assert spared > 10


async def change(vault: Vault, random: Random, number: int) -> None:
    """Something that may happen to a few files and folders in and around /top."""

    def path() -> str:
        return random.choice(("/top", "/top/in", "/out")) + f"/{random.choice('abc')}"

    match random.randrange(8):
        case 0 | 1 | 2:
            await vault.put(path(), b"%d" % number, parents=False)
        case 3 | 4:
            await vault.move(path(), path(), replace=random.random() < 0.5)
        case 5:
            await vault.copy(path(), path())
        case 6:
            gone = await vault.delete(path())
            if random.random() < 0.5:
                await vault.restore(gone.id)
        case _:
            folder = random.choice(("/top/in", "/out/d"))
            await vault.move(folder, "/out/d" if folder == "/top/in" else "/top/in")


@pytest.mark.parametrize("place", ["embedded", "served"])
async def test_new_files_go_together_and_overwrite_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    local = tmp_path / "local"
    write_tree(local, {f"d{n % 3}/f{n}": b"%d" % n for n in range(700)})
    push, calls = Syncing.push_new, list[int]()

    async def late(self: Syncing, group: Sequence[Step]) -> None:
        calls.append(len(group))  # groups travel at once, in any order
        if any(step.path == ("d0", "f0") for step in group):  # somebody is faster
            await self.vault.put("/top/d0/f0", b"theirs")
        await push(self, group)

    monkeypatch.setattr(Syncing, "push_new", late)
    async with opened(place, tmp_path) as vault:
        first = await vault.sync(local, "/top")
        assert sorted(calls) == [200, 500]
        assert first.pushed == 699
        [problem] = first.problems
        assert problem.path == ("d0", "f0")
        second = await vault.sync(local, "/top")
        assert (second.pulled, len(second.conflicts)) == (1, 1)
        assert (await vault.get_tree("/top", tmp_path / "got")).complete
    assert contents(tmp_path / "got") == contents(local)
    assert (local / "d0/f0").read_bytes() == b"theirs"
    assert (local / second.conflicts[0]).read_bytes() == b"0"


@asynccontextmanager
async def opened(place: str, tmp_path: Path) -> AsyncGenerator[Surface, None]:
    if place == "embedded":
        async with vaultfs.open(tmp_path / "vault", create=True) as vault:
            yield vault
        return
    async with (
        served(tmp_path / "vault") as (_, address, token),
        vaultfs.connect(address, token=token) as remote,
    ):
        yield remote

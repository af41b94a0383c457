"""`vaultfs sync`: two folders and a vault, kept in step; nothing anybody wrote is lost."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, cast

import anyio
import pytest
from tests.entrypoints.cli_calls import Cli, clean_env, command
from tests.entrypoints.test_client import served
from tests.faults import random_bytes, read_tree, write_tree

import vaultfs
from vaultfs.adapters.replacing import Replacement
from vaultfs.adapters.syncfolder import Found, Scan, SyncFolder
from vaultfs.adapters.syncstate import InStep, SyncState
from vaultfs.domain.errors import InvalidField, InvalidName, IsAFolder, VaultError
from vaultfs.domain.names import Path as VaultPath
from vaultfs.domain.nodes import Node
from vaultfs.domain.syncplan import Plan, Step
from vaultfs.entrypoints.pulling import Pulled
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


def test_nothing_is_done_that_is_only_asked_for(cli: Cli, one: Path, two: Path) -> None:
    write_tree(one, {"a": b"1"})
    found = sync(cli, one, "--dry-run")
    assert found["steps"] == [{"action": "push", "path": "a", "source": None}]
    assert cli.ls() == []
    assert [each.name for each in one.iterdir()] == ["a"]
    sync(cli, one)
    found = sync(cli, two, "--dry-run")
    assert found["steps"] == [{"action": "pull", "path": "a", "source": None}]
    assert not two.exists()


def test_of_the_two_folders_one_has_to_be_there(cli: Cli, tmp_path: Path) -> None:
    for words in ((), ("--dry-run",)):
        told = cli("sync", tmp_path / "typo", "/typo", *words, code=1).errors
        assert f"neither {tmp_path}/typo nor /typo in the vault is there: make" in told
    assert not (tmp_path / "typo").exists()
    assert cli.ls() == []


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
    two.mkdir(exist_ok=True)
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

    async def checked(self: Syncing) -> dict[str, tuple[int, int]]:
        listed.clear()
        files = await there(self)
        assert files == await all_of_it(self)
        return files

    async def noted(self: Syncing) -> dict[str, tuple[int, int]]:
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


async def test_a_new_file_takes_the_name_of_one_that_came_and_went(tmp_path: Path) -> None:
    """The feed tells of it with the name that it has by now, which was another's then."""
    async with desk(tmp_path, {"z": b"z"}) as (vault, local):
        await vault.put("/top/new", b"new")
        await vault.put("/top/a", b"a")
        await vault.delete("/top/a")
        await vault.move("/top/new", "/top/a")
        assert await settled(vault, local) == {"a": b"new", "z": b"z"}


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


# What stands where something else stood


@asynccontextmanager
async def desk(tmp_path: Path, files: dict[str, bytes]) -> AsyncGenerator[tuple[Vault, Path], None]:
    """A vault, and a folder that is in step with its /top."""
    local = tmp_path / "local"
    write_tree(local, files)
    async with vaultfs.open(tmp_path / "vault", create=True) as vault:
        await vault.sync(local, "/top")
        yield vault, local


async def settled(vault: Vault, local: Path) -> dict[str, bytes]:
    """What both sides are after two runs, of which the second leaves nothing."""
    await vault.sync(local, "/top")
    assert (await vault.sync(local, "/top")).problems == []
    assert not (await vault.sync(local, "/top")).changed
    with TemporaryDirectory() as got:
        await vault.get_tree("/top", got)
        assert contents(Path(got)) == contents(local)
    return contents(local)


REPLACED = [
    ({"a": b"1", "z": b"z"}, {"a/b": b"2", "z": b"z"}),
    ({"a": b"1", "z": b"z"}, {"a/b": b"1", "z": b"z"}),  # what was moved, where a file was
    ({"a/b": b"1", "z": b"z"}, {"a": b"2", "z": b"z"}),
    ({"a/b": b"1", "z": b"z"}, {"a": b"1", "z": b"z"}),
    ({"a/b/c": b"1", "a/d": b"2", "z": b"z"}, {"a": b"3", "z": b"z"}),
    ({"a/b": b"1", "y": b"y", "z": b"z"}, {"a": b"z", "y": b"y"}),
]


@pytest.mark.parametrize(("before", "after"), REPLACED)
async def test_a_file_stands_where_a_folder_stood_and_the_opposite(
    tmp_path: Path, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    async with desk(tmp_path, before) as (vault, local):
        for name in [*before, "a/b", "a"]:
            with suppress(FileNotFoundError, NotADirectoryError):
                each = local / name
                (each.rmdir if each.is_dir() else each.unlink)()
        write_tree(local, after)
        assert await settled(vault, local) == after


@pytest.mark.parametrize(("before", "after"), REPLACED)
async def test_the_same_in_the_vault(
    tmp_path: Path, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    async with desk(tmp_path, before) as (vault, local):
        await vault.move("/top/a", "/aside")
        for name, content in after.items():
            moved = "/aside" if before.get("a") == content else "/aside/b"
            if name in {"y", "z"}:
                continue
            if content == b"1":
                await vault.mkdir("/top/" + name.rpartition("/")[0], exist_ok=True)
                await vault.move(moved, f"/top/{name}")
            else:
                await vault.put(f"/top/{name}", content)
        if "z" not in after:
            await vault.delete("/top/z")
        assert await settled(vault, local) == after


@pytest.mark.parametrize("place", ["embedded", "served"])
async def test_what_was_moved_away_or_replaced_with_its_folder_goes(
    tmp_path: Path, place: str
) -> None:
    local = tmp_path / "local"
    write_tree(local, {"d/a": b"1", "e/b": b"2", "f/c": b"3", "f/edited": b"4", "z": b"z"})
    async with opened(place, tmp_path) as vault:
        await vault.sync(local, "/top")
        await vault.move("/top/d/a", "/a")
        await vault.move("/top/e", "/e")
        await vault.delete("/top/f", recursive=True)
        await vault.put("/top/f/new", b"5")
        (local / "f" / "edited").write_bytes(b"mine")
        done = await vault.sync(local, "/top")
        assert (done.deleted_here, done.problems) == (3, [])
    assert contents(local) == {"f/new": b"5", "f/edited": b"mine", "z": b"z"}


async def test_a_folder_that_is_another_deletes_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path, {"d/a": b"1", "z": b"z"}) as (vault, local):
        await vault.move("/top", "/elsewhere")
        done = await vault.sync(local, "/top", force=True)
        assert len(done.problems) == 2
    assert contents(local) == {"d/a": b"1", "z": b"z"}


@pytest.mark.parametrize("names", [("File", "file"), ("\u00e9", "e\u0301")])
async def test_a_name_is_given_another_case(tmp_path: Path, names: tuple[str, str]) -> None:
    old, new = names
    async with desk(tmp_path, {old: b"1", "z": b"z"}) as (vault, local):
        (local / old).rename(local / new)
        assert (await vault.sync(local, "/top")).moved == 1
        assert await settled(vault, local) == {new: b"1", "z": b"z"}
        assert [each async for each in vault.trash()] == []


# What is written meanwhile


@pytest.mark.parametrize("name", ["adopted", "moved"])
async def test_what_is_written_after_it_was_looked_at_is_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scan = SyncFolder.scan

    def late(self: SyncFolder, known: Mapping[str, InStep], asked: set[str]) -> Scan:
        monkeypatch.setattr(SyncFolder, "scan", scan)
        found = scan(self, known, asked)
        (self.top / name).write_bytes(b"newer, and mine")
        return found

    async with desk(tmp_path, {"old": b"1", "z": b"z"}) as (vault, local):
        if name == "moved":
            (local / "old").rename(local / name)
        else:
            (local / name).write_bytes(b"same")
            await vault.put(f"/top/{name}", b"same")
        monkeypatch.setattr(SyncFolder, "scan", late)
        await vault.sync(local, "/top")
        await vault.sync(local, "/top")
        assert await vault.get(f"/top/{name}") == b"newer, and mine"


@pytest.mark.parametrize("new", [False, True])
async def test_what_is_written_while_it_travels_is_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, new: bool
) -> None:
    """The vault is given one content, and the one before comes back here."""
    way = "push_new" if new else "_push"
    push = getattr(Syncing, way)

    async def late(self: Syncing, *words: object) -> None:
        monkeypatch.setattr(Syncing, way, push)
        (self.folder / "f").write_bytes(b"3333")
        await push(self, *words)
        (self.folder / "f").write_bytes(b"2222")

    async with desk(tmp_path, {"z": b"z"} if new else {"f": b"1111"}) as (vault, local):
        (local / "f").write_bytes(b"2222")
        monkeypatch.setattr(Syncing, way, late)
        await vault.sync(local, "/top")
        await vault.sync(local, "/top")
        assert await vault.get("/top/f") == b"2222"


async def test_what_is_written_right_after_a_pull_is_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = Vault.pull

    async def late(self: Vault, *words: Any, **more: Any) -> Pulled:
        monkeypatch.setattr(Vault, "pull", pull)
        done = await pull(self, *words, **more)
        (tmp_path / "local" / "f").write_bytes(b"newer, and mine")
        return done

    async with desk(tmp_path, {"f": b"1"}) as (vault, local):
        await vault.put("/top/f", b"2")
        monkeypatch.setattr(Vault, "pull", late)
        await vault.sync(local, "/top")
        await vault.sync(local, "/top")
        assert await vault.get("/top/f") == b"newer, and mine"


async def test_what_goes_while_it_is_looked_at_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, found = os.scandir, SyncFolder.found

    def gone(self: SyncFolder, path: VaultPath, *words: Any) -> Found:
        (self.top / "f").unlink(missing_ok=True)
        return found(self, path, *words)

    def refused(path: Path) -> Any:
        if path.name == "secret":
            raise PermissionError(13, "no")
        return scandir(path)

    async with desk(tmp_path, {"a": b"1", "f": b"2", "secret/g": b"3"}) as (vault, local):
        monkeypatch.setattr(SyncFolder, "found", gone)
        monkeypatch.setattr(os, "scandir", refused)
        (local / "a").write_bytes(b"newer")
        done = await vault.sync(local, "/top")
        assert [problem.path for problem in done.problems] == [("f",), ("secret",)]
        assert await vault.get("/top/a") == b"newer"
        assert await vault.get("/top/secret/g") == b"3"
        monkeypatch.undo()
        assert (await vault.sync(local, "/top")).deleted_there == 1


async def test_what_was_only_touched_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[VaultPath] = []
    plain = SyncFolder.found

    def noted(self: SyncFolder, path: VaultPath, *words: Any) -> Found:
        read.append(path)
        return plain(self, path, *words)

    async with desk(tmp_path, {"a": b"1", "b": b"2"}) as (vault, local):
        (local / "a").write_bytes(b"1")
        (local / "b").write_bytes(b"newer")
        monkeypatch.setattr(SyncFolder, "found", noted)
        for expected in ([("a",), ("b",)], [], []):
            read.clear()
            done = await vault.sync(local, "/top")
            assert done.problems == []
            assert read == expected
        assert await vault.get("/top/b") == b"newer"


# Names, and patterns


async def test_names_of_what_is_kept_beside_the_files_stay_in_the_vault(tmp_path: Path) -> None:
    names = (".vaultfs/state.db", "d/.vaultfs/x", ".vaultfs-7-1", ".vaultfs-7-2/y")
    async with desk(tmp_path, {"z": b"z"}) as (vault, local):
        for name in names:
            await vault.put(f"/top/{name}", b"theirs")
        for _ in range(3):
            assert (await vault.sync(local, "/top")).problems == []
        for name in names:
            assert await vault.get(f"/top/{name}") == b"theirs"


async def test_a_file_of_somebody_who_likes_such_names_is_theirs(tmp_path: Path) -> None:
    async with desk(tmp_path, {"z": b"z"}) as (vault, local):
        (local / ".vaultfs-notes").write_bytes(b"mine")
        os.utime(local / ".vaultfs-notes", (1, 1))
        for _ in range(2):
            assert (await vault.sync(local, "/top")).problems == []
        assert await vault.get("/top/.vaultfs-notes") == b"mine"
        assert (local / ".vaultfs-notes").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["..", "../out", "a/../../out", "", "."])
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    async with desk(tmp_path, {"z": b"z"}) as (vault, _):
        other = await vault.stat("/top/z")

        class Lying:
            def __getattr__(self, name: str) -> Any:
                return getattr(vault, name)

            async def list(self, path: str) -> AsyncGenerator[Node, None]:
                yield other._replace(name=name)

        lying = cast("Surface", Lying())
        with pytest.raises(InvalidName):
            await Syncing(lying, tmp_path / "in" / "it", "/top", "here").run()
    assert not (tmp_path / "in" / "out").exists()


async def test_progress_is_told_of_what_is_read_and_of_what_is_done(tmp_path: Path) -> None:
    async with desk(tmp_path, {"a": b"a", "b": b"b"}) as (vault, local):
        told = list[str]()
        (local / "b").write_bytes(b"new")
        (local / "c").write_bytes(b"c")
        syncing = Syncing(vault, local, "/top", "here")
        syncing.files.looked = lambda count: told.append(f"looked at {count}")
        syncing.progress = lambda count: told.append(f"did {count}")
        syncing.expect = lambda total: told.append(f"of {total}")
        await syncing.run()
        assert told == ["looked at 1", "looked at 1", "of 2", "did 1", "did 1"]


async def test_patterns_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    async with desk(tmp_path, {"z": b"z"}) as (vault, local):
        patterns = local / ".vaultignore"
        patterns.write_bytes(b"*.tmp\n!\n")
        with pytest.raises(InvalidField, match="vaultignore"):
            await vault.sync(local, "/top")
        name = os.fsdecode(b"\xe9.txt")  # as a system with another encoding has written it
        (local / name).write_bytes(b"1")
        patterns.write_bytes(b"\xe9.txt\n")
        assert (await vault.sync(local, "/top")).problems == []
        patterns.unlink()
        patterns.mkdir()
        with pytest.raises(IsAFolder):
            await vault.sync(local, "/top")


@pytest.mark.parametrize("place", ["embedded", "served"])
async def test_broken_off_it_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As Ctrl-C does it: while files come and go, the old ones are whole, or the new ones."""
    local, write = tmp_path / "local", Replacement.write
    old = {f"f{n}": random_bytes(50_000, f"old {n}") for n in range(9)}
    new = {name: random_bytes(2_000_000, f"new {name}") for name in old}
    write_tree(local, old)
    async with opened(place, tmp_path) as vault:
        await vault.sync(local, "/top")
        for name, content in new.items():
            await vault.put(f"/top/{name}", content)
        (local / "mine").write_bytes(random_bytes(1_000_000, "mine"))
        for most in (0, 1, 5, 20):
            left = most
            with anyio.CancelScope() as scope:

                async def broken(self: Replacement, data: bytes) -> None:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        scope.cancel()
                    await write(self, data)

                monkeypatch.setattr(Replacement, "write", broken)
                await vault.sync(local, "/top")
            assert scope.cancelled_caught
            assert [*local.rglob(".vaultfs-*")] == []
            assert all((local / name).read_bytes() in (old[name], new[name]) for name in old)
        monkeypatch.setattr(Replacement, "write", write)
        done = await vault.sync(local, "/top")
        assert (done.conflicts, done.problems) == ([], [])
        assert await vault.get("/top/mine") == (local / "mine").read_bytes()
    assert {**new, "mine": (local / "mine").read_bytes()} == contents(local)


@pytest.mark.parametrize("top", ["/", "/top/"])
async def test_what_was_in_step_is_known_whatever_the_folder_is_called(
    tmp_path: Path, top: str
) -> None:
    local = tmp_path / "local"
    write_tree(local, {"a": b"1", "d/b": b"2"})
    async with vaultfs.open(tmp_path / "vault", create=True) as vault:
        assert (await vault.sync(local, top)).pushed == 2
        (local / "a").write_bytes(b"edited")
        (local / "d/b").unlink()
        done = await vault.sync(local, top)
        assert (done.pushed, done.deleted_there, done.conflicts) == (1, 1, [])
    assert contents(local) == {"a": b"edited"}


# What is settled


class Everything:
    """What has whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True


@pytest.mark.parametrize("seed", range(8))
async def test_a_plan_is_the_same_however_closely_is_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Where both sides are as they were, files are not looked at; as if they had been."""
    random, scan = Random(seed), SyncFolder.scan

    def closely(self: SyncFolder, known: Mapping[str, InStep], _: object = ()) -> Scan:
        return scan(self, known, Everything())

    async def looked(vault: Vault, local: Path) -> Plan:
        syncing = Syncing(vault, local, "/top", "box")
        try:
            return await syncing.look()
        finally:
            syncing.state.close()

    async with desk(tmp_path, {name: name.encode() for name in PLACES[::2]}) as (vault, local):
        for _ in range(12):
            for _ in range(random.randrange(6)):
                with suppress(VaultError, OSError):
                    await disturb(vault, local, random)
            few = await looked(vault, local)
            with monkeypatch.context() as patched:
                patched.setattr(SyncFolder, "scan", closely)
                assert await looked(vault, local) == few
            if random.random() < 0.5:
                await vault.sync(local, "/top", force=True)


async def test_a_file_whose_new_name_is_settled_goes_from_the_old_one(tmp_path: Path) -> None:
    """As after a run that was broken off between the two."""
    async with desk(tmp_path, {"a": b"1", "z": b"z"}) as (vault, local):
        await vault.move("/top/a", "/top/b")
        shutil.copy2(local / "a", local / "b")
        state = SyncState(local)
        row = state.get("a")
        assert row is not None
        state.set("b", row._replace(path="/top/b"))
        state.close()
        assert await settled(vault, local) == {"b": b"1", "z": b"z"}


PLACES = ["a", "A", "b", "d/a", "d/b", "d/e/c", "D/a", "\u00e9", "e\u0301", "build/x", "x.tmp", "z"]


async def disturb(vault: Vault, local: Path, random: Random) -> None:
    """Something that may happen to a folder, to its state, or to that of the vault."""
    one, other = (random.choice(PLACES) for _ in range(2))
    content = random.choice((b"1", b"2", one.encode()))
    match random.randrange(14):
        case 0:
            await vault.put(f"/top/{one}", content, parents=True)
        case 1:
            await vault.move(f"/top/{one}", f"/top/{other}", replace=random.random() < 0.5)
        case 2:
            await vault.delete(random.choice((f"/top/{one}", "/top/d")), recursive=True)
        case 3 | 4:
            disturb_state(local, one, random)
        case _:
            disturb_here(local, one, other, content, random)


def disturb_state(local: Path, name: str, random: Random) -> None:
    state = SyncState(local)
    row = state.get(name)
    if row is None or random.random() < 0.3:
        state.forget(name)
    else:
        content = random.choice((b"", row.content))
        state.set(name, row._replace(node=random.choice((0, row.node, 3)), content=content))
    state.close()


def disturb_here(local: Path, one: str, other: str, content: bytes, random: Random) -> None:
    file = local / one
    match random.randrange(8):
        case 0:
            write_tree(local, {one: content})
        case 1:
            os.utime(file, ns=(0, random.randrange(1 << 60)))
        case 2:
            file.unlink()
        case 3:
            file.unlink()
            write_tree(local, {f"{one}/in": b"in"})
        case 4:
            shutil.rmtree(local / random.choice(("a", "d", "D", "d/e", "build")))
        case 5:
            (local / other).parent.mkdir(parents=True, exist_ok=True)
            file.rename(local / other)
        case 6:
            (local / ".vaultignore").write_text(random.choice(("", "build/\n*.tmp\n", "d\n", "/a")))
        case _:
            file.symlink_to(local / other)

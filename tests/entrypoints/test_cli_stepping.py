"""`pull`, `push` and `diff`, in a folder and against a server."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli
from tests.faults import MIB, random_bytes
from tests.services.test_deltas import sparse

import vaultfs

OLD = random_bytes(400_000, "stepping")
NEW = sparse(OLD)


@pytest.fixture
def put(cli: Cli, tmp_path: Path) -> Callable[[str, bytes], None]:
    """Puts a content by somebody else's hand."""

    def put(path: str, content: bytes) -> None:
        (tmp_path / "elsewhere").write_bytes(content)
        cli("put", tmp_path / "elsewhere", path)

    return put


Put = Callable[[str, bytes], None]


def test_pull_gets_what_changed(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "here" / "f"
    local.parent.mkdir()
    put("/f", OLD)
    first = cli.json("pull", local, "/f")
    assert (first["number"], first["changed"]) == (1, True)
    assert local.read_bytes() == OLD
    again = cli.json("pull", local)  # its path is known by now
    assert (again["changed"], again["travelled"], again["way"]) == (False, 0, "unchanged")
    put("/f", NEW)
    second = cli.json("pull", local)
    assert (second["number"], second["changed"]) == (2, True)
    assert local.read_bytes() == NEW
    if cli.server:
        assert second["way"].startswith("direct; depth=1")
        assert first["travelled"] == len(OLD)
        assert 0 < second["travelled"] < 1000
    assert [each.name for each in local.parent.iterdir()] == [".vaultfs", "f"] or {
        each.name for each in local.parent.iterdir()
    } == {".vaultfs", "f"}


def test_pull_loses_no_changes(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "f"
    put("/f", OLD)
    cli("pull", local, "/f")
    local.write_bytes(b"mine")
    put("/f", NEW)
    assert cli.refused("pull", local) == "conflict"
    assert local.read_bytes() == b"mine"
    forced = cli.json("pull", "--force", local)
    assert local.read_bytes() == NEW
    if cli.server:
        assert forced["way"] == "full; reason=local-file-is-another"
    other = tmp_path / "other"
    other.write_bytes(b"in the way")
    assert cli.refused("pull", other, "/f") == "conflict"
    assert cli.refused("pull", tmp_path / "unknown", code=2) == "invalid_field"
    assert cli.refused("pull", tmp_path / "none", "/none") == "not_found"
    assert not (tmp_path / "none").exists()
    assert cli.refused("pull", tmp_path, "/f", code=2) == "invalid_field"


def test_a_local_file_that_is_gone_is_pulled_whole(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "f"
    put("/f", OLD)
    cli("pull", local, "/f")
    local.unlink()
    assert cli.json("pull", local)["changed"] is True
    assert local.read_bytes() == OLD


def test_push_stores_what_changed(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "f"
    local.write_bytes(OLD)
    first = cli.json("push", local, "/d/f")
    assert (first["number"], first["changed"]) == (1, True)
    assert cli.json("push", local)["changed"] is False
    local.write_bytes(NEW + b"!")
    second = cli.json("push", local)
    assert second["number"] == 2
    assert cli.read("/d/f") == NEW + b"!"
    put("/d/f", b"somebody else was first")
    local.write_bytes(OLD)
    assert cli.refused("push", local) == "version_mismatch"
    assert cli.read("/d/f") == b"somebody else was first"
    assert cli.json("push", "--force", local)["number"] == 4
    put("/new", b"there already")
    local.write_bytes(b"mine")
    assert cli.refused("push", local, "/new") in {"version_mismatch", "exists"}
    assert cli.refused("push", tmp_path / "none", "/x") == "not_found"


def test_push_asks_whether_the_vault_still_has_it(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "f"
    local.write_bytes(b"mine")
    cli("push", local, "/f")
    cli("rm", "/f")
    for content in (b"mine", b"mine, edited"):
        local.write_bytes(content)
        assert (
            "/f was deleted there: push --force puts it again" in cli("push", local, code=1).errors
        )
    assert cli.ls() == []
    cli("push", "--force", local)
    assert cli.read("/f") == b"mine, edited"
    put("/f", b"another's")
    assert cli.refused("push", local) == "version_mismatch"
    cli("push", "--force", local)
    assert cli.read("/f") == b"mine, edited"


def test_where_both_changed_the_ways_out_are_told(cli: Cli, put: Put, tmp_path: Path) -> None:
    local = tmp_path / "f"
    put("/d/f", OLD)
    cli("pull", local, "/d/f")
    local.write_bytes(b"mine")
    assert f"{local} has changes that /d/f has not: push it" in cli("pull", local, code=1).errors
    put("/d/f", NEW)
    for word in ("push", "pull"):
        told = cli(word, local, code=1).errors
        assert told.startswith("vaultfs: /d/f was changed too, and is version 2: push --force")
        assert "pull --force" in told
        assert "get /d/f OTHER" in told
    (tmp_path / "new").write_bytes(b"mine")
    for word in ("push", "pull"):
        told = cli(word, tmp_path / "new", "/d/f", code=1).errors
        assert "/d/f is there already, as version 2: push --force" in told
    cli("pull", "--force", local)
    put("/d/f", OLD)
    assert "/d/f is version 3 by now, and" in cli("push", local, code=1).errors


def test_push_sends_only_chunks_that_are_lacking(served: Cli, tmp_path: Path) -> None:
    local = tmp_path / "f"
    content = random_bytes(5 << 20, "chunks")
    local.write_bytes(content)
    assert served.json("push", local, "/f")["travelled"] > len(content)
    local.write_bytes(content + b"a line more")
    assert served.json("push", local)["travelled"] < 20_000
    edited = bytearray(content)
    for place in range(100_000, len(content), 1_000_000):
        edited[place : place + 100] = b"x" * 100
    local.write_bytes(edited)
    assert served.json("push", local)["travelled"] < 60_000
    assert served.read("/f") == edited
    local.write_bytes(random_bytes(3 << 20, "unlike"))
    assert served.json("push", local)["travelled"] < 3.1 * (1 << 20)
    assert "of 3.0 MiB travelled" in served("pull", "--force", local).out


def test_what_was_pulled_from_elsewhere_is_another(
    cli: Cli, put: Put, embedded: Cli, tmp_path: Path
) -> None:
    local = tmp_path / "f"
    put("/f", OLD)
    cli("pull", local, "/f")
    assert cli.refused("pull", local, "/g") == "conflict"  # it may not be what /g is
    os.utime(local, (1, 1))
    assert cli.json("pull", local)["changed"] is False
    local.write_bytes(OLD[:-1] + b"x")
    assert cli.refused("pull", local) == "conflict"


def test_a_file_with_the_bytes_of_the_newest_version_is_in_step(
    cli: Cli, put: Put, tmp_path: Path
) -> None:
    put("/f", OLD)
    for verb in ("pull", "push"):
        local = tmp_path / verb
        cli("get", "/f", local)
        done = cli.json(verb, local, "/f")
        assert (done["changed"], done["number"]) == (False, 1)
        local.write_bytes(NEW)
        assert cli.refused("pull", local) == "conflict"
    assert cli.json("push", tmp_path / "push")["number"] == 2  # based on what it was in step with
    assert cli.json("push", tmp_path / "pull")["changed"] is False  # the same change


def test_diff(cli: Cli, put: Put) -> None:
    for content in (OLD, NEW, random_bytes(500_000, "unlike")):
        put("/f", content)
    found = cli.json("diff", "/f@1", "/f@2")
    assert found["size"] == len(NEW)
    assert 0 < found["new"] <= 300
    assert 5 < found["places"] <= 12
    assert found["delta"] < 1000
    assert cli.json("diff", "/f@2", "/f@2")["delta"] == 0
    unlike = cli.json("diff", "--stat", "/f@1", "/f")
    assert unlike["new"] == 500_000
    assert "of 390.6 KiB are new" in cli("diff", "/f@1", "/f@2").out
    assert cli.refused("diff", "/f@1", "/f@9") == "not_found"
    if cli.server:
        assert cli.refused("diff", "/f", "/g") == "unsupported"
    else:
        put("/g", NEW)
        assert cli.json("diff", "/f@1", "/g")["new"] == found["new"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_before_any_step_of_applying_a_delta_the_file_is_old_or_new(
    served: Cli, tmp_path: Path
) -> None:
    old = random_bytes(3 * MIB, "old")
    new = old[:MIB] + b"something new" + old[MIB:]
    folder = tmp_path / "folder"
    folder.mkdir()
    local = folder / "f"
    with vaultfs.connect_sync(served.server, token=served.token) as vault:
        first = vault.put("/f", old)
        vault.put("/f", new)
        assert first.version is not None
        deadly, killed = 0, 0
        while True:
            deadly += 1
            local.write_bytes(old)
            words = [served.server, served.token, str(local), str(first.version), str(deadly)]
            done = subprocess.run(
                [sys.executable, "-m", "tests.apply_child", *words],
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            found = local.read_bytes()
            others = {each.name for each in folder.iterdir()} - {"f"}
            assert all(name.startswith(".vaultfs-") for name in others)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            assert found in (old, new)
            killed += 1
            vault.pull("/f", local)
            assert local.read_bytes() == new
        assert "direct" in done.stdout
        assert found == new
        assert killed >= 6

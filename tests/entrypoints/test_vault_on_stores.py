"""Vaults with their objects in each kind of store: a catalog in a folder, and in a database."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.clouds import Cloud
from tests.entrypoints.cli_calls import Called, Cli, call
from tests.entrypoints.cutting import Cutter
from tests.entrypoints.test_many_servers import Load, Pair, Place, two
from tests.entrypoints.test_syncing import contents, sync
from tests.faults import MIB, random_bytes, read_tree, small_files, write_tree

import vaultfs
from vaultfs.domain.integrity import Depth
from vaultfs.entrypoints.stores import ELSEWHERE
from vaultfs.entrypoints.vault import MARKER

pytestmark = pytest.mark.slow

CONTENT = random_bytes(3_000_000, "stores")
LARGE = random_bytes(36 * MIB + 77, "large in a store")
"""Three packs."""


@pytest.fixture
def folder(cloud: Cloud, tmp_path: Path) -> Path:
    done("init", tmp_path / "vault", "--store", cloud.url)
    return tmp_path / "vault"


@pytest.fixture
def cli(folder: Path) -> Cli:
    return Cli(folder)


@pytest.fixture
def place(database: str, cloud: Cloud, tmp_path: Path) -> Place:
    return Place(database, cloud.url, tmp_path / "log")


def done(*words: object) -> Called:
    called = call(*words)
    assert called.code == 0, (words, called.out, called.errors)
    return called


# With the catalog in a folder


async def test_files_and_trees_by_the_sdk(folder: Path, cloud: Cloud, tmp_path: Path) -> None:
    tree = small_files(400)
    write_tree(tmp_path / "tree", tree)
    async with vaultfs.open(folder) as vault:
        await vault.put("/file", CONTENT)
        await vault.put("/file", b"new")
        await vault.put("/large", LARGE)
        assert (await vault.put_tree(tmp_path / "tree", "/tree")).changed == 400
    async with vaultfs.open(folder) as vault:
        assert await vault.get("/file") == b"new"
        assert await vault.get("/file", version=1) == CONTENT
        await vault.restore_version("/file", 1)
        assert await vault.get("/file") == CONTENT
        assert await vault.get("/large") == LARGE
        for start, stop in ((0, 1), (17 * MIB - 5, 17 * MIB + 5), (len(LARGE) - 9, len(LARGE))):
            assert await vault.get("/large", start=start, stop=stop) == LARGE[start:stop]
        await vault.get_tree("/tree", tmp_path / "back")
        assert read_tree(tmp_path / "back") == tree
        assert (await vault.verify(Depth.FULL)).problems == ()
    assert not (folder / "objects").exists()
    assert len(cloud.keys("packs/")) >= 4
    assert all(name.startswith("vault/") for name in cloud.box.names())


def test_files_and_trees_by_the_command_line(cli: Cli, cloud: Cloud, tmp_path: Path) -> None:
    tree = {**small_files(300), "large": LARGE}
    write_tree(tmp_path / "tree", tree)
    cli("put", tmp_path / "tree", "/")
    (tmp_path / "tree" / "large").write_bytes(b"short")
    cli("put", tmp_path / "tree", "/")
    assert cli.read("/tree/large") == b"short"
    cli("restore", "--version", "1", "/tree/large")
    cli("get", "/tree", tmp_path / "back")
    assert read_tree(tmp_path / "back") == tree
    assert cli.json("verify")["clean"]
    assert cli.json("stats")["bytes_stored"] < len(LARGE) + 2 * MIB
    read = cli.json("scrub", "--period", "0")
    assert (read["clean"], read["packs"]) == (True, len(cloud.keys("packs/")))
    assert cli.json("scrub", "--period", "0", "--cheap")["clean"]


def test_a_lost_folder_is_made_anew_from_its_store(
    cli: Cli, folder: Path, cloud: Cloud, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    cli("put", tmp_path / "f", "/")
    cli("backup")
    assert cli("backup", "--list").out
    shutil.rmtree(folder)
    cli("ls", "/", code=1)
    done("--vault", folder, "--store", cloud.url, "rebuild", "--from-backup", "latest")
    assert cli.read("/f") == CONTENT
    (folder / "catalog.db").unlink()
    assert "has lost its catalog" in cli("ls", "/", code=1).errors
    cli("rebuild")
    assert cli.read("/f") == CONTENT
    assert cli.json("verify")["clean"]


def test_what_was_purged_goes_from_the_store(cli: Cli, cloud: Cloud, tmp_path: Path) -> None:
    for name, content in (("keep", CONTENT), ("large", LARGE)):
        (tmp_path / name).write_bytes(content)
        cli("put", tmp_path / name, "/")
    before = cloud.keys("packs/")
    cli("rm", "/large")
    cli("trash", "--purge-all")
    collected = cli.json("gc", "--grace", "0", "--confirm")
    collected_again = cli.json("gc", "--grace", "0", "--confirm")
    freed = collected["discarded_bytes"] + collected_again["discarded_bytes"]
    assert freed >= len(LARGE)
    left = cloud.keys("packs/")
    assert len(left) <= len(before) - 2
    sizes = [len(cloud.read(key) or b"") for key in left]
    assert sum(sizes) < 2 * len(CONTENT)
    assert cli.read("/keep") == CONTENT
    assert cli.json("verify")["clean"]
    assert cli.json("reconcile")["missing"] == []


def test_damage_in_the_store_is_found(cli: Cli, cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    cli("put", tmp_path / "f", "/")
    [key] = cloud.keys("packs/")
    data = bytearray(cloud.read(key) or b"")
    data[len(data) // 2] ^= 1
    cloud.write(key, bytes(data))
    assert not cli.json("scrub", "--period", "0", code=1)["clean"]
    found = cli("verify", code=1)
    assert "/f" in found.out
    cli("cat", "/f", code=1)


# Which store


def test_a_store_is_that_of_one_vault(folder: Path, cloud: Cloud, tmp_path: Path) -> None:
    marker = cloud.read(MARKER)
    assert marker is not None
    second = call("init", tmp_path / "second", "--store", cloud.url)
    assert second.code == 1
    assert f"belongs to vault {json.loads(marker)['vault']}" in second.errors
    cloud.box.write("taken/something", b".")
    third = call("init", tmp_path / "third", "--store", cloud.at("taken"))
    assert "is not empty" in third.errors
    assert not (tmp_path / "second").exists()
    assert not (tmp_path / "third").exists()
    done("init", tmp_path / "other", "--store", cloud.at("other"))
    (folder / ELSEWHERE).write_text(cloud.at("other"))
    for words in (("backup",), ("put", __file__, "/")):
        wrong = call("--vault", folder, *words)
        assert wrong.code == 1
        assert "and the catalog to vault" in wrong.errors


@pytest.mark.parametrize(
    ("store", "text"),
    [
        ("s3://other", "has its objects in "),
        ("file:///tmp", "another kind of store"),
        ("ftp://x", "file://, s3://, azure://, gs://"),
    ],
)
def test_a_folder_remembers_its_store(folder: Path, store: str, text: str) -> None:
    for words in (
        ("--vault", folder, "--store", store, "ls", "/"),
        ("init", folder, "--store", store),
    ):
        tried = call(*words)
        assert tried.code != 0
        assert text in tried.errors
    assert "is a vault already" in call("init", folder).errors


def test_a_vault_with_its_objects_does_not_move_by_a_flag(cloud: Cloud, tmp_path: Path) -> None:
    done("init", tmp_path / "vault")
    tried = call("--vault", tmp_path / "vault", "--store", cloud.url, "ls", "/")
    assert "has its objects there" in tried.errors


def test_an_interrupted_init_goes_on(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    folder.mkdir()
    (folder / ELSEWHERE).write_text(cloud.url + "\n")
    done("init", folder)
    assert cloud.read(MARKER) is not None


EXTRAS = {"s3": ("s3", "aiobotocore"), "azure": ("azure", "azure"), "gs": ("gcs", "gcloud")}


def test_without_the_library_it_says_what_to_install(
    folder: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, package = EXTRAS[cloud.kind]
    with monkeypatch.context() as without:
        for name in list(sys.modules):
            if name.partition(".")[0] == package or name == f"vaultfs.adapters.{extra}":
                without.delitem(sys.modules, name)
        without.setitem(sys.modules, package, None)
        tried = call("--vault", folder, "backup")
    assert tried.code == 1
    assert f"pip install 'vaultfs[{extra}]'" in tried.errors


# With the catalog in a database, behind servers


def test_a_shared_vault_is_backed_up_and_brought_back(place: Place, tmp_path: Path) -> None:
    done(*place.flags, "init")
    assert place.cli("init").code == 1
    (tmp_path / "f").write_bytes(CONTENT)
    for words in (
        ("put", tmp_path / "f", "/"),
        ("backup",),
        ("rebuild", "--from-backup", "latest"),
        ("verify",),
    ):
        done(*place.flags, *words)
    assert place.cli("cat", "/f").bytes_out == CONTENT


def test_two_servers_over_one_store(place: Place, cloud: Cloud) -> None:
    with two(place) as pair:
        here, there = pair.clients()
        with here, there:
            assert here.put("/v1/files/me/large", content=LARGE).status_code == 201
            assert there.get("/v1/files/me/large").content == LARGE
            ranged = there.get("/v1/files/me/large", headers={"Range": "bytes=5-99999"})
            assert (ranged.status_code, ranged.content) == (206, LARGE[5:100_000])
            assert there.get("/readyz").json()["status"] == "ok"
            assert b"store" not in there.get("/v1/files/me/none").content
        load = Load(pair.token)
        with load.on(pair.one, pair.other):
            load.until(load.more(60))
        load.kept["/v1/files/me/large"] = LARGE
        load.check(place, pair.one)
        assert not load.refused


def test_trees_uploads_and_batches_over_a_store(place: Place, tmp_path: Path) -> None:
    with two(place) as pair:
        cli = Cli(Path(), pair.one.address, pair.token)
        _resume(pair, tmp_path)
        _sync_both_ways(cli, tmp_path)
        _batch(cli, tmp_path)
        assert json.loads(place.cli("--json", "verify").out)["clean"]


def _resume(pair: Pair, tmp_path: Path) -> None:
    """A put whose connection is cut again and again, and an upload by tus that stops halfway."""
    (tmp_path / "large").write_bytes(LARGE)
    port = int(pair.one.address.rpartition(":")[2])
    with Cutter(port, after=9 * MIB) as cutter:
        Cli(Path(), cutter.address, pair.token)("put", tmp_path / "large", "/cut")
        assert cutter.cuts >= 3
    here, there = pair.clients()
    with here, there:
        assert there.get("/v1/files/me/cut").content == LARGE
        _tus(here, there)


def _tus(here: httpx.Client, there: httpx.Client) -> None:
    content = random_bytes(20 * MIB, "tus in a store")
    tus = {"Tus-Resumable": "1.0.0"}
    made = here.post(
        "/v1/uploads",
        headers={
            **tus,
            "Upload-Length": str(len(content)),
            "Upload-Metadata": "path L3R1cw==",  # /tus
        },
    )
    assert made.status_code == 201, made.text
    where = httpx.URL(made.headers["location"]).path
    body = {**tus, "Content-Type": "application/offset+octet-stream"}
    half = 9 * MIB
    first = here.patch(where, headers={**body, "Upload-Offset": "0"}, content=content[:half])
    assert first.status_code == 204, first.text
    offset = int(there.head(where, headers=tus).headers["upload-offset"])
    assert offset == half
    rest = {**body, "Upload-Offset": str(offset)}
    assert there.patch(where, headers=rest, content=content[offset:]).status_code == 204
    assert here.get("/v1/files/me/tus").content == content


def _sync_both_ways(cli: Cli, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_tree(one, small_files(150, seed="sync"))
    assert sync(cli, one)["pushed"] == 150
    assert sync(cli, other)["pulled"] == 150
    (other / "new").write_bytes(CONTENT)
    (other / "folder-0" / "sync-0000").unlink()
    assert sync(cli, other)["pushed"] == 1
    assert sync(cli, one)["pulled"] == 1
    assert contents(one) == contents(other)
    assert len(contents(one)) == 150


def _batch(cli: Cli, tmp_path: Path) -> None:
    ops: list[dict[str, Any]] = [
        {"id": "made", "op": "mkdir", "path": "/archive"},
        {"op": "copy", "src": "/desk/new", "dst": {"ref": "made", "path": "copy"}},
        {"op": "move", "src": "/desk/new", "dst": {"ref": "made", "path": "moved"}},
    ]
    (tmp_path / "ops.json").write_text(json.dumps(ops))
    reply = cli.json("batch", tmp_path / "ops.json")
    assert [each["status"] for each in reply["results"]] == ["ok"] * 3
    assert cli.read("/archive/copy") == cli.read("/archive/moved") == CONTENT

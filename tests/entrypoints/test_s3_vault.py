"""Vaults with their objects in a bucket: with a catalog in a folder, and in a database."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import httpx
import pytest
from tests.ceph import Bucket
from tests.entrypoints.cli_calls import Called, call

import vaultfs
from vaultfs.entrypoints.stores import ELSEWHERE
from vaultfs.entrypoints.vault import MARKER

pytestmark = pytest.mark.slow

CONTENT = Random(1).randbytes(3_000_000)


def done(*words: object) -> Called:
    called = call(*words)
    assert called.code == 0, (words, called.out, called.errors)
    return called


@pytest.fixture
def folder(bucket: Bucket, tmp_path: Path) -> Path:
    done("init", tmp_path / "vault", "--store", bucket.url("vault"))
    return tmp_path / "vault"


async def test_a_vault_in_a_folder_with_its_objects_in_a_bucket(
    folder: Path, bucket: Bucket
) -> None:
    assert not (folder / "objects").exists()
    async with vaultfs.open(folder) as vault:
        await vault.put("/file", CONTENT)
        await vault.put("/file", b"new")
        await vault.put("/other", CONTENT)
    async with vaultfs.open(folder) as vault:
        assert await vault.get("/file") == b"new"
        assert await vault.get("/file", version=1) == CONTENT
        ranged = await vault.get("/other", start=1_000_001, stop=2_000_003)
        assert ranged == CONTENT[1_000_001:2_000_003]
        assert (await vault.verify()).problems == ()
    assert all(name.startswith("vault/") for name in bucket.names())
    assert sum(name.startswith("vault/packs/") for name in bucket.names()) >= 1


def test_a_lost_folder_is_made_anew_from_the_bucket(
    folder: Path, bucket: Bucket, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    done("--vault", folder, "put", tmp_path / "f", "/")
    done("--vault", folder, "backup")
    done("--vault", folder, "verify")
    shutil.rmtree(folder)
    assert call("--vault", folder, "ls", "/").code == 1
    done("--vault", folder, "--store", bucket.url("vault"), "rebuild")
    assert done("--vault", folder, "cat", "/f").bytes_out == CONTENT
    (folder / "catalog.db").unlink()
    lost = call("--vault", folder, "ls", "/")
    assert "has lost its catalog" in lost.errors
    done("--vault", folder, "rebuild")
    assert done("--vault", folder, "cat", "/f").bytes_out == CONTENT


def test_a_store_is_that_of_one_vault(folder: Path, bucket: Bucket, tmp_path: Path) -> None:
    marker = bucket.read(f"vault/{MARKER}")
    assert marker is not None
    second = call("init", tmp_path / "second", "--store", bucket.url("vault"))
    assert second.code == 1
    assert f"belongs to vault {json.loads(marker)['vault']}" in second.errors
    bucket.write("taken/something", b".")
    third = call("init", tmp_path / "third", "--store", bucket.url("taken"))
    assert "is not empty" in third.errors
    assert not (tmp_path / "second").exists()
    assert not (tmp_path / "third").exists()
    done("init", tmp_path / "other", "--store", bucket.url("other"))
    (folder / ELSEWHERE).write_text(bucket.url("other"))
    wrong = call("--vault", folder, "backup")
    assert "and the catalog to vault" in wrong.errors


@pytest.mark.parametrize(
    ("store", "text"),
    [
        ("s3://other", "has its objects in s3://"),
        ("file:///tmp", "another kind of store"),
        ("ftp://x", "file://, s3://"),
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


def test_a_vault_with_its_objects_does_not_move_by_a_flag(bucket: Bucket, tmp_path: Path) -> None:
    done("init", tmp_path / "vault")
    tried = call("--vault", tmp_path / "vault", "--store", bucket.url(), "ls", "/")
    assert "has its objects there" in tried.errors


def test_an_init_that_fails_leaves_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(url: str, text: str) -> None:
        tried = call("init", tmp_path / "vault", "--store", url)
        assert tried.code == 1
        assert text in tried.errors
        assert not (tmp_path / "vault").exists()

    fails(bucket.url().replace(bucket.name, "none-such"), "NoSuchBucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fails(bucket.url(), "SignatureDoesNotMatch")
    assert bucket.names() == []


def test_an_interrupted_init_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    folder.mkdir()
    (folder / ELSEWHERE).write_text(bucket.url("vault") + "\n")
    done("init", folder)
    assert bucket.read(f"vault/{MARKER}") is not None


def test_without_the_library_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("vaultfs.adapters.s3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiobotocore", None)
    for name in ("config", "httpsession", "session"):
        monkeypatch.delitem(sys.modules, f"aiobotocore.{name}", raising=False)
    tried = call("--vault", folder, "backup")
    assert "pip install 'vaultfs[s3]'" in tried.errors


def test_a_database_and_a_bucket(database: str, bucket: Bucket, tmp_path: Path) -> None:
    place = ("--database", database, "--store", bucket.url("shared"))
    done(*place, "init")
    assert call(*place, "init").code == 1
    (tmp_path / "f").write_bytes(CONTENT)
    done(*place, "put", tmp_path / "f", "/")
    done(*place, "backup")
    done(*place, "rebuild", "--from-backup", "latest")
    done(*place, "verify")
    command = [sys.executable, "-m", "vaultfs", "serve", "--port", "0", "--json", *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            headers = {"Authorization": f"Bearer {told['token']}", "Range": "bytes=5-99999"}
            with httpx.Client(base_url=told["address"], headers=headers) as client:
                assert client.get("/v1/files/me/f").content == CONTENT[5:100_000]
                assert client.get("/readyz").status_code == 200
        finally:
            process.terminate()
            process.wait(timeout=40)

"""fsspec's own tests of a filesystem, against a server in a process of its own."""

# pyright: basic
# fsspec has no types.

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.tests import abstract
from tests.entrypoints.cli_calls import clean_env
from tests.entrypoints.test_http_server import Running

from vaultfs.entrypoints.filesystem import VaultFileSystem

_numbers = count()


@pytest.fixture(scope="module")
def filesystem(hub: Running) -> VaultFileSystem:
    found = fsspec.filesystem(
        "vaultfs", host="127.0.0.1", port=hub.port, tls=False, token=hub.token
    )
    assert isinstance(found, VaultFileSystem)
    return found


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, filesystem: VaultFileSystem) -> VaultFileSystem:
        return filesystem

    @pytest.fixture
    def fs_path(self, fs: Any) -> Iterator[str]:
        path = f"/fsspec{next(_numbers)}"
        fs.mkdir(path)
        yield path
        fs.rm(path, recursive=True)


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass


class TestOurs(Fixtures):
    def test_by_its_url(self, hub: Running, fs: Any, fs_path: str) -> None:
        url = f"vaultfs://127.0.0.1:{hub.port}{fs_path}/deep/file.txt"
        opened: Any = fsspec.open(url, "w", tls=False, token=hub.token)
        with opened as file:
            file.write("text")
        assert fs.cat(f"{fs_path}/deep/file.txt") == b"text"
        assert fs.cat(url) == b"text"
        assert fs.unstrip_protocol(f"{fs_path}/deep/file.txt") == url
        assert fsspec.core.url_to_fs(url, tls=False, token=hub.token)[0] is fs

    def test_looks(self, fs: Any, fs_path: str) -> None:
        fs.pipe(f"{fs_path}/a", b"0123456789")
        fs.mkdir(f"{fs_path}/d")
        assert fs.ls(fs_path, detail=False) == [f"{fs_path}/a", f"{fs_path}/d"]
        assert fs.info(f"{fs_path}/a")["size"] == 10
        assert fs.ls(f"{fs_path}/a", detail=False) == [f"{fs_path}/a"]
        assert fs.find(fs_path) == [f"{fs_path}/a"]
        assert fs.glob(f"{fs_path}/*") == [f"{fs_path}/a", f"{fs_path}/d"]
        assert (fs.isdir(f"{fs_path}/d"), fs.exists(f"{fs_path}/x")) == (True, False)
        assert fs.modified(f"{fs_path}/a") >= fs.created(f"{fs_path}/a")
        assert fs.cat_file(f"{fs_path}/a", 2, -3) == b"23456"
        assert fs.cat_file(f"{fs_path}/a", -4) == b"6789"
        assert fs.cat_file(f"{fs_path}/a", 5, 2) == b""
        with fs.open(f"{fs_path}/a") as file:
            file.seek(-3, 2)
            assert file.read() == b"789"

    def test_versions_are_there(self, fs: Any, fs_path: str) -> None:
        for text in (b"one", b"two"):
            fs.pipe(f"{fs_path}/a", text)
        assert fs.info(f"{fs_path}/a")["version"] == 2
        with fs.open(f"{fs_path}/a", version=1) as file:
            assert file.read() == b"one"
        assert [each.number for each in fs.vault.versions(f"{fs_path}/a")] == [2, 1]

    def test_what_is_refused(self, fs: Any, fs_path: str) -> None:
        fs.pipe(f"{fs_path}/d/a", b"one")
        wrong: list[tuple[type[OSError], Any]] = [
            (FileNotFoundError, lambda: fs.cat(f"{fs_path}/x")),
            (FileNotFoundError, lambda: fs.ls(f"{fs_path}/x")),
            (FileNotFoundError, lambda: fs.rm(f"{fs_path}/x", recursive=True)),
            (FileExistsError, lambda: fs.mkdir(f"{fs_path}/d")),
            (FileExistsError, lambda: fs.open(f"{fs_path}/d/a", "xb")),
            (IsADirectoryError, lambda: fs.open(f"{fs_path}/d")),
            (NotADirectoryError, lambda: fs.rmdir(f"{fs_path}/d/a")),
            (FileNotFoundError, lambda: fs.rmdir(f"{fs_path}/x")),
            (IsADirectoryError, fs.open(f"{fs_path}/d", "wb").close),
            (NotADirectoryError, fs.open(f"{fs_path}/d/a/b", "wb").close),
        ]
        for kind, call in wrong:
            with pytest.raises(kind):
                call()
        with pytest.raises(ValueError, match="versions do not grow"):
            fs.open(f"{fs_path}/d/a", "ab")

    def test_no_file_is_stored_by_a_transaction(
        self, fs: Any, fs_path: str, tmp_path: Path
    ) -> None:
        local = tmp_path / "local"
        local.write_bytes(b"x")
        stores: list[Any] = [
            lambda: fs.open(f"{fs_path}/a", "wb"),
            lambda: fs.pipe_file(f"{fs_path}/a", b"x"),
            lambda: fs.put_file(local, f"{fs_path}/a"),
        ]
        for store in stores:
            with pytest.raises(NotImplementedError, match="transactions"), fs.transaction:
                store()
        assert not fs.exists(f"{fs_path}/a")

    def test_moves(self, fs: Any, fs_path: str) -> None:
        fs.pipe(f"{fs_path}/d/a", b"one")
        fs.mv(f"{fs_path}/d", f"{fs_path}/e", recursive=True)
        assert fs.cat(f"{fs_path}/e/a") == b"one"
        fs.mkdir(f"{fs_path}/f")
        fs.mv(f"{fs_path}/e/a", f"{fs_path}/f")
        assert fs.find(fs_path) == [f"{fs_path}/f/a"]

    def test_a_zip_archive(self, fs: Any, fs_path: str) -> None:
        with fs.open(f"{fs_path}/z.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/b", "text" * 10_000)
        with fs.open(f"{fs_path}/z.zip") as file, zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            assert archive.read("a/b") == b"text" * 10_000


def test_a_token_that_is_none(hub: Running) -> None:
    fs = VaultFileSystem("127.0.0.1", hub.port, tls=False, token=f"{hub.token}x")
    with pytest.raises(PermissionError):
        fs.ls("/")


def test_a_program_that_closes_nothing_ends_all_the_same(hub: Running) -> None:
    program = (
        "import fsspec\n"
        f"fs = fsspec.filesystem('vaultfs', host='127.0.0.1', port={hub.port}, tls=False)\n"
        "print(fs.exists('/'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=clean_env(VAULTFS_TOKEN=hub.token),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"True\n", b"")

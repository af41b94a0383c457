"""The blocking SDK against a server, and its file objects."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.entrypoints.conftest import new_user
from tests.entrypoints.test_http_server import Running
from tests.faults import MIB, random_bytes

import vaultfs
from vaultfs.domain.errors import Exists, NotAuthenticated, NotFound
from vaultfs.domain.retention import Retention
from vaultfs.entrypoints.sync import SyncRemoteVault

CONTENT = random_bytes(3 * MIB, "connect")


@pytest.fixture
def vault(hub: Running) -> Iterator[SyncRemoteVault]:
    user = new_user(hub)
    with vaultfs.connect_sync(user.server, token=user.token) as vault:
        yield vault


def test_what_was_put_is_got(vault: SyncRemoteVault, tmp_path: Path) -> None:
    vault.put("/d/a", CONTENT)
    (tmp_path / "local").write_bytes(b"local")
    vault.put("/d/b", tmp_path / "local")
    assert vault.get("/d/a", start=5, stop=9) == CONTENT[5:9]
    assert [node.name for node in vault.list("/d")] == ["a", "b"]
    vault.put_tree(tmp_path, "/tree")
    assert vault.get_tree("/tree", tmp_path / "back").files == 1
    vault.set_retention(Retention(last=1))
    vault.put("/d/b", b"again")
    assert (vault.retention().last, vault.prune()) == (1, 1)
    assert [each.number for each in vault.versions("/d/b")] == [2]
    with pytest.raises(NotFound):
        vault.stat("/nope")


def test_files_and_folders_come_in_step(vault: SyncRemoteVault, tmp_path: Path) -> None:
    local, copy = tmp_path / "local", tmp_path / "copy"
    local.write_bytes(CONTENT)
    first = vault.push("/f", local)
    got = vault.pull("/f", copy)
    local.write_bytes(CONTENT + b"a line")
    second = vault.push("/f", local, base=first.node.version)
    assert second.travelled < 20_000
    again = vault.pull("/f", copy, base=got.version.id)
    assert (again.changed, copy.read_bytes()) == (True, CONTENT + b"a line")
    assert again.travelled < 1000
    assert vault.compare("/f", "/f", first=1).new == 6
    changes = vault.changes()
    assert [each.path for each in changes.entries] == ["/f", "/f"]
    assert vault.changes(changes.cursor).entries == []
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").write_bytes(b"a")
    assert vault.sync(tmp_path / "work", "/desk").pushed == 1
    assert vault.sync(tmp_path / "other", "/desk").pulled == 1


def test_reading_is_like_a_file(vault: SyncRemoteVault) -> None:
    vault.put("/a", CONTENT)
    with vault.open("/a") as file:
        vault.put("/a", b"another content by now")
        assert file.read(10) == CONTENT[:10]
        file.seek(-10, io.SEEK_END)
        assert file.read() == CONTENT[-10:]
        file.seek(0)
        assert file.read() == CONTENT
        file.seek(2 * MIB)
        assert file.read(2 * MIB) == CONTENT[2 * MIB :]


def test_a_file_is_there_once_it_is_closed(vault: SyncRemoteVault) -> None:
    with vault.open("/new", "xb") as file:
        file.write(CONTENT)
        assert not vault.exists("/new")
    assert vault.get("/new") == CONTENT
    with pytest.raises(Exists):
        vault.open("/new", "xb")
    with pytest.raises(KeyError), vault.open("/left", "wb") as left:
        left.write(CONTENT)
        raise KeyError
    assert not vault.exists("/left")


def test_zip_archives_are_written_and_read(vault: SyncRemoteVault) -> None:
    with vault.open("/z.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"text" * 100_000)
        archive.writestr("b", CONTENT)
    with vault.open("/z.zip") as zipped, zipfile.ZipFile(zipped) as archive:
        assert archive.read("a") == b"text" * 100_000
        assert archive.testzip() is None


def test_a_token_that_is_none(hub: Running) -> None:
    with pytest.raises(NotAuthenticated), vaultfs.connect_sync(hub.address, token="vfs_a_b"):
        pass

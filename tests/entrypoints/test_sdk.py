"""The SDK, with and without `await`, and its file objects in the hands of others."""

import csv
import gc
import io
import json
import os
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, cast

import anyio
import pytest
from anyio import to_thread
from tests.faults import MIB, quick_folder, random_bytes, read_tree, small_files, write_tree

import vaultfs
from vaultfs.domain.errors import (
    Conflict,
    Exists,
    InvalidField,
    InvalidName,
    IsAFolder,
    NotAFolder,
    NotAVault,
    NotFound,
    ParentNotFound,
    SourceChanged,
    VersionMismatch,
)
from vaultfs.domain.integrity import Depth
from vaultfs.domain.nodes import Preconditions
from vaultfs.domain.retention import Retention
from vaultfs.entrypoints.sdk import Vault
from vaultfs.entrypoints.sync import SyncVault

LARGE = random_bytes(5 * MIB)


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
async def vault(place: Path) -> AsyncIterator[Vault]:
    async with vaultfs.open(place / "vault", create=True) as opened:
        yield opened


@pytest.fixture
def plain(place: Path) -> Iterator[SyncVault]:
    with vaultfs.open_sync(place / "vault", create=True) as opened:
        yield opened


async def pieces_of(data: bytes, size: int = 100_000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# Opening


async def test_a_vault_is_there_after_closing(place: Path) -> None:
    async with vaultfs.open(place / "vault", create=True) as vault:
        await vault.put("/a/file", b"text")
    async with vaultfs.open(place / "vault", create=True) as vault:
        assert await vault.get("/a/file") == b"text"
    async with vaultfs.open(str(place / "vault")) as vault:
        assert await vault.get("/a/file") == b"text"


async def test_no_vault_is_made_unless_asked_for(place: Path) -> None:
    with pytest.raises(NotAVault, match="vaultfs init"):
        async with vaultfs.open(place / "vault"):
            pass
    assert not (place / "vault").exists()
    (place / "full").mkdir()
    (place / "full/file").write_bytes(b"precious")
    with pytest.raises(Exists):
        async with vaultfs.open(place / "full", create=True):
            pass


def test_an_error_in_the_block_is_not_wrapped(place: Path) -> None:
    def fail() -> None:
        with vaultfs.open_sync(place / "vault", create=True):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()


# Contents


async def test_what_was_put_is_got(vault: Vault, place: Path) -> None:
    (place / "local").write_bytes(LARGE)
    os.utime(place / "local", ns=(10**18, 10**18))
    assert (await vault.put("/bytes", LARGE)).size == len(LARGE)
    await vault.put("/stream", pieces_of(LARGE))
    await vault.put("/file", place / "local")
    await vault.put("/view", memoryview(bytearray(LARGE)))
    await vault.put("/empty", b"")
    for path in ("/bytes", "/stream", "/file", "/view"):
        assert await vault.get(path) == LARGE
        assert await vault.get(path, start=100, stop=2 * MIB) == LARGE[100 : 2 * MIB]
    assert await vault.get("/empty") == b""
    [version] = [version async for version in vault.versions("/file")]
    assert version.mtime_us == 10**15
    assert (await vault.usage()).catalog.packed < 1.02 * len(LARGE)


async def test_a_stream_is_read_piece_by_piece(vault: Vault) -> None:
    await vault.put("/file", LARGE)
    async with vault.stream("/file", start=5) as pieces:
        got = [bytes(piece) async for piece in pieces]
    assert b"".join(got) == LARGE[5:]
    assert len(got) > 10
    async with vault.stream("/file") as pieces:
        assert LARGE.startswith(await anext(pieces))


async def test_a_stream_can_be_put_again(vault: Vault) -> None:
    await vault.put("/file", LARGE)

    async def upper() -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            yield bytes(piece).upper()

    async with vault.stream("/file") as pieces:
        await vault.put("/copy", upper())
    assert await vault.get("/copy") == LARGE.upper()


async def test_a_stream_that_fails_leaves_nothing(vault: Vault) -> None:
    await vault.put("/file", b"old")

    async def failing() -> AsyncGenerator[bytes, None]:
        yield LARGE
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        await vault.put("/file", failing())
    with pytest.raises(ConnectionError):
        await vault.put("/new/file", failing())
    assert await vault.get("/file") == b"old"
    assert not await vault.exists("/new")
    assert (await vault.verify()).clean


async def test_what_cannot_be_put_or_got(vault: Vault, place: Path) -> None:
    await vault.put("/folder/file", b"text")
    with pytest.raises(NotFound):
        await vault.get("/nothing")
    with pytest.raises(NotFound):
        await vault.get("/folder/file", version=2)
    with pytest.raises(IsAFolder):
        await vault.get("/folder")
    with pytest.raises(IsAFolder):
        await vault.put("/folder", b"text")
    with pytest.raises(NotAFolder):
        await vault.put("/folder/file/below", b"text")
    with pytest.raises(ParentNotFound):
        await vault.put("/no/folder", b"text", parents=False)
    with pytest.raises(InvalidName):
        await vault.put("relative", b"text")
    with pytest.raises(NotFound):
        await vault.put("/file", place / "nothing")
    with pytest.raises(VersionMismatch):
        await vault.put(
            "/folder/file", b"x", preconditions=Preconditions(if_version=None, if_revision=99)
        )
    with pytest.raises(Exists):
        await vault.put("/folder/file", b"x", preconditions=Preconditions(if_absent=True))


# Nodes and versions


async def test_a_day_in_a_vault(vault: Vault) -> None:
    await vault.mkdir("/a/b", parents=True)
    for text in (b"one", b"two", b"three"):
        await vault.put("/a/b/file", text)
    assert [node.name async for node in vault.list("/a")] == ["b"]
    assert [version.number async for version in vault.versions("/a/b/file")] == [3, 2, 1]
    assert await vault.get("/a/b/file", version=2) == b"two"
    await vault.restore_version("/a/b/file", 1)
    assert await vault.get("/a/b/file") == b"one"
    await vault.copy("/a/b/file", "/copy", version=2)
    assert await vault.get("/copy") == b"two"
    await vault.move("/a", "/moved")
    assert await vault.set_metadata("/moved", {"colour": "blue", "tags": ["a", "b"]}) == {
        "colour": "blue",
        "tags": ["a", "b"],
    }
    assert await vault.set_metadata("/moved", {"tags": None}) == {"colour": "blue"}
    assert await vault.metadata("/moved") == {"colour": "blue"}
    node = await vault.delete("/moved", recursive=True)
    assert [(each.node.id, each.path) async for each in vault.trash()] == [(node.id, ("moved",))]
    await vault.restore(node.id, "/again")
    assert await vault.get("/again/b/file") == b"one"
    await vault.set_retention(Retention(last=1))
    assert await vault.prune() == 3
    await vault.delete("/again", recursive=True)
    await vault.purge(node.id)
    assert [each async for each in vault.trash()] == []
    await vault.rebuild()
    await vault.backup()
    assert (await vault.verify(Depth.FULL)).clean


async def test_a_long_list_comes_whole(vault: Vault, place: Path) -> None:
    write_tree(place / "local", {f"{number:05}": b"" for number in range(2500)})
    assert (await vault.put_tree(place / "local", "/tree")).files == 2500
    names = [node.name async for node in vault.list("/tree")]
    assert names == [f"{number:05}" for number in range(2500)]


# Without await


def test_plain_code_has_it_all(plain: SyncVault, place: Path) -> None:
    plain.put("/a/file", b"one")
    plain.put("/a/file", b"two")
    assert plain.get("/a/file", version=1) == b"one"
    assert [node.name for node in plain.list("/")] == ["a"]
    assert [version.number for version in plain.versions("/a/file")] == [2, 1]
    write_tree(place / "local", small_files(10))
    assert plain.put_tree(place / "local", "/tree").files == 10
    assert plain.get_tree("/tree", place / "back").complete
    assert read_tree(place / "back") == small_files(10)
    plain.mkdir("/empty", exist_ok=True)
    plain.move("/a", "/b")
    plain.copy("/b", "/c")
    node = plain.delete("/b", recursive=True)
    assert [each.node.id for each in plain.trash()] == [node.id]
    plain.restore(node.id)
    plain.delete("/b", recursive=True)
    plain.purge(node.id)
    assert plain.set_metadata("/c", {"a": 1}) == plain.metadata("/c") == {"a": 1}
    plain.restore_version("/c/file", 1)
    assert plain.stat("/c/file").number == 2
    assert plain.exists("/c")
    assert not plain.exists("/b")
    plain.set_retention(Retention(last=1))
    plain.prune()
    plain.backup()
    plain.rebuild()
    assert plain.usage().catalog.files == 11
    assert plain.verify().clean
    with pytest.raises(NotFound):
        plain.get("/nothing")


def test_a_list_may_be_left_in_the_middle(plain: SyncVault) -> None:
    for number in range(5):
        plain.put(f"/{number}", b"")
    assert next(iter(plain.list("/"))).name == "0"
    with pytest.raises(NotFound):
        list(plain.list("/nothing"))


def test_several_threads_share_a_vault(plain: SyncVault) -> None:
    def work(name: str) -> None:
        for number in range(10):
            plain.put(f"/{name}/{number}", f"{name} {number}".encode())
            with plain.open(f"/{name}/{number}") as file:
                assert file.read() == f"{name} {number}".encode()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(1 for name in "abcd" for _ in plain.list(f"/{name}")) == 40


async def test_nothing_is_put_from_the_vault_s_own_folder_or_pulled_into_it(
    vault: Vault, place: Path
) -> None:
    await vault.put("/file", b"text")
    catalog = place / "vault" / "catalog.db"
    before = catalog.read_bytes()
    with pytest.raises(Conflict, match="in the vault itself"):
        await vault.pull("/file", catalog)
    with pytest.raises(Conflict, match="in the vault itself"):
        await vault.put("/catalog", catalog)
    report = await vault.get_tree("/", catalog.parent)
    assert (report.files, len(report.failed)) == (0, 1)
    with pytest.raises(Conflict, match="in the vault itself"):
        await vault.put_tree(catalog.parent, "/self")
    assert catalog.read_bytes() == before
    assert [node.name async for node in vault.list()] == ["file"]


async def test_a_pull_replaces_nothing_but_what_was_expected(vault: Vault, place: Path) -> None:
    await vault.put("/file", b"theirs")
    local = place / "local"
    local.write_bytes(b"mine")
    before = local.stat()
    local.write_bytes(b"mine, newer")
    for expected in (before, None):
        with pytest.raises(SourceChanged):
            await vault.pull("/file", local, expected=expected)
    assert local.read_bytes() == b"mine, newer"
    assert {path.name for path in place.iterdir()} == {"local", "vault"}
    await vault.pull("/file", local, expected=local.stat())
    assert local.read_bytes() == b"theirs"


# File objects


def test_reading_is_like_a_file(plain: SyncVault) -> None:
    plain.put("/file", LARGE)
    random, same = Random(1), io.BytesIO(LARGE)
    with plain.open("/file") as file:
        assert (file.name, file.readable(), file.seekable(), file.writable()) == (
            *("/file", True, True, False),
        )
        for _ in range(60):
            whence = random.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            base = {io.SEEK_SET: 0, io.SEEK_CUR: same.tell(), io.SEEK_END: len(LARGE)}[whence]
            target = random.randrange(len(LARGE) + 1000)
            assert file.seek(target - base, whence) == same.seek(target - base, whence)
            size = random.choice([1, 100, 5000, 2 * MIB])
            assert file.read(size) == same.read(size)
            assert file.tell() == same.tell()
        file.seek(0)
        assert file.read() == LARGE
        assert file.read() == b""
        for offset, whence in ((-1, io.SEEK_SET), (0, os.SEEK_DATA)):
            with pytest.raises(ValueError, match="seek"):
                file.seek(offset, whence)
    assert file.closed
    plain.put("/file", b"new")
    with plain.open("/file", version=1) as file:
        assert file.read(10) == LARGE[:10]


def test_a_reader_keeps_its_version(plain: SyncVault) -> None:
    plain.put("/file", b"old text")
    with plain.open("/file") as file:
        plain.put("/file", b"something new")
        plain.delete("/file")
        assert file.read() == b"old text"


def test_what_is_written_is_there_once_it_is_closed(plain: SyncVault) -> None:
    with plain.open("/new/file", "wb") as file:
        for start in range(0, len(LARGE), 70_000):
            assert file.tell() == start
            file.write(LARGE[start : start + 70_000])
        assert not plain.exists("/new")
    assert plain.get("/new/file") == LARGE
    assert file.node is not None
    assert (file.node.name, file.node.number) == ("file", 1)
    file.close()  # once more does nothing
    with pytest.raises(ValueError, match="closed"):
        file.write(b"late")
    with plain.open("/empty", "wb"):
        pass
    assert plain.get("/empty") == b""


def test_a_writer_that_is_left_by_an_exception_leaves_nothing(plain: SyncVault) -> None:
    plain.put("/file", b"old")

    def fail(path: str, size: int) -> None:
        with plain.open(path, "wb") as file:
            file.write(LARGE[:size])
            raise RuntimeError("mine")

    for size in (0, 10, len(LARGE)):
        for path in ("/file", "/new"):
            with pytest.raises(RuntimeError, match="mine"):
                fail(path, size)
    assert plain.get("/file") == b"old"
    assert not plain.exists("/new")
    file = plain.open("/file", "wb")
    file.write(b"half")
    file.abort()
    file.abort()
    file.close()
    assert plain.get("/file") == b"old"
    assert plain.verify().clean


def test_a_writer_that_was_forgotten_leaves_nothing(plain: SyncVault) -> None:
    def forget(size: int) -> None:
        plain.open("/file", "wb").write(LARGE[:size])

    for size in (0, 10, len(LARGE)):
        forget(size)
        gc.collect()
    assert not plain.exists("/file")
    plain.put("/file", b"text")
    assert plain.verify().clean


def is_closed(file: io.IOBase) -> bool:
    return file.closed


def test_a_vault_closes_whatever_is_still_open(place: Path) -> None:
    with vaultfs.open_sync(place / "vault", create=True) as vault:
        vault.put("/file", LARGE)
        reader = vault.open("/file")
        assert reader.read(5) == LARGE[:5]
        writer = vault.open("/other", "wb")
        writer.write(LARGE)
    assert not is_closed(writer)
    with pytest.raises(Exception, match=r"."):
        writer.close()
    assert writer.closed
    reader.close()
    with vaultfs.open_sync(place / "vault") as vault:
        assert not vault.exists("/other")
        assert vault.get("/file") == LARGE


def test_what_several_threads_write_stays_whole(plain: SyncVault) -> None:
    record, each = 200, 20_000

    def write(number: int) -> None:
        for _ in range(each):
            file.write(bytes([number]) * record)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with plain.open("/file", "wb") as file, ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(4)))
    finally:
        sys.setswitchinterval(before)
    found = plain.get("/file")
    pieces = [found[start : start + record] for start in range(0, len(found), record)]
    assert Counter(pieces) == {bytes([number]) * record: each for number in range(4)}


@pytest.mark.parametrize("mode", ["r", "w", "ab", "r+b", ""])
def test_a_mode_that_is_not_known_replaces_nothing(plain: SyncVault, mode: str) -> None:
    plain.put("/file", b"text")
    with pytest.raises(InvalidField, match="mode"), plain.open("/file", cast("Any", mode)):
        pass
    assert plain.get("/file") == b"text"


def test_a_writer_in_the_way_of_a_folder_says_so(plain: SyncVault) -> None:
    plain.mkdir("/folder")
    file = plain.open("/folder", "wb")
    file.write(b"text")
    with pytest.raises(IsAFolder):
        file.close()
    assert file.closed
    with pytest.raises(IsAFolder):
        plain.open("/folder")
    with pytest.raises(NotFound):
        plain.open("/nothing")


def test_zip_archives_are_written_and_read(plain: SyncVault) -> None:
    contents = small_files(20)
    with plain.open("/archive.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
        archive.writestr("large", LARGE)
    with plain.open("/archive.zip") as stored, zipfile.ZipFile(stored) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in contents} == contents
        with archive.open("large") as member:
            member.seek(3 * MIB)
            assert member.read(100) == LARGE[3 * MIB :][:100]


def test_tar_archives_are_written_and_read(plain: SyncVault) -> None:
    with plain.open("/a.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("large")
        info.size = len(LARGE)
        archive.addfile(info, io.BytesIO(LARGE))
    with plain.open("/a.tar.gz") as stored, tarfile.open(fileobj=stored) as archive:
        member = archive.extractfile("large")
        assert member is not None
        assert member.read() == LARGE


def test_text_goes_through_a_wrapper(plain: SyncVault) -> None:
    rows = [{"name": f"Zeile {number} äöü", "number": str(number)} for number in range(3000)]
    with io.TextIOWrapper(plain.open("/a.csv", "wb"), "utf-8", newline="") as text:
        writer = csv.DictWriter(text, ["name", "number"])
        writer.writeheader()
        writer.writerows(rows)
    with io.TextIOWrapper(plain.open("/a.csv"), "utf-8", newline="") as text:
        assert list(csv.DictReader(text)) == rows
    with io.TextIOWrapper(plain.open("/a.json", "wb"), "utf-8") as text:
        json.dump(rows, text)
    with plain.open("/a.json") as file:
        assert json.load(file) == rows
        file.seek(0)
        assert sum(1 for _ in file) == 1


async def test_file_objects_work_in_threads_of_an_async_program(vault: Vault) -> None:
    def copy(source: io.BufferedIOBase, target: io.BufferedIOBase) -> None:
        with source, target:
            while data := source.read(100_000):
                target.write(data)

    await vault.put("/0", LARGE)
    async with anyio.create_task_group() as tasks:
        for number in range(1, 4):
            reader, writer = await vault.open("/0"), await vault.open(f"/{number}", "wb")
            tasks.start_soon(to_thread.run_sync, copy, reader, writer)
    for number in range(1, 4):
        assert await vault.get(f"/{number}") == LARGE


@pytest.mark.parametrize("create", [False, True])
async def test_a_server_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidField, match=r"vaultfs\.connect\b.*connect_sync"):
        async with vaultfs.open("http://x", create=create):
            pass
    assert not list(tmp_path.iterdir())

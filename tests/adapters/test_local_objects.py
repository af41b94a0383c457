import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from random import Random

import anyio
import pytest
from hypothesis import given, settings
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict, listed
from tests.strategies import Step, store_steps

from vaultfs.adapters.local import LocalObjectStore
from vaultfs.ports.objects import (
    Capabilities,
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    PermissionDenied,
    PutMode,
    StoreMisconfigured,
    StoreUnavailable,
)

PACK = "packs/" + "abcd" * 16
NOBODY = 65534

KILLED_AT = """
import os, signal, sys
from pathlib import Path
import anyio
from vaultfs.adapters.local import LocalObjectStore
from vaultfs.ports.objects import PutMode

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

root, call, size, mode = sys.argv[1:]

async def main():
    store = LocalObjectStore(Path(root))
    setattr(os, call, die)
    await store.put("packs/" + "abcd" * 16, b"x" * int(size), mode=PutMode(mode))

anyio.run(main)
"""


def kill_at(root: Path, call: str, size: int, mode: PutMode) -> None:
    """Put `PACK` in another process, which is killed where it would use `os.<call>`."""
    argv = [sys.executable, "-c", KILLED_AT, str(root), call, str(size), mode.value]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL


def path_of(root: Path, key: str) -> Path:
    folder, _, name = key.rpartition("/")
    fanned = len(name) >= 32 and name[:4].isalnum()
    return root / folder / (f"{name[:2]}/{name[2:4]}" if fanned else "") / name


def temporaries(root: Path) -> list[Path]:
    return sorted((root / ".tmp").glob("*"))


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path)


class TestLocalObjects(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LocalObjectStore]:
        yield LocalObjectStore(tmp_path)
        assert temporaries(tmp_path) == []

    @pytest.fixture
    def written(self, tmp_path: Path) -> Written:
        def read(key: str) -> bytes | None:
            path = path_of(tmp_path, key)
            return path.read_bytes() if path.is_file() else None

        return read


@settings(max_examples=25, deadline=None)
@given(steps=store_steps)
def test_behaves_like_a_dict(steps: tuple[Step, ...]) -> None:
    with tempfile.TemporaryDirectory() as root:
        anyio.run(check_against_a_dict, LocalObjectStore(Path(root)), steps)


def test_capabilities(store: LocalObjectStore) -> None:
    assert store.capabilities == Capabilities(create_if_absent=True, delete_batch=1)


async def test_a_pack_stands_two_folders_deeper(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put(PACK, b".")
    await store.put("packs/abcd", b".")
    assert (tmp_path / "packs" / "ab" / "cd" / ("abcd" * 16)).read_bytes() == b"."
    assert (tmp_path / "packs" / "abcd").read_bytes() == b"."


@pytest.mark.parametrize(
    ("call", "size", "mode"),
    [
        ("fsync", 10_000, PutMode.CREATE),
        ("fsync", 1 << 20, PutMode.OVERWRITE),
        ("pwrite", 1 << 20, PutMode.CREATE),
        ("link", 1 << 20, PutMode.CREATE),
        ("replace", 10_000, PutMode.OVERWRITE),
    ],
)
async def test_a_put_killed_before_its_end_is_never_seen(
    tmp_path: Path, call: str, size: int, mode: PutMode
) -> None:
    kill_at(tmp_path, call, size, mode)
    store = await LocalObjectStore.open(tmp_path)
    with pytest.raises(ObjectNotFound):
        await store.get(PACK)
    assert await listed(store) == []
    assert len(temporaries(tmp_path)) == 1
    await store.put(PACK, b"again")
    assert await listed(store) == [PACK]


async def test_a_put_killed_while_it_tidies_up_is_whole(tmp_path: Path) -> None:
    kill_at(tmp_path, "unlink", 1 << 20, PutMode.CREATE)
    store = await LocalObjectStore.open(tmp_path)
    assert await store.get(PACK) == b"x" * (1 << 20)
    assert await listed(store) == [PACK]


async def test_leftovers_go_after_a_day(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put("key", b".")
    old, young = (tmp_path / ".tmp" / name for name in ("old", "young"))
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    day_and_a_bit = old.stat().st_mtime - 24 * 3600 - 60
    os.utime(old, (day_and_a_bit, day_and_a_bit))
    reopened = await LocalObjectStore.open(tmp_path)
    assert temporaries(tmp_path) == [young]
    assert await listed(reopened) == ["key"]


async def test_a_folder_that_is_not_there_is_not_taken_for_an_empty_store(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(StoreMisconfigured):
        await LocalObjectStore.open(gone)
    store = LocalObjectStore(gone)
    for call in (store.get, store.head, store.delete):
        with pytest.raises(StoreMisconfigured, match="is not there"):
            await call("key")
    for size in (1, 1 << 20):
        with pytest.raises(StoreMisconfigured):
            await store.put("key", bytes(size))
    with pytest.raises(StoreMisconfigured):
        await listed(store)
    (outcome,) = await store.delete_many(["key"])
    assert isinstance(outcome.error, StoreMisconfigured)


async def test_folders_tidied_away_are_made_again(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put(PACK, b".")
    await store.delete(PACK)
    for folder in ("packs/ab/cd", "packs/ab", "packs", ".tmp"):
        (tmp_path / folder).rmdir()
    await store.put(PACK, b"again")
    assert await store.get(PACK) == b"again"


@pytest.mark.parametrize("size", [100, 1 << 20])
async def test_file_and_folder_are_flushed_once_each(
    tmp_path: Path, store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    await store.put("packs/first", b".")
    flushed: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).parent.name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    await store.put("packs/second", bytes(size))
    assert flushed == [".tmp", tmp_path.name]
    with pytest.raises(ObjectExists):
        await store.put("packs/second", bytes(size))
    assert flushed == [".tmp", tmp_path.name] * 2


def at_a_page(data: bytes, *, moved: int = 0) -> memoryview:
    """`data` in memory that begins where a page does, or `moved` bytes later."""
    room = mmap(-1, len(data) + moved + 1)
    view = memoryview(room)[moved : moved + len(data)]
    view[:] = data
    return view


@pytest.mark.parametrize("moved", [0, 1, 512])
@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 4095, (5 << 20) + 1])
async def test_one_large_piece_is_stored_whole_wherever_its_memory_begins(
    store: LocalObjectStore, moved: int, size: int
) -> None:
    data = Random(size).randbytes(size)
    await store.put("packs/first", at_a_page(data, moved=moved))
    assert await store.get("packs/first") == data


@pytest.mark.parametrize("moved", [0, 1])
async def test_a_disk_that_takes_part_of_a_direct_write_gets_the_rest(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    pwrite, sizes = os.pwrite, iter([4096, 1000])

    def some(fd: int, data: memoryview, offset: int) -> int:
        return pwrite(fd, data[: next(sizes, len(data))], offset)

    monkeypatch.setattr(os, "pwrite", some)
    data = Random(3).randbytes(3 << 20)
    await store.put("packs/first", at_a_page(data, moved=moved))
    assert await store.get("packs/first") == data


async def test_new_folders_are_flushed_up_to_the_root(
    tmp_path: Path, store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    await store.put(PACK, b".")
    packs = tmp_path / "packs"
    assert flushed[1:] == [tmp_path, packs, packs / "ab", packs / "ab" / "cd"]


async def test_folders_of_another_process_are_flushed_too(
    tmp_path: Path, store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("packs/first", b".")
    count = 0
    fsync = os.fsync

    def counted(fd: int) -> None:
        nonlocal count
        count += 1
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    await LocalObjectStore(tmp_path).put("packs/second", b".")
    assert count == 3


async def test_a_failed_flush_is_an_unknown_outcome(
    tmp_path: Path, store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        for size in (1, 1 << 20):
            with pytest.raises(StoreUnavailable) as raised:
                await store.put("key", bytes(size))
            assert raised.value.retryable
            assert raised.value.outcome_unknown
    assert temporaries(tmp_path) == []
    assert await listed(store) == []


async def test_a_symbolic_link_is_no_object(tmp_path: Path, store: LocalObjectStore) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(b"secret")
    (tmp_path / "planted").symlink_to(secret)
    for call in (store.get, store.head):
        with pytest.raises(StoreMisconfigured):
            await call("planted")
    with pytest.raises(StoreMisconfigured):
        await store.put("planted", b".")
    assert await listed(store) == []
    await store.put("planted", b"new", mode=PutMode.OVERWRITE)
    assert await store.get("planted") == b"new"
    assert secret.read_bytes() == b"secret"


async def test_strange_files_are_not_shown(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put(PACK, b".")
    for strange in ("lost+found", "UPPER", "packs/ab/stray", "packs/ab/cd/other", "f" * 64):
        (tmp_path / strange).write_bytes(b".")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "queue")
    assert await listed(store) == [PACK]


async def test_a_key_cannot_also_be_a_folder(tmp_path: Path, store: LocalObjectStore) -> None:
    await store.put("abc/def", b".")
    await store.put("xyz", b".")
    for mode in PutMode:
        for key in ("abc", "xyz/below", "xyz/further/below"):
            with pytest.raises(InvalidKey):
                await store.put(key, b".", mode=mode)
    with pytest.raises(ObjectNotFound):
        await store.get("abc")
    assert await listed(store) == ["abc/def", "xyz"]
    assert temporaries(tmp_path) == []


@contextmanager
def without_privileges() -> Generator[None, None, None]:
    """Root may do anything whatever the modes say, so become nobody for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


async def test_what_the_modes_forbid_is_denied() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = LocalObjectStore(root)
        for key in ("packs/closed", "packs/open"):
            await store.put(key, b".")
        (root / "packs" / "closed").chmod(0)
        for path, mode in ((root / "packs", 0o555), (root / ".tmp", 0o555), (root, 0o555)):
            path.chmod(mode)
        try:
            with without_privileges():
                assert await store.get("packs/open") == b"."
                with pytest.raises(PermissionDenied):
                    await store.get("packs/closed")
                for size in (1, 1 << 20):
                    with pytest.raises(PermissionDenied, match="who owns the folder"):
                        await store.put("packs/new", bytes(size))
                with pytest.raises(PermissionDenied):
                    await store.delete("packs/open")
                (outcome,) = await store.delete_many(["packs/open"])
                assert isinstance(outcome.error, PermissionDenied)
        finally:
            for path in (root, root / "packs", root / ".tmp"):
                path.chmod(0o755)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; where mounting is not allowed, files of 128 KiB at most."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if (
        os.geteuid() == 0
        and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    ):
        yield tmp_path
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
        return
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 << 10, most))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("size", [200 << 10, 4 << 20])
@pytest.mark.parametrize("mode", PutMode)
async def test_a_full_disk_leaves_the_rest_usable(
    tiny_disk: Path, size: int, mode: PutMode
) -> None:
    store = LocalObjectStore(tiny_disk)
    await store.put("packs/old", b"old")
    with pytest.raises(OutOfSpace, match="free some space") as raised:
        await store.put("packs/new", bytes(size), mode=mode)
    assert not raised.value.retryable
    assert temporaries(tiny_disk) == []
    assert await listed(store) == ["packs/old"]
    await store.put("packs/new", bytes(40 << 10), mode=mode)

"""Trees go in and come out as they were; what cannot is reported."""

import os
import resource
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen
from tests.faults import (
    MIB,
    BytesSource,
    MemoryTree,
    assert_sound,
    at,
    below,
    files_of,
    is_there,
    open_memory_vault,
    put,
    quick_folder,
    random_bytes,
    read,
    read_tree,
    small_files,
    state_of,
    write_tree,
)

from vaultfs.adapters.files import BATCH, DiskFull, LocalSource, LocalTarget
from vaultfs.domain.cutting import SMALL
from vaultfs.domain.errors import NotAFolder, NotFound, SourceChanged
from vaultfs.domain.nodes import UNKNOWN_ORIGIN, Origin
from vaultfs.domain.services.budget import BLOCK, GROUP_FILES
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault
from vaultfs.ports.trees import Item, Report

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


async def put_tree(vault: Vault, local: Path, path: str = "/tree") -> Report:
    return await vault.transfer.put(vault.user, LocalSource(local), at(path))


async def get_tree(vault: Vault, local: Path, path: str = "/tree") -> Report:
    return await vault.transfer.get(vault.user, at(path), LocalTarget(local))


@frozen
class Looks:
    """What is kept of a local file or folder."""

    kind: str
    mode: int
    mtime_us: int


def looks(folder: Path) -> dict[str, Looks]:
    found: dict[str, Looks] = {}
    for path in folder.rglob("*"):
        status = path.stat()
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = Looks("folder", 0, 0)
        else:
            mode = stat.S_IMODE(status.st_mode)
            found[name] = Looks("file", mode, status.st_mtime_ns // 1000)
    return found


SIZES: Final = [
    *(0, 1, SMALL - 1, SMALL, SMALL + 1),
    *(BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1),
]


async def test_a_tree_comes_out_as_it_went_in(place: Path) -> None:
    local = place / "local"
    write_tree(local, small_files(20))
    write_tree(
        local,
        {
            "empty": b"",
            "größe/naïve café.txt": "umlauts äöü".encode(),
            "日本語/📦 emoji": b"more than Latin",
            "name with spaces and 'quotes' \"double\"": b"odd",
            "-dash": b"option-like",
            ".hidden/.too": b"hidden",
            "a/b/c/d/e/f": b"deep",
            "largest name " + "x" * 200: b"long",
        },
    )
    for folder in ("empty folder", "a/b/empty too", "leer/und/tief"):
        (local / folder).mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in local.rglob("*") if path.is_file())):
        path.chmod([0o644, 0o600, 0o755, 0o444, 0o777, 0o400][number % 6])
        moment = (1_000_000_000_123_456 + number * 86_400_000_001) * 1000
        os.utime(path, ns=(moment, moment))
    async with open_memory_vault() as vault:
        report = await put_tree(vault, local)
        assert report.complete
        assert (report.files, report.changed) == (28, 28)
        assert report.size == sum(map(len, read_tree(local).values()))
        back = await get_tree(vault, place / "back")
        assert back.complete
        assert (back.files, back.folders, back.size) == (28, report.folders, report.size)
        await assert_sound(vault)
    assert read_tree(place / "back") == read_tree(local)
    assert looks(place / "back") == looks(local)


async def test_files_of_every_size_at_a_boundary(place: Path) -> None:
    data = random_bytes(2 * BLOCK + 1)
    contents = {f"{size:09}": data[len(data) - size :] for size in SIZES}
    write_tree(place / "local", contents)
    async with open_memory_vault() as vault:
        assert (await put_tree(vault, place / "local")).complete
        for name, wanted in contents.items():
            assert await read(vault, f"/tree/{name}") == wanted
            assert await read(vault, f"/tree/{name}") == wanted
        assert (await get_tree(vault, place / "back")).complete
        # As single files, with and without a size that was announced.
        for name, wanted in contents.items():
            await put(vault, f"/single/{name}", wanted)
        assert (await vault.files.stat(vault.user, at("/single"))).is_folder
        stats = await vault.catalog.stats()
        await assert_sound(vault)
    assert read_tree(place / "back") == contents
    assert stats.versions == 2 * len(contents)
    assert stats.packed < sum(SIZES)


async def test_what_is_there_already_makes_no_version(place: Path) -> None:
    contents = {**small_files(30), "large": random_bytes(MIB)}
    write_tree(place, contents)
    async with open_memory_vault() as vault:
        await put_tree(vault, place)
        before, packs = await state_of(vault), await vault.catalog.packs()
        report = await put_tree(vault, place)
        assert report.complete
        assert (report.files, report.changed) == (31, 0)
        assert await state_of(vault) == before
        assert await vault.catalog.packs() == packs
        (place / "large").write_bytes(b"short now")
        report = await put_tree(vault, place)
        assert (report.files, report.changed) == (31, 1)
        assert (await vault.files.stat(vault.user, at("/tree/large"))).number == 2
        await assert_sound(vault)


async def test_nothing_gets_lost_between_batches_and_groups(place: Path) -> None:
    """Counts just around the sizes of a step of the walk and of a group."""
    for count in (GROUP_FILES, GROUP_FILES + 1, BATCH - 1, BATCH, 2 * BATCH + 1):
        contents = {f"{number:05}": b"%d" % number for number in range(count)}
        local = place / f"{count}"
        write_tree(local, contents)
        async with open_memory_vault() as vault:
            report = await put_tree(vault, local)
            assert (report.complete, report.files) == (True, count)
            back = await get_tree(vault, place / f"{count}-back")
            assert (back.complete, back.files) == (True, count)
        assert read_tree(place / f"{count}-back") == contents


async def test_what_is_no_file_is_skipped_and_said(place: Path) -> None:
    local = place / "local"
    write_tree(local, {"file": b"text", "folder/file": b"text"})
    (local / "link").symlink_to("file")
    (local / "folder link").symlink_to("folder")
    (local / "dangling").symlink_to("nowhere")
    os.mkfifo(local / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(local / "socket"))
        name = os.fsencode(local) + b"/not \xff UTF-8"
        with open(name, "wb") as file:
            file.write(b"text")
        (local / "back\\slash").write_bytes(b"text")
        async with open_memory_vault() as vault:
            report = await put_tree(vault, local)
            assert await files_of(vault) == ["/tree/file", "/tree/folder/file"]
            await assert_sound(vault)
    reasons = {each.where.removeprefix(str(local) + "/"): each.reason for each in report.skipped}
    assert reasons.keys() == {
        *("link", "folder link", "dangling", "pipe", "socket"),
        *(r"not \xff UTF-8", "back\\slash"),
    }
    assert "link" in reasons["link"]
    assert reasons["socket"] == "a socket"
    assert reasons["pipe"] == "a named pipe"
    assert not report.failed
    assert not report.complete


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_reported(place: Path) -> None:
    """As another user, since root may read everything."""
    local = place / "local"
    write_tree(local, {"open": b"text", "closed": b"text", "shut/file": b"text"})
    write_tree(local, {"closed large": random_bytes(MIB)})
    place.chmod(0o755)
    (local / "closed").chmod(0)
    (local / "closed large").chmod(0)
    (local / "shut").chmod(0)
    program = """
        import os, sys, anyio
        from pathlib import Path
        from vaultfs.adapters.files import LocalSource
        from tests.faults import at, files_of, open_memory_vault, put

        async def main():
            async with open_memory_vault() as vault:
                await put(vault, "/first", b"so that all is imported that ever will be")
                source = LocalSource(Path(sys.argv[1]))
                os.seteuid(65534)
                report = await vault.transfer.put(vault.user, source, at("/tree"))
                os.seteuid(0)
                print(*await files_of(vault))
                print(*sorted(each.where.rpartition("/")[2] for each in report.failed), sep=",")
                print(*sorted(each.where.rpartition("/")[2] for each in report.skipped), sep=",")

        anyio.run(main)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(local)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not found.returncode, found.stderr
    assert found.stdout.splitlines() == ["/first /tree/open", "closed,closed large", "shut"]


async def test_a_get_writes_nothing_through_links(place: Path) -> None:
    outside, out = place / "outside", place / "out"
    write_tree(outside, {"file": b"precious", "folder/file": b"precious"})
    out.mkdir()
    (out / "file").symlink_to(outside / "file")
    (out / "large").symlink_to(outside / "file")
    (out / "folder").symlink_to(outside / "folder")
    (out / "loop").symlink_to("loop")
    contents = {
        "file": b"new",
        "large": random_bytes(MIB),
        "folder/file": b"new",
        "folder/large": random_bytes(MIB, "other"),
        "loop/file": b"new",
        "fine/file": b"new",
    }
    async with open_memory_vault() as vault:
        await vault.transfer.put(vault.user, MemoryTree(contents), at("/tree"))
        report = await get_tree(vault, out)
        assert not any(vault.budget.used.values())
    assert read_tree(outside) == {"file": b"precious", "folder/file": b"precious"}
    assert {each.where for each in report.failed} == {"/folder", "/loop"}
    assert (out / "file").read_bytes() == b"new"
    assert not (out / "file").is_symlink()
    assert (out / "large").read_bytes() == contents["large"]
    assert (out / "fine/file").read_bytes() == b"new"
    assert (out / "folder").is_symlink()


async def test_a_get_replaces_files_and_keeps_others(place: Path) -> None:
    write_tree(place, {"tree/file": b"old", "tree/other": b"kept", "tree/was a file": b"file"})
    (place / "tree/was a folder").mkdir()
    contents = {"file": b"new", "was a file/below": b"new", "was a folder": b"new"}
    async with open_memory_vault() as vault:
        await vault.transfer.put(vault.user, MemoryTree(contents), at("/tree"))
        report = await get_tree(vault, place / "tree")
    assert {each.where for each in report.failed} == {"/was a file", "/was a folder"}
    assert read_tree(place / "tree") == {
        "file": b"new",
        "other": b"kept",
        "was a file": b"file",
    }
    assert not list(place.rglob(".vaultfs-*"))


@pytest.fixture
def small_files_only() -> Iterator[int]:
    """Files of so many bytes at most, which is no whole number of pieces."""
    most, (before, hard) = 3 * MIB - 100, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    yield most
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


async def test_a_disk_that_is_full_at_the_last_piece_leaves_the_old_file(
    place: Path, small_files_only: int
) -> None:
    write_tree(place, {"large": b"old"})
    pieces = [random_bytes(MIB, seed) for seed in range(3)]
    assert small_files_only < 3 * MIB
    with pytest.raises(DiskFull):
        async with LocalTarget(place).create(("large",), UNKNOWN_ORIGIN) as sink:
            await sink.write(pieces)
    assert read_tree(place) == {"large": b"old"}


async def test_a_file_never_comes_out_with_the_rights_of_its_owner(place: Path) -> None:
    async with open_memory_vault() as vault:
        for name, size in (("small", 1), ("large", SMALL + 1)):
            source, origin = BytesSource(random_bytes(size)), Origin(mode=0o7755)
            await vault.files.put(
                vault.user, at(f"/tree/{name}"), source, origin=origin, parents=True
            )
        await get_tree(vault, place)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o755}


async def test_a_small_file_that_changes_behind_its_time_is_refused(place: Path) -> None:
    write_tree(place, {"longer": b"text", "shorter": b"text", "same": b"text"})
    source = LocalSource(place)
    items = [each async for batch in source.walk() for each in batch if isinstance(each, Item)]
    for item, data in zip(items, (b"longer text", b"te", b"text"), strict=True):
        path = place.joinpath(*item.path)
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(data)
        os.utime(path, ns=times)
    longer, shorter, same = await source.load(items)
    assert isinstance(longer, SourceChanged)
    assert isinstance(shorter, SourceChanged)
    assert same == b"text"


async def test_a_put_takes_no_folder_for_a_file_and_no_file_for_a_folder(place: Path) -> None:
    write_tree(place, {"one": b"file", "two/file": b"file", "three": b"file"})
    async with open_memory_vault() as vault:
        await put(vault, "/tree/one/below", b"in the way")
        await put(vault, "/tree/two", b"in the way")
        report = await put_tree(vault, place)
        assert {each.where for each in report.failed} == {"/one", "/two", "/two/file"}
        assert await files_of(vault) == ["/tree/one/below", "/tree/three", "/tree/two"]
        await assert_sound(vault)


async def test_only_a_folder_can_be_got_as_a_tree(place: Path) -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/file", b"text")
        with pytest.raises(NotAFolder):
            await get_tree(vault, place / "out", "/file")
        with pytest.raises(NotFound):
            await get_tree(vault, place / "out", "/nothing")
        assert not (place / "out").exists()


async def test_only_a_folder_can_be_put_as_a_tree(place: Path) -> None:
    (place / "file").write_bytes(b"text")
    async with open_memory_vault() as vault:
        for name in ("file", "nothing"):
            report = await put_tree(vault, place / name)
            assert not report.complete
            assert report.files == 0


async def test_one_content_is_stored_once(place: Path) -> None:
    small, large = random_bytes(20_000), random_bytes(MIB)
    contents = {
        f"{number}/{kind}": data
        for number in range(20)
        for kind, data in (("s", small), ("l", large))
    }
    async with open_memory_vault() as vault:
        report = await vault.transfer.put(vault.user, MemoryTree(contents), at("/tree"))
        assert report.files == 40
        stats = await vault.catalog.stats()
        assert stats.packed < 1.02 * (len(small) + len(large))
        assert stats.logical == 20 * (len(small) + len(large))
        assert await state_of(vault) == below("/tree", contents)
        await assert_sound(vault)


async def test_two_trees_at_once_do_not_get_into_each_other(place: Path) -> None:
    trees = {
        name: {**small_files(300, seed=name), "large": random_bytes(2 * MIB, name)}
        for name in ("one", "two")
    }
    trees["two"] |= small_files(50, seed="one")
    commands: list[subprocess.Popen[str]] = []
    await init_vault(place / "vault")
    for name, contents in trees.items():
        write_tree(place / name, contents)
        arguments = [sys.executable, "-m", "tests.crash_child", "put"]
        arguments += [str(place / "vault"), str(place / name)]
        commands.append(subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    for command in commands:
        with command:
            said, _ = command.communicate(timeout=60)
            assert "done put" in said
    async with open_vault(Settings(place / "vault", 64 * MIB, 2)) as vault:
        found = await state_of(vault)
        assert found == {**below("/one", trees["one"]), **below("/two", trees["two"])}
        assert await is_there(vault, "/one/large")
        await assert_sound(vault)

"""Large files on their way to a server: what is sent, and what is sent again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from tests.entrypoints.cutting import Cutter
from tests.entrypoints.test_client import served
from tests.entrypoints.test_http_server import Running, serve
from tests.faults import MIB, random_bytes, small_files, write_tree

import vaultfs
from vaultfs.adapters.files import FileSource
from vaultfs.domain.errors import QuotaExceeded, SourceChanged, VersionMismatch
from vaultfs.domain.nodes import DigestState, Preconditions, VersionId
from vaultfs.domain.operations import SetQuota
from vaultfs.entrypoints import calling
from vaultfs.entrypoints.answers import ServerError

CONTENT = random_bytes(45 * MIB + 99, "uploading")
PACK = 16 * MIB
ON_ITS_WAY = 6 * MIB
"""What sockets and the proxy may hold."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


async def test_a_large_file_arrives_with_its_digest_verified(tmp_path: Path, source: Path) -> None:
    async with served(tmp_path / "vault") as (local, address, token):
        async with vaultfs.connect(address, token=token) as vault:
            told: list[int] = []
            stored = await vault.store("/a/b.bin", source, progress=told.append)
            assert stored.changed == 1
            assert sum(told) == len(CONTENT)
            assert await vault.get("/a/b.bin") == CONTENT
            version = await vault.version("/a/b.bin")
            assert version.digest_state is DigestState.VERIFIED
            assert version.mtime_us is not None
            assert (await vault.store("/a/b.bin", source)).changed == 0
        assert not await local.catalog.uploads(local.user.id)
        assert local.budget.free == local.budget.total


async def test_only_what_the_server_lacks_is_sent(tmp_path: Path, source: Path) -> None:
    async with served(tmp_path / "vault") as (_, address, token):
        with Cutter(int(address.rpartition(":")[2])) as cutter:
            async with vaultfs.connect(cutter.address, token=token) as vault:
                await vault.put("/one.bin", source)
                sent = cutter.passed
                assert sent > len(CONTENT)
                changed = tmp_path / "changed.bin"
                changed.write_bytes(CONTENT[: 20 * MIB] + b"!" + CONTENT[20 * MIB :])
                await vault.put("/two.bin", changed)
                assert cutter.passed - sent < 2 * MIB
                assert await vault.get("/two.bin") == changed.read_bytes()


async def test_a_connection_that_is_cut_again_and_again(tmp_path: Path, source: Path) -> None:
    async with served(tmp_path / "vault") as (_, address, token):
        with Cutter(int(address.rpartition(":")[2]), after=7 * MIB) as cutter:
            async with vaultfs.connect(cutter.address, token=token) as vault:
                told: list[int] = []
                await vault.put("/cut.bin", source, progress=told.append)
                assert cutter.cuts >= 4
                assert sum(told) == len(CONTENT)
                assert await vault.get("/cut.bin") == CONTENT


async def test_small_files_that_the_server_has_do_not_travel_again(tmp_path: Path) -> None:
    files = small_files(700)
    write_tree(tmp_path / "tree", files)
    async with served(tmp_path / "vault") as (_, address, token):
        with Cutter(int(address.rpartition(":")[2])) as cutter:
            async with vaultfs.connect(cutter.address, token=token) as vault:
                first = await vault.put_tree(tmp_path / "tree", "/a")
                sent = cutter.passed
                again = await vault.put_tree(tmp_path / "tree", "/a")
                moved = await vault.put_tree(tmp_path / "tree", "/b")
                assert (first.changed, again.changed, moved.changed) == (700, 0, 700)
                assert cutter.passed - sent < sent
                one, two = min(files), max(files)
                assert await vault.get(f"/b/{one}") == files[one]
                assert await vault.get(f"/b/{two}") == files[two]


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
async def test_a_server_that_is_killed_and_comes_back(
    tmp_path: Path, source: Path, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later than a single question would be repeated."""
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.05)
    folder = tmp_path / "vault"
    with serve(folder) as first, Cutter(first.port, rate=30 * MIB) as cutter:
        async with (
            vaultfs.connect(cutter.address, token=first.token) as vault,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(vault.put, "/kill.bin", source)
            while cutter.passed < len(CONTENT) * part:
                await anyio.sleep(0.01)
            first.process.send_signal(signal.SIGKILL)
            await to_thread.run_sync(first.process.wait)
            await anyio.sleep(1)
            with serve(folder, first.token) as second:
                cutter.port = second.port
                while (await vault_under_way(second)) or not await is_there(second):
                    await anyio.sleep(0.05)
                assert cutter.passed < len(CONTENT) + PACK + ON_ITS_WAY
                assert await vault.get("/kill.bin") == CONTENT
                tasks.cancel_scope.cancel()


async def vault_under_way(running: Running) -> bool:
    async with vaultfs.connect(running.address, token=running.token) as vault:
        answer = await vault.calls.ask("GET", vault.calls.url("uploads"))
        return b'"entries":[]' not in answer.data


async def is_there(running: Running) -> bool:
    async with vaultfs.connect(running.address, token=running.token) as vault:
        return await vault.exists("/kill.bin")


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_client_that_is_killed_and_run_again(tmp_path: Path, source: Path, part: float) -> None:
    with serve(tmp_path / "vault") as running, Cutter(running.port, rate=30 * MIB) as cutter:
        command = [sys.executable, "-m", "vaultfs", "put", str(source), "/again.bin"]
        env = {"VAULTFS_TOKEN": running.token, "VAULTFS_VAULT": cutter.address, "PATH": ""}
        with subprocess.Popen(command, env=env) as first:
            while cutter.passed < len(CONTENT) * part:
                time.sleep(0.01)
            first.kill()
        cutter.rate = None
        time.sleep(0.5)
        subprocess.run(command, env=env, check=True)
        assert cutter.passed < len(CONTENT) + PACK + ON_ITS_WAY
        with running.client() as client:
            assert client.get("/v1/files/me/again.bin").content == CONTENT


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a log, which has 9 MiB more each time that it is read from, and others."""
    folder = tmp_path / "folder"
    write_tree(folder, {"a": b"a", "log": CONTENT[: 20 * MIB], "z": CONTENT[: 2 * MIB]})
    read = FileSource.readinto

    async def readinto(self: FileSource, view: memoryview) -> int:
        if self.name.endswith("log"):
            with (folder / "log").open("ab") as log:
                log.write(CONTENT[: 9 * MIB])
        return await read(self, view)

    monkeypatch.setattr(FileSource, "readinto", readinto)
    return folder


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
async def test_a_file_that_grows_is_told_as_that(tmp_path: Path, growing: Path, size: int) -> None:
    (growing / "log").write_bytes(CONTENT[:size])
    async with served(tmp_path / "vault") as (local, address, token):
        async with vaultfs.connect(address, token=token) as vault:
            with pytest.raises(SourceChanged, match="log changed while it was read"):
                await vault.put("/log", growing / "log")
            report = await vault.put_tree(growing, "/tree")
            assert report.files == 2
            [failed] = report.failed
            assert (failed.where, "changed" in failed.reason) == ("/log", True)
        assert not await local.catalog.uploads(local.user.id)


async def test_what_has_no_room_is_told_and_the_rest_is_put(tmp_path: Path) -> None:
    """And what is there already needs none, small or large."""
    folder = tmp_path / "folder"
    write_tree(folder, {"a": b"a", "b": CONTENT[: 2 * MIB], "c": CONTENT[: 20 * MIB], "d": b"d"})
    async with served(tmp_path / "vault") as (local, address, token):
        await local.files.change(local.user, SetQuota(local.user.tree, 21 * MIB))
        async with vaultfs.connect(address, token=token) as vault:
            for _ in range(2):
                report = await vault.put_tree(folder, "/tree")
                assert len(report.failed) == 1
                assert report.failed[0].where in {"/b", "/c"}
                assert "quota" in report.failed[0].reason
                assert report.files == 3
        assert not await local.catalog.uploads(local.user.id)


async def test_refusals_end_it_at_once(tmp_path: Path, source: Path) -> None:
    async with (
        served(tmp_path / "vault") as (local, address, token),
        vaultfs.connect(address, token=token) as vault,
    ):
        with pytest.raises(VersionMismatch):
            wanted = Preconditions(if_version=VersionId(99))
            await vault.put("/x.bin", source, preconditions=wanted)
        await local.files.change(local.user, SetQuota(local.user.tree, 20 * MIB))
        with pytest.raises(QuotaExceeded):
            await vault.put("/x.bin", source)
        assert not await local.catalog.uploads(local.user.id)


async def test_a_server_that_never_comes_back(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.01)
    with serve(tmp_path / "vault") as running, Cutter(running.port, rate=30 * MIB) as cutter:
        async with vaultfs.connect(cutter.address, token=running.token) as vault:

            async def kill() -> None:
                while cutter.passed < 10 * MIB:
                    await anyio.sleep(0.01)
                running.process.kill()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kill)
                with pytest.raises(ServerError, match="putting it again goes on from there"):
                    await vault.put("/x.bin", source)

"""Stores that go away and come back, refuse the credentials, or are another vault's."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from tests.clouds import Cloud, Outage
from tests.entrypoints.cli_calls import call, clean_env, command
from tests.entrypoints.test_many_servers import Place, Running
from tests.faults import MIB, random_bytes

import vaultfs
from vaultfs.entrypoints.sdk import Vault
from vaultfs.ports.objects import StoreError

pytestmark = pytest.mark.slow

SMALL = random_bytes(100_000, "a store that fails")
LARGE = random_bytes(36 * MIB, "a large one that fails")
"""Three packs."""


@pytest.fixture
def outage(cloud: Cloud) -> Iterator[Outage]:
    with Outage(cloud.port) as outage:
        yield outage


@pytest.fixture
def folder(cloud: Cloud, outage: Outage, tmp_path: Path) -> Path:
    url = cloud.through(outage.listens)
    called = call("init", tmp_path / "vault", "--store", url)
    assert called.code == 0, called.errors
    return tmp_path / "vault"


# Away, and back


async def names(vault: Vault) -> list[str]:
    return [node.name async for node in vault.list("/")]


async def test_a_store_that_goes_away_during_a_put(folder: Path, outage: Outage) -> None:
    async with vaultfs.open(folder) as vault:
        await vault.put("/old", SMALL)
        for limit in (0, 20 * MIB):
            outage.go_away_after(sent=limit)
            with pytest.raises(StoreError) as raised:
                await vault.put("/large", LARGE)
            assert outage.went_away()
            assert raised.value.retryable
            assert await names(vault) == ["old"]
            outage.back()
        await vault.put("/large", LARGE)
        assert await vault.get("/large") == LARGE
        assert await vault.get("/old") == SMALL
        assert (await vault.verify()).problems == ()
        assert vault.vault.budget.free == vault.vault.budget.total


async def test_a_store_that_goes_away_during_a_get(
    folder: Path, outage: Outage, tmp_path: Path
) -> None:
    async with vaultfs.open(folder) as vault:
        await vault.put("/large", LARGE)
        outage.go_away_after(answered=0)
        with pytest.raises(StoreError) as raised:
            await vault.get("/large")
        assert outage.went_away()
        assert raised.value.retryable
        outage.back()
        outage.go_away_after(answered=20 * MIB)
        with pytest.raises(StoreError):
            await vault.get_tree("/", tmp_path / "back")
        assert outage.went_away()
        assert not any(path.is_file() for path in (tmp_path / "back").rglob("*"))
        outage.back()
        assert await vault.get("/large") == LARGE
        assert vault.vault.budget.free == vault.vault.budget.total


async def test_a_store_that_is_back_in_time_is_not_missed(folder: Path, outage: Outage) -> None:
    async with vaultfs.open(folder) as vault, anyio.create_task_group() as tasks:
        outage.go_away_after(sent=20 * MIB)

        async def come_back() -> None:
            while not outage.is_away:
                await anyio.sleep(0)
            outage.back()

        tasks.start_soon(come_back)
        await vault.put("/large", LARGE)
        assert await vault.get("/large") == LARGE


def test_the_command_line_says_that_a_store_is_away(
    folder: Path, outage: Outage, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(SMALL)
    outage.go_away()
    for words in (("put", tmp_path / "f", "/"), ("verify",)):
        called = call("--vault", folder, *words)
        assert called.code == 1
        assert called.out == ""
        assert called.errors.startswith("vaultfs: store ")
        assert called.errors.count("\n") == 1
    outage.back()
    assert call("--vault", folder, "put", tmp_path / "f", "/").code == 0


def refusal(answer: httpx.Response) -> str:
    """The code of an answer that says: not now."""
    assert answer.status_code == 503, answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    problem = answer.json()
    assert "127.0.0.1" not in answer.text
    return str(problem["code"])


def until_ready(client: httpx.Client, status: int) -> None:
    """The server looks at its store every two seconds."""
    while client.get("/readyz").status_code != status:
        time.sleep(0.05)


def test_a_server_whose_store_goes_away(
    database: str, cloud: Cloud, outage: Outage, tmp_path: Path
) -> None:
    place = Place(database, cloud.through(outage.listens), tmp_path / "log")
    with place.serve() as server, server.client(server.token or "") as client:
        assert client.put("/v1/files/me/old", content=SMALL).status_code == 201
        outage.go_away_after(sent=20 * MIB)
        assert refusal(client.put("/v1/files/me/large", content=LARGE)).startswith("store")
        assert outage.went_away()
        assert client.get("/v1/files/me/large").status_code == 404
        assert client.get("/v1/folders/me/").json()["entries"][0]["name"] == "old"
        refusal(client.get("/v1/files/me/old"))
        until_ready(client, 503)
        outage.back()
        until_ready(client, 200)
        assert client.put("/v1/files/me/large", content=LARGE).status_code == 201
        _get_that_is_cut(client, outage)
        assert client.get("/v1/files/me/large").content == LARGE
        assert client.get("/v1/files/me/old").content == SMALL
    assert "Traceback" not in place.log.read_text()


def _get_that_is_cut(client: httpx.Client, outage: Outage) -> None:
    """The connection breaks: no client takes what came for the whole file."""
    outage.go_away_after(answered=20 * MIB)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/v1/files/me/large")
    assert outage.went_away()
    outage.back()


# Refused


def run(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        env=clean_env(**environment),
        timeout=120,
        check=False,
    )


def test_credentials_that_are_wrong(cloud: Cloud, tmp_path: Path, database: str) -> None:
    folder = tmp_path / "vault"
    assert call("init", folder, "--store", cloud.url).code == 0
    (tmp_path / "f").write_bytes(SMALL)
    wrong = cloud.wrong(tmp_path)
    before = cloud.keys()
    shared = ("--database", database, "--store", cloud.at("shared"))
    for words in (
        ("--vault", folder, "put", tmp_path / "f", "/"),
        ("--vault", folder, "--json", "backup"),
        ("init", tmp_path / "new", "--store", cloud.at("new")),
        ("serve", "--port", "0", folder),
        ("serve", "--port", "0", *shared),
    ):
        called = run(*words, **wrong.environment)
        told = called.stdout + called.stderr
        assert called.returncode == 1, told
        assert cloud.box.name in told
        assert wrong.remedy in told
        assert "Traceback" not in told
        assert not any(secret in told for secret in wrong.secrets)
        assert told.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert cloud.keys() == before


def test_a_bucket_that_is_not_there(cloud: Cloud, tmp_path: Path) -> None:
    url = cloud.url.replace(cloud.box.name, "none-such")
    called = call("init", tmp_path / "vault", "--store", url)
    assert called.code == 1
    assert "none-such" in called.errors
    assert not (tmp_path / "vault").exists()


def test_nothing_is_left_open_at_the_end(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    (tmp_path / "f").write_bytes(SMALL)
    for words in (
        ("init", folder, "--store", cloud.url),
        ("--vault", folder, "put", tmp_path / "f", "/"),
        ("--vault", folder, "verify"),
    ):
        called = run(*words, PYTHONWARNINGS="always::ResourceWarning")
        assert (called.returncode, called.stderr) == (0, "")


def test_eight_puts_at_once_take_little_memory(database: str, cloud: Cloud, tmp_path: Path) -> None:
    place = Place(database, cloud.url, tmp_path / "log")
    contents = {f"/v1/files/me/{n}": random_bytes(16 * MIB, f"eight-{n}") for n in range(8)}
    with place.serve() as server:
        answers = anyio.run(_all_at_once, server, contents)
        assert answers == [201] * 8
        with server.client(server.token or "") as client:
            for path, content in contents.items():
                assert client.get(path).content == content
        assert _peak(server) < 256 * MIB


async def _all_at_once(server: Running, contents: dict[str, bytes]) -> list[int]:
    statuses: list[int] = []
    headers = {"Authorization": f"Bearer {server.token}"}
    async with (
        httpx.AsyncClient(base_url=server.address, headers=headers, timeout=60) as client,
        anyio.create_task_group() as tasks,
    ):

        async def put(path: str, content: bytes) -> None:
            statuses.append((await client.put(path, content=content)).status_code)

        for path, content in contents.items():
            tasks.start_soon(put, path, content)
    return statuses


def _peak(server: Running) -> int:
    """The most bytes that the process has held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


SECRETIVE = (
    "s3://id:TOPSECRET@bucket",
    "s3://bucket?secret=TOPSECRET",
    "s3://bucket?endpoint=http://id:TOPSECRET@host",
    "azure://id:TOPSECRET@container?account=name",
    "azure://container?account=name&sig=TOPSECRET",
    "azure://container?account=name&endpoint=http://id:TOPSECRET@host",
    "gs://id:TOPSECRET@bucket",
    "gs://bucket?token=TOPSECRET",
)


@pytest.mark.parametrize("url", SECRETIVE)
def test_an_address_with_a_secret_is_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    made = call("init", tmp_path / "vault", "--store", url)
    assert made.code in {1, 2}
    shown = call("config", "--store", url)
    assert shown.code == 0
    assert "TOPSECRET" not in made.out + made.errors + shown.out + shown.errors
    assert not (tmp_path / "vault").exists()

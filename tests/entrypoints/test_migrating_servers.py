"""Three servers on one PostgreSQL whose vault moves from folder to folder under load."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from attrs import define, field
from tests.azurite import Container
from tests.ceph import Bucket
from tests.entrypoints.cli_calls import call
from tests.entrypoints.test_many_servers import ROOT, Place, Running
from tests.fakegcs import Bucket as GcsBucket

pytestmark = pytest.mark.slow

WITHIN: Final = 10.0
"""Seconds from a command to the last server that goes by it."""


@define(eq=False)
class Clients:
    """Clients that put and get all the time; whatever is refused is an error."""

    token: str
    kept: dict[str, bytes] = field(factory=dict[str, bytes])
    """What was acknowledged, by path and number of the version."""
    errors: list[str] = field(factory=list[str])
    _stop: threading.Event = field(factory=threading.Event)

    def _use(self, server: Running, name: str) -> None:
        number, rounds = 0, 0
        with server.client(self.token) as client:
            while not self._stop.is_set():
                rounds += 1
                path, content = f"/v1/files/me/{name}-{rounds % 5}", os.urandom(2000)
                try:
                    answer = client.put(path, content=content)
                    if answer.status_code not in {200, 201}:
                        self.errors.append(f"put {path}: {answer.status_code} {answer.text}")
                        continue
                    number = answer.json()["number"]
                    self.kept[f"{path}?version={number}"] = content
                    self._get(client, f"{path}?version={number}")
                    self._get(client, next(iter(self.kept)))
                except httpx.TransportError as error:
                    self.errors.append(f"{path}: {error!r}")

    def _get(self, client: httpx.Client, path: str) -> None:
        answer = client.get(path)
        if answer.status_code != 200 or answer.content != self.kept[path]:
            self.errors.append(f"get {path}: {answer.status_code} {answer.text[:200]}")

    @contextmanager
    def on(self, *servers: Running) -> Generator[None, None, None]:
        with ExitStack() as stack:
            for index, server in enumerate(servers):
                thread = threading.Thread(target=self._use, args=(server, f"client-{index}"))
                thread.start()
                stack.callback(thread.join)
            stack.callback(self._stop.set)
            yield

    def some_more(self) -> None:
        """Wait until there was traffic since."""
        before = len(self.kept)
        until(lambda: len(self.kept) >= before + 6 or bool(self.errors), 30)
        assert not self.errors, self.errors[:5]


def until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epoch_of(server: Running) -> int:
    """The epoch that a server goes by."""
    text = httpx.get(f"{server.address}/metrics", timeout=30).text
    found = re.search(r"^vaultfs_placement_epoch\{[^}]*\} (\S+)", text, re.MULTILINE)
    assert found is not None, text
    return int(float(found[1]))


@define(eq=False)
class Operator:
    place: Place

    def __call__(self, *words: object) -> Any:
        called = self.place.cli("--json", "migrate", *words)
        assert called.code == 0, called
        return called.value

    def follow(self, command: str, *servers: Running) -> float:
        """Seconds until the last of `servers` goes by what `command` led to."""
        begun = time.monotonic()
        epoch = self(command)["epoch"]
        until(lambda: all(epoch_of(each) >= epoch for each in servers), 60)
        return time.monotonic() - begun

    def copied(self) -> None:
        """Wait until the servers have copied everything."""

        def done() -> bool:
            status = self("status")
            counts = status["counts"]
            return bool(status["phase"] != "copying" and counts["there"] == counts["packs"])

        until(done, 120)

    def cutover(self, *servers: Running) -> float:
        """The same as `follow`, once nothing is in the way, which is soon."""
        begun = time.monotonic()
        while True:
            started = time.monotonic()
            called = self.place.cli("--json", "migrate", "cutover")
            if called.code == 0:
                break
            assert called.code == 3, called
            assert started - begun < 30, called
        until(lambda: all(epoch_of(each) >= called.value["epoch"] for each in servers), 60)
        return time.monotonic() - started


@pytest.mark.timeout(400)
def test_a_vault_moves_and_comes_back_while_it_is_served(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    target.mkdir()
    monkeypatch.setenv("VAULTFS_STORES", f"new={target.as_uri()}")
    place = Place(database, (tmp_path / "objects").as_uri(), tmp_path / "log")
    operator = Operator(place)
    with place.serve() as one, place.serve() as two, place.serve() as three:
        assert one.token is not None
        servers, clients = (one, two, three), Clients(one.token)
        with clients.on(*servers):
            clients.some_more()
            operator("start", "--to", "new", "--verify", "V3")
            clients.some_more()
            operator.copied()
            assert operator("status")["phase"] == "dual"
            assert operator.cutover(*servers) < WITHIN
            clients.some_more()
            assert operator.follow("rollback", *servers) < WITHIN
            clients.some_more()
            operator.follow("dual", *servers)
            clients.some_more()
            operator.cutover(*servers)
            clients.some_more()
            operator.follow("detach", *servers)
            clients.some_more()
            operator("retire", "local")
            clients.some_more()
        assert not clients.errors, clients.errors[:5]
        check(clients, three)
    assert place.cli("--json", "verify", "--depth", "full").value["clean"]
    left = [each for each in (tmp_path / "objects").rglob("*") if each.is_file()]
    assert not [each for each in left if "packs" in each.parts], left
    with place.serve() as again:  # from the settings that it had before
        check(clients, again)


@pytest.mark.timeout(400)
def test_a_vault_goes_through_stores_of_every_kind_while_it_is_served(
    database: str,
    bucket: Bucket,
    container: Container,
    gcs_bucket: GcsBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    homes = {
        "s3": bucket.url("vault"),
        "azure": container.url("/vault"),
        "gs": gcs_bucket.url("/vault"),
    }
    monkeypatch.setenv("VAULTFS_STORES", " ".join(f"{name}={url}" for name, url in homes.items()))
    place = Place(database, (tmp_path / "objects").as_uri(), tmp_path / "log")
    operator = Operator(place)
    with place.serve() as one, place.serve() as two:
        assert one.token is not None
        clients, before = Clients(one.token), "local"
        with clients.on(one, two):
            for name in homes:
                clients.some_more()
                operator("start", "--to", name, "--verify", "V3")
                operator.copied()
                operator.cutover(one, two)
                clients.some_more()
                if name == "gs":
                    operator.follow("rollback", one, two)
                    clients.some_more()
                    operator.follow("dual", one, two)
                    operator.cutover(one, two)
                operator.follow("detach", one, two)
                operator("retire", before)
                before = name
            clients.some_more()
        assert not clients.errors, clients.errors[:5]
        check(clients, two)
    assert place.cli("--json", "verify", "--depth", "full").value["clean"]
    for box in (bucket, container):
        assert not [each for each in box.names() if "/packs/" in each]


@pytest.mark.timeout(400)
def test_a_server_that_stood_still_through_the_cutover(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    target.mkdir()
    monkeypatch.setenv("VAULTFS_STORES", f"new={target.as_uri()}")
    place = Place(database, (tmp_path / "objects").as_uri(), tmp_path / "log")
    operator = Operator(place)
    with place.serve() as one, place.serve() as two:
        assert one.token is not None
        clients = Clients(one.token)
        with clients.on(two):
            clients.some_more()
        operator("start", "--to", "new", "--verify", "V1")
        os.kill(two.process.pid, signal.SIGSTOP)
        try:
            with one.client(one.token) as client:
                assert client.put("/v1/files/me/during", content=b"during").status_code == 201
            until(lambda: operator("status")["phase"] == "dual", 60)
            operator.cutover(one)
            operator.follow("detach", one)
        finally:
            os.kill(two.process.pid, signal.SIGCONT)
        with two.client(one.token) as client:
            assert client.put("/v1/files/me/late", content=b"late").status_code == 201
            assert client.get("/v1/files/me/during").content == b"during"
        operator("retire", "local")
        check(clients, one)
        with one.client(one.token) as client:
            assert client.get("/v1/files/me/late").content == b"late"
    assert place.cli("--json", "verify").value["clean"]


def test_servers_are_waited_for_until_they_know_the_new_store(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    target.mkdir()
    place = Place(database, (tmp_path / "objects").as_uri(), tmp_path / "log")
    operator = Operator(place)
    with place.serve() as untold:
        monkeypatch.setenv("VAULTFS_STORES", f"new={target.as_uri()}")
        with place.serve() as told:
            with told.client(untold.token or "") as client:
                assert client.put("/v1/files/me/one", content=b"one").status_code == 201
            operator("start", "--to", "new")
            until(lambda: bool(operator("status")["unaware"]), 30)
            assert operator("status")["unaware"] == [untold.address]
            called = place.cli("--json", "migrate", "watch")
            assert called.code == 3, called
            assert called.value["phase"] == "copying"
            called = place.cli("--json", "migrate", "dual")
            assert called.code == 3, called
            assert untold.address in called.value["blocked"][0]
            untold.process.terminate()
            until(lambda: operator("status")["phase"] == "dual", 30)


def test_a_server_of_a_folder_takes_part_in_what_is_started_beside_it(tmp_path: Path) -> None:
    vault, target = tmp_path / "vault", tmp_path / "new"
    target.mkdir()
    command = [
        sys.executable,
        "-m",
        "vaultfs",
        "serve",
        str(vault),
        "--port",
        "0",
        "--json",
        "--quiet",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            server = Running(process, told["address"], told["token"])
            with server.client(told["token"]) as client:
                assert client.put("/v1/files/me/one", content=b"one").status_code == 201
                moving = ("--json", "--vault", vault, "migrate")
                assert call(*moving, "start", "--to", f"new={target.as_uri()}").code == 0
                until(lambda: call(*moving, "status").value["phase"] == "dual", 30)
                assert call(*moving, "cutover").code == 0
                assert call(*moving, "detach").code == 0
                assert client.put("/v1/files/me/two", content=b"two").status_code == 201
                assert call(*moving, "retire", "local").code == 0
                assert client.get("/v1/files/me/one").content == b"one"
                assert client.get("/v1/files/me/two").content == b"two"
        finally:
            process.terminate()


def check(clients: Clients, server: Running) -> None:
    """Every version that was acknowledged is there, byte for byte."""
    with server.client(clients.token) as client:
        for path, content in clients.kept.items():
            assert client.get(path).content == content, path

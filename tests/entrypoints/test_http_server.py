"""The API under uvicorn, over real sockets and a vault in a folder."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

import httpx
import pytest
from attrs import frozen
from tests.entrypoints.cli_calls import call
from tests.faults import MIB, random_bytes

from vaultfs.domain.services.accounts import KNOWN_FOR
from vaultfs.entrypoints.http.serving import Listening, configure_log

ROOT = Path(__file__).parents[2]
CONTENT = random_bytes(30 * MIB, "server")


@frozen
class Running:
    process: "subprocess.Popen[bytes]"
    folder: Path
    address: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers=self.headers, timeout=30)

    def memory(self) -> int:
        """Bytes that the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    @contextmanager
    def socket(self) -> Generator[socket.socket, None, None]:
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            yield connection


@contextmanager
def serve(folder: Path, token: str = "", *more: object) -> Generator[Running, None, None]:
    command = [sys.executable, "-m", "vaultfs", "serve", str(folder), "--port", "0", "--json"]
    command += map(str, more)
    log = (folder.parent / f"{time.monotonic()}.log").open("wb")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            told: dict[str, Any] = json.loads(process.stdout.readline())
            yield Running(process, folder, told["address"], told["token"] or token)
        finally:
            process.terminate()
            process.wait(timeout=40)
            log.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path / "vault") as server:
        yield server


def request(head: str, running: Running, body: bytes = b"") -> bytes:
    """A request as it is sent, with the token of the server."""
    lines = [head, "Host: vault", f"Authorization: Bearer {running.token}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = bytearray()
    with connection:
        try:
            while data := connection.recv(1 << 20):
                got += data
        except ConnectionError:
            pass
    return bytes(got)


def test_a_server_needs_nothing_but_a_folder(running: Running) -> None:
    with running.client() as client:
        assert client.put("/v1/files/me/a", content=CONTENT).status_code == 201
        assert client.get("/v1/files/me/a").content == CONTENT
        assert client.get("/readyz").json()["status"] == "ok"


def test_all_that_is_logged_is_json(tmp_path: Path) -> None:
    with serve(tmp_path / "vault") as server, server.client() as client:
        client.get("/v1/folders/me/")
    [log] = tmp_path.glob("*.log")
    told = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert "request" in told
    assert "stopping: what is under way may finish" in told


def test_so_is_what_asyncio_says(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("vaultfs", "asyncio", "uvicorn")
    before = [(logger := logging.getLogger(each), logger.level, logger.propagate) for each in names]
    try:
        configure_log(Listening())
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
        logging.getLogger("uvicorn.error").critical("lost")
        told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert [each["logger"] for each in told] == ["asyncio", "uvicorn.error"]
    finally:
        for logger, level, propagate in before:
            logger.handlers.clear()
            logger.setLevel(level)
            logger.propagate = propagate


def test_what_a_server_acknowledged_outlives_it(tmp_path: Path) -> None:
    with serve(tmp_path / "vault") as server:
        token = server.token
        with server.client() as client:
            assert client.put("/v1/files/me/a", content=CONTENT).status_code == 201
            server.process.kill()
            server.process.wait()
    with serve(tmp_path / "vault", token) as server, server.client() as client:
        assert client.get("/v1/files/me/a").content == CONTENT
    assert json.loads(call("--vault", tmp_path / "vault", "--json", "verify").out)["clean"]


def test_a_stopped_server_finishes_what_is_under_way(running: Running) -> None:
    with running.client() as client:
        gate = threading.Event()

        def body() -> Iterator[bytes]:
            yield CONTENT[: 5 * MIB]
            running.process.send_signal(signal.SIGTERM)
            gate.wait(1)
            yield CONTENT[5 * MIB :]

        assert client.put("/v1/files/me/a", content=body()).status_code == 201
    assert running.process.wait(timeout=20) == 0
    out = call("--vault", running.folder, "cat", "/a").bytes_out
    assert out == CONTENT


def test_nothing_is_left_of_an_upload_whose_client_goes_away(running: Running) -> None:
    before = running.memory()
    for _ in range(5):
        with running.socket() as connection:
            head = f"PUT /v1/files/me/half HTTP/1.1\r\nContent-Length: {len(CONTENT)}"
            connection.sendall(request(head, running, CONTENT[: 20 * MIB]))
    with running.client() as client:
        deadline = time.monotonic() + 10
        while "vaultfs_budget_bytes 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "the budget is not given back"
            # what waits in the open pack goes with the next commit
            client.put("/v1/files/me/other", content=os.urandom(10))
        assert client.get("/v1/files/me/half").status_code == 404
        assert client.put("/v1/files/me/half", content=b"x").status_code == 201
    assert running.memory() - before < 200 * MIB


@pytest.mark.parametrize("count", [8, 60])
def test_readers_that_take_nothing_do_not_fill_the_memory(running: Running, count: int) -> None:
    large = random_bytes(100 * MIB, "large")
    with running.client() as client:
        client.put("/v1/files/me/large", content=large)
        before = running.memory()
        readers = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(count)]
        for reader in readers:
            reader.sendall(request("GET /v1/files/me/large HTTP/1.1", running))
            assert reader.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(1)
        assert running.memory() - before < 250 * MIB
        assert (
            client.get("/v1/files/me/large", headers={"Range": "bytes=5-9"}).content == large[5:10]
        )
        for reader in readers:
            reader.close()


def test_length_and_encoding_together_are_refused(running: Running) -> None:
    for headers in (
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 5",
    ):
        with running.socket() as connection:
            head = f"PUT /v1/files/me/smuggled HTTP/1.1\r\n{headers}"
            connection.sendall(request(head, running, b"3\r\nabc\r\n0\r\n\r\n"))
            connection.settimeout(5)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400"), headers
    with running.client() as client:
        assert client.get("/v1/files/me/smuggled").status_code == 404


def test_a_request_says_which_host_it_is_for(running: Running) -> None:
    with running.socket() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        got = answer_of(connection)
    assert got.startswith(b"HTTP/1.1 400")
    assert b'"invalid_field"' in got
    with running.socket() as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 200")


def test_what_is_refused_is_not_read(running: Running) -> None:
    with running.socket() as connection:
        head = f"POST /v1/move HTTP/1.1\r\nContent-Length: {64 * MIB}"
        connection.sendall(request(head, running, b" " * 1000))
        got = answer_of(connection)
    assert got.startswith(b"HTTP/1.1 413")
    assert b'"too_large"' in got


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/files/me/" + "x" * 1_000_000 + " HTTP/1.1",
        "GET /healthz HTTP/1.1\r\nX-Large: " + "x" * 1_000_000,
    ],
)
def test_heads_that_are_too_large_are_refused(running: Running, head: str) -> None:
    with running.socket() as connection:
        connection.settimeout(10)
        try:
            connection.sendall(request(head, running))
            got = answer_of(connection)
        except ConnectionError:
            got = b""
    assert got[:12] in {b"", b"HTTP/1.1 431"}
    with running.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_head_in_two_reads_with_much_behind_it_is_none_too_large(running: Running) -> None:
    body = os.urandom(MIB)
    whole = request(f"PUT /v1/files/me/two HTTP/1.1\r\nContent-Length: {MIB}", running, body)
    with running.socket() as connection:
        connection.sendall(whole[:50])
        time.sleep(0.2)
        connection.sendall(whole[50:])
        connection.settimeout(10)
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")


def test_the_port_is_taken(running: Running, tmp_path: Path) -> None:
    called = call("serve", tmp_path / "other", "--port", running.port)
    assert called.code == 2
    assert "--port" in called.errors


def test_the_host_is_another_machine(tmp_path: Path) -> None:
    called = call("serve", tmp_path / "other", "--host", "192.0.2.1", "--port", 0)
    assert called.code == 2
    assert "name another --host" in called.errors


def test_a_first_start_that_fails_uses_up_no_token(running: Running, tmp_path: Path) -> None:
    odd = tmp_path / "odd.pem"
    odd.write_text("no certificate")
    for words in (
        ("--port", running.port),
        ("--port", 0, "--tls-cert", tmp_path / "none", "--tls-key", tmp_path / "none"),
        ("--port", 0, "--tls-cert", odd, "--tls-key", odd),
    ):
        called = call("serve", tmp_path / "other", *words)
        assert called.code == 2
        assert str(words[-1]) in called.errors
        assert (tmp_path / "other").exists() == ("--tls-key" not in words)
        rmtree(tmp_path / "other", ignore_errors=True)
    with serve(tmp_path / "other") as other, other.client() as client:
        assert client.get("/v1/whoami").json()["scopes"] == ["admin", "read", "write"]


def test_users_and_tokens_from_the_command_line(running: Running) -> None:
    def cli(*words: object) -> Any:
        return call("--vault", running.folder, "--json", *words).value

    assert cli("user", "add", "bob", "--quota", "1K") == {"name": "bob", "quota": 1024, "used": 0}
    made = cli("token", "add", "laptop", "--user", "bob", "--scopes", "read,write")
    bearer = {"Authorization": f"Bearer {made['token']}"}
    with httpx.Client(base_url=running.address, headers=bearer) as client:
        assert client.put("/v1/files/bob/a", content=b"x" * 1000).status_code == 201
        assert client.put("/v1/files/bob/b", content=b"x" * 1000).status_code == 507
        cli("user", "quota", "bob", "none")
        assert client.put("/v1/files/bob/b", content=b"x" * 1000).status_code == 201
        turned = cli("token", "rotate", made["id"], "--user", "bob", "--overlap", "0")
        time.sleep(KNOWN_FOR)
        assert client.get("/v1/whoami").status_code == 401
        client.headers["Authorization"] = f"Bearer {turned['token']}"
        assert client.get("/v1/whoami").json()["user"]["name"] == "bob"
        for seconds in (31 * 86_400, 10**12, 10**15):
            words = ("token", "rotate", made["id"], "--user", "bob", "--overlap", seconds)
            assert call("--vault", running.folder, *words).code == 2
        cli("token", "revoke", made["id"], "--user", "bob")
        time.sleep(KNOWN_FOR)
        assert client.get("/v1/whoami").status_code == 401
    assert cli("token", "ls", "--user", "bob") == []
    assert [each["name"] for each in cli("user", "ls")] == ["bob", "me"]


def test_what_has_not_changed_is_answered_without_a_body(running: Running) -> None:
    with running.client() as client:
        client.put("/v1/files/me/a", content=b"x")
        etag = client.get("/v1/files/me/a").headers["etag"]
        for _ in range(3):
            again = client.get("/v1/files/me/a", headers={"If-None-Match": etag})
            assert (again.status_code, again.content) == (304, b"")


def test_what_is_sent_without_waiting_does_not_fill_the_memory(running: Running) -> None:
    before = running.memory()
    many = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 200_000
    trailers = b"X-Trailer: " + b"x" * 1000 + b"\r\n"
    head = "PUT /v1/files/me/t HTTP/1.1\r\nTransfer-Encoding: chunked"
    for data in (many, request(head, running, b"1\r\na\r\n0\r\n" + trailers * 50_000)):
        with running.socket() as connection:
            connection.settimeout(5)
            with suppress(OSError):  # cut off, as it should be
                connection.sendall(data)
    assert running.memory() - before < 60 * MIB
    with running.client() as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_acknowledged_version_is_lost_whenever_a_server_is_killed(
    tmp_path: Path, seed: int
) -> None:
    dice = Random(seed)
    acknowledged: dict[str, bytes] = {}

    def put(client: httpx.Client, writer: int) -> None:
        with suppress(httpx.TransportError):
            for number in range(10_000):
                data = random_bytes(20_000 + 400_000 * (number % 3), f"{writer}-{number}")
                name = f"{writer}-{number % 5}"
                assert client.put(f"/v1/files/me/{name}", content=data).status_code in {200, 201}
                acknowledged[name] = data

    with serve(tmp_path / "vault") as server:
        token = server.token
        clients = [server.client() for _ in range(4)]
        threads = [
            threading.Thread(target=put, args=(client, writer))
            for writer, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3 + dice.random())
        server.process.kill()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert acknowledged
    with serve(tmp_path / "vault", token) as server, server.client() as client:
        for name, data in acknowledged.items():
            versions = client.get(f"/v1/versions/me/{name}").json()["entries"]
            found = [
                client.get(f"/v1/files/me/{name}?version={each['number']}").content
                for each in versions[:2]  # one more may have been committed and not told
            ]
            assert data in found
    assert json.loads(call("--vault", tmp_path / "vault", "--json", "verify").out)["clean"]


@pytest.mark.slow
def test_two_hundred_slow_uploads_at_once_all_arrive(running: Running) -> None:
    pieces = [random_bytes(100_000, f"slow-{number}") for number in range(6)]
    before = running.memory()
    connections = [socket.create_connection(("127.0.0.1", running.port), 60) for _ in range(200)]
    for number, connection in enumerate(connections):
        head = f"PUT /v1/files/me/{number} HTTP/1.1\r\nContent-Length: 600000"
        connection.sendall(request(head, running))
    for piece in pieces:
        for connection in connections:
            connection.sendall(piece)
    for connection in connections:
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")
        connection.close()
    assert running.memory() - before < 250 * MIB
    with running.client() as client:
        assert client.get("/v1/files/me/199").content == b"".join(pieces)

"""The same application under another server, granian."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.entrypoints.cli_calls import call
from tests.faults import MIB, random_bytes

ROOT = Path(__file__).parents[2]
CONTENT = random_bytes(20 * MIB, "granian")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("granian") / "vault"
    call("init", folder)
    token = call("--vault", folder, "--json", "token", "add").value["token"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port)]
    environment = {**os.environ, "VAULTFS_VAULT": str(folder)}
    with subprocess.Popen(
        [*command, "vaultfs.entrypoints.http.asgi:app"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30
            ) as client:
                _wait_for(client)
                yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(client: httpx.Client) -> None:
    for _ in range(200):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("granian does not serve")


def test_files_go_in_and_out(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(CONTENT), MIB):
            yield CONTENT[start : start + MIB]

    assert client.put("/v1/files/me/a", content=CONTENT).status_code == 201
    assert client.put("/v1/files/me/b", content=pieces()).status_code == 201
    for name in ("a", "b"):
        assert client.get(f"/v1/files/me/{name}").content == CONTENT
    part = client.get("/v1/files/me/a", headers={"Range": "bytes=1000000-2000000"})
    assert (part.status_code, part.content) == (206, CONTENT[1_000_000:2_000_001])
    head = client.head("/v1/files/me/a")
    assert head.headers["content-length"] == str(len(CONTENT))
    assert client.get("/v1/files/me/a", headers={"If-None-Match": "*"}).status_code == 304


def test_refusals_are_the_same(client: httpx.Client) -> None:
    assert client.get("/v1/files/me/none").json()["code"] == "not_found"
    assert client.get("/v1/files/me/a%2Fb").status_code == 400
    assert client.post("/v1/move", content=b" " * (2 * MIB)).status_code == 413
    with httpx.Client(base_url=client.base_url) as nobody:
        assert nobody.get("/v1/whoami").status_code == 401


def test_an_upload_that_breaks_off_leaves_nothing(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address) as connection:
        head = f"PUT /v1/files/me/half HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n"
        token = client.headers["Authorization"]
        connection.sendall(f"{head}Authorization: {token}\r\n\r\n".encode() + CONTENT[: 5 * MIB])
    time.sleep(0.5)
    assert client.get("/v1/files/me/half").status_code == 404


def test_length_and_encoding_together_are_framed_by_the_encoding(client: httpx.Client) -> None:
    """This server drops the length before the application sees it; `vaultfs serve` refuses."""
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address) as connection:
        connection.settimeout(5)
        head = "PUT /v1/files/me/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        token = client.headers["Authorization"]
        rest = f"Transfer-Encoding: chunked\r\nAuthorization: {token}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        connection.sendall((head + rest).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")
    assert client.get("/v1/files/me/smuggled").content == b"abc"

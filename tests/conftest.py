from collections.abc import Iterator

import pytest
from tests import azurite as azurites
from tests import ceph as ceph_server
from tests import fakegcs as fakes
from tests.azurite import Azurite, Container
from tests.ceph import Bucket, Ceph
from tests.fakegcs import Bucket as GcsBucket
from tests.fakegcs import FakeGcs
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


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The one Azurite of the session."""
    with azurites.serving(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def container(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    """A container with nothing in it, whose key is in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", azurites.KEY)
    with azurite.container() as made:
        yield made


@pytest.fixture(scope="session")
def fakegcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """The one fake-gcs-server of the session."""
    with fakes.serving(tmp_path_factory.mktemp("fakegcs")) as server:
        yield server


@pytest.fixture
def gcs_bucket(fakegcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> GcsBucket:
    """A bucket with nothing in it, for everybody."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    return fakegcs.bucket()

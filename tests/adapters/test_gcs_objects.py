from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
import pytest
from tests.fakegcs import Bucket
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict, listed
from vaultfs.adapters.gcs import GcsObjectStore, open_gcs


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[GcsObjectStore, None]:
    async with aclosing(open_gcs(url)) as store:
        yield store


class TestGcsObjects(ObjectStoreContract):
    @pytest.fixture
    async def store(self, bucket: Bucket) -> AsyncIterator[GcsObjectStore]:
        async with opened(bucket.url("/some/where")) as store:
            yield store

    @pytest.fixture
    def written(self, bucket: Bucket) -> Written:
        return lambda key: bucket.read(f"some/where/{key}")

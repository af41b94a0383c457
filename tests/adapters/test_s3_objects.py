"""The store in a bucket, on a real server, and what only S3 has."""

import time
from collections.abc import AsyncIterator

import pytest
from tests.ceph import Bucket
from tests.contracts.objects import ObjectStoreContract, Written

from vaultfs.adapters.s3 import S3ObjectStore, open_s3


def written_in(bucket: Bucket) -> Written:
    """A put that was cancelled may still be carried out for a moment."""

    def read(key: str) -> bytes | None:
        content = bucket.read(f"some/where/{key}")
        if content is None:
            time.sleep(0.2)
            content = bucket.read(f"some/where/{key}")
        return content

    return read


class TestS3Objects(ObjectStoreContract):
    @pytest.fixture
    async def store(self, bucket: Bucket) -> AsyncIterator[S3ObjectStore]:
        store = await open_s3(bucket.url("some/where"))
        yield store
        await store.aclose()

    @pytest.fixture
    def written(self, bucket: Bucket) -> Written:
        return written_in(bucket)

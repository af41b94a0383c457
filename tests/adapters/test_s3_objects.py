"""The store in a bucket, on a real server, and what only S3 has."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from random import Random

import anyio
import pytest
from aiohttp import web
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st
from tests.ceph import Bucket, Ceph
from tests.contracts.objects import KEY_CALLS, ObjectStoreContract, Written, listed
from tests.postgres import free_port

from vaultfs.adapters.clouds import Parts
from vaultfs.adapters.s3 import S3Address, S3ObjectStore, open_s3
from vaultfs.adapters.wrappers.retrying import RetryingObjectStore
from vaultfs.domain.errors import InvalidField
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectExists,
    ObjectStore,
    ObjectTooLarge,
    OutOfSpace,
    PermissionDenied,
    PutMode,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    StoreUnsupported,
    Throttled,
    Unauthenticated,
)

ALL_CALLS: dict[str, Callable[[ObjectStore, str], Awaitable[object]]] = {
    **KEY_CALLS,
    "delete_many": lambda store, key: store.delete_many([key]),
    "list": lambda store, _: listed(store),
}


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[S3ObjectStore, None]:
    store = await open_s3(url)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(bucket: Bucket) -> AsyncIterator[S3ObjectStore]:
    async with opened(bucket.url("some/where")) as store:
        yield store


class TestS3Objects(ObjectStoreContract):
    @pytest.fixture
    async def store(self, bucket: Bucket) -> AsyncIterator[ObjectStore]:
        async with opened(bucket.url("some/where")) as store:
            yield store

    @pytest.fixture
    def written(self, bucket: Bucket) -> Written:
        """A put that was cancelled may still be carried out for a moment."""

        def read(key: str) -> bytes | None:
            content = bucket.read(f"some/where/{key}")
            if content is None:
                time.sleep(0.2)
                content = bucket.read(f"some/where/{key}")
            return content

        return read


async def refused(store: ObjectStore, kind: type[StoreError], *operations: str) -> None:
    """See that calls of `store` raise `kind`."""
    for operation in operations or ALL_CALLS:
        with pytest.raises(kind) as raised:
            await ALL_CALLS[operation](store, "key")
        assert raised.value.backend == "s3", operation
        if kind is not StoreTimeout:
            assert not raised.value.outcome_unknown, operation


async def test_a_prefix_is_a_store_of_its_own(bucket: Bucket) -> None:
    async with opened(bucket.url("one")) as one, opened(bucket.url("one/two/")) as two:
        await one.put("key", b"1")
        await two.put("key", b"2")
        bucket.write("one-more", b"3")
        bucket.write("one/NO KEY", b"4")
        bucket.write("one/folder/", b"")
        assert bucket.read("one/key") == b"1"
        assert bucket.read("one/two/key") == b"2"
        assert await listed(one) == ["key", "two/key"]
        assert await listed(two) == ["key"]
        assert await listed(two, start_after="key") == []
        await two.delete("key")
        assert await listed(one) == ["key"]
    async with opened(bucket.url()) as whole:
        assert await listed(whole) == ["one-more", "one/key"]


async def test_one_of_many_clients_creates(bucket: Bucket) -> None:
    lost: list[int] = []

    async def write(number: int) -> None:
        async with opened(bucket.url()) as store:
            try:
                await store.put("packs/key", bytes([number]))
            except ObjectExists:
                lost.append(number)

    for _ in range(2):
        lost.clear()
        async with anyio.create_task_group() as writers:
            for number in range(12):
                writers.start_soon(write, number)
        assert len(lost) == 11
        content = bucket.read("packs/key")
        assert content is not None
        assert content[0] not in lost
        bucket.empty()


@pytest.mark.slow
async def test_more_objects_than_a_page_holds(store: S3ObjectStore, bucket: Bucket) -> None:
    keys = [f"packs/{number:05}" for number in range(1_050)]
    room = anyio.Semaphore(16)

    async def put(key: str) -> None:
        async with room:
            await store.put(key, b".")

    async with anyio.create_task_group() as puts:
        for key in keys:
            puts.start_soon(put, key)
    assert await listed(store) == keys
    assert await listed(store, "packs/", keys[20]) == keys[21:]
    outcomes = await store.delete_many(keys)
    assert not any(outcome.error for outcome in outcomes)
    assert bucket.names() == []


async def test_parts_are_sent_one_after_the_other(store: S3ObjectStore) -> None:
    random = Random(5)
    sizes = [1, 0, 70_000, 300_000, 0, 5]
    parts = tuple(memoryview(random.randbytes(size)) for size in sizes)
    await store.put("large", parts)
    await store.put("small", parts[:3])
    await store.put("none", ())
    assert await store.get("large") == b"".join(parts)
    assert await store.get("small") == b"".join(parts[:3])
    assert await store.get("none") == b""


@given(
    parts=st.lists(st.binary(max_size=20), max_size=6),
    steps=st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 30)), max_size=6),
)
def test_parts_read_as_a_file_of_them_does(
    parts: list[bytes], steps: list[tuple[int, int]]
) -> None:
    joined, file = b"".join(parts), Parts(tuple(parts))
    assert file.seek(0, 2) == len(joined)
    for offset, size in steps:
        start = file.seek(offset)
        assert start == min(offset, len(joined)) == file.tell()
        assert file.read(size) == joined[start:][: size if size >= 0 else None]


async def test_a_get_that_is_left_lets_go_of_its_connection(store: S3ObjectStore) -> None:
    data = Random(1).randbytes(8 << 20)
    await store.put("key", data)
    for delay in (0, 0.001, 0.004, 0.008):
        for _ in range(20):
            with anyio.move_on_after(delay):
                await store.get("key")
    async with aclosing(store.list()) as objects:
        await anext(objects)
    with anyio.fail_after(30):
        assert await store.get("key") == data


async def test_retries_are_around_it_and_not_in_it(ceph: Ceph, bucket: Bucket) -> None:
    async with opened(bucket.url()) as store:
        await store.put("key", b".")
        ceph.stop_gateway()
        try:
            with pytest.raises(StoreUnavailable) as raised:  # on the connection that was open
                await store.put("other", b".")
            assert raised.value.outcome_unknown
            await refused(store, StoreUnavailable)
        finally:
            ceph.start_gateway()
        assert await RetryingObjectStore(store).get("key") == b"."


# Who may


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_wrong_credentials(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    async with opened(bucket.url()) as store:
        await refused(store, Unauthenticated)


async def test_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with opened(bucket.url()) as store:
        await refused(store, Unauthenticated)


async def test_credentials_of_a_profile(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("aws") / "credentials"
    lines = [f"{name.lower()} = {value}" for name, value in bucket.ceph.environment.items()]
    file.write_text("\n".join(["[vault]", *lines]))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    async with opened(bucket.url(profile="vault")) as store:
        await store.put("key", b".")
    with pytest.raises(StoreMisconfigured, match="nobody"):
        await open_s3(bucket.url(profile="nobody"))


async def test_the_bucket_of_somebody_else(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("user", "create", "--uid", "other", "--display-name", "other")
    bucket.ceph.admin(*words, "--access-key", "other-key", "--secret", "other-secret")
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
        bucket.write("key", b".")
        async with opened(bucket.url()) as store:
            await refused(store, PermissionDenied)
    finally:
        bucket.ceph.admin("user", "rm", "--uid", "other")


# Settings that cannot be right


async def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    async with opened(bucket.url().replace(bucket.name, "none-such")) as store:
        await refused(store, StoreMisconfigured)


async def test_a_bucket_that_overwrites_what_is_there_is_found_out(bucket: Bucket) -> None:
    status = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=status)
    async with opened(bucket.url()) as store:
        with pytest.raises(StoreMisconfigured, match="has overwritten an object"):
            await store.probe()
    for each in ("Versions", "DeleteMarkers"):
        found = bucket.client.list_object_versions(Bucket=bucket.name).get(each, ())
        for version in found:
            which = {"Key": version["Key"], "VersionId": version["VersionId"]}
            bucket.client.delete_object(Bucket=bucket.name, **which)


async def test_a_full_bucket(bucket: Bucket) -> None:
    quota = ("--quota-scope", "bucket", "--uid", "tests")
    bucket.ceph.admin("quota", "set", *quota, "--max-objects", 1)
    bucket.ceph.admin("quota", "enable", *quota)
    try:
        async with opened(bucket.url()) as store:
            await store.put("one", b".")
            with pytest.raises(OutOfSpace, match="free some space") as raised:
                for number in range(50):  # the server counts with some delay
                    await store.put(f"more-{number}", b".")
        assert not raised.value.outcome_unknown
    finally:
        bucket.ceph.admin("quota", "disable", *quota)


async def test_encryption_is_asked_for(bucket: Bucket) -> None:
    async with opened(bucket.url(sse="aws:kms", sse_kms_key="test-key")) as store:
        await store.put("key", b"content")
        assert await store.get("key") == b"content"
    head = bucket.client.head_object(Bucket=bucket.name, Key="key")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "test-key")
    async with opened(bucket.url(sse="aws:kms", sse_kms_key="no-key")) as store:
        with pytest.raises(StoreError) as raised:
            await store.put("other", b"content")
        assert not raised.value.retryable


BAD_ADDRESSES = {
    "s3://": "no name of a bucket",
    "s3:///prefix": "no name of a bucket",
    "s3://bucket?path=x": "no field path: endpoint, region",
    "s3://bucket?region=": "region takes one value",
    "s3://bucket?region=a&region=b": "region takes one value",
    "s3://bucket?endpoint=localhost:80": "an endpoint is",
    "s3://bucket?endpoint=http://key:secret@localhost": "an endpoint is",
    "s3://bucket?path_style=yes": "true or false",
    "s3://bucket?sse=DES": "one of AES256",
    "s3://bucket?sse_kms_key=x": "goes with",
    "s3://bucket?sse=AES256&sse_kms_key=x": "goes with",
    "s3://key:secret@bucket": "holds no credentials",
    "s3://bucket/a//b": "without //",
    "s3://bucket/" + "a" * 600: "a prefix is short",
    "s3://bucket--usw2-az1--x-s3": "in no order",
    "s3://bucket#x": "is written s3://",
    "http://bucket": "is written s3://",
}


@pytest.mark.parametrize("url", BAD_ADDRESSES)
async def test_bad_addresses(url: str) -> None:
    with pytest.raises(InvalidField, match=BAD_ADDRESSES[url]) as raised:
        await open_s3(url)
    assert "secret" not in str(raised.value) or "endpoint" in url


def test_addresses() -> None:
    assert S3Address.parse("s3://bucket") == S3Address("bucket")
    assert S3Address.parse("s3://bucket/some%20where/?region=eu-west-1") == S3Address(
        "bucket", "some where/", region="eu-west-1"
    )
    local = S3Address.parse("s3://bucket/?endpoint=http://localhost:80")
    assert local == S3Address("bucket", endpoint="http://localhost:80", path_style=True)
    hosted = S3Address.parse("s3://bucket?endpoint=https://x.example&path_style=false")
    assert not hosted.path_style
    key = S3Address.parse("s3://bucket?sse=aws:kms&sse_kms_key=arn:aws:kms:x")
    assert (key.encryption, key.encryption_key) == ("aws:kms", "arn:aws:kms:x")


# Answers that a real server gives when it is in trouble


Answer = Callable[[web.BaseRequest], web.Response]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncGenerator[tuple[S3ObjectStore, list[str]], None]:
    """A store on a server that has one answer to everything, and what it was asked."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(request.method)
        await request.read()
        return answer(request)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with opened(f"s3://bucket?endpoint=http://127.0.0.1:{port}") as store:
            yield store, asked
    finally:
        await runner.cleanup()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


ANSWERS: list[tuple[int, str, type[StoreError], bool]] = [
    (503, "SlowDown", Throttled, False),
    (503, "", Throttled, False),
    (429, "TooManyRequests", Throttled, False),
    (400, "RequestLimitExceeded", Throttled, False),
    (500, "InternalError", StoreUnavailable, True),
    (502, "", StoreUnavailable, True),
    (409, "ConditionalRequestConflict", StoreUnavailable, False),
    (400, "RequestTimeout", StoreTimeout, False),
    (400, "ExpiredToken", Unauthenticated, False),
    (403, "RequestTimeTooSkewed", Unauthenticated, False),
    (403, "AccessDenied", PermissionDenied, False),
    (403, "QuotaExceeded", OutOfSpace, False),
    (507, "", OutOfSpace, False),
    (400, "EntityTooLarge", ObjectTooLarge, False),
    (400, "BadDigest", IntegrityError, False),
    (412, "PreconditionFailed", ObjectExists, False),
    (404, "NoSuchBucket", StoreMisconfigured, False),
    (400, "AuthorizationHeaderMalformed", StoreMisconfigured, False),
    (501, "NotImplemented", StoreUnsupported, False),
]


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(("status", "code", "kind", "unknown"), ANSWERS)
async def test_each_answer_has_its_error(
    status: int, code: str, kind: type[StoreError], unknown: bool
) -> None:
    body = f"<Error><Code>{code}</Code><Message>why</Message></Error>" if code else ""

    def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, text=body, headers={"Retry-After": "7"})

    async with answering(answer) as (store, asked):
        with pytest.raises(kind) as raised:
            await store.put("key", b".")
        assert raised.value.outcome_unknown == unknown
        assert asked == ["PUT"]
        if isinstance(raised.value, Throttled):
            assert raised.value.retry_after == 7
        if kind is not ObjectExists:
            with pytest.raises(kind):
                await store.head("key")


@pytest.mark.usefixtures("credentials")
async def test_a_connection_that_breaks_leaves_the_outcome_unknown() -> None:
    def hang_up(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        if request.method == "PUT":
            request.transport.abort()
        return web.Response()

    async with answering(hang_up) as (store, asked):
        for mode in PutMode:
            await store.delete("key")  # the connection is one that was used before
            with pytest.raises(StoreUnavailable) as raised:
                await store.put("key", b".", mode=mode)
            assert raised.value.outcome_unknown
        assert asked == ["DELETE", "PUT"] * 2


@pytest.mark.usefixtures("credentials")
async def test_a_body_that_is_cut_short() -> None:
    async def cut(connection: SocketStream) -> None:
        async with connection:
            await connection.receive()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    port = free_port()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener,
        opened(f"s3://bucket?endpoint=http://127.0.0.1:{port}") as store,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, cut)
        with pytest.raises(StoreUnavailable):
            await store.get("key")
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("credentials")
async def test_delete_many_tells_what_the_server_says_of_each() -> None:
    answer = """<DeleteResult>
        <Error><Key>one</Key><Code>AccessDenied</Code><Message>no</Message></Error>
        <Error><Key>two</Key><Code>SlowDown</Code></Error>
        <Error><Key>three</Key><Code>NoSuchKey</Code></Error>
        <Error><Key>four</Key><Code>Strange</Code></Error>
    </DeleteResult>"""
    md5s: list[str | None] = []

    def delete(request: web.BaseRequest) -> web.Response:
        md5s.append(request.headers.get("Content-MD5"))
        return web.Response(text=answer)

    async with answering(delete) as (store, _):
        outcomes = await store.delete_many(["one", "two", "three", "four", "five"])
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [PermissionDenied, Throttled, type(None), StoreUnavailable, type(None)]
    assert md5s != [None]

"""Objects in Google Cloud Storage, against fake-gcs-server.

It differs from the real service in what these tests see: it does not tell a bucket that is
missing from an object that is, checks neither credentials nor the CRC-32C that comes with an
upload, and honours `ifGenerationMatch` on multipart uploads only, which are all that is used.
"""

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict, listed
from tests.contracts.store_calls import CALLS
from tests.fakegcs import Bucket, serving
from tests.postgres import free_port
from tests.servers import answering
from tests.strategies import Step, store_steps

from vaultfs.adapters import gcs
from vaultfs.adapters.gcs import GcsObjectStore, open_gcs
from vaultfs.domain.errors import Unsupported
from vaultfs.domain.packs import crc32c_of
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    OutOfSpace,
    PermissionDenied,
    PreconditionFailed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    Throttled,
    Unauthenticated,
)

CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
TOKEN = b'{"access_token": "t", "expires_in": 3600}'


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[GcsObjectStore, None]:
    async with aclosing(open_gcs(url)) as store:
        yield store


def at(port: int) -> str:
    return f"gs://box?endpoint=http://127.0.0.1:{port}"


def answer(status: int, body: bytes = b"", head: str = "") -> bytes:
    return f"HTTP/1.1 {status} Because\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(autouse=True)
def without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CREDENTIALS, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))


class TestGcsObjects(ObjectStoreContract):
    @pytest.fixture
    async def store(self, gcs_bucket: Bucket) -> AsyncIterator[GcsObjectStore]:
        async with opened(gcs_bucket.url("/some/where")) as store:
            yield store

    @pytest.fixture
    def written(self, gcs_bucket: Bucket) -> Written:
        return lambda key: gcs_bucket.read(f"some/where/{key}")


@given(steps=store_steps)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_behaves_like_a_dict(gcs_bucket: Bucket, steps: tuple[Step, ...]) -> None:
    async def check() -> None:
        async with opened(gcs_bucket.url(f"/{uuid4().hex}")) as store:
            await check_against_a_dict(store, steps)

    anyio.run(check)


async def test_stores_with_different_prefixes_do_not_see_each_other(gcs_bucket: Bucket) -> None:
    for prefix in ("", "/one", "/one/more", "/one-more"):
        async with opened(gcs_bucket.url(prefix)) as store:
            await store.put("key", prefix.encode())
    async with opened(gcs_bucket.url("/one/")) as store:
        assert await store.get("key") == b"/one"
        assert await listed(store) == ["key", "more/key"]
        await store.delete("key")
        assert await listed(store, "more") == ["more/key"]
    assert gcs_bucket.names() == ["key", "one-more/key", "one/more/key"]


async def test_names_that_are_no_keys_are_not_shown(gcs_bucket: Bucket) -> None:
    for name in ("some/UPPER", "some/k", "some/key", "some//key", "someother"):
        gcs_bucket.write(name, b".")
    async with opened(gcs_bucket.url("/some")) as store:
        assert await listed(store) == ["key"]


async def test_lists_over_many_pages(gcs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_PAGE", 3)
    keys = [f"key-{number}" for number in range(10)]
    async with opened(gcs_bucket.url()) as store:
        for key in keys:
            await store.put(key, b".")
        assert await listed(store) == keys
        assert await listed(store, "key", "key-4") == keys[5:]


async def test_head_tells_the_digests_that_the_service_has_computed(gcs_bucket: Bucket) -> None:
    async with opened(gcs_bucket.url()) as store:
        await store.put("key", b"abc")
        assert dict((await store.head("key")).digests) == {
            "crc32c": crc32c_of((b"abc",)).to_bytes(4, "big"),
            "md5": bytes.fromhex("900150983cd24fb0d6963f7d28e17f72"),
        }


async def test_parts_are_one_object(gcs_bucket: Bucket) -> None:
    async with opened(gcs_bucket.url()) as store:
        await store.put("key", (b"abc", memoryview(b"xdefx")[1:-1], bytearray(b"ghi")))
    assert gcs_bucket.read("key") == b"abcdefghi"


async def test_one_of_many_creators_in_two_processes_wins(gcs_bucket: Bucket) -> None:
    won: list[tuple[int, int]] = []

    async def create(store: ObjectStore, number: int, size: int) -> None:
        try:
            await store.put(f"key-{size}", bytes([number]) * size)
        except ObjectExists:
            return
        won.append((size, number))

    async with opened(gcs_bucket.url()) as one, opened(gcs_bucket.url()) as other:
        for size in (1, 100_000):
            async with anyio.create_task_group() as creators:
                for number in range(12):
                    creators.start_soon(create, one, 2 * number, size)
                    creators.start_soon(create, other, 2 * number + 1, size)
    for size, number in won:
        assert gcs_bucket.read(f"key-{size}") == bytes([number]) * size
    assert [size for size, _ in won] == [1, 100_000]


async def test_a_get_that_is_cancelled_leaves_the_store_usable(gcs_bucket: Bucket) -> None:
    async with opened(gcs_bucket.url()) as store:
        await store.put("key", bytes(8 << 20))
        for delay in (0, 0.002, 0.004, 0.008, 0.016):
            with anyio.move_on_after(delay):
                await store.get("key")
        assert len(await store.get("key")) == 8 << 20


@pytest.mark.parametrize("call", ["put", "overwrite", "list"])
async def test_a_bucket_that_is_missing_is_a_wrong_setting(gcs_bucket: Bucket, call: str) -> None:
    async with opened(f"gs://missing?endpoint={gcs_bucket.endpoint}") as store:
        with pytest.raises(StoreMisconfigured):
            await CALLS[call](store)


@pytest.mark.parametrize("call", CALLS)
async def test_a_bucket_that_is_missing_is_one_for_every_call(call: str) -> None:
    """In the words of the real service."""
    message = "The specified bucket does not exist."
    for body in (message, json.dumps({"error": {"code": 404, "message": message}})):
        said = answer(404, body.encode())
        async with answering(said) as server, opened(at(server.port)) as store:
            with pytest.raises(StoreMisconfigured, match=r"bucket does not exist \(404\)"):
                await CALLS[call](store)


async def test_a_server_that_was_stopped_is_unavailable(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with opened(server.bucket().url()) as store:
            await store.put("key", b".")
            server.stop()
            with pytest.raises(StoreUnavailable):
                await store.get("key")
            with pytest.raises(StoreUnavailable) as raised:
                await store.put("key", b".")
    assert not raised.value.outcome_unknown


@pytest.mark.parametrize("call", CALLS)
async def test_where_nobody_listens_nothing_has_happened(call: str) -> None:
    async with opened(at(free_port())) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="onnect") as raised:
            await CALLS[call](store)
    assert raised.value.retryable
    assert not raised.value.outcome_unknown


@pytest.mark.parametrize("call", CALLS)
async def test_a_connection_that_breaks_off_leaves_the_outcome_open(call: str) -> None:
    async with answering(b"") as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable) as raised:
            await CALLS[call](store)
    assert raised.value.retryable
    assert raised.value.outcome_unknown
    assert server.asked == 1


async def test_a_body_that_breaks_off_is_not_asked_for_again() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
    async with answering(said) as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await store.get("key")
    assert server.asked == 1


async def test_an_answer_of_somebody_else_is_a_failure() -> None:
    for body in (b"<html>Please log in</html>", b'{"items": [{}]}'):
        said = answer(200, body)
        async with answering(said) as server, opened(at(server.port)) as store:
            for call in ("head", "list"):
                with pytest.raises(StoreUnavailable):
                    await CALLS[call](store)
    async with answering(answer(200, b"<html>")) as server, opened(at(server.port)) as store:
        with pytest.raises(StoreUnavailable):
            await store.put("key", b".")


async def test_a_service_that_takes_too_long_has_timed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gcs, "_LIMIT", 0.1)
    silent = await anyio.create_tcp_listener(
        local_host="127.0.0.1", local_port=(port := free_port())
    )
    async with silent, opened(at(port)) as store:
        with pytest.raises(StoreTimeout) as raised:
            await store.put("key", b".")
    assert raised.value.outcome_unknown


ANSWERS: dict[tuple[int, str], type[StoreError]] = {
    (400, "Bad Request"): StoreMisconfigured,
    (400, "Provided CRC32C does not match calculated"): IntegrityError,
    (401, "Invalid Credentials"): Unauthenticated,
    (403, "Access denied"): PermissionDenied,
    (403, "rateLimitExceeded"): Throttled,
    (404, "Not Found"): StoreMisconfigured,
    (408, "Request Timeout"): StoreTimeout,
    (409, "Conflict"): PreconditionFailed,
    (412, "At least one of the pre-conditions did not hold."): ObjectExists,
    (413, "Too Large"): ObjectTooLarge,
    (429, "Slow down"): Throttled,
    (500, "Internal Error"): StoreUnavailable,
    (503, "Backend Error"): StoreUnavailable,
    (504, "Gateway Timeout"): StoreTimeout,
    (507, "Full"): OutOfSpace,
}


@pytest.mark.parametrize(("status", "text"), ANSWERS)
async def test_answers_are_errors_of_the_port(status: int, text: str) -> None:
    said = answer(status, json.dumps({"error": {"code": status, "message": text}}).encode())
    async with answering(said) as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreError) as raised:
            await store.put("key", b".")
    assert type(raised.value) is ANSWERS[status, text]
    assert (raised.value.backend, raised.value.operation) == ("gcs", "put")
    assert raised.value.outcome_unknown == (status in {408, 500, 503, 504})
    assert server.asked == 1


async def test_an_object_that_is_missing_is_not_found_whatever_the_words() -> None:
    said = answer(404, b"No such object: box/key")
    async with answering(said) as server, opened(at(server.port)) as store:
        for call in ("head", "get", "span"):
            with pytest.raises(ObjectNotFound):
                await CALLS[call](store)
        await store.delete("key")


async def test_who_is_throttled_is_told_for_how_long() -> None:
    said = answer(429, head="Retry-After: 7\r\n")
    async with answering(said) as server, opened(at(server.port)) as store:
        with pytest.raises(Throttled) as raised:
            await store.put("key", b".")
    assert raised.value.retry_after == 7.0


@pytest.fixture(scope="module")
def private_key() -> str:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def account(tmp_path: Path, private_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a service account whose tokens nobody issues."""
    path = tmp_path / "account.json"
    write_account(path, private_key, free_port())
    monkeypatch.setenv(CREDENTIALS, str(path))
    return path


def write_account(path: Path, private_key: str, port: int) -> None:
    issuer = f"http://127.0.0.1:{port}/token"
    fields = {"type": "service_account", "client_email": "me@there", "token_uri": issuer}
    path.write_text(json.dumps({**fields, "private_key": private_key, "private_key_id": "1"}))


async def test_one_token_serves_all_calls(
    gcs_bucket: Bucket, account: Path, private_key: str
) -> None:
    async with answering(answer(200, TOKEN, "Content-Type: application/json\r\n")) as issuer:
        write_account(account, private_key, issuer.port)
        async with opened(gcs_bucket.url()) as store:
            with anyio.move_on_after(0):
                await store.put("key-0", b".")
            async with anyio.create_task_group() as tasks:
                for number in range(1, 9):
                    tasks.start_soon(store.put, f"key-{number}", b".")
            await store.probe()
    assert issuer.asked <= 2
    assert len(gcs_bucket.names()) >= 8


ISSUED: dict[int, type[StoreError]] = {400: Unauthenticated, 503: StoreUnavailable}


@pytest.mark.parametrize("status", ISSUED)
async def test_without_a_token_nothing_is_sent(
    gcs_bucket: Bucket, account: Path, private_key: str, status: int
) -> None:
    async with answering(answer(status, b'{"error": "invalid_grant"}')) as issuer:
        write_account(account, private_key, issuer.port)
        async with opened(gcs_bucket.url()) as store:
            with anyio.fail_after(5), pytest.raises(StoreError, match="no token") as raised:
                await store.put("key", b".")
    assert type(raised.value) is ISSUED[status]
    assert not raised.value.outcome_unknown
    assert issuer.asked == 1
    assert gcs_bucket.names() == []


async def test_an_issuer_that_is_not_there_is_a_failure_that_passes(
    gcs_bucket: Bucket, account: Path
) -> None:
    async with opened(gcs_bucket.url()) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="no token") as raised:
            await store.put("key", b".")
    assert not raised.value.outcome_unknown


async def test_a_key_that_is_none_is_refused(gcs_bucket: Bucket, account: Path) -> None:
    write_account(account, "-----BEGIN PRIVATE KEY-----\nsecret\n", free_port())
    async with opened(gcs_bucket.url()) as store:
        with pytest.raises(Unauthenticated) as raised:
            await store.get("key")
    assert "secret" not in str(raised.value)


def test_credentials_that_cannot_be_read_are_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CREDENTIALS, str(tmp_path / "missing.json"))
    with pytest.raises(StoreMisconfigured, match=CREDENTIALS):
        open_gcs("gs://box")


@pytest.mark.parametrize(
    ("url", "because"),
    [
        ("gs://box?project=me", "unknown in the address: project; known: endpoint"),
        ("gs://box?endpoint=", "empty"),
        ("gs://", "'' is no name"),
        ("gs://BOX", "'BOX' is no name"),
        ("gs://me:secret@box", "credentials do not belong"),
        ("gs://box/a/../b", "is no prefix"),
        ("gs://box/" + "a" * 401, "is no prefix"),
        ("azure://box", "an address of this kind is gs://"),
        ("gs://box?endpoint=ftp://there", "the endpoint is"),
    ],
)
def test_bad_addresses_are_refused(url: str, because: str) -> None:
    with pytest.raises(StoreMisconfigured, match=because) as raised:
        open_gcs(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["gs://box", "gs://box?endpoint=http://there"])
def test_without_the_client_library_it_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcloud.aio.storage", None)
    with pytest.raises(Unsupported, match=r"gs:// needs: pip install 'vaultfs\[gcs\]'"):
        open_gcs(url)

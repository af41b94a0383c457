"""Objects in Azure Blob Storage, against Azurite.

Azurite differs from the real service in what these tests see: it calls a wrong key
`AuthorizationFailure`, where the service says `AuthenticationFailed`, and when its memory
is full it answers with a status that stands for a conflict elsewhere.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Self
from uuid import uuid4

import anyio
import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from hypothesis import HealthCheck, given, settings
from tests.azurite import ACCOUNT, KEY, Container, serving
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict, listed
from tests.contracts.store_calls import CALLS
from tests.postgres import free_port
from tests.servers import answering
from tests.strategies import Step, store_steps

from vaultfs.adapters import azure
from vaultfs.adapters.azure import AzureObjectStore, open_azure
from vaultfs.domain.errors import Unsupported
from vaultfs.ports.objects import (
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    OutOfSpace,
    PermissionDenied,
    PreconditionFailed,
    PutMode,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    Throttled,
    Unauthenticated,
)


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[AzureObjectStore, None]:
    async with aclosing(open_azure(url)) as store:
        yield store


def at(port: int) -> str:
    return f"azure://box?account={ACCOUNT}&endpoint=http://127.0.0.1:{port}/{ACCOUNT}"


class TestAzureObjects(ObjectStoreContract):
    @pytest.fixture
    async def store(self, container: Container) -> AsyncIterator[AzureObjectStore]:
        async with opened(container.url("/some/where")) as store:
            yield store

    @pytest.fixture
    def written(self, container: Container) -> Written:
        return lambda key: container.read(f"some/where/{key}")


@given(steps=store_steps)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_behaves_like_a_dict(container: Container, steps: tuple[Step, ...]) -> None:
    async def check() -> None:
        async with opened(container.url(f"/{uuid4().hex}")) as store:
            await check_against_a_dict(store, steps)

    anyio.run(check)


async def test_stores_with_different_prefixes_do_not_see_each_other(container: Container) -> None:
    prefixes = ("", "/one", "/one/more", "/one-more")
    for prefix in prefixes:
        async with opened(container.url(prefix)) as store:
            await store.put("key", prefix.encode())
    async with opened(container.url("/one/")) as store:
        assert await store.get("key") == b"/one"
        assert await listed(store) == ["key", "more/key"]
        await store.delete("key")
        assert await listed(store, "more") == ["more/key"]
    assert container.names() == ["key", "one-more/key", "one/more/key"]


async def test_names_that_are_no_keys_are_not_shown(container: Container) -> None:
    for name in ("some/UPPER", "some/k", "some/key", "some//key", "someother"):
        container.write(name, b".")
    async with opened(container.url("/some")) as store:
        assert await listed(store) == ["key"]


async def test_lists_over_many_pages(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "_PAGE", 3)
    keys = [f"key-{number}" for number in range(10)]
    async with opened(container.url()) as store:
        for key in keys:
            await store.put(key, b".")
        assert await listed(store) == keys
        assert await listed(store, "key", "key-4") == keys[5:]


@pytest.mark.usefixtures("with_key")
async def test_an_account_that_lists_folders_first_is_a_wrong_setting() -> None:
    """A hierarchical namespace has `abc/def` before `abc-def`; Azurite has none such."""
    about = "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
    about += "<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType>"
    about = f"<Properties>{about}</Properties>"
    blobs = "".join(f"<Blob><Name>{key}</Name>{about}</Blob>" for key in ("abc/def", "abc-def"))
    body = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    said = f"{head}\r\n\r\n{body}".encode()
    async with answering(said) as server, opened(at(server.port)) as store:
        with pytest.raises(StoreMisconfigured, match="its namespace is not flat"):
            await listed(store)


async def test_head_tells_the_md5_that_the_service_has_computed(container: Container) -> None:
    async with opened(container.url()) as store:
        await store.put("key", b"abc")
        md5 = bytes.fromhex("900150983cd24fb0d6963f7d28e17f72")
        assert (await store.head("key")).digests == (("md5", md5),)


async def test_parts_are_one_object(container: Container) -> None:
    async with opened(container.url()) as store:
        await store.put("key", (b"abc", memoryview(b"xdefx")[1:-1], bytearray(b"ghi")))
    assert container.read("key") == b"abcdefghi"


async def test_one_of_many_creators_in_two_processes_wins(container: Container) -> None:
    won: list[tuple[int, int]] = []

    async def create(store: ObjectStore, number: int, size: int) -> None:
        try:
            await store.put(f"key-{size}", bytes([number]) * size)
        except ObjectExists:
            return
        won.append((size, number))

    async with opened(container.url()) as one, opened(container.url()) as other:
        for size in (1, 100_000):
            async with anyio.create_task_group() as creators:
                for number in range(12):
                    creators.start_soon(create, one, 2 * number, size)
                    creators.start_soon(create, other, 2 * number + 1, size)
    for size, number in won:
        assert container.read(f"key-{size}") == bytes([number]) * size
    assert [size for size, _ in won] == [1, 100_000]


async def test_a_get_that_is_cancelled_leaves_the_store_usable(container: Container) -> None:
    async with opened(container.url()) as store:
        await store.put("key", bytes(8 << 20))
        for delay in (0, 0.002, 0.004, 0.008, 0.016):
            with anyio.move_on_after(delay):
                await store.get("key")
        assert len(await store.get("key")) == 8 << 20


@pytest.mark.parametrize("call", CALLS)
async def test_a_container_that_is_missing_is_a_wrong_setting(
    container: Container, call: str
) -> None:
    url = f"azure://missing?account={ACCOUNT}&endpoint={container.endpoint}"
    async with opened(url) as store:
        with pytest.raises(StoreMisconfigured) as raised:
            await CALLS[call](store)
    assert not raised.value.retryable
    assert not raised.value.outcome_unknown


@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_key_is_refused(
    container: Container, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "d3Jvbmc=")
    async with opened(container.url()) as store:
        with pytest.raises(PermissionDenied):  # by Azurite; the service: Unauthenticated
            await CALLS[call](store)


async def test_a_key_that_is_none_is_refused(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "abc")
    async with opened(container.url()) as store:
        with pytest.raises(Unauthenticated):
            await store.get("key")


def signature(container: Container, permissions: str) -> str:
    return generate_container_sas(
        ACCOUNT,
        container.name,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string(permissions),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


async def test_a_signature_opens_what_it_permits(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature(container, "rwdlc"))
    async with opened(container.url()) as store:
        await store.probe()
        await store.put("key", b".")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?" + signature(container, "r"))
    async with opened(container.url()) as store:
        assert await store.get("key") == b"."
        for denied in (store.put("other", b"."), store.delete("key"), listed(store)):
            with pytest.raises(PermissionDenied, match="what the credentials may do"):
                await denied
        (outcome,) = await store.delete_many(["key"])
        assert isinstance(outcome.error, PermissionDenied)


async def test_a_connection_string_says_where_and_who(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    text = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={container.endpoint}/;"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    async with opened(f"azure://{container.name}") as store:
        await store.probe()
    with pytest.raises(StoreMisconfigured, match=f"is of account {ACCOUNT}"):
        open_azure(f"azure://{container.name}?account=other")
    text = f"BlobEndpoint={container.endpoint};SharedAccessSignature={signature(container, 'rw')}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    async with opened(f"azure://{container.name}") as store:
        await store.put("key", b".")


@pytest.mark.slow
async def test_a_full_server_is_not_taken_for_an_object_that_exists(tmp_path: Path) -> None:
    with serving(tmp_path, room=1) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_KEY", KEY)
        with server.container() as container:
            async with opened(container.url()) as store:
                for mode in PutMode:
                    with pytest.raises(OutOfSpace):
                        await store.put("key", bytes(2 << 20), mode=mode)
                await store.put("key", b"small")
                server.stop()
                with pytest.raises(StoreUnavailable):
                    await store.get("key")


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)


@pytest.mark.usefixtures("with_key")
@pytest.mark.parametrize("call", CALLS)
async def test_where_nobody_listens_nothing_has_happened(call: str) -> None:
    async with opened(at(free_port())) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="onnect") as raised:
            await CALLS[call](store)
    assert raised.value.retryable
    assert not raised.value.outcome_unknown


@pytest.mark.usefixtures("with_key")
@pytest.mark.parametrize("call", CALLS)
async def test_a_connection_that_breaks_off_leaves_the_outcome_open(call: str) -> None:
    async with answering(b"") as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable) as raised:
            await CALLS[call](store)
    assert raised.value.retryable
    assert raised.value.outcome_unknown
    assert server.asked == 1


@pytest.mark.usefixtures("with_key")
async def test_a_service_that_is_silent_has_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "_SILENCE_LIMIT", 0.1)
    port = free_port()
    silent = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with silent, opened(at(port)) as store:
        with pytest.raises(StoreTimeout) as raised:
            await store.put("key", b".")
    assert raised.value.outcome_unknown


@pytest.mark.usefixtures("with_key")
@pytest.mark.parametrize("call", CALLS)
async def test_an_answer_of_somebody_else_is_a_failure(call: str) -> None:
    page = b"<html>Please log in</html>"
    said = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    said += b"Content-Length: %d\r\n\r\n%b" % (len(page), page)
    async with answering(said) as server, opened(at(server.port)) as store:
        with pytest.raises(StoreUnavailable):
            await CALLS[call](store)


@pytest.mark.usefixtures("with_key")
async def test_a_body_that_breaks_off_is_not_asked_for_again() -> None:
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 9\r\n"
    answer = head + b"Content-Range: bytes 0-8/9\r\n\r\nabc"
    async with answering(answer) as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await store.get("key")
    assert server.asked == 1


ANSWERS: dict[tuple[int, str], type[StoreError]] = {
    (400, "InvalidHeaderValue"): StoreMisconfigured,
    (403, "AuthenticationFailed"): Unauthenticated,
    (403, "AuthorizationPermissionMismatch"): PermissionDenied,
    (404, "BlobNotFound"): ObjectNotFound,
    (404, "ContainerNotFound"): StoreMisconfigured,
    (409, "BlobAlreadyExists"): ObjectExists,
    (409, "BlobImmutableDueToPolicy"): PermissionDenied,
    (409, "MemoryExtentStoreAtSizeLimit"): OutOfSpace,
    (409, "BlobArchived"): PreconditionFailed,
    (412, "ConditionNotMet"): PreconditionFailed,
    (429, ""): Throttled,
    (500, "InternalError"): StoreUnavailable,
    (500, "OperationTimedOut"): StoreTimeout,
    (502, ""): StoreUnavailable,
    (503, "ServerBusy"): Throttled,
}


@pytest.mark.usefixtures("with_key")
@pytest.mark.parametrize(("status", "code"), ANSWERS)
async def test_answers_are_errors_of_the_port(status: int, code: str) -> None:
    answer = f"HTTP/1.1 {status} Because\r\nx-ms-error-code: {code}\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer.encode()) as server, opened(at(server.port)) as store:
        with anyio.fail_after(5), pytest.raises(StoreError) as raised:
            await store.put("key", b".")
    assert type(raised.value) is ANSWERS[status, code]
    assert (raised.value.backend, raised.value.operation) == ("azure", "put")
    assert raised.value.outcome_unknown == (status >= 500 and code != "ServerBusy")
    assert server.asked == 1


@pytest.mark.usefixtures("with_key")
async def test_who_is_throttled_is_told_for_how_long() -> None:
    answer = b"HTTP/1.1 503 Busy\r\nx-ms-error-code: ServerBusy\r\nRetry-After: 7\r\n"
    answer += b"Content-Length: 0\r\n\r\n"
    async with answering(answer) as server, opened(at(server.port)) as store:
        with pytest.raises(Throttled) as raised:
            await store.put("key", b".")
    assert raised.value.retry_after == 7.0


async def test_a_signature_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024&sig=secret")
    for answer in (b"", b"nonsense\r\n\r\n", b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"):
        async with answering(answer) as server, opened(at(server.port)) as store:
            with pytest.raises(StoreError) as raised:
                await store.put("key", b".")
        assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("with_key")
@pytest.mark.parametrize(
    ("url", "because"),
    [
        ("azure://box?account=mine&acount=you", "unknown in the address: acount"),
        ("azure://box?account=mine&sig=secret", "unknown in the address: sig; known: account"),
        ("azure://box?account=mine&account=yours", "there twice"),
        ("azure://box?account=", "empty"),
        ("azure://box", "lacks its account"),
        ("azure://box?account=not.mine/", "is no name of an account"),
        ("azure://?account=mine", "'' is no name"),
        ("azure://BOX?account=mine", "'BOX' is no name"),
        ("azure://box:80?account=mine", "'box:80' is no name"),
        ("azure://me:secret@box?account=mine", "credentials do not belong"),
        ("azure://box/a/../b?account=mine", "is no prefix"),
        ("azure://box/a//b?account=mine", "is no prefix"),
        ("azure://box/a%20b?account=mine", "is no prefix"),
        ("azure://box#part", "an address of this kind"),
        ("gs://box?account=mine", "an address of this kind"),
        ("azure://box?account=mine&endpoint=localhost:1", "the endpoint is"),
        ("azure://box?account=mine&endpoint=http://me:secret@there", "the endpoint is"),
        ("azure://[box?account=mine", "no address"),
        ("azure://box?account", "no address"),
    ],
)
def test_bad_addresses_are_refused(url: str, because: str) -> None:
    with pytest.raises(StoreMisconfigured, match=because) as raised:
        open_azure(url)
    assert "secret" not in str(raised.value)


def test_without_credentials_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(StoreMisconfigured, match="set AZURE_STORAGE_CONNECTION_STRING"):
        open_azure("azure://box?account=mine")


class Identity(ModuleType):
    """azure-identity, as far as it is used; it is not installed here."""

    closed = 0

    def DefaultAzureCredential(self) -> Self:  # noqa: N802 - its name there
        return self

    async def get_token(self, *scopes: str, **options: object) -> None:
        raise ClientAuthenticationError("nobody is logged in: secret")

    async def close(self) -> None:
        self.closed += 1


async def test_without_key_and_token_azure_identity_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = Identity("azure.identity.aio")
    monkeypatch.setitem(sys.modules, "azure.identity.aio", identity)
    with pytest.raises(StoreMisconfigured, match="https only"):
        open_azure(at(free_port()))
    async with opened("azure://box?account=mine") as store:
        with pytest.raises(Unauthenticated) as raised:
            await store.get("key")
    assert "secret" not in str(raised.value)
    assert identity.closed == 1


@pytest.mark.usefixtures("with_key")
def test_without_the_client_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "azure.storage.blob.aio", None)
    with pytest.raises(Unsupported, match=r"azure:// needs: pip install 'vaultfs\[azure\]'"):
        open_azure("azure://box?account=mine")

"""Objects as block blobs in a container of Azure Blob Storage.

An address is `azure://container/prefix?account=NAME`, with `endpoint=` for another
place than `https://NAME.blob.core.windows.net`. Credentials come from the environment:
`AZURE_STORAGE_CONNECTION_STRING`, `AZURE_STORAGE_KEY`, `AZURE_STORAGE_SAS_TOKEN`, or
else whatever azure-identity finds, if that is installed.

An object is one Put Blob, which the service carries out whole or not at all. `CREATE`
is `If-None-Match: *`. The account needs a flat namespace: a hierarchical one lists in
another order. The client library's packages are an extra, and are imported when a
store is opened.
"""

import importlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self, cast

from aiohttp import ClientConnectorError
from attrs import field, frozen

from vaultfs.adapters.clouds import (
    BucketUrl,
    PartsPayload,
    asked_once,
    bad_url,
    delete_each,
    parsed_url,
    retry_after,
    told,
)
from vaultfs.adapters.probing import probe_objects
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Unsupported
from vaultfs.ports.objects import (
    MAX_OBJECT,
    Capabilities,
    Deleted,
    IntegrityError,
    InvalidKey,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    OutOfSpace,
    Payload,
    PermissionDenied,
    PreconditionFailed,
    PutMode,
    Span,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    Throttled,
    Unauthenticated,
    parts_of,
    size_of,
    valid_key,
)

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

_SCHEME: Final = "azure"
_FIELDS: Final = frozenset({"account", "endpoint"})
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_PAGE: Final = 5000
_CONNECT_LIMIT: Final = 20
_SILENCE_LIMIT: Final = 60
"""Seconds; for who sets no limit of their own."""


class _PastTheEnd(StoreError):
    """The object ends before the span begins."""


_CODES: Final[Mapping[str, type[StoreError]]] = {
    "BlobNotFound": ObjectNotFound,
    "BlobAlreadyExists": ObjectExists,
    "ContainerNotFound": StoreMisconfigured,
    "ContainerBeingDeleted": StoreMisconfigured,
    "ContainerDisabled": StoreMisconfigured,
    "AccountIsDisabled": StoreMisconfigured,
    "AuthenticationFailed": Unauthenticated,
    "InvalidAuthenticationInfo": Unauthenticated,
    "NoAuthenticationInformation": Unauthenticated,
    "BlobImmutableDueToPolicy": PermissionDenied,
    "MemoryExtentStoreAtSizeLimit": OutOfSpace,  # of the emulator, with status 409
    "RequestBodyTooLarge": ObjectTooLarge,
    "Md5Mismatch": IntegrityError,
    "ServerBusy": Throttled,
    "OperationTimedOut": StoreTimeout,
}
"""By the service's own error code, which says more than the status it comes with."""
_STATUSES: Final[Mapping[int, type[StoreError]]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: ObjectNotFound,
    408: StoreTimeout,
    409: PreconditionFailed,
    412: PreconditionFailed,
    413: ObjectTooLarge,
    416: _PastTheEnd,
    429: Throttled,
    507: OutOfSpace,
}
_CREDENTIALS: Final = (
    "set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"
)
_SELF_EXPLAINED: Final = (ObjectNotFound, ObjectExists)


def open_azure(url: str, name: str = _SCHEME) -> "AzureObjectStore":
    """The store at `url`, called `name`. Nothing is sent before its first use.

    Raises `Unsupported` without the client library, `StoreMisconfigured` for a bad
    address and for credentials that are missing or of another account.
    """
    address = parsed_url(url, _SCHEME, _FIELDS)
    account = _Account.found(address, os.environ)
    try:
        credential = _credential(account)
        client = _client(account, address.bucket, credential)
    except ModuleNotFoundError as error:
        raise Unsupported("azure:// needs: pip install 'vaultfs[azure]'") from error
    return AzureObjectStore(client, credential, address.prefix, name)


class AzureObjectStore(ObjectStore):
    """A store in the container of `client`; `prefix` is in front of every key.

    Closes `client`, and `credential`, which it asks for tokens, if that can be closed. A
    listing that starts after a key reads over those before it, by 5,000 with a request.
    Names that are no keys are not shown.
    """

    def __init__(
        self,
        client: "ContainerClient",
        credential: object = None,
        prefix: str = "",
        name: str = _SCHEME,
    ) -> None:
        self._client = client
        self._credential = credential
        self._prefix = prefix
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, delete_batch=1, digests=frozenset({"md5"}))

    async def head(self, key: str) -> ObjectInfo:
        blob = self._client.get_blob_client(self._blob("head", key))
        with self._edge("head", key):
            found = await blob.get_blob_properties()
            modified = _microseconds(found)
        md5 = found.content_settings.content_md5
        return ObjectInfo(key, found.size, modified, (("md5", bytes(md5)),) if md5 else ())

    async def get(self, key: str, span: Span | None = None) -> bytes:
        blob = self._blob("get", key)
        if span is not None and not span:
            await self.head(key)  # an empty range cannot be asked for
            return b""
        start, length = (None, None) if span is None else (span.start, len(span))
        try:
            with self._edge("get", key):
                stream = await self._client.download_blob(blob, start, length)
                return await stream.readall()
        except _PastTheEnd:
            return b""

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        blob = self._blob("put", key)
        if size_of(data) > MAX_OBJECT:
            raise ObjectTooLarge(backend=self.name, operation="put", key=key)
        body: Any = _Body(parts_of(data))
        with self._edge("put", key):
            await self._client.upload_blob(
                blob, body, length=len(body), overwrite=mode is PutMode.OVERWRITE
            )

    async def delete(self, key: str) -> None:
        blob = self._blob("delete", key)
        try:
            with self._edge("delete", key):
                await self._client.delete_blob(blob)
        except ObjectNotFound:
            pass

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await delete_each(self, keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        last = ""
        blobs = self._client.list_blobs(
            name_starts_with=self._prefix + prefix, results_per_page=_PAGE
        )
        while (blob := await self._next(blobs, prefix)) is not None:
            key = blob.name.removeprefix(self._prefix)
            if not valid_key(key) or key <= start_after:
                continue
            if key <= last:
                raise self._misconfigured("its namespace is not flat: it lists in another order")
            last = key
            yield ObjectInfo(key, blob.size, _microseconds(blob))

    async def probe(self) -> None:
        await probe_objects(self)

    async def aclose(self) -> None:
        await self._client.close()
        close = getattr(self._credential, "close", None)  # keys and signatures have none
        if close is not None:
            await close()

    def _blob(self, operation: str, key: str) -> str:
        if not valid_key(key):
            raise InvalidKey(backend=self.name, operation=operation, key=key)
        return self._prefix + key

    def _misconfigured(self, detail: str) -> StoreMisconfigured:
        return StoreMisconfigured(detail, backend=self.name, operation="list")

    async def _next(
        self, blobs: "AsyncIterator[BlobProperties]", prefix: str
    ) -> "BlobProperties | None":
        with self._edge("list", prefix):
            return await anext(blobs, None)

    @contextmanager
    def _edge(self, operation: str, key: str) -> Generator[None, None, None]:
        from azure.core.exceptions import AzureError

        try:
            yield
        except AzureError as exc:
            raise self._translated(exc, operation, key) from exc
        except ValueError as exc:  # what the client library has for those of somebody else
            detail = "an answer cannot be read"
            raise StoreUnavailable(detail, backend=self.name, operation=operation, key=key) from exc

    def _translated(self, exc: "AzureError", operation: str, key: str) -> StoreError:
        from azure.core import exceptions as azure

        if isinstance(exc, azure.HttpResponseError) and exc.response is not None:
            return self._refused(exc, operation, key)
        kind: type[StoreError] = StoreUnavailable
        detail, unknown, inner = "", True, exc.inner_exception
        match exc:
            case azure.ClientAuthenticationError():
                kind, detail, unknown = Unauthenticated, "the key or token cannot be used", False
            case azure.ServiceRequestTimeoutError():
                kind, detail, unknown = StoreTimeout, "it cannot be reached in time", False
            case azure.ServiceResponseTimeoutError():
                kind = StoreTimeout
            case _ if isinstance(inner, ClientConnectorError):
                detail, unknown = str(inner), False
            case _ if inner is None:
                detail = _first_line(exc)
            case _:  # not in its own words: the address may be in them, with its signature
                detail = f"the connection broke off ({type(inner).__name__})"
        detail = self._told(kind, detail)
        return kind(
            detail, backend=self.name, operation=operation, key=key, outcome_unknown=unknown
        )

    def _told(self, kind: type[StoreError], detail: str) -> str:
        return told(kind, detail, f"container {self._client.container_name}", _CREDENTIALS)

    def _refused(self, exc: "HttpResponseError", operation: str, key: str) -> StoreError:
        """The error that an answer of the service stands for."""
        headers: Mapping[str, str] = cast("Any", exc.response).headers
        code, status = _code(exc, headers), exc.status_code or 0
        other = StoreMisconfigured if 400 <= status < 500 else StoreUnavailable
        kind = _CODES.get(code) or _STATUSES.get(status, other)
        detail = "" if kind in _SELF_EXPLAINED else f"{_first_line(exc)} ({status} {code})"
        if kind is Throttled:
            after = retry_after(headers.get("Retry-After"))
            return Throttled(
                detail, backend=self.name, operation=operation, key=key, retry_after=after
            )
        return kind(self._told(kind, detail), backend=self.name, operation=operation, key=key)


@frozen
class _Account:
    """Whose container it is, and what opens it."""

    name: str
    endpoint: str
    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """A shared access signature."""

    @classmethod
    def found(cls, address: BucketUrl, environ: Mapping[str, str]) -> Self:
        """What the address says, completed by a connection string, or else by key or token.

        A connection string with a signature need not name its account.
        """
        text = environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
        settings = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
        theirs = settings.get("AccountName", "")
        name = address.fields.get("account", theirs)
        if not name and "BlobEndpoint" not in settings:
            raise bad_url(_SCHEME, "the address lacks its account: ?account=NAME")
        if name and not _ACCOUNT.fullmatch(name):
            raise bad_url(_SCHEME, f"{name!r} is no name of an account")
        if theirs and theirs != name:
            raise bad_url(_SCHEME, f"AZURE_STORAGE_CONNECTION_STRING is of account {theirs}")
        secrets = settings if text else environ
        return cls(
            name,
            address.fields.get("endpoint") or _endpoint(name, settings),
            secrets.get("AccountKey" if text else "AZURE_STORAGE_KEY", ""),
            secrets.get("SharedAccessSignature" if text else "AZURE_STORAGE_SAS_TOKEN", ""),
        )


def _endpoint(account: str, settings: Mapping[str, str]) -> str:
    if endpoint := settings.get("BlobEndpoint"):
        return endpoint.rstrip("/")
    protocol = settings.get("DefaultEndpointsProtocol", "https")
    return f"{protocol}://{account}.blob.{settings.get('EndpointSuffix', 'core.windows.net')}"


def _client(account: _Account, container: str, credential: Any) -> "ContainerClient":
    from azure.storage.blob.aio import ContainerClient

    transports: Any = importlib.import_module("azure.core.pipeline.transport")
    transport = transports.AioHttpTransport(
        connection_timeout=_CONNECT_LIMIT, read_timeout=_SILENCE_LIMIT
    )
    return ContainerClient(
        account.endpoint,
        container,
        credential=credential,
        transport=_WholeAnswers(transport),
        max_single_get_size=MAX_OBJECT,
        max_single_put_size=MAX_OBJECT,
        retry_total=0,
    )


def _credential(account: _Account) -> Any:
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    if account.key:
        return AzureNamedKeyCredential(account.name, account.key)
    if account.token:
        return AzureSasCredential(account.token.lstrip("?"))
    try:
        identity = importlib.import_module("azure.identity.aio")
    except ModuleNotFoundError as error:
        raise bad_url(
            _SCHEME,
            f"no credentials: {_CREDENTIALS}, or install azure-identity",
        ) from error
    if not account.endpoint.startswith("https://"):
        raise bad_url(_SCHEME, "azure-identity's tokens are for an endpoint with https only")
    return identity.DefaultAzureCredential()


class _Body:
    """A body to read, in one piece, that stays in its parts.

    The client library takes nothing but bytes, all at once. It is given some that know no
    more than how many they are; `_WholeAnswers` sends the parts in their place.
    """

    def __init__(self, parts: tuple[Buffer, ...]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return size_of(self._parts)

    def read(self, _: int = -1) -> bytes:
        stand_in = _StandIn()
        stand_in.parts = self._parts
        return stand_in


class _StandIn(bytes):
    """Passes for the bytes of `parts`."""

    parts: tuple[Buffer, ...]

    def __len__(self) -> int:
        return size_of(self.parts)


class _WholeAnswers:
    """A transport that has read an answer whole when it returns it.

    The client library reads bodies itself otherwise, and asks again, by itself and after
    a second, for those that break off.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def send(self, request: Any, **options: Any) -> Any:
        if isinstance(request.data, _StandIn):
            request.data = PartsPayload(request.data.parts)
        options |= {"stream": False, "middlewares": (asked_once,)}
        return await self._inner.send(request, **options)

    async def sleep(self, duration: float) -> None:
        await self._inner.sleep(duration)

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._inner.__aexit__(*exc_info)


def _code(exc: "HttpResponseError", headers: Mapping[str, str]) -> str:
    """The service's error code, which stands in a header where there is no body."""
    code = headers.get("x-ms-error-code") or getattr(exc, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _first_line(exc: "AzureError") -> str:
    return str(exc.message).partition("\n")[0].strip().rstrip(".")


def _microseconds(blob: "BlobProperties") -> int:
    modified = cast("datetime | None", blob.last_modified)
    if modified is None:
        raise ValueError("an object without a time")
    return int(modified.timestamp()) * 1_000_000

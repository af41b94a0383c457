"""Objects in a bucket of Google Cloud Storage.

An address is `gs://bucket/prefix`, with `endpoint=` for another place than
`https://storage.googleapis.com`. Credentials are those that `GOOGLE_APPLICATION_CREDENTIALS`
names, or that gcloud has left, or those of the machine, from its metadata server. With
an endpoint and without that variable, requests are anonymous, as emulators want them.

An object is one multipart upload, which the service carries out whole or not at all,
and checks against the CRC-32C that comes with it. `CREATE` is `ifGenerationMatch=0`;
look-alikes honour it for multipart uploads only. The client library's packages are an
extra, and are imported when a store is opened.
"""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

import anyio
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponseError,
    ClientSession,
    ConnectionTimeoutError,
    DummyCookieJar,
)

from vaultfs.adapters.clouds import (
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
from vaultfs.domain.packs import crc32c_of
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
    from gcloud.aio.auth import Token
    from gcloud.aio.auth.token import TokenResponse
    from gcloud.aio.storage import Storage

_SCHEME: Final = "gs"
_NAME: Final = "gcs"
_FIELDS: Final = frozenset({"endpoint"})
_ENDPOINT: Final = "https://storage.googleapis.com"
_CREDENTIALS: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)
_LIMIT: Final = 120
"""Seconds for one request; for who sets no limit of their own."""
_TOKEN_LIMIT: Final = 10
_TOKEN_LIFE: Final = 0.8
"""The share of its time for which a token is used."""
_PAGE: Final = 1000


class _PastTheEnd(StoreError):
    """The object ends before the span begins."""


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
    504: StoreTimeout,
    507: OutOfSpace,
}
_PUT_STATUSES: Final = {**_STATUSES, 404: StoreMisconfigured, 412: ObjectExists}
_LIST_STATUSES: Final = {**_STATUSES, 404: StoreMisconfigured}
_TABLES: Final = {"put": _PUT_STATUSES, "list": _LIST_STATUSES}
_PHRASES: Final[Mapping[tuple[int, str], type[StoreError]]] = {
    (400, "CRC32C"): IntegrityError,
    (403, "rateLimitExceeded"): Throttled,
    (403, "userRateLimitExceeded"): Throttled,
    (404, "bucket does not exist"): StoreMisconfigured,
}
"""What the text of an answer says beyond its status."""
_SELF_EXPLAINED: Final = (ObjectNotFound, ObjectExists)


def open_gcs(url: str, name: str = _NAME) -> "GcsObjectStore":
    """The store at `url`, called `name`. Nothing is sent before its first use.

    Raises `Unsupported` without the client library, `StoreMisconfigured` for a bad
    address and for credentials that cannot be read.
    """
    address = parsed_url(url, _SCHEME, _FIELDS)
    endpoint = address.fields.get("endpoint")
    try:
        anonymous = endpoint is not None and _CREDENTIALS not in os.environ
        bearer = _Bearer(None if anonymous else _token())
        connection = _Connection(endpoint or _ENDPOINT, bearer)
    except ModuleNotFoundError as error:
        raise Unsupported("gs:// needs: pip install 'vaultfs[gcs]'") from error
    return GcsObjectStore(connection, address.bucket, address.prefix, name)


class GcsObjectStore(ObjectStore):
    """A store in `bucket`; `prefix` is in front of every key. Closes `connection`.

    Names that are no keys are not shown.
    """

    def __init__(
        self, connection: "_Connection", bucket: str, prefix: str = "", name: str = _NAME
    ) -> None:
        self._connection = connection
        self._bucket = bucket
        self._prefix = prefix
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        digests = frozenset({"crc32c", "md5"})
        return Capabilities(create_if_absent=True, delete_batch=1, digests=digests)

    async def head(self, key: str) -> ObjectInfo:
        name = self._object("head", key)
        with self._edge("head", key):
            found = await self._connection.storage.download_metadata(
                self._bucket, name, timeout=_LIMIT
            )
            return _info(key, found)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        name = self._object("get", key)
        if span is not None and not span:
            await self.head(key)  # an empty range cannot be asked for
            return b""
        headers = {} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"}
        try:
            with self._edge("get", key):
                return await self._connection.storage.download(
                    self._bucket, name, headers=headers, timeout=_LIMIT
                )
        except _PastTheEnd:
            return b""

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        name = self._object("put", key)
        if size_of(data) > MAX_OBJECT:
            raise ObjectTooLarge(backend=self.name, operation="put", key=key)
        parts = parts_of(data)
        crc = b64encode(crc32c_of(parts).to_bytes(4, "big")).decode()
        with self._edge("put", key):
            await self._connection.upload(
                self._bucket,
                {"name": name, "crc32c": crc},
                parts,
                {"ifGenerationMatch": "0"} if mode is PutMode.CREATE else {},
            )

    async def delete(self, key: str) -> None:
        name = self._object("delete", key)
        try:
            with self._edge("delete", key):
                await self._connection.storage.delete(self._bucket, name, timeout=_LIMIT)
        except ObjectNotFound:
            pass

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await delete_each(self, keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        params = {
            "prefix": self._prefix + prefix,
            "startOffset": self._prefix + start_after,
            "maxResults": str(_PAGE),
            "fields": "nextPageToken,items(name,size,timeCreated)",
        }
        more = True
        while more:
            page, token = await self._page(prefix, params)
            for info in page:
                if valid_key(info.key) and info.key > start_after:
                    yield info
            params["pageToken"] = token
            more = bool(token)

    async def probe(self) -> None:
        await probe_objects(self)

    async def aclose(self) -> None:
        await self._connection.aclose()

    def _object(self, operation: str, key: str) -> str:
        if not valid_key(key):
            raise InvalidKey(backend=self.name, operation=operation, key=key)
        return self._prefix + key

    async def _page(
        self, prefix: str, params: dict[str, str]
    ) -> tuple[tuple[ObjectInfo, ...], str]:
        """The next objects, whatever their names are, and the token for those after them."""
        with self._edge("list", prefix):
            page = await self._connection.storage.list_objects(
                self._bucket, params=params, timeout=_LIMIT
            )
            items = page.get("items", ())
            found = tuple(_info(item["name"].removeprefix(self._prefix), item) for item in items)
            return found, page.get("nextPageToken", "")

    @contextmanager
    def _edge(self, operation: str, key: str) -> Generator[None, None, None]:
        try:
            yield
        except ClientResponseError as exc:
            raise self._refused(exc, operation, key) from exc
        except (ClientError, TimeoutError, KeyError, ValueError, _NoTokenError) as exc:
            raise self._failed(exc, operation, key) from exc

    def _failed(self, exc: Exception, operation: str, key: str) -> StoreError:
        """The error for a call that has no answer, or none that can be read."""
        kind: type[StoreError] = StoreUnavailable
        detail, unknown = "", True
        match exc:
            case _NoTokenError():
                kind, detail, unknown = exc.kind, str(exc), False
            case ConnectionTimeoutError():
                kind, detail, unknown = StoreTimeout, "it cannot be reached in time", False
            case TimeoutError():
                kind = StoreTimeout
            case ClientConnectorError():
                detail, unknown = str(exc), False
            case KeyError() | ValueError():  # for what somebody else has answered
                detail = "an answer cannot be read"
            case _:
                detail = f"the connection broke off ({type(exc).__name__})"
        detail = self._told(kind, detail)
        return kind(
            detail, backend=self.name, operation=operation, key=key, outcome_unknown=unknown
        )

    def _told(self, kind: type[StoreError], detail: str) -> str:
        remedy = f"{_CREDENTIALS} has to name a file with credentials that are good"
        return told(kind, detail, f"bucket {self._bucket}", remedy)

    def _refused(self, exc: ClientResponseError, operation: str, key: str) -> StoreError:
        """The error that an answer of the service stands for."""
        kind = _kind(exc, operation)
        detail = "" if kind in _SELF_EXPLAINED else f"{_summary(exc.message)} ({exc.status})"
        if kind is Throttled:
            after = retry_after(exc.headers.get("Retry-After") if exc.headers else None)
            return Throttled(
                detail, backend=self.name, operation=operation, key=key, retry_after=after
            )
        return kind(self._told(kind, detail), backend=self.name, operation=operation, key=key)


class _NoTokenError(Exception):
    """There is no token to send a request with; nothing was sent to the store."""

    def __init__(self, kind: type[StoreError], detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _Bearer:
    """Tokens from `token`, one after the other; none at all where it is None.

    The client library's own way to renew one is a task that all callers wait for and that
    a cancelled one takes along, and it tries five times.
    """

    def __init__(self, token: "Token | None") -> None:
        self._token = token
        self._lock = anyio.Lock()
        self._value = ""
        self._until = 0.0

    async def get(self) -> str:
        """A token that is good for a while. Raises `_NoTokenError`."""
        async with self._lock:
            if self._token is not None and anyio.current_time() >= self._until:
                found = await _renewed(self._token)
                self._value = found.value
                self._until = anyio.current_time() + _TOKEN_LIFE * found.expires_in
            return self._value

    @property
    def anonymous(self) -> bool:
        return self._token is None

    async def aclose(self) -> None:
        if self._token is not None:
            await self._token.close()


class _Connection:
    """The client library, which cannot be had outside of an event loop."""

    def __init__(self, endpoint: str, bearer: _Bearer) -> None:
        from gcloud.aio.storage import Storage

        self._kind = Storage
        self._endpoint = endpoint
        self._bearer = bearer
        self._session: ClientSession | None = None
        self._storage: Storage | None = None

    @property
    def storage(self) -> "Storage":
        """Connected at its first use."""
        if self._storage is None:
            self._storage = self._connect()
        return self._storage

    def _connect(self) -> "Storage":
        self._session = ClientSession(
            cookie_jar=DummyCookieJar(), trust_env=True, middlewares=(asked_once,)
        )
        return self._kind(
            session=cast("Any", self._session),  # typed as the one of requests
            token=cast("Token", self._bearer),
            api_root=self._endpoint,
            api_is_dev=self._bearer.anonymous,
        )

    async def upload(
        self,
        bucket: str,
        metadata: Mapping[str, str],
        parts: tuple[Buffer, ...],
        params: Mapping[str, str],
    ) -> None:
        """Put an object with one multipart upload.

        The client library would copy the object twice: to one piece, and to a body.
        """
        token = await self._bearer.get()
        boundary = uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        between = f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        start = f"{head}{json.dumps(metadata)}{between}".encode()
        body = (start, *parts, f"\r\n--{boundary}--\r\n".encode())
        headers = {
            "Content-Type": f"multipart/related; boundary={boundary}",
            "Content-Length": str(size_of(body)),
            "Accept": "application/json",
        }
        answer = await self.storage.session.post(
            f"{self._endpoint}/upload/storage/v1/b/{bucket}/o",
            headers=headers
            if self._bearer.anonymous
            else headers | {"Authorization": f"Bearer {token}"},
            data=cast("Any", PartsPayload(body)),
            timeout=_LIMIT,
            params={"uploadType": "multipart", **params},
        )
        json.loads(await answer.read())  # else it was somebody else who took it

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._bearer.aclose()


def _token() -> "Token":
    from gcloud.aio.auth import Token

    try:
        return Token(scopes=[*_SCOPES])
    except (OSError, ValueError, KeyError) as error:
        raise bad_url(_SCHEME, f"{_CREDENTIALS} names no credentials: {error}") from error


async def _renewed(token: "Token") -> "TokenResponse":
    from jwt import PyJWTError

    try:
        return await token.refresh(timeout=_TOKEN_LIMIT)
    except TimeoutError as error:
        raise _NoTokenError(StoreTimeout, "no token came in time") from error
    except ClientResponseError as error:
        kind = StoreUnavailable if error.status >= 500 else Unauthenticated
        raise _NoTokenError(kind, f"no token: {_summary(error.message)}") from error
    except ClientError as error:
        detail = f"no token: {error}; {_CREDENTIALS} may name a file with credentials"
        raise _NoTokenError(StoreUnavailable, detail) from error
    except (OSError, ValueError, KeyError, TypeError, PyJWTError) as error:
        raise _NoTokenError(Unauthenticated, f"the credentials cannot be used: {error}") from error


def _kind(exc: ClientResponseError, operation: str) -> type[StoreError]:
    for (status, phrase), kind in _PHRASES.items():
        if exc.status == status and phrase in exc.message:
            return kind
    other = StoreMisconfigured if 400 <= exc.status < 500 else StoreUnavailable
    return _TABLES.get(operation, _STATUSES).get(exc.status, other)


def _summary(message: str) -> str:
    """The first words of an answer, without the JSON around them."""
    reason, _, body = message.partition(": ")
    _, found, text = body.partition('"message":')
    text = text.strip().strip('"').partition('"')[0] if found else body.partition("\n")[0]
    return text[:200].strip().rstrip(".") or reason


def _info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    created = datetime.fromisoformat(found["timeCreated"])
    modified = int(created.timestamp()) * 1_000_000 + created.microsecond
    digests = (("crc32c", found.get("crc32c")), ("md5", found.get("md5Hash")))
    return ObjectInfo(
        key,
        int(found["size"]),
        modified,
        tuple((name, b64decode(text)) for name, text in digests if text),
    )

"""A store in a bucket of S3, or of something that speaks as S3 does.

    s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=NAME&path_style=true
        &profile=NAME&sse=aws:kms&sse_kms_key=ID

Everything behind the bucket may be left out. Credentials come from where the AWS libraries
look for them (environment, profile, the machine's role), never from the address.

An ETag is no digest of the content (parts, encryption), so none is made of it. Without
checksums of its own, a put is signed with the SHA-256 of its body, so that the server
refuses what was damaged on its way. The checksums that AWS has added since are left to AWS:
they are used where no endpoint is named, for other servers refuse some of them.
"""

import re
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from datetime import datetime
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from attrs import frozen
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from vaultfs.adapters.clouds import Parts, PartsPayload, told
from vaultfs.adapters.probing import probe_objects
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import InvalidField
from vaultfs.ports.objects import (
    MAX_KEY,
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
    StoreUnsupported,
    Throttled,
    Unauthenticated,
    parts_of,
    size_of,
    valid_key,
)

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import ObjectIdentifierTypeDef, ObjectTypeDef

_BATCH: Final = 1000
"""Keys that DeleteObjects takes, and that ListObjectsV2 gives."""
_CONNECTIONS: Final = 64
_CONNECT_LIMIT: Final = 10.0
_READ_LIMIT: Final = 60.0
"""Seconds without a byte."""
_SMALL: Final = 256 << 10
"""Bytes up to which parts are joined rather than read one after the other."""
_LONGEST_KEY: Final = 1024
_ENCRYPTIONS: Final = ("AES256", "aws:kms", "aws:kms:dsse")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CREDENTIALS: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; else the machine's role counts"
)
_REGION: Final = "us-east-1"
"""What servers that have none answer to."""

_CODES: Final[dict[str, type[StoreError]]] = {
    "NoSuchKey": ObjectNotFound,
    "NoSuchBucket": StoreMisconfigured,
    "AccessDenied": PermissionDenied,
    "AllAccessDisabled": PermissionDenied,
    "AccountProblem": PermissionDenied,
    "ExpiredToken": Unauthenticated,
    "InvalidAccessKeyId": Unauthenticated,
    "InvalidClientTokenId": Unauthenticated,
    "InvalidToken": Unauthenticated,
    "RequestExpired": Unauthenticated,
    "RequestTimeTooSkewed": Unauthenticated,
    "SignatureDoesNotMatch": Unauthenticated,
    "TokenRefreshRequired": Unauthenticated,
    "BandwidthLimitExceeded": Throttled,
    "RequestLimitExceeded": Throttled,
    "RequestThrottled": Throttled,
    "SlowDown": Throttled,
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "TooManyRequests": Throttled,
    "TooManyRequestsException": Throttled,
    "ConditionalRequestConflict": StoreUnavailable,
    "InternalError": StoreUnavailable,
    "OperationAborted": StoreUnavailable,
    "RequestTimeout": StoreTimeout,
    "BadDigest": IntegrityError,
    "IncompleteBody": StoreUnavailable,
    "InvalidDigest": IntegrityError,
    "XAmzContentSHA256Mismatch": IntegrityError,
    "EntityTooLarge": ObjectTooLarge,
    "QuotaExceeded": OutOfSpace,
    "XMinioStorageFull": OutOfSpace,
    "KeyTooLongError": InvalidKey,
    "MethodNotAllowed": StoreUnsupported,
    "NotImplemented": StoreUnsupported,
    "InvalidObjectState": StoreMisconfigured,
    "PreconditionFailed": PreconditionFailed,
}
_STATUSES: Final[dict[int, type[StoreError]]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: ObjectNotFound,
    405: StoreUnsupported,
    408: StoreTimeout,
    409: StoreUnavailable,
    411: StoreUnsupported,
    412: PreconditionFailed,
    413: ObjectTooLarge,
    429: Throttled,
    501: StoreUnsupported,
    503: Throttled,
    507: OutOfSpace,
}
"""For codes that are not known."""
_FAILURES: Final[tuple[tuple[type[Exception], type[StoreError], bool], ...]] = (
    (ConnectTimeoutError, StoreTimeout, False),
    (ReadTimeoutError, StoreTimeout, True),
    (TimeoutError, StoreTimeout, True),
    (NoCredentialsError, Unauthenticated, False),
    (PartialCredentialsError, Unauthenticated, False),
    (CredentialRetrievalError, Unauthenticated, False),
    (TokenRetrievalError, Unauthenticated, False),
    (UnauthorizedSSOTokenError, Unauthenticated, False),
    (ProxyConnectionError, StoreUnavailable, False),
    (SSLError, StoreMisconfigured, False),
    (ParamValidationError, StoreMisconfigured, False),
    (ProfileNotFound, StoreMisconfigured, False),
    (InvalidRegionError, StoreMisconfigured, False),
    (FlexibleChecksumError, IntegrityError, False),
)
"""What is raised without an answer of the server: the first that fits, and whether the call
may have been carried out all the same. Anything else: the store is away, and it may."""
_NEVER_SENT: Final = (aiohttp.ClientConnectorError, socket.gaierror)
_RAISED: Final = (ClientError, BotoCoreError, aiohttp.ClientError, OSError, TimeoutError)


@frozen
class S3Address:
    """Where a store is. Holds no secret."""

    bucket: str
    prefix: str = ""
    """In front of every key; ends with `/` unless it is empty."""
    endpoint: str | None = None
    """Of a server that is not AWS."""
    region: str | None = None
    path_style: bool = False
    profile: str | None = None
    """A section of the AWS configuration files."""
    encryption: str | None = None
    encryption_key: str | None = None

    @classmethod
    def parse(cls, url: str) -> "S3Address":
        """Raises `InvalidField` for what is no address of a bucket.

        What it says leaves out the fields: somebody may have put a secret there.
        """
        parts = urlsplit(url)
        url = url.partition("?")[0]
        if parts.scheme != "s3" or parts.fragment:
            raise InvalidField(f"{url}: an S3 store is written s3://BUCKET/PREFIX?region=...")
        if "@" in parts.netloc:
            raise InvalidField(
                "the address of an S3 store holds no credentials: put them into the environment"
                " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile"
            )
        query = _query_of(url, parts.query)
        endpoint = query.get("endpoint")
        return cls(
            _bucket(url, parts.netloc),
            _prefix(url, unquote(parts.path)),
            None if endpoint is None else _endpoint(url, endpoint),
            query.get("region"),
            _yes(url, query.get("path_style", "false" if endpoint is None else "true")),
            query.get("profile"),
            *_encryption(url, query.get("sse"), query.get("sse_kms_key")),
        )


_FIELDS: Final = ("endpoint", "region", "path_style", "profile", "sse", "sse_kms_key")


def _query_of(url: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in _FIELDS:
            raise InvalidField(f"{url}: there is no field {name}: {', '.join(_FIELDS)}")
        if name in found or not value:
            raise InvalidField(f"{url}: {name} takes one value")
        found[name] = value
    return found


def _bucket(url: str, name: str) -> str:
    if not _BUCKET.fullmatch(name):
        raise InvalidField(f"{url}: {name or 'nothing'} is no name of a bucket")
    if name.endswith("--x-s3"):
        raise InvalidField(f"{url}: a directory bucket lists its keys in no order")
    return name


def _prefix(url: str, path: str) -> str:
    prefix = path.strip("/")
    if "//" in prefix or len(prefix.encode()) >= _LONGEST_KEY - MAX_KEY:
        raise InvalidField(f"{url}: a prefix is short, without //")
    return f"{prefix}/" if prefix else ""


def _endpoint(url: str, text: str) -> str:
    parts = urlsplit(text)
    plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise InvalidField(f"{url}: an endpoint is http://HOST:PORT or https://HOST")
    return text


def _yes(url: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise InvalidField(f"{url}: path_style is true or false")
    return text == "true"


def _encryption(url: str, kind: str | None, key: str | None) -> tuple[str | None, str | None]:
    if kind is not None and kind not in _ENCRYPTIONS:
        raise InvalidField(f"{url}: sse is one of {', '.join(_ENCRYPTIONS)}")
    if key is not None and (kind is None or not kind.startswith("aws:kms")):
        raise InvalidField(f"{url}: sse_kms_key goes with sse=aws:kms")
    return kind, key


async def open_s3(url: str, name: str = "s3") -> "S3ObjectStore":
    """The store at `url`; nothing is asked of the server yet.

    Raises `InvalidField` and `StoreMisconfigured`.
    """
    return await S3ObjectStore.open(S3Address.parse(url), name)


class S3ObjectStore(ObjectStore):
    """A store under one prefix of a bucket, which has to be there.

    Times are in whole seconds, as `head` has them. Objects under the prefix whose names are
    no keys are not shown. A put that nobody waits for any more may still be carried out.
    """

    def __init__(
        self, client: "S3Client", address: S3Address, name: str, closing: AsyncExitStack
    ) -> None:
        self._client = client
        self._bucket = address.bucket
        self._prefix = address.prefix
        self._name = name
        self._closing = closing
        self._encryption = _encryption_fields(address)

    @classmethod
    async def open(cls, address: S3Address, name: str = "s3") -> "S3ObjectStore":
        """The store at `address`."""
        session: Any = AioSession(profile=address.profile)  # its types are those of all services
        closing = AsyncExitStack()
        with _edge(name, f"bucket {address.bucket}", "open"):
            region = address.region or session.get_config_variable("region") or _REGION
            try:
                client = await closing.enter_async_context(
                    session.create_client(
                        "s3",
                        region_name=region,
                        endpoint_url=address.endpoint,
                        config=_config(address),
                    )
                )
            except ValueError as error:  # what botocore raises for an endpoint that is none
                raise StoreMisconfigured(str(error), backend=name, operation="open") from error
        client.meta.events.register_last("before-call.s3", _expect_nothing)
        if address.endpoint is not None:
            client.meta.events.register_last("before-sign.s3.DeleteObjects", _add_md5)
        return cls(client, address, name, closing)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, delete_batch=_BATCH)

    async def head(self, key: str) -> ObjectInfo:
        where = self._where("head", key)
        with self._edge("head", key):
            try:
                found = await self._client.head_object(Bucket=self._bucket, Key=where)
            except ClientError:
                # An answer to HEAD has no body to tell why; that to a GET has one.
                await self._read(where, "bytes=0-0")
                raise
        return ObjectInfo(key, found["ContentLength"], _micros(found["LastModified"]))

    async def get(self, key: str, span: Span | None = None) -> bytes:
        where = self._where("get", key)
        if span is not None and not len(span):
            await self._see(where, key)
            return b""
        with self._edge("get", key):
            if span is None:
                return await self._read(where)
            return await self._read(where, f"bytes={span.start}-{span.stop - 1}")

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        where = self._where("put", key)
        if size_of(data) > MAX_OBJECT:
            raise ObjectTooLarge(backend=self.name, operation="put", key=key)
        fields: dict[str, Any] = {"Body": _body(parts_of(data)), **self._encryption}
        if mode is PutMode.CREATE:
            fields["IfNoneMatch"] = "*"
        with self._edge("put", key):
            await self._client.put_object(Bucket=self._bucket, Key=where, **fields)

    async def delete(self, key: str) -> None:
        where = self._where("delete", key)
        with self._edge("delete", key):
            await self._client.delete_object(Bucket=self._bucket, Key=where)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        errors: dict[str, StoreError] = {}
        good: list[str] = []
        for key in dict.fromkeys(keys):
            if valid_key(key):
                good.append(key)
            else:
                errors[key] = InvalidKey(backend=self.name, operation="delete_many", key=key)
        for at in range(0, len(good), _BATCH):
            errors |= await self._delete_batch(good[at : at + _BATCH])
        return tuple(Deleted(key, errors.get(key)) for key in keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        fields: dict[str, Any] = {"StartAfter": self._prefix + start_after} if start_after else {}
        while True:
            with self._edge("list", prefix):
                page = await self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, MaxKeys=_BATCH, **fields
                )
            for found in page.get("Contents", ()):
                if (info := self._info(found)) is not None:
                    yield info
            if not page.get("IsTruncated"):
                return
            fields = {"ContinuationToken": page["NextContinuationToken"]}

    async def probe(self) -> None:
        await probe_objects(self)

    async def aclose(self) -> None:
        await self._closing.aclose()

    def _where(self, operation: str, key: str) -> str:
        if not valid_key(key):
            raise InvalidKey(backend=self.name, operation=operation, key=key)
        return self._prefix + key

    def _edge(self, operation: str, key: str) -> AbstractContextManager[None]:
        return _edge(self.name, f"bucket {self._bucket}", operation, key)

    async def _see(self, where: str, key: str) -> None:
        """Raise `ObjectNotFound` unless the object is there."""
        with self._edge("get", key):
            await self._read(where, "bytes=0-0")

    async def _read(self, where: str, span: str | None = None) -> bytes:
        fields: dict[str, Any] = {} if span is None else {"Range": span}
        try:
            found = await self._client.get_object(Bucket=self._bucket, Key=where, **fields)
        except ClientError as error:
            if span is not None and _status_of(error) == 416:
                return b""  # an object is there, and ends before
            raise
        async with found["Body"] as body:
            whole: bytes = await body.read()
            return whole

    async def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """The errors of keys that are not gone."""
        objects: list[ObjectIdentifierTypeDef] = [{"Key": self._prefix + key} for key in keys]
        with self._edge("delete_many", ""):
            answer = await self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
            )
        errors: dict[str, StoreError] = {}
        for each in answer.get("Errors", ()):
            code, key = each.get("Code", ""), each.get("Key", "").removeprefix(self._prefix)
            kind = _CODES.get(code, StoreUnavailable)
            if kind is not ObjectNotFound:
                detail = f"{code}: {each.get('Message') or ''}".rstrip(": ")
                errors[key] = kind(detail, backend=self.name, operation="delete_many", key=key)
        return errors

    def _info(self, found: "ObjectTypeDef") -> ObjectInfo | None:
        key, modified = found.get("Key", "").removeprefix(self._prefix), found.get("LastModified")
        if modified is None or not valid_key(key):
            return None
        return ObjectInfo(key, found.get("Size", 0), _micros(modified))


# Bodies


def _body(parts: tuple[Buffer, ...]) -> bytes | Parts:
    """What the library takes as a body: large parts stay where they are."""
    if sum(map(len, parts)) <= _SMALL:
        return b"".join(parts)
    return Parts(parts)


# The library


class _Session(AIOHTTPSession):
    """Without the second try of aiohttp when a connection breaks, and with bodies that stay
    in their parts.

    A create that was carried out by the first try would be refused at the second, and
    nobody would know that the object is ours.
    """

    async def send(self, request: Any) -> Any:
        if isinstance(request.body, Parts):  # once more in pieces, signed and all
            request.body = PartsPayload(request.body.parts)
        known: Any = super()
        return await known.send(request)

    async def _get_session(self, proxy_url: str | None) -> Any:
        known: Any = super()
        session: Any = await known._get_session(proxy_url)  # noqa: SLF001 there is no other way
        session._retry_connection = False  # noqa: SLF001
        return session


def _config(address: S3Address) -> AioConfig:
    fields: dict[str, Any] = {}
    if address.endpoint is not None:
        fields["request_checksum_calculation"] = "when_required"
        fields["response_checksum_validation"] = "when_required"
    return AioConfig(
        signature_version="s3v4",
        retries={"total_max_attempts": 1},
        connect_timeout=_CONNECT_LIMIT,
        read_timeout=_READ_LIMIT,
        max_pool_connections=_CONNECTIONS,
        s3={
            "addressing_style": "path" if address.path_style else "auto",
            # TLS sees to it that what arrives is what was sent; else a digest that is signed does.
            "payload_signing_enabled": address.endpoint is not None
            and address.endpoint.startswith("http:"),
        },
        http_session_cls=_Session,
        **fields,
    )


def _expect_nothing(params: dict[str, Any], **_: Any) -> None:
    """Send the body at once: waiting for `100 Continue` takes a round trip more, and has no end
    where a server does not know of it.
    """
    params["headers"].pop("Expect", None)


def _add_md5(request: Any, **_: Any) -> None:
    """Content-MD5, which servers other than AWS want to see at DeleteObjects."""
    digest = md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = b64encode(digest).decode()


def _encryption_fields(address: S3Address) -> dict[str, str]:
    fields = {
        "ServerSideEncryption": address.encryption,
        "SSEKMSKeyId": address.encryption_key,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _micros(when: datetime) -> int:
    return int(when.timestamp()) * 1_000_000


# Errors


@contextmanager
def _edge(backend: str, place: str, operation: str, key: str = "") -> Generator[None, None, None]:
    try:
        yield
    except ClientError as error:
        raise _refused(error, backend, place, operation, key) from error
    except _RAISED as error:
        raise _failed(error, backend, place, operation, key) from error


def _status_of(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _refused(error: ClientError, backend: str, place: str, operation: str, key: str) -> StoreError:
    """An error that the server has answered with."""
    answer = error.response.get("Error", {})
    code, status = answer.get("Code", ""), _status_of(error)
    kind = _CODES.get(code) or _STATUSES.get(status)
    if kind is None:
        kind = StoreUnavailable if status >= 500 else StoreMisconfigured
    if kind is PreconditionFailed and operation == "put":
        return ObjectExists(backend=backend, operation=operation, key=key)
    if kind is ObjectNotFound:
        return ObjectNotFound(backend=backend, operation=operation, key=key)
    detail = f"{code}: {answer.get('Message') or ''}".rstrip(": ")
    if kind is Throttled:
        wait = _seconds(error)
        return Throttled(detail, backend=backend, operation=operation, key=key, retry_after=wait)
    unknown = kind.outcome_unknown and status >= 500
    detail = told(kind, detail, place, _CREDENTIALS)
    return kind(detail, backend=backend, operation=operation, key=key, outcome_unknown=unknown)


def _seconds(error: ClientError) -> float | None:
    """What Retry-After says; a date there is not heard."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def _failed(error: Exception, backend: str, place: str, operation: str, key: str) -> StoreError:
    """An error without an answer."""
    fitting = ((kind, unknown) for raised, kind, unknown in _FAILURES if isinstance(error, raised))
    kind, unknown = next(fitting, (StoreUnavailable, True))
    if isinstance(error, EndpointConnectionError):
        unknown = not isinstance(error.kwargs.get("error"), _NEVER_SENT)
    detail = told(kind, str(error), place, _CREDENTIALS)
    return kind(detail, backend=backend, operation=operation, key=key, outcome_unknown=unknown)

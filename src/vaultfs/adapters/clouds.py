"""What the stores in clouds have in common: addresses, bodies, aiohttp, deletes one by one.

An address, `scheme://bucket/prefix?field=value`, says where a store is, never who may
use it: it stands in logs, and a message about it names fields, not what they hold.
"""

import io
import re
from bisect import bisect_right
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientHandlerType,
    ClientOSError,
    ClientRequest,
    ClientResponse,
    ServerDisconnectedError,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from anyio import create_task_group
from attrs import frozen

from vaultfs.domain.digests import Buffer
from vaultfs.ports.objects import (
    Deleted,
    ObjectStore,
    PermissionDenied,
    StoreError,
    StoreMisconfigured,
    Unauthenticated,
)

_AT_ONCE: Final = 16
_PIECE: Final = 256 << 10
"""Bytes that are handed to a socket at a time."""
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX: Final = re.compile(r"([A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*/)*")
_LONGEST_PREFIX: Final = 400
"""Characters; a key of the port and this fit into the 1,024 that clouds allow."""


@frozen
class BucketUrl:
    """Where a store is."""

    bucket: str
    prefix: str
    """In front of every key: empty, or with `/` at its end."""
    fields: Mapping[str, str]


def parsed_url(url: str, scheme: str, fields: frozenset[str]) -> BucketUrl:
    """What `url` says; an `endpoint` among its fields is http or https, without `/` at its end.

    Raises `StoreMisconfigured` for what is no such address, and for other fields than
    `fields`.
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise bad_url(scheme, f"no address: {error}") from error
    if parts.scheme != scheme or parts.fragment:
        raise bad_url(scheme, f"an address of this kind is {scheme}://name/prefix?field=value")
    if "@" in parts.netloc:
        raise bad_url(scheme, "credentials do not belong into an address")
    if not _BUCKET.fullmatch(parts.netloc):
        raise bad_url(scheme, f"{parts.netloc!r} is no name for a bucket or container")
    found = _checked(scheme, pairs, fields)
    return BucketUrl(parts.netloc, _prefix(scheme, parts.path), found)


def bad_url(scheme: str, detail: str) -> StoreMisconfigured:
    """The error for a store that cannot be opened as its address or settings are."""
    return StoreMisconfigured(detail, backend=scheme, operation="open")


def told(kind: type[StoreError], detail: str, place: str, credentials: str) -> str:
    """`detail` of an error that somebody has to mend, with the `place` that it is about.

    `credentials` says where they come from.
    """
    if issubclass(kind, Unauthenticated | PermissionDenied):
        return f"{place}: {detail or 'refused'}: {credentials}"
    return f"{place}: {detail}" if issubclass(kind, StoreMisconfigured) else detail


def _checked(
    scheme: str, pairs: list[tuple[str, str]], fields: frozenset[str]
) -> Mapping[str, str]:
    found = dict(pairs)
    if unknown := sorted(found.keys() - fields):
        known = ", ".join(sorted(fields))
        raise bad_url(scheme, f"unknown in the address: {', '.join(unknown)}; known: {known}")
    if len(found) < len(pairs) or not all(found.values()):
        raise bad_url(scheme, "a field of the address is empty or there twice")
    if "endpoint" in found:
        found["endpoint"] = _endpoint(scheme, found["endpoint"])
    return found


def _endpoint(scheme: str, text: str) -> str:
    parts = urlsplit(text)
    strange = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in {"http", "https"} or not parts.hostname or strange:
        raise bad_url(scheme, "the endpoint is http://host:port or https://host")
    return text.rstrip("/")


def _prefix(scheme: str, path: str) -> str:
    prefix = path.strip("/")
    prefix = f"{prefix}/" if prefix else ""
    if not _PREFIX.fullmatch(prefix) or len(prefix) > _LONGEST_PREFIX:
        raise bad_url(scheme, f"{path!r} is no prefix: letters, digits, '.', '_', '-' and '/'")
    return prefix


class Parts(io.RawIOBase):
    """Buffers one after the other, read without being joined."""

    def __init__(self, parts: tuple[Buffer, ...]) -> None:
        super().__init__()
        self._parts = tuple(memoryview(part) for part in parts)
        self._ends = list(accumulate(map(len, parts)))
        self._at = 0

    @property
    def parts(self) -> tuple[Buffer, ...]:
        return self._parts

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self)}[whence]
        self._at = min(max(0, base + offset), len(self))
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = len(self) if size is None or size < 0 else min(self._at + size, len(self))
        return b"".join(self._pieces(stop))

    def _pieces(self, stop: int) -> Generator[memoryview, None, None]:
        """What is between here and `stop`; here is then there."""
        while self._at < stop:
            index = bisect_right(self._ends, self._at)
            start = self._ends[index] - len(self._parts[index])
            piece = self._parts[index][self._at - start : stop - start]
            self._at += len(piece)
            yield piece


class PartsPayload(Payload):
    """The same as what aiohttp sends: piece by piece, as the socket takes it, never joined.

    It would join parts, read files in threads, and hand large bytes over all at once.
    """

    def __init__(self, parts: tuple[Buffer, ...]) -> None:
        super().__init__(parts, content_type="application/octet-stream")
        self._parts = tuple(memoryview(part) for part in parts)
        self._size = sum(map(len, parts))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._parts).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for part in self._parts:
            for at in range(0, len(part), _PIECE):
                await writer.write(part[at : at + _PIECE])


async def delete_each(store: ObjectStore, keys: Sequence[str]) -> tuple[Deleted, ...]:
    """Delete each of `keys` with `store.delete`, up to 16 at the same time."""
    outcomes: dict[str, Deleted] = {}
    left = iter(dict.fromkeys(keys))

    async def work() -> None:
        for key in left:
            outcomes[key] = await _outcome(store, key)

    async with create_task_group() as workers:
        for _ in range(min(_AT_ONCE, len(keys))):
            workers.start_soon(work)
    return tuple(outcomes[key] for key in keys)


async def _outcome(store: ObjectStore, key: str) -> Deleted:
    try:
        await store.delete(key)
    except StoreError as error:
        return Deleted(key, error)
    return Deleted(key)


async def asked_once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """A middleware for aiohttp, so that it does not send a request again by itself.

    It would where a connection breaks off, for PUT too: and a put that was carried out
    would then be told that its object exists.
    """
    try:
        return await handler(request)
    except ClientConnectorError:
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise ClientConnectionError(type(error).__name__) from error


def retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a header `Retry-After` asks for, as a number or as a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())

"""`/v1/files`: the bytes of files."""

import mimetypes
import re
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, nullcontext
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

import anyio
from blake3 import blake3
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vaultfs.domain.cutting import SMALL
from vaultfs.domain.deltacodec import MEDIA_TYPE as DELTA
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import (
    InvalidField,
    SourceChanged,
    TooLarge,
    TooSlow,
    VaultError,
    VersionMismatch,
    WrongMedia,
)
from vaultfs.domain.nodes import Node, Origin, Version, VersionId
from vaultfs.domain.operations import Result
from vaultfs.domain.services import hashing
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.tokens import Scope as TokenScope
from vaultfs.entrypoints.http.calls import (
    IF_MATCH,
    IF_NONE_MATCH,
    VERSION,
    WITH_LOCK,
    Call,
    Parameter,
    Route,
    listed,
)
from vaultfs.entrypoints.http.problems import answer, problem
from vaultfs.entrypoints.http.wire import NodeOut, content_etag, node_out

IDLE: Final = 30
"""Seconds that an upload may stand still: it holds memory that others wait for."""
STALLED: Final = 60
"""Seconds that nothing of a download is taken; its next bytes are in memory meanwhile."""
MOST: Final = 1 << 46
"""Bytes that a body may announce."""
CHUNK: Final = 256 << 10
"""Bytes that are joined to one message: a message costs as much as copying that."""


IM: Final = "vaultfs-delta"
"""The instance manipulation (RFC 3229) that this server knows."""
_VERSION_TAG: Final = re.compile(r'"v([0-9]{1,18})"')


class Download(Response):
    """Bytes that are sent as they are read; cut off, never ended, if it cannot be read on."""

    def __init__(
        self, open_: Callable[[AsyncExitStack], Any], status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        if "Content-Length" not in headers:
            del self.headers["Content-Length"]  # that of the body which there is not here
        self._open = open_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            async with AsyncExitStack() as stack:
                parts = await self._open(stack)
                async with aclosing(_joined(parts)) as pieces:
                    first = await anext(pieces, b"")  # what is wrong with it is told by a status
                    await send(self._start)
                    while first and scope["method"] != "HEAD":
                        await _send_part(send, first)
                        first = await anext(pieces, b"")
            await send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()

    @property
    def _start(self) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


async def _send_part(send: Send, body: Buffer) -> None:
    """Send a part of a body that goes on. Raises `TooSlow` if nobody takes it."""
    with anyio.move_on_after(STALLED) as patience:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    if patience.cancelled_caught:
        raise TooSlow(f"nothing of a download was taken for {STALLED} seconds")


async def _joined(parts: AsyncIterator[list[Buffer]]) -> AsyncGenerator[Buffer, None]:
    """The pieces of `parts`, small ones joined."""
    async for part in parts:
        held: list[Buffer] = []
        size = 0
        for piece in part:
            held.append(piece)
            size += len(piece)
            if size >= CHUNK:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, size = [], 0
        if size:
            yield b"".join(held)


async def get_file(call: Call) -> Response:
    """The bytes of a file, or one range of them."""
    files = call.files
    node, version = await files.version(call.user, call.address, call.number("version"))
    etag = content_etag(version.id)
    headers = headers_of(node, version, etag)
    _check_match(call, etag)
    if listed(call.header("if-none-match"), etag):
        del headers["Content-Length"], headers["Content-Type"]
        return Response(status_code=304, headers=headers)
    base = _delta_base(call)
    if base is not None:
        return await _changed(call, node, version, headers, base)
    span = _range(call, version.size, etag)
    if span is None:
        return _out_of_range(call, version.size)
    start, stop, partial = span
    headers["Content-Length"] = str(stop - start)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{version.size}"
    status = 206 if partial else 200
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers)

    async def open_(stack: AsyncExitStack) -> AsyncIterator[list[Buffer]]:
        reading = files.read(node.tree, version, start, stop)
        return await stack.enter_async_context(reading)

    return Download(open_, status, headers)


def _delta_base(call: Call) -> VersionId | None:
    """The version that the client has, if it takes a delta from it (RFC 3229)."""
    wanted = (call.header("a-im") or "").split(",")
    if call.request.method != "GET" or call.header("range") is not None:
        return None
    if IM not in {each.partition(";")[0].strip().lower() for each in wanted}:
        return None
    found = _VERSION_TAG.search(call.header("if-none-match") or "")
    return None if found is None else VersionId(int(found[1]))


async def _changed(
    call: Call, node: Node, version: Version, headers: dict[str, str], base: VersionId
) -> Response:
    """The delta from `base`, or where there is none the file, and how that came."""
    deltas = call.server.vault.deltas
    stack = AsyncExitStack()
    try:
        offer = await stack.enter_async_context(deltas.offer(call.user, node, base, version))
        plan, version, pieces = offer.plan, offer.target, offer.pieces
        headers |= digest_header(version)
        headers["Vary"] = "A-IM, If-None-Match"
        headers["Vaultfs-Delta"] = f"{plan.way}; depth={plan.depth}; reason={plan.reason}"
        if pieces is None:
            await stack.aclose()
            return _whole(call, node, version, headers)
    except BaseException:
        await stack.aclose()
        raise
    headers |= {"IM": IM, "Delta-Base": content_etag(base), "Content-Type": DELTA}
    headers["Vaultfs-Size"] = str(version.size)
    del headers["Content-Length"]
    if offer.size is not None:
        headers["Content-Length"] = str(offer.size)

    async def open_(sending: AsyncExitStack) -> AsyncIterator[list[Buffer]]:
        sending.push_async_callback(stack.aclose)
        return ([piece] async for piece in pieces)

    return Download(open_, 226, headers)


def _whole(call: Call, node: Node, version: Version, headers: dict[str, str]) -> Response:
    async def open_(stack: AsyncExitStack) -> AsyncIterator[list[Buffer]]:
        return await stack.enter_async_context(call.files.read(node.tree, version))

    return Download(open_, 200, headers)


def headers_of(node: Node, version: Version, etag: str) -> dict[str, str]:
    """What a version is, as the headers of an answer."""
    kind = mimetypes.guess_type(node.name)[0] or "application/octet-stream"
    found = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": kind,
        "Content-Length": str(version.size),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(node.name, safe='')}",
        "Content-Security-Policy": "sandbox",
        "Last-Modified": version.created.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "Cache-Control": "private, no-cache",
        "Vaultfs-Version": str(version.number),
        "Vaultfs-Created": str(version.created_us),
        "Vaultfs-Node": f"{node.id}; revision={node.revision}",
    }
    if version.mtime_us is not None:
        found["Vaultfs-Mtime"] = str(version.mtime_us)
    if version.mode is not None:
        found["Vaultfs-Mode"] = f"{version.mode:o}"
    return found | digest_header(version)


def digest_header(version: Version) -> dict[str, str]:
    """`Repr-Digest`, if the digest of a version is verified."""
    if version.verified is None:
        return {}
    return {"Repr-Digest": f"blake3=:{b64encode(version.verified).decode()}:"}


def _check_match(call: Call, etag: str) -> None:
    match = call.header("if-match")
    if match is not None and not listed(match, etag, weak=False):
        raise VersionMismatch(f"it has {etag} by now", expected=None, found=None)


def _range(call: Call, size: int, etag: str) -> tuple[int, int, bool] | None:
    """Start, stop and whether that is a part; None if it cannot be had (RFC 9110, 14).

    More than one range, or a unit that is not bytes, is answered with the whole.
    """
    text = call.header("range")
    condition = call.header("if-range")
    if call.request.method == "HEAD":  # ranges are for GET alone
        return 0, size, False
    if text is None or (condition is not None and condition.strip() != etag):
        return 0, size, False
    unit, _, spec = text.partition("=")
    first, dash, last = spec.strip().partition("-")
    numbers = [each for each in (first, last) if each]
    plain = all(each.isascii() and each.isdecimal() and len(each) < 100 for each in numbers)
    if unit.strip() != "bytes" or not dash or not numbers or not plain or "," in spec:
        return 0, size, False
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return 0, size, False
    return (start, stop, True) if start < stop else None


def _out_of_range(call: Call, size: int) -> Response:
    text = f"it has {size} bytes, and none of those that are asked for"
    found = problem(416, "out_of_range", text, call.request_id)
    return answer(found, {"Content-Range": f"bytes */{size}"})


# Taking in


class BodySource:
    """The body of a request as a `Source`; its digests are checked before its end is told."""

    broken: VaultError | None = None
    """Why it ended, if what came before that is to be kept."""

    def __init__(self, call: Call) -> None:
        self._receive = call.request.receive
        self._rest = memoryview(b"")
        self._more = True
        self._digests = _wanted_digests(call.header("content-digest"))

    async def readinto(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end. Raises `InvalidField`, `SourceChanged`."""
        filled = 0
        try:
            with anyio.fail_after(IDLE) as patience:
                while filled < len(view) and await self._any():
                    part = self._rest[: len(view) - filled]
                    view[filled : filled + len(part)] = part
                    filled += len(part)
                    self._rest = self._rest[len(part) :]
                    if self._more:  # a timer costs as much as a copy of 100 KB
                        patience.deadline = anyio.current_time() + IDLE
        except TimeoutError:
            self._break(SourceChanged(f"nothing came for {IDLE} seconds: nothing was stored"))
        except SourceChanged as error:
            self._break(error)
        for _, hasher, _ in self._digests:
            await hashing.see(hasher, view[:filled])
        if filled < len(view) and self.broken is None:
            self._check()
        return filled

    def _break(self, error: VaultError) -> None:
        """It ends here, and should not."""
        raise error

    async def _any(self) -> bool:
        """Whether there are more bytes; they are in `_rest` then."""
        while not self._rest and self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise SourceChanged("the client went away: nothing was stored")
            self._rest = memoryview(message.get("body", b""))
            self._more = message.get("more_body", False)
        return bool(self._rest)

    def _check(self) -> None:
        for name, hasher, wanted in self._digests:
            if hasher.digest() != wanted:
                raise InvalidField(f"the body does not have its {name}: nothing was stored")


class UploadBody(BodySource):
    """A body of which what has come is kept, however it ends."""

    def _break(self, error: VaultError) -> None:
        self.broken, self._more = error, False


_HASHERS: Final[dict[str, Callable[[], hashing.Hasher]]] = {"sha-256": sha256, "blake3": blake3}


def _wanted_digests(header: str | None) -> list[tuple[str, hashing.Hasher, bytes]]:
    """The digests that `Content-Digest` (RFC 9530) names and this release knows."""
    found: list[tuple[str, hashing.Hasher, bytes]] = []
    for item in (header or "").split(","):
        name, _, value = item.strip().partition("=")
        if name.lower() in _HASHERS:
            try:
                wanted = b64decode(value.strip().strip(":"), validate=True)
            except ValueError:
                raise InvalidField(f"Content-Digest: {name} has no base64 between colons") from None
            found.append((name.lower(), _HASHERS[name.lower()](), wanted))
    return found


async def put_file(call: Call) -> Response:
    """The body becomes the newest version of the file."""
    if call.header("content-range") is not None:  # as `curl -C` sends it
        raise InvalidField("a PUT has the whole file, no Content-Range: /v1/uploads takes parts")
    coding = call.header("content-encoding") or "identity"
    if coding.lower() != "identity":
        raise WrongMedia(f"Content-Encoding: {coding} is not undone: send the file plain")
    preconditions = await call.preconditions(call.address)
    length = call.length
    if length is not None and length > MOST:
        raise TooLarge(f"a body of {length} bytes: {MOST} is the most")
    large = length is None or length > SMALL
    async with call.server.share_of(call.user.id) if large else nullcontext():
        result = await call.files.put(
            call.user,
            call.address,
            BodySource(call),
            size=length,
            origin=origin_of(call),
            preconditions=preconditions,
            parents=call.flag("parents"),
        )
    return stored(call, result)


def stored(call: Call, result: Result) -> Response:
    """The answer to whoever has stored a version."""
    node = result.node
    assert node is not None
    made = node.number == 1 and result.count == 1
    headers = {"ETag": content_etag(node.version), "Vaultfs-Changed": str(result.count)}
    return call.json(node_out(node, call.address.path), 201 if made else 200, headers)


def origin_of(call: Call) -> Origin:
    """Where the file came from, as the request tells."""
    wrong = "Vaultfs-Mtime is microseconds, Vaultfs-Mode octal digits"
    return read_origin(call.header("vaultfs-mtime"), call.header("vaultfs-mode"), wrong)


def read_origin(mtime: str | None, mode: str | None, wrong: str) -> Origin:
    """An origin of the texts that a request has. Raises `InvalidField` that says `wrong`."""
    if mtime is not None and not _MICROSECONDS.fullmatch(mtime):
        raise InvalidField(wrong)
    if mode is not None and not _OCTAL.fullmatch(mode):
        raise InvalidField(wrong)
    return Origin(None if mtime is None else int(mtime), None if mode is None else int(mode, 8))


_MICROSECONDS: Final = re.compile(r"-?[0-9]{1,18}")
_OCTAL: Final = re.compile(r"[0-7]{1,4}")


_ORIGIN = (
    Parameter("Vaultfs-Mtime", "When it was modified: microseconds since 1970.", where="header"),
    Parameter("Vaultfs-Mode", "Its permission bits, octal.", where="header"),
)
_RANGE = (
    VERSION,
    Parameter("Range", "One range of bytes.", where="header"),
    Parameter("If-Range", "The entity tag that the range is of.", where="header"),
    IF_MATCH,
    Parameter("If-None-Match", "Entity tags that the client has.", where="header"),
    Parameter("A-IM", "`vaultfs-delta`: a delta from the version the client has.", where="header"),
)
_BYTES = "application/octet-stream"
_PATH = "/v1/files/{user}/{path:path}"

ROUTES: Final = (
    Route(
        *("GET", _PATH, get_file, "getFile", "Read a file, any version, any range."),
        scope=TokenScope.READ,
        answer=_BYTES,
        parameters=_RANGE,
        failures=(206, 226, 304, 409, 412, 416),
    ),
    Route(
        *("HEAD", _PATH, get_file, "headFile", "What reading it would say."),
        scope=TokenScope.READ,
        parameters=_RANGE,
        failures=(304, 409, 412, 416),
    ),
    Route(
        *("PUT", _PATH, put_file, "putFile", "Store a new version."),
        scope=TokenScope.WRITE,
        body=_BYTES,
        answer=NodeOut,
        status=201,
        parameters=(
            Parameter("parents", "Make missing folders.", "boolean"),
            Parameter("Content-Digest", "sha-256 or blake3 of the body.", where="header"),
            IF_MATCH,
            IF_NONE_MATCH,
            WITH_LOCK,
            *_ORIGIN,
        ),
        failures=(200, 409, 412, 415, 507),
    ),
)

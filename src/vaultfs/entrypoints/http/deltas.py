"""`/v1/deltas` and `/v1/signatures`: a new version as the difference to the newest one."""

import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, closing, contextmanager
from functools import partial
from typing import Final, Literal

import anyio
import msgspec
from anyio import to_thread
from starlette.responses import Response

from vaultfs.adapters.files import IterableSource
from vaultfs.domain.deltacodec import MEDIA_TYPE
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import (
    Corrupt,
    DamagedContent,
    InvalidField,
    TooLarge,
    Unsupported,
    VersionMismatch,
)
from vaultfs.domain.nodes import Node, TreeId, Version, owner_of
from vaultfs.domain.services.reader import Wanted
from vaultfs.domain.services.rebuilding import PIECE, Rebuilding, chained, is_between_images
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.signatures import MOST_RANGES, PIECES, pieces_of, write_pieces, write_units
from vaultfs.domain.tokens import Scope as TokenScope
from vaultfs.domain.zipimages import image_units
from vaultfs.entrypoints.http.bases import VaultBase
from vaultfs.entrypoints.http.calls import IF_MATCH, VERSION, WITH_LOCK, Call, Parameter, Route
from vaultfs.entrypoints.http.contents import BodySource, headers_of, origin_of, stored
from vaultfs.entrypoints.http.wire import NodeOut, content_etag

MOST_SIGNED: Final = 64 << 20
"""Bytes of ranges whose pieces are told with one request."""
BETWEEN: Final = 512 << 10
"""Bytes that are read with two ranges that they stand between."""
SPAN: Final = 4 << 20
"""Bytes of ranges that are read together."""
MOST_IMAGES: Final = 4 << 20
"""Bytes of a delta between images, which is held in memory."""
WORK: Final = 5.0
"""Seconds of a processor that it may take to pack an image."""
MEAN: Final = 16
"""Bytes that the steps of a delta lead to in the mean, at the least."""


async def take_delta(call: Call) -> Response:
    """What the delta leads to becomes the newest version, if the base still is."""
    wanted = await call.preconditions(call.address)
    if wanted.if_version is None:
        raise InvalidField("a delta needs If-Match, with the entity tag of the version it is from")
    node, version = await call.files.version(call.user, call.address)
    if version.id != wanted.if_version:
        raise _changed(call, version)
    version = await call.server.vault.deltas.known(version)
    if version.verified is None:
        raise Unsupported("the digest of the base is not known yet: send the whole file")
    async with task_group() as tasks, call.server.share_of(call.user.id):
        with closing(VaultBase(call.files, node.tree, version, version.verified, tasks)) as base:
            async with aclosing(_rebuilt(call, base)) as pieces:
                result = await call.files.put(
                    call.user,
                    call.address,
                    IterableSource(pieces),
                    origin=origin_of(call),
                    preconditions=wanted,
                )
        tasks.cancel_scope.cancel()  # nobody waits for what is read ahead
    return stored(call, result)


async def _rebuilt(call: Call, base: VaultBase) -> AsyncGenerator[bytes, None]:
    """The new content. What is wrong with the delta is wrong with the request."""
    with _as_field():
        async with aclosing(_body(call)) as body:
            began = await anext(body, b"")
            way = _from_image if is_between_images(began) else _from_blocks
            async with aclosing(way(call, base, chained(began, body))) as made:
                async for piece in made:
                    yield piece


async def _from_blocks(
    _: Call, base: VaultBase, body: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(Rebuilding(base, mean=MEAN).run(body)) as made:
        async for piece in made:
            yield piece


async def _from_image(
    call: Call, base: VaultBase, body: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    """A zip file from the delta to its image: it is in memory until it is stored."""
    server = call.server
    try:
        server.images.acquire_nowait()
    except anyio.WouldBlock:
        raise Unsupported("others have zip files made just now: send the whole file") from None
    try:
        data = bytearray()
        async for piece in body:
            data += piece
            if len(data) > MOST_IMAGES:
                raise TooLarge(f"a delta between images of more than {MOST_IMAGES} bytes")
        rebuilding = Rebuilding(base, images=True, tired=_after(WORK), mean=MEAN)
        async with server.vault.deltas.differ.working:
            made = [piece async for piece in rebuilding.run(chained(bytes(data)))]
        for piece in made:
            yield piece
    finally:
        server.images.release()


def _after(seconds: float) -> Callable[[], bool]:
    """Whether the thread that asks has worked for so long since it asked first."""
    ends: float | None = None

    def over() -> bool:
        nonlocal ends
        now = time.thread_time()
        ends = now + seconds if ends is None else ends
        return now > ends

    return over


async def _body(call: Call) -> AsyncGenerator[bytes, None]:
    source = BodySource(call)
    filled = PIECE
    while filled == PIECE:
        buffer = bytearray(PIECE)
        filled = await source.readinto(memoryview(buffer))
        if filled:
            yield bytes(memoryview(buffer)[:filled])


class RangesIn(msgspec.Struct, forbid_unknown_fields=True):
    """Ranges of bytes, `[start, stop)`, in order."""

    ranges: list[tuple[int, int]] = []
    mean: Literal[256, 512, 4096] = 512
    """Bytes of a piece in the mean."""
    codes: bytes | None = None
    """How the version, a zip file, is laid open: the ranges are those of its image then, and
    without some it is the units of the whole image that are told."""


async def signature(call: Call) -> Response:
    """Lengths and short digests of a version's chunks, for who has another one."""
    node, version = await call.files.version(call.user, call.address, call.number("version"))
    _must_match(call, version)
    units: list[tuple[bytes, int]] = []
    owner = owner_of(node.tree)
    if call.flag("members"):
        with _as_field():
            units = await call.server.vault.deltas.differ.members(owner, version.manifest)
        return Response(write_units(units), headers=_headers(node, version))
    version = await call.server.vault.deltas.known(version)  # nobody makes a delta without
    entries = call.server.vault.reader.entries(owner, version.manifest, 0, version.size)
    async with aclosing(entries):
        async for _, (digest, length) in entries:
            units.append((digest, length))
    return Response(write_units(units), headers=_headers(node, version))


async def finer_signature(call: Call) -> Response:
    """The same of small pieces, in some ranges of a version."""
    body = await call.body(RangesIn)
    node, version = await call.files.version(call.user, call.address, call.number("version"))
    _must_match(call, version)
    if body.codes is not None:
        return await _image_signature(call, node, version, body)
    if len(body.ranges) > MOST_RANGES:
        raise TooLarge(f"{len(body.ranges)} ranges: {MOST_RANGES} is the most")
    _check_ranges(body.ranges, version.size)
    found = bytearray()
    async with aclosing(_read_ranges(call, node.tree, version, body.ranges)) as groups:
        async for group in groups:
            found += await to_thread.run_sync(_signed, group, body.mean)
    return Response(bytes(found), headers=_headers(node, version))


async def _read_ranges(
    call: Call, tree: TreeId, version: Version, ranges: Sequence[tuple[int, int]]
) -> AsyncGenerator[list[bytes], None]:
    """The bytes of ranges of a version, some at a time.

    All are read as one stream; what stands between two that are near each other is read too,
    rather than the chunk that both are in twice.
    """
    reader, owner = call.server.vault.reader, owner_of(tree)
    spans = list(_spans(ranges))

    async def wanted() -> AsyncGenerator[Wanted, None]:
        for span in spans:
            async for each in reader.wanted(owner, version.manifest, span[0][0], span[-1][1]):
                yield each

    async with reader.chunks(owner, wanted()) as parts:
        left, held, size = deque(spans), list[Buffer](), 0
        async for part in parts:
            for piece in part:
                held.append(piece)
                size += len(piece)
                (begun, _), (_, end) = left[0][0], left[0][-1]
                if size == end - begun:  # no piece is of two spans
                    data = b"".join(held)
                    held, size = [], 0
                    yield [data[start - begun : stop - begun] for start, stop in left.popleft()]


def _spans(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbours among `ranges`, together."""
    span: list[tuple[int, int]] = []
    for start, stop in ranges:
        if span and (start - span[-1][1] > BETWEEN or stop - span[0][0] > SPAN):
            yield span
            span = []
        span.append((start, stop))
    if span:
        yield span


def _check_ranges(ranges: Sequence[tuple[int, int]], size: int) -> None:
    end = total = 0
    for start, stop in ranges:
        if not end <= start < stop <= size:
            raise InvalidField("ranges are in order, do not overlap and end with the file")
        end, total = stop, total + stop - start
    if total > MOST_SIGNED:
        raise TooLarge(f"ranges of {total} bytes: {MOST_SIGNED} is the most")


async def _image_signature(call: Call, node: Node, version: Version, asked: RangesIn) -> Response:
    codes = asked.codes or b""
    sign = partial(_sign_image, asked, version.size)
    differ = call.server.vault.deltas.differ
    with _as_field():
        digest, size, units = await differ.signed_image(
            owner_of(node.tree), version.manifest, codes, sign
        )
    headers = _headers(node, version)
    headers |= {"Vaultfs-Image-Size": str(size), "Vaultfs-Image-Digest": f"blake3={digest.hex()}"}
    return Response(units, headers=headers)


def _sign_image(asked: RangesIn, size: int, image: bytes) -> bytes:
    _check_ranges(asked.ranges, len(image))
    if asked.ranges:
        return _signed([image[start:stop] for start, stop in asked.ranges], asked.mean)
    return write_units(image_units(image, asked.codes or b"", size))


def _signed(ranges: Sequence[bytes], mean: int) -> bytes:
    cut = PIECES[mean]
    return b"".join(write_pieces(pieces_of(data, cut)) for data in ranges)


@contextmanager
def _as_field() -> Generator[None, None, None]:
    """Raise `InvalidField` for a delta that is wrong, for what is no zip file, and for one that
    is not laid open so: that is the client's, unlike a version that is damaged.
    """
    try:
        yield
    except DamagedContent:
        raise
    except Corrupt as error:
        raise InvalidField(error.message) from error


def _must_match(call: Call, version: Version) -> None:
    match = call.header("if-match")
    if match is not None and content_etag(version.id) not in match:
        raise _changed(call, version)


def _changed(call: Call, version: Version) -> VersionMismatch:
    message = f"{call.address} is version {version.number} by now: somebody else changed it"
    return VersionMismatch(message, expected=None, found=version.id)


def _headers(node: Node, version: Version) -> dict[str, str]:
    headers = headers_of(node, version, content_etag(version.id))
    headers["Vaultfs-Size"] = headers.pop("Content-Length")
    headers["Content-Type"] = _BYTES
    return headers


_BYTES: Final = "application/octet-stream"
MEMBERS: Final = Parameter(
    "members", "Those of a zip file's packed members, rather than of chunks.", "boolean"
)
_SIGNATURES: Final = "/v1/signatures/{user}/{path:path}"
ROUTES: Final = (
    Route(
        *("GET", _SIGNATURES, signature, "getSignature", "What chunks a version is made of."),
        scope=TokenScope.READ,
        answer=_BYTES,
        parameters=(VERSION, IF_MATCH, MEMBERS),
        failures=(409, 412),
    ),
    Route(
        *("POST", _SIGNATURES, finer_signature, "getFinerSignature"),
        "The same of small pieces, in some ranges.",
        scope=TokenScope.READ,
        body=RangesIn,
        answer=_BYTES,
        parameters=(VERSION, IF_MATCH),
        failures=(409, 412),
    ),
    Route(
        *("POST", "/v1/deltas/{user}/{path:path}", take_delta, "takeDelta"),
        "Store a new version as the difference to the newest one.",
        scope=TokenScope.WRITE,
        body=MEDIA_TYPE,
        answer=NodeOut,
        parameters=(
            Parameter("Content-Digest", "sha-256 or blake3 of the body.", where="header"),
            IF_MATCH,
            WITH_LOCK,
        ),
        failures=(409, 412, 501, 507),
    ),
)

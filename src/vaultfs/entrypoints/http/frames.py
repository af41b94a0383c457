"""`/v1/frames`: many small files with one request, as chunks, in and out."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

from starlette.responses import Response

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import ChunksMissing, Exists, VaultError, VersionMismatch
from vaultfs.domain.frames import MEDIA_TYPE
from vaultfs.domain.names import split_path
from vaultfs.domain.services.intake import Taken
from vaultfs.domain.services.outlet import Outlet
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import Call, Parameter, Route
from vaultfs.entrypoints.http.contents import BodySource, Download
from vaultfs.entrypoints.http.problems import problem_of
from vaultfs.entrypoints.http.wire import FrameOut, FramesOut


async def take_frames(call: Call) -> Response:
    """Commit the files whose chunks are in the body; a status for each (`docs/format.md`)."""
    taken = await call.server.vault.intake.take(
        call.user,
        call.tree,
        BodySource(call),
        size=call.length,
        files=call.files,
    )
    return call.json(FramesOut([_told(call, each) for each in taken]))


def _told(call: Call, taken: Taken) -> FrameOut:
    path, result = taken.entry.path, taken.result
    if isinstance(result, VaultError):
        return _refused(call, path, result, create_only=taken.entry.preconditions.if_absent)
    node = result.node
    assert node is not None
    made = node.is_folder or (node.number == 1 and result.count == 1)
    return FrameOut(
        path,
        201 if made else 200,
        result.count,
        node.id,
        node.revision,
        node.version,
        node.number or None,
        node.size,
    )


def _refused(call: Call, path: str, error: VaultError, *, create_only: bool) -> FrameOut:
    if create_only and isinstance(error, Exists):  # as a whole PUT tells it
        error = VersionMismatch(error.message, expected=None, found=None)
    found = problem_of(error, call.request_id)
    missing = [each.hex() for each in error.digests] if isinstance(error, ChunksMissing) else None
    return FrameOut(path, found.status, code=found.code, detail=found.detail, missing=missing)


async def give_frames(call: Call) -> Response:
    """Everything below a folder in one stream, small files with their chunks."""
    address, after = call.address, split_path(call.query.get("after", "/"))
    outlet = Outlet(call.files, call.server.vault.reader)

    async def open_(stack: AsyncExitStack) -> AsyncIterator[list[Buffer]]:
        frames = outlet.frames(call.user, address, after=after)
        stack.push_async_callback(frames.aclose)
        return frames

    return Download(open_, 200, {"Content-Type": MEDIA_TYPE, "Cache-Control": "private, no-cache"})


ROUTES: Final = (
    Route(
        *("GET", "/v1/frames/{user}/{path:path}", give_frames, "giveFrames"),
        "Get everything below a folder.",
        scope=Scope.READ,
        answer=MEDIA_TYPE,
        parameters=(
            Parameter("after", "The path below the folder that came last, to go on behind it."),
        ),
        failures=(409,),
    ),
    Route(
        *("POST", "/v1/frames/{user}", take_frames, "takeFrames", "Store many small files."),
        scope=Scope.WRITE,
        body=MEDIA_TYPE,
        answer=FramesOut,
        parameters=(Parameter("Content-Digest", "sha-256 or blake3 of the body.", where="header"),),
        failures=(409, 501),
    ),
)

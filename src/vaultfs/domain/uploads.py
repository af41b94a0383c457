r"""Upload sessions: what a content is from its first byte until it is a version.

    create -> attach -> append ... append -> finish
                 \\-> abort, or left alone until it expires

Theory of operation. A session is a row of the catalog, so it outlives the process that
takes the bytes in, and any process can go on with it. What it holds is a list of chunks
that are durable in packs, and a tail: bytes behind the last cut, kept in the row, since
where they are to be cut depends on what follows. `offset` counts both; it never goes back.

Who wants to append attaches first, which raises `fence`; every change of the session
names the fence it was made under. So of two writers only the later one can write: the
earlier learns it at its next append, with nothing of its bytes counted. An append also
names the number of bytes that were cut before it: one that is not the next is refused.

A session ends once: as a version (or, with no place to go to, as a part of another
content), aborted, or expired. Its row is kept for a while to tell so.

The functions here are the state machine: they take a session as it is and give it as it
is to be, or raise. They have no clock; the catalog calls them in its transaction.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from vaultfs.domain.chunks import DEFAULT_CHUNKING
from vaultfs.domain.errors import (
    Fenced,
    OffsetMismatch,
    TooLarge,
    UploadExpired,
    UploadGone,
)
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import NodeId, TreeId, UserId, VersionId

IDLE_US: Final = 24 * 3600 * 1_000_000
"""A session that nobody appends to expires after so many microseconds."""
LIFE_US: Final = 7 * IDLE_US
"""However busy, it expires after so many."""
KEPT_US: Final = IDLE_US
"""How long the row of a session that has ended tells what became of it."""
MAX_TAIL: Final = DEFAULT_CHUNKING.maximum
"""Bytes."""
MAX_NOTES: Final = 16 * 1024
"""Bytes of what a client may have the session remember."""


class UploadState(StrEnum):
    """How far a session is."""

    OPEN = "open"
    FINISHED = "finished"
    ABORTED = "aborted"
    EXPIRED = "expired"


class Upload(NamedTuple):
    """A session. Times are microseconds since 1970, UTC; sizes are bytes."""

    id: str
    """Not to be guessed; 1 to 64 characters."""
    tree: TreeId
    owner: UserId
    """Who made it; nobody else can see it."""
    path: Path | None
    """Where the content is to go; a part of another content goes nowhere by itself."""
    state: UploadState
    fence: int
    """How many writers there have been."""
    size: int | None
    """Of the whole content, once that is known."""
    cut: int
    """Bytes that are in chunks."""
    tail: int
    """Bytes behind them, which are in the row."""
    notes: str
    """A JSON object: what finishing needs (`services.uploads`), and what the client said."""
    created_us: int
    touched_us: int
    """When it was last appended to."""
    node: NodeId | None = None
    version: VersionId | None = None
    """What it became."""
    made: int = 0
    """Versions that finishing it just now has made: 0 or 1. Not stored."""

    @property
    def offset(self) -> int:
        """Bytes that are durable: where the next byte goes."""
        return self.cut + self.tail

    @property
    def expires_us(self) -> int:
        """When it ends by itself, unless it is appended to before."""
        return min(self.touched_us + IDLE_US, self.created_us + LIFE_US)

    @property
    def complete(self) -> bool:
        """Whether all bytes have come."""
        return self.offset == self.size

    @property
    def joinable(self) -> bool:
        """Whether it is a part that is finished."""
        return self.path is None and self.state is UploadState.FINISHED


def holder_of(user: UserId) -> str:
    """What holds the pins of chunks that a user was promised without a session."""
    return f"user-{user}"


def must_be_open(upload: Upload, now_us: int) -> None:
    """Raises `UploadExpired` or `UploadGone` unless `upload` can be changed."""
    if upload.state is UploadState.EXPIRED or (
        upload.state is UploadState.OPEN and now_us >= upload.expires_us
    ):
        raise UploadExpired(f"upload {upload.id} has expired: begin anew")
    if upload.state is not UploadState.OPEN:
        raise UploadGone(f"upload {upload.id} is {upload.state}: begin anew")


def attach(upload: Upload, now_us: int) -> Upload:
    """The session with a new writer, who is the only one from now on."""
    must_be_open(upload, now_us)
    return upload._replace(fence=upload.fence + 1)


def declare(upload: Upload, size: int, now_us: int) -> Upload:
    """The session with its size said. Raises `OffsetMismatch` if another was said before."""
    must_be_open(upload, now_us)
    if upload.size not in {None, size}:
        raise OffsetMismatch(
            f"upload {upload.id} was said to have {upload.size} bytes, not {size}",
            offset=upload.offset,
        )
    _must_fit(upload, upload.offset, size)
    return upload._replace(size=size)


def append(upload: Upload, *, fence: int, at: int, cut: int, tail: int, now_us: int) -> Upload:
    """The session with `cut` more bytes in chunks, from `at` on, and with another tail.

    Raises `Fenced` if there is a later writer, `OffsetMismatch` if it does not follow what
    is there, and `TooLarge` if there would be more bytes than were said.
    """
    must_be_open(upload, now_us)
    if fence != upload.fence:
        raise Fenced(f"upload {upload.id} was taken over by another writer: ask for its offset")
    if at != upload.cut or at + cut + tail < upload.offset or not 0 <= tail <= MAX_TAIL:
        raise OffsetMismatch(f"upload {upload.id} is at byte {upload.offset}", offset=upload.offset)
    _must_fit(upload, at + cut + tail, upload.size)
    return upload._replace(cut=at + cut, tail=tail, touched_us=max(now_us, upload.touched_us))


def _must_fit(upload: Upload, offset: int, size: int | None) -> None:
    if size is not None and offset > size:
        raise TooLarge(f"upload {upload.id} was to have {size} bytes: {offset} are more")


def finish(
    upload: Upload, *, fence: int, now_us: int, node: NodeId | None, version: VersionId | None
) -> Upload:
    """The session, ended as that version, or as a part. Raises `OffsetMismatch` before its end."""
    must_be_open(upload, now_us)
    if fence != upload.fence:
        raise Fenced(f"upload {upload.id} was taken over by another writer: ask for its offset")
    if not upload.complete or upload.tail:
        raise OffsetMismatch(
            f"upload {upload.id} has {upload.offset} of {upload.size or 'unknown'} bytes",
            offset=upload.offset,
        )
    return upload._replace(
        state=UploadState.FINISHED, touched_us=now_us, node=node, version=version
    )


def abort(upload: Upload, now_us: int) -> Upload:
    """The session, given up. One that was given up already stays so; a part can be, finished
    or not.
    """
    if upload.state is UploadState.ABORTED:
        return upload
    if not upload.joinable:
        must_be_open(upload, now_us)
    return upload._replace(state=UploadState.ABORTED, touched_us=now_us, tail=0)


def expire(upload: Upload, now_us: int) -> Upload:
    """The session, ended by time if its time has come."""
    if upload.state is UploadState.OPEN and now_us >= upload.expires_us:
        return upload._replace(state=UploadState.EXPIRED, touched_us=now_us, tail=0)
    return upload


def forgettable(upload: Upload, now_us: int) -> bool:
    """Whether even the row can go."""
    return upload.state is not UploadState.OPEN and now_us >= upload.touched_us + KEPT_US

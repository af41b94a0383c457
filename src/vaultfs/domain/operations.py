"""The changes that can be made to a catalog, as values.

A `Unit` is a tuple of operations that happen together or not at all; a catalog is
given several units at once and answers with an outcome for each. Operations name
nodes by path (as of that point in the unit) or, where a path could not name them,
by id. What each refuses is said here once, for every catalog.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from attrs import field, frozen

from vaultfs.domain.access import Role
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import InvalidField, VaultError
from vaultfs.domain.manifests import Entry
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    UNKNOWN_ORIGIN,
    Content,
    Node,
    NodeId,
    Origin,
    Preconditions,
    TreeId,
    UserId,
    VersionId,
)
from vaultfs.domain.packs import PackEntry
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Token
from vaultfs.domain.uploads import Upload

if TYPE_CHECKING:  # most units come with no locks
    from vaultfs.domain.locknodes import Presented

MAX_COPY = 10_000
"""Nodes that one copy may make."""
MAX_METADATA = 16 * 1024
"""Bytes of JSON that a node's metadata may have."""


@frozen
class PutFile:
    """Make `content` the newest version of the file at `path`, which may be new.

    Putting what is there already makes no version, it only brings the origin up to
    date; the result counts the versions made, 0 or 1. `parents` makes missing folders.
    Refused with `ParentNotFound`, `NotAFolder` (a file stands where a folder has to),
    `IsAFolder`, `VersionMismatch`, `Exists` (only for `if_absent`), `QuotaExceeded`.
    """

    tree: TreeId
    path: Path
    content: Content
    origin: Origin = UNKNOWN_ORIGIN
    preconditions: Preconditions = NO_PRECONDITIONS
    parents: bool = False


@frozen
class RestoreVersion:
    """Make the content of version `number` the newest version of the file at `path` again.

    Refused with `NotFound`, `IsAFolder`, `VersionMismatch`, `QuotaExceeded`.
    """

    tree: TreeId
    path: Path
    number: int
    preconditions: Preconditions = NO_PRECONDITIONS


@frozen
class MakeFolder:
    """Make the folder `path`; `parents` makes missing ones above it.

    `exist_ok` accepts a folder that is there already. Refused with `ParentNotFound`,
    `NotAFolder`, `Exists`.
    """

    tree: TreeId
    path: Path
    parents: bool = False
    exist_ok: bool = False


@frozen
class Move:
    """Give the node at `source` the path `target`; one row, whatever it holds.

    `replace` sends what stands at the target to the trash first. Refused with
    `NotFound`, `ParentNotFound`, `NotAFolder`, `Exists`, `Cycle`, `VersionMismatch`.
    """

    tree: TreeId
    source: Path
    target: Path
    preconditions: Preconditions = NO_PRECONDITIONS
    replace: bool = False


@frozen
class Copy:
    """Make a copy of the node at `source`, with all below it, at `target`.

    No bytes are copied; each file gets its current content as version 1. With
    `replace`, a file at the target gets the content as a new version. `number`
    copies that version of a file. Refused as `Move` is, and with `TooLarge` above
    `MAX_COPY` nodes and `QuotaExceeded`.
    """

    tree: TreeId
    source: Path
    target: Path
    preconditions: Preconditions = NO_PRECONDITIONS
    replace: bool = False
    number: int | None = None


@frozen
class Delete:
    """Send the node at `path` to the trash; one row, whatever it holds.

    Refused with `NotFound`, `VersionMismatch`, and `FolderNotEmpty` unless `recursive`.
    """

    tree: TreeId
    path: Path
    preconditions: Preconditions = NO_PRECONDITIONS
    recursive: bool = False


@frozen
class Restore:
    """Bring `node` back from the trash, to `target` or to where it was.

    Refused with `NotFound` (not in this tree's trash), `ParentNotFound` (the folder it
    was in is gone), `Exists`.
    """

    tree: TreeId
    node: NodeId
    target: Path | None = None


@frozen
class Purge:
    """Forget `node`, which is in the trash, and what is below it; at most `limit` nodes.

    Deepest first, so that a part of it can be purged and the rest later: the result
    says how many nodes are left. Refused with `NotFound` (not in this tree's trash).
    """

    tree: TreeId
    node: NodeId
    limit: int = 10_000


@frozen
class Prune:
    """Forget old `versions` of `node`. The current one, and any that is not there, is left."""

    tree: TreeId
    node: NodeId
    versions: tuple[VersionId, ...]


@frozen
class SetMetadata:
    """Change the metadata of the node at `path` by a JSON merge patch (RFC 7396).

    Refused with `NotFound`, `VersionMismatch`, and `TooLarge` above `MAX_METADATA`.
    """

    tree: TreeId
    path: Path
    patch: str
    preconditions: Preconditions = NO_PRECONDITIONS


@frozen
class Grant:
    """Let the user named `user` read, or read and write, the node at `path` and all below it.

    Another role than the one that was granted before takes its place. One row, whatever the
    node holds. The owner alone may: refused with `NotFound` (the node, or the user),
    `VersionMismatch`, `Forbidden`, and `InvalidField` for the owner, who may do all anyhow.
    """

    tree: TreeId
    path: Path
    user: str
    role: Role
    preconditions: Preconditions = NO_PRECONDITIONS


@frozen
class Revoke:
    """Take back what `user` was granted on the node at `path`; what is granted above it stays.

    Refused as `Grant` is, and with `NotFound` if nothing was granted there.
    """

    tree: TreeId
    path: Path
    user: str
    preconditions: Preconditions = NO_PRECONDITIONS


@frozen
class AddUser:
    """Make a user and the user's empty tree. Refused with `Exists`."""

    name: str
    quota: int | None = None


@frozen
class SetRetention:
    """Say which old versions of a tree are to be kept. Refused with `NotFound`."""

    tree: TreeId
    retention: Retention


@frozen
class SetQuota:
    """Say how many bytes the versions of a tree may have; whoever asks, the caller has
    made sure that they may. Refused with `NotFound`.
    """

    tree: TreeId
    quota: int | None


@frozen
class AddToken:
    """Keep a token. Refused with `NotFound` (no such user) and `Exists`."""

    token: Token = field(repr=lambda token: f"<token {token.id}>")


@frozen
class RotateToken:
    """Give a token another secret; the one before is good until `until_us`, and may be given
    another time to expire. Refused with `NotFound`, also for one that was revoked.
    """

    owner: UserId
    id: str
    digest: bytes = field(repr=False)
    until_us: int
    expires_us: int | None


@frozen
class RevokeToken:
    """Make a token useless, for ever. Refused with `NotFound`."""

    owner: UserId
    id: str


@frozen
class TouchToken:
    """Note when a token was used. Nothing if it is not there."""

    id: str


@frozen
class BreakLock:
    """Take the lock with that token away from whoever has it. Refused with `NotFound`."""

    tree: TreeId
    token: int


@frozen
class RecordPack:
    """Say that a pack is durable in the store `backend`, and whose its chunks are.

    `claims` gives for a user the indexes in `entries` of the chunks that the user
    sent. Recording a pack again adds what is new in it. Refused with `Doomed` if a pack with
    that key was let go of, or rewritten.
    """

    key: Digest
    size: int
    crc32c: int | None
    backend: str
    entries: tuple[PackEntry, ...] = field(repr=lambda entries: f"<{len(entries)} entries>")
    claims: tuple[tuple[UserId, tuple[int, ...]], ...] = field(
        repr=lambda claims: f"<of {len(claims)} users>"
    )
    also: tuple[str, ...] = ()
    """Other stores that it is durable in."""
    epoch: int = 0
    """Of the placement that said which: see `domain.migration`. Refused with `PlacementChanged`
    if that is another by now, and the pack not in all stores that it has to be in."""

    @property
    def written(self) -> frozenset[str]:
        """All stores that it is durable in."""
        return frozenset((self.backend, *self.also))


@frozen
class ClaimChunks:
    """Say that `user` sent chunks that another user's packs already hold.

    Refused with `NotFound` when nobody has one of them any more.
    """

    user: UserId
    digests: tuple[Digest, ...] = field(repr=lambda digests: f"<{len(digests)} digests>")


@frozen
class CreateUpload:
    """Keep a session as it is: open, with nothing in it.

    Refused with `Exists` (the id), `NotFound` (no such tree), `QuotaExceeded` if its size
    is known and would not fit.
    """

    upload: Upload

    @property
    def tree(self) -> TreeId:
        return self.upload.tree


@frozen
class AttachUpload:
    """Be the session's only writer from now on; the result counts the writers: the new fence.

    Refused with `NotFound`, `UploadGone`, `UploadExpired`.
    """

    tree: TreeId
    id: str


@frozen
class DeclareUpload:
    """Say how many bytes the session is to have. Refused as `AttachUpload` is, with
    `OffsetMismatch` if another number was said, and with `TooLarge` if it has more already,
    `QuotaExceeded`.
    """

    tree: TreeId
    id: str
    size: int


@frozen
class AppendUpload:
    """Add `entries`, whose chunks are durable when this is, from byte `at` on, where the last
    chunk ended, and put `tail` behind them in the place of the tail that was there.

    Refused as `AttachUpload` is, with `Fenced`, `OffsetMismatch`, `TooLarge` (more bytes than
    were said), and with `QuotaExceeded` if the tree with all bytes of its open sessions would
    hold more than its quota: what was there before stays.
    """

    tree: TreeId
    id: str
    fence: int
    at: int
    entries: tuple[Entry, ...] = field(repr=lambda entries: f"<{len(entries)} entries>")
    tail: bytes = field(default=b"", repr=lambda tail: f"<{len(tail)} bytes>")


@frozen
class FinishUpload:
    """End the session: with what `put` does, or as a part of another content without it.

    The content of `put` is what the session has. Refused as `PutFile` is, as `AttachUpload`
    is, with `Fenced`, and with `OffsetMismatch` while bytes are missing or not yet cut. The
    session then stays open. The result is that of `put`.
    """

    tree: TreeId
    id: str
    fence: int
    put: PutFile | None = None


@frozen
class AbortUpload:
    """Give the session up; all that it holds is let go of. Nothing if it was given up before.

    Refused with `NotFound`, `UploadExpired`, and `UploadGone` if it is finished.
    """

    tree: TreeId
    id: str


@frozen
class ExpireUploads:
    """End the sessions of a tree whose time has come, let go of all that they, and the pins
    of its user that have run out, hold, and forget those that ended long ago; at most `limit`
    sessions.

    The result counts them.
    """

    tree: TreeId
    limit: int = 1000


@frozen
class PinChunks:
    """Keep the packs in which `user` has `digests` until `until_us`, for `holder`.

    Refused with `ChunksMissing`, which names those that the user does not have (any more), or
    has in a pack alone that was rewritten.
    A pin that is there already lasts until the later of the two times.
    """

    user: UserId
    holder: str
    digests: tuple[Digest, ...] = field(repr=lambda digests: f"<{len(digests)} digests>")
    until_us: int


@frozen
class SetDigest:
    """Say what the digest of a version was found to be, once all its bytes were read in order.

    It counts as verified from then on. If another was claimed, an audit row `false-claim`
    tells so. Nothing if the version is gone; the result counts the versions changed.
    """

    tree: TreeId
    version: VersionId
    digest: Digest


@frozen
class RecordDelta:
    """Keep where the bytes of a version come from in an older or newer one of the same file.

    Nothing if there is one between the two already, or if the target is gone. It stays when
    versions are pruned, whose clients it still leads on, and goes with the file. The result
    counts the deltas made.
    """

    tree: TreeId
    node: NodeId
    base: VersionId
    target: VersionId
    base_digest: Digest
    """Of the whole content of the base."""
    literal: int
    """Bytes of the target that are not in the base."""
    steps: bytes = field(repr=lambda steps: f"<{len(steps)} bytes>")
    """See `domain.deltas.encode`."""


FileOperation = (
    PutFile
    | RestoreVersion
    | MakeFolder
    | Move
    | Copy
    | Delete
    | Restore
    | Purge
    | Prune
    | SetMetadata
    | Grant
    | Revoke
)
AccountOperation = (
    AddUser
    | SetRetention
    | SetQuota
    | AddToken
    | RotateToken
    | RevokeToken
    | TouchToken
    | BreakLock
)
UploadOperation = (
    CreateUpload
    | AttachUpload
    | DeclareUpload
    | AppendUpload
    | FinishUpload
    | AbortUpload
    | ExpireUploads
)
StockOperation = RecordPack | ClaimChunks | PinChunks | SetDigest | RecordDelta
Operation = FileOperation | AccountOperation | UploadOperation | StockOperation


@frozen
class Unit:
    """Operations that happen together or not at all."""

    actor: UserId
    at_us: int
    """When the caller says it is: microseconds since 1970, UTC."""
    op_id: str
    """Names the unit for ever: unique, at most 64 characters."""
    operations: tuple[Operation, ...]
    presented: "tuple[Presented, ...]" = ()
    """The locks that the caller says it holds. Each operation is refused with `Locked` where
    somebody else has a lock on what it touches; with `StaleToken` if one of these is held no
    longer, and with `NotHeld` if they do not cover what it touches (`lockitems.needs`)."""
    relies: tuple[int, ...] = ()
    """Numbers of packs in which chunks of its contents were found, or put. Refused with
    `PacksGone` if one is there no longer, or was rewritten; one that is condemned is condemned
    no more. See `domain.collection`."""
    recorded: tuple[Digest, ...] = ()
    """Keys of packs that units before this one, in the same call, are to record. If one of them
    is refused, so is this, with `PacksGone`."""

    def __attrs_post_init__(self) -> None:
        if not self.op_id or len(self.op_id) > 64:
            raise InvalidField(f"{self.op_id!r} cannot be an operation id")

    def needing(self, relies: Collection[int] = (), recorded: tuple[Digest, ...] = ()) -> "Unit":
        """The same, which needs these packs besides.

        `evolve` takes five times as long, and there is a unit for every file.
        """
        return Unit(
            *(self.actor, self.at_us, self.op_id, self.operations, self.presented),
            tuple({*self.relies, *relies}) if relies else self.relies,
            (*self.recorded, *recorded),
        )


@frozen
class Result:
    """What an operation led to: the node as it then was, and a count where one is promised."""

    node: Node | None = None
    count: int = 0
    path: Path | None = None
    """Of the node, where the operation does not say it."""
    packs: tuple[int, ...] = ()
    """The numbers of the pack that was recorded, and of others that its chunks were in before."""


@frozen
class Done:
    """The unit is durable; a result for each operation."""

    results: tuple[Result, ...]


@frozen
class Refused:
    """The unit changed nothing, because of `error` in operation number `index`."""

    error: VaultError
    index: int = 0


Outcome = Done | Refused

"""What travels as JSON: the bodies of requests and of answers."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from vaultfs.domain.names import Path, format_path
from vaultfs.domain.nodes import Node, User, UserId, Version, moment
from vaultfs.domain.services.feed import Seen
from vaultfs.domain.tokens import Scope, Token
from vaultfs.domain.uploads import Upload
from vaultfs.ports.catalog import Audited, Granted, Trashed

ERROR_HEADER: Final = "Vaultfs-Error"
"""The code of a problem, for answers to HEAD, which have no body."""

_WHOSE: Final = re.compile(r"(?:tree|user) (\d{1,18}): ")
_ABOUT_USERS: Final = frozenset(
    {"set-quota", "set-retention", "break-lock", "add-token", "rotate-token", "revoke-token"}
)
"""What is done to a tree, or to a token of its user, which have one number."""

LOCK_HEADER: Final = "VaultFS-Lock-Token"
"""A lock that covers what a request writes; as often as there are locks."""


class Problem(msgspec.Struct, omit_defaults=True):
    """An error, as `application/problem+json` (RFC 9457)."""

    title: str
    status: int
    detail: str
    code: str
    """For programs: `not_found`, `version_mismatch`, ..."""
    request_id: str
    type: str = "about:blank"
    errors: list[dict[str, str]] = []
    """What is wrong with which part of a JSON body: `pointer`, as in `#/paths/0`, and `code`."""
    holders: list[dict[str, str]] = []
    """Of a lock in the way: which `owner` holds it, or waits for it, in which `mode`."""
    circle: list[dict[str, str]] = []
    """Of a deadlock: each `owner` waits for the `path` in `mode`, which `holder` has."""


class NodeOut(msgspec.Struct):
    """A file or folder as it stands now."""

    path: str
    name: str
    kind: str
    id: int
    revision: int
    version: int | None
    """The id of its content, as in the ETag of the content."""
    number: int | None
    """The number of its content, as in `?version=`."""
    size: int
    created: datetime
    modified: datetime
    metadata: dict[str, Any]
    etag: str
    """Of the node: `"r<revision>"`."""


class NodeList(msgspec.Struct):
    """A part of a folder's nodes, in the order of their names' NFC forms."""

    entries: list[NodeOut]
    next_cursor: str | None
    """For the next request; null at the end."""


class VersionOut(msgspec.Struct):
    """A content that a file has, or had."""

    number: int
    version: int
    size: int
    created: datetime
    blake3: str | None
    digest_state: str
    mtime_us: int | None
    mode: int | None


class VersionList(msgspec.Struct):
    """A part of a file's versions, newest first."""

    entries: list[VersionOut]
    next_cursor: str | None


class TrashedOut(msgspec.Struct):
    """A node in the trash, and where it was."""

    id: int
    path: str
    kind: str
    revision: int
    version: int | None
    number: int | None
    size: int
    created: datetime
    modified: datetime
    metadata: dict[str, Any]
    deleted: datetime


class TrashList(msgspec.Struct):
    """A part of the trash, in the order of ids."""

    entries: list[TrashedOut]
    next_cursor: str | None


class Transfer(msgspec.Struct, forbid_unknown_fields=True):
    """From where to where: `/path` in the caller's tree, or `user:/path`."""

    source: str
    target: str
    replace: bool = False
    """Send what stands at the target to the trash."""
    version: int | None = None
    """Copy this version of a file; not for moves."""


class RestoreIn(msgspec.Struct, forbid_unknown_fields=True):
    """Where a node of the trash is to go; where it was, if nothing is said."""

    target: str | None = None


class VersionIn(msgspec.Struct, forbid_unknown_fields=True):
    """Which version is to be the newest again."""

    number: int


class UserOut(msgspec.Struct):
    """Somebody who owns a tree."""

    name: str
    quota: int | None
    used: int


class UserList(msgspec.Struct):
    """All users."""

    entries: list[UserOut]


class UserIn(msgspec.Struct, forbid_unknown_fields=True):
    """A user to be made."""

    name: str
    quota: int | None = None


class QuotaIn(msgspec.Struct, forbid_unknown_fields=True):
    """The most bytes that the versions of a tree may have; null for no limit."""

    quota: int | None


class TokenOut(msgspec.Struct, omit_defaults=True):
    """A token; its secret only in the answer that makes it."""

    id: str
    name: str
    scopes: list[Scope]
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    token: str | None = None


class TokenList(msgspec.Struct):
    """The tokens of a user."""

    entries: list[TokenOut]


class TokenIn(msgspec.Struct, forbid_unknown_fields=True):
    """A token to be made."""

    name: str
    scopes: list[Scope]
    expires: datetime | None = None


class RotateIn(msgspec.Struct, forbid_unknown_fields=True):
    """How a token gets a new secret."""

    overlap_seconds: int = 86_400
    """How long the secret before stays good."""
    expires: datetime | None = None


class WhoAmI(msgspec.Struct):
    """Who the token belongs to, and what it allows."""

    user: UserOut
    token: str
    scopes: list[Scope]


class AuditOut(msgspec.Struct):
    """Something that was done to users, tokens or limits."""

    id: int
    at: datetime
    actor: int
    user: str | None
    """Who did it: the actor's name; null for the server itself."""
    kind: str
    subject: str
    tree: str | None
    """Whose tree or token it is, where the subject has the number of one."""


class AuditList(msgspec.Struct):
    """A part of the audit, oldest first."""

    entries: list[AuditOut]
    next_cursor: str | None


class CollectionOut(msgspec.Struct):
    """A collection of what nothing needed any more."""

    number: int
    begun: datetime | None
    ended: datetime | None
    complete: bool
    report: dict[str, Any]
    """What was condemned, discarded and rewritten: packs, and bytes."""


class CollectionList(msgspec.Struct):
    """The newest collections, newest first."""

    entries: list[CollectionOut]


class ScrubOut(msgspec.Struct):
    """A scrub."""

    number: int
    begun: datetime | None
    ended: datetime | None
    packs: int
    bytes_read: int
    findings: list[dict[str, Any]]


class ScrubList(msgspec.Struct):
    """The newest scrubs, newest first."""

    entries: list[ScrubOut]


class MigrationIn(msgspec.Struct, forbid_unknown_fields=True):
    """What is to become of the move to another store."""

    command: str
    """`start`, `pause`, `resume`, `throttle`, `dual`, `cutover`, `rollback`, `detach`, `retire`,
    `abort`, `end`, `retry` or `reconcile`."""
    store: str | None = None
    """Its name: of the store to move to, or of the one to retire."""
    level: str = "V2"
    """How sure cutover has to be: `V0` to `V3`."""
    if_epoch: int | None = None
    """Only if the migration is at this epoch."""
    bytes_per_second: int | None = None
    """For `start` and `throttle`: how fast all servers together may copy; null: unlimited."""
    objects_per_second: int | None = None
    """The same in packs."""


class MigrationFailure(msgspec.Struct):
    """A pack that could not be copied."""

    pack: str
    attempts: int
    error: str


class MigrationOut(msgspec.Struct):
    """How far the move to another store is; packs and bytes are counted, never guessed."""

    phase: str
    epoch: int
    source: str
    target: str | None
    paused: bool = False
    level: str = "V2"
    packs: int = 0
    size: int = 0
    copied_packs: int = 0
    copied_size: int = 0
    read_back: int = 0
    failed: int = 0
    bytes_per_second: int | None = None
    objects_per_second: int | None = None
    unaware: list[str] = []
    """Servers that run and were not told where the target is."""
    failures: list[MigrationFailure] = []
    """The first thousand of those that failed."""


class Limits(msgspec.Struct):
    """What the server accepts."""

    name_bytes: int
    path_bytes: int
    path_depth: int
    json_bytes: int
    metadata_bytes: int
    list_entries: int
    copy_nodes: int
    batch_operations: int
    batch_bytes: int
    batch_operation_bytes: int
    batch_errors: int
    batch_wait_seconds: float
    batch_key_seconds: int
    requests_per_second: float
    requests_burst: int


class FrameOut(msgspec.Struct, omit_defaults=True):
    """What became of a file or folder that came as frames: as if it had been put by itself."""

    path: str
    status: int
    """200 or 201, or that of a refusal."""
    changed: int | None = None
    """Versions made: 0 or 1."""
    id: int | None = None
    revision: int | None = None
    version: int | None = None
    number: int | None = None
    size: int | None = None
    code: str | None = None
    """Why it was refused, for programs."""
    detail: str | None = None
    missing: list[str] | None = None
    """The digests of chunks that were neither sent nor the sender's."""


class FramesOut(msgspec.Struct):
    """What became of each entry, in the order in which they came."""

    entries: list[FrameOut]


class UploadOut(msgspec.Struct):
    """An upload: how far it is, and what became of it."""

    id: str
    path: str | None
    """Where it goes, in the caller's tree; null for a part that is to be joined to others."""
    state: str
    """`open`, `finished`, `aborted` or `expired`."""
    offset: int
    """Bytes that are durable."""
    size: int | None
    """Bytes in all, once that is known."""
    created: datetime
    expires: datetime
    node: int | None
    version: int | None
    """What it became."""


class UploadList(msgspec.Struct):
    """A part of the uploads that are under way, in the order of their ids."""

    entries: list[UploadOut]
    next_cursor: str | None


class ChangeOut(msgspec.Struct):
    """A change of a tree."""

    seq: int
    """Dense from 1 on."""
    kind: str
    """`put`, `mkdir`, `move`, `copy`, `delete`, `restore`, `purge`, ..."""
    node: int
    path: str | None
    """Where the node stands by now; null if it is gone for good."""
    revision: int
    version: int | None
    at: datetime


class ChangeList(msgspec.Struct):
    """Changes in order."""

    entries: list[ChangeOut]
    cursor: str
    """To be asked for what comes next; there always is one."""


class RefIn(msgspec.Struct, omit_defaults=True):
    """The node that an earlier operation of the batch made, or what is below it."""

    ref: str
    path: str = ""


class MkdirOp(msgspec.Struct, tag_field="op", tag="mkdir", omit_defaults=True):
    """Make a folder."""

    path: str | RefIn
    id: str = ""
    """Names the operation for references behind it; unique in the batch."""
    parents: bool = False
    """Make missing folders above it."""
    if_exists: Literal["fail", "ok"] = "fail"
    """Whether a folder that is there will do."""
    if_absent: bool = False
    on_conflict: Literal["fail", "rename", "skip"] = "fail"


class MoveOp(msgspec.Struct, tag_field="op", tag="move", omit_defaults=True):
    """Give a node another path; one row, whatever it holds."""

    src: str | RefIn
    dst: str | RefIn
    id: str = ""
    if_version: int | None = None
    """The id of the content that `src` must have at that point of the batch."""
    if_revision: int | None = None
    if_absent: bool = False
    """Nothing may be at `dst`: what `on_conflict=fail` says too."""
    on_conflict: Literal["fail", "replace", "rename", "skip"] = "fail"
    """Of a taken `dst`: `replace` sends what is there to the trash; `rename` takes `name (2)`."""


class CopyOp(msgspec.Struct, tag_field="op", tag="copy", omit_defaults=True):
    """Copy a node with all below it, at most 10,000 nodes; no bytes are copied."""

    src: str | RefIn
    dst: str | RefIn
    id: str = ""
    version: int | None = None
    """The number of the version of a file; the current one if missing."""
    if_version: int | None = None
    if_revision: int | None = None
    if_absent: bool = False
    on_conflict: Literal["fail", "replace", "rename", "skip"] = "fail"
    """As for a move; `replace` gives a file at `dst` a new version."""


class DeleteOp(msgspec.Struct, tag_field="op", tag="delete", omit_defaults=True):
    """Send a node to the trash."""

    target: str | RefIn
    id: str = ""
    recursive: bool = False
    if_version: int | None = None
    if_revision: int | None = None


class RestoreOp(msgspec.Struct, tag_field="op", tag="restore", omit_defaults=True):
    """Bring a node back from the trash."""

    node: int | RefIn
    """Its id, or a reference to the operation that deleted it."""
    id: str = ""
    user: str = ""
    """Whose trash it is in; the caller's if missing."""
    dst: str | RefIn | None = None
    """Where it is to go; where it was if missing."""
    if_absent: bool = False
    on_conflict: Literal["fail", "rename", "skip"] = "fail"


class SetMetadataOp(msgspec.Struct, tag_field="op", tag="set_metadata", omit_defaults=True):
    """Change metadata by a merge patch (RFC 7396)."""

    target: str | RefIn
    merge: dict[str, Any]
    id: str = ""
    if_version: int | None = None
    if_revision: int | None = None


class GrantOp(msgspec.Struct, tag_field="op", tag="grant", omit_defaults=True):
    """Let a user read, or read and write, a node and all below it."""

    target: str | RefIn
    user: str
    role: Literal["reader", "writer"]
    id: str = ""
    if_version: int | None = None
    if_revision: int | None = None


class RevokeOp(msgspec.Struct, tag_field="op", tag="revoke", omit_defaults=True):
    """Take back what was granted on a node."""

    target: str | RefIn
    user: str
    id: str = ""
    if_version: int | None = None
    if_revision: int | None = None


BatchOp = MkdirOp | MoveOp | CopyOp | DeleteOp | RestoreOp | SetMetadataOp | GrantOp | RevokeOp


class BatchIn(msgspec.Struct, omit_defaults=True):
    """Operations, as if executed one after another."""

    ops: list[BatchOp]
    """Up to 1,000, of at most 16 KiB each."""
    mode: Literal["atomic", "best_effort"] = "atomic"
    dry_run: bool = False
    """Say what would become of it, and do nothing."""
    wait: float = 5.0
    """Seconds to wait for locks that are in the way, up to 30."""


class BatchErrorOut(msgspec.Struct, omit_defaults=True):
    """Why an operation was refused."""

    code: str
    """For programs: `not_found`, `exists`, `version_mismatch`, `dependency_failed`, ..."""
    detail: str
    retryable: bool = False
    """The same operation may succeed later."""
    expected: int | None = None
    actual: int | None = None
    """Of a precondition: the version or revision."""
    depends_on: str | None = None
    """The id, or the number as `#3`, of the operation that would have made what is missing."""
    count: int | None = None
    """Of `too_many_nodes`: how many there are."""
    holders: list[dict[str, str]] = []
    """Of a lock in the way."""


class ResultOut(msgspec.Struct, omit_defaults=True):
    """What became of one operation."""

    index: int
    status: str
    """`ok`, `skipped`, `failed`, `rolled_back`, `not_attempted`, `would_succeed`, `would_fail`."""
    id: str | None = None
    http_status: int | None = None
    """What the operation by itself would have been refused with."""
    node: NodeOut | None = None
    """As it was when the operation was done."""
    renamed: bool = False
    """The server chose the name."""
    error: BatchErrorOut | None = None


class BatchSummary(msgspec.Struct):
    """Operations by what became of them."""

    total: int
    ok: int
    """Or would succeed."""
    skipped: int
    failed: int
    """Or would fail."""
    rolled_back: int
    not_attempted: int


class BatchOut(msgspec.Struct):
    """What became of a batch."""

    committed: bool
    dry_run: bool
    summary: BatchSummary
    results: list[ResultOut]


class GrantIn(msgspec.Struct, forbid_unknown_fields=True):
    """What a user is to be granted on a node and all below it."""

    user: str
    role: str


class GrantOut(msgspec.Struct):
    """What a user may do with a node and all below it."""

    path: str
    """The node that it was granted on."""
    owner: str
    user: str
    role: str
    granted: datetime


class GrantList(msgspec.Struct):
    """Grants on a node and on those above it."""

    entries: list[GrantOut]


class SharedList(msgspec.Struct):
    """Nodes of others that the caller was granted something on."""

    entries: list[GrantOut]
    next_cursor: str | None


class RetentionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which old versions are kept: the last so many, or those of so long; all with neither."""

    last: int | None = None
    age_seconds: int | None = None


class Pruned(msgspec.Struct):
    """What was forgotten."""

    versions: int


class UsageOut(msgspec.Struct):
    """What the vault of all users holds; bytes unless they are counts of things.

    Folders, files and versions are counted with the trash.
    """

    users: int
    folders: int
    files: int
    versions: int
    trashed: int
    logical: int
    """Of all versions, as if nothing were deduplicated or compressed."""
    current: int
    packs: int
    packed: int
    """Of all packs."""
    chunks: int
    live: int
    unreferenced: int
    """Of packs that no version needs."""
    trash: int
    """Of versions in the trash."""
    condemned: int
    """Of packs that go when the grace period is over."""
    damaged: int
    """Versions whose manifests are not whole."""


class Health(msgspec.Struct):
    """How a part of the server is."""

    status: str
    checks: dict[str, str] = {}


def node_out(node: Node, path: Path) -> NodeOut:
    """A node at `path` of its tree."""
    return _node_out(node, format_path(path))


def entries_out(nodes: Iterable[Node], folder: Path) -> list[NodeOut]:
    """The nodes of the folder at `folder` of its tree."""
    above = format_path(folder) if not folder else format_path(folder) + "/"
    return [_node_out(node, above + node.name) for node in nodes]


def _node_out(node: Node, path: str) -> NodeOut:
    created = moment(node.created_us)
    same = node.modified_us == node.created_us
    return NodeOut(
        path,
        node.name,
        node.kind,
        node.id,
        node.revision,
        node.version,
        node.number or None,
        node.size,
        created,
        created if same else moment(node.modified_us),
        {} if node.metadata == "{}" else msgspec.json.decode(node.metadata),
        node_etag(node),
    )


def node_etag(node: Node) -> str:
    """The entity tag of a node's JSON."""
    return f'"r{node.revision}"'


def content_etag(version: int | None) -> str:
    """The entity tag of a file's content."""
    return f'"v{version}"'


def version_out(version: Version) -> VersionOut:
    """A version of a file."""
    return VersionOut(
        version.number,
        version.id,
        version.size,
        version.created,
        version.digest.hex() if version.digest else None,
        str(version.digest_state),
        version.mtime_us,
        version.mode,
    )


def trashed_out(trashed: Trashed) -> TrashedOut:
    """A node in the trash."""
    node = trashed.node
    return TrashedOut(
        node.id,
        format_path(trashed.path),
        node.kind,
        node.revision,
        node.version,
        node.number or None,
        node.size,
        moment(node.created_us),
        moment(node.modified_us),
        msgspec.json.decode(node.metadata),
        moment(node.trashed_us or 0),
    )


def change_out(seen: Seen) -> ChangeOut:
    """A change, and where its node stands."""
    change, path = seen
    return ChangeOut(
        change.seq,
        change.kind,
        change.node,
        None if path is None else format_path(path),
        change.revision,
        change.version,
        moment(change.at_us),
    )


def grant_out(path: Path, granted: Granted) -> GrantOut:
    """A grant on what is at `path`."""
    at = moment(granted.at_us)
    return GrantOut(format_path(path), granted.owner, granted.user, str(granted.role), at)


def upload_out(upload: Upload) -> UploadOut:
    """An upload."""
    return UploadOut(
        upload.id,
        None if upload.path is None else format_path(upload.path),
        str(upload.state),
        upload.offset,
        upload.size,
        moment(upload.created_us),
        moment(upload.expires_us),
        upload.node,
        upload.version,
    )


def user_out(user: User) -> UserOut:
    """A user."""
    return UserOut(user.name, user.quota, user.used)


def token_out(token: Token, secret: str | None = None) -> TokenOut:
    """A token, with its secret if it was made just now."""
    return TokenOut(
        token.id,
        token.name,
        sorted(token.scope_set),
        moment(token.created_us),
        None if token.expires_us is None else moment(token.expires_us),
        None if token.used_us is None else moment(token.used_us),
        secret,
    )


def audit_out(row: Audited, names: Mapping[UserId, str]) -> AuditOut:
    """An audit row; `names` are those of the users."""
    about = _WHOSE.match(row.subject) if row.kind in _ABOUT_USERS else None
    return AuditOut(
        row.id,
        moment(row.at_us),
        row.actor,
        names.get(row.actor),
        row.kind,
        row.subject,
        None if about is None else names.get(UserId(int(about[1]))),
    )

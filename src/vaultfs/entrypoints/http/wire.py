"""What travels as JSON: the bodies of requests and of answers."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from vaultfs.domain.names import Path, format_path
from vaultfs.domain.nodes import Node, User, Version, moment
from vaultfs.domain.services.feed import Seen
from vaultfs.domain.tokens import Scope, Token
from vaultfs.domain.uploads import Upload
from vaultfs.ports.catalog import Audited, Trashed


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
    size: int
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
    kind: str
    subject: str


class AuditList(msgspec.Struct):
    """A part of the audit, oldest first."""

    entries: list[AuditOut]
    next_cursor: str | None


class Limits(msgspec.Struct):
    """What the server accepts."""

    name_bytes: int
    path_bytes: int
    path_depth: int
    json_bytes: int
    metadata_bytes: int
    list_entries: int
    copy_nodes: int
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


class RetentionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which old versions are kept: the last so many, or those of so long; all with neither."""

    last: int | None = None
    age_seconds: int | None = None


class Pruned(msgspec.Struct):
    """What was forgotten."""

    versions: int


class UsageOut(msgspec.Struct):
    """What the vault of all users holds; bytes unless they are counts of things."""

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
    deleted = moment(node.trashed_us or 0)
    return TrashedOut(node.id, format_path(trashed.path), node.kind, node.size, deleted)


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


def audit_out(row: Audited) -> AuditOut:
    """An audit row."""
    return AuditOut(row.id, moment(row.at_us), row.actor, row.kind, row.subject)

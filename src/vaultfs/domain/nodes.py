"""Nodes and versions: what stands in a tree, and what it has held.

`Node` and `Version` are named tuples, not attrs classes: a listing of a thousand
makes a thousand of them, and this is four times as fast. Times are microseconds
since 1970, UTC, as they are in the catalog; properties give them as `datetime`.
"""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple, NewType

from attrs import frozen

from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Exists, InvalidField, VersionMismatch
from vaultfs.domain.manifests import Manifest

UserId = NewType("UserId", int)
TreeId = NewType("TreeId", int)
"""A tree has the number of the user who owns it."""
NodeId = NewType("NodeId", int)
VersionId = NewType("VersionId", int)
"""Names one content of one node, for ever; contents are known to people by their number."""

Kind = Literal["folder", "file"]


def owner_of(tree: TreeId) -> UserId:
    """Whose tree it is; all chunks of its versions are this user's, whoever has put them."""
    return UserId(tree)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds from 1970 to an aware `moment`."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(count: int) -> datetime:
    """The opposite of `micros`."""
    return _EPOCH + count * _MICROSECOND


class DigestState(StrEnum):
    """How much the digest of a whole file is worth."""

    VERIFIED = "verified"
    """The vault saw all bytes in order."""
    CLAIMED = "claimed"
    """A client said so."""
    ABSENT = "absent"


class User(NamedTuple):
    """Somebody who owns a tree."""

    id: UserId
    name: str
    quota: int | None
    """The most bytes that the versions of the tree may have together; `None`: no limit."""
    used: int
    """Bytes that they have now, trash included."""

    @property
    def tree(self) -> TreeId:
        return TreeId(self.id)


class Node(NamedTuple):
    """A folder or file where it stands now."""

    id: NodeId
    tree: TreeId
    parent: NodeId | None
    name: str
    kind: Kind
    revision: int
    """Raised by every change of content, metadata, name, parent or trash state."""
    version: VersionId | None
    number: int
    """The number of the current version, from 1 on; 0 for a folder."""
    size: int
    """Bytes of the current version; 0 for a folder."""
    metadata: str
    """A JSON object."""
    created_us: int
    modified_us: int
    trashed_us: int | None

    @property
    def is_folder(self) -> bool:
        return self.kind == "folder"

    @property
    def modified(self) -> datetime:
        return moment(self.modified_us)

    @property
    def created(self) -> datetime:
        return moment(self.created_us)


@frozen
class Origin:
    """What is kept about the place that a file came from."""

    mtime_us: int | None = None
    mode: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.mode is not None and not 0 <= self.mode <= 0o7777:
            raise InvalidField(f"{self.mode:o} are not permission bits")


UNKNOWN_ORIGIN = Origin()


class Version(NamedTuple):
    """A content that a file has, or had."""

    id: VersionId
    node: NodeId
    number: int
    size: int
    digest: Digest | None
    digest_state: DigestState
    manifest_bytes: bytes
    created_us: int
    author: UserId
    mtime_us: int | None
    """When the file was last modified where it came from."""
    mode: int | None
    """Its permission bits there."""

    @property
    def verified(self) -> Digest | None:
        """The digest, if the vault has seen itself that it is right."""
        return self.digest if self.digest_state is DigestState.VERIFIED else None

    @property
    def origin(self) -> Origin:
        return Origin(self.mtime_us, self.mode)

    @property
    def manifest(self) -> Manifest:
        return Manifest.decode(self.manifest_bytes)

    @property
    def created(self) -> datetime:
        return moment(self.created_us)


@frozen
class Content:
    """What an ingest made of a stream: all that a version is, but for where it stands."""

    manifest: Manifest
    digest: Digest | None
    digest_state: DigestState


@frozen
class Preconditions:
    """What must hold of the node when the change is made."""

    if_version: VersionId | None = None
    """Its content is still this one."""
    if_revision: int | None = None
    """It is as it was in every respect."""
    if_absent: bool = False
    """It is not there at all."""
    if_present: bool = False
    """It is there, whatever it is."""

    @property
    def any(self) -> bool:
        return self != NO_PRECONDITIONS

    def check(self, node: Node | None, where: str) -> None:
        """Raises `Exists` or `VersionMismatch` unless `node`, which is at `where`, is as wanted."""
        if self is NO_PRECONDITIONS:
            return
        if self.if_absent and node is not None:
            raise Exists(f"{where} is there already")
        if self.if_present and node is None:
            raise VersionMismatch(f"{where} is not there", expected=None, found=None)
        for what, expected, found in (
            ("version id", self.if_version, node and node.version),
            ("revision", self.if_revision, node and node.revision),
        ):
            if expected is not None and expected != found:
                there = f"has {what} {found}" if found else f"has no {what}"
                raise VersionMismatch(
                    f"{where} {there}, not {expected}: somebody else changed it (stat shows it)",
                    expected=expected,
                    found=found,
                )


NO_PRECONDITIONS = Preconditions()
ABSENT = Preconditions(if_absent=True)

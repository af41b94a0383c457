"""What a server answers, as values of the domain again, and the opposite for requests."""

from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Final, NoReturn

import msgspec
from attrs import fields

from vaultfs.domain import errors
from vaultfs.domain.digests import Digest, digest_from_hex
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import parse_path
from vaultfs.domain.nodes import (
    DigestState,
    Node,
    NodeId,
    Origin,
    Preconditions,
    TreeId,
    UserId,
    Version,
    VersionId,
    micros,
)
from vaultfs.domain.retention import Retention
from vaultfs.entrypoints.cli.errors import error_code
from vaultfs.entrypoints.http import wire
from vaultfs.entrypoints.http.wire import ERROR_HEADER, Problem
from vaultfs.ports.catalog import CatalogStats, Trashed, Usage

LONGEST_WAIT: Final = 30.0
"""Seconds."""


HIGHEST: Final = 10**18 - 1
"""No version or revision has a higher number, nor can an entity tag."""


class ServerError(VaultError):
    """The server failed, or could not be reached however often it was tried."""


def conditions(preconditions: Preconditions) -> dict[str, str]:
    """Preconditions as headers."""
    found: dict[str, str] = {}
    if preconditions.if_absent:
        found["If-None-Match"] = "*"
    if preconditions.if_version is not None:
        found["If-Match"] = f'"v{min(preconditions.if_version, HIGHEST)}"'
    elif preconditions.if_revision is not None:
        found["If-Match"] = f'"r{min(preconditions.if_revision, HIGHEST)}"'
    elif preconditions.if_present:
        found["If-Match"] = "*"
    return found


def origin_headers(origin: Origin) -> dict[str, str]:
    """Where a file came from, as headers."""
    found: dict[str, str] = {}
    if origin.mtime_us is not None:
        found["Vaultfs-Mtime"] = str(origin.mtime_us)
    if origin.mode is not None:
        found["Vaultfs-Mode"] = f"{origin.mode:o}"
    return found


def version_of(headers: Mapping[str, str]) -> Version:
    """The version that an answer of `/v1/files` is about. Raises `ServerError`."""
    try:
        return _version_of(headers)
    except (KeyError, ValueError) as error:
        raise ServerError("this is no answer of a vaultfs server, or of another release") from error


def _version_of(headers: Mapping[str, str]) -> Version:
    mtime, mode = headers.get("Vaultfs-Mtime"), headers.get("Vaultfs-Mode")
    size = (
        headers.get("Vaultfs-Size")  # of the file, where the body is a delta
        or headers.get("Content-Range", "").rpartition("/")[2]
        or headers["Content-Length"]
    )
    vouched = headers.get("Repr-Digest", "").removeprefix("blake3=:").removesuffix(":")
    return Version(
        VersionId(int(headers["ETag"].strip('"').removeprefix("v"))),
        NodeId(int(headers["Vaultfs-Node"].partition(";")[0])),
        int(headers["Vaultfs-Version"]),
        int(size),
        Digest(b64decode(vouched)) if vouched else None,
        DigestState.VERIFIED if vouched else DigestState.ABSENT,
        b"",
        int(headers["Vaultfs-Created"]),
        UserId(0),
        None if mtime is None else int(mtime),
        None if mode is None else int(mode, 8),
    )


def _kinds(kind: type[VaultError]) -> dict[str, type[VaultError]]:
    """Errors by their codes: those that a message is enough for."""
    found = {error_code(kind.__new__(kind)): kind}
    for sub in kind.__subclasses__():
        if sub.__init__ in {VaultError.__init__, errors.Blocking.__init__}:
            found |= _kinds(sub)
    return found


def refuse(address: str, status: int, data: bytes, headers: Mapping[str, str]) -> NoReturn:
    """Raise what a refusal of the server at `address` stands for."""
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except msgspec.DecodeError:
        code = headers.get(ERROR_HEADER, "")  # an answer to HEAD has nothing else
        if not code:
            raise ServerError(
                f"{address} is no vaultfs server, or is behind a broken proxy: it answered {status}"
            ) from None
        text = code.replace("_", " ")
        problem = Problem("", status, text, code, headers.get("X-Request-Id", ""))
    raise error_of(problem.code, problem.detail, problem.request_id)


_WITH_MORE: Final[dict[str, Callable[[str], VaultError]]] = {
    "version_mismatch": partial(errors.VersionMismatch, expected=None, found=None),
    "outcome_unknown": partial(errors.OutcomeUnknown, op_id=""),
    "rate_limited": partial(errors.RateLimited, retry_after=LONGEST_WAIT),
    "damaged_content": partial(errors.DamagedContent, digest=b""),
    "offset_mismatch": partial(errors.OffsetMismatch, offset=0),
    "chunks_missing": errors.ChunksMissing,
    "too_many_nodes": partial(errors.TooManyNodes, count=0),
    "dependency_failed": partial(errors.DependencyFailed, depends_on=""),
    "deadlock_found": partial(errors.DeadlockFound, circle=()),
}
"""Errors by their codes: those with more to them than a message."""


def error_of(code: str, text: str, request_id: str) -> VaultError:
    """What the code of a problem stands for."""
    kind = _WITH_MORE.get(code) or _kinds(VaultError).get(code)
    if kind is None or kind is VaultError:
        return ServerError(f"{text} (request {request_id})")
    return kind(text)


def to_node(entry: wire.NodeOut) -> Node:
    """A node as the server tells it; neither its tree's nor its folder's id are known here."""
    return Node(
        NodeId(entry.id),
        TreeId(0),
        None,
        entry.name,
        "folder" if entry.kind == "folder" else "file",
        entry.revision,
        None if entry.version is None else VersionId(entry.version),
        entry.number or 0,
        entry.size,
        msgspec.json.encode(entry.metadata).decode(),
        micros(entry.created),
        micros(entry.modified),
        None,
    )


def to_version(entry: wire.VersionOut) -> Version:
    """A version as the server tells it, without its manifest."""
    return Version(
        VersionId(entry.version),
        NodeId(0),
        entry.number,
        entry.size,
        None if entry.blake3 is None else digest_from_hex(entry.blake3),
        DigestState(entry.digest_state),
        b"",
        micros(entry.created),
        UserId(0),
        entry.mtime_us,
        entry.mode,
    )


def to_trashed(entry: wire.TrashedOut) -> Trashed:
    """A node of the trash, and where it was."""
    path = parse_path(entry.path)
    node = Node(
        id=NodeId(entry.id),
        tree=TreeId(0),
        parent=None,
        name=path[-1],
        kind="folder" if entry.kind == "folder" else "file",
        revision=entry.revision,
        version=None if entry.version is None else VersionId(entry.version),
        number=entry.number or 0,
        size=entry.size,
        metadata=msgspec.json.encode(entry.metadata).decode(),
        created_us=micros(entry.created),
        modified_us=micros(entry.modified),
        trashed_us=micros(entry.deleted),
    )
    return Trashed(node, path)


def to_retention(body: wire.RetentionBody) -> Retention:
    """A policy as it travels."""
    age = None if body.age_seconds is None else timedelta(seconds=body.age_seconds)
    return Retention(body.last, age)


def to_usage(out: wire.UsageOut) -> Usage:
    """What a server's vault holds."""
    names = [each.name for each in fields(CatalogStats)]
    stats = CatalogStats(**{name: getattr(out, name) for name in names})
    return Usage(stats, out.live, out.unreferenced, out.damaged)

"""What the operations on files and their versions do to the tables."""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from typing import Any

from vaultfs.adapters.sql.statements import (
    NODE,
    NODE_WIDTH,
    VERSION,
    Program,
    Run,
    to_node,
    to_version,
)
from vaultfs.adapters.sql.transaction import (
    INSERT_NODE,
    Transaction,
    charge,
    check_owner,
    folder_for,
    log,
    new_node,
    next_id,
    node_at,
    node_by_id,
    node_row,
    update,
)
from vaultfs.domain import operations as ops
from vaultfs.domain.errors import IsAFolder, NotFound
from vaultfs.domain.names import format_path, key_of
from vaultfs.domain.nodes import Node, Version, VersionId
from vaultfs.domain.operations import Result, Unit

INSERT_VERSION = (
    "INSERT INTO versions(id, node, number, size, digest, digest_state, manifest, created,"
    " author, mtime, mode) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
)


def put_file(tx: Transaction, unit: Unit, op: ops.PutFile) -> Program[Result]:
    if not op.path:
        raise IsAFolder("/ is a folder; a file needs a name")
    folder = yield from folder_for(tx, unit, op.tree, op.path, make=op.parents)
    rows = yield Run(_CURRENT, (folder.id, key_of(op.path[-1])))
    node = to_node(rows[0][:NODE_WIDTH]) if rows else None
    op.preconditions.check(node, format_path(op.path))
    manifest = op.content.manifest
    encoded, origin = manifest.encode(), (op.origin.mtime_us, op.origin.mode)
    if node is None:
        node = yield from new_node(tx, unit, folder, op.path[-1], "file")
    elif node.is_folder:
        raise IsAFolder(f"{format_path(op.path)} is a folder")
    elif rows[0][NODE_WIDTH] == encoded:
        return Result((yield from _same_content(tx, unit, node, rows[0][-2:], origin)))
    content = (manifest.size, op.content.digest, op.content.digest_state, encoded)
    return Result((yield from add_version(tx, unit, node, content, origin)), 1)


_CURRENT = (
    f"SELECT {NODE}, v.manifest, v.mtime, v.mode FROM nodes n"
    " LEFT JOIN versions v ON v.id = n.version"
    " WHERE n.parent = $1 AND n.key = $2 AND n.trashed IS NULL"
)
"""What has a name in a folder, with the content that it has now."""


def _same_content(
    tx: Transaction, unit: Unit, node: Node, old: tuple[Any, ...], origin: tuple[Any, ...]
) -> Program[Node]:
    """`node`, the origin of its current version brought up to date."""
    if origin in {old, (None, None)}:
        return node
    yield Run("UPDATE versions SET mtime = $2, mode = $3 WHERE id = $1", (node.version, *origin))
    return (yield from update(tx, unit, node, "metadata"))


def add_version(
    tx: Transaction,
    unit: Unit,
    node: Node,
    content: tuple[Any, ...],
    origin: tuple[int | None, int | None],
    kind: str = "put",
) -> Program[Node]:
    """`node` with a new current version; `content` is (size, digest, state, manifest)."""
    size = content[0]
    yield from charge(tx, node.tree, size)
    version = yield from next_id(tx, "versions")
    number = node.number + 1
    values = (version, node.id, number, *content, unit.at_us, unit.actor, *origin)
    yield Run(INSERT_VERSION, values)
    current = node._replace(version=VersionId(version), number=number, size=size)
    if node.number:
        return (yield from update(tx, unit, current, kind))
    yield Run(INSERT_NODE, node_row(current))
    tx.learn(current)
    yield from log(tx, unit, kind, current)
    return current


def version_of(node: Node, number: int | None) -> Program[Version]:
    """Version `number` of a file, or its current one."""
    wanted = node.number if number is None else number
    rows = yield Run(
        f"SELECT {VERSION} FROM versions v WHERE v.node = $1 AND v.number = $2", (node.id, wanted)
    )
    if not rows:
        raise NotFound(f"{node.name} has no version {wanted}")
    return to_version(rows[0])


def content_of(version: Version) -> tuple[Any, ...]:
    """What `add_version` takes."""
    return (version.size, version.digest, version.digest_state, version.manifest_bytes)


def restore_version(tx: Transaction, unit: Unit, op: ops.RestoreVersion) -> Program[Result]:
    node = yield from node_at(tx, unit, op.tree, op.path)
    if node.is_folder:
        raise IsAFolder(f"{format_path(op.path)} is a folder and has no versions")
    op.preconditions.check(node, format_path(op.path))
    old = yield from version_of(node, op.number)
    origin = (old.mtime_us, old.mode)
    return Result((yield from add_version(tx, unit, node, content_of(old), origin)), 1)


def prune(tx: Transaction, unit: Unit, op: ops.Prune) -> Program[Result]:
    node = yield from node_by_id(tx, unit, op.tree, op.node)
    check_owner(unit, op.tree, node.name)
    freed = count = 0
    for version in op.versions:
        rows = yield Run(
            "DELETE FROM versions WHERE id = $1 AND node = $2 AND id <> $3 RETURNING size",
            (version, node.id, node.version),
        )
        freed, count = freed + sum(row[0] for row in rows), count + len(rows)
    if count:
        yield from charge(tx, op.tree, -freed)
        yield from log(tx, unit, "prune", node)
    return Result(node, count)

"""What the operations on folders, names and the trash do to the tables."""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from vaultfs.adapters.sql.statements import ABOVE, Program, Run, RunMany, to_node
from vaultfs.adapters.sql.transaction import (
    Transaction,
    chain_to,
    charge,
    check_may,
    check_owner,
    child_of,
    extend,
    free_place,
    log,
    node_at,
    node_by_id,
    path_along,
    send_to_trash,
    update,
)
from vaultfs.domain import operations as ops
from vaultfs.domain.access import Action
from vaultfs.domain.errors import (
    Cycle,
    Exists,
    FolderNotEmpty,
    InvalidField,
    NotAFolder,
    NotFound,
    ParentNotFound,
)
from vaultfs.domain.metadata import merge_patch
from vaultfs.domain.names import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_PATH,
    Path,
    check_path,
    format_path,
)
from vaultfs.domain.nodes import Node, NodeId, TreeId
from vaultfs.domain.operations import Result, Unit


def make_folder(tx: Transaction, unit: Unit, op: ops.MakeFolder) -> Program[Result]:
    chain = yield from chain_to(tx, unit, op.tree, op.path)
    if len(chain) == len(op.path) + 1:
        if not op.exist_ok:
            raise Exists(f"{format_path(op.path)} is there already")
        if not chain[-1].is_folder:
            raise NotAFolder(f"{format_path(op.path)} is a file, not a folder")
        return Result(chain[-1])
    most = len(op.path) if op.parents else 1
    return Result((yield from extend(tx, unit, chain, op.path, make=most)))


def move(tx: Transaction, unit: Unit, op: ops.Move) -> Program[Result]:
    node = yield from node_at(tx, unit, op.tree, op.source)
    if not op.source:
        raise Cycle("the root of a tree cannot be moved")
    yield from chain_to(tx, unit, op.tree, op.source[:-1])  # its name is that folder's
    op.preconditions.check(node, format_path(op.source))
    if (yield from is_inside(tx, unit, op.tree, op.target, node)):
        raise Cycle(f"{format_path(op.source)} cannot go into itself")
    folder = yield from free_place(tx, unit, op.tree, op.target, replace=op.replace, keep=node)
    yield from check_height(node, op.target)
    tx.forget_paths(node)
    moved = node._replace(parent=folder.id, name=op.target[-1])
    return Result((yield from update(tx, unit, moved, "move")))


def is_inside(tx: Transaction, unit: Unit, tree: TreeId, target: Path, node: Node) -> Program[bool]:
    """Whether the folder that is to hold `target` is `node` or below it."""
    chain = yield from chain_to(tx, unit, tree, target[:-1])
    return any(above.id == node.id for above in chain)


_HEIGHT = """
    WITH RECURSIVE below(id, depth, bytes) AS (
        SELECT id, 0, 0 FROM nodes WHERE id = $1
        UNION ALL
        SELECT n.id, below.depth + 1, below.bytes + 1 + LENGTH(CAST(n.name AS BLOB))
            FROM below JOIN nodes n
            ON n.parent = below.id AND n.trashed IS NULL
    )
    SELECT MAX(depth), MAX(bytes) FROM below
"""
_FOLDER_HEIGHT = _HEIGHT.replace("AND n.trashed", "AND n.kind = 'folder' AND n.trashed")


def check_height(node: Node, target: Path) -> Program[None]:
    """Refuse a place that would put what is below `node` deeper than paths may go.

    Counts folders alone, however many files are in them, unless a file in the deepest might
    be too much.
    """
    check_path(target)
    if not node.is_folder:
        return
    depth, size = yield from _reach(_FOLDER_HEIGHT, node, target)
    if depth < MAX_DEPTH and size + 1 + MAX_NAME <= MAX_PATH:
        return
    if depth <= MAX_DEPTH and size <= MAX_PATH:
        depth, size = yield from _reach(_HEIGHT, node, target)
    if size > MAX_PATH:
        raise InvalidField(
            f"below {format_path(target)} paths would be longer than {MAX_PATH} bytes"
        )
    if depth > MAX_DEPTH:
        raise InvalidField(
            f"below {format_path(target)} paths would be more than {MAX_DEPTH} names deep"
        )


def _reach(height: str, node: Node, target: Path) -> Program[tuple[int, int]]:
    """The names, and the bytes, of the deepest and the longest path if `node` was at `target`."""
    rows = yield Run(height, (node.id,))
    depth, size = rows[0]
    return len(target) + depth, size + sum(len(name.encode()) + 1 for name in target)


def delete(tx: Transaction, unit: Unit, op: ops.Delete) -> Program[Result]:
    node = yield from node_at(tx, unit, op.tree, op.path)
    if not op.path:
        raise FolderNotEmpty("the root of a tree cannot be deleted: delete what is in it")
    yield from chain_to(tx, unit, op.tree, op.path[:-1])  # its name is that folder's
    op.preconditions.check(node, format_path(op.path))
    if node.is_folder and not op.recursive:
        rows = yield Run(
            "SELECT 1 FROM nodes WHERE parent = $1 AND trashed IS NULL LIMIT 1", (node.id,)
        )
        if rows:
            raise FolderNotEmpty(
                f"{format_path(op.path)} is not empty: delete it recursively (rm -r)"
            )
    return Result((yield from send_to_trash(tx, unit, node)))


def restore(tx: Transaction, unit: Unit, op: ops.Restore) -> Program[Result]:
    node = yield from _trashed(tx, unit, op.tree, op.node)
    if op.tree != TreeId(unit.actor):  # its name was that folder's, as in a move
        rows = yield Run(ABOVE, (node.parent,))
        above = list(map(to_node, rows))
        yield from check_may(tx, unit, Action.WRITE, op.tree, above, f"node {op.node}")
    if op.target is None:
        chain = yield from _old_chain(node)
        folder, name = chain[0], node.name
        if (yield from child_of(tx, folder, name)) is not None:
            raise Exists(f"{name} is there already: restore it to another path")
        path = (*path_along(chain[::-1]), name)
    else:
        folder = yield from free_place(tx, unit, op.tree, op.target, replace=False, keep=None)
        name, path = op.target[-1], op.target
    yield from check_height(node, path)
    tx.forget_paths(node)
    back = node._replace(parent=folder.id, name=name, trashed_us=None)
    return Result((yield from update(tx, unit, back, "restore")), path=path)


def _trashed(tx: Transaction, unit: Unit, tree: TreeId, number: NodeId) -> Program[Node]:
    node = yield from node_by_id(tx, unit, tree, number)
    if node.trashed_us is None:
        raise NotFound(f"node {number} is not in the trash")
    return node


def _old_chain(node: Node) -> Program[list[Node]]:
    """The folder that a deleted node was in and those above it, if a path leads there."""
    rows = yield Run(ABOVE, (node.parent,))
    chain = list(map(to_node, rows))
    if not chain or any(above.trashed_us is not None for above in chain):
        raise ParentNotFound(f"the folder that held {node.name} is gone: restore it to a path")
    return chain


_BELOW = """
    WITH RECURSIVE below(id, depth) AS (
        SELECT $1, 0
        UNION ALL
        SELECT n.id, below.depth + 1 FROM below JOIN nodes n ON n.parent = below.id
        WHERE n.trashed IS NULL
        UNION ALL
        SELECT n.id, below.depth + 1 FROM below JOIN nodes n ON n.parent = below.id
        WHERE n.trashed IS NOT NULL
    )
    SELECT id FROM below ORDER BY depth DESC
"""
"""A node and all below it, deepest first. Two arms, for an index serves each."""


def purge(tx: Transaction, unit: Unit, op: ops.Purge) -> Program[Result]:
    node = yield from _trashed(tx, unit, op.tree, op.node)
    check_owner(unit, op.tree, node.name)
    rows = yield Run(_BELOW, (node.id,))
    doomed = [row[:1] for row in rows[: op.limit]]
    freed = 0
    for number in doomed:
        sizes = yield Run("DELETE FROM versions WHERE node = $1 RETURNING size", number)
        freed += sum(row[0] for row in sizes)
    yield RunMany("DELETE FROM deltas WHERE node = $1", doomed)
    yield RunMany("DELETE FROM grants WHERE node = $1", doomed)
    yield RunMany("DELETE FROM nodes WHERE id = $1", doomed)
    yield from charge(tx, op.tree, -freed)
    left = len(rows) - len(doomed)
    if not left:
        yield from log(tx, unit, "purge", node)
    return Result(node, left)


def set_metadata(tx: Transaction, unit: Unit, op: ops.SetMetadata) -> Program[Result]:
    node = yield from node_at(tx, unit, op.tree, op.path)
    op.preconditions.check(node, format_path(op.path))
    tx.forget_paths(node)
    metadata = merge_patch(node.metadata, op.patch, most=ops.MAX_METADATA)
    return Result((yield from update(tx, unit, node._replace(metadata=metadata), "metadata")))

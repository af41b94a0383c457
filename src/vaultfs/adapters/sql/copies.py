"""What a copy does to the tables."""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from collections.abc import Sequence
from typing import Any

from vaultfs.adapters.sql.files import INSERT_VERSION, add_version, content_of, version_of
from vaultfs.adapters.sql.folders import check_height, is_inside
from vaultfs.adapters.sql.statements import NODE, VERSION, Program, Run, RunMany, to_node
from vaultfs.adapters.sql.transaction import (
    INSERT_NODE,
    Transaction,
    chain_to,
    charge,
    child_of,
    folder_for,
    free_place,
    log,
    new_node,
    next_id,
    node_at,
    node_row,
)
from vaultfs.domain import operations as ops
from vaultfs.domain.access import Action
from vaultfs.domain.errors import Cycle, Exists, IsAFolder, TooManyNodes
from vaultfs.domain.names import format_path
from vaultfs.domain.nodes import Node, NodeId, VersionId
from vaultfs.domain.operations import Result, Unit


def copy(tx: Transaction, unit: Unit, op: ops.Copy) -> Program[Result]:
    node = yield from node_at(tx, unit, op.tree, op.source, Action.READ)
    op.preconditions.check(node, format_path(op.source))
    if node.is_folder:
        return (yield from _copy_folder(tx, unit, op, node))
    version = yield from version_of(node, op.number)
    if not op.target:
        raise Exists("the root of a tree is there already")
    folder = yield from folder_for(tx, unit, op.tree, op.target, make=False)
    there = yield from child_of(tx, folder, op.target[-1])
    if there is None:
        there = yield from new_node(tx, unit, folder, op.target[-1], "file")
        there = there._replace(metadata=node.metadata)
    elif not op.replace:
        raise Exists(f"{format_path(op.target)} is there already")
    elif there.is_folder:
        raise IsAFolder(f"{format_path(op.target)} is a folder")
    content, origin = content_of(version), (version.mtime_us, version.mode)
    return Result((yield from add_version(tx, unit, there, content, origin, "copy")), 1)


_SUBTREE = f"""
    WITH RECURSIVE below(id, depth) AS (
        SELECT $1, 0
        UNION ALL
        SELECT n.id, below.depth + 1 FROM below JOIN nodes n
            ON n.parent = below.id AND n.trashed IS NULL
    )
    SELECT {NODE}, {VERSION} FROM below JOIN nodes n ON n.id = below.id
        LEFT JOIN versions v ON v.id = n.version
    ORDER BY below.depth LIMIT $2
"""


_COUNT = """
    WITH RECURSIVE below(id, depth) AS (
        SELECT $1, 0
        UNION ALL
        SELECT n.id, below.depth + 1 FROM below JOIN nodes n
            ON n.parent = below.id AND n.trashed IS NULL
    )
    SELECT COUNT(*) FROM below
"""


def _copy_folder(tx: Transaction, unit: Unit, op: ops.Copy, top: Node) -> Program[Result]:
    if op.number is not None:
        raise IsAFolder(f"{format_path(op.source)} is a folder and has no versions")
    if (yield from is_inside(tx, unit, op.tree, op.target, top)):
        raise Cycle(f"{format_path(op.source)} cannot go into itself")
    if op.replace and (yield from _leads_to(tx, unit, op, top)):
        raise Cycle(f"{format_path(op.source)} cannot replace itself")
    folder = yield from free_place(tx, unit, op.tree, op.target, replace=op.replace, keep=None)
    yield from check_height(top, op.target)
    room = ops.MAX_COPY - tx.copied
    rows = yield Run(_SUBTREE, (top.id, room + 1))
    if len(rows) > room:
        [(count,)] = yield Run(_COUNT, (top.id,))
        before = f", and {tx.copied} were copied before it" if tx.copied else ""
        raise TooManyNodes(
            f"{format_path(op.source)} holds {count} nodes{before}; {ops.MAX_COPY} are the most"
            " that one request copies: copy its parts",
            count=count,
        )
    tx.copied += len(rows)
    nodes, versions = yield from _copies(tx, unit, rows, {top.parent: folder.id})
    nodes[0] = nodes[0]._replace(name=op.target[-1])
    yield from charge(tx, op.tree, sum(node.size for node in nodes))
    yield RunMany(INSERT_NODE, [node_row(node) for node in nodes])
    tx.forget_children()
    yield RunMany(INSERT_VERSION, versions)
    yield from log(tx, unit, "copy", nodes[0])
    return Result(nodes[0], len(nodes))


def _leads_to(tx: Transaction, unit: Unit, op: ops.Copy, node: Node) -> Program[bool]:
    """Whether `node` is what stands at the target."""
    chain = yield from chain_to(tx, unit, op.tree, op.target)
    return chain[-1].id == node.id


def _copies(
    tx: Transaction,
    unit: Unit,
    rows: Sequence[tuple[Any, ...]],
    new_ids: dict[NodeId | None, NodeId],
) -> Program[tuple[list[Node], list[tuple[Any, ...]]]]:
    """Copies of the nodes and current versions in `rows`, parents before children.

    `new_ids` gives the copy's id for the id of the original.
    """
    nodes: list[Node] = []
    versions: list[tuple[Any, ...]] = []
    width = len(Node._fields)
    for row in rows:
        old = to_node(row[:width])
        number = NodeId((yield from next_id(tx, "nodes")))
        new = old._replace(
            id=number,
            parent=new_ids[old.parent],
            revision=1,
            created_us=unit.at_us,
            modified_us=unit.at_us,
        )
        new_ids[old.id] = number
        if not old.is_folder:
            version = VersionId((yield from next_id(tx, "versions")))
            new = new._replace(version=version, number=1)
            content, origin = row[width + 3 : width + 7], row[width + 9 :]
            versions.append((version, number, 1, *content, unit.at_us, unit.actor, *origin))
        nodes.append(new)
    return nodes, versions

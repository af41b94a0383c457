"""Many new files in one folder, in as many statements as one.

What comes out is what putting them one by one would give; a test compares the two.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, cast

from vaultfs.adapters.sql.files import INSERT_VERSION
from vaultfs.adapters.sql.statements import Program, Run, RunMany, to_array
from vaultfs.adapters.sql.transaction import (
    INSERT_CHANGE,
    INSERT_NODE,
    Transaction,
    chain_to,
    change_row,
    charge,
    folder_at,
    node_row,
    reserve,
    tree_row,
)
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import key_of
from vaultfs.domain.nodes import Node
from vaultfs.domain.operations import Done, Outcome, PutFile, Result, Unit

LEAST: Final = 4
"""Fewer files are put faster one by one."""


def groups(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """`units` in their order; what may be put together, together."""
    for _, group in groupby(units, _group):
        yield list(group)


def _group(unit: Unit) -> Hashable:
    if len(unit.operations) == 1:
        operation = unit.operations[0]
        if isinstance(operation, PutFile) and not operation.preconditions.any and operation.path:
            return unit.actor, operation.tree, operation.path[:-1]
    return id(unit)


def put_new_files(tx: Transaction, units: Sequence[Unit]) -> Program[list[Outcome] | None]:
    """The outcomes of a group of puts, if all of them make new files.

    None, and nothing has happened, if the group is of another kind: then they are to be
    put one by one.
    """
    if len(units) < LEAST:
        return None
    puts = [cast("PutFile", unit.operations[0]) for unit in units]
    keys = [key_of(put.path[-1]) for put in puts]
    folder = yield from _folder(tx, units[0], puts[0])
    if folder is None or len(set(keys)) != len(keys) or (yield from _any_there(folder, keys)):
        return None
    try:
        yield from charge(tx, folder.tree, sum(put.content.manifest.size for put in puts))
    except VaultError:
        return None  # some of them may have room all the same
    # Nothing can be refused from here on.
    folder = yield from folder_at(tx, units[0], folder.tree, puts[0].path[:-1], make=True)
    return (yield from _insert(tx, folder, units, puts))


def _folder(tx: Transaction, unit: Unit, put: PutFile) -> Program[Node | None]:
    """The folder that is to hold the files, or the one that it may be made in."""
    path = put.path[:-1]
    try:
        chain = yield from chain_to(tx, unit, put.tree, path)
    except VaultError:
        return None
    missing = len(path) + 1 - len(chain)
    return chain[-1] if chain[-1].is_folder and (not missing or put.parents) else None


def _any_there(folder: Node, keys: Sequence[str]) -> Program[bool]:
    rows = yield Run(
        "SELECT 1 FROM json_each($2) e JOIN nodes n ON n.parent = $1 AND n.key = e.value"
        " AND n.trashed IS NULL LIMIT 1",
        (folder.id, to_array(keys)),
    )
    return bool(rows)


def _insert(
    tx: Transaction, folder: Node, units: Sequence[Unit], puts: Sequence[PutFile]
) -> Program[list[Outcome]]:
    node_id = yield from reserve(tx, "nodes", len(puts))
    version_id = yield from reserve(tx, "versions", len(puts))
    tree = yield from tree_row(tx, folder.tree)
    nodes: list[Node] = []
    versions: list[tuple[Any, ...]] = []
    changes: list[tuple[Any, ...]] = []
    for index, (unit, put) in enumerate(zip(units, puts, strict=True)):
        content, now = put.content, unit.at_us
        size, version = content.manifest.size, version_id + index
        head = (node_id + index, folder.tree, folder.id, put.path[-1], "file", 1, version, 1, size)
        node = Node._make((*head, "{}", now, now, None))
        nodes.append(node)
        versions.append(
            (
                *(version, node.id, 1, size, content.digest, content.digest_state),
                *(content.manifest.encode(), now, unit.actor),
                *(put.origin.mtime_us, put.origin.mode),
            )
        )
        changes.append(change_row(unit, tree.seq + 1 + index, "put", node))
    tx.trees[tree.id] = tree._replace(seq=tree.seq + len(puts))
    yield RunMany(INSERT_NODE, list(map(node_row, nodes)))
    yield RunMany(INSERT_VERSION, versions)
    yield RunMany(INSERT_CHANGE, changes)
    return [Done((Result(node, 1),)) for node in nodes]

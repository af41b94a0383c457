"""Many new files in one folder, or many files moved from one to another, in few statements.

What comes out is what doing it one by one would give; a test compares the two.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import count, groupby, repeat
from typing import Any, Final, cast

from vaultfs.adapters.sql.files import INSERT_VERSION
from vaultfs.adapters.sql.locking import any_locked
from vaultfs.adapters.sql.statements import NODE, Program, Run, RunMany, to_array, to_nodes
from vaultfs.adapters.sql.stock import rely
from vaultfs.adapters.sql.transaction import (
    INSERT_NODE,
    Transaction,
    Tree,
    chain_to,
    change_row,
    charge,
    folder_at,
    reserve,
    tree_row,
)
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import check_path, key_of
from vaultfs.domain.nodes import ABSENT, NO_PRECONDITIONS, Node
from vaultfs.domain.operations import Done, Move, Operation, Outcome, PutFile, Result, Unit

LEAST: Final = 4
"""Fewer are done faster one by one."""


def groups(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """`units` in their order; what may be done together, together."""
    for _, group in groupby(units, _alike):
        yield list(group)


def _alike(unit: Unit) -> Hashable:
    found = group_of(unit.operations[0]) if len(unit.operations) == 1 else None
    return id(unit) if found is None else (unit.actor, found)


def group_of(operation: Operation) -> Hashable:
    """What it has in common with those of one user that it may be done together with; None if
    there are none.
    """
    if isinstance(operation, PutFile) and operation.preconditions in _NEW and operation.path:
        return operation.tree, operation.path[:-1]
    if isinstance(operation, Move) and operation.source and operation.target:
        return operation.tree, operation.source[:-1], operation.target[:-1]
    return None


_NEW: Final = (NO_PRECONDITIONS, ABSENT)
"""What holds of every file that was not there, and such files alone are put together."""


def together(tx: Transaction, units: Sequence[Unit]) -> Program[list[Outcome] | None]:
    """The outcomes of a group, if nothing of it is refused and no unit bears on another.

    None, and nothing has happened, if the group is of another kind: then its units are to
    be run one by one.
    """
    if len(units) < LEAST:
        return None
    try:
        if isinstance(units[0].operations[0], Move):
            return (yield from _move_files(tx, units))
        return (yield from _put_new_files(tx, units))
    except VaultError:  # raised before anything was written; for some of them alone, maybe
        return None


def _put_new_files(tx: Transaction, units: Sequence[Unit]) -> Program[list[Outcome] | None]:
    puts = [cast("PutFile", unit.operations[0]) for unit in units]
    keys = [key_of(put.path[-1]) for put in puts]
    folder = yield from _folder(tx, units[0], puts[0])
    if folder is None or len(set(keys)) != len(keys) or (yield from _any_there(folder, keys)):
        return None
    if (yield from any_locked(tx, folder.tree, units)):
        return None
    yield from rely(tx, *units)  # before anything is charged, which would be done again
    sizes = [put.content.manifest.size for put in puts]
    yield from charge(tx, folder.tree, sum(sizes))
    # Nothing can be refused from here on.
    folder = yield from folder_at(tx, units[0], folder.tree, puts[0].path[:-1], make=True)
    return (yield from _insert(tx, folder, units, puts, keys, sizes))


def _folder(tx: Transaction, unit: Unit, put: PutFile) -> Program[Node | None]:
    """The folder that is to hold the files, or the one that it may be made in."""
    path = put.path[:-1]
    chain = yield from chain_to(tx, unit, put.tree, path)
    missing = len(path) + 1 - len(chain)
    return chain[-1] if chain[-1].is_folder and (not missing or put.parents) else None


def _any_there(folder: Node, keys: Sequence[str]) -> Program[bool]:
    rows = yield Run(_THERE, (folder.id, to_array(keys)))
    return bool(rows)


_THERE = (  # mostly the folder is new
    "SELECT 1 FROM json_each($2) e CROSS JOIN nodes n WHERE n.parent = $1 AND n.key = e.value"
    " AND n.trashed IS NULL"
    " AND EXISTS (SELECT 1 FROM nodes c WHERE c.parent = $1 AND c.trashed IS NULL) LIMIT 1"
)


def _insert(
    tx: Transaction,
    folder: Node,
    units: Sequence[Unit],
    puts: Sequence[PutFile],
    keys: Sequence[str],
    sizes: Sequence[int],
) -> Program[list[Outcome]]:
    """Make a file for each of `puts`; nodes column by column, as they may be a thousand."""
    many, one = len(puts), repeat(1)
    node_id = yield from reserve(tx, "nodes", many)
    version_id = yield from reserve(tx, "versions", many)
    tree = yield from tree_row(tx, folder.tree)
    times = [unit.at_us for unit in units]
    numbers = (one, range(version_id, version_id + many), one, sizes)
    ids, names = range(node_id, node_id + many), [put.path[-1] for put in puts]
    place = (ids, repeat(folder.tree), repeat(folder.id), names)
    rest = (repeat("file"), *numbers, repeat("{}"), times, times, repeat(None))
    yield RunMany(INSERT_NODE, list(zip(*place, keys, *rest, strict=False)))
    nodes = to_nodes(zip(*place, *rest, strict=False))
    _log(tx, tree, units, "put", nodes)
    yield RunMany(INSERT_VERSION, list(map(_version_row, nodes, units, puts)))
    return [Done((Result(node, 1),)) for node in nodes]


def _version_row(node: Node, unit: Unit, put: PutFile) -> tuple[Any, ...]:
    """What `INSERT_VERSION` takes for the first version of a file."""
    content, origin = put.content, put.origin
    return (
        *(node.version, node.id, 1, node.size, content.digest, content.digest_state),
        *(content.manifest.encode(), unit.at_us, unit.actor, origin.mtime_us, origin.mode),
    )


def _move_files(tx: Transaction, units: Sequence[Unit]) -> Program[list[Outcome] | None]:
    moves = [cast("Move", unit.operations[0]) for unit in units]
    first = moves[0]
    above = yield from folder_at(tx, units[0], first.tree, first.source[:-1], make=False)
    folder = yield from folder_at(tx, units[0], first.tree, first.target[:-1], make=False)
    if any(unit.presented for unit in units) or (yield from any_locked(tx, first.tree, units)):
        return None  # each is held to the locks, and ends those of its own that it moves
    names = [check_path(move.target)[-1] for move in moves]
    keys = list(map(key_of, names))
    if len(set(keys)) != len(keys) or (yield from _any_there(folder, keys)):
        return None
    sources = [key_of(move.source[-1]) for move in moves]
    rows = yield Run(_FILES, (above.id, to_array(sources)))
    nodes = {key_of(node.name): node for node in to_nodes(rows)}
    if len(nodes) != len(moves) or len(set(sources)) != len(moves):
        return None
    for key, move in zip(sources, moves, strict=True):
        move.preconditions.check(nodes[key], "")
    moved = [nodes[key] for key in sources]
    return (yield from _relocate(tx, folder, units, moved, names, keys))


_FILES = (
    f"SELECT {NODE} FROM json_each($2) e CROSS JOIN nodes n WHERE n.parent = $1 AND n.key = e.value"
    " AND n.trashed IS NULL AND n.kind = 'file'"
)


def _relocate(
    tx: Transaction,
    folder: Node,
    units: Sequence[Unit],
    nodes: Sequence[Node],
    names: Sequence[str],
    keys: Sequence[str],
) -> Program[list[Outcome]]:
    """Move `nodes` into `folder` under `names`; column by column, as they may be a thousand."""
    tree = yield from tree_row(tx, folder.tree)
    ids, owners, _, _, kinds, before, *content, _, _ = zip(*nodes, strict=True)
    above, times = repeat(folder.id), [unit.at_us for unit in units]
    revisions = [revision + 1 for revision in before]
    columns = (ids, owners, above, names, kinds, revisions, *content, times, repeat(None))
    yield RunMany(
        "UPDATE nodes SET parent = $1, name = $2, key = $3, revision = $4, modified = $5"
        " WHERE id = $6",
        list(zip(above, names, keys, revisions, times, ids, strict=False)),
    )
    moved = to_nodes(zip(*columns, strict=False))
    _log(tx, tree, units, "move", moved)
    return [Done((Result(node),)) for node in moved]


def _log(
    tx: Transaction, tree: Tree, units: Sequence[Unit], kind: str, nodes: Sequence[Node]
) -> None:
    """Add an entry for each of `nodes` to the feed; what is known of their folders is old now."""
    tx.changes += map(change_row, units, count(tree.seq + 1), repeat(kind), nodes)
    tx.trees[tree.id] = tree._replace(seq=tree.seq + len(nodes))
    tx.forget_children()

"""What the programs of one write transaction share: trees, folders, ids, the feed.

What a transaction has learned of trees and folders is kept in a `Transaction`, so
that a thousand puts into one folder look it up once.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from attrs import Factory, define, field

from vaultfs.adapters.sql.lockview import LockView
from vaultfs.adapters.sql.statements import (
    ABOVE,
    NODE,
    RESOLVE,
    ROLES,
    Program,
    Run,
    to_array,
    to_node,
)
from vaultfs.domain.access import Action, Role, require, role_on
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import (
    Exists,
    Forbidden,
    NotAFolder,
    NotFound,
    ParentNotFound,
    QuotaExceeded,
)
from vaultfs.domain.names import Path, format_path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, UserId
from vaultfs.domain.operations import Unit


class Tree(NamedTuple):
    """A tree's row."""

    id: TreeId
    root: NodeId
    seq: int
    used: int
    quota: int | None


@define
class Transaction:
    """What the programs of one write transaction have learned and have yet to write."""

    trees: dict[TreeId, Tree] = field(factory=dict[TreeId, Tree])
    """As they are to be when the transaction ends; see `finish`."""
    folders: dict[tuple[TreeId, Path], tuple[Node, ...]] = Factory(
        dict[tuple[TreeId, Path], tuple[Node, ...]]
    )
    """Chains of nodes that were resolved, by the keys of their names."""
    ids: dict[str, tuple[int, int]] = field(factory=dict[str, tuple[int, int]])
    """Ids reserved and not yet used: from, to."""
    block: int = 1
    """How many ids to reserve at a time; doubles while a transaction goes on."""
    reserved: int = 0
    """How often ids were reserved: those writes are not taken back with their unit."""
    locks: LockView = field(factory=LockView)
    changes: list[tuple[Any, ...]] = field(factory=list[tuple[Any, ...]])
    """Entries of feeds, which are written together at the end."""
    children: dict[tuple[NodeId, str], Node | None] = Factory(dict[tuple[NodeId, str], Node | None])
    """What was seen, or put, under names in folders; None where nothing is."""
    places: dict[NodeId, tuple[NodeId, str]] = Factory(dict[NodeId, tuple[NodeId, str]])
    """Where in `children` nodes are."""
    roles: dict[tuple[UserId, TreeId], dict[NodeId, Role]] = Factory(
        dict[tuple[UserId, TreeId], dict[NodeId, Role]]
    )
    """What users were granted in trees of others."""
    recorded: set[Digest] = field(factory=set[Digest])
    """Keys of packs that were recorded."""
    copied: int = 0
    """Nodes of folders that the request has copied so far."""

    def forget_paths(self, node: Node) -> None:
        """`node` is about to change: if it is a folder, so do the chains that it is in."""
        if not node.is_folder:
            return
        if len(self.folders) > FEW_CHAINS:  # than to look at each of so many
            self.folders.clear()
        through = [
            path
            for path, chain in self.folders.items()
            if any(each.id == node.id for each in chain)
        ]
        for path in through:
            del self.folders[path]

    def learn(self, node: Node) -> None:
        """`node` is so by now."""
        old = self.places.pop(node.id, None)
        if old is not None:
            self.children[old] = None
        if node.trashed_us is None and node.parent is not None:
            place = self.places[node.id] = (node.parent, key_of(node.name))
            self.children[place] = node

    def forget_children(self) -> None:
        """Many nodes have changed that nobody has looked at one by one."""
        self.children.clear()
        self.places.clear()

    def mark(self) -> "Mark":
        """What `forget` goes back to."""
        return Mark(dict(self.trees), len(self.changes))

    def forget(self, mark: "Mark") -> None:
        """Go back to what was known at `mark`: what changed it since was refused.

        Reserved ids that a savepoint took back are forgotten too.
        """
        self.trees = dict(mark.trees)
        del self.changes[mark.changes :]
        self.folders.clear()
        self.ids.clear()
        self.roles.clear()
        self.forget_children()


class Mark(NamedTuple):
    """How far a transaction was at a point that it may go back to."""

    trees: dict[TreeId, Tree]
    changes: int


def next_id(tx: Transaction, kind: str) -> Program[int]:
    """An id that nothing of its kind has had."""
    start, stop = tx.ids.get(kind, (0, 0))
    if start == stop:
        start = yield from reserve(tx, kind, tx.block)
        stop, tx.block = start + tx.block, min(2 * tx.block, 256)
    tx.ids[kind] = (start + 1, stop)
    return start


FEW_CHAINS: Final = 64
RESERVE: Final = "UPDATE counters SET next = next + $2 WHERE name = $1 RETURNING next"
"""Takes ids; a database with many writers may do so outside the transaction."""
TREE: Final = "SELECT id, root, seq, used, quota FROM trees WHERE id = $1"
"""A tree's row, which a database with many writers has locked already."""


def reserve(tx: Transaction, kind: str, count: int) -> Program[int]:
    """The first of `count` ids in a row that nothing of their kind has had."""
    rows = yield Run(RESERVE, (kind, count))
    tx.reserved += 1
    return int(rows[0][0]) - count


def tree_row(tx: Transaction, number: TreeId) -> Program[Tree]:
    """The tree as it is at this point of the transaction. Raises `NotFound`."""
    tree = tx.trees.get(number)
    if tree is None:
        rows = yield Run(TREE, (number,))
        if not rows:
            raise NotFound("there is no such tree")
        tree = tx.trees[number] = Tree._make(rows[0])
    return tree


def charge(tx: Transaction, number: TreeId, size: int) -> Program[None]:
    """Count `size` more bytes against the tree's quota; negative gives them back."""
    tree = yield from tree_row(tx, number)
    used = tree.used + size
    if size > 0 and tree.quota is not None and used > tree.quota:
        raise QuotaExceeded(
            f"{size} more bytes would make {used}; the quota is {tree.quota}: purge the trash,"
            " prune old versions or raise the quota"
        )
    tx.trees[number] = Tree(tree.id, tree.root, tree.seq, used, tree.quota)


def log(tx: Transaction, unit: Unit, kind: str, node: Node) -> Program[None]:
    """Add an entry to the tree's feed."""
    tree = yield from tree_row(tx, node.tree)
    seq = tree.seq + 1
    tx.trees[tree.id] = Tree(tree.id, tree.root, seq, tree.used, tree.quota)
    tx.changes.append(change_row(unit, seq, kind, node))


INSERT_CHANGE = (
    "INSERT INTO changes(tree, seq, node, kind, revision, version, actor, at, op_id)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)


def change_row(unit: Unit, seq: int, kind: str, node: Node) -> tuple[Any, ...]:
    """What `INSERT_CHANGE` takes."""
    return (
        *(node.tree, seq, node.id, kind, node.revision, node.version),
        *(unit.actor, unit.at_us, unit.op_id),
    )


def chain_to(
    tx: Transaction, unit: Unit, tree: TreeId, path: Path, action: Action = Action.WRITE
) -> Program[tuple[Node, ...]]:
    """The nodes along `path` as far as they exist, if the actor may do that with the last."""
    keys = tuple(map(key_of, path))
    chain = tx.folders.get((tree, keys))
    if chain is None:
        above = tx.folders.get((tree, keys[:-1]))
        if above is not None:
            child = yield from child_of(tx, above[-1], path[-1])
            chain = above if child is None else (*above, child)
        else:
            rows = yield Run(RESOLVE, (tree, to_array(keys)))
            chain = tuple(map(to_node, rows))
        if len(chain) == len(path) + 1:
            folders = len(path) if chain[-1].is_folder else len(path) - 1
            tx.folders[tree, keys[:folders]] = chain[: folders + 1]
    yield from check_may(tx, unit, action, tree, chain, format_path(path))
    yield from tree_row(tx, tree)
    return chain


def check_may(
    tx: Transaction, unit: Unit, action: Action, tree: TreeId, chain: Sequence[Node], where: str
) -> Program[None]:
    """Raise `NotFound` or `Forbidden` unless the actor may do `action` with one of `chain`."""
    role = None
    if chain and tree != TreeId(unit.actor):
        granted = yield from roles_of(tx, unit.actor, tree)
        role = role_on((node.id for node in chain), granted)
    if not chain:
        raise NotFound(f"nothing is at {where}")
    require(unit.actor, action, tree, role, where)


def roles_of(tx: Transaction, user: UserId, tree: TreeId) -> Program[dict[NodeId, Role]]:
    """What `user` was granted in `tree`."""
    found = tx.roles.get((user, tree))
    if found is None:
        rows = yield Run(ROLES, (user, tree))
        found = tx.roles[user, tree] = {node: Role(role) for node, role in rows}
    return found


def check_owner(unit: Unit, tree: TreeId, what: str) -> None:
    """Raise `Forbidden` unless the tree is the actor's; who may not even read it was refused."""
    if tree != TreeId(unit.actor):
        raise Forbidden(f"only the owner of {what} may do that")


def node_at(
    tx: Transaction, unit: Unit, tree: TreeId, path: Path, action: Action = Action.WRITE
) -> Program[Node]:
    """The node at `path`. Raises `NotFound`, `Forbidden`."""
    chain = yield from chain_to(tx, unit, tree, path, action)
    if len(chain) != len(path) + 1:
        raise NotFound(f"nothing is at {format_path(path)}")
    return chain[-1]


def node_by_id(tx: Transaction, unit: Unit, tree: TreeId, number: NodeId) -> Program[Node]:
    """The node of the tree with that id, trashed or not. Raises `NotFound`, `Forbidden`."""
    if tree == TreeId(unit.actor):
        yield from chain_to(tx, unit, tree, ())
        rows = yield Run(
            f"SELECT {NODE} FROM nodes n WHERE n.id = $1 AND n.tree = $2", (number, tree)
        )
    else:
        rows = yield Run(ABOVE, (number,))
    chain = [node for node in map(to_node, rows) if node.tree == tree]
    if not chain:
        raise NotFound(f"there is no node {number}")
    try:
        yield from check_may(tx, unit, Action.WRITE, tree, chain, f"node {number}")
    except NotFound:  # and not another text than for one that is not there
        raise NotFound(f"there is no node {number}") from None
    yield from tree_row(tx, tree)
    return chain[0]


def folder_at(
    tx: Transaction, unit: Unit, tree: TreeId, path: Path, *, make: bool
) -> Program[Node]:
    """The folder at `path`, made with those above it if `make`."""
    chain = yield from chain_to(tx, unit, tree, path)
    return (yield from extend(tx, unit, chain, path, make=len(path) if make else 0))


def folder_for(
    tx: Transaction, unit: Unit, tree: TreeId, path: Path, *, make: bool
) -> Program[Node]:
    """The folder of the file at `path`, or of one to be made there.

    Who may write a file alone needs not be allowed to write its folder.
    """
    if tree != TreeId(unit.actor):
        chain = yield from chain_to(tx, unit, tree, path)
        if len(chain) == len(path) + 1:
            return chain[-2]
    return (yield from folder_at(tx, unit, tree, path[:-1], make=make))


def extend(
    tx: Transaction, unit: Unit, chain: Sequence[Node], path: Path, *, make: int
) -> Program[Node]:
    """The folder at `path`, of which `chain` is there; at most `make` are made."""
    folder = chain[-1]
    if not folder.is_folder:
        raise NotAFolder(f"{format_path(path[: len(chain) - 1])} is a file, not a folder")
    missing = path[len(chain) - 1 :]
    if len(missing) > make:
        raise ParentNotFound(
            f"there is no folder {format_path(path[: len(path) - make])}: make it first"
        )
    for name in missing:
        folder = yield from new_node(tx, unit, folder, name, "folder")
        yield from log(tx, unit, "mkdir", folder)
    return folder


def path_along(chain: Sequence[Node]) -> Path:
    """The path of the last of `chain`, which begins with a root."""
    return tuple(each.name for each in chain if each.parent is not None)


def child_of(tx: Transaction, folder: Node, name: str) -> Program[Node | None]:
    """What has that name in `folder`."""
    key = (folder.id, key_of(name))
    if key not in tx.children:
        rows = yield Run(CHILD, key)
        if rows:
            tx.learn(to_node(rows[0]))
        else:
            tx.children[key] = None
    return tx.children[key]


CHILD: Final = (
    f"SELECT {NODE} FROM nodes n WHERE n.parent = $1 AND n.key = $2 AND n.trashed IS NULL"
)


INSERT_NODE = (
    "INSERT INTO nodes(id, tree, parent, name, key, kind, revision, version, number, size,"
    " metadata, created, modified, trashed)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
)


def node_row(node: Node) -> tuple[Any, ...]:
    """What `INSERT_NODE` takes."""
    return (*node[:4], key_of(node.name), *node[4:])


def new_node(tx: Transaction, unit: Unit, folder: Node, name: str, kind: str) -> Program[Node]:
    """A new folder, or a file that is yet to get its first version: the caller inserts it then."""
    number = yield from next_id(tx, "nodes")
    node = Node._make(
        (number, folder.tree, folder.id, name, kind, 1, None, 0, 0, "{}", *(unit.at_us,) * 2, None)
    )
    if kind == "folder":
        yield Run(INSERT_NODE, node_row(node))
        tx.learn(node)
    return node


def free_place(
    tx: Transaction, unit: Unit, tree: TreeId, path: Path, *, replace: bool, keep: Node | None
) -> Program[Node]:
    """The folder that is to hold `path`, once nothing but `keep` has that name in it."""
    if not path:
        raise Exists("the root of a tree is there already")
    folder = yield from folder_at(tx, unit, tree, path[:-1], make=False)
    there = yield from child_of(tx, folder, path[-1])
    if there is not None and (keep is None or there.id != keep.id):
        if not replace:
            raise Exists(f"{format_path(path)} is there already")
        yield from send_to_trash(tx, unit, there)
    return folder


def update(tx: Transaction, unit: Unit, node: Node, kind: str) -> Program[Node]:
    """Write all of `node`, its revision raised, and log it as `kind`."""
    node = node._replace(revision=node.revision + 1, modified_us=unit.at_us)
    yield Run(
        "UPDATE nodes SET parent = $1, name = $2, key = $3, revision = $4, version = $5,"
        " number = $6, size = $7, metadata = $8, modified = $9, trashed = $10 WHERE id = $11",
        (
            *(node.parent, node.name, key_of(node.name), node.revision, node.version),
            *(node.number, node.size, node.metadata, node.modified_us, node.trashed_us, node.id),
        ),
    )
    tx.learn(node)
    yield from log(tx, unit, kind, node)
    return node


def send_to_trash(tx: Transaction, unit: Unit, node: Node) -> Program[Node]:
    """Delete `node`; what is below it goes with it."""
    tx.forget_paths(node)
    return (yield from update(tx, unit, node._replace(trashed_us=unit.at_us), "delete"))

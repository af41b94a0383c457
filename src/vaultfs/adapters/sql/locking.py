"""What locks mean for units: who may write what, and which locks end with a move.

Nothing of it costs more than a look at a version while nobody holds a lock in a tree.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast, get_args

from vaultfs.adapters.sql.accounts import audit
from vaultfs.adapters.sql.lockview import locks_of
from vaultfs.adapters.sql.statements import ABOVE, Program, Run, to_node
from vaultfs.adapters.sql.transaction import Transaction, chain_to, node_by_id, path_along
from vaultfs.domain import operations as ops
from vaultfs.domain.access import Action
from vaultfs.domain.batches import LOCK_OWNER
from vaultfs.domain.errors import LockError, NotFound, listed
from vaultfs.domain.lockitems import (
    below,
    check_presented,
    check_write,
    leaves,
    needs,
    path_of,
)
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import NodeId, TreeId
from vaultfs.domain.operations import Result, Unit

if TYPE_CHECKING:
    from vaultfs.domain.locknodes import Presented

_IN_TREES: Final = frozenset(get_args(ops.FileOperation))


def guard(tx: Transaction, unit: Unit) -> Program[None]:
    """See that no lock stands in the way of `unit`, and that those it comes with are held.

    Raises `Locked`, `StaleToken`, `NotHeld`, and `NotFound` for a tree of somebody else.
    """
    for operation in unit.operations:
        change = operation.put if isinstance(operation, ops.FinishUpload) else operation
        if type(change) in _IN_TREES:
            change = cast("ops.FileOperation", change)
            seen = tx.locks.seen.get(change.tree)
            locks = (yield from locks_of(tx.locks, change.tree)) if seen is None else seen[1]
            if locks.table.grants or unit.presented:
                yield from _check(tx, unit, change, locks)


def _check(
    tx: Transaction, unit: Unit, operation: ops.FileOperation, locks: TreeLocks
) -> Program[None]:
    if operation.tree == TreeId(unit.actor):
        yield from chain_to(tx, unit, operation.tree, ())
    place: Path | None = None
    if isinstance(operation, ops.Prune) or (
        isinstance(operation, ops.Restore) and operation.target is None
    ):
        if operation.tree != TreeId(unit.actor):  # who may not look learns no path
            yield from node_by_id(tx, unit, operation.tree, operation.node)
        place = yield from _place(operation.tree, operation.node)
        if place is None:
            return  # it is refused for another reason
    wanted = needs(operation, place)
    if operation.tree != TreeId(unit.actor):  # who may not look learns nothing
        for _, *path in wanted:
            yield from chain_to(tx, unit, operation.tree, tuple(path), Action.READ)
    shown = _shown(unit, operation.tree)
    check_write(locks.table, wanted, check_presented(locks.table, shown))


def _shown(unit: Unit, tree: TreeId) -> "tuple[Presented, ...]":
    """The locks that `unit` comes with and that count in `tree`.

    Locks are the owner's alone: of others, only what their own batch has waited for counts.
    """
    if tree == TreeId(unit.actor):
        return unit.presented
    mine = f"{LOCK_OWNER}{unit.op_id}"
    return tuple(each for each in unit.presented if each.owner == mine)


def _place(tree: TreeId, node: NodeId) -> Program[Path | None]:
    """Where a node of `tree` stands, or would if it were not in the trash; None if it is none."""
    rows = yield Run(ABOVE, (node,))
    chain = [to_node(row) for row in reversed(rows)]
    if not chain or chain[0].tree != tree:
        return None
    return path_along(chain)


def any_locked(tx: Transaction, tree: TreeId, units: Sequence[Unit]) -> Program[bool]:
    """Whether a lock stands in the way of any of `units`, which are all about `tree`."""
    locks = yield from locks_of(tx.locks, tree)
    if not locks.table.grants and not any(unit.presented for unit in units):
        return False
    try:
        for unit in units:
            yield from guard(tx, unit)
    except LockError:
        return True
    return False


def give_up(tx: Transaction, unit: Unit) -> Program[None]:
    """Release what its owner has on what `unit` has moved or deleted: locks are on names.

    The last thing in a unit, when nothing of it can be refused any more.
    """
    if not unit.presented:
        return
    for operation in unit.operations:
        gone = leaves(operation)
        if gone is None:
            continue
        assert isinstance(operation, ops.Move | ops.Delete)
        locks = yield from locks_of(tx.locks, operation.tree)
        for owner in {owner for owner, _ in _shown(unit, operation.tree)}:
            for grant in tuple(locks.table.owned.get(owner, {}).values()):
                there = below(grant, gone)
                if there:
                    locks.table.release(grant.id, there)
                    locks.changed = True


def break_lock(tx: Transaction, unit: Unit, op: ops.BreakLock) -> Program[Result]:
    """What `BreakLock` does."""
    locks = yield from locks_of(tx.locks, op.tree)
    grant = locks.table.grants.get(op.token)
    if grant is None:
        raise NotFound(f"there is no lock with the token {op.token}: see `vaultfs lock ls`")
    paths = listed(path_of(each) for each in (*grant.items, *grant.ranges))
    yield from audit(tx, unit, "break-lock", f"tree {op.tree}: {grant.owner}.{op.token}: {paths}")
    locks.table.release(op.token)
    locks.changed = True
    return Result(count=1)

"""What each operation does to the tables, as programs (`statements.Program`).

A program first reads, then decides, then writes; it refuses by raising a
`VaultError`, and the driver takes back whatever the unit had written.
"""

from collections.abc import Callable
from typing import Any

from vaultfs.adapters.sql import accounts, copies, files, folders, grants, locking, stock, uploads
from vaultfs.adapters.sql.lockview import save
from vaultfs.adapters.sql.statements import Program, Run, RunMany
from vaultfs.adapters.sql.transaction import INSERT_CHANGE, Transaction
from vaultfs.domain import operations as ops
from vaultfs.domain.operations import Result, Unit


def run_unit(tx: Transaction, unit: Unit, results: list[Result]) -> Program[None]:
    """Execute all operations of a unit, adding their `results`.

    Raises the error of the first that is refused, for which there is no result.
    """
    yield from locking.guard(tx, unit)
    yield from stock.rely(tx, unit)
    tx.copied = 0
    for operation in unit.operations:
        result = yield from PROGRAMS[type(operation)](tx, unit, operation)
        results.append(result)
    yield from locking.give_up(tx, unit)


def finish(tx: Transaction) -> Program[None]:
    """Write what was collected; the last thing in a transaction."""
    for tree in tx.trees.values():
        yield Run(
            "UPDATE trees SET seq = $1, used = $2 WHERE id = $3", (tree.seq, tree.used, tree.id)
        )
    if len(tx.changes) == 1:
        yield Run(INSERT_CHANGE, tx.changes[0])
    elif tx.changes:
        yield RunMany(INSERT_CHANGE, tx.changes)
    yield from save(tx.locks)


PROGRAMS: dict[type, Callable[[Transaction, Unit, Any], Program[Result]]] = {
    ops.PutFile: files.put_file,
    ops.RestoreVersion: files.restore_version,
    ops.MakeFolder: folders.make_folder,
    ops.Move: folders.move,
    ops.Copy: copies.copy,
    ops.Delete: folders.delete,
    ops.Restore: folders.restore,
    ops.Purge: folders.purge,
    ops.Prune: files.prune,
    ops.SetMetadata: folders.set_metadata,
    ops.Grant: grants.grant,
    ops.Revoke: grants.revoke,
    ops.AddUser: accounts.add_user,
    ops.SetRetention: accounts.set_retention,
    ops.SetQuota: accounts.set_quota,
    ops.AddToken: accounts.add_token,
    ops.RotateToken: accounts.rotate_token,
    ops.RevokeToken: accounts.revoke_token,
    ops.TouchToken: accounts.touch_token,
    ops.BreakLock: locking.break_lock,
    ops.RecordPack: stock.record_pack,
    ops.ClaimChunks: stock.claim_chunks,
    ops.RecordDelta: stock.record_delta,
    **uploads.PROGRAMS,
}

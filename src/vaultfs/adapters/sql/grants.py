"""What granting and revoking do to the tables: a row each, whatever the node holds."""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from vaultfs.adapters.sql.accounts import audit
from vaultfs.adapters.sql.statements import Program, Run
from vaultfs.adapters.sql.transaction import Transaction, check_owner, log, node_at
from vaultfs.domain import operations as ops
from vaultfs.domain.access import Action
from vaultfs.domain.errors import InvalidField, NotFound
from vaultfs.domain.names import format_path, key_of
from vaultfs.domain.nodes import Node, UserId
from vaultfs.domain.operations import Result, Unit


def grant(tx: Transaction, unit: Unit, op: ops.Grant) -> Program[Result]:
    node, grantee = yield from _what(tx, unit, op)
    yield Run(
        "INSERT INTO grants(node, grantee, tree, role, actor, at) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (node, grantee) DO UPDATE"
        " SET role = excluded.role, actor = excluded.actor, at = excluded.at",
        (node.id, grantee, op.tree, str(op.role), unit.actor, unit.at_us),
    )
    subject = f"{op.role} of node {node.id}: {op.user}"
    yield from _note(tx, unit, "grant", node, grantee, subject)
    return Result(node, 1)


def revoke(tx: Transaction, unit: Unit, op: ops.Revoke) -> Program[Result]:
    node, grantee = yield from _what(tx, unit, op)
    rows = yield Run(
        "DELETE FROM grants WHERE node = $1 AND grantee = $2 RETURNING role", (node.id, grantee)
    )
    if not rows:
        raise NotFound(f"{op.user} was granted nothing on {format_path(op.path)} itself")
    subject = f"{rows[0][0]} of node {node.id}: {op.user}"
    yield from _note(tx, unit, "revoke", node, grantee, subject)
    return Result(node, 1)


def _what(tx: Transaction, unit: Unit, op: ops.Grant | ops.Revoke) -> Program[tuple[Node, UserId]]:
    node = yield from node_at(tx, unit, op.tree, op.path, Action.READ)
    check_owner(unit, op.tree, format_path(op.path))
    op.preconditions.check(node, format_path(op.path))
    rows = yield Run("SELECT id FROM users WHERE key = $1", (key_of(op.user),))
    if not rows:
        raise NotFound(f"there is no user {op.user}")
    if rows[0][0] == op.tree:
        raise InvalidField(f"{op.user} owns it, and may do all with it")
    return node, UserId(rows[0][0])


def _note(
    tx: Transaction, unit: Unit, kind: str, node: Node, grantee: UserId, subject: str
) -> Program[None]:
    tx.roles.pop((grantee, node.tree), None)
    yield from log(tx, unit, kind, node)
    yield from audit(tx, unit, kind, subject)

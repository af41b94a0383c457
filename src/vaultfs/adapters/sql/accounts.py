"""What the operations on users, their limits and their tokens do to the tables.

Each leaves a row in `audit`: it changes no node, so no feed has it.
"""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from vaultfs.adapters.sql.statements import Program, Run, format_retention
from vaultfs.adapters.sql.transaction import (
    INSERT_NODE,
    Transaction,
    chain_to,
    check_owner,
    next_id,
    node_row,
    tree_row,
)
from vaultfs.domain import operations as ops
from vaultfs.domain.errors import Exists, NotFound
from vaultfs.domain.names import check_user, key_of
from vaultfs.domain.nodes import Node
from vaultfs.domain.operations import Result, Unit
from vaultfs.domain.retention import KEEP_ALL
from vaultfs.domain.tokens import TOUCH_EVERY_US


def audit(tx: Transaction, unit: Unit, kind: str, subject: str) -> Program[None]:
    number = yield from next_id(tx, "audit")
    yield Run(
        "INSERT INTO audit(id, at, actor, kind, subject, op_id) VALUES ($1, $2, $3, $4, $5, $6)",
        (number, unit.at_us, unit.actor, kind, subject, unit.op_id),
    )


def add_user(tx: Transaction, unit: Unit, op: ops.AddUser) -> Program[Result]:
    key = key_of(check_user(op.name))
    if (yield Run("SELECT 1 FROM users WHERE key = $1", (key,))):
        raise Exists(f"there is a user {op.name} already")
    user = yield from next_id(tx, "users")
    root = yield from next_id(tx, "nodes")
    yield Run(
        "INSERT INTO users(id, name, key, created) VALUES ($1, $2, $3, $4)",
        (user, op.name, key, unit.at_us),
    )
    yield Run(
        "INSERT INTO trees(id, root, seq, used, quota, retention) VALUES ($1, $2, 0, 0, $3, $4)",
        (user, root, op.quota, format_retention(KEEP_ALL)),
    )
    node = Node._make(
        (root, user, None, "", "folder", 1, None, 0, 0, "{}", *(unit.at_us,) * 2, None)
    )
    yield Run(INSERT_NODE, node_row(node))
    yield from audit(tx, unit, "add-user", op.name)
    return Result(node)


def set_retention(tx: Transaction, unit: Unit, op: ops.SetRetention) -> Program[Result]:
    yield from chain_to(tx, unit, op.tree, ())
    check_owner(unit, op.tree, "the tree")
    text = format_retention(op.retention)
    yield Run("UPDATE trees SET retention = $2 WHERE id = $1", (op.tree, text))
    yield from audit(tx, unit, "set-retention", f"tree {op.tree}: {text}")
    return Result()


def set_quota(tx: Transaction, unit: Unit, op: ops.SetQuota) -> Program[Result]:
    tree = yield from tree_row(tx, op.tree)
    yield Run("UPDATE trees SET quota = $2 WHERE id = $1", (op.tree, op.quota))
    tx.trees[op.tree] = tree._replace(quota=op.quota)
    yield from audit(tx, unit, "set-quota", f"tree {op.tree}: {op.quota}")
    return Result()


def add_token(tx: Transaction, unit: Unit, op: ops.AddToken) -> Program[Result]:
    token = op.token
    if not (yield Run("SELECT 1 FROM users WHERE id = $1", (token.owner,))):
        raise NotFound(f"there is no user {token.owner}")
    if (yield Run("SELECT 1 FROM tokens WHERE id = $1", (token.id,))):
        raise Exists(f"there is a token {token.id} already")
    yield Run(
        "INSERT INTO tokens(id, owner, name, scopes, digest, previous, previous_until, created,"
        " expires, used, revoked) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tuple(token),
    )
    yield from audit(tx, unit, "add-token", f"user {token.owner}: {token.id}: {token.scopes}")
    return Result()


def rotate_token(tx: Transaction, unit: Unit, op: ops.RotateToken) -> Program[Result]:
    rows = yield Run(
        "UPDATE tokens SET previous = digest, previous_until = $3, digest = $4, expires = $5"
        " WHERE id = $1 AND owner = $2 AND revoked IS NULL RETURNING 1",
        (op.id, op.owner, op.until_us, op.digest, op.expires_us),
    )
    if not rows:
        raise NotFound(f"there is no token {op.id}")
    yield from audit(tx, unit, "rotate-token", f"user {op.owner}: {op.id}")
    return Result()


def revoke_token(tx: Transaction, unit: Unit, op: ops.RevokeToken) -> Program[Result]:
    rows = yield Run(
        "UPDATE tokens SET revoked = COALESCE(revoked, $3) WHERE id = $1 AND owner = $2"
        " RETURNING 1",
        (op.id, op.owner, unit.at_us),
    )
    if not rows:
        raise NotFound(f"there is no token {op.id}")
    yield from audit(tx, unit, "revoke-token", f"user {op.owner}: {op.id}")
    return Result()


def touch_token(_tx: Transaction, unit: Unit, op: ops.TouchToken) -> Program[Result]:
    yield Run(
        "UPDATE tokens SET used = $2 WHERE id = $1 AND COALESCE(used, 0) < $3",
        (op.id, unit.at_us, unit.at_us - TOUCH_EVERY_US + 1),
    )
    return Result()

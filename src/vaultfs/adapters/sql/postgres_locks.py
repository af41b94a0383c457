"""What a write transaction on PostgreSQL locks before it reads anything, and in which order.

Theory of operation. Several servers write to one database, each with transactions of
many callers' units. Statements run at READ COMMITTED, so what a unit has read could be
stale by the time it writes; and two transactions that lock the same rows in different
orders would wait for each other. Both are ruled out here, before the first unit runs:

1. The row of each tree that the units change, `FOR UPDATE`, in the order of ids. From
   then on nobody else changes a node of these trees, their feed counters, their quotas
   or, as users and trees have the same ids, which chunks their users have. So two moves
   cannot make a circle, and a feed has no gap and no number twice.
2. The epochs, `FOR SHARE`, `placement` before `gc`. Whoever raises one waits for the
   transactions that have read it; whoever rebuilds the index locks the whole table, and
   with it keeps all writers waiting.
3. What else two transactions that share no tree could wait for each other about: the
   rows of tokens, in the order of ids; packs, idempotency keys and the names of users
   that may be inserted by both, by locks on numbers made of them, in the order of the
   numbers; and the counter of the audit, so that its ids ascend in the order of commits.

Everybody takes them in this order, so nobody waits in a circle. Ids of nodes, versions
and packs are not among them: they are taken in blocks, in transactions of their own.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

from attrs import frozen

from vaultfs.adapters.sql.postgres_swaps import SWAP
from vaultfs.domain import operations as ops
from vaultfs.domain.operations import Operation

TREES: Final = (
    "SELECT id, root, seq, used, quota FROM trees WHERE id = ANY($1::bigint[])"
    " ORDER BY id FOR UPDATE"
)
EPOCHS: Final = (
    "SELECT value FROM epochs WHERE name IN ('placement', 'gc') ORDER BY name DESC FOR SHARE"
)
TOKENS: Final = "SELECT 1 FROM tokens WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE"
NUMBERS: Final = "SELECT pg_advisory_xact_lock(each) FROM unnest($1::bigint[]) each"
AUDIT: Final = "SELECT 1 FROM counters WHERE name = 'audit' FOR UPDATE"
NO_WRITERS: Final = "LOCK TABLE epochs IN EXCLUSIVE MODE"
"""Waits for writers, and has them wait; readers go on."""

_USERS: Final = 0x75736572
"""The number for the names of all users."""


@frozen
class Locks:
    """The statements by what they lock, in the order in which they are run."""

    statements: tuple[tuple[str, str], ...] = (
        ("trees", TREES),
        ("epochs", EPOCHS),
        ("tokens", TOKENS),
        ("numbers", NUMBERS),
        ("audit", AUDIT),
    )
    swap: str = SWAP
    """What changes the locks of a tree by itself."""

    def of(
        self, operations: Sequence[Operation], trees: Iterable[int] = (), keys: Iterable[str] = ()
    ) -> list[tuple[str, str, tuple[Any, ...]]]:
        """What a transaction of `operations` has to run first: what it locks, how, and which.

        `trees` are those whose locks it changes besides; `keys` name what no two do at a time.
        """
        wanted = _wanted(operations, trees, keys)
        return [(what, sql, wanted[what]) for what, sql in self.statements if what in wanted]

    def text_of(self, trees: Iterable[int]) -> str:
        """The same where only the locks of `trees` are changed: all in one text, to send at once.

        It answers no rows: there, nobody needs those of the trees.
        """
        wanted = "'{" + ",".join(str(int(tree)) for tree in trees) + "}'"
        return ";".join(sql.replace("$1", wanted) for _, sql, _ in self.of((), trees))


def _wanted(
    operations: Sequence[Operation], others: Iterable[int], keys: Iterable[str]
) -> dict[str, tuple[Any, ...]]:
    """The parameters of each kind of lock that is needed."""
    trees = dict.fromkeys(others) | dict.fromkeys(
        tree for op in operations for tree in _trees_of(op)
    )
    kinds = set(map(type, operations))  # few, where operations may be a thousand
    tokens, packs = set[str](), set[int]()
    if kinds & _OF_TOKENS:
        tokens = {token for op in operations if (token := _token_of(op)) is not None}
    if ops.RecordPack in kinds:
        packs = {_number_of(op) for op in operations if isinstance(op, ops.RecordPack)}
    numbers = packs if len(packs) > 1 else set[int]()  # one alone waits in no circle
    if ops.AddUser in kinds:
        numbers.add(_USERS)
    numbers.update(_number(sha256(key.encode()).digest()) for key in keys)
    wanted: dict[str, tuple[Any, ...]] = {"epochs": ()}
    if trees:
        wanted["trees"] = (list(trees),)
    if tokens:
        wanted["tokens"] = (sorted(tokens),)
    if numbers:
        wanted["numbers"] = (sorted(numbers),)
    if kinds & _AUDITED:
        wanted["audit"] = ()
    return wanted


_OF_TOKENS: Final = {ops.AddToken, ops.RotateToken, ops.RevokeToken, ops.TouchToken}
_AUDITED: Final = {
    *(ops.AddUser, ops.SetRetention, ops.SetQuota, ops.Grant, ops.Revoke),
    *(ops.AddToken, ops.RotateToken, ops.RevokeToken, ops.BreakLock, ops.SetDigest),
}


def _trees_of(op: Operation) -> Iterable[int]:
    """The trees that `op` changes, or whose users get chunks."""
    match op:
        case ops.PutFile() | ops.Move():  # there may be a thousand of them
            return (op.tree,)
        case ops.RecordPack():
            return (user for user, _ in op.claims)
        case ops.ClaimChunks() | ops.PinChunks():
            return (op.user,)
        case (
            ops.AddUser()
            | ops.AddToken()
            | ops.RotateToken()
            | ops.RevokeToken()
            | ops.TouchToken()
        ):
            return ()
        case _:
            return (op.tree,)


def _token_of(op: Operation) -> str | None:
    """The token that `op` changes."""
    match op:
        case ops.AddToken():
            return op.token.id
        case ops.RotateToken() | ops.RevokeToken() | ops.TouchToken():
            return op.id
        case _:
            return None


def _number_of(op: ops.RecordPack) -> int:
    """What is locked for a pack that may not be there yet."""
    return _number(op.key)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)

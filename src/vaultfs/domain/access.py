"""Who may do what: one function, asked by every use case and inside every write."""

from collections.abc import Iterable, Mapping
from enum import Enum, StrEnum

from vaultfs.domain.errors import Forbidden, NotFound
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import NodeId, TreeId, UserId


class Action(Enum):
    """What a caller wants to do with a node."""

    READ = "read"
    WRITE = "write"


class Role(StrEnum):
    """What somebody was granted on a node, and on all below it."""

    READER = "reader"
    WRITER = "writer"


def may(caller: UserId, action: Action, tree: TreeId, role: Role | None = None) -> bool:
    """Whether `caller`, who was granted `role`, may do `action` with what is in `tree`.

    A tree is its owner's, who needs no role.
    """
    if tree == TreeId(caller):
        return True
    return role is Role.WRITER or (role is Role.READER and action is Action.READ)


def role_on(chain: Iterable[NodeId], granted: Mapping[NodeId, Role]) -> Role | None:
    """The strongest role that is granted on a node or one above it: on any of `chain`."""
    found = {granted[node] for node in chain if node in granted}
    return Role.WRITER if Role.WRITER in found else next(iter(found), None)


def require(caller: UserId, action: Action, tree: TreeId, role: Role | None, where: str) -> None:
    """Refuse what `may` does not allow.

    Raises `NotFound` for who may not even know what is at `where`, and else `Forbidden`.
    """
    if not may(caller, Action.READ, tree, role):
        raise NotFound(f"nothing is at {where}")
    if not may(caller, action, tree, role):
        raise Forbidden(f"{where} is yours to read, not to change: its owner can grant that")


def nothing_at(address: Address) -> NotFound:
    """The error for what is not there, and for what the caller may not know to be there."""
    return NotFound(f"nothing is at {address}")


def one_tree() -> NotFound:
    """The error for what would go from one user's tree to another's, whatever is in them."""
    return NotFound(
        "what is moved, copied or restored stays in the tree of one user:"
        " get it, and put it into the other"
    )

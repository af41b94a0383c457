"""Who may do what: one function, asked by every use case and inside every write."""

from enum import Enum

from vaultfs.domain.errors import NotFound
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import TreeId, UserId


class Action(Enum):
    """What a caller wants to do with a node."""

    READ = "read"
    WRITE = "write"


def may(caller: UserId, action: Action, tree: TreeId) -> bool:  # noqa: ARG001 all are one's own
    """Whether `caller` may do `action` with what is in `tree`.

    A tree is its owner's, and nobody else's.
    """
    return tree == TreeId(caller)


def nothing_at(address: Address) -> NotFound:
    """The error for what is not there, and for what the caller may not know to be there."""
    return NotFound(f"nothing is at {address}")

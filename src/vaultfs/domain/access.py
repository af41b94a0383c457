"""Who may do what: one function, asked by every use case and inside every write."""

from collections.abc import Sequence
from enum import Enum

from vaultfs.domain.errors import NotFound
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Node, TreeId, UserId


class Action(Enum):
    """What a caller wants to do with a node."""

    READ = "read"
    WRITE = "write"


def may(caller: UserId, action: Action, chain: Sequence[Node]) -> bool:
    """Whether `caller` may do `action` at the end of `chain`, which begins at a tree's root.

    A tree is its owner's, and nobody else's.
    """
    return bool(chain) and chain[0].tree == TreeId(caller) and action in Action


def nothing_at(address: Address) -> NotFound:
    """The error for what is not there, and for what the caller may not know to be there."""
    return NotFound(f"nothing is at {address}")

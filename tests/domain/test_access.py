import pytest

from vaultfs.domain.access import Action, may, nothing_at
from vaultfs.domain.errors import NotFound
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Node, NodeId, TreeId, UserId


def chain(tree: int, depth: int = 1) -> list[Node]:
    return [
        Node(NodeId(n), TreeId(tree), None, "", "folder", 1, None, 0, 0, "{}", 0, 0, None)
        for n in range(depth)
    ]


@pytest.mark.parametrize("action", Action)
def test_a_tree_is_its_owners(action: Action) -> None:
    assert may(UserId(1), action, chain(1))
    assert may(UserId(1), action, chain(1, depth=5))
    assert not may(UserId(2), action, chain(1))
    assert not may(UserId(2), action, chain(1, depth=5))


@pytest.mark.parametrize("action", Action)
def test_nobody_may_do_anything_where_there_is_no_tree(action: Action) -> None:
    assert not may(UserId(1), action, [])


def test_what_may_not_be_known_is_not_found() -> None:
    error = nothing_at(Address("anna", ("a", "b")))
    assert isinstance(error, NotFound)
    assert str(error) == "nothing is at /a/b"

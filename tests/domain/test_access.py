import pytest

from vaultfs.domain.access import Action, may, nothing_at
from vaultfs.domain.errors import NotFound
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import TreeId, UserId


@pytest.mark.parametrize("action", Action)
def test_a_tree_is_its_owners(action: Action) -> None:
    assert may(UserId(1), action, TreeId(1))
    assert not may(UserId(2), action, TreeId(1))


def test_what_may_not_be_known_is_not_found() -> None:
    error = nothing_at(Address("anna", ("a", "b")))
    assert isinstance(error, NotFound)
    assert str(error) == "nothing is at /a/b"

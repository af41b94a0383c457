"""What a client makes of a server's refusals."""

from collections.abc import Iterator

import pytest

from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints.answers import error_of
from vaultfs.entrypoints.cli.errors import error_code


def _kinds(kind: type[VaultError]) -> Iterator[type[VaultError]]:
    for sub in kind.__subclasses__():
        if sub.__module__ == errors.__name__ and sub is not errors.PlacementChanged:  # kept inside
            yield sub
            yield from _kinds(sub)


@pytest.mark.parametrize("kind", [*_kinds(VaultError)])
def test_every_refusal_is_raised_as_what_it_was(kind: type[VaultError]) -> None:
    code = error_code(kind.__new__(kind))
    raised = error_of(code, "as it has to be", "r1")
    assert isinstance(raised, kind), code
    assert "as it has to be" in raised.message

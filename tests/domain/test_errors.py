from collections.abc import Iterator

import pytest

from vaultfs.domain.digests import digest_from_hex, digest_of
from vaultfs.domain.errors import (
    DamagedContent,
    InvalidField,
    OutcomeUnknown,
    VaultError,
    VersionMismatch,
    listed,
)
from vaultfs.ports import objects


def subclasses(cls: type[VaultError]) -> Iterator[type[VaultError]]:
    yield cls
    for each in cls.__subclasses__():
        yield from subclasses(each)


@pytest.mark.parametrize("cls", sorted(set(subclasses(VaultError)), key=str))
def test_every_error_says_what_it_means(cls: type[VaultError]) -> None:
    assert cls.__doc__
    assert cls.__doc__ != (cls.__bases__[0].__doc__ or "")


def test_errors_of_ports_are_errors_of_the_vault() -> None:
    assert issubclass(objects.ObjectNotFound, VaultError)


def test_a_message_is_what_is_shown() -> None:
    error = VaultError("the disk is full: make room")
    assert str(error) == error.message == "the disk is full: make room"


def test_facts_are_fields() -> None:
    mismatch = VersionMismatch("somebody was first", expected=1, found=None)
    assert (mismatch.expected, mismatch.found) == (1, None)
    assert OutcomeUnknown("who knows", op_id="x").op_id == "x"
    assert DamagedContent("gone", digest=b"d").digest == b"d"


@pytest.mark.parametrize(
    ("things", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_lists_are_kept_short(things: list[str], text: str) -> None:
    assert listed(things) == text


def test_digests_are_read_as_they_are_written() -> None:
    digest = digest_of(b"abc")
    assert digest_from_hex(digest.hex()) == digest
    for text in ("", "00", digest.hex()[:-1], digest.hex() + "0", "g" * 64, " " + digest.hex()[1:]):
        with pytest.raises(InvalidField):
            digest_from_hex(text)

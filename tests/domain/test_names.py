import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.errors import InvalidName
from vaultfs.domain.names import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_PATH,
    ROOT,
    Address,
    check_name,
    check_path,
    check_user,
    format_path,
    key_of,
    parse_address,
    parse_path,
)

GOOD = (
    "a",
    "...",
    ".hidden",
    "a b",
    " ",
    "\u00e9",
    "e\u0301",
    "\U0001f5c4",
    "x" * MAX_NAME,
    "\u2028",
)
BAD = ("", ".", "..", "/", "a/b", "a\\b", "a\nb", "\x00", "\x7f", "\x9f", "\udc80", "x" * 256)

names = st.text(min_size=1, max_size=40).filter(
    lambda name: (
        name not in {".", ".."}
        and not any(char in "/\\" or unicodedata.category(char) in {"Cc", "Cs"} for char in name)
    )
)
paths = st.lists(names, max_size=8).map(tuple)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_is_given_back(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_length_is_counted_in_bytes() -> None:
    check_name("\u00e9" * 127)
    with pytest.raises(InvalidName):
        check_name("\u00e9" * 128)


def test_neither_form_of_a_name_may_be_too_long() -> None:
    grows = "\u0958" * 80  # 3 bytes each; 6 in NFC, which takes this one apart
    assert len(grows.encode()) < MAX_NAME < len(unicodedata.normalize("NFC", grows).encode())
    with pytest.raises(InvalidName):
        check_name(grows)


@given(names)
@settings(deadline=None, max_examples=50)
def test_all_forms_of_a_name_have_one_key(name: str) -> None:
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    assert {key_of(form) for form in forms} == {key_of(name)}
    assert key_of(key_of(name)) == key_of(name)


def test_case_and_compatibility_forms_tell_names_apart() -> None:
    assert len({key_of(name) for name in ("k", "K", "\ufb01", "fi")}) == 4


@given(paths)
@settings(deadline=None, max_examples=50)
def test_a_path_is_read_as_it_was_written(path: tuple[str, ...]) -> None:
    assert parse_path(format_path(path)) == path


@pytest.mark.parametrize(
    ("text", "path"), [("/", ROOT), ("/a", ("a",)), ("/a/", ("a",)), ("/a/b", ("a", "b"))]
)
def test_paths(text: str, path: tuple[str, ...]) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize("text", ["", "a", "a/b", "//", "/a//b", "/a//", "/../a", "/a/.", "/a\x00"])
def test_bad_paths(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_path(text)


def test_a_path_has_its_bounds() -> None:
    check_path(("d",) * MAX_DEPTH)
    check_path(("x" * 255,) * 16)
    check_path(("é" * 127,) * 16)
    for path in (
        ("d",) * (MAX_DEPTH + 1),
        ("x" * 255,) * 16 + ("",),
        ("x" * 255,) * 17,
        ("é" * 127,) * 17,
    ):
        with pytest.raises(InvalidName):
            check_path(path)
    assert MAX_PATH == 16 * 256


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/", Address("me", ())),
        ("/a:/b", Address("me", ("a:", "b"))),
        ("you:/", Address("you", ())),
        ("you:/a/b", Address("you", ("a", "b"))),
        ("\u00e9:/a:/b", Address("\u00e9", ("a:", "b"))),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text, own="me") == address
    assert parse_address(f"{address.tree}:{address}", own="somebody else") == address


@pytest.mark.parametrize("text", ["", "a", "you:", "you:a", ":/a", "..:/a", "a:b:/c", "you:/../a"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_address(text, own="me")


def test_a_child_is_below() -> None:
    assert Address("me", ("a",)).child("b") == Address("me", ("a", "b"))
    with pytest.raises(InvalidName):
        Address("me", ("a",)).child("..")


def test_users_have_no_colon() -> None:
    assert check_user("anna") == "anna"
    for name in ("a:b", "", "a/b"):
        with pytest.raises(InvalidName):
            check_user(name)

"""Tokens and rates."""

from contextlib import suppress
from hmac import compare_digest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.domain.errors import Forbidden, InvalidField, NotAuthenticated
from vaultfs.domain.nodes import User, UserId
from vaultfs.domain.rates import Rate, take
from vaultfs.domain.tokens import (
    Identity,
    Scope,
    Token,
    check_token,
    hash_of,
    parse_token,
    write_scopes,
    write_token,
)

SECRET, OLD = b"s" * 32, b"o" * 32


def token(**changes: object) -> Token:
    plain = Token("ab12", UserId(1), "", "read", hash_of(SECRET), None, None, 0, None, None, None)
    return plain._replace(**changes)  # type: ignore[arg-type]


def secret_of(secret: bytes) -> str:
    return parse_token(write_token("ab12", secret))[1]


@given(st.binary(min_size=32, max_size=32))
def test_a_token_is_read_as_it_was_written(secret: bytes) -> None:
    number, text = parse_token(write_token("ab12", secret))
    assert number == "ab12"
    check_token(token(digest=hash_of(secret)), text, 0)


@pytest.mark.parametrize(
    "text", ["", "vfs_", "vfs__x", "vfs_ab12", "vfs_ab12_", "ab12_x", "Bearer x", "vfs_a b_c"]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(NotAuthenticated):
        parse_token(text)


@pytest.mark.parametrize("wrong", ["", "x", secret_of(SECRET)[:-1], secret_of(SECRET) + "A", "é"])
def test_another_secret_is_refused(wrong: str) -> None:
    with pytest.raises(NotAuthenticated, match="no such token"):
        check_token(token(), wrong, 0)
    with pytest.raises(NotAuthenticated, match="no such token"):
        check_token(None, wrong, 0)


def test_secrets_are_compared_in_the_same_time_whatever_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[int, int]] = []

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    class Opaque(bytes):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared in a time that tells how much is right")

        __hash__ = bytes.__hash__

    monkeypatch.setattr("vaultfs.domain.tokens.compare_digest", noting)
    kept, before = Opaque(hash_of(SECRET)), Opaque(hash_of(OLD))
    once = token(digest=kept, previous=None)
    rotated = token(digest=kept, previous=before, previous_until_us=100)
    for each, secret in (
        *((None, SECRET), (once, SECRET), (once, OLD), (once, b"x" * 32)),
        *((rotated, SECRET), (rotated, OLD), (rotated, b"x" * 32)),
    ):
        compared.clear()
        with suppress(NotAuthenticated):
            check_token(each, secret_of(secret), 0)
        assert compared == [(32, 32), (32, 32)]


def test_both_secrets_of_a_rotated_token_are_good_for_a_time() -> None:
    rotated = token(previous=hash_of(OLD), previous_until_us=100)
    check_token(rotated, secret_of(OLD), 99)
    check_token(rotated, secret_of(SECRET), 1000)
    with pytest.raises(NotAuthenticated, match="rotated"):
        check_token(rotated, secret_of(OLD), 100)


def test_a_token_ends_when_it_expires_or_is_revoked() -> None:
    check_token(token(expires_us=100), secret_of(SECRET), 99)
    with pytest.raises(NotAuthenticated, match="expired"):
        check_token(token(expires_us=100), secret_of(SECRET), 100)
    with pytest.raises(NotAuthenticated, match="revoked"):
        check_token(token(revoked_us=5), secret_of(SECRET), 0)
    # Whoever does not have the secret is told nothing of that.
    with pytest.raises(NotAuthenticated, match="no such token"):
        check_token(token(revoked_us=5), secret_of(OLD), 0)


def test_scopes_are_asked_for() -> None:
    reader = Identity(User(UserId(1), "me", None, 0), frozenset({Scope.READ}))
    reader.require(Scope.READ)
    with pytest.raises(Forbidden):
        reader.require(Scope.WRITE)
    assert write_scopes(frozenset({Scope.WRITE, Scope.READ})) == "read write"
    with pytest.raises(InvalidField):
        write_scopes(frozenset())


@given(st.lists(st.floats(0, 3), max_size=200), st.integers(1, 20), st.floats(0.5, 50))
def test_no_window_has_more_than_its_burst_and_its_rate(
    gaps: list[float], burst: int, per_second: float
) -> None:
    rate, full_at, now = Rate(per_second, burst), 0.0, 0.0
    allowed: list[float] = []
    for gap in gaps:
        now += gap
        verdict = take(rate, full_at, now)
        full_at = verdict.full_at
        assert verdict.allowed == (verdict.retry_after == 0)
        if verdict.allowed:
            allowed.append(now)
        else:
            assert take(rate, full_at, now + verdict.retry_after + 1e-6).allowed
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            window = allowed[last] - allowed[first]
            assert last - first + 1 <= burst + window * per_second + 1e-6


def test_what_remains_is_told() -> None:
    rate, full_at = Rate(1, 3), 0.0
    seen: list[int] = []
    for _ in range(3):
        verdict = take(rate, full_at, 100)
        full_at = verdict.full_at
        seen.append(verdict.remaining)
    assert seen == [2, 1, 0]
    assert take(rate, full_at, 100).retry_after == pytest.approx(1)

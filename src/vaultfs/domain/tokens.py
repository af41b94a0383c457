"""Access tokens: who a request comes from, and what it may do.

    vfs_<id>_<secret>

The id names the token in lists and logs; the secret is 256 random bits, of which the
catalog keeps the SHA-256 alone: with so many bits nothing slower is needed. Nothing
here reads a clock or makes a secret; both are told.
"""

from base64 import urlsafe_b64encode
from enum import StrEnum
from functools import cache
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from vaultfs.domain.errors import Forbidden, InvalidField, NotAuthenticated
from vaultfs.domain.nodes import User, UserId

PREFIX: Final = "vfs_"
SECRET_SIZE: Final = 32
"""Bytes of a secret."""
MAX_NAME: Final = 100
"""Characters of what a person calls a token."""
TOUCH_EVERY_US: Final = 60_000_000
"""How exactly the last use of a token is known: a write for every request would cost more."""


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    """Looking at all that its user may see."""
    WRITE = "write"
    """Changing it."""
    ADMIN = "admin"
    """Managing users, tokens and the vault; by itself it opens nobody's files."""


ALL_SCOPES: Final = frozenset(Scope)


class Token(NamedTuple):
    """A token as the catalog keeps it; times are microseconds since 1970, UTC."""

    id: str
    owner: UserId
    name: str
    scopes: str
    """Separated by spaces, in order of the alphabet."""
    digest: bytes
    """SHA-256 of the secret."""
    previous: bytes | None
    """That of the secret before the last rotation."""
    previous_until_us: int | None
    """When the secret before stops being good."""
    created_us: int
    expires_us: int | None
    used_us: int | None
    """When it was last used, to the minute."""
    revoked_us: int | None

    @property
    def scope_set(self) -> frozenset[Scope]:
        return read_scopes(self.scopes)


class Identity(NamedTuple):
    """Who a request comes from, once that is certain."""

    user: User
    scopes: frozenset[Scope]
    token: str = ""
    """The token's id; empty for the owner of an embedded vault."""
    expires_us: int | None = None
    """When the token expires."""
    rotated: bool = False
    """Whether the secret is the one before the last rotation: it makes no others."""

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless the token allows it."""
        if scope not in self.scopes:
            raise Forbidden(
                f"this token does not allow it: the scope {scope} is needed"
                " (`vaultfs token add --scopes`)"
            )


@cache
def read_scopes(text: str) -> frozenset[Scope]:
    """The opposite of `write_scopes`."""
    return frozenset(map(Scope, text.split()))


def write_scopes(scopes: frozenset[Scope]) -> str:
    """As a token's row keeps them. Raises `InvalidField` for none at all."""
    if not scopes:
        raise InvalidField("a token needs a scope: read, write or admin")
    return " ".join(sorted(scopes))


def write_token(number: str, secret: bytes) -> str:
    """The token as its user keeps it."""
    return f"{PREFIX}{number}_{_text(secret)}"


def _text(secret: bytes) -> str:
    return urlsafe_b64encode(secret).decode().rstrip("=")


def parse_token(text: str) -> tuple[str, str]:
    """Id and secret of a token as its user keeps it. Raises `NotAuthenticated`."""
    number, _, secret = text.removeprefix(PREFIX).partition("_")
    if not text.startswith(PREFIX) or not number.isalnum() or not secret:
        raise NotAuthenticated("this is no token of a vault: they look like vfs_..._...")
    return number, secret


def hash_of(secret: bytes) -> bytes:
    """What the catalog keeps of a secret."""
    return _hash_of_text(_text(secret))


def _hash_of_text(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


def check_token(token: Token | None, secret: str, now_us: int) -> bool:
    """Raise `NotAuthenticated` unless `secret` is `token`'s and it is still good.

    Returns whether it is the one before the last rotation.

    Compares as long for a token that is not there as for one that is, and says the same
    whatever was wrong but for a token that was good once.
    """
    given = _hash_of_text(secret)
    kept = bytes(len(given)) if token is None else token.digest
    before = bytes(len(given)) if token is None or token.previous is None else token.previous
    is_new, is_old = compare_digest(given, kept), compare_digest(given, before)
    if token is None or not (is_new or is_old):
        raise NotAuthenticated("no such token: ask an admin for one (`vaultfs token add`)")
    if is_old and not is_new and (token.previous_until_us or 0) <= now_us:
        raise NotAuthenticated(f"token {token.id} was rotated: use its new secret")
    if token.revoked_us is not None:
        raise NotAuthenticated(f"token {token.id} was revoked")
    if token.expires_us is not None and token.expires_us <= now_us:
        raise NotAuthenticated(f"token {token.id} has expired: rotate it or make another")
    return not is_new

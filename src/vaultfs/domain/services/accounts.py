"""Users, their limits and their tokens.

A secret leaves here once, when it is made: neither the catalog nor anybody else can
give it back. Whoever calls has an `Identity`; what takes the scope `admin` says so.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import define, field, frozen

from vaultfs.domain.errors import Forbidden, InvalidField, NotFound
from vaultfs.domain.names import key_of
from vaultfs.domain.nodes import TreeId, User, UserId, micros
from vaultfs.domain.operations import (
    AddToken,
    AddUser,
    BreakLock,
    Operation,
    Refused,
    RevokeToken,
    RotateToken,
    SetQuota,
    TouchToken,
    Unit,
)
from vaultfs.domain.tokens import (
    MAX_NAME,
    TOUCH_EVERY_US,
    Identity,
    Scope,
    Token,
    check_token,
    hash_of,
    parse_token,
    write_scopes,
    write_token,
)
from vaultfs.ports.catalog import Audited, Catalog
from vaultfs.ports.clock import Clock

OVERLAP: Final = timedelta(days=1)
"""How long the secret before a rotation stays good, unless said otherwise."""
LONGEST_OVERLAP: Final = timedelta(days=30)


KNOWN_FOR: Final = 1.0
"""Seconds for which a token is not looked up again: so long can one that another process
has revoked go on."""
MOST_KNOWN: Final = 10_000
LATEST: Final = micros(datetime(9999, 1, 1, tzinfo=UTC))


@frozen
class Issued:
    """A token and its secret, which nobody will see again."""

    token: Token
    secret: str
    """As its user keeps it: `vfs_..._...`."""


@define(eq=False)
class Accounts:
    """One of these serves all callers of a process."""

    catalog: Catalog
    clock: Clock
    _known: dict[str, tuple[float, Token, User]] = field(
        factory=dict[str, tuple[float, Token, User]]
    )
    """Tokens that were looked up less than `KNOWN_FOR` seconds ago, and when."""

    # Who is it

    async def identify(self, text: str) -> Identity:
        """Whose token `text` is. Raises `NotAuthenticated`, in the same time whatever is wrong.

        Notes when the token was used, to the minute.
        """
        number, secret = parse_token(text)
        now = micros(self.clock.now())
        found = await self._look_up(number)
        rotated = check_token(None if found is None else found[0], secret, now)
        assert found is not None
        token, user = found
        if now - (token.used_us or 0) >= TOUCH_EVERY_US:
            self._known.pop(number, None)
            await self._apply(user.id, TouchToken(token.id))
        return Identity(user, token.scope_set, token.id, token.expires_us, rotated)

    async def _look_up(self, number: str) -> tuple[Token, User] | None:
        now = self.clock.monotonic()
        if number in self._known:
            since, token, user = self._known[number]
            if now - since < KNOWN_FOR:
                return token, user
            del self._known[number]
        found = await self.catalog.token(number)
        if found is not None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[number] = (now, *found)
        return found

    # Users

    async def add_user(self, by: Identity, name: str, quota: int | None = None) -> User:
        """Make a user. Needs `admin`; refused as `AddUser` is."""
        by.require(Scope.ADMIN)
        await self._apply(by.user.id, AddUser(name, _checked(quota)))
        return await self.catalog.user(name)

    async def users(self, by: Identity) -> list[User]:
        """All users. Needs `admin`."""
        by.require(Scope.ADMIN)
        return await self.catalog.users()

    async def user(self, by: Identity, name: str) -> User:
        """One user: the caller, or with `admin` anybody. Raises `NotFound`."""
        if key_of(name) != key_of(by.user.name):
            _require_admin(by, name)
        return await self.catalog.user(name)

    async def set_quota(self, by: Identity, name: str, quota: int | None) -> User:
        """Say how many bytes a user's versions may have. Needs `admin`."""
        by.require(Scope.ADMIN)
        user = await self.catalog.user(name)
        await self._apply(by.user.id, SetQuota(TreeId(user.id), _checked(quota)))
        return await self.catalog.user(name)

    async def audit(self, by: Identity, *, after: int = 0, limit: int = 1000) -> list[Audited]:
        """What was done to users, limits and tokens. Needs `admin`."""
        by.require(Scope.ADMIN)
        return await self.catalog.audit(after=after, limit=limit)

    # Tokens

    async def add_token(
        self,
        by: Identity,
        owner: str,
        name: str,
        scopes: frozenset[Scope],
        expires: datetime | None = None,
        *,
        number: str | None = None,
    ) -> Issued:
        """Make a token for `owner`: the caller, or with `admin` anybody.

        Nobody makes one that may do more than their own. Raises `Exists` if `number` is to
        be its id, and is, or was, that of another.
        """
        user = await self.user(by, owner)
        _refuse_rotated(by)
        if not scopes <= by.scopes and Scope.ADMIN not in by.scopes:
            raise Forbidden("a token cannot have scopes that the one it is made with lacks")
        if len(name) > MAX_NAME or not name.isprintable():
            raise InvalidField(f"a token's name has up to {MAX_NAME} printable characters")
        now = self.clock.now()
        secret, number = self.clock.new_secret(), number or self.clock.new_secret()[:8].hex()
        token = Token(
            number,
            user.id,
            name,
            write_scopes(scopes),
            hash_of(secret),
            None,
            None,
            micros(now),
            self._expiry(by, expires),
            None,
            None,
        )
        await self._apply(by.user.id, AddToken(token))
        return Issued(token, write_token(number, secret))

    async def tokens(self, by: Identity, owner: str) -> list[Token]:
        """The tokens of `owner` that were not revoked: the caller's, or with `admin` anybody's."""
        user = await self.user(by, owner)
        return await self.catalog.tokens(user.id)

    async def rotate_token(
        self,
        by: Identity,
        owner: str,
        number: str,
        *,
        overlap: timedelta = OVERLAP,
        expires: datetime | None = None,
    ) -> Issued:
        """Give a token a new secret; the one before is good for `overlap` longer.

        Without `expires` it expires when it would have. Raises `NotFound`.
        """
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise InvalidField(f"the old secret stays good for 0 to {LONGEST_OVERLAP.days} days")
        _refuse_rotated(by)
        token = await self._token(by, owner, number)
        most = _latest(by)
        if most is not None and (token.expires_us is None or token.expires_us > most):
            raise Forbidden("this token lasts longer than the one that is used")
        secret = self.clock.new_secret()
        until = micros(self.clock.now() + overlap)
        expires_us = token.expires_us if expires is None else self._expiry(by, expires)
        operation = RotateToken(token.owner, number, hash_of(secret), until, expires_us)
        await self._apply(by.user.id, operation)
        return Issued(await self._token(by, owner, number), write_token(number, secret))

    async def revoke_token(self, by: Identity, owner: str, number: str) -> None:
        """Make a token useless, for ever. Raises `NotFound`."""
        token = await self._token(by, owner, number)
        await self._apply(by.user.id, RevokeToken(token.owner, number))

    async def break_lock(self, by: Identity, owner: str, token: int) -> None:
        """Take a lock in a user's tree away from whoever has it; for admins, and audited.

        Raises `Forbidden`, `NotFound`.
        """
        by.require(Scope.ADMIN)
        user = await self.catalog.user(owner)
        await self._apply(by.user.id, BreakLock(user.tree, token))

    async def _token(self, by: Identity, owner: str, number: str) -> Token:
        for token in await self.tokens(by, owner):
            if token.id == number:
                if not token.scope_set <= by.scopes and Scope.ADMIN not in by.scopes:
                    raise Forbidden("this token may do more than the one that is used")
                return token
        raise NotFound(f"{owner} has no token {number}")

    def _expiry(self, by: Identity, expires: datetime | None) -> int | None:
        """When a token that `by` makes expires: no later than the one it is made with."""
        most = _latest(by)
        if expires is None:
            return most
        try:
            at_us = micros(expires)
        except OverflowError:
            at_us = LATEST
        if not micros(self.clock.now()) < at_us < LATEST:
            raise InvalidField(f"{expires.isoformat()}: a token expires later than now, by 9998")
        return at_us if most is None else min(at_us, most)

    async def _apply(self, actor: UserId, operation: Operation) -> None:
        unit = Unit(actor, micros(self.clock.now()), self.clock.new_id(), (operation,))
        [outcome] = await self.catalog.apply([unit])
        if isinstance(operation, RotateToken | RevokeToken):
            self._known.pop(operation.id, None)
        if isinstance(outcome, Refused):
            raise outcome.error


def _refuse_rotated(by: Identity) -> None:
    if by.rotated:
        raise Forbidden("this secret was rotated: tokens are made with the new one")


def _latest(by: Identity) -> int | None:
    """When what `by` makes expires at the latest; None for never."""
    return None if Scope.ADMIN in by.scopes else by.expires_us


def _require_admin(by: Identity, name: str) -> None:
    """Whether another user is there is only for an admin to know."""
    if Scope.ADMIN not in by.scopes:
        raise NotFound(f"there is no user {name}")


def _checked(quota: int | None) -> int | None:
    if quota is not None and not 0 <= quota < 1 << 62:
        raise InvalidField(f"{quota} bytes cannot be a quota")
    return quota

"""Users and tokens of a vault, whether it is in a folder here or behind a server."""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from attrs import frozen

from vaultfs.domain.nodes import User
from vaultfs.domain.services.accounts import Accounts, Issued
from vaultfs.domain.tokens import Identity, Scope, Token

if TYPE_CHECKING:
    from vaultfs.entrypoints.http.wire import AuditOut


class People(ABC):
    """What may be done depends on who asks: `Accounts` says with which errors."""

    __slots__ = ()

    @property
    @abstractmethod
    def own(self) -> str:
        """The user who asks."""

    @abstractmethod
    async def add_user(self, name: str, quota: int | None) -> User:
        """Make a user."""

    @abstractmethod
    async def users(self) -> list[User]:
        """All users."""

    @abstractmethod
    async def set_quota(self, name: str, quota: int | None) -> User:
        """Say how many bytes a user's versions may have."""

    @abstractmethod
    async def add_token(
        self, user: str, name: str, scopes: frozenset[Scope], expires: datetime | None
    ) -> Issued:
        """Make a token."""

    @abstractmethod
    async def tokens(self, user: str) -> list[Token]:
        """The tokens of a user that were not revoked."""

    @abstractmethod
    async def rotate_token(
        self, user: str, number: str, overlap: timedelta, expires: datetime | None
    ) -> Issued:
        """Give a token a new secret."""

    @abstractmethod
    async def revoke_token(self, user: str, number: str) -> None:
        """Make a token useless."""

    @abstractmethod
    async def audit(self) -> "list[AuditOut]":
        """What was done to users, tokens, limits and locks, oldest first."""


@frozen
class EmbeddedPeople(People):
    """For whoever can open the vault's folder."""

    accounts: Accounts
    owner: Identity

    @property
    def own(self) -> str:
        return self.owner.user.name

    async def add_user(self, name: str, quota: int | None) -> User:
        return await self.accounts.add_user(self.owner, name, quota)

    async def users(self) -> list[User]:
        return await self.accounts.users(self.owner)

    async def set_quota(self, name: str, quota: int | None) -> User:
        return await self.accounts.set_quota(self.owner, name, quota)

    async def add_token(
        self, user: str, name: str, scopes: frozenset[Scope], expires: datetime | None
    ) -> Issued:
        return await self.accounts.add_token(self.owner, user, name, scopes, expires)

    async def tokens(self, user: str) -> list[Token]:
        return await self.accounts.tokens(self.owner, user)

    async def rotate_token(
        self, user: str, number: str, overlap: timedelta, expires: datetime | None
    ) -> Issued:
        return await self.accounts.rotate_token(
            self.owner, user, number, overlap=overlap, expires=expires
        )

    async def revoke_token(self, user: str, number: str) -> None:
        await self.accounts.revoke_token(self.owner, user, number)

    async def audit(self) -> "list[AuditOut]":
        from vaultfs.entrypoints.http.wire import audit_out

        names = {user.id: user.name for user in await self.users()}
        found: list[AuditOut] = []
        rows = await self.accounts.audit(self.owner)
        while rows:
            found += [audit_out(row, names) for row in rows]
            rows = await self.accounts.audit(self.owner, after=rows[-1].id)
        return found

"""Users and tokens of a vault behind a server."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec
from attrs import frozen

from vaultfs.domain.nodes import User, UserId, micros
from vaultfs.domain.services.accounts import Issued
from vaultfs.domain.tokens import Scope, Token, write_scopes
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.entrypoints.http import wire
from vaultfs.entrypoints.people import People


@frozen
class RemotePeople(People):
    """For the user `own` of a token, as far as its scopes go."""

    vault: RemoteVault

    @property
    def own(self) -> str:
        return self.vault.user

    async def add_user(self, name: str, quota: int | None) -> User:
        return _user(await self._ask("POST", "users", wire.UserIn(name, quota), wire.UserOut))

    async def users(self) -> list[User]:
        found: wire.UserList = await self._ask("GET", "users", None, wire.UserList)
        return list(map(_user, found.entries))

    async def set_quota(self, name: str, quota: int | None) -> User:
        rest = f"users/{_quoted(name)}/quota"
        return _user(await self._ask("PUT", rest, wire.QuotaIn(quota), wire.UserOut))

    async def add_token(
        self, user: str, name: str, scopes: frozenset[Scope], expires: datetime | None
    ) -> Issued:
        body = wire.TokenIn(name, sorted(scopes), expires)
        return _issued(await self._ask("POST", _tokens(user), body, wire.TokenOut))

    async def tokens(self, user: str) -> list[Token]:
        found: wire.TokenList = await self._ask("GET", _tokens(user), None, wire.TokenList)
        return list(map(_token, found.entries))

    async def rotate_token(
        self, user: str, number: str, overlap: timedelta, expires: datetime | None
    ) -> Issued:
        body = wire.RotateIn(round(overlap.total_seconds()), expires)
        rest = f"{_tokens(user)}/{_quoted(number)}"
        return _issued(await self._ask("POST", rest, body, wire.TokenOut))

    async def revoke_token(self, user: str, number: str) -> None:
        calls = self.vault.calls
        await calls.ask("DELETE", calls.url(f"{_tokens(user)}/{_quoted(number)}"), again=False)

    async def audit(self) -> list[wire.AuditOut]:
        pages = self.vault.pages(self.vault.calls.url("audit"), wire.AuditList)
        return [row async for page in pages for row in page.entries]

    async def _ask(
        self, method: str, rest: str, body: msgspec.Struct | None, kind: type[Any]
    ) -> Any:
        data, calls = None if body is None else msgspec.json.encode(body), self.vault.calls
        answer = await calls.ask(method, calls.url(rest), data=data, again=data is None)
        return calls.decode(answer, kind)


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _tokens(user: str) -> str:
    return f"users/{_quoted(user)}/tokens"


def _user(out: wire.UserOut) -> User:
    return User(UserId(0), out.name, out.quota, out.used)


def _token(out: wire.TokenOut) -> Token:
    """A token as the server tells it; its digest and its owner's id are not for a client."""
    return Token(
        out.id,
        UserId(0),
        out.name,
        write_scopes(frozenset(out.scopes)),
        b"",
        None,
        None,
        micros(out.created),
        None if out.expires is None else micros(out.expires),
        None if out.last_used is None else micros(out.last_used),
        None,
    )


def _issued(out: wire.TokenOut) -> Issued:
    return Issued(_token(out), out.token or "")

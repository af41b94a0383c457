"""A client of the API in this process, and shorter ways to say what it does."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from attrs import define
from tests.faults import open_memory_vault

from vaultfs.domain.rates import Rate
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.tokens import ALL_SCOPES, Identity, Scope
from vaultfs.entrypoints.http.app import DEFAULT_RATE, Api, Server
from vaultfs.entrypoints.vault import Vault, write_marker

BASE = "http://vault.test"


@define(eq=False)
class Client:
    """The API of a vault in memory."""

    vault: Vault
    app: Api
    token: str

    @property
    def accounts(self) -> Accounts:
        return self.app.server.accounts

    @property
    def owner(self) -> Identity:
        return Identity(self.vault.user, ALL_SCOPES)

    async def new_token(self, user: str = "me", *scopes: Scope) -> str:
        wanted = frozenset(scopes) or ALL_SCOPES
        return (await self.accounts.add_token(self.owner, user, "", wanted)).secret

    async def new_user(self, name: str, quota: int | None = None) -> str:
        """A user, and a token for reading and writing."""
        await self.accounts.add_user(self.owner, name, quota)
        return await self.new_token(name, Scope.READ, Scope.WRITE)

    async def __call__(
        self, method: str, path: str, *, token: str | None = None, **rest: Any
    ) -> httpx.Response:
        """One request; `token=""` sends none."""
        secret = self.token if token is None else token
        headers = dict(rest.pop("headers", {}))
        if secret:
            headers.setdefault("Authorization", f"Bearer {secret}")
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.request(method, path, headers=headers, **rest)

    async def ok(self, method: str, path: str, **rest: Any) -> Any:
        """What a request that has to succeed is answered with."""
        answer = await self(method, path, **rest)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def refused(self, status: int, method: str, path: str, **rest: Any) -> str:
        """The code of a request that has to be refused."""
        answer = await self(method, path, **rest)
        assert answer.status_code == status, (answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["request_id"] == answer.headers["x-request-id"]
        code: str = problem["code"]
        return code


@asynccontextmanager
async def open_api(rate: Rate = DEFAULT_RATE) -> AsyncGenerator[Client, None]:
    async with open_memory_vault() as vault:
        api = Client(vault, Api(Server(vault, rate)), "")
        api.token = await api.new_token()
        await write_marker(vault.objects, await vault.catalog.vault_id())
        yield api

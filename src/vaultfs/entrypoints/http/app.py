"""The ASGI application: from a request to a handler, and from an error to an answer.

    request id, metrics, log -> address -> route -> who is it -> may they -> rate -> handler

What a request is refused for is told before its body is read, and such a connection is
closed, so that nobody has to send what nobody wants.
"""

import json
import logging
import re
import time
from base64 import b64decode
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from attrs import define, field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute
from starlette.types import Message, Receive, Scope, Send

from vaultfs.domain.errors import (
    InvalidName,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Unsupported,
    VaultError,
)
from vaultfs.domain.nodes import User as VaultUser
from vaultfs.domain.nodes import UserId
from vaultfs.domain.rates import Rate, take
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.tokens import Identity
from vaultfs.domain.tokens import Scope as TokenScope
from vaultfs.entrypoints.http import (
    accounts,
    contents,
    frames,
    keeping,
    nodes,
    operating,
    problems,
)
from vaultfs.entrypoints.http.calls import Call, Route
from vaultfs.entrypoints.http.description import describe
from vaultfs.entrypoints.http.operating import READY_FOR, Metrics
from vaultfs.entrypoints.vault import Vault

log = logging.getLogger("vaultfs.http")

ROUTES: Final = (
    *contents.ROUTES,
    *frames.ROUTES,
    *nodes.ROUTES,
    *keeping.ROUTES,
    *accounts.ROUTES,
    *operating.ROUTES,
)
DEFAULT_RATE: Final = Rate(per_second=1000, burst=4000)
MOST_BUCKETS: Final = 10_000
"""Callers whose rates are kept; those whose buckets are full are forgotten first."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REFUSED: Final = re.compile(rb"%(2f|5c|[01][0-9a-f]|7f|2e%2e|2e\.)|\.%2e", re.IGNORECASE)
"""In the path as it was sent: what would be another path once it is decoded."""
_NOBODY: Final = Identity(VaultUser(UserId(0), "", None, 0), frozenset())


@define(eq=False)
class Server:
    """What handlers share: the vault, accounts, rates and figures."""

    vault: Vault
    rate: Rate = DEFAULT_RATE
    accounts: Accounts = field(init=False)
    metrics: Metrics = field(init=False)
    description: dict[str, Any] = field(init=False)
    _full_at: dict[str, float] = field(factory=dict[str, float])
    _ready: tuple[float, dict[str, str]] = (-1e9, {})

    def __attrs_post_init__(self) -> None:
        self.accounts = Accounts(self.vault.catalog, self.vault.clock)
        self.metrics = Metrics(self.vault)
        self.description = describe(ROUTES)

    async def ready(self) -> dict[str, str]:
        """How catalog and store are, as seen at most `READY_FOR` seconds ago."""
        now = self.vault.clock.monotonic()
        if now - self._ready[0] > READY_FOR:
            self._ready = (now, await operating.look(self.vault))
        return self._ready[1]

    def admit(self, who: str) -> dict[str, str]:
        """Count a request of the token `who`; headers that tell how much is left.

        Raises `RateLimited`.
        """
        now = self.vault.clock.monotonic()
        verdict = take(self.rate, self._full_at.get(who, now), now)
        if len(self._full_at) >= MOST_BUCKETS and who not in self._full_at:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        self._full_at[who] = verdict.full_at
        if not verdict.allowed:
            raise RateLimited(
                f"too many requests: {self.rate.per_second:g} a second are allowed",
                retry_after=verdict.retry_after,
            )
        return {"RateLimit-Remaining": str(verdict.remaining)}


@define(eq=False)
class _Seen:
    """What became of a request, for the log and the figures."""

    request_id: str
    started: float
    send: Send
    route: str = "none"
    status: int = 0
    received: int = 0
    sent: int = 0
    user: str = ""
    token: str = ""
    error: str = ""
    ended: bool = False
    extra: dict[str, str] = field(factory=dict[str, str])

    async def forward(self, message: Message) -> None:
        """Send `message`, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            everywhere = {
                "x-request-id": self.request_id,
                "x-content-type-options": "nosniff",
                **self.extra,
            }
            headers += [(key.encode(), text.encode()) for key, text in everywhere.items()]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self.send(message)


class Api:
    """The application; one serves a process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._routes: dict[str, list[tuple[Route, StarletteRoute]]] = {}
        """By the beginning of their address, which is no parameter in any of them."""
        for route in ROUTES:
            matcher = StarletteRoute(route.path, _unused, methods=[route.method])
            self._routes.setdefault(_beginning(route.path), []).append((route, matcher))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of connection are not for us."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        seen = _Seen(_request_id(scope), time.perf_counter(), send)

        async def counted() -> Message:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        self.server.metrics.active.inc()
        try:
            await self._answer(scope, counted, seen)
        finally:
            self.server.metrics.active.dec()
            self._note(scope, seen)

    async def _answer(self, scope: Scope, receive: Receive, seen: _Seen) -> None:
        try:
            route, call = await self._understand(scope, receive, seen)
            response = await route.handler(call)
            await response(scope, receive, seen.forward)
        except Exception as error:
            seen.error = _told(error)
            if not isinstance(error, VaultError):
                log.exception("a bug", extra={"request_id": seen.request_id})
            if seen.status:
                raise  # too late to say so: the connection is cut, not ended
            await self._refuse(scope, receive, seen, error)

    async def _refuse(self, scope: Scope, receive: Receive, seen: _Seen, error: Exception) -> None:
        headers = {"Connection": "close"} if _has_body(scope) else {}
        if isinstance(error, RateLimited):
            headers["Retry-After"] = str(max(1, round(error.retry_after + 0.5)))
        if isinstance(error, _MethodNotAllowedError):
            found = problems.problem(405, "method_not_allowed", error.message, seen.request_id)
            headers["Allow"] = error.allowed
        else:
            found = problems.problem_of(error, seen.request_id)
        response = problems.answer(found, headers)
        if scope["method"] == "HEAD":
            response.body = b""
        await response(scope, receive, seen.forward)

    async def _understand(self, scope: Scope, receive: Receive, seen: _Seen) -> tuple[Route, Call]:
        _check_raw(scope)
        route, params = self._match(scope)
        seen.route = route.path
        request = Request(scope, receive)
        identity = _NOBODY
        if route.scope is not None:
            identity = await self.server.accounts.identify(_token_of(request))
            seen.user, seen.token = identity.user.name, identity.token
            if not (route.admin_too and TokenScope.ADMIN in identity.scopes):
                identity.require(route.scope)
            seen.extra.update(self.server.admit(identity.token))
        return route, Call(self.server, request, identity, seen.request_id, params)

    def _match(self, scope: Scope) -> tuple[Route, dict[str, Any]]:
        allowed: list[str] = []
        for route, matcher in self._routes.get(_beginning(scope["path"]), ()):
            found, child = matcher.matches(scope)
            if found is Match.NONE:
                continue
            if scope["method"] == route.method:
                return route, child["path_params"]
            allowed.append(route.method)
        if allowed:
            raise _MethodNotAllowedError(", ".join(sorted(set(allowed))))
        raise NotFound("there is no such address: see /openapi.json")

    def _note(self, scope: Scope, seen: _Seen) -> None:
        took = time.perf_counter() - seen.started
        metrics, method = self.server.metrics, str(scope["method"])
        if method not in _METHODS:
            method = "other"
        metrics.note(method, seen.route, seen.status, took)
        metrics.received.inc(seen.received)
        metrics.sent.inc(seen.sent)
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "request",
            extra={
                "request_id": seen.request_id,
                "method": method,
                "route": seen.route,
                "status": seen.status,
                "ms": round(took * 1000, 1),
                "received": seen.received,
                "sent": seen.sent,
                "user": seen.user,
                "token": seen.token,
                "complete": seen.ended,
                "error": seen.error,
            },
        )


_METHODS: Final = {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"}


class _MethodNotAllowedError(VaultError):
    """The address is there, but not for this method."""

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this address takes {allowed}")
        self.allowed = allowed


def _beginning(path: str) -> str:
    """The first two names of an address: `/v1/files`."""
    return "/".join(path.split("/", 3)[:3])


async def _unused(_: Request) -> Response:
    raise NotImplementedError("routes are only matched")


def _told(error: Exception) -> str:
    """An error for the log; what a client did wrong names the client's files, so only its kind."""
    kind = type(error).__name__
    private = isinstance(error, VaultError) and problems.status_of(error) < 500
    return kind if private else f"{kind}: {error}"


def _request_id(scope: Scope) -> str:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return given
    return uuid4().hex


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _check_raw(scope: Scope) -> None:
    """Raise `InvalidName` for what would smuggle a path or a body past somebody."""
    raw: bytes = scope.get("raw_path") or b""
    if _REFUSED.search(raw):
        raise InvalidName("the address has an encoded slash, backslash, control character or ..")
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidName("the address is not UTF-8 once it is decoded") from None
    names = [name for name, _ in scope["headers"]]
    if b"content-length" in names and b"transfer-encoding" in names:
        raise InvalidName("a request has Content-Length or Transfer-Encoding, not both")
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Unsupported("Transfer-Encoding: chunked alone is understood")


def _token_of(request: Request) -> str:
    """The token that the request shows: as bearer, or as the password of Basic."""
    kind, _, rest = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic":
        try:
            return b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            pass
    raise NotAuthenticated("a token is needed: Authorization: Bearer vfs_...")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        value: MutableMapping[str, Any] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        value.update({key: each for key, each in vars(record).items() if key in _EXTRA})
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


_EXTRA: Final = {
    *("request_id", "method", "route", "status", "ms", "received", "sent", "user", "token"),
    *("complete", "error", "pruned", "purged", "backup"),
}

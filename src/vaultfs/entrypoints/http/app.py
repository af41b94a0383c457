"""The ASGI application: from a request to a handler, and from an error to an answer.

    request id, metrics, log -> address -> route -> who is it -> may they -> rate -> handler

What a request is refused for is told before its body is read, and such a connection is
closed, so that nobody has to send what nobody wants.
"""

import json
import logging
import os
import re
import time
from base64 import b64decode
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import anyio
from attrs import define, field, fields
from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import Message, Receive, Scope, Send

from vaultfs.domain.errors import (
    Busy,
    Exists,
    Forbidden,
    InvalidField,
    InvalidName,
    NotAuthenticated,
    NotFound,
    OffsetMismatch,
    RateLimited,
    Unsupported,
    VaultError,
    VersionMismatch,
)
from vaultfs.domain.nodes import User as VaultUser
from vaultfs.domain.nodes import UserId
from vaultfs.domain.rates import Rate, take
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.services.budget import BLOCK, Use
from vaultfs.domain.services.upkeep import Maintained
from vaultfs.domain.tokens import Identity
from vaultfs.domain.tokens import Scope as TokenScope
from vaultfs.entrypoints.http import (
    accounts,
    batches,
    contents,
    deltas,
    frames,
    keeping,
    locks,
    nodes,
    operating,
    pages,
    problems,
    sharing,
    upkeeping,
    uploads,
)
from vaultfs.entrypoints.http.calls import Answer, Call, Route, read_headers
from vaultfs.entrypoints.http.description import describe
from vaultfs.entrypoints.http.operating import READY_FOR, Metrics
from vaultfs.entrypoints.http.statuses import status_of
from vaultfs.entrypoints.vault import Vault

log = logging.getLogger("vaultfs.http")

ROUTES: Final = (
    *contents.ROUTES,
    *frames.ROUTES,
    *deltas.ROUTES,
    *uploads.ROUTES,
    *nodes.ROUTES,
    *batches.ROUTES,
    *sharing.ROUTES,
    *locks.ROUTES,
    *keeping.ROUTES,
    *accounts.ROUTES,
    *upkeeping.ROUTES,
    *operating.ROUTES,
    *pages.ROUTES,
)
DEFAULT_RATE: Final = Rate(per_second=1000, burst=4000)
MOST_BUCKETS: Final = 10_000
"""Callers whose rates are kept; those whose buckets are full are forgotten first."""
_ELSEWHERE: Final = frozenset({"cross-site", "same-site"})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REFUSED: Final = re.compile(rb"%(2f|5c|[01][0-9a-f]|7f|2e%2e|2e\.)|\.%2e", re.IGNORECASE)
"""In the path as it was sent: what would be another path once it is decoded."""
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_NOBODY: Final = Identity(VaultUser(UserId(0), "", None, 0), frozenset())


IMAGES: Final = 2
"""Zip files that are made of their images at one time: each is in memory until it is stored."""


@define(eq=False)
class Server:
    """What handlers share: the vault, accounts, rates and figures."""

    vault: Vault
    rate: Rate = DEFAULT_RATE
    accounts: Accounts = field(init=False)
    metrics: Metrics = field(init=False)
    description: dict[str, Any] = field(init=False)
    images: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(IMAGES))
    """What a delta between images of zip files goes through."""
    _full_at: dict[str, float] = field(factory=dict[str, float])
    _shares: dict[UserId, anyio.Semaphore] = field(factory=dict[UserId, anyio.Semaphore])
    _ready: tuple[float, dict[str, str]] = (-1e9, {})

    def __attrs_post_init__(self) -> None:
        self.accounts = Accounts(self.vault.catalog, self.vault.clock)
        self.metrics = Metrics(self.vault)
        self.description = describe(ROUTES)

    def share_of(self, user: UserId) -> anyio.Semaphore:
        """What each large upload of `user` goes through.

        One that stands still holds a block of the budget that others wait for, for as long
        as `contents.IDLE` says; together a user's hold no more than half of what uploads may.
        """
        found = self._shares.get(user)
        if found is None:
            blocks = self.vault.budget.total * Use.WRITE.value // 8 // BLOCK
            found = self._shares[user] = anyio.Semaphore(max(1, blocks // 2))
        return found

    async def ready(self) -> dict[str, str]:
        """How catalog and store are, as seen at most `READY_FOR` seconds ago."""
        now = self.vault.clock.monotonic()
        if now - self._ready[0] > READY_FOR:
            self._ready = (now, await operating.look(self.vault))
        return self._ready[1]

    def admit(self, who: str, cost: int = 1) -> tuple[bytes, bytes]:
        """Count a request of the token `who` as `cost`; a header that tells how much is left.

        Raises `RateLimited`.
        """
        now = self.vault.clock.monotonic()
        verdict = take(self.rate, self._full_at.get(who, now), now, cost)
        if len(self._full_at) >= MOST_BUCKETS and who not in self._full_at:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        self._full_at[who] = verdict.full_at
        if not verdict.allowed:
            raise RateLimited(
                f"too many requests: {self.rate.per_second:g} a second are allowed",
                retry_after=verdict.retry_after,
            )
        return b"ratelimit-remaining", b"%d" % verdict.remaining


@define(eq=False)
class _Seen:
    """What became of a request, for the log and the figures."""

    request_id: str
    started: float
    receive: Receive
    send: Send
    route: str = "none"
    status: int = 0
    received: int = 0
    sent: int = 0
    user: str = ""
    token: str = ""
    error: str = ""
    ended: bool = False
    extra: list[tuple[bytes, bytes]] = field(factory=list[tuple[bytes, bytes]])
    """Headers that the answer has, whatever it is."""

    async def take(self) -> Message:
        """The next message of the request."""
        message = await self.receive()
        self.received += len(message.get("body", b""))
        return message

    async def forward(self, message: Message) -> None:
        """Send `message`, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                *message["headers"],
                (b"x-request-id", self.request_id.encode()),
                _NO_SNIFFING,
                *self.extra,
            ]
            message = {**message, "headers": headers}
        else:
            self.sent += len(message["body"])
            self.ended = not message.get("more_body", False)
        await self.send(message)

    async def forward_head(self, message: Message) -> None:
        """The same for an answer to HEAD, which has no body."""
        await self.forward({**message, "body": b""} if "body" in message else message)


class Api:
    """The application; one serves a process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._routes: dict[str, list[tuple[re.Pattern[str], dict[str, Route]]]] = {}
        """By the beginning of their address, which is no parameter in any of them."""
        for path in dict.fromkeys(route.path for route in ROUTES):
            pattern, *_ = compile_path(path)
            methods = {route.method: route for route in ROUTES if route.path == path}
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])
            self._routes.setdefault(_beginning(path), []).append((pattern, methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of connection are not for us."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = read_headers(scope)
        seen = _Seen(_request_id(headers), time.perf_counter(), receive, send)
        self.server.metrics.active += 1
        try:
            await self._answer(scope, headers, seen)
        finally:
            self.server.metrics.active -= 1
            self._note(scope, seen)

    async def _answer(self, scope: Scope, headers: dict[str, str], seen: _Seen) -> None:
        try:
            route, call = await self._understand(scope, headers, seen)
            response = await route.handler(call)
            send = seen.forward if scope["method"] != "HEAD" else seen.forward_head
            await response(scope, seen.take, send)
        except anyio.get_cancelled_exc_class():
            seen.error = "cut"
            if not seen.status:  # a server that ends has waited long enough
                with anyio.move_on_after(1, shield=True):
                    stopping = Busy("the server is stopping: try again")
                    await _refusal(scope, headers, seen, stopping)(scope, seen.take, seen.forward)
            raise
        except Exception as raised:
            error = _as_asked(raised, headers)
            seen.error = _told(error)
            if not isinstance(error, VaultError):
                log.exception("a bug", extra={"request_id": seen.request_id})
            if seen.status:
                raise  # too late to say so: the connection is cut, not ended
            await _refusal(scope, headers, seen, error)(scope, seen.take, seen.forward)

    async def _understand(
        self, scope: Scope, headers: dict[str, str], seen: _Seen
    ) -> tuple[Route, Call]:
        _check_raw(scope, headers)
        route, params = self._match(scope)
        seen.route = route.path
        identity = _NOBODY
        if route.scope is not None:
            identity = await self.server.accounts.identify(_token_of(headers))
            seen.user, seen.token = identity.user.name, identity.token
            seen.extra.append(self.server.admit(identity.token))
            _check_site(scope, headers)
            if not (route.admin_too and TokenScope.ADMIN in identity.scopes):
                identity.require(route.scope)
        request = Request(scope, seen.take)
        number, extra = seen.request_id, seen.extra
        return route, Call(self.server, request, headers, identity, number, params, extra)

    def _match(self, scope: Scope) -> tuple[Route, dict[str, str]]:
        path, method = scope["path"], scope["method"]
        allowed: set[str] = set()
        for pattern, methods in self._routes.get(_beginning(path), ()):
            found = pattern.match(path)
            if found is None:
                continue
            if method in methods:
                return methods[method], found.groupdict()
            allowed |= methods.keys()
        if allowed:
            raise _MethodNotAllowedError(", ".join(sorted(allowed)))
        raise NotFound("there is no such address: see /openapi.json")

    def _note(self, scope: Scope, seen: _Seen) -> None:
        took = time.perf_counter() - seen.started
        method = scope["method"] if scope["method"] in _METHODS else "other"
        figures = self.server.metrics.figures(method, seen.route)
        figures.note(seen.status, took)
        figures.received += seen.received
        figures.sent += seen.sent
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


def _told(error: Exception) -> str:
    """An error for the log; what a client did wrong names the client's files, so only its kind."""
    kind = type(error).__name__
    private = isinstance(error, VaultError) and status_of(error) < 500
    return kind if private else f"{kind}: {error}"


def _as_asked(error: Exception, headers: dict[str, str]) -> Exception:
    """`error`; where something was to be absent and is there, a precondition that fails."""
    if isinstance(error, Exists) and "if-none-match" in headers:
        return VersionMismatch(error.message, expected=None, found=None)
    return error


def _refusal(scope: Scope, headers: dict[str, str], seen: _Seen, error: Exception) -> Answer:
    """The answer that tells `error`."""
    extra = {"Connection": "close"} if _has_body(headers) else {}
    if _beginning(scope["path"]) == "/v1/uploads":
        extra |= uploads.REFUSED
    if isinstance(error, OffsetMismatch):
        extra["Upload-Offset"] = str(error.offset)
    if isinstance(error, _MethodNotAllowedError):
        found = problems.problem(405, "method_not_allowed", error.message, seen.request_id)
        extra["Allow"] = error.allowed
    else:
        found = problems.problem_of(error, seen.request_id)
    if (wait := problems.retry_after(error)) is not None:
        extra["Retry-After"] = str(wait)
    answer = problems.answer(found, extra)
    if scope["method"] == "HEAD":
        answer.body = b""
    return answer


def _request_id(headers: dict[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def _has_body(headers: dict[str, str]) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _check_raw(scope: Scope, headers: dict[str, str]) -> None:
    """Raise `InvalidName` for what would smuggle a path or a body past somebody."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%" in raw or b".." in raw:
        _check_encoded(raw)
    if "host" not in headers and scope["http_version"] != "1.0":
        raise InvalidField("a request has a Host header (RFC 9112, 3.2)")
    if "transfer-encoding" in headers:
        if "content-length" in headers:
            raise InvalidName("a request has Content-Length or Transfer-Encoding, not both")
        if headers["transfer-encoding"].strip().lower() != "chunked":
            raise Unsupported("Transfer-Encoding: chunked alone is understood")


def _check_encoded(raw: bytes) -> None:
    if _REFUSED.search(raw):
        raise InvalidName("the address has an encoded slash, backslash, control character or ..")
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidName("the address is not UTF-8 once it is decoded") from None


def _check_site(scope: Scope, headers: dict[str, str]) -> None:
    """Raise `Forbidden` for a change that a browser sends for a page of somewhere else: it adds
    a password of Basic that it keeps by itself, which it does to no bearer.
    """
    if scope["method"] in {"GET", "HEAD"} or headers.get("sec-fetch-site") not in _ELSEWHERE:
        return
    if headers["authorization"].lower().startswith("basic "):
        raise Forbidden("a page of another site changes nothing here with a browser's password")


def _token_of(headers: dict[str, str]) -> str:
    """The token that the request shows: as bearer, or as the password of Basic."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
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
    *("complete", "error", "packs"),
    *(each.name for each in fields(Maintained)),
}

"""A request on its way through a handler: who calls, what the address says, what was sent."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import anyio
import msgspec
from attrs import define, frozen
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope as AsgiScope

from vaultfs.domain.errors import InvalidField, NotFound, SourceChanged, TooLarge, TooSlow
from vaultfs.domain.lockitems import MAX_LOCKS
from vaultfs.domain.locknodes import parse_presented
from vaultfs.domain.names import Address, check_user, key_of, parse_address, split_path
from vaultfs.domain.nodes import ABSENT, NO_PRECONDITIONS, Preconditions, User, VersionId
from vaultfs.domain.services.browse import PAGE
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.tokens import Identity, Scope
from vaultfs.entrypoints.http.wire import LOCK_HEADER

if TYPE_CHECKING:
    from vaultfs.entrypoints.http.app import Server

_LOCK_HEADER: Final = LOCK_HEADER.lower()
MAX_JSON: Final = 1 << 20
"""Bytes of a JSON body."""
BODY_WITHIN: Final = 60
"""Seconds within which a JSON body has to be there."""
T = TypeVar("T")

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_FIELD = re.compile(r"Object (?:contains )?(missing|unknown) (?:required )?field `([^`]*)")
_ETAG = re.compile(r'"([vr])(\d{1,18})"')


class Answer(Response):
    """A response that is known as a whole: a Starlette one, made in a third of the time."""

    def __init__(
        self, body: bytes, status: int, kind: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.body, self.status_code, self.background = body, status, None
        self.raw_headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        for name, value in (headers or {}).items():
            self.raw_headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))


def read_headers(scope: AsgiScope) -> dict[str, str]:
    """Headers by their names in small letters; one that came several times has commas between
    its values (RFC 9110, 5.3).
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


@define(eq=False, slots=False)
class Call:
    """A request that was understood, from a caller who is known."""

    server: "Server"
    request: Request
    headers: dict[str, str]
    identity: Identity
    request_id: str
    params: dict[str, str]
    extra: list[tuple[bytes, bytes]]
    """Headers that tell what is left of the caller's rate."""

    @property
    def user(self) -> User:
        return self.identity.user

    @cached_property
    def files(self) -> Files:
        """The files of the vault, for changes that come with the locks of `VaultFS-Lock-Token`."""
        files = self.server.vault.files
        if _LOCK_HEADER not in self.headers:
            return files
        shown = self.request.headers.getlist(LOCK_HEADER)
        if len(shown) > MAX_LOCKS:
            raise InvalidField(f"{len(shown)} locks with one request: {MAX_LOCKS} are the most")
        return files.presenting(*map(parse_presented, shown))

    def header(self, name: str) -> str | None:
        """The header `name`, which is written in small letters, or None."""
        return self.headers.get(name)

    @property
    def length(self) -> int | None:
        """The bytes that the body is announced to have. Raises `InvalidField`."""
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise InvalidField("Content-Length is a number of bytes")
        return int(text)

    @cached_property
    def address(self) -> Address:
        """What `{user}` and `{path}` in the route name."""
        return Address(self.tree, split_path("/" + self.params.get("path", "")))

    @property
    def tree(self) -> str:
        """The tree that `{user}` names."""
        return check_user(self.params["user"])

    def at(self, text: str) -> Address:
        """An address in a body: `/path` or `user:/path`."""
        return parse_address(text, own=self.user.name)

    # Query

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The parameters behind the question mark."""
        return self.request.query_params if self.request.scope["query_string"] else {}

    def flag(self, name: str) -> bool:
        """A yes or no of the query; no if it is not there."""
        text = self.query.get(name, "false").lower()
        if text not in {"true", "false", "1", "0", ""}:
            raise InvalidField(f"{name}={text}: true or false")
        return text in {"true", "1", ""}

    def number(self, name: str, *, most: int = (1 << 63) - 1) -> int | None:
        """A number of the query from 1 on, or None if it is not there."""
        text = self.query.get(name)
        if text is None:
            return None
        return whole(text, name, most)

    @property
    def limit(self) -> int:
        """How many entries of a list are wanted."""
        return self.number("limit", most=PAGE) or PAGE

    def cursor(self, kind: str) -> str | None:
        """Where a list goes on: what `write_cursor` was given. Raises `InvalidField`."""
        text = self.query.get("cursor")
        if text is None:
            return None
        try:
            raw = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)).decode()
        except ValueError:
            raw = ""
        if not raw.startswith(f"{kind}:"):
            raise InvalidField("this cursor was not made by this list: begin without one")
        return raw.removeprefix(f"{kind}:")

    def number_cursor(self, kind: str) -> int | None:
        """A cursor that is a number."""
        text = self.cursor(kind)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise InvalidField("this cursor was not made by this list: begin without one")
        return int(text)

    # Preconditions

    async def preconditions(self, address: Address) -> Preconditions:
        """What `If-Match` and `If-None-Match` demand of a write to `address`.

        Of several tags the one that holds now is demanded, and checked with the change.
        """
        match, none_match = self.header("if-match"), self.header("if-none-match")
        if self.header("if-unmodified-since") is not None:
            raise InvalidField("times are too coarse for this: use If-Match")
        if none_match is not None and none_match.strip() != "*":
            raise InvalidField("If-None-Match of a write is * or nothing")
        absent = none_match is not None
        if match is None:
            return ABSENT if absent else NO_PRECONDITIONS
        if match.strip() == "*":
            return Preconditions(if_present=True, if_absent=absent)
        demands = [_demand(tag.strip(), absent=absent) for tag in match.split(",")]
        if len(demands) > 1:
            with suppress(NotFound):
                node = await self.server.vault.files.stat(self.user, address)
                for each in demands:
                    if each.if_revision == node.revision or each.if_version == (node.version or 0):
                        return each
        return demands[0]

    async def unless_gone(self, work: Callable[[], Awaitable[T]], wait: float) -> T:
        """What `work` returns, which may wait `wait` seconds; given up if the client goes away."""
        if not wait:
            return await work()
        result: list[T] = []
        async with task_group() as tasks:

            async def watch() -> None:
                while (await self.request.receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            result.append(await work())
            tasks.cancel_scope.cancel()
        if not result:
            raise SourceChanged("the client went away while it waited")
        return result[0]

    # Bodies

    async def body(self, kind: type[T]) -> T:
        """The JSON body, checked. Raises `InvalidField`, `TooLarge`."""
        return decode(await self.raw_body(), kind)

    async def raw_body(self, most: int = MAX_JSON) -> bytes:
        """The body, whole. Raises `TooLarge` before more than that is read, and `TooSlow`."""
        announced = self.length
        if announced is not None and announced > most:
            raise TooLarge(f"the body has {announced} bytes; {most} is the most here")
        data = bytearray()
        with anyio.move_on_after(BODY_WITHIN) as patience:
            async for piece in self.request.stream():
                data += piece
                if len(data) > most:
                    raise TooLarge(f"the body has more than {most} bytes")
        if patience.cancelled_caught:
            raise TooSlow(f"the body was not there within {BODY_WITHIN} seconds")
        return bytes(data)

    def charge(self, cost: int) -> None:
        """Count the request as so many more. Raises `RateLimited`, with nothing done."""
        if cost:
            self.extra[:] = [self.server.admit(self.identity.token, cost)]

    # Answers

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        """An answer in JSON."""
        return Answer(msgspec.json.encode(value), status, b"application/json", headers)


def _demand(tag: str, *, absent: bool) -> Preconditions:
    """What an entity tag demands."""
    found = _ETAG.fullmatch(tag)
    if found is None:
        raise InvalidField(f"If-Match: {tag[:40]} is no entity tag of this server")
    if found[1] == "v":
        return Preconditions(if_version=VersionId(int(found[2])), if_absent=absent)
    return Preconditions(if_revision=int(found[2]), if_absent=absent)


def listed(header: str | None, etag: str, *, weak: bool = True) -> bool:
    """Whether `If-None-Match` or the like names the tag; `weak`: weakly is enough."""
    if header is None:
        return False
    tags = [each.strip() for each in header.split(",")]
    if weak:
        tags = [each.removeprefix("W/") for each in tags]
    return "*" in tags or etag in tags


def whole(text: str, name: str, most: int = (1 << 63) - 1) -> int:
    """The number from 1 to `most` that `text` is. Raises `InvalidField`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or not 0 < int(text) <= most:
        raise InvalidField(f"{name}={text[:40]}: a number from 1 to {most}")
    return int(text)


def decode(data: bytes, kind: type[T]) -> T:
    """JSON as `kind`. Raises `InvalidField` that says where it is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refused = InvalidField(f"the body is not what this takes: {error}")
        refused.flaw = _flaw(error)
        raise refused from error


def _flaw(error: Exception) -> tuple[str, str]:
    """Where in a body (RFC 6901, 6), and how it is wrong: `msgspec` says so in words alone."""
    if not isinstance(error, msgspec.ValidationError):
        return "#", "malformed"
    text, _, place = str(error).removesuffix("`").partition(" - at `$")
    steps = [name or index for name, index in _STEP.findall(place.partition("[...]")[0])]
    code = "invalid"
    if (field := _FIELD.match(text)) is not None:
        steps.append(field[2])
        code = field[1]
    escaped = [each.replace("~", "~0").replace("/", "~1") for each in steps]
    return "".join(["#", *("/" + quote(each, safe="~") for each in escaped)]), code


def write_cursor(kind: str, value: str | int) -> str:
    """An opaque cursor."""
    return urlsafe_b64encode(f"{kind}:{value}".encode()).decode().rstrip("=")


def same_user(call: Call, name: str) -> bool:
    """Whether `name` is the caller's."""
    return key_of(name) == key_of(call.user.name)


def own(call: Call) -> str:
    """The user in the route, who must be the caller, or anybody for an admin."""
    name: str = call.params["user"]
    if not same_user(call, name) and Scope.ADMIN not in call.identity.scopes:
        raise NotFound(f"there is no user {name}")
    return name


Handler = Callable[[Call], Awaitable[Response]]


@frozen
class Parameter:
    """A parameter of the query or a header that a route looks at."""

    name: str
    text: str
    kind: str = "string"
    where: str = "query"
    most: int | None = None
    """The highest a number may be; each is at least 1."""


@frozen
class Route:
    """A route: what it takes, what it does and what it says, for the app and for OpenAPI."""

    method: str
    path: str
    handler: Handler
    name: str
    """The operation's id in OpenAPI."""
    summary: str
    scope: Scope | None = None
    """What the token has to allow; None for those that need no token."""
    admin_too: bool = False
    """Whether the scope `admin` does as well."""
    body: type | str | None = None
    """The JSON body, or the media type of one that is not JSON."""
    answer: type | str | None = None
    """The same for the answer."""
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    failures: tuple[int, ...] = ()
    """Statuses of refusals that are this route's own."""
    conflict: type | None = None
    """The body of a 409, where it says more than other problems."""


VERSION = Parameter(
    "version",
    "The number of a version; the current one if missing.",
    "integer",
    most=(1 << 63) - 1,
)
LIMIT = Parameter("limit", "Entries to give, up to 1,000.", "integer", most=PAGE)
CURSOR = Parameter("cursor", "`next_cursor` of the list before.")
IF_MATCH = Parameter("If-Match", "An entity tag that must still hold, or *.", where="header")
WITH_LOCK = Parameter(
    LOCK_HEADER,
    "`<lease>.<token>` of a lock that covers what is written; can be repeated.",
    where="header",
)
IF_NONE_MATCH = Parameter("If-None-Match", "* to create only.", where="header")

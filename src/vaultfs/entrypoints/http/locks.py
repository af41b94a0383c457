"""`/v1/locks`: leases on paths and ranges of bytes, for clients that write in several steps.

A lease is named `<lease>.<token>`. It ends by itself; whoever has it shows it with each
write in the header `VaultFS-Lock-Token`, and is refused once it is held no longer.
"""

from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec
from anyio import get_cancelled_exc_class
from starlette.responses import Response

from vaultfs.domain.errors import InvalidField, LeaseExpired, LockMisuse
from vaultfs.domain.intervals import END, Range, byte_range
from vaultfs.domain.lockitems import path_of
from vaultfs.domain.lockmodes import LUB, READ, UPDATE, WRITE, Mode, Resource
from vaultfs.domain.locknodes import Owner, Presented, parse_presented
from vaultfs.domain.names import Path, parse_path
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.services.lockview import Held, Queued
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import Call, Route, own, whole

T = TypeVar("T")
LONGEST: Final = 3600.0
"""Seconds that a lease may be given at a time."""
MOST_WAIT: Final = 60.0
"""Seconds that a request may wait for a lock."""
MODES: Final = {"shared": READ, "update": UPDATE, "exclusive": WRITE}
NAMES: Final = {mode: name for name, mode in MODES.items()}


class RangeIn(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes `start` to `stop` of a file, the last not included; without `stop`, to the end."""

    start: int
    stop: int | None = None


class LockedPath(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A path in the tree, and how it is locked: `shared`, `update` or `exclusive`."""

    path: str
    mode: str = "exclusive"
    ranges: list[RangeIn] = []
    """Of a file, instead of all of it; shared or exclusive."""


class LockIn(msgspec.Struct, forbid_unknown_fields=True):
    """Locks to be had together or not at all.

    Of a path that is named twice the stronger mode counts, and all its ranges.
    """

    paths: list[LockedPath]
    ttl_seconds: float = 30.0
    wait_seconds: float = 0.0
    """How long to wait for them; they are dropped if it is longer than the lease."""


class RenewIn(msgspec.Struct, forbid_unknown_fields=True):
    """For how long from now."""

    ttl_seconds: float = 30.0


class ConvertIn(msgspec.Struct, forbid_unknown_fields=True):
    """Other modes for what a lease has."""

    paths: list[LockedPath]
    wait_seconds: float = 0.0


class LockOut(msgspec.Struct):
    """A lock that is held."""

    lock: str
    """What goes into `VaultFS-Lock-Token`: `<lease>.<token>`."""
    token: int
    """Larger than that of every lock before."""
    paths: list[LockedPath]
    expires_in_seconds: float | None
    """null for one that ends with the process that has it."""


class WaitOut(msgspec.Struct):
    """Somebody who waits."""

    owner: str
    paths: list[LockedPath]
    waits_for: list[str]
    """The owners that keep it waiting: its edges in the wait-for graph."""


class LockList(msgspec.Struct):
    """All locks of a tree."""

    held: list[LockOut]
    waiting: list[WaitOut]


class Edge(msgspec.Struct):
    """`owner` waits for `holder`, who holds the path or, if `queued`, waits for it ahead."""

    owner: str
    holder: str
    path: str
    mode: str
    queued: bool


class WaitGraph(msgspec.Struct):
    """Who waits for whom."""

    owners: list[str]
    edges: list[Edge]


async def create(call: Call) -> Response:
    """Take locks."""
    wanted = await call.body(LockIn)
    ttl, wait = _ttl(wanted.ttl_seconds), _wait(wanted.wait_seconds)
    items, ranges = _asked(wanted.paths)
    locks, tree = call.server.vault.locks, call.user.tree
    owner = locks.new_owner()

    async def take() -> int:
        return await locks.acquire(owner, tree, items, ranges=ranges, timeout=wait, ttl=ttl)

    token = await call.unless_gone(take, wait)
    try:
        return await _answer(call, Presented(owner, token), 201)
    except get_cancelled_exc_class():
        await locks.let_go(owner, tree, token)
        raise


async def renew(call: Call) -> Response:
    """Let a lease last longer."""
    wanted = await call.body(RenewIn)
    lease = _lease(call)
    await call.server.vault.locks.renew(*_of(call, lease), _ttl(wanted.ttl_seconds))
    return await _answer(call, lease)


async def upgrade(call: Call) -> Response:
    """Give a lease stronger modes."""
    wanted = await call.body(ConvertIn)
    lease, wait = _lease(call), _wait(wanted.wait_seconds)

    async def take() -> None:
        items = _whole(wanted.paths)
        await call.server.vault.locks.upgrade(*_of(call, lease), items, timeout=wait)

    await call.unless_gone(take, wait)
    return await _answer(call, lease)


async def downgrade(call: Call) -> Response:
    """Give a lease weaker modes."""
    wanted = await call.body(ConvertIn)
    lease = _lease(call)
    await call.server.vault.locks.downgrade(*_of(call, lease), _whole(wanted.paths))
    return await _answer(call, lease)


async def release(call: Call) -> Response:
    """Give a lease back."""
    await call.server.vault.locks.release(*_of(call, _lease(call)))
    return Response(status_code=204)


async def list_locks(call: Call) -> Response:
    """All locks of the caller's tree, or of the user's in the route."""
    user = call.user
    if "user" in call.params:
        user = await call.server.accounts.user(call.identity, own(call))
    found = await call.server.vault.locks.snapshot(user.tree)
    return call.json(LockList(list(map(_held, found.held)), list(map(_waits, found.queued))))


async def wait_graph(call: Call) -> Response:
    """Who waits for whom in the caller's tree."""
    found = await call.server.vault.locks.snapshot(call.user.tree)
    edges = [
        Edge(each.owner, by.owner, path_of(by.resource), by.mode.name, by.waits)
        for each in found.queued
        for by in each.blockers
    ]
    owners = {each.owner for each in found.held} | {each.owner for each in found.queued}
    return call.json(WaitGraph(sorted(owners), edges))


async def break_lock(call: Call) -> Response:
    """Take a lock away from whoever has it."""
    token = whole(call.params["fence"], "token")
    await call.server.accounts.break_lock(call.identity, own(call), token)
    return Response(status_code=204)


# From and to JSON


def _lease(call: Call) -> Presented:
    return parse_presented(call.params["lease"])


def _of(call: Call, lease: Presented) -> tuple[Owner, TreeId, int]:
    return lease.owner, call.user.tree, lease.token


def _ttl(seconds: float) -> float:
    if not 1 <= seconds <= LONGEST:
        raise InvalidField(f"ttl_seconds: 1 to {LONGEST:g}")
    return seconds


def _wait(seconds: float) -> float:
    if not 0 <= seconds <= MOST_WAIT:
        raise InvalidField(f"wait_seconds: 0 to {MOST_WAIT:g}")
    return seconds


def _mode(path: LockedPath) -> Mode:
    if path.mode not in MODES:
        raise InvalidField(f"mode {path.mode[:20]}: one of {', '.join(MODES)}")
    return MODES[path.mode]


def _whole(paths: list[LockedPath]) -> dict[Path, Mode]:
    """The modes of paths that are locked as a whole. Raises `LockMisuse` for ranges."""
    items, ranges = _asked(paths)
    if ranges:
        raise LockMisuse("ranges of bytes are released and taken anew; name whole paths here")
    if not items:
        raise LockMisuse("no path is named")
    return items


def _asked(paths: list[LockedPath]) -> tuple[dict[Path, Mode], dict[Path, tuple[Range, ...]]]:
    items: dict[Path, Mode] = {}
    ranges: dict[Path, tuple[Range, ...]] = {}
    for each in paths:
        mode, path = _mode(each), parse_path(each.path)
        if not each.ranges:
            items[path] = LUB[items.get(path, mode)][mode]
            continue
        if mode is UPDATE:
            raise LockMisuse("ranges of bytes are shared or exclusive")
        exclusive = mode is WRITE
        spans = [byte_range(r.start, r.stop, exclusive=exclusive) for r in each.ranges]
        ranges[path] = (*ranges.get(path, ()), *spans)
    return items, ranges


async def _answer(call: Call, lease: Presented, status: int = 200) -> Response:
    found = await call.server.vault.locks.find(*_of(call, lease))
    if found is None:
        raise LeaseExpired(f"the lease {lease.owner}.{lease.token} has run out: take it anew")
    return call.json(_held(found), status)


def _held(held: Held) -> LockOut:
    name = f"{held.owner}.{held.token}"
    return LockOut(name, held.token, _paths(held), held.expires_in)


def _waits(queued: Queued) -> WaitOut:
    waits_for: list[str] = list(dict.fromkeys(each.owner for each in queued.blockers))
    return WaitOut(queued.owner, _paths(queued), waits_for)


def _paths(of: Held | Queued) -> list[LockedPath]:
    return [
        *(LockedPath(path_of(each), _name(mode)) for each, mode in of.items.items()),
        *(path for each, ranges in of.ranges.items() for path in _ranged(each, ranges)),
    ]


def _name(mode: Mode) -> str:
    return NAMES.get(mode, mode.name)


def _ranged(of: Resource, ranges: tuple[Range, ...]) -> Iterator[LockedPath]:
    """The shared ones, and the exclusive ones, if there are any."""
    for mode, exclusive in (("shared", False), ("exclusive", True)):
        spans = [
            RangeIn(each.start, None if each.stop == END else each.stop)
            for each in ranges
            if each.exclusive is exclusive
        ]
        if spans:
            yield LockedPath(path_of(of), mode, spans)


_LEASE = "/v1/locks/{lease}"

ROUTES: Final = (
    Route(
        *("POST", "/v1/locks", create, "createLock", "Lock paths, or ranges of bytes."),
        scope=Scope.WRITE,
        body=LockIn,
        answer=LockOut,
        status=201,
        failures=(409, 410, 423),
    ),
    Route(
        *("GET", "/v1/locks", list_locks, "listLocks", "List the locks of one's tree."),
        scope=Scope.READ,
        answer=LockList,
    ),
    Route(
        *("GET", "/v1/lock-waits", wait_graph, "lockWaits", "Who waits for whom."),
        scope=Scope.READ,
        answer=WaitGraph,
    ),
    Route(
        *("POST", f"{_LEASE}/renew", renew, "renewLock", "Let a lease last longer."),
        scope=Scope.WRITE,
        body=RenewIn,
        answer=LockOut,
        failures=(410,),
    ),
    Route(
        *("POST", f"{_LEASE}/upgrade", upgrade, "upgradeLock", "Give it stronger modes."),
        scope=Scope.WRITE,
        body=ConvertIn,
        answer=LockOut,
        failures=(409, 410, 423),
    ),
    Route(
        *("POST", f"{_LEASE}/downgrade", downgrade, "downgradeLock", "Give it weaker modes."),
        scope=Scope.WRITE,
        body=ConvertIn,
        answer=LockOut,
        failures=(409, 410),
    ),
    Route(
        *("DELETE", _LEASE, release, "releaseLock", "Give a lease back."),
        scope=Scope.WRITE,
        status=204,
        failures=(409,),
    ),
    Route(
        *("GET", "/v1/users/{user}/locks", list_locks, "listUserLocks"),
        "List the locks of a user's tree: one's own, or with `admin` anybody's.",
        scope=Scope.READ,
        admin_too=True,
        answer=LockList,
    ),
    Route(
        *("DELETE", "/v1/users/{user}/locks/{fence}", break_lock, "breakLock"),
        "Take a lock away from whoever has it.",
        scope=Scope.ADMIN,
        status=204,
    ),
)

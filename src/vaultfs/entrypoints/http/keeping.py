"""What is kept and what is forgotten, and how much there is of it."""

from datetime import timedelta
from typing import Final

from attrs import asdict
from starlette.responses import Response

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.names import Address
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import Call, Route
from vaultfs.entrypoints.http.wire import Pruned, RetentionBody, UsageOut

LONGEST: Final = 100_000_000 * 86_400
"""Seconds for which a replaced version can be kept; more do not fit the catalog."""


async def get_retention(call: Call) -> Response:
    """Which old versions of a tree are kept."""
    root = await call.server.vault.files.stat(call.user, Address(call.tree, ()))
    policy = await call.server.vault.catalog.retention(root.tree)
    age = None if policy.age is None else round(policy.age.total_seconds())
    return call.json(RetentionBody(policy.last, age))


async def set_retention(call: Call) -> Response:
    """Say which old versions of a tree are kept; `prune` forgets the others."""
    wanted = await call.body(RetentionBody)
    if wanted.last is not None and not 0 < wanted.last < 1 << 31:
        raise InvalidField("last: a number of versions from 1 on")
    if wanted.age_seconds is not None and not 0 < wanted.age_seconds <= LONGEST:
        raise InvalidField(f"age_seconds: 1 to {LONGEST}")
    age = None if wanted.age_seconds is None else timedelta(seconds=wanted.age_seconds)
    await call.files.set_retention(call.user, call.tree, Retention(wanted.last, age))
    return call.json(wanted)


async def prune(call: Call) -> Response:
    """Forget the old versions that the tree's retention does not keep."""
    return call.json(Pruned(await call.files.prune(call.user, call.tree)))


async def usage(call: Call) -> Response:
    """What the vault of all users holds; it is counted for each request."""
    found = await call.server.vault.recovery.usage()
    return call.json(
        UsageOut(
            **asdict(found.catalog),
            live=found.live,
            unreferenced=found.unreferenced,
            damaged=found.damaged,
        )
    )


_RETENTION = "/v1/retention/{user}"

ROUTES: Final = (
    Route(
        *("GET", _RETENTION, get_retention, "getRetention", "Which old versions are kept?"),
        scope=Scope.READ,
        answer=RetentionBody,
    ),
    Route(
        *("PUT", _RETENTION, set_retention, "setRetention", "Say which old versions are kept."),
        scope=Scope.WRITE,
        body=RetentionBody,
        answer=RetentionBody,
    ),
    Route(
        *("POST", "/v1/prune/{user}", prune, "prune", "Forget what need not be kept."),
        scope=Scope.WRITE,
        answer=Pruned,
    ),
    Route(
        *("GET", "/v1/usage", usage, "usage", "How much the vault holds."),
        scope=Scope.ADMIN,
        answer=UsageOut,
    ),
)

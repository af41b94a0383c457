"""The locks of a tree at one moment, for people and programs."""

from collections.abc import Mapping

from attrs import frozen

from vaultfs.domain.intervals import Range
from vaultfs.domain.lockmodes import Mode, Resource
from vaultfs.domain.locknodes import Blocker, Grant, Owner
from vaultfs.domain.locktrees import TreeLocks


@frozen
class Held:
    """A grant, for people and programs."""

    owner: Owner
    token: int
    items: Mapping[Resource, Mode]
    ranges: Mapping[Resource, tuple[Range, ...]]
    expires_in: float | None
    """Seconds until its lease runs out; None: it has none."""


@frozen
class Queued:
    """A request that waits, and who keeps it waiting."""

    owner: Owner
    items: Mapping[Resource, Mode]
    ranges: Mapping[Resource, tuple[Range, ...]]
    blockers: tuple[Blocker, ...]
    """The edges of the wait-for graph from its owner."""


@frozen
class Snapshot:
    """All locks of a tree at one moment."""

    held: tuple[Held, ...]
    queued: tuple[Queued, ...]
    queues: Mapping[Resource, tuple[Owner, ...]]
    """For each resource that somebody waits for, who, in order."""


def held_of(grant: Grant, now: float) -> Held:
    """A grant as it is at that time of its table."""
    left = None if grant.expires is None else grant.expires - now
    return Held(grant.owner, grant.token, dict(grant.items), dict(grant.ranges), left)


def snapshot_of(locks: TreeLocks) -> Snapshot:
    """All of them."""
    table = locks.table
    return Snapshot(
        tuple(held_of(grant, table.now) for grant in table.grants.values()),
        tuple(
            Queued(each.owner, dict(each.items), dict(each.ranges), tuple(table.blockers(each)))
            for each in table.waiting.values()
        ),
        {
            place: tuple(each.owner for each in node.queue)
            for place, node in table.nodes.items()
            if node.queue is not None
        },
    )

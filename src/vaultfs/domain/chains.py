"""Which way to a delta costs least: computed from two contents, or by deltas that are recorded.

A recorded delta is an edge from version to version; a path of edges composes into one
delta. What a way costs is the bytes of contents that have to be read for it. A path of
more links than `max_chain_depth` is no way, and where there is no other the whole file is
sent instead.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from vaultfs.domain.nodes import VersionId

MAX_CHAIN_DEPTH: Final = 16
"""Links of a chain, unless a server is told otherwise."""


class Edge(NamedTuple):
    """A recorded delta: from `base` to `target`, of which `literal` bytes are not in the base."""

    base: VersionId
    target: VersionId
    literal: int


class Way(StrEnum):
    """How a client gets a version."""

    DIRECT = "direct"
    """Computed from both contents."""
    CHAIN = "chain"
    """Composed of recorded deltas, one or more."""
    FULL = "full"
    """Whole."""


class Reason(StrEnum):
    """Why the whole file is sent, or why a way was taken."""

    CHEAPEST = "cheapest"
    UNKNOWN_BASE = "unknown-base"
    """The client's version is neither there nor the base of a recorded delta."""
    UNVERIFIED = "unverified"
    """A digest is not known yet, and none would be compared."""
    TOO_DEEP = "chain-too-deep"
    NOT_SMALLER = "not-smaller"


class Plan(NamedTuple):
    """The way that is taken."""

    way: Way
    reason: Reason
    path: tuple[Edge, ...] = ()

    @property
    def depth(self) -> int:
        """Links of the chain; 1 for a delta that is computed, 0 for none."""
        return len(self.path) or int(self.way is Way.DIRECT)


def shortest(edges: Iterable[Edge], base: VersionId, target: VersionId) -> tuple[Edge, ...]:
    """The path of the fewest links, of those of the fewest bytes; empty if there is none."""
    return _cheapest(list(edges), base, target, None)


def cheapest(
    edges: Iterable[Edge], base: VersionId, target: VersionId, max_depth: int
) -> tuple[Edge, ...]:
    """The path of the fewest bytes with `max_depth` links at the most; empty if there is none.

    Time: the edges times the depth (Bellman and Ford's algorithm, a link a round).
    """
    return _cheapest(list(edges), base, target, max_depth)


def _cheapest(
    edges: list[Edge], base: VersionId, target: VersionId, max_depth: int | None
) -> tuple[Edge, ...]:
    best: dict[VersionId, tuple[int, tuple[Edge, ...]]] = {base: (0, ())}
    rounds = len(edges) if max_depth is None else max_depth
    for _ in range(rounds):
        found = dict(best)
        for edge in edges:
            if edge.base not in best:
                continue
            cost, path = best[edge.base]
            cost += edge.literal
            if edge.target not in found or cost < found[edge.target][0]:
                found[edge.target] = (cost, (*path, edge))
        if max_depth is None and target in found:
            return found[target][1]
        if found == best:
            break
        best = found
    return best[target][1] if target in best else ()


def choose(
    edges: Iterable[Edge],
    base: VersionId,
    target: VersionId,
    *,
    size: int,
    direct: int | None,
    max_depth: int = MAX_CHAIN_DEPTH,
) -> Plan:
    """The plan for a client that has `base` and wants `target`, of `size` bytes.

    `direct` is what computing it would read; None if it cannot be computed.
    """
    known = list(edges)
    path = cheapest(known, base, target, max_depth)
    cost = sum(edge.literal for edge in path)
    if path and cost < size and (direct is None or cost < direct):
        return Plan(Way.CHAIN, Reason.CHEAPEST, path)
    if direct is not None:
        return Plan(Way.DIRECT, Reason.CHEAPEST)
    if path:
        return Plan(Way.FULL, Reason.NOT_SMALLER)
    deeper = shortest(known, base, target)
    return Plan(Way.FULL, Reason.TOO_DEEP if deeper else Reason.UNKNOWN_BASE)

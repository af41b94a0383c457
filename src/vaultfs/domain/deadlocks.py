"""Circles of owners that wait for each other: found, opened, or reported.

The waits-for graph has an edge from an owner that waits to each owner that keeps it
waiting: *hard* to one that holds what clashes, *soft* to one that is only further ahead in a
queue (the terms are PostgreSQL's, `storage/lmgr/README`). There was no circle before the
request that is looked at, so a circle goes through its owner. One with a soft edge is opened by
letting the later of the two pass; if that makes another circle, the next soft edge is tried.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from vaultfs.domain.lockmodes import CLASH, Mode, clash
from vaultfs.domain.locknodes import Deadlock, Grant, Link, Node, Owner, Waiting

TRIES: Final = 1000
"""Changes of places that one request may try, so that it ends; enough for any queue seen."""


class _Edge(NamedTuple):
    """`request` waits on `node`, for `owner`."""

    request: Waiting
    node: Node
    want: Mode
    owner: Owner
    mode: Mode
    ahead: Waiting | None
    """Who is only ahead in the queue; None: `owner` holds it."""


def untangle(
    waits: Mapping[Owner, Waiting],
    request: Waiting,
    grants: Iterable[Grant],
) -> Deadlock | tuple[Node, ...]:
    """The circle that `request` closes, or where places were changed so that it closes none.

    `waits` is what each owner waits for, `grants` are those of the owner of `request`. If
    there is a circle, all places are as they were. Takes time linear in the edges that
    can be reached, and none if nobody waits for that owner.
    """
    if not _somebody_waits_for(request, grants):
        return ()
    return _Untangling(waits, request).run()


def _somebody_waits_for(request: Waiting, grants: Iterable[Grant]) -> bool:
    """Whether anybody could wait for what its owner holds, or behind it where it went ahead."""
    for node in request.wants:
        if node.queue is not None and next(reversed(node.queue)) is not request:
            return True
    return any(
        node.queue is not None and (len(node.queue) > 1 or request not in node.queue)
        for grant in grants
        for node in grant.nodes
    )


class _Untangling:
    def __init__(self, waits: Mapping[Owner, Waiting], request: Waiting) -> None:
        self._waits = waits
        self._request = request
        self._moved: list[tuple[Node, list[Waiting]]] = []
        """Where somebody was let pass, and how the queue was before."""
        self._fixed: set[tuple[int, int, Node]] = set()
        """Pairs whose order has been chosen: the first goes before the second."""
        self._tries = 0

    def run(self) -> Deadlock | tuple[Node, ...]:
        circle = self._circle(self._request, hard=True)
        if circle:  # no change of places can help
            return _deadlock(circle)
        stays = self._open([self._request])
        return stays or tuple(node for node, _ in self._moved)

    def _open(self, starts: list[Waiting]) -> Deadlock | None:
        """Change places until no circle goes through any of `starts`; one that stays, if so."""
        path = next((found for start in starts if (found := self._circle(start))), None)
        if path is None:
            return None
        stays = _deadlock(path)
        for edge in path:
            ahead = edge.ahead
            if ahead is None or self._tries == TRIES:
                continue
            if (ahead.id, edge.request.id, edge.node) in self._fixed:
                continue
            self._tries += 1
            self._pass(edge.request, ahead, edge.node)
            other = self._open([*starts, edge.request])  # whom all that it passed wait for now
            if other is None:
                return None
            self._undo(edge.request, ahead)
            stays = other
        return stays

    def _pass(self, request: Waiting, ahead: Waiting, node: Node) -> None:
        self._moved.append((node, list(node.queue or ())))
        self._fixed.add((request.id, ahead.id, node))
        node.move(request, ahead)

    def _undo(self, request: Waiting, ahead: Waiting) -> None:
        node, before = self._moved.pop()
        self._fixed.remove((request.id, ahead.id, node))
        node.order(before)

    def _circle(self, start: Waiting, *, hard: bool = False) -> list[_Edge]:
        """The edges of a circle through the owner of `start`, all `hard` if so, or nothing."""
        search = _Search(start, hard=hard)
        seen = {start.owner}
        path: list[_Edge] = []
        steps = [search.edges(start)]
        while steps:
            edge = next(steps[-1], None)
            if edge is None:
                steps.pop()
                if path:
                    path.pop()
                continue
            if edge.owner == start.owner:
                return [*path, edge]
            following = self._waits.get(edge.owner)
            if following is not None and edge.owner not in seen:
                seen.add(edge.owner)
                path.append(edge)
                steps.append(search.edges(following))
        return []


def _deadlock(circle: Iterable[_Edge]) -> Deadlock:
    return Deadlock(
        tuple(
            Link(e.request.owner, e.request.id, e.node.resource, e.want, e.owner, e.mode)
            for e in circle
        )
    )


class _Search:
    """One walk over the graph, which looks at nobody twice for the same reason.

    Whoever waits for a mode of a node is kept by the same holders as all others who do,
    and by those ahead of them; so the holders are gone through once for each node and
    mode, and a queue only from further back than before. What is left out has been seen, but
    for the owner that the walk is to come back to.
    """

    def __init__(self, start: Waiting, *, hard: bool) -> None:
        self._hard = hard
        self._start = start
        self._held: set[tuple[Node, Mode]] = set()
        self._ahead: dict[tuple[Node, Mode], int] = {}
        self._places: dict[Node, dict[Waiting, int]] = {}

    def edges(self, request: Waiting) -> Iterator[_Edge]:
        """What keeps `request` waiting."""
        ranges = bool(request.ranges)
        for node, want in request.wants.items():
            clashing = CLASH[want]
            if ranges or node.held & clashing:
                yield from self._to_holders(node, request, want)
            if not self._hard and (ranges or node.wanted & clashing):
                yield from self._to_waiters(node, request, want)

    def _to_holders(self, node: Node, request: Waiting, want: Mode) -> Iterator[_Edge]:
        back = self._start.owner
        if request.ranges or (node, want) not in self._held:
            if not request.ranges:
                self._held.add((node, want))
            for owner, mode in node.holders_against(request, want):
                yield _Edge(request, node, want, owner, mode, None)
        elif (mine := node.has(back)) is not None and clash(mine, want) and request.owner != back:
            yield _Edge(request, node, want, back, mine, None)

    def _to_waiters(self, node: Node, request: Waiting, want: Mode) -> Iterator[_Edge]:
        if not request.ranges:
            if node.has(request.owner) is want:
                return  # it has that already, and waits for nobody: so nobody has been seen
            place = self._place(node, request)
            if self._ahead.get((node, want), -1) >= place:
                return
            self._ahead[node, want] = place
        for other, mode in node.waiters_against(request, want):
            yield _Edge(request, node, want, other.owner, mode, other)

    def _place(self, node: Node, request: Waiting) -> int:
        places = self._places.get(node)
        if places is None:
            places = {each: place for place, each in enumerate(node.queue or ())}
            self._places[node] = places
        return places[request]

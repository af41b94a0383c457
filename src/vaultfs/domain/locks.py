"""The table of hierarchical locks: a machine that decides who holds what and who waits.

Theory of operation
===================

*Resources* form a tree (`lockmodes.Resource`); a *node* is a resource that somebody holds
or waits for, and is forgotten when nobody does. A *grant* is what one owner got by one
request: modes for some resources and, by `plan_of`, intents for all above. On a node the
grants of one owner are counted by mode, so that they may be released in any order; the
owner's *effective* mode is the least upper bound of what is left. An owner never stands
in its own way.

*Requests.* All that a request asks for is granted at one moment or not at all. It is
granted at once if on none of its nodes it clashes with another owner's effective mode or
with somebody who waits there already. Otherwise it waits, on all its nodes at the same
time and holding nothing new. So owners that ask for everything at once cannot deadlock
each other, and nobody starves: who comes later and clashes queues behind. Who clashes
with nobody passes.

*Places in a queue.* A request goes last, except that it goes in front of everybody who
clashes with what its owner holds there: they wait for this owner anyway. This is how an
upgrade goes ahead of newcomers, and holds back new readers while it waits. It keeps what
it has meanwhile, and has exactly that if it fails.

*Waking.* When something is released, or somebody leaves a queue, only those who clash with
what went can be concerned. Their queue is gone through from its head. Each is granted
if on all its nodes nobody in front of it, and no holder, clashes. The walk ends at the first
that is not and clashes with everything (X), but for those behind it who have the node and
wait for ranges of it alone. What passed on is kept for the caller, who wakes the tasks.
Where many wait for one path the first mostly asked for just what is released: then its modes
are handed over as they are (`_heir`), which comes to the same and costs half.

*Deadlocks* are found when a request would wait: a waits-for graph between owners is searched
for a circle through it (`deadlocks.py`). An edge to a holder is *hard*, one to somebody
further ahead in a queue is *soft*: a soft one goes away when the later one is let pass. So a
circle with a soft edge is opened by changing places, and only one of hard edges is
reported. The victim is the member with the largest request id: the request that closed the
circle, as there was none before it. It is taken back; what its owner held before stays.

*Byte ranges* are an interval beside an intent (IX or IS) on a file. Ranges clash by overlap;
one owner's follow POSIX (`intervals.py`): who asks to share what it has exclusively has it
shared, in all its grants. A whole-file lock clashes with the intent.

*Leases.* A request may carry the moment until which its grant is good. `tick` says what time
it is; it drops expired waiters, and releases expired grants, before anything is granted.
Each grant gets a *token* from a counter that is part of the state and never goes back, so
that of two holders of one resource the later one has the larger token.

The machine knows no clock, tasks or stores: `dump` and `load` are its whole state as plain
values. Cost: a request takes time linear in its plan, if nobody clashes with it; deadlocks
are searched for only if somebody waits for what its owner holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from vaultfs.domain.deadlocks import untangle
from vaultfs.domain.intervals import Range, Ranges, weakened
from vaultfs.domain.lockmodes import CLASH, FIELD, LUB, Mode, Resource, clash, covers, plan_of
from vaultfs.domain.locknodes import (
    FIRST,
    NO_RANGES,
    Answer,
    Blocked,
    Blocker,
    Deadlock,
    Grant,
    Node,
    Owner,
    OwnerBusy,
    Waiting,
)


class LockTable:
    """All locks of some trees, and all who wait for them. See the head of this module.

    What a call passes on to those who wait stands in `passed`, until it is taken from there.
    """

    def __init__(self) -> None:
        self.now = float("-inf")
        """What `tick` said last."""
        self.counter = 0
        """The last id or token that was given out."""
        self.nodes: dict[Resource, Node] = {}
        self.grants: dict[int, Grant] = {}
        self.waiting: dict[int, Waiting] = {}
        self.owned: dict[Owner, dict[int, Grant]] = {}
        """The grants of each owner that has some, by id."""
        self.waits: dict[Owner, Waiting] = {}
        """What each owner that waits is waiting for."""
        self.leases = 0
        """Grants and requests that may run out."""
        self._ranged = 0
        """Requests that wait for ranges, maybe among others."""
        self.passed: list[tuple[int, Grant | None]] = []
        """Requests that waited and became a grant; or nothing, as it ran out or what it was for."""

    # What callers ask for

    def request(
        self,
        owner: Owner,
        items: Mapping[Resource, Mode],
        *,
        ranges: Mapping[Resource, tuple[Range, ...]] = NO_RANGES,
        expires: float | None = None,
        wait: bool = True,
    ) -> Answer:
        """Have all of `items` and `ranges`, or wait for them; unless `wait`, now or not at all.

        Resources have to be normalised. It may pass something on to others: by changing places.
        """
        if self.waits and owner in self.waits:
            return OwnerBusy(self.waits[owner].id)
        plan = whole_plan(items, ranges)
        if not ranges:
            if owner not in self.owned:
                nodes = self._take(owner, plan)
                if nodes is not None:
                    grant = Grant(self._next(), owner, dict(items), plan, ranges, expires, nodes)
                    self._enrol(grant)
                    return grant
            elif self._free(owner, plan):
                return self.admit(Grant(self._next(), owner, dict(items), plan, ranges, expires))
        request = Waiting(self._next(), owner, dict(items), plan, ranges, expires, None)
        return self._enter(request, wait=wait)

    def convert(self, grant: int, items: Mapping[Resource, Mode], *, wait: bool = True) -> Answer:
        """Give the grant these modes for resources that it has: stronger ones, or weaker.

        Weaker ones are granted at once. For stronger ones it may wait, and keeps what it
        has. Raises `KeyError` for a grant, or a resource of it, that is not there, and
        `ValueError` for a mix of stronger and weaker ones.
        """
        held = self.grants[grant]
        weaker = all(covers(held.items[resource], mode) for resource, mode in items.items())
        if not weaker and not all(covers(mode, held.items[r]) for r, mode in items.items()):
            raise ValueError("some modes are stronger and some weaker: convert them one by one")
        if not weaker and held.owner in self.waits:
            return OwnerBusy(self.waits[held.owner].id)
        plan = whole_plan({**held.items, **items}, held.ranges)
        if weaker or self._free(held.owner, plan):
            self._replace(held, {**held.items, **items}, held.ranges)
            return held
        request = Waiting(self._next(), held.owner, dict(items), plan, NO_RANGES, None, held)
        return self._enter(request, wait=wait)

    def release(self, grant: int, resources: Iterable[Resource] | None = None) -> None:
        """Give up a grant, or some resources of it. Raises `KeyError` if it is not there."""
        held = self.grants[grant]
        if resources is None:
            heir = self._heir(held) if self.waiting else None
            if heir is None:
                self._drop(held)
            else:
                self._hand_over(held, heir)
            return
        gone = set(resources)
        items = {resource: mode for resource, mode in held.items.items() if resource not in gone}
        ranges = {resource: each for resource, each in held.ranges.items() if resource not in gone}
        if not items and not ranges:
            self._drop(held)
        else:
            self._replace(held, items, ranges)

    def cancel(self, request: int) -> None:
        """Stop waiting. Raises `KeyError` if it does not wait (any more)."""
        waiting = self.waiting[request]
        self._wake(self._leave(waiting))

    def renew(self, number: int, expires: float) -> None:
        """Let a grant, or a request that waits, last until `expires`.

        Raises `KeyError` if it is not there: what has run out cannot be renewed.
        """
        found = self.grants.get(number) or self.waiting[number]
        self.leases += found.expires is None
        found.expires = expires

    def tick(self, now: float) -> tuple[Grant, ...]:
        """It is `now`: the grants that have run out, and are gone; others may have what they held.

        Time that goes back is not believed.
        """
        self.now = max(self.now, now)
        if not self.leases:
            return ()
        dropped = [each for each in self.waiting.values() if self._over(each.expires)]
        expired = [each for each in self.grants.values() if self._over(each.expires)]
        loosened = [place for request in dropped for place in self._leave(request)]
        for grant in expired:
            loosened += self._forget(grant)
        self.passed += ((each.id, None) for each in dropped)
        self._wake(loosened)
        for grant in expired:
            self._reconsider(grant.owner)
        return tuple(expired)

    def take_passed(self) -> list[tuple[int, Grant | None]]:
        """What became of requests that waited, since the last call, in that order."""
        passed, self.passed = self.passed, []
        return passed

    def in_the_way(
        self, items: Mapping[Resource, Mode], owners: frozenset[Owner] = frozenset()
    ) -> tuple[Blocker, ...]:
        """Who holds what clashes with `items`, but for `owners`: what a plain write asks."""
        found: list[Blocker] = []
        for resource, mode in plan_of(items.items()).items():
            node = self.nodes.get(resource)
            if node is not None and node.held & CLASH[mode]:
                found += [
                    Blocker(owner, resource, held)
                    for owner, (_, held) in node.holds.items()
                    if clash(held, mode) and owner not in owners
                ]
        return tuple(found)

    def blockers(self, request: Waiting) -> list[Blocker]:
        """Who keeps `request` waiting, holders first on each node."""
        found: list[Blocker] = []
        for node, want in request.wants.items():
            found += [
                Blocker(owner, node.resource, mode)
                for owner, mode in node.holders_against(request, want)
            ]
            found += [
                Blocker(other.owner, node.resource, mode, waits=True)
                for other, mode in node.waiters_against(request, want)
            ]
        return found

    # How it is done

    def _next(self) -> int:
        self.counter += 1
        return self.counter

    def _over(self, expires: float | None) -> bool:
        return expires is not None and expires <= self.now

    def _free(self, owner: Owner, plan: Mapping[Resource, Mode]) -> bool:
        """Whether nobody, holding or waiting, clashes with `plan`."""
        nodes = self.nodes
        for resource, mode in plan.items():
            node = nodes.get(resource)
            if node is None:
                continue
            hold = node.holds.get(owner)
            if hold is None:
                if (node.held + node.wanted) & CLASH[mode]:
                    return False
                continue
            mine = hold[1]
            want = LUB[mine][mode]
            if want is not mine and (node.held - FIELD[mine] + node.wanted) & CLASH[want]:
                return False
        return True

    def _take(self, owner: Owner, plan: Mapping[Resource, Mode]) -> dict[Node, Mode] | None:
        """Hold `plan` for an owner that holds nothing, unless anybody clashes; by node.

        What `_free` and `_hold` come to then, with each node looked up once.
        """
        nodes = self.nodes
        taken: dict[Node, Mode] = {}
        for resource, mode in plan.items():
            node = nodes.get(resource)
            if node is None:
                node = Node(resource)
            elif (node.held + node.wanted) & CLASH[mode]:
                return None
            taken[node] = mode
        for node, mode in taken.items():
            if not node.held:
                nodes[node.resource] = node
            node.holds[owner] = FIRST[mode]
            node.held += FIELD[mode]
        return taken

    def _enter(self, request: Waiting, *, wait: bool) -> Answer:
        """Grant `request` if it can be, or let it wait if that can end."""
        self.line_up(request)
        # Of one that holds nothing it is known by now that it clashes.
        holds = request.owner in self.owned
        if (holds or request.ranges) and self._grantable(request):
            return self._admit(request)
        if not wait:
            blockers = tuple(self.blockers(request))
            self._leave(request)
            return Blocked(blockers)
        if not holds:
            return request  # nobody waits for it, so it closes no circle
        deadlock = self._untangle(request)
        if deadlock is not None:
            self._leave(request)
            return deadlock
        for place, (number, grant) in enumerate(self.passed):
            if number == request.id and grant is not None:  # it was let pass
                del self.passed[place]
                return grant
        return request

    def line_up(self, request: Waiting) -> None:
        """Give `request` its places in the queues of all its nodes."""
        nodes, wants, holds = self.nodes, request.wants, request.owner in self.owned
        for resource, mode in request.plan.items():
            node = nodes.get(resource)
            if node is None:
                node = nodes[resource] = Node(resource)
            mine = node.has(request.owner) if holds else None
            want = wants[node] = mode if mine is None else LUB[mine][mode]
            node.enter(request, want, mine)
        self.waiting[request.id] = self.waits[request.owner] = request
        self.leases += request.expires is not None
        self._ranged += bool(request.ranges)

    def _grantable(self, request: Waiting) -> bool:
        expires = request.expires if request.converts is None else request.converts.expires
        if expires is not None and self._over(expires):
            return False
        owner, ranges = request.owner, request.ranges
        for node, want in request.wants.items():
            if not ranges and node.ranges is None:  # mostly nobody clashes, which counts tell
                hold = node.holds.get(owner)
                held = node.held if hold is None else node.held - FIELD[hold[1]]
                if not (held + node.wanted - FIELD[want]) & CLASH[want]:
                    continue
                if hold is None and not held & CLASH[want] and node.first is request:
                    continue
            if next(node.holders_against(request, want), None) is not None:
                return False
            if next(node.waiters_against(request, want), None) is not None:
                return False
        return True

    def _admit(self, request: Waiting) -> Grant:
        """Turn a request that nothing blocks into its grant."""
        self._forget_waiting(request)
        for node in request.wants:
            node.leave(request)
        grant = request.converts
        if grant is None:
            wanted = (request.owner, request.items, request.plan, request.ranges)
            return self.admit(Grant(self._next(), *wanted, request.expires))
        self._replace(grant, grant.items | request.items, grant.ranges)
        for node in request.wants:
            if node.unused() and self.nodes.get(node.resource) is node:
                del self.nodes[node.resource]
        return grant

    def admit(self, grant: Grant) -> Grant:
        """Count in what clashes with nobody: a grant just made, or one of a saved state."""
        self._enrol(grant)
        grant.nodes = self._hold(grant.owner, grant.plan)
        if grant.ranges:
            self._have_ranges(grant.owner, grant.ranges)
            self._weaken(grant)
        return grant

    def _enrol(self, grant: Grant) -> None:
        """Know `grant` as one of its owner's."""
        number, owner = grant.id, grant.owner
        self.grants[number] = grant
        owned = self.owned.get(owner)
        if owned is None:
            self.owned[owner] = {number: grant}
        else:
            owned[number] = grant
        if grant.expires is not None:
            self.leases += 1

    def _weaken(self, grant: Grant) -> None:
        """Convert what its owner's other grants have of the ranges that it asks to share.

        Else the end of `grant` would bring back what others have meanwhile been let into.
        """
        for other in list(self.owned[grant.owner].values()):
            if other is grant or not other.ranges:
                continue
            ranges = {
                resource: weakened(held, grant.ranges.get(resource, ()))
                for resource, held in other.ranges.items()
            }
            if ranges != other.ranges:
                self._replace(other, other.items, ranges)

    def _have_ranges(self, owner: Owner, resources: Iterable[Resource]) -> None:
        """Make the ranges of `owner` in some files those of its grants: the latest wins."""
        grants = self.owned.get(owner, {}).values()
        nodes = [node for each in resources if (node := self.nodes.get(each)) is not None]
        for node in nodes:
            mine = Ranges()
            for grant in grants:
                for each in grant.ranges.get(node.resource, ()):
                    mine.lock(each)
            if mine:
                node.ranges = (node.ranges or {}) | {owner: mine}
            elif node.ranges and node.ranges.pop(owner, None) and not node.ranges:
                node.ranges = None
        # Whom it concerns, only those who wait know; they may want some of the other files too.
        self._wake([(node, Mode.X) for node in nodes])

    def _hold(self, owner: Owner, plan: Mapping[Resource, Mode]) -> dict[Node, Mode]:
        """Count the holds of `plan` in its nodes, which are returned."""
        nodes = self.nodes
        counted: dict[Node, Mode] = {}
        for resource, mode in plan.items():
            node = nodes.get(resource)
            if node is None:
                node = nodes[resource] = Node(resource)
            if owner in node.holds:
                node.add(owner, mode)
            else:  # what a lock mostly costs, so it is spared a call
                node.holds[owner] = FIRST[mode]
                node.held += FIELD[mode]
            counted[node] = mode
        if owner in self.waits:
            self._want_anew(owner)
        return counted

    def _unhold(self, owner: Owner, counted: Mapping[Node, Mode]) -> list[tuple[Node, Mode]]:
        """Count the holds of a grant down; where, and from which mode, `owner` became weaker."""
        loosened: list[tuple[Node, Mode]] = []
        for node, mode in counted.items():
            before: Mode | None = mode
            if node.holds[owner] is FIRST[mode]:
                del node.holds[owner]
                node.held -= FIELD[mode]
            else:
                before = node.remove(owner, mode)
            if before is not None and node.queue is not None:
                loosened.append((node, before))
            if node.queue is None and not node.holds:
                del self.nodes[node.resource]
        if owner in self.waits:
            self._want_anew(owner)
        return loosened

    def _want_anew(self, owner: Owner) -> None:
        """What the request that `owner` waits for comes to, now that it holds more or less."""
        request = self.waits[owner]
        for resource, mode in request.plan.items():
            node = self.nodes[resource]
            mine = node.has(owner)
            want = mode if mine is None else LUB[mine][mode]
            if node.queue is not None and want is not request.wants[node]:
                node.wanted += FIELD[want] - FIELD[request.wants[node]]
                node.queue[request] = request.wants[node] = want

    def _replace(
        self,
        held: Grant,
        items: dict[Resource, Mode],
        ranges: Mapping[Resource, tuple[Range, ...]],
    ) -> None:
        """Give a grant other contents; never through a moment in which it has neither."""
        before, ranged = held.nodes, [*held.ranges]
        held.items, held.ranges, held.plan = items, ranges, whole_plan(items, ranges)
        held.nodes = self._hold(held.owner, held.plan)
        loosened = self._unhold(held.owner, before)
        waiting = self.waits.get(held.owner) if self.waits else None
        if waiting is not None and waiting.converts is held:
            loosened += self._narrow(waiting, held)
        if ranged:
            self._have_ranges(held.owner, ranged)
        self._wake(loosened)
        self._reconsider(held.owner)

    def _narrow(self, request: Waiting, held: Grant) -> list[tuple[Node, Mode]]:
        """Have a conversion wait no longer for what its grant has not any more."""
        request.items = {r: mode for r, mode in request.items.items() if r in held.items}
        request.plan = whole_plan({**held.items, **request.items}, held.ranges)
        loosened: list[tuple[Node, Mode]] = []
        for node in [each for each in request.wants if each.resource not in request.plan]:
            node.leave(request)
            want = request.wants.pop(node)
            if node.queue is not None:
                loosened.append((node, want))
            elif node.unused():
                del self.nodes[node.resource]
        self._want_anew(request.owner)
        loosened += [(self.nodes[resource], Mode.X) for resource in request.plan]
        return loosened

    def _reconsider(self, owner: Owner) -> None:
        """See that what `owner` waits for closes no circle, now that it holds less.

        What it held covered a part of its request, which may now stand behind others in a
        queue: soft edges, which can be opened.
        """
        request = self.waits.get(owner)
        if request is not None:
            self._untangle(request)

    def _heir(self, held: Grant) -> Waiting | None:
        """The first who waits for just what `held` has, if it can have that in its place.

        It is one who holds nothing, of a grant that is all that its owner holds; and nobody
        above it waits who would not get along with it.
        """
        owner = held.owner
        *above, leaf = held.nodes
        if leaf.queue is None or held.expires is not None or owner in self.waits:
            return None
        request = next(iter(leaf.queue))
        if (
            request.plan is not held.plan  # those of one path and mode are one
            or request.expires is not None
            or request.converts is not None
            or request.owner in self.owned
            or len(self.owned[owner]) > 1
        ):
            return None
        for node in above:
            mode = held.nodes[node]
            if (node.wanted - FIELD[mode]) & CLASH[mode]:
                return None
        return request

    def _hand_over(self, held: Grant, request: Waiting) -> None:
        """Give all of `held` to its heir: what `_drop` comes to then, at half the cost.

        Who got along with the modes still does, and who did not waits for the heir now.
        """
        owner, heir = held.owner, request.owner
        for node, mode in held.nodes.items():
            del node.holds[owner]
            node.holds[heir] = FIRST[mode]
            node.leave(request)
        self._forget_waiting(request)
        del self.grants[held.id], self.owned[owner]
        number = self._next()
        grant = Grant(number, heir, request.items, request.plan, NO_RANGES, None, held.nodes)
        self.grants[number] = grant
        self.owned[heir] = {number: grant}
        self.passed.append((request.id, grant))

    def _drop(self, held: Grant) -> None:
        loosened = self._forget(held)
        if loosened:
            self._wake(loosened)
        if held.owner in self.waits:
            self._reconsider(held.owner)

    def _forget(self, held: Grant) -> list[tuple[Node, Mode]]:
        """Take a grant out of the table; where somebody may go on by that."""
        owner = held.owner
        del self.grants[held.id]
        owned = self.owned[owner]
        if len(owned) == 1:
            del self.owned[owner]
        else:
            del owned[held.id]
        if held.expires is not None:
            self.leases -= 1
        left: list[tuple[Node, Mode]] = []
        if owner in self.waits and self.waits[owner].converts is held:  # nothing to convert now
            waiting = self.waits[owner]
            left = self._leave(waiting)
            self.passed.append((waiting.id, None))
        loosened = self._unhold(owner, held.nodes)
        if held.ranges:
            self._have_ranges(owner, held.ranges)
        return left + loosened if left else loosened

    def _forget_waiting(self, request: Waiting) -> None:
        del self.waiting[request.id]
        del self.waits[request.owner]
        if request.expires is not None:
            self.leases -= 1
        if request.ranges:
            self._ranged -= 1

    def _leave(self, request: Waiting) -> list[tuple[Node, Mode]]:
        """Take a request out of its queues; where others may go on by that."""
        self._forget_waiting(request)
        loosened: list[tuple[Node, Mode]] = []
        for node, want in request.wants.items():
            node.leave(request)
            if node.queue is not None:
                loosened.append((node, Mode.X if request.ranges else want))
            elif node.unused():
                del self.nodes[node.resource]
        return loosened

    def _untangle(self, request: Waiting) -> Deadlock | None:
        """See that `request` closes no circle, by changing places if that is needed and helps."""
        grants = self.owned.get(request.owner, {}).values()
        verdict = untangle(self.waits, request, grants)
        if isinstance(verdict, Deadlock):
            return verdict
        self._wake([(node, Mode.X) for node in verdict])
        return None

    def _wake(self, loosened: Sequence[tuple[Node, Mode]]) -> None:
        """Grant what can be granted, now that others became weaker there or left."""
        failed: set[int] = set()
        for node, gone in loosened:
            if not node.wanted & CLASH[gone]:
                continue
            while node.queue is not None:  # mostly the first goes on, and the next does not
                request, want = next(iter(node.queue.items()))
                if not self._try(request, failed):
                    if want is not Mode.X or self._ranged:
                        self._wake_behind(node, failed, shut=want is Mode.X)
                    break
                if want is Mode.X:  # it has the node now, and clashes with all behind it
                    break

    def _wake_behind(self, node: Node, failed: set[int], *, shut: bool) -> None:
        """As `_wake` on one node, from the second in its queue on.

        It is `shut` by an X in front, but to those who have it and wait for ranges.
        """
        for request, want in list((node.queue or {}).items())[1:]:
            if shut and not (request.ranges and request.owner in node.holds):
                continue
            if request.id in self.waiting and not self._try(request, failed) and want is Mode.X:
                if not self._ranged:
                    return
                shut = True

    def _try(self, request: Waiting, failed: set[int]) -> bool:
        """Grant `request` if that is possible and has not been tried in this round."""
        if request.id in failed:
            return False
        if self._grantable(request):
            self.passed.append((request.id, self._admit(request)))
            return True
        failed.add(request.id)
        return False


def _intents(
    ranges: Mapping[Resource, tuple[Range, ...]],
) -> Iterator[tuple[Resource, Mode]]:
    """What ranges ask of the files that they are in."""
    for resource, asked in ranges.items():
        for each in asked:
            yield resource, Mode.IX if each.exclusive else Mode.IS


def whole_plan(
    items: Mapping[Resource, Mode], ranges: Mapping[Resource, tuple[Range, ...]]
) -> dict[Resource, Mode]:
    """All that has to be held for `items` and `ranges`; not to be changed."""
    if ranges:
        return plan_of((*items.items(), *_intents(ranges)))
    if len(items) == 1:
        ((resource, mode),) = items.items()
        return _plan_of_one(resource, mode)
    return plan_of(items.items())


@lru_cache(maxsize=512)
def _plan_of_one(resource: Resource, mode: Mode) -> dict[Resource, Mode]:
    return plan_of(((resource, mode),))

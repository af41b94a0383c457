"""What is true of a lock table after every step, worked out the slow way."""

from collections.abc import Mapping
from itertools import combinations

from vaultfs.domain.lockmodes import FIELD, LUB, Mode, Resource, clash
from vaultfs.domain.locknodes import Deadlock, Node, Owner, Waiting
from vaultfs.domain.locks import LockTable


def check(table: LockTable) -> None:
    """Raise `AssertionError` for anything that is not as the head of `domain.locks` says."""
    holds = _holds(table)
    for resource, node in table.nodes.items():
        _check_node(node, holds.pop(resource, {}))
    assert not holds, "a grant holds what is no node"
    waiting = list(table.waiting.values())
    assert {each.owner: each for each in waiting} == table.waits
    for request in waiting:
        _check_places(table, request)
        over = request.expires is not None and request.expires <= table.now
        assert over or in_the_way(table, request), "somebody waits who could go on"
    _check_for_circles(table)


def _holds(table: LockTable) -> dict[Resource, dict[Owner, Mode]]:
    """The effective modes, from the grants alone."""
    found: dict[Resource, dict[Owner, Mode]] = {}
    for grant in table.grants.values():
        assert table.owned[grant.owner][grant.id] is grant
        assert grant.nodes == {table.nodes[each]: mode for each, mode in grant.plan.items()}
        for resource, mode in grant.plan.items():
            owners = found.setdefault(resource, {})
            owners[grant.owner] = LUB[owners.get(grant.owner, mode)][mode]
    assert sum(map(len, table.owned.values())) == len(table.grants)
    return found


def _check_node(node: Node, effective: dict[Owner, Mode]) -> None:
    queue: Mapping[Waiting, Mode] = node.queue or {}
    assert effective or queue, "a node that nobody uses is left"
    assert {owner: mode for owner, (_, mode) in node.holds.items()} == effective
    assert node.held == sum(FIELD[mode] for mode in effective.values())
    assert node.wanted == sum(FIELD[mode] for mode in queue.values())
    for one, other in combinations(effective.values(), 2):
        assert not clash(one, other), "two owners hold what clashes"
    for mine, theirs in combinations((node.ranges or {}).values(), 2):
        assert not any(mine.meets(each) for each in theirs), "two owners hold ranges that clash"


def _check_places(table: LockTable, request: Waiting) -> None:
    assert set(request.wants) == {table.nodes[each] for each in request.plan}
    for resource, mode in request.plan.items():
        node = table.nodes[resource]
        mine = node.has(request.owner)
        assert request.wants[node] is (mode if mine is None else LUB[mine][mode])
        assert node.queue is not None
        assert node.queue[request] is request.wants[node]


def in_the_way(table: LockTable, request: Waiting) -> set[Owner]:
    """The owners that `request` waits for, whether they hold or are further ahead."""
    found: set[Owner] = set()
    for node, want in request.wants.items():
        asked = request.ranges.get(node.resource, ())
        covered = node.has(request.owner) is want
        found |= {
            owner
            for owner, (_, mode) in node.holds.items()
            if owner != request.owner and not covered and clash(mode, want)
        }
        found |= {
            owner
            for owner, ranges in (node.ranges or {}).items()
            if owner != request.owner and any(ranges.meets(each) for each in asked)
        }
        for other, mode in (node.queue or {}).items():
            if other is request:
                break
            theirs = other.ranges.get(node.resource, ())
            if (not covered and clash(mode, want)) or any(
                one.meets(each) for one in asked for each in theirs
            ):
                found.add(other.owner)
    return found


def _check_for_circles(table: LockTable) -> None:
    left = {each.owner: in_the_way(table, each) for each in table.waiting.values()}
    while True:  # take away who waits for nobody that waits, until nobody is left
        free = [owner for owner, others in left.items() if not others & left.keys()]
        if not free:
            break
        for owner in free:
            del left[owner]
    assert not left, "a circle was not found"


def check_circle(table: LockTable, deadlock: Deadlock, owner: Owner) -> None:
    """A circle that was reported is one: each waits for what the next really holds."""
    circle = deadlock.circle
    assert circle[0].owner == owner
    assert circle[0].request == max(link.request for link in circle)
    for link, following in zip(circle, (*circle[1:], circle[0]), strict=True):
        assert link.holder == following.owner
        node = table.nodes[link.resource]
        held = node.has(link.holder)
        assert held is not None
        assert held is link.held
        assert clash(held, link.wanted) or link.holder in (node.ranges or {})

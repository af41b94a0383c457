"""Which way is taken to a version."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.domain.chains import Edge, Plan, Reason, Way, cheapest, choose, shortest
from vaultfs.domain.nodes import VersionId


def edge(base: int, target: int, literal: int = 1) -> Edge:
    return Edge(VersionId(base), VersionId(target), literal)


def line(length: int) -> list[Edge]:
    return [edge(one, other) for one, other in pairwise(range(length + 1))]


def plan(edges: list[Edge], target: int, **rest: int | None) -> Plan:
    given: dict[str, int | None] = {"size": 1000, "direct": None, **rest}
    return choose(edges, VersionId(0), VersionId(target), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "most", "way", "reason"),
    [
        (1, 16, Way.CHAIN, Reason.CHEAPEST),
        (16, 16, Way.CHAIN, Reason.CHEAPEST),
        (17, 16, Way.FULL, Reason.TOO_DEEP),
        (17, 20, Way.CHAIN, Reason.CHEAPEST),
        (1, 0, Way.FULL, Reason.TOO_DEEP),
    ],
)
def test_a_chain_has_so_many_links(depth: int, most: int, way: Way, reason: Reason) -> None:
    found = plan(line(depth), depth, max_depth=most)
    assert (found.way, found.reason) == (way, reason)
    assert found.depth == (depth if way is Way.CHAIN else 0)


def test_what_reads_less_is_taken() -> None:
    edges = [edge(0, 1, 10), edge(1, 2, 10)]
    assert plan(edges, 2, direct=21).way is Way.CHAIN
    assert plan(edges, 2, direct=20).way is Way.DIRECT
    assert plan(edges, 2, direct=None, size=20) == Plan(Way.FULL, Reason.NOT_SMALLER)
    assert plan(edges, 3) == Plan(Way.FULL, Reason.UNKNOWN_BASE)
    assert plan([], 3, direct=5000).way is Way.DIRECT
    short = [*edges, edge(0, 2, 19)]
    assert plan(short, 2).path == (edge(0, 2, 19),)
    assert plan([*edges, edge(0, 2, 21)], 2).depth == 2
    assert plan([*edges, edge(0, 2, 21)], 2, max_depth=1).depth == 1


edges = st.lists(
    st.builds(edge, st.integers(0, 6), st.integers(0, 6), st.integers(0, 9)), max_size=20
)


@given(edges, st.integers(0, 5))
def test_the_cheapest_path_is_the_cheapest(found: list[Edge], most: int) -> None:
    def paths(at: VersionId, left: int) -> list[tuple[Edge, ...]]:
        ways: list[tuple[Edge, ...]] = [()] if at == 6 else []
        if left:
            for each in found:
                if each.base == at:
                    ways += [(each, *rest) for rest in paths(each.target, left - 1)]
        return ways

    every = paths(VersionId(0), min(most, 4))
    path = cheapest(found, VersionId(0), VersionId(6), min(most, 4))
    if not every:
        assert path == ()
        return
    assert sum(e.literal for e in path) == min(sum(e.literal for e in way) for way in every)
    assert all(one.target == other.base for one, other in pairwise(path))
    assert len(shortest(found, VersionId(0), VersionId(6))) == min(map(len, paths(VersionId(0), 4)))

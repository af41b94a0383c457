"""What a collection decides: which chunks count as needed, and what becomes of each pack."""

from collections.abc import Sequence
from random import Random

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.domain.collection import (
    FULL,
    GRACE_US,
    MERGED,
    MOST_EXACT,
    NO_BREAKER,
    TINY,
    ChunkRow,
    ExactMarks,
    Marks,
    PackUse,
    Plan,
    count_needed,
    marks_of,
    may_condemn,
    may_discard,
    plan,
)
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import CHUNK_EXTRA, ENTRY_SIZE, HEADER_SIZE, PACK_EXTRA

MIB = 1 << 20
NOW = 10 * GRACE_US
ME, OTHER = UserId(1), UserId(2)


def random_digests(count: int, seed: int) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(32) for _ in range(count)]


# Marks


@given(
    st.lists(st.tuples(st.integers(1, 3).map(UserId), st.binary(min_size=32, max_size=32))),
    st.integers(0, 3000),
    st.integers(0, 1 << 40),
)
def test_what_was_noted_is_never_forgotten(
    noted: list[tuple[UserId, bytes]], chunks: int, salt: int
) -> None:
    marks = Marks(chunks, salt)
    for owner, digest in noted:
        marks.add(owner, [digest])
    assert all(marks.has(owner, digest) for owner, digest in noted)


@given(st.lists(st.tuples(st.integers(1, 3).map(UserId), st.integers(0, 50))), st.integers(0, 50))
def test_few_chunks_are_noted_without_mistakes(noted: list[tuple[UserId, int]], asked: int) -> None:
    digests = random_digests(51, 1)
    marks = marks_of(len(noted), 7)
    assert isinstance(marks, ExactMarks)
    for owner, number in noted:
        marks.add(owner, [digests[number]])
    for owner in map(UserId, (1, 2, 3)):
        assert marks.has(owner, digests[asked]) == ((owner, asked) in noted)


def test_many_chunks_are_noted_in_little_memory() -> None:
    assert isinstance(marks_of(MOST_EXACT, 1), ExactMarks)
    assert isinstance(marks_of(MOST_EXACT + 1, 1), Marks)


def test_few_chunks_are_taken_for_noted() -> None:
    noted, others = random_digests(40_000, 1), random_digests(40_000, 2)
    marks = Marks(len(noted))
    marks.add(ME, noted)
    assert all(marks.has(ME, digest) for digest in noted)
    assert sum(marks.has(ME, digest) for digest in others) <= 4


def mistakes(salt: int, owner: UserId = ME) -> set[bytes]:
    """Chunks that are taken for noted where far more are noted than was said."""
    marks = Marks(100, salt)
    marks.add(owner, random_digests(10_000, 1))
    return {digest for digest in random_digests(2000, 2) if marks.has(owner, digest)}


def test_another_salt_makes_other_mistakes() -> None:
    first, second = mistakes(1), mistakes(2)
    assert first != second
    assert len(first - second) > len(first) // 2
    assert first == mistakes(1)


def test_what_one_user_needs_another_does_not() -> None:
    noted = random_digests(1000, 1)
    marks = Marks(len(noted))
    marks.add(ME, noted)
    assert sum(marks.has(OTHER, digest) for digest in noted) <= 1


def test_a_new_mark_needs_nothing() -> None:
    assert not any(Marks(0).has(ME, digest) for digest in random_digests(1000, 1))


# What is needed of each pack


def rows_of(*rows: tuple[str, UserId, int]) -> list[ChunkRow]:
    found = [ChunkRow(digest_of(name.encode()), owner, pack, 100) for name, owner, pack in rows]
    return sorted(found, key=lambda row: (row.digest, row.pack))


def needed_of(rows: Sequence[ChunkRow], *needs: tuple[str, UserId]) -> dict[int, int]:
    marks, needed = Marks(len(rows)), dict[int, int]()
    for name, owner in needs:
        marks.add(owner, [digest_of(name.encode())])
    count_needed(marks, rows, needed)
    return needed


ONE = HEADER_SIZE + 100 + ENTRY_SIZE


def test_a_chunk_counts_with_its_header_and_its_entry() -> None:
    rows = rows_of(("a", ME, 1), ("b", ME, 1), ("c", ME, 2))
    assert needed_of(rows, ("a", ME), ("b", ME)) == {1: 2 * ONE}
    assert needed_of(rows, ("a", ME), ("c", ME)) == {1: ONE, 2: ONE}
    assert needed_of(rows) == {}


def test_a_chunk_of_many_users_counts_once_in_a_pack() -> None:
    rows = rows_of(("a", ME, 1), ("a", OTHER, 1), ("a", UserId(3), 2))
    assert needed_of(rows, ("a", ME), ("a", OTHER), ("a", UserId(3))) == {1: ONE, 2: ONE}
    assert needed_of(rows, ("a", OTHER)) == {1: ONE}


def test_counting_goes_on_from_page_to_page() -> None:
    rows = rows_of(*((str(number), ME, number % 3) for number in range(60)))
    marks, needed = Marks(60), dict[int, int]()
    marks.add(ME, [row.digest for row in rows])
    for start in range(0, 60, 7):
        count_needed(marks, rows[start : start + 7], needed)
    assert needed == {0: 20 * ONE, 1: 20 * ONE, 2: 20 * ONE}


# Fates


def pack(number: int, needed: int = 0, size: int = 2 * MIB, *, old: int = 5) -> PackUse:
    """A pack that was made `old` grace periods ago."""
    key = Digest(digest_of(b"%d" % number))
    return PackUse(number, key, size, NOW - old * GRACE_US, needed=needed)


def condemned(number: int, needed: int = 0, *, ago: int = 2, by: int = 1) -> PackUse:
    return evolve(pack(number, needed), condemned_us=NOW - ago * GRACE_US, collection=by)


def fates(found: Plan) -> dict[str, list[int]]:
    rewritten = [each for group in found.rewrite for each in group]
    named = {
        "condemn": found.condemn,
        "revive": found.revive,
        "discard": found.discard,
        "rewrite": rewritten,
    }
    return {fate: [each.number for each in packs] for fate, packs in named.items() if packs}


CASES: dict[str, tuple[PackUse, dict[str, list[int]]]] = {
    "needed": (pack(1, 2 * MIB), {}),
    "needed by half": (pack(1, MIB), {}),
    "needed by less": (pack(1, MIB - 1), {"rewrite": [1]}),
    "needed a little": (pack(1, 1), {"rewrite": [1]}),
    "not needed": (pack(1), {"condemn": [1]}),
    "not needed, but new": (pack(1, old=0), {}),
    "needed a little, but new": (pack(1, 1, old=0), {}),
    "not needed, but promised": (evolve(pack(1), pinned=True), {}),
    "needed a little, and promised": (evolve(pack(1, 1), pinned=True), {}),
    "condemned long ago": (condemned(1), {"discard": [1]}),
    "condemned for just the grace period": (condemned(1, ago=1), {"discard": [1]}),
    "condemned lately": (evolve(condemned(1), condemned_us=NOW - GRACE_US + 1), {}),
    "condemned by this collection": (condemned(1, by=7), {}),
    "condemned by a later collection": (condemned(1, by=8), {}),
    "condemned, and promised": (evolve(condemned(1), pinned=True), {}),
    "condemned, and needed": (condemned(1, 1), {"revive": [1]}),
    "condemned lately, and needed": (condemned(1, 1, ago=0), {"revive": [1]}),
    "condemned in the future": (condemned(1, ago=-1), {}),
    "one tiny pack": (pack(1, 1000, 1000), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_pack_has_its_fate(name: str) -> None:
    found, expected = CASES[name]
    assert fates(plan([found], 7, NOW)) == expected


def test_what_is_too_young_is_told() -> None:
    packs = [pack(1, old=0), pack(2, 1, old=0), evolve(pack(3, old=0), pinned=True), pack(4)]
    assert [each.number for each in plan(packs, 7, NOW).young] == [1]
    assert plan(packs, 7, NOW, grace_us=0).young == ()


def test_what_is_planned_the_catalog_does_not_refuse() -> None:
    for each, expected in CASES.values():
        assert may_condemn(each) or expected.get("condemn") is None
        assert may_discard(each, 7, NOW, GRACE_US) or expected.get("discard") is None


def test_no_grace_period_leaves_nothing_alone() -> None:
    new = pack(1, old=0)
    assert fates(plan([new], 7, NOW, grace_us=0)) == {"condemn": [1]}
    assert fates(plan([condemned(1, ago=0)], 7, NOW, grace_us=0)) == {"discard": [1]}
    assert fates(plan([condemned(1, ago=0, by=7)], 7, NOW, grace_us=0)) == {}


def test_new_packs_can_be_rewritten_by_themselves() -> None:
    assert fates(plan([pack(1, 1, old=0)], 7, NOW, young_us=0)) == {"rewrite": [1]}


def test_nothing_is_rewritten_if_nothing_is_to_be() -> None:
    packs = [pack(1, 1), pack(2), *(pack(3 + n, 100, 100) for n in range(2 * MERGED))]
    assert fates(plan(packs, 7, NOW, sparse=0)) == {"condemn": [2]}


# Groups


def test_tiny_packs_are_merged_once_there_are_many() -> None:
    tiny = [pack(number, 900, 1000) for number in range(MERGED)]
    assert fates(plan(tiny[1:], 7, NOW)) == {}
    [group] = plan(tiny, 7, NOW).rewrite
    assert list(group) == tiny


def test_a_tiny_pack_is_not_rewritten_into_itself() -> None:
    """The last one, for which no other is left to be merged with."""
    size = TINY - 1
    tiny = [pack(number, size, size) for number in range(MERGED + 1)]
    [group] = plan(tiny, 7, NOW).rewrite
    assert len(group) == MERGED


@pytest.mark.parametrize("sparse", [0.5, 0.97, 1.0])
def test_a_pack_all_of_which_is_needed_is_not_rewritten(sparse: float) -> None:
    whole = CHUNK_EXTRA + 2
    tiny = pack(1, whole, PACK_EXTRA + whole)
    assert plan([tiny], 7, NOW, sparse=sparse).rewrite == ()
    other = pack(2, CHUNK_EXTRA + 10, PACK_EXTRA + whole + CHUNK_EXTRA + 10)
    found = plan([other], 7, NOW, sparse=1.0)
    assert found.rewrite == ((other,),)
    assert found.rewritten_bytes == PACK_EXTRA + CHUNK_EXTRA + 10


def test_a_sparse_pack_is_rewritten_alone() -> None:
    [group] = plan([pack(1, 1000)], 7, NOW).rewrite
    assert [each.number for each in group] == [1]


@given(
    st.lists(st.tuples(st.integers(1, 16 * MIB), st.integers(0, 100), st.booleans()), max_size=60),
    st.randoms(use_true_random=False),
)
def test_groups_are_bounded_and_nothing_has_two_fates(
    sizes: list[tuple[int, int, bool]], random: Random
) -> None:
    packs = [
        condemned(number, size * part // 100)
        if gone
        else evolve(pack(number, size * part // 100), size=size)
        for number, (size, part, gone) in enumerate(sizes)
    ]
    shuffled = random.sample(packs, len(packs))
    found = plan(shuffled, 7, NOW)
    numbers = [number for each in fates(found).values() for number in each]
    assert len(numbers) == len(set(numbers))
    assert found.total == sum(each.size for each in packs)
    for group in found.rewrite:
        assert len(group) == 1 or sum(each.needed for each in group) <= FULL
        assert all(each.needed for each in group)
        assert [each.number for each in group] == sorted(each.number for each in group)
    assert not any(each.needed for each in (*found.condemn, *found.discard))
    assert all(each.needed for each in found.revive)


# The breaker


@pytest.mark.parametrize(
    ("garbage", "needed", "trips"),
    [
        (64, 0, False),  # all of it, but not much
        (65, 0, True),
        (65, 200, True),
        (65, 260, False),  # a fifth
        (66, 260, True),
        (0, 1000, False),
    ],
)
def test_too_much_at_once_trips_the_breaker(garbage: int, needed: int, *, trips: bool) -> None:
    packs = [pack(number, 0, MIB) for number in range(garbage)]
    packs += [pack(1000 + number, MIB, MIB) for number in range(needed)]
    found = plan(packs, 7, NOW, sparse=0)
    assert found.condemned_bytes == garbage * MIB
    assert found.trips is trips


def test_what_was_condemned_before_trips_no_breaker() -> None:
    packs = [evolve(condemned(number), size=NO_BREAKER) for number in range(4)]
    found = plan(packs, 7, NOW)
    assert len(found.discard) == 4
    assert not found.trips

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.intervals import END, Range, Ranges, byte_range

SIZE = 12


@st.composite
def some_ranges(draw: st.DrawFn) -> Range:
    start = draw(st.integers(0, SIZE - 1))
    return Range(start, draw(st.integers(start + 1, SIZE)), draw(st.booleans()))


steps = st.lists(st.tuples(st.booleans(), some_ranges()), max_size=12)


def by_byte(ranges: Ranges) -> list[bool | None]:
    """For each byte whether it is held, and how."""
    found: list[bool | None] = [None] * SIZE
    for held in ranges:
        for at in range(held.start, held.stop):
            assert found[at] is None, "two ranges overlap"
            found[at] = held.exclusive
    return found


@given(steps)
def test_ranges_are_what_a_note_for_each_byte_says(steps: list[tuple[bool, Range]]) -> None:
    ranges = Ranges()
    notes: list[bool | None] = [None] * SIZE
    for locks, each in steps:
        if locks:
            ranges.lock(each)
        else:
            ranges.unlock(each.start, each.stop)
        for at in range(each.start, each.stop):
            notes[at] = each.exclusive if locks else None
        assert by_byte(ranges) == notes
        assert bool(ranges) is (notes != [None] * SIZE)


@given(steps)
def test_neighbours_that_say_the_same_are_one(steps: list[tuple[bool, Range]]) -> None:
    ranges = Ranges()
    for locks, each in steps:
        if locks:
            ranges.lock(each)
        else:
            ranges.unlock(each.start, each.stop)
    held = list(ranges)
    assert held == sorted(held)
    for one, other in pairwise(held):
        assert one.stop < other.start or one.exclusive is not other.exclusive


@given(steps, some_ranges())
def test_two_owners_meet_where_a_byte_is_held_by_both_and_one_excludes(
    steps: list[tuple[bool, Range]], wanted: Range
) -> None:
    ranges = Ranges()
    for _, each in steps:
        ranges.lock(each)
    held = by_byte(ranges)[wanted.start : wanted.stop]
    assert ranges.meets(wanted) is any(
        each is not None and (each or wanted.exclusive) for each in held
    )


def test_a_range_without_an_end_meets_all_behind_its_beginning() -> None:
    tail = byte_range(100, None, exclusive=True)
    assert tail == Range(100, END, exclusive=True)
    assert tail.meets(byte_range(10**15, 10**15 + 1, exclusive=False))
    assert not tail.meets(byte_range(0, 100, exclusive=True))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 4), (-1, 4), (0, END + 1), (END, None)])
def test_empty_and_negative_ranges_are_refused(start: int, stop: int | None) -> None:
    far = stop is not None and stop > END
    wrong = "behind all files" if far else "empty or negative"
    with pytest.raises(InvalidField, match=f"not a range: it .*{wrong}"):
        byte_range(start, stop, exclusive=True)

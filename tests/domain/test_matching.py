"""The two rounds of matching: whatever the edits are, the steps lead to the new bytes."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults import random_bytes

from vaultfs.domain.deltas import Copy, Literal
from vaultfs.domain.matching import (
    CONTEXT,
    PIECE,
    Difference,
    FineStep,
    common_prefix,
    common_suffix,
    difference,
    gaps_of,
    match_units,
    refine,
    total,
)


def edited(old: bytes, random: Random) -> bytes:
    """Edits the way files change: here and there, some longer, some moved."""
    new = bytearray(old)
    for _ in range(random.randrange(8)):
        at = random.randrange(len(new) + 1)
        match random.randrange(4):
            case 0:
                new[at:at] = random.randbytes(random.randrange(60))
            case 1:
                del new[at : at + random.randrange(400)]
            case 2:
                part = random.randbytes(random.choice((1, 8, 900)))
                new[at : at + len(part)] = part
            case _:
                moved = new[at : at + 2000]
                del new[at : at + 2000]
                place = random.randrange(len(new) + 1)
                new[place:place] = moved
    return bytes(new)


def played(old: bytes, new: bytes, steps: list[FineStep]) -> bytes:
    out = bytearray()
    for step in steps:
        fresh = new[len(out) : len(out) + step.length]
        match step:
            case Copy(at, length):
                out += old[at : at + length]
            case Difference(at, length):
                past = old[at : at + length]
                assert len(past) == length
                out += total(past, difference(past, fresh))
            case Literal():
                out += fresh
    return bytes(out)


@given(st.integers(0, 1 << 32), st.sampled_from((0, 3, 40, 3000, 60_000)))
def test_the_steps_lead_to_the_new_bytes(seed: int, size: int) -> None:
    random = Random(seed)
    old = random.randbytes(size)
    new = edited(old, random)
    steps = refine(old, new)
    assert all(step.length > 0 for step in steps)
    assert played(old, new, steps) == new
    assert refine(old, new) == steps  # the same for whoever asks


def test_steps_are_exact_to_the_byte() -> None:
    old = random_bytes(40_000, "exact")
    new = old[:17_777] + b"an insertion" + old[17_777:]
    assert refine(old, new) == [Copy(0, 17_777), Literal(12), Copy(17_777, 40_000 - 17_777)]
    assert refine(old, old[:100] + old[30_000:]) == [Copy(0, 100), Copy(30_000, 10_000)]
    assert refine(b"", new) == [Literal(len(new))]
    assert refine(old, b"") == []
    assert refine(old, old) == [Copy(0, len(old))]


def test_what_mostly_agrees_is_a_difference() -> None:
    old = random_bytes(PIECE, "old")
    new = bytes(each + 1 & 0xFF if at % 20 == 0 else each for at, each in enumerate(old))
    assert any(isinstance(step, Difference) for step in refine(old, new))
    changes = difference(old, new)
    assert changes.count(0) > len(old) * 0.9
    assert total(old, changes) == new


def test_of_equal_units_the_next_in_order_is_taken() -> None:
    base = [("a", 10), ("x", 5), ("a", 10), ("y", 5)]
    steps, size = match_units(base, [("a", 10), ("y", 5), ("a", 10), ("x", 5), ("z", 1)])
    assert size == 30
    assert steps == [Copy(0, 10), Copy(25, 5), Copy(0, 15), Literal(1)]
    run, _ = match_units(base, base)
    assert run == [Copy(0, 30)]
    new, _ = match_units(base, [("z", 1), ("z", 2), ("x", 5), ("z", 3), ("a", 10)])
    assert new == [Literal(3), Copy(10, 5), Literal(3), Copy(15, 10)]


def test_gaps_stand_where_their_neighbours_do() -> None:
    [gap] = gaps_of([Copy(0, 1_000_000), Literal(500_000), Copy(1_400_000, 10)], 2_000_000)
    assert gap[:2] == (1_000_000, 1_500_000)
    assert gap.base_start <= 1_000_000 < gap.base_stop == 1_400_000
    [end] = gaps_of([Copy(0, 10_000_000), Literal(500_000)], 10_000_000)
    assert (end.base_start, end.base_stop) == (10_000_000 - CONTEXT, 10_000_000)
    moved = gaps_of([Copy(9_000_000, 10), Literal(1000), Copy(0, 10)], 10_000_000)
    assert all(0 <= gap.base_start <= gap.base_stop <= 10_000_000 for gap in moved)


@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 300))
def test_prefixes_and_suffixes(one: bytes, other: bytes, same: int) -> None:
    shared = random_bytes(same, "shared")
    most = min(len(one), len(other)) + same
    front = common_prefix(shared + one, 0, shared + other, 0, most)
    assert front >= same
    assert (shared + one)[:front] == (shared + other)[:front]
    assert front == most or (shared + one)[front] != (shared + other)[front]
    a, b = one + shared, other + shared
    back = common_suffix(a, len(a), b, len(b), most)
    assert back >= same
    assert a[len(a) - back :] == b[len(b) - back :]
    assert back == most or a[len(a) - back - 1] != b[len(b) - back - 1]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_differences_add_up(size: int) -> None:
    for old, new in (
        (b"\x00", b"\xff"),
        (b"\xff", b"\x00"),
        (b"\x80", b"\x7f"),
        (b"\x7f", b"\x80"),
    ):
        assert total(old * size, difference(old * size, new * size)) == new * size

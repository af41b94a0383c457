from itertools import product

import pytest

from vaultfs.domain.lockmodes import (
    CLASH,
    FIELD,
    INTENT,
    LUB,
    Mode,
    clash,
    covers,
    plan_of,
    strongest,
)

IS, IX, S, U, SIX, X = Mode
#              IS   IX   S    U    SIX  X
TABLE = {
    IS: ". . . . . #",
    IX: ". . # # # #",
    S: ". # . . # #",
    U: ". # . # # #",
    SIX: ". # # # # #",
    X: "# # # # # #",
}


@pytest.mark.parametrize(("held", "asked"), list(product(Mode, Mode)))
def test_clashes_are_those_of_the_table(held: Mode, asked: Mode) -> None:
    assert clash(held, asked) is (TABLE[held].split()[asked] == "#")
    assert bool(FIELD[held] & CLASH[asked]) is clash(held, asked) is clash(asked, held)


@pytest.mark.parametrize(("one", "other"), list(product(Mode, Mode)))
def test_a_least_upper_bound_is_as_strong_as_both_and_no_stronger(one: Mode, other: Mode) -> None:
    bound = LUB[one][other]
    assert LUB[other][one] is bound
    assert covers(bound, one)
    assert covers(bound, other)
    clashes = {mode for mode in Mode if clash(bound, mode)}
    assert clashes >= {mode for mode in Mode if clash(one, mode) or clash(other, mode)}
    for weaker in Mode:
        if weaker is not bound and covers(weaker, one) and covers(weaker, other):
            assert covers(weaker, bound)


@pytest.mark.parametrize("modes", list(product(Mode, repeat=3)))
def test_bounds_do_not_depend_on_the_order(modes: tuple[Mode, ...]) -> None:
    one, two, three = modes
    assert LUB[LUB[one][two]][three] is LUB[one][LUB[two][three]]
    assert strongest(sum({FIELD[mode] for mode in modes})) is LUB[LUB[one][two]][three]


def test_what_is_written_below_shuts_out_readers_of_all_but_not_other_writers() -> None:
    assert [INTENT[mode] for mode in Mode] == [IS, IX, IS, IX, IX, IX]
    assert plan_of({("u", "a", "b"): X}.items()) == {("u",): IX, ("u", "a"): IX, ("u", "a", "b"): X}


def test_paths_that_come_twice_are_merged() -> None:
    items = [(("u", "a"), S), (("u", "a", "b"), X), (("u", "a"), U), (("v",), IS)]
    assert plan_of(items) == {("u",): IX, ("u", "a"): SIX, ("u", "a", "b"): X, ("v",): IS}
    assert list(plan_of([(("u", "a", "b"), S)])) == [("u",), ("u", "a"), ("u", "a", "b")]


def test_nothing_has_no_strongest_mode() -> None:
    with pytest.raises(ValueError, match="nothing"):
        strongest(0)

"""The modes of hierarchical locks, which of them get along, and what they mean for folders above.

IS, IX, S, SIX and X are those of Gray et al., "Granularity of Locks and Degrees of
Consistency in a Shared Data Base" (1975); U, which is read now and may be written
later, is that of System R and Berkeley DB. People mostly see three: READ, UPDATE and
WRITE.

A resource is a tuple of names: the tree (whose user owns it), then the path in it. A
lock on it covers all below, so it stands in the way of whoever has anything there;
what says that somebody has is an *intent* on every resource above.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

Resource = tuple[str, ...]


class Mode(IntEnum):
    """How a resource is held. `docs/locks.md` has the table of conflicts for people."""

    IS = 0
    """Something below is read."""
    IX = 1
    """Something below is written."""
    S = 2
    """All of it is read."""
    U = 3
    """All of it is read, and will be written: of two that mean to write one waits here."""
    SIX = 4
    """All of it is read, and something below is written."""
    X = 5
    """All of it is written."""


READ, UPDATE, WRITE = Mode.S, Mode.U, Mode.X

_CLASHES: Final = {
    Mode.IS: (Mode.X,),
    Mode.IX: (Mode.S, Mode.U, Mode.SIX, Mode.X),
    Mode.S: (Mode.IX, Mode.SIX, Mode.X),
    Mode.U: (Mode.IX, Mode.U, Mode.SIX, Mode.X),
    Mode.SIX: (Mode.IX, Mode.S, Mode.U, Mode.SIX, Mode.X),
    Mode.X: tuple(Mode),
}


def clash(one: Mode, other: Mode) -> bool:
    """Whether two owners cannot have one resource in these modes at a time."""
    return other in _CLASHES[one]


# How many hold a resource in each mode is one number, with a field for each mode: adding,
# removing and "does any of these clash" are then an operation each, which is what a lock
# costs. A field has room for a million.
_FIELD_BITS: Final = 20
FIELD: Final = tuple(1 << _FIELD_BITS * mode for mode in Mode)
"""One holder in each mode."""
_MASK: Final = tuple(((1 << _FIELD_BITS) - 1) << _FIELD_BITS * mode for mode in Mode)
CLASH: Final = tuple(sum(_MASK[other] for other in _CLASHES[mode]) for mode in Mode)
"""For each mode the fields of those that clash with it."""


def _least_upper_bound(one: Mode, other: Mode) -> Mode:
    if {one, other} in ({Mode.IX, Mode.S}, {Mode.IX, Mode.U}):
        return Mode.SIX
    return max(one, other)


LUB: Final = tuple(tuple(_least_upper_bound(one, other) for other in Mode) for one in Mode)
"""The weakest mode that is as strong as both."""

INTENT: Final = tuple(Mode.IS if mode in {Mode.IS, Mode.S} else Mode.IX for mode in Mode)
"""For each mode, that which it needs on all resources above."""


def covers(held: Mode, wanted: Mode) -> bool:
    """Whether who has `held` needs nothing more for `wanted`."""
    return LUB[held][wanted] is held


def strongest(counts: int) -> Mode:
    """The least upper bound of the modes whose fields in `counts` are not empty.

    Raises `ValueError` if all are.
    """
    found = [mode for mode in Mode if counts & _MASK[mode]]
    if not found:
        raise ValueError("nothing is held")
    bound = found[0]
    for mode in found[1:]:
        bound = LUB[bound][mode]
    return bound


def plan_of(items: Iterable[tuple[Resource, Mode]]) -> dict[Resource, Mode]:
    """All that has to be held for `items`: them, and the intents on the resources above.

    Resources that come twice are merged; those above come before those below.
    """
    plan: dict[Resource, Mode] = {}
    for resource, mode in items:
        intent = INTENT[mode]
        for depth in range(1, len(resource)):
            above = resource[:depth]
            held = plan.get(above)
            plan[above] = intent if held is None else LUB[held][intent]
        held = plan.get(resource)
        plan[resource] = mode if held is None else LUB[held][mode]
    return plan

"""Moving a vault from one object store to another while it is in use: the phases and their rules.

    DRAFT -> COPYING -> DUAL -> SOAK -> DETACHED -> RETIRED -> (settled on the target)
               |         |       |          |
               v         v       v          v
            ABORTED   ABORTED  ROLLED_BACK <- REVERSING

Theory of operation
===================

`Placement` is one row of the catalog. Every change of phase is a transaction that raises its
epoch, and waits for the commits that have read the one before. A pack is stored in all
stores of the write set, then recorded in a transaction that looks at the epoch again: if it
is another one by then, the pack is recorded only if it is in all stores that packs now have
to be in, and only for those. So whatever a server knows of the phase, no pack is recorded that
is not where readers of the present phase look for it. A store may have been emptied before a
migration to it began: what was put into it by an older epoch, or copied for an older
migration, does not count.

Both sides of the cutover write to both stores, so a server that hears of it late does no
harm, and the way back loses nothing: that is what SOAK is for. What is to be copied is asked
of the rows: packs with no row that says they are verified in the other store. So there is
no plan to be lost, and no listing is believed. Nothing leaves a store before every pack has
such a row for the other: that is looked up in the transactions of cutover, detach and retire.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from attrs import evolve, frozen

from vaultfs.domain.errors import Conflict, InvalidField, listed

MOST_A_SECOND: Final = 1 << 40


class Phase(StrEnum):
    """How far a migration is."""

    SETTLED = "settled"
    """There is none: everything is in the source."""
    DRAFT = "draft"
    COPYING = "copying"
    DUAL = "dual"
    SOAK = "soak"
    DETACHED = "detached"
    RETIRED = "retired"
    REVERSING = "reversing"
    ROLLED_BACK = "rolled-back"
    ABORTED = "aborted"


class Command(StrEnum):
    """What an operator, or the copier, can ask for."""

    START = "start"
    DUAL = "dual"
    CUTOVER = "cutover"
    ROLLBACK = "rollback"
    REVERSED = "reversed"
    """All is in the source again."""
    DETACH = "detach"
    RETIRE = "retire"
    ABORT = "abort"
    END = "end"
    """Only one store is left to speak of."""


class Level(StrEnum):
    """How sure one has to be that a pack is in the target."""

    SIZE = "V0"
    DIGEST = "V1"
    """What was copied had its digest, and the store says its size, and its checksum if it can."""
    SAMPLE = "V2"
    """One in a hundred was read back, at least a thousand."""
    ALL = "V3"
    """Every one was read back."""


@frozen
class Pace:
    """How fast all processes together may copy; None: as fast as they can."""

    bytes_per_second: int | None = None
    objects_per_second: int | None = None

    def __attrs_post_init__(self) -> None:
        for most in (self.bytes_per_second, self.objects_per_second):
            if most is not None and not 1 <= most <= MOST_A_SECOND:
                raise InvalidField(f"{most} a second: 1 to {MOST_A_SECOND}")

    def takes_us(self, size: int, objects: int) -> int:
        """For how many microseconds nothing else may be copied once so much is."""
        limits = ((size, self.bytes_per_second), (objects, self.objects_per_second))
        return max(0 if most is None else amount * 1_000_000 // most for amount, most in limits)


AT_ONCE: Final = Pace()
"""Without limits."""


@frozen
class Placement:
    """Where packs are put, and looked for."""

    epoch: int
    phase: Phase
    source: str
    target: str | None = None
    paused: bool = False
    """Nothing is copied; where packs go is the same."""
    level: Level = Level.SAMPLE
    """What cutover demands."""
    pace: Pace = AT_ONCE

    @property
    def write_set(self) -> frozenset[str]:
        """The stores that a pack has to be in before it is recorded."""
        return frozenset(map(self._name, _ROUTES[self.phase].writes))

    @property
    def primary(self) -> str:
        """The store that is read first."""
        return self.read_order[0]

    @property
    def read_order(self) -> tuple[str, ...]:
        """The stores that a pack is looked for in, in this order."""
        return tuple(map(self._name, _ROUTES[self.phase].reads))

    @property
    def copies(self) -> tuple[str, str] | None:
        """From which store to which packs are copied, if they are."""
        route = _ROUTES[self.phase].copies
        return None if route is None else (self._name(route[0]), self._name(route[1]))

    @property
    def degrades(self) -> bool:
        """Whether a pack that is in the primary alone may be recorded: the copier does the rest."""
        return self.phase is Phase.DUAL

    @property
    def stores(self) -> frozenset[str]:
        """All that are read or written."""
        return self.write_set | frozenset(self.read_order)

    def relies_on(self, name: str) -> bool:
        """Whether packs that the store `name` seems to have need no look by the copier."""
        looked_at = self.copies is not None and name == self.copies[1]
        return name == self.primary or (name in self.write_set and not looked_at)

    def _name(self, side: str) -> str:
        if side == "s":
            return self.source
        assert self.target is not None, self.phase
        return self.target

    def covered(self, written: frozenset[str]) -> bool:
        """Whether a pack that is in the stores `written` may be recorded."""
        return self.write_set <= written or (self.degrades and self.primary in written)


@frozen
class _Route:
    writes: str
    reads: str
    copies: str | None


_ROUTES: Final[dict[Phase, _Route]] = {
    Phase.SETTLED: _Route("s", "s", None),
    Phase.DRAFT: _Route("s", "s", None),
    Phase.COPYING: _Route("s", "st", "st"),
    Phase.DUAL: _Route("st", "st", "st"),
    Phase.SOAK: _Route("ts", "ts", "st"),
    Phase.DETACHED: _Route("t", "ts", None),
    Phase.RETIRED: _Route("t", "t", None),
    Phase.REVERSING: _Route("ts", "ts", "ts"),
    Phase.ROLLED_BACK: _Route("st", "st", "ts"),
    Phase.ABORTED: _Route("s", "st", None),
}
"""Source and target by their first letters."""

_NEXT: Final[Mapping[tuple[Phase, Command], Phase]] = {
    (Phase.DRAFT, Command.START): Phase.COPYING,
    (Phase.COPYING, Command.DUAL): Phase.DUAL,
    (Phase.ROLLED_BACK, Command.DUAL): Phase.DUAL,
    (Phase.DUAL, Command.CUTOVER): Phase.SOAK,
    (Phase.SOAK, Command.ROLLBACK): Phase.ROLLED_BACK,
    (Phase.SOAK, Command.DETACH): Phase.DETACHED,
    (Phase.DETACHED, Command.ROLLBACK): Phase.REVERSING,
    (Phase.REVERSING, Command.REVERSED): Phase.ROLLED_BACK,
    (Phase.DETACHED, Command.RETIRE): Phase.RETIRED,
    (Phase.DRAFT, Command.ABORT): Phase.ABORTED,
    (Phase.COPYING, Command.ABORT): Phase.ABORTED,
    (Phase.DUAL, Command.ABORT): Phase.ABORTED,
    (Phase.ROLLED_BACK, Command.ABORT): Phase.ABORTED,
    (Phase.RETIRED, Command.END): Phase.SETTLED,
    (Phase.ABORTED, Command.END): Phase.SETTLED,
}


class Blocked(Conflict):
    """A migration cannot go on yet; `reasons` say what has to be so first."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__(f"not yet: {listed(reasons, most=3)}")
        self.reasons = reasons


@frozen
class Facts:
    """What the rows say, in the transaction that is to change the phase."""

    lacking: Mapping[str, int]
    """By store: how many packs have no row that says they are there, and seen to be right.

    Of the source: those that the target has. Giving up loses nothing that is in neither.
    """
    unread: int = 0
    """How many of the packs that the level wants read back were not."""
    unaware: tuple[str, ...] = ()
    """Servers that are running and were not told where the target is."""


def propose(
    source: str, target: str, level: Level, now: Placement, pace: Pace = AT_ONCE
) -> Placement:
    """A migration in its first phase. Raises `Conflict`, `InvalidField`."""
    if now.phase is not Phase.SETTLED:
        raise Conflict(f"a migration from {now.source} to {now.target} is {now.phase} already")
    if source == target:
        raise InvalidField(f"{target} is where everything is")
    return Placement(now.epoch + 1, Phase.DRAFT, source, target, level=level, pace=pace)


def follow(now: Placement, command: Command, facts: Facts) -> Placement:
    """The placement that `command` leads to. Raises `Conflict` and `Blocked`."""
    phase = _NEXT.get((now.phase, command))
    if phase is None:
        able = sorted(str(each) for state, each in _NEXT if state is now.phase)
        raise Conflict(
            f"the migration is {now.phase}: {command} does not go on from there, only"
            f" {listed(able, most=5) or 'start'}"
        )
    reasons = tuple(_obstacles(now, phase, facts))
    if reasons:
        raise Blocked(reasons)
    changed = evolve(now, epoch=now.epoch + 1, phase=phase, paused=False)
    if phase is Phase.SETTLED and now.phase is Phase.RETIRED:
        assert now.target is not None
        return evolve(changed, source=now.target, target=None)
    return evolve(changed, target=None) if phase is Phase.SETTLED else changed


def _obstacles(now: Placement, phase: Phase, facts: Facts) -> list[str]:
    """What has to be so before `phase`, and is not."""
    assert now.target is not None
    found: list[str] = []
    if phase in {Phase.DUAL, Phase.SOAK}:
        found.extend(
            f"server {each} was not told where {now.target} is: name it there with VAULTFS_STORES,"
            " and start that server again"
            for each in facts.unaware
        )
    if phase in {Phase.SOAK, Phase.DETACHED, Phase.RETIRED} and facts.lacking[now.target]:
        found.append(f"{facts.lacking[now.target]} packs are not verified in {now.target}")
    if phase is Phase.SOAK and facts.unread:
        found.append(f"{facts.unread} packs of the sample were not read back from {now.target}")
    # From SOAK, the target answers for them, and the copier sees to them.
    gives_up = phase is Phase.ABORTED or now.phase is Phase.REVERSING
    if gives_up and facts.lacking[now.source]:
        found.append(f"{facts.lacking[now.source]} packs are not in {now.source}")
    return found


def pause(now: Placement, *, paused: bool) -> Placement:
    """The same with or without copying. Raises `Conflict` where nothing is copied."""
    if now.copies is None:
        raise Conflict(f"the migration is {now.phase}: nothing is being copied")
    return evolve(now, epoch=now.epoch + 1, paused=paused)


def throttle(now: Placement, pace: Pace) -> Placement:
    """The same at another pace. Raises `Conflict` where no migration is under way."""
    if now.target is None:
        raise Conflict("no migration is under way")
    return evolve(now, epoch=now.epoch + 1, pace=pace)

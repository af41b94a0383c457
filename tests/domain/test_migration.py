"""The phases of a migration: where packs go, what leads where, and what is in the way."""

from itertools import product

import pytest
from attrs import evolve

from vaultfs.domain.errors import Conflict, InvalidField
from vaultfs.domain.migration import (
    Blocked,
    Command,
    Facts,
    Level,
    Phase,
    Placement,
    follow,
    pause,
    propose,
)

NOTHING_LACKS = Facts({"s": 0, "t": 0})
ROUTES = {
    Phase.SETTLED: ("s", "s", ""),
    Phase.DRAFT: ("s", "s", ""),
    Phase.COPYING: ("s", "st", "st"),
    Phase.DUAL: ("st", "st", "st"),
    Phase.SOAK: ("ts", "ts", "st"),
    Phase.DETACHED: ("t", "ts", ""),
    Phase.RETIRED: ("t", "t", ""),
    Phase.REVERSING: ("ts", "ts", "ts"),
    Phase.ROLLED_BACK: ("st", "st", "ts"),
    Phase.ABORTED: ("s", "st", ""),
}
NEXT = {
    Phase.SETTLED: {},
    Phase.DRAFT: {Command.START: Phase.COPYING, Command.ABORT: Phase.ABORTED},
    Phase.COPYING: {Command.DUAL: Phase.DUAL, Command.ABORT: Phase.ABORTED},
    Phase.DUAL: {Command.CUTOVER: Phase.SOAK, Command.ABORT: Phase.ABORTED},
    Phase.SOAK: {Command.ROLLBACK: Phase.ROLLED_BACK, Command.DETACH: Phase.DETACHED},
    Phase.DETACHED: {Command.ROLLBACK: Phase.REVERSING, Command.RETIRE: Phase.RETIRED},
    Phase.RETIRED: {Command.END: Phase.SETTLED},
    Phase.REVERSING: {Command.REVERSED: Phase.ROLLED_BACK},
    Phase.ROLLED_BACK: {Command.DUAL: Phase.DUAL, Command.ABORT: Phase.ABORTED},
    Phase.ABORTED: {Command.END: Phase.SETTLED},
}


def placed(phase: Phase) -> Placement:
    return Placement(7, phase, "s", None if phase is Phase.SETTLED else "t")


def steps() -> list[tuple[Placement, Placement]]:
    """Every phase that follows another, with the one before."""
    return [
        (placed(phase), follow(placed(phase), command, NOTHING_LACKS))
        for phase, commands in NEXT.items()
        for command in commands
    ]


@pytest.mark.parametrize("phase", Phase)
def test_where_packs_go_and_come_from(phase: Phase) -> None:
    writes, reads, copies = ROUTES[phase]
    now = placed(phase)
    assert now.write_set == frozenset(writes)
    assert now.read_order == tuple(reads)
    assert now.primary == reads[0]
    assert now.copies == (tuple(copies) or None)
    assert now.stores == frozenset(writes + reads)
    assert now.primary in now.write_set


@pytest.mark.parametrize(("phase", "command"), list(product(Phase, Command)))
def test_a_command_leads_on_or_is_refused(phase: Phase, command: Command) -> None:
    now = evolve(placed(phase), paused=True)
    if command not in NEXT[phase]:
        with pytest.raises(Conflict, match=f"{phase}: {command} does not go on from there") as seen:
            follow(now, command, NOTHING_LACKS)
        assert not isinstance(seen.value, Blocked)
        assert all(each in str(seen.value) for each in NEXT[phase])
        return
    after = follow(now, command, NOTHING_LACKS)
    assert (after.phase, after.epoch, after.paused) == (NEXT[phase][command], 8, False)
    assert after.level is now.level
    if after.phase is Phase.SETTLED:
        assert (after.source, after.target) == ("t" if phase is Phase.RETIRED else "s", None)
    else:
        assert (after.source, after.target) == ("s", "t")


@pytest.mark.parametrize("phase", Phase)
def test_what_lacks_somewhere_is_in_the_way(phase: Phase) -> None:
    in_target = {Command.CUTOVER, Command.DETACH, Command.RETIRE}
    in_source = {Command.ABORT, Command.REVERSED}
    for command in NEXT[phase]:
        for store in "st":
            facts = Facts({"s": 0, "t": 0, store: 3})
            if command in in_target and store == "t":
                with pytest.raises(Blocked, match="3 packs are not verified in t"):
                    follow(placed(phase), command, facts)
            elif command in in_source and store == "s":
                with pytest.raises(Blocked, match="3 packs are not in s"):
                    follow(placed(phase), command, facts)
            else:
                follow(placed(phase), command, facts)


def test_the_sample_is_wanted_before_the_cutover_alone() -> None:
    facts = Facts({"s": 0, "t": 2}, unread=5)
    with pytest.raises(Blocked) as seen:
        follow(placed(Phase.DUAL), Command.CUTOVER, facts)
    assert seen.value.reasons == (
        "2 packs are not verified in t",
        "5 packs of the sample were not read back from t",
    )
    unread = evolve(facts, lacking={"s": 0, "t": 0})
    follow(placed(Phase.SOAK), Command.DETACH, unread)
    follow(placed(Phase.DETACHED), Command.RETIRE, unread)


def test_what_the_older_of_two_epochs_writes_the_newer_reads() -> None:
    for old, new in steps():
        assert old.write_set & frozenset(new.read_order), (old, new)
        if new.covered(old.write_set):
            assert old.write_set & new.write_set, (old, new)


def test_what_may_be_recorded_is_where_the_present_phase_looks() -> None:
    for phase, written in product(Phase, ("s", "t", "st")):
        now = placed(phase)
        if now.covered(frozenset(written)):
            assert now.primary in written
            assert frozenset(written) & now.write_set


@pytest.mark.parametrize("phase", Phase)
def test_only_while_both_are_written_first_to_the_old_one_it_is_enough_alone(
    phase: Phase,
) -> None:
    now = placed(phase)
    assert now.degrades is (phase is Phase.DUAL)
    assert now.covered(frozenset("st"))
    for store in "st":
        alone = now.write_set == frozenset(store) or (phase is Phase.DUAL and store == "s")
        assert now.covered(frozenset(store)) is alone


def test_on_both_sides_of_the_cutover_both_are_written() -> None:
    for phase in (Phase.DUAL, Phase.SOAK, Phase.ROLLED_BACK):
        assert placed(phase).write_set == {"s", "t"}


@pytest.mark.parametrize("phase", Phase)
def test_pausing_changes_no_route(phase: Phase) -> None:
    now = placed(phase)
    if now.copies is None:
        with pytest.raises(Conflict, match="nothing is being copied"):
            pause(now, paused=True)
        return
    paused = pause(now, paused=True)
    assert paused == evolve(now, epoch=8, paused=True)
    assert (paused.write_set, paused.read_order) == (now.write_set, now.read_order)
    assert pause(paused, paused=False) == evolve(now, epoch=9)


@pytest.mark.parametrize("level", Level)
def test_a_migration_is_proposed(level: Level) -> None:
    now = placed(Phase.SETTLED)
    assert propose("s", "t", level, now) == Placement(8, Phase.DRAFT, "s", "t", level=level)
    with pytest.raises(InvalidField, match="where everything is"):
        propose("s", "s", level, now)


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.SETTLED])
def test_there_is_one_migration_at_a_time(phase: Phase) -> None:
    with pytest.raises(Conflict, match=f"from s to t is {phase} already"):
        propose("s", "u", Level.SAMPLE, placed(phase))


def test_levels_are_called_by_their_numbers() -> None:
    assert [str(each) for each in Level] == ["V0", "V1", "V2", "V3"]

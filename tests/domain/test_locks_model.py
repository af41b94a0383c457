"""The lock table under random use: what must hold after every step does; mutants are found."""

from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers, randoms
from tests.domain import test_locks
from tests.domain.lock_checks import check, check_circle

from vaultfs.domain import locks
from vaultfs.domain.intervals import Range, byte_range
from vaultfs.domain.lockmodes import CLASH, FIELD, LUB, Mode, Resource
from vaultfs.domain.locknodes import (
    Answer,
    Blocked,
    Deadlock,
    Grant,
    Node,
    Owner,
    OwnerBusy,
    Waiting,
)
from vaultfs.domain.locks import LockTable
from vaultfs.domain.lockstate import dump, load

RESOURCES: tuple[Resource, ...] = (
    ("u",),
    ("u", "a"),
    ("u", "b"),
    ("u", "a", "x"),
    ("u", "a", "y"),
    ("u", "b", "z"),
    ("v",),
)
FILES = RESOURCES[3:6]
MODES = (Mode.IS, Mode.IX, Mode.S, Mode.S, Mode.U, Mode.SIX, Mode.X, Mode.X)


class _Users:
    """Owners that ask, convert, release, cancel and let time go by, as dice have it."""

    def __init__(self, dice: Random) -> None:
        self.random = dice
        self.table = LockTable()
        self.token = 0

    def step(self) -> None:
        kind = self.random.random()
        before = self._state()
        owner = Owner(f"o{self.random.randrange(6)}")
        answer: Answer | None = None
        if kind < 0.5:
            answer = self._ask(owner)
            if isinstance(answer, Grant):
                assert answer.token > self.token
                self.token = answer.token
        elif kind < 0.65:
            answer = self._convert()
        elif kind < 0.9:
            self._release()
        elif kind < 0.95:
            self._cancel()
        else:
            self.table.tick(max(0, self.table.now) + self.random.randrange(6))
        if isinstance(answer, Blocked | Deadlock | OwnerBusy):
            assert self._state() == before, "a refusal left something behind"
        self.table.take_passed()
        check(self.table)
        copy = load(dump(self.table))
        check(copy)
        assert dump(copy) == dump(self.table)

    def _state(self) -> dict[str, Any]:
        return dump(self.table) | {"counter": 0}

    def _ask(self, owner: Owner) -> Answer:
        count = self.random.choice([1, 1, 2, 3])
        items = {self.random.choice(RESOURCES): self.random.choice(MODES) for _ in range(count)}
        ranges: dict[Resource, tuple[Range, ...]] = {}
        if self.random.random() < 0.25:
            start = self.random.randrange(20)
            stop = start + 1 + self.random.randrange(10)
            exclusive = self.random.random() < 0.5
            span = (byte_range(start, stop, exclusive=exclusive),)
            ranges = dict.fromkeys(self.random.sample(FILES, self.random.choice([1, 2])), span)
            items = items if self.random.random() < 0.5 else {}
        lease = max(0, self.table.now) + self.random.randrange(1, 30)
        expires = None if self.random.random() < 0.6 else lease
        wait = self.random.random() < 0.8
        answer = self.table.request(owner, items, ranges=ranges, expires=expires, wait=wait)
        if isinstance(answer, Deadlock):
            check_circle(self.table, answer, owner)
        return answer

    def _convert(self) -> Answer | None:
        grants = [each for each in self.table.grants.values() if each.items]
        if not grants:
            return None
        grant = self.random.choice(grants)
        resource = self.random.choice(list(grant.items))
        wait = self.random.random() < 0.8
        mode = self.random.choice(MODES)
        if (
            mode not in {LUB[mode][grant.items[resource]], grant.items[resource]}
            and LUB[mode][grant.items[resource]] is not grant.items[resource]
        ):
            return None  # neither stronger nor weaker
        answer = self.table.convert(grant.id, {resource: mode}, wait=wait)
        if isinstance(answer, Deadlock):
            check_circle(self.table, answer, grant.owner)
        return answer

    def _release(self) -> None:
        if not self.table.grants:
            return
        grant = self.random.choice(list(self.table.grants.values()))
        if len(grant.items) > 1 and self.random.random() < 0.3:
            self.table.release(grant.id, [self.random.choice(list(grant.items))])
        else:
            self.table.release(grant.id)

    def _cancel(self) -> None:
        if self.table.waiting:
            self.table.cancel(self.random.choice(list(self.table.waiting)))

    def drain(self) -> None:
        """Release everything, in any order; nobody may be left waiting."""
        while self.table.grants:
            self.table.release(self.random.choice(list(self.table.grants)))
            check(self.table)
        assert not self.table.waiting
        assert not self.table.nodes
        assert not self.table.owned


def use(dice: Random, steps: int = 100) -> None:
    users = _Users(dice)
    for _ in range(steps):
        users.step()
    users.drain()


@pytest.mark.parametrize("seed", range(25))
def test_nothing_clashes_leaks_starves_or_turns_in_circles(seed: int) -> None:
    use(Random(seed))


@given(randoms(use_true_random=False), integers(1, 40))
def test_what_goes_wrong_is_made_small(dice: Random, steps: int) -> None:
    use(dice, steps)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 400))
def test_the_same_at_length(seed: int) -> None:
    use(Random(seed), 200)


class _Crowd(_Users):
    """Owners who mostly wait for the same few paths, so that grants are handed over."""

    def _ask(self, owner: Owner) -> Answer:
        if self.table.owned.get(owner) and self.random.random() < 0.8:
            return OwnerBusy(0)
        above = self.random.random() < 0.04
        resource = RESOURCES[1] if above else self.random.choice(FILES[:2])
        mode = Mode.S if above else self.random.choice((Mode.X, Mode.X, Mode.X, Mode.X, Mode.U))
        lease = None if self.random.random() < 0.95 else self.table.now + 5
        return self.table.request(owner, {resource: mode}, expires=lease)


def _history(seed: int) -> list[object]:
    crowd, history = _Crowd(Random(seed)), list[object]()
    crowd.table.tick(0)
    for _ in range(300):
        crowd.step()
        history.append(dump(crowd.table))
    return history


def _nobody(*_: object) -> None:
    return None


@pytest.mark.parametrize("seed", range(25))
def test_to_hand_a_grant_over_is_to_drop_it_and_to_grant_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = list[Waiting]()
    real = LockTable._hand_over  # pyright: ignore[reportPrivateUsage]

    def hand_over(table: LockTable, held: Grant, request: Waiting) -> None:
        handed.append(request)
        real(table, held, request)

    monkeypatch.setattr(LockTable, "_hand_over", hand_over)
    one = _history(seed)
    assert len(handed) > 5
    monkeypatch.setattr(LockTable, "_heir", _nobody)
    assert _history(seed) == one


def _nothing(*_: object) -> tuple[Resource, ...]:
    return ()


Mutant = Callable[[pytest.MonkeyPatch], None]


def _no_wake_up_on_cancel(patch: pytest.MonkeyPatch) -> None:
    def cancel(table: LockTable, request: int) -> None:
        leave(table, table.waiting[request])

    leave = LockTable._leave  # pyright: ignore[reportPrivateUsage]
    patch.setattr(LockTable, "cancel", cancel)


def _readers_pass_a_waiting_writer(patch: pytest.MonkeyPatch) -> None:
    def free(table: LockTable, owner: Owner, plan: dict[Resource, Mode]) -> bool:
        return all(
            not (node.held - FIELD[mine] if (mine := node.has(owner)) is not None else node.held)
            & CLASH[mode if mine is None else LUB[mine][mode]]
            for resource, mode in plan.items()
            if (node := table.nodes.get(resource)) is not None
        )

    def take(table: LockTable, owner: Owner, plan: dict[Resource, Mode]) -> dict[Node, Mode] | None:
        return hold(table, owner, plan) if free(table, owner, plan) else None

    hold = getattr(LockTable, "_hold")  # noqa: B009 its own
    patch.setattr(LockTable, "_free", free)
    patch.setattr(LockTable, "_take", take)


def _intents_to_write_are_taken_for_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locks, "CLASH", (*CLASH[:1], CLASH[Mode.S], *CLASH[2:]))
    patch.setattr("vaultfs.domain.locknodes.CLASH", (*CLASH[:1], CLASH[Mode.S], *CLASH[2:]))


def _a_release_restores_the_mode_before(patch: pytest.MonkeyPatch) -> None:
    def remove(node: Node, owner: Owner, mode: Mode) -> Mode | None:
        counts, before = node.holds[owner]
        if counts == FIELD[mode]:
            del node.holds[owner]
            node.held -= FIELD[before]
            return before
        after = min(before, mode)
        node.holds[owner] = (counts - FIELD[mode], after)
        node.held += FIELD[after] - FIELD[before]
        return before

    patch.setattr(Node, "remove", remove)


def _a_queue_is_gone_through_past_ones_own_place(patch: pytest.MonkeyPatch) -> None:
    def ahead(node: Node, request: Waiting) -> object:
        return ((other, mode) for other, mode in (node.queue or {}).items() if other is not request)

    patch.setattr(Node, "ahead", ahead)


def _no_circle_is_opened(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locks, "untangle", _nothing)


def _an_expired_waiter_is_granted(patch: pytest.MonkeyPatch) -> None:
    def tick(table: LockTable, now: float) -> None:
        table.now = now
        for grant in list(table.grants.values()):
            if grant.expires is not None and grant.expires <= now:
                table.release(grant.id)

    def over(table: LockTable, expires: float | None) -> bool:
        return expires is not None and expires < 0

    patch.setattr(LockTable, "_over", over)
    patch.setattr(LockTable, "tick", tick)


def _tokens_are_made_anew(patch: pytest.MonkeyPatch) -> None:
    def following(table: LockTable) -> int:
        return max((0, *table.grants, *table.waiting)) + 1

    patch.setattr(LockTable, "_next", following)


def _tokens_are_the_time(patch: pytest.MonkeyPatch) -> None:
    def following(table: LockTable) -> int:
        return int(max(0.0, table.now)) + 1

    patch.setattr(LockTable, "_next", following)


def _an_upgrade_goes_to_the_end(patch: pytest.MonkeyPatch) -> None:
    def enter(node: Node, request: Waiting, want: Mode, _: Mode | None) -> None:
        if node.queue is None:
            node.queue = OrderedDict()
        node.queue[request] = want
        node.wanted += FIELD[want]

    patch.setattr(Node, "enter", enter)
    patch.setattr(locks, "untangle", _nothing)


def _intents_stay_behind(patch: pytest.MonkeyPatch) -> None:
    real = LockTable._unhold  # pyright: ignore[reportPrivateUsage]

    def unhold(table: LockTable, owner: Owner, counted: dict[Node, Mode]) -> object:
        return real(table, owner, dict(list(counted.items())[-1:]))

    patch.setattr(LockTable, "_unhold", unhold)


def _an_heir_passes_who_waits_above(patch: pytest.MonkeyPatch) -> None:
    def heir(_: LockTable, held: Grant) -> Waiting | None:
        *_above, leaf = held.nodes
        request = next(iter(leaf.queue)) if leaf.queue else None
        return request if request is not None and request.plan is held.plan else None

    patch.setattr(LockTable, "_heir", heir)


@pytest.mark.parametrize(
    "mutant",
    [
        _no_wake_up_on_cancel,
        _readers_pass_a_waiting_writer,
        _intents_to_write_are_taken_for_reads,
        _a_release_restores_the_mode_before,
        _a_queue_is_gone_through_past_ones_own_place,
        _no_circle_is_opened,
        _an_expired_waiter_is_granted,
        _tokens_are_made_anew,
        _tokens_are_the_time,
        _an_upgrade_goes_to_the_end,
        _intents_stay_behind,
        _an_heir_passes_who_waits_above,
    ],
)
def test_a_table_with_a_rule_left_out_is_found_out(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, KeyError, ValueError, RecursionError)):
        test_locks.test_who_comes_later_and_clashes_waits_behind_and_who_does_not_passes()
        test_locks.test_nobody_inherits_what_somebody_above_waits_for()
        test_locks.test_a_waiter_whose_own_lease_ran_out_is_dropped_not_granted()
        for seed in range(60):
            use(Random(seed))

"""The lock table, step by step. A step is `owner: what -> what comes of it`."""

from itertools import permutations
from random import Random

import pytest
from tests.contracts.locks import PLACES, TABLES
from tests.domain.lock_checks import check, check_circle

from vaultfs.domain.intervals import Range, byte_range
from vaultfs.domain.lockmodes import Mode, Resource
from vaultfs.domain.locknodes import (
    Answer,
    Blocked,
    Deadlock,
    Grant,
    Owner,
    OwnerBusy,
    Waiting,
)
from vaultfs.domain.locks import LockTable
from vaultfs.domain.lockstate import dump, load

A, B, C, D = (Owner(name) for name in "ABCD")


def at(path: str) -> Resource:
    return ("tree", *filter(None, path.split("/")))


def granted_by(table: LockTable) -> list[tuple[int, Grant]]:
    """Requests that waited and got something, and what."""
    return [(request, grant) for request, grant in table.take_passed() if grant is not None]


class Table:
    """A table, and the grants of its owners by what they are for."""

    def __init__(self) -> None:
        self.table = LockTable()
        self.grants: dict[tuple[str, str], int] = {}

    def step(self, text: str) -> None:
        """Do `owner: verb [mode] [path] -> outcome`; `, X goes on` for each that is woken."""
        action, outcome = text.split(" -> ")
        owner, _, words = action.partition(": ")
        expected, *woken = outcome.split(", ")
        found = self._do(owner, words.split())
        assert found == expected, text
        went_on = [grant.owner for _, grant in self._passed()]
        assert went_on == [each.removesuffix(" goes on") for each in woken], text
        check(self.table)
        assert dump(load(dump(self.table))) == dump(self.table)

    def _passed(self) -> list[tuple[int, Grant]]:
        granted = granted_by(self.table)
        for _, grant in granted:
            self._note(grant)
        return granted

    def _note(self, grant: Grant) -> None:
        for resource in (*grant.items, *grant.ranges):
            self.grants[grant.owner, "/".join(resource[1:])] = grant.id

    def _do(self, owner: str, words: list[str]) -> str:
        verb, *rest = words
        match verb:
            case "release":
                self.table.release(self.grants.pop((owner, rest[0])))
                return "done"
            case "cancel":
                self.table.cancel(self.table.waits[Owner(owner)].id)
                return "done"
            case "upgrade" | "downgrade":
                mode, path = rest
                answer = self.table.convert(self.grants[owner, path], {at(path): Mode[mode]})
            case "try":
                mode, path = rest
                answer = self.table.request(Owner(owner), {at(path): Mode[mode]}, wait=False)
            case _:
                pairs = zip(words[::2], words[1::2], strict=True)
                items = {at(path): Mode[mode] for mode, path in pairs}
                answer = self.table.request(Owner(owner), items)
        return self._told(Owner(owner), answer)

    def _told(self, owner: Owner, answer: Answer) -> str:
        match answer:
            case Grant():
                self._note(answer)
                return "granted"
            case Waiting():
                return "waits"
            case Deadlock():
                check_circle(self.table, answer, owner)
                return "deadlock"
            case Blocked():
                blockers = sorted({each.owner for each in answer.blockers})
                return "blocked by " + " and ".join(blockers)
            case OwnerBusy():
                return "busy"


def play(*steps: str) -> Table:
    table = Table()
    for step in steps:
        table.step(step)
    return table


def test_who_writes_below_shuts_out_who_reads_above_and_the_reverse() -> None:
    play(
        "A: X docs/a.txt -> granted",
        "B: X docs/b.txt -> granted",
        "C: try S docs -> blocked by A and B",
        "C: try S docs/c.txt -> granted",
        "D: try X docs -> blocked by A and B and C",
        "D: S other -> granted",
        "C: try X other/file -> blocked by D",
    )


def test_who_comes_later_and_clashes_waits_behind_and_who_does_not_passes() -> None:
    play(
        "A: S a -> granted",
        "B: X a -> waits",
        "C: S a -> waits",
        "D: S b -> granted",
        "A: release a -> done, B goes on",
        "B: release a -> done, C goes on",
    )


def test_nobody_inherits_what_somebody_above_waits_for() -> None:
    play(
        "A: X d/a -> granted",
        "B: S d -> waits",
        "C: X d/a -> waits",
        "D: X d/b -> waits",
        "A: release d/a -> done, B goes on",
        "B: release d -> done, C goes on, D goes on",
    )


def test_who_waits_for_the_same_inherits_it() -> None:
    play(
        "A: X d/a -> granted",
        "B: X d/a -> waits",
        "C: S d -> waits",
        "D: X d/a -> waits",
        "A: release d/a -> done, B goes on",
        "B: release d/a -> done, C goes on",
        "C: release d -> done, D goes on",
    )


def test_readers_behind_a_writer_go_on_together() -> None:
    play(
        "A: X a -> granted",
        "B: S a -> waits",
        "C: S a -> waits",
        "D: X a -> waits",
        "A: release a -> done, B goes on, C goes on",
        "B: release a -> done",
        "C: release a -> done, D goes on",
    )


def test_an_upgrade_goes_ahead_of_newcomers_and_holds_back_new_readers() -> None:
    play(
        "A: S a -> granted",
        "B: S a -> granted",
        "C: X a -> waits",
        "A: upgrade X a -> waits",
        "D: S a -> waits",
        "B: release a -> done, A goes on",
        "A: release a -> done, C goes on",
        "C: release a -> done, D goes on",
    )


def test_of_two_readers_that_upgrade_the_second_is_told_and_keeps_what_it_has() -> None:
    table = play(
        "A: S a -> granted",
        "B: S a -> granted",
        "A: upgrade X a -> waits",
        "B: upgrade X a -> deadlock",
    )
    assert table.table.nodes[at("a")].has(B) is Mode.S
    assert table.table.nodes[at("")].has(B) is Mode.IS, "nor did anything above change"
    table.step("B: release a -> done, A goes on")


def test_with_update_mode_two_that_mean_to_write_cannot_deadlock() -> None:
    play(
        "A: U a -> granted",
        "C: S a -> granted",
        "B: U a -> waits",
        "A: upgrade X a -> waits",
        "C: release a -> done, A goes on",
        "A: release a -> done, B goes on",
        "B: upgrade X a -> granted",
    )


def test_a_downgrade_lets_others_in_and_intents_above_fall_with_it() -> None:
    table = play(
        "A: X docs/a -> granted",
        "B: S docs -> waits",
        "C: S docs/a -> waits",
        "A: downgrade S docs/a -> granted, B goes on, C goes on",
    )
    assert table.table.nodes[at("docs")].has(A) is Mode.IS
    assert table.table.nodes[at("")].has(A) is Mode.IS


def test_grants_of_one_owner_may_be_released_in_any_order() -> None:
    for order in permutations(["S a", "X a/b", "IX a"]):
        table = Table()
        ids: dict[str, int] = {}
        for text in ("S a", "X a/b", "IX a"):
            mode, path = text.split()
            grant = table.table.request(A, {at(path): Mode[mode]})
            assert isinstance(grant, Grant)
            ids[text] = grant.id
        assert table.table.nodes[at("a")].has(A) is Mode.SIX
        for text in order:
            table.table.release(ids[text])
            check(table.table)
        assert not table.table.nodes


def test_a_circle_names_each_member_what_it_waits_for_and_who_has_that() -> None:
    table = play("A: X a -> granted", "B: X b -> granted", "C: X c -> granted")
    table.step("A: S b -> waits")
    table.step("B: U c -> waits")
    answer = table.table.request(C, {at("a"): Mode.X})
    assert isinstance(answer, Deadlock)
    told = [(e.owner, e.resource[1], e.wanted.name, e.holder, e.held.name) for e in answer.circle]
    assert told == [
        ("C", "a", "X", "A", "X"),
        ("A", "b", "S", "B", "X"),
        ("B", "c", "U", "C", "X"),
    ]
    assert C not in table.table.waits
    table.step("C: release c -> done, B goes on")


def test_a_circle_made_by_places_alone_is_opened() -> None:
    # B waits for A; A asks for what B is only ahead for.
    play(
        "A: S a -> granted",
        "C: S b -> granted",
        "B: X a X b -> waits",
        "A: S b -> granted",
        "A: release a -> done",
    )


def test_somebody_further_back_is_let_pass_where_that_opens_a_circle() -> None:
    # C is only behind B on b, who waits for A: A's wait for C must not become a circle.
    play(
        "A: S a -> granted",
        "D: S b -> granted",
        "C: X c -> granted",
        "B: X a X b -> waits",
        "C: S b -> waits",
        "A: S c -> waits, C goes on",
        "C: release c -> done, A goes on",
    )


def test_a_circle_is_seen_behind_somebody_who_has_what_another_waits_for_there() -> None:
    # A passes B at the root, who waits for A; E behind them waits for A then, C for E, and A for C.
    table, other, root = LockTable(), Owner("E"), at("")
    wanted = [(A, at("b"), Mode.SIX), (B, at("b"), Mode.SIX), (C, at("a/y"), Mode.X)]
    wanted += [(D, at("a/x"), Mode.X), (other, at("a/x"), Mode.X), (C, at("a"), Mode.X)]
    for owner, resource, mode in [*wanted, (A, root, Mode.X)]:
        table.request(owner, {resource: mode})
        check(table)


def test_who_is_let_pass_also_passes_others_who_then_wait_for_it() -> None:
    # R, who waits for C on q, is let pass A on n, and with A also C: one more circle to open.
    play(
        "S: S p -> granted",
        "R: S z -> granted",
        "C: S n/2 -> granted",
        "C: S q -> granted",
        "D: S n/2 -> granted",
        "A: X p X n/1 -> waits",
        "R: S n X q -> waits",
        "C: upgrade X n/2 -> waits",
        "S: X z -> waits",
        "D: release n/2 -> done, C goes on",
    )


def test_standing_behind_somebody_who_does_not_clash_is_not_waiting_for_them() -> None:
    play(
        "A: S a -> granted",
        "B: X a -> waits",
        "D: X d -> granted",
        "C: S d -> waits",
        "A: S d -> waits",
        "D: release d -> done, C goes on, A goes on",
    )


def test_who_leaves_a_queue_lets_those_behind_go_on() -> None:
    play(
        "A: S a -> granted",
        "B: X a -> waits",
        "C: S a -> waits",
        "B: cancel -> done, C goes on",
    )


def test_an_owner_waits_for_one_thing_at_a_time() -> None:
    play(
        "A: X a -> granted",
        "B: S b -> granted",
        "B: S a -> waits",
        "B: S c -> busy",
        "B: upgrade X b -> busy",
        "B: downgrade IS b -> granted",
        "A: release a -> done, B goes on",
        "B: S c -> granted",
    )


def test_a_batch_waits_holding_nothing_new_and_is_granted_whole() -> None:
    table = play("A: X a -> granted", "B: X a X b -> waits", "C: try S b -> blocked by B")
    assert table.table.nodes[at("b")].has(B) is None
    table.step("A: release a -> done, B goes on")
    assert table.table.nodes[at("b")].has(B) is Mode.X


def test_a_part_of_a_batch_can_be_released() -> None:
    table = play("A: X d/a X d/b S d/c -> granted", "B: S d/b -> waits", "C: S d -> waits")
    grant = table.grants[A, "d/a"]
    table.table.release(grant, [at("d/b")])
    assert [each.owner for _, each in granted_by(table.table)] == [B]
    table.table.release(grant, [at("d/a")])
    assert [each.owner for _, each in granted_by(table.table)] == [C]
    assert table.table.nodes[at("d")].has(A) is Mode.IS
    check(table.table)


def test_a_conversion_whose_grant_is_released_is_dropped() -> None:
    table = play("A: S a -> granted", "B: S a -> granted", "A: upgrade X a -> waits")
    request = table.table.waits[A].id
    table.table.release(table.grants[A, "a"])
    assert table.table.take_passed() == [(request, None)]
    check(table.table)


def test_misuse_is_an_error_that_changes_nothing() -> None:
    table = play("A: S a S b -> granted").table
    before = dump(table)
    with pytest.raises(ValueError, match="one by one"):
        table.convert(1, {at("a"): Mode.X, at("b"): Mode.IS})
    for call in (
        lambda: table.convert(1, {at("c"): Mode.X}),
        lambda: table.convert(99, {at("a"): Mode.X}),
        lambda: table.release(99),
        lambda: table.cancel(99),
        lambda: table.renew(99, 5),
    ):
        with pytest.raises(KeyError):
            call()
    assert dump(table) == before


def test_ranges_clash_by_overlap_and_with_whole_file_locks() -> None:
    table = LockTable()
    file = at("d/file")

    def ask(owner: Owner, start: int, stop: int | None, *, exclusive: bool) -> Answer:
        ranges = {file: (byte_range(start, stop, exclusive=exclusive),)}
        return table.request(owner, {}, ranges=ranges, wait=False)

    first = ask(A, 0, 10, exclusive=True)
    assert isinstance(first, Grant)
    assert isinstance(ask(B, 10, None, exclusive=True), Grant)
    assert isinstance(ask(C, 5, 6, exclusive=False), Blocked)
    assert isinstance(table.request(C, {file: Mode.S}, wait=False), Blocked)
    assert isinstance(table.request(C, {at("d/other"): Mode.X}, wait=False), Grant)
    table.release(first.id)
    assert isinstance(ask(C, 5, 6, exclusive=False), Grant)
    assert isinstance(ask(D, 0, 10, exclusive=False), Grant)
    check(table)


def test_a_range_waits_behind_one_that_it_would_meet_and_passes_others() -> None:
    table = LockTable()
    file = at("file")

    def ask(owner: Owner, start: int, stop: int) -> Answer:
        return table.request(owner, {}, ranges={file: (byte_range(start, stop, exclusive=True),)})

    first = ask(A, 0, 10)
    assert isinstance(first, Grant)
    assert isinstance(ask(B, 5, 20), Waiting)
    assert isinstance(ask(C, 15, 30), Waiting)
    assert isinstance(ask(D, 30, 40), Grant)
    table.release(first.id)
    assert [grant.owner for _, grant in granted_by(table)] == [B]
    check(table)


def test_a_range_that_is_waited_for_no_longer_lets_those_behind_go_on() -> None:
    table, file = LockTable(), at("file")

    def ask(owner: Owner, start: int, stop: int) -> Answer:
        return table.request(owner, {}, ranges={file: (byte_range(start, stop, exclusive=True),)})

    ask(A, 0, 10)
    waits, behind = ask(B, 5, 20), ask(C, 15, 30)
    assert isinstance(waits, Waiting)
    assert isinstance(behind, Waiting)
    table.cancel(waits.id)
    assert [number for number, _ in granted_by(table)] == [behind.id]


def test_ranges_of_several_files_end_together() -> None:
    first, second = at("first"), at("second")

    def ask(table: LockTable, owner: Owner, expires: float | None = None) -> Answer:
        span = (byte_range(0, 10, exclusive=True),)
        ranges = {first: span, second: span}
        return table.request(owner, {}, ranges=ranges, expires=expires)

    released, expired = LockTable(), LockTable()
    held = ask(released, A)
    assert isinstance(held, Grant)
    ask(expired, A, expires=5)
    for table in (released, expired):
        assert isinstance(ask(table, B), Waiting)
    released.release(held.id)
    expired.tick(5)
    for table in (released, expired):
        assert [grant.owner for _, grant in granted_by(table)] == [B]
        check(table)


def test_an_upgrade_ahead_shuts_out_nobody_who_has_the_file_and_waits_for_a_range() -> None:
    table, file = LockTable(), at("file")
    table.request(A, {file: Mode.IX})
    table.request(B, {file: Mode.IS})
    held = table.request(D, {}, ranges={file: (byte_range(0, 10, exclusive=True),)})
    assert isinstance(held, Grant)
    assert isinstance(table.request(C, {file: Mode.S}), Waiting)
    waits = table.request(B, {}, ranges={file: (byte_range(5, 6, exclusive=False),)})
    assert isinstance(waits, Waiting)
    assert isinstance(table.request(A, {file: Mode.X}), Waiting)  # for B, too
    check(table)
    table.release(held.id)
    assert [number for number, _ in granted_by(table)] == [waits.id]
    check(table)


def test_who_is_let_pass_to_open_a_circle_goes_on_also_behind_an_upgrade() -> None:
    table, file = LockTable(), at("file")
    table.request(A, {file: Mode.IX})
    table.request(B, {file: Mode.IS})
    table.request(C, {file: Mode.S}, ranges={file: (byte_range(10, 20, exclusive=True),)})
    waits = table.request(B, {}, ranges={file: (byte_range(15, 18, exclusive=False),)})
    assert isinstance(waits, Waiting)
    assert isinstance(table.request(A, {file: Mode.X}), Waiting)
    assert [number for number, _ in granted_by(table)] == [waits.id]
    check(table)


def test_what_an_owner_asks_to_share_it_has_no_longer_exclusively_in_any_grant() -> None:
    table, file = LockTable(), at("file")

    def ask(owner: Owner, start: int, stop: int, *, exclusive: bool) -> Answer:
        return table.request(
            owner, {}, ranges={file: (byte_range(start, stop, exclusive=exclusive),)}
        )

    first = ask(A, 0, 20, exclusive=True)
    assert isinstance(first, Grant)
    waits = ask(B, 5, 8, exclusive=False)
    assert isinstance(waits, Waiting)
    second = ask(A, 0, 10, exclusive=False)
    assert isinstance(second, Grant)
    assert [number for number, _ in granted_by(table)] == [waits.id]
    table.release(second.id)
    check(table)
    assert isinstance(ask(C, 0, 10, exclusive=False), Grant)
    assert isinstance(ask(C, 10, 20, exclusive=False), Waiting)
    assert first.ranges == {file: (Range(0, 10, exclusive=False), Range(10, 20, exclusive=True))}
    assert dump(load(dump(table))) == dump(table)


def test_ranges_that_owners_lock_again_and_again_never_clash() -> None:
    for seed in range(60):
        dice, table, file = Random(seed), LockTable(), at("file")
        for _ in range(40):
            owner = dice.choice([owner for owner in (A, B, C) if owner not in table.waits] or [D])
            start = dice.randrange(8)
            span = byte_range(start, start + dice.randint(1, 8), exclusive=dice.random() < 0.4)
            table.request(owner, {}, ranges={file: (span,)}, wait=dice.random() < 0.5)
            check(table)
            if table.grants and dice.random() < 0.6:
                table.release(dice.choice(list(table.grants)))
                check(table)
            assert dump(load(dump(table))) == dump(table)
        while table.grants:
            table.release(dice.choice(list(table.grants)))
            check(table)
        assert not table.nodes


def test_a_lease_that_runs_out_wakes_the_queue_and_cannot_be_renewed() -> None:
    table = LockTable()
    grant = table.request(A, {at("a"): Mode.X}, expires=10)
    assert isinstance(grant, Grant)
    assert isinstance(table.request(B, {at("a"): Mode.X}), Waiting)
    assert table.tick(9.9) == ()
    table.renew(grant.id, 20)
    assert table.tick(10) == ()
    assert table.tick(20) == (grant,)
    [(_, following)] = granted_by(table)
    assert following.owner == B
    assert following.token > grant.token
    with pytest.raises(KeyError):
        table.renew(grant.id, 99)
    check(table)


def test_a_grant_becomes_a_lease_by_being_renewed() -> None:
    table = LockTable()
    grant = table.request(A, {at("a"): Mode.X})
    assert isinstance(grant, Grant)
    table.renew(grant.id, 10)
    assert table.tick(9) == ()
    assert table.tick(10) == (grant,)


def test_a_waiter_whose_own_lease_ran_out_is_dropped_not_granted() -> None:
    table = LockTable()
    table.request(A, {at("a"): Mode.X}, expires=10)
    late = table.request(B, {at("a"): Mode.X}, expires=5)
    assert isinstance(late, Waiting)
    table.request(C, {at("a"): Mode.X})
    table.tick(10)  # both at once: the waiter must not get what runs out with it
    (dropped, granted) = table.take_passed()
    assert dropped == (late.id, None)
    assert granted[1] is not None
    assert granted[1].owner == C
    check(table)


def test_a_conversion_of_a_lease_that_ran_out_with_what_it_waited_for_is_dropped() -> None:
    table, file = LockTable(), at("a")
    table.tick(0)
    table.request(A, {}, ranges={file: (byte_range(0, 9, exclusive=False),)}, expires=5)
    held = table.request(B, {file: Mode.S}, expires=5)
    assert isinstance(held, Grant)
    upgrade = table.convert(held.id, {file: Mode.X})
    assert isinstance(upgrade, Waiting)
    table.tick(5)
    assert table.take_passed() == [(upgrade.id, None)]
    assert not table.nodes


def test_time_that_goes_back_is_not_believed() -> None:
    table = LockTable()
    table.request(A, {at("a"): Mode.X}, expires=10)
    table.tick(8)
    table.tick(3)
    assert table.now == 8
    assert dump(load(dump(table))) == dump(table)


def test_tokens_only_grow_also_in_a_table_that_was_saved() -> None:
    table, last = LockTable(), 0
    for _ in range(5):
        grant = table.request(A, {at("a"): Mode.X})
        assert isinstance(grant, Grant)
        assert grant.token > last
        last = grant.token
        table.release(grant.id)
        table = load(dump(table))


def test_a_plain_write_is_told_who_is_in_its_way() -> None:
    table = play("A: X d/a -> granted", "B: S e -> granted").table
    assert {each.owner for each in table.in_the_way({at("d"): Mode.X, at("e/f"): Mode.X})} == {A, B}
    assert table.in_the_way({at("d/b"): Mode.X}) == ()
    assert table.in_the_way({at("d/a"): Mode.X}, frozenset({A})) == ()


class _Seats:
    """The steps of `contracts.locks.TABLES` on the table alone."""

    def __init__(self) -> None:
        self.table = LockTable()
        self.tokens: dict[Owner, list[int]] = {}
        self.states: dict[Owner, str] = {}

    def do(self, owner: Owner, action: str) -> str:
        word, *rest = action.split()
        named = zip(rest[::2], rest[1::2], strict=True)
        items = {("tree", *PLACES[name]): Mode[mode] for name, mode in named}
        tokens = self.tokens.setdefault(owner, [])
        if word == "drop":
            self.table.release(tokens.pop())
            state = "granted"
        elif word in {"up", "down"}:
            state = self._told(owner, self.table.convert(tokens[-1], items), new=False)
        else:
            state = self._told(owner, self.table.request(owner, items, wait=word == "lock"))
        self.states[owner] = state
        for _, grant in granted_by(self.table):
            if grant.id not in self.tokens[grant.owner]:
                self.tokens[grant.owner].append(grant.id)
            self.states[grant.owner] = "granted"
        check(self.table)
        return state

    def _told(self, owner: Owner, answer: Answer, *, new: bool = True) -> str:
        if isinstance(answer, Grant):
            self.tokens[owner] += [answer.id] if new else []
            return "granted"
        if isinstance(answer, Waiting):
            return "waits"
        return "DeadlockFound" if isinstance(answer, Deadlock) else "WouldBlock"


@pytest.mark.parametrize("name", TABLES)
def test_steps_that_every_lock_manager_takes(name: str) -> None:
    seats = _Seats()
    for line in filter(None, map(str.strip, TABLES[name].splitlines())):
        if "?" in line:
            who, _, expected = line.partition("? ")
            assert seats.states[Owner(who)] == expected, line
        else:
            step, _, expected = line.partition(" -> ")
            who, _, action = step.partition(": ")
            assert seats.do(Owner(who), action) == expected, line


@pytest.mark.parametrize("size", [2, 3, 10, 300])
def test_a_circle_of_any_size_is_found_when_it_closes(size: int) -> None:
    table = LockTable()
    owners = [Owner(f"o{number}") for number in range(size)]
    for number, owner in enumerate(owners):
        table.request(owner, {at(f"f{number}"): Mode.X})
    for number, owner in enumerate(owners[:-1]):
        assert isinstance(table.request(owner, {at(f"f{number + 1}"): Mode.X}), Waiting)
    answer = table.request(owners[-1], {at("f0"): Mode.X})
    assert isinstance(answer, Deadlock)
    assert len(answer.circle) == size
    check_circle(table, answer, owners[-1])


PROGRAMS = (
    ("S a", "X b", "upgrade", "release"),
    ("X b", "X c", "S a", "release"),
    ("U a", "X a", "S c", "release"),
)


class _Runner:
    """Small programs, one for each owner, whose next step waits while the owner does."""

    def __init__(self, table: LockTable, left: tuple[tuple[str, ...], ...]) -> None:
        self.table = table
        self.left = left

    @property
    def ready(self) -> list[int]:
        """The owners whose turn it may be."""
        waits = self.table.waits
        return [n for n, words in enumerate(self.left) if words and Owner(f"o{n}") not in waits]

    @property
    def state(self) -> str:
        """All that decides what follows; of the numbers only their order does."""
        numbers = sorted((*self.table.grants, *self.table.waiting))
        rank = {number: place for place, number in enumerate(numbers)}
        plain = dump(self.table)
        held = [[rank[each[0]], *each[1:]] for each in plain["grants"]]
        waiting = [[rank[each[0]], *each[1:-1], rank.get(each[-1])] for each in plain["waiting"]]
        queues = [[place, [rank[each] for each in queue]] for place, queue in plain["queues"]]
        return repr((self.left, held, waiting, queues))

    def after(self, number: int) -> "_Runner":
        """What there is when that owner has had its turn."""
        table, owner = load(dump(self.table)), Owner(f"o{number}")
        word, *rest = self.left[number]
        mine = list(table.owned.get(owner, {}).values())
        answer: Answer | None = None
        if word == "release":
            for grant in mine:
                table.release(grant.id)
        elif word == "upgrade":
            answer = table.convert(mine[0].id, dict.fromkeys(mine[0].items, Mode.X))
        else:
            mode, path = word.split()
            answer = table.request(owner, {at(path): Mode[mode]})
        if isinstance(answer, Deadlock):
            check_circle(table, answer, owner)
            rest = ["release"]  # as a victim does
        table.take_passed()
        check(table)
        return _Runner(table, (*self.left[:number], tuple(rest), *self.left[number + 1 :]))


def test_every_interleaving_of_small_programs_ends_with_an_empty_table() -> None:
    seen: set[str] = set()
    ends = deadlocks = 0
    todo = [_Runner(LockTable(), PROGRAMS)]
    while todo:
        runner = todo.pop()
        if runner.state in seen:  # whatever led here, the same follows
            continue
        seen.add(runner.state)
        ready = runner.ready
        if not ready:
            assert not any(runner.left), "somebody waits for ever"
            assert not runner.table.nodes
            ends += 1
        for number in ready:
            after = runner.after(number)
            deadlocks += len(after.left[number]) < len(runner.left[number]) - 1
            todo.append(after)
    assert ends
    assert deadlocks

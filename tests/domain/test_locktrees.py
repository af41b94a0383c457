from random import Random

import pytest
from tests.domain.lock_checks import check

from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Grant, Owner, Waiting
from vaultfs.domain.locktrees import TreeLocks, begin, load

A, B = Owner("a"), Owner("b")
F, G = ("1", "f"), ("1", "g")


def ask(
    locks: TreeLocks, owner: Owner, session: str, ttl: float | None = None, mode: Mode = Mode.X
) -> int:
    expires = None if ttl is None else locks.table.now + ttl
    answer = locks.table.request(owner, {F: mode}, expires=expires)
    locks.note(answer, session)
    assert isinstance(answer, Grant | Waiting)
    return answer.id


def again(locks: TreeLocks) -> TreeLocks:
    state = load(locks.dump())
    assert state.dump() == locks.dump()
    return state


def test_what_ended_with_a_session_is_given_back_and_passed_on() -> None:
    locks = TreeLocks()
    locks.tick(1, "boot")
    held, waits = ask(locks, A, "one"), ask(locks, B, "two")
    locks = again(locks)
    assert locks.others("two") == {"one"}
    locks.bury({"two"})
    assert held not in locks.table.grants
    [(request, grant)] = locks.settle("two")
    assert request == waits
    assert again(locks).sessions == {grant: "two"}


def test_news_are_kept_for_the_session_that_waits() -> None:
    locks = TreeLocks()
    held, waits = ask(locks, A, "one"), ask(locks, B, "two")
    locks.table.release(held)
    assert locks.settle("one") == ()
    locks = again(locks)
    [(request, grant)] = locks.settle("two")
    assert (request, grant) == (waits, max(locks.table.grants))
    assert locks.settle("two") == ()
    assert grant is not None
    locks.table.release(grant)
    assert again(locks).dump()["sessions"] == []


def test_who_waits_in_a_dead_session_is_forgotten() -> None:
    locks = TreeLocks()
    ask(locks, A, "one")
    ask(locks, B, "two")
    locks.bury({"one"})
    assert not locks.table.waiting
    assert locks.settle("one") == ()


def test_of_a_dead_session_neither_holder_nor_whoever_waits_for_it_keeps_anything() -> None:
    locks = TreeLocks()
    for owner in (A, B, Owner("c")):
        ask(locks, owner, "one")
    locks = again(locks)
    locks.bury({"two"})
    assert locks.settle("two") == ()
    assert not locks.table.nodes
    assert not locks.sessions
    assert not locks.news


def test_what_a_dead_session_is_granted_by_time_alone_is_given_back() -> None:
    locks = TreeLocks()
    locks.tick(1, "boot")
    ask(locks, A, "one", ttl=5)
    ask(locks, B, "one")
    locks.tick(10, "boot")
    locks.bury({"two"})
    assert locks.settle("two") == ()
    assert not locks.table.nodes


def test_a_lease_ends_with_no_session() -> None:
    locks = TreeLocks()
    locks.tick(10, "boot")
    held = ask(locks, A, "one", ttl=5)
    locks.bury(set())
    assert held in locks.table.grants
    locks.tick(14.9, "boot")
    assert locks.next_expiry == 15
    locks.tick(15, "boot")
    assert not locks.table.grants
    assert locks.changed


def test_a_lease_that_was_waited_for_ends_with_no_session_either() -> None:
    locks = TreeLocks()
    locks.tick(1, "boot")
    held, waits = ask(locks, A, "one"), ask(locks, B, "two", ttl=5)
    locks.table.release(held)
    [(request, grant)] = locks.settle("two")
    assert request == waits
    locks = again(locks)
    locks.bury({"one"})
    assert grant in locks.table.grants


def test_a_lease_of_which_nobody_could_be_told_is_given_back() -> None:
    locks = TreeLocks()
    locks.tick(1, "boot")
    held = ask(locks, A, "one")
    ask(locks, B, "two", ttl=3600)
    waits = ask(locks, Owner("c"), "one")
    locks.table.release(held)
    assert locks.settle("one") == ()
    locks = again(locks)  # and "two" dies before it hears of it
    locks.bury({"one"})
    [(request, grant)] = locks.settle("one")
    assert request == waits
    assert list(locks.table.grants) == [grant]


def test_a_lease_that_was_to_be_changed_stays_with_whoever_has_it() -> None:
    locks = TreeLocks()
    locks.tick(1, "boot")
    ask(locks, A, "one", ttl=60, mode=Mode.S)
    other = ask(locks, B, "two", mode=Mode.S)
    [lease] = locks.table.owned[A]
    locks.note(locks.table.convert(lease, {F: Mode.X}), "one")
    locks.table.release(other)
    locks.bury({"two"})
    assert list(locks.table.grants) == [lease]


def test_what_a_start_of_the_machine_moves_is_to_be_written() -> None:
    """Else whoever reads it next would give the leases their time once more."""
    locks = TreeLocks()
    locks.tick(1000, "before")
    ask(locks, A, "one", ttl=30)
    locks = again(locks)
    locks.tick(3, "after")
    assert locks.changed


def test_after_a_start_of_the_machine_leases_have_the_time_that_was_left() -> None:
    locks = TreeLocks()
    locks.tick(1000, "before")
    held = ask(locks, A, "one", ttl=30)
    locks.tick(1010, "before")
    locks = again(locks)
    locks.tick(3, "after")
    locks.tick(22.9, "after")
    assert held in locks.table.grants
    locks.tick(23.1, "after")
    assert held not in locks.table.grants


def test_tokens_begin_where_they_are_told_to() -> None:
    locks = begin(1 << 40)
    assert ask(locks, A, "one") == (1 << 40) + 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_sessions_do_when_they_are_dead_nothing_of_theirs_is_left(seed: int) -> None:
    dice, locks, now = Random(seed), TreeLocks(), 1.0
    sessions = {"one", "two", "three"}
    for _ in range(80):
        session, what = dice.choice(sorted(sessions)), dice.random()
        locks.tick(now, "boot")
        table = locks.table
        if what < 0.6:
            items = {dice.choice([F, G, F[:1]]): dice.choice(list(Mode)) for _ in range(2)}
            expires = now + dice.randrange(1, 8) if dice.random() < 0.4 else None
            owner = Owner(str(dice.randrange(6)))
            locks.note(table.request(owner, items, expires=expires), session)
        elif what < 0.75 and table.grants:
            table.release(dice.choice(list(table.grants)))
        elif what < 0.9:
            now += dice.randrange(4)
        else:
            locks.bury(sessions - {session})
        locks.settle(session)
        check(table)
        lasting = {number for number, each in table.grants.items() if each.expires is None}
        assert lasting <= locks.sessions.keys(), "a grant that would never end"
        locks = again(locks)
    locks.tick(now + 10, "boot")
    locks.bury(set())
    assert locks.settle("one") == ()
    assert not locks.table.nodes

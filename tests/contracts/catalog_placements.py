"""What every catalog must do for a migration: phases, where packs are, and what is copied."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import anyio
import pytest
from attrs import evolve
from tests.contracts.callers import Caller, digest, pack_of

from vaultfs.domain import collecting, migrating
from vaultfs.domain.errors import Conflict, InvalidField, PacksGone, PlacementChanged
from vaultfs.domain.migrating import (
    MOST_ATTEMPTS,
    Announce,
    Claimed,
    Counts,
    Follow,
    NoteCopied,
    NoteLost,
    Pause,
    Propose,
    Retry,
    Settle,
    Step,
    Throttle,
)
from vaultfs.domain.migration import AT_ONCE, Blocked, Command, Level, Pace, Phase, Placement
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import Done, RecordPack, Refused
from vaultfs.ports.catalog import Catalog, PackRow, ScrubWanted

START: Final = 10**15
NOBODY: Final = UserId(0)


async def step(catalog: Catalog, what: Step, at_us: int = START) -> int:
    return await catalog.migrate(what, NOBODY, at_us)


async def go(catalog: Catalog, *commands: Command) -> Placement:
    """Have a migration from `s` to `t` begun, and follow `commands`."""
    now = await catalog.placement()
    if now is None or now.phase is Phase.SETTLED:
        await step(catalog, Propose("s", "t", Level.DIGEST))
    for command in commands:
        await step(catalog, Follow(command))
    now = await catalog.placement()
    assert now is not None
    return now


def stored(name: str, me: Caller, *stores: str, epoch: int = 0) -> RecordPack:
    """A pack called `name` of one chunk, which is in `stores`."""
    first, *others = stores
    return evolve(
        pack_of(name, [f"in {name}"], me.user.id, backend=first), also=tuple(others), epoch=epoch
    )


async def lost_race(me: Caller, pack: RecordPack) -> frozenset[str]:
    """In which stores `pack` was found to lack when it was recorded."""
    error = await me.refused(pack)
    assert isinstance(error, PlacementChanged), error
    return frozenset(error.stores)


async def copied(catalog: Catalog, claims: Sequence[Claimed], store: str = "t") -> int:
    noted = tuple((each.number, 1, None) for each in claims)
    return await step(catalog, NoteCopied(store, noted, claims[0].since))


async def failed(catalog: Catalog, claims: Sequence[Claimed], store: str = "t") -> int:
    noted = tuple((each.number, 0, f"no {each.number}") for each in claims)
    return await step(catalog, NoteCopied(store, noted, claims[0].since))


async def lacking(catalog: Catalog, store: str = "t") -> int:
    counts = await catalog.copy_counts(store)
    return counts.packs - counts.there


class PlacementContract:
    """Migrations."""

    async def test_at_first_there_is_one_store(self, catalog: Catalog) -> None:
        assert await catalog.placement() is None
        with pytest.raises(Conflict, match="there is no migration"):
            await step(catalog, Follow(Command.START))
        with pytest.raises(Conflict, match="there is no migration"):
            await step(catalog, Pause(paused=True))
        assert await catalog.claim_copies("t", START) == []

    async def test_a_migration_is_proposed(self, catalog: Catalog) -> None:
        epoch = await step(catalog, Propose("s", "t", Level.ALL))
        proposed = Placement(epoch, Phase.DRAFT, "s", "t", level=Level.ALL)
        assert await catalog.placement() == proposed
        with pytest.raises(Conflict, match="is draft already"):
            await step(catalog, Propose("s", "u", Level.ALL))
        assert await catalog.placement() == proposed
        assert (await catalog.audit())[-1].subject == "draft: s -> t"

    async def test_what_a_store_has_is_listed_until_it_is_lost(
        self, catalog: Catalog, me: Caller
    ) -> None:
        now = await go(catalog, Command.START, Command.DUAL)
        pack = stored("p", me, "s", "t", epoch=now.epoch)
        await me.do(pack)
        assert await catalog.packs_in("t") == [PackRow(pack.key, pack.size, pack.crc32c, "t")]
        assert await catalog.packs_in("t", after=pack.key) == []
        assert await lacking(catalog) == 0
        await step(catalog, NoteLost("t", (pack.key,)))
        assert await catalog.packs_in("t") == []
        assert await lacking(catalog) == 1
        assert [each.key for each in await catalog.claim_copies("t", START)] == [pack.key]

    async def test_of_operators_who_are_there_at_once_one_is_heard(self, catalog: Catalog) -> None:
        now = await go(catalog, Command.START)
        heard: list[Command] = []
        late: list[str] = []

        async def follow(command: Command) -> None:
            try:
                await step(catalog, Follow(command, now.epoch))
                heard.append(command)
            except Conflict as error:
                late.append(str(error))

        async with anyio.create_task_group() as tasks:
            for command in (Command.DUAL, Command.ABORT, Command.DUAL, Command.ABORT):
                tasks.start_soon(follow, command)
        assert (len(heard), len(late)) == (1, 3)
        assert all("somebody else was faster" in each for each in late)
        after = await catalog.placement()
        assert after is not None
        wanted = {Command.DUAL: Phase.DUAL, Command.ABORT: Phase.ABORTED}[heard[0]]
        assert (after.epoch, after.phase) == (now.epoch + 1, wanted)

    async def test_it_starts_where_everything_is(self, catalog: Catalog) -> None:
        with pytest.raises(InvalidField):
            await step(catalog, Propose("s", "s", Level.ALL))
        await go(catalog, Command.ABORT, Command.END)
        with pytest.raises(Conflict, match="everything is in s, not in u"):
            await step(catalog, Propose("u", "t", Level.ALL))

    async def test_every_change_raises_the_epoch(self, catalog: Catalog) -> None:
        epochs = [await step(catalog, Propose("s", "t", Level.DIGEST))]
        for command in (Command.START, Command.DUAL, Command.CUTOVER, Command.ROLLBACK):
            epochs.append(await step(catalog, Follow(command)))
            epochs.append(await step(catalog, Pause(paused=True)))
        assert all(one < other for one, other in pairwise(epochs))
        now = await catalog.placement()
        assert now == Placement(
            epochs[-1], Phase.ROLLED_BACK, "s", "t", paused=True, level=Level.DIGEST
        )

    async def test_a_refused_step_changes_nothing(self, catalog: Catalog) -> None:
        before = await go(catalog, Command.START)
        with pytest.raises(Conflict, match="does not go on from there"):
            await step(catalog, Follow(Command.DETACH))
        assert await catalog.placement() == before
        assert await step(catalog, Follow(Command.DUAL)) == before.epoch + 1

    async def test_of_two_operators_one_is_too_late(self, catalog: Catalog) -> None:
        seen = (await go(catalog, Command.START)).epoch
        await step(catalog, Pause(paused=True, if_epoch=seen))
        for what in (Pause(paused=False, if_epoch=seen), Follow(Command.DUAL, if_epoch=seen)):
            with pytest.raises(Conflict, match="somebody else was faster"):
                await step(catalog, what)
        now = await catalog.placement()
        assert now is not None
        assert (now.phase, now.paused) == (Phase.COPYING, True)
        await step(catalog, Follow(Command.DUAL, if_epoch=now.epoch))

    async def test_a_whole_migration(self, catalog: Catalog, me: Caller) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START, Command.DUAL)
        with pytest.raises(Blocked, match="1 packs are not verified in t"):
            await step(catalog, Follow(Command.CUTOVER))
        await copied(catalog, await catalog.claim_copies("t", START))
        commands = (Command.CUTOVER, Command.DETACH, Command.RETIRE, Command.END)
        now = await go(catalog, *commands)
        assert (now.phase, now.source, now.target) == (Phase.SETTLED, "t", None)
        assert await catalog.packs() == [PackRow(digest("p"), 1000, 7, "t")]
        back = await step(catalog, Propose("t", "s", Level.DIGEST))
        assert back == now.epoch + 1
        assert await lacking(catalog, "s") == 1

    # Recording packs

    async def test_a_pack_is_recorded_in_all_its_stores(self, catalog: Catalog, me: Caller) -> None:
        now = await go(catalog, Command.START, Command.DUAL)
        await me.do(stored("p", me, "s", "t", epoch=now.epoch))
        assert (await lacking(catalog, "s"), await lacking(catalog, "t")) == (0, 0)
        assert await catalog.packs() == [PackRow(digest("p"), 1000, 7, "s")]
        await go(catalog, Command.CUTOVER)

    async def test_one_that_is_in_the_first_store_alone_is_copied(
        self, catalog: Catalog, me: Caller
    ) -> None:
        now = await go(catalog, Command.START, Command.DUAL)
        await me.do(stored("p", me, "s", epoch=now.epoch))
        await me.do(stored("q", me, "s", epoch=now.epoch - 1))
        assert await lacking(catalog) == 2
        assert await lost_race(me, stored("r", me, "t", epoch=now.epoch - 1)) == {"s"}

    @pytest.mark.parametrize(
        ("commands", "written", "lacks"),
        [
            ((Command.START, Command.DUAL), "s", ""),
            ((Command.START, Command.DUAL, Command.CUTOVER), "s", "t"),
            ((Command.START, Command.DUAL, Command.CUTOVER), "st", ""),
            ((Command.START, Command.DUAL, Command.CUTOVER, Command.DETACH), "s", "t"),
            ((Command.START, Command.DUAL, Command.CUTOVER, Command.DETACH), "st", ""),
            ((Command.START, Command.DUAL, Command.CUTOVER, Command.ROLLBACK), "t", "s"),
            ((Command.START, Command.DUAL, Command.ABORT), "st", ""),
            ((Command.START, Command.DUAL, Command.ABORT), "t", "s"),
        ],
    )
    async def test_what_an_older_epoch_wrote_has_to_do_for_the_present_one(
        self, catalog: Catalog, me: Caller, commands: tuple[Command, ...], written: str, lacks: str
    ) -> None:
        first = (await go(catalog, Command.START)).epoch
        now = await go(catalog, *commands[1:])
        pack = stored("p", me, *written, epoch=first)
        if lacks:
            assert await lost_race(me, pack) == set(lacks)
            return
        await me.do(pack)
        for store in "st":
            there = store in written and store in now.write_set
            assert await lacking(catalog, store) == (0 if there else 1)

    async def test_what_comes_with_a_pack_that_is_refused_is_refused_too(
        self, catalog: Catalog, me: Caller
    ) -> None:
        old = (await go(catalog, Command.START)).epoch
        now = await go(catalog, Command.DUAL, Command.CUTOVER)
        first = stored("p", me, "s", epoch=old)
        units = [
            me.unit(first),
            evolve(me.unit(me.put_op("/a"), me.put_op("/b")), recorded=(first.key,)),
            evolve(me.unit(me.put_op("/c")), recorded=(first.key,)),
        ]
        kinds = (PlacementChanged, PacksGone, PacksGone)
        for outcome, kind in zip(await catalog.apply(units), kinds, strict=True):
            assert isinstance(outcome, Refused)
            assert isinstance(outcome.error, kind)
        assert await me.feed() == []
        again = [me.unit(stored("p", me, "s", "t", epoch=now.epoch)), *units[1:]]
        assert all(isinstance(each, Done) for each in await catalog.apply(again))
        assert len(await me.feed()) == 3

    async def test_what_was_put_before_a_store_was_emptied_does_not_count(
        self, catalog: Catalog, me: Caller
    ) -> None:
        old = (await go(catalog, Command.START, Command.DUAL)).epoch
        await go(catalog, Command.ABORT, Command.END)  # and somebody empties it
        now = await go(catalog, Command.START, Command.DUAL)
        await me.do(stored("p", me, "s", "t", epoch=old))
        assert await lacking(catalog) == 1
        await me.do(stored("q", me, "s", "t", epoch=now.epoch))
        assert await lacking(catalog) == 1

    async def test_nor_in_the_store_that_all_has_come_back_to(
        self, catalog: Catalog, me: Caller
    ) -> None:
        old = (await go(catalog, Command.START, Command.DUAL, Command.CUTOVER)).epoch
        rest = (Command.DETACH, Command.RETIRE, Command.END)
        await go(catalog, *rest)
        await step(catalog, Propose("t", "s", Level.DIGEST))
        for command in (Command.START, Command.DUAL, Command.CUTOVER, *rest):
            await step(catalog, Follow(command))
        assert await lost_race(me, stored("p", me, "t", "s", epoch=old)) == {"s"}

    async def test_recorded_again_in_another_store(self, catalog: Catalog, me: Caller) -> None:
        now = await go(catalog, Command.START, Command.DUAL)
        await me.do(stored("p", me, "s", epoch=now.epoch))
        await me.do(stored("p", me, "s", "t", epoch=now.epoch))
        assert await lacking(catalog) == 0

    # Copying

    async def test_packs_are_claimed_by_one(self, catalog: Catalog, me: Caller) -> None:
        await me.do(*(stored(name, me, "s") for name in "abcde"))
        await go(catalog, Command.START)
        first = await catalog.claim_copies("t", START, limit=3)
        second = await catalog.claim_copies("t", START, limit=3)
        assert (len(first), len(second)) == (3, 2)
        assert {each.key for each in first + second} == set(map(digest, "abcde"))
        assert {(each.size, each.crc32c) for each in first} == {(1000, 7)}
        assert await catalog.claim_copies("t", START) == []
        assert await copied(catalog, first) == 3
        assert await catalog.copy_counts("t") == Counts(5, 5000, 3, 3000, 0, 0)

    async def test_packs_behind_another_are_claimed_first(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(*(stored(name, me, "s") for name in "abcde"))
        await go(catalog, Command.START)
        [first] = await catalog.claim_copies("t", START, limit=1)
        [second, third] = await catalog.claim_copies("t", START, after=first.number + 1, limit=2)
        assert first.number + 1 < second.number < third.number
        found = await catalog.claim_copies("t", START, after=third.number)
        assert [each.number for each in found] == [third.number + 1]
        again = await catalog.claim_copies("t", START, after=found[0].number)
        assert [each.number for each in again] == [first.number + 1], "none is left behind it"
        assert await catalog.claim_copies("t", START, after=third.number) == []

    async def test_a_claim_runs_out(
        self, catalog: Catalog, me: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        first = await catalog.claim_copies("t", START)
        assert await catalog.claim_copies("t", START) == []
        monkeypatch.setattr(migrating, "CLAIM_US", 0)  # the time may be the database's
        assert await catalog.claim_copies("t", START) == first
        await copied(catalog, first)
        assert await failed(catalog, first) == 0
        assert await lacking(catalog) == 1, "it is copied once more, which does no harm"

    async def test_what_fails_is_tried_again_and_then_listed(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        for _ in range(MOST_ATTEMPTS):
            assert await catalog.copy_failures("t") == []
            claims = await catalog.claim_copies("t", START)
            assert await failed(catalog, claims) == 0
        assert await catalog.claim_copies("t", START) == []
        [failure] = await catalog.copy_failures("t")
        assert (failure.key, failure.attempts) == (digest("p"), MOST_ATTEMPTS)
        assert failure.error.startswith("no ")
        assert (await catalog.copy_counts("t")).failed == 1
        assert await step(catalog, Retry("t")) == 1
        assert await catalog.copy_failures("t") == []
        assert await copied(catalog, await catalog.claim_copies("t", START)) == 1
        assert await catalog.copy_failures("t") == []

    async def test_what_is_put_off_is_no_attempt(self, catalog: Catalog, me: Caller) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        [first] = await catalog.claim_copies("t", START)
        later = NoteCopied("t", (), first.since, ((first.number, "too many requests"),))
        await step(catalog, later)
        for _ in range(2 * MOST_ATTEMPTS):
            assert await catalog.claim_copies("t", START) == [first]
            assert await step(catalog, later) == 0
        assert await catalog.copy_failures("t") == []
        assert await lacking(catalog) == 1
        claims = await catalog.claim_copies("t", START)
        await copied(catalog, claims)
        await step(catalog, later)
        assert await lacking(catalog) == 0, "what is there stays there"

    async def test_nothing_is_claimed_for_a_store_that_nothing_is_copied_to(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog)
        assert await catalog.claim_copies("t", START) == []
        await go(catalog, Command.START)
        assert await catalog.claim_copies("s", START) == []
        await go(catalog, Command.ABORT)
        assert await catalog.claim_copies("t", START) == []

    async def test_a_copy_for_an_older_migration_does_not_count(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        old = await catalog.claim_copies("t", START)
        await go(catalog, Command.ABORT, Command.END)
        await copied(catalog, old)
        await go(catalog, Command.START)
        claims = await catalog.claim_copies("t", START)
        assert len(claims) == 1
        await copied(catalog, old)
        assert await lacking(catalog) == 1
        await copied(catalog, claims)
        assert await lacking(catalog) == 0

    async def test_a_pack_that_is_collected_is_copied_no_more(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        claims = await catalog.claim_copies("t", START)
        for _ in range(2):
            number = await catalog.collect(collecting.Begin("me"), NOBODY, START)
            for what in (
                collecting.Condemn(number, (claims[0].number,)),
                collecting.Discard(number, claims[0].number, (), 0),
                collecting.End(number, complete=True, report="{}"),
            ):
                await catalog.collect(what, NOBODY, START)
        assert await catalog.packs() == []
        await copied(catalog, claims)
        assert await catalog.copy_counts("t") == Counts(0, 0, 0, 0, 0, 0)

    # Reading back

    async def test_copies_are_read_back(self, catalog: Catalog, me: Caller) -> None:
        await me.do(*(stored(name, me, "s") for name in "abc"))
        await step(catalog, Propose("s", "t", Level.ALL))
        await step(catalog, Follow(Command.START))
        await copied(catalog, await catalog.claim_copies("t", START))
        assert await catalog.unread("t", Level.SIZE) == 0
        assert await catalog.unread("t", Level.DIGEST) == 0
        assert await catalog.unread("t", Level.SAMPLE) == 3
        assert await catalog.unread("t", Level.ALL) == 3
        wanted = await catalog.to_read_back("t", 2, START, limit=2)
        assert [each.key for each in wanted] == sorted(map(digest, "abc"))[:2]
        await step(catalog, Follow(Command.DUAL))
        with pytest.raises(Blocked, match="3 packs of the sample were not read back from t"):
            await step(catalog, Follow(Command.CUTOVER))
        [good, bad] = wanted
        noted = ((good.number, 2, None), (bad.number, 2, "damaged"))
        assert await step(catalog, NoteCopied("t", noted, good.since)) == 1
        assert await lacking(catalog) == 1
        assert [each.key for each in await catalog.claim_copies("t", START)] == [bad.key]
        assert (await catalog.copy_counts("t")).read_back == 1

    async def test_packs_are_read_back_by_one_at_a_time(
        self, catalog: Catalog, me: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await me.do(*(stored(name, me, "s") for name in "abc"))
        await go(catalog, Command.START)
        await copied(catalog, await catalog.claim_copies("t", START))
        first = await catalog.to_read_back("t", 2, START, limit=2)
        second = await catalog.to_read_back("t", 2, START, limit=2)
        assert [each.key for each in (*first, *second)] == sorted(map(digest, "abc"))
        assert await catalog.to_read_back("t", 2, START) == []
        monkeypatch.setattr(migrating, "CLAIM_US", 0)  # the time may be the database's
        assert len(await catalog.to_read_back("t", 2, START)) == 3

    # How fast

    async def test_nobody_is_given_packs_in_a_pause(self, catalog: Catalog, me: Caller) -> None:
        await me.do(*(stored(name, me, "s") for name in "abcd"))
        await go(catalog, Command.START)
        await copied(catalog, await catalog.claim_copies("t", START, limit=1))
        await step(catalog, Pause(paused=True))
        assert await catalog.claim_copies("t", START) == []
        assert await catalog.to_read_back("t", 2, START) == []
        await step(catalog, Pause(paused=False))
        assert len(await catalog.to_read_back("t", 2, START)) == 1
        assert len(await catalog.claim_copies("t", START)) == 3

    async def test_the_pace_has_everybody_wait(self, catalog: Catalog, me: Caller) -> None:
        await me.do(*(stored(name, me, "s") for name in "abcd"))
        pace = Pace(bytes_per_second=500)
        await step(catalog, Propose("s", "t", Level.ALL, pace))
        assert await catalog.copies_wait(START) == 0, "nobody has copied anything"
        await step(catalog, Follow(Command.START))
        now = await catalog.placement()
        assert now is not None
        assert now.pace == pace
        claims = await catalog.claim_copies("t", START, limit=2)
        assert len(claims) == 2
        assert await catalog.claim_copies("t", START, limit=2) == []
        assert await catalog.to_read_back("t", 2, START) == []
        assert 3_000_000 < await catalog.copies_wait(START) <= 4_000_000
        await step(catalog, Throttle(AT_ONCE))
        assert await catalog.copies_wait(START) == 0
        assert len(await catalog.claim_copies("t", START, limit=2)) == 2

    async def test_a_new_migration_does_not_wait_as_the_last_one_had_it(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("a", me, "s"))
        slow = Pace(bytes_per_second=1)
        await step(catalog, Propose("s", "t", Level.ALL, slow))
        await step(catalog, Follow(Command.START))
        assert len(await catalog.claim_copies("t", START)) == 1
        await go(catalog, Command.ABORT, Command.END)
        await step(catalog, Propose("s", "t", Level.ALL, evolve(slow, bytes_per_second=10_000)))
        assert await catalog.copies_wait(START) == 0

    async def test_the_pace_counts_what_is_read_back(self, catalog: Catalog, me: Caller) -> None:
        await me.do(*(stored(name, me, "s") for name in "abcd"))
        await go(catalog, Command.START)
        await copied(catalog, await catalog.claim_copies("t", START))
        await step(catalog, Throttle(Pace(objects_per_second=1)))
        assert len(await catalog.to_read_back("t", 2, START, limit=3)) == 3
        assert await catalog.to_read_back("t", 2, START, limit=3) == []
        assert 2_000_000 < await catalog.copies_wait(START) <= 3_000_000

    async def test_a_pace_is_for_a_migration(self, catalog: Catalog) -> None:
        with pytest.raises(Conflict, match="there is no migration"):
            await step(catalog, Throttle(AT_ONCE))
        assert await catalog.copies_wait(START) == 0
        now = await go(catalog, Command.START)
        with pytest.raises(Conflict, match="somebody else was faster"):
            await step(catalog, Throttle(AT_ONCE, now.epoch - 1))
        await go(catalog, Command.ABORT, Command.END)
        with pytest.raises(Conflict, match="no migration is under way"):
            await step(catalog, Throttle(AT_ONCE))

    # Servers

    async def test_servers_that_run_have_to_know_where_packs_go(self, catalog: Catalog) -> None:
        await step(catalog, Announce("1", "one", ("s", "t")))
        await step(catalog, Announce("2", "two", ("s",)))
        await go(catalog, Command.START)
        assert await catalog.unaware("t", START) == ("two",)
        with pytest.raises(Blocked, match="server two was not told where t is"):
            await step(catalog, Follow(Command.DUAL))
        await step(catalog, Announce("2", "two", ("s", "t")))
        await step(catalog, Announce("3", "three", ("s",)))
        with pytest.raises(Blocked, match="server three"):
            await step(catalog, Follow(Command.DUAL))
        await step(catalog, Announce("3", "three", ("s",), gone=True))
        assert await catalog.unaware("t", START) == ()
        await go(catalog, Command.DUAL)

    # Scrubs

    async def test_a_scrub_speaks_of_one_store_alone(self, catalog: Catalog, me: Caller) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START)
        await catalog.claim_copies("t", START)
        scrub = await catalog.collect(collecting.BeginScrub(), NOBODY, START)
        [row] = await catalog.claim_scrub(ScrubWanted(scrub, START + 1, "s"), START)
        seen = collecting.NoteScrubbed(scrub, ((row.number, True),), 1000, "s")
        await catalog.collect(seen, NOBODY, 2 * START)
        assert await lacking(catalog) == 1, "a scrub of the one store says nothing of the other"
        assert await catalog.claim_scrub(ScrubWanted(scrub, START + 1, "t"), START) == []

    async def test_a_dump_knows_where_packs_go(
        self, catalog: Catalog, empty: Catalog, me: Caller
    ) -> None:
        before = await go(catalog, Command.START, Command.DUAL)
        await step(catalog, Throttle(Pace(bytes_per_second=7)))
        await empty.load(catalog.dump())
        after = await empty.placement()
        assert after is not None
        assert after == evolve(before, epoch=after.epoch, pace=Pace(bytes_per_second=7))
        assert after.epoch > before.epoch + 1, "servers may have gone by a later one"
        again = Caller(empty, me.user)
        await again.do(stored("p", again, "s", "t", epoch=after.epoch))
        assert await step(empty, Pause(paused=True)) == after.epoch + 1

    async def test_everything_can_be_said_to_be_in_one_store(
        self, catalog: Catalog, empty: Catalog, me: Caller
    ) -> None:
        await empty.load(catalog.dump())
        epoch = await step(empty, Settle("t"))
        assert await empty.placement() == Placement(epoch, Phase.SETTLED, "t")
        again = Caller(empty, me.user)
        await again.do(stored("p", again, "t", epoch=epoch))
        await step(empty, Propose("t", "s", Level.DIGEST))

    async def test_what_a_scrub_finds_damaged_is_copied_again(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(stored("p", me, "s"))
        await go(catalog, Command.START, Command.DUAL)
        await copied(catalog, await catalog.claim_copies("t", START))
        await go(catalog, Command.CUTOVER)
        scrub = await catalog.collect(collecting.BeginScrub(), NOBODY, START)
        [row] = await catalog.claim_scrub(ScrubWanted(scrub, START + 1, "t"), START)
        bad = collecting.NoteScrubbed(scrub, ((row.number, False),), 1000, "t")
        await catalog.collect(bad, NOBODY, 0)
        assert (await lacking(catalog, "t"), await lacking(catalog, "s")) == (1, 0)
        with pytest.raises(Blocked):
            await step(catalog, Follow(Command.DETACH))

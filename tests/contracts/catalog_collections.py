"""What every catalog must do for collections and scrubs."""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from attrs import evolve
from tests.contracts.callers import Caller, digest, pack_of, pieces_of, state_of
from tests.contracts.catalog_stock import dump_of

from vaultfs.domain import collecting as steps
from vaultfs.domain.collection import LEASE_US, PackUse
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import (
    Busy,
    ChunksMissing,
    Conflict,
    Doomed,
    Fenced,
    PacksGone,
    VaultError,
)
from vaultfs.domain.manifests import Entry, Manifest, unpack_entries
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import (
    AppendUpload,
    ClaimChunks,
    CreateUpload,
    Done,
    Operation,
    Outcome,
    PinChunks,
    Purge,
    Refused,
)
from vaultfs.domain.uploads import Upload, UploadState
from vaultfs.ports.catalog import Catalog, Known, Naming, ScrubRow, ScrubWanted

HOUR = 3600 * 1_000_000
OutOfLease = Callable[[Caller], Awaitable[None]]


def start() -> int:
    """Microseconds since 1970: some catalogs ask their database."""
    return time.time_ns() // 1000


class Collecting:
    """Somebody who collects from a catalog."""

    def __init__(self, me: Caller) -> None:
        self.me, self.catalog = me, me.catalog
        me.now = start() - HOUR
        self.number = 0

    async def step(self, step: steps.Step) -> int:
        return await self.catalog.collect(step, self.me.user.id, self.me.now)

    async def due(
        self, scrub: int, *, before: int | None = None, cheap: bool = False, limit: int = 100
    ) -> list[ScrubRow]:
        """What `scrub` is given to look at; all that there is, unless it says otherwise."""
        last = self.me.now + 1000 * HOUR if before is None else before
        want = ScrubWanted(scrub, last, "local", cheap, limit)
        return await self.catalog.claim_scrub(want, self.me.now)

    async def begin(self) -> int:
        """End the collection that is under way, if any, and begin the next."""
        if self.number:
            await self.step(steps.End(self.number, complete=True, report="{}"))
        self.number = await self.step(steps.Begin(f"collector-{self.number}"))
        return self.number

    async def record(self, name: str, chunks: str, *users: UserId) -> int:
        """The number of a new pack, which is called `name`."""
        result = await self.me.do(pack_of(name, chunks, *(users or (self.me.user.id,))))
        [number] = result.packs
        return number

    async def condemn(self, *packs: int) -> int:
        return await self.step(steps.Condemn(self.number, packs))

    async def discard(self, pack: int, chunks: str, grace_us: int = 0) -> int:
        return await self.step(
            steps.Discard(self.number, pack, tuple(map(digest, chunks)), grace_us)
        )

    async def condemned(self, *packs: int) -> None:
        """Have packs condemned by a collection that is over."""
        await self.begin()
        assert await self.condemn(*packs) == len(packs)
        await self.begin()

    async def move(self, name: str, chunks: str, *sources: int) -> int:
        """Have `chunks` of all of `sources` in the pack `name`."""
        moves = tuple((index, pack) for index in range(len(chunks)) for pack in sources)
        record = evolve(pack_of(name, chunks), claims=())
        return await self.step(steps.MoveChunks(self.number, record, moves, sources))

    async def uses(self) -> dict[int, PackUse]:
        return {each.number: each for each in await self.catalog.pack_uses(self.me.now)}

    async def is_condemned(self, pack: int) -> bool:
        return (await self.uses())[pack].condemned_us is not None

    async def relying(self, *packs: int, operations: Sequence[Operation] = ()) -> Outcome:
        """What becomes of a commit that relies on `packs`."""
        unit = evolve(self.me.unit(*operations), relies=packs)
        [outcome] = await self.catalog.apply([unit])
        return outcome

    async def where(self, chunks: str) -> dict[str, Digest]:
        """The keys of the packs in which chunks are."""
        found = await self.catalog.locate(self.me.user.id, [digest(each) for each in chunks])
        return {each: found[digest(each)].pack for each in chunks if digest(each) in found}


def refused(outcome: Outcome, kind: type[VaultError]) -> bool:
    return isinstance(outcome, Refused) and isinstance(outcome.error, kind)


class CollectionContract:
    @pytest.fixture
    def gc(self, me: Caller) -> Collecting:
        return Collecting(me)

    @pytest.fixture
    def out_of_lease(self) -> OutOfLease:
        """Has the lease of a collection run out: here by the clock of the caller."""

        async def wait(me: Caller) -> None:
            me.now += LEASE_US

        return wait

    # The lease

    async def test_one_collects_at_a_time(self, gc: Collecting) -> None:
        assert await gc.step(steps.Begin("one")) == 1
        assert await gc.step(steps.Begin("one")) == 1
        with pytest.raises(Busy, match="one"):
            await gc.step(steps.Begin("another"))
        await gc.step(steps.Beat(1))
        await gc.step(steps.End(1, complete=True, report='{"a": 1}'))
        assert await gc.step(steps.Begin("another")) == 2
        second, first = await gc.catalog.collections()
        assert (first.number, first.holder, first.complete) == (1, "one", True)
        assert first.report == '{"a": 1}'
        assert first.ended_us is not None
        assert first.ended_us >= first.begun_us
        assert (second.number, second.ended_us, second.complete) == (2, None, False)
        assert await gc.catalog.collections(limit=1) == [second]
        audited = [each for each in await gc.catalog.audit() if each.kind == "collect"]
        assert [each.subject for each in audited] == ['collection 1: {"a": 1}']

    async def test_who_is_not_heard_of_is_fenced(
        self, gc: Collecting, out_of_lease: OutOfLease
    ) -> None:
        pack = await gc.record("p", "ab")
        await gc.step(steps.Begin("slow"))
        await out_of_lease(gc.me)
        assert await gc.step(steps.Begin("next")) == 2
        before = await state_of(gc.catalog)
        for step in (
            steps.Beat(1),
            steps.Condemn(1, (pack,)),
            steps.MoveChunks(1, pack_of("q", "a"), (), (pack,)),
            steps.Discard(1, pack, (), 0),
            steps.Doom(1, (digest("x"),)),
            steps.NoteDeleted(1, (digest("x"),)),
            steps.End(1, complete=True, report="{}"),
            steps.Beat(3),
        ):
            with pytest.raises(Fenced):
                await gc.step(step)
        assert await state_of(gc.catalog) == before
        assert not await gc.is_condemned(pack)
        assert await gc.catalog.doomed() == []

    async def test_nothing_can_be_done_for_a_collection_that_is_over(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.begin()
        await gc.step(steps.End(1, complete=False, report="{}"))
        with pytest.raises(Fenced):
            await gc.condemn(pack)
        assert not (await gc.catalog.collections())[0].complete

    # Condemning

    async def test_a_pack_is_condemned_once(self, gc: Collecting) -> None:
        pack, other = await gc.record("p", "ab"), await gc.record("q", "c")
        assert await gc.begin() == 1
        assert await gc.condemn(pack, 999) == 1
        assert await gc.condemn(pack) == 0
        found = await gc.uses()
        assert found[pack].collection == 1
        assert found[pack].condemned_us is not None
        assert (found[pack].key, found[pack].size) == (digest("p"), 1000)
        assert found[other].condemned_us is None
        assert await gc.where("abc") == {"a": digest("p"), "b": digest("p"), "c": digest("q")}

    async def test_what_is_pinned_is_not_condemned(self, gc: Collecting) -> None:
        me, pack = gc.me, await gc.record("p", "ab")
        await gc.begin()
        until = me.now + 3 * HOUR
        await me.do(PinChunks(me.user.id, "holder", (digest("a"),), until))
        assert (await gc.uses())[pack].pinned
        assert await gc.condemn(pack) == 0
        [after] = await gc.catalog.pack_uses(until)
        assert not after.pinned

    async def test_condemnations_are_taken_back(self, gc: Collecting) -> None:
        packs = [await gc.record(name, name) for name in "pqr"]
        await gc.begin()
        await gc.condemn(*packs)
        assert await gc.step(steps.Revive((packs[0], 999))) == 1
        assert [each.number for each in (await gc.uses()).values() if each.condemned_us] == packs[
            1:
        ]
        assert await gc.step(steps.Revive()) == 2
        assert await gc.step(steps.Revive()) == 0
        assert [each.kind for each in await gc.catalog.audit()][-1:] == ["undelete"]

    # Reliance

    async def test_a_commit_rescues_what_it_relies_on(self, gc: Collecting) -> None:
        pack, other = await gc.record("p", "ab"), await gc.record("q", "c")
        await gc.condemned(pack, other)
        assert isinstance(await gc.relying(pack), Done)
        assert not await gc.is_condemned(pack)
        assert await gc.is_condemned(other)
        assert await gc.discard(pack, "ab") == 0
        assert await gc.discard(other, "c") == 1

    async def test_a_commit_is_refused_without_what_it_relies_on(self, gc: Collecting) -> None:
        pack, other = await gc.record("p", "ab"), await gc.record("q", "c")
        await gc.condemned(pack)
        assert await gc.discard(pack, "ab") == 1
        put = gc.me.put_op("/f")
        assert refused(await gc.relying(other, pack, operations=[put]), PacksGone)
        assert await gc.me.find("/f") is None
        assert isinstance(await gc.relying(other, operations=[put]), Done)

    async def test_a_refused_commit_rescues_nothing(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.condemned(pack)
        refusal = await gc.relying(pack, operations=[gc.me.move_op("/nothing", "/x")])
        assert isinstance(refusal, Refused)
        assert await gc.is_condemned(pack)

    async def test_pins_and_claims_rescue(self, gc: Collecting, other: Caller) -> None:
        me, packs = gc.me, [await gc.record(name, name) for name in "pq"]
        await gc.condemned(*packs)
        await me.do(PinChunks(me.user.id, "holder", (digest("p"),), me.now + 3 * HOUR))
        assert not await gc.is_condemned(packs[0])
        await other.do(ClaimChunks(other.user.id, (digest("q"),)))
        assert not await gc.is_condemned(packs[1])

    async def test_recording_a_pack_again_rescues_it(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.condemned(pack)
        assert await gc.record("p", "ab") == pack
        assert not await gc.is_condemned(pack)

    async def test_recording_a_pack_rescues_others_that_have_its_chunks(
        self, gc: Collecting
    ) -> None:
        """What is committed with it is read from there, and cannot say so."""
        pack = await gc.record("p", "ab")
        await gc.condemned(pack)
        recorded = await gc.me.do(pack_of("q", "bc", gc.me.user.id))
        assert pack in recorded.packs
        assert len(recorded.packs) == 2
        assert not await gc.is_condemned(pack)

    async def test_a_commit_waits_for_a_pack_that_may_be_refused(self, gc: Collecting) -> None:
        """Both stand in one transaction, and no refusal holds up what comes behind it."""
        me = gc.me
        await gc.begin()
        await gc.step(steps.Doom(gc.number, (digest("p"),)))
        for name, kind in (("p", Refused), ("q", Done)):
            record = me.unit(pack_of(name, "ab", me.user.id))
            puts = [
                evolve(me.unit(me.put_op(f"/{name}{number}")), recorded=(digest(name),))
                for number in range(6)
            ]
            outcomes = await gc.catalog.apply([record, *puts])
            assert {type(outcome) for outcome in outcomes} == {kind}
        assert await me.names() == [f"q{number}" for number in range(6)]
        again = evolve(me.unit(me.put_op("/again")), recorded=(digest("q"),))
        assert isinstance((await gc.catalog.apply([again]))[0], Refused)
        both = [me.unit(pack_of("q", "ab", me.user.id)), again]
        assert all(isinstance(each, Done) for each in await gc.catalog.apply(both))
        assert await gc.catalog.check() == []

    async def test_puts_together_are_charged_once_though_one_is_refused(
        self, gc: Collecting
    ) -> None:
        me, pack = gc.me, await gc.record("p", "ab")
        units = [
            evolve(me.unit(me.put_op(f"/f{number}")), relies=(999 if number == 5 else pack,))
            for number in range(8)
        ]
        outcomes = await gc.catalog.apply(units)
        assert [isinstance(each, Done) for each in outcomes] == [n != 5 for n in range(8)]
        assert await me.used() == 70
        assert await gc.catalog.check() == []

    # Discarding

    async def test_a_discarded_pack_is_forgotten_and_doomed(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.record("q", "c")
        await gc.condemned(pack)
        assert await gc.discard(pack, "ab") == 1
        assert await gc.discard(pack, "ab") == 0
        assert not await gc.catalog.has_pack(digest("p"))
        assert await gc.where("abc") == {"c": digest("q")}
        assert await gc.catalog.doomed() == [digest("p")]
        assert await gc.catalog.check() == []

    async def test_a_pack_is_discarded_by_a_later_collection_alone(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.begin()
        await gc.condemn(pack)
        assert await gc.discard(pack, "ab") == 0
        await gc.begin()
        assert await gc.discard(pack, "ab", grace_us=HOUR) == 0
        assert await gc.discard(pack, "ab") == 1

    async def test_what_was_never_condemned_is_not_discarded(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.begin()
        assert await gc.discard(pack, "ab") == 0
        assert await gc.where("ab") == {"a": digest("p"), "b": digest("p")}

    async def test_pins_of_the_past_go_with_the_pack(self, gc: Collecting) -> None:
        me, pack = gc.me, await gc.record("p", "ab")
        await me.do(PinChunks(me.user.id, "holder", (digest("a"),), 1))
        await gc.condemned(pack)
        assert await gc.discard(pack, "ab") == 1

    async def test_a_key_is_never_used_again(self, gc: Collecting) -> None:
        pack = await gc.record("p", "ab")
        await gc.condemned(pack)
        await gc.discard(pack, "ab")
        again = pack_of("p", "ab", gc.me.user.id)
        assert isinstance(await gc.me.refused(again), Doomed)
        await gc.step(steps.NoteDeleted(gc.number, (digest("p"),)))
        assert await gc.catalog.doomed() == []
        assert isinstance(await gc.me.refused(again), Doomed)
        assert await gc.record("p2", "ab") != pack
        assert await gc.where("ab") == {"a": digest("p2"), "b": digest("p2")}

    # Orphans

    async def test_only_what_no_row_names_is_doomed(self, gc: Collecting) -> None:
        await gc.record("p", "ab")
        await gc.begin()
        keys = digest("p"), digest("x"), digest("y")
        assert await gc.step(steps.Doom(gc.number, keys)) == 2
        assert await gc.catalog.doomed() == sorted([digest("x"), digest("y")])
        assert await gc.catalog.doomed(limit=1) == sorted([digest("x"), digest("y")])[:1]
        assert isinstance(await gc.me.refused(pack_of("x", "c", gc.me.user.id)), Doomed)
        assert await gc.catalog.has_pack(digest("p"))

    async def test_what_comes_back_is_deleted_again(self, gc: Collecting) -> None:
        await gc.begin()
        for _ in range(2):
            assert await gc.step(steps.Doom(gc.number, (digest("x"),))) == 1
            assert await gc.catalog.doomed() == [digest("x")]
            assert await gc.step(steps.NoteDeleted(gc.number, (digest("x"),))) == 1
            assert await gc.catalog.doomed() == []

    # Rewriting

    async def test_chunks_move_for_everybody_in_one_step(
        self, gc: Collecting, other: Caller
    ) -> None:
        pack = await gc.record("p", "abc", gc.me.user.id, other.user.id)
        await gc.begin()
        assert await gc.move("q", "ab", pack) == 2
        assert await gc.where("abc") == {"a": digest("q"), "b": digest("q"), "c": digest("p")}
        theirs = await gc.catalog.locate(other.user.id, [digest("a")])
        assert theirs[digest("a")].pack == digest("q")
        assert await gc.is_condemned(pack)
        await gc.begin()
        assert await gc.discard(pack, "abc") == 1
        assert await gc.where("abc") == {"a": digest("q"), "b": digest("q")}
        assert await gc.catalog.check() == []

    async def test_only_what_is_in_the_source_moves(self, gc: Collecting, other: Caller) -> None:
        pack = await gc.record("p", "ab")
        await gc.record("r", "ab", other.user.id)
        await gc.begin()
        await gc.move("q", "ab", pack)
        theirs = await gc.catalog.locate(other.user.id, [digest("a")])
        assert theirs[digest("a")].pack == digest("r")

    async def test_nobody_relies_on_a_pack_that_was_rewritten(self, gc: Collecting) -> None:
        pack = await gc.record("p", "abc")
        await gc.begin()
        await gc.move("q", "ab", pack)
        assert refused(await gc.relying(pack), PacksGone)
        assert await gc.is_condemned(pack)
        await gc.step(steps.Revive())
        assert refused(await gc.relying(pack), PacksGone)
        moved = (await gc.catalog.known(gc.me.user.id, [digest("a")])).own[digest("a")]
        assert isinstance(await gc.relying(moved), Done)

    async def test_what_is_left_in_a_rewritten_pack_is_put_anew(
        self, gc: Collecting, other: Caller
    ) -> None:
        """Nobody can rely on what is there; and it is not sent in vain."""
        me, pack = gc.me, await gc.record("p", "abc")
        await gc.begin()
        await gc.move("q", "ab", pack)
        for user in (me.user.id, other.user.id):
            assert await gc.catalog.known(user, [digest("c")]) == Known({}, frozenset())
        pin = PinChunks(me.user.id, "holder", (digest("c"),), me.now + 3 * HOUR)
        assert isinstance(await me.refused(pin), ChunksMissing)
        assert await gc.where("c") == {"c": digest("p")}
        new = await gc.record("r", "cd")
        assert await gc.where("cd") == {"c": digest("r"), "d": digest("r")}
        assert (await gc.catalog.known(me.user.id, [digest("c")])).own == {digest("c"): new}
        assert isinstance(await gc.relying(new), Done)
        await gc.begin()
        assert await gc.discard(pack, "abc") == 1
        assert await gc.where("cd") == {"c": digest("r"), "d": digest("r")}

    async def test_a_pack_that_was_rewritten_is_not_recorded_again(self, gc: Collecting) -> None:
        pack = await gc.record("p", "abc")
        await gc.begin()
        await gc.move("q", "ab", pack)
        assert isinstance(await gc.me.refused(pack_of("p", "abc", gc.me.user.id)), Doomed)

    async def test_a_pack_that_was_promised_meanwhile_is_not_rewritten(
        self, gc: Collecting
    ) -> None:
        me, pack, other = gc.me, await gc.record("p", "abc"), await gc.record("o", "d")
        await gc.begin()
        await me.do(PinChunks(me.user.id, "holder", (digest("c"),), me.now + 3 * HOUR))
        before = await gc.uses()
        assert await gc.move("q", "ab", other, pack) == 0
        assert await gc.move("q", "ab", 999) == 0
        assert await gc.uses() == before
        assert await gc.where("a") == {"a": digest("p")}
        assert not await gc.is_condemned(other)
        assert isinstance(await gc.relying(pack), Done)

    async def test_chunks_do_not_move_to_a_doomed_pack(self, gc: Collecting) -> None:
        pack = await gc.record("p", "abc")
        await gc.begin()
        await gc.step(steps.Doom(gc.number, (digest("q"),)))
        before = await state_of(gc.catalog)
        with pytest.raises(Doomed):
            await gc.move("q", "ab", pack)
        assert await state_of(gc.catalog) == before
        assert not await gc.is_condemned(pack)

    async def test_a_pack_that_is_made_of_itself_stays(self, gc: Collecting) -> None:
        pack = await gc.record("p", "abc")
        await gc.begin()
        await gc.move("p", "abc", pack)
        assert not await gc.is_condemned(pack)
        assert isinstance(await gc.relying(pack), Done)

    # What a mark reads

    async def test_all_that_names_chunks_is_told(self, gc: Collecting, other: Caller) -> None:
        me = gc.me
        await me.do(me.put_op("/f", "a"), me.put_op("/g", "b"))
        await me.put("/f", "c")
        await me.delete("/g")
        await other.put("/f", "d")
        await upload(me, "session", "e")
        owners = [(me.user.id, name) for name in "abce"] + [(other.user.id, "d")]
        assert await named(gc.catalog) == sorted((owner, digest(name)) for owner, name in owners)

    async def test_what_is_forgotten_is_told_no_more(self, gc: Collecting) -> None:
        me = gc.me
        gone = await me.put("/f", "a")
        await me.delete("/f")
        await me.do(Purge(me.tree, gone.id))
        assert await named(gc.catalog) == []

    async def test_namings_are_of_one_moment(self, gc: Collecting) -> None:
        me = gc.me
        for number in range(3):
            await me.put(f"/{number}", str(number))
        found: list[Naming] = []
        async with aclosing(gc.catalog.namings()) as namings:
            found += await anext(namings)
            await me.put("/new", "new")
            await me.move("/0", "/moved")
            async for some in namings:
                found += some
        assert len(found) == 3

    async def test_chunk_rows_come_by_digest_and_whole(self, gc: Collecting, other: Caller) -> None:
        me, names = gc.me, [f"chunk {number}" for number in range(50)]
        first = (await me.do(pack_of("p", names, me.user.id, other.user.id))).packs[0]
        await other.do(pack_of("q", ["more"], other.user.id))
        found: list[tuple[Any, ...]] = []
        after = None
        while rows := await gc.catalog.chunk_rows(after=after, limit=7):
            found += [(row[0], row[1], row[2], row[3]) for row in rows]
            assert len({row[0] for row in rows}) <= 7
            after = rows[-1][0]
        assert len(found) == await gc.catalog.count_chunks() == 101
        assert [row[0] for row in found] == sorted(row[0] for row in found)
        assert {row for row in found if row[2] == first} == {
            (digest(name), user, first, 52)
            for name in names
            for user in (me.user.id, other.user.id)
        }

    async def test_packs_are_listed_by_number(self, gc: Collecting) -> None:
        packs = [await gc.record(name, name) for name in "pqrst"]
        assert sorted(await gc.uses()) == sorted(packs)
        page = await gc.catalog.pack_uses(gc.me.now, after=packs[1], limit=2)
        assert [each.number for each in page] == packs[2:4]

    # Backups and rebuilds

    async def test_a_catalog_from_a_dump_has_to_be_reconciled(
        self, gc: Collecting, empty: Catalog
    ) -> None:
        await empty.load(pieces_of(await dump_of(gc.catalog)))
        again = Collecting(Caller(empty, await empty.user("me")))
        with pytest.raises(Conflict, match="reconcile"):
            await again.begin()
        with pytest.raises(Conflict, match="rebuild"):
            await again.step(steps.Reconcile())
        async with empty.reindex():
            pass
        with pytest.raises(Conflict, match="reconcile"):
            await again.begin()
        assert await again.step(steps.Reconcile()) == 1
        assert await again.step(steps.Reconcile()) == 0
        await again.begin()
        assert [each.kind for each in await empty.audit()][-1] == "reconcile"

    async def test_a_new_index_leaves_doomed_packs_out(self, gc: Collecting) -> None:
        """Their objects may be in the store still."""
        me, pack = gc.me, await gc.record("p", "ab")
        await gc.condemned(pack)
        await gc.discard(pack, "ab")
        await gc.record("q", "ac")
        async with gc.catalog.reindex() as index:
            for name, chunks in (("p", "ab"), ("q", "ac")):
                await index.add_pack(evolve(pack_of(name, chunks), claims=()))
            await index.claim(me.user.id, [digest(name) for name in "abc"])
        assert await gc.where("abc") == {"a": digest("q"), "c": digest("q")}
        assert not await gc.catalog.has_pack(digest("p"))
        assert await gc.catalog.doomed() == [digest("p")]

    async def test_nobody_relies_on_packs_of_the_index_before(self, gc: Collecting) -> None:
        """Chunks may be in other packs now, without any fate in common with those."""
        me, pack = gc.me, await gc.record("p", "abc")
        await me.do(PinChunks(me.user.id, "holder", (digest("a"),), me.now + 3 * HOUR))
        rewritten = await gc.record("r", "xyz")
        await gc.begin()
        await gc.move("q", "x", rewritten)
        async with gc.catalog.reindex() as index:
            for name, chunks in (("p", "abc"), ("q", "x"), ("r", "xyz")):
                await index.add_pack(evolve(pack_of(name, chunks), claims=()))
        assert refused(await gc.relying(pack), PacksGone)
        names = [digest(name) for name in "abcxyz"]
        found = (await gc.catalog.known(me.user.id, names)).own
        assert set(found) == set(names)
        assert isinstance(await gc.relying(*set(found.values())), Done)
        assert [each.number for each in (await gc.uses()).values() if each.pinned] == [
            found[digest("a")]
        ]
        assert await gc.record("s", "s") not in {pack, rewritten, *found.values()}

    # Rewriting by many

    async def test_what_is_to_be_rewritten_is_claimed_once(self, gc: Collecting) -> None:
        assert await gc.catalog.claim_rewrite(gc.me.now) is None
        number = await gc.begin()
        work = tuple(bytes([each]) for each in range(200))
        assert await gc.step(steps.OfferRewrites(number, work)) == 200
        given: list[steps.Rewrite] = []

        async def claim_all() -> None:
            while found := await gc.catalog.claim_rewrite(gc.me.now):
                given.append(found)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(claim_all)
        assert sorted(each.work for each in given) == list(work)
        assert {each.collection for each in given} == {number}
        assert await gc.catalog.rewrites(number) == [None] * 200
        note = steps.NoteRewritten(number, given[0].number, "{}")
        assert [await gc.step(note) for _ in range(2)] == [1, 0]
        assert sum(each is not None for each in await gc.catalog.rewrites(number)) == 1

    async def test_what_a_dead_process_was_to_rewrite_is_claimed_again(
        self, gc: Collecting, out_of_lease: OutOfLease
    ) -> None:
        await gc.step(steps.OfferRewrites(await gc.begin(), (b"a", b"b")))
        done, dead = [await gc.catalog.claim_rewrite(gc.me.now) for _ in range(2)]
        assert done is not None
        await gc.step(steps.NoteRewritten(gc.number, done.number, "{}"))
        assert await gc.catalog.claim_rewrite(gc.me.now) is None
        await out_of_lease(gc.me)
        assert await gc.catalog.claim_rewrite(gc.me.now) == dead

    async def test_nothing_is_rewritten_for_a_collection_that_is_over(self, gc: Collecting) -> None:
        number = await gc.begin()
        await gc.step(steps.OfferRewrites(number, (b"a", b"b")))
        claimed = await gc.catalog.claim_rewrite(gc.me.now)
        assert claimed is not None
        await gc.begin()
        assert await gc.catalog.claim_rewrite(gc.me.now) is None
        with pytest.raises(Fenced):
            await gc.step(steps.NoteRewritten(number, claimed.number, "{}"))
        with pytest.raises(Fenced):
            await gc.step(steps.OfferRewrites(number, (b"c",)))

    # Scrubs

    async def test_what_was_not_scrubbed_for_longest_comes_first(self, gc: Collecting) -> None:
        packs = [await gc.record(name, name) for name in "pqr"]
        gc.me.now += HOUR // 2
        first = await gc.step(steps.BeginScrub())
        assert await gc.due(first, before=1) == []
        claimed = await gc.due(first, limit=1)
        assert [each.number for each in claimed] == packs[:1]
        assert (claimed[0].key, claimed[0].size, claimed[0].crc32c) == (digest("p"), 1000, 7)
        assert (claimed[0].scrubbed_us, claimed[0].seen_us) == (None, None)
        noted = steps.NoteScrubbed(first, ((packs[0], True),), 1000, "local")
        assert await gc.step(noted) == 1
        second = await gc.step(steps.BeginScrub())
        found = await gc.due(second)
        assert [each.number for each in found] == [*packs[1:], packs[0]]
        assert found[2].scrubbed_us is not None

    async def test_a_scrub_looks_at_a_pack_once(self, gc: Collecting) -> None:
        packs = [await gc.record(name, name) for name in "pqr"]
        number = await gc.step(steps.BeginScrub())
        noted = tuple((pack, True) for pack in packs)
        assert [each.number for each in await gc.due(number)] == packs
        await gc.step(steps.NoteScrubbed(number, noted, 1000, "local"))
        assert await gc.due(number) == [], "though all are due, by a clock that is ahead"

    async def test_several_scrubs_share_the_packs(
        self, gc: Collecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packs = [await gc.record(name, name) for name in "pqrs"]
        one, other = [await gc.step(steps.BeginScrub()) for _ in range(2)]
        assert [each.number for each in await gc.due(one, limit=2)] == packs[:2]
        assert [each.number for each in await gc.due(other)] == packs[2:]
        assert await gc.due(other) == []
        monkeypatch.setattr(steps, "SCRUB_CLAIM_US", 0)  # the time may be the database's
        assert [each.number for each in await gc.due(other)] == packs[:2], "the first one died"

    async def test_a_cheap_look_does_not_count_as_reading(
        self, gc: Collecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps, "SCRUB_CLAIM_US", 0)
        first, second = await gc.record("p", "p"), await gc.record("q", "q")
        gc.me.now += HOUR // 2

        async def order(*, cheap: bool) -> list[int]:
            number = await gc.step(steps.BeginScrub())
            return [each.number for each in await gc.due(number, cheap=cheap)]

        number = await gc.step(steps.BeginScrub())
        await gc.step(steps.NoteScrubbed(number, ((first, True),), 0, "local"))
        assert await order(cheap=False) == [first, second]
        assert await order(cheap=True) == [second, first]
        gc.me.now += 1
        await gc.step(steps.NoteScrubbed(number, ((second, True),), 1000, "local"))
        assert await order(cheap=True) == [first, second]

    async def test_what_is_damaged_stays_so_until_it_is_read(self, gc: Collecting) -> None:
        pack = await gc.record("p", "p")
        number = await gc.step(steps.BeginScrub())
        sound: list[bool] = []
        for right, size in ((False, 1000), (True, 0), (True, 1000)):
            await gc.step(steps.NoteScrubbed(number, ((pack, right),), size, "local"))
            sound.append(bool(await gc.catalog.packs_in("local")))
        assert sound == [False, False, True]

    async def test_scrubs_are_told_of(self, gc: Collecting) -> None:
        pack = await gc.record("p", "p")
        assert await gc.catalog.scrubs() == []
        first, second = [await gc.step(steps.BeginScrub()) for _ in range(2)]
        assert (first, second) == (1, 2)
        await gc.step(steps.NoteScrubbed(first, ((pack, True),), 1000, "local"))
        await gc.step(steps.NoteScrubbed(first, ((pack, False),), 500, "local"))
        findings = json.dumps([{"problem": "is gone"}])
        await gc.step(steps.EndScrub(first, findings))
        newer, older = await gc.catalog.scrubs()
        assert (newer.number, newer.ended_us, newer.packs, newer.findings) == (2, None, 0, "[]")
        assert (older.number, older.packs, older.size, older.findings) == (1, 2, 1500, findings)
        assert older.ended_us is not None
        assert await gc.catalog.scrubs(limit=1) == [newer]


async def named(catalog: Catalog) -> list[tuple[UserId, Digest]]:
    """Whose chunks are named by what is there."""
    found: list[tuple[UserId, Digest]] = []
    async with aclosing(catalog.namings()) as namings:
        async for some in namings:
            for owner, manifest, entries in some:
                chunks: Sequence[Entry]
                if manifest is not None:
                    chunks = Manifest.decode(manifest).entries
                else:
                    assert entries is not None
                    chunks = tuple(unpack_entries(entries))
                found += [(owner, each) for each, _ in chunks]
    return sorted(found)


async def upload(me: Caller, name: str, chunk: str) -> None:
    """Have a session that holds one chunk."""
    session = Upload(
        *(name, me.tree, me.user.id, ("up",), UploadState.OPEN, 1, 100, 0, 0, "{}"),
        *(me.now, me.now),
    )
    await me.do(CreateUpload(session))
    await me.do(AppendUpload(me.tree, name, 1, 0, ((digest(chunk), 10),)))

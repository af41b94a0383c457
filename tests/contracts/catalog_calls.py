"""What every catalog promises of its calls: whole or not at all, many at once, known after."""

import unicodedata
from random import Random

import anyio
import pytest
from attrs import evolve
from tests.contracts.callers import Caller, add_user, state_of

from vaultfs.domain.errors import Exists, InvalidField, NotFound, VersionMismatch
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import ABSENT, NO_PRECONDITIONS, NodeId, Preconditions
from vaultfs.domain.operations import (
    Done,
    Move,
    Outcome,
    Prune,
    Purge,
    Refused,
    SetMetadata,
    SetQuota,
    Unit,
)
from vaultfs.ports.catalog import Catalog


class CallContract:
    """`apply`, the feed, `outcome`."""

    async def test_nothing_is_applied(self, catalog: Catalog, me: Caller) -> None:
        assert await catalog.apply([]) == []
        [outcome] = await catalog.apply([me.unit()])
        assert outcome == Done(())

    async def test_a_unit_has_a_result_for_each_operation(self, me: Caller) -> None:
        outcome = await me.outcome(me.mkdir_op("/a"), me.put_op("/a/f"), me.mkdir_op("/a/b"))
        assert isinstance(outcome, Done)
        names = [result.node and result.node.name for result in outcome.results]
        assert names == ["a", "f", "b"]

    async def test_a_unit_happens_whole_or_not_at_all(self, me: Caller) -> None:
        await me.put("/there")
        error = await me.refused(
            me.mkdir_op("/a"),
            me.put_op("/a/f"),
            me.put_op("/there", "new"),
            SetMetadata(me.tree, ("there",), '{"a":1}'),
            me.move_op("/there", "/moved"),
            SetQuota(me.tree, 5000),
            me.delete_op("/nothing"),
        )
        assert isinstance(error, NotFound)
        assert await me.names() == ["there"]
        assert await me.used() == 10

    async def test_operations_see_those_before_them(self, me: Caller) -> None:
        await me.do(
            me.mkdir_op("/a"),
            me.put_op("/a/f"),
            me.move_op("/a", "/b"),
            me.put_op("/b/f", "new"),
            me.mkdir_op("/a"),
            me.copy_op("/b/f", "/a/g"),
            me.delete_op("/b", recursive=True),
        )
        assert await me.names() == ["a"]
        assert await me.names("/a") == ["g"]
        assert await me.used() == 30
        assert await me.catalog.check() == []

    async def test_a_refused_unit_does_not_hold_up_the_others(
        self, catalog: Catalog, me: Caller
    ) -> None:
        units = [
            me.unit(me.put_op("/a")),
            me.unit(me.mkdir_op("/b"), me.mkdir_op("/b")),
            me.unit(me.mkdir_op("/b"), me.put_op("/b/f")),
            me.unit(me.delete_op("/x")),
            me.unit(me.put_op("/b/f", "new"), me.delete_op("/b", recursive=True), me.put_op("/b")),
        ]
        outcomes = await catalog.apply(units)
        assert [type(outcome) for outcome in outcomes] == [Done, Refused, Done, Refused, Done]
        assert isinstance(outcomes[1], Refused)
        assert isinstance(outcomes[1].error, Exists)
        assert await me.names() == ["a", "b"]
        assert await me.used() == 40
        kinds = [kind for kind, _ in await me.feed()]
        assert kinds == ["put", "mkdir", "put", "put", "delete", "put"]
        assert await catalog.check() == []

    async def test_what_a_refused_unit_was_given_is_given_to_nobody_twice(
        self, catalog: Catalog, me: Caller
    ) -> None:
        refused = me.unit(me.mkdir_op("/a/b/c/d", parents=True), me.delete_op("/nothing"))
        units = [refused, *(me.unit(me.put_op(f"/{number}")) for number in range(20))]
        outcomes = await catalog.apply(units)
        assert [type(outcome) for outcome in outcomes] == [Refused, *[Done] * 20]
        nodes = [await me.node(f"/{number}") for number in range(20)]
        nodes += [await me.put(f"/later {number}") for number in range(5)]
        assert len({node.id for node in nodes}) == len({node.version for node in nodes}) == 25
        assert await catalog.check() == []

    async def test_a_unit_finds_what_it_has_copied(self, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        copied = (me.copy_op("/a", "/b"), me.mkdir_op("/b"))
        assert isinstance(await me.refused(*copied), Exists)
        await me.do(me.mkdir_op("/c"), me.delete_op("/c"), me.copy_op("/a", "/c"))
        await me.do(me.delete_op("/c", recursive=True), *copied[:1], me.put_op("/b/g"))
        assert await me.names("/b") == ["f", "g"]

    async def test_a_refusal_says_which_operation_it_was(self, me: Caller) -> None:
        for index in range(3):
            operations = [me.mkdir_op(f"/{number}") for number in range(index)]
            outcome = await me.outcome(*operations, me.delete_op("/nothing"))
            assert isinstance(outcome, Refused)
            assert outcome.index == index

    async def test_the_feed_is_dense_and_goes_on_by_number(
        self, catalog: Catalog, me: Caller
    ) -> None:
        other = Caller(catalog, await add_user(catalog, "other"))
        for number in range(10):
            await me.put(f"/{number}")
            await other.put(f"/{number}")
            await me.outcome(me.mkdir_op("/new"), me.mkdir_op(f"/{number}"))
        assert len(await me.feed()) == len(await other.feed()) == 10
        page = await catalog.changes(me.tree, after=4, limit=3)
        assert [change.seq for change in page] == [5, 6, 7]
        assert await catalog.changes(me.tree, after=10) == []

    async def test_an_entry_of_the_feed_tells_what_happened(
        self, catalog: Catalog, me: Caller
    ) -> None:
        node = await me.made(me.put_op("/f"))
        [change] = await catalog.changes(me.tree)
        assert (change.node, change.kind, change.revision) == (node.id, "put", node.revision)
        assert (change.version, change.actor, change.at_us) == (node.version, me.user.id, me.now)

    async def test_each_kind_of_change_is_in_the_feed_once(self, me: Caller) -> None:
        folder = await me.mkdir("/d")
        old = await me.put("/d/f", "a")
        await me.put("/d/f", "b")
        assert old.version is not None
        await me.do(Prune(me.tree, old.id, (old.version,)))
        await me.do(Prune(me.tree, old.id, (old.version,)))  # nothing is left to prune
        copy = await me.copy("/d", "/e")
        await me.move("/d", "/g")
        await me.do(SetMetadata(me.tree, ("g",), '{"a":1}'))
        await me.delete("/g", recursive=True)
        await me.do(Purge(me.tree, folder.id))
        assert await me.feed() == [
            ("mkdir", folder.id),
            ("put", old.id),
            ("put", old.id),
            ("prune", old.id),
            ("copy", copy.id),
            ("move", folder.id),
            ("metadata", folder.id),
            ("delete", folder.id),
            ("purge", folder.id),
        ]

    async def test_an_outcome_is_known_by_its_id(self, catalog: Catalog, me: Caller) -> None:
        done = me.unit(me.mkdir_op("/a"), me.put_op("/a/f"), op_id="x" * 64)
        refused = me.unit(me.mkdir_op("/b"), me.mkdir_op("/a"), op_id="refused")
        await catalog.apply([done, refused])
        changes = await catalog.outcome("x" * 64)
        assert [change.kind for change in changes] == ["mkdir", "put"]
        assert changes == tuple(await catalog.changes(me.tree))
        assert await catalog.outcome("refused") == ()
        assert await catalog.outcome("never seen") == ()

    async def test_an_id_has_its_bounds(self, me: Caller) -> None:
        for op_id in ("", "x" * 65):
            with pytest.raises(InvalidField):
                Unit(me.user.id, 0, op_id, ())

    # Together

    @pytest.mark.parametrize("seed", range(12))
    async def test_units_given_together_do_as_one_by_one(
        self, catalog: Catalog, empty: Catalog, me: Caller, seed: int
    ) -> None:
        other = Caller(empty, await add_user(empty, me.user.name))
        for caller in (me, other):
            for folder in ("a", "b"):
                await caller.do(
                    caller.mkdir_op(f"/{folder}/5", parents=True),
                    *(caller.put_op(f"/{folder}/{name}") for name in "01234é"),
                )
        random, done = Random(seed), 0
        for _ in range(10):
            moves, now = await _moves(me, random), me.now
            units = [me.unit(move) for move in moves]
            outcomes = await catalog.apply(units)
            other.now = now
            expected = [await other.outcome(move) for move in moves]
            assert list(map(_told, outcomes)) == list(map(_told, expected))
            assert await state_of(catalog) == await state_of(empty)
            done += sum(isinstance(outcome, Done) for outcome in outcomes)
        assert done > 10
        assert await catalog.check() == []

    @pytest.mark.parametrize("seed", range(12))
    async def test_puts_given_together_do_as_one_by_one(
        self, catalog: Catalog, empty: Catalog, me: Caller, seed: int
    ) -> None:
        other = Caller(empty, await add_user(empty, me.user.name))
        random, done = Random(seed), 0
        for _ in range(10):
            folder = random.choice(("", "/a", "/a/b"))
            names = random.sample("0123456789abcdefghijklmnoé", random.randint(3, 12))
            wanted = [NO_PRECONDITIONS, ABSENT, Preconditions(if_present=True)]
            asked = random.choices(wanted, (8, 8, 1), k=len(names))
            puts = [
                me.put_op(f"{folder}/{name}", name, parents=True, preconditions=preconditions)
                for name, preconditions in zip(names, asked, strict=True)
            ]
            now = me.now
            outcomes = await catalog.apply([me.unit(put) for put in puts])
            other.now = now
            expected = [await other.outcome(put) for put in puts]
            assert list(map(_nameless, outcomes)) == list(map(_nameless, expected))
            assert await _happened(me) == await _happened(other)
            assert await me.used() == await other.used()
            done += sum(isinstance(outcome, Done) for outcome in outcomes)
        assert done > 10
        assert await catalog.check() == []

    async def test_a_value_that_no_catalog_can_hold_is_refused_to_its_own_unit(
        self, me: Caller
    ) -> None:
        puts = [me.unit(me.put_op(f"/{number}")) for number in range(6)]
        puts[3] = evolve(puts[3], at_us=1 << 70)
        outcomes = await me.catalog.apply(puts)
        assert [index for index in range(6) if isinstance(outcomes[index], Refused)] == [3]
        moves = [me.unit(me.move_op(f"/{number}", f"/moved-{number}")) for number in (0, 1, 2, 4)]
        moves[1] = evolve(moves[1], at_us=1 << 70)
        outcomes = await me.catalog.apply(moves)
        assert [index for index in range(4) if isinstance(outcomes[index], Refused)] == [1]
        assert await me.names() == ["1", "5", "moved-0", "moved-2", "moved-4"]
        assert len(await me.feed()) == 8

    # Many at once

    async def test_many_apply_at_once(self, catalog: Catalog, me: Caller) -> None:
        outcomes: list[Outcome] = []

        async def write(number: int) -> None:
            task = evolve(me, now=number * 10**12)
            outcomes.append(await task.outcome(task.mkdir_op(f"/{number}")))
            outcomes.append(await task.outcome(task.mkdir_op("/same"), task.put_op("/same/f")))
            outcomes.append(await task.outcome(task.put_op(f"/{number}/f", str(number))))

        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(write, number)
        done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
        assert len(outcomes) - len(done) == 63
        assert len(await me.names()) == 65
        assert len(await me.feed()) == 64 * 2 + 2
        assert await me.used() == 65 * 10
        assert await catalog.check() == []

    async def test_one_of_many_writers_of_a_version_wins(
        self, catalog: Catalog, me: Caller
    ) -> None:
        node = await me.put("/f", "first")
        outcomes: list[Outcome] = []

        async def write(number: int) -> None:
            task = evolve(me, now=number * 10**12)
            wanted = Preconditions(if_version=node.version)
            operation = task.put_op("/f", f"{number}", preconditions=wanted)
            outcomes.append(await task.outcome(operation))

        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(write, number)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert len(refused) == 15
        assert all(isinstance(outcome.error, VersionMismatch) for outcome in refused)
        assert (await me.node("/f")).number == 2

    async def test_reads_see_what_was_acknowledged(self, catalog: Catalog, me: Caller) -> None:
        async def write_and_read(number: int) -> None:
            task = evolve(me, now=number * 10**12)
            for text in "abc":
                node = await task.put(f"/{number}", text)
                assert await task.find(f"/{number}") == node

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(write_and_read, number)

    async def test_a_call_cancelled_while_it_waits_leaves_nothing(
        self, catalog: Catalog, me: Caller
    ) -> None:
        before = await state_of(catalog)
        async with anyio.create_task_group() as tasks, catalog.reindex():  # holds up writers
            for number in range(3):
                tasks.start_soon(me.put, f"/{number}")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert await state_of(catalog) == before
        await me.put("/f")
        assert await me.names() == ["f"]

    async def test_a_call_cancelled_at_any_time_happens_whole_or_not_at_all(
        self, catalog: Catalog, me: Caller
    ) -> None:
        happened = 0
        for number in range(40):
            unit = me.unit(me.mkdir_op(f"/{number}"), me.put_op(f"/{number}/f"), op_id=f"{number}")
            with anyio.move_on_after(number / 20_000):
                await catalog.apply([unit])
            changes = await catalog.outcome(f"{number}")
            assert len(changes) in {0, 2}
            happened += bool(changes)
            assert (await me.find(f"/{number}") is not None) == bool(changes)
        assert len(await me.feed()) == 2 * happened
        assert await catalog.check() == []


async def _moves(me: Caller, random: Random) -> list[Move]:
    """Moves from one folder: files to new names, or anything, so that some bear on others."""
    odd = random.random() < 0.5
    source, target = random.choice(("a", "b")), random.choice(("a", "b"))
    there = [name for name in await me.names(f"/{source}") if odd or name != "5"]
    if odd:
        target, there = random.choice((target, "a/5", "c", "a/0")), [*there, "nothing"]
    moves: list[Move] = []
    for name in random.sample(there, min(len(there), random.randint(4, 8))):
        to = random.choice((name, *there)) if odd and random.random() < 0.3 else f"{name}-{me.now}"
        wanted = Preconditions(if_revision=1 if odd and random.random() < 0.1 else None)
        ends = ((source, unicodedata.normalize("NFD", name)), (*target.split("/"), to[-40:]))
        moves.append(Move(me.tree, *ends, wanted, replace=random.random() < 0.1))
    return moves


def _nameless(outcome: Outcome) -> object:
    """The same without numbers, which are taken in another order."""
    if isinstance(outcome, Refused):
        return _told(outcome)
    node = outcome.results[-1].node
    assert node is not None
    return outcome.results[-1].count, node._replace(id=NodeId(0), parent=None, version=None)


async def _happened(caller: Caller) -> list[tuple[str, Path]]:
    """What the feed tells, with paths for numbers."""
    feed = [(kind, NodeId(node)) for kind, node in await caller.feed()]
    paths = await caller.catalog.node_paths([node for _, node in feed])
    return [(kind, paths[node][1]) for kind, node in feed]


def _told(outcome: Outcome) -> object:
    """What a caller is told, in a form that can be compared."""
    if isinstance(outcome, Refused):
        return type(outcome.error), outcome.error.message, outcome.index
    return outcome

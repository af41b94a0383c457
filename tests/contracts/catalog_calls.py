"""What every catalog promises of its calls: whole or not at all, many at once, known after."""

import unicodedata
from random import Random
from typing import Final

import anyio
import pytest
from attrs import evolve
from tests.contracts.callers import Caller, add_user, pack_of, state_of

from vaultfs.domain.errors import Exists, InvalidField, NotFound, VersionMismatch
from vaultfs.domain.nodes import Node, NodeId, Origin, Preconditions, VersionId
from vaultfs.domain.operations import (
    Done,
    Move,
    Outcome,
    Prune,
    Purge,
    PutFile,
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
    async def test_files_put_together_are_as_those_put_one_by_one(
        self, catalog: Catalog, empty: Catalog, me: Caller, seed: int
    ) -> None:
        quota = 4000 if seed % 3 == 0 else None
        other = Caller(empty, await add_user(empty, me.user.name))
        for caller in (me, other):
            made = await caller.do(pack_of("pack", "abc", caller.user.id))
            names = (*"01", "é", "trashed")
            await caller.do(
                *(SetQuota(caller.tree, quota), caller.mkdir_op("/a/5", parents=True)),
                *(caller.put_op(f"/a/{name}") for name in names),
            )
            await caller.delete("/a/trashed")
        random, done = Random(seed), 0
        for _ in range(10):
            wanted, now = _puts(me, random, *made.packs), me.now
            outcomes = await catalog.apply([evolve(me.unit(put), relies=on) for put, on in wanted])
            other.now, expected = now, list[Outcome]()
            for put, on in wanted:
                expected += await empty.apply([evolve(other.unit(put), relies=on)])
            (seen, ids), (as_well, other_ids) = await _seen(me), await _seen(other)
            assert seen == as_well
            told = [_told(_without(each, ids)) for each in outcomes]
            assert told == [_told(_without(each, other_ids)) for each in expected]
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


def _puts(me: Caller, random: Random, pack: int) -> list[tuple[PutFile, tuple[int, ...]]]:
    """New files in one folder, and the packs that each relies on; one or two may be odd."""
    odd = random.choice(("", "", "there", "twice", "gone", "present", "above", "orphan"))
    folders = ("", "/a", "/a/5", f"/new-{me.now}", f"/é-{me.now}/{_E}")
    folder = "/a" if odd == "there" else random.choice(folders)
    count = random.choice((3, 6, 12, 80))
    chosen = random.sample(range(count), 1 if odd == "there" else 2)
    there = random.choice(("0", "5", _E, "trashed"))
    puts: list[tuple[PutFile, tuple[int, ...]]] = []
    for number in range(count):
        kind = odd if number in chosen else ""
        name = unicodedata.normalize(random.choice(("NFC", "NFD")), f"{me.now} é {number}")
        name = {"there": there, "twice": f"{me.now}"}.get(kind, name)
        put = me.put_op(
            f"{'/a/0' if kind == 'above' else folder}/{name}",
            name,
            random.choice((0, 10, 100)),
            origin=random.choice((Origin(), Origin(mtime_us=number, mode=0o640))),
            preconditions=Preconditions(
                if_absent=random.random() < 0.5, if_present=kind == "present"
            ),
            parents=kind != "orphan",
        )
        puts.append((put, (pack, 999) if kind == "gone" else (pack,) * random.randint(0, 1)))
    return puts


_E: Final = "e\N{COMBINING ACUTE ACCENT}"
_Ids = tuple[dict[int | None, int], dict[int | None, int]]
"""Of nodes and of versions, and what each is called by who does not care which was given out."""


async def _seen(me: Caller) -> tuple[list[object], _Ids]:
    """All that is in the tree of `me` and in its feed, ids by the order of their appearance."""
    nodes: dict[int | None, int] = {None: -1, (await me.node("/")).id: 0}
    versions: dict[int | None, int] = {None: -1}
    seen: list[object] = [await me.used()]
    after = 0
    while page := await me.catalog.changes(me.tree, after=after):
        after = page[-1].seq
        for change in page:
            number = NodeId(nodes.setdefault(change.node, len(nodes)))
            version = VersionId(versions.setdefault(change.version, len(versions)))
            seen.append(change._replace(node=number, version=version))
    folders = ["/"]
    for folder in folders:
        for name in await me.names(folder):
            node = await me.node(path := f"{folder}/{name}".replace("//", "/"))
            seen.append(_renamed(node, (nodes, versions)))
            if node.is_folder:
                folders.append(path)
            else:
                found = await me.catalog.versions(node.id)
                numbers = [(nodes[each.node], versions[each.id]) for each in found]
                seen.append((numbers, [each[2:] for each in found]))
    return seen, (nodes, versions)


def _renamed(node: Node, ids: _Ids) -> Node:
    nodes, versions = ids
    return node._replace(
        id=NodeId(nodes[node.id]),
        parent=NodeId(nodes[node.parent]),
        version=VersionId(versions[node.version]),
    )


def _without(outcome: Outcome, ids: _Ids) -> Outcome:
    """The same, its ids as `_seen` has them."""
    if isinstance(outcome, Refused):
        return outcome
    results = outcome.results
    return Done(
        tuple(evolve(each, node=each.node and _renamed(each.node, ids)) for each in results)
    )


def _told(outcome: Outcome) -> object:
    """What a caller is told, in a form that can be compared."""
    if isinstance(outcome, Refused):
        return type(outcome.error), outcome.error.message, outcome.index
    return outcome

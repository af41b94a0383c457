"""What every catalog must do with batches, and with what users grant each other."""

import pytest
from tests.contracts.callers import Caller, add_user, content, state_of

from vaultfs.domain.access import Role
from vaultfs.domain.batches import Batch, Ended, Key, Mode, Outcome, Status
from vaultfs.domain.batchparsing import parse_steps
from vaultfs.domain.errors import Forbidden, KeyReused, NotFound, VaultError
from vaultfs.domain.nodes import Preconditions
from vaultfs.domain.operations import (
    Copy,
    Delete,
    Grant,
    MakeFolder,
    Move,
    Operation,
    Purge,
    PutFile,
    Refused,
    Restore,
    Revoke,
    SetMetadata,
)
from vaultfs.ports.catalog import Catalog

Op = dict[str, object]


def batch_of(
    me: Caller,
    ops: list[Op],
    mode: Mode = Mode.ATOMIC,
    *,
    dry_run: bool = False,
    key: Key | None = None,
    owner: Caller | None = None,
) -> Batch:
    me.now += 1_000_000
    trees = {me.user.name: me.tree}
    if owner is not None:
        trees[owner.user.name] = owner.tree
    steps = tuple(parse_steps(ops, me.user.name, trees))
    number = f"{me.user.name}-{me.now}"
    return Batch(
        me.user.id, me.now, number, steps, mode, dry_run, key=key, answer=lambda _: number.encode()
    )


async def run(me: Caller, *ops: Op, mode: Mode = Mode.ATOMIC, dry_run: bool = False) -> Outcome:
    return await me.catalog.batch(batch_of(me, list(ops), mode, dry_run=dry_run))


def told(outcome: Outcome) -> list[str]:
    """Each status, with the error if there is one."""
    return [_told(each) for each in outcome.ended]


def _told(each: Ended) -> str:
    return str(each.status) + (f" {type(each.error).__name__}" if each.error else "")


async def refusal(me: Caller, *operations: Operation) -> type[VaultError] | None:
    outcome = await me.outcome(*operations)
    return type(outcome.error) if isinstance(outcome, Refused) else None


def put(me: Caller, path: str, text: str = "x", owner: Caller | None = None) -> PutFile:
    names = tuple(path.strip("/").split("/"))
    return PutFile((owner or me).tree, names, content(text), parents=True)


MIXED: list[Op] = [
    {"id": "mk", "op": "mkdir", "path": "/archive/2026", "parents": True},
    {"id": "m1", "op": "move", "src": "/a", "dst": "/archive/2026/a", "on_conflict": "rename"},
    {"id": "t1", "op": "set_metadata", "target": {"ref": "m1"}, "merge": {"status": "filed"}},
    {"id": "c1", "op": "copy", "src": {"ref": "m1"}, "dst": "/copy"},
    {"id": "d1", "op": "delete", "target": "/old", "recursive": True},
    {"id": "r1", "op": "restore", "node": {"ref": "d1"}, "dst": "/archive/old"},
]


class BatchContract:
    @pytest.fixture
    async def filled(self, me: Caller) -> Caller:
        """The user, with a few files."""
        await me.do(put(me, "/a"), put(me, "/b", "b"), put(me, "/old/c", "c"))
        return me

    async def test_the_newest_change_is_the_last_of_the_feed(self, me: Caller) -> None:
        assert await me.catalog.newest_change(me.tree) is None
        await me.do(put(me, "/a"), put(me, "/b", "b"))
        assert await me.catalog.newest_change(me.tree) == (await me.catalog.changes(me.tree))[-1]

    @pytest.mark.parametrize("mode", Mode)
    async def test_operations_of_a_batch_see_those_before_them(
        self, filled: Caller, mode: Mode
    ) -> None:
        outcome = await run(filled, *MIXED, mode=mode)
        assert told(outcome) == ["ok"] * 6
        assert outcome.committed
        assert [each.path for each in outcome.ended][1] == ("archive", "2026", "a")
        node = await filled.catalog.node(filled.tree, ("archive", "2026", "a"))
        assert node is not None
        assert node.metadata == '{"status":"filed"}'
        assert await filled.catalog.node(filled.tree, ("archive", "old", "c")) is not None
        kinds = [change.kind for change in await filled.catalog.changes(filled.tree, after=4)]
        expected = ["mkdir", "mkdir", "move", "metadata", "copy", "delete", "restore"]
        assert kinds == expected
        assert await filled.catalog.check() == []

    async def test_an_atomic_batch_does_nothing_or_all(self, filled: Caller) -> None:
        before = await state_of(filled.catalog)
        outcome = await run(
            filled,
            {"op": "move", "src": "/a", "dst": "/c"},
            {"op": "delete", "target": "/nothing"},
            {"op": "mkdir", "path": "/b"},
            {"op": "copy", "src": "/c", "dst": "/d"},
        )
        assert told(outcome) == ["rolled_back", "failed NotFound", "failed Exists", "rolled_back"]
        assert not outcome.committed
        assert await state_of(filled.catalog) == before

    async def test_best_effort_does_what_can_be_done(self, filled: Caller) -> None:
        outcome = await run(
            filled,
            {"op": "move", "src": "/a", "dst": "/c"},
            {"op": "delete", "target": "/nothing"},
            {"op": "copy", "src": "/c", "dst": "/d"},
            mode=Mode.BEST_EFFORT,
        )
        assert told(outcome) == ["ok", "failed NotFound", "ok"]
        assert outcome.committed
        names = [node.name for node in await filled.catalog.children((await filled.node("/")).id)]
        assert names == ["b", "c", "d", "old"]

    async def test_an_operation_that_fails_behind_its_first_write_leaves_nothing(
        self, filled: Caller
    ) -> None:
        await filled.do(MakeFolder(filled.tree, ("old", "deep")))
        outcome = await run(
            filled,
            {"op": "mkdir", "path": "/n"},
            {"op": "move", "src": "/old", "dst": "/n/" + "/".join("x" * 62), "id": "far"},
            {"op": "move", "src": "/b", "dst": "/n/b"},
            mode=Mode.BEST_EFFORT,
        )
        assert told(outcome)[0::2] == ["ok", "ok"]
        assert outcome.ended[1].error is not None
        assert await filled.catalog.check() == []

    @pytest.mark.parametrize("mode", Mode)
    async def test_a_dry_run_changes_nothing(self, filled: Caller, mode: Mode) -> None:
        before = await state_of(filled.catalog)
        outcome = await run(filled, *MIXED, mode=mode, dry_run=True)
        assert told(outcome) == ["would_succeed"] * 6
        assert not outcome.committed
        bad: Op = {"op": "delete", "target": "/nothing"}
        outcome = await run(filled, *MIXED, bad, mode=mode, dry_run=True)
        assert told(outcome)[-1] == "would_fail NotFound"
        assert told(outcome)[0] == "would_succeed"
        assert await state_of(filled.catalog) == before
        assert await filled.catalog.check() == []

    async def test_what_a_failed_one_would_have_made_is_no_missing_folder(
        self, filled: Caller
    ) -> None:
        ops: list[Op] = [
            {"id": "mk", "op": "mkdir", "path": "/no/such"},
            {"id": "m1", "op": "move", "src": "/a", "dst": "/no/such/a"},
            {"id": "t1", "op": "set_metadata", "target": {"ref": "m1"}, "merge": {}},
            {"id": "d1", "op": "delete", "target": "/nothing"},
        ]
        outcome = await run(filled, *ops)
        assert told(outcome) == [
            "failed ParentNotFound",
            "not_attempted DependencyFailed",
            "not_attempted DependencyFailed",
            "failed NotFound",
        ]
        outcome = await run(filled, *ops, mode=Mode.BEST_EFFORT)
        assert told(outcome)[1] == "failed DependencyFailed"

    async def test_a_hundred_errors_are_enough(self, filled: Caller) -> None:
        ops: list[Op] = [{"op": "delete", "target": f"/n{number}"} for number in range(150)]
        statuses = [each.status for each in (await run(filled, *ops)).ended]
        assert statuses == [Status.FAILED] * 100 + [Status.NOT_ATTEMPTED] * 50

    @pytest.mark.parametrize(
        ("policy", "expected", "names"),
        [
            ("fail", "failed Exists", ["a", "b", "old"]),
            ("skip", "skipped", ["a", "b", "old"]),
            ("replace", "ok", ["b", "old"]),
            ("rename", "ok", ["b", "b (2)", "old"]),
        ],
    )
    async def test_what_becomes_of_a_move_to_a_name_that_is_taken(
        self, filled: Caller, policy: str, expected: str, names: list[str]
    ) -> None:
        op: Op = {"op": "move", "src": "/a", "dst": "/b", "on_conflict": policy}
        outcome = await run(filled, op)
        assert told(outcome) == [expected]
        found = [node.name for node in await filled.catalog.children((await filled.node("/")).id)]
        assert found == names
        assert outcome.ended[0].renamed == (policy == "rename")

    async def test_names_are_chosen_one_after_another(self, filled: Caller) -> None:
        op: Op = {"op": "copy", "src": "/a", "dst": "/new.txt", "on_conflict": "rename"}
        outcome = await run(filled, *[op] * 40)
        assert told(outcome) == ["ok"] * 40
        paths = {each.path[0] for each in outcome.ended}
        assert {"new.txt", "new (2).txt", "new (40).txt"} <= paths
        assert len(paths) == 40

    @pytest.mark.parametrize("mode", Mode)
    async def test_many_moves_are_done_together(self, filled: Caller, mode: Mode) -> None:
        await filled.do(*(put(filled, f"/from/{number}") for number in range(50)))
        await filled.do(MakeFolder(filled.tree, ("to",)))
        moves: list[Op] = [
            {"id": f"m{number}", "op": "move", "src": f"/from/{number}", "dst": f"/to/{number}"}
            for number in range(50)
        ]
        outcome = await run(filled, *moves, {"op": "delete", "target": {"ref": "m7"}}, mode=mode)
        assert told(outcome) == ["ok"] * 51
        folder = await filled.catalog.node(filled.tree, ("to",))
        assert folder is not None
        assert len(await filled.catalog.children(folder.id)) == 49
        assert await filled.catalog.check() == []

    async def test_preconditions_are_of_that_point_of_the_batch(self, filled: Caller) -> None:
        node = await filled.catalog.node(filled.tree, ("a",))
        assert node is not None
        again: Op = {
            "op": "set_metadata",
            "target": "/a",
            "merge": {"n": 1},
            "if_revision": node.revision,
        }
        outcome = await run(filled, again, again, mode=Mode.BEST_EFFORT)
        assert told(outcome) == ["ok", "failed VersionMismatch"]

    async def test_a_key_is_answered_once(self, filled: Caller) -> None:
        ops: list[Op] = [{"op": "mkdir", "path": "/new", "on_conflict": "rename"}]
        key = Key("k", b"request")
        first = await filled.catalog.batch(batch_of(filled, ops, key=key))
        assert first.committed
        assert first.kept is None
        answer = f"{filled.user.name}-{filled.now}".encode()
        second = await filled.catalog.batch(batch_of(filled, ops, key=key))
        assert second.kept == answer
        assert await filled.catalog.node(filled.tree, ("new (2)",)) is None
        with pytest.raises(KeyReused):
            await filled.catalog.batch(batch_of(filled, ops, key=Key("k", b"another")))
        filled.now += 25 * 3600 * 1_000_000
        later = await filled.catalog.batch(batch_of(filled, ops, key=Key("k", b"another")))
        assert later.ended[0].renamed

    async def test_nothing_is_kept_of_what_changed_nothing(self, filled: Caller) -> None:
        key, bad = Key("k", b"r"), [Op(op="delete", target="/nothing")]
        await filled.catalog.batch(batch_of(filled, bad, key=key))
        again = await filled.catalog.batch(batch_of(filled, bad, key=key))
        assert again.kept is None
        dry = batch_of(filled, [Op(op="mkdir", path="/x")], key=key, dry_run=True)
        await filled.catalog.batch(dry)
        again = await filled.catalog.batch(batch_of(filled, bad, key=key))
        assert again.kept is None

    # Grants

    @pytest.fixture
    async def friend(self, catalog: Catalog) -> Caller:
        return Caller(catalog, await add_user(catalog, "friend"), now=5_000_000_000)

    async def test_what_is_not_granted_is_not_there(self, filled: Caller, friend: Caller) -> None:
        tree = filled.tree
        for operation in (
            put(friend, "/a", "mine", filled),
            Delete(tree, ("a",)),
            Copy(tree, ("a",), ("c",)),
            Grant(tree, ("a",), "friend", Role.WRITER),
        ):
            assert await refusal(friend, operation) is NotFound
        assert await friend.catalog.roles(friend.user.id, tree) == {}

    async def test_a_reader_may_not_write(self, filled: Caller, friend: Caller) -> None:
        tree = filled.tree
        await filled.do(Grant(tree, ("old",), "friend", Role.READER))
        assert await refusal(friend, put(friend, "/old/c", "mine", filled)) is Forbidden
        assert await refusal(friend, Delete(tree, ("old", "c"))) is Forbidden
        assert await refusal(friend, SetMetadata(tree, ("old",), "{}")) is Forbidden
        assert await refusal(friend, Revoke(tree, ("old",), "friend")) is Forbidden
        assert await refusal(friend, Delete(tree, ("a",))) is NotFound

    async def test_a_writer_may_change_what_is_below(self, filled: Caller, friend: Caller) -> None:
        tree = filled.tree
        await filled.do(Grant(tree, ("old",), "friend", Role.WRITER))
        await friend.do(put(friend, "/old/new", "mine", filled))
        await friend.do(Copy(tree, ("old", "c"), ("old", "d")))
        await friend.do(Move(tree, ("old", "d"), ("old", "e")))
        gone = await friend.do(Delete(tree, ("old", "e")))
        assert gone.node is not None
        await friend.do(Restore(tree, gone.node.id))
        # The folder itself is a name in one that was not granted.
        assert await refusal(friend, Delete(tree, ("old",), recursive=True)) is NotFound
        assert await refusal(friend, Move(tree, ("old",), ("other",))) is NotFound
        assert await refusal(friend, Move(tree, ("old", "c"), ("c",))) is NotFound
        assert await refusal(friend, Grant(tree, ("old",), "friend", Role.WRITER)) is Forbidden
        changes = await filled.catalog.changes(tree)
        assert friend.user.id in {change.actor for change in changes}

    async def test_a_grant_is_one_row_and_can_be_taken_back(
        self, filled: Caller, friend: Caller
    ) -> None:
        tree = filled.tree
        node = (await filled.do(Grant(tree, ("old",), "friend", Role.READER))).node
        assert node is not None
        await filled.do(Grant(tree, ("old",), "friend", Role.WRITER))
        [granted] = await filled.catalog.grants([node.id])
        assert (granted.user, granted.owner, granted.role) == ("friend", "me", Role.WRITER)
        assert await filled.catalog.granted_to(friend.user.id) == [granted]
        assert await filled.catalog.granted_to(friend.user.id, after=node.id) == []
        await filled.do(Delete(tree, ("old",), recursive=True))
        assert await filled.catalog.granted_to(friend.user.id) == []
        await filled.do(Restore(tree, node.id))
        await filled.do(Revoke(tree, ("old",), "friend"))
        assert await refusal(filled, Revoke(tree, ("old",), "friend")) is NotFound
        assert await refusal(friend, put(friend, "/old/x", "x", filled)) is NotFound
        kinds = [row.kind for row in await filled.catalog.audit()]
        assert kinds[-3:] == ["grant", "grant", "revoke"]

    async def test_grants_go_with_what_they_are_on(self, filled: Caller, friend: Caller) -> None:
        tree = filled.tree
        await filled.do(Grant(tree, ("old", "c"), "friend", Role.WRITER))
        await filled.do(Move(tree, ("old", "c"), ("elsewhere",)))
        await friend.do(SetMetadata(tree, ("elsewhere",), '{"a":1}'))
        await friend.do(put(friend, "/elsewhere", "new", filled))
        assert await refusal(friend, put(friend, "/beside", "new", filled)) is NotFound
        gone = (await filled.do(Delete(tree, ("elsewhere",)))).node
        assert gone is not None
        assert await refusal(friend, Restore(tree, gone.id)) is NotFound  # the root is not theirs
        await filled.do(Purge(tree, gone.id))
        assert await filled.catalog.grants([gone.id]) == []

    async def test_who_may_write_a_node_may_not_take_it_from_the_trash_of_its_folder(
        self, filled: Caller, friend: Caller
    ) -> None:
        tree = filled.tree
        await filled.do(MakeFolder(tree, ("theirs",)))
        await filled.do(Grant(tree, ("old", "c"), "friend", Role.WRITER))
        await filled.do(Grant(tree, ("theirs",), "friend", Role.WRITER))
        gone = (await filled.do(Delete(tree, ("old", "c")))).node
        assert gone is not None
        assert await refusal(friend, Restore(tree, gone.id, ("theirs", "c"))) is NotFound
        await filled.do(Grant(tree, ("old",), "friend", Role.WRITER))
        await friend.do(Restore(tree, gone.id, ("theirs", "c")))

    async def test_a_restore_to_a_place_that_is_taken(self, filled: Caller) -> None:
        gone = (await filled.do(Delete(filled.tree, ("a",)))).node
        assert gone is not None
        await filled.do(put(filled, "/a", "new"))
        op: Op = {"op": "restore", "node": gone.id}
        assert told(await run(filled, op)) == ["failed Exists"]
        assert told(await run(filled, {**op, "on_conflict": "skip"})) == ["skipped"]
        outcome = await run(filled, {**op, "dst": "/a", "on_conflict": "rename"})
        assert outcome.ended[0].path == ("a (2)",)

    async def test_batches_grant_and_revoke(self, filled: Caller, friend: Caller) -> None:
        outcome = await run(
            filled,
            {"op": "grant", "target": "/old", "user": "friend", "role": "writer"},
            {"op": "grant", "target": "/old", "user": "nobody", "role": "writer"},
            {"op": "grant", "target": "/a", "user": "me", "role": "reader"},
            {"op": "revoke", "target": "/a", "user": "friend"},
            mode=Mode.BEST_EFFORT,
        )
        assert told(outcome) == [
            "ok",
            "failed NotFound",
            "failed InvalidField",
            "failed NotFound",
        ]
        ops: list[Op] = [{"op": "mkdir", "path": "me:/old/theirs"}, {"op": "mkdir", "path": "/own"}]
        outcome = await friend.catalog.batch(batch_of(friend, ops, owner=filled))
        assert told(outcome) == ["ok", "ok"]
        assert await filled.catalog.node(filled.tree, ("old", "theirs")) is not None
        assert await filled.catalog.check() == []

    async def test_a_precondition_of_a_grant(self, filled: Caller, friend: Caller) -> None:
        wanted = Preconditions(if_revision=99)
        grant = Grant(filled.tree, ("a",), friend.user.name, Role.READER, wanted)
        refused = await refusal(filled, grant)
        assert refused is not None
        assert refused.__name__ == "VersionMismatch"

"""What every catalog must do with folders, files and versions."""

import pickle
import unicodedata
from copy import copy, deepcopy
from datetime import timedelta

import pytest
from attrs import evolve
from tests.contracts.callers import Caller, add_user, content, digest

from vaultfs.domain import operations as ops
from vaultfs.domain.errors import (
    Cycle,
    Exists,
    FolderNotEmpty,
    InvalidField,
    InvalidName,
    IsAFolder,
    NotAFolder,
    NotFound,
    ParentNotFound,
    QuotaExceeded,
    TooLarge,
    VaultError,
    VersionMismatch,
)
from vaultfs.domain.names import MAX_DEPTH, key_of
from vaultfs.domain.nodes import NodeId, Origin, Preconditions, TreeId, UserId, VersionId
from vaultfs.domain.operations import (
    MAX_COPY,
    AddUser,
    Operation,
    Prune,
    Purge,
    Refused,
    Restore,
    RestoreVersion,
    SetMetadata,
    SetQuota,
    SetRetention,
)
from vaultfs.domain.retention import KEEP_ALL, Retention
from vaultfs.ports.catalog import Catalog

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
ABSENT = Preconditions(if_absent=True)


class TreeContract:
    """Users, folders, files, the trash, copies, quotas."""

    # Users

    async def test_a_new_user_has_an_empty_tree(self, catalog: Catalog, me: Caller) -> None:
        [root] = await catalog.resolve(me.tree, ())
        assert (root.parent, root.name, root.is_folder, root.metadata) == (None, "", True, "{}")
        assert await catalog.children(root.id) == []
        assert (me.user.quota, me.user.used) == (None, 0)
        assert await me.feed() == []

    async def test_users_are_listed_by_name(self, catalog: Catalog, me: Caller) -> None:
        other = await add_user(catalog, "anna", 100)
        assert await catalog.users() == [other, me.user]
        assert await catalog.user("anna") == other

    async def test_a_user_is_found_by_either_form_of_a_name(self, catalog: Catalog) -> None:
        user = await add_user(catalog, DECOMPOSED)
        assert user.name == DECOMPOSED
        assert await catalog.user(COMPOSED) == user

    async def test_two_users_cannot_have_one_name(self, me: Caller) -> None:
        await me.do(AddUser(COMPOSED))
        assert isinstance(await me.refused(AddUser(DECOMPOSED)), Exists)
        assert isinstance(await me.refused(AddUser("a:b")), InvalidName)

    async def test_an_unknown_user_or_tree_is_not_found(self, catalog: Catalog, me: Caller) -> None:
        with pytest.raises(NotFound):
            await catalog.user("nobody")
        with pytest.raises(NotFound):
            await catalog.retention(TreeId(99))
        assert await catalog.resolve(TreeId(99), ()) == ()
        assert await catalog.node(TreeId(99), ()) is None
        assert await catalog.file(TreeId(99), ("a",)) == ((), None)
        assert await catalog.changes(TreeId(99)) == []
        with pytest.raises(NotFound):
            await catalog.node_path(NodeId(999))

    async def test_nobody_changes_anothers_tree(self, catalog: Catalog, me: Caller) -> None:
        file = await me.put("/a")
        gone = await me.put("/b")
        await me.delete("/b")
        other = Caller(catalog, await add_user(catalog, "other"))
        mine: tuple[Operation, ...] = (
            me.put_op("/c"),
            me.put_op("/a", "new"),
            me.mkdir_op("/d"),
            me.mkdir_op("/", exist_ok=True),
            me.move_op("/a", "/e"),
            me.copy_op("/a", "/e"),
            me.delete_op("/a"),
            RestoreVersion(me.tree, ("a",), 1),
            Restore(me.tree, gone.id),
            Purge(me.tree, gone.id),
            Prune(me.tree, file.id, (VersionId(1),)),
            SetMetadata(me.tree, ("a",), "{}"),
            SetRetention(me.tree, Retention(1)),
            # nodes named by id are looked for in the tree that was named
            Restore(other.tree, gone.id),
            Purge(other.tree, gone.id),
            Prune(other.tree, file.id, (VersionId(1),)),
        )
        for operation in mine:
            assert isinstance(await other.refused(operation), NotFound), operation

    async def test_there_is_nothing_in_a_tree_that_is_not_there(self, me: Caller) -> None:
        lost = Caller(me.catalog, me.user._replace(id=UserId(99)))
        for operation in (lost.put_op("/a"), SetQuota(lost.tree, 1)):
            assert isinstance(await lost.refused(operation), NotFound)

    # Folders and names

    async def test_a_folder_is_made(self, catalog: Catalog, me: Caller) -> None:
        made = await me.mkdir("/a")
        assert await me.find("/a") == made
        assert (made.kind, made.revision, made.number, made.version) == ("folder", 1, 0, None)
        assert made.created_us == made.modified_us == me.now
        assert await me.feed() == [("mkdir", made.id)]
        assert await catalog.node_path(made.id) == (me.tree, ("a",))

    async def test_a_node_can_be_copied_and_pickled(self, me: Caller) -> None:
        await me.mkdir("/a")
        node = await me.node("/a")
        for copied in (copy(node), deepcopy(node), pickle.loads(pickle.dumps(node))):
            assert copied == node
            assert copied.name == "a"
        assert repr(node).startswith("Node(id=")

    async def test_many_are_asked_where_they_stand_at_once(
        self, catalog: Catalog, me: Caller
    ) -> None:
        other = Caller(catalog, await add_user(catalog, "other"))
        deep = await me.made(me.put_op("/a/b/f", parents=True))
        root, above = await me.node("/"), await me.node("/a")
        theirs = await other.mkdir("/a")
        gone = await me.delete("/a/b", recursive=True)
        wanted = [deep.id, NodeId(999), gone.id, root.id, theirs.id, above.id, deep.id]
        assert await catalog.node_paths(wanted) == {
            deep.id: (me.tree, ("a", "b", "f")),
            gone.id: (me.tree, ("a", "b")),
            root.id: (me.tree, ()),
            theirs.id: (TreeId(other.user.id), ("a",)),
            above.id: (me.tree, ("a",)),
        }
        assert await catalog.node_paths([]) == {}

    async def test_folders_above_are_made_if_wanted(self, me: Caller) -> None:
        assert isinstance(await me.refused(me.mkdir_op("/a/b/c")), ParentNotFound)
        made = await me.made(me.mkdir_op("/a/b/c", parents=True))
        above = [(await me.node(path)).id for path in ("/a", "/a/b")]
        assert await me.feed() == [("mkdir", number) for number in (*above, made.id)]

    async def test_a_folder_that_is_there(self, me: Caller) -> None:
        made = await me.mkdir("/a")
        assert isinstance(await me.refused(me.mkdir_op("/a")), Exists)
        assert isinstance(await me.refused(me.mkdir_op("/")), Exists)
        assert await me.made(me.mkdir_op("/a", exist_ok=True)) == made
        assert await me.feed() == [("mkdir", made.id)]

    async def test_a_file_is_no_folder(self, me: Caller) -> None:
        await me.put("/f")
        for operation in (
            me.mkdir_op("/f", exist_ok=True),
            me.mkdir_op("/f/a"),
            me.mkdir_op("/f/a/b", parents=True),
            me.put_op("/f/a"),
            me.put_op("/f/a/b", parents=True),
        ):
            assert isinstance(await me.refused(operation), NotAFolder), operation

    async def test_names_are_kept_as_given_and_found_in_either_form(self, me: Caller) -> None:
        made = await me.put("/" + DECOMPOSED)
        assert made.name == DECOMPOSED
        assert await me.find("/" + COMPOSED) == made
        again = await me.put("/" + COMPOSED, "new")
        assert (again.id, again.name, again.number) == (made.id, DECOMPOSED, 2)
        assert (await me.put("/" + DECOMPOSED, "newer")).id == made.id
        assert isinstance(await me.refused(me.mkdir_op("/" + COMPOSED)), Exists)
        await me.put("/b")
        assert isinstance(await me.refused(me.move_op("/b", "/" + COMPOSED)), Exists)

    async def test_names_with_any_character(self, me: Caller) -> None:
        names = [
            "'",
            '"',
            "$1",
            "%",
            "0",
            "1.5",
            "[0]",
            "a b",
            "null",
            "\u2028",
            "\U0001f5c4",
            "{}",
        ]
        for name in names:
            await me.do(me.put_op(f"/{name}/{name}", parents=True))
        for name in names:
            assert (await me.node(f"/{name}/{name}")).name == name
        assert await me.names() == sorted(names)

    async def test_case_tells_names_apart(self, me: Caller) -> None:
        await me.put("/a")
        await me.put("/A")
        assert await me.names() == ["A", "a"]

    async def test_listings_are_in_order_and_go_on_by_key(
        self, catalog: Catalog, me: Caller
    ) -> None:
        names = ["b", "a", "Z", "\u00e4", DECOMPOSED, "cafe", "caff", "10", "9", "\U0001f5c4"]
        for name in names:
            await me.put("/" + name)
        ordered = sorted(names, key=key_of)
        root = (await me.node("/")).id
        assert await me.names() == ordered
        found: list[str] = []
        after = ""
        while page := await catalog.children(root, after=after, limit=3):
            assert len(page) <= 3
            found += [node.name for node in page]
            after = key_of(page[-1].name)
        assert found == ordered

    async def test_resolving_goes_as_far_as_the_path_exists(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        for path, found in (
            ((), 1),
            (("a",), 2),
            (("a", "f"), 3),
            (("a", "x", "f"), 2),
            (("a", "f", "x"), 3),
            (("x", "a"), 1),
        ):
            chain = await catalog.resolve(me.tree, path)
            assert len(chain) == found, path
            there = chain[-1] if len(chain) == len(path) + 1 else None
            assert await catalog.node(me.tree, path) == there, path

    async def test_a_node_is_found_at_any_depth_in_either_form_and_not_in_the_trash(
        self, catalog: Catalog, me: Caller
    ) -> None:
        deep = (DECOMPOSED,) * MAX_DEPTH
        await me.do(me.put_op("/" + "/".join(deep), parents=True))
        node = await catalog.node(me.tree, (COMPOSED,) * MAX_DEPTH)
        assert node is not None
        assert (node.name, node.kind) == (DECOMPOSED, "file")
        assert await catalog.node(me.tree, (*deep, "x")) is None
        await me.delete(f"/{DECOMPOSED}/{DECOMPOSED}", recursive=True)
        assert await catalog.node(me.tree, deep) is None
        assert await catalog.node(me.tree, deep[:1]) is not None

    # Files and versions

    async def test_a_file_and_its_version(self, catalog: Catalog, me: Caller) -> None:
        origin = Origin(123, 0o640)
        operation = me.put_op("/f", "text", 70, origin=origin)
        result = await me.do(operation)
        assert result.count == 1
        node = await me.node("/f")
        assert node == result.node
        assert (node.kind, node.revision, node.number, node.size) == ("file", 1, 1, 70)
        [version] = await catalog.versions(node.id)
        assert (version.id, version.node, version.number) == (node.version, node.id, 1)
        assert (version.author, version.created_us, version.size) == (me.user.id, me.now, 70)
        assert (version.manifest, version.digest) == (operation.content.manifest, digest("text"))
        assert (version.digest_state, version.origin) == (operation.content.digest_state, origin)
        chain, found = await catalog.file(me.tree, ("f",))
        assert (chain[-1], found) == (node, version)
        assert await me.used() == 70

    async def test_versions_are_numbered_and_listed_newest_first(
        self, catalog: Catalog, me: Caller
    ) -> None:
        node = await me.put("/f", "1", 1)
        for number in range(2, 6):
            node = await me.put("/f", f"{number}", number)
            assert (node.number, node.revision, node.size) == (number, number, number)
        versions = await catalog.versions(node.id)
        assert [version.number for version in versions] == [5, 4, 3, 2, 1]
        assert await catalog.versions(node.id, before=4, limit=2) == versions[2:4]
        assert await catalog.file(me.tree, ("f",), 2) == (
            await catalog.resolve(me.tree, ("f",)),
            versions[3],
        )
        assert (await catalog.file(me.tree, ("f",), 6))[1] is None
        assert (await catalog.file(me.tree, ("f",), 0))[1] is None
        assert await me.used() == 15

    async def test_a_folder_has_no_version(self, catalog: Catalog, me: Caller) -> None:
        folder = await me.mkdir("/a")
        assert (await catalog.file(me.tree, ("a",)))[1] is None
        assert (await catalog.file(me.tree, ()))[1] is None
        assert (await catalog.file(me.tree, ("a", "b")))[1] is None
        assert await catalog.versions(folder.id) == []

    async def test_the_same_content_from_nowhere_keeps_the_origin(self, me: Caller) -> None:
        origin = Origin(5, 0o600)
        node = await me.made(me.put_op("/f", "same", origin=origin))
        assert await me.made(me.put_op("/f", "same")) == node
        [version] = await me.versions("/f")
        assert version.origin == origin

    async def test_the_same_content_makes_no_version(self, catalog: Catalog, me: Caller) -> None:
        first = await me.put("/f", "same")
        result = await me.do(me.put_op("/f", "same"))
        assert (result.node, result.count) == (first, 0)
        assert await me.feed() == [("put", first.id)]
        result = await me.do(me.put_op("/f", "same", origin=Origin(5, 0o600)))
        assert result.node is not None
        assert (result.count, result.node.version) == (0, first.version)
        assert result.node.revision == 2
        [version] = await catalog.versions(first.id)
        assert version.origin == Origin(5, 0o600)
        assert await me.used() == 10

    async def test_back_to_an_older_content_is_a_version(self, me: Caller) -> None:
        ids = [(await me.put("/f", text)).version for text in "aba"]
        assert len(set(ids)) == 3

    async def test_a_file_cannot_replace_a_folder(self, me: Caller) -> None:
        await me.mkdir("/a")
        assert isinstance(await me.refused(me.put_op("/a")), IsAFolder)
        assert isinstance(await me.refused(me.put_op("/")), IsAFolder)

    async def test_a_file_needs_its_folder(self, me: Caller) -> None:
        assert isinstance(await me.refused(me.put_op("/a/f")), ParentNotFound)
        await me.do(me.put_op("/a/b/f", parents=True))
        assert [kind for kind, _ in await me.feed()] == ["mkdir", "mkdir", "put"]

    async def test_an_old_version_becomes_the_newest_again(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(me.put_op("/f", "old", 7, origin=Origin(5, 0o600)))
        await me.put("/f", "new", 9)
        result = await me.do(RestoreVersion(me.tree, ("f",), 1))
        assert result.count == 1
        newest, _, oldest = await me.versions("/f")
        assert newest.manifest == oldest.manifest
        assert newest.origin == oldest.origin
        assert (newest.number, newest.size) == (3, 7)
        assert newest.id != oldest.id
        assert (await me.node("/f")).version == newest.id
        assert await me.used() == 7 + 9 + 7

    async def test_what_cannot_be_restored(self, me: Caller) -> None:
        await me.mkdir("/a")
        await me.put("/f")
        for path, number, error in (
            (("x",), 1, NotFound),
            (("f",), 2, NotFound),
            (("f",), 0, NotFound),
            (("a",), 1, IsAFolder),
        ):
            found = await me.refused(RestoreVersion(me.tree, path, number))
            assert isinstance(found, error), (path, number)

    async def test_current_versions_of_many(self, catalog: Catalog, me: Caller) -> None:
        folder = await me.mkdir("/a")
        files = [await me.put(f"/{name}", name) for name in "xyz"]
        newer = await me.put("/y", "newer")
        found = await catalog.current_versions([folder.id, *(file.id for file in files)])
        assert {node: version.id for node, version in found.items()} == {
            files[0].id: files[0].version,
            newer.id: newer.version,
            files[2].id: files[2].version,
        }
        assert await catalog.current_versions([]) == {}

    # Preconditions

    async def test_preconditions_that_hold(self, me: Caller) -> None:
        node = await me.made(me.put_op("/f", preconditions=ABSENT))
        assert node.version is not None
        wanted = Preconditions(if_version=node.version, if_revision=1)
        node = await me.made(me.put_op("/f", "b", preconditions=wanted))
        node = await me.made(
            evolve(me.move_op("/f", "/g"), preconditions=Preconditions(if_revision=2))
        )
        assert node.revision == 3

    async def test_preconditions_that_do_not_hold(self, me: Caller) -> None:
        node = await me.put("/f")
        assert node.version is not None
        stale = (
            Preconditions(if_version=VersionId(node.version + 1)),
            Preconditions(if_revision=2),
        )
        for wanted in stale:
            for operation in (
                me.put_op("/f", "b", preconditions=wanted),
                me.put_op("/new", "b", preconditions=wanted),
                evolve(me.move_op("/f", "/g"), preconditions=wanted),
                evolve(me.copy_op("/f", "/g"), preconditions=wanted),
                evolve(me.delete_op("/f"), preconditions=wanted),
                RestoreVersion(me.tree, ("f",), 1, wanted),
                SetMetadata(me.tree, ("f",), '{"a":1}', wanted),
            ):
                assert isinstance(await me.refused(operation), VersionMismatch), operation
        assert isinstance(await me.refused(me.put_op("/f", "b", preconditions=ABSENT)), Exists)

    async def test_a_mismatch_says_what_was_found(self, me: Caller) -> None:
        await me.put("/f")
        error = await me.refused(me.put_op("/f", "b", preconditions=Preconditions(if_revision=7)))
        assert isinstance(error, VersionMismatch)
        assert (error.expected, error.found) == (7, 1)

    # Revisions

    async def test_revisions_rise_by_one_with_every_change(self, me: Caller) -> None:
        node = await me.put("/f")
        steps = (
            me.put_op("/f", "b"),
            me.move_op("/f", "/g"),
            SetMetadata(me.tree, ("g",), '{"a":1}'),
            RestoreVersion(me.tree, ("g",), 1),
            me.delete_op("/g"),
            Restore(me.tree, node.id),
        )
        revisions = [1, *[(await me.made(step)).revision for step in steps]]
        assert revisions == [1, 2, 3, 4, 5, 6, 7]
        changes = await me.catalog.changes(me.tree)
        assert [change.revision for change in changes] == revisions
        assert [change.kind for change in changes] == (
            ["put", "put", "move", "metadata", "put", "delete", "restore"]
        )

    async def test_a_folder_is_not_revised_by_what_happens_in_it(self, me: Caller) -> None:
        folder = await me.mkdir("/a")
        await me.put("/a/f")
        await me.mkdir("/a/b")
        await me.delete("/a/f")
        assert await me.node("/a") == folder

    # Moves

    async def test_a_folder_moves_with_all_that_is_in_it(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        await me.mkdir("/c")
        file = await me.node("/a/b/f")
        moved = await me.move("/a", "/c/d")
        assert await me.node("/c/d/b/f") == file
        assert await me.find("/a") is None
        assert (await me.feed())[-1] == ("move", moved.id)
        assert len(await me.feed()) == 5

    async def test_what_cannot_be_moved(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        await me.put("/g")
        cases: list[tuple[Operation, type[VaultError]]] = [
            (me.move_op("/x", "/y"), NotFound),
            (me.move_op("/g/x", "/y"), NotFound),
            (me.move_op("/g", "/x/y"), ParentNotFound),
            (me.move_op("/a", "/g/y"), NotAFolder),
            (me.move_op("/g", "/a"), Exists),
            (me.move_op("/g", "/"), Exists),
            (me.move_op("/a", "/g"), Exists),
            (me.move_op("/a", "/a/c"), Cycle),
            (me.move_op("/a", "/a/b/c"), Cycle),
            (me.move_op("/a", "/a/b", replace=True), Cycle),
            (me.move_op("/", "/c"), Cycle),
        ]
        for operation, error in cases:
            assert isinstance(await me.refused(operation), error), operation

    async def test_a_move_onto_itself_renames(self, me: Caller) -> None:
        node = await me.put("/" + COMPOSED)
        for name in (DECOMPOSED, DECOMPOSED, COMPOSED):
            moved = await me.move("/" + COMPOSED, "/" + name)
            assert (moved.id, moved.name) == (node.id, name)
            assert await me.names() == [name]
        assert await me.trash() == []

    async def test_a_move_can_replace(self, me: Caller) -> None:
        file, there = await me.put("/f"), await me.put("/g", "b")
        moved = await me.move("/f", "/g", replace=True)
        assert (await me.node("/g")).id == moved.id == file.id
        assert await me.trash() == [(there.id, ("g",))]
        assert [kind for kind, _ in await me.feed()] == ["put", "put", "delete", "move"]

    async def test_a_folder_can_replace_the_one_that_holds_it(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/c/f", parents=True))
        await me.put("/a/b/g")
        await me.move("/a/b/c", "/a/b", replace=True)
        assert await me.names("/a/b") == ["f"]
        assert await me.catalog.check() == []

    async def test_a_move_makes_no_path_too_deep(self, me: Caller) -> None:
        deep = "/d" * (MAX_DEPTH - 2)
        await me.do(me.mkdir_op(deep, parents=True))
        await me.do(me.put_op("/a/b/f", parents=True))
        for target in (deep + "/x", deep + "/x/y"):
            error = await me.refused(me.move_op("/a", target))
            assert isinstance(error, InvalidField | InvalidName | ParentNotFound)
        assert isinstance(await me.refused(me.copy_op("/a", deep + "/x")), InvalidField)
        await me.move("/a/b", deep + "/x")
        assert (await me.node(deep + "/x/f")).name == "f"

    async def test_a_folder_at_the_very_end_of_paths_can_be_renamed_and_restored(
        self, me: Caller
    ) -> None:
        for end in ("/d" * MAX_DEPTH, ("/" + "n" * 255) * 15 + "/" + "n" * 255):
            await me.do(me.mkdir_op(end, parents=True))
            trashed = await me.delete(end)
            await me.do(Restore(me.tree, trashed.id))
            await me.move(end, end[:-1] + "x")
            assert (await me.node(end[:-1] + "x")).is_folder

    async def test_nothing_is_restored_into_what_is_in_the_trash_itself(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        file = await me.delete("/a/b/f")
        above = await me.delete("/a", recursive=True)
        assert isinstance(await me.refused(Restore(me.tree, file.id)), ParentNotFound)
        await me.do(Restore(me.tree, above.id))
        await me.do(Restore(me.tree, file.id))
        assert await me.names("/a/b") == ["f"]

    async def test_a_restore_makes_no_path_too_deep(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        gone = await me.delete("/a", recursive=True)
        deep = ("d",) * (MAX_DEPTH - 2)
        await me.do(me.mkdir_op("/".join(("", *deep)), parents=True))
        error = await me.refused(Restore(me.tree, gone.id, (*deep, "x")))
        assert isinstance(error, InvalidField)
        await me.do(Restore(me.tree, gone.id, (*deep[1:], "x")))
        assert await me.names("/".join(("", *deep[1:], "x", "b"))) == ["f"]

    async def test_a_move_makes_no_path_of_a_file_too_long(self, me: Caller) -> None:
        above = ("/" + "n" * 255) * 14
        await me.do(me.mkdir_op(above, parents=True))
        await me.do(me.put_op("/a/" + "f" * 255, parents=True))
        await me.move("/a", above + "/" + "a" * 255)
        await me.do(me.put_op("/b/" + "d" * 253 + "/" + "f" * 253, parents=True))
        assert isinstance(await me.refused(me.move_op("/b", above + "/bbbb")), InvalidField)
        await me.move("/b", above + "/bbb")
        assert await me.names(above + "/bbb/" + "d" * 253) == ["f" * 253]

    # Trash

    async def test_what_is_deleted_is_in_the_trash(self, catalog: Catalog, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        folder = await me.node("/a/b")
        trashed = await me.delete("/a/b", recursive=True)
        assert trashed.trashed_us == me.now
        assert await me.find("/a/b") is None
        assert await me.find("/a/b/f") is None
        assert await me.names("/a") == []
        assert await me.trash() == [(folder.id, ("a", "b"))]
        assert await catalog.node_path(folder.id) == (me.tree, ("a", "b"))
        assert await me.used() == 10
        await me.mkdir("/a/b")

    async def test_what_is_deleted_is_gone_for_the_rest_of_a_unit(self, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True))
        await me.do(
            me.put_op("/a/b/g"),
            me.delete_op("/a", recursive=True),
            me.put_op("/a/b/h", parents=True),
        )
        assert await me.names("/a/b") == ["h"]
        assert len(await me.trash()) == 1

    async def test_what_cannot_be_deleted(self, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        cases: list[tuple[Operation, type[VaultError]]] = [
            (me.delete_op("/x"), NotFound),
            (me.delete_op("/a/f/x"), NotFound),
            (me.delete_op("/a"), FolderNotEmpty),
            (me.delete_op("/"), FolderNotEmpty),
            (me.delete_op("/", recursive=True), FolderNotEmpty),
        ]
        for operation, error in cases:
            assert isinstance(await me.refused(operation), error), operation
        await me.delete("/a/f")
        await me.delete("/a")

    async def test_trash_is_listed_by_id(self, catalog: Catalog, me: Caller) -> None:
        nodes = [await me.put(f"/{name}") for name in "dbca"]
        for name in "abcd":
            await me.delete(f"/{name}")
        ids = sorted(node.id for node in nodes)
        assert [number for number, _ in await me.trash()] == ids
        page = await catalog.trash(me.tree, after=ids[0], limit=2)
        assert [trashed.node.id for trashed in page] == ids[1:3]

    async def test_what_was_deleted_comes_back(self, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        node = await me.delete("/a/f")
        back = await me.made(Restore(me.tree, node.id))
        assert await me.node("/a/f") == back
        assert (back.trashed_us, back.version, back.number) == (None, node.version, 1)
        assert await me.trash() == []

    async def test_what_was_deleted_comes_back_to_another_path(self, me: Caller) -> None:
        node = await me.put("/f")
        await me.mkdir("/a")
        await me.delete("/f")
        back = await me.made(Restore(me.tree, node.id, ("a", "g")))
        assert await me.node("/a/g") == back
        assert await me.names() == ["a"]

    async def test_what_cannot_come_back(self, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        alive = await me.put("/g")
        node = await me.delete("/a/f")
        await me.put("/a/f", "another")
        cases: list[tuple[Operation, type[VaultError]]] = [
            (Restore(me.tree, node.id), Exists),
            (Restore(me.tree, node.id, ("g",)), Exists),
            (Restore(me.tree, node.id, ()), Exists),
            (Restore(me.tree, node.id, ("x", "y")), ParentNotFound),
            (Restore(me.tree, node.id, ("g", "y")), NotAFolder),
            (Restore(me.tree, alive.id), NotFound),
            (Restore(me.tree, NodeId(999)), NotFound),
        ]
        for operation, error in cases:
            assert isinstance(await me.refused(operation), error), operation
        await me.delete("/a", recursive=True)
        assert isinstance(await me.refused(Restore(me.tree, node.id)), ParentNotFound)
        await me.mkdir("/a")  # another folder of that name is not the one it was in
        assert isinstance(await me.refused(Restore(me.tree, node.id)), ParentNotFound)
        await me.do(Restore(me.tree, node.id, ("f",)))

    async def test_a_purge_forgets(self, catalog: Catalog, me: Caller) -> None:
        await me.do(me.put_op("/a/b/f", "x", 30, parents=True))
        await me.put("/a/b/f", "y", 40)
        earlier = await me.put("/a/g", "z", 5)
        await me.delete("/a/g")
        node = await me.delete("/a", recursive=True)
        assert await me.used() == 75
        assert (await me.do(Purge(me.tree, node.id))).count == 0
        assert await me.used() == 0
        assert await me.trash() == []
        assert (await me.feed())[-1] == ("purge", node.id)
        assert await catalog.all_versions() == []
        with pytest.raises(NotFound):
            await catalog.node_path(earlier.id)
        assert isinstance(await me.refused(Purge(me.tree, node.id)), NotFound)
        assert await catalog.check() == []

    async def test_a_purge_goes_by_parts(self, catalog: Catalog, me: Caller) -> None:
        for name in "abcde":
            await me.do(me.put_op(f"/top/mid/{name}", name, 10, parents=True))
        node = await me.delete("/top", recursive=True)
        left = [(await me.do(Purge(me.tree, node.id, limit=2))).count for _ in range(4)]
        assert left == [5, 3, 1, 0]
        assert await me.used() == 0
        assert [kind for kind, _ in await me.feed()].count("purge") == 1
        assert await catalog.check() == []

    async def test_a_part_purged_leaves_what_is_above_restorable(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(me.put_op("/top/mid/f", parents=True))
        node = await me.delete("/top", recursive=True)
        await me.do(Purge(me.tree, node.id, limit=1))
        await me.do(Restore(me.tree, node.id))
        assert await me.names("/top/mid") == []
        assert await catalog.check() == []

    async def test_only_what_is_in_the_trash_is_purged(self, me: Caller) -> None:
        node = await me.put("/f")
        assert isinstance(await me.refused(Purge(me.tree, node.id)), NotFound)

    # Old versions

    async def test_a_prune_forgets_old_versions_alone(self, catalog: Catalog, me: Caller) -> None:
        nodes = [await me.put("/f", f"{number}", 10 * number) for number in range(1, 5)]
        node = nodes[-1]
        other = await me.put("/g")
        assert other.version is not None
        ids = [version.id for version in await me.versions("/f")]
        wanted = (ids[0], ids[1], ids[3], other.version, VersionId(999))
        result = await me.do(Prune(me.tree, node.id, wanted))
        assert (result.count, result.node) == (2, node)
        assert [version.number for version in await me.versions("/f")] == [4, 2]
        assert await me.used() == 40 + 20 + 10
        assert len(await me.versions("/g")) == 1
        assert (await me.put("/f", "5")).number == 5
        assert await catalog.check() == []

    async def test_versions_of_what_is_in_the_trash_are_pruned(self, me: Caller) -> None:
        old = await me.put("/f", "a")
        await me.put("/f", "b")
        await me.delete("/f")
        assert old.version is not None
        assert (await me.do(Prune(me.tree, old.id, (old.version,)))).count == 1

    async def test_files_with_history(self, catalog: Catalog, me: Caller) -> None:
        await me.mkdir("/a")
        await me.put("/once")
        files = [await me.put(f"/{name}", "1") for name in "xyz"]
        for name in "zyx":
            await me.put(f"/{name}", "2")
        ids = [file.id for file in files]
        assert await catalog.files_with_history(me.tree) == ids
        assert await catalog.files_with_history(me.tree, after=ids[0], limit=1) == ids[1:2]
        [_, old] = await me.versions("/x")
        await me.do(Prune(me.tree, ids[0], (old.id,)))
        assert await catalog.files_with_history(me.tree) == ids[1:]

    async def test_retention(self, catalog: Catalog, me: Caller) -> None:
        assert await catalog.retention(me.tree) == KEEP_ALL
        for retention in (
            Retention(3, timedelta(days=400, microseconds=1)),
            Retention(last=1),
            Retention(age=timedelta(hours=1)),
            KEEP_ALL,
        ):
            await me.do(SetRetention(me.tree, retention))
            assert await catalog.retention(me.tree) == retention

    async def test_the_longest_retention_of_all(self, catalog: Catalog, me: Caller) -> None:
        await me.do(SetRetention(me.tree, Retention(age=timedelta.max)))
        found = await catalog.retention(me.tree)
        assert found.age is not None
        assert timedelta.max - found.age < timedelta(seconds=1)

    # Metadata

    async def test_metadata_is_patched(self, me: Caller) -> None:
        await me.put("/f")
        await me.do(SetMetadata(me.tree, ("f",), '{"b":{"x":1,"y":2},"a":"\u00e9"}'))
        node = await me.made(SetMetadata(me.tree, ("f",), '{"b":{"x":null}}'))
        assert node.metadata == '{"a":"\u00e9","b":{"y":2}}'
        assert await me.node("/f") == node
        assert (await me.made(SetMetadata(me.tree, (), '{"a":1}'))).metadata == '{"a":1}'
        assert (await me.put("/f", "new")).metadata == node.metadata

    async def test_metadata_that_is_refused(self, me: Caller) -> None:
        await me.put("/f")
        cases = (("x", "{}", NotFound), ("f", '{"a":"' + "b" * 16384 + '"}', TooLarge))
        for name, patch, error in cases:
            assert isinstance(await me.refused(SetMetadata(me.tree, (name,), patch)), error)
        assert isinstance(await me.refused(SetMetadata(me.tree, ("f",), "[]")), InvalidField)

    # Copies

    async def test_a_copy_of_a_file_begins_at_version_1(self, me: Caller) -> None:
        await me.put("/f", "a")
        await me.do(me.put_op("/f", "b", 30, origin=Origin(5, 0o600)))
        await me.do(SetMetadata(me.tree, ("f",), '{"k":1}'))
        source = await me.node("/f")
        copy = await me.copy("/f", "/g")
        assert copy.id != source.id
        assert (copy.number, copy.revision, copy.size) == (1, 1, 30)
        assert copy.metadata == source.metadata
        [version] = await me.versions("/g")
        assert version.manifest == content("b", 30).manifest
        assert version.origin == Origin(5, 0o600)
        assert await me.node("/f") == source
        assert await me.used() == 10 + 30 + 30
        assert (await me.feed())[-1] == ("copy", copy.id)

    async def test_a_copy_of_an_older_version(self, me: Caller) -> None:
        await me.put("/f", "a")
        await me.put("/f", "b")
        await me.do(me.copy_op("/f", "/g", number=1))
        assert (await me.versions("/g"))[0].manifest == content("a").manifest

    async def test_a_copy_over_a_file_is_a_version_of_it(self, me: Caller) -> None:
        await me.put("/f", "a")
        there = await me.put("/g", "b")
        copy = await me.copy("/f", "/g", replace=True)
        assert (copy.id, copy.number, copy.revision) == (there.id, 2, 2)
        assert await me.trash() == []

    async def test_a_copy_of_a_folder(self, catalog: Catalog, me: Caller) -> None:
        for path in ("/a/b/f", "/a/b/g", "/a/h"):
            await me.do(me.put_op(path, path, parents=True))
        await me.put("/a/h", "newer")
        await me.do(SetMetadata(me.tree, ("a", "b"), '{"k":1}'))
        await me.put("/a/gone")
        await me.delete("/a/gone")
        result = await me.do(me.copy_op("/a", "/z"))
        assert result.count == 5
        assert await me.names("/z") == ["b", "h"]
        assert await me.names("/z/b") == ["f", "g"]
        assert (await me.node("/z/b")).metadata == '{"k":1}'
        copied = await me.node("/z/h")
        assert (copied.number, copied.revision) == (1, 1)
        for path in ("/z", "/z/b", "/z/b/f"):
            made = await me.node(path)
            assert (made.created_us, made.modified_us) == (me.now, me.now)
        assert (await me.versions("/z/h"))[0].manifest == content("newer").manifest
        assert await me.used() == 50 + 30
        assert [kind for kind, _ in await me.feed()].count("copy") == 1
        assert await catalog.check() == []

    async def test_a_copy_of_a_folder_can_replace(self, catalog: Catalog, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        there = await me.put("/z")
        await me.copy("/a", "/z", replace=True)
        assert await me.names("/z") == ["f"]
        assert [number for number, _ in await me.trash()] == [there.id]
        await me.do(me.put_op("/p/q/r", parents=True))
        await me.copy("/p/q", "/p", replace=True)
        assert await me.names("/p") == ["r"]
        assert await catalog.check() == []

    async def test_what_cannot_be_copied(self, me: Caller) -> None:
        await me.do(me.put_op("/a/f", parents=True))
        await me.put("/g")
        cases: list[tuple[Operation, type[VaultError]]] = [
            (me.copy_op("/x", "/y"), NotFound),
            (me.copy_op("/g", "/y", number=2), NotFound),
            (me.copy_op("/g", "/y", number=0), NotFound),
            (me.copy_op("/g", "/x/y"), ParentNotFound),
            (me.copy_op("/a", "/x/y"), ParentNotFound),
            (me.copy_op("/g", "/a/f/y"), NotAFolder),
            (me.copy_op("/g", "/a"), Exists),
            (me.copy_op("/g", "/g"), Exists),
            (me.copy_op("/a", "/a"), Exists),
            (me.copy_op("/g", "/"), Exists),
            (me.copy_op("/a", "/"), Exists),
            (me.copy_op("/g", "/a", replace=True), IsAFolder),
            (me.copy_op("/a", "/z", number=1), IsAFolder),
            (me.copy_op("/a", "/a/b"), Cycle),
            (me.copy_op("/a", "/a", replace=True), Cycle),
            (me.copy_op("/", "/a/b"), Cycle),
        ]
        for operation, error in cases:
            assert isinstance(await me.refused(operation), error), operation

    @pytest.mark.slow
    async def test_a_copy_has_a_limit(self, me: Caller) -> None:
        puts = [me.put_op(f"/a/{number}") for number in range(MAX_COPY)]
        await me.do(me.mkdir_op("/a"), *puts)
        outcome = await me.outcome(me.copy_op("/a", "/b"))
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, TooLarge)
        assert await me.names() == ["a"]
        await me.delete("/a/0")
        assert (await me.do(me.copy_op("/a", "/b"))).count == MAX_COPY

    # Quotas

    async def test_a_quota_is_exact(self, me: Caller) -> None:
        await me.do(SetQuota(me.tree, 100))
        await me.put("/a", "a", 60)
        assert isinstance(await me.refused(me.put_op("/b", "b", 41)), QuotaExceeded)
        await me.put("/b", "b", 40)
        for operation in (
            me.put_op("/c", "c", 1),
            me.copy_op("/a", "/c"),
            RestoreVersion(me.tree, ("a",), 1),
        ):
            assert isinstance(await me.refused(operation), QuotaExceeded), operation
        await me.put("/c", "c", 0)
        assert await me.used() == 100
        assert (await me.catalog.user("me")).quota == 100

    async def test_above_the_quota_there_is_a_way_back(self, me: Caller) -> None:
        await me.put("/f", size=100)
        await me.put("/f", "b", size=100)
        await me.put("/g", size=100)
        await me.do(SetQuota(me.tree, 50))
        gone = await me.delete("/g")
        await me.do(Purge(me.tree, gone.id))
        [_, old] = await me.versions("/f")
        await me.do(Prune(me.tree, old.node, (old.id,)))
        assert await me.used() == 100
        assert isinstance(await me.refused(me.put_op("/h", size=1)), QuotaExceeded)

    async def test_a_folder_is_copied_within_the_quota_or_not_at_all(self, me: Caller) -> None:
        for name in "xyz":
            await me.do(me.put_op(f"/a/{name}", name, 10, parents=True))
        await me.do(SetQuota(me.tree, 59))
        assert isinstance(await me.refused(me.copy_op("/a", "/b")), QuotaExceeded)
        await me.do(SetQuota(me.tree, 60))
        await me.copy("/a", "/b")
        assert await me.used() == 60

    async def test_a_quota_is_given_back(self, catalog: Catalog, me: Caller) -> None:
        await me.do(SetQuota(me.tree, 100))
        old = await me.put("/a", "a", 50)
        await me.put("/a", "b", 50)
        node = await me.delete("/a")
        assert isinstance(await me.refused(me.put_op("/c", "c", 1)), QuotaExceeded)
        assert old.version is not None
        await me.do(Prune(me.tree, node.id, (old.version,)))
        await me.put("/c", "c", 50)
        await me.do(Purge(me.tree, node.id))
        assert await me.used() == 50
        assert await catalog.check() == []

    async def test_a_quota_below_what_is_used_refuses_more(self, me: Caller) -> None:
        await me.put("/a", "a", 50)
        await me.do(SetQuota(me.tree, 10))
        assert isinstance(await me.refused(me.put_op("/b", "b", 1)), QuotaExceeded)
        await me.move("/a", "/c")
        await me.do(SetQuota(me.tree, None))
        await me.put("/b", "b", 1)

    # Counts

    async def test_stats(self, catalog: Catalog, me: Caller) -> None:
        await me.do(me.put_op("/a/f", "x", 10, parents=True))
        await me.put("/a/f", "y", 20)
        await me.put("/g", "z", 5)
        await me.delete("/a", recursive=True)
        stats = await catalog.stats()
        assert (stats.users, stats.folders, stats.files, stats.versions) == (1, 2, 2, 3)
        assert (stats.trashed, stats.logical, stats.current) == (1, 35, 5)
        assert (stats.packs, stats.packed, stats.chunks) == (0, 0, 0)

    async def test_all_versions_of_all_trees(self, catalog: Catalog, me: Caller) -> None:
        other = Caller(catalog, await add_user(catalog, "other"))
        nodes = [await me.put("/a"), await other.put("/b"), await me.put("/a", "2")]
        await me.delete("/a")
        refs = await catalog.all_versions()
        assert [(ref.id, ref.node, ref.owner, ref.number) for ref in refs] == [
            (node.version, node.id, UserId(node.tree), node.number) for node in nodes
        ]
        assert refs[0].manifest_bytes == content("a").manifest.encode()
        assert await catalog.all_versions(after=refs[0].id, limit=1) == refs[1:2]

    async def test_a_node_is_found_however_deep_it_is(self, catalog: Catalog, me: Caller) -> None:
        path: tuple[str, ...] = ()
        for depth in range(1, 25):
            path = (*path, f"d{depth}")
            made = await me.made(ops.MakeFolder(me.tree, path))
            assert await catalog.node(me.tree, path) == made
            assert await catalog.node(me.tree, (*path[:-1], "none")) is None

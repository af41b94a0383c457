"""Locks that stand in the way of writes, and writes that come with locks."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import pytest
from tests.faults import MemoryTree, add_user, at, open_memory_vault, put, read

from vaultfs.domain.access import Role
from vaultfs.domain.errors import Exists, Locked, NotFound, NotHeld, StaleToken
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner, Presented
from vaultfs.domain.names import Path, parse_path
from vaultfs.domain.nodes import Node
from vaultfs.domain.operations import Done, Move, Prune, Purge
from vaultfs.entrypoints.vault import Vault

Change = Callable[[Vault], Awaitable[object]]
ME: Final = Owner("me")


@pytest.fixture
async def vault() -> AsyncGenerator[Vault, None]:
    async with open_memory_vault() as vault:
        for path in ("/d/f", "/d/g", "/e/f", "/e/sub/x"):
            await put(vault, path, b"one")
        await put(vault, "/d/f", b"two")
        yield vault


async def trashed(vault: Vault, path: str) -> Node:
    await put(vault, path, b"gone")
    return await vault.files.delete(vault.user, at(path))


CHANGES: Final[dict[str, tuple[Change, str, str]]] = {
    "put": (lambda v: put(v, "/d/f", b"new"), "/d/f", "/d/g"),
    "put new": (lambda v: put(v, "/d/new", b"new"), "/d/new", "/d/g"),
    "put into folder": (lambda v: put(v, "/d/new/deep", b"new"), "/d", "/e"),
    "mkdir": (lambda v: v.files.mkdir(v.user, at("/d/n")), "/d/n", "/d/f"),
    "move": (lambda v: v.files.move(v.user, at("/d/f"), at("/m")), "/d/f", "/d/g"),
    "move to": (lambda v: v.files.move(v.user, at("/d/f"), at("/m")), "/m", "/e"),
    "move folder": (lambda v: v.files.move(v.user, at("/e"), at("/m")), "/e/sub/x", "/d"),
    "copy to": (lambda v: v.files.copy(v.user, at("/d/f"), at("/m")), "/m", "/d/g"),
    "copy from": (lambda v: v.files.copy(v.user, at("/e"), at("/m")), "/e/sub/x", "/d/f"),
    "delete": (lambda v: v.files.delete(v.user, at("/d/f")), "/d/f", "/d/g"),
    "delete folder": (
        lambda v: v.files.delete(v.user, at("/e"), recursive=True),
        "/e/sub",
        "/d",
    ),
    "metadata": (lambda v: v.files.set_metadata(v.user, at("/d/f"), '{"a": 1}'), "/d/f", "/d/g"),
    "restore version": (lambda v: v.files.restore_version(v.user, at("/d/f"), 1), "/d/f", "/e"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_write_is_refused_where_somebody_has_a_lock(vault: Vault, name: str) -> None:
    change, locked, _ = CHANGES[name]
    async with vault.locks.hold(ME, vault.user.tree, {parse_path(locked): Mode.X}):
        with pytest.raises(Locked, match="me holds") as caught:
            await change(vault)
    assert {each.owner for each in caught.value.blockers} == {ME}
    await change(vault)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_write_elsewhere_is_not(vault: Vault, name: str) -> None:
    change, _, elsewhere = CHANGES[name]
    async with vault.locks.hold(ME, vault.user.tree, {parse_path(elsewhere): Mode.X}):
        await change(vault)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_write_with_the_lock_of_the_tree_is_done(vault: Vault, name: str) -> None:
    change, _, _ = CHANGES[name]
    async with vault.locks.lock_user_files(vault.user) as held:
        await change(vault.presenting(*held.presented))


@pytest.mark.parametrize("name", CHANGES)
async def test_a_write_with_a_lock_that_does_not_cover_it_is_refused(
    vault: Vault, name: str
) -> None:
    change, _, elsewhere = CHANGES[name]
    async with vault.locks.hold(ME, vault.user.tree, {parse_path(elsewhere): Mode.X}) as held:
        with pytest.raises(NotHeld, match="do not cover"):
            await change(vault.presenting(*held.presented))


@pytest.mark.parametrize("name", CHANGES)
async def test_a_write_with_a_lock_that_is_no_more_is_refused(vault: Vault, name: str) -> None:
    change, locked, _ = CHANGES[name]
    async with vault.locks.hold(ME, vault.user.tree, {parse_path(locked): Mode.X}) as held:
        pass
    with pytest.raises(StaleToken):
        await change(vault.presenting(*held.presented))
    async with vault.locks.hold(ME, vault.user.tree, {parse_path(locked): Mode.X}) as again:
        assert again.token > held.token
        with pytest.raises(StaleToken):
            await change(vault.presenting(*held.presented))


async def test_a_token_of_another_owner_is_refused(vault: Vault) -> None:
    async with vault.locks.hold(ME, vault.user.tree, {("d", "f"): Mode.X}) as held:
        with pytest.raises(StaleToken):
            await put(vault.presenting(Presented(Owner("other"), held.token)), "/d/f", b"new")


async def test_who_has_a_name_locked_makes_the_folders_above_it(vault: Vault) -> None:
    async with vault.locks.hold(ME, vault.user.tree, {("n", "m", "f"): Mode.X}) as held:
        mine = vault.presenting(*held.presented)
        await mine.files.mkdir(vault.user, at("/n"))
        await mine.files.mkdir(vault.user, at("/n/m"))
        with pytest.raises(NotHeld, match="/n/other"):
            await mine.files.mkdir(vault.user, at("/n/other"))
        with pytest.raises(NotHeld, match="/n"):
            await mine.files.set_metadata(vault.user, at("/n"), '{"a": 1}')


async def test_a_reader_keeps_writers_out_and_other_readers_not(vault: Vault) -> None:
    async with vault.locks.hold(ME, vault.user.tree, {("d",): Mode.S}):
        with pytest.raises(Locked):
            await put(vault, "/d/f", b"new")
        await vault.files.copy(vault.user, at("/d"), at("/copy"))
        assert await read(vault, "/d/f") == b"two"


@pytest.mark.parametrize("mode", [Mode.S, Mode.U, Mode.SIX, Mode.X])
async def test_who_may_read_a_folder_may_copy_what_is_in_it(vault: Vault, mode: Mode) -> None:
    wanted: dict[Path, Mode] = {("d",): mode, ("m",): Mode.X}
    async with vault.locks.hold(ME, vault.user.tree, wanted) as held:
        mine = vault.presenting(*held.presented)
        await mine.files.copy(vault.user, at("/d/f"), at("/m"))
        if mode is not Mode.X:
            with pytest.raises(NotHeld, match="/d/f"):
                await put(mine, "/d/f", b"new")


async def test_nodes_that_are_named_by_number(vault: Vault) -> None:
    node = await trashed(vault, "/z/f")
    there = await vault.files.stat(vault.user, at("/d/f"))
    versions = await vault.files.versions(vault.user, at("/d/f"))
    tree = vault.user.tree
    async with vault.locks.hold(ME, tree, {("z",): Mode.X, ("d",): Mode.S}):
        with pytest.raises(Locked, match="/z"):
            await vault.files.restore(vault.user, "me", node.id)
        await vault.files.restore(vault.user, "me", node.id, at("/elsewhere"))
        again = await trashed(vault, "/y")
        await vault.files.change(vault.user, Purge(tree, again.id))
        with pytest.raises(Locked, match="/d"):
            await vault.files.change(vault.user, Prune(tree, there.id, (versions[-1].id,)))


async def test_of_a_unit_all_is_done_or_nothing(vault: Vault) -> None:
    """A put that makes folders does not leave them when a lock is in its way."""
    async with vault.locks.hold(ME, vault.user.tree, {("n", "m", "f"): Mode.S}):
        with pytest.raises(Locked):
            await put(vault, "/n/m/f", b"x")
    with pytest.raises(NotFound):
        await vault.files.stat(vault.user, at("/n"))


async def test_a_move_ends_the_movers_locks_below_what_moved(vault: Vault) -> None:
    tree = vault.user.tree
    wanted = {("e", "f"): Mode.X, ("e",): Mode.X, ("m",): Mode.X}
    token = await vault.locks.acquire(ME, tree, wanted)
    await vault.presenting(Presented(ME, token)).files.move(vault.user, at("/e"), at("/m"))
    held = await vault.locks.find(ME, tree, token)
    assert held is not None
    assert held.items == {("1", "m"): Mode.X}
    await put(vault, "/e", b"free again")
    await vault.locks.release(ME, tree, token)


async def test_a_move_ends_all_locks_of_the_mover_below_what_moved(vault: Vault) -> None:
    tree = vault.user.tree
    inner = await vault.locks.acquire(ME, tree, {("e", "f"): Mode.X, ("d",): Mode.S})
    async with vault.locks.hold(ME, tree, {("e",): Mode.X, ("m",): Mode.X}) as held:
        await vault.presenting(*held.presented).files.move(vault.user, at("/e"), at("/m"))
    await put(vault, "/e/f", b"free again")
    left = await vault.locks.find(ME, tree, inner)
    assert left is not None
    assert left.items == {("1", "d"): Mode.S}


async def test_a_refused_move_keeps_the_movers_locks(vault: Vault) -> None:
    tree = vault.user.tree
    token = await vault.locks.acquire(ME, tree, {("d",): Mode.X, ("e",): Mode.X})
    with pytest.raises(Exists):
        await vault.presenting(Presented(ME, token)).files.move(vault.user, at("/d"), at("/e"))
    held = await vault.locks.find(ME, tree, token)
    assert held is not None
    assert set(held.items) == {("1", "d"), ("1", "e")}
    await vault.locks.release(ME, tree, token)


async def test_a_deletion_ends_the_lock_on_what_is_gone(vault: Vault) -> None:
    token = await vault.locks.acquire(ME, vault.user.tree, {("d",): Mode.X})
    vault_ = vault.presenting(Presented(ME, token))
    await vault_.files.delete(vault.user, at("/d"), recursive=True)
    assert await vault.locks.find(ME, vault.user.tree, token) is None


async def test_nobody_learns_of_locks_in_anothers_tree(vault: Vault) -> None:
    other = await add_user(vault.catalog, "other")
    async with vault.locks.lock_user_files(vault.user):
        with pytest.raises(NotFound):
            await vault.files.delete(other, at("/d/f"))


async def test_locks_of_the_owner_are_of_no_use_to_whom_a_folder_is_shared_with(
    vault: Vault,
) -> None:
    other = await add_user(vault.catalog, "other")
    await vault.files.grant(vault.user, at("/d"), "other", Role.WRITER)
    async with vault.locks.hold(ME, vault.user.tree, {("d", "f"): Mode.X}) as held:
        shown = vault.presenting(*held.presented)
        with pytest.raises(Locked):
            await shown.files.set_metadata(other, at("/d/f"), '{"a": 1}')
        await shown.files.set_metadata(other, at("/d/g"), '{"a": 1}')


async def test_nobody_learns_from_a_number_what_is_locked_in_anothers_tree(vault: Vault) -> None:
    other = await add_user(vault.catalog, "other")
    node = await trashed(vault, "/z/f")
    there = await vault.files.stat(vault.user, at("/d/f"))
    versions = await vault.files.versions(vault.user, at("/d/f"))
    tree = vault.user.tree
    async with vault.locks.lock_user_files(vault.user):
        with pytest.raises(NotFound):
            await vault.files.restore(other, "me", node.id)
        with pytest.raises(NotFound):
            await vault.files.change(other, Prune(tree, there.id, (versions[-1].id,)))


async def test_many_files_at_once_are_each_held_to_the_locks(vault: Vault) -> None:
    names = {f"n{number}": b"x%d" % number for number in range(20)}
    async with vault.locks.hold(ME, vault.user.tree, {("t", "n3"): Mode.X, ("d",): Mode.X}):
        report = await vault.transfer.put(vault.user, MemoryTree(names), at("/t"))
    assert [each.where for each in report.failed] == ["/n3"]
    assert report.files == 19


async def move_all(vault: Vault, files: int) -> list[bool]:
    """Move so many files of `/many` to `/d`, in one call; which were moved."""
    moves = [Move(vault.user.tree, ("many", f"n{n}"), ("d", f"n{n}")) for n in range(files)]
    units = [vault.files.unit(vault.user, f"op-{n}", (move,)) for n, move in enumerate(moves)]
    return [isinstance(each, Done) for each in await vault.catalog.apply(units)]


async def test_many_moves_at_once_are_each_held_to_the_locks(vault: Vault) -> None:
    for number in range(20):
        await put(vault, f"/many/n{number}", b"x")
    async with vault.locks.hold(ME, vault.user.tree, {("many", "n3"): Mode.S}):
        assert await move_all(vault, 20) == [number != 3 for number in range(20)]


async def test_many_moves_at_once_end_the_movers_locks_on_what_moved(vault: Vault) -> None:
    for number in range(20):
        await put(vault, f"/many/n{number}", b"x")
    token = await vault.locks.acquire(ME, vault.user.tree, {("many",): Mode.X, ("d",): Mode.X})
    names: dict[tuple[str, ...], Mode] = {("many", f"n{n}"): Mode.X for n in range(3)}
    mine = await vault.locks.acquire(ME, vault.user.tree, names | {("e",): Mode.X})
    holder = vault.presenting(Presented(ME, token), Presented(ME, mine))
    assert all(await move_all(holder, 20))
    left = await vault.locks.find(ME, vault.user.tree, mine)
    assert left is not None
    assert left.items == {("1", "e"): Mode.X}


async def test_errors_say_who_and_where(vault: Vault) -> None:
    async with vault.locks.hold(ME, vault.user.tree, {("d",): Mode.S}):
        with pytest.raises(Locked) as caught:
            await put(vault, "/d/f", b"x")
        with pytest.raises(Locked) as moved:
            await vault.files.move(vault.user, at("/e"), at("/d/g"))
    assert caught.value.message == "/d/f is locked: me holds /d (S)"
    assert moved.value.message == "/d/g is locked: me holds /d (S)"

"""What is done from time to time."""

from datetime import timedelta
from typing import Any

import pytest
from tests.faults import (
    BytesSource,
    CatalogAround,
    add_user,
    assert_sound,
    at,
    open_memory_vault,
    put,
    read,
)

from vaultfs.adapters.memory import ManualClock
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.lockmodes import READ, WRITE
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import NodeId, User, Version, VersionId
from vaultfs.domain.operations import Delete, Purge, Unit
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.upkeep import Maintained, Plan, Upkeep
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.vault import Vault

DAY = timedelta(days=1)


def upkeep_of(vault: Vault) -> Upkeep:
    return vault.upkeep()


async def in_trash(vault: Vault, user: User) -> list[str]:
    return [node.name for node, _ in await vault.files.trash(user, user.name)]


async def test_what_is_due_is_done_and_nothing_else() -> None:
    async with open_memory_vault() as vault:
        clock, me = vault.clock, vault.user
        assert isinstance(clock, ManualClock)
        for text in (b"one", b"two", b"three"):
            await put(vault, "/kept", text)
        await put(vault, "/old", b"x")
        await put(vault, "/new", b"y")
        await vault.files.set_retention(me, me.name, Retention(last=2))
        await vault.files.delete(me, at("/old"))
        clock.advance(20 * DAY)
        await vault.files.delete(me, at("/new"))
        clock.advance(15 * DAY)
        done = await upkeep_of(vault).run(Plan())
        assert (done.pruned, done.purged) == (1, 1)
        assert done.backup is not None
        assert await in_trash(vault, me) == ["new"]
        assert await read(vault, "/kept", 2) == b"two"
        assert await upkeep_of(vault).run(Plan()) == Maintained(0, 0, None)
        clock.advance(2 * DAY)
        assert (await upkeep_of(vault).run(Plan())).backup is not None
        await assert_sound(vault)


async def test_a_lock_on_a_file_keeps_its_versions_and_nothing_else_from_being_looked_after() -> (
    None
):
    async with open_memory_vault() as vault:
        me = vault.user
        for path in ("/a", "/locked", "/z"):
            await put(vault, path, b"one")
            await put(vault, path, b"two")
        await vault.files.set_retention(me, me.name, Retention(last=1))
        async with vault.locks.hold(vault.locks.new_owner(), me.tree, {("locked",): READ}):
            done = await upkeep_of(vault).run(Plan())
            assert (done.pruned, done.backup is None) == (2, False)
        assert await vault.files.prune(me, me.name) == 1


class Overtaken(CatalogAround):
    """A catalog in which a file is purged between a look at its versions and what follows."""

    async def versions(
        self, node: NodeId, *, before: int | None = None, limit: int = 1000
    ) -> list[Version]:
        found = await self.inner.versions(node, before=before, limit=limit)
        [owner] = await self.inner.users()
        operations = (Delete(owner.tree, ("purged",)), Purge(owner.tree, node))
        await self.inner.apply([Unit(owner.id, 1, f"purge-{node}-{before}", operations)])
        return found


async def test_a_file_that_is_purged_meanwhile_keeps_no_others_from_being_pruned() -> None:
    catalog = await SqliteCatalog.open(None)
    await add_user(catalog, OWNER)
    async with open_memory_vault(catalog=Overtaken(catalog)) as vault:
        for path in ("/purged", "/other"):
            await put(vault, path, b"one")
            await put(vault, path, b"two")
        await vault.files.set_retention(vault.user, vault.user.name, Retention(last=1))
        assert await vault.files.prune(vault.user, vault.user.name) == 1
        assert [node.name for node in await vault.files.children(vault.user, at("/"))] == ["other"]
    await catalog.aclose()


async def test_everybody_is_looked_after_and_for_ever_means_that() -> None:
    async with open_memory_vault() as vault:
        clock = vault.clock
        assert isinstance(clock, ManualClock)
        bob = await add_user(vault.catalog, "bob")
        await vault.files.mkdir(bob, Address("bob", ("folder",)))
        await vault.files.delete(bob, Address("bob", ("folder",)))
        clock.advance(1000 * DAY)
        assert await upkeep_of(vault).run(Plan(None, None)) == Maintained(0, 0, None)
        assert await in_trash(vault, bob) == ["folder"]
        assert (await upkeep_of(vault).run(Plan(31 * DAY, None))).purged == 1
        assert await in_trash(vault, bob) == []


async def test_what_one_user_has_locked_keeps_nobody_else_waiting() -> None:
    async with open_memory_vault() as vault:
        clock, me = vault.clock, vault.user
        assert isinstance(clock, ManualClock)
        bob = await add_user(vault.catalog, "bob")
        for user in (me, bob):
            for text in (b"one", b"two"):
                await vault.files.put(user, Address(user.name, ("a",)), BytesSource(text))
            await vault.files.mkdir(user, Address(user.name, ("old",)))
            await vault.files.delete(user, Address(user.name, ("old",)))
            await vault.files.set_retention(user, user.name, Retention(last=1))
        clock.advance(31 * DAY)
        owner = vault.locks.new_owner()
        await vault.locks.acquire(owner, me.tree, {("a",): WRITE}, ttl=60)
        done = await upkeep_of(vault).run(Plan())
        assert (done.pruned, done.purged) == (1, 2)
        assert done.backup is not None
        await vault.locks.release(owner, me.tree, 1)
        assert (await upkeep_of(vault).run(Plan())).pruned == 1


async def test_a_file_that_is_purged_meanwhile_ends_no_upkeep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: Any = Files
    expired = known._expired

    async def purged(files: Files, node: NodeId, policy: Retention) -> tuple[VersionId, ...]:
        found: tuple[VersionId, ...] = await expired(files, node, policy)
        await files.delete(vault.user, at("/a"))
        await files.purge(vault.user, vault.user.name, node)
        return found

    async with open_memory_vault() as vault:
        for text in (b"one", b"two"):
            await put(vault, "/a", text)
        await vault.files.set_retention(vault.user, vault.user.name, Retention(last=1))
        monkeypatch.setattr(Files, "_expired", purged)
        done = await upkeep_of(vault).run(Plan())
        assert (done.pruned, done.backup is None) == (0, False)

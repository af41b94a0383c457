"""The change feed: dense, in order, waited for, and reset where it is another one."""

import time

import anyio
import pytest
from tests.faults import add_user, at, open_memory_vault, upload

from vaultfs.domain.errors import CursorReset, InvalidField, NotFound, TooLarge
from vaultfs.domain.services.feed import Feed, News
from vaultfs.entrypoints.vault import Vault


async def since(vault: Vault, cursor: str | None = None, **rest: float) -> News:
    return await Feed(vault.files).since(vault.user, "me", cursor, **rest)  # type: ignore[arg-type]


async def test_changes_come_in_order_once() -> None:
    async with open_memory_vault() as vault:
        nothing = await since(vault)
        assert nothing.changes == []
        await vault.files.mkdir(vault.user, at("/d"))
        await upload(vault, "/d/f", b"text", 10)
        moved = await vault.files.move(vault.user, at("/d/f"), at("/g"))
        await vault.files.delete(vault.user, at("/d"))
        news = await since(vault, nothing.cursor)
        told = [(each.change.seq, each.change.kind, each.path) for each in news.changes]
        assert told == [
            (1, "mkdir", ("d",)),
            (2, "put", ("g",)),  # where it stands by now
            (3, "move", ("g",)),
            (4, "delete", ("d",)),
        ]
        assert news.changes[2].change.node == moved.id
        assert (await since(vault, news.cursor)).changes == []
        first = await since(vault, limit=1)
        rest = await since(vault, first.cursor)
        assert [each.change.seq for each in rest.changes] == [2, 3, 4]
        await vault.files.purge(vault.user, "me", news.changes[3].change.node)
        assert (await since(vault)).changes[0].path is None


async def test_news_are_waited_for() -> None:
    async with open_memory_vault() as vault:
        got: list[News] = []

        async def wait() -> None:
            got.append(await since(vault, wait=30))

        begun = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.2)
            assert got == []
            await vault.files.mkdir(vault.user, at("/d"))
        assert len(got[0].changes) == 1
        assert time.monotonic() - begun < 5
        assert (await since(vault, got[0].cursor, wait=0.1)).changes == []


async def test_another_feed_is_noticed() -> None:
    async with open_memory_vault() as vault, open_memory_vault() as other:
        for each in (vault, other):
            for name in "abc":
                await each.files.mkdir(each.user, at(f"/{name}"))
            await each.files.mkdir(each.user, at("/d"))
        cursor = (await since(vault)).cursor
        shorter = (await since(other, limit=2)).cursor
        assert (await since(vault, cursor)).changes == []
        with pytest.raises(CursorReset):
            await since(vault, "99.abcdef")
        with pytest.raises(CursorReset):
            await since(vault, shorter.partition(".")[0] + ".000000000000")
        for wrong in ("x", "1", "-1.a", "", "1" * 30 + "."):
            with pytest.raises(InvalidField):
                await since(vault, wrong)
        with pytest.raises(TooLarge):
            await since(vault, limit=1001)


async def test_nobody_sees_the_changes_of_others() -> None:
    async with open_memory_vault() as vault:
        await vault.files.mkdir(vault.user, at("/d"))
        bob = await add_user(vault.catalog, "bob")
        assert (await Feed(vault.files).since(bob, "bob", None)).changes == []
        with pytest.raises(NotFound):
            await Feed(vault.files).since(bob, "me", None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 31])
async def test_who_asks_for_what_comes_now_is_told_nothing_of_before(count: int) -> None:
    async with open_memory_vault() as vault:
        for number in range(count):
            await vault.files.mkdir(vault.user, at(f"/{number}"))
        now = await since(vault, "now")
        assert now.changes == []
        await vault.files.mkdir(vault.user, at("/new"))
        [seen] = (await since(vault, now.cursor)).changes
        assert (seen.change.seq, seen.path) == (count + 1, ("new",))

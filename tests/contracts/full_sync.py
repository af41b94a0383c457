"""Whole files kept in step by two clients of one server: what every protocol must go on doing.

A client here remembers nothing but the version that it fetched last. Subclasses supply
the world: a server that can be restarted, and ways to connect to it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

import anyio
import pytest
from attrs import define, field
from tests.faults import random_bytes

from vaultfs.domain.errors import NotFound, VersionMismatch
from vaultfs.domain.nodes import Preconditions, VersionId
from vaultfs.entrypoints.client import RemoteVault


class World(ABC):
    """A server and its clients."""

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[RemoteVault]:
        """Another client."""

    @abstractmethod
    async def restart(self) -> None:
        """Kill the server, and start it again on what it has stored."""


@define
class Replica:
    """Somebody's copy of the files."""

    vault: RemoteVault
    held: dict[str, tuple[VersionId | None, bytes]] = field(
        factory=dict[str, tuple[VersionId | None, bytes]]
    )
    fetched: int = 0

    async def change(self, path: str, data: bytes) -> None:
        """Store `data`, if the file is still what this replica has."""
        known = self.held[path][0] if path in self.held else None
        wanted = Preconditions(if_version=known, if_absent=known is None)
        node = await self.vault.put(path, data, preconditions=wanted)
        self.held[path] = (node.version, data)

    async def fetch(self) -> None:
        """Get what is new, forget what is gone."""
        there = {f"/{node.name}": node async for node in self.vault.list()}
        for path in self.held.keys() - there.keys():
            del self.held[path]
        for path, node in there.items():
            if path not in self.held or self.held[path][0] != node.version:
                self.held[path] = (node.version, await self.vault.get(path, version=node.number))
                self.fetched += 1

    @property
    def contents(self) -> dict[str, bytes]:
        return {path: data for path, (_, data) in self.held.items()}


SIZES = (0, 1, 1 << 10, 64 << 10, 1 << 20, 16 << 20)


class FullSyncContract:
    @pytest.fixture
    def world(self) -> World:
        """A fresh one."""
        raise NotImplementedError("a protocol's tests supply their own")

    @pytest.mark.parametrize("size", SIZES)
    async def test_a_change_arrives(self, world: World, size: int) -> None:
        data = random_bytes(size, "first")
        async with world.connect() as one, world.connect() as other:
            here, there = Replica(one), Replica(other)
            await here.change("/a", data)
            await there.fetch()
            assert there.contents == {"/a": data}
            changed = data[: size // 2] + b"in the middle" + data[size // 2 :]
            await there.change("/a", changed)
            await here.fetch()
            assert here.contents == {"/a": changed}

    async def test_what_is_there_already_is_not_fetched(self, world: World) -> None:
        async with world.connect() as one, world.connect() as other:
            here, there = Replica(one), Replica(other)
            for number in range(10):
                await here.change(f"/{number}", random_bytes(1000, number))
            await there.fetch()
            assert there.fetched == 10
            await there.fetch()
            await here.change("/3", b"new")
            await there.fetch()
            assert there.fetched == 11
            assert there.contents == here.contents

    async def test_of_two_changes_to_one_version_the_second_is_told(self, world: World) -> None:
        async with world.connect() as one, world.connect() as other:
            here, there = Replica(one), Replica(other)
            await here.change("/a", b"first")
            await there.fetch()
            await here.change("/a", b"mine")
            with pytest.raises(VersionMismatch):
                await there.change("/a", b"theirs")
            assert await one.get("/a") == b"mine"
            await there.fetch()
            await there.change("/a", b"mine and theirs")
            await here.fetch()
            assert here.contents == there.contents == {"/a": b"mine and theirs"}
            with pytest.raises(VersionMismatch):
                await Replica(other).change("/a", b"as if it were new")

    async def test_a_content_that_comes_back_is_a_change(self, world: World) -> None:
        async with world.connect() as one, world.connect() as other:
            here, there = Replica(one), Replica(other)
            for text in (b"A", b"B", b"A"):
                await here.change("/a", text)
                if text == b"A" and not there.held:
                    await there.fetch()
            with pytest.raises(VersionMismatch):
                await there.change("/a", b"C")

    async def test_deletions_and_renames_arrive(self, world: World) -> None:
        async with world.connect() as one, world.connect() as other:
            here, there = Replica(one), Replica(other)
            await here.change("/a", b"a")
            await here.change("/b", b"b")
            await there.fetch()
            await one.delete("/a")
            await one.move("/b", "/c")
            await there.fetch()
            assert there.contents == {"/c": b"b"}

    async def test_what_was_acknowledged_outlives_a_restart(self, world: World) -> None:
        async with world.connect() as one:
            here = Replica(one)
            for number in range(20):
                await here.change(f"/{number}", random_bytes(20_000, number))
        await world.restart()
        async with world.connect() as one, world.connect() as other:
            here.vault, there = one, Replica(other)
            await there.fetch()
            assert there.contents == here.contents
            await here.change("/7", b"after the restart")
            await there.fetch()
            assert there.contents == here.contents

    async def test_a_change_that_broke_off_is_none(self, world: World) -> None:
        async with world.connect() as one:
            here = Replica(one)
            await here.change("/a", b"whole")
            with anyio.move_on_after(0.3):
                await one.put("/a", _endless())
            with pytest.raises(NotFound):
                await one.get("/a", version=2)
            assert await one.get("/a") == b"whole"
            await here.change("/a", b"whole again")

    async def test_many_writers_and_no_change_is_lost(self, world: World) -> None:
        async with world.connect() as setup:
            await setup.put("/count", b"0")

        async def count() -> None:
            async with world.connect() as vault:
                replica = Replica(vault)
                done = 0
                while done < 10:
                    await replica.fetch()
                    number = int(replica.contents["/count"]) + 1
                    try:
                        await replica.change("/count", str(number).encode())
                    except VersionMismatch:
                        continue
                    done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(count)
        async with world.connect() as vault:
            assert await vault.get("/count") == b"40"


async def _endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield bytes(1000)
        await anyio.sleep(0.01)

"""Whole-file synchronisation over the API of a server in a process of its own; also by deltas."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from anyio import to_thread
from attrs import define, field
from tests.contracts.full_sync import FullSyncContract, World
from tests.entrypoints.test_http_server import Running, serve

from vaultfs.domain.nodes import NO_PRECONDITIONS, Node, Preconditions, VersionId
from vaultfs.entrypoints.client import RemoteVault, connect
from vaultfs.entrypoints.surface import Content
from vaultfs.ports.progress import Progress, no_progress


class OneServer(World):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._running: Running = self._stack.enter_context(serve(folder))
        self._token = self._running.token

    def connect(self) -> AbstractAsyncContextManager[RemoteVault]:
        return connect(self._running.address, token=self._token)

    async def restart(self) -> None:
        self._running.process.kill()
        await to_thread.run_sync(self._running.process.wait)
        self._running = self._stack.enter_context(serve(self._folder, self._token))

    def close(self) -> None:
        self._stack.close()


class TestOneServer(FullSyncContract):
    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[World]:
        world = OneServer(tmp_path / "vault")
        yield world
        await to_thread.run_sync(world.close)


@define(eq=False)
class ByDeltas(RemoteVault):
    """A client whose files travel by what changed, from and to local ones."""

    copies: Path = field(kw_only=True)
    known: dict[str, VersionId] = field(factory=dict[str, VersionId])

    def local(self, path: str) -> Path:
        return self.copies / path.replace("/", "_")

    async def get(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> bytes:
        done = await self.pull(path, self.local(path), base=self.known.get(path))
        self.known[path] = done.version.id
        if version not in {None, done.version.number}:
            return await super().get(path, version=version, start=start, stop=stop)
        return self.local(path).read_bytes()[start:stop]

    async def put(
        self,
        path: str,
        content: Content,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = True,
        progress: Progress = no_progress,
    ) -> Node:
        if not isinstance(content, bytes):
            return await super().put(
                path, content, preconditions=preconditions, parents=parents, progress=progress
            )
        new = self.copies / "new"
        new.write_bytes(content)
        if preconditions.any:
            node = (await self.push(path, new, base=preconditions.if_version)).node
        else:
            node = await super().put(path, content, parents=parents, progress=progress)
        new.replace(self.local(path))
        assert node.version is not None
        self.known[path] = node.version
        return node


class DeltaServer(OneServer):
    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[RemoteVault, None]:
        async with super().connect() as vault:
            with TemporaryDirectory() as folder:
                yield ByDeltas(vault.calls, vault.user, vault.loop, copies=Path(folder))


class TestByDeltas(FullSyncContract):
    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[World]:
        world = DeltaServer(tmp_path / "vault")
        yield world
        await to_thread.run_sync(world.close)

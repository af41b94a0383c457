"""Whole-file synchronisation over the API of a server in a process of its own."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest
from anyio import to_thread
from tests.contracts.full_sync import FullSyncContract, World
from tests.entrypoints.test_http_server import Running, serve

from vaultfs.entrypoints.client import RemoteVault, connect


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

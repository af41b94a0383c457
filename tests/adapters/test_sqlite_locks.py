"""Locks in a catalog's database, of one process and of several."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.contracts.locks import LockContract, SharedLockContract, both

from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.services.locks import Locks, open_locks


@asynccontextmanager
async def opened(path: Path | None) -> AsyncGenerator[Locks, None]:
    catalog = await SqliteCatalog.open(path, create=True)
    try:
        async with open_locks(catalog.lock_store(), SystemClock()) as locks:
            yield locks
    finally:
        await catalog.aclose()


class TestInMemory(LockContract):
    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[Locks]:
        return opened(None)


class TestInAFile(LockContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> AbstractAsyncContextManager[Locks]:
        return opened(tmp_path / "catalog.db")


class TestTwo(SharedLockContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> AbstractAsyncContextManager[tuple[Locks, Locks]]:
        return both(opened(tmp_path / "catalog.db"), opened(tmp_path / "catalog.db"))

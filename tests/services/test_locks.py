"""The locks of one process, in its memory."""

from contextlib import AbstractAsyncContextManager

import pytest
from tests.contracts.locks import LockContract

from vaultfs.adapters.memorylocks import MemoryLockStore
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.services.locks import Locks, open_locks


class TestInMemory(LockContract):
    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[Locks]:
        clock = SystemClock()
        return open_locks(MemoryLockStore(clock), clock)

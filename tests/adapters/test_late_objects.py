"""A store that does not answer at first."""

import pytest
from tests.contracts.objects import ObjectStoreContract, Written

from vaultfs.adapters.memory import MemoryObjectStore
from vaultfs.adapters.wrappers import late
from vaultfs.adapters.wrappers.late import LateObjectStore
from vaultfs.ports.objects import ObjectStore, StoreUnavailable


class TestLate(ObjectStoreContract):
    @pytest.fixture
    def inner(self) -> MemoryObjectStore:
        return MemoryObjectStore("late")

    @pytest.fixture
    def store(self, inner: MemoryObjectStore) -> ObjectStore:
        async def opening() -> ObjectStore:
            return inner

        return LateObjectStore("late", opening)

    @pytest.fixture
    def written(self, inner: MemoryObjectStore) -> Written:
        return inner.objects.get


async def test_it_is_asked_for_again_a_little_later(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, down = 0, True

    async def opening() -> ObjectStore:
        nonlocal asked
        asked += 1
        if down:
            raise StoreUnavailable(backend="late", operation="open")
        return MemoryObjectStore("late")

    store = LateObjectStore("late", opening)
    assert asked == 0
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.get("key")
    assert asked == 1, "those who wait for it are told at once"
    monkeypatch.setattr(late, "AGAIN_AFTER", 0.0)
    store = LateObjectStore("late", opening)
    with pytest.raises(StoreUnavailable):
        await store.put("key", b"content")
    await store.aclose()
    down = False
    await store.put("key", b"content")
    assert await store.get("key") == b"content"
    assert await store.room() is None
    assert asked == 3
    await store.aclose()

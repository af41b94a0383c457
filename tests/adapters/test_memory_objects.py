from datetime import timedelta

import anyio
import pytest
from hypothesis import given
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict
from tests.strategies import Step, store_steps

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.packs import crc32c_of


class TestMemoryObjects(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> MemoryObjectStore:
        return MemoryObjectStore()

    @pytest.fixture
    def written(self, store: MemoryObjectStore) -> Written:
        return store.objects.get


@given(steps=store_steps)
def test_behaves_like_a_dict(steps: tuple[Step, ...]) -> None:
    anyio.run(check_against_a_dict, MemoryObjectStore(), steps)


async def test_head_vouches_for_what_is_there_now() -> None:
    store = MemoryObjectStore()
    await store.put("key", b"right")
    store.objects["key"] = b"wrong"
    assert (await store.head("key")).digests == (
        ("crc32c", crc32c_of((b"wrong",)).to_bytes(4, "big")),
    )


async def test_objects_bear_the_time_of_the_clock() -> None:
    clock = ManualClock()
    store = MemoryObjectStore(clock=clock)
    await store.put("key-1", b".")
    clock.advance(timedelta(microseconds=7))
    await store.put("key-2", b".")
    first, second = [info.modified_us async for info in store.list()]
    assert second - first == 7
    assert first == int(clock.now().timestamp()) * 1_000_000


def test_a_manual_clock_moves_when_told() -> None:
    clock = ManualClock()
    start = clock.now()
    clock.advance(timedelta(seconds=1.5))
    assert clock.now() - start == timedelta(seconds=1.5)
    assert clock.monotonic() == 1.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(timedelta(seconds=-1))


def test_a_manual_clock_gives_the_same_ids_each_time() -> None:
    first, second = ManualClock(), ManualClock()
    ids = [first.new_id() for _ in range(3)]
    assert ids == [second.new_id() for _ in range(3)]
    assert len(set(ids)) == 3


def test_the_system_clock_goes_on() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.new_id() != clock.new_id()
    assert len(clock.new_id()) == 32

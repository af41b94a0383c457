from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from functools import partial

import anyio
import pytest
from hypothesis import given
from tests.contracts.objects import ObjectStoreContract, Written, check_against_a_dict, listed
from tests.strategies import Step, store_steps

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.adapters.wrappers.checked import CheckedObjectStore
from vaultfs.adapters.wrappers.counting import CountingObjectStore
from vaultfs.adapters.wrappers.faulty import (
    After,
    Before,
    Delay,
    Fault,
    FaultyObjectStore,
    FlipBit,
    Truncate,
)
from vaultfs.adapters.wrappers.limited import LimitedObjectStore
from vaultfs.adapters.wrappers.metered import OPERATIONS, MeteredObjectStore, Usage
from vaultfs.adapters.wrappers.retrying import RetryingObjectStore, RetryPolicy
from vaultfs.adapters.wrappers.window import Window
from vaultfs.domain.digests import digest_of
from vaultfs.ports.objects import (
    Deleted,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    OutOfSpace,
    Payload,
    PermissionDenied,
    PutMode,
    Span,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    Throttled,
)

DATA = b"content"
PACK = f"packs/{digest_of(DATA).hex()}"

Plan = dict[tuple[str, int], Fault]


def ignored(effect: str) -> None:
    """An effect hook for those who do not count."""


def stacked(store: ObjectStore) -> ObjectStore:
    store = CountingObjectStore(FaultyObjectStore(store, {}), ignored)
    store = CheckedObjectStore(LimitedObjectStore(store, 2))
    return RetryingObjectStore(MeteredObjectStore(store, ManualClock()))


@pytest.fixture
def memory() -> MemoryObjectStore:
    return MemoryObjectStore()


class WrapperContract(ObjectStoreContract):
    wrap: Callable[[ObjectStore], ObjectStore]

    @pytest.fixture
    def store(self, memory: MemoryObjectStore) -> ObjectStore:
        return type(self).wrap(memory)

    @pytest.fixture
    def written(self, memory: MemoryObjectStore) -> Written:
        return memory.objects.get


class TestRetrying(WrapperContract):
    wrap = RetryingObjectStore


class TestLimited(WrapperContract):
    wrap = partial(LimitedObjectStore, at_once=2)


class TestMetered(WrapperContract):
    wrap = partial(MeteredObjectStore, clock=ManualClock())


class TestChecked(WrapperContract):
    wrap = CheckedObjectStore


class TestFaultyWithoutFaults(WrapperContract):
    wrap = partial(FaultyObjectStore, plan=Plan())


class TestCounting(WrapperContract):
    wrap = partial(CountingObjectStore, effect=ignored)


class TestStack(WrapperContract):
    wrap = staticmethod(stacked)


# Retrying


class Patience:
    """A retrying store over a faulty one, and the time it takes."""

    def __init__(self, inner: ObjectStore, plan: Plan, policy: RetryPolicy | None = None) -> None:
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.faulty = FaultyObjectStore(inner, plan)
        self.store = RetryingObjectStore(
            self.faulty,
            policy or RetryPolicy(attempts=4, first_wait=1.0, longest_wait=3.0),
            sleep=self.sleep,
            chance=lambda: 1.0,
            now=self.clock.monotonic,
        )

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(timedelta(seconds=seconds))


CALLS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "head": lambda store: store.head(PACK),
    "get": lambda store: store.get(PACK),
    "list": listed,
    "put": lambda store: store.put("key", b"."),
    "delete": lambda store: store.delete(PACK),
    "delete_many": lambda store: store.delete_many([PACK]),
}


def copy_of(memory: MemoryObjectStore) -> MemoryObjectStore:
    copy = MemoryObjectStore()
    copy.objects.update(memory.objects)
    return copy


@pytest.mark.parametrize("operation", CALLS)
async def test_every_operation_is_tried_again(memory: MemoryObjectStore, operation: str) -> None:
    memory.objects[PACK] = DATA
    plan: Plan = {(operation, 1): Before(), (operation, 2): Before(Throttled)}
    patience = Patience(memory, plan)
    expected = await CALLS[operation](copy_of(memory))
    assert await CALLS[operation](patience.store) == expected
    assert patience.waits == [1.0, 2.0]


@pytest.mark.parametrize("operation", CALLS)
async def test_what_would_fail_again_is_not(memory: MemoryObjectStore, operation: str) -> None:
    memory.objects[PACK] = DATA
    patience = Patience(memory, {(operation, 1): Before(PermissionDenied)})
    with pytest.raises(PermissionDenied) as raised:
        await CALLS[operation](patience.store)
    assert patience.waits == []
    assert not raised.value.outcome_unknown


async def test_waits_double_up_to_the_longest_and_tries_are_counted(
    memory: MemoryObjectStore,
) -> None:
    patience = Patience(memory, {("get", number): Before() for number in range(1, 9)})
    with pytest.raises(StoreUnavailable):
        await patience.store.get("key")
    assert patience.waits == [1.0, 2.0, 3.0]
    assert patience.faulty.calls["get"] == 4


async def test_waits_as_long_as_the_store_asks(memory: MemoryObjectStore) -> None:
    throttled = partial(Throttled, retry_after=17.0)
    patience = Patience(memory, {("get", 1): Before(throttled), ("get", 2): Before()})
    with pytest.raises(ObjectNotFound):
        await patience.store.get("key")
    assert patience.waits == [17.0, 2.0]


async def test_gives_up_rather_than_wait_past_the_budget(memory: MemoryObjectStore) -> None:
    throttled = partial(Throttled, retry_after=17.0)
    patience = Patience(
        memory, {("get", 1): Before(), ("get", 2): Before(throttled)}, RetryPolicy(budget=17.0)
    )
    with pytest.raises(Throttled) as raised:
        await patience.store.get("key")
    assert raised.value.retry_after == 17.0
    assert patience.waits == [0.1]


async def test_a_try_that_takes_too_long_is_given_up(memory: MemoryObjectStore) -> None:
    memory.objects["key"] = DATA
    policy = RetryPolicy(attempts=2, try_limit=0.01)
    patience = Patience(memory, {("get", 1): Delay(5.0)}, policy)
    assert await patience.store.get("key") == DATA
    patience = Patience(memory, {("put", 1): Delay(5.0), ("put", 2): Delay(5.0)}, policy)
    with pytest.raises(StoreTimeout) as raised:
        await patience.store.put("new", DATA)
    assert raised.value.outcome_unknown
    assert "new" not in memory.objects


@pytest.mark.parametrize(
    ("key", "there", "faults", "expected"),
    [
        (PACK, None, (), None),
        (PACK, None, (Before(),), None),
        (PACK, None, (After(),), None),
        (PACK, None, (After(StoreTimeout), Before(Throttled)), None),
        (PACK, None, (After(), After(), Before()), None),
        (PACK, DATA, (), ObjectExists),
        (PACK, DATA, (Before(Throttled),), ObjectExists),
        (PACK, b"another size", (Before(),), ObjectExists),
        ("key", None, (After(),), None),
        ("key", b"CONTENT", (Before(),), ObjectExists),
        ("key", DATA, (Before(),), None),
        ("key", DATA, (Before(Throttled),), ObjectExists),
        (PACK, None, (After(), Before(OutOfSpace)), OutOfSpace),
        (PACK, None, (Before(Throttled), Before(OutOfSpace)), OutOfSpace),
    ],
)
async def test_an_unknown_outcome_of_a_create_is_resolved(
    memory: MemoryObjectStore,
    key: str,
    there: bytes | None,
    faults: tuple[Fault, ...],
    expected: type[StoreError] | None,
) -> None:
    if there is not None:
        memory.objects[key] = there
    patience = Patience(memory, {("put", at): fault for at, fault in enumerate(faults, 1)})
    if expected is None:
        await patience.store.put(key, DATA)
        assert memory.objects[key] == DATA
    else:
        with pytest.raises(expected):
            await patience.store.put(key, DATA)
        assert memory.objects.get(key, DATA) == (there or DATA)


async def test_doubt_about_an_early_try_reaches_the_caller(memory: MemoryObjectStore) -> None:
    patience = Patience(memory, {("put", 1): After(), ("put", 2): Before(OutOfSpace)})
    with pytest.raises(OutOfSpace) as raised:
        await patience.store.put(PACK, DATA)
    assert raised.value.outcome_unknown


async def test_resolving_goes_on_when_head_fails_as_well(memory: MemoryObjectStore) -> None:
    patience = Patience(memory, {("put", 1): After(), ("head", 1): Before()})
    await patience.store.put(PACK, DATA)
    assert patience.faulty.calls == {"put": 3, "head": 2}


async def test_an_overwrite_is_simply_tried_again(memory: MemoryObjectStore) -> None:
    patience = Patience(memory, {("put", 1): After(), ("put", 2): After()})
    await patience.store.put("key", DATA, mode=PutMode.OVERWRITE)
    assert memory.objects == {"key": DATA}


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
async def test_a_listing_goes_on_behind_the_last_key(
    memory: MemoryObjectStore, failing: int
) -> None:
    memory.objects.update(dict.fromkeys(["k-1", "k-2", "k-3"], b"."))
    faults = dict.fromkeys([("list", failing), ("list", failing + 1)], Before())
    patience = Patience(memory, {**faults})
    assert await listed(patience.store, "k-") == ["k-1", "k-2", "k-3"]
    assert await listed(patience.store, "k-", "k-1") == ["k-2", "k-3"]


class HalfDeaf(StoreAround):
    """Deletes only the first of the keys it is given, and is busy for the others."""

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        first, *others = keys
        await self.inner.delete(first)
        busy = Throttled(backend=self.name, operation="delete_many")
        return Deleted(first), *(Deleted(key, busy) for key in others)


async def test_only_keys_that_failed_are_deleted_again(memory: MemoryObjectStore) -> None:
    keys = ["k-1", "k-2", "k-3"]
    memory.objects.update(dict.fromkeys(keys, b"."))
    patience = Patience(HalfDeaf(memory), {})
    assert await patience.store.delete_many(keys) == tuple(map(Deleted, keys))
    assert memory.objects == {}
    assert patience.faulty.calls["delete_many"] == 3


async def test_keys_that_fail_to_the_end_are_told(memory: MemoryObjectStore) -> None:
    keys = [f"k-{number}" for number in range(6)]
    outcomes = await Patience(HalfDeaf(memory), {}).store.delete_many(keys)
    assert [outcome.key for outcome in outcomes if outcome.error] == ["k-4", "k-5"]


def test_a_policy_without_a_try_is_refused() -> None:
    with pytest.raises(ValueError, match="not even one try"):
        RetryPolicy(attempts=0)


@given(steps=store_steps)
def test_a_stack_behaves_like_a_dict(steps: tuple[Step, ...]) -> None:
    anyio.run(check_against_a_dict, stacked(MemoryObjectStore()), steps)


# Limited


class Watched(StoreAround):
    """Notes how many reads go on at once."""

    now = most = 0

    async def get(self, key: str, span: Span | None = None) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(0.002)
        self.now -= 1
        return await self.inner.get(key, span)


async def test_no_more_calls_at_once_than_allowed(memory: MemoryObjectStore) -> None:
    memory.objects["key"] = DATA
    watched = Watched(memory)
    store = LimitedObjectStore(watched, 3)
    async with anyio.create_task_group() as readers:
        for _ in range(10):
            readers.start_soon(store.get, "key")
    assert watched.most == 3


async def test_a_slow_reader_of_a_listing_does_not_hold_others_up(
    memory: MemoryObjectStore,
) -> None:
    memory.objects["key"] = DATA
    store = LimitedObjectStore(memory, 1)
    with anyio.fail_after(1):
        assert [await store.get(info.key) async for info in store.list()] == [DATA]


# Metered


class Slow(StoreAround):
    """Takes a second for each read."""

    def __init__(self, inner: ObjectStore, clock: ManualClock) -> None:
        super().__init__(inner)
        self.clock = clock

    async def get(self, key: str, span: Span | None = None) -> bytes:
        self.clock.advance(timedelta(seconds=1))
        return await self.inner.get(key, span)


async def test_calls_errors_bytes_and_seconds_are_counted(memory: MemoryObjectStore) -> None:
    clock = ManualClock()
    store = MeteredObjectStore(Slow(memory, clock), clock)
    await store.put("key", DATA)
    with pytest.raises(ObjectExists):
        await store.put("key", DATA)
    await store.get("key", Span(0, 3))
    with pytest.raises(ObjectNotFound):
        await store.get("nothing")
    await listed(store)
    before = store.snapshot()
    await store.delete_many(["key"])
    assert before == (
        Usage("head"),
        Usage("get", calls=2, errors=1, bytes_in=3, seconds=2.0),
        Usage("put", calls=2, errors=1, bytes_out=len(DATA)),
        Usage("delete"),
        Usage("delete_many"),
        Usage("list", calls=1),
    )
    assert tuple(usage.operation for usage in before) == OPERATIONS


# Checked


@pytest.mark.parametrize("fault", [FlipBit(13), Truncate(3), Truncate(0)])
@pytest.mark.parametrize("size", [7, 1 << 20])
async def test_damage_is_noticed_on_reading(
    memory: MemoryObjectStore, fault: Fault, size: int
) -> None:
    data = b"x" * size
    key = f"packs/{digest_of(data).hex()}"
    store = CheckedObjectStore(FaultyObjectStore(memory, {("get", 1): fault}))
    await store.put(key, data)
    with pytest.raises(IntegrityError, match=f"expected BLAKE3 {digest_of(data).hex()}, actual"):
        await store.get(key)
    assert await store.get(key) == data


async def test_wrong_bytes_are_not_sent(memory: MemoryObjectStore) -> None:
    with pytest.raises(IntegrityError, match=f"actual {digest_of(b'other').hex()} of 5 bytes"):
        await CheckedObjectStore(memory).put(PACK, b"other")
    assert memory.objects == {}


async def test_spans_and_other_keys_are_not_checked(memory: MemoryObjectStore) -> None:
    memory.objects.update({PACK: b"damaged", "key": b"."})
    store = CheckedObjectStore(memory)
    assert await store.get(PACK, Span(0, 3)) == b"dam"
    assert await store.get("key") == b"."


# Faulty


async def test_faults_come_at_their_calls(memory: MemoryObjectStore) -> None:
    plan: Plan = {
        ("put", 1): Before(OutOfSpace),
        ("put", 2): After(),
        ("get", 2): Truncate(4),
        ("get", 3): FlipBit(8),
        ("delete", 1): After(PermissionDenied),
    }
    store = FaultyObjectStore(memory, plan)
    with pytest.raises(OutOfSpace):
        await store.put("key", DATA)
    assert memory.objects == {}
    with pytest.raises(StoreUnavailable) as raised:
        await store.put("key", DATA)
    assert raised.value.outcome_unknown
    assert [await store.get("key") for _ in range(4)] == [DATA, b"cont", b"cnntent", DATA]
    with pytest.raises(PermissionDenied) as denied:
        await store.delete("key")
    assert denied.value.outcome_unknown
    assert memory.objects == {}


async def test_a_listing_breaks_at_the_step_of_the_fault(memory: MemoryObjectStore) -> None:
    memory.objects.update(dict.fromkeys(["k-1", "k-2", "k-3"], b"."))
    store = FaultyObjectStore(memory, {("list", 3): Before()})
    async with aclosing(store.list()) as objects:
        assert [(await anext(objects)).key for _ in range(2)] == ["k-1", "k-2"]
        with pytest.raises(StoreUnavailable):
            await anext(objects)


# Counting


async def test_every_change_is_announced_before_and_after(memory: MemoryObjectStore) -> None:
    effects: list[str] = []
    store = CountingObjectStore(memory, effects.append)
    await store.put("key", DATA)
    await store.get("key")
    with pytest.raises(ObjectExists):
        await store.put("key", DATA)
    await store.delete("key")
    await store.delete_many(["k-1", "k-2"])
    assert effects == [
        "before memory put key",
        "after memory put key",
        "before memory put key",
        "before memory delete key",
        "after memory delete key",
        "before memory delete_many k-1 k-2",
        "after memory delete_many k-1 k-2",
    ]


@pytest.mark.parametrize(("crash_at", "left"), [(1, {}), (2, {"key": DATA}), (3, {"key": DATA})])
async def test_a_crash_at_an_effect_stops_what_follows(
    memory: MemoryObjectStore, crash_at: int, left: dict[str, bytes]
) -> None:
    numbers = iter(range(1, 99))

    def crash(effect: str) -> None:
        if next(numbers) == crash_at:
            raise KeyboardInterrupt(effect)

    store = CountingObjectStore(memory, crash)

    async def work() -> None:
        await store.put("key", DATA)
        await store.delete("key")

    with pytest.raises(KeyboardInterrupt):
        await work()
    assert memory.objects == left


# How many at once


class _Crowded(StoreAround):
    """A store that wants fewer requests when there are more than `bears` at once."""

    bears = 5
    at_once = 0
    refused = 0

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        self.at_once += 1
        try:
            await anyio.sleep(0.001)
            if self.at_once > self.bears:
                self.refused += 1
                raise Throttled("slow down", backend="crowded", operation="put", key=key)
            await super().put(key, data, mode=mode)
        finally:
            self.at_once -= 1


async def _put_many(store: ObjectStore, first: int, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(first, first + count):
            tasks.start_soon(store.put, f"some/object/{number:04}", DATA)


async def test_a_store_gets_as_many_calls_at_once_as_it_bears() -> None:
    crowded = _Crowded(MemoryObjectStore())
    window = Window(room=40.0)
    policy = RetryPolicy(attempts=20, first_wait=0.001, longest_wait=0.005)
    store = RetryingObjectStore(crowded, policy, window=window)
    await _put_many(store, 0, 200)
    assert window.room < 12
    assert window.taken == 0
    before = crowded.refused
    await _put_many(store, 200, 400)
    assert crowded.refused - before < 250  # now and then it tries for more
    crowded.bears = 1000
    await _put_many(store, 600, 600)
    assert window.room > 20


async def test_many_failures_of_one_moment_count_once() -> None:
    window = Window(room=16.0)
    async with AsyncExitStack() as stack:
        places = [await stack.enter_async_context(window.place()) for _ in range(8)]
        for place in places:
            window.failed(place)
        assert window.room == 8.0
        window.failed(places[0])
        assert window.room == 4.0
        for _ in range(100):
            window.failed(places[0])
        assert window.room == 1.0
    async with window.place():
        pass


async def test_whoever_gives_up_waiting_takes_no_place() -> None:
    window = Window(room=1.0)
    async with window.place():
        with anyio.move_on_after(0.01):
            async with window.place():
                raise AssertionError
    assert window.taken == 0
    async with window.place():
        assert window.taken == 1

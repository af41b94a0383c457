"""One store made of two: where things are put, looked for and deleted."""

import pytest
from attrs import evolve
from tests.contracts.objects import ObjectStoreContract, Written, listed

from vaultfs.adapters.memory import MemoryObjectStore
from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.adapters.wrappers.checked import CheckedObjectStore
from vaultfs.adapters.wrappers.faulty import Before, FaultyObjectStore
from vaultfs.adapters.wrappers.placed import PlacedObjectStore
from vaultfs.domain.digests import digest_of
from vaultfs.domain.migration import Phase, Placement
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    PermissionDenied,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
)

SETTLED = Placement(0, Phase.SETTLED, "s")
DUAL = Placement(3, Phase.DUAL, "s", "t")
SOAK = Placement(4, Phase.SOAK, "s", "t")


@pytest.fixture
def source() -> MemoryObjectStore:
    return MemoryObjectStore("s")


@pytest.fixture
def target() -> MemoryObjectStore:
    return MemoryObjectStore("t")


class Catalog:
    """What `refresh` asks."""

    def __init__(self, now: Placement) -> None:
        self.now = now

    async def load(self) -> Placement:
        return self.now


def placed(now: Placement, source: ObjectStore, target: ObjectStore) -> PlacedObjectStore:
    return PlacedObjectStore({"s": source, "t": target}, now, Catalog(now).load)


class TestWithOneStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, source: MemoryObjectStore) -> ObjectStore:
        return PlacedObjectStore({"s": source}, SETTLED, Catalog(SETTLED).load)

    @pytest.fixture
    def written(self, source: MemoryObjectStore) -> Written:
        return source.objects.get


class TestWithTwoStores(ObjectStoreContract):
    @pytest.fixture
    def store(self, source: MemoryObjectStore, target: MemoryObjectStore) -> ObjectStore:
        return placed(SOAK, source, target)

    @pytest.fixture
    def written(self, source: MemoryObjectStore, target: MemoryObjectStore) -> Written:
        def both(key: str) -> bytes | None:
            assert source.objects.get(key) == target.objects.get(key)
            return target.objects.get(key)

        return both


@pytest.mark.parametrize("phase", Phase)
async def test_each_phase_writes_and_reads_as_it_says(
    phase: Phase, source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    now = Placement(1, phase, "s", None if phase is Phase.SETTLED else "t")
    store = placed(now, source, target)
    assert store.name == now.primary
    targets = store.targets()
    assert (targets.epoch, targets.primary) == (1, now.primary)
    assert targets.stores.keys() == now.write_set
    assert targets.degrades is now.degrades
    stores: dict[str, MemoryObjectStore] = {"s": source, "t": target}
    assert store.readable() == tuple(stores[name] for name in now.read_order)
    await store.put("key", b"content")
    assert {name for name, each in stores.items() if each.objects} == now.write_set
    await store.delete("key")
    assert not source.objects
    assert not target.objects


async def test_the_first_store_is_asked_first(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await source.put("key", b"source")
    await target.put("key", b"targets")
    assert await placed(DUAL, source, target).get("key") == b"source"
    store = placed(SOAK, source, target)
    assert await store.get("key") == b"targets"
    assert (await store.head("key")).size == 7
    assert store.fallbacks == 0


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable, StoreTimeout, StoreMisconfigured, ObjectNotFound, IntegrityError],
)
async def test_the_other_one_answers_for_it(
    error: type[StoreUnavailable], source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await source.put("key", b"content")
    faulty = FaultyObjectStore(target, {("get", 1): Before(error), ("head", 1): Before(error)})
    store = placed(SOAK, source, faulty)
    assert await store.get("key") == b"content"
    assert (await store.head("key")).size == 7
    assert store.fallbacks == 2


async def test_and_for_what_is_damaged(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    key = f"packs/{digest_of(b'content').hex()}"
    await source.put(key, b"content")
    await target.put(key, b"c0ntent")
    store = placed(SOAK, CheckedObjectStore(source), CheckedObjectStore(target))
    assert await store.get(key) == b"content"
    assert store.fallbacks == 1


async def test_why_the_first_could_not_is_what_is_raised(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    faulty = FaultyObjectStore(target, {("get", 1): Before(StoreUnavailable)})
    store = placed(SOAK, source, faulty)
    with pytest.raises(StoreUnavailable):
        await store.get("key")
    with pytest.raises(ObjectNotFound) as seen:
        await store.get("key")
    assert seen.value.backend == "t"
    assert store.fallbacks == 0


async def test_what_is_wrong_with_the_rights_is_passed_over_nowhere(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await source.put("key", b"content")
    faulty = FaultyObjectStore(target, {("get", 1): Before(PermissionDenied)})
    with pytest.raises(PermissionDenied):
        await placed(SOAK, source, faulty).get("key")


async def test_what_one_of_them_has_is_put_into_the_other_all_the_same(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await target.put("key", b"content")
    with pytest.raises(ObjectExists):
        await placed(SOAK, source, target).put("key", b"content")
    assert source.objects == {"key": b"content"}


async def test_what_cannot_be_put_everywhere_is_not_put(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    faulty = FaultyObjectStore(target, {("put", 1): Before(StoreUnavailable)})
    with pytest.raises(StoreUnavailable):
        await placed(DUAL, source, faulty).put("backups/one", b"content")


async def test_a_listing_has_each_key_once(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    for store, keys in ((source, "abdfg"), (target, "bcdeg")):
        for key in keys:
            await store.put(f"key/of-{key}", b"." * (8 if store is source else 16))
    both = placed(SOAK, source, target)
    assert await listed(both) == [f"key/of-{each}" for each in "abcdefg"]
    assert await listed(both, "key/", "key/of-c") == [f"key/of-{each}" for each in "defg"]
    assert await listed(both, "other/") == []
    sizes = {info.key[-1]: info.size async for info in both.list()}
    assert sizes == {each: 8 if each in "af" else 16 for each in "abcdefg"}


@pytest.mark.parametrize("down", ["source", "target"])
async def test_a_listing_never_leaves_out_a_store_that_is_down(
    down: str, source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await source.put("key", b"content")
    await target.put("key", b"content")
    faults = {("list", 1): Before(StoreUnavailable)}
    one = FaultyObjectStore(source, faults if down == "source" else {})
    other = FaultyObjectStore(target, faults if down == "target" else {})
    with pytest.raises(StoreUnavailable):
        await listed(placed(SOAK, one, other))


async def test_many_are_deleted_from_both_with_what_became_of_each(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    await source.put("key/one", b"1")
    await target.put("key/two", b"1")
    outcomes = await placed(SOAK, source, target).delete_many(["key/one", "BAD", "key/two"])
    assert [each.key for each in outcomes] == ["key/one", "BAD", "key/two"]
    assert [each.error is None for each in outcomes] == [True, False, True]
    assert not source.objects
    assert not target.objects


async def test_what_only_one_of_them_could_delete_is_not_deleted(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    faulty = FaultyObjectStore(target, {("delete_many", 1): Before(StoreUnavailable)})
    store = placed(SOAK, source, faulty)
    await store.put("key", b"content")
    with pytest.raises(StoreUnavailable):
        await store.delete_many(["key"])
    assert (await store.delete_many(["key"]))[0].error is None
    assert not target.objects


async def test_it_goes_by_what_the_catalog_says_when_asked(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    catalog = Catalog(DUAL)
    store = PlacedObjectStore({"s": source, "t": target}, DUAL, catalog.load)
    catalog.now = SOAK
    assert store.name == "s"
    await store.refresh()
    assert store.name == "t"
    catalog.now = evolve(DUAL, epoch=2)  # an answer that was long under way
    await store.refresh()
    assert store.placement == SOAK


async def test_a_server_that_missed_two_phases_looks_where_things_are_now(
    source: MemoryObjectStore, target: MemoryObjectStore
) -> None:
    catalog = Catalog(SETTLED)
    store = PlacedObjectStore({"s": source, "t": target}, SETTLED, catalog.load)
    await target.put("key", b"content")
    catalog.now = evolve(SOAK, phase=Phase.DETACHED)
    assert await store.get("key") == b"content"
    assert (await store.head("key")).size == 7
    with pytest.raises(ObjectNotFound):
        await store.get("nothing")


async def test_a_name_that_nothing_is_known_of_is_refused(source: MemoryObjectStore) -> None:
    with pytest.raises(StoreMisconfigured, match="called t"):
        PlacedObjectStore({"s": source}, DUAL, Catalog(DUAL).load)
    catalog = Catalog(SETTLED)
    store = PlacedObjectStore({"s": source}, SETTLED, catalog.load)
    catalog.now = DUAL
    with pytest.raises(StoreMisconfigured, match="called t"):
        await store.refresh()
    assert store.placement == SETTLED
    await store.put("key", b"content")


async def test_both_are_probed(source: MemoryObjectStore, target: MemoryObjectStore) -> None:
    class Locked(StoreAround):
        async def probe(self) -> None:
            raise PermissionDenied(backend=self.name, operation="probe")

    for one, other in ((Locked(source), target), (source, Locked(target))):
        with pytest.raises(PermissionDenied):
            await placed(DUAL, one, other).probe()
    await placed(Placement(1, Phase.RETIRED, "s", "t"), Locked(source), target).probe()

"""Reading: any range of any version, ahead of its consumer, within the budget."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from random import Random

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults import (
    FOUR_PACKS,
    MIB,
    assert_sound,
    at,
    open_memory_vault,
    put,
    random_bytes,
    read,
)

from vaultfs.adapters.files import IterableSource
from vaultfs.adapters.memory import MemoryObjectStore
from vaultfs.adapters.wrappers.faulty import Before, Delay, FaultyObjectStore
from vaultfs.domain.digests import Buffer, digest_of
from vaultfs.domain.errors import DamagedContent
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import HEADER_SIZE
from vaultfs.domain.services.budget import BLOCK, Budget, Use
from vaultfs.domain.services.reader import GAP, Wanted, plan_fetches
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.catalog import Location
from vaultfs.ports.objects import StoreUnavailable

CONTENTS = {
    "/large": random_bytes(5 * MIB),
    "/text": b"a line of text, over and over\n" * 40_000,
    "/small": random_bytes(1000),
    "/empty": b"",
    "/mixed": random_bytes(MIB) + bytes(2 * MIB) + random_bytes(MIB),
}


async def read_range(
    vault: Vault, path: str, start: int, stop: int | None, number: int | None = None
) -> bytes:
    _, version = await vault.files.version(vault.user, at(path), number)
    async with vault.files.read(vault.user.tree, version, start, stop) as parts:
        return b"".join([bytes(piece) async for part in parts for piece in part])


def test_any_range_is_a_slice() -> None:
    ends = st.floats(-0.01, 1.2)

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_memory_vault()) as vault,
    ):
        for name, data in CONTENTS.items():
            portal.call(put, vault, name, data)

        @settings(max_examples=100, deadline=None)
        @given(st.sampled_from(sorted(CONTENTS)), ends, st.none() | ends)
        def check(path: str, first: float, last: float | None) -> None:
            data = CONTENTS[path]
            start = max(0, int(first * len(data)))
            stop = None if last is None else max(0, int(last * len(data)))
            assert portal.call(read_range, vault, path, start, stop) == data[start:stop]

        check()
        portal.call(assert_sound, vault)


async def test_ranges_at_the_edges_of_chunks() -> None:
    async with open_memory_vault() as vault:
        data = CONTENTS["/large"]
        await put(vault, "/file", data)
        _, version = await vault.files.version(vault.user, at("/file"))
        entries = vault.reader.entries(vault.user.id, version.manifest, 0, len(data))
        offsets = [offset async for offset, _ in entries]
        for offset in offsets[1::5]:
            for start in (offset - 1, offset, offset + 1):
                for stop in (start, start + 1, start + 2, offset + 200_000):
                    assert await read_range(vault, "/file", start, stop) == data[start:stop]


async def test_every_version_stays_readable() -> None:
    random = Random("versions")
    versions = [random_bytes(MIB)]
    async with open_memory_vault() as vault:
        await put(vault, "/file", versions[0])
        for _ in range(6):
            cut = random.randrange(MIB)
            versions.append(versions[-1][:cut] + random.randbytes(100) + versions[-1][cut + 50 :])
            await put(vault, "/file", versions[-1])
        for number, data in enumerate(versions, 1):
            assert await read(vault, "/file", number) == data
            assert (
                await read_range(vault, "/file", 500_000, 500_100, number) == data[500_000:500_100]
            )
        assert (await vault.catalog.stats()).packed < 3 * MIB
        await assert_sound(vault)


async def test_a_read_that_is_left_early_holds_nothing() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/file", random_bytes(20 * MIB))
        _, version = await vault.files.version(vault.user, at("/file"))
        for parts_read in (0, 1, 2):
            async with vault.files.read(vault.user.tree, version) as parts:
                for _ in range(parts_read):
                    await anext(parts)
            assert not any(vault.budget.used.values())
        with anyio.move_on_after(0.01):
            async with vault.files.read(vault.user.tree, version) as parts:
                async for _ in parts:
                    await anyio.sleep(1)
        assert not any(vault.budget.used.values())


async def test_little_is_fetched_ahead_of_a_slow_consumer() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {})
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/file", random_bytes(40 * MIB))
        _, version = await vault.files.version(vault.user, at("/file"))
        async with vault.files.read(vault.user.tree, version) as parts:
            await anext(parts)
            await anyio.sleep(0.05)
            assert sum(vault.budget.used.values()) <= FOUR_PACKS // 2
            assert vault.budget.used[Use.AHEAD] <= FOUR_PACKS // 4


async def test_a_store_that_fails_ends_the_read_where_it_failed() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {})
    data = random_bytes(12 * MIB)
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/file", data)
        _, version = await vault.files.version(vault.user, at("/file"))
        store.plan["get", store.calls["get"] + 3] = Before(StoreUnavailable)
        got = b""
        with pytest.raises(StoreUnavailable):
            async with vault.files.read(vault.user.tree, version) as parts:
                async for part in parts:
                    got += b"".join(part)
        assert data.startswith(got)
        assert len(got) < len(data)
        assert await read(vault, "/file") == data
        await assert_sound(vault)


async def test_pieces_come_in_order_however_long_their_gets_take() -> None:
    random, data = Random("order"), random_bytes(20 * MIB)
    store = FaultyObjectStore(MemoryObjectStore(), {})
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/file", data)
        store.plan.update({("get", n): Delay(random.random() / 50) for n in range(1, 50)})
        assert await read(vault, "/file") == data


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_many_copies_through_one_budget_all_finish() -> None:
    """Each is a read that feeds a put, so writes wait for reads, and readers for writes."""
    data = random_bytes(9 * MIB)
    async with open_memory_vault(budget=FOUR_PACKS) as vault:
        await put(vault, "/from", data)
        with anyio.fail_after(50):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(_copy, vault, "/from", f"/to/{number}", turning(number))
        assert not any(vault.budget.used.values())
        assert vault.budget.peak <= FOUR_PACKS
        for number in range(20):
            assert await read(vault, f"/to/{number}") == data.translate(turning(number))


def turning(number: int) -> bytes:
    """A table that makes another content of one, so that nothing of it is there already."""
    return bytes(255 - number ^ byte for byte in range(256))


async def _copy(vault: Vault, source: str, target: str, table: bytes) -> None:
    _, version = await vault.files.version(vault.user, at(source))

    async def turned(parts: AsyncIterator[list[Buffer]]) -> AsyncGenerator[bytes, None]:
        async for part in parts:
            for piece in part:
                yield bytes(piece).translate(table)

    async with vault.files.read(vault.user.tree, version) as parts:
        await vault.files.put(vault.user, at(target), IterableSource(turned(parts)), parents=True)


# Planning


def _place(pack: bytes, offset: int, size: int) -> Location:
    return Location(digest_of(pack), offset, size, size)


def _chunk(place: Location) -> tuple[Wanted, Location]:
    return Wanted(digest_of(b"%d" % place.offset), place.length, 0, place.length), place


def test_neighbours_are_read_together() -> None:
    size = 100_000
    step = HEADER_SIZE + size
    places = [_place(b"a", number * step, size) for number in range(5)]
    [fetch] = plan_fetches(list(map(_chunk, places)))
    assert (fetch.start, fetch.stop, len(fetch.chunks)) == (0, 5 * step, 5)


@pytest.mark.parametrize(
    "second",
    [
        _place(b"b", 100_000 + HEADER_SIZE, 100),  # another pack
        _place(b"a", 100_000 + HEADER_SIZE + GAP + 1, 100),  # too far
        _place(b"a", 0, 100),  # backwards
        _place(b"a", BLOCK, 100_000),  # too much for one get
    ],
)
def test_strangers_are_read_by_themselves(second: Location) -> None:
    first = _place(b"a", 0, 100_000)
    assert len(plan_fetches([_chunk(first), _chunk(second)])) == 2


async def test_a_stranger_reads_nothing() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/file", CONTENTS["/small"])
        _, version = await vault.files.version(vault.user, at("/file"))
        async with vault.reader.content(UserId(99), version.manifest) as parts:
            with pytest.raises(DamagedContent):
                await anext(parts)


async def test_the_more_streams_there_are_the_less_each_has_in_memory() -> None:
    """A consumer that stands still keeps what it was given last."""
    async with open_memory_vault() as vault:
        await put(vault, "/file", random_bytes(20 * MIB, "many"))
        _, version = await vault.files.version(vault.user, at("/file"))
        held: list[int] = []
        async with AsyncExitStack() as stack:
            for _ in range(60):
                content = vault.reader.content(vault.user.id, version.manifest)
                parts = await stack.enter_async_context(content)
                held.append(sum(map(len, await anext(parts))))
        assert min(held[:8]) > 3 * MIB
        assert max(held[40:]) < MIB
        assert sum(held) < 2 * vault.budget.total
        assert vault.reader.streams == 0
        async with vault.reader.content(vault.user.id, version.manifest) as parts:
            assert len(b"".join([piece async for part in parts for piece in part])) == 20 * MIB


async def test_a_chunk_that_is_longer_than_its_manifest_says_is_damaged() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/file", b"some text")
        _, version = await vault.files.version(vault.user, at("/file"))
        [(digest, length)] = version.manifest.entries
        for said in (length - 1, length + 1):
            manifest = Manifest(0, ((digest, said),))
            with pytest.raises(DamagedContent, match="length"):
                async with vault.reader.content(vault.user.id, manifest) as pieces:
                    [_ async for _ in pieces]


# The budget


async def test_who_asks_first_gets_bytes_first_however_many() -> None:
    budget, order = Budget(8 * MIB), list[str]()
    held = budget.try_charge(Use.WRITE, 4 * MIB)
    assert held is not None

    async def ask(name: str, size: int) -> None:
        charge = await budget.charge(Use.WRITE, size)
        order.append(name)
        charge.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "large", 5 * MIB)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, "small", MIB)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        assert budget.try_charge(Use.WRITE, MIB) is None
        held.release()
    assert order == ["large", "small"]
    assert budget.free == budget.total


async def test_who_stops_waiting_lets_those_behind_go_on() -> None:
    budget = Budget(8 * MIB)
    held = budget.try_charge(Use.WRITE, 4 * MIB)
    assert held is not None
    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def ask_for_much() -> None:
            with first:
                await budget.charge(Use.WRITE, 5 * MIB)

        tasks.start_soon(ask_for_much)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(budget.charge, Use.WRITE, MIB)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
    assert budget.used[Use.WRITE] == 5 * MIB

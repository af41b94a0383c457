"""Every change fails at every point where it touches the world, and the vault stays whole."""

import os
import subprocess
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

import anyio
import pytest
from attrs import define, frozen
from tests.faults import (
    FOUR_PACKS,
    MIB,
    BytesSource,
    Effects,
    MemoryTree,
    State,
    add_user,
    assert_between,
    assert_sound,
    at,
    below,
    digests,
    is_there,
    open_memory_vault,
    put,
    random_bytes,
    read,
    settle,
    small_files,
    state_of,
    upload,
    without,
)

from vaultfs.adapters.files import LocalSource, open_source
from vaultfs.adapters.local import LocalObjectStore
from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.sql.connections import open_writer
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.writer import Writer
from vaultfs.adapters.wrappers.faulty import After, Before, Delay, FaultyObjectStore
from vaultfs.adapters.wrappers.retrying import RetryingObjectStore
from vaultfs.domain.chunks import Chunker
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import (
    CatalogUnavailable,
    NotFound,
    SourceChanged,
    VaultError,
    VersionMismatch,
)
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Preconditions, User
from vaultfs.domain.packs import PACK_TARGET
from vaultfs.domain.services.packer import PACK_PREFIX
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.objects import OutOfSpace, StoreUnavailable
from vaultfs.ports.trees import Item, Skipped, Source, SourceTree

Act = Callable[[Vault], Awaitable[object]]

OLD = random_bytes(70_000, "old")
NEW = random_bytes(PACK_TARGET + 2 * MIB, "new")
SMALL_TREE = small_files(40)
LARGE_TREE = {"large/a": random_bytes(700_000, "a"), "large/b": random_bytes(900_000, "b")}
TREE = {**SMALL_TREE, **LARGE_TREE}
BEFORE: State = {
    "/kept": digests(OLD),
    "/file": digests(b"first", OLD),
    "/folder/below": digests(b"below"),
}


async def furnish(vault: Vault) -> None:
    """What stands in the vault before anything fails."""
    for path, data in (
        ("/kept", OLD),
        ("/file", b"first"),
        ("/file", OLD),
        ("/folder/below", b"below"),
    ):
        await put(vault, path, data)
    assert await state_of(vault) == BEFORE


async def put_tree(vault: Vault) -> None:
    report = await vault.transfer.put(vault.user, MemoryTree(TREE), at("/tree"))
    assert report.complete, report
    assert report.files == len(TREE)


@frozen
class Case:
    """A change, the state that it leads to, and whether it can be done twice."""

    act: Act
    after: State
    repeatable: bool = True


CASES = {
    "put": Case(
        lambda vault: put(vault, "/file", NEW), {**BEFORE, "/file": digests(b"first", OLD, NEW)}
    ),
    "put new": Case(
        lambda vault: put(vault, "/new/file", OLD + b"."),
        {**BEFORE, "/new/file": digests(OLD + b".")},
    ),
    "upload": Case(
        lambda vault: upload(vault, "/file", NEW, 8 * MIB),
        {**BEFORE, "/file": digests(b"first", OLD, NEW)},
    ),
    "put tree": Case(put_tree, {**BEFORE, **below("/tree", TREE)}),
    "move": Case(
        lambda vault: vault.files.move(vault.user, at("/folder"), at("/moved")),
        {**without(BEFORE, ["/folder/below"]), "/moved/below": digests(b"below")},
        repeatable=False,
    ),
    "delete": Case(
        lambda vault: vault.files.delete(vault.user, at("/file")),
        {**without(BEFORE, ["/file"]), "trash:/file": BEFORE["/file"]},
        repeatable=False,
    ),
    "restore version": Case(
        lambda vault: vault.files.restore_version(vault.user, at("/file"), 1),
        {**BEFORE, "/file": digests(b"first", OLD, b"first")},
        repeatable=False,
    ),
    "rebuild": Case(lambda vault: vault.recovery.rebuild(), BEFORE),
    "backup": Case(lambda vault: vault.recovery.backup(keep=1), BEFORE),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_change_that_fails_anywhere_is_whole_or_absent(name: str) -> None:
    case = CASES[name]
    number, count = 1, 1
    while number <= count:
        count = await _fails_at(number, case)
        number += 1
    assert count >= 2


async def _fails_at(number: int, case: Case) -> int:
    """How many effects there were, the one that failed being the last unless more was done."""
    effects = Effects()
    async with open_memory_vault(effect=effects) as vault:
        await furnish(vault)
        effects.start(number)
        failed = False
        try:
            await case.act(vault)
        except VaultError:
            failed = True
        count = len(effects.seen)
        effects.start(None)
        if count < number:
            assert not failed
            return count
        assert failed, effects.seen[number - 1]
        found = await state_of(vault)
        assert_between(found, BEFORE, case.after)
        await assert_sound(vault)
        if case.repeatable or found != case.after:
            await case.act(vault)
        assert await state_of(vault) == case.after
        await assert_sound(vault)
    return number + 1


async def test_a_backup_that_failed_is_no_backup_and_its_parts_go_two_days_later() -> None:
    effects = Effects()
    async with open_memory_vault(effect=effects) as vault:
        await furnish(vault)
        effects.start(2)
        with pytest.raises(StoreUnavailable):
            await vault.recovery.backup()
        effects.start(None)
        assert await vault.recovery.backups() == []
        assert isinstance(vault.clock, ManualClock)
        vault.clock.advance(timedelta(days=2))
        backup = await vault.recovery.backup(keep=1)
        assert [each.name for each in await vault.recovery.backups()] == [backup.name]
        keys = [info.key async for info in vault.objects.list("backups/")]
        assert all(backup.name in key for key in keys)


# Full disks


async def test_a_full_store_is_said_clearly_and_costs_nothing() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {})
    async with open_memory_vault(store=store) as vault:
        await furnish(vault)
        store.plan["put", store.calls["put"] + 2] = Before(OutOfSpace)
        with pytest.raises(OutOfSpace, match="free some space"):
            await put(vault, "/file", NEW)
        assert await state_of(vault) == BEFORE
        await assert_sound(vault)
        await put(vault, "/file", NEW)
        assert await read(vault, "/file") == NEW


@contextmanager
def tiny_disk(folder: Path, size: int) -> Generator[None, None, None]:
    """`folder` with room for `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a disk that is full soon")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_said_clearly_and_costs_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with tiny_disk(disk, 3 * MIB):
        async with open_memory_vault(store=LocalObjectStore(disk)) as vault:
            await furnish(vault)
            with pytest.raises(OutOfSpace, match="free some space"):
                await put(vault, "/file", random_bytes(4 * MIB))
            assert await state_of(vault) == BEFORE
            await assert_sound(vault)
            await put(vault, "/file", b"a little")
            assert await read(vault, "/file") == b"a little"


async def test_a_full_disk_of_the_catalog_is_said_clearly(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    connection, number = open_writer(path, create=True)
    catalog = SqliteCatalog(path, Writer(connection, str(path)), number)
    await add_user(catalog, OWNER)
    try:
        async with open_memory_vault(catalog=catalog) as vault:
            await furnish(vault)
            [pages] = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(CatalogUnavailable, match="full"):
                await vault.transfer.put(
                    vault.user, MemoryTree(small_files(500, size=10)), at("/tree")
                )
            found = await state_of(vault)
            assert {path: found.get(path) for path in BEFORE} == BEFORE
            await assert_sound(vault)
            connection.execute("PRAGMA max_page_count = 1000000")
            await put_tree(vault)
            await assert_sound(vault)
    finally:
        await catalog.aclose()


# Lost acknowledgements


async def test_a_put_whose_acknowledgement_was_lost_can_be_repeated() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {})
    async with open_memory_vault(store=store) as vault:
        await furnish(vault)
        store.plan["put", store.calls["put"] + 1] = After(StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await put(vault, "/file", OLD + OLD)
        assert await state_of(vault) == BEFORE
        await assert_sound(vault)
        packs = len(_packs(store))
        await put(vault, "/file", OLD + OLD)
        assert len(_packs(store)) == packs
        assert await read(vault, "/file") == OLD + OLD


async def test_retries_get_a_put_through() -> None:
    faulty = FaultyObjectStore(MemoryObjectStore(), {})
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    store = RetryingObjectStore(faulty, sleep=wait)
    async with open_memory_vault(store=store) as vault:
        await furnish(vault)
        done = faulty.calls["put"]
        faulty.plan["put", done + 1] = Before()
        faulty.plan["put", done + 2] = After()
        faulty.plan["put", done + 4] = After()
        await put(vault, "/file", NEW)
        # Of the two packs either may meet the second fault; if it is the other one, it is found to
        # be there when the fourth call would tell of it.
        assert len(waits) >= 2
        assert await read(vault, "/file") == NEW
        await assert_sound(vault)


def _packs(store: FaultyObjectStore) -> list[str]:
    memory = store.inner
    assert isinstance(memory, MemoryObjectStore)
    return [key for key in memory.objects if key.startswith(PACK_PREFIX)]


# Cancellation


@pytest.mark.parametrize("name", ["put new", "put tree", "put", "upload"])
async def test_a_change_that_is_cancelled_anywhere_is_whole_or_absent(name: str) -> None:
    case = CASES[name]
    number, reached = 1, True
    while reached:
        reached = await _cancelled_at(number, case)
        number += 1
    assert number >= 4


async def _cancelled_at(number: int, case: Case) -> bool:
    scope, count = anyio.CancelScope(), 0

    def effect(_: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            scope.cancel()

    async with open_memory_vault(effect=effect) as vault:
        count = -1000
        await furnish(vault)
        count = 0
        with scope:
            await case.act(vault)
        count += 1000
        await settle(vault)
        assert_between(await state_of(vault), BEFORE, case.after)
        await assert_sound(vault)
        await case.act(vault)
        assert await state_of(vault) == case.after
        await assert_sound(vault)
    return scope.cancel_called


@pytest.mark.slow
@pytest.mark.parametrize("name", ["put", "put tree"])
async def test_a_change_that_is_cancelled_at_any_time_is_whole_or_absent(name: str) -> None:
    case, random = CASES[name], Random(name)
    async with open_memory_vault() as vault:
        await furnish(vault)
        for _ in range(12):
            with anyio.move_on_after(random.random() ** 2 * 0.1):
                await case.act(vault)
            await settle(vault)
            assert_between(await state_of(vault), BEFORE, case.after)
        await assert_sound(vault)
        await case.act(vault)
        assert await state_of(vault) == case.after
        await assert_sound(vault)


async def test_closing_the_vault_ends_what_is_under_way() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {("put", 1): Delay(0.05)})
    async with open_memory_vault(store=store) as vault, anyio.create_task_group() as tasks:
        tasks.start_soon(put, vault, "/file", OLD)
        await anyio.sleep(0.01)
    assert len(_packs(store)) == 1


# Many at once


@pytest.mark.slow
async def test_many_slow_puts_share_a_small_budget() -> None:
    """None of them holds what another one waits for."""
    random = Random("slow")
    contents = {f"/{n}": random.randbytes(random.randrange(300_000)) for n in range(200)}
    contents |= {f"/large/{n}": random.randbytes(5 * MIB) for n in range(4)}

    async def slow() -> None:
        await anyio.sleep(random.random() / 100)

    async def write(vault: Vault, path: str, data: bytes, size: int | None) -> None:
        source = BytesSource(data, step=30_000, pause=slow)
        await vault.files.put(vault.user, at(path), source, size=size, parents=True)

    async with open_memory_vault(budget=FOUR_PACKS) as vault:
        held = MemoryObjectStore  # what is stored stays in memory here, and is counted off
        tracemalloc.start()
        try:
            async with anyio.create_task_group() as tasks:
                for number, (path, data) in enumerate(contents.items()):
                    size = len(data) if number % 2 else None
                    tasks.start_soon(write, vault, path, data, size)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert vault.budget.peak <= FOUR_PACKS
        [store] = vault.objects.stores.values()
        assert isinstance(store, held)
        stored = sum(map(len, store.objects.values()))
        assert peak - stored < 2 * FOUR_PACKS
        assert await state_of(vault) == {path: digests(data) for path, data in contents.items()}
        await assert_sound(vault)


async def test_one_of_two_writers_of_a_version_wins() -> None:
    outcomes: list[str] = []

    async def write(vault: Vault, data: bytes, wanted: Preconditions) -> None:
        source = BytesSource(data, step=10_000, pause=partial(anyio.sleep, 0))
        try:
            await vault.files.put(vault.user, at("/file"), source, preconditions=wanted)
        except VersionMismatch:
            outcomes.append("lost")
        else:
            outcomes.append("won")

    async with open_memory_vault() as vault:
        await furnish(vault)
        held = list(BEFORE["/file"])
        for number in range(10):
            node = await vault.files.stat(vault.user, at("/file"))
            wanted = Preconditions(if_version=node.version)
            contents = [random_bytes(50_000, f"{name}{number}") for name in "abc"]
            async with anyio.create_task_group() as tasks:
                for data in contents:
                    tasks.start_soon(write, vault, data, wanted)
            assert sorted(outcomes) == ["lost", "lost", "won"]
            outcomes.clear()
            held.append(digest_of(await read(vault, "/file")))
            assert held[-1] in digests(*contents)
            assert (await state_of(vault))["/file"] == tuple(held)
        await assert_sound(vault)


# Sources that change


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more than there was" * 1000)


def _truncate(path: Path) -> None:
    os.truncate(path, 1000)


def _rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other bytes, as many as there were")
    os.utime(path, ns=(1, 1))


def _double(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes())


CHANGES = {change.__name__: change for change in (_append, _truncate, _rewrite, _double)}


@define
class _Interrupted:
    """`source`, with something happening behind the first block."""

    source: Source
    happening: Callable[[], object]
    _blocks: int = 0

    async def readinto(self, view: memoryview) -> int:
        filled = await self.source.readinto(view)
        self._blocks += 1
        if self._blocks == 1:
            self.happening()
        return filled


@pytest.mark.parametrize("size", [10, 300_000, 2 * MIB, 6 * MIB])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_before_it_is_read_is_refused(
    change: str, size: int, tmp_path: Path
) -> None:
    if change == "_truncate" and size < 1000:
        return
    path = tmp_path / "file"
    path.write_bytes(random_bytes(size))
    async with open_memory_vault() as vault:
        async with open_source(path) as (source, item):
            CHANGES[change](path)
            with pytest.raises(SourceChanged):
                await vault.files.put(vault.user, at("/file"), source, size=item.size)
        assert not await is_there(vault, "/file")
        await assert_sound(vault)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_between_two_blocks_is_refused(
    change: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(6 * MIB))
    async with open_memory_vault() as vault:
        async with open_source(path) as (source, item):
            changing = _Interrupted(source, partial(CHANGES[change], path))
            with pytest.raises(SourceChanged):
                await vault.files.put(vault.user, at("/file"), changing, size=item.size)
        assert not await is_there(vault, "/file")
        await assert_sound(vault)


@pytest.mark.parametrize("change", CHANGES)
async def test_files_of_a_tree_that_change_after_they_were_seen_are_reported(
    change: str, tmp_path: Path
) -> None:
    sizes = {"small": 5000, "large": 2 * MIB, "steady": 5000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(random_bytes(size, name))
    source = LocalSource(tmp_path)
    async with open_memory_vault() as vault:
        transfer = vault.transfer
        walked = [item async for batch in source.walk() for item in batch]
        for name in ("small", "large"):
            CHANGES[change](tmp_path / name)
        report = await transfer.put(vault.user, _Seen(source, walked), at("/tree"))
        large_is_read_anew = "large" not in {
            each.where.rpartition("/")[2] for each in report.failed
        }
        assert {each.where for each in report.failed} >= {"/small"}
        assert await read(vault, "/tree/steady") == (tmp_path / "steady").read_bytes()
        assert await is_there(vault, "/tree/large") == large_is_read_anew
        if large_is_read_anew:
            assert await read(vault, "/tree/large") == (tmp_path / "large").read_bytes()
        await assert_sound(vault)


@frozen
class _Seen(SourceTree):
    """`source` as it was when `items` were seen."""

    source: SourceTree
    items: list[Item | Skipped]

    async def walk(self) -> AsyncGenerator[list[Item | Skipped], None]:
        yield self.items

    async def load(self, items: Sequence[Item]) -> list[bytes | VaultError]:
        return await self.source.load(items)

    def open(self, item: Item) -> AbstractAsyncContextManager[Source]:
        return self.source.open(item)


async def test_a_file_that_was_replaced_meanwhile_is_read_as_it_was_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    old = random_bytes(6 * MIB)
    path.write_bytes(old)
    other.write_bytes(b"another file")
    async with open_memory_vault() as vault:
        try:
            async with open_source(path) as (source, item):
                replaced = _Interrupted(source, partial(other.rename, path))
                await vault.files.put(vault.user, at("/file"), replaced, size=item.size)
        except SourceChanged:
            assert not await is_there(vault, "/file")
        else:
            assert await read(vault, "/file") == old
        await assert_sound(vault)


# Deduplication, and what users learn of each other


async def test_one_content_from_two_transfers_at_once_is_stored_once() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {("put", 1): Delay(0.1)})
    data = random_bytes(3 * MIB)
    async with open_memory_vault(store=store) as vault:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(put, vault, f"/{number}", data)
        stats = await vault.catalog.stats()
        assert stats.packed < len(data) + 100_000
        assert set((await state_of(vault)).values()) == {digests(data)}
        await assert_sound(vault)


def _chunks(data: bytes) -> list[Digest]:
    at, found = 0, list[Digest]()
    for length in Chunker().cut(data, last=True):
        found.append(digest_of(data[at : at + length]))
        at += length
    return found


async def _put_as(vault: Vault, user: User, data: bytes) -> None:
    await vault.files.put(user, Address(user.name, ("file",)), BytesSource(data), size=len(data))


async def _read_as(vault: Vault, user: User) -> bytes:
    _, version = await vault.files.version(user, Address(user.name, ("file",)))
    async with vault.files.read(user.tree, version) as parts:
        return b"".join([bytes(piece) async for part in parts for piece in part])


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_user_gets_a_chunk_by_sending_it_and_in_no_other_way(*, at_once: bool) -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {("put", 1): Delay(0.05)})
    data = random_bytes(400_000)
    async with open_memory_vault(store=store) as vault:
        ann, bob = [await add_user(vault.catalog, name) for name in ("ann", "bob")]
        assert await vault.catalog.locate(ann.id, _chunks(data)) == {}
        if at_once:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_put_as, vault, ann, data)
                tasks.start_soon(_put_as, vault, bob, data)
        else:
            await _put_as(vault, ann, data)
            assert await vault.catalog.locate(bob.id, _chunks(data)) == {}
            assert (await vault.catalog.known(bob.id, _chunks(data))).own == {}
            await _put_as(vault, bob, data)
        for user in (ann, bob):
            assert set(await vault.catalog.locate(user.id, _chunks(data))) == set(_chunks(data))
            assert await _read_as(vault, user) == data
        assert len(_packs(store)) == 1
        assert await vault.catalog.locate(vault.user.id, _chunks(data)) == {}
        with pytest.raises(NotFound):
            await vault.files.version(bob, at("/file"))
        await assert_sound(vault)


async def test_a_refused_commit_leaves_no_claim_on_the_chunks_of_others() -> None:
    data = random_bytes(400_000)
    async with open_memory_vault() as vault:
        ann, bob = [await add_user(vault.catalog, name) for name in ("ann", "bob")]
        await _put_as(vault, ann, data)
        await _put_as(vault, bob, b"bob's own")
        with pytest.raises(VersionMismatch):
            await _outdated(vault, bob, data)
        assert await vault.catalog.locate(bob.id, _chunks(data)) == {}
        assert await _read_as(vault, bob) == b"bob's own"
        await assert_sound(vault)


async def _outdated(vault: Vault, user: User, data: bytes) -> None:
    """A put that somebody else overtakes while it is under way."""
    address = Address(user.name, ("file",))
    node = await vault.files.stat(user, address)

    async def overtake() -> None:
        await vault.files.put(user, address, BytesSource(b"meanwhile"))
        await vault.files.put(user, address, BytesSource(b"bob's own"))

    source = BytesSource(data, step=len(data), pause=overtake)
    wanted = Preconditions(if_version=node.version)
    await vault.files.put(user, address, source, preconditions=wanted)

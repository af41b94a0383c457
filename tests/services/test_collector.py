"""Collections and scrubs of whole vaults: what nothing needs goes, and everything else stays."""

import json
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random

import anyio
import pytest
from attrs import evolve
from tests.faults import (
    MIB,
    BytesSource,
    CatalogAround,
    MemoryTree,
    add_user,
    assert_sound,
    at,
    open_memory_vault,
    put,
    random_bytes,
    read,
    small_files,
    state_of,
    upload,
)

import vaultfs
from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.adapters.wrappers.faulty import After, Before, FaultyObjectStore
from vaultfs.domain import collection
from vaultfs.domain.collecting import SCRUB_CLAIM_US, BeginScrub, EndScrub, Rewrite
from vaultfs.domain.collecting import Step as CollectStep
from vaultfs.domain.collection import LEASE_US, REWRITE_US, PackUse
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Busy, Conflict, Fenced, VaultError
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.operations import Outcome, PutFile, Unit
from vaultfs.domain.services import collector
from vaultfs.domain.services.collector import Options, Report, TooMuchGarbage
from vaultfs.domain.services.packer import PACK_PREFIX, pack_key
from vaultfs.domain.services.scrub import Scrub
from vaultfs.domain.services.upkeep import Plan
from vaultfs.domain.services.uploads import Purpose
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.recovering import recover_catalog
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault
from vaultfs.ports.catalog import ScrubWanted
from vaultfs.ports.objects import ObjectInfo, ObjectStore, StoreUnavailable

DAY = timedelta(days=1)
NOW = Options(grace_us=0, confirmed=True)
"""Everything that nothing needs, at once."""


def settings(folder: Path) -> Settings:
    return Settings(folder, 64 * MIB, 2)


async def collect(vault: Vault, options: Options = NOW) -> Report:
    return await vault.collector().run(options)


def advance(vault: Vault, by: timedelta) -> None:
    assert isinstance(vault.clock, ManualClock)
    vault.clock.advance(by)


async def forget(vault: Vault, *paths: str) -> None:
    """Delete what is there, and purge it."""
    for path in paths:
        await vault.files.delete(vault.user, at(path), recursive=True)
    for node, _ in await vault.files.trash(vault.user, OWNER):
        await vault.files.purge(vault.user, OWNER, node.id)


async def put_tree(vault: Vault, path: str, contents: dict[str, bytes]) -> None:
    report = await vault.transfer.put(vault.user, MemoryTree(contents), at(path))
    assert report.complete, report


async def packs_of(vault: Vault) -> set[str]:
    """Packs in the store, whether a row names them or not."""
    return {info.key async for info in vault.objects.list(PACK_PREFIX)}


async def pack_with(vault: Vault, data: bytes) -> str:
    """The pack in the store that has a file of one chunk."""
    place = (await vault.catalog.locate(vault.user.id, [digest_of(data)]))[digest_of(data)]
    return pack_key(place.pack)


def flip(store: MemoryObjectStore, key: str) -> None:
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


# What goes


async def test_what_nothing_needs_goes_and_the_rest_stays(tmp_path: Path) -> None:
    """Half of the files, in a folder, by the doors that everybody uses."""
    await init_vault(tmp_path / "vault")
    random = Random(1)
    kept = {f"/kept/{n}": random.randbytes(random.randrange(1, 60_000)) for n in range(60)}
    gone = {f"/gone/{n}": random.randbytes(random.randrange(1, 60_000)) for n in range(60)}
    async with vaultfs.open(tmp_path / "vault") as vault:
        for path, data in sorted({**kept, **gone}.items(), key=lambda item: item[0][-2:]):
            await vault.put(path, data)
    async with open_vault(settings(tmp_path / "vault")) as opened:
        await put_tree(opened, "/kept tree", small_files(300, seed="kept"))
        await put_tree(opened, "/gone tree", small_files(300, seed="gone"))
        await put_tree(opened, "/mixed", small_files(300, seed="mixed"))
        mixed = [f"/mixed/{name}" for name in sorted(small_files(300, seed="mixed"))]
        await forget(opened, "/gone", "/gone tree", *mixed[::3], *mixed[1::3])
        before, garbage = await state_of(opened), await opened.recovery.usage()
        report = await collect(opened)
        assert report.discarded
        assert report.problems == ()
        left = await opened.recovery.usage()
        assert left.unreferenced < 0.05 * garbage.unreferenced
        assert await state_of(opened) == before
        await assert_sound(opened)
        assert len(await packs_of(opened)) == left.catalog.packs
    async with vaultfs.open(tmp_path / "vault") as vault:
        for path, data in kept.items():
            assert await vault.get(path) == data


async def test_packs_of_thousands_of_chunks_go_at_once() -> None:
    """None of them is kept by a chunk that is taken for needed by mistake."""
    async with open_memory_vault() as vault:
        await put_tree(vault, "/kept", small_files(6000, seed="kept", size=100))
        await put_tree(vault, "/gone", small_files(6000, seed="gone", size=100))
        await forget(vault, "/gone")
        await collect(vault)
        assert (await vault.recovery.usage()).unreferenced < 1000
        await assert_sound(vault)


async def test_a_grace_period_is_kept() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        steps: list[tuple[int, int]] = []
        for _ in range(4):
            report = await collect(vault, Options(confirmed=True))
            steps.append((report.condemned, report.discarded))
            advance(vault, DAY / 2)
        assert steps == [(0, 0), (0, 0), (1, 0), (0, 0)]
        report = await collect(vault, Options(confirmed=True))
        assert (report.condemned, report.discarded) == (0, 1)
        assert await packs_of(vault) == set()


async def a_trashed_file(vault: Vault) -> None:
    await vault.files.delete(vault.user, at("/f"))


async def an_old_version(vault: Vault) -> None:
    await put(vault, "/f", b"newer")


async def a_copy(vault: Vault) -> None:
    await vault.files.copy(vault.user, at("/f"), at("/copy"))
    await vault.files.delete(vault.user, at("/f"))


async def an_open_upload(vault: Vault) -> None:
    session = await vault.uploads.create(vault.user, Purpose(at("/up")), size=len(DATA))
    half = BytesSource(DATA[: len(DATA) // 2])
    await vault.uploads.append(vault.user, session.id, half, at=0)
    await forget(vault, "/f")


async def a_promise(vault: Vault) -> None:
    assert all(await vault.uploads.have(vault.user, await chunks_of(vault, "/f")))
    await forget(vault, "/f")


async def another_user(vault: Vault) -> None:
    bob = await add_user(vault.catalog, "bob")
    await vault.files.put(bob, Address("bob", ("f",)), BytesSource(DATA), size=len(DATA))
    await forget(vault, "/f")


DATA = random_bytes(2 * MIB)
KEEPERS = (a_trashed_file, an_old_version, a_copy, an_open_upload, a_promise, another_user)


async def chunks_of(vault: Vault, path: str) -> list[Digest]:
    """The chunks that the manifest of a file has in itself."""
    _, version = await vault.files.version(vault.user, at(path), None)
    return [digest for digest, _ in version.manifest.entries]


@pytest.mark.parametrize("keep", KEEPERS)
async def test_what_somebody_can_still_reach_stays(
    keep: Callable[[Vault], Awaitable[None]],
) -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/f", DATA)
        node, chunks = await vault.files.stat(vault.user, at("/f")), await chunks_of(vault, "/f")
        await put(vault, "/gone", random_bytes(MIB, "gone"))
        await forget(vault, "/gone")
        await keep(vault)
        assert (await collect(vault)).discarded
        await assert_sound(vault)
        if keep is a_trashed_file:
            await vault.files.restore(vault.user, OWNER, node.id)
            assert await read(vault, "/f") == DATA
        elif keep is an_old_version:
            assert await read(vault, "/f", 1) == DATA
        elif keep is a_copy:
            assert await read(vault, "/copy") == DATA
        elif keep is an_open_upload:
            await upload(vault, "/up", DATA, MIB)
            assert await read(vault, "/up") == DATA
        elif keep is a_promise:
            assert set((await vault.catalog.known(vault.user.id, chunks)).own) == set(chunks)
            advance(vault, 2 * DAY)
            assert (await collect(vault)).discarded
            assert (await vault.catalog.known(vault.user.id, chunks)).own == {}


# Transfers under way


class Stopping(CatalogAround):
    """A catalog before whose next commit of a file something else happens."""

    meanwhile: "anyio.Event | None" = None
    go_on: "anyio.Event | None" = None

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        committing = any(isinstance(op, PutFile) for unit in units for op in unit.operations)
        if committing and self.meanwhile is not None and self.go_on is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile.set()
            await self.go_on.wait()
        return await super().apply(units)


@pytest.mark.parametrize("what", ["the same", "something new besides", "a part"])
@pytest.mark.parametrize("collections", [0, 1, 2])
async def test_a_put_across_collections_reads_back_or_is_refused(
    what: str, collections: int
) -> None:
    """It has found its chunks, which nothing needs, and is not committed yet."""
    old = random_bytes(2 * MIB, "old")
    data = {"the same": old, "something new besides": old + random_bytes(MIB, "n")}.get(
        what, old[:MIB]
    )
    inner = await SqliteCatalog.open(None)
    await add_user(inner, OWNER)
    catalog = Stopping(inner)
    async with open_memory_vault(catalog=catalog) as vault:
        await put(vault, "/old", old)
        await put(vault, "/kept", random_bytes(100_000, "kept"))
        await forget(vault, "/old")
        catalog.meanwhile, catalog.go_on = anyio.Event(), anyio.Event()
        stopped, outcome = catalog.meanwhile, list[VaultError | None]()

        async def slow() -> None:
            try:
                await put(vault, "/slow", data)
                outcome.append(None)
            except VaultError as error:
                outcome.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow)
            await stopped.wait()
            for _ in range(collections):
                await _one_collection(vault)
            catalog.go_on.set()
        if outcome == [None]:
            assert await read(vault, "/slow") == data
        else:
            assert collections
            assert isinstance(outcome[0], Conflict | Busy)
        await assert_sound(vault)
        await put(vault, "/slow", data)
        assert await read(vault, "/slow") == data
        await collect(vault)
        assert await read(vault, "/slow") == data
        await assert_sound(vault)
    await inner.aclose()


async def _one_collection(vault: Vault) -> None:
    """A collection that lets go at once of what was condemned before, and no more."""
    advance(vault, timedelta(hours=2))
    await collect(vault, Options(grace_us=1, confirmed=True))


async def test_a_put_that_finds_chunks_in_a_condemned_pack_brings_it_back() -> None:
    data = random_bytes(2 * MIB)
    async with open_memory_vault() as vault:
        await put(vault, "/f", data)
        packs = await packs_of(vault)
        await forget(vault, "/f")
        await _one_collection(vault)
        [pack] = await vault.catalog.pack_uses(0)
        assert pack.condemned_us is not None
        await put(vault, "/again", data)
        [pack] = await vault.catalog.pack_uses(0)
        assert pack.condemned_us is None
        report = await collect(vault)
        assert (report.condemned, report.discarded) == (0, 0)
        assert await packs_of(vault) == packs
        assert await read(vault, "/again") == data


async def test_the_same_bytes_can_be_put_again_after_their_pack_went() -> None:
    data = random_bytes(2 * MIB)
    async with open_memory_vault() as vault:
        keys = set[Digest]()
        for _ in range(3):
            await put(vault, "/f", data)
            [pack] = await vault.catalog.packs()
            assert pack.key not in keys
            keys.add(pack.key)
            await forget(vault, "/f")
            assert (await collect(vault)).discarded == 1
        await put(vault, "/f", data)
        assert await read(vault, "/f") == data
        await assert_sound(vault)


# Rewriting


async def test_what_is_left_in_a_rewritten_pack_can_be_put_again() -> None:
    files = {f"f{number}": random_bytes(50_000, number) for number in range(40)}
    async with open_memory_vault() as vault:
        await put_tree(vault, "/tree", files)
        await forget(vault, *(f"/tree/f{number}" for number in range(30)))
        advance(vault, 2 * DAY)
        report = await collect(vault, Options(confirmed=True))
        assert (report.rewritten, report.discarded) == (1, 0)
        await put(vault, "/again", files["f3"])
        await put(vault, "/kept", files["f35"])
        assert await read(vault, "/again") == files["f3"]
        await collect(vault)
        assert await read(vault, "/again") == files["f3"]
        assert await read(vault, "/kept") == files["f35"]
        await assert_sound(vault)


async def test_tiny_packs_are_merged_again_and_again() -> None:
    """Also into a pack of the same bytes as one that went before."""
    async with open_memory_vault() as vault:
        for round_number in range(3):
            for number in range(20):
                await put(vault, f"/f{number}", random_bytes(10_000, number))
            report = await collect(vault)
            assert report.rewritten == 20, round_number
            assert len(await packs_of(vault)) == 1
            for number in range(20):
                assert await read(vault, f"/f{number}") == random_bytes(10_000, number)
            await assert_sound(vault)
            await forget(vault, *(f"/f{number}" for number in range(20)))
            await collect(vault)
            assert await packs_of(vault) == set()


async def test_nothing_is_rewritten_without_end() -> None:
    async with open_memory_vault() as vault:
        for number in range(17):
            await put(vault, f"/f{number}", random_bytes(1_000_000, number))
        assert (await collect(vault)).rewritten == 16
        report = await collect(vault)
        assert (report.rewritten, report.revived, report.condemned) == (0, 0, 0)
        await put(vault, "/again", random_bytes(1_000_000, 16))
        await assert_sound(vault)


async def test_repacking_alone_lets_nothing_go() -> None:
    async with open_memory_vault() as vault:
        for number in range(20):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        await put(vault, "/gone", random_bytes(MIB, "gone"))
        await forget(vault, "/gone")
        report = await collect(vault, Options(only_repack=True))
        assert (report.condemned, report.discarded, report.rewritten) == (0, 0, 20)
        assert len(await packs_of(vault)) == 22
        await assert_sound(vault)


class Pausing(StoreAround):
    """A store that waits before it reads of a pack, once."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.asked: anyio.Event | None = None
        self.go_on = anyio.Event()

    async def get(self, key: str, span: object = None) -> bytes:
        if self.asked is not None and key.startswith(PACK_PREFIX):
            asked, self.asked = self.asked, None
            asked.set()
            await self.go_on.wait()
        return await self.inner.get(key, span)  # type: ignore[arg-type]


async def test_a_reader_whose_chunks_move_finds_them_again() -> None:
    clock = ManualClock()
    store = Pausing(MemoryObjectStore(clock=clock))
    async with open_memory_vault(store=store) as vault:
        for number in range(20):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        asked = store.asked = anyio.Event()
        found: list[bytes] = []

        async def reader() -> None:
            found.append(await read(vault, "/f7"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await asked.wait()
            assert (await collect(vault)).discarded == 20
            store.go_on.set()
        assert found == [random_bytes(10_000, 7)]


async def test_a_damaged_pack_is_not_rewritten_and_told_of() -> None:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        files = {f"f{number}": random_bytes(50_000, number) for number in range(40)}
        await put_tree(vault, "/tree", files)
        await forget(vault, *(f"/tree/f{number}" for number in range(39)))
        key = await pack_with(vault, files["f39"])
        place = (await vault.catalog.locate(vault.user.id, [digest_of(files["f39"])]))[
            digest_of(files["f39"])
        ]
        data = bytearray(store.objects[key])
        data[place.offset + 1000] ^= 1
        store.objects[key] = bytes(data)
        report = await collect(vault)
        assert [problem for problem in report.problems if key in problem]
        assert (report.rewritten, report.discarded) == (0, 0)
        assert key in await packs_of(vault)


# Orphans


async def test_orphans_go_after_the_grace_period_alone() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/f", b"text" * 1000)
        orphan = f"{PACK_PREFIX}{digest_of(b'x').hex()}"
        await vault.objects.put(orphan, b"x")
        await vault.objects.put("packs/readme.txt", b"not one of ours")
        assert (await collect(vault, Options())).orphans == 0
        advance(vault, DAY - timedelta(seconds=1))
        assert (await collect(vault, Options())).orphans == 0
        advance(vault, timedelta(seconds=2))
        assert (await collect(vault, Options())).orphans == 1
        left = await packs_of(vault)
        assert orphan not in left
        assert "packs/readme.txt" in left
        assert await read(vault, "/f") == b"text" * 1000
        await assert_sound(vault)


class Short(StoreAround):
    """A store whose listings leave things out, or fail in the middle."""

    fails = False
    short = True

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:
            number = 0
            async for info in objects:
                number += 1
                if number > 2 and self.fails:
                    raise StoreUnavailable(backend=self.name, operation="list")
                if number % 2 or not self.short:
                    yield info


@pytest.mark.parametrize("fails", [True, False])
async def test_a_listing_that_is_short_or_fails_loses_nothing(*, fails: bool) -> None:
    store = Short(MemoryObjectStore())
    store.fails = fails
    async with open_memory_vault(store=store) as vault:
        for number in range(5):
            await put(vault, f"/f{number}", random_bytes(2 * MIB, number))
        before = await state_of(vault)
        if fails:
            with pytest.raises(StoreUnavailable):
                await collect(vault)
            assert not (await vault.catalog.collections())[0].complete
        else:
            assert (await collect(vault)).orphans == 0
        assert await state_of(vault) == before
        await assert_sound(vault)


async def test_a_short_listing_leaves_nothing_out_of_a_new_index() -> None:
    """Which would be collected then."""
    store = Short(MemoryObjectStore())
    async with open_memory_vault(store=store) as vault:
        for number in range(5):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        before = await state_of(vault)
        assert (await vault.recovery.rebuild()).packs == 5
        store.short = False
        assert (await collect(vault)).orphans == 0
        assert await state_of(vault) == before
        await assert_sound(vault)


async def test_what_is_needed_and_in_no_index_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    await init_vault(folder)
    async with open_vault(settings(folder)) as vault:
        for name in "fg":
            await put(vault, f"/{name}", random_bytes(10_000, name))
        await vault.objects.put(f"{PACK_PREFIX}{digest_of(b'x').hex()}", b"x")
        before, packs = await state_of(vault), await packs_of(vault)
        with closing(sqlite3.connect(folder / "catalog.db", isolation_level=None)) as rows:
            rows.execute("DELETE FROM chunks WHERE pack = (SELECT MIN(id) FROM packs)")
            rows.execute("DELETE FROM packs WHERE id = (SELECT MIN(id) FROM packs)")
        report = await collect(vault)
        assert (report.orphans, len(report.problems)) == (1, 1)
        assert "rebuild" in report.problems[0]
        assert len(await packs_of(vault)) == len(packs) - 1
        await vault.recovery.rebuild()
        assert await state_of(vault) == before
        await assert_sound(vault)


class Slow(StoreAround):
    """A store whose listings take minutes."""

    vault: Vault

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:
            async for info in objects:
                advance(self.vault, timedelta(microseconds=LEASE_US // 2))
                yield info


async def test_a_collection_is_heard_of_while_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "BEAT", -1.0)
    store = Slow(MemoryObjectStore())
    async with open_memory_vault(store=store) as vault:
        store.vault = vault
        for number in range(5):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        heard: list[int] = []

        class Heard(CatalogAround):
            async def collect(self, step: CollectStep, actor: UserId, at_us: int) -> int:
                heard.append(at_us)
                return await super().collect(step, actor, at_us)

        run = vault.collector()
        run.catalog = Heard(vault.catalog)
        await run.run(NOW)
        assert max(after - before for before, after in pairwise(heard)) < LEASE_US


# Errors


@pytest.mark.parametrize("fault", [Before(), After()])
async def test_a_store_that_fails_to_delete_ends_the_run_and_the_next_goes_on(
    fault: Before | After,
) -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {("delete_many", 1): fault})
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        with pytest.raises(StoreUnavailable):
            await collect(vault)
        assert len(await vault.catalog.doomed()) == 1
        await collect(vault)
        assert await vault.catalog.doomed() == []
        assert await packs_of(vault) == set()
        await assert_sound(vault)


async def test_a_page_that_cannot_be_read_ends_the_run() -> None:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/large", random_bytes(6 * MIB))
        await put(vault, "/gone", random_bytes(2 * MIB, "gone"))
        _, version = await vault.files.version(vault.user, at("/large"), None)
        assert version.manifest.level
        await forget(vault, "/gone")
        page = version.manifest.entries[0][0]
        place = (await vault.catalog.locate(vault.user.id, [page]))[page]
        del store.objects[pack_key(place.pack)]
        before = dict(store.objects)
        with pytest.raises(VaultError):
            await collect(vault)
        assert store.objects == before
        assert all(each.condemned_us is None for each in await vault.catalog.pack_uses(0))


# What people decide


async def test_too_much_at_once_has_to_be_confirmed() -> None:
    async with open_memory_vault(budget=4 * 64 * MIB) as vault:
        for number in range(5):
            await put(vault, f"/f{number}", random_bytes(15 * MIB, number))
        await forget(vault, *(f"/f{number}" for number in range(5)))
        with pytest.raises(TooMuchGarbage, match="--confirm"):
            await collect(vault, Options(grace_us=0))
        assert all(each.condemned_us is None for each in await vault.catalog.pack_uses(0))
        assert (await collect(vault)).discarded >= 5
        assert await packs_of(vault) == set()


async def test_a_dry_run_changes_nothing() -> None:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/kept", random_bytes(2 * MIB, "kept"))
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        before, objects = await state_of(vault), dict(store.objects)
        uses = await vault.catalog.pack_uses(0)
        report = await collect(vault, evolve(NOW, dry_run=True))
        assert (report.condemned, report.discarded) == (1, 0)
        [listed] = report.listed
        assert listed.startswith(PACK_PREFIX)
        assert await state_of(vault) == before
        assert store.objects == objects
        assert await vault.catalog.pack_uses(0) == uses


async def test_condemnations_can_be_taken_back() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        await _one_collection(vault)
        assert await vault.collector().undelete() == 1
        report = await collect(vault, Options(grace_us=1, confirmed=True))
        assert (report.condemned, report.discarded) == (1, 0)


async def test_one_collects_and_the_other_is_told() -> None:
    clock = ManualClock()
    store = Pausing(MemoryObjectStore(clock=clock))
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/large", random_bytes(6 * MIB))
        asked = store.asked = anyio.Event()
        reports: list[Report] = []

        async def first() -> None:
            reports.append(await collect(vault))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await asked.wait()
            with pytest.raises(Busy):
                await collect(vault)
            store.go_on.set()
        assert len(reports) == 1
        await collect(vault)
        await assert_sound(vault)


async def test_collections_tell_what_they_did() -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        report = await collect(vault)
        found = await vault.catalog.collections()
        assert all(each.complete for each in found)
        discarded = sum(json.loads(each.report)["discarded"] for each in found)
        assert discarded == report.discarded == 1
        assert "collect" in [each.kind for each in await vault.catalog.audit()]


# Rebuilds and backups


async def test_a_rebuild_between_collections_changes_nothing() -> None:
    faults = FaultyObjectStore(MemoryObjectStore(), {})
    async with open_memory_vault(store=faults) as vault:
        for number in range(20):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        faults.plan["delete_many", faults.calls["delete_many"] + 1] = Before()
        with pytest.raises(StoreUnavailable):
            await collect(vault)
        assert await vault.catalog.doomed()
        before = await state_of(vault)
        await vault.recovery.rebuild()
        assert await state_of(vault) == before
        await collect(vault)
        assert await state_of(vault) == before
        await assert_sound(vault)


async def test_a_catalog_from_a_backup_is_reconciled_first(tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    await init_vault(folder)
    async with open_vault(settings(folder)) as vault:
        await put(vault, "/f", random_bytes(2 * MIB))
        await put(vault, "/lost", random_bytes(2 * MIB, "lost"))
        lost = await pack_with_page(vault, "/lost")
        backup = await vault.recovery.backup()
        await put(vault, "/later", random_bytes(2 * MIB, "later"))
    await recover_catalog(folder, backup.name)
    async with open_vault(settings(folder)) as vault:
        with pytest.raises(Conflict, match="rebuild"):
            await vault.collector().reconcile(accept=True)
        await vault.recovery.rebuild()
        with pytest.raises(Conflict, match="reconcile"):
            await collect(vault)
        before = await packs_of(vault)
        found = await vault.collector().reconcile(accept=False)
        assert found.named + found.unnamed == len(before)
        with pytest.raises(Conflict, match="reconcile"):
            await collect(vault)
        await vault.objects.delete(lost)
        found = await vault.collector().reconcile(accept=True)
        assert found.missing == (lost,)
        await collect(vault, evolve(NOW, sparse=0))
        assert await packs_of(vault) < before
        assert await read(vault, "/f") == random_bytes(2 * MIB)


async def pack_with_page(vault: Vault, path: str) -> str:
    """The pack with the first chunk of a file."""
    _, version = await vault.files.version(vault.user, at(path), None)
    digest = version.manifest.entries[0][0]
    return pack_key((await vault.catalog.locate(vault.user.id, [digest]))[digest].pack)


# Scrubs


async def scrub(vault: Vault, period: timedelta = DAY, *, cheap: bool = False) -> Scrub:
    return await vault.scrubber().run(period, cheap=cheap)


@pytest.mark.parametrize("damage", ["flipped", "missing", "short"])
@pytest.mark.parametrize("cheap", [True, False])
async def test_a_scrub_finds_damage_and_the_files_it_hits(damage: str, *, cheap: bool) -> None:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        for number in range(40):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        await vault.files.copy(vault.user, at("/f7"), at("/copy"))
        key = await pack_with(vault, random_bytes(10_000, 7))
        if damage == "flipped":
            flip(store, key)
        elif damage == "missing":
            del store.objects[key]
        else:
            store.objects[key] = store.objects[key][:-1]
        advance(vault, 2 * DAY)
        found = await scrub(vault, cheap=cheap)
        assert found.packs == 40
        assert all(problem.startswith(key) for problem in found.problems)
        assert found.problems
        assert sorted(each.path for each in found.files) == ["/copy", "/f7"]
        assert bool(found.size) is not cheap
        [kept] = await vault.catalog.scrubs()
        findings = json.loads(kept.findings)
        assert {each["file"] for each in findings if "file" in each} == {"me:/copy", "me:/f7"}
        assert (kept.packs, kept.size) == (40, found.size)


async def test_a_scrub_goes_round() -> None:
    async with open_memory_vault() as vault:
        for number in range(40):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        assert (await scrub(vault)).packs == 0  # they are new
        advance(vault, 2 * DAY)
        counts = [(await vault.scrubber().run(DAY, most=1)).packs for _ in range(11)]
        assert counts == [4] * 10 + [0]
        assert (await scrub(vault, cheap=True)).packs == 0  # they were read
        advance(vault, 2 * DAY)
        assert (await scrub(vault, cheap=True)).packs == 40
        assert (await scrub(vault)).packs == 40
        total = sum(pack.size for pack in await vault.catalog.pack_uses(0))
        assert sum(each.size for each in await vault.catalog.scrubs()) == 2 * total


async def test_scrubs_share_what_there_is_to_read() -> None:
    async with open_memory_vault() as vault:
        for number in range(40):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        total = sum(pack.size for pack in await vault.catalog.pack_uses(0))
        advance(vault, 2 * DAY)
        found: list[Scrub] = []

        async def one() -> None:
            found.append(await scrub(vault))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one)
        assert sum(each.packs for each in found) == 40
        assert sum(each.size for each in found) == total
        assert max(each.packs for each in found) < 40


async def test_what_a_dead_scrub_had_in_hand_is_read_by_another() -> None:
    async with open_memory_vault() as vault:
        for number in range(8):
            await put(vault, f"/f{number}", random_bytes(10_000, number))
        advance(vault, 2 * DAY)
        scrubber = vault.scrubber()
        want = ScrubWanted(
            await scrubber.step(BeginScrub()), micros(vault.clock.now()), vault.objects.name
        )
        assert len(await vault.catalog.claim_scrub(want, micros(vault.clock.now()))) == 8
        assert (await scrub(vault)).packs == 0
        advance(vault, timedelta(microseconds=SCRUB_CLAIM_US))
        assert (await scrub(vault)).packs == 8


async def test_a_scrub_of_everything_comes_to_an_end() -> None:
    """Though, by the clock, what was read just now is due again."""
    async with open_memory_vault() as vault:
        for number in range(20):
            await put(vault, f"/f{number}", random_bytes(1000, number))
        found = await scrub(vault, timedelta())
        assert (found.packs, found.problems) == (20, ())


class Killed(CatalogAround):
    """A catalog in which no scrub comes to its end."""

    async def collect(self, step: CollectStep, actor: UserId, at_us: int) -> int:
        if isinstance(step, EndScrub):
            raise KeyboardInterrupt
        return await super().collect(step, actor, at_us)


async def test_what_a_scrub_found_is_kept_though_it_is_killed() -> None:
    """The next one does not look there for a month."""
    inner = await SqliteCatalog.open(None)
    await add_user(inner, OWNER)
    store = MemoryObjectStore()
    async with open_memory_vault(store=store, catalog=Killed(inner)) as vault:
        await put(vault, "/f", random_bytes(10_000))
        key = await pack_with(vault, random_bytes(10_000))
        flip(store, key)
        advance(vault, 2 * DAY)
        with pytest.raises(KeyboardInterrupt):
            await scrub(vault)
        [kept] = await vault.catalog.scrubs()
        assert kept.ended_us is None
        [finding] = json.loads(kept.findings)
        assert finding["problem"].startswith(key)
    await inner.aclose()


# Rewriting by many


async def sparse_vault(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 20 packs, a quarter of each needed, to be rewritten by fours."""
    monkeypatch.setattr(collection, "FULL", 45_000)
    for tree in range(20):
        files = {f"f{number}": random_bytes(10_000, f"{tree}-{number}") for number in range(4)}
        await put_tree(vault, f"/{tree}", files)
    await forget(vault, *(f"/{tree}/f{number}" for tree in range(20) for number in range(3)))


async def assert_rewritten(vault: Vault) -> None:
    for tree in range(20):
        assert await read(vault, f"/{tree}/f3") == random_bytes(10_000, f"{tree}-3")
    await assert_sound(vault)
    assert all(pack.condemned_us is not None or pack.size > 30_000 for pack in await uses(vault))


async def uses(vault: Vault) -> list[PackUse]:
    return await vault.catalog.pack_uses(0)


REPACK = Options(only_repack=True)


@pytest.mark.parametrize("what", ["shared", "died", "slow"])
async def test_packs_are_rewritten_by_many(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Pausing(MemoryObjectStore())
    async with open_memory_vault(store=store, budget=256 * MIB) as vault:
        await sparse_vault(vault, monkeypatch)
        asked = store.asked = anyio.Event()
        reports: list[Report] = []

        async def first() -> None:
            reports.append(await collect(vault, REPACK))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await asked.wait()  # it has claimed four packs
            if what == "died":
                assert await vault.catalog.claim_rewrite(micros(vault.clock.now())) is not None
            if what == "slow":  # its claim runs out, and both rewrite the same packs
                advance(vault, timedelta(microseconds=REWRITE_US))
            helped = (await collect(vault, REPACK)).rewritten
            assert helped == {"shared": 16, "died": 12, "slow": 20}[what]
            assert await vault.collector().help() == 0
            if what == "died":
                advance(vault, timedelta(microseconds=REWRITE_US))
            store.go_on.set()
        assert [report.rewritten for report in reports] == [20]
        await assert_rewritten(vault)
        await collect(vault)
        await assert_rewritten(vault)


async def test_rewriting_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Pausing(MemoryObjectStore())
    async with open_memory_vault(store=store, budget=256 * MIB) as vault:
        await sparse_vault(vault, monkeypatch)
        asked = store.asked = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, vault, REPACK)
            await asked.wait()
            assert await vault.collector().help() == 16
            tasks.cancel_scope.cancel()
        assert (await collect(vault, REPACK)).rewritten == 4
        await assert_rewritten(vault)


class Late(CatalogAround):
    """A catalog that answers the first who asks for something to rewrite only later."""

    asked: "anyio.Event | None" = None
    go_on: anyio.Event

    async def claim_rewrite(self, at_us: int) -> Rewrite | None:
        if self.asked is not None:
            asked, self.asked = self.asked, None
            asked.set()
            await self.go_on.wait()
        return await super().claim_rewrite(at_us)


async def test_who_was_paused_does_not_go_on_as_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has marked before the other did, and would end what the other has under way."""
    inner = await SqliteCatalog.open(None)
    await add_user(inner, OWNER)
    catalog, store = Late(inner), Pausing(MemoryObjectStore())
    async with open_memory_vault(store=store, catalog=catalog, budget=256 * MIB) as vault:
        await sparse_vault(vault, monkeypatch)
        asked, catalog.go_on = anyio.Event(), anyio.Event()
        catalog.asked = asked

        async def first() -> None:
            with pytest.raises(Fenced), anyio.fail_after(5):
                await collect(vault, REPACK)
            second, _ = await vault.catalog.collections()
            assert second.ended_us is None
            store.go_on.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await asked.wait()
            advance(vault, timedelta(microseconds=LEASE_US))
            reading = store.asked = anyio.Event()
            tasks.start_soon(collect, vault, REPACK)
            await reading.wait()  # the second has claimed some
            catalog.go_on.set()
        assert [each.complete for each in await vault.catalog.collections()] == [True, False]
        await assert_rewritten(vault)
    await inner.aclose()


# Upkeep


async def test_upkeep_collects_once_a_day_and_scrubs() -> None:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        plan = Plan(duty=1.0, backup=None)
        await put(vault, "/kept", random_bytes(2 * MIB, "kept"))
        await put(vault, "/f", random_bytes(2 * MIB))
        await forget(vault, "/f")
        advance(vault, 2 * DAY)
        assert (await vault.upkeep().run(plan)).condemned == 1
        assert (await vault.upkeep().run(plan)).condemned == 0
        advance(vault, DAY / 2)
        await vault.upkeep().run(plan)
        assert len(await vault.catalog.collections()) == 1
        advance(vault, DAY)
        done = await vault.upkeep().run(plan)
        assert done.freed > 2 * MIB
        assert len(await vault.catalog.collections()) == 2
        advance(vault, 31 * DAY)
        done = await vault.upkeep().run(plan)
        assert done.scrubbed == sum(pack.size for pack in await vault.catalog.pack_uses(0))
        assert done.problems == ()
        flip(store, await pack_with_page(vault, "/kept"))
        advance(vault, 31 * DAY)
        assert (await vault.upkeep().run(plan)).problems


@pytest.mark.parametrize("options", [Options(dry_run=True), Options(only_repack=True)])
async def test_a_dry_run_or_a_repack_puts_off_no_collection(options: Options) -> None:
    async with open_memory_vault() as vault:
        await put(vault, "/gone", random_bytes(MIB))
        await forget(vault, "/gone")
        advance(vault, 2 * DAY)
        await collect(vault, options)
        assert (await vault.upkeep().run(Plan(backup=None))).condemned == 1
        assert (await vault.upkeep().run(Plan(backup=None))).condemned == 0
        assert len(await vault.catalog.collections()) == 2


async def test_upkeep_goes_on_where_a_collection_cannot() -> None:
    async with open_memory_vault(budget=4 * 64 * MIB) as vault:
        for number in range(5):
            await put(vault, f"/f{number}", random_bytes(15 * MIB, number))
        await forget(vault, *(f"/f{number}" for number in range(5)))
        advance(vault, 2 * DAY)
        done = await vault.upkeep().run(Plan(duty=1.0, backup=None))
        assert any("--confirm" in problem for problem in done.problems)
        again = await vault.upkeep().run(Plan(duty=1.0, backup=None))
        assert again.problems == ()  # until tomorrow

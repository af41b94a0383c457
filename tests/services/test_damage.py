"""Packs, catalogs and backups are damaged: what is hit is named, and all else is intact."""

import shutil
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import anyio
import pytest
import zstandard
from anyio.from_thread import start_blocking_portal
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults import (
    MIB,
    BytesSource,
    State,
    add_user,
    assert_sound,
    at,
    files_of,
    open_memory_vault,
    put,
    quick_folder,
    random_bytes,
    read,
    read_tree,
    small_files,
    state_of,
    upload,
)

from vaultfs.adapters.files import LocalTarget
from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.wrappers.faulty import Delay, FaultyObjectStore
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, DamagedContent, NotFound, Unsupported, VaultError
from vaultfs.domain.integrity import Depth, Findings
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import User
from vaultfs.domain.packs import (
    HEAD_SIZE,
    HEADER_SIZE,
    TAIL_SIZE,
    Codec,
    Kind,
    PackBuilder,
    PackEntry,
    StoredChunk,
    parse_pack,
    table_span,
)
from vaultfs.domain.services.packer import PACK_PREFIX, pack_key
from vaultfs.domain.services.recovery import BACKUPS
from vaultfs.domain.services.uploads import Purpose
from vaultfs.entrypoints.recovering import recover_catalog
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import MARKER, Vault, init_vault, open_vault
from vaultfs.ports.catalog import Location
from vaultfs.ports.objects import ObjectInfo

LARGE: Final = random_bytes(3 * MIB + 12345, "large")
CONTENTS: Final = {
    **{f"/{name}": data for name, data in small_files(26, size=20_000).items()},
    "/large": LARGE,
    "/similar": LARGE[:MIB] + b"in between" + LARGE[MIB:],
    "/text": b"the same line again and again\n" * 10_000,
    "/empty": b"",
}
OLD_TEXT: Final = b"an older text\n" * 5000


# A vault to damage


@frozen
class Furnished:
    """A vault, and what every version of every file in it holds."""

    vault: Vault
    store: MemoryObjectStore
    contents: dict[tuple[str, int], bytes]

    @property
    def packs(self) -> list[str]:
        return [key for key in self.store.objects if key.startswith(PACK_PREFIX)]


async def furnish(vault: Vault) -> dict[tuple[str, int], bytes]:
    """Put `CONTENTS`; the small files and the large ones come to be in packs of their own."""
    await put(vault, "/text", OLD_TEXT)
    async with anyio.create_task_group() as tasks:
        for path, data in CONTENTS.items():
            if len(data) < MIB and path != "/text":
                tasks.start_soon(put, vault, path, data)
    for path in ("/text", "/large", "/similar"):
        await put(vault, path, CONTENTS[path])
    held = {(path, 1): data for path, data in CONTENTS.items()}
    held["/text", 1], held["/text", 2] = OLD_TEXT, CONTENTS["/text"]
    return held


@asynccontextmanager
async def opened() -> AsyncGenerator[Furnished, None]:
    store = MemoryObjectStore()
    async with open_memory_vault(store=store) as vault:
        yield Furnished(vault, store, await furnish(vault))


@pytest.fixture
async def furnished() -> AsyncIterator[Furnished]:
    async with opened() as held:
        yield held


async def unreadable(furnished: Furnished) -> set[tuple[str, int]]:
    """The versions that cannot be read; all others are what they were."""
    hit: set[tuple[str, int]] = set()
    vault = furnished.vault
    for (path, number), data in furnished.contents.items():
        _, version = await vault.files.version(vault.user, at(path), number)
        got = b""
        error: DamagedContent | None = None
        try:
            async with vault.files.read(vault.user.tree, version) as parts:
                async for part in parts:
                    got += b"".join(part)
        except DamagedContent as damaged:
            error = damaged
        if error is None:
            assert got == data
        else:
            assert error.digest.hex() in error.message
            assert data.startswith(got)
            assert got != data
            hit.add((path, number))
    return hit


def named(findings: Findings) -> set[tuple[str, int]]:
    found = [(each.path, each.number) for each in findings.files]
    assert len(found) == len(set(found))
    assert all(each.tree == "me" for each in findings.files)
    return set(found)


async def assert_named(furnished: Furnished, *, hit: bool | None = None) -> set[tuple[str, int]]:
    """`verify` names those versions that cannot be read, and no others."""
    wrong = await unreadable(furnished)
    findings = await furnished.vault.integrity.verify(Depth.FULL)
    assert named(findings) == wrong, findings.problems
    assert not findings.clean
    if hit is not None:
        assert bool(wrong) == hit
    return wrong


# Damage of each kind


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def regions(data: bytes) -> dict[str, range]:
    """The parts of a pack, in bytes; of the chunks, the one in the middle."""
    start, stop = table_span(data[-TAIL_SIZE:], len(data))
    entries = parse_pack(data)
    entry = entries[len(entries) // 2]
    stored = entry.offset + HEADER_SIZE
    return {
        "head": range(HEAD_SIZE),
        "header": range(entry.offset, stored),
        "stored": range(stored, stored + entry.size),
        "table": range(start, stop),
        "tail": range(stop, len(data)),
    }


@pytest.mark.parametrize("region", ["head", "header", "stored", "table", "tail"])
async def test_a_flipped_bit_is_found_and_its_files_are_named(
    region: str, furnished: Furnished
) -> None:
    random, vault = Random(region), furnished.vault
    for key in furnished.packs:
        data = furnished.store.objects[key]
        bit = random.choice(regions(data)[region]) * 8 + random.randrange(8)
        furnished.store.objects[key] = flip(data, bit)
        await assert_named(furnished, hit=None if region in {"header", "stored"} else False)
        found = await vault.integrity.verify(Depth.DIGESTS)
        assert [pack_key(pack) for pack in found.bad_packs] == [key]
        assert not (await vault.integrity.verify(Depth.PACKS)).clean  # the store has CRCs
        assert (await vault.integrity.verify(Depth.CATALOG)).clean
        furnished.store.objects[key] = data
    await assert_sound(vault)


@cache
def _table(pack: bytes) -> tuple[PackEntry, ...]:
    return parse_pack(pack)


_bits = st.tuples(st.integers(0, 10), st.sampled_from(["any", "header", "first"]), st.floats(0, 1))


def _bit(data: bytes, kind: str, share: float) -> int:
    """A bit of a pack: anywhere, in the header of a chunk, or in that and the bytes behind it."""
    if kind == "any":
        return int(share * (len(data) * 8 - 1))
    entries = _table(data)
    entry = entries[int(share * (len(entries) - 1))]
    size = HEADER_SIZE if kind == "header" else HEADER_SIZE + min(20, entry.size)
    return entry.offset * 8 + Random(share).randrange(size * 8)


@pytest.mark.slow
def test_what_verify_names_is_what_cannot_be_read() -> None:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opened()) as held:

        @settings(max_examples=60, deadline=None)
        @given(_bits)
        def check(where: tuple[int, str, float]) -> None:
            number, kind, share = where
            packs = sorted(held.packs)
            key = packs[number % len(packs)]
            data = held.store.objects[key]
            held.store.objects[key] = flip(data, _bit(data, kind, share))
            try:
                portal.call(assert_named, held)
            finally:
                held.store.objects[key] = data

        check()


@pytest.mark.parametrize("left", [0.0, 0.3, 1.0])
async def test_a_pack_that_was_cut_short_is_found(left: float, furnished: Furnished) -> None:
    for key in furnished.packs:
        data = furnished.store.objects[key]
        furnished.store.objects[key] = data[: min(int(left * len(data)), len(data) - 1)]
        await assert_named(furnished, hit=None if left > 0 else True)
        for depth in (Depth.PACKS, Depth.DIGESTS):
            assert not (await furnished.vault.integrity.verify(depth)).clean
        furnished.store.objects[key] = data
    await assert_sound(furnished.vault)


async def test_a_pack_that_is_gone_is_found_at_every_depth(furnished: Furnished) -> None:
    for key in furnished.packs:
        data = furnished.store.objects.pop(key)
        wrong = await assert_named(furnished, hit=True)
        for depth in (Depth.PACKS, Depth.DIGESTS):
            found = await furnished.vault.integrity.verify(depth)
            assert named(found) == wrong
            assert [pack_key(pack) for pack in found.bad_packs] == [key]
        furnished.store.objects[key] = data
    await assert_sound(furnished.vault)


async def test_all_files_that_share_damaged_pages_and_chunks_are_named() -> None:
    store, data = MemoryObjectStore(), random_bytes(6 * MIB)
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/one", data)
        await put(vault, "/two", data + b"more")
        await vault.files.copy(vault.user, at("/one"), at("/three"))
        [_, version] = await vault.files.version(vault.user, at("/one"))
        assert version.manifest.level
        packs = {key: pack for key, pack in store.objects.items() if key.startswith(PACK_PREFIX)}
        [key] = [key for key, pack in packs.items() if len(pack) > 5 * MIB]
        store.objects[key] = packs[key][:MIB] + bytes(100) + packs[key][MIB + 100 :]
        for depth in (Depth.DIGESTS, Depth.FULL):
            findings = await vault.integrity.verify(depth)
            assert named(findings) == {("/one", 1), ("/two", 1), ("/three", 1)}
        for lost in packs:
            del store.objects[lost]
        problems = (await vault.recovery.rebuild()).problems
        assert len([each for each in problems if "is in no pack" in each]) == 3


async def put_as(vault: Vault, user: User, data: bytes) -> None:
    await vault.files.put(user, Address(user.name, ("file",)), BytesSource(data))


@pytest.mark.parametrize("depth", [Depth.PACKS, Depth.DIGESTS, Depth.FULL])
async def test_a_damaged_pack_hits_nobody_who_has_the_chunks_elsewhere(depth: Depth) -> None:
    inner, data = MemoryObjectStore(), random_bytes(MIB)
    slow = FaultyObjectStore(inner, {("put", 1): Delay(0.3)})
    slower = FaultyObjectStore(inner, {("put", 1): Delay(0.6)})
    async with (
        open_memory_vault(store=slower) as vault,
        open_memory_vault(store=slow, catalog=vault.catalog) as other,
    ):
        bob = await add_user(vault.catalog, "bob")
        async with anyio.create_task_group() as tasks:  # neither knows what the other sends
            tasks.start_soon(put_as, vault, vault.user, data)
            tasks.start_soon(put_as, other, bob, data + b"more")
        first, second = [digest_of(pack) for pack in inner.objects.values()]
        for pack, hit in ((first, "bob"), (second, "me")):
            key = pack_key(pack)
            whole, inner.objects[key] = inner.objects[key], b""
            findings = await vault.integrity.verify(depth)
            for files in (findings.files, await vault.integrity.hit_by([pack])):
                assert [each.tree for each in files] == [hit]
            inner.objects[key] = whole


async def test_packs_in_each_other_s_place_are_found(furnished: Furnished) -> None:
    objects = furnished.store.objects
    one, two = furnished.packs[-2:]
    objects[one], objects[two] = objects[two], objects[one]
    await assert_named(furnished, hit=True)
    for depth in (Depth.DIGESTS, Depth.FULL):
        found = await furnished.vault.integrity.verify(depth)
        assert {pack_key(pack) for pack in found.bad_packs} == {one, two}


async def test_a_tree_is_written_but_for_what_is_damaged(
    furnished: Furnished, tmp_path: Path
) -> None:
    random, hit = Random("tree"), set[str]()
    for key in furnished.packs:
        data = furnished.store.objects[key]
        bit = random.choice(regions(data)["stored"]) * 8
        furnished.store.objects[key] = flip(data, bit)
    for path, number in await unreadable(furnished):
        _, version = await furnished.vault.files.version(furnished.vault.user, at(path))
        if version.number == number:
            hit.add(path)
    assert hit
    vault = furnished.vault
    report = await vault.transfer.get(vault.user, at("/"), LocalTarget(tmp_path / "out"))
    assert {each.where for each in report.failed} == hit
    assert all("chunk" in each.reason for each in report.failed)
    assert read_tree(tmp_path / "out") == {
        path[1:]: data for path, data in CONTENTS.items() if path not in hit
    }
    assert not any(vault.budget.used.values())


# What is planted


def planted(chunk: StoredChunk) -> bytes:
    builder = PackBuilder()
    builder.add(chunk)
    return b"".join(builder.seal().parts)


def _frames(data: bytes) -> Iterator[bytes]:
    """Frames of `data` that claim something else, or nothing."""
    yield zstandard.ZstdCompressor(write_content_size=False).compress(data)
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(data))
    at = frame.find(len(data).to_bytes(4, "little"))
    frame[at : at + 4] = (1000).to_bytes(4, "little")
    yield bytes(frame)


@pytest.mark.parametrize("index", [0, 1])
async def test_a_frame_that_expands_beyond_its_claim_is_refused(index: int) -> None:
    """The pack itself is sound: its key is its digest, as if a vault had made it."""
    store = MemoryObjectStore()
    bomb, claimed = bytes(200 * MIB), random_bytes(1000)
    frame = list(_frames(bomb))[index]
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/file", claimed)
        await put(vault, "/other", b"other")
        [key] = [key for key in store.objects if claimed in store.objects[key]]
        pack = planted(StoredChunk(digest_of(claimed), 1000, Codec.ZSTD, Kind.DATA, frame))
        del store.objects[key]
        store.objects[pack_key(digest_of(pack))] = pack
        rebuilt = await vault.recovery.rebuild()
        assert rebuilt.packs == 2
        with pytest.raises(DamagedContent) as caught:
            await read(vault, "/file")
        assert caught.value.digest == digest_of(claimed)
        assert await read(vault, "/other") == b"other"
        findings = await vault.integrity.verify(Depth.FULL)
        assert named(findings) == {("/file", 1)}


# Rebuilding


async def index_of(vault: Vault) -> list[tuple[Digest, Location]]:
    return await vault.catalog.index(limit=100_000)


async def test_a_rebuilt_index_is_equal_to_the_one_that_was_lost(furnished: Furnished) -> None:
    vault = furnished.vault
    before = await index_of(vault)
    async with vault.catalog.reindex():
        pass  # and so the index is empty
    assert await index_of(vault) == []
    findings = await vault.integrity.verify(Depth.CATALOG)
    assert named(findings) == {key for key, data in furnished.contents.items() if data}
    rebuilt = await vault.recovery.rebuild()
    assert rebuilt.problems == ()
    assert await index_of(vault) == before
    await assert_sound(vault)


async def test_a_rebuild_saves_chunks_from_packs_whose_table_is_damaged(
    furnished: Furnished,
) -> None:
    vault, packs = furnished.vault, furnished.packs
    before = await index_of(vault)
    for key in packs:
        data = furnished.store.objects[key]
        furnished.store.objects[key] = flip(data, regions(data)["table"][5] * 8)
    rebuilt = await vault.recovery.rebuild()
    assert len(rebuilt.problems) == len(packs)
    assert all("were saved" in problem for problem in rebuilt.problems)
    assert await index_of(vault) == before
    assert await unreadable(furnished) == set()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
async def test_a_rebuild_makes_the_most_of_packs_that_were_cut_short(
    share: float, furnished: Furnished
) -> None:
    for key in furnished.packs:
        data = furnished.store.objects[key]
        furnished.store.objects[key] = data[: int(share * len(data))]
    readable = furnished.contents.keys() - await unreadable(furnished)
    assert (await furnished.vault.recovery.rebuild()).problems
    assert furnished.contents.keys() - await unreadable(furnished) == readable


async def test_a_rebuild_survives_any_damage_to_a_header_and_its_table(
    furnished: Furnished,
) -> None:
    random = Random("headers")
    key = furnished.packs[-1]
    data = furnished.store.objects[key]
    for _ in range(10):
        where = regions(data)
        damaged = flip(data, random.choice(where["table"]) * 8)
        header = random.choice(where["header"]) * 8 + random.randrange(8)
        furnished.store.objects[key] = flip(damaged, header)
        rebuilt = await furnished.vault.recovery.rebuild()
        assert rebuilt.problems
        findings = await furnished.vault.integrity.verify(Depth.FULL)
        assert named(findings) == await unreadable(furnished)
    furnished.store.objects[key] = data
    assert (await furnished.vault.recovery.rebuild()).problems == ()
    await assert_sound(furnished.vault)


async def test_after_a_rebuild_that_checks_a_put_heals_every_version(
    furnished: Furnished,
) -> None:
    vault = furnished.vault
    for key in furnished.packs:
        data = furnished.store.objects[key]
        furnished.store.objects[key] = flip(data, regions(data)["stored"][-1] * 8)
    hit = await unreadable(furnished)
    assert hit
    rebuilt = await vault.recovery.rebuild(check=True)
    left_out = [problem for problem in rebuilt.problems if problem.startswith(PACK_PREFIX)]
    assert len(left_out) == len(furnished.packs)
    assert all("1 left out" in problem for problem in left_out)
    assert await unreadable(furnished) == hit
    for (path, number), content in furnished.contents.items():
        if (path, number) in hit:
            await put(vault, f"/again-{number}{path}", content)
    assert await unreadable(furnished) == set()
    assert (await vault.integrity.verify(Depth.CATALOG)).clean


async def test_a_verification_beside_puts_finds_nothing(furnished: Furnished) -> None:
    vault = furnished.vault
    done = anyio.Event()

    async def write() -> None:
        for number in range(40):
            await put(vault, f"/beside-{number}", random_bytes(300_000, f"beside {number}"))
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        while not done.is_set():
            findings = await vault.integrity.verify(Depth.FULL)
            assert findings.problems == ()
            assert findings.files == ()


async def test_a_rebuild_with_a_pack_too_few_names_the_versions_it_cannot_walk(
    furnished: Furnished,
) -> None:
    kept = dict(furnished.store.objects)
    del furnished.store.objects[furnished.packs[-2]]
    await furnished.vault.recovery.rebuild()
    await assert_named(furnished, hit=True)
    furnished.store.objects.update(kept)
    assert (await furnished.vault.recovery.rebuild()).problems == ()
    await assert_sound(furnished.vault)


class DeletingStore(MemoryObjectStore):
    """A store from which somebody else deletes what is `doomed` as soon as it was listed."""

    doomed: str | None = None

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async for info in super().list(prefix, start_after=start_after):
            if info.key == self.doomed:
                await self.delete(info.key)
            yield info


@pytest.mark.parametrize("check", [False, True])
async def test_a_rebuild_passes_over_a_pack_that_is_deleted_meanwhile(check: bool) -> None:
    store = DeletingStore()
    async with open_memory_vault(store=store) as vault:
        await put(vault, "/kept", b"kept")
        before = await index_of(vault)
        await put(vault, "/gone", b"gone")
        [gone] = {place.pack for _, place in await index_of(vault)} - {before[0][1].pack}
        store.doomed = pack_key(gone)
        rebuilt = await vault.recovery.rebuild(check=check)
        assert (rebuilt.packs, rebuilt.problems) == (1, ())
        assert await index_of(vault) == before


# Backups


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as place:
        yield place / "vault"


def _settings(folder: Path) -> Settings:
    return Settings(folder, 64 * MIB, 2)


async def _furnish_folder(folder: Path) -> tuple[State, list[str]]:
    """A vault with something of everything; its state, and all that its catalog says."""
    await init_vault(folder)
    async with open_vault(_settings(folder)) as vault:
        await furnish(vault)
        files, user = vault.files, vault.user
        await files.delete(user, at("/folder-0"), recursive=True)
        await files.delete(user, at("/empty"))
        await files.set_metadata(user, at("/large"), '{"colour":"blue"}')
        await files.move(user, at("/folder-1"), at("/moved"))
        await files.mkdir(user, at("/a folder with nothing in it"))
        await vault.recovery.backup()
        return await state_of(vault), await _all_of(vault)


async def _all_of(vault: Vault) -> list[str]:
    """The dump of the catalog, but for the ids that are not yet given out."""
    text = b"".join([piece async for piece in vault.catalog.dump()]).decode()
    return [line for line in text.splitlines()[:-1] if '"table":"counters"' not in line]


def _lose_catalog(folder: Path) -> None:
    for path in folder.glob("catalog.db*"):
        path.unlink()


async def test_a_lost_catalog_comes_back_from_a_backup(folder: Path) -> None:
    state, everything = await _furnish_folder(folder)
    async with open_vault(_settings(folder)) as vault:
        index = await index_of(vault)
    _lose_catalog(folder)
    await recover_catalog(folder)
    async with open_vault(_settings(folder)) as vault:
        assert (await vault.recovery.rebuild()).problems == ()
        assert await index_of(vault) == index
        assert await state_of(vault) == state
        assert await _all_of(vault) == everything
        await assert_sound(vault)


async def test_ids_that_were_given_out_after_a_backup_are_not_given_out_again(
    folder: Path,
) -> None:
    await _furnish_folder(folder)
    async with open_vault(_settings(folder)) as vault:
        lost = [await put(vault, f"/lost/{number}", b"%d" % number) for number in range(20)]
    _lose_catalog(folder)
    await recover_catalog(folder)
    async with open_vault(_settings(folder)) as vault:
        await vault.recovery.rebuild()
        new = [await put(vault, f"/lost/{number}", b"%d" % number) for number in range(20)]
        assert {node.id for node in lost}.isdisjoint(node.id for node in new)
        assert {node.version for node in lost}.isdisjoint(node.version for node in new)
        await assert_sound(vault)


def _parts(folder: Path) -> list[Path]:
    return [path for path in folder.glob("objects/backups/**/*") if "part-" in path.name]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
async def test_a_damaged_backup_is_refused_and_nothing_changes(damage: str, folder: Path) -> None:
    state, everything = await _furnish_folder(folder)
    for part in _parts(folder):
        data = part.read_bytes()
        part.unlink()
        if damage != "gone":
            wrong = {"flip": flip(data, 4 * len(data)), "cut": data[:-1], "empty": b""}[damage]
            part.write_bytes(wrong)
    with pytest.raises(VaultError):
        await recover_catalog(folder)
    async with open_vault(_settings(folder)) as vault:
        assert await state_of(vault) == state
        assert await _all_of(vault) == everything
        await assert_sound(vault)
        # And the next backup is as good as ever.
        await vault.recovery.backup()
    await recover_catalog(folder)
    async with open_vault(_settings(folder)) as vault:
        await vault.recovery.rebuild()
        assert await _all_of(vault) == everything


async def test_a_backup_whose_manifest_is_damaged_is_passed_over(folder: Path) -> None:
    await _furnish_folder(folder)
    async with open_vault(_settings(folder)) as vault:
        [first] = await vault.recovery.backups()
        second = await vault.recovery.backup()
        assert {each.name for each in await vault.recovery.backups()} == {first.name, second.name}
    [manifest] = folder.glob(f"objects/{BACKUPS}{second.name}/manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:-5])
    assert (await recover_catalog(folder)).name == first.name
    with pytest.raises(NotFound):
        await recover_catalog(folder, second.name)


async def test_a_backup_of_another_vault_is_refused(folder: Path) -> None:
    other = folder.with_name("other")
    await init_vault(folder)
    await init_vault(other)
    async with open_vault(_settings(other)) as vault:
        await put(vault, "/theirs", b"theirs")
        backup = await vault.recovery.backup()
    before = (folder / "catalog.db").read_bytes()
    shutil.copytree(other / "objects/backups", folder / "objects/backups")
    for name in (None, backup.name):
        with pytest.raises(Corrupt, match="another vault"):
            await recover_catalog(folder, name)
    assert (folder / "catalog.db").read_bytes() == before


async def test_a_store_of_a_newer_release_is_refused(folder: Path) -> None:
    await init_vault(folder)
    [marker] = folder.glob(f"objects/{MARKER}*")
    marker.write_text(marker.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(Unsupported, match="newer release"):
        async with open_vault(_settings(folder)):
            pytest.fail("it was opened")


async def test_a_catalog_that_is_there_is_set_aside(folder: Path) -> None:
    await _furnish_folder(folder)
    async with open_vault(_settings(folder)) as vault:
        await put(vault, "/after the backup", b"text")
    backup = await recover_catalog(folder)
    with closing(sqlite3.connect(folder / f"catalog.db.before-{backup.name}")) as connection:
        query = "SELECT count(*) FROM nodes WHERE name = 'after the backup'"
        assert connection.execute(query).fetchone() == (1,)
    async with open_vault(_settings(folder)) as vault:
        assert "/after the backup" not in await files_of(vault)


async def test_a_lost_index_in_a_file_is_built_anew(folder: Path) -> None:
    state, everything = await _furnish_folder(folder)
    with closing(sqlite3.connect(folder / "catalog.db")) as connection:
        connection.execute("DELETE FROM chunks")
        connection.execute("DELETE FROM pack_locations")
        connection.execute("DELETE FROM packs")
        connection.commit()
    async with open_vault(_settings(folder)) as vault:
        with pytest.raises(DamagedContent, match="vaultfs rebuild"):
            await read(vault, "/large")
        await vault.recovery.rebuild()
        assert await state_of(vault) == state
        assert await _all_of(vault) == everything
        await assert_sound(vault)


async def test_the_oldest_backups_go_first() -> None:
    clock = ManualClock()
    async with open_memory_vault() as vault:
        recovery = vault.recovery
        recovery.clock = clock
        names: list[str] = []
        for _ in range(5):
            clock.advance(timedelta(hours=1))
            names.append((await recovery.backup(keep=3)).name)
        assert [backup.name for backup in await recovery.backups()] == names[-3:]


async def test_a_new_backup_stays_where_clocks_went_back() -> None:
    async with open_memory_vault() as vault:
        recovery = vault.recovery
        recovery.clock = ManualClock(datetime(2026, 6, 1, tzinfo=UTC))
        await recovery.backup(keep=1)
        recovery.clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
        backup = await recovery.backup(keep=1)
        assert backup.name in [each.name for each in await recovery.backups()]


async def test_parts_without_a_manifest_may_be_a_backup_under_way_for_a_day() -> None:
    clock = ManualClock()
    store = MemoryObjectStore(clock=clock)
    async with open_memory_vault(store=store) as vault:
        vault.recovery.clock, part = clock, f"{BACKUPS}20260101t000000z-somebody/part-00000"
        await store.put(part, b"the beginning")
        await vault.recovery.backup()
        assert part in store.objects
        clock.advance(timedelta(days=1, seconds=1))
        await vault.recovery.backup()
        assert part not in store.objects
        assert len(await vault.recovery.backups()) == 2


async def test_a_rebuild_gives_uploads_under_way_what_they_have_sent() -> None:
    data = random_bytes(6 * MIB)
    async with open_memory_vault() as vault:
        session = await vault.uploads.create(vault.user, Purpose(at("/up")), size=len(data))
        await vault.uploads.append(vault.user, session.id, BytesSource(data[: 3 * MIB]), at=0)
        async with vault.catalog.reindex():
            pass  # and so the index is empty
        assert (await vault.recovery.rebuild()).problems == ()
        digests = [digest for digest, _ in await vault.catalog.upload_entries(session.id)]
        assert digests
        assert set(await vault.catalog.locate(vault.user.id, digests)) == set(digests)
        await upload(vault, "/up", data, MIB)
        assert await read(vault, "/up") == data
        await assert_sound(vault)

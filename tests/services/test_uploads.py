"""Upload sessions: appended to, broken off, resumed, joined, finished."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from random import Random
from typing import Any

import anyio
import pytest
from blake3 import blake3
from tests.faults import BytesSource, add_user, at, open_memory_vault, random_bytes

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.wrappers.faulty import Before, FaultyObjectStore
from vaultfs.adapters.wrappers.retrying import RetryingObjectStore
from vaultfs.domain.chunks import Chunker
from vaultfs.domain.cutting import Compressibility, cut_content, encode
from vaultfs.domain.digests import Buffer, digest_of
from vaultfs.domain.errors import (
    ChecksumMismatch,
    ChunksMissing,
    Fenced,
    InvalidField,
    IsAFolder,
    Locked,
    NotFound,
    OffsetMismatch,
    ParentNotFound,
    QuotaExceeded,
    SourceChanged,
    TooLarge,
    Unsupported,
    UploadExpired,
    UploadGone,
    VersionMismatch,
)
from vaultfs.domain.frames import HEAD, Named, write_chunk, write_named
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.names import Address, parse_address, parse_path
from vaultfs.domain.nodes import DigestState, Preconditions, User, UserId, VersionId, micros
from vaultfs.domain.operations import SetQuota
from vaultfs.domain.packs import PACK_TARGET, Kind, StoredChunk, raw_chunk
from vaultfs.domain.services.budget import BLOCK, MIB
from vaultfs.domain.services.upkeep import Plan
from vaultfs.domain.services.uploads import MAX_CHECKED, Checksum, Purpose, Uploads
from vaultfs.domain.uploads import IDLE_US, Upload, UploadState
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.objects import OutOfSpace, StoreTimeout, StoreUnavailable, Throttled


async def _content(vault: Vault, path: str, number: int | None = None) -> bytes:
    _, version = await vault.files.version(vault.user, at(path), number)
    async with vault.files.read(vault.user.tree, version) as parts:
        return b"".join([bytes(piece) async for part in parts for piece in part])


async def _state(vault: Vault, path: str) -> tuple[DigestState, bytes | None]:
    _, version = await vault.files.version(vault.user, at(path))
    return version.digest_state, version.digest


async def _manifest(vault: Vault, path: str) -> bytes:
    _, version = await vault.files.version(vault.user, at(path))
    return version.manifest_bytes


def cold(vault: Vault) -> Uploads:
    """As another process sees it: it knows what is in the catalog."""
    return Uploads(vault.files)


async def left_over(vault: Vault) -> list[Upload]:
    return await vault.catalog.uploads(vault.user.id)


def _wait_a_day(vault: Vault) -> None:
    assert isinstance(vault.clock, ManualClock)
    vault.clock.advance(timedelta(microseconds=IDLE_US))


SIZES = (0, 1, 70_000, BLOCK - 1, BLOCK, 3 * BLOCK + 12_345)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("said", [True, False])
async def test_a_content_in_one_go_is_what_a_put_makes(size: int, said: bool) -> None:
    data = random_bytes(size)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        uploads = vault.uploads
        upload = await uploads.create(vault.user, Purpose(at("/a/b")), size=size if said else None)
        if upload.state is UploadState.OPEN:
            upload = await uploads.append(
                *(vault.user, upload.id, BytesSource(data)), at=0, length=size, size=size
            )
        assert upload.state is UploadState.FINISHED
        assert await _content(vault, "/a/b") == data
        assert await _manifest(vault, "/a/b") == await _manifest(vault, "/put")
        assert await _state(vault, "/a/b") == (DigestState.VERIFIED, blake3(data).digest())
        assert not await left_over(vault)


@pytest.mark.parametrize("seed", range(12))
async def test_however_it_is_cut_and_resumed_the_content_is_the_same(seed: int) -> None:
    random = Random(seed)
    size = random.choice([100, 600_000, 5 * MIB, 9 * MIB + 7])
    data = random_bytes(size, seed)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        uploads = vault.uploads
        upload = await uploads.create(vault.user, Purpose(at("/x")), size=size)
        told: list[int] = []
        while upload.state is UploadState.OPEN:
            length = random.randrange(1, size // 2 + 2)
            part = data[upload.offset : upload.offset + length]
            checked = random.random() < 0.3
            if random.random() < 0.4:
                uploads = cold(vault)
            broken = SourceChanged("the line is cut") if random.random() < 0.3 else None
            source = BytesSource(part, broken=None if checked else broken)
            try:
                upload = await uploads.append(
                    *(vault.user, upload.id, source),
                    at=upload.offset,
                    length=len(part) if checked or random.random() < 0.5 else None,
                    checksum=Checksum("blake3", blake3(), blake3(part).digest())
                    if checked
                    else None,
                    progress=told.append,
                )
            except SourceChanged:
                upload = await uploads.get(vault.user, upload.id)
        assert sum(told) == size
        assert await _content(vault, "/x") == data
        assert await _manifest(vault, "/x") == await _manifest(vault, "/put")
        assert await _state(vault, "/x") == (DigestState.VERIFIED, blake3(data).digest())


@pytest.mark.parametrize("in_parts", [True, False])
async def test_what_others_have_is_the_users_too_pages_and_all(*, in_parts: bool) -> None:
    data = random_bytes(3 * MIB)
    async with open_memory_vault() as vault:
        other = await add_user(vault.catalog, "other")
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        stored = (await vault.catalog.stats()).packed
        address = parse_address("/f", own="other")
        upload = await vault.uploads.create(other, Purpose(address), size=len(data))
        for part in (data[: MIB + 1], data[MIB + 1 :]) if in_parts else (data,):
            upload = await vault.uploads.append(
                *(other, upload.id, BytesSource(part)), at=upload.offset, length=len(part)
            )
        assert upload.state is UploadState.FINISHED
        _, version = await vault.files.version(other, address)
        async with vault.files.read(other.tree, version) as pieces:
            found = b"".join([bytes(each) async for some in pieces for each in some])
        assert found == data
        assert (await vault.catalog.stats()).packed == stored


async def test_what_arrived_before_the_line_was_cut_counts() -> None:
    data = random_bytes(2 * BLOCK + 1234)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        source = BytesSource(data[:-1000], broken=SourceChanged("gone"))
        with pytest.raises(SourceChanged):
            await vault.uploads.append(vault.user, upload.id, source, at=0)
        found = await vault.uploads.get(vault.user, upload.id)
        assert found.offset == len(data) - 1000
        with pytest.raises(NotFound):
            await vault.files.version(vault.user, at("/x"))
        rest = BytesSource(data[-1000:])
        await cold(vault).append(vault.user, upload.id, rest, at=found.offset, length=1000)
        assert await _content(vault, "/x") == data


async def test_a_store_that_is_overburdened_in_the_middle_is_waited_for() -> None:
    data = random_bytes(6 * BLOCK)
    faulty = FaultyObjectStore(MemoryObjectStore(), {})
    faults = (Throttled, StoreUnavailable, StoreTimeout)
    faulty.plan |= {("put", number): Before(faults[number % 3]) for number in (1, 2, 4)}
    store = RetryingObjectStore(faulty, sleep=lambda _: anyio.sleep(0.001))
    async with open_memory_vault(store=store) as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        told: list[int] = []
        done = await vault.uploads.append(
            vault.user, upload.id, BytesSource(data), at=0, progress=told.append
        )
        assert done.state is UploadState.FINISHED
        assert sum(told) == len(data)
        assert await _content(vault, "/x") == data
        assert faulty.calls["put"] == 5


async def test_a_full_disk_in_the_middle_keeps_what_is_durable() -> None:
    data = random_bytes(6 * BLOCK)
    faulty = FaultyObjectStore(MemoryObjectStore(), {("put", 2): Before(OutOfSpace)})
    async with open_memory_vault(store=faulty) as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        with pytest.raises(OutOfSpace, match="free some space"):
            await vault.uploads.append(vault.user, upload.id, BytesSource(data), at=0)
        found = await vault.uploads.get(vault.user, upload.id)
        durable = (await vault.catalog.stats()).packed
        offset, state = found.offset, found.state
        assert state is UploadState.OPEN
        assert 0 < durable < len(data)
        assert durable - PACK_TARGET - BLOCK <= offset <= durable  # a pack, at most, is sent again
        with pytest.raises(NotFound):
            await vault.files.version(vault.user, at("/x"))
        vault.files.packer.flush()
        with anyio.fail_after(5):  # nothing is held for what failed
            while vault.budget.free != vault.budget.total:
                await anyio.sleep(0.001)
        rest = BytesSource(data[found.offset :])
        await cold(vault).append(vault.user, upload.id, rest, at=found.offset)
        assert await _content(vault, "/x") == data


async def test_what_arrived_before_the_call_was_cancelled_counts() -> None:
    data = random_bytes(3 * BLOCK)
    stuck = anyio.Event()

    async def hang() -> None:
        if source.at >= 2 * BLOCK:
            stuck.set()
            await anyio.sleep_forever()

    source = BytesSource(data, step=BLOCK, pause=hang)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))

        async def run() -> None:
            await vault.uploads.append(vault.user, upload.id, source, at=0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await stuck.wait()
            await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        found = await vault.uploads.get(vault.user, upload.id)
        assert BLOCK - 600_000 < found.offset <= 2 * BLOCK
        rest = BytesSource(data[found.offset :])
        await vault.uploads.append(vault.user, upload.id, rest, at=found.offset)
        assert await _content(vault, "/x") == data


async def test_a_later_writer_fences_the_earlier() -> None:
    data = random_bytes(3 * BLOCK)
    blocked, go_on = anyio.Event(), anyio.Event()

    async def hang() -> None:
        blocked.set()
        await go_on.wait()

    async with open_memory_vault() as vault:
        first, second = cold(vault), cold(vault)
        upload = await first.create(vault.user, Purpose(at("/x")), size=len(data))
        slow = BytesSource(data, step=BLOCK, pause=hang)
        failed: list[Exception] = []

        async def run() -> None:
            try:
                await first.append(vault.user, upload.id, slow, at=0)
            except Fenced as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await blocked.wait()
            part = BytesSource(data[:1000])
            found = await second.append(vault.user, upload.id, part, at=0, length=1000)
            assert found.offset == 1000
            go_on.set()
        assert failed
        assert (await first.get(vault.user, upload.id)).offset == 1000
        await second.append(vault.user, upload.id, BytesSource(data[1000:]), at=1000)
        assert await _content(vault, "/x") == data


async def test_a_later_writer_in_the_same_process_ends_the_earlier() -> None:
    data = random_bytes(2 * BLOCK)
    blocked = anyio.Event()

    async def hang() -> None:
        blocked.set()
        await anyio.sleep_forever()

    async with open_memory_vault() as vault:
        uploads = vault.uploads
        upload = await uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        failed: list[Exception] = []

        async def run() -> None:
            try:
                slow = BytesSource(data, step=100, pause=hang)
                await uploads.append(vault.user, upload.id, slow, at=0)
            except Fenced as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await blocked.wait()
            await uploads.append(vault.user, upload.id, BytesSource(data), at=0)
        assert failed
        assert await _content(vault, "/x") == data


async def test_who_gives_an_upload_up_ends_its_append() -> None:
    blocked = anyio.Event()

    async def hang() -> None:
        blocked.set()
        await anyio.sleep_forever()

    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=1000)
        failed: list[UploadGone] = []

        async def run() -> None:
            slow = BytesSource(bytes(1000), step=100, pause=hang)
            with pytest.raises(UploadGone, match="aborted") as refused:
                await vault.uploads.append(vault.user, upload.id, slow, at=0)
            failed.append(refused.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await blocked.wait()
            await vault.uploads.abort(vault.user, upload.id)
        assert failed
        assert vault.budget.free == vault.budget.total
        assert not await vault.catalog.upload_tail(upload.id)


async def test_a_look_that_is_out_of_date_replaces_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_memory_vault() as vault:
        uploads = vault.uploads
        upload = await uploads.create(vault.user, Purpose(at("/x")))
        look = Uploads.open

        async def slow_look(self: Uploads, caller: User, number: str) -> Upload:
            found = await look(self, caller, number)
            monkeypatch.undo()
            await uploads.append(caller, number, BytesSource(b"first"), at=0)
            return found

        monkeypatch.setattr(Uploads, "open", slow_look)
        with pytest.raises(OffsetMismatch):
            await uploads.append(vault.user, upload.id, BytesSource(b"second"), at=0, size=6)
        await uploads.append(vault.user, upload.id, BytesSource(b"!"), at=5)
        assert await _content(vault, "/x") == b"first!"
        assert await _state(vault, "/x") == (DigestState.VERIFIED, digest_of(b"first!"))


async def test_a_checksum_that_is_wrong_leaves_nothing_of_its_bytes() -> None:
    data = random_bytes(BLOCK + 5)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        await vault.uploads.append(vault.user, upload.id, BytesSource(data[:10]), at=0, length=10)
        wrong = Checksum("blake3", blake3(), bytes(32))
        with pytest.raises(ChecksumMismatch):
            await vault.uploads.append(
                *(vault.user, upload.id, BytesSource(data[10:])),
                at=10,
                length=len(data) - 10,
                checksum=wrong,
            )
        assert (await vault.uploads.get(vault.user, upload.id)).offset == 10
        await vault.uploads.append(vault.user, upload.id, BytesSource(data[10:]), at=10)
        assert await _content(vault, "/x") == data
        assert (await _state(vault, "/x"))[0] is DigestState.VERIFIED


async def test_refusals() -> None:
    async with open_memory_vault() as vault:
        uploads, user = vault.uploads, vault.user
        upload = await uploads.create(user, Purpose(at("/x")), size=100)
        number = upload.id

        async def append(
            data: bytes, offset: int, *, length: int | None = None, size: int | None = None
        ) -> Upload:
            source = BytesSource(data)
            return await uploads.append(user, number, source, at=offset, length=length, size=size)

        with pytest.raises(OffsetMismatch) as mismatch:
            await append(b"x", 5)
        assert mismatch.value.offset == 0
        with pytest.raises(TooLarge):
            await append(b"x" * 101, 0, length=101)
        with pytest.raises(TooLarge):
            await append(b"x" * 101, 0)
        with pytest.raises(OffsetMismatch):
            await append(b"x", 0, size=99)
        for frames in (True, False):
            for length in (MAX_CHECKED + 1, None):
                with pytest.raises(TooLarge):
                    await uploads.append(
                        *(user, number, BytesSource(b"")),
                        at=0,
                        length=length,
                        checksum=Checksum("blake3", blake3(), b""),
                        frames=frames,
                    )
        other = User(UserId(user.id + 1), "other", None, 0)
        with pytest.raises(NotFound):
            await uploads.get(other, number)
        found = await uploads.get(user, number)
        await append(b"y" * (100 - found.offset), found.offset)
        with pytest.raises(OffsetMismatch):
            await append(b"z", 0)
        gone = await uploads.create(user, Purpose(at("/y")), size=1)
        await uploads.abort(user, gone.id)
        await uploads.abort(user, gone.id)
        with pytest.raises(UploadGone):
            await uploads.append(user, gone.id, BytesSource(b"z"), at=0)
        with pytest.raises(NotFound):
            await uploads.append(user, "none", BytesSource(b"z"), at=0)


async def test_a_session_that_is_left_alone_expires() -> None:
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=100)
        await vault.uploads.append(vault.user, upload.id, BytesSource(b"abc"), at=0)
        assert await vault.uploads.expire(vault.user) == 0
        _wait_a_day(vault)
        with pytest.raises(UploadExpired):
            await vault.uploads.append(vault.user, upload.id, BytesSource(b"d"), at=3)
        assert await vault.uploads.expire(vault.user) == 1
        assert (await vault.uploads.get(vault.user, upload.id)).state is UploadState.EXPIRED
        assert await vault.catalog.upload_tail(upload.id) == b""
        _wait_a_day(vault)
        assert await vault.uploads.expire(vault.user) == 1
        with pytest.raises(NotFound):
            await vault.uploads.get(vault.user, upload.id)


async def test_a_claim_that_is_false_fails_the_commit() -> None:
    async with open_memory_vault() as vault:
        purpose = Purpose(at("/x"), digest=digest_of(b"another"))
        upload = await vault.uploads.create(vault.user, purpose, size=3)
        with pytest.raises(InvalidField):
            await vault.uploads.append(vault.user, upload.id, BytesSource(b"abc"), at=0)
        with pytest.raises(NotFound):
            await vault.files.version(vault.user, at("/x"))


@pytest.mark.parametrize("why", ["locked", "no folder"])
async def test_whatever_refuses_a_commit_the_bytes_are_kept(why: str) -> None:
    data = random_bytes(BLOCK + 9)
    async with open_memory_vault() as vault:
        purpose = Purpose(at("/d/x"), parents=why == "locked")
        upload = await vault.uploads.create(vault.user, purpose, size=len(data))
        locked = {parse_path("/d" if why == "locked" else "/e"): Mode.X}
        async with vault.locks.hold(Owner("me"), vault.user.tree, locked):
            with pytest.raises(Locked if why == "locked" else ParentNotFound):
                await vault.uploads.append(vault.user, upload.id, BytesSource(data), at=0)
        assert (await vault.uploads.get(vault.user, upload.id)).offset == len(data)
        await vault.files.mkdir(vault.user, at("/d"))
        nothing = BytesSource(b"")
        await vault.uploads.append(vault.user, upload.id, nothing, at=len(data), length=0)
        assert await _content(vault, "/d/x") == data


async def test_a_commit_that_is_refused_keeps_the_bytes() -> None:
    data = random_bytes(BLOCK + 9)
    async with open_memory_vault() as vault:
        first = await vault.files.put(vault.user, at("/x"), BytesSource(b"first"))
        assert first.node is not None
        wanted = Preconditions(if_version=first.node.version)
        purpose = Purpose(at("/x"), preconditions=wanted)
        upload = await vault.uploads.create(vault.user, purpose, size=len(data))
        second = await vault.files.put(vault.user, at("/x"), BytesSource(b"second"))
        with pytest.raises(VersionMismatch):
            await vault.uploads.append(vault.user, upload.id, BytesSource(data), at=0)
        found = await vault.uploads.get(vault.user, upload.id)
        assert found.state is UploadState.OPEN
        assert found.offset == len(data)
        assert await _content(vault, "/x") == b"second"
        assert second.node is not None
        await vault.files.restore_version(vault.user, at("/x"), 1)
        with pytest.raises(VersionMismatch):  # another version with the same content
            await vault.uploads.append(
                *(vault.user, upload.id, BytesSource(b"")), at=len(data), length=0
            )


async def test_create_refuses_at_once_what_can_be_told_then() -> None:
    async with open_memory_vault() as vault:
        wanted = Preconditions(if_version=VersionId(77))
        with pytest.raises(VersionMismatch):
            await vault.uploads.create(vault.user, Purpose(at("/x"), preconditions=wanted), size=1)
        await vault.files.change(vault.user, SetQuota(vault.user.tree, 1000))
        with pytest.raises(QuotaExceeded):
            await vault.uploads.create(vault.user, Purpose(at("/x")), size=1001)


async def test_a_quota_ends_an_upload_in_the_middle_and_keeps_what_fits() -> None:
    data = random_bytes(20 * MIB)
    async with open_memory_vault() as vault:
        await vault.files.change(vault.user, SetQuota(vault.user.tree, 18 * MIB))
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")))
        with pytest.raises(QuotaExceeded):
            await vault.uploads.append(vault.user, upload.id, BytesSource(data), at=0)
        found = await vault.uploads.get(vault.user, upload.id)
        assert found.offset <= 18 * MIB
        await vault.uploads.abort(vault.user, upload.id)
        assert not await vault.catalog.upload_entries(upload.id)
        assert vault.budget.free == vault.budget.total


async def test_what_a_quota_refuses_is_not_left_out_in_the_middle() -> None:
    data = random_bytes(22 * MIB)
    source = BytesSource(data, step=BLOCK, pause=lambda: anyio.sleep(0.1))  # a pack is recorded
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        await vault.files.change(vault.user, SetQuota(vault.user.tree, 8 * MIB))
        with pytest.raises(QuotaExceeded):
            await vault.uploads.append(vault.user, upload.id, source, at=0)
        offset = (await vault.uploads.get(vault.user, upload.id)).offset
        await vault.files.change(vault.user, SetQuota(vault.user.tree, None))
        await vault.uploads.append(vault.user, upload.id, BytesSource(data[offset:]), at=offset)
        assert await _content(vault, "/x") == data


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1),
        (0, 5, 0),
        (100_000, 100_000, 100_000),
        (BLOCK + 1, 3),
        (3, BLOCK + 1),
        (5 * MIB, 5 * MIB + 1, 40_000, 7 * MIB),
    ],
)
async def test_joined_parts_are_one_content(sizes: tuple[int, ...]) -> None:
    parts = [random_bytes(size, index) for index, size in enumerate(sizes)]
    data = b"".join(parts)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        numbers: list[str] = []
        for part in parts:
            upload = await vault.uploads.create(vault.user, Purpose(None), size=len(part))
            if part:
                upload = await vault.uploads.append(
                    *(vault.user, upload.id, BytesSource(part)), at=0, length=len(part)
                )
            assert upload.state is UploadState.FINISHED
            numbers.append(upload.id)
        whole = await vault.uploads.concatenate(vault.user, numbers, Purpose(at("/x")))
        assert whole.state is UploadState.FINISHED
        assert await _content(vault, "/x") == data
        assert await _manifest(vault, "/x") == await _manifest(vault, "/put")
        assert await _state(vault, "/x") == (DigestState.VERIFIED, blake3(data).digest())


async def _part(vault: Vault, data: bytes) -> str:
    upload = await vault.uploads.create(vault.user, Purpose(None), size=len(data))
    if data:
        await vault.uploads.append(vault.user, upload.id, BytesSource(data), at=0)
    return upload.id


async def test_parts_without_a_byte_are_joined() -> None:
    async with open_memory_vault() as vault:
        numbers = [await _part(vault, b""), await _part(vault, b"")]
        whole = await vault.uploads.concatenate(vault.user, numbers, Purpose(at("/x")))
        assert whole.state is UploadState.FINISHED
        assert await _content(vault, "/x") == b""


@pytest.mark.parametrize("data", [b"", b"abc"])
async def test_what_is_refused_before_anybody_knows_its_number_is_given_up(data: bytes) -> None:
    async with open_memory_vault() as vault:
        number = await _part(vault, data)
        purpose = Purpose(at("/none/x"), parents=False)
        with pytest.raises(ParentNotFound):
            await vault.uploads.concatenate(vault.user, [number], purpose)
        with pytest.raises(ParentNotFound):
            await vault.uploads.create(vault.user, purpose, size=0)
        with pytest.raises(IsAFolder):
            await vault.uploads.create(vault.user, Purpose(at("/")), size=1)
        assert not await left_over(vault)
        await vault.uploads.concatenate(vault.user, [number], Purpose(at("/x")))
        assert await _content(vault, "/x") == data


async def test_a_part_that_is_forgotten_while_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_memory_vault() as vault:
        numbers = [await _part(vault, b"abc"), await _part(vault, b"def")]
        create = Uploads.create

        async def create_late(self: Uploads, *arguments: Any, **more: Any) -> Upload:
            _wait_a_day(vault)
            await self.expire(vault.user)
            return await create(self, *arguments, **more)

        monkeypatch.setattr(Uploads, "create", create_late)
        with pytest.raises(UploadGone):
            await vault.uploads.concatenate(vault.user, numbers, Purpose(at("/x")))
        assert not await left_over(vault)
        with pytest.raises(NotFound):
            await vault.files.version(vault.user, at("/x"))


async def test_what_has_ended_takes_no_more_bytes() -> None:
    async with open_memory_vault() as vault:
        user, uploads = vault.user, vault.uploads
        upload = await uploads.create(user, Purpose(at("/x")), size=3)
        await uploads.append(user, upload.id, BytesSource(b"abc"), at=0)
        for nothing, frames in ((b"", False), (HEAD, True)):
            again = BytesSource(nothing)
            found = await uploads.append(user, upload.id, again, at=3, frames=frames)
            assert found.state is UploadState.FINISHED
        for more, frames in ((b"d", False), (_frames(*_pieces(b"d")), True)):
            with pytest.raises(UploadGone):
                await uploads.append(user, upload.id, BytesSource(more), at=3, frames=frames)


# Frames


def _frames(*frames: StoredChunk | Named) -> bytes:
    parts: list[Buffer] = [HEAD]
    for frame in frames:
        if isinstance(frame, Named):
            parts.append(write_named(frame))
        else:
            parts += write_chunk(frame)
    return b"".join(parts)


def _pieces(data: bytes) -> list[StoredChunk]:
    cuts, _ = cut_content(data, Chunker())
    return encode(cuts, Compressibility())


async def test_frames_are_what_bytes_are() -> None:
    data = random_bytes(5 * MIB) + bytes(3 * MIB)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        body = _frames(*_pieces(data))
        await vault.uploads.append(
            *(vault.user, upload.id, BytesSource(body)), at=0, length=len(body), frames=True
        )
        assert await _content(vault, "/x") == data
        assert await _manifest(vault, "/x") == await _manifest(vault, "/put")
        assert await _state(vault, "/x") == (DigestState.VERIFIED, blake3(data).digest())


async def test_what_the_server_has_need_only_be_named() -> None:
    data = random_bytes(9 * MIB)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        pieces = _pieces(data + b"more")
        known = await vault.uploads.have(vault.user, [each.digest for each in pieces])
        assert known == [*[True] * (len(pieces) - 1), False]
        frames = [
            Named(each.digest, each.length) if have else each
            for each, have in zip(pieces, known, strict=True)
        ]
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data) + 4)
        body = _frames(*frames)
        assert len(body) < MIB
        await vault.uploads.append(vault.user, upload.id, BytesSource(body), at=0, frames=True)
        assert await _content(vault, "/x") == data + b"more"
        assert (await _state(vault, "/x"))[0] is DigestState.VERIFIED


async def test_what_is_promised_to_an_upload_is_kept_as_long_as_it_lasts() -> None:
    data = random_bytes(100_000)
    async with open_memory_vault() as vault:
        await vault.files.put(vault.user, at("/put"), BytesSource(data))
        digests = [each.digest for each in _pieces(data)]
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")))

        async def promised() -> bool:
            now = micros(vault.clock.now())
            return any(use.pinned for use in await vault.catalog.pack_uses(now))

        await vault.uploads.have(vault.user, digests)
        assert await promised()
        _wait_a_day(vault)
        assert not await promised()
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")))
        await vault.uploads.have(vault.user, digests, holder=upload.id)
        for day in range(1, 7):
            assert isinstance(vault.clock, ManualClock)
            vault.clock.advance(timedelta(microseconds=IDLE_US - 1))
            await vault.uploads.append(vault.user, upload.id, BytesSource(b"."), at=day - 1)
            assert await promised()
        _wait_a_day(vault)
        await vault.uploads.expire(vault.user)
        assert not await promised()


async def test_nobody_can_name_what_only_others_have() -> None:
    data = random_bytes(200_000)
    async with open_memory_vault() as vault:
        other = await add_user(vault.catalog, "other")
        await vault.files.put(other, Address("other", ("secret",)), BytesSource(data))
        [piece, *_] = _pieces(data)
        assert await vault.uploads.have(vault.user, [piece.digest]) == [False]
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=piece.length)
        body = _frames(Named(piece.digest, piece.length))
        with pytest.raises(ChunksMissing) as missing:
            await vault.uploads.append(vault.user, upload.id, BytesSource(body), at=0, frames=True)
        assert missing.value.digests == (piece.digest,)
        assert (await vault.uploads.get(vault.user, upload.id)).offset == 0


async def test_frames_that_lie() -> None:
    data = random_bytes(100_000)
    [piece, *_] = _pieces(bytes(100_000))
    raw = raw_chunk(digest_of(data), data, Kind.DATA)
    lies = (
        raw._replace(digest=digest_of(b"another")),
        piece._replace(length=piece.length - 1),
        piece._replace(length=20),
        raw_chunk(digest_of(data), data, Kind.PAGE),
        Named(digest_of(b"none"), 5),
    )
    async with open_memory_vault() as vault:
        for lie in lies:
            upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=100_000)
            body = _frames(lie)
            with pytest.raises((InvalidField, Unsupported, ChunksMissing)):
                await vault.uploads.append(
                    vault.user, upload.id, BytesSource(body), at=0, frames=True
                )
            assert (await vault.uploads.get(vault.user, upload.id)).offset == 0
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=100_000)
        body = _frames(raw)
        for cut in (3, 9, 30, len(body) - 1):
            with pytest.raises(InvalidField):
                await vault.uploads.append(
                    vault.user, upload.id, BytesSource(body[:cut]), at=0, frames=True
                )
        assert vault.budget.free == vault.budget.total


async def test_frames_that_break_off_count_up_to_there() -> None:
    data = random_bytes(9 * MIB)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        body = _frames(*_pieces(data))
        source = BytesSource(body[: 6 * MIB], broken=SourceChanged("gone"))
        with pytest.raises(SourceChanged):
            await vault.uploads.append(vault.user, upload.id, source, at=0, frames=True)
        offset = (await vault.uploads.get(vault.user, upload.id)).offset
        assert 5 * MIB < offset < 6 * MIB
        rest = _frames(*_pieces(data[offset:]))
        await cold(vault).append(vault.user, upload.id, BytesSource(rest), at=offset, frames=True)
        assert await _content(vault, "/x") == data
        assert (await _state(vault, "/x"))[0] is DigestState.VERIFIED


# What is done later


async def test_a_digest_that_was_left_open_is_found_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.domain.services.uploads.CATCH_UP", -1)
    data = random_bytes(5 * MIB)
    async with open_memory_vault() as vault:
        for path, claim in (("/none", None), ("/right", data), ("/wrong", b"another")):
            digest = None if claim is None else digest_of(claim)
            purpose = Purpose(at(path), digest=digest)
            upload = await vault.uploads.create(vault.user, purpose, size=len(data))
            half = BytesSource(data[: 3 * MIB])
            await vault.uploads.append(vault.user, upload.id, half, at=0, length=3 * MIB)
            uploads = cold(vault)
            writer = BytesSource(data[3 * MIB :])
            await uploads.append(vault.user, upload.id, writer, at=3 * MIB)
            state = DigestState.ABSENT if claim is None else DigestState.CLAIMED
            assert await _state(vault, path) in {
                (state, digest),
                (DigestState.VERIFIED, digest_of(data)),  # it was read back in time
            }
        done = await vault.upkeep().run(Plan(backup=None))
        assert done.digests == 3
        assert done.false_claims == 1
        for path in ("/none", "/right", "/wrong"):
            assert await _state(vault, path) == (DigestState.VERIFIED, digest_of(data))
        assert (await vault.upkeep().run(Plan(backup=None))).digests == 0


async def test_a_rebuild_leaves_uploads_under_way_as_they_are() -> None:
    data = random_bytes(5 * MIB)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        first = BytesSource(data[: 3 * MIB])
        upload = await vault.uploads.append(vault.user, upload.id, first, at=0)
        await vault.recovery.rebuild()
        rest = BytesSource(data[upload.offset :])
        await cold(vault).append(vault.user, upload.id, rest, at=upload.offset)
        assert await _content(vault, "/x") == data


async def test_of_many_who_take_over_at_once_one_is_left() -> None:
    data = random_bytes(600_000)
    async with open_memory_vault() as vault:
        upload = await vault.uploads.create(vault.user, Purpose(at("/x")), size=len(data))
        done: list[Upload] = []
        refused: list[Exception] = []

        async def run() -> None:
            source = BytesSource(data, step=100_000, pause=lambda: anyio.sleep(0.001))
            try:
                done.append(await cold(vault).append(vault.user, upload.id, source, at=0))
            except (Fenced, OffsetMismatch, UploadGone) as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(run)
        assert len(done) == 1
        assert len(refused) == 5
        assert await _content(vault, "/x") == data
        assert len([each async for each in _versions(vault, "/x")]) == 1


async def _versions(vault: Vault, path: str) -> AsyncGenerator[int, None]:
    node = await vault.files.stat(vault.user, at(path))
    for version in await vault.catalog.versions(node.id):
        yield version.number

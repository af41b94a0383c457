"""Two processes on one vault, as two vaults opened on one folder; and paths that grow too long."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import pytest
from tests.faults import MIB, assert_sound, at, put, random_bytes, read

import vaultfs
from vaultfs.adapters.files import IterableSource
from vaultfs.adapters.local import LocalObjectStore
from vaultfs.domain.errors import CatalogUnavailable, InvalidField, InvalidName, OutcomeUnknown
from vaultfs.domain.integrity import Depth
from vaultfs.domain.operations import Outcome, Unit
from vaultfs.entrypoints.recovering import recover_catalog
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    await init_vault(tmp_path / "vault")
    return tmp_path / "vault"


def settings(folder: Path) -> Settings:
    return Settings(folder, 64 * MIB, 2)


@pytest.mark.slow
async def test_a_rebuild_beside_a_put_leaves_its_chunks_alone(folder: Path) -> None:
    data = random_bytes(60 * MIB)
    stored, goes_on = anyio.Event(), anyio.Event()

    async def pieces(vault: Vault) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), MIB):
            if start == 48 * MIB:
                while len(await vault.catalog.packs()) < 2:
                    await anyio.sleep(0.01)
                stored.set()
                await goes_on.wait()
            yield data[start : start + MIB]

    async with open_vault(settings(folder)) as one, open_vault(settings(folder)) as other:
        async with anyio.create_task_group() as tasks:
            source = IterableSource(pieces(one))
            tasks.start_soon(one.files.put, one.user, at("/large"), source)
            await stored.wait()
            assert (await other.recovery.rebuild()).problems == ()
            goes_on.set()
        assert await read(one, "/large") == data
        await assert_sound(other)


async def test_a_catalog_that_was_replaced_takes_no_more_writes(folder: Path) -> None:
    async with open_vault(settings(folder)) as vault:
        await put(vault, "/a", b"old")
        await vault.recovery.backup()
        await recover_catalog(folder)
        with pytest.raises(CatalogUnavailable, match="open the vault again"):
            await put(vault, "/b", b"this would be lost")
        with pytest.raises(CatalogUnavailable, match="open the vault again"):
            await read(vault, "/a")
        with pytest.raises(CatalogUnavailable, match="open the vault again"):
            await vault.files.mkdir(vault.user, at("/nor this"))
        with pytest.raises(CatalogUnavailable, match="open the vault again"):
            await vault.catalog.users()
    async with open_vault(settings(folder)) as vault:
        await vault.recovery.rebuild()
        assert await read(vault, "/a") == b"old"


async def test_no_catalog_that_was_set_aside_is_overwritten(folder: Path) -> None:
    async with open_vault(settings(folder)) as vault:
        backup = await vault.recovery.backup()
        await put(vault, "/new", b"only the old catalog knows")
    for _ in range(3):
        await recover_catalog(folder)
    kept = [folder / f"catalog.db.before-{backup.name}{number}" for number in ("", "-2", "-3")]
    assert all(path.is_file() for path in kept)
    kept[0].rename(folder / "catalog.db")
    async with open_vault(settings(folder)) as vault:
        assert await read(vault, "/new") == b"only the old catalog knows"


async def test_an_unknown_outcome_names_the_unit_of_whoever_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_vault(settings(folder)) as vault:
        apply = vault.catalog.apply

        async def lose(_: object, units: Sequence[Unit]) -> list[Outcome]:
            await apply(units)
            raise OutcomeUnknown("the disk failed while committing", op_id=units[0].op_id)

        monkeypatch.setattr(type(vault.catalog), "apply", lose)
        with pytest.raises(OutcomeUnknown) as caught:
            await put(vault, "/a", b"new bytes")
        monkeypatch.undo()
        assert [change.kind for change in await vault.catalog.outcome(caught.value.op_id)]
        assert await read(vault, "/a") == b"new bytes"


async def test_a_sector_that_cannot_be_read_is_damage_to_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_vault(settings(folder)) as vault:
        await put(vault, "/a", random_bytes(1000, 1))
        [bad] = await vault.catalog.packs()
        await put(vault, "/b", random_bytes(1000, 2))
        original = LocalObjectStore._get  # pyright: ignore[reportPrivateUsage]

        def fail(self: LocalObjectStore, key: str, *rest: object) -> bytes:
            if bad.key.hex() in key:
                with self._edge("get", key):  # pyright: ignore[reportPrivateUsage]
                    raise OSError(5, "Input/output error")
            return original(self, key, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(LocalObjectStore, "_get", fail)
        found = await vault.integrity.verify(Depth.FULL)
        assert [each.path for each in found.files] == ["/a"]
        assert await read(vault, "/b") == random_bytes(1000, 2)
        assert "left out" in (await vault.recovery.rebuild(check=True)).problems[0]


async def test_paths_never_become_deeper_or_longer_than_they_may(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    (deep / "/".join("d" * 70)).mkdir(parents=True)
    (deep / "/".join("d" * 70) / "file").write_text("x")
    async with vaultfs.open(tmp_path / "vault", create=True) as vault:
        report = await vault.put_tree(deep, "/deep")
        assert report.files == 0
        assert report.failed
        with pytest.raises(InvalidName):
            await vault.stat("/deep" + "/d" * 70)
        # By bytes: 15 names of 250 below another 15.
        one, two = "/a" + ("/" + "x" * 250) * 15, "/b" + ("/" + "x" * 250) * 15
        await vault.mkdir(one, parents=True)
        await vault.mkdir(two, parents=True)
        with pytest.raises(InvalidField, match="bytes"):
            await vault.move("/b", one + "/b")
        # By a restore to a place that was moved down meanwhile.
        await vault.mkdir("/r/x/" + "/".join("k" * 40), parents=True)
        gone = await vault.delete("/r/x", recursive=True)
        await vault.mkdir("/" + "/".join("m" * 40), parents=True)
        await vault.move("/r", "/" + "/".join("m" * 40) + "/r")
        with pytest.raises(InvalidField, match="deep"):
            await vault.restore(gone.id)


async def test_a_log_without_its_catalog_is_not_taken_for_the_new_ones(folder: Path) -> None:
    async with open_vault(settings(folder)) as vault:
        await put(vault, "/a", b"kept")
        await vault.recovery.backup()
        await put(vault, "/b", b"later")
        log = (folder / "catalog.db-wal").read_bytes()
        assert log
    (folder / "catalog.db").unlink()
    (folder / "catalog.db-wal").write_bytes(log)
    backup = await recover_catalog(folder)
    assert (folder / f"catalog.db.before-{backup.name}-wal").read_bytes() == log
    async with open_vault(settings(folder)) as vault:
        await vault.recovery.rebuild()
        assert await read(vault, "/a") == b"kept"
        await assert_sound(vault)

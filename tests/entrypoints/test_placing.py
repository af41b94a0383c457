"""Which stores a process takes for those of its vault."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults import put, random_bytes, read

from vaultfs.domain.migration import Blocked, Command, Level
from vaultfs.entrypoints.placing import name_store, naming
from vaultfs.entrypoints.settings import read_settings
from vaultfs.entrypoints.vault import init_vault, open_vault
from vaultfs.ports.objects import WrongStore


async def test_a_process_that_was_told_of_another_store_puts_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right, wrong = (tmp_path / name for name in ("vault", "right", "wrong"))
    await init_vault(folder)
    right.mkdir()
    wrong.mkdir()
    settings, content = read_settings(folder), random_bytes(3000, "dual")
    monkeypatch.setenv("VAULTFS_STORES", f"new={wrong.as_uri()}")
    async with open_vault(settings) as misled:
        monkeypatch.delenv("VAULTFS_STORES")
        name_store(folder, "new", right.as_uri())
        async with open_vault(settings) as vault:
            mover = await vault.migrator()
            await mover.start("new", Level.ALL)
            with pytest.raises(WrongStore, match="has no marker object"):
                await misled.objects.refresh()
            told = await misled.migrator()
            await told.announce("id", "misled")
            with pytest.raises(Blocked, match="server misled was not told where new is"):
                await mover.follow(Command.DUAL)
            await told.announce("id", "misled", gone=True)
            await mover.follow(Command.DUAL)
            await put(misled, "/dual", content)
            assert await mover.run()
            await mover.follow(Command.CUTOVER)
            with pytest.raises(WrongStore):
                await put(misled, "/soak", random_bytes(3000, "soak"))
            await mover.follow(Command.DETACH)
            await mover.retire("local")
            assert await read(vault, "/dual") == content
    assert not (wrong / "packs").exists()


async def test_a_start_that_broke_off_behind_the_name_can_be_repeated(tmp_path: Path) -> None:
    folder, target = tmp_path / "vault", tmp_path / "new"
    await init_vault(folder)
    target.mkdir()
    url = target.as_uri()

    def keep_and_break_off(keep: Callable[[], None]) -> None:
        keep()
        raise KeyError("power")

    async with (
        open_vault(read_settings(folder)) as vault,
        naming(vault.objects, folder, "new", url) as keep,
    ):
        mover = await vault.migrator(lambda: keep_and_break_off(keep))
        with pytest.raises(KeyError):
            await mover.start("new")
    async with (
        open_vault(read_settings(folder)) as vault,
        naming(vault.objects, folder, "new", url) as keep,
    ):
        assert (await (await vault.migrator(keep)).start("new")).target == "new"

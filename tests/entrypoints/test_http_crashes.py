"""A server is killed at every effect of what a client asks for; what it acknowledged is there.

By default at a sample of the effects; at all of them with VAULTFS_CRASH_ALL=1.
"""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest
from attrs import define, frozen
from tests.faults import (
    ALL,
    State,
    assert_between,
    assert_sound,
    quick_folder,
    random_bytes,
    small_files,
    state_of,
    struck,
    write_tree,
)

import vaultfs
from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints import calling
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.entrypoints.settings import MIB, Settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault

ROOT: Final = Path(__file__).parents[2]
SAMPLE: Final = 8
FIRST: Final = random_bytes(3 * MIB, "first")
SECOND: Final = FIRST[:MIB] + random_bytes(300_000, "second") + FIRST[MIB:]
LOCAL: Final = {**small_files(30), "large/one": random_bytes(9 * MIB, "one")}
QUIET: Final = ("--port", "0", "--json", "--backup-hours", "0", "--gc-hours", "0")

pytestmark = pytest.mark.slow


async def put_tree(vault: RemoteVault, local: Path) -> None:
    report = await vault.put_tree(local, "/tree")
    assert report.complete, report


async def push(vault: RemoteVault, local: Path) -> None:
    """Sends a delta, if the other side has what it is from."""
    file = local.parent / "pushed"
    file.write_bytes(SECOND)
    base = (await vault.stat("/file")).version
    await vault.push("/file", file, base=base)


async def batch(vault: RemoteVault, _: Path) -> None:
    async with vault.batch() as changes:
        changes.mkdir("/batched", if_exists="ok")
        changes.copy("/file", "/batched/copy", on_conflict="replace")
        changes.set_metadata("/file", {"batched": True})


async def delete(vault: RemoteVault, _: Path) -> None:
    await vault.delete("/tree/folder-1", recursive=True)


async def restore(vault: RemoteVault, _: Path) -> None:
    """Bring back the newest of what `delete` deleted."""
    found = [each async for each in vault.trash()]
    for each in reversed(found):
        if each.path == ("tree", "folder-1"):
            await vault.restore(each.node.id)
            return


async def purge(vault: RemoteVault, _: Path) -> None:
    for each in [each async for each in vault.trash()]:
        await vault.purge(each.node.id)


Step = Callable[[RemoteVault, Path], Awaitable[object]]
STEPS: Final[dict[str, Step]] = {
    "put": lambda vault, _: vault.put("/file", FIRST),
    "put tree": put_tree,
    "push": push,
    "batch": batch,
    "move": lambda vault, _: vault.move("/tree/folder-0", "/moved", replace=True),
    "delete": delete,
    "restore": restore,
    "restore version": lambda vault, _: vault.restore_version("/file", 1),
    "drop": lambda vault, _: vault.delete("/tree/folder-2", recursive=True),
    "purge": purge,
}
"""What is asked for, in this order; each may be done again, and leads to the same."""


@define
class DiedAtStart(Exception):
    """It ended before it told its address."""

    code: int
    errors: str


@define
class Child:
    """A server that dies at an effect; `process` says how many there were if it does not."""

    process: "subprocess.Popen[str]"
    address: str
    token: str

    async def ask(self, local: Path, done: Callable[[], Awaitable[object]]) -> None:
        """Ask for all steps, with `done` called behind each. Raises what stopped it."""
        async with vaultfs.connect(self.address, token=self.token) as vault:
            for step in STEPS.values():
                await step(vault, local)
                await done()

    def effects(self) -> int:
        """Stop it; how many there were."""
        self.process.terminate()
        _, told = self.process.communicate(timeout=40)
        return int(told.rpartition("effects ")[2])


@frozen
class Place:
    """Where a vault is, and the token that its first server gave out."""

    folder: Path
    token: str

    @contextmanager
    def serve(self, number: int = 0) -> Generator[Child, None, None]:
        with serving(self.folder, number, self.token) as child:
            yield child


@contextmanager
def serving(folder: Path, number: int = 0, token: str = "") -> Generator[Child, None, None]:
    command = [sys.executable, "-m", "tests.serve_child", str(number), str(folder), *QUIET]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                errors = process.communicate(timeout=40)[1]
                raise DiedAtStart(process.returncode, errors)
            told = json.loads(line)
            yield Child(process, told["address"], told["token"] or token)
        finally:
            process.kill()


async def fresh(folder: Path) -> Place:
    """A vault with nothing in it but a token."""
    await init_vault(folder)
    with serving(folder) as child:
        child.effects()
        return Place(folder, child.token)


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Vault, None]:
    async with open_vault(Settings(folder, 64 * MIB, 2)) as vault:
        yield vault


async def seen(folder: Path) -> State:
    async with opened(folder) as vault:
        return await state_of(vault)


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.mark.timeout(1800 if ALL else 300)
async def test_what_a_killed_server_acknowledged_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it did not is there whole or not at all; asking again leads to the same."""
    monkeypatch.setattr(calling, "FIRST_WAIT", 0.01)
    local = place / "tree"
    write_tree(local, LOCAL)
    whole = await fresh(place / "whole")
    states: list[State] = [{}]

    async def note() -> None:
        states.append(await seen(whole.folder))

    with whole.serve() as child:
        await child.ask(local, note)
        effects = child.effects()
    assert len(states[-1]) > 20
    assert effects > 40
    for number in struck(effects, "crashes", SAMPLE):
        await _killed_at(number, states, local, place / f"{number}")


async def _ask_until_it_dies(
    child: Child, local: Path, done: Callable[[], Awaitable[object]]
) -> None:
    try:
        await child.ask(local, done)
    except (VaultError, ExceptionGroup):
        assert child.process.wait(timeout=10) == -signal.SIGKILL
    else:  # it dies while it stops; or there were fewer effects this time
        child.process.terminate()
        child.process.communicate(timeout=40)


async def _killed_at(number: int, states: list[State], local: Path, folder: Path) -> None:
    where = await fresh(folder)
    count = 0

    async def note() -> None:
        nonlocal count
        count += 1

    try:
        with where.serve(number) as child:
            await _ask_until_it_dies(child, local, note)
    except DiedAtStart as died:
        if died.code != -signal.SIGKILL:
            raise
    async with opened(folder) as vault:
        found = await state_of(vault)
        before, after = states[count], states[min(count + 1, len(STEPS))]
        if count < len(STEPS) and list(STEPS)[count] in {"put tree", "purge"}:
            assert_between(found, before, after)  # each file by itself
        else:
            assert found in (before, after)
        await assert_sound(vault)
    with where.serve() as child:
        await child.ask(local, anyio.lowlevel.checkpoint)
    async with opened(folder) as vault:
        found, wanted = await state_of(vault), states[-1]
        assert {path: held[-1] for path, held in found.items()} == {
            path: held[-1] for path, held in wanted.items()
        }
        await assert_sound(vault)

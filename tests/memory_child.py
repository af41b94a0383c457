"""A process that may have no more memory than it is told: what it does is named in its arguments.

    python -m tests.memory_child LIMIT SCENARIO FOLDER

Ends with 0, or is refused memory and fails.
"""

import resource
import sys
from pathlib import Path
from typing import Final

import anyio
from attrs import define
from blake3 import blake3
from tests.faults import MIB

from vaultfs.domain.errors import VaultError
from vaultfs.domain.integrity import Depth
from vaultfs.domain.names import Address
from vaultfs.domain.services.uploads import Purpose
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault
from vaultfs.ports.trees import Source

LARGE: Final = 320 * MIB
EACH: Final = 40 * MIB
BUDGET: Final = 64 * MIB


@define(eq=False)
class Generated:
    """`size` bytes that are nowhere whole: the same for the same seed, and incompressible."""

    seed: bytes
    size: int
    at: int = 0
    broken: VaultError | None = None

    async def readinto(self, view: memoryview) -> int:
        length = min(len(view), self.size - self.at)
        for start in range(0, length, MIB):
            stop = min(start + MIB, length)
            view[start:stop] = blake3(self.seed).digest(stop - start, seek=self.at + start)
        self.at += length
        return length


def at(name: str) -> Address:
    return Address(OWNER, (name,))


async def expected(name: str, size: int) -> bytes:
    whole, source = blake3(), Generated(name.encode(), size)
    buffer = bytearray(MIB)
    while filled := await source.readinto(memoryview(buffer)):
        whole.update(memoryview(buffer)[:filled])
    return whole.digest()


async def found(vault: Vault, name: str) -> bytes:
    _, version = await vault.files.version(vault.user, at(name))
    whole = blake3()
    async with vault.files.read(vault.user.tree, version) as parts:
        async for part in parts:
            for piece in part:
                whole.update(piece)
    return whole.digest()


async def one_large(vault: Vault) -> None:
    """A file that is larger than the limit: in, out, and checked."""
    await vault.files.put(vault.user, at("large"), Generated(b"large", LARGE))
    assert await found(vault, "large") == await expected("large", LARGE)
    findings = await vault.integrity.verify(Depth.FULL)
    assert not findings.files


async def eight_uploads(vault: Vault) -> None:
    """Eight sessions at once, in two goes each, together larger than the limit."""

    async def upload(name: str) -> None:
        uploads = vault.uploads
        session = await uploads.create(vault.user, Purpose(at(name)), size=EACH)
        source = Generated(name.encode(), EACH // 2)
        await uploads.append(vault.user, session.id, source, at=0)
        source = Generated(name.encode(), EACH, EACH // 2)
        await uploads.append(vault.user, session.id, source, at=EACH // 2)

    names = [f"upload-{number}" for number in range(8)]
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(upload, name)
    for name in names:
        assert await found(vault, name) == await expected(name, EACH)


async def planted(vault: Vault) -> None:
    """What must not be done: the whole of a file in memory."""

    async def whole(source: Source) -> bytes:
        data = bytearray(LARGE)
        await source.readinto(memoryview(data))
        return bytes(data)

    data = await whole(Generated(b"large", LARGE))
    await vault.files.put(vault.user, at("large"), Generated(data[:32], LARGE))


SCENARIOS: Final = {each.__name__: each for each in (one_large, eight_uploads, planted)}


async def run(scenario: str, folder: Path) -> None:
    await init_vault(folder)
    async with open_vault(Settings(folder, BUDGET, 2)) as vault:
        await SCENARIOS[scenario](vault)


def limit_to(size: int) -> None:
    """Let this process have `size` bytes of memory of its own, and no more."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    limit_to(int(sys.argv[1]))
    anyio.run(run, sys.argv[2], Path(sys.argv[3]))

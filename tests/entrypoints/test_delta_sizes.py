"""Deltas of files of all sizes, over real sockets, in both directions, to the last byte."""

import os
from pathlib import Path

import pytest
from blake3 import blake3
from tests.entrypoints.test_client import served
from tests.faults import MIB

from vaultfs.domain.nodes import VersionId
from vaultfs.entrypoints.client import connect
from vaultfs.entrypoints.surface import Surface

SIZES = (1000, 64 << 10, MIB, 16 * MIB, 256 * MIB, 1 << 30)
BLOCK = 4 * MIB


def write_noise(path: Path, size: int) -> None:
    noise = blake3(b"%d" % size)
    with path.open("wb") as file:
        for start in range(0, size, BLOCK):
            file.write(noise.digest(min(BLOCK, size - start), seek=start))


def edit(path: Path) -> int:
    """Change the file here and there; how many bytes of it are new."""
    size = path.stat().st_size
    new = 0
    with path.open("r+b") as file:
        for place in range(size // 3, size - 40, max(size // 7, 41)):
            file.seek(place)
            file.write(b"changed here at %016d" % place)
            new += 40
        file.seek(0, os.SEEK_END)
        file.write(b"and appended here")
    return new + 17


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        while part := a.read(BLOCK):
            if part != b.read(BLOCK):
                return False
        return not b.read(1)


async def current(vault: Surface) -> VersionId:
    return (await vault.version("/f")).id


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_only_what_changed_travels(tmp_path: Path, size: int) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    write_noise(mine, size)
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        first = await vault.push("/f", mine, base=None)
        got = await vault.pull("/f", theirs)
        assert same(mine, theirs)
        new = edit(mine)
        second = await vault.push("/f", mine, base=first.node.version)
        assert second.node.number == 2
        if size > 1000:
            assert second.travelled < 10_000 * (new // 40) + size // 1000
        back = await vault.pull("/f", theirs, base=got.version.id)
        assert back.way.startswith("direct") or size == 1000
        assert back.travelled < 40 * new + 300
        assert same(mine, theirs)
        # And the other way: the server's version becomes the first one again.
        await vault.restore_version("/f", 1)
        again = await vault.pull("/f", theirs, base=back.version.id)
        assert again.travelled < 40 * new + 300
        write_noise(mine, size)
        assert same(mine, theirs)
        last = await vault.push("/f", mine, base=await current(vault))
        assert last.changed == 0  # it is there already

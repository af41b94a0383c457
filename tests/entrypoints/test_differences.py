"""A local file made what it is on a server, whatever becomes of the delta on its way."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.domain.test_zipimages import zipped
from tests.entrypoints.test_client import served
from tests.faults import random_bytes
from tests.services.test_deltas import CHANGED, DOCUMENT, sparse

import vaultfs
from vaultfs.domain import zipimages
from vaultfs.domain.nodes import Version
from vaultfs.domain.services import rebuilding
from vaultfs.entrypoints.client import RemoteVault

OLD = random_bytes(300_000, "pulling")


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[RemoteVault]:
    async with (
        served(tmp_path / "vault") as (_, address, token),
        vaultfs.connect(address, token=token) as vault,
    ):
        yield vault


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "here" / "f"


async def pulled(remote: RemoteVault, local: Path, *contents: bytes) -> Version:
    """The first of some versions, which the local file is."""
    await remote.put("/f", contents[0])
    first = (await remote.pull("/f", local)).version
    for content in contents[1:]:
        await remote.put("/f", content)
    return first


@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("back", [False, True])
async def test_where_zlib_packs_otherwise_the_whole_file_comes(
    remote: RemoteVault,
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    same_size: bool,
    back: bool,
) -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    if back:
        old, new = new, old
    first = await pulled(remote, local, old, new)
    deflated, closed, calls = zipimages._deflated, rebuilding.closed, list[bytes]()

    def otherwise(content: memoryview | bytes, code: int) -> Iterator[bytes]:
        whole = b"".join(deflated(content, code))
        yield whole[:-1] + bytes([whole[-1] ^ 1]) if same_size else whole + b"\0"

    def here(image: bytes, codes: bytes, size: int) -> bytes:
        """As the receiver does it; the server has the zlib that it had."""
        calls.append(local.read_bytes())
        with monkeypatch.context() as patched:
            patched.setattr(zipimages, "_deflated", otherwise)
            return closed(image, codes, size)

    monkeypatch.setattr(rebuilding, "closed", here)
    done = await remote.pull("/f", local, base=first.id)
    assert done.way.startswith("full; reason=bad-delta")
    assert calls == [old], "what was there stays until the new file is there"
    assert local.read_bytes() == new
    assert done.travelled > len(new)
    assert [each.name for each in local.parent.iterdir()] == ["f"]
    monkeypatch.undo()
    local.write_bytes(old)
    again = await remote.pull("/f", local, base=first.id)
    assert again.way.startswith("direct"), "another receiver gets by with the delta"
    assert again.travelled < 1000
    assert local.read_bytes() == new


async def test_a_file_that_is_not_what_it_was_said_to_be_is_made_it(
    remote: RemoteVault, local: Path
) -> None:
    """Whether the server has a newer version, or none."""
    first = await pulled(remote, local, OLD)
    for content in (OLD, sparse(OLD)):
        await remote.put("/f", content)
        for wrong in (OLD[:-1] + b"?", OLD + b"?", b""):
            local.write_bytes(wrong)
            done = await remote.pull("/f", local, base=first.id)
            assert (done.changed, local.read_bytes()) == (True, content)


async def test_a_version_that_comes_while_it_is_asked_is_not_taken_for_the_one_here(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await pulled(remote, local, OLD)
    version = RemoteVault.version

    async def late(self: RemoteVault, path: str, number: int | None = None) -> Version:
        monkeypatch.setattr(RemoteVault, "version", version)
        await self.put(path, b"newer")
        return await version(self, path, number)

    monkeypatch.setattr(RemoteVault, "version", late)
    done = await remote.pull("/f", local, base=first.id)
    assert done.version.number == 2
    assert local.read_bytes() == b"newer"

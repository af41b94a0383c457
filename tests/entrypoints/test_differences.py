"""A file as the difference to what is on a server, in both directions, whatever goes wrong."""

import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from tests.domain.test_zipimages import words, zipped
from tests.entrypoints.test_client import served
from tests.faults import MIB, random_bytes
from tests.services.test_deltas import CHANGED, DOCUMENT, sparse

import vaultfs
from vaultfs.adapters.replacing import Replacement
from vaultfs.domain import deltacodec, zipimages
from vaultfs.domain.deltacodec import Block, Header, encode_block, write_end, write_header
from vaultfs.domain.deltas import Copy
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import Unsupported
from vaultfs.domain.nodes import Version
from vaultfs.domain.services import rebuilding
from vaultfs.domain.signatures import read_pieces, read_units, write_pieces, write_units
from vaultfs.entrypoints import searching
from vaultfs.entrypoints.calling import Calls
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.entrypoints.http import deltas
from vaultfs.entrypoints.local_contents import LocalFile
from vaultfs.entrypoints.pulling import Pull

OLD = random_bytes(300_000, "pulling")
NEW = sparse(OLD)
DOS_TIME, DOS_LATER = ((3 << 11 | 4 << 5 | 3, 44 << 9 | 1 << 5 | day) for day in (2, 9))
"""Of the members that `zipped` makes, and a week later."""


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
    deflated, closed, calls = zipimages.deflated, zipimages.closed, list[bytes]()

    def otherwise(content: memoryview | bytes, code: int) -> Iterator[bytes]:
        whole = b"".join(deflated(content, code))
        yield whole[:-1] + bytes([whole[-1] ^ 1]) if same_size else whole + b"\0"

    def here(image: bytes, codes: bytes, size: int, tired: zipimages.Tired) -> bytes:
        """As the receiver does it; the server has the zlib that it had."""
        calls.append(local.read_bytes())
        with monkeypatch.context() as patched:
            patched.setattr(zipimages, "deflated", otherwise)
            return closed(image, codes, size, tired)

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


def _nothing(start: int, stop: int) -> bytes:
    raise AssertionError(f"{start} to {stop}")


async def test_no_more_is_written_than_the_version_has(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes of a delta can lay out any number of times what there is."""
    first = await pulled(remote, local, OLD, NEW)
    header = Header.of(len(OLD), digest_of(OLD), 1 << 50, digest_of(NEW))
    block = Block((Copy(0, len(OLD)),) * 10_000, b"", b"")
    written = 0
    write = Replacement.write

    async def lying(self: Pull, answer: object) -> AsyncGenerator[bytes, None]:
        yield write_header(header) + encode_block(block, _nothing) + write_end(1)

    async def counted(self: Replacement, data: bytes) -> None:
        nonlocal written
        written += len(data)
        await write(self, data)

    monkeypatch.setattr(Pull, "_pieces", lying)
    monkeypatch.setattr(Replacement, "write", counted)
    done = await remote.pull("/f", local, base=first.id)
    assert done.way.startswith("full; reason=bad-delta")
    assert local.read_bytes() == NEW
    assert written <= 2 * len(NEW)


# To the server


Units = list[tuple[bytes, int]]
LIES: dict[str, Callable[[Units], Units]] = {
    "too little": lambda units: units[: len(units) // 2],
    "nothing": lambda _: [],
    "empty pieces": lambda units: [(bytes(len(digest)), 0) for digest, _ in units],
    "longer pieces": lambda units: [(digest, length + 9) for digest, length in units],
    "pieces of others": lambda units: units[::-1],
}


def lied(lie: str, way: str, data: bytes) -> bytes:
    """What somebody who lies tells instead of a signature."""
    if lie == "cut short":
        return data[:-1]
    if way in {"POST", "ranges"}:
        return write_pieces(LIES[lie](read_pieces(data)))
    return write_units(LIES[lie](read_units(data)))


@pytest.mark.parametrize("lie", [*LIES, "cut short"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_whatever_a_signature_says_the_file_arrives(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch, lie: str, method: str
) -> None:
    first = await pulled(remote, local, OLD)
    new = sparse(OLD)
    local.write_bytes(new)
    ask = Calls.ask

    async def lying(self: Calls, way: str, url: Any, **more: Any) -> Any:
        answer = await ask(self, way, url, **more)
        if way == method and "/signatures/" in str(url):
            return evolve(answer, data=lied(lie, way, answer.data))
        return answer

    monkeypatch.setattr(Calls, "ask", lying)
    done = await remote.push("/f", local, base=first.id)
    assert done.changed == 1
    assert await remote.get("/f") == new


async def test_what_is_long_is_not_held(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await pulled(remote, local, OLD)
    new = OLD[:-1000] + random_bytes(6 * MIB, "more")
    local.write_bytes(new)
    read, most = LocalFile.read, 0

    async def counted(self: LocalFile, start: int, stop: int) -> bytes:
        nonlocal most
        most = max(most, stop - start)
        return await read(self, start, stop)

    read_all = LocalFile.read_all

    async def all_counted(self: LocalFile, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        nonlocal most
        most = max(most, sum(stop - start for start, stop in ranges))
        return await read_all(self, ranges)

    monkeypatch.setattr(LocalFile, "read", counted)
    monkeypatch.setattr(LocalFile, "read_all", all_counted)
    monkeypatch.setattr(searching, "ASKED", MIB)
    monkeypatch.setattr(searching, "STRETCH", MIB)
    monkeypatch.setattr(searching, "MOST", 2 * MIB)
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == new
    assert done.travelled < 7 * MIB
    assert 0 < most <= MIB


async def test_no_block_has_more_steps_than_one_can_have(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents whose pieces were put in another order, so that nothing is new."""
    pieces = [random_bytes(20_000, str(n)) for n in range(300)]
    old = b"".join(pieces)
    Random(1).shuffle(pieces)
    new = b"".join(pieces)
    monkeypatch.setattr(deltacodec, "MAX_NUMBERS", 1000)
    monkeypatch.setattr(searching, "MOST_PARTS", 50)
    first = await pulled(remote, local, old)
    local.write_bytes(new)
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == new
    assert done.travelled < len(new) // 4


async def test_no_more_ranges_are_asked_for_than_a_request_may_have(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [random_bytes(900_000, str(n)) for n in range(12)]
    first = await pulled(remote, local, b"".join(pieces))
    changed = b"".join(piece[:9000] + b"!" + piece[9000:] for piece in pieces)
    local.write_bytes(changed)
    monkeypatch.setattr(deltas, "MOST_RANGES", 3)
    monkeypatch.setattr(searching, "MOST_RANGES", 3)
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == changed
    assert done.travelled < 200_000


# Zip files to the server, laid open


async def test_a_sentence_more_in_a_document_is_what_travels(
    remote: RemoteVault, local: Path
) -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    first = await pulled(remote, local, old)
    local.write_bytes(new)
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == new
    assert done.travelled < 6000
    assert len(new) > 150_000


async def test_members_whose_headers_alone_are_new_do_not_travel(
    remote: RemoteVault, local: Path
) -> None:
    """As in a release of a package: every file has another time, and few another content."""
    contents = {f"package/module_{n}.py": words(n, 3000) for n in range(60)}
    old, new = zipped(contents), zipped({**contents, "package/module_7.py": words(700, 3000)})
    later = new.replace(struct.pack("<HH", *DOS_TIME), struct.pack("<HH", *DOS_LATER))
    assert later != new
    first = await pulled(remote, local, old)
    local.write_bytes(later)
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == later
    assert done.travelled < len(later) // 4


@pytest.mark.parametrize("where", ["members", "image", "ranges", "deltas"])
@pytest.mark.parametrize("lie", [*LIES, "cut short"])
async def test_whatever_is_said_of_an_image_the_file_arrives(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch, lie: str, where: str
) -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    first = await pulled(remote, local, old)
    local.write_bytes(new)
    ask = Calls.ask

    async def lying(self: Calls, way: str, url: Any, **more: Any) -> Any:
        body = more.get("data") or b""
        if where == "deltas" and "/deltas/" in str(url):
            raise Unsupported("others have zip files made just now: send the whole file")
        answer = await ask(self, way, url, **more)
        asked = "/signatures/" in str(url) and {
            "members": "members=true" in str(url),
            "image": b"codes" in body and b"ranges" not in body,
            "ranges": b"ranges" in body,
        }.get(where)
        return evolve(answer, data=lied(lie, where, answer.data)) if asked else answer

    monkeypatch.setattr(Calls, "ask", lying)
    done = await remote.push("/f", local, base=first.id)
    assert done.changed == 1
    assert await remote.get("/f") == new


@pytest.mark.parametrize("same_size", [False, True])
async def test_where_the_servers_zlib_packs_otherwise_the_whole_file_goes(
    remote: RemoteVault, local: Path, monkeypatch: pytest.MonkeyPatch, *, same_size: bool
) -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    first = await pulled(remote, local, old)
    local.write_bytes(new)
    closed, calls = zipimages.closed, 0

    def otherwise(image: bytes, codes: bytes, size: int, tired: zipimages.Tired) -> bytes:
        nonlocal calls
        calls += 1
        whole = closed(image, codes, size, tired)
        return whole[:-1] + b"?" if same_size else whole + b"?"

    monkeypatch.setattr(rebuilding, "closed", otherwise)
    done = await remote.push("/f", local, base=first.id)
    assert calls == 1
    assert await remote.get("/f") == new
    assert done.travelled > len(new) // 2


@pytest.mark.parametrize("which", [0, 1])
async def test_a_document_that_is_none_is_compared_as_it_is(
    remote: RemoteVault, local: Path, which: int
) -> None:
    pair = [OLD, NEW]
    pair[which] = zipimages.MAGIC + pair[which][4:]
    first = await pulled(remote, local, pair[0])
    local.write_bytes(pair[1])
    done = await remote.push("/f", local, base=first.id)
    assert await remote.get("/f") == pair[1]
    assert done.travelled < len(OLD) // 2

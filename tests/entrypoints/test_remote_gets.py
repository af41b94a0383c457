"""Whole trees from a server: what the stream of frames holds, and that none of it is believed."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.http_calls import Client, open_api
from tests.entrypoints.test_client import cutting_proxy, served
from tests.entrypoints.test_http_frames import body, chunk, manifest
from tests.faults import MIB, random_bytes, read_tree, write_tree

from vaultfs.domain.cutting import SMALL
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import Corrupt, VaultError
from vaultfs.domain.frames import End, Entry
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Origin
from vaultfs.domain.packs import HEADER_SIZE, raw_chunk
from vaultfs.entrypoints.client import connect
from vaultfs.entrypoints.remote_gets import Arrived, Parser

TEXT = b"a text that is there to be compressed, " * 200
TREE = {
    "a/b/deep": TEXT,
    "a/b/twin": TEXT,
    "a/b-": b"sorts beside the folder",
    "a/empty": b"",
    "c": random_bytes(SMALL, "c"),
    "d/large": random_bytes(SMALL + 1, "d"),
    "é/ß": b"names",
}
ORDER = ["/a", "/a/b", "/a/b/deep", "/a/b/twin", "/a/b-", "/a/empty", "/c", "/d", "/d/large"]


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        for path, content in TREE.items():
            await client.ok("PUT", f"/v1/files/me/top/{path}?parents=true", content=content)
        yield client


def parsed(data: bytes, *, piece: int | None = None) -> list[Arrived]:
    parser = Parser()
    step = piece or len(data)
    found = [
        each for at in range(0, len(data), step) for each in parser.take([data[at : at + step]])
    ]
    assert parser.ended
    return found


async def frames(api: Client, path: str = "/top", **query: str) -> list[Arrived]:
    answer = await api("GET", f"/v1/frames/me{path}", params=query)
    assert answer.status_code == 200, answer.text
    assert "content-length" not in answer.headers
    return parsed(answer.content)


def paths(arrived: Sequence[Arrived]) -> list[str]:
    return [each.entry.path for each in arrived]


async def test_a_folder_comes_before_what_it_holds(api: Client) -> None:
    found = await frames(api)
    assert [path for path in paths(found) if "é" not in path] == ORDER
    contents = {each.entry.path: b"".join(each.content()) for each in found if each.chunks}
    assert contents == {
        f"/{path}": content for path, content in TREE.items() if 0 < len(content) <= SMALL
    }
    large = next(each for each in found if each.entry.path == "/d/large")
    assert (large.whole, large.size) == (False, SMALL + 1)
    assert all(each.entry.digest for each in found if not each.is_folder)


async def test_a_stream_goes_on_behind_any_path(api: Client) -> None:
    whole = paths(await frames(api))
    for number, path in enumerate(whole):
        assert paths(await frames(api, after=path)) == whole[number + 1 :]
    # what came last may be gone by then, or have become something else
    assert paths(await frames(api, after="/a/b/gone/too")) == whole[whole.index("/a/b/twin") :]
    assert paths(await frames(api, after="/c/below")) == whole[whole.index("/c") + 1 :]
    assert paths(await frames(api, after="/zz")) == [p for p in whole if p.startswith("/é")]


async def test_what_is_no_folder_is_refused(api: Client) -> None:
    assert await api.refused(404, "GET", "/v1/frames/me/none") == "not_found"
    assert await api.refused(409, "GET", "/v1/frames/me/top/c") == "not_a_folder"
    bob = await api.new_user("bob")
    assert await api.refused(404, "GET", "/v1/frames/me/top", token=bob) == "not_found"
    assert await api.refused(400, "GET", "/v1/frames/me/top?after=x") == "invalid_name"
    whole = paths(parsed((await api("GET", "/v1/frames/me/")).content))
    assert whole[:2] == ["/top", "/top/a"]


async def test_a_group_has_its_bounds(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paths(await frames(api))
    monkeypatch.setattr("vaultfs.domain.services.outlet.GROUP_FILES", 2)
    monkeypatch.setattr("vaultfs.domain.services.outlet.PAGE", 1)
    assert paths(await frames(api)) == whole


async def test_a_file_that_cannot_be_read_comes_without_its_bytes(api: Client) -> None:
    node, version = await api.vault.files.version(api.vault.user, Address("me", ("top", "a", "b-")))
    assert not node.is_folder
    [(digest, _)] = version.manifest.entries
    places = await api.vault.catalog.locate(api.vault.user.id, [digest])
    [store] = api.vault.objects.stores.values()
    objects: Any = store
    while not hasattr(objects, "objects"):
        objects = objects.inner
    for key, data in list(objects.objects.items()):
        if key.endswith(places[digest].pack.hex()):
            damaged = bytearray(data)
            damaged[places[digest].offset] ^= 0xFF
            objects.objects[key] = bytes(damaged)
    found = {each.entry.path: each for each in await frames(api)}
    assert not found["/a/b-"].whole
    assert b"".join(found["/a/b/deep"].content()) == TEXT


# The client


GOOD = body(
    Entry("/f", None),
    chunk(TEXT),
    chunk(b"more"),
    Entry("/f/g", manifest(TEXT, b"more"), Origin(5, 0o600), digest_of(TEXT + b"more")),
    Entry("/h", manifest()),
)


@pytest.mark.parametrize("piece", [1, 7, 50, 1000])
def test_pieces_of_any_size_make_the_same_files(piece: int) -> None:
    found = parsed(GOOD, piece=piece)
    assert [(each.path, each.size) for each in found] == [
        (("f",), 0),
        (("f", "g"), len(TEXT) + 4),
        (("h",), 0),
    ]
    assert b"".join(found[1].content()) == TEXT + b"more"


LIES: dict[str, bytes] = {
    "chunks of another file": body(chunk(TEXT), Entry("/a", manifest(b"other"))),
    "chunks of a folder": body(chunk(TEXT), Entry("/a", None)),
    "chunks of no file": body(chunk(TEXT)),
    "too many chunks": body(*[chunk(b"x")] * 17, Entry("/a", manifest(*[b"x"] * 16))),
    "too large": body(
        *[raw_chunk(digest_of(bytes(MIB)), bytes(MIB))],
        *[Entry("/a", manifest(bytes(MIB)))],
    ),
    "out of the folder": body(Entry("/../a", manifest())),
    "nowhere": body(Entry("/", manifest())),
    "no path": body(Entry("a", manifest())),
    "a wrong count": body(Entry("/a", manifest()), end=End(0, 2)),
    "no frames": b"something else altogether",
}


@pytest.mark.parametrize("name", LIES)
def test_a_stream_that_is_no_tree_is_refused(name: str) -> None:
    with pytest.raises(VaultError):
        parsed(LIES[name])


def test_a_content_is_compared_with_every_digest() -> None:
    lie = raw_chunk(digest_of(TEXT), TEXT[::-1])
    [file] = parsed(body(lie, Entry("/a", manifest(TEXT))))
    with pytest.raises(Corrupt):
        file.content()
    [file] = parsed(body(chunk(TEXT), Entry("/a", manifest(TEXT), digest=digest_of(b"other"))))
    with pytest.raises(Corrupt):
        file.content()


async def test_a_tree_goes_on_where_the_connection_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    contents = {f"{n % 7}/{n}": random_bytes(30_000 + n, n) for n in range(200)}
    write_tree(tmp_path / "in", contents)
    async with served(tmp_path / "vault") as (_, address, token):
        async with connect(address, token=token) as vault:
            await vault.put_tree(tmp_path / "in", "/tree")
        port = int(address.rpartition(":")[2])
        told: list[int] = []
        async with (
            cutting_proxy(port, MIB) as (proxy, cuts),
            connect(f"http://127.0.0.1:{proxy}", token=token) as vault,
        ):
            report = await vault.get_tree("/tree", tmp_path / "out", progress=told.append)
        assert cuts[0] >= 5
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "in")
    assert (report.files, report.folders, report.failed) == (200, 7, [])
    assert sum(told) == report.size == sum(map(len, contents.values()))


async def test_damage_that_only_shows_here_is_told_for_the_file(tmp_path: Path) -> None:
    contents = {name: random_bytes(20_000, name) for name in ("good", "hit", "well")}
    write_tree(tmp_path / "in", contents)
    async with (
        served(tmp_path / "vault") as (vault, address, token),
        connect(address, token=token) as remote,
    ):
        await remote.put_tree(tmp_path / "in", "/tree")
        digest = digest_of(contents["hit"])
        place = (await vault.catalog.locate(vault.user.id, [digest]))[digest]
        [pack] = (tmp_path / "vault" / "objects" / "packs").rglob(place.pack.hex())
        data = bytearray(pack.read_bytes())
        data[place.offset + HEADER_SIZE + 100] ^= 1
        pack.write_bytes(data)
        report = await remote.get_tree("/tree", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {
        name: content for name, content in contents.items() if name != "hit"
    }
    assert (report.files, [each.where for each in report.failed]) == (2, ["/hit"])


async def test_nothing_is_written_below_what_is_no_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a/b/c": b"1", "a/d": b"2", "e": b"3"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"in the way")
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as remote,
    ):
        await remote.put_tree(tmp_path / "in", "/tree")
        report = await remote.get_tree("/tree", tmp_path / "out")
    assert [each.where for each in report.failed] == ["/a"]
    assert read_tree(tmp_path / "out") == {"a": b"in the way", "e": b"3"}

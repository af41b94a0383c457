"""Many files with one request: what is taken, and that nothing a client says is believed."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import quote

import anyio
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.entrypoints.http_calls import Client, open_api
from tests.faults import random_bytes

from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.frames import (
    HEAD,
    MEDIA_TYPE,
    End,
    Entry,
    write_chunk,
    write_end,
    write_entry,
)
from vaultfs.domain.integrity import Depth
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.nodes import Origin, Preconditions, VersionId
from vaultfs.domain.packs import Codec, Kind, StoredChunk, encode_chunk, raw_chunk
from vaultfs.domain.services.budget import BLOCK
from vaultfs.domain.services.intake import MOST_BYTES, MOST_ENTRIES
from vaultfs.domain.tokens import Scope

URL = "/v1/frames/me"
TEXT = b"a text that is there to be compressed, " * 200
NOISE = random_bytes(50_000, "frames")


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        yield client
        await nothing_is_held(client)


async def nothing_is_held(api: Client) -> None:
    """The budget is free, once the open pack is: it may hold chunks that nobody committed."""
    api.vault.files.packer.flush()
    with anyio.fail_after(5):
        while api.vault.budget.free != api.vault.budget.total:
            await anyio.sleep(0.001)


def chunk(data: bytes) -> StoredChunk:
    return encode_chunk(digest_of(data), data)


def manifest(*parts: bytes) -> Manifest:
    return Manifest(0, tuple((digest_of(part), len(part)) for part in parts))


def body(*frames: StoredChunk | Entry, end: End | None = None) -> bytes:
    parts: list[Any] = [HEAD]
    for frame in frames:
        parts += write_chunk(frame) if isinstance(frame, StoredChunk) else (write_entry(frame),)
    count = sum(isinstance(frame, StoredChunk) for frame in frames)
    parts.append(write_end(end or End(count, len(frames) - count)))
    return b"".join(map(bytes, parts))


async def send(api: Client, data: bytes, **rest: Any) -> list[dict[str, Any]]:
    headers = {"Content-Type": MEDIA_TYPE}
    answer = await api.ok("POST", URL, content=data, headers=headers, **rest)
    found: list[dict[str, Any]] = answer["entries"]
    return found


async def refused(api: Client, status: int, data: bytes, **rest: Any) -> str:
    """The code of a request that is refused as a whole, and leaves nothing to be seen."""
    before = await names(api)
    code = await api.refused(status, "POST", URL, content=data, **rest)
    assert await names(api) == before
    return code


async def names(api: Client, path: str = "/") -> list[str]:
    found = await api.ok("GET", f"/v1/folders/me{path}")
    return [each["name"] for each in found["entries"]]


async def read(api: Client, path: str, **rest: Any) -> bytes:
    answer = await api("GET", f"/v1/files/me{path}", **rest)
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_files_and_folders_are_made(api: Client) -> None:
    data = body(
        chunk(TEXT),
        Entry("/d/text", manifest(TEXT), Origin(1_700_000_000_000_000, 0o640)),
        Entry("/d/again", manifest(TEXT)),
        chunk(NOISE),
        chunk(TEXT),
        Entry("/two", manifest(NOISE, TEXT), digest=digest_of(NOISE + TEXT)),
        Entry("/none", manifest()),
        Entry("/e/f", None),
    )
    for status, changed in ((201, 1), (200, 0)):  # the same again makes no version
        found = await send(api, data)
        assert [each["path"] for each in found] == ["/d/text", "/d/again", "/two", "/none", "/e/f"]
        assert {each["status"] for each in found[:4]} == {status}
        assert [each["changed"] for each in found[:4]] == [changed] * 4
    contents = {"/d/text": TEXT, "/d/again": TEXT, "/two": NOISE + TEXT, "/none": b""}
    for path, content in contents.items():
        assert await read(api, path) == content
        head = await api("HEAD", f"/v1/files/me{path}")
        assert "repr-digest" in head.headers, path  # the server has seen all of it
    head = await api("HEAD", "/v1/files/me/d/text")
    assert head.headers["vaultfs-mode"] == "640"
    assert await names(api, "/e") == ["f"]


async def test_what_one_has_sent_before_need_not_be_sent_again(api: Client) -> None:
    await send(api, body(chunk(TEXT), chunk(NOISE), Entry("/a", manifest(TEXT, NOISE))))
    later = Entry("/b", manifest(NOISE, TEXT), digest=digest_of(NOISE + TEXT))
    found = await send(api, body(later, Entry("/c", manifest(TEXT))))
    assert [each["status"] for each in found] == [201, 201]
    assert await read(api, "/b") == NOISE + TEXT
    head = await api("HEAD", "/v1/files/me/b")
    assert "repr-digest" not in head.headers  # a claim that nobody has checked


async def test_a_digest_is_not_its_chunk(api: Client) -> None:
    bob = await api.new_user("bob")
    await send(api, body(chunk(TEXT), Entry("/mine", manifest(TEXT))))
    headers = {"Content-Type": MEDIA_TYPE}
    stolen = body(Entry("/stolen", manifest(TEXT)), Entry("/fine", manifest()))
    answer = await api.ok("POST", "/v1/frames/bob", content=stolen, headers=headers, token=bob)
    first, second = answer["entries"]
    assert (first["status"], first["code"]) == (409, "chunks_missing")
    assert first["missing"] == [digest_of(TEXT).hex()]
    assert second["status"] == 201
    # With the bytes it is another matter, and they are stored once.
    before = (await api.vault.catalog.stats()).packed
    proof = body(chunk(TEXT), Entry("/own", manifest(TEXT)))
    await api.ok("POST", "/v1/frames/bob", content=proof, headers=headers, token=bob)
    got = await api("GET", "/v1/files/bob/own", token=bob)
    assert got.content == TEXT
    assert (await api.vault.catalog.stats()).packed == before


async def test_another_tree_is_not_there(api: Client) -> None:
    bob = await api.new_user("bob")
    data = body(chunk(TEXT), Entry("/x", manifest(TEXT)))
    answer = await api("POST", URL, content=data, token=bob)
    assert answer.status_code == 200
    [entry] = answer.json()["entries"]
    assert entry["status"] == 404
    assert await names(api) == []


async def test_each_file_is_judged_by_itself(api: Client) -> None:
    made = await api.ok("PUT", "/v1/files/me/there", content=b"there")
    await api.ok("PUT", "/v1/folders/me/folder")
    small = b"small"
    right = Preconditions(if_version=VersionId(made["version"]))
    wrong = Preconditions(if_version=VersionId(made["version"] + 99))
    content = manifest(small)
    wanted: list[tuple[Entry, int, str | None]] = [
        (Entry("/fine", content), 201, None),
        (Entry("/folder", content), 409, "is_a_folder"),
        (Entry("/fine/below", content), 409, "not_a_folder"),
        (Entry("relative", content), 400, "invalid_name"),
        (Entry("/a/../b", content), 400, "invalid_name"),
        (Entry("/a//b", content), 400, "invalid_name"),
        (Entry("/nul\0", content), 400, "invalid_name"),
        (Entry("/" + "x" * 300, content), 400, "invalid_name"),
        (Entry("/there", content, preconditions=wrong), 412, "version_mismatch"),
        (
            Entry("/there", content, preconditions=Preconditions(if_absent=True)),
            412,
            "version_mismatch",
        ),
        (Entry("/there", content, preconditions=right), 200, None),
        (Entry("/lie", content, digest=Digest(bytes(32))), 400, "invalid_field"),
        (Entry("/long", Manifest(0, ((digest_of(small), 6),))), 400, "invalid_field"),
        (Entry("/page", Manifest(1, ((digest_of(small), 5),))), 501, "unsupported"),
        (Entry("/cut", Manifest(0, content.entries, chunker=77)), 501, "unsupported"),
        (Entry("/lack", manifest(b"nobody sent this")), 409, "chunks_missing"),
        (Entry("/there", None), 409, "not_a_folder"),  # folders come first, but that is a file
    ]
    found = await send(api, body(chunk(small), *(entry for entry, _, _ in wanted)))
    told = [(each["path"], each["status"], each.get("code")) for each in found]
    assert told == [(entry.path, status, code) for entry, status, code in wanted]
    assert await read(api, "/there") == small


async def test_a_quota_holds(api: Client) -> None:
    bob = await api.new_user("bob", 60_000)
    data = body(
        chunk(NOISE),
        Entry("/a", manifest(NOISE)),
        Entry("/b", manifest(NOISE)),
        Entry("/c", manifest()),
    )
    answer = await api.ok("POST", "/v1/frames/bob", content=data, token=bob)
    assert [each["status"] for each in answer["entries"]] == [201, 507, 201]


def frame_of(content: bytes, codec: Codec, stored: bytes, length: int | None = None) -> StoredChunk:
    size = len(content) if length is None else length
    return StoredChunk(digest_of(content), size, codec, Kind.DATA, stored)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def unsized(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


LIES: dict[str, StoredChunk] = {
    "other bytes": frame_of(TEXT, Codec.RAW, TEXT[::-1]),
    "other bytes in a frame": frame_of(TEXT, Codec.ZSTD, zstd(TEXT[::-1])),
    "another length": frame_of(TEXT, Codec.RAW, TEXT, len(TEXT) - 1),
    "more than it claims": frame_of(TEXT, Codec.ZSTD, zstd(bytes(1 << 24)), len(TEXT)),
    "less than it claims": frame_of(TEXT, Codec.ZSTD, zstd(TEXT[:100])),
    "no size": frame_of(TEXT, Codec.ZSTD, unsized(TEXT)),
    "no frame": frame_of(TEXT, Codec.ZSTD, TEXT[:100]),
    "a cut frame": frame_of(TEXT, Codec.ZSTD, zstd(TEXT)[:-3]),
    "a frame longer than its content": frame_of(b"x", Codec.ZSTD, zstd(b"x")),
    "nothing": frame_of(b"", Codec.RAW, b""),
    "a megabyte too much": frame_of(bytes(1 << 20), Codec.RAW, bytes(1 << 20), (1 << 20) + 1),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_chunk_that_is_not_what_it_says(api: Client, name: str) -> None:
    data = body(chunk(NOISE), Entry("/good", manifest(NOISE)), LIES[name])
    assert await refused(api, 400, data) == "invalid_field"


async def test_a_page_is_not_taken(api: Client) -> None:
    page = raw_chunk(digest_of(TEXT), TEXT, Kind.PAGE)
    assert await refused(api, 501, body(page)) == "unsupported"


async def test_a_request_that_is_cut_short_leaves_nothing(api: Client) -> None:
    whole = body(chunk(NOISE), Entry("/a", manifest(NOISE)))
    for size in (0, 1, 8, 50, 56, 1000, len(whole) - 12, len(whole) - 1):
        assert await refused(api, 400, whole[:size]) == "invalid_field"
    assert await refused(api, 400, whole + b"\0") == "invalid_field"
    assert await refused(api, 400, body(chunk(TEXT), end=End(2, 0))) == "invalid_field"
    assert await refused(api, 400, body(chunk(TEXT), end=End(1, 1))) == "invalid_field"
    wrong = {"Content-Digest": "sha-256=:AAAA:"}
    assert await refused(api, 400, whole, headers=wrong) == "invalid_field"


async def test_there_are_bounds(api: Client) -> None:
    many = [Entry(f"/{number}", manifest()) for number in range(MOST_ENTRIES + 1)]
    assert await refused(api, 413, body(*many)) == "too_large"
    assert len(await send(api, body(*many[:-1]))) == MOST_ENTRIES
    tiny = b"".join(map(bytes, write_chunk(chunk(b"x")))) * (MOST_ENTRIES * 16 + 1)
    assert await refused(api, 413, HEAD + tiny) == "too_large"
    announced = {"Content-Length": str(MOST_BYTES + 1)}
    code = await api.refused(413, "POST", URL, content=HEAD, headers=announced)
    assert code == "too_large"


async def test_a_stream_of_unknown_length_goes_through_in_blocks(api: Client) -> None:
    parts = [random_bytes(1 << 20, number) for number in range(9)]
    frames: list[StoredChunk | Entry] = []
    for index, part in enumerate(parts):
        frames += (chunk(part), Entry(f"/{index}", manifest(part)))
    frames += [*map(chunk, parts), Entry("/all", manifest(*parts), digest=blake3_of(parts))]
    data = body(*frames)
    assert len(data) > 4 * BLOCK

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_001):
            yield data[start : start + 100_001]

    answer = await api.ok("POST", URL, content=pieces())
    assert {each["status"] for each in answer["entries"]} == {201}
    assert await read(api, "/all") == b"".join(parts)
    assert "repr-digest" in (await api("HEAD", "/v1/files/me/all")).headers
    assert api.vault.budget.peak <= api.vault.budget.total


def blake3_of(parts: Sequence[bytes]) -> Digest:
    return Digest(blake3(b"".join(parts)).digest())


async def test_a_reading_token_stores_nothing(api: Client) -> None:
    looking = await api.new_token("me", Scope.READ)
    data = body(chunk(TEXT), Entry("/x", manifest(TEXT)))
    assert await api.refused(403, "POST", URL, content=data, token=looking) == "forbidden"


GOOD = body(
    chunk(TEXT), Entry("/f/text", manifest(TEXT)), chunk(NOISE[:300]), Entry("/g", manifest())
)


edits = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert")),
        st.integers(0, len(GOOD) - 1),
        st.binary(min_size=1, max_size=60),
    ),
    min_size=1,
    max_size=3,
)


def edited(changes: list[tuple[str, int, bytes]]) -> bytes:
    sent = bytearray(GOOD)
    for kind, at, noise in changes:
        match kind:
            case "flip":
                sent[at : at + 1] = bytes(each ^ noise[0] for each in sent[at : at + 1])
            case "cut":
                del sent[at : at + noise[0]]
            case _:
                sent[at:at] = noise
    return bytes(sent)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(edits)
async def test_whatever_comes_is_taken_right_or_refused(
    changes: list[tuple[str, int, bytes]],
) -> None:
    """Bytes changed, cut out and put in: an answer that is understood, and a sound vault."""
    async with open_api() as api:
        answer = await api("POST", URL, content=edited(changes))
        assert answer.status_code in {200, 400, 413, 501}
        if answer.status_code == 200:
            for entry in answer.json()["entries"]:
                if entry["status"] < 300 and "number" in entry:
                    path = quote(entry["path"])
                    assert await read(api, path) in {TEXT, b""}
        await nothing_is_held(api)
        assert (await api.vault.integrity.verify(Depth.FULL)).clean

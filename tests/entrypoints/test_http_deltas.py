"""RFC 3229 over HTTP: who asks for a delta gets one, or the file, and is told why."""

import tracemalloc
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from itertools import pairwise
from random import Random

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup
from tests.domain.test_zipimages import zipped
from tests.entrypoints.http_calls import Client, open_api
from tests.faults import MIB, random_bytes
from tests.services.test_deltas import CHANGED, DOCUMENT, named, rebuilt, sparse

from vaultfs.domain.chunks import Chunking
from vaultfs.domain.deltacodec import (
    MEDIA_TYPE,
    MOST_PARTS,
    Block,
    Header,
    Images,
    encode_block,
    write_end,
    write_header,
    write_images,
)
from vaultfs.domain.deltas import Copy
from vaultfs.domain.digests import Buffer, digest_of
from vaultfs.domain.errors import DamagedContent
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import TreeId, UserId, Version
from vaultfs.domain.operations import Prune
from vaultfs.domain.services import differ
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.packer import pack_key
from vaultfs.domain.services.reader import Fetch, Reader, Take
from vaultfs.domain.services.rebuilding import is_between_images
from vaultfs.domain.signatures import MEDIUM, MOST_RANGES, Unit, pieces_of, read_pieces, read_units
from vaultfs.domain.tokens import Scope
from vaultfs.domain.zipimages import codes_of, image_units, opened, packed_units
from vaultfs.entrypoints.http import app, bases, deltas
from vaultfs.entrypoints.http.wire import content_etag

OLD = random_bytes(400_000, "http delta")
NEW = sparse(OLD)
LARGE = random_bytes(9 * MIB + 12_345, "larger than what is read at a time")
URL = "/v1/files/me/f"


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        yield client


async def put(api: Client, *contents: bytes) -> list[str]:
    """The entity tags of the versions."""
    tags: list[str] = []
    for content in contents:
        answer = await api("PUT", URL, content=content)
        assert answer.is_success
        tags.append(answer.headers["etag"])
    return tags


async def ask(api: Client, tag: str, **headers: str) -> httpx.Response:
    return await api("GET", URL, headers={"A-IM": "vaultfs-delta", "If-None-Match": tag, **headers})


async def test_a_delta_is_226(api: Client) -> None:
    one, two = await put(api, OLD, NEW)
    answer = await ask(api, one)
    assert answer.status_code == 226
    assert answer.headers["im"] == "vaultfs-delta"
    assert answer.headers["delta-base"] == one
    assert answer.headers["etag"] == two
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["vaultfs-delta"] == "direct; depth=1; reason=cheapest"
    assert answer.headers["vaultfs-size"] == str(len(NEW))
    assert int(answer.headers["content-length"]) == len(answer.content) < 1000
    assert "repr-digest" in answer.headers
    assert await rebuilt(OLD, answer.content) == NEW
    back = await api(
        "GET",
        URL,
        headers={"A-IM": "gzip, vaultfs-delta;q=1", "If-None-Match": two},
        params={"version": "1"},
    )
    assert back.status_code == 226
    assert await rebuilt(NEW, back.content) == OLD


async def test_who_does_not_ask_gets_the_file(api: Client) -> None:
    one, two = await put(api, OLD, NEW)
    assert (await api("GET", URL, headers={"If-None-Match": one})).content == NEW
    assert (await api("GET", URL, headers={"A-IM": "vaultfs-delta"})).content == NEW
    assert (await ask(api, two)).status_code == 304
    assert (await api("GET", URL, headers={"A-IM": "vcdiff", "If-None-Match": one})).content == NEW
    part = await ask(api, one, Range="bytes=0-9")
    assert (part.status_code, part.content) == (206, NEW[:10])
    head = await api("HEAD", URL, headers={"A-IM": "vaultfs-delta", "If-None-Match": one})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(NEW)))


async def test_the_file_is_sent_where_there_is_no_delta(api: Client) -> None:
    one, _ = await put(api, OLD, random_bytes(500_000, "unlike"))
    answer = await ask(api, one)
    assert answer.status_code == 200
    assert len(answer.content) == 500_000
    assert answer.headers["vaultfs-delta"] == "full; depth=0; reason=not-smaller"
    answer = await ask(api, '"v99999"')
    assert answer.headers["vaultfs-delta"] == "full; depth=0; reason=unknown-base"
    assert (await ask(api, '"nonsense"')).status_code == 200


@pytest.mark.parametrize(
    ("depth", "most", "status", "told"),
    [
        (16, 16, 226, "chain; depth=16; reason=cheapest"),
        (17, 16, 200, "full; depth=0; reason=chain-too-deep"),
        (17, 20, 226, "chain; depth=17; reason=cheapest"),
    ],
)
async def test_a_chain_has_so_many_links(
    api: Client, depth: int, most: int, status: int, told: str
) -> None:
    contents = [OLD + b"more\n" * number for number in range(depth + 1)]
    tags = await put(api, *contents)
    vault = api.vault
    found = [
        (await vault.files.version(vault.user, Address("me", ("f",)), number + 1))[1]
        for number in range(depth + 1)
    ]
    for base, target in pairwise(found):
        await vault.deltas.connect(vault.user, base, target)
    gone = tuple(version.id for version in found[:-1])
    await vault.files.change(vault.user, Prune(vault.user.tree, found[0].node, gone))
    vault.deltas.max_depth = most
    answer = await ask(api, tags[0])
    assert (answer.status_code, answer.headers["vaultfs-delta"]) == (status, told)
    content = answer.content if status == 200 else await rebuilt(OLD, answer.content)
    assert content == contents[-1]


async def test_nobody_gets_deltas_of_others(api: Client) -> None:
    one, _ = await put(api, OLD, NEW)
    bob = await api.new_user("bob")
    answer = await api(
        "GET", URL, token=bob, headers={"A-IM": "vaultfs-delta", "If-None-Match": one}
    )
    assert answer.status_code == 404
    await api("PUT", "/v1/files/bob/f", token=bob, content=NEW)
    stolen = await api(
        "GET",
        "/v1/files/bob/f",
        token=bob,
        headers={"A-IM": "vaultfs-delta", "If-None-Match": one},
    )
    assert (stolen.status_code, stolen.content) == (200, NEW)


# Storing


async def delta_of(api: Client, old: bytes, new: bytes) -> bytes:
    """A delta between two contents, made by a file of its own."""
    url = "/v1/files/me/made"
    one = (await api("PUT", url, content=old)).headers["etag"]
    await api("PUT", url, content=new)
    answer = await api("GET", url, headers={"A-IM": "vaultfs-delta", "If-None-Match": one})
    assert answer.status_code == 226
    return answer.content


async def send(api: Client, data: bytes | AsyncIterator[bytes], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return await api("POST", "/v1/deltas/me/f", content=data, headers=named)


async def test_a_delta_becomes_a_version(api: Client) -> None:
    data = await delta_of(api, OLD, NEW)
    [one] = await put(api, OLD)
    answer = await send(api, data, If_Match=one, Vaultfs_Mode="640")
    assert answer.status_code == 200
    assert answer.json()["number"] == 2
    read = await api("GET", URL)
    assert read.content == NEW
    assert (read.headers["etag"], read.headers["vaultfs-mode"]) == (answer.headers["etag"], "640")
    assert "repr-digest" in read.headers
    assert (await send(api, data, If_Match=one)).status_code == 412  # it is another one by now
    assert (await send(api, data, If_Match=read.headers["etag"])).status_code == 412
    assert (await api("GET", URL)).content == NEW


async def test_nothing_becomes_of_a_delta_that_is_wrong(api: Client) -> None:
    data = await delta_of(api, OLD, NEW)
    [one] = await put(api, OLD)
    assert (await send(api, data)).json()["code"] == "invalid_field"
    assert (await send(api, data, If_Match="*")).json()["code"] == "invalid_field"
    for wrong in (b"", data[:-1], data + b"x", data[: len(data) // 2], b"nonsense" * 9):
        assert (await send(api, wrong, If_Match=one)).json()["code"] == "invalid_field"
    flipped = bytearray(data)
    flipped[-20] ^= 1
    assert (await send(api, bytes(flipped), If_Match=one)).json()["code"] == "invalid_field"
    lie = bytearray(data)  # the first bytes of the digest that it is to lead to
    lie[19] ^= 1
    assert (await send(api, bytes(lie), If_Match=one)).status_code in {400, 412}
    answer = await api("POST", "/v1/deltas/me/none", content=data, headers={"If-Match": one})
    assert answer.status_code == 404
    looking = await api.new_token("me", Scope.READ)
    refused = await api(
        "POST", "/v1/deltas/me/f", content=data, headers={"If-Match": one}, token=looking
    )
    assert refused.status_code == 403
    assert len((await api.ok("GET", "/v1/versions/me/f"))["entries"]) == 1
    assert (await api("GET", URL)).content == OLD


async def test_signatures(api: Client) -> None:
    [one] = await put(api, OLD)
    answer = await api("GET", "/v1/signatures/me/f")
    units = read_units(answer.content)
    assert sum(length for _, length in units) == len(OLD)
    assert units[0][0] == digest_of(OLD[: units[0][1]])[:8]
    assert answer.headers["vaultfs-size"] == str(len(OLD))
    ranges = {"ranges": [[0, 5000], [100_000, 200_000]]}
    finer = await api("POST", "/v1/signatures/me/f", json=ranges, headers={"If-Match": one})
    assert read_pieces(finer.content) == [*pieces_of(OLD[:5000]), *pieces_of(OLD[100_000:200_000])]
    larger = await api("POST", "/v1/signatures/me/f", json={**ranges, "mean": 4096})
    cut = partial(pieces_of, cut=MEDIUM)
    assert read_pieces(larger.content) == [*cut(OLD[:5000]), *cut(OLD[100_000:200_000])]
    other = await api("POST", "/v1/signatures/me/f", json={**ranges, "mean": 1024})
    assert other.json()["code"] == "invalid_field"
    for wrong in ([[5, 5]], [[0, 9], [5, 20]], [[0, len(OLD) + 1]], [[-1, 4]]):
        answer = await api("POST", "/v1/signatures/me/f", json={"ranges": wrong})
        assert answer.json()["code"] == "invalid_field"
    many = {"ranges": [[place, place + 1] for place in range(MOST_RANGES + 1)]}
    assert (await api("POST", "/v1/signatures/me/f", json=many)).status_code == 413
    stale = await api("GET", "/v1/signatures/me/f", headers={"If-Match": '"v999"'})
    assert stale.status_code == 412
    bob = await api.new_user("bob")
    assert (await api("GET", "/v1/signatures/me/f", token=bob)).status_code == 404


@pytest.mark.parametrize("seed", range(4))
async def test_signatures_are_of_their_ranges_however_these_lie(api: Client, seed: int) -> None:
    random = Random(seed)
    await put(api, LARGE)
    places = sorted(random.sample(range(len(LARGE) + 1), 2 * random.choice((1, 9, 200))))
    ranges = list(zip(places[::2], places[1::2], strict=True))
    ranges += [(places[-1] + 1, places[-1] + 2)] if places[-1] + 2 <= len(LARGE) else []
    answer = await api("POST", "/v1/signatures/me/f", json={"ranges": ranges})
    wanted = [unit for start, stop in ranges for unit in pieces_of(LARGE[start:stop])]
    assert read_pieces(answer.content) == wanted


async def test_a_long_range_is_in_memory_once_while_it_is_cut(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(api, random_bytes(16 * MIB, "one long range"))
    held: list[int] = []
    cut = pieces_of

    def measured(data: bytes, how: Chunking) -> Sequence[Unit]:
        held.append(tracemalloc.get_traced_memory()[0])
        return cut(data, how)

    monkeypatch.setattr(deltas, "pieces_of", measured)
    tracemalloc.start()
    try:
        ranges = {"ranges": [[0, 16 * MIB]], "mean": 4096}
        assert (await api("POST", "/v1/signatures/me/f", json=ranges)).status_code == 200
    finally:
        tracemalloc.stop()
    assert len(held) == 1
    assert held[0] < 24 * MIB


# Between images of zip files

ONE, OTHER = zipped(DOCUMENT), zipped(CHANGED)


async def test_signatures_of_a_zip_file_laid_open(api: Client) -> None:
    await put(api, ONE)
    url = "/v1/signatures/me/f"
    members = await api("GET", f"{url}?members=true")
    assert read_units(members.content) == packed_units(ONE)
    codes = codes_of(ONE, OTHER)
    assert codes is not None
    asked = {"codes": b64encode(codes[0]).decode()}
    image = opened(ONE, codes[0])
    whole = await api("POST", url, json=asked)
    assert read_units(whole.content) == image_units(image, codes[0], len(ONE))
    assert whole.headers["vaultfs-image-size"] == str(len(image))
    assert whole.headers["vaultfs-image-digest"] == f"blake3={digest_of(image).hex()}"
    end = len(image)
    finer = await api("POST", url, json={**asked, "ranges": [[5, 3000], [end - 900, end]]})
    pieces = [*pieces_of(image[5:3000]), *pieces_of(image[end - 900 :])]
    assert read_pieces(finer.content) == pieces
    for wrong in (
        {"codes": b64encode(codes[0] + b"\6").decode()},
        {"codes": b64encode(bytes([99] * len(codes[0]))).decode()},
        {**asked, "ranges": [[0, end + 1]]},
        {**asked, "ranges": [[9, 5]]},
        {"codes": "no base64"},
    ):
        assert (await api("POST", url, json=wrong)).json()["code"] == "invalid_field"
    await put(api, OLD)
    for answer in (await api("GET", f"{url}?members=true"), await api("POST", url, json=asked)):
        assert answer.json()["code"] == "invalid_field"
    assert (await api("GET", f"{url}?members=true&version=1")).content == members.content
    bob = await api.new_user("bob")
    for method, more in (("GET", None), ("POST", asked)):
        answer = await api(method, f"{url}?members=true", json=more, token=bob)
        assert answer.status_code == 404


async def test_a_delta_between_images_becomes_a_version(api: Client) -> None:
    data = await delta_of(api, ONE, OTHER)
    assert is_between_images(data)
    [one] = await put(api, ONE)
    answer = await send(api, data, If_Match=one)
    assert answer.status_code == 200
    assert (await api("GET", URL)).content == OTHER
    assert (await send(api, data, If_Match=one)).status_code == 412


async def test_nothing_becomes_of_a_delta_between_images_that_is_wrong(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await delta_of(api, ONE, OTHER)
    [one] = await put(api, ONE)
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1
        answer = await send(api, bytes(flipped), If_Match=one)
        assert answer.json()["code"] in {"invalid_field", "version_mismatch", "unsupported"}
        cut = await send(api, data[:place], If_Match=one)
        assert cut.json()["code"] == "invalid_field"
    monkeypatch.setattr(deltas, "WORK", -1.0)
    tired = await send(api, data, If_Match=one)
    assert "too long" in tired.json()["detail"]
    monkeypatch.undo()
    monkeypatch.setattr(deltas, "MOST_IMAGES", len(data) - 1)
    assert (await send(api, data, If_Match=one)).status_code == 413
    monkeypatch.undo()
    assert (await api("GET", URL)).content == ONE
    assert (await send(api, data, If_Match=one)).status_code == 200, "nobody has a place any more"


@pytest.mark.parametrize("images", [False, True])
async def test_no_delta_makes_more_work_than_a_file(api: Client, *, images: bool) -> None:
    """Blocks of many tiny steps are short; so many of them that a server is at it for minutes."""
    base = ONE if images else OLD
    codes = bytes([6]) * len(packed_units(ONE))
    inner = opened(ONE, codes) if images else OLD
    steps = tuple(Copy(number % 2, 1) for number in range(MOST_PARTS))
    block = encode_block(Block(steps, b"", b""), lambda _start, _stop: b"")
    header = Header.of(len(inner), digest_of(inner), 300 * MOST_PARTS, digest_of(b""))
    data = write_header(header) + 300 * block + write_end(300)
    if images:
        header = Header.of(len(ONE), digest_of(ONE), len(ONE), digest_of(b""))
        data = write_images(Images(header, codes, codes)) + data
    assert len(data) < 30_000
    [one] = await put(api, base)
    with anyio.fail_after(5):
        refused = await send(api, data, If_Match=one)
    assert refused.status_code == 400
    assert "too many steps" in refused.json()["detail"]


async def test_who_finds_no_place_is_to_send_the_whole_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "IMAGES", 0)
    async with open_api() as api:
        data = await delta_of(api, ONE, OTHER)
        [one] = await put(api, ONE)
        refused = await send(api, data, If_Match=one)
        assert (refused.status_code, refused.json()["code"]) == (501, "unsupported")


async def test_a_large_zip_file_is_not_laid_open(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differ, "MAX_ZIP", len(ONE) - 1)
    await put(api, ONE)
    answer = await api("GET", "/v1/signatures/me/f?members=true")
    assert answer.json()["code"] == "invalid_field"


@pytest.mark.parametrize("pair", [(OLD, NEW), (ONE, OTHER)])
async def test_a_base_that_is_damaged_is_not_the_clients_fault(
    api: Client, monkeypatch: pytest.MonkeyPatch, pair: tuple[bytes, bytes]
) -> None:
    data = await delta_of(api, *pair)
    [one] = await put(api, pair[0])

    async def damaged(*_: object) -> bytes:
        raise DamagedContent("a chunk is damaged", digest=bytes(32))

    monkeypatch.setattr(bases.VaultBase, "read", damaged)
    answer = await send(api, data, If_Match=one)
    assert (answer.status_code, answer.json()["code"]) == (500, "damaged_content")


async def test_a_base_whose_digest_nobody_has_found_yet_will_do(api: Client) -> None:
    data = await delta_of(api, OLD, NEW)
    _, [version] = await named(api.vault, OLD)
    answer = await send(api, data, If_Match=content_etag(version.id))
    assert answer.status_code == 200
    assert (await api("GET", URL)).content == NEW


async def based(api: Client, tasks: TaskGroup, content: bytes = LARGE) -> bases.VaultBase:
    await put(api, content)
    node, version = await api.vault.files.version(api.vault.user, Address("me", ("f",)))
    return bases.VaultBase(api.vault.files, node.tree, version, digest_of(content), tasks)


@pytest.mark.parametrize("seed", range(5))
async def test_a_base_is_read_in_whatever_order(api: Client, seed: int) -> None:
    random = Random(seed)
    async with anyio.create_task_group() as tasks:
        with closing(await based(api, tasks)) as base:
            at = 0
            for _ in range(60):
                at = random.choice([at, at, at, random.randrange(len(LARGE))])
                stop = min(len(LARGE), at + random.choice([1, 1000, MIB, 3 * MIB]))
                assert await base.read(at, stop) == LARGE[at:stop]
                at = 0 if stop == len(LARGE) else stop


async def test_a_base_that_is_read_through_is_opened_once(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_at: list[int] = []
    original = Files.read

    def counted(
        self: Files, tree: TreeId, version: Version, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Buffer]]]:
        opened_at.append(start)
        return original(self, tree, version, start, stop)

    async with anyio.create_task_group() as tasks:
        with closing(await based(api, tasks)) as base:
            monkeypatch.setattr(Files, "read", counted)
            for at in range(0, len(LARGE), 70_000):
                await base.read(at, min(at + 70_000, len(LARGE)))
            assert opened_at == [0]
            await base.read(MIB + 5, MIB + 6)
            assert opened_at == [0, MIB]


@pytest.mark.parametrize("row", [1, 2, 3, 6])
async def test_a_base_of_which_parts_were_moved_is_not_read_many_times(
    api: Client, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    content = random_bytes(30 * MIB, "in another order")
    got: list[int] = []
    original = Reader.fetch

    async def counted(
        self: Reader, user: UserId, fetch: Fetch, take: Take | None = None
    ) -> list[Buffer]:
        got.append(fetch.stop - fetch.start)
        return await original(self, user, fetch, take)

    places = list(range(0, 30, row))
    Random(1).shuffle(places)
    async with anyio.create_task_group() as tasks:
        with closing(await based(api, tasks, content)) as base:
            monkeypatch.setattr(Reader, "fetch", counted)
            for start in (place * MIB for place in places):
                stop = start + row * MIB
                assert await base.read(start, stop) == content[start:stop]
    assert sum(got) < 2.2 * len(content)


async def test_damage_that_is_found_ahead_is_told_where_it_is_met(api: Client) -> None:
    longer = LARGE + b"more"
    data = await delta_of(api, LARGE, longer)
    [one] = await put(api, LARGE)
    largest = max(await api.vault.catalog.packs(), key=lambda pack: pack.size)
    await api.vault.objects.delete(pack_key(largest.key))
    answer = await send(api, data, If_Match=one)
    assert (answer.status_code, answer.json()["code"]) == (500, "damaged_content")
    assert len((await api("GET", "/v1/versions/me/f")).json()["entries"]) == 1


async def test_a_delta_that_is_refused_in_the_middle_leaves_nobody_reading(api: Client) -> None:
    data = await delta_of(api, LARGE, LARGE + b"more")
    [one] = await put(api, LARGE)
    wrong = bytearray(data)
    wrong[-6] ^= 1
    for _ in range(3):
        answer = await send(api, bytes(wrong), If_Match=one)
        assert answer.status_code == 400
    answer = await send(api, data, If_Match=one)
    assert answer.status_code == 200
    assert (await api("GET", URL)).content == LARGE + b"more"

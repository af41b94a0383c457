"""The HTTP API, in this process, over a vault in memory."""

import json
import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import asdict
from blake3 import blake3
from openapi_spec_validator import validate
from tests.entrypoints.http_calls import Client, open_api
from tests.faults import random_bytes

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.domain.rates import Rate
from vaultfs.domain.services.upkeep import Maintained
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.app import ROUTES, JsonLines
from vaultfs.entrypoints.http.description import describe
from vaultfs.entrypoints.http.problems import problem_of
from vaultfs.entrypoints.http.statuses import status_of
from vaultfs.ports.objects import StoreError

FILE = "/v1/files/me/a.txt"
CONTENT = random_bytes(700_000, "http")


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        yield client


async def put(api: Client, path: str, data: bytes = b"one", **rest: Any) -> dict[str, Any]:
    found: dict[str, Any] = await api.ok("PUT", f"/v1/files/me{path}", content=data, **rest)
    return found


# Contents


async def test_a_file_comes_back_as_it_was_put(api: Client) -> None:
    node = await put(api, "/a.txt", CONTENT)
    assert (node["path"], node["size"], node["number"]) == ("/a.txt", len(CONTENT), 1)
    got = await api("GET", FILE)
    assert got.content == CONTENT
    assert got.headers["etag"] == f'"v{node["version"]}"'
    digest = b64encode(blake3(CONTENT).digest()).decode()
    assert got.headers["repr-digest"] == f"blake3=:{digest}:"
    head = await api("HEAD", FILE)
    assert head.content == b""
    assert head.headers["content-length"] == str(len(CONTENT))
    assert head.headers["etag"] == got.headers["etag"]


async def test_a_body_of_unknown_length_is_taken(api: Client) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(CONTENT), 100_000):
            yield CONTENT[start : start + 100_000]

    answer = await api("PUT", FILE, content=pieces())
    assert answer.status_code == 201
    assert (await api("GET", FILE)).content == CONTENT


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-300000", 5, 300_001),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=-10", 699_990, 700_000),
        ("bytes=600000-99999999", 600_000, 700_000),
    ],
)
async def test_a_range(api: Client, header: str, start: int, stop: int) -> None:
    await put(api, "/a.txt", CONTENT)
    got = await api("GET", FILE, headers={"Range": header})
    assert got.status_code == 206
    assert got.content == CONTENT[start:stop]
    assert got.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    whole = (await api("HEAD", FILE)).headers["repr-digest"]
    assert got.headers["repr-digest"] == whole  # of the representation, not of the part (RFC 9530)


@pytest.mark.parametrize("header", ["bytes=1-2,4-5", "lines=1-2", "bytes=x-1", "bytes=5-1", "x"])
async def test_a_range_that_means_nothing_gives_all(api: Client, header: str) -> None:
    await put(api, "/a.txt", CONTENT)
    got = await api("GET", FILE, headers={"Range": header})
    assert (got.status_code, got.content) == (200, CONTENT)


async def test_a_range_that_cannot_be_had(api: Client) -> None:
    await put(api, "/a.txt", b"short")
    beyond = {"Range": "bytes=5-"}
    assert await api.refused(416, "GET", FILE, headers=beyond) == "out_of_range"
    got = await api("GET", FILE, headers=beyond)
    assert got.headers["content-range"] == "bytes */5"


async def test_a_range_of_what_it_was_gives_all_of_what_it_is(api: Client) -> None:
    old = (await put(api, "/a.txt", b"first"))["version"]
    new = (await put(api, "/a.txt", b"second"))["version"]
    for version, expected in ((old, b"second"), (new, b"se")):
        headers = {"Range": "bytes=0-1", "If-Range": f'"v{version}"'}
        assert (await api("GET", FILE, headers=headers)).content == expected


async def test_a_part_of_a_file_does_not_replace_it(api: Client) -> None:
    await put(api, "/a.txt", b"0123456789")
    for value in ("bytes 5-9/10", "bytes 0-4/*", "bytes */10", "x"):
        headers = {"Content-Range": value}
        code = await api.refused(400, "PUT", FILE, content=b"56789", headers=headers)
        assert code == "invalid_field"
    assert (await api("GET", FILE)).content == b"0123456789"


async def test_any_version_can_be_read(api: Client) -> None:
    for text in (b"one", b"two", b"three"):
        await put(api, "/a.txt", text)
    assert (await api("GET", FILE, params={"version": 1})).content == b"one"
    assert (await api("GET", FILE)).content == b"three"
    assert await api.refused(404, "GET", FILE, params={"version": 9}) == "not_found"
    for bad in ("x", "0", "-1", "9" * 19, "9" * 5000):
        assert await api.refused(400, "GET", FILE, params={"version": bad}) == "invalid_field"
    found = await api.ok("GET", "/v1/versions/me/a.txt", params={"limit": 2})
    assert [each["number"] for each in found["entries"]] == [3, 2]
    cursor = found["next_cursor"]
    rest = await api.ok("GET", "/v1/versions/me/a.txt", params={"cursor": cursor})
    assert [each["number"] for each in rest["entries"]] == [1]
    assert rest["next_cursor"] is None
    node = await api.ok("POST", "/v1/versions/me/a.txt", json={"number": 1})
    assert node["number"] == 4
    assert (await api("GET", FILE)).content == b"one"


async def test_what_the_client_has_is_not_sent_again(api: Client) -> None:
    await put(api, "/a.txt")
    etag = (await api("HEAD", FILE)).headers["etag"]
    got = await api("GET", FILE, headers={"If-None-Match": f'"v99", {etag}'})
    assert (got.status_code, got.content) == (304, b"")
    assert "content-length" not in got.headers
    assert (await api("GET", FILE, headers={"If-Match": '"v99"'})).status_code == 412


async def test_a_node_that_the_client_has_is_not_sent_again(api: Client) -> None:
    node = await put(api, "/a.txt")
    etag = node["etag"]
    for known in (etag, f"W/{etag}", f'"r99", {etag}', "*"):
        got = await api("GET", "/v1/nodes/me/a.txt", headers={"If-None-Match": known})
        assert (got.status_code, got.headers["etag"]) == (304, etag)
    got = await api("GET", "/v1/nodes/me/a.txt", headers={"If-None-Match": '"r99"'})
    assert got.status_code == 200


async def test_writes_can_depend_on_what_is_there(api: Client) -> None:
    absent = {"If-None-Match": "*"}
    node = await put(api, "/a.txt", b"one", headers=absent)
    code = await api.refused(412, "PUT", FILE, content=b"two", headers=absent)
    assert code == "version_mismatch"
    present = {"If-Match": "*"}
    await put(api, "/a.txt", b"two", headers=present)
    await api.refused(412, "PUT", "/v1/files/me/b", content=b"x", headers=present)
    old = {"If-Match": f'"v{node["version"]}"'}
    assert await api.refused(412, "PUT", FILE, content=b"three", headers=old)
    assert (await api("GET", FILE)).content == b"two"
    revision = (await api.ok("GET", "/v1/nodes/me/a.txt"))["etag"]
    await api.ok("PATCH", FILE, content=b'{"a": 1}', headers={"If-Match": revision})
    await api.refused(412, "DELETE", FILE, headers={"If-Match": revision})
    assert await api.refused(400, "PUT", FILE, headers={"If-Match": '"odd"'}) == "invalid_field"


async def test_no_write_depends_on_a_time(api: Client) -> None:
    since = {"If-Unmodified-Since": "Sat, 29 Oct 1994 19:43:31 GMT"}
    await put(api, "/a.txt", b"kept")
    both = {"source": "/a.txt", "target": "/b"}
    for method, path, body in (
        *(("PUT", FILE, {}), ("PATCH", FILE, {}), ("DELETE", FILE, {})),
        *(("POST", "/v1/move", both), ("POST", "/v1/copy", both)),
    ):
        code = await api.refused(400, method, path, json=body, headers=since)
        assert code == "invalid_field"
    assert (await api("GET", FILE)).content == b"kept"


async def test_what_is_to_be_absent_and_is_there_is_a_precondition(api: Client) -> None:
    absent = {"If-None-Match": "*"}
    await put(api, "/a.txt")
    await api.ok("PUT", "/v1/folders/me/f", headers=absent)
    for method, path in (
        *(("PUT", FILE), ("PATCH", FILE), ("DELETE", FILE)),
        *(("PUT", "/v1/folders/me/f"), ("PUT", "/v1/folders/me/f?exist_ok=true")),
    ):
        code = await api.refused(412, method, path, content=b"{}", headers=absent)
        assert code == "version_mismatch"
    present = {"If-Match": "*"}
    assert await api.refused(400, "PUT", "/v1/folders/me/g", headers=present) == "invalid_field"


async def test_one_of_several_tags_is_enough(api: Client) -> None:
    node = await put(api, "/a.txt", b"one")
    tags = f'"v99", {node["etag"]},"v{node["version"]}"'
    for method, path in (("PATCH", "/v1/nodes/me/a.txt"), ("PUT", FILE)):
        await api.ok(method, path, content=b"{}", headers={"If-Match": tags})
    stale = {"If-Match": tags}
    assert await api.refused(412, "PUT", FILE, content=b"x", headers=stale) == "version_mismatch"
    await api.refused(412, "PUT", "/v1/files/me/none", content=b"x", headers=stale)
    bad = {"If-Match": f'{node["etag"]}, W/"v1"'}
    assert await api.refused(400, "PUT", FILE, content=b"x", headers=bad) == "invalid_field"


async def test_what_is_cut_at_the_end_is_told_why(api: Client) -> None:
    sent: list[Any] = []
    reading = anyio.Event()

    async def receive() -> Any:
        reading.set()
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "x", "authorization": f"Bearer {api.token}", "content-length": "5"}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "PUT",
        "query_string": b"",
        "path": FILE,
        "raw_path": FILE.encode(),
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.app, scope, receive, send)
        await reading.wait()
        tasks.cancel_scope.cancel()
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["code"] == "busy"
    assert (b"connection", b"close") in sent[0]["headers"]
    assert api.vault.budget.free == api.vault.budget.total


async def test_the_same_content_again_is_a_change_to_its_etag(api: Client) -> None:
    tags: list[str] = []
    for text in (b"A", b"B", b"A"):
        await put(api, "/a.txt", text)
        tags.append((await api("HEAD", FILE)).headers["etag"])
    assert len(set(tags)) == 3


@pytest.mark.parametrize("name", ["sha-256", "blake3"])
async def test_a_digest_of_the_body_is_checked(api: Client, name: str) -> None:
    digest = sha256(CONTENT).digest() if name == "sha-256" else blake3(CONTENT).digest()
    right = {"Content-Digest": f"{name}=:{b64encode(digest).decode()}:"}
    wrong = {"Content-Digest": f"{name}=:{b64encode(digest[::-1]).decode()}:"}
    code = await api.refused(400, "PUT", FILE, content=CONTENT, headers=wrong)
    assert code == "invalid_field"
    assert await api.refused(404, "GET", FILE) == "not_found"
    assert (await api("PUT", FILE, content=CONTENT, headers=right)).status_code == 201


async def test_where_a_file_came_from_is_kept(api: Client) -> None:
    await put(api, "/a.txt", headers={"Vaultfs-Mtime": "1234567", "Vaultfs-Mode": "640"})
    head = await api("HEAD", FILE)
    assert (head.headers["vaultfs-mtime"], head.headers["vaultfs-mode"]) == ("1234567", "640")
    await api.refused(400, "PUT", FILE, content=b"x", headers={"Vaultfs-Mode": "9"})
    for bad in ("x", "1.5", "9" * 19, "-" + "9" * 30, "9" * 5000):
        headers = {"Vaultfs-Mtime": bad}
        assert await api.refused(400, "PUT", FILE, content=b"x", headers=headers)


async def test_content_cannot_act_in_the_name_of_the_server(api: Client) -> None:
    await put(api, "/evil.html", b"<script>alert(1)</script>")
    got = await api("GET", "/v1/files/me/evil.html")
    assert got.headers["content-security-policy"] == "sandbox"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["cache-control"] == "private, no-cache"  # and not in a proxy for others


async def test_a_damaged_file_is_an_error_and_says_nothing_of_the_server(api: Client) -> None:
    await put(api, "/a.txt", CONTENT)
    [store] = api.vault.objects.stores.values()
    assert isinstance(store, MemoryObjectStore)
    for key in [key for key in store.objects if key.startswith("packs/")]:
        del store.objects[key]
    assert await api.refused(500, "GET", FILE) == "damaged_content"
    assert "packs" not in (await api("GET", FILE)).text


# Names


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/files/me/a%2Fb", "/v1/files/me/a%2fb", "/v1/files/me/a%00b", "/v1/files/me/a%5Cb"),
        *("/v1/files/me/%2e%2e/x", "/v1/files/me/%2E./x", "/v1/files/me/a//b"),
        *("/v1/files/me/%ff", "/v1/files/me/a%0ab", "/v1/files/me/" + "x" * 256),
        "/v1/files/me/" + "d/" * 65 + "f",
    ],
)
async def test_no_address_is_another_once_it_is_decoded(api: Client, path: str) -> None:
    assert await api.refused(400, "PUT", path, content=b"x") == "invalid_name"


@pytest.mark.parametrize(
    "name", ["é", "日本\ufffd", "a b", "100%", "a+b", "q?x", "#1", "e\u0301", "👍"]
)
async def test_names_are_unicode(api: Client, name: str) -> None:
    from urllib.parse import quote

    address = f"/v1/files/me/{quote(name)}"
    await api.ok("PUT", address, content=name.encode())
    assert (await api("GET", address)).content == name.encode()
    [entry] = (await api.ok("GET", "/v1/folders/me/"))["entries"]
    assert entry["name"] == name


# Folders and nodes


async def test_folders_are_made_and_listed_in_parts(api: Client) -> None:
    assert await api.refused(404, "PUT", "/v1/folders/me/a/b") == "parent_not_found"
    await api.ok("PUT", "/v1/folders/me/a/b", params={"parents": "true"})
    assert await api.refused(409, "PUT", "/v1/folders/me/a") == "exists"
    await api.ok("PUT", "/v1/folders/me/a", params={"exist_ok": "1"})
    for number in range(7):
        await put(api, f"/a/{number}")
    names: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "3", **({"cursor": cursor} if cursor else {})}
        found = await api.ok("GET", "/v1/folders/me/a", params=query)
        names += [each["name"] for each in found["entries"]]
        assert len(found["entries"]) <= 3
        cursor = found["next_cursor"]
        if cursor is None:
            break
    assert names == [*map(str, range(7)), "b"]
    assert await api.refused(409, "GET", "/v1/folders/me/a/1") == "not_a_folder"
    for bad in ({"limit": "0"}, {"limit": "1001"}, {"cursor": "x"}, {"cursor": "////"}):
        assert await api.refused(400, "GET", "/v1/folders/me/a", params=bad) == "invalid_field"


async def test_a_file_goes_to_the_trash_and_comes_back(api: Client) -> None:
    await put(api, "/a.txt", b"kept")
    await api.ok("DELETE", FILE)
    await api.refused(404, "GET", FILE)
    [gone] = (await api.ok("GET", "/v1/trash/me"))["entries"]
    assert gone["path"] == "/a.txt"
    elsewhere = {"target": "bob:/b.txt"}
    assert await api.refused(404, "POST", f"/v1/trash/me/{gone['id']}", json=elsewhere)
    back = await api.ok("POST", f"/v1/trash/me/{gone['id']}", json={"target": "/b.txt"})
    assert back["path"] == "/b.txt"
    assert (await api("GET", "/v1/files/me/b.txt")).content == b"kept"
    await api.ok("DELETE", "/v1/nodes/me/b.txt")
    await api.ok("DELETE", f"/v1/trash/me/{gone['id']}")
    assert (await api.ok("GET", "/v1/trash/me"))["entries"] == []
    await api.refused(404, "DELETE", f"/v1/trash/me/{gone['id']}")
    for bad in ("x", "0", "9" * 5000):
        await api.refused(400, "DELETE", f"/v1/trash/me/{bad}")


async def test_a_folder_goes_with_what_is_in_it_only_if_that_is_meant(api: Client) -> None:
    await put(api, "/d/a", params={"parents": "true"})
    assert await api.refused(409, "DELETE", "/v1/nodes/me/d") == "folder_not_empty"
    await api.ok("DELETE", "/v1/nodes/me/d", params={"recursive": "true"})
    await api.refused(404, "GET", "/v1/files/me/d/a")


async def test_moving_and_copying(api: Client) -> None:
    await put(api, "/a.txt", b"one")
    await put(api, "/a.txt", b"two")
    moved = await api.ok("POST", "/v1/move", json={"source": "/a.txt", "target": "/b"})
    assert (moved["path"], moved["number"]) == ("/b", 2)
    answer = await api("POST", "/v1/copy", json={"source": "/b", "target": "/c", "version": 1})
    assert (answer.status_code, answer.json()["number"]) == (201, 1)
    assert (await api("GET", "/v1/files/me/c")).content == b"one"
    again = {"source": "/b", "target": "/c"}
    assert await api.refused(409, "POST", "/v1/move", json=again) == "exists"
    await api.ok("POST", "/v1/move", json={**again, "replace": True})
    assert (await api("GET", "/v1/files/me/c")).content == b"two"
    assert await api.refused(404, "POST", "/v1/move", json=again) == "not_found"
    old = {"source": "/c", "target": "/d", "version": 1}
    assert await api.refused(400, "POST", "/v1/move", json=old) == "invalid_field"


async def test_metadata_is_patched(api: Client) -> None:
    await put(api, "/a.txt")
    node = await api.ok("PATCH", "/v1/nodes/me/a.txt", content=b'{"a": 1, "b": {"c": 2}}')
    node = await api.ok("PATCH", "/v1/nodes/me/a.txt", content=b'{"b": {"c": null}, "d": "x"}')
    assert node["metadata"] == {"a": 1, "b": {}, "d": "x"}
    for bad in (b"", b"[]", b"{", b"\xff", b'{"a": 1e999}', b'"x"'):
        await api.refused(400, "PATCH", "/v1/nodes/me/a.txt", content=bad)
    large = json.dumps({"a": "x" * 20_000}).encode()
    await api.refused(413, "PATCH", "/v1/nodes/me/a.txt", content=large)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"source": 1, "target": "/b"}', b'{"source": "/a"}'),
        *(b'{"source": "/a", "target": "/b", "extra": 1}', b'{"source": "a", "target": "/b"}'),
        *(b'{"source": "/a", "target": "/b", "replace": "yes"}', b"[" * 100_000, b"\xff"),
        b'{"source": "/a", "target": "/b\\u0000"}',
    ],
)
async def test_a_body_that_is_wrong_is_refused(api: Client, body: bytes) -> None:
    assert (await api("POST", "/v1/move", content=body)).status_code == 400


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (b'{"source": 1, "target": "/b"}', "#/source", "invalid"),
        (b'{"source": "/a"}', "#/target", "missing"),
        (b'{"source": "/a", "target": "/b", "a/b~ c": 1}', "#/a~1b~0%20c", "unknown"),
        (b"[]", "#", "invalid"),
        *((b"{", "#", "malformed"), (b"", "#", "malformed"), (b"\xff", "#", "malformed")),
        (b"[" * 100_000, "#", "invalid"),
    ],
)
async def test_what_is_wrong_with_a_body_is_pointed_at(
    api: Client, body: bytes, pointer: str, code: str
) -> None:
    problem = (await api("POST", "/v1/move", content=body)).json()
    assert problem["errors"] == [{"pointer": pointer, "code": code}]


async def test_what_is_wrong_deep_in_a_body_is_pointed_at(api: Client) -> None:
    wrong: list[tuple[Any, str, str]] = [
        ([{"path": "/a"}, {"path": 1}], "#/paths/1/path", "invalid"),
        ([{}], "#/paths/0/path", "missing"),
    ]
    for paths, pointer, code in wrong:
        body = {"paths": paths, "mode": "X", "owner": "a"}
        problem = (await api("POST", "/v1/locks", json=body)).json()
        assert problem["errors"] == [{"pointer": pointer, "code": code}]
    problem = (await api("GET", "/v1/folders/me/?limit=0")).json()
    assert "errors" not in problem


async def test_a_body_that_is_too_large_is_not_read(api: Client) -> None:
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 64 << 10
            yield b" " * (64 << 10)

    assert await api.refused(413, "POST", "/v1/move", content=pieces()) == "too_large"
    assert read <= 2 << 20
    read = 0
    headers = {"Content-Length": str(64 << 20)}
    await api.refused(413, "POST", "/v1/move", content=pieces(), headers=headers)
    assert read <= 64 << 10


# Who may do what


async def test_nothing_is_said_to_who_has_no_token(api: Client) -> None:
    await put(api, "/a.txt")
    secret = api.token
    for bad in ("", "x", "vfs_", secret[:-1], secret + "A", secret.swapcase(), f"vfs_{'0' * 16}_x"):
        answer = await api("GET", FILE, token=bad)
        assert answer.status_code == 401
        assert "Bearer" in answer.headers["www-authenticate"]
    for route in ROUTES:
        path = re.sub(r"{(\w+)(:\w+)?}", "1", route.path)
        answer = await api(route.method, path, token="")
        assert (answer.status_code == 401) == (route.scope is not None), route


async def test_the_token_is_the_password_of_basic(api: Client) -> None:
    await put(api, "/a.txt")
    basic = b64encode(f"anybody:{api.token}".encode()).decode()
    answer = await api("GET", FILE, token="", headers={"Authorization": f"Basic {basic}"})
    assert answer.content == b"one"
    for bad in ("Basic !!!", "Basic " + b64encode(b"x").decode(), "Digest x", "Bearer"):
        answer = await api("GET", FILE, token="", headers={"Authorization": bad})
        assert answer.status_code == 401


async def test_a_page_of_another_site_cannot_use_a_password_that_the_browser_keeps(
    api: Client,
) -> None:
    await put(api, "/a.txt")
    basic = {"Authorization": "Basic " + b64encode(f"me:{api.token}".encode()).decode()}
    body = b'{"source": "/a.txt", "target": "/b.txt"}'
    for site in ("cross-site", "same-site"):
        headers = {**basic, "Sec-Fetch-Site": site, "Content-Type": "text/plain"}
        code = await api.refused(403, "POST", "/v1/move", token="", headers=headers, content=body)
        assert code == "forbidden"
        await api.ok("GET", "/v1/whoami", token="", headers=headers)  # as a link does
        await api.ok("GET", "/v1/whoami", headers={"Sec-Fetch-Site": site})
    headers = {**basic, "Sec-Fetch-Site": "same-origin"}
    await api.ok("POST", "/v1/move", token="", headers=headers, content=body)
    bearer = {"Sec-Fetch-Site": "cross-site"}
    back = {"source": "/b.txt", "target": "/a.txt"}
    await api.ok("POST", "/v1/move", headers=bearer, json=back)


async def test_a_token_does_what_its_scopes_say(api: Client) -> None:
    await put(api, "/a.txt")
    reader = await api.new_token("me", Scope.READ)
    writer = await api.new_token("me", Scope.WRITE)
    admin = await api.new_token("me", Scope.ADMIN)
    allowed = {
        (reader, "GET", FILE): 200,
        (reader, "PUT", FILE): 403,
        (reader, "GET", "/v1/users"): 403,
        (writer, "PUT", FILE): 200,
        (writer, "GET", FILE): 403,
        (admin, "GET", FILE): 403,
        (admin, "GET", "/v1/users"): 200,
        (admin, "GET", "/v1/users/me/tokens"): 200,
        (admin, "GET", "/v1/whoami"): 200,
    }
    for (token, method, path), status in allowed.items():
        answer = await api(method, path, token=token, content=b"one" if method == "PUT" else None)
        assert answer.status_code == status, (method, path, answer.text)


async def test_what_concerns_all_users_takes_the_scope_for_it(api: Client) -> None:
    token = await api.new_token("me", Scope.READ, Scope.WRITE)
    names = {
        *("listUsers", "addUser", "setQuota", "listAudit", "breakLock", "usage"),
        *("listCollections", "listScrubs", "getMigration", "changeMigration"),
    }
    routes = [route for route in ROUTES if route.name in names]
    assert len(routes) == len(names)
    for route in routes:
        path = route.path.format(user="me", fence=1)
        assert await api.refused(403, route.method, path, token=token, json={}) == "forbidden"


async def test_nothing_of_one_user_is_visible_to_another(api: Client) -> None:
    bob = await api.new_user("bob")
    await put(api, "/secret", b"mine")
    same: dict[str, set[str]] = {}
    for owner in ("me", "nobody"):
        calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("GET", f"/v1/files/{owner}/secret", {}),
            ("PUT", f"/v1/files/{owner}/secret", {"content": b"x"}),
            ("PUT", f"/v1/files/{owner}/new", {"content": b"x"}),
            ("DELETE", f"/v1/files/{owner}/secret", {}),
            ("PATCH", f"/v1/nodes/{owner}/secret", {"content": b"{}"}),
            ("GET", f"/v1/nodes/{owner}/secret", {}),
            ("GET", f"/v1/folders/{owner}/", {}),
            ("PUT", f"/v1/folders/{owner}/d", {}),
            ("GET", f"/v1/versions/{owner}/secret", {}),
            ("POST", f"/v1/versions/{owner}/secret", {"json": {"number": 1}}),
            ("GET", f"/v1/trash/{owner}", {}),
            ("POST", f"/v1/trash/{owner}/3", {"json": {}}),
            ("DELETE", f"/v1/trash/{owner}/3", {}),
            ("POST", "/v1/copy", {"json": {"source": f"{owner}:/secret", "target": "/x"}}),
            ("POST", "/v1/move", {"json": {"source": f"{owner}:/secret", "target": "/x"}}),
            ("POST", "/v1/move", {"json": {"source": "/x", "target": f"{owner}:/x"}}),
            ("GET", f"/v1/users/{owner}", {}),
            ("GET", f"/v1/users/{owner}/tokens", {}),
            ("POST", f"/v1/users/{owner}/tokens", {"json": {"name": "", "scopes": ["read"]}}),
        )
        for method, path, rest in calls:
            answer = await api(method, path, token=bob, **rest)
            assert answer.status_code == 404, (method, path, answer.text)
            told = answer.json()["detail"].replace(owner, "")
            same.setdefault(f"{method} {path} {rest}".replace(owner, ""), set()).add(told)
    assert all(len(told) == 1 for told in same.values()), same
    assert (await api("GET", "/v1/files/me/secret")).content == b"mine"
    await api.ok("PUT", "/v1/files/bob/own", token=bob, content=b"x")
    await api.refused(404, "GET", "/v1/files/bob/own")


async def test_what_is_forgotten_for_ever_is_for_the_owner_to_say(api: Client) -> None:
    bob = await api.new_user("bob")
    for text in (b"one", b"two"):
        await put(api, "/a.txt", text)
    await put(api, "/gone")
    gone = await api.ok("DELETE", "/v1/nodes/me/gone")
    await api.ok("PUT", "/v1/retention/me", json={"last": 1, "age_seconds": None})
    await api.ok("PUT", "/v1/access/me/", json={"user": "bob", "role": "writer"})
    await api.ok("PUT", "/v1/files/me/b", token=bob, content=b"b")
    for method, path, body in (
        ("PUT", "/v1/retention/me", {"last": None, "age_seconds": 1}),
        *(("POST", "/v1/prune/me", None), ("DELETE", f"/v1/trash/me/{gone['id']}", None)),
        ("PUT", "/v1/access/me/a.txt", {"user": "bob", "role": "writer"}),
    ):
        assert await api.refused(403, method, path, token=bob, json=body) == "forbidden"
    for age in (0, 10**16):
        await api.refused(400, "PUT", "/v1/retention/me", json={"last": 1, "age_seconds": age})
    assert (await api.ok("GET", "/v1/retention/me"))["last"] == 1
    assert len((await api.ok("GET", "/v1/versions/me/a.txt"))["entries"]) == 2
    assert len((await api.ok("GET", "/v1/trash/me"))["entries"]) == 1


async def test_users_and_quotas(api: Client) -> None:
    bob = (await api("POST", "/v1/users", json={"name": "bob", "quota": 10})).json()
    assert bob == {"name": "bob", "quota": 10, "used": 0}
    assert await api.refused(409, "POST", "/v1/users", json={"name": "bob"}) == "exists"
    for bad in ("", "a/b", "a:b", "..", "x" * 300):
        await api.refused(400, "POST", "/v1/users", json={"name": bad})
    token = await api.new_token("bob", Scope.READ, Scope.WRITE)
    await api.ok("PUT", "/v1/files/bob/a", token=token, content=b"12345")
    code = await api.refused(507, "PUT", "/v1/files/bob/b", token=token, content=b"123456")
    assert code == "quota_exceeded"
    await api.refused(403, "PUT", "/v1/users/bob/quota", token=token, json={"quota": None})
    await api.ok("PUT", "/v1/users/bob/quota", json={"quota": None})
    await api.ok("PUT", "/v1/files/bob/b", token=token, content=b"123456")
    assert (await api.ok("GET", "/v1/users/bob", token=token))["used"] == 11
    names = [each["name"] for each in (await api.ok("GET", "/v1/users"))["entries"]]
    assert names == ["bob", "me"]
    kinds = [each["kind"] for each in (await api.ok("GET", "/v1/audit"))["entries"]]
    assert kinds == ["add-user", "add-token", "add-user", "add-token", "set-quota"]
    await api.refused(403, "GET", "/v1/audit", token=token)


async def test_the_audit_says_who_did_what_to_whom(api: Client) -> None:
    token = await api.new_user("bob")
    await api.ok("PUT", "/v1/users/bob/quota", json={"quota": 5})
    await api.ok("PUT", "/v1/retention/bob", token=token, json={"last": 3})
    [known] = (await api.ok("GET", "/v1/users/bob/tokens", token=token))["entries"]
    one = f"/v1/users/bob/tokens/{known['id']}"
    await api.ok("POST", one, token=token, json={})
    await api("DELETE", one, token=token)
    rows = (await api.ok("GET", "/v1/audit"))["entries"]
    told = {row["kind"]: (row["user"], row["tree"]) for row in rows}
    assert told["set-quota"] == ("me", "bob")
    assert told["set-retention"] == ("bob", "bob")
    assert told["add-token"] == ("me", "bob")
    assert told["rotate-token"] == told["revoke-token"] == ("bob", "bob")
    assert (rows[0]["kind"], rows[0]["user"]) == ("add-user", None)


async def test_who_is_above_the_quota_can_make_room(api: Client) -> None:
    bob = await api.new_user("bob")
    for name in ("a", "b"):
        await api.ok("PUT", f"/v1/files/bob/{name}", token=bob, content=b"x" * 1000)
    await api.ok("PUT", "/v1/users/bob/quota", json={"quota": 500})
    gone = await api.ok("DELETE", "/v1/nodes/bob/a", token=bob)
    await api.ok("DELETE", f"/v1/trash/bob/{gone['id']}", token=bob)
    assert (await api.ok("GET", "/v1/users/bob", token=bob))["used"] == 1000
    code = await api.refused(507, "PUT", "/v1/files/bob/c", token=bob, content=b"x")
    assert code == "quota_exceeded"


async def test_a_token_makes_rotates_and_revokes_others(api: Client) -> None:
    clock = api.vault.clock
    assert isinstance(clock, ManualClock)
    bob = await api.new_user("bob")
    tokens = "/v1/users/bob/tokens"
    made = await api.ok("POST", tokens, token=bob, json={"name": "laptop", "scopes": ["read"]})
    secret = made["token"]
    assert secret.startswith(f"vfs_{made['id']}_")
    assert (await api.ok("GET", "/v1/whoami", token=secret))["scopes"] == ["read"]
    more = {"name": "", "scopes": ["admin"]}
    assert await api.refused(403, "POST", tokens, token=bob, json=more) == "forbidden"
    listed = (await api.ok("GET", tokens, token=bob))["entries"]
    assert all("token" not in each for each in listed)
    assert any(each["name"] == "laptop" and each["last_used"] for each in listed)
    turned = await api.ok("POST", f"{tokens}/{made['id']}", token=bob, json={"overlap_seconds": 60})
    for each in (secret, turned["token"]):
        await api.ok("GET", "/v1/whoami", token=each)
    clock.advance(timedelta(seconds=61))
    await api.refused(401, "GET", "/v1/whoami", token=secret)
    await api.ok("GET", "/v1/whoami", token=turned["token"])
    await api.ok("DELETE", f"{tokens}/{made['id']}", token=bob)
    await api.refused(401, "GET", "/v1/whoami", token=turned["token"])
    await api.refused(404, "DELETE", f"{tokens}/nothing", token=bob)
    until = (clock.now() + timedelta(minutes=5)).isoformat()
    short = {"name": "", "scopes": ["read"], "expires": until}
    brief = (await api.ok("POST", tokens, token=bob, json=short))["token"]
    await api.ok("GET", "/v1/whoami", token=brief)
    clock.advance(timedelta(minutes=6))
    await api.refused(401, "GET", "/v1/whoami", token=brief)
    for never in (until, "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        await api.refused(400, "POST", tokens, token=bob, json={**short, "expires": never})


async def test_a_user_is_the_same_however_its_accents_are_written(api: Client) -> None:
    jose = await api.new_user("Jos\u00e9")
    for path in ("/v1/users/Jose\u0301", "/v1/users/Jose\u0301/tokens", "/v1/folders/Jose\u0301/"):
        await api.ok("GET", path, token=jose)


async def test_no_secret_is_kept_on_its_way(api: Client) -> None:
    body = {"name": "", "scopes": ["read"]}
    made = await api("POST", "/v1/users/me/tokens", json=body)
    turned = await api("POST", f"/v1/users/me/tokens/{made.json()['id']}", json={})
    assert made.headers["cache-control"] == turned.headers["cache-control"] == "no-store"
    path = f"/v1/users/me/tokens/{made.json()['id']}"
    for seconds in (-1, 31 * 86_400):
        assert await api.refused(400, "POST", path, json={"overlap_seconds": seconds})


async def test_a_token_does_not_outgrow_itself(api: Client) -> None:
    clock = api.vault.clock
    assert isinstance(clock, ManualClock)
    tokens, scopes = "/v1/users/me/tokens", ["read", "write"]
    soon = (clock.now() + timedelta(minutes=5)).isoformat()
    late = (clock.now() + timedelta(days=500)).isoformat()
    body = {"name": "", "scopes": scopes, "expires": soon}
    brief = await api.ok("POST", tokens, json=body)
    for wanted in ({"name": "", "scopes": scopes}, {**body, "expires": late}):
        made = await api.ok("POST", tokens, token=brief["token"], json=wanted)
        assert made["expires"] == brief["expires"]
    path = f"{tokens}/{brief['id']}"
    turned = await api.ok("POST", path, token=brief["token"], json={"expires": late})
    assert turned["expires"] == brief["expires"]
    lasting = await api.ok("POST", tokens, json={"name": "", "scopes": scopes})
    keeper = await api.new_token("me", Scope.READ, Scope.WRITE)
    for there in (lasting, await api.ok("POST", tokens, json={**body, "expires": late})):
        its = f"{tokens}/{there['id']}"
        code = await api.refused(403, "POST", its, token=turned["token"], json={"expires": soon})
        assert code == "forbidden"
        await api.ok("POST", its, token=keeper, json={})
    await api.ok("GET", "/v1/whoami", token=brief["token"])
    again = {"overlap_seconds": 0}
    assert await api.refused(403, "POST", path, token=brief["token"], json=again) == "forbidden"
    assert await api.refused(403, "POST", tokens, token=brief["token"], json=body) == "forbidden"
    strong = await api.ok("POST", tokens, json={"name": "", "scopes": ["admin", "read", "write"]})
    stronger = f"{tokens}/{strong['id']}"
    assert await api.refused(403, "DELETE", stronger, token=turned["token"]) == "forbidden"


async def test_one_bad_number_does_no_harm_to_others(api: Client) -> None:
    good = {"Vaultfs-Mtime": "5"}
    bad = {"Vaultfs-Mtime": "9" * 20}
    statuses: list[int] = []

    async def send(number: int) -> None:
        headers = bad if number % 4 == 0 else good
        answer = await api(
            "PUT", f"/v1/files/me/{number}", content=b"x%d" % number, headers=headers
        )
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(send, number)
    assert sorted(set(statuses)) == [201, 400]
    assert statuses.count(201) == 30


async def test_what_would_be_misunderstood_is_refused(api: Client) -> None:
    await put(api, "/a.txt", b"0123456789")
    etag = (await api("HEAD", FILE)).headers["etag"]
    assert (await api("HEAD", FILE, headers={"Range": "bytes=1-2"})).status_code == 200
    assert (await api("GET", FILE, headers={"If-Match": f"W/{etag}"})).status_code == 412
    far = {"Range": "bytes=" + "9" * 30 + "-"}
    assert (await api("GET", FILE, headers=far)).status_code == 416
    for headers, status in (
        ({"If-Unmodified-Since": "Fri, 25 Dec 2020 00:00:00 GMT"}, 400),
        ({"Content-Length": str(1 << 59)}, 413),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Vaultfs-Mode": "0o777"}, 400),
        ({"Vaultfs-Mtime": "1_0"}, 400),
    ):
        assert (await api("PUT", FILE, content=b"x", headers=headers)).status_code == status

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    coded = {"Transfer-Encoding": "gzip, chunked"}
    assert (await api("PUT", FILE, content=pieces(), headers=coded)).status_code == 501
    assert (await api("GET", FILE)).content == b"0123456789"


async def test_a_token_has_a_rate_of_its_own() -> None:
    async with open_api(Rate(1, 3)) as api:
        other = await api.new_token()
        remaining = [
            (await api("GET", "/v1/whoami")).headers.get("ratelimit-remaining") for _ in range(3)
        ]
        assert remaining == ["2", "1", "0"]
        answer = await api("GET", "/v1/whoami")
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
        await api.ok("GET", "/v1/whoami", token=other)
        clock = api.vault.clock
        assert isinstance(clock, ManualClock)
        clock.advance(timedelta(seconds=1))
        await api.ok("GET", "/v1/whoami")


async def test_what_a_token_may_not_do_counts_for_its_rate() -> None:
    async with open_api(Rate(1, 2)) as api:
        reader = await api.new_token("me", Scope.READ)
        for _ in range(2):
            await api.refused(403, "PUT", FILE, token=reader, content=b"")
        await api.refused(429, "PUT", FILE, token=reader, content=b"")


async def test_rates_of_those_who_ask_no_longer_are_forgotten(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.http.app.MOST_BUCKETS", 3)
    clock = api.vault.clock
    assert isinstance(clock, ManualClock)
    server: Any = api.app.server
    for number in range(10):
        server.admit(f"token {number}")
        clock.advance(timedelta(seconds=1))
    assert len(server._full_at) <= 4


async def test_the_last_use_of_a_token_is_written_once_a_minute(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[Any] = []
    apply = type(api.vault.catalog).apply

    async def counted(catalog: Any, units: Any) -> Any:
        applied.append(units)
        return await apply(catalog, units)

    monkeypatch.setattr(type(api.vault.catalog), "apply", counted)
    clock = api.vault.clock
    assert isinstance(clock, ManualClock)
    for _ in range(12):
        await api.ok("GET", "/v1/whoami")
        clock.advance(timedelta(seconds=20))
    assert len(applied) == 4


async def test_what_takes_admin_says_so_whoever_calls(api: Client) -> None:
    plain = api.owner._replace(scopes=frozenset({Scope.READ, Scope.WRITE}))
    accounts = api.accounts
    for refused in (
        accounts.add_user(plain, "bob"),
        accounts.users(plain),
        accounts.set_quota(plain, "me", 0),
        accounts.audit(plain),
        accounts.break_lock(plain, "me", 1),
    ):
        with pytest.raises(errors.Forbidden):
            await refused


# The server itself


async def test_the_server_tells_how_it_is(api: Client) -> None:
    assert (await api.ok("GET", "/healthz", token=""))["status"] == "ok"
    ready = await api.ok("GET", "/readyz", token="")
    assert ready == {"status": "ok", "checks": {"catalog": "ok", "store": "ok"}}
    [store], clock = api.vault.objects.stores.values(), api.vault.clock
    assert isinstance(store, MemoryObjectStore)
    assert isinstance(clock, ManualClock)
    store.objects.clear()
    assert (await api("GET", "/readyz", token="")).status_code == 200
    clock.advance(timedelta(seconds=3))
    failing = await api("GET", "/readyz", token="")
    assert (failing.status_code, failing.json()["checks"]["store"]) == (503, "ObjectNotFound")
    limits = await api.ok("GET", "/v1/limits", token="")
    assert (limits["name_bytes"], limits["list_entries"]) == (255, 1000)
    await put(api, "/quite-secret-name")
    text = (await api("GET", "/metrics", token="")).text
    assert 'vaultfs_http_requests_total{method="PUT",route="/v1/files/{user}/{path:path}"' in text
    assert "quite-secret-name" not in text


async def test_a_request_has_an_id(api: Client) -> None:
    answer = await api("GET", "/healthz", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    answer = await api("GET", "/healthz", headers={"X-Request-Id": "no\tgood"})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_what_is_not_there_and_what_it_does_not_take(api: Client) -> None:
    assert await api.refused(404, "GET", "/v2/files") == "not_found"
    answer = await api("POST", FILE)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"
    both = {"Content-Length": "3", "Transfer-Encoding": "chunked"}
    await api.refused(400, "PUT", FILE, content=b"abc", headers=both)


@pytest.mark.parametrize("url", ["/healthz", "/v1/whoami", "/v1/folders/me/", "/v1/nodes/me/"])
async def test_what_can_be_got_can_be_asked_about(api: Client, url: str) -> None:
    whole, head = await api("GET", url), await api("HEAD", url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


async def test_a_bug_says_nothing_of_itself(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(type(api.vault.files), "stat", fail)
    answer = await api("GET", "/v1/nodes/me/a")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret detail" not in answer.text


async def test_no_secret_is_ever_logged(
    api: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Servers that other tests ran in this process have switched the log off.
    monkeypatch.setattr(logging.getLogger("vaultfs"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="vaultfs")
    await put(api, "/a.txt")
    made = await api.ok("POST", "/v1/users/me/tokens", json={"name": "", "scopes": ["read"]})
    await api.refused(401, "GET", FILE, token=made["token"][:-2])
    await api.refused(404, "GET", "/v1/files/me/a-name-of-mine")
    lines = [JsonLines().format(record) for record in caplog.records]
    assert [line for line in lines if json.loads(line).get("status") == 401]
    text = "\n".join(lines)
    ours = [line for line in lines if json.loads(line)["logger"].startswith("vaultfs")]
    assert "a-name-of-mine" not in "\n".join(ours)
    for secret in (api.token, made["token"]):
        assert secret.rpartition("_")[2] not in text
        assert secret[:-2] not in text


def test_what_upkeep_did_and_found_is_logged() -> None:
    done = asdict(Maintained(1, 2, "backup", problems=("a pack is damaged",)))
    record = logging.makeLogRecord({"msg": "upkeep", **done, "packs": ["ab"], "path": "/mine"})
    line = json.loads(JsonLines().format(record))
    assert line["problems"] == ["a pack is damaged"]
    assert done.keys() | {"packs"} <= line.keys()
    assert "path" not in line


def every_error(kind: type[VaultError] = VaultError) -> list[type[VaultError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in every_error(sub))]


def test_every_error_has_a_status() -> None:
    private = (StoreError, errors.CatalogUnavailable, errors.Corrupt, errors.NotAVault)
    for kind in every_error():
        error = kind.__new__(kind)
        error.message, error.__dict__["op_id"] = "/srv/secret/catalog.db", "id-1"
        assert 400 <= status_of(error) < 600
        if isinstance(error, private):
            assert "/srv/secret" not in problem_of(error, "1").detail, kind


# Its description


def test_the_description_is_openapi_and_names_every_route() -> None:
    document = describe(ROUTES)
    validate(document)
    described = {
        (method.upper(), path) for path, each in document["paths"].items() for method in each
    }
    served = {(route.method, re.sub(r":\w+}", "}", route.path)) for route in ROUTES}
    assert described == served
    names = [route.name for route in ROUTES]
    assert len(names) == len(set(names))


def test_the_committed_description_is_that_of_the_code() -> None:
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert json.loads(committed.read_text()) == describe(ROUTES), "run `just openapi`"


async def test_the_description_is_served(api: Client) -> None:
    assert await api.ok("GET", "/openapi.json", token="") == describe(ROUTES)


async def test_the_page_for_people_asks_nobody_else(api: Client) -> None:
    page = await api("GET", "/docs", token="")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(references) == 4
    assert re.findall(r"<script(?! src=)|\son\w+=|javascript:", page.text) == []
    for reference in references:
        if reference != "data:,":
            assert re.fullmatch(r"docs/[\w.-]+", reference)  # beside the page, on this very host
            part = await api("GET", f"/{reference}", token="")
            assert part.status_code == 200
            kind = "text/css" if reference.endswith("css") else "text/javascript"
            assert part.headers["content-type"].startswith(kind)
            assert b"sourceMappingURL" not in part.content
            assert not re.search(rb"(url\(|@import)\s*['\"]?https?:", part.content)
    start = (await api("GET", "/docs/start.js", token="")).text
    assert 'url: "openapi.json"' in start
    assert "validatorUrl: null" in start
    await api.refused(404, "GET", "/docs/LICENSE", token="")

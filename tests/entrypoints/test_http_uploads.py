"""Uploads over HTTP: what malformed, refused and late requests are told, and what they leave."""

from base64 import b64encode
from collections.abc import AsyncGenerator
from hashlib import sha1
from typing import Any

import pytest
from tests.entrypoints.http_calls import Client, open_api

from vaultfs.domain.operations import SetQuota
from vaultfs.entrypoints.http.contents import MOST

BYTES = "application/offset+octet-stream"


def text(value: str | bytes) -> str:
    return b64encode(value if isinstance(value, bytes) else value.encode()).decode()


METADATA = f"path {text('/x')}"


@pytest.fixture
async def api() -> AsyncGenerator[Client, None]:
    async with open_api() as api:
        yield api


async def under_way(api: Client) -> list[Any]:
    found: list[Any] = (await api.ok("GET", "/v1/uploads"))["entries"]
    return found


async def begin(api: Client, **headers: str) -> str:
    """The address of a new upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await api("POST", "/v1/uploads", headers={"Upload-Metadata": METADATA} | named)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


CREATIONS: list[tuple[int, dict[str, str]]] = [
    (400, {"Upload-Length": ""}),
    (400, {"Upload-Length": "-1"}),
    (400, {"Upload-Length": "3, 3"}),
    (400, {"Upload-Length": "1" * 19}),
    (413, {"Upload-Length": str(MOST + 1)}),
    (400, {"Upload-Defer-Length": "2"}),
    (400, {}),
    (400, {"Upload-Length": "3", "Upload-Metadata": "path"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"{METADATA},x !!"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"{METADATA},x \xe9"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"path {text(b'/' + bytes([255]))}"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"{METADATA},mtime {text('9' * 30)}"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"{METADATA},mtime {text(' 1_7 ')}"}),
    (400, {"Upload-Length": "3", "Upload-Metadata": f"{METADATA},mode {text('-7')}"}),
    (409, {"Upload-Length": "3", "Upload-Metadata": f"path {text('/')}"}),
    (404, {"Upload-Length": "3", "Upload-Metadata": f"path {text('nobody:/a')}"}),
    (400, {"Upload-Concat": "partiel"}),
    (400, {"Upload-Concat": "final;"}),
    (400, {"Upload-Concat": "final;/v1/uploads/a%00"}),
    (404, {"Upload-Concat": "final;/v1/uploads/none"}),
    (412, {"Upload-Length": "3", "Tus-Resumable": "0.2.0"}),
]


@pytest.mark.parametrize(("status", "headers"), CREATIONS)
async def test_a_creation_that_is_refused(api: Client, status: int, headers: Any) -> None:
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    await api.refused(status, "POST", "/v1/uploads", headers={"Upload-Metadata": METADATA} | sent)
    assert not await under_way(api)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (413, {"Upload-Length": "3"}, b"abcd"),
        (413, {"Upload-Length": "0"}, b"abcd"),
        (460, {"Upload-Length": "3", "Upload-Checksum": f"sha1 {text(bytes(20))}"}, b"abc"),
        (400, {"Upload-Length": "3", "Upload-Checksum": "md5 aa"}, b"abc"),
        (507, {"Upload-Defer-Length": "1"}, bytes(101)),
    ],
)
async def test_a_creation_whose_first_bytes_are_refused_leaves_nothing(
    api: Client, status: int, headers: dict[str, str], body: bytes
) -> None:
    await api.vault.files.change(api.vault.user, SetQuota(api.vault.user.tree, 100))
    every = {"Upload-Metadata": METADATA, "Content-Type": BYTES} | headers
    await api.refused(status, "POST", "/v1/uploads", headers=every, content=body)
    assert not await under_way(api)
    await api.refused(404, "GET", "/v1/files/me/x")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        *((400, {"Upload-Offset": offset}) for offset in ("", "-1", "1.0", "x", "\xb2", "0, 0")),
        (400, {}),
        (409, {"Upload-Offset": "1"}),
        (415, {"Upload-Offset": "0", "Content-Type": "text/plain"}),
        *(
            (400, {"Upload-Offset": "0", "Upload-Checksum": wrong})
            for wrong in ("", "md5 aa", "sha1 !!", "sha1 \xe9")
        ),
        (460, {"Upload-Offset": "0", "Upload-Checksum": "sha1"}),
        (460, {"Upload-Offset": "0", "Upload-Checksum": f"sha256 {text('x')}"}),
        (409, {"Upload-Offset": "0", "Upload-Length": "4"}),
        (413, {"Upload-Offset": "0", "Upload-Length": str(MOST + 1)}),
        (412, {"Upload-Offset": "0", "Tus-Resumable": "2.0.0"}),
    ],
)
async def test_an_append_that_is_refused_changes_nothing(
    api: Client, status: int, headers: dict[str, str]
) -> None:
    where = await begin(api, Upload_Length="3")
    sent = {"Content-Type": BYTES} | headers
    encoded = {name: value.encode("latin-1") for name, value in sent.items()}
    await api.refused(status, "PATCH", where, headers=encoded, content=b"abc")
    assert (await api("HEAD", where)).headers["upload-offset"] == "0"


async def test_what_has_ended_is_gone(api: Client) -> None:
    headers = {"Upload-Offset": "0", "Content-Type": BYTES}
    given_up = await begin(api, Upload_Length="3")
    await api.ok("DELETE", given_up)
    assert (await api("HEAD", given_up)).status_code == 410
    assert await api.refused(410, "PATCH", given_up, headers=headers, content=b"a") == "upload_gone"
    done = await begin(api, Upload_Length="3")
    await api.ok("PATCH", done, headers=headers, content=b"abc")
    headers["Upload-Offset"] = "3"
    await api.ok("PATCH", done, headers=headers)
    assert await api.refused(410, "PATCH", done, headers=headers, content=b"d") == "upload_gone"
    assert await api.refused(410, "DELETE", done) == "upload_gone"
    part = await begin(api, Upload_Length="3", Upload_Concat="partial")
    await api.ok("DELETE", part)
    join = {"Upload-Metadata": METADATA, "Upload-Concat": f"final;{part}"}
    assert await api.refused(410, "POST", "/v1/uploads", headers=join) == "upload_gone"


async def test_refusals_tell_the_version_of_tus(api: Client) -> None:
    headers = {"Upload-Length": "3", "Upload-Metadata": METADATA, "Tus-Resumable": "0.2.0"}
    answer = await api("POST", "/v1/uploads", headers=headers)
    assert answer.status_code == 412
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert (await api("HEAD", "/v1/uploads/none")).headers["tus-resumable"] == "1.0.0"


async def test_an_append_of_nothing_has_a_checksum_too(api: Client) -> None:
    where = await begin(api, Upload_Length="3")
    headers = {"Upload-Offset": "0", "Content-Type": BYTES}
    wrong = headers | {"Upload-Checksum": f"sha1 {text(sha1(b'x').digest())}"}
    assert await api.refused(460, "PATCH", where, headers=wrong) == "checksum_mismatch"
    await api.ok(
        "PATCH", where, headers=headers | {"Upload-Checksum": f"sha1 {text(sha1().digest())}"}
    )
    assert (await api("HEAD", where)).headers["upload-offset"] == "0"


async def test_a_length_is_said_once(api: Client) -> None:
    where = await begin(api, Upload_Defer_Length="1")
    headers = {"Upload-Offset": "0", "Content-Type": BYTES, "Upload-Length": "5"}
    await api.ok("PATCH", where, headers=headers, content=b"abc")
    headers["Upload-Offset"] = "3"
    again = headers | {"Upload-Length": "4"}
    await api.refused(409, "PATCH", where, headers=again, content=b"d")
    found = (await api("HEAD", where)).headers
    assert (found["upload-offset"], found["upload-length"]) == ("3", "5")
    assert "upload-defer-length" not in found
    await api.ok("PATCH", where, headers=headers, content=b"de")
    assert (await api("GET", "/v1/files/me/x")).content == b"abcde"


async def test_parts_without_a_byte_are_joined(api: Client) -> None:
    where = await begin(api, Upload_Length="0", Upload_Concat="partial")
    whole = await begin(api, Upload_Concat=f"final;{where} {where}")
    assert (await api("HEAD", whole)).headers["upload-offset"] == "0"
    assert (await api("GET", "/v1/files/me/x")).content == b""


async def test_only_ones_own_finished_parts_are_joined(api: Client) -> None:
    headers = {"Upload-Offset": "0", "Content-Type": BYTES}
    part = await begin(api, Upload_Length="3", Upload_Concat="partial")
    join = {"Upload-Metadata": METADATA, "Upload-Concat": f"final;{part}"}
    await api.refused(409, "POST", "/v1/uploads", headers=join)
    await api.ok("PATCH", part, headers=headers, content=b"abc")
    bob = await api.new_user("bob")
    await api.refused(404, "POST", "/v1/uploads", token=bob, headers=join)
    whole = await begin(api, Upload_Concat=join["Upload-Concat"])
    await api.refused(
        409, "POST", "/v1/uploads", headers=join | {"Upload-Concat": f"final;{whole}"}
    )
    late = headers | {"Upload-Offset": "3"}
    await api.refused(403, "PATCH", whole, headers=late, content=b"d")
    assert not await under_way(api)


async def test_an_upload_of_somebody_else_is_none(api: Client) -> None:
    where = await begin(api, Upload_Length="3")
    bob = await api.new_user("bob")
    headers = {"Upload-Offset": "0", "Content-Type": BYTES}
    for method in ("GET", "DELETE"):
        await api.refused(404, method, where, token=bob)
    await api.refused(404, "PATCH", where, token=bob, headers=headers, content=b"abc")
    number = where.rpartition("/")[2]
    await api.refused(404, "POST", f"/v1/have?upload={number}", token=bob)
    assert (await api("HEAD", where, token=bob)).status_code == 404
    assert await api.ok("GET", "/v1/uploads", token=bob) == {"entries": [], "next_cursor": None}

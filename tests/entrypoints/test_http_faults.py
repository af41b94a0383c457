"""What the API answers when stores fail, packs are damaged and writers race."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from tests.entrypoints.http_calls import Client, open_api
from tests.faults import random_bytes

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import TooSlow
from vaultfs.entrypoints.http.contents import Download
from vaultfs.ports.objects import OutOfSpace, StoreError

FILE = "/v1/files/me/a"
OLD, NEW = random_bytes(700_000, "old"), random_bytes(700_000, "new")


async def _wait() -> Any:
    await anyio.sleep_forever()


async def _ignore(_: Any) -> None:
    """Take what nobody reads."""


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        yield client


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutOfSpace("disk full in /srv/x", backend="b", operation="put"), 507, "out_of_space"),
        (StoreError("permission denied: /srv/x", backend="b", operation="put"), 503, "store"),
    ],
)
async def test_a_store_that_fails_leaves_the_old_version(
    api: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    await api.ok("PUT", FILE, content=OLD)

    async def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        [store] = api.vault.objects.stores.values()
        broken.setattr(type(store), "put", fail)
        answer = await api("PUT", FILE, content=NEW)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "/srv/x" not in answer.text
    assert (await api("GET", FILE)).content == OLD
    assert api.vault.budget.free == api.vault.budget.total
    await api.ok("PUT", FILE, content=NEW)
    assert (await api("GET", FILE)).content == NEW


@pytest.mark.parametrize("damage", ["flipped", "cut"])
async def test_a_damaged_pack_hits_its_files_alone(api: Client, damage: str) -> None:
    await api.ok("PUT", FILE, content=OLD)
    [found] = api.vault.objects.stores.values()
    store: Any = found
    [key] = [each for each in store.objects if each.startswith("packs/")]
    await api.ok("PUT", "/v1/files/me/b", content=NEW)
    data = bytearray(store.objects[key])
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        for at in range(300, len(data), 20_000):
            data[at] ^= 1
    store.objects[key] = bytes(data)
    assert await api.refused(500, "GET", FILE) == "damaged_content"
    assert (await api("GET", "/v1/files/me/b")).content == NEW


async def test_of_many_that_have_the_same_tag_one_writes(api: Client) -> None:
    node = await api.ok("PUT", FILE, content=b"first")
    headers = {"If-Match": f'"v{node["version"]}"'}
    statuses: list[int] = []

    async def write(number: int) -> None:
        answer = await api("PUT", FILE, content=b"%d" % number, headers=headers)
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as writers:
        for number in range(16):
            writers.start_soon(write, number)
    assert sorted(statuses) == [200, *[412] * 15]
    assert (await api.ok("GET", "/v1/nodes/me/a"))["number"] == 2


async def test_names_that_look_alike_are_names_of_their_own(api: Client) -> None:
    for name, text in (("a", b"latin"), ("%D0%B0", b"cyrillic"), ("%EF%BC%8E%EF%BC%8E", b"dots")):
        await api.ok("PUT", f"/v1/files/me/{name}", content=text)
    assert (await api("GET", FILE)).content == b"latin"
    entries = (await api.ok("GET", "/v1/folders/me/"))["entries"]
    assert [each["name"] for each in entries] == ["a", "\u0430", "\uff0e\uff0e"]


async def test_uploads_of_one_user_that_stand_still_hold_up_nobody_else(api: Client) -> None:
    bob = await api.new_user("bob")
    headers = {"host": "x", "authorization": f"Bearer {bob}", "transfer-encoding": "chunked"}

    async def stalled(number: int) -> None:
        path = f"/v1/files/bob/{number}"
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "PUT",
            "query_string": b"",
            "path": path,
            "raw_path": path.encode(),
            "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
        }
        await api.app(scope, _wait, _ignore)

    budget = api.vault.budget
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(stalled, number)
        await anyio.wait_all_tasks_blocked()
        assert 0 < budget.total - budget.free <= budget.total // 2
        with anyio.fail_after(5):
            await api.ok("PUT", FILE, content=OLD)
            await api.ok("PUT", "/v1/files/bob/small", token=bob, content=b"x")
        tasks.cancel_scope.cancel()
    assert budget.free == budget.total
    await api.ok("PUT", "/v1/files/bob/large", token=bob, content=NEW)


async def test_an_upload_that_is_slow_but_goes_on_arrives(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.http.contents.IDLE", 0.2)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            await anyio.sleep(0.05)
            yield b"x" * 1000

    await api.ok("PUT", FILE, content=pieces())
    assert (await api("GET", FILE)).content == b"x" * 8000


async def test_a_download_that_nobody_takes_is_cut(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives back what it holds; one that is slow, but goes on, arrives."""
    monkeypatch.setattr("vaultfs.entrypoints.http.contents.STALLED", 0.2)
    await api.ok("PUT", FILE, content=OLD)
    headers = {"host": "x", "authorization": f"Bearer {api.token}"}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "query_string": b"",
        "path": FILE,
        "raw_path": FILE.encode(),
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }
    got = bytearray()

    async def slowly(message: Any) -> None:
        await anyio.sleep(0.05)
        got.extend(message.get("body", b""))

    async def never(message: Any) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    await api.app(scope, _wait, slowly)
    assert got == OLD
    with anyio.fail_after(5), pytest.raises((TooSlow, ExceptionGroup)):
        await api.app(scope, _wait, never)
    assert api.vault.budget.free == api.vault.budget.total
    assert api.vault.reader.streams == 0


async def test_a_download_is_not_cut_because_its_store_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.http.contents.STALLED", 0.1)

    async def open_(_: AsyncExitStack) -> AsyncIterator[list[Buffer]]:
        return slow()

    async def slow() -> AsyncIterator[list[Buffer]]:
        for piece in (b"first", b"second", b"third"):
            yield [piece]
            await anyio.sleep(0.3)

    sent: list[bytes] = []

    async def take(message: Any) -> None:
        sent.append(message.get("body", b""))

    await Download(open_, 200, {})({"type": "http", "method": "GET"}, _wait, take)
    assert sent == [b"", b"first", b"second", b"third", b""]


async def test_nothing_is_read_of_what_is_only_asked_about(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    async def frames(*_: object, **__: object) -> AsyncIterator[list[Buffer]]:
        for number in range(1000):
            read.append(number)
            yield [b"frame"]

    monkeypatch.setattr("vaultfs.entrypoints.http.frames.Outlet.frames", frames)
    answer = await api("HEAD", "/v1/frames/me/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert len(read) <= 1


async def test_no_body_is_read_that_will_be_refused(api: Client) -> None:
    bob = await api.new_user("bob")
    await api.ok("PUT", FILE, content=OLD)
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(NEW)
        yield NEW

    await api.refused(404, "PUT", FILE, token=bob, content=body())
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"v99"'}):
        await api.refused(412, "PUT", FILE, content=body(), headers=headers)
    assert not read

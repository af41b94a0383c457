from datetime import UTC, datetime

import pytest
from aiohttp import ClientSession, web
from tests.postgres import free_port

from vaultfs.adapters.clouds import PartsPayload, delete_each, parsed_url, retry_after
from vaultfs.adapters.memory import MemoryObjectStore
from vaultfs.adapters.wrappers.faulty import Before, FaultyObjectStore
from vaultfs.ports.objects import PermissionDenied

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("Thu, 01 Jan 2026 00:00:09 -0000", 9.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert retry_after(text, NOW) == seconds


def test_an_address_is_taken_apart() -> None:
    found = parsed_url(
        "gs://box/some/where/?endpoint=http://there:1/", "gs", frozenset({"endpoint"})
    )
    assert (found.bucket, found.prefix) == ("box", "some/where/")
    assert found.fields == {"endpoint": "http://there:1"}


async def test_what_cannot_be_deleted_is_told_for_each_key() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), {("delete", 3): Before(PermissionDenied)})
    keys = [f"key-{number}" for number in range(40)]
    for key in keys:
        await store.put(key, b".")
    outcomes = await delete_each(store, [*keys, keys[0]])
    assert [outcome.key for outcome in outcomes] == [*keys, keys[0]]
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert isinstance(failed.error, PermissionDenied)
    assert [info.key async for info in store.list()] == [failed.key]
    assert store.calls["delete"] == 40


async def test_a_body_is_sent_in_its_parts_with_its_size() -> None:
    parts = (b"", b"abc", memoryview(bytes(range(256)) * 1000)[1:], bytearray(b"z" * 70_000))
    came: list[tuple[str | None, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        came.append((request.headers.get("Content-Length"), await request.read()))
        return web.Response()

    app = web.Application(client_max_size=1 << 20)
    app.router.add_put("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with ClientSession() as session:
            payload = PartsPayload(parts)
            async with session.put(f"http://127.0.0.1:{port}/", data=payload) as answer:
                assert answer.status == 200
    finally:
        await runner.cleanup()
    whole = b"".join(parts)
    assert came == [(str(len(whole)), whole)]
    assert PartsPayload((b"a", b"b")).decode() == "ab"

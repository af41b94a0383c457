"""The move to another store over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.entrypoints.http_calls import Client, open_api
from tests.faults import random_bytes

from vaultfs.adapters.memory import MemoryObjectStore
from vaultfs.domain.tokens import Scope
from vaultfs.ports.objects import ObjectStore

HERE = "/v1/migration"
CONTENT = random_bytes(3000, "migration")


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async with open_api() as client:
        client.vault.objects.stores["archive"] = MemoryObjectStore("archive")
        await client.ok("PUT", "/v1/files/me/a", content=CONTENT)
        yield client


def store(api: Client, name: str) -> dict[str, bytes]:
    found: ObjectStore = api.vault.objects.stores[name]
    assert isinstance(found, MemoryObjectStore)
    return found.objects


async def copy(api: Client) -> None:
    """What the server does beside."""
    await (await api.vault.migrator()).run()


async def do(api: Client, command: str, **rest: Any) -> Any:
    return await api.ok("POST", HERE, json={"command": command, **rest})


async def test_a_vault_moves(api: Client) -> None:
    started = await do(api, "start", store="archive", level="V3", objects_per_second=1000)
    assert (started["phase"], started["objects_per_second"]) == ("copying", 1000)
    assert (await do(api, "throttle"))["objects_per_second"] is None
    assert (await do(api, "pause"))["paused"]
    await copy(api)
    assert (await do(api, "resume"))["copied_packs"] == 0
    await copy(api)
    told = await do(api, "dual")
    assert (told["copied_packs"], told["read_back"], told["failures"]) == (1, 1, [])
    late = {"command": "abort", "if_epoch": started["epoch"]}
    assert await api.refused(409, "POST", HERE, json=late)
    for command in ("cutover", "rollback", "dual"):
        await do(api, command)
    await copy(api)
    for command in ("cutover", "detach"):
        await do(api, command)
    wrong = {"command": "retire", "store": "archive"}
    assert await api.refused(400, "POST", HERE, json=wrong) == "invalid_field"
    assert (await do(api, "retire", store="memory"))["source"] == "archive"
    assert not store(api, "memory")
    assert (await api("GET", "/v1/files/me/a")).content == CONTENT


async def test_packs_that_fail_are_told_and_tried_again(api: Client) -> None:
    [key] = (each for each in store(api, "memory") if each.startswith("packs/"))
    whole = store(api, "memory")[key]
    store(api, "memory")[key] = bytes(len(whole))
    await do(api, "start", store="archive", level="V3")
    await copy(api)
    [failure] = (await api.ok("GET", HERE))["failures"]
    assert (f"packs/{failure['pack']}", failure["attempts"]) == (key, 5)
    assert "does not have its digest" in failure["error"]
    store(api, "memory")[key] = whole
    assert (await do(api, "retry"))["failures"] == []
    await copy(api)
    assert (await api.ok("GET", HERE))["copied_packs"] == 1


async def test_what_the_new_store_has_lost_is_copied_again(api: Client) -> None:
    assert await api.refused(409, "POST", HERE, json={"command": "reconcile"})
    await do(api, "start", store="archive", level="V3")
    await copy(api)
    [key] = (each for each in store(api, "archive") if each.startswith("packs/"))
    del store(api, "archive")[key]
    assert (await do(api, "reconcile"))["copied_packs"] == 0
    await copy(api)
    assert key in store(api, "archive")


async def test_it_is_for_admins(api: Client) -> None:
    token = await api.new_token("me", Scope.READ, Scope.WRITE)
    for method in ("GET", "POST"):
        await api.refused(403, method, HERE, token=token, json={"command": "abort"})

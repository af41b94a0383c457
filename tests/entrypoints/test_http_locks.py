"""`/v1/locks`, and writes that come with locks."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from tests.entrypoints.http_calls import BASE, Client, open_api

from vaultfs.domain.frames import MEDIA_TYPE
from vaultfs.domain.intervals import byte_range
from vaultfs.domain.tokens import Scope

HEADER: Final = "VaultFS-Lock-Token"
FILE: Final = "/v1/files/me/d/f"


@pytest.fixture
async def api() -> AsyncGenerator[Client, None]:
    async with open_api() as api:
        assert (await api("PUT", FILE, content=b"one", params={"parents": "true"})).is_success
        yield api


async def lock(api: Client, path: str = "/d/f", mode: str = "exclusive", **rest: Any) -> Any:
    body = {"paths": [{"path": path, "mode": mode}], **rest}
    return await api.ok("POST", "/v1/locks", json=body)


async def test_a_lock_keeps_others_out_and_lets_its_owner_in(api: Client) -> None:
    made = await lock(api)
    assert made["paths"] == [{"path": "/d/f"}]
    assert 29 < made["expires_in_seconds"] <= 30
    answer = await api("PUT", FILE, content=b"two")
    assert answer.status_code == 423
    problem = answer.json()
    assert problem["code"] == "locked"
    owner = made["lock"].rpartition(".")[0]
    assert problem["holders"] == [{"owner": owner, "path": "/d/f", "mode": "X", "does": "holds"}]
    await api.ok("PUT", FILE, content=b"two", headers={HEADER: made["lock"]})
    assert (await api("DELETE", f"/v1/locks/{made['lock']}")).status_code == 204
    await api.ok("PUT", FILE, content=b"three")
    stale = {HEADER: made["lock"]}
    assert await api.refused(412, "PUT", FILE, content=b"4", headers=stale) == "stale_token"
    assert (await api("GET", FILE)).content == b"three"


async def test_many_files_at_once_come_with_locks_too(api: Client) -> None:
    made = await lock(api, "/d")
    vectors = json.loads(Path("docs/vectors.json").read_text())
    frames = bytes.fromhex(vectors["frames"][0]["bytes"])  # the folder /d, a file in it, another
    kind = {"Content-Type": MEDIA_TYPE}
    refused = await api.ok("POST", "/v1/frames/me", content=frames, headers=kind)
    assert [each["status"] for each in refused["entries"]] == [423, 423, 412]
    headers = kind | {HEADER: made["lock"]}
    taken = await api.ok("POST", "/v1/frames/me", content=frames, headers=headers)
    assert [each["status"] for each in taken["entries"]] == [201, 201, 409], (
        "it does not cover the last"
    )


async def test_every_write_is_refused_and_takes_the_header(api: Client) -> None:
    made = await lock(api, "/")
    writes: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", FILE, {"content": b"two"}),
        ("PUT", "/v1/folders/me/new", {}),
        ("PATCH", "/v1/nodes/me/d/f", {"content": b'{"a": 1}'}),
        ("PATCH", FILE, {"content": b'{"a": 2}'}),
        ("POST", "/v1/versions/me/d/f", {"json": {"number": 1}}),
        ("POST", "/v1/copy", {"json": {"source": "/d/f", "target": "/g"}}),
        ("POST", "/v1/move", {"json": {"source": "/g", "target": "/h"}}),
        ("DELETE", "/v1/nodes/me/h", {}),
        ("DELETE", FILE, {}),
    ]
    for method, path, rest in writes:
        if path not in {"/v1/move", "/v1/nodes/me/h"}:
            assert await api.refused(423, method, path, **rest) == "locked"
        await api.ok(method, path, headers={HEADER: made["lock"]}, **rest)


async def test_locks_of_several_leases_go_with_one_write(api: Client) -> None:
    one, two = await lock(api, "/d"), await lock(api, "/e")
    body = {"source": "/d", "target": "/e"}
    first, second = (HEADER, one["lock"]), (HEADER, two["lock"])
    for headers in ([], [first], [second]):
        assert (
            await api.refused(423, "POST", "/v1/move", json=body, headers=dict(headers)) == "locked"
        )
    both = httpx.Headers([first, second, ("Authorization", f"Bearer {api.token}")])
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        answer = await client.post("/v1/move", json=body, headers=both)
    assert answer.status_code == 200, answer.text
    assert [each["paths"] for each in (await api.ok("GET", "/v1/locks"))["held"]] == [
        [{"path": "/e"}]
    ]


async def test_a_write_comes_with_so_many_locks_at_the_most(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.http.calls.MAX_LOCKS", 2)
    made = await lock(api)
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        for count, status in ((2, 200), (3, 400)):
            shown = [("Authorization", f"Bearer {api.token}"), *[(HEADER, made["lock"])] * count]
            answer = await client.put(FILE, content=b"one", headers=httpx.Headers(shown))
            assert answer.status_code == status


async def test_modes_are_changed(api: Client) -> None:
    made = await lock(api, mode="update")
    name = f"/v1/locks/{made['lock']}"
    assert (await lock(api, mode="shared"))["paths"] == [{"path": "/d/f", "mode": "shared"}]
    exclusive = {"paths": [{"path": "/d/f"}]}
    assert await api.refused(423, "POST", f"{name}/upgrade", json=exclusive) == "would_block"
    shared = {"paths": [{"path": "/d/f", "mode": "shared"}]}
    assert await api.refused(400, "POST", f"{name}/upgrade", json=shared) == "lock_misuse"
    ranged = {"paths": [{"path": "/d/g", "ranges": [{"start": 0}]}, *exclusive["paths"]]}
    for verb in ("upgrade", "downgrade"):
        assert await api.refused(400, "POST", f"{name}/{verb}", json=ranged) == "lock_misuse"
    down = await api.ok("POST", f"{name}/downgrade", json=shared)
    assert down["paths"] == [{"path": "/d/f", "mode": "shared"}]
    renewed = await api.ok("POST", f"{name}/renew", json={"ttl_seconds": 100})
    assert 99 < renewed["expires_in_seconds"] <= 100


async def test_a_lease_ends_by_itself(api: Client) -> None:
    made = await lock(api, ttl_seconds=1)
    with anyio.fail_after(5):
        await lock(api, wait_seconds=5)
    name = f"/v1/locks/{made['lock']}"
    assert await api.refused(410, "POST", f"{name}/renew", json={}) == "lease_expired"
    assert await api.refused(409, "DELETE", name) == "not_held"


async def test_ranges_of_a_file(api: Client) -> None:
    first = {"path": "/d/f", "ranges": [{"start": 0, "stop": 10}]}
    made = await api.ok("POST", "/v1/locks", json={"paths": [first]})
    assert made["paths"] == [first]
    overlap = {"paths": [{"path": "/d/f", "mode": "shared", "ranges": [{"start": 9}]}]}
    assert await api.refused(423, "POST", "/v1/locks", json=overlap) == "would_block"
    beside = {"paths": [{"path": "/d/f", "ranges": [{"start": 10}]}]}
    await api.ok("POST", "/v1/locks", json=beside)
    assert await api.refused(423, "PUT", FILE, content=b"whole") == "locked"


async def test_shared_and_exclusive_ranges_of_one_file_are_told_apart(api: Client) -> None:
    locks = api.vault.locks
    ranges = (byte_range(0, 5, exclusive=False), byte_range(5, None, exclusive=True))
    await locks.acquire(locks.new_owner(), api.vault.user.tree, ranges={("d", "f"): ranges})
    [held] = (await api.ok("GET", "/v1/locks"))["held"]
    assert held["paths"] == [
        {"path": "/d/f", "mode": "shared", "ranges": [{"start": 0, "stop": 5}]},
        {"path": "/d/f", "ranges": [{"start": 5, "stop": None}]},
    ]


async def test_what_is_named_twice_is_merged(api: Client) -> None:
    spans = [
        {"path": "/d/f", "ranges": [{"start": 0, "stop": 10}]},
        {"path": "/d/f", "mode": "shared", "ranges": [{"start": 10, "stop": 20}]},
        {"path": "/d/f", "ranges": [{"start": 20, "stop": 30}]},
    ]
    modes = [{"path": "/e", "mode": mode} for mode in ("shared", "update", "shared")]
    made = await api.ok("POST", "/v1/locks", json={"paths": spans + modes})
    assert made["paths"] == [
        {"path": "/e", "mode": "update"},
        {"path": "/d/f", "mode": "shared", "ranges": [{"start": 10, "stop": 20}]},
        {"path": "/d/f", "ranges": [{"start": 0, "stop": 10}, {"start": 20, "stop": 30}]},
    ]


async def test_who_waits_for_whom(api: Client) -> None:
    made = await lock(api)
    got: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            got.append(await lock(api, wait_seconds=10))

        tasks.start_soon(wait)
        holder = made["lock"].rpartition(".")[0]
        with anyio.fail_after(5):
            while not (graph := await api.ok("GET", "/v1/lock-waits"))["edges"]:
                await anyio.sleep(0.01)
        [edge] = graph["edges"]
        assert (edge["holder"], edge["path"], edge["mode"]) == (holder, "/d/f", "X")
        assert len(graph["owners"]) == 2
        [waiting] = (await api.ok("GET", "/v1/locks"))["waiting"]
        assert waiting["waits_for"] == [holder]
        await api.ok("DELETE", f"/v1/locks/{made['lock']}")
    assert got[0]["token"] > made["token"]


async def test_a_client_that_goes_away_waits_no_longer(api: Client) -> None:
    await lock(api)
    with anyio.move_on_after(0.2):
        await lock(api, wait_seconds=10)
    with anyio.fail_after(5):
        while (await api.ok("GET", "/v1/locks"))["waiting"]:
            await anyio.sleep(0.01)


async def test_a_user_sees_and_locks_only_its_own_tree(api: Client) -> None:
    other = await api.new_user("other")
    made = await lock(api)
    found = await api.ok("GET", "/v1/locks", token=other)
    assert found == {"held": [], "waiting": []}
    body = {"paths": [{"path": "/d/f"}]}
    theirs = await api.ok("POST", "/v1/locks", json=body, token=other)
    assert len((await api.ok("GET", "/v1/locks"))["held"]) == 1
    name = f"/v1/locks/{made['lock']}"
    assert await api.refused(409, "DELETE", name, token=other) == "not_held"
    stale = {HEADER: theirs["lock"]}
    assert await api.refused(412, "PUT", FILE, content=b"x", headers=stale) == "stale_token"


async def test_a_lock_is_broken_by_an_admin_and_audited(api: Client) -> None:
    made = await lock(api)
    other = await api.new_user("other")
    path = f"/v1/users/me/locks/{made['token']}"
    assert await api.refused(403, "DELETE", path, token=other) == "forbidden"
    assert (await api("DELETE", path)).status_code == 204
    assert await api.refused(404, "DELETE", path) == "not_found"
    await api.ok("PUT", FILE, content=b"free")
    rows = (await api.ok("GET", "/v1/audit"))["entries"]
    [row] = [row for row in rows if row["kind"] == "break-lock"]
    assert made["lock"] in row["subject"]
    assert "/d/f" in row["subject"]


async def test_an_admin_sees_the_locks_that_it_may_break(api: Client) -> None:
    made = await lock(api)
    await api.new_user("ann")
    theirs = await api.new_token("ann", Scope.READ)
    [held] = (await api.ok("GET", "/v1/users/me/locks"))["held"]
    assert held["lock"] == made["lock"]
    assert (await api.ok("GET", "/v1/users/ann/locks")) == {"held": [], "waiting": []}
    assert (await api.ok("GET", "/v1/users/ann/locks", token=theirs))["held"] == []
    await api.refused(404, "GET", "/v1/users/me/locks", token=theirs)
    await api.refused(404, "GET", "/v1/users/nobody/locks")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"paths": []}, 400),
        ({"paths": [{"path": "d"}]}, 400),
        ({"paths": [{"path": "/d/../e"}]}, 400),
        ({"paths": [{"path": "/d", "mode": "IX"}]}, 400),
        ({"paths": [{"path": "/d"}], "ttl_seconds": 0}, 400),
        ({"paths": [{"path": "/d"}], "ttl_seconds": 1e9}, 400),
        ({"paths": [{"path": "/d"}], "wait_seconds": -1}, 400),
        ({"paths": [{"path": "/d"}], "wait_seconds": 61}, 400),
        ({"paths": [{"path": "/d", "ranges": [{"start": 5, "stop": 5}]}]}, 400),
        ({"paths": [{"path": "/d", "ranges": [{"start": -5}]}]}, 400),
        ({"paths": [{"path": "/d", "mode": "update", "ranges": [{"start": 0}]}]}, 400),
        ({"paths": [{"path": f"/{number}"} for number in range(1001)]}, 400),
        ({"paths": [{"path": "/d", "ranges": [{"start": n} for n in range(1001)]}]}, 400),
    ],
)
async def test_what_is_no_lock_is_refused(api: Client, body: dict[str, Any], status: int) -> None:
    await api.refused(status, "POST", "/v1/locks", json=body)
    assert (await api.ok("GET", "/v1/locks"))["held"] == []


@pytest.mark.parametrize(
    "text", ["", "x", "x.", ".1", "x.-1", "x.1e3", "x." + "9" * 30, "y" * 200, "y" * 101 + ".1"]
)
async def test_what_is_no_token_is_refused(api: Client, text: str) -> None:
    answer = await api("PUT", FILE, content=b"x", headers={HEADER: text})
    assert answer.status_code == 400, answer.text
    assert json.loads(answer.text)["code"] == "invalid_field"

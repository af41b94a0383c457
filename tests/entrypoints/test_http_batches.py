"""Batches over HTTP: every error of the table, limits, keys, locks; and what users share."""

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from tests.entrypoints.http_calls import Client, open_api

from vaultfs.adapters.sql.programs import PROGRAMS
from vaultfs.domain import operations
from vaultfs.domain.batches import LOCK_OWNER, MAX_BYTES, MAX_STEP, MAX_STEPS
from vaultfs.domain.batchparsing import OPERATIONS
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.nodes import TreeId, User
from vaultfs.domain.operations import Delete
from vaultfs.domain.rates import Rate
from vaultfs.domain.services.files import Files
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http import calls
from vaultfs.entrypoints.http.wire import BatchIn

Op = dict[str, Any]
MANY = [{"op": "mkdir", "path": f"/{number}"} for number in range(MAX_STEPS)]


@pytest.fixture
async def api() -> AsyncGenerator[Client, None]:
    async with open_api() as api:
        for path in ("a", "b", "folder/c"):
            url = f"/v1/files/me/{path}?parents=true"
            await api.ok("PUT", url, content=path.encode())
        yield api


async def run(api: Client, *ops: Any, status: int = 200, **rest: Any) -> Any:
    headers, token = rest.pop("headers", {}), rest.pop("token", None)
    body = json.dumps({"ops": list(ops), **rest})  # which can send what is no Unicode
    answer = await api("POST", "/v1/batch", content=body, headers=headers, token=token)
    assert answer.status_code == status, answer.text
    return answer.json()


async def one(api: Client, op: Any) -> tuple[int, str]:
    """The status and the code that one operation is refused with."""
    found = await run(api, op, status=409)
    [result] = found["results"]
    assert result["status"] in {"failed", "not_attempted"}
    return result["http_status"], result["error"]["code"]


async def test_the_description_has_the_fields_that_are_taken() -> None:
    kinds = msgspec.inspect.type_info(BatchIn)
    assert isinstance(kinds, msgspec.inspect.StructType)
    ops = next(field.type for field in kinds.fields if field.name == "ops")
    assert isinstance(ops, msgspec.inspect.ListType)
    assert isinstance(ops.item_type, msgspec.inspect.UnionType)
    described: dict[str, set[str]] = {}
    for kind in ops.item_type.types:
        assert isinstance(kind, msgspec.inspect.StructType)
        described[str(kind.tag)] = {"op", *(field.name for field in kind.fields)}
    assert described == {name: set(fields) for name, (fields, _) in OPERATIONS.items()}


REFUSED: list[tuple[Op, int, str]] = [
    ({"op": "move", "src": "/nothing", "dst": "/x"}, 404, "not_found"),
    ({"op": "move", "src": "/a", "dst": "/no/x"}, 409, "parent_not_found"),
    ({"op": "move", "src": "/a", "dst": "/b"}, 409, "exists"),
    ({"op": "copy", "src": "/a", "dst": "/folder", "on_conflict": "replace"}, 409, "is_a_folder"),
    ({"op": "mkdir", "path": "/a/x"}, 409, "not_a_folder"),
    ({"op": "delete", "target": "/folder"}, 409, "folder_not_empty"),
    ({"op": "move", "src": "/folder", "dst": "/folder/x"}, 409, "cycle"),
    ({"op": "delete", "target": "/a", "if_revision": 9}, 412, "version_mismatch"),
    ({"op": "mkdir", "path": "relative"}, 422, "invalid_name"),
    ({"op": "mkdir", "path": "/a\u0000b"}, 422, "invalid_name"),
    ({"op": "mkdir", "path": "/\ud800"}, 422, "invalid_name"),
    ({"op": "mkdir", "path": "/x", "parnets": True}, 422, "invalid_field"),
    ({"op": "mkdir"}, 422, "invalid_field"),
    ({"op": "mkdir", "path": 3}, 422, "invalid_field"),
    ({"op": "mkdir", "path": "/x", "parents": "yes"}, 422, "invalid_field"),
    ({"op": "mkdir", "path": "/x", "on_conflict": "replace"}, 422, "invalid_field"),
    ({"op": "mkdir", "path": "/x", "if_exists": "ok", "if_absent": True}, 422, "invalid_field"),
    ({"op": "copy", "src": "/a", "dst": "/x", "version": 0}, 422, "invalid_field"),
    ({"op": "copy", "src": "/a", "dst": "/x", "version": 1 << 70}, 422, "invalid_field"),
    ({"op": "copy", "src": "/a", "dst": "/x", "version": True}, 422, "invalid_field"),
    ({"op": "restore", "node": 99}, 404, "not_found"),
    ({"op": "restore", "node": "x"}, 422, "invalid_field"),
    ({"op": "restore"}, 422, "invalid_field"),
    ({"op": "restore", "node": 9, "on_conflict": "rename"}, 422, "invalid_field"),
    ({"op": "set_metadata", "target": "/a", "merge": 3}, 422, "invalid_field"),
    ({"op": "set_metadata", "target": "/a", "merge": {"x": "\ud800"}}, 422, "invalid_field"),
    ({"op": "grant", "target": "/a", "user": "bob", "role": "god"}, 422, "invalid_field"),
    ({"op": "grant", "target": "/a", "user": "bob", "role": "reader"}, 404, "not_found"),
    ({"op": "revoke", "target": "/a", "user": ""}, 422, "invalid_field"),
    ({"op": "erase", "target": "/a"}, 422, "unknown_op"),
    ({"op": ["mkdir"]}, 422, "unknown_op"),
    ({"target": "/a"}, 422, "unknown_op"),
    ({"op": "delete", "target": {"ref": "later"}}, 422, "bad_reference"),
    ({"op": "delete", "target": {"ref": "x"}, "id": "x"}, 422, "bad_reference"),
    ({"op": "delete", "target": {"ref": "x", "of": 1}}, 422, "invalid_field"),
    ({"op": "delete", "target": "/a", "id": "x" * 65}, 422, "invalid_field"),
    ({"op": "delete", "target": "/a", "id": "\ud800"}, 422, "invalid_field"),
    ({"op": "move", "src": "/a", "dst": "stranger:/x"}, 404, "not_found"),
    ({"op": "delete", "target": "stranger:/x"}, 404, "not_found"),
]


@pytest.mark.parametrize(("op", "status", "code"), REFUSED)
async def test_each_refusal_has_its_status_and_code(
    api: Client, op: Op, status: int, code: str
) -> None:
    assert await one(api, op) == (status, code)
    assert [each["name"] for each in (await api.ok("GET", "/v1/folders/me/"))["entries"]] == [
        "a",
        "b",
        "folder",
    ]


@pytest.mark.parametrize("op", [3, "mkdir", None, ["mkdir"], {}])
async def test_what_is_no_operation(api: Client, op: object) -> None:
    assert (await one(api, op))[0] == 422


async def test_every_wrong_operation_is_told(api: Client) -> None:
    found = await run(
        api,
        {"op": "mkdir", "path": "/x", "id": "one"},
        {"op": "mkdir", "path": "/y", "id": "one"},
        {"op": "delete", "target": "/a", "mistyped": 1},
        {"op": "nothing"},
        status=409,
    )
    assert found["code"] == "batch_aborted"
    assert found["committed"] is False
    codes = [each.get("error", {}).get("code") for each in found["results"]]
    assert codes == [None, "duplicate_id", "invalid_field", "unknown_op"]
    assert found["summary"] == {
        "total": 4,
        "ok": 0,
        "skipped": 0,
        "failed": 3,
        "rolled_back": 1,
        "not_attempted": 0,
    }


async def test_what_depends_on_what_failed(api: Client) -> None:
    found = await run(
        api,
        {"op": "mkdir", "path": "/no/x", "id": "mk"},
        {"op": "move", "src": "/a", "dst": "/no/x/a", "id": "mv"},
        {"op": "set_metadata", "target": {"ref": "mv"}, "merge": {}},
        mode="best_effort",
        status=207,
    )
    errors = [each["error"] for each in found["results"]]
    assert [each["code"] for each in errors] == [
        "parent_not_found",
        "dependency_failed",
        "dependency_failed",
    ]
    assert [each.get("depends_on") for each in errors] == [None, "mk", "mv"]
    assert [each["http_status"] for each in found["results"]] == [409, 424, 424]


async def test_what_depends_on_what_was_not_understood(api: Client) -> None:
    """No false parent_not_found, not even where its tree is another's or folders are above it."""
    await api.new_user("bob")
    found = await run(
        api,
        {"op": "mkdir", "path": "/x", "mistyped": 1},
        {"op": "copy", "src": "/a", "dst": "/x/a"},
        {"op": "mkdir", "path": "bob:/y", "id": "mk", "mistyped": 1},
        {"op": "move", "src": "/a", "dst": {"ref": "mk"}},
        {"op": "move", "src": "bob:/a", "dst": {"ref": "mk"}},
        {"op": "nothing", "id": "no"},
        {"op": "move", "src": "bob:/a", "dst": {"ref": "no", "path": "b"}},
        {"op": "delete", "target": "/nothing"},
        status=409,
    )
    errors = [each["error"] for each in found["results"]]
    assert [each["code"] for each in errors] == [
        *("invalid_field", "dependency_failed", "invalid_field", "not_found"),
        *("dependency_failed", "unknown_op", "dependency_failed", "not_found"),
    ]
    assert [each.get("depends_on") for each in errors] == [
        *(None, "#0", None, None, "mk", None, "no", None),
    ]


async def test_what_depends_on_folders_above_what_failed(api: Client) -> None:
    await hold(api, "/folder/one/two")
    found = await run(
        api,
        {"op": "mkdir", "path": "/folder/one/two", "parents": True},
        {"op": "copy", "src": "/a", "dst": "/folder/one/a"},
        {"op": "move", "src": "/folder/nothing", "dst": "/n"},
        {"op": "mkdir", "path": "/x/y", "parents": True, "mistyped": 1},
        {"op": "mkdir", "path": "/x/z"},
        {"op": "mkdir", "path": "/z/z"},
        mode="best_effort",
        wait=0,
        status=207,
    )
    errors = [each["error"] for each in found["results"]]
    assert [each["code"] for each in errors] == [
        *("locked", "dependency_failed", "not_found"),
        *("invalid_field", "dependency_failed", "parent_not_found"),
    ]
    assert [errors[1]["depends_on"], errors[4]["depends_on"]] == ["#0", "#3"]


async def test_what_came_to_be_after_all_is_depended_on(api: Client) -> None:
    found = await run(
        api,
        {"op": "mkdir", "path": "/no/x", "id": "mk"},
        {"op": "mkdir", "path": "/no/x", "parents": True},
        {"op": "delete", "target": "/no/x/nothing"},
        {"op": "delete", "target": "/no/nothing"},
        mode="best_effort",
        status=207,
    )
    codes = [each.get("error", {}).get("code") for each in found["results"]]
    assert codes == ["parent_not_found", None, "not_found", "not_found"]


async def test_a_reference_to_what_was_skipped_leads_to_what_is_there(api: Client) -> None:
    ops = [
        {"op": "mkdir", "path": "/folder", "on_conflict": "skip", "id": "mk"},
        {"op": "move", "src": "/a", "dst": {"ref": "mk", "path": "a"}},
    ]
    would = await run(api, *ops, dry_run=True)
    assert [each["status"] for each in would["results"]] == ["skipped", "would_succeed"]
    assert would["summary"]["skipped"] == 1
    found = await run(api, *ops)
    assert [each["status"] for each in found["results"]] == ["skipped", "ok"]
    assert (await api("GET", "/v1/files/me/folder/a")).content == b"a"


async def test_what_is_below_a_node_is_not_restored_by_itself(api: Client) -> None:
    found = await run(
        api,
        {"op": "delete", "target": "/folder", "recursive": True, "id": "rm"},
        {"op": "restore", "node": {"ref": "rm", "path": "c"}},
        status=409,
    )
    assert found["results"][1]["error"]["code"] == "invalid_field"


async def test_a_bug_in_one_operation_is_no_reason_to_refuse_others(
    api: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*_: object) -> object:
        raise KeyError("secret")

    monkeypatch.setitem(PROGRAMS, Delete, faulty)
    log = logging.getLogger("of a server that nobody has set up")
    monkeypatch.setattr("vaultfs.adapters.sql.batches._log", log)
    ops = [{"op": "delete", "target": "/a"}, {"op": "mkdir", "path": "/x"}]
    found = await run(api, *ops, mode="best_effort", status=207)
    [failed, done] = found["results"]
    assert (failed["http_status"], failed["error"]["code"]) == (500, "internal")
    assert "secret" not in str(found)
    assert "secret" in caplog.text
    assert done["status"] == "ok"
    assert await one(api, ops[0]) == (500, "internal")


async def test_copies_have_a_common_bound(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_COPY", 5)
    ops = [{"op": "copy", "src": "/folder", "dst": f"/f{number}"} for number in range(3)]
    found = await run(api, *ops, status=409)
    errors = [each.get("error") for each in found["results"]]
    assert errors[:2] == [None, None]
    assert (errors[2]["code"], errors[2]["count"]) == ("too_many_nodes", 2)
    await run(api, *ops[:2])
    await run(api, *ops[2:])


async def test_only_addresses_are_looked_up(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    look_up = Files.tree

    async def tree(self: Files, caller: User, name: str) -> TreeId:
        asked.append(name)
        return await look_up(self, caller, name)

    monkeypatch.setattr(Files, "tree", tree)
    more = {f"u{number}:/": f"v{number}:/x" for number in range(300)}
    op = {"op": "move", "src": "bob:/a", "dst": "eve:/a", "user": "mallory", **more}
    await run(api, op, {"op": "restore", "node": 3, "user": "carl"}, status=409)
    assert sorted(asked) == ["bob", "carl", "eve"]


async def test_a_quota_that_is_exceeded(api: Client) -> None:
    bob = await api.new_user("bob", quota=5)
    await api.ok("PUT", "/v1/files/bob/a", token=bob, content=b"four")
    found = await run(api, {"op": "copy", "src": "/a", "dst": "/b"}, token=bob, status=409)
    assert found["results"][0]["error"]["code"] == "quota_exceeded"
    assert found["results"][0]["http_status"] == 507


async def test_a_copy_of_too_many_nodes_says_how_many(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.domain.operations.MAX_COPY", 1)
    found = await run(api, {"op": "copy", "src": "/folder", "dst": "/x"}, status=409)
    assert found["results"][0]["http_status"] == 422
    assert found["results"][0]["error"]["code"] == "too_many_nodes"
    assert found["results"][0]["error"]["count"] == 2


# The body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"ops": {}}',
        b'{"ops": []}',
        b'{"ops": [], "ops": []}',
        b'{"ops": [{}], "mode": "both"}',
        b'{"ops": [{}], "mode": ["atomic"]}',
        b'{"ops": [{}], "dry_run": 1}',
        b'{"ops": [{}], "wait": "long"}',
        b'{"ops": [{}], "wait": 31}',
        b'{"ops": [{}], "wait": -1}',
        b'{"ops": [{}], "more": 1}',
        b'{"ops": [{"op": NaN}]}',
        b'{"ops": [' + b"1" * 5000 + b"]}",
        b'{"ops": [{"op": "\xff"}]}',
        b'{"ops": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_bodies_that_are_no_batches(api: Client, body: bytes) -> None:
    assert await api.refused(400, "POST", "/v1/batch", content=body) == "invalid_field"


@pytest.mark.parametrize("end", [b"\xff", b'"\xc3\x28"'])
async def test_long_bodies_that_are_not_utf8(api: Client, end: bytes) -> None:
    body = b'{"ops": [%s"%s' % (b'{"op": "mkdir", "path": "/x"}, ' * 1000, end)
    assert await api.refused(400, "POST", "/v1/batch", content=body) == "invalid_field"
    wait = b'{"ops": [{"op": "mkdir", "path": "/x"}], "wait": 1e999}'
    assert await api.refused(400, "POST", "/v1/batch", content=wait) == "invalid_field"
    wait = wait.replace(b"1e999", b"9" * 400)
    assert await api.refused(400, "POST", "/v1/batch", content=wait) == "invalid_field"


async def test_a_key_that_comes_twice_in_an_operation(api: Client) -> None:
    body = b'{"ops": [{"op": "delete", "target": "/a", "target": "/b"}, {"op": "x"}]}'
    answer = await api("POST", "/v1/batch", content=body)
    codes = [each["error"]["code"] for each in answer.json()["results"]]
    assert (answer.status_code, codes) == (409, ["invalid_field", "unknown_op"])


async def test_a_thousand_operations_and_one_more(api: Client) -> None:
    found = await run(api, *MANY)
    assert found["summary"]["ok"] == MAX_STEPS
    body = {"ops": [*MANY, MANY[0]]}
    assert await api.refused(413, "POST", "/v1/batch", json=body) == "too_large"


async def test_an_operation_that_is_too_long(api: Client) -> None:
    long = {"op": "set_metadata", "target": "/a", "merge": {"x": "y" * MAX_STEP}}
    assert await one(api, long) == (422, "invalid_field")


async def test_a_body_that_is_too_long(api: Client) -> None:
    body = b" " * (MAX_BYTES - 2) + b"[]"
    assert await api.refused(400, "POST", "/v1/batch", content=body) == "invalid_field"
    assert await api.refused(413, "POST", "/v1/batch", content=b" " + body) == "too_large"

    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(1000):
            yield bytes(1 << 16)

    assert await api.refused(413, "POST", "/v1/batch", content=pieces()) == "too_large"


async def test_a_body_that_does_not_come(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BODY_WITHIN", 0.05)

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"{"
        await anyio.sleep(5)

    assert await api.refused(408, "POST", "/v1/batch", content=pieces()) == "too_slow"


async def test_a_batch_counts_as_many_requests() -> None:
    async with open_api(rate=Rate(per_second=0.001, burst=20)) as api:
        body = {"ops": MANY[:100]}
        first = await api("POST", "/v1/batch", json=body)
        assert (first.status_code, first.headers["ratelimit-remaining"]) == (200, "9")
        second = await api("POST", "/v1/batch", json={"ops": MANY[100:200]})
        assert second.status_code == 429
        assert int(second.headers["retry-after"]) > 0
        assert (await api("GET", "/v1/nodes/me/100")).status_code == 404


async def test_a_token_that_may_only_read(api: Client) -> None:
    reader = await api.new_token("me", Scope.READ)
    body = {"ops": MANY[:1]}
    assert await api.refused(403, "POST", "/v1/batch", json=body, token=reader) == "forbidden"


# Keys


async def test_a_key_is_answered_with_what_it_was_answered_before(api: Client) -> None:
    key = {"Idempotency-Key": "k1"}
    op = {"op": "mkdir", "path": "/new", "on_conflict": "rename"}
    body = json.dumps({"ops": [op, {"op": "delete", "target": "/no"}], "mode": "best_effort"})
    first = await api("POST", "/v1/batch", content=body, headers=key)
    again = await api("POST", "/v1/batch", content=body, headers=key)
    assert (first.status_code, again.status_code) == (207, 207)
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"
    assert await api.refused(422, "POST", "/v1/batch", json={"ops": [op]}, headers=key) == (
        "key_reused"
    )
    bob = await api.new_user("bob")
    await run(api, op, headers=key, token=bob)  # keys are of their users


async def test_of_many_with_one_key_one_is_executed(api: Client) -> None:
    body = {"ops": [{"op": "copy", "src": "/a", "dst": "/n", "on_conflict": "rename"}]}
    answers: list[httpx.Response] = []

    async def send() -> None:
        answers.append(
            await api("POST", "/v1/batch", json=body, headers={"Idempotency-Key": "same"})
        )

    async with anyio.create_task_group() as tasks:
        for _ in range(16):
            tasks.start_soon(send)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert (await api("GET", "/v1/nodes/me/n%20(2)")).status_code == 404


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9"])
async def test_keys_that_cannot_be(api: Client, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    assert await api.refused(400, "POST", "/v1/batch", json={"ops": MANY}, headers=headers) == (
        "invalid_field"
    )


# Locks


async def hold(api: Client, path: str, mode: str = "exclusive", ttl: float = 60) -> str:
    body = {"paths": [{"path": path, "mode": mode}], "ttl_seconds": ttl}
    lock: str = (await api.ok("POST", "/v1/locks", json=body))["lock"]
    return lock


async def test_a_lock_that_is_in_the_way(api: Client) -> None:
    lock = await hold(api, "/a")
    op = {"op": "move", "src": "/a", "dst": "/x"}
    found = await run(api, op, wait=0.05, status=409)
    [result] = found["results"]
    assert (result["http_status"], result["error"]["code"]) == (423, "locked")
    assert result["error"]["retryable"] is True
    assert result["error"]["holders"][0]["path"] == "/a"
    partly = await run(
        api, op, {"op": "mkdir", "path": "/y"}, mode="best_effort", wait=0, status=207
    )
    assert [each["status"] for each in partly["results"]] == ["failed", "ok"]
    others = {"op": "mkdir", "path": "/z"}
    await run(api, op, others, headers={"VaultFS-Lock-Token": lock})


async def test_a_batch_does_not_wait_for_a_lock_that_it_shows(api: Client) -> None:
    """Not even where another stands in its way, and it needs more than the one it has."""
    lock, other = await hold(api, "/folder/c"), await hold(api, "/b")

    async def give_back() -> None:
        await anyio.sleep(0.2)
        await api.ok("DELETE", f"/v1/locks/{other}")

    ops = [{"op": "move", "src": "/folder", "dst": "/x"}, {"op": "move", "src": "/b", "dst": "/y"}]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_back)
        with anyio.fail_after(3):
            await run(api, *ops, wait=10, headers={"VaultFS-Lock-Token": lock})


async def test_a_lock_that_is_held_no_longer(api: Client) -> None:
    lock = await hold(api, "/a")
    await api.ok("DELETE", f"/v1/locks/{lock}")
    headers = {"VaultFS-Lock-Token": lock}
    found = await run(api, {"op": "mkdir", "path": "/x"}, headers=headers, status=409)
    [result] = found["results"]
    assert (result["http_status"], result["error"]["code"]) == (412, "stale_token")


async def test_a_lock_that_is_given_back_in_time(api: Client) -> None:
    lock = await hold(api, "/a")

    async def give_back() -> None:
        await anyio.sleep(0.2)
        await api.ok("DELETE", f"/v1/locks/{lock}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_back)
        with anyio.fail_after(3):
            await run(api, {"op": "move", "src": "/a", "dst": "/x"}, wait=5)
    assert (await api.ok("GET", "/v1/locks"))["held"] == []


async def test_a_lock_that_only_another_batch_has(api: Client) -> None:
    locks, tree = api.vault.locks, api.vault.user.tree
    async with locks.hold(Owner(f"{LOCK_OWNER}x"), tree, {("a",): Mode.X}):
        found = await run(api, {"op": "delete", "target": "/a"}, wait=0.05, status=409)
    [result] = found["results"]
    assert (result["http_status"], result["error"]["code"]) == (409, "lock_timeout")
    assert result["error"]["retryable"] is True


async def test_nobody_locks_what_is_not_theirs_to_write_by_waiting(api: Client) -> None:
    bob = await api.new_user("bob")
    await api.ok("PUT", "/v1/files/bob/a", token=bob, content=b"x")
    body = {"paths": [{"path": "/a"}], "ttl_seconds": 60}
    await api.ok("POST", "/v1/locks", token=bob, json=body)
    held: list[Any] = []
    found: Any = None

    async def look() -> None:
        await anyio.sleep(0.3)
        held.append((await api.ok("GET", "/v1/locks"))["held"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        ops = [{"op": "delete", "target": path} for path in ("/a", "me:/a", "me:/folder")]
        found = await run(api, *ops, token=bob, wait=1, mode="best_effort", status=207)
    codes = [each["error"]["code"] for each in found["results"]]
    assert codes == ["locked", "not_found", "not_found"]
    assert held == [[]]


# Sharing


async def test_what_a_reader_and_a_writer_may_do(api: Client) -> None:
    bob = await api.new_user("bob")
    for method, path in (
        ("GET", "/v1/files/me/folder/c"),
        ("GET", "/v1/nodes/me/folder"),
        ("GET", "/v1/folders/me/folder"),
        ("PUT", "/v1/files/me/folder/d"),
    ):
        assert await api.refused(404, method, path, token=bob) == "not_found"
    grant = {"user": "bob", "role": "reader"}
    await api.ok("PUT", "/v1/access/me/folder", json=grant)
    assert (await api("GET", "/v1/files/me/folder/c", token=bob)).content == b"folder/c"
    assert len((await api.ok("GET", "/v1/folders/me/folder", token=bob))["entries"]) == 1
    assert (await api("GET", "/v1/versions/me/folder/c", token=bob)).status_code == 200
    assert (await api("GET", "/v1/frames/me/folder", token=bob)).status_code == 200
    for path in ("/v1/files/me/a", "/v1/folders/me/", "/v1/changes/me", "/v1/trash/me"):
        assert await api.refused(404, "GET", path, token=bob) == "not_found"
    url = "/v1/files/me/folder/d"
    assert await api.refused(403, "PUT", url, token=bob, content=b"x") == "forbidden"
    await api.ok("PUT", "/v1/access/me/folder", json={**grant, "role": "writer"})
    await api.ok("PUT", url, token=bob, content=b"bob's")
    assert (await api("GET", url)).content == b"bob's"
    [shared] = (await api.ok("GET", "/v1/shared", token=bob))["entries"]
    assert (shared["owner"], shared["path"], shared["role"]) == ("me", "/folder", "writer")
    assert (
        await api.refused(403, "PUT", "/v1/access/me/folder", token=bob, json=grant) == "forbidden"
    )
    seen = (await api.ok("GET", "/v1/access/me/folder/c", token=bob))["entries"]
    assert [each["user"] for each in seen] == ["bob"]
    await api.ok("DELETE", "/v1/access/me/folder?grantee=bob")
    assert await api.refused(404, "GET", url, token=bob) == "not_found"


async def test_a_writer_of_one_file_may_put_it(api: Client) -> None:
    bob = await api.new_user("bob")
    url = "/v1/files/me/folder/c"
    await api.ok("PUT", "/v1/access/me/folder/c", json={"user": "bob", "role": "reader"})
    assert await api.refused(403, "PUT", url, token=bob, content=b"x") == "forbidden"
    await api.ok("PUT", "/v1/access/me/folder/c", json={"user": "bob", "role": "writer"})
    await api.ok("PUT", url, token=bob, content=b"bob's")
    assert (await api("GET", url)).content == b"bob's"
    copy = {"op": "copy", "src": "me:/folder/c", "dst": "me:/folder/c", "version": 1}
    await run(api, {**copy, "on_conflict": "replace"}, token=bob)
    assert (await api("GET", url)).content == b"folder/c"
    beside = "/v1/files/me/folder/d"
    assert await api.refused(404, "PUT", beside, token=bob, content=b"x") == "not_found"


async def test_what_is_in_the_trash_is_not_listed_as_shared(api: Client) -> None:
    bob = await api.new_user("bob")
    for path in ("folder/c", "a"):
        await api.ok("PUT", f"/v1/access/me/{path}", json={"user": "bob", "role": "reader"})
    gone = await api.ok("DELETE", "/v1/files/me/folder?recursive=true")
    [shared] = (await api.ok("GET", "/v1/shared", token=bob))["entries"]
    assert shared["path"] == "/a"
    await api.ok("POST", f"/v1/trash/me/{gone['id']}", json={})
    assert len((await api.ok("GET", "/v1/shared", token=bob))["entries"]) == 2


async def test_refusals_tell_nothing_that_is_not_granted(api: Client) -> None:
    """Not the path of what is named by its id, its version, nor who holds a lock on it."""
    bob = await api.new_user("bob")
    node = (await api.ok("GET", "/v1/nodes/me/a"))["id"]
    await hold(api, "/a")
    await api.ok("DELETE", "/v1/files/me/b")
    [trashed] = (await api.ok("GET", "/v1/trash/me"))["entries"]
    found = await run(
        api,
        {"op": "restore", "node": node, "user": "me"},
        {"op": "restore", "node": trashed["id"], "user": "me"},
        {"op": "restore", "node": 999999, "user": "me"},
        {"op": "delete", "target": "me:/a", "if_version": 77},
        {"op": "delete", "target": "me:/zzz", "if_version": 77},
        token=bob,
        wait=0,
        mode="best_effort",
        status=207,
    )
    errors = [each["error"] for each in found["results"]]
    assert {each["code"] for each in errors} == {"not_found"}
    assert [each["detail"] for each in errors] == [
        *(f"there is no node {number}" for number in (node, trashed["id"], 999999)),
        "nothing is at /a",
        "nothing is at /zzz",
    ]
    assert all(not (each.keys() - {"code", "detail", "retryable"}) for each in errors)


async def test_a_writer_cannot_show_a_lock_of_the_owner(api: Client) -> None:
    bob = await api.new_user("bob")
    await api.ok("PUT", "/v1/access/me/folder", json={"user": "bob", "role": "writer"})
    lock = await hold(api, "/folder/c")
    headers = {"VaultFS-Lock-Token": lock}
    op = {"op": "move", "src": "me:/folder/c", "dst": "me:/folder/d"}
    found = await run(api, op, token=bob, wait=0, headers=headers, status=409)
    assert found["results"][0]["error"]["code"] == "locked"


async def test_a_user_does_not_see_what_others_were_granted(api: Client) -> None:
    bob, _ = await api.new_user("bob"), await api.new_user("eve")
    for user in ("bob", "eve"):
        await api.ok("PUT", "/v1/access/me/folder", json={"user": user, "role": "reader"})
    seen = (await api.ok("GET", "/v1/access/me/folder", token=bob))["entries"]
    assert [each["user"] for each in seen] == ["bob"]
    assert len((await api.ok("GET", "/v1/access/me/folder"))["entries"]) == 2


async def test_a_file_of_a_writer_is_the_owners(api: Client) -> None:
    """Its chunks stay readable for the owner, whatever the writer had or has."""
    bob = await api.new_user("bob")
    data = bytes(range(256)) * 4096
    await api.ok("PUT", "/v1/files/bob/mine", token=bob, content=data)
    await api.ok("PUT", "/v1/access/me/folder", json={"user": "bob", "role": "writer"})
    await api.ok("PUT", "/v1/files/me/folder/new", token=bob, content=data)
    assert (await api("GET", "/v1/files/me/folder/new")).content == data
    used = (await api.ok("GET", "/v1/whoami"))["user"]["used"]
    assert used >= len(data)
    headers = {"Upload-Length": "3", "Upload-Metadata": "path bWU6L2ZvbGRlci91cA=="}
    refused = await api("POST", "/v1/uploads", token=bob, headers=headers)
    assert refused.status_code in {400, 404, 501}


async def test_a_batch_in_the_tree_of_another(api: Client) -> None:
    bob = await api.new_user("bob")
    ops = [
        {"op": "mkdir", "path": "me:/folder/x", "id": "mk"},
        {"op": "copy", "src": "me:/folder/c", "dst": {"ref": "mk", "path": "c"}},
        {"op": "mkdir", "path": "/own"},
    ]
    found = await run(api, *ops, token=bob, status=409)
    assert found["results"][0]["error"]["code"] == "not_found"
    await api.ok("PUT", "/v1/access/me/folder", json={"user": "bob", "role": "reader"})
    found = await run(api, *ops, token=bob, status=409)
    assert found["results"][0]["error"]["code"] == "forbidden"
    await api.ok("PUT", "/v1/access/me/folder", json={"user": "bob", "role": "writer"})
    await run(api, *ops, token=bob)
    assert (await api("GET", "/v1/files/me/folder/x/c")).content == b"folder/c"

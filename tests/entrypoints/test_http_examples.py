"""The examples of the API's description are what a server answers, asked one by one."""

import re
from typing import Any

import jsonschema_rs
import pytest
from tests.entrypoints.http_calls import Client, open_api

from vaultfs.entrypoints.http.app import ROUTES
from vaultfs.entrypoints.http.description import EXAMPLES, describe

DOCUMENT = describe(ROUTES)
BY_NAME = {route.name: route for route in ROUTES}
HEXADECIMAL = (
    *("takeFrames", "giveFrames", "haveChunks"),
    *("takeDelta", "getSignature", "getFinerSignature"),
)
CASES = [(name, each) for name, examples in EXAMPLES.items() for each in examples]


async def prepare(api: Client) -> dict[str, str]:
    """What the examples say is there: two notes, one with two versions; a file in the trash,
    the user bob, who may read /lines.txt, a token, a lock on /reports, an upload with half of
    its bytes, one collection; and what they call those with ids here."""
    for path, text in (("today.txt", "first"), ("today.txt", "second"), ("other.txt", "x")):
        await api.ok("PUT", f"/v1/files/me/notes/{path}?parents=true", content=text.encode())
    await api.ok("PUT", "/v1/files/me/old.txt", content=b"old")
    gone = await api.ok("DELETE", "/v1/files/me/old.txt")
    await api.ok("POST", "/v1/users", json={"name": "bob", "quota": 1 << 30})
    body = {"name": "phone", "scopes": ["read"]}
    token = await api.ok("POST", "/v1/users/me/tokens", json=body)
    lock = {"paths": [{"path": "/reports", "mode": "update"}], "ttl_seconds": 3600}
    held = await api.ok("POST", "/v1/locks", json=lock)
    said = {"Upload-Length": "12", "Upload-Metadata": "path L25vdGVzL3VwLmJpbg=="}
    begun = await api("POST", "/v1/uploads", headers=said)
    upload = begun.headers["location"].rpartition("/")[2]
    part = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    await api("PATCH", f"/v1/uploads/{upload}", headers=part, content=b"hello ")
    lines = "".join(f"line {number}\n" for number in range(200))
    for text in (lines, lines + "and one more\n"):
        await api.ok("PUT", "/v1/files/me/lines.txt", content=text.encode())
    grant = {"user": "bob", "role": "reader"}
    await api.ok("PUT", "/v1/access/me/lines.txt", json=grant)
    await api.vault.collector().run()
    return {
        "node": str(gone["id"]),
        "token": token["id"],
        "lease": held["lock"],
        "fence": str(held["token"]),
        "upload": upload,
    }


async def ask(api: Client, name: str, example: dict[str, Any], state: dict[str, str]) -> Any:
    """Send an example's request; ids that it cannot know are those of `state`."""
    known = {
        "1": state["node"],
        "0123456789abcdef": state["token"],
        "4f7a0c1b.3": state["lease"],
        "3": state["fence"],
        "6fd0c8a1": state["upload"],
    }
    given = {key: str(value) for key, value in example["path"].items()}
    for key in state.keys() & given.keys():
        given[key] = known.get(given[key], given[key])
    path = re.sub(r"{(\w+)(:\w+)?}", lambda found: given[found[1]], BY_NAME[name].path)
    rest: dict[str, Any] = {"params": example.get("query"), "headers": example.get("headers", {})}
    if "token" in example:
        rest["token"] = example["token"]
    body = example.get("body")
    if isinstance(body, str):
        framed = name in HEXADECIMAL  # which examples can only show in hexadecimal
        rest["content"] = bytes.fromhex(body) if framed else body.encode()
    elif body is not None:
        rest["json"] = body
    return await api(BY_NAME[name].method, path, **rest)


def shape(value: Any) -> Any:
    """What kind of thing it is, all the way down; of lists, the first."""
    kind: str = value.__class__.__name__
    if kind == "dict":
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value[:1]] if kind == "list" else kind


@pytest.mark.parametrize(("name", "example"), CASES, ids=[f"{n}-{e['name']}" for n, e in CASES])
async def test_a_server_answers_as_the_example_says(name: str, example: dict[str, Any]) -> None:
    async with open_api() as api:
        answer = await ask(api, name, example, await prepare(api))
    assert answer.status_code == example["status"], answer.text
    route = BY_NAME[name]
    operation = DOCUMENT["paths"][re.sub(r":\w+}", "}", route.path)][route.method.lower()]
    described = operation["responses"][str(example["status"])].get("content", {})
    if "answer" not in example:
        return
    [(kind, content)] = described.items()
    assert answer.headers["content-type"].startswith(kind) or kind == "application/octet-stream"
    assert content["examples"][example["name"]]["value"] == example["answer"]
    if kind.endswith("json"):
        assert shape(answer.json()) == shape(example["answer"])
        schema = {**content["schema"], "components": DOCUMENT["components"]}
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for value in (answer.json(), example["answer"]):
            validator.validate(value)
    else:
        framed = name in HEXADECIMAL or answer.status_code == 226
        assert (answer.content.hex() if framed else answer.text) == example["answer"]
    if answer.status_code >= 400:
        assert answer.json()["code"] == example["answer"]["code"]


def test_every_operation_has_an_example_and_refusals_have_some() -> None:
    assert EXAMPLES.keys() == BY_NAME.keys()
    for name, route in BY_NAME.items():
        statuses = {each["status"] for each in EXAMPLES[name]}
        assert route.status in statuses
        assert route.scope is None or any(status >= 400 for status in statuses), name
        if route.body is not None:
            assert any("body" in each for each in EXAMPLES[name])

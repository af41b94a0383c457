"""The API as OpenAPI 3.1, from the same routes that the app serves."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vaultfs._version import __version__
from vaultfs.domain.deltacodec import MEDIA_TYPE as DELTA
from vaultfs.entrypoints.http.calls import WITH_LOCK, Parameter, Route
from vaultfs.entrypoints.http.problems import phrase_of
from vaultfs.entrypoints.http.wire import Problem

EXAMPLES: Final[dict[str, list[dict[str, Any]]]] = msgspec.json.decode(
    (Path(__file__).parent / "examples.json").read_bytes()
)
"""Requests and what they are answered with, by operation; the tests send them. An answer that
is missing is empty, or too long to be told."""
_TEMPLATE: Final = re.compile(r"{(\w+)(?::(\w+))?}")
_REF: Final = "#/components/schemas/{name}"
CONFLICT: Final = 409
_ALWAYS: Final = (400, 401, 403, 404, 429, 503)
"""Statuses of refusals that every route that needs a token can answer with."""


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document for `routes`."""
    kinds = {kind for route in routes for kind in (route.body, route.answer, route.conflict)}
    structs = sorted(
        (kind for kind in kinds if isinstance(kind, type)), key=lambda kind: kind.__name__
    )
    _, components = msgspec.json.schema_components([*structs, Problem], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _TEMPLATE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VaultFS",
            "version": __version__,
            "description": "A self-hosted, versioned, deduplicating file vault.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*_path_parameters(route.path), *map(_parameter, route.parameters)],
        "responses": _responses(route),
        "security": [],
    }
    if route.scope is not None:
        found["security"] = [{"token": []}, {"password": []}]
        found["description"] = f"Needs a token with the scope `{route.scope}`."
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": _content(route.body)}
    for example in EXAMPLES.get(route.name, ()):
        _show(example, found)
    return found


def _show(example: dict[str, Any], operation: dict[str, Any]) -> None:
    """Put the parts of an example where OpenAPI has them; its name keeps them together."""
    name = example["name"]
    given = {**example["path"], **example.get("query", {}), **example.get("headers", {})}
    for parameter in operation["parameters"]:
        if parameter["name"] in given:
            value = {"value": given[parameter["name"]]}
            parameter.setdefault("examples", {})[name] = value
    parts = {
        "body": operation.get("requestBody", {}),
        "answer": operation["responses"][str(example["status"])],
    }
    for part, described in parts.items():
        for content in described.get("content", {}).values() if part in example else ():
            content.setdefault("examples", {})[name] = {"value": example[part]}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    texts = {
        "user": "Whose tree, or which user.",
        "path": "A path in the tree: names between slashes, percent-encoded.",
        "node": "The id of a node in the trash.",
        "token": "The id of a token.",
        "lease": "A lock, as `<lease>.<token>`.",
        "fence": "The token of a lock.",
        "upload": "The id of an upload.",
    }
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": texts[name],
            "schema": {"type": "integer", "minimum": 1}
            if name in {"node", "fence"}
            else {"type": "string"},
        }
        for name, _ in _TEMPLATE.findall(path)
    ]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": False,
        "description": parameter.text,
        "schema": _schema(parameter),
    }


def _schema(parameter: Parameter) -> dict[str, Any]:
    if parameter.most is None:
        return {"type": parameter.kind}
    return {"type": parameter.kind, "minimum": 1, "maximum": parameter.most}


def _content(kind: type | str) -> dict[str, Any]:
    if isinstance(kind, type):
        return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
    plain: dict[str, Any] = {"type": "object"} if kind.endswith("json") else {}
    return {kind: {"schema": plain}}


def _responses(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {str(route.status): {"description": phrase_of(route.status)}}
    if route.answer is not None:
        if route.method != "HEAD":
            found[str(route.status)]["content"] = _content(route.answer)
        for status in _ANSWERS.keys() & {*route.failures}:
            text, kind = _ANSWERS[status]
            found[str(status)] = {"description": text, "content": _content(kind or route.answer)}
    if 304 in route.failures:
        found["304"] = {"description": "Not Modified"}
    for status in sorted(_refusals(route)):
        problem = route.conflict if status == CONFLICT and route.conflict else Problem
        found[str(status)] = {"description": phrase_of(status)}
        if route.method != "HEAD":
            schema = {"$ref": _REF.format(name=problem.__name__)}
            found[str(status)]["content"] = {"application/problem+json": {"schema": schema}}
    return found


_ANSWERS: Final[dict[int, tuple[str, str | None]]] = {
    200: ("OK", None),
    206: ("A part of it", None),
    207: ("Not all of it was done", None),
    226: ("A delta to it (RFC 3229)", DELTA),
}
"""Answers that are no refusals, and their media type if it is not that of the route."""


def _refusals(route: Route) -> set[int]:
    """The statuses of a route that come with a problem."""
    refusals = {*route.failures, *(_ALWAYS if route.scope is not None else ())}
    if WITH_LOCK in route.parameters:
        refusals |= {409, 412, 423}
    if route.body is not None:
        refusals.add(413)
    return refusals - {304, *_ANSWERS}

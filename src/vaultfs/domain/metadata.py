"""Metadata of nodes: a JSON object, changed by merge patches (RFC 7396)."""

import json
from collections.abc import Mapping
from typing import Final, cast

from vaultfs.domain.errors import InvalidField, TooLarge

_EXAMPLE: Final = 'as in \'{"key": "value"}\''
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def parse_metadata(text: str) -> dict[str, Json]:
    """The JSON object in `text`. Raises `InvalidField` for anything else."""
    try:
        value = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"metadata is JSON, {_EXAMPLE}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidField(f"metadata has to be a JSON object, {_EXAMPLE}")
    return cast("dict[str, Json]", value)


def no_constant(name: str) -> Json:
    """Refuses `NaN` and the like, which Python would read."""
    raise ValueError(f"{name} is not in JSON")


def format_metadata(value: Mapping[str, Json], *, most: int) -> str:
    """`value` in its one form. Raises `TooLarge` above `most` bytes."""
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        )
        size = len(text.encode())
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"metadata is not JSON: {error}") from error
    if size > most:
        raise TooLarge(f"metadata has {size} bytes; {most} is the most")
    return text


def merged(target: Json, patch: Json) -> Json:
    """`target` changed by `patch`: RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def merge_patch(metadata: str, patch: str, *, most: int) -> str:
    """Both given and returned as text. Raises `InvalidField` or `TooLarge`."""
    result = merged(cast("Json", parse_metadata(metadata)), cast("Json", parse_metadata(patch)))
    return format_metadata(cast("dict[str, Json]", result), most=most)

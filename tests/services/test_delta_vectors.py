"""The deltas of `docs/vectors.json`: read as `docs/format.md` says, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.services.test_deltas import rebuilt

from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints.cli.errors import error_code

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "vectors.json").read_text()
)["deltas"]
BASE = VECTORS["base"].encode()


@pytest.mark.parametrize("vector", VECTORS["deltas"], ids=lambda each: each["what"])
async def test_a_delta_leads_to_its_target(vector: dict[str, Any]) -> None:
    target = vector["target"]
    wanted = bytes.fromhex(target) if vector.get("hex") else target.encode()
    assert await rebuilt(BASE, bytes.fromhex(vector["delta"])) == wanted


@pytest.mark.parametrize("vector", VECTORS["images"], ids=lambda each: each["what"])
async def test_a_delta_between_images_leads_to_its_target(vector: dict[str, Any]) -> None:
    base, delta, target = (bytes.fromhex(vector[each]) for each in ("base", "delta", "target"))
    assert await rebuilt(base, delta) == target
    with pytest.raises(VaultError):
        await rebuilt(target, delta)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda each: each["what"])
async def test_what_is_no_delta_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(VaultError) as refused:
        await rebuilt(BASE, bytes.fromhex(vector["delta"]))
    assert error_code(refused.value) == vector["error"]

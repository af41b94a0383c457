"""Streams that are not what was announced."""

from collections.abc import AsyncGenerator

import pytest
from blake3 import blake3
from tests.faults import open_memory_vault

from vaultfs.adapters.files import IterableSource
from vaultfs.domain.names import Address
from vaultfs.domain.services.budget import BLOCK


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


@pytest.mark.parametrize("size", [0, 1, 70_000, 2 * BLOCK + 17])
@pytest.mark.parametrize("announced", [None, 0, 1, 69_999, BLOCK - 1, BLOCK, 3 * BLOCK])
async def test_a_stream_is_stored_whole_whatever_size_was_announced(
    size: int, announced: int | None
) -> None:
    data = blake3(b"announced").digest(size)
    async with open_memory_vault() as vault:
        address = Address(vault.user.name, ("file",))
        await vault.files.put(vault.user, address, IterableSource(_pieces(data)), size=announced)
        _, version = await vault.files.version(vault.user, address)
        async with vault.files.read(vault.user, version) as parts:
            stored = b"".join([bytes(piece) async for part in parts for piece in part])
        assert stored == data
        assert version.digest == blake3(data).digest()

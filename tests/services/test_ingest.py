"""Streams that are not what was announced, and what is told of their progress."""

from collections.abc import AsyncGenerator, Sequence

import anyio
import pytest
from blake3 import blake3
from tests.faults import BytesSource, CatalogAround, add_user, at, open_memory_vault, random_bytes

from vaultfs.adapters.files import IterableSource
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.cutting import SMALL
from vaultfs.domain.names import Address
from vaultfs.domain.operations import Outcome, RecordPack, Unit
from vaultfs.domain.services.budget import BLOCK
from vaultfs.entrypoints.opening import OWNER
from vaultfs.ports.catalog import Catalog


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
        async with vault.files.read(vault.user.tree, version) as parts:
            stored = b"".join([bytes(piece) async for part in parts for piece in part])
        assert stored == data
        assert version.digest == blake3(data).digest()


class Gate(CatalogAround):
    """Records nothing before it is opened."""

    def __init__(self, inner: Catalog) -> None:
        super().__init__(inner)
        self.asked, self.open = anyio.Event(), anyio.Event()
        self.recorded = 0
        """Bytes of the chunks in packs that were recorded."""

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        self.asked.set()
        await self.open.wait()
        outcomes = await super().apply(units)
        self.recorded += sum(
            entry.length
            for unit in units
            for operation in unit.operations
            if isinstance(operation, RecordPack)
            for entry in operation.entries
        )
        return outcomes


@pytest.mark.parametrize("size", [0, 1, 70_000, SMALL + 1, 5 * BLOCK + 17])
async def test_progress_tells_bytes_that_are_durable(size: int) -> None:
    data = random_bytes(size, "progress")
    catalog = await SqliteCatalog.open(None)
    await add_user(catalog, OWNER)
    gate = Gate(catalog)
    async with open_memory_vault(catalog=gate) as vault:
        told: list[int] = []

        def progress(done: int) -> None:
            told.append(done)
            assert sum(told) <= gate.recorded

        async def put() -> None:
            source = BytesSource(data)
            await vault.files.put(vault.user, at("/a"), source, size=size, progress=progress)
            assert sum(told) == size

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put)
            with anyio.move_on_after(0.2):
                await gate.asked.wait()
            assert sum(told) == 0
            gate.open.set()
        assert len(told) >= size // BLOCK
        told.clear()
        await put()  # nothing of it need be stored again
    await catalog.aclose()

from collections.abc import AsyncIterator

import pytest
from tests.contracts.catalog import CatalogContract
from tests.postgres import Postgres

from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.ports.catalog import Catalog


class TestContract(CatalogContract):
    @pytest.fixture
    async def catalog(self, database: str) -> AsyncIterator[Catalog]:
        catalog = await PostgresCatalog.open(database, create=True)
        yield catalog
        await catalog.aclose()

    @pytest.fixture
    async def empty(self, postgres: Postgres) -> AsyncIterator[Catalog]:
        with postgres.database() as url:
            catalog = await PostgresCatalog.open(url, create=True)
            yield catalog
            await catalog.aclose()

"""What every catalog must do, whatever keeps it.

A catalog's test module subclasses `CatalogContract` and supplies `catalog` and
`empty`, two that hold nothing; beyond that it tests only what no other has.
"""

import pytest
from tests.contracts.callers import Caller, add_user
from tests.contracts.catalog_accounts import AccountContract
from tests.contracts.catalog_batches import BatchContract
from tests.contracts.catalog_calls import CallContract
from tests.contracts.catalog_collections import CollectionContract
from tests.contracts.catalog_deltas import DeltaContract
from tests.contracts.catalog_placements import PlacementContract
from tests.contracts.catalog_stock import StockContract
from tests.contracts.catalog_trees import TreeContract
from tests.contracts.catalog_uploads import UploadContract

from vaultfs.ports.catalog import Catalog


class CatalogContract(
    TreeContract,
    StockContract,
    DeltaContract,
    UploadContract,
    AccountContract,
    BatchContract,
    CallContract,
    CollectionContract,
    PlacementContract,
):
    @pytest.fixture
    def catalog(self) -> Catalog:
        """Open, and holds nothing."""
        raise NotImplementedError("a catalog's tests supply their own")

    @pytest.fixture
    def empty(self) -> Catalog:
        """Another one."""
        raise NotImplementedError("a catalog's tests supply their own")

    @pytest.fixture
    async def me(self, catalog: Catalog) -> Caller:
        """The user `me` of `catalog`."""
        return Caller(catalog, await add_user(catalog, "me"))

    async def test_has_an_id_of_its_own(self, catalog: Catalog, empty: Catalog) -> None:
        assert await catalog.vault_id() != await empty.vault_id()
        assert len(await catalog.vault_id()) == 32

    async def test_a_new_catalog_holds_nothing(self, catalog: Catalog) -> None:
        assert await catalog.users() == []
        assert await catalog.packs() == []
        assert await catalog.check() == []
        stats = await catalog.stats()
        assert (stats.users, stats.folders, stats.versions, stats.logical) == (0, 0, 0, 0)

"""Bringing a lost or damaged catalog back from a backup, which any of the vault's stores may have.

The catalog knows which stores those are; without it, they are the vault's own one and all that
are named for it (`entrypoints.placing`).
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.sql import replacing
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import Corrupt, NotAVault, NotFound, VaultError
from vaultfs.domain.migrating import Settle
from vaultfs.domain.migration import Phase, Placement
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.services.budget import Budget
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.recovery import Backup, Recovery, backups_in, find_backup
from vaultfs.entrypoints.opening import catalog_file, open_database
from vaultfs.entrypoints.placing import named_stores
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.stores import remember
from vaultfs.entrypoints.vault import (
    make_folder,
    open_objects,
    open_store,
    read_marker,
    store_of,
)
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.objects import ObjectNotFound, ObjectStore, StoreError, StoreMisconfigured


@define(eq=False)
class LostVault:
    """The stores of a vault whose catalog nobody can ask."""

    where: str
    """The vault, for messages."""
    own: str = ""
    """What its own store is called."""
    owner: str = ""
    """The id of the vault, as the first of the stores says it."""
    marked: list[ObjectStore] = field(factory=list[ObjectStore])
    """Those that say they are the vault's; its own one comes first."""
    gone: dict[str, StoreError] = field(factory=dict[str, StoreError])
    """Those that are empty or, of the vault's own one, not there: it may have moved away."""
    silent: dict[str, StoreError] = field(factory=dict[str, StoreError])
    """Those that did not answer."""

    async def add(
        self,
        opening: Callable[[], Awaitable[ObjectStore]],
        name: str | None,
        stack: AsyncExitStack,
    ) -> None:
        """Look at the store that is called `name`; None: at the vault's own one."""
        try:
            store = await opening()
            stack.push_async_callback(store.aclose)
            self.own = self.own or store.name
            owner = await read_marker(store)
        except StoreError as error:
            self.own = self.own or error.backend
            missing = name is None and isinstance(error, StoreMisconfigured)
            is_gone = missing or isinstance(error, ObjectNotFound)
            (self.gone if is_gone else self.silent)[name or error.backend] = error
            return
        self.owner = self.owner or owner
        if owner == self.owner:
            self.marked.append(store)

    def check(self) -> None:
        """Raise why there is no store that is the vault's, if there is none."""
        if self.marked:
            return
        for error in (*self.silent.values(), *self.gone.values()):
            if not isinstance(error, ObjectNotFound):
                raise error
        raise NotAVault(f"there is no vault in {self.where}")

    async def backups(self) -> list[Backup]:
        """All backups in the stores that answer, oldest first; each once."""
        self.check()
        found = {each.name: each for store in self.marked for each in await backups_in(store)}
        return sorted(found.values(), key=lambda backup: backup.created)

    async def find(self, name: str | None) -> tuple[Backup, list[ObjectStore]]:
        """The backup of that name, or the newest, and the stores that have it.

        Which is the newest is not known as long as a store does not answer, nor what is nowhere.
        Raises `NotFound`, `NotAVault`, `Corrupt` for a backup of another vault, and why that
        store did not answer.
        """
        self.check()
        missing: VaultError | None = next(iter(self.silent.values()), None)
        if name is None and missing is not None:
            raise missing
        found: list[tuple[Backup, ObjectStore]] = []
        for store in self.marked:
            try:
                found.append((await find_backup(store, name), store))
            except NotFound as error:
                missing = missing or error
        if not found:
            assert missing is not None
            raise missing
        newest = max((backup for backup, _ in found), key=lambda backup: backup.created)
        if newest.vault_id != self.owner:
            raise Corrupt(f"backup {newest.name} is of another vault")
        return newest, [store for backup, store in found if backup.name == newest.name]

    async def load(self, backup: Backup, stores: list[ObjectStore], catalog: Catalog) -> None:
        """Fill the empty `catalog` from a backup that `stores` have, and close it.

        The placement is that of the backup, unless the vault has gone on since and left a store:
        then everything is where the backup is.
        """
        clock = SystemClock()
        try:
            reader = Reader(stores[0], catalog, Budget(0), anyio.CapacityLimiter(1))
            await Recovery(stores[0], catalog, reader, clock).load(backup)
            now = await catalog.placement() or Placement(0, Phase.SETTLED, self.own)
            readable = any(store.name in now.read_order for store in stores)
            if not readable or now.stores & self.gone.keys():
                await catalog.migrate(Settle(stores[0].name), UserId(0), micros(clock.now()))
        finally:
            await catalog.aclose()


@asynccontextmanager
async def _lost(
    opening: Callable[[], Awaitable[ObjectStore]], folder: Path | None, where: str
) -> AsyncGenerator[LostVault, None]:
    """The vault whose own store `opening` gives, and whose folder, if it has one, is `folder`."""
    lost = LostVault(where)
    urls = await to_thread.run_sync(named_stores, folder, os.environ)
    async with AsyncExitStack() as stack:
        await lost.add(opening, None, stack)
        for name, url in urls.items():
            await lost.add(partial(open_objects, url, name), name, stack)
        yield lost


async def backups_of(settings: Settings) -> list[Backup]:
    """All backups that the stores of a vault have, oldest first, whether it has a catalog or not.

    Raises `NotAVault`, and why no store answers if none does.
    """
    async with _lost(partial(store_of, settings), settings.folder, settings.name) as lost:
        return await lost.backups()


async def recover_catalog(
    folder: Path, name: str | None = None, *, store: str | None = None
) -> Backup:
    """Bring the catalog of the vault in `folder` back from a backup in its stores.

    `store` is the address of its own one if that is not in the folder, which may then be lost
    altogether. Takes the newest backup, or the one called `name`; a catalog that is there is set
    aside as `catalog.db.before-<backup>`, or with a number behind it. What was put after
    the backup was made is not in it; its chunks are found again by `Recovery.rebuild`,
    which is to follow. A crash leaves the old catalog or, for a moment, none: then the call
    is to be repeated. Processes that have the vault open are told to open it again. Raises
    `NotAVault`, `NotFound`, `Corrupt`, `Busy`.
    """
    opening = partial(open_store, folder) if store is None else partial(open_objects, store)
    fresh = folder / "catalog.db.new"
    async with _lost(opening, folder, store or str(folder)) as lost:
        backup, stores = await lost.find(name)
        if store is not None:
            await to_thread.run_sync(make_folder, folder)
            await to_thread.run_sync(remember, folder, store)
        await to_thread.run_sync(replacing.remove, fresh)
        try:
            await lost.load(backup, stores, await SqliteCatalog.open(fresh, create=True))
            place = catalog_file(folder)
            aside = place.with_name(f"{place.name}.before-{backup.name}")
            await to_thread.run_sync(replacing.replace, fresh, place, aside)
        except BaseException:
            replacing.remove(fresh)
            raise
        return backup


async def recover_database(settings: Settings, name: str | None = None) -> Backup:
    """Bring the catalog in a database back from a backup in its stores: see `recover_catalog`.

    The tables that are there are set aside in a schema called `before-<backup>`. A crash
    leaves the old catalog. Processes that have the vault open go on with the new one.
    """
    from vaultfs.adapters.sql.postgres_copies import FRESH, drop_fresh, replace

    assert settings.database is not None
    opening = partial(store_of, settings)
    async with _lost(opening, settings.folder, settings.store_name) as lost:
        backup, stores = await lost.find(name)
        await drop_fresh(settings.database)
        catalog = await open_database(settings.database, create=True, schema=FRESH)
        await lost.load(backup, stores, catalog)
        await replace(settings.database, f"before-{backup.name}")
        return backup

"""The composition root: settings in, a working `Vault` out.

A vault folder:

    catalog.db      nodes, versions, packs, the chunk index (SQLite)
    objects/        the object store: packs, backups, the marker
    store.url       instead of `objects`: where else the store is

Where many servers share a vault, the catalog is a PostgreSQL database, and the object
store a folder that all of them see, or a bucket.

The marker object holds the id of the vault, as the catalog does, so that neither is
ever used with another's.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import define, evolve, frozen

from vaultfs.adapters.sql import replacing
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.system import SystemClock
from vaultfs.adapters.wrappers.late import LateObjectStore
from vaultfs.adapters.wrappers.placed import PlacedObjectStore
from vaultfs.domain.errors import Corrupt, Exists, NotAVault, Unsupported
from vaultfs.domain.nodes import User, UserId, micros
from vaultfs.domain.operations import AddUser, Refused, Unit
from vaultfs.domain.services.budget import Budget
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.ingest import Ingest
from vaultfs.domain.services.intake import Intake
from vaultfs.domain.services.integrity import Integrity
from vaultfs.domain.services.packer import Packer
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.recovery import Recovery
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.transfer import Transfer
from vaultfs.entrypoints.opening import (
    OWNER,
    catalog_file,
    catalog_of,
    has_catalog,
    has_objects,
)
from vaultfs.entrypoints.placing import VaultStores, alone, kept_already, placed_around
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.stores import ELSEWHERE, folder_of, remember, remembered
from vaultfs.entrypoints.stores import open_store as open_at
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import (
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    StoreMisconfigured,
    WrongStore,
)

if TYPE_CHECKING:  # most commands need no locks
    from vaultfs.domain.locknodes import Presented
    from vaultfs.domain.services.batches import Batches
    from vaultfs.domain.services.collector import Collector
    from vaultfs.domain.services.deltas import Deltas
    from vaultfs.domain.services.locks import Locks
    from vaultfs.domain.services.migrator import Migrator
    from vaultfs.domain.services.scrub import Scrubber
    from vaultfs.domain.services.upkeep import Upkeep
    from vaultfs.domain.services.uploads import Uploads

MARKER: Final = "marker/vault.json"
FORMAT: Final = 1


@define(eq=False)
class LateLocks:
    """The locks of a vault, made when somebody asks for them first."""

    catalog: Catalog
    clock: Clock
    _tasks: TaskGroup
    _locks: "Locks | None" = None

    @property
    def locks(self) -> "Locks":
        """The one object of them."""
        if self._locks is None:
            from vaultfs.domain.services.locks import Locks

            self._locks = Locks(self.catalog.lock_store(), self.clock, self._tasks)
            self._locks.start()
        return self._locks


@asynccontextmanager
async def late_locks(catalog: Catalog, clock: Clock) -> AsyncGenerator[LateLocks, None]:
    """The locks that `catalog` keeps, as long as it is open."""
    async with task_group() as tasks:
        try:
            yield LateLocks(catalog, clock, tasks)
        finally:
            tasks.cancel_scope.cancel()


@define(eq=False)
class LateUploads:
    """The upload sessions of a vault, made when somebody asks for them first."""

    _files: Files
    _uploads: "Uploads | None" = None

    @property
    def uploads(self) -> "Uploads":
        """The one object of them."""
        if self._uploads is None:
            from vaultfs.domain.services.uploads import Uploads

            self._uploads = Uploads(self._files)
        return self._uploads


@define(eq=False)
class LateDeltas:
    """The deltas of a vault, made when somebody asks for them first."""

    _files: Files
    _workers: anyio.CapacityLimiter
    _deltas: "Deltas | None" = None

    @property
    def deltas(self) -> "Deltas":
        """The one object of them."""
        if self._deltas is None:
            from vaultfs.domain.services.deltas import Deltas
            from vaultfs.domain.services.differ import Differ
            from vaultfs.domain.services.digests import Digests

            files = self._files
            digests = Digests(files.catalog, files.reader, files.clock)
            self._deltas = Deltas(files, Differ(files.reader, self._workers), digests)
        return self._deltas


@frozen
class Vault:
    """An open vault: the services, and the ports for those who compose their own."""

    settings: Settings
    objects: PlacedObjectStore
    catalog: Catalog
    clock: Clock
    budget: Budget
    workers: anyio.CapacityLimiter
    files: Files
    reader: Reader
    transfer: Transfer
    intake: Intake
    integrity: Integrity
    recovery: Recovery
    late_locks: LateLocks
    late_uploads: LateUploads
    late_deltas: LateDeltas
    user: User
    """The user of an embedded vault, and the first one of a served one."""

    @property
    def locks(self) -> "Locks":
        """Locks on paths, for all tasks of the process."""
        return self.late_locks.locks

    @property
    def uploads(self) -> "Uploads":
        """Upload sessions, for all tasks of the process."""
        return self.late_uploads.uploads

    @property
    def deltas(self) -> "Deltas":
        """Deltas between versions, for all tasks of the process."""
        return self.late_deltas.deltas

    def batches(self, files: Files | None = None) -> "Batches":
        """Batches of changes; they come with the locks that `files` present."""
        from vaultfs.domain.services.batches import Batches

        return Batches(files or self.files, lambda: self.late_locks.locks)

    def upkeep(self) -> "Upkeep":
        """What is to be done from time to time."""
        from vaultfs.domain.services.linking import Linking
        from vaultfs.domain.services.upkeep import Upkeep

        return Upkeep(
            self.files,
            self.catalog,
            self.recovery,
            self.uploads,
            self.deltas.digests,
            Linking(self.deltas),
            self.collector(),
            self.scrubber(),
            self.clock,
        )

    def collector(self) -> "Collector":
        """What lets go of contents that nothing needs any more."""
        from vaultfs.domain.services.collector import Collector

        return Collector(
            *(self.objects, self.catalog, self.files.packer, self.reader, self.clock, self.workers)
        )

    def scrubber(self) -> "Scrubber":
        """What reads all stored bytes again, in turn."""
        from vaultfs.domain.services.scrub import Scrubber

        return Scrubber(self.integrity, self.clock)

    async def migrator(self, keep: Callable[[], None] = kept_already) -> "Migrator":
        """What moves the vault to another store; `keep` has that store found later."""
        from vaultfs.domain.services.migrator import Migrator

        vault_id = await self.catalog.vault_id()
        stores = VaultStores(self.objects, vault_id, self.objects.placement.source, keep)
        return Migrator(stores, self.catalog, self.clock, self.workers)

    def presenting(self, *presented: "Presented") -> "Vault":
        """The same vault, for a caller whose changes come with these locks."""
        files = self.files.presenting(*presented)
        return evolve(self, files=files, transfer=evolve(self.transfer, files=files))


async def open_store(folder: Path) -> ObjectStore:
    """The object store of the vault in `folder`, with all that is around it."""
    where = await to_thread.run_sync(remembered, folder)
    return await open_objects(where or folder / "objects")


async def store_of(settings: Settings) -> ObjectStore:
    """The object store of the vault that `settings` name, with all that is around it."""
    where = settings.store or settings.objects
    assert where is not None
    return await open_objects(where)


async def open_objects(where: Path | str, name: str | None = None) -> ObjectStore:
    """The object store in a folder, or at an address, where it may have a name."""
    from vaultfs.adapters.wrappers.retrying import RetryingObjectStore

    if isinstance(where, str):
        return RetryingObjectStore(await open_at(where, name))
    from vaultfs.adapters.local import LocalObjectStore

    return RetryingObjectStore(await LocalObjectStore.open(where))


async def init_vault(folder: Path, store: str | None = None) -> str:
    """Make a vault in `folder`, which has to be empty or not to exist; its id.

    Its objects are in the folder, or in the empty store at the address `store`. A crash
    leaves a folder in which the same call goes on. Raises `Exists` where a vault or anything
    else is, and `WrongStore` for the store of another vault.
    """
    path = anyio.Path(folder)
    if await path.exists() and not await path.is_dir():
        raise Exists(f"{folder} is a file: name a folder that is empty or not there yet")
    if await anyio.Path(catalog_file(folder)).exists():
        await _refuse_second_init(folder)
    elif await path.exists() and not await to_thread.run_sync(_is_free, folder):
        raise Exists(f"{folder} is not empty: name a folder that is empty or not there yet")
    elsewhere = store or await to_thread.run_sync(remembered, folder)
    if elsewhere is None:
        await to_thread.run_sync(make_folder, folder)
        await (path / "objects").mkdir(exist_ok=True)
        objects = await open_store(folder)
    else:
        objects = await _claimed(folder, elsewhere)
    try:
        catalog = await SqliteCatalog.open(catalog_file(folder), create=True)
        try:
            await objects.probe()
            await _add_owner(catalog, SystemClock())
            await write_marker(objects, await catalog.vault_id())
            return await catalog.vault_id()
        finally:
            await catalog.aclose()
    finally:
        await objects.aclose()


async def _claimed(folder: Path, url: str) -> ObjectStore:
    """The store at `url`, seen to be nobody's, for the vault to be made in `folder`."""
    objects = await open_objects(url)
    try:
        if not await anyio.Path(catalog_file(folder)).exists():
            await _see_that_it_is_free(objects, url)
        await to_thread.run_sync(make_folder, folder)
        await to_thread.run_sync(remember, folder, url)
    except BaseException:
        await objects.aclose()
        raise
    return objects


async def _see_that_it_is_free(objects: ObjectStore, url: str) -> None:
    if (owner := await _owner_of(objects)) is not None:
        raise WrongStore(f"belongs to vault {owner}", backend=objects.name, operation="init")
    if not await _is_empty(objects):
        raise Exists(f"{url} is not empty: name a bucket or a prefix with nothing in it")


async def _is_empty(objects: ObjectStore) -> bool:
    async with aclosing(objects.list()) as found:
        return await anext(found, None) is None


async def init_database(settings: Settings, *, exist_ok: bool = False) -> str:
    """Make a vault of an empty database and an empty store; its id.

    Several may do so at once, and a crash leaves what the same call goes on with. Raises
    `Exists` where a vault is already, unless `exist_ok`; `WrongStore` or `NotAVault` where
    database and store do not belong together.
    """
    if settings.objects is not None:
        await to_thread.run_sync(make_folder, settings.objects)
    store = await store_of(settings)
    try:
        free = await _holds_nothing(settings, store)
        marked = await _owner_of(store)
        catalog = await _database_for(settings, marked, free=free)
        try:
            vault_id = await catalog.vault_id()
            placement = await catalog.placement()
            if placement is not None and store.name not in placement.stores:
                if not exist_ok:
                    raise Exists(f"{settings.name} is a vault already")
                return vault_id  # which moved away from that store
            if marked is not None or await catalog.packs(limit=1):
                await check_marker(store, vault_id)
                if not exist_ok:
                    raise Exists(f"{settings.name} is a vault already")
                return vault_id
            await store.probe()
            await _add_owner(catalog, SystemClock())
            await write_marker(store, vault_id)
            return vault_id
        finally:
            await catalog.aclose()
    finally:
        await store.aclose()


async def _database_for(settings: Settings, marked: str | None, *, free: bool) -> Catalog:
    """The catalog that goes with a store; made if there is none, and the store is nobody's."""
    try:
        return await catalog_of(settings)
    except NotAVault as error:
        if marked is not None:
            raise NotAVault(
                f"{settings.store_name} is the store of vault {marked}, and {settings.name} has no"
                " catalog: `vaultfs rebuild --from-backup latest` brings it back"
            ) from error
        if not free:
            raise Exists(
                f"{settings.store_name} is not empty: name a folder that is empty or not there"
                " yet, or a bucket or prefix with nothing in it"
            ) from error
    return await catalog_of(settings, create=True)


async def _owner_of(store: ObjectStore) -> str | None:
    try:
        return await read_marker(store)
    except ObjectNotFound:
        return None


async def _holds_nothing(settings: Settings, store: ObjectStore) -> bool:
    if settings.objects is None:
        return await _is_empty(store)
    names = [each.name async for each in anyio.Path(settings.objects).iterdir()]
    return all(name.startswith(".") for name in names)


async def have_vault(settings: Settings) -> None:
    """Make the vault that `settings` name, unless it, or a part of it, is there."""
    if settings.database is not None:
        await init_database(settings, exist_ok=True)
    elif not await has_catalog(settings) and not await has_objects(settings.home):
        await init_vault(settings.home, settings.store)


def make_folder(folder: Path) -> None:
    """Have `folder` and those above it, and have their names on the disk."""
    folder = folder.absolute()
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        replacing.flush_folder(folder.parent)


def make_folder_of(url: str) -> None:
    """Have the folder that a store's address names, if the one above it is there."""
    folder = folder_of(url)
    if folder is not None and folder.parent.is_dir():
        make_folder(folder)


def _is_free(folder: Path) -> bool:
    """Whether nothing is in `folder` but what an interrupted `init` left in it."""
    objects = folder / "objects"
    started = {objects, *(folder / f"{ELSEWHERE}{end}" for end in ("", ".new"))}
    held = objects.iterdir() if objects.is_dir() else ()
    # An open store has a folder of its own, whose name begins with a dot.
    return set(folder.iterdir()) <= started and all(each.name.startswith(".") for each in held)


async def _refuse_second_init(folder: Path) -> None:
    store = await open_store(folder)
    try:
        await store.head(MARKER)
    except ObjectNotFound:
        return
    finally:
        await store.aclose()
    raise Exists(f"{folder} is a vault already")


async def _add_owner(catalog: Catalog, clock: Clock) -> None:
    unit = Unit(UserId(0), micros(clock.now()), clock.new_id(), (AddUser(OWNER),))
    [outcome] = await catalog.apply([unit])
    if isinstance(outcome, Refused) and not isinstance(outcome.error, Exists):
        raise outcome.error


async def write_marker(store: ObjectStore, vault_id: str) -> None:
    """Say in the store whose it is. Raises `WrongStore` if it says another vault already."""
    data = json.dumps({"format": FORMAT, "vault": vault_id}).encode()
    try:
        await store.put(MARKER, data)
    except ObjectExists:
        await check_marker(store, vault_id)


async def read_marker(store: ObjectStore) -> str:
    """The id of the vault whose store this is. Raises `ObjectNotFound`, `Corrupt`."""
    try:
        value = json.loads(await store.get(MARKER))
        form, vault_id = int(value["format"]), str(value["vault"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"store {store.name}: the marker object is damaged") from error
    if form > FORMAT:
        raise Unsupported(f"a newer release made this vault (format {form}): upgrade vaultfs")
    return vault_id


async def check_marker(store: ObjectStore, vault_id: str) -> None:
    """Raises `WrongStore` unless the store is that of the vault `vault_id`."""
    try:
        found = await read_marker(store)
    except ObjectNotFound:
        raise WrongStore(
            "has no marker object: it is no store of a vault",
            backend=store.name,
            operation="open",
        ) from None
    if found != vault_id:
        raise WrongStore(
            f"belongs to vault {found}, and the catalog to vault {vault_id}",
            backend=store.name,
            operation="open",
        )


@asynccontextmanager
async def open_vault(settings: Settings) -> AsyncGenerator[Vault, None]:
    """The vault that `settings` name; closed, with everything durable, at the end.

    Raises `NotAVault`, `Unsupported` (a newer release made it) or `WrongStore`.
    """
    async with AsyncExitStack() as stack:
        catalog = await catalog_of(settings)
        stack.push_async_callback(catalog.aclose)
        try:
            own = await store_of(settings)
        except StoreMisconfigured as error:  # which it may have moved away from
            own = LateObjectStore(error.backend, partial(store_of, settings))
        stack.push_async_callback(own.aclose)
        store = await placed_around(own, settings.folder, catalog, stack)
        async with compose(settings, store, catalog, SystemClock()) as vault:
            yield vault


@asynccontextmanager
async def compose(
    settings: Settings, store: ObjectStore, catalog: Catalog, clock: Clock
) -> AsyncGenerator[Vault, None]:
    """A vault of these parts, which stay the caller's to close."""
    if not isinstance(store, PlacedObjectStore):
        store = await alone(store, catalog)
    user = await catalog.user(OWNER)
    budget = Budget(settings.budget)
    workers = anyio.CapacityLimiter(settings.workers)
    async with late_locks(catalog, clock) as locks, task_group() as tasks:
        packer = Packer(store, catalog, clock, budget, workers, tasks)
        ingest = Ingest(catalog, packer, budget, workers)
        reader = Reader(store, catalog, budget, workers)
        files = Files(catalog, packer, ingest, reader, clock, settings.presented)
        transfer = Transfer(files, reader, budget)
        try:
            yield Vault(
                settings,
                store,
                catalog,
                clock,
                budget,
                workers,
                files,
                reader,
                transfer,
                Intake(files, budget, workers),
                Integrity(store, catalog, reader, workers),
                Recovery(store, catalog, reader, clock),
                locks,
                LateUploads(files),
                LateDeltas(files, workers),
                user,
            )
        finally:
            packer.flush()

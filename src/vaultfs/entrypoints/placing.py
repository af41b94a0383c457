"""The stores of a vault that has, or is to have, more than one: opened by their names.

Which is used for what stands in the catalog, which knows names alone. Where they are say
`VAULTFS_STORES` (`NAME=URL`, separated by spaces) and, in the folder of a vault that has one,
the file `stores`. The store that a vault has without any of that is called by its kind.
"""

import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anyio import to_thread
from attrs import define

from vaultfs.adapters.wrappers.late import LateObjectStore
from vaultfs.adapters.wrappers.placed import PlacedObjectStore
from vaultfs.domain.errors import InvalidField
from vaultfs.domain.migration import Phase, Placement
from vaultfs.entrypoints.stores import OTHERS, scheme_of
from vaultfs.ports.objects import StoreError, StoreMisconfigured, WrongStore
from vaultfs.ports.stores import Shadow, Stores

if TYPE_CHECKING:
    from vaultfs.ports.catalog import Catalog
    from vaultfs.ports.objects import ObjectStore

VARIABLE: Final = "VAULTFS_STORES"
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


def parse_store(text: str) -> tuple[str, str]:
    """A store as it is named: `NAME=URL`. Raises `InvalidField`, `Unsupported`."""
    name, equals, url = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise InvalidField(f"{text!r}: a store is named NAME=URL, as in archive=s3://bucket/prefix")
    if url != "".join(url.split()):
        raise InvalidField(f"{text!r}: a space in an address is written %20")
    scheme_of(url)
    return name, url


def named_stores(folder: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The addresses of the stores that are named for a vault, by name."""
    found: dict[str, str] = {}
    if folder is not None and (folder / OTHERS).is_file():
        found.update(map(parse_store, (folder / OTHERS).read_text().split()))
    found.update(map(parse_store, environment.get(VARIABLE, "").split()))
    return found


def see_that_it_is_free(own: str, names: Collection[str]) -> None:
    """Raises `InvalidField` if `own`, as the vault's own store is called, is among `names`."""
    if own in names:
        raise InvalidField(f"{own} is what the vault's own store is called: choose another")


def name_store(folder: Path, name: str, url: str) -> None:
    """Keep in the folder of a vault where a store is; durable afterwards."""
    kept = named_stores(folder, {})
    _see_that_it_is_no_other(kept, name, url)
    kept[name] = url
    fresh = folder / f"{OTHERS}.new"
    with fresh.open("w") as file:
        file.write("".join(f"{each}={where}\n" for each, where in kept.items()))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / OTHERS)


def _see_that_it_is_no_other(kept: Mapping[str, str], name: str, url: str) -> None:
    if kept.get(name, url) != url:
        raise InvalidField(f"{name} is {kept[name]} already: choose another name")


@asynccontextmanager
async def naming(
    placed: PlacedObjectStore, folder: Path, name: str, url: str
) -> AsyncGenerator[Callable[[], None], None]:
    """Have the store at `url` among those of `placed`, as `name`; what keeps that in `folder`.

    The last of the folders that it is in is made.

    It is to be kept when nothing can be wrong with the store any more, and before the catalog
    speaks of it: then whoever reads the name there finds it. Kept earlier, a name whose store is
    refused would be in use for ever, for a server that has opened the one does not look for
    another. Raises `InvalidField` for a name that is in use, and what the store does not open with.
    """
    from vaultfs.entrypoints.vault import make_folder_of, open_objects

    kept = await to_thread.run_sync(named_stores, folder, os.environ)
    _see_that_it_is_no_other(kept, name, url)
    if name not in kept:
        see_that_it_is_free(name, placed.stores)
    async with AsyncExitStack() as stack:
        if name not in placed.stores:
            await to_thread.run_sync(make_folder_of, url)
            placed.stores[name] = await open_objects(url, name)
            stack.push_async_callback(placed.stores[name].aclose)
        yield partial(name_store, folder, name, url)


def kept_already() -> None:
    """What keeps where a store is that was named before."""


@define(eq=False)
class VaultStores(Stores):
    """The stores of an open vault."""

    placed: PlacedObjectStore
    vault_id: str
    _primary: str
    _keep: Callable[[], None] = kept_already
    """Keeps where the store is that is claimed."""

    @property
    def primary(self) -> str:
        return self._primary

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.placed.stores.keys() - self.placed.foreign))

    def store(self, name: str) -> "ObjectStore":
        found = self.placed.stores.get(name)
        if found is None:
            raise StoreMisconfigured(_nowhere(name), backend=name, operation="open")
        return found

    async def find(self, name: str) -> "ObjectStore":
        found = await self.placed.find(name)
        if found is None:
            raise InvalidField(_nowhere(name))
        return found

    async def claim(self, name: str) -> None:
        from vaultfs.entrypoints.vault import write_marker

        await write_marker(self.store(name), self.vault_id)
        await to_thread.run_sync(self._keep)

    def shadows(self) -> tuple[Shadow, ...]:
        found = tuple(self.placed.shadows)
        self.placed.shadows.clear()
        return found

    async def refresh(self) -> None:
        await self.placed.refresh()


def _nowhere(name: str) -> str:
    return f"no store is called {name}: name it with {VARIABLE}='{name}=URL'"


def _loading(catalog: "Catalog", primary: str) -> Callable[[], Awaitable[Placement]]:
    """Asks for the placement; where there never was one, everything is in `primary`."""
    first = Placement(0, Phase.SETTLED, primary)

    async def load() -> Placement:
        return await catalog.placement() or first

    return load


async def alone(store: "ObjectStore", catalog: "Catalog") -> PlacedObjectStore:
    """The stores of a vault that has one, and is told of no other."""
    load = _loading(catalog, store.name)
    return PlacedObjectStore({store.name: store}, await load(), load)


async def _see(catalog: "Catalog", store: "ObjectStore") -> "ObjectStore":
    """`store`, seen to be the vault's; before it is used first, if it does not answer now."""
    try:
        return await _seen(catalog, store)
    except WrongStore:
        raise
    except StoreError:
        return LateObjectStore(store.name, partial(_seen, catalog, store))


async def _seen(catalog: "Catalog", store: "ObjectStore") -> "ObjectStore":
    from vaultfs.entrypoints.vault import check_marker

    await check_marker(store, await catalog.vault_id())
    return store


async def placed_around(
    own: "ObjectStore", folder: Path | None, catalog: "Catalog", stack: AsyncExitStack
) -> PlacedObjectStore:
    """The stores of a vault whose own one is `own`, and whose folder, if it has one, `folder`.

    What is named in the folder later is found when it is needed. One of the stores that are read
    has to answer; another that does not is looked at again when it is used. Raises
    `StoreMisconfigured` for a store that the catalog names and nobody else, `WrongStore` for one
    that is not the vault's, and what kept all of them from answering.
    """
    from vaultfs.entrypoints.vault import open_objects

    primary = own.name
    load = _loading(catalog, primary)
    first = await load()

    async def opening(name: str, url: str) -> "ObjectStore":
        store = await open_objects(url, name)
        stack.push_async_callback(store.aclose)
        return store

    async def named() -> dict[str, str]:
        urls = await to_thread.run_sync(named_stores, folder, os.environ)
        see_that_it_is_free(primary, urls)
        return urls

    async def find(name: str) -> "ObjectStore | None":
        url = (await named()).get(name)
        return None if url is None else await opening(name, url)

    stores: dict[str, ObjectStore] = {primary: own}
    for name, url in (await named()).items():
        try:
            stores[name] = await opening(name, url)
        except StoreError:
            if name in first.stores:  # else nothing is in it: whoever wants to move there is told
                stores[name] = LateObjectStore(name, partial(opening, name, url))
    placed = PlacedObjectStore(stores, first, load, find, partial(_see, catalog))
    await _see_readable(placed, catalog)
    return placed


async def _see_readable(placed: PlacedObjectStore, catalog: "Catalog") -> None:
    """See that a store that is read answers. Raises why the first of them does not, if none does.

    The others need not: else nobody could go back from a new store that is down.
    """
    names = placed.placement.read_order
    for name in names:
        placed.stores[name] = await _see(catalog, placed.stores[name])
    if all(isinstance(placed.stores[name], LateObjectStore) for name in names):
        await _seen(catalog, placed.stores[names[0]])

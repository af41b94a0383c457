"""Opening the catalog of a vault: all that a look at it takes."""

import re
from pathlib import Path
from shlex import quote
from typing import Final

import anyio

from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.errors import NotAVault, Unsupported
from vaultfs.entrypoints.settings import CATALOG, Settings
from vaultfs.entrypoints.stores import ELSEWHERE, OTHERS
from vaultfs.ports.catalog import Catalog

_HOST_AND_PORT: Final = re.compile(r"[\w.-]+:\d{1,5}")
OWNER: Final = "me"
"""The user of an embedded vault, and the first one of a served one."""


def catalog_file(folder: Path) -> Path:
    """Where the catalog of the vault in `folder` is."""
    return folder / CATALOG


async def open_catalog(folder: Path) -> SqliteCatalog:
    """The catalog of the vault in `folder`. Raises `NotAVault` with what to do."""
    if not await anyio.Path(catalog_file(folder)).is_file():
        if await has_objects(folder):
            raise NotAVault(
                f"{folder} has lost its catalog: `vaultfs rebuild` makes it anew from a backup"
            )
        if await anyio.Path(folder).is_file():
            raise NotAVault(f"{folder} is a file: a vault is a folder")
        init = f"vaultfs init {quote(str(folder))}"
        raise NotAVault(
            f"there is no vault in {folder}: make one with `{init}`{_if_server(str(folder))}"
        )
    return await SqliteCatalog.open(catalog_file(folder))


def _if_server(name: str) -> str:
    """How to name a server, if `name` looks like one."""
    looks = _HOST_AND_PORT.fullmatch(name)
    return f"; if it is a server: --vault http://{name}, or https://" if looks else ""


async def has_objects(folder: Path) -> bool:
    """Whether there is, or is said to be, a store of the vault in `folder`."""
    where = anyio.Path(folder)
    if await (where / "objects").is_dir():
        return True
    return await (where / ELSEWHERE).is_file() or await (where / OTHERS).is_file()


async def catalog_of(settings: Settings, *, create: bool = False) -> Catalog:
    """The catalog of the vault that `settings` name.

    One in a database is made if need be and `create` says so. Raises `NotAVault`,
    `Unsupported` (a newer release made it, or what it takes is not installed) and
    `CatalogUnavailable`.
    """
    if settings.database is None:
        return await open_catalog(settings.home)
    return await open_database(settings.database, create=create)


async def has_catalog(settings: Settings) -> bool:
    """Whether there is a catalog, good or not, where `settings` say."""
    if settings.database is None:
        return await anyio.Path(catalog_file(settings.home)).exists()
    try:
        catalog = await catalog_of(settings)
    except NotAVault:
        return False
    await catalog.aclose()
    return True


async def open_database(url: str, *, create: bool = False, schema: str | None = None) -> Catalog:
    """The catalog in a PostgreSQL database: see `PostgresCatalog.open`."""
    try:
        from vaultfs.adapters.sql.postgres import PostgresCatalog
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise Unsupported("postgresql:// needs: pip install 'vaultfs[postgres]'") from error
    return await PostgresCatalog.open(url, create=create, schema=schema)

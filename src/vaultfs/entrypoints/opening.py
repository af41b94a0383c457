"""Opening the catalog of a vault in a folder: all that a look at it takes."""

from pathlib import Path
from typing import Final

import anyio

from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.errors import NotAVault

OWNER: Final = "me"
"""The user of an embedded vault."""


def catalog_file(folder: Path) -> Path:
    """Where the catalog of the vault in `folder` is."""
    return folder / "catalog.db"


async def open_catalog(folder: Path) -> SqliteCatalog:
    """The catalog of the vault in `folder`. Raises `NotAVault` with what to do."""
    if not await anyio.Path(catalog_file(folder)).is_file():
        if await anyio.Path(folder / "objects").is_dir():
            raise NotAVault(
                f"{folder} has lost its catalog: `vaultfs rebuild` makes it anew from a backup"
            )
        raise NotAVault(f"there is no vault in {folder}: make one with `vaultfs init {folder}`")
    return await SqliteCatalog.open(catalog_file(folder))

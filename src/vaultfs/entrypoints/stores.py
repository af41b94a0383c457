"""Object stores by their addresses: for each scheme, what opens it.

A vault in a folder has its objects there too, unless a file in it, `store.url`, says where
else. An address holds no secret: see the adapter for where credentials come from.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from vaultfs.domain.errors import InvalidField, Unsupported
from vaultfs.entrypoints.configuration import without_password

if TYPE_CHECKING:
    from vaultfs.ports.objects import ObjectStore

ELSEWHERE: Final = "store.url"
OTHERS: Final = "stores"
"""The file in which a vault's folder names stores that it moves to."""


async def _open_file(url: str, name: str | None) -> "ObjectStore":
    from vaultfs.adapters.local import LocalObjectStore

    folder = folder_of(url)
    assert folder is not None
    return await LocalObjectStore.open(folder, name or "local")


async def _open_s3(url: str, name: str | None) -> "ObjectStore":
    try:
        from vaultfs.adapters.s3 import open_s3
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"aiobotocore", "botocore"}:
            raise
        raise Unsupported("s3:// needs: pip install 'vaultfs[s3]'") from error
    return await open_s3(url, name or "s3")


async def _open_azure(url: str, name: str | None) -> "ObjectStore":
    from vaultfs.adapters.azure import open_azure

    return open_azure(url, name or "azure")


async def _open_gcs(url: str, name: str | None) -> "ObjectStore":
    from vaultfs.adapters.gcs import open_gcs

    return open_gcs(url, name or "gcs")


OPENERS: Final[dict[str, Callable[[str, str | None], Awaitable["ObjectStore"]]]] = {
    "file": _open_file,
    "s3": _open_s3,
    "azure": _open_azure,
    "gs": _open_gcs,
}


async def open_store(url: str, name: str | None = None) -> "ObjectStore":
    """The store at `url`, which has to be there; called by its kind unless it has a name.

    Raises `InvalidField` and `Unsupported` for an address that is none here, and what
    opening it raises.
    """
    return await OPENERS[scheme_of(url)](url, name)


def scheme_of(url: str) -> str:
    """The scheme of a store's address. Raises `Unsupported` for one that is not known."""
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in OPENERS:
        known = ", ".join(f"{name}://" for name in OPENERS)
        raise Unsupported(f"store {scheme if colon else url}: this release knows {known}")
    return scheme


def folder_of(url: str) -> Path | None:
    """The folder that a store's address names; None for a store that is in none."""
    if scheme_of(url) != "file":
        return None
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise InvalidField(f"store {url}: a folder is written file:///FOLDER, from / on")
    return Path(unquote(parts.path))


def remembered(folder: Path) -> str | None:
    """Where the vault in `folder` has its objects, if not there."""
    try:
        return (folder / ELSEWHERE).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def remember(folder: Path, url: str) -> None:
    """Say in `folder` that the objects of its vault are at `url`; durable afterwards."""
    fresh = folder / f"{ELSEWHERE}.new"
    with fresh.open("w") as file:
        file.write(f"{url}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / ELSEWHERE)


def check_remembered(folder: Path, url: str, *, catalog: Path) -> None:
    """Raise `InvalidField` if the vault in `folder` has its objects elsewhere than at `url`."""
    shown = without_password(url)
    if folder_of(url) is not None:
        raise InvalidField(
            f"--store {shown}: a vault in a folder has its objects there or in another kind of"
            " store; beside a --database, a folder will do"
        )
    found = remembered(folder)
    if found is None and catalog.exists():
        raise InvalidField(f"--store {shown}: the vault in {folder} has its objects there")
    if found not in {None, url}:
        raise InvalidField(f"--store {shown}: the vault in {folder} has its objects in {found}")

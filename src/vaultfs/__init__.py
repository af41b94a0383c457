"""VaultFS: a self-hosted, versioned, deduplicating file vault.

async with vaultfs.open("vault", create=True) as vault:
    await vault.put("/hello.txt", b"hello")
    assert await vault.get("/hello.txt") == b"hello"

`connect` is the same for a vault behind a server; `open_sync` and `connect_sync` are for
plain code. What can go wrong is a `VaultError`.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from os import PathLike
from typing import TYPE_CHECKING

from vaultfs._version import __version__
from vaultfs.domain.errors import VaultError

if TYPE_CHECKING:
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.entrypoints.sdk import Vault
    from vaultfs.entrypoints.sync import SyncRemoteVault, SyncVault

__all__ = ["VaultError", "__version__", "connect", "connect_sync", "open", "open_sync"]


def open(  # noqa: A001 the name that users expect, and only ever used as vaultfs.open
    folder: str | PathLike[str], *, create: bool = False
) -> "AbstractAsyncContextManager[Vault]":
    """The vault in `folder`, for `async with`; made first if `create` and there is none.

    Raises `NotAVault`, `Unsupported` (a newer release made it), `WrongStore`, or `InvalidField`
    for the address of a server, which is for `connect`.
    """
    from vaultfs.entrypoints.sdk import open_client

    return open_client(folder, create=create)


def connect(
    address: str, *, token: str | None = None
) -> "AbstractAsyncContextManager[RemoteVault]":
    """The vault that the server at `address` serves, for `async with`.

    `token` is that of a user; without one `VAULTFS_TOKEN` is taken, or what `vaultfs login`
    has stored. Raises `NotAuthenticated` or `ServerError`.
    """
    from vaultfs.entrypoints.client import connect

    return connect(address, token=token)


def open_sync(
    folder: str | PathLike[str], *, create: bool = False
) -> "AbstractContextManager[SyncVault]":
    """As `open`, for plain `with`."""
    from vaultfs.entrypoints.sync import open_sync

    return open_sync(folder, create=create)


def connect_sync(
    address: str, *, token: str | None = None
) -> "AbstractContextManager[SyncRemoteVault]":
    """As `connect`, for plain `with`."""
    from vaultfs.entrypoints.sync import connect_sync

    return connect_sync(address, token=token)

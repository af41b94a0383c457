"""Upload sessions of a server, to look at and to end."""

from urllib.parse import quote

from vaultfs.domain.names import parse_path
from vaultfs.domain.nodes import NodeId, TreeId, UserId, VersionId, micros
from vaultfs.domain.uploads import IDLE_US, Upload, UploadState
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.entrypoints.http import wire


async def open_uploads(vault: RemoteVault) -> list[Upload]:
    """The sessions that can be gone on with, by id."""
    found: list[Upload] = []
    async for page in vault.pages(vault.calls.url("uploads"), wire.UploadList):
        found += map(_upload, page.entries)
    return found


async def abort_upload(vault: RemoteVault, number: str) -> None:
    """Give a session up. Raises `NotFound`, `UploadGone`, `UploadExpired`."""
    url = vault.calls.url(f"uploads/{quote(number, safe='')}")
    await vault.calls.ask("DELETE", url, headers={"Tus-Resumable": "1.0.0"})


def _upload(told: wire.UploadOut) -> Upload:
    return Upload(
        told.id,
        TreeId(0),
        UserId(0),
        None if told.path is None else parse_path(told.path),
        UploadState(told.state),
        0,
        told.size,
        told.offset,
        0,
        "",
        micros(told.created),
        micros(told.expires) - IDLE_US,  # which is when it was last appended to, or later
        None if told.node is None else NodeId(told.node),
        None if told.version is None else VersionId(told.version),
    )

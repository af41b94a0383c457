"""Which status stands for which error: one table, and nothing that only a server needs."""

from typing import Final

from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.domain.lockitems import path_of
from vaultfs.domain.locknodes import Blocker, Link
from vaultfs.ports.objects import OutOfSpace, StoreError

CHECKSUM_MISMATCH: Final = 460
"""A status of tus alone."""
STATUSES: Final[tuple[tuple[type, int], ...]] = (
    (errors.NotAuthenticated, 401),
    (errors.RateLimited, 429),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.InvalidName, 400),
    (errors.TooSlow, 408),
    (errors.KeyReused, 422),
    (errors.WrongMedia, 415),
    (errors.InvalidField, 400),
    (errors.VersionMismatch, 412),
    (errors.UploadGone, 410),
    (errors.CursorReset, 410),
    (errors.ChecksumMismatch, CHECKSUM_MISMATCH),
    (errors.DependencyFailed, 424),
    (errors.Conflict, 409),
    (errors.TooLarge, 413),
    (errors.QuotaExceeded, 507),
    (errors.Unsupported, 501),
    (errors.Busy, 503),
    (errors.Blocking, 423),
    (errors.LeaseExpired, 410),
    (errors.StaleToken, 412),
    (errors.LockError, 409),
    (OutOfSpace, 507),
    (StoreError, 503),
    (errors.CatalogUnavailable, 503),
    (errors.OutcomeUnknown, 503),
    (errors.Corrupt, 500),
    (errors.NotAVault, 500),
)
"""The first class that fits decides."""


def status_of(error: VaultError) -> int:
    """The status for `error`."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def holder_out(blocker: Blocker) -> dict[str, str]:
    """Who holds a lock, or waits for it."""
    return {
        "owner": blocker.owner,
        "path": path_of(blocker.resource),
        "mode": blocker.mode.name,
        "does": "waits" if blocker.waits else "holds",
    }


def link_out(link: Link) -> dict[str, str]:
    """Who waits for whom."""
    path, mode = path_of(link.resource), link.wanted.name
    return {"owner": link.owner, "path": path, "mode": mode, "holder": link.holder}

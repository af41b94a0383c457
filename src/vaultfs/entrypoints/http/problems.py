"""Errors as HTTP: one table from what went wrong to a status, and RFC 9457 for the rest."""

from http import HTTPStatus
from typing import Final

import msgspec

from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.domain.lockitems import path_of
from vaultfs.domain.locknodes import Blocker, Link
from vaultfs.entrypoints.cli.errors import error_code
from vaultfs.entrypoints.http.calls import Answer
from vaultfs.ports.objects import OutOfSpace, StoreError

CHECKSUM_MISMATCH: Final = 460
"""A status of tus alone."""
STATUSES: Final[tuple[tuple[type, int], ...]] = (
    (errors.NotAuthenticated, 401),
    (errors.RateLimited, 429),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.InvalidName, 400),
    (errors.WrongMedia, 415),
    (errors.InvalidField, 400),
    (errors.VersionMismatch, 412),
    (errors.UploadExpired, 410),
    (errors.CursorReset, 410),
    (errors.ChecksumMismatch, CHECKSUM_MISMATCH),
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

PRIVATE: Final = (StoreError, errors.CatalogUnavailable, errors.NotAVault, errors.Corrupt)
"""What these say names folders and objects of the server: it goes into the log alone."""


ERROR_HEADER: Final = "Vaultfs-Error"
"""The code of a problem, for answers to HEAD, which have no body."""


class Problem(msgspec.Struct, omit_defaults=True):
    """An error, as `application/problem+json` (RFC 9457)."""

    title: str
    status: int
    detail: str
    code: str
    """For programs: `not_found`, `version_mismatch`, ..."""
    request_id: str
    type: str = "about:blank"
    errors: list[dict[str, str]] = []
    """What is wrong with which part of the request: `pointer` and `code`."""
    holders: list[dict[str, str]] = []
    """Of a lock in the way: which `owner` holds it, or waits for it, in which `mode`."""
    circle: list[dict[str, str]] = []
    """Of a deadlock: each `owner` waits for the `path` in `mode`, which `holder` has."""


def status_of(error: VaultError) -> int:
    """The status for `error`."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def problem_of(error: Exception, request_id: str) -> Problem:
    """`error` as a client may see it; a bug says nothing about itself."""
    if not isinstance(error, VaultError):
        return problem(500, "internal", "something went wrong here; the log has it", request_id)
    detail = error.message
    if isinstance(error, PRIVATE):
        detail = "the server cannot read or write what it has to; its log says why"
    if isinstance(error, errors.OutcomeUnknown):
        detail = f"it may or may not have happened: look, and repeat it (operation {error.op_id})"
    found = problem(status_of(error), error_code(error), detail, request_id)
    if isinstance(error, errors.Blocking):
        found.holders = [_holder(each) for each in error.blockers]
    if isinstance(error, errors.DeadlockFound):
        found.circle = [_link(each) for each in error.circle]
    return found


def _holder(blocker: Blocker) -> dict[str, str]:
    return {
        "owner": blocker.owner,
        "path": path_of(blocker.resource),
        "mode": blocker.mode.name,
        "does": "waits" if blocker.waits else "holds",
    }


def _link(link: Link) -> dict[str, str]:
    path, mode = path_of(link.resource), link.wanted.name
    return {"owner": link.owner, "path": path, "mode": mode, "holder": link.holder}


def problem(status: int, code: str, detail: str, request_id: str) -> Problem:
    """A problem that no error of the vault stands behind."""
    return Problem(phrase_of(status), status, detail, code, request_id)


def phrase_of(status: int) -> str:
    """What a status is called."""
    return "Checksum Mismatch" if status == CHECKSUM_MISMATCH else HTTPStatus(status).phrase


def answer(found: Problem, headers: dict[str, str] | None = None) -> Answer:
    """The response for a problem."""
    extra = {ERROR_HEADER: found.code, **(headers or {})}
    if found.status == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="vaultfs", Basic realm="vaultfs"'
    return Answer(msgspec.json.encode(found), found.status, b"application/problem+json", extra)

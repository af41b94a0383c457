"""Errors as HTTP: what a status (`statuses`) does not say, by RFC 9457."""

from http import HTTPStatus
from typing import Final

import msgspec

from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints.cli.errors import error_code
from vaultfs.entrypoints.http.calls import Answer
from vaultfs.entrypoints.http.statuses import (
    CHECKSUM_MISMATCH,
    holder_out,
    link_out,
    status_of,
)
from vaultfs.entrypoints.http.wire import ERROR_HEADER, Problem
from vaultfs.ports.objects import StoreError, Throttled

PRIVATE: Final = (StoreError, errors.CatalogUnavailable, errors.NotAVault, errors.Corrupt)
"""What these say names folders and objects of the server: it goes into the log alone."""


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
    if isinstance(error, errors.InvalidField) and error.flaw is not None:
        pointer, code = error.flaw
        found.errors = [{"pointer": pointer, "code": code}]
    if isinstance(error, errors.Blocking):
        found.holders = list(map(holder_out, error.blockers))
    if isinstance(error, errors.DeadlockFound):
        found.circle = list(map(link_out, error.circle))
    return found


def retry_after(error: Exception) -> int | None:
    """Seconds after which the same request may work; None if waiting is of no use."""
    if isinstance(error, errors.RateLimited | Throttled):
        return max(1, round((error.retry_after or 0) + 0.5))
    if not isinstance(error, VaultError) or status_of(error) != HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    return None if isinstance(error, StoreError) and not error.retryable else 1


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

"""Many changes in one request."""

import math
from typing import Final

import msgspec
from anyio import to_thread
from starlette.responses import Response

from vaultfs.domain.batches import MAX_BYTES, MAX_KEY, Key, Outcome
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import InvalidField
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.batching import BatchFailed, failed, parse_batch, report_of
from vaultfs.entrypoints.http.calls import WITH_LOCK, Call, Parameter, Route
from vaultfs.entrypoints.http.problems import answer, phrase_of
from vaultfs.entrypoints.http.wire import BatchIn, BatchOut, BatchSummary, Problem, ResultOut

OPERATIONS_PER_UNIT: Final = 10
"""A batch counts as one request, and one more for so many operations."""


class BatchProblem(Problem, kw_only=True):
    """An atomic batch that was refused: nothing of it was done."""

    committed: bool
    dry_run: bool
    summary: BatchSummary
    results: list[ResultOut]


async def run_batch(call: Call) -> Response:
    """Execute up to 1,000 changes."""
    body = await call.raw_body(MAX_BYTES)
    asked = await to_thread.run_sync(parse_batch, body)
    key = _key(call, body)
    del body  # all that it says is in `asked`, whose operations are given away
    call.charge(math.ceil(len(asked.ops) / OPERATIONS_PER_UNIT))

    def written(outcome: Outcome) -> bytes:
        return msgspec.json.encode(report_of(outcome, asked.ids, dry_run=asked.dry_run))

    outcome = await call.server.vault.batches(call.files).run(
        call.user,
        asked.take(),
        mode=asked.mode,
        dry_run=asked.dry_run,
        wait=asked.wait,
        key=key,
        answer=written,
    )
    if outcome.kept is not None:
        report = msgspec.json.decode(outcome.kept, type=BatchOut)
        return _answer(call, report, {"Idempotency-Replayed": "true"})
    report = report_of(outcome, asked.ids, dry_run=asked.dry_run)
    if not (report.committed or report.dry_run):
        return _aborted(call, report)
    return _answer(call, report)


def _key(call: Call, body: bytes) -> Key | None:
    text = call.header("idempotency-key")
    if text is None:
        return None
    if not (text.isascii() and text.isprintable()) or not 0 < len(text) <= MAX_KEY:
        raise InvalidField(f"Idempotency-Key: 1 to {MAX_KEY} printable characters of ASCII")
    return Key(text, digest_of(body))


def _answer(call: Call, report: BatchOut, headers: dict[str, str] | None = None) -> Response:
    return call.json(report, 207 if failed(report) else 200, headers)


def _aborted(call: Call, report: BatchOut) -> Response:
    detail = BatchFailed(report).message
    found = BatchProblem(
        title=phrase_of(409),
        status=409,
        detail=detail,
        code="batch_aborted",
        request_id=call.request_id,
        committed=False,
        dry_run=report.dry_run,
        summary=report.summary,
        results=report.results,
    )
    return answer(found)


ROUTES: Final = (
    Route(
        *("POST", "/v1/batch", run_batch, "runBatch", "Execute up to 1,000 changes."),
        scope=Scope.WRITE,
        body=BatchIn,
        answer=BatchOut,
        parameters=(
            Parameter(
                "Idempotency-Key",
                "The same key and body within a day are executed once.",
                where="header",
            ),
            WITH_LOCK,
        ),
        failures=(207, 408, 409, 422),
        conflict=BatchProblem,
    ),
)

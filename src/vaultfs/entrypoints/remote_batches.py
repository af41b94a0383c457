"""Batches of a vault behind a server."""

from collections.abc import Sequence
from typing import Final
from uuid import uuid4

import msgspec

from vaultfs.entrypoints.answers import refuse
from vaultfs.entrypoints.batching import BatchMode, Op, encode_batch
from vaultfs.entrypoints.calling import Calls
from vaultfs.entrypoints.http.wire import BatchOut

CONFLICT: Final = 409


async def run_there(
    calls: Calls, ops: Sequence[Op], mode: BatchMode, *, dry_run: bool, wait: float, key: str | None
) -> BatchOut:
    """Have a batch executed by a server: sent again if the answer is lost, executed once."""
    data = encode_batch(ops, mode, dry_run=dry_run, wait=wait)
    headers = {"Idempotency-Key": key or uuid4().hex, "Content-Type": "application/json"}
    answer = await calls.ask(
        "POST", calls.url("batch"), headers=headers, data=data, taken=frozenset({CONFLICT})
    )
    if answer.status == CONFLICT:
        found = msgspec.json.decode(answer.data, type=_Aborted)
        if found.code != "batch_aborted":
            refuse(calls.address, answer.status, answer.data, answer.headers)
    report: BatchOut = calls.decode(answer, BatchOut)
    return report


class _Aborted(msgspec.Struct):
    code: str = ""

"""Batches as callers see them: built call by call, and answered by a report.

    async with vault.batch() as batch:
        folder = batch.mkdir("/archive/2026", parents=True, if_exists="ok")
        batch.move("/inbox/a.pdf", folder / "a.pdf", on_conflict="rename")

Nothing happens before the block is left without an error. Then it is one request, and
`batch.report` says what became of each operation.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, cast

import msgspec
from attrs import define, field, frozen

from vaultfs.domain import errors
from vaultfs.domain.batches import MAX_BYTES, MAX_STEP, Ended, Key, Mode, Outcome, Status
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import InvalidField, TooLarge, VaultError, listed
from vaultfs.domain.metadata import no_constant
from vaultfs.domain.nodes import User
from vaultfs.domain.quantities import counted
from vaultfs.domain.services.batches import LONGEST, WAIT, Batches
from vaultfs.entrypoints.cli.errors import error_code
from vaultfs.entrypoints.http.statuses import holder_out, status_of
from vaultfs.entrypoints.http.wire import (
    BatchErrorOut,
    BatchOut,
    BatchSummary,
    ResultOut,
    node_out,
)

BatchMode = Literal["atomic", "best_effort"]
Op = Mapping[str, Any]
_STATUSES: Final[tuple[tuple[type, int], ...]] = (
    (errors.InvalidName, 422),
    (errors.InvalidField, 422),
    (errors.TooManyNodes, 422),
    (errors.ParentNotFound, 409),
    (errors.LockTimedOut, 409),
)
"""Where an operation of a batch has another status than a request of its own."""
_CODES: Final[dict[type, str]] = {errors.LockTimedOut: "lock_timeout"}
_RETRYABLE: Final = (errors.Blocking, errors.Busy)


class BatchFailed(VaultError):
    """Something of a batch was refused; `report` says what became of each operation."""

    def __init__(self, report: BatchOut) -> None:
        bad = [each.error.detail for each in report.results if each.error is not None]
        fate = "the others were done" if report.committed else "nothing was done"
        if report.dry_run:
            fate = "nothing was to be done"
        super().__init__(
            f"{len(bad)} of {counted(len(report.results), 'operation')} failed, {fate}:"
            f" {listed(dict.fromkeys(bad), most=3)}"
        )
        self.report = report


def report_of(outcome: Outcome, ids: Sequence[str | None], *, dry_run: bool) -> BatchOut:
    """What became of operations with these `ids`, for those who asked for it."""
    results = [
        _result(index, name, ended)
        for index, (name, ended) in enumerate(zip(ids, outcome.ended, strict=True))
    ]
    counts = dict.fromkeys(Status, 0)
    for each in outcome.ended:
        counts[each.status] += 1
    summary = BatchSummary(
        len(results),
        counts[Status.OK] + counts[Status.WOULD_SUCCEED],
        counts[Status.SKIPPED],
        counts[Status.FAILED] + counts[Status.WOULD_FAIL],
        counts[Status.ROLLED_BACK],
        counts[Status.NOT_ATTEMPTED],
    )
    return BatchOut(outcome.committed, dry_run, summary, results)


def _result(index: int, name: str | None, ended: Ended) -> ResultOut:
    result = ResultOut(index, str(ended.status), name, renamed=ended.renamed)
    if ended.node is not None and ended.status in {Status.OK, Status.WOULD_SUCCEED}:
        result.node = node_out(ended.node, ended.path)
    if ended.error is not None:
        result.http_status, result.error = _status(ended.error), _error(ended.error)
    return result


def _status(error: VaultError) -> int:
    found = (status for kind, status in _STATUSES if isinstance(error, kind))
    return next(found, status_of(error))


def _error(error: VaultError) -> BatchErrorOut:
    code = _CODES.get(type(error)) or error_code(error)
    found = BatchErrorOut(code, error.message, isinstance(error, _RETRYABLE))
    match error:
        case errors.VersionMismatch():
            found.expected, found.actual = error.expected, error.found
        case errors.DependencyFailed():
            found.depends_on = error.depends_on
        case errors.TooManyNodes():
            found.count = error.count
        case errors.Blocking():
            found.holders = list(map(holder_out, error.blockers))
        case _:
            pass
    return found


def failed(report: BatchOut) -> bool:
    """Whether anything of it was refused, or would be."""
    summary = report.summary
    return bool(summary.failed or summary.not_attempted or summary.rolled_back)


# Reading


@define(eq=False)
class Asked:
    """A batch as it was sent."""

    ops: list[object]
    """JSON values, or why one is none."""
    mode: Mode
    dry_run: bool
    wait: float
    ids: list[str | None] = field(init=False)
    """Those of the operations that have one."""

    def __attrs_post_init__(self) -> None:
        self.ids = list(map(_id_of, self.ops))

    def take(self) -> list[object]:
        """The operations, to be given away: nothing here keeps their memory."""
        ops, self.ops = self.ops, []
        return ops


def _id_of(op: object) -> str | None:
    name: object = cast("Op", op).get("id") if isinstance(op, Mapping) else None
    return name if isinstance(name, str) and name.isprintable() else None


_TOP: Final = {"ops", "mode", "dry_run", "wait"}


class _Twice(dict[str, Any]):
    """An object with a key that came twice."""


def parse_batch(data: bytes) -> Asked:
    """The batch that is written in `data`. Raises `InvalidField`, `TooLarge`.

    What is wrong with one operation is told in its place, not raised.
    """
    try:
        read: object = json.loads(data, object_pairs_hook=_object, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"the body is not JSON: {error}") from error
    if not isinstance(read, dict) or isinstance(read, _Twice):
        raise InvalidField('a batch is a JSON object, {"ops": [...]}, without a key twice')
    value = cast("dict[str, Any]", read)
    unknown = sorted(value.keys() - _TOP)
    if unknown:
        raise InvalidField(
            f"a batch has no field {listed(map(repr, unknown))}: it has {', '.join(sorted(_TOP))}"
        )
    ops: object = value.get("ops")
    wait: object = value.get("wait", WAIT)
    if not isinstance(ops, list):
        raise InvalidField("ops is a list of operations")
    if value.get("mode", "atomic") not in list(Mode):
        raise InvalidField(f"mode={value['mode']!r}: one of {', '.join(Mode)}")
    if not isinstance(value.get("dry_run", False), bool):
        raise InvalidField("dry_run: true or false")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= LONGEST:
        raise InvalidField(f"wait: a number of seconds, 0 to {LONGEST:g}")
    checked = _checked(data, cast("list[object]", ops))
    mode = Mode(value.get("mode", "atomic"))
    return Asked(checked, mode, value.get("dry_run", False), float(wait))


def parse_lines(data: bytes) -> list[object]:
    """The operations that are written in `data`, one on each line. Raises `InvalidField`."""
    ops: list[object] = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                ops += parse_batch(b'{"ops": [%s]}' % line).ops
            except InvalidField as error:
                raise InvalidField(f"line {number}: {error.message}") from error
    return ops


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Twice(found)


def _checked(data: bytes, ops: list[object]) -> list[object]:
    """`ops`, with an error in the place of each that is too long or has a key twice."""
    checked = [_ambiguity(op) or op for op in ops]
    if len(data) > MAX_STEP:
        try:
            sizes = [len(raw) for raw in msgspec.json.decode(data, type=_Sizes).ops]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidField(f"the body is not JSON in UTF-8: {error}") from error
        for index, size in enumerate(sizes):
            if size > MAX_STEP:
                message = f"the operation has {size} bytes; {MAX_STEP} is the most"
                checked[index] = InvalidField(message)
    return checked


class _Sizes(msgspec.Struct):
    ops: list[msgspec.Raw]


def _ambiguity(value: object) -> InvalidField | None:
    """What is wrong with an object in `value` that has a key twice."""
    if isinstance(value, _Twice):
        return InvalidField("an object has a key twice")
    parts: Iterable[object] = ()
    if isinstance(value, dict):
        parts = cast("Op", value).values()
    elif isinstance(value, list):
        parts = cast("list[object]", value)
    return next(filter(None, map(_ambiguity, parts)), None)


# Building


@frozen
class Planned:
    """The node that an operation of a batch will make or change, for those behind it."""

    id: str
    below: str = ""

    def __truediv__(self, name: str) -> "Planned":
        """What is called `name` below it."""
        return Planned(self.id, f"{self.below}/{name}" if self.below else name)


Place = str | Planned
OnConflict = Literal["fail", "replace", "rename", "skip"]


@define(eq=False)
class BatchBuilder:
    """The operations of a batch so far. Made by `Surface.batch`."""

    ops: list[dict[str, Any]] = field(factory=list[dict[str, Any]])
    report: BatchOut | None = None
    """What became of them, once the block is left."""

    def mkdir(
        self,
        path: Place,
        *,
        parents: bool = False,
        if_exists: Literal["fail", "ok"] = "fail",
        on_conflict: Literal["fail", "rename", "skip"] = "fail",
    ) -> Planned:
        """Make a folder."""
        return self.add(
            "mkdir", path=path, parents=parents, if_exists=if_exists, on_conflict=on_conflict
        )

    def move(
        self,
        source: Place,
        target: Place,
        *,
        on_conflict: OnConflict = "fail",
        if_version: int | None = None,
        if_revision: int | None = None,
    ) -> Planned:
        """Give a node another path."""
        return self.add(
            "move",
            src=source,
            dst=target,
            on_conflict=on_conflict,
            if_version=if_version,
            if_revision=if_revision,
        )

    def copy(
        self,
        source: Place,
        target: Place,
        *,
        version: int | None = None,
        on_conflict: OnConflict = "fail",
    ) -> Planned:
        """Copy a node with all below it."""
        return self.add("copy", src=source, dst=target, version=version, on_conflict=on_conflict)

    def delete(
        self,
        target: Place,
        *,
        recursive: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
    ) -> Planned:
        """Send a node to the trash."""
        return self.add(
            "delete",
            target=target,
            recursive=recursive,
            if_version=if_version,
            if_revision=if_revision,
        )

    def restore(
        self,
        node: int | Planned,
        target: Place | None = None,
        *,
        on_conflict: Literal["fail", "rename", "skip"] = "fail",
    ) -> Planned:
        """Bring a node back from the trash."""
        return self.add("restore", node=node, dst=target, on_conflict=on_conflict)

    def set_metadata(
        self, target: Place, merge: Mapping[str, Any], *, if_revision: int | None = None
    ) -> Planned:
        """Change metadata by a merge patch."""
        return self.add("set_metadata", target=target, merge=merge, if_revision=if_revision)

    def grant(self, target: Place, user: str, role: Literal["reader", "writer"]) -> Planned:
        """Let a user read or write a node and all below it."""
        return self.add("grant", target=target, user=user, role=role)

    def revoke(self, target: Place, user: str) -> Planned:
        """Take back what a user was granted."""
        return self.add("revoke", target=target, user=user)

    def add(self, op: str, **fields: Any) -> Planned:
        """An operation with the fields that the HTTP API has; None and defaults are left out."""
        made = Planned(f"op{len(self.ops)}")
        written = {
            name: _written(value)
            for name, value in fields.items()
            if value is not None and value is not False and value != "fail"
        }
        self.ops.append({"op": op, "id": made.id, **written})
        return made


def _written(value: Any) -> Any:
    if isinstance(value, Planned):
        return {"ref": value.id, "path": value.below} if value.below else {"ref": value.id}
    return value


@asynccontextmanager
async def building(
    run: Callable[[Sequence[Op]], Awaitable[BatchOut]], *, check: bool
) -> AsyncGenerator[BatchBuilder, None]:
    """Collect operations and have `run` execute them at the end of the block."""
    builder = BatchBuilder()
    yield builder
    if builder.ops:
        builder.report = await run(builder.ops)
        if check and failed(builder.report):
            raise BatchFailed(builder.report)


def encode_batch(ops: Sequence[Op], mode: BatchMode, *, dry_run: bool, wait: float) -> bytes:
    """A batch as the HTTP API takes it. Raises `TooLarge`, `InvalidField`."""
    try:
        data = msgspec.json.encode({"ops": ops, "mode": mode, "dry_run": dry_run, "wait": wait})
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidField(f"an operation is not JSON: {error}") from error
    if len(data) > MAX_BYTES:
        raise TooLarge(f"the batch has {len(data)} bytes of JSON; {MAX_BYTES} is the most")
    return data


# Sending


async def run_here(
    batches: Batches,
    user: User,
    ops: Sequence[Op],
    mode: BatchMode,
    *,
    dry_run: bool,
    wait: float,
    key: str | None,
) -> BatchOut:
    """Have a batch executed by a vault in this process."""
    data = encode_batch(ops, mode, dry_run=dry_run, wait=wait)
    asked = parse_batch(data)  # as a server would, so that nothing is told apart

    def written(outcome: Outcome) -> bytes:
        return msgspec.json.encode(report_of(outcome, asked.ids, dry_run=dry_run))

    outcome = await batches.run(
        user,
        asked.take(),
        mode=asked.mode,
        dry_run=dry_run,
        wait=wait,
        key=None if key is None else Key(key, digest_of(data)),
        answer=written,
    )
    if outcome.kept is not None:
        return msgspec.json.decode(outcome.kept, type=BatchOut)
    return report_of(outcome, asked.ids, dry_run=dry_run)

"""Executing a batch: a program that runs the programs of its operations, behind savepoints.

What can be done together is (`bulk`); the rest is done one by one, in the order of the
batch. An atomic batch is first tried without savepoints. If something of it is refused, it
is taken back and run once more with one for each operation, which shows all that is wrong
with it, and taken back again. Best effort has a savepoint for each operation at once.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

from attrs import define, evolve, field

from vaultfs.adapters.sql import locking
from vaultfs.adapters.sql.bulk import LEAST, group_of, together
from vaultfs.adapters.sql.programs import PROGRAMS
from vaultfs.adapters.sql.statements import ABOVE, Program, Run, to_node
from vaultfs.adapters.sql.transaction import Mark, Transaction, chain_to, node_at, path_along
from vaultfs.domain.access import Action
from vaultfs.domain.batches import (
    KEPT_US,
    MAX_ERRORS,
    Batch,
    Change,
    Ended,
    Key,
    Made,
    Memory,
    OnConflict,
    Outcome,
    Status,
    Step,
    with_fields,
)
from vaultfs.domain.errors import (
    DependencyFailed,
    Exists,
    Internal,
    KeyReused,
    Locked,
    NotFound,
    NotHeld,
    VaultError,
)
from vaultfs.domain.names import Path, format_path
from vaultfs.domain.nodes import NodeId, TreeId
from vaultfs.domain.operations import (
    Copy,
    Done,
    MakeFolder,
    Move,
    Restore,
    Result,
    Unit,
)
from vaultfs.domain.operations import Outcome as UnitOutcome

_log = logging.getLogger(__name__)
_REFUSALS: Final = (
    VaultError,
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
)
"""What ends one operation: that it is refused, or a bug, which is no reason to refuse others."""
_NOT_TRIED: Final = Ended(Status.NOT_ATTEMPTED)


class _StoppedError(Exception):
    """The rest is not to be run: an operation was refused, or has met a lock."""


def execute(batch: Batch, tx: Transaction) -> Program[Outcome]:
    """What became of `batch`. Raises `KeyReused`, and what else raises leaves nothing."""
    if batch.key is not None:
        kept = yield from _kept(batch, batch.key)
        if kept is not None:
            return Outcome(committed=True, ended=(), kept=kept)
    mark = tx.mark()
    yield Run("SAVEPOINT batch")
    try:
        outcome = yield from _executed(batch, tx, mark)
    except VaultError:
        yield from _back(tx, mark)
        yield Run("RELEASE SAVEPOINT batch")
        raise
    yield Run("RELEASE SAVEPOINT batch")
    return outcome


def _executed(batch: Batch, tx: Transaction, mark: Mark) -> Program[Outcome]:
    run = _Run(batch, tx, careful=not batch.atomic)
    yield from run.all()
    if batch.atomic and run.stopped and not run.met_a_lock:
        yield from _back(tx, mark)
        run = _Run(batch, tx, careful=True)
        yield from run.all()
    outcome = run.outcome()
    if outcome.committed:
        yield from run.settle()
        if batch.key is not None and batch.answer is not None:
            yield from _keep(batch, batch.key, batch.answer(outcome))
    else:
        yield from _back(tx, mark)
    return outcome


def _back(tx: Transaction, mark: Mark) -> Program[None]:
    yield Run("ROLLBACK TO SAVEPOINT batch")
    tx.forget(mark)


@define(eq=False)
class _Run:
    """One execution of a batch, from its first operation to its last."""

    batch: Batch
    tx: Transaction
    careful: bool
    """A savepoint for each operation; without them the first that is refused ends it."""
    memory: Memory = field(factory=Memory)
    ended: dict[int, Ended] = field(factory=dict[int, Ended])
    done: list[Unit] = field(factory=list[Unit])
    stopped: bool = False
    met_a_lock: bool = False
    """And the batch is patient: it is to be waited for."""
    errors: int = 0

    def all(self) -> Program[None]:
        """Run all of it, or up to where it stops."""
        self.tx.copied = 0
        try:
            for first, steps in _groups(self.batch):
                yield from self._group(first, steps)
        except _StoppedError:
            self.stopped = True

    def outcome(self) -> Outcome:
        """What became of each operation."""
        batch, steps = self.batch, range(len(self.batch.steps))
        ended = tuple(self.ended.get(index, _NOT_TRIED) for index in steps)
        failed = self.stopped or any(each.error is not None for each in ended)
        committed = not (batch.dry_run or self.met_a_lock or (batch.atomic and failed))
        if batch.dry_run:
            ended = tuple(map(_would, ended))
        elif not committed:
            ended = tuple(map(_rolled_back, ended))
        return Outcome(committed, ended)

    def settle(self) -> Program[None]:
        """Release the caller's locks on what was moved or deleted: see `locking.give_up`."""
        for unit in self.done:
            yield from locking.give_up(self.tx, unit)

    def _group(self, first: int, steps: Sequence[Step]) -> Program[None]:
        units = [self._unit(step.operation) for step in steps if step.operation is not None]
        done = None
        if len(units) == len(steps) >= LEAST:
            done = yield from self._together(units)
        if done is None:
            for index, step in enumerate(steps, first):
                yield from self._one(index, step)
            return
        for index, (step, outcome) in enumerate(zip(steps, done, strict=True), first):
            assert isinstance(outcome, Done)
            self._succeed(index, step, outcome.results[0])

    def _together(self, units: Sequence[Unit]) -> Program[list[UnitOutcome] | None]:
        mark = self.tx.mark()
        yield Run("SAVEPOINT several")
        try:
            done = yield from together(self.tx, units)
        except _REFUSALS:  # of a value that the database refuses: it is looked for one by one
            done = None
            yield Run("ROLLBACK TO SAVEPOINT several")
            self.tx.forget(mark)
        yield Run("RELEASE SAVEPOINT several")
        return done

    def _one(self, index: int, step: Step) -> Program[None]:
        mark = self.tx.mark()
        if self.careful:
            yield Run("SAVEPOINT one")
        try:
            yield from self._try(index, step)
        except _REFUSALS as error:
            if self.careful:
                yield Run("ROLLBACK TO SAVEPOINT one")
                self.tx.forget(mark)
            yield from self._fail(index, step, _told(error))
        if self.careful:
            yield Run("RELEASE SAVEPOINT one")

    def _fail(self, index: int, step: Step, error: VaultError) -> Program[None]:
        if isinstance(error, Locked) and self.batch.patient:
            self.met_a_lock = True
            self.ended[index] = Ended(Status.FAILED, error=error)
            raise _StoppedError from error
        if not self.careful:
            raise _StoppedError from error
        error = self.memory.reason(step, error)
        self.memory.lose(index, step, (yield from self._missing_above(step)))
        self.ended[index] = Ended(Status.FAILED, error=error)
        self.errors += 1
        if self.batch.atomic and self.errors >= MAX_ERRORS:
            raise _StoppedError from error

    def _missing_above(self, step: Step) -> Program[int]:
        """How many folders `step` would have made above its own."""
        op = step.operation or step.meant
        if not isinstance(op, MakeFolder) or not op.parents or not op.path:
            return 0
        try:
            chain = yield from chain_to(self.tx, self._unit(op), op.tree, op.path[:-1])
        except VaultError:
            return 0
        return len(op.path) - len(chain)

    def _succeed(self, index: int, step: Step, result: Result, *, renamed: bool = False) -> None:
        assert step.operation is not None
        path = _path_of(step.operation) if result.path is None else result.path
        self.memory.keep(step, result.node, path)
        self.ended[index] = Ended(Status.OK, result.node, path, renamed)
        if self.batch.presented:
            self.done.append(self._unit(step.operation))

    def _try(self, index: int, step: Step) -> Program[None]:
        if step.error is not None or step.operation is None:
            assert step.error is not None
            raise step.error
        if step.refs:
            step = evolve(step, operation=(yield from self._filled(step, step.operation)))
        try:
            result = yield from self._run(step)
        except Exists:
            if step.on_conflict is OnConflict.SKIP:
                self.ended[index] = Ended(Status.SKIPPED)
                yield from self._skipped(step)
                return
            if step.on_conflict is not OnConflict.RENAME:
                raise
            if step.target is None or not step.target[1]:  # a root has no other name
                raise
            step, result = yield from self._renamed(step, *step.target)
            self._succeed(index, step, result, renamed=True)
            return
        self._succeed(index, step, result)

    def _skipped(self, step: Step) -> Program[None]:
        """References to `step` lead to what has the name."""
        if step.id and step.target is not None and step.operation is not None:
            tree, path = step.target
            unit = self._unit(step.operation)
            node = yield from node_at(self.tx, unit, tree, path, Action.READ)
            self.memory.find(step, node, path)

    def _run(self, step: Step) -> Program[Result]:
        assert step.operation is not None
        unit = self._unit(step.operation)
        with suppress(NotHeld):  # locks that came with the batch may be for others of it
            yield from locking.guard(self.tx, unit)
        return (yield from PROGRAMS[type(step.operation)](self.tx, unit, step.operation))

    def _renamed(self, step: Step, tree: TreeId, wanted: Path) -> Program[tuple[Step, Result]]:
        for path in self.memory.names(tree, wanted):
            other = step.aimed(path)
            try:
                return other, (yield from self._run(other))
            except Exists:
                continue
        raise Exists(f"all names that {format_path(wanted)} could get are taken")

    def _filled(self, step: Step, operation: Change) -> Program[Change]:
        """The operation with what its references lead to."""
        fields: dict[str, Path | NodeId] = {}
        for name, ref in step.refs.items():
            made = self.memory.made(ref)
            if name == "node":
                fields[name] = made.node
            else:
                fields[name] = (*(yield from self._place(made)), *ref.below)
        return with_fields(operation, fields)

    def _place(self, made: Made) -> Program[Path]:
        """Where a node stands now. Raises `NotFound`."""
        if made.path is not None:
            return made.path
        rows = yield Run(ABOVE, (made.node,))
        chain = [to_node(row) for row in reversed(rows)]
        if not chain or any(each.trashed_us is not None for each in chain):
            raise NotFound("what this refers to is in the trash by now")
        return path_along(chain)

    def _unit(self, operation: Change) -> Unit:
        batch = self.batch
        return Unit(batch.actor, batch.at_us, batch.op_id, (operation,), batch.presented)


def _groups(batch: Batch) -> Iterator[tuple[int, list[Step]]]:
    """The steps with the number of the first; what may be done together, together."""
    index = 0

    def alike(step: Step) -> object:
        if step.error is not None or step.refs or step.operation is None:
            return id(step)
        found = group_of(step.operation)
        return id(step) if found is None else found

    for _, group in groupby(batch.steps, alike):
        steps = list(group)
        yield index, steps
        index += len(steps)


def _told(error: Exception) -> VaultError:
    """What a caller is told of `error`: of a bug no more than that there was one."""
    if isinstance(error, VaultError):
        return error
    _log.error("an operation of a batch failed", exc_info=error)
    return Internal("something went wrong here; the log has it")


def _path_of(operation: Change) -> Path:
    match operation:
        case Move(target=path) | Copy(target=path):
            return path
        case Restore(target=target):
            return target or ()
        case MakeFolder(path=path):
            return path
        case _:
            return operation.path


def _would(each: Ended) -> Ended:
    if each.status is Status.SKIPPED:
        return each
    good = each.error is None and each.status is not Status.NOT_ATTEMPTED
    return evolve(each, status=Status.WOULD_SUCCEED if good else Status.WOULD_FAIL)


def _rolled_back(each: Ended) -> Ended:
    if isinstance(each.error, DependencyFailed):
        return evolve(each, status=Status.NOT_ATTEMPTED)
    if each.error is not None or each.status is Status.NOT_ATTEMPTED:
        return each
    return Ended(Status.ROLLED_BACK)


# Answers that are kept


def _kept(batch: Batch, key: Key) -> Program[bytes | None]:
    rows = yield Run(
        "SELECT request, answer FROM answers WHERE owner = $1 AND key = $2 AND at > $3",
        (batch.actor, key.name, batch.at_us - KEPT_US),
    )
    if not rows:
        return None
    if bytes(rows[0][0]) != key.request:
        raise KeyReused(f"the idempotency key {key.name!r} came before, with another request")
    return bytes(rows[0][1])


def _keep(batch: Batch, key: Key, answer: bytes) -> Program[None]:
    yield Run("DELETE FROM answers WHERE at <= $1", (batch.at_us - KEPT_US,))
    yield Run(
        "INSERT INTO answers(owner, key, request, answer, at) VALUES ($1, $2, $3, $4, $5)",
        (batch.actor, key.name, key.request, answer, batch.at_us),
    )

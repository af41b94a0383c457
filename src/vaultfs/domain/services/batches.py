"""Batches: parsed, executed in one transaction, and made to wait for those who hold locks.

No lock is taken where none is in the way: within one transaction nobody else changes the
trees. Only a batch that meets one waits, for at most `wait` seconds, by asking for all
that it needs in one call, holding nothing; so batches cannot deadlock each other.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, Protocol

import anyio
from attrs import define, evolve

from vaultfs.domain.batches import (
    LOCK_OWNER,
    MAX_STEPS,
    Batch,
    Ended,
    Key,
    Mode,
    Outcome,
    lock_items,
)
from vaultfs.domain.batchparsing import parse_steps, trees_named
from vaultfs.domain.errors import (
    Forbidden,
    InvalidField,
    InvalidName,
    Locked,
    LockError,
    LockTimedOut,
    NotFound,
    TooLarge,
)
from vaultfs.domain.lockitems import MAX_LOCKS
from vaultfs.domain.lockmodes import Mode as LockMode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.names import Path, check_user
from vaultfs.domain.nodes import NodeId, TreeId, User, micros
from vaultfs.domain.operations import Restore
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.holds import Hold

WAIT: Final = 5.0
"""Seconds that a batch waits for locks if nothing else is said."""
LONGEST: Final = 30.0
"""Seconds that it may wait at the most."""


class Holding(Protocol):
    """What batches need of `services.locks.Locks`."""

    def hold(
        self,
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, LockMode],
        *,
        timeout: float | None = None,
    ) -> Hold:
        """See `services.locks.Locks.hold`."""
        ...


@define(eq=False)
class Batches:
    """One of these serves all callers of a process."""

    files: Files
    locks: Callable[[], Holding]
    """The lock manager, made when it is needed first."""

    async def run(
        self,
        caller: User,
        operations: Sequence[object],
        *,
        mode: Mode = Mode.ATOMIC,
        dry_run: bool = False,
        wait: float = WAIT,
        key: Key | None = None,
        answer: Callable[[Outcome], bytes] | None = None,
    ) -> Outcome:
        """Execute `operations`, which are JSON values: see `batchparsing`.

        Durable on return. What is wrong with an operation is said in its place; raised are
        `TooLarge` (more than 1,000), `InvalidField` (none, a `wait` out of bounds),
        `KeyReused`, and what a catalog raises. `answer` makes what is kept for `key`. A crash
        leaves all of a batch that was committed, and nothing of another.
        """
        if len(operations) > MAX_STEPS:
            raise TooLarge(f"{len(operations)} operations; {MAX_STEPS} are the most in a batch")
        if not operations:
            raise InvalidField("a batch without operations")
        if not 0 <= wait <= LONGEST:
            raise InvalidField(f"wait={wait:g}: 0 to {LONGEST:g} seconds")
        steps = parse_steps(operations, caller.name, await self._trees(caller, operations))
        del operations  # which may be all that keeps their memory
        clock = self.files.clock
        batch = Batch(
            caller.id,
            micros(clock.now()),
            clock.new_id(),
            tuple(steps),
            mode,
            dry_run,
            self.files.presented,
            key,
            answer,
            patient=wait > 0,
        )
        outcome = await self.files.catalog.batch(batch)
        if not (batch.patient and _met_a_lock(outcome)):
            return outcome
        return await self._patiently(caller, batch, wait)

    async def _trees(self, caller: User, operations: Sequence[object]) -> dict[str, TreeId]:
        found = {caller.name: caller.tree}
        for name in trees_named(operations) - {caller.name}:
            try:
                found[name] = await self.files.tree(caller, check_user(name))
            except (InvalidName, InvalidField):
                continue
        return found

    async def _patiently(self, caller: User, batch: Batch, wait: float) -> Outcome:
        """Run `batch` once all locks that it needs are had, or without those not had in time."""
        wanted = lock_items(batch.steps, most=MAX_LOCKS)
        for tree, path in await self._restored(batch):
            wanted.setdefault(tree, {})[path] = LockMode.X
        wanted = await self._permitted(caller, wanted)
        end = anyio.current_time() + wait
        locks, mine = self.locks(), Owner(f"{LOCK_OWNER}{batch.op_id}")
        async with AsyncExitStack() as held:
            presented = batch.presented
            for tree, items in sorted(wanted.items()):  # in one order, so in no circle
                left = max(end - anyio.current_time(), 0.0)
                shown = batch.presented if tree == caller.tree else ()
                owner = shown[0].owner if shown else mine  # who is not in its own way
                hold = locks.hold(owner, tree, items, timeout=left)
                try:
                    await held.enter_async_context(hold)
                except LockError:
                    break
                presented = (*presented, *hold.presented)
            else:
                now = micros(self.files.clock.now())
                ready = evolve(batch, presented=presented, at_us=now, patient=False)
                return await self.files.catalog.batch(ready)
        outcome = await self.files.catalog.batch(evolve(batch, patient=False))
        return evolve(outcome, ended=tuple(map(_timed_out, outcome.ended)))

    async def _permitted(
        self, caller: User, wanted: Mapping[TreeId, dict[Path, LockMode]]
    ) -> dict[TreeId, dict[Path, LockMode]]:
        """What of `wanted` the caller may change: nobody locks what is not theirs to write."""
        found: dict[TreeId, dict[Path, LockMode]] = {}
        for tree, items in wanted.items():
            for path, mode in items.items():
                try:
                    await self.files.check_writable(caller, tree, path)
                except (NotFound, Forbidden):
                    continue
                found.setdefault(tree, {})[path] = mode
        return found

    async def _restored(self, batch: Batch) -> list[tuple[TreeId, Path]]:
        """The paths to which nodes go back that are named by their ids alone."""
        found: list[tuple[TreeId, Path]] = []
        for operation in batch.operations:
            if isinstance(operation, Restore) and operation.target is None and operation.node:
                try:
                    found.append(await self._place(operation.node))
                except NotFound:
                    continue
        return found

    async def _place(self, node: NodeId) -> tuple[TreeId, Path]:
        return await self.files.catalog.node_path(node)


def _met_a_lock(outcome: Outcome) -> bool:
    return any(isinstance(each.error, Locked) for each in outcome.ended)


def _timed_out(each: Ended) -> Ended:
    """What only other batches stand in the way of can be had by trying again."""
    error = each.error
    if isinstance(error, Locked) and all(
        blocker.owner.startswith(LOCK_OWNER) for blocker in error.blockers
    ):
        return evolve(each, error=LockTimedOut(error.message, blockers=error.blockers))
    return each

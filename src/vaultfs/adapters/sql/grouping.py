"""Group commit without a timer: many callers' units in few transactions.

While a transaction runs, callers queue up, and the first of them takes all of those
into the next one. The others sleep until theirs is over: none is woken to find that it
has nothing to do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
from attrs import define, field

from vaultfs.domain.errors import OutcomeUnknown
from vaultfs.domain.services.signals import Signal

if TYPE_CHECKING:
    from vaultfs.adapters.sql.statements import Program
    from vaultfs.adapters.sql.transaction import Transaction
    from vaultfs.domain.nodes import TreeId
    from vaultfs.domain.operations import Operation, Outcome, Unit

ROUND: Final = 4096
"""Units that one transaction takes at the most, so that nobody waits for ever."""


@define(eq=False)
class Job:
    """A call of `apply`, or a program, that waits to be executed."""

    units: "tuple[Unit, ...]" = ()
    program: "Callable[[Transaction], Program[Any]] | None" = None
    """Instead of units. It raises a `VaultError` only before it has written anything."""
    tree: "TreeId | None" = None
    """Set if the program changes the locks of a tree, and does nothing else."""
    operations: "tuple[Operation, ...]" = ()
    """Those that the program will execute: what they change is locked first."""
    op_id: str = ""
    """Of the feed entries that the program makes."""
    key: str = ""
    """No two programs with the same one run at a time."""
    begun: bool = False
    called: Signal | None = None
    """Set when it is over, or when it is to take those who wait into a transaction."""
    outcomes: "list[Outcome]" = field(factory=list["Outcome"])
    result: Any = None
    """What the program returned."""
    error: Exception | None = None

    @property
    def first_id(self) -> str:
        """Of its first unit, or of the program."""
        return self.units[0].op_id if self.units else self.op_id


@define(eq=False)
class GroupCommit(ABC):
    """Those who wait for a writer; what a writer is, subclasses say."""

    turn: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True), kw_only=True)
    """Held by whoever writes, for as long as a reindexing takes."""
    _jobs: list[Job] = field(factory=list[Job], kw_only=True)
    _leader: Job | None = field(default=None, kw_only=True)
    """The one whose caller executes the next round, or this one."""
    _crowded: bool = field(default=False, kw_only=True)
    """Whether the last round had several jobs."""

    @abstractmethod
    async def execute(self, jobs: Sequence[Job]) -> None:
        """Run `jobs` in one transaction and give each its outcomes, or its error.

        Called by one at a time, and never cancelled.
        """

    async def apply(self, units: "Sequence[Unit]") -> "list[Outcome]":
        """See `Catalog.apply`."""
        if not units:
            return []
        job = Job(tuple(units))
        await self.do(job)
        return job.outcomes

    async def do(self, job: Job) -> None:
        """Have `job` executed with all that wait by then. Raises its error.

        A cancellation that comes when it has begun does not stop it.
        """
        self._jobs.append(job)
        if self._leader is None:
            self._leader = job
        try:
            if self._leader is not job:
                job.called = Signal()
                await job.called.wait()
            if self._leader is job:
                if self._crowded:  # those of the last round may have more to do at once
                    await anyio.lowlevel.checkpoint()
                async with self.turn:
                    await self._round()
        finally:
            if not job.begun:
                self._jobs.remove(job)
            if self._leader is job:
                self._pass_on()
        if job.error is not None:
            raise job.error

    async def _round(self) -> None:
        """Execute what waits, in one transaction; the caller holds `turn`."""
        jobs: list[Job] = []
        size = 0
        for job in self._jobs:
            size += len(job.units)
            if jobs and size > ROUND:
                break
            jobs.append(job)
        del self._jobs[: len(jobs)]
        self._crowded = len(jobs) > 1
        for job in jobs:
            job.begun = True
        try:
            with anyio.CancelScope(shield=True):
                await self.execute(jobs)
        except BaseException:  # a bug, or a cancellation by asyncio, which knows no shield
            for job in jobs:
                if job is not self._leader:  # whose caller has it raised
                    job.error = OutcomeUnknown("cut off in a commit", op_id=job.first_id)
            raise
        finally:
            for job in jobs:
                _call(job)

    def _pass_on(self) -> None:
        """Have the first of those who wait execute the next round."""
        self._leader = self._jobs[0] if self._jobs else None
        if self._leader is not None:
            _call(self._leader)


def _call(job: Job) -> None:
    if job.called is not None:
        job.called.set()

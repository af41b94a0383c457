"""Scrubbing: every stored byte is read again within a period, and compared with its digest.

Disks decay in silence, and what nobody reads is found out about when it is needed. A scrub
takes the packs that were not read for longest, so every one has its turn; what was read, when,
and by which scrub is in the catalog, a row for each pack and one for each scrub. Any number of
processes scrub at the same time: each claims some packs, looks at them, notes that. A crash
loses the `NOTED` packs in hand, which are any other scrub's two minutes later. A cheap
scrub asks the store for sizes and its own digests alone.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import anyio
import msgspec
from attrs import define, field, frozen

from vaultfs.domain import collecting as steps
from vaultfs.domain.digests import Digest
from vaultfs.domain.integrity import DamagedFile, Depth
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.services.collector import Pace
from vaultfs.domain.services.integrity import Integrity
from vaultfs.domain.services.packer import pack_key
from vaultfs.ports.catalog import PackRow, ScrubRow, ScrubWanted
from vaultfs.ports.clock import Clock
from vaultfs.ports.progress import Progress, no_progress

PERIOD: Final = timedelta(days=30)
"""Within which every byte is read."""
CHEAP_PERIOD: Final = timedelta(days=1)
NOTED: Final = 4
"""Packs that are claimed, and noted, together: they take well under `SCRUB_CLAIM_US`."""
NOBODY: Final = UserId(0)


@frozen
class Scrub:
    """What a scrub came upon."""

    number: int
    packs: int
    size: int
    """Bytes that were read."""
    problems: tuple[str, ...] = ()
    files: tuple[DamagedFile, ...] = ()
    """Those that need what is damaged."""
    repaired: tuple[str, ...] = ()
    """Packs that were damaged, and put again from another store that has them."""


@define(eq=False)
class Scrubber:
    """One of these serves a process."""

    integrity: Integrity
    clock: Clock

    async def run(
        self,
        period: timedelta = PERIOD,
        *,
        cheap: bool = False,
        most: int | None = None,
        duty: float = 1.0,
        progress: Progress = no_progress,
    ) -> Scrub:
        """Read all packs that were not read within `period`, until about `most` bytes are read.

        `duty` is the part of the time that it works. `progress` is told bytes of packs. Memory:
        a pack. Raises a `StoreError` only where nothing can be said of the pack in hand.
        """
        number = await self.step(steps.BeginScrub())
        store = self.integrity.objects.name
        run = _Run(self, cheap, Pace(duty), progress, number, store)
        before = self.clock.now() - period
        files: tuple[DamagedFile, ...] = ()
        try:
            while (most is None or run.looked < most) and (rows := await run.next(before)):
                await run.look(rows)
        finally:
            with anyio.CancelScope(shield=True):
                files = await self.integrity.hit_by(run.bad)
                found = _written(run.problems, run.repaired, files)
                await self.step(steps.EndScrub(run.number, found))
        problems, repaired = tuple(run.problems), tuple(run.repaired)
        return Scrub(run.number, run.packs, run.read, problems, files, repaired)

    async def step(self, step: steps.Step) -> int:
        """Execute a step of a scrub."""
        now = micros(self.clock.now())
        return await self.integrity.catalog.collect(step, NOBODY, now)


@define(eq=False)
class _Run:
    of: Scrubber
    cheap: bool
    pace: Pace
    progress: Progress
    number: int
    store: str
    packs: int = 0
    looked: int = 0
    """Bytes of the packs that were looked at."""
    problems: list[str] = field(factory=list[str])
    bad: list[Digest] = field(factory=list[Digest])
    repaired: list[str] = field(factory=list[str])

    @property
    def read(self) -> int:
        return 0 if self.cheap else self.looked

    async def next(self, before: datetime) -> Sequence[ScrubRow]:
        """Some packs that are due, and nobody else is at."""
        want = ScrubWanted(self.number, micros(before), self.store, self.cheap, NOTED)
        return await self.of.integrity.catalog.claim_scrub(want, micros(self.of.clock.now()))

    async def look(self, rows: Sequence[ScrubRow]) -> None:
        """Look at some packs, and note that."""
        found: list[tuple[int, bool]] = []
        for row in rows:
            found.append((row.number, await self._is_right(row)))
            self.looked += row.size
            self.progress(row.size)
            await self.pace.rest()
        self.packs += len(rows)
        size = 0 if self.cheap else sum(row.size for row in rows)
        so_far = _written(self.problems, self.repaired, ())
        await self.of.step(steps.NoteScrubbed(self.number, tuple(found), size, self.store, so_far))

    async def _is_right(self, row: ScrubRow) -> bool:
        integrity = self.of.integrity
        pack = PackRow(row.key, row.size, row.crc32c, "")
        depth = Depth.PACKS if self.cheap else Depth.DIGESTS
        problems = (await integrity.check(pack, depth)).problems
        if not problems or not await integrity.catalog.has_pack(row.key):
            return True  # or it was collected meanwhile
        if await integrity.repair(row.key):
            self.repaired.append(pack_key(row.key))
            return True
        self.bad.append(row.key)
        self.problems += [f"{pack_key(row.key)} {problem}" for problem in problems]
        return False


def _written(problems: Sequence[str], repaired: Sequence[str], files: Sequence[DamagedFile]) -> str:
    found = [{"problem": each} for each in problems]
    found += [{"repaired": each} for each in repaired]
    found += [
        {"file": f"{each.tree}:{each.path}", "version": str(each.number), "reason": each.reason}
        for each in files
    ]
    return msgspec.json.encode(found).decode()

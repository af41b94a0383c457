"""Upkeep: what has to be done from time to time, so that nobody has to think of it.

Old versions that no retention keeps are forgotten, the trash is emptied of what has
been in it long enough, versions are linked by deltas, uploads that nobody goes on with
are ended, digests that nobody has seen yet are found, the catalog is copied into the store,
what nothing needs any more is collected, and what nobody has read for long is read again.
Each step is a transaction of its own, in the name of the user whose tree it is; a
crash leaves some of it done, and the next run does the rest.
"""

from datetime import timedelta
from typing import Final

import msgspec
from attrs import define, evolve, frozen

from vaultfs.domain.errors import Busy, Conflict, Corrupt, NotFound
from vaultfs.domain.nodes import User, micros
from vaultfs.domain.services.collector import Collector, Options
from vaultfs.domain.services.digests import Digests
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.linking import Linking
from vaultfs.domain.services.recovery import Recovery
from vaultfs.domain.services.scrub import CHEAP_PERIOD, PERIOD, Scrubber
from vaultfs.domain.services.uploads import Uploads
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.clock import Clock

TRASH_AGE: Final = timedelta(days=30)
BACKUP_AGE: Final = timedelta(days=1)
COLLECT_AGE: Final = timedelta(days=1)
AT_LEAST: Final = 256 << 20
"""Bytes that a scrub of one run may read, however little its share would be."""
DUTY: Final = 0.05
"""So little that nineteen of twenty calls beside it do not meet it: yet terabytes a day."""
LOOKED_AT: Final = 1000
"""The newest collections, dry runs among them, that are looked through for a whole one."""
RUNS: Final = 24
"""A run scrubs what is due, but for a share of everything: so many runs could read it all."""


@frozen
class Plan:
    """How long things are kept; `None` keeps them for ever, or makes no backup."""

    trash: timedelta | None = TRASH_AGE
    backup: timedelta | None = BACKUP_AGE
    """A new backup is made when the newest is as old as this."""
    collect: timedelta | None = COLLECT_AGE
    """Garbage is collected when that was done so long ago."""
    scrub: timedelta | None = PERIOD
    """Every stored byte is read within this."""
    duty: float = DUTY
    """The part of the time that collecting and scrubbing work; the rest they wait."""


@frozen
class Maintained:
    """What was done."""

    pruned: int
    """Old versions that were forgotten."""
    purged: int
    """Nodes of the trash that were forgotten, what was below them not counted."""
    backup: str | None
    """The name of the backup that was made."""
    expired: int = 0
    """Uploads that were ended, or forgotten."""
    digests: int = 0
    """Contents whose digests are verified now."""
    false_claims: int = 0
    """Those of them for which another digest was claimed; the audit names them."""
    linked: int = 0
    """Deltas between versions that were recorded."""
    condemned: int = 0
    """Packs that nothing needs any more: they go when the grace period is over."""
    freed: int = 0
    """Bytes of packs that went."""
    scrubbed: int = 0
    """Bytes that were read again."""
    problems: tuple[str, ...] = ()
    """What the scrub found, and why nothing was collected."""


@define(eq=False)
class Upkeep:
    """One of these serves a process."""

    files: Files
    catalog: Catalog
    recovery: Recovery
    uploads: Uploads
    digests: Digests
    linking: Linking
    collector: Collector
    scrubber: Scrubber
    clock: Clock

    async def run(self, plan: Plan) -> Maintained:
        """Do all that is due. Two processes may do so at the same time."""
        pruned = purged = expired = linked = 0
        for user in await self.catalog.users():
            linked += await self.linking.run(user)  # before any of it is pruned
            pruned += await self.files.prune(user, user.name, around_locks=True)
            expired += await self.uploads.expire(user)
            if plan.trash is not None:
                purged += await self._empty_trash(user, plan.trash)
        found = await self.digests.run()
        backup = await self._back_up(plan.backup)
        done = Maintained(pruned, purged, backup, expired, found.verified, found.false, linked)
        return await self._scrub(plan, await self._collect(plan, done))

    async def _collect(self, plan: Plan, done: Maintained) -> Maintained:
        if plan.collect is None or await self._has_collected(plan.collect):
            return done
        try:
            report = await self.collector.run(Options(duty=plan.duty))
        except Busy:  # somebody else is at it
            await self.collector.help(duty=plan.duty)
            return done
        except (Conflict, Corrupt) as error:
            return evolve(done, problems=(*done.problems, f"nothing was collected: {error}"))
        return evolve(
            done,
            condemned=report.condemned,
            freed=report.discarded_bytes,
            problems=(*done.problems, *report.problems),
        )

    async def _has_collected(self, within: timedelta) -> bool:
        """Whether a collection has begun since; dry runs, and those that only rewrite, are none."""
        since = micros(self.clock.now() - within)
        return any(
            each.begun_us > since and not msgspec.json.decode(each.report).get("partial", False)
            for each in await self.catalog.collections(limit=LOOKED_AT)
        )

    async def _scrub(self, plan: Plan, done: Maintained) -> Maintained:
        if plan.scrub is None:
            return done
        cheap = await self.scrubber.run(min(CHEAP_PERIOD, plan.scrub), cheap=True, duty=plan.duty)
        total = (await self.catalog.stats()).packed
        share = max(AT_LEAST, total // RUNS)
        full = await self.scrubber.run(plan.scrub, most=share, duty=plan.duty)
        problems = (*done.problems, *cheap.problems, *full.problems)
        return evolve(done, scrubbed=full.size, problems=problems)

    async def _empty_trash(self, user: User, age: timedelta) -> int:
        last = micros(self.clock.now() - age)
        count = after = 0
        while found := await self.files.trash(user, user.name, after=after):
            for node, _ in found:
                after = node.id
                if node.trashed_us is None or node.trashed_us > last:
                    continue
                try:
                    await self.files.purge(user, user.name, node.id)
                except NotFound:  # restored, or purged by somebody else, meanwhile
                    continue
                count += 1
        return count

    async def _back_up(self, age: timedelta | None) -> str | None:
        if age is None:
            return None
        made = await self.recovery.backups()
        if made and made[-1].created > self.clock.now() - age:
            return None
        return (await self.recovery.backup()).name

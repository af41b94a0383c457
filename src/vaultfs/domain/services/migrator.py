"""Carrying out a migration: copying packs from store to store, and going from phase to phase.

    claim -> get from the one -> digest -> put into the other -> head -> note

What is to be copied is asked of the catalog, a few packs at a time, by any number of workers;
what is done is a row for each pack. So there is nothing to be lost: a crash leaves packs that
are claimed, which are anybody's again a few minutes later; short of a crash, a worker gives
back what it does not copy. Nothing is counted as copied that did not have its digest on the
way, and the size, and the checksum if there is one, that the other store says. What fails is a
row too, is tried again, and blocks the cutover.
"""

from contextlib import aclosing, suppress
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from vaultfs.domain import migrating as steps
from vaultfs.domain.digests import Digest, digest_from_hex, digest_of
from vaultfs.domain.errors import (
    Busy,
    CatalogUnavailable,
    Conflict,
    InvalidField,
    OutcomeUnknown,
)
from vaultfs.domain.migrating import Claimed, Counts, Failure
from vaultfs.domain.migration import AT_ONCE, Blocked, Command, Level, Pace, Phase, Placement
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.services.packer import PACK_PREFIX, pack_key
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    OutOfSpace,
    PutMode,
    StoreError,
)
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.stores import Stores

LEAST: Final = 2
"""Packs that are copied at a time at first, and at the least."""
MOST: Final = 5
"""And at the most: each takes 16 MiB."""
LOOSE: Final = ("backups/",)
"""Other objects that move along: they have no rows."""
EMPTIED: Final = (PACK_PREFIX, *LOOSE, "marker/")
"""What is deleted from a store that is given up, the marker last."""
NOBODY: Final = UserId(0)
BROKEN_OFF: Final = "copying it was broken off"
NOTE_AGAIN_AFTER: Final = (0.05, 0.2, 0.8, 2.0)
"""Seconds between the tries to note what was copied, where the catalog is busy or away."""
READ_BACK: Final = 2
"""The level that says that a pack was read back."""
ALMOST: Final = 0.01
"""Of all packs, what may be missing where packs begin to be put into both stores."""
LOOK_AGAIN: Final = 2.0
"""Seconds that the pace is waited for at the most before the placement is looked at again."""


@frozen
class Status:
    """How far a migration is."""

    placement: Placement
    counts: Counts | None
    """Of the store that is copied to; None where nothing is copied."""
    unread: int = 0
    failures: tuple[Failure, ...] = ()
    unaware: tuple[str, ...] = ()
    """Servers that run and were not told where the target is: DUAL waits for them."""


@define(eq=False)
class Migrator:
    """One of these serves a process."""

    stores: Stores
    catalog: Catalog
    clock: Clock
    workers: anyio.CapacityLimiter
    answering: bool = field(default=True, init=False)
    """Whether the stores answered when something was copied last."""
    _found: bool = field(default=False, init=False)
    _last: int = field(default=0, init=False)
    """The pack that was claimed last."""
    _at_once: anyio.CapacityLimiter = field(
        factory=lambda: anyio.CapacityLimiter(LEAST), init=False
    )

    # Operating it

    async def start(
        self, target: str, level: Level = Level.SAMPLE, pace: Pace = AT_ONCE
    ) -> Placement:
        """Begin to move everything to the store `target`, which is empty or this vault's.

        Raises what is wrong with that store, `WrongStore` among it, and `Conflict`.
        """
        now = await self.catalog.placement()
        source = self.stores.primary if now is None else now.source
        if now is not None and now.phase is not Phase.SETTLED:
            if now.phase is Phase.DRAFT and now.target == target:  # that is as far as it came
                return await self.follow(Command.START)
            raise Conflict(f"a migration from {now.source} to {now.target} is {now.phase} already")
        store = await self.stores.find(target)
        await store.probe()
        await self._see_that_it_is_apart(source, target)
        await self._see_room(store)
        await self.stores.claim(target)
        await self._step(steps.Propose(source, target, level, pace))
        return await self.follow(Command.START)

    async def _see_that_it_is_apart(self, source: str, target: str) -> None:
        """Raises `InvalidField` if the target is the source, or in what of it is emptied later.

        Addresses do not tell: folders have many names, and so have servers. Linear in the number
        of packs: a listing.
        """
        old, new = self.stores.store(source), self.stores.store(target)
        key = f"probe/{self.clock.new_id()}"
        await new.put(key, b"apart")
        try:
            for prefix in ("probe/", *EMPTIED):
                async with aclosing(old.list(prefix)) as found:
                    async for info in found:
                        if info.key == key:
                            raise InvalidField(f"{target} is where everything is")
                        if info.key.endswith(f"/{key}"):
                            raise InvalidField(f"{target} is within {source}")
        finally:
            await new.delete(key)

    async def _see_room(self, store: ObjectStore) -> None:
        """Raises `OutOfSpace` if it can be told that everything does not fit in."""
        room, size = await store.room(), (await self.catalog.stats()).packed
        if room is not None and room < size:
            raise OutOfSpace(
                f"there is room for {room} bytes, and the packs are {size}",
                backend=store.name,
                operation="start",
            )

    async def follow(self, command: Command, if_epoch: int | None = None) -> Placement:
        """Go on to another phase. Raises `Blocked` with what is in the way, and `Conflict`."""
        now = await self._placement()
        if now.target is not None and command is Command.CUTOVER:
            await self._try(now.target)
            await self._copy_loose(now.source, now.target)
        elif now.target is not None and command is Command.REVERSED:
            await self._copy_loose(now.target, now.source)
        await self._step(steps.Follow(command, if_epoch))
        await self.stores.refresh()
        return await self._placement()

    async def _try(self, name: str) -> None:
        """Raises `Blocked` if a store does not work, that every write is about to need."""
        try:
            await self.stores.store(name).probe()
        except StoreError as error:
            raise Blocked((f"{name} does not work: {error.message}",)) from error

    async def pause(self, *, paused: bool, if_epoch: int | None = None) -> Placement:
        """Stop copying, or go on."""
        await self._step(steps.Pause(paused, if_epoch))
        await self.stores.refresh()
        return await self._placement()

    async def throttle(self, pace: Pace, if_epoch: int | None = None) -> Placement:
        """Have all processes together copy no faster than `pace` says, from now on."""
        await self._step(steps.Throttle(pace, if_epoch))
        await self.stores.refresh()
        return await self._placement()

    async def retire(self, name: str, if_epoch: int | None = None) -> int:
        """Give up the source, whose name has to be said; how many objects were deleted from it."""
        now = await self._placement()
        if name != now.source:
            raise InvalidField(f"{name} is not what is given up: that is {now.source}")
        if now.phase is not Phase.RETIRED:
            now = await self.follow(Command.RETIRE, if_epoch)
        gone = await self._empty(now.source)
        await self.follow(Command.END)
        return gone

    async def announce(self, server: str, name: str, *, gone: bool = False) -> None:
        """Have it known that the server with the id `server` runs, or does not any more.

        To be repeated well within `migrating.ALIVE_US`; a server that dies is forgotten then.
        """
        await self._step(steps.Announce(server, name, self.stores.names, gone))

    async def retry(self) -> int:
        """Try again what could not be copied; how many packs."""
        now = await self.catalog.placement()
        if now is None or now.copies is None:
            return 0
        return await self._step(steps.Retry(now.copies[1]))

    async def reconcile(self) -> tuple[str, ...]:
        """Ask the store that is moved to for every pack that it has, as the rows say; those that
        it lacks are copied again.

        Linear in the number of packs: a request for each.
        """
        now = await self._placement()
        if now.target is None:
            return ()
        store, lost = self.stores.store(now.target), list[Digest]()
        after: Digest | None = None
        while page := await self.catalog.packs_in(now.target, after=after):
            for pack in page:
                try:
                    info = await store.head(pack_key(pack.key))
                except ObjectNotFound:
                    lost.append(pack.key)
                else:
                    if info.size != pack.size:
                        lost.append(pack.key)
            after = page[-1].key
        await self._step(steps.NoteLost(now.target, tuple(lost)))
        return tuple(map(pack_key, lost))

    async def status(self) -> Status:
        """How far it is."""
        now = await self.catalog.placement()
        if now is None:
            return Status(Placement(0, Phase.SETTLED, self.stores.primary), None)
        if now.target is None:
            return Status(now, None)
        to = now.copies[1] if now.copies is not None else now.target
        failures = await self.catalog.copy_failures(to)
        unread = await self.catalog.unread(to, now.level)
        unaware = await self.catalog.unaware(now.target, micros(self.clock.now()))
        counts = await self.catalog.copy_counts(to)
        return Status(now, counts, unread, tuple(failures), unaware)

    async def _placement(self) -> Placement:
        now = await self.catalog.placement()
        if now is None:
            raise Conflict(
                "there is no migration: `vaultfs migrate start --to NAME=URL` begins one"
            )
        return now

    async def _step(self, step: steps.Step) -> int:
        return await self.catalog.migrate(step, NOBODY, micros(self.clock.now()))

    # Copying

    async def run(self, *, progress: Progress = no_progress) -> bool:
        """Copy until nothing is left to copy now; whether all of it is there, and read back.

        A store that does not answer, whoever tried how often around it, ends it for now, and so
        does a pause; what others have claimed is not waited for. `progress` is told bytes.
        Memory: `MOST` packs. Raises what a catalog raises; what a store does is in the rows.
        """
        while True:
            self.answering, self._found = True, False
            async with task_group() as tasks:
                await self._lane(tasks, MOST - 1, progress)
            now = await self.catalog.placement()
            if now is None or now.copies is None or now.paused or not self.answering:
                return False
            if self._found or await self._read_some_back(now, now.copies[1]):
                continue
            wait = await self.catalog.copies_wait(micros(self.clock.now()))
            if not wait:
                return await self._is_complete(now, now.copies[1])
            await anyio.sleep(min(wait / 1e6, LOOK_AGAIN))

    async def _lane(self, tasks: TaskGroup, more: int, progress: Progress) -> None:
        """Copy pack by pack until there is none to be had; once there was one, others do so
        beside it, `more` at the most.
        """
        while self.answering:
            async with self._at_once:
                now = await self.catalog.placement()
                if now is None or now.copies is None or now.paused:
                    return
                claimed = await self._claim(now.copies[1])
                if not claimed:
                    return
                self._found = True
                if more:
                    tasks.start_soon(self._lane, tasks, more - 1, progress)
                    more = 0
                await self._copy_one(claimed[0], now.copies, progress)

    async def _claim(self, name: str) -> list[Claimed]:
        """Claim a pack, cancelled or not: what is claimed has to be given back."""
        now, claimed = micros(self.clock.now()), list[Claimed]()
        with anyio.CancelScope(shield=True):
            claimed += await self.catalog.claim_copies(name, now, after=self._last, limit=1)
        self._last = claimed[0].number if claimed else 0
        return claimed

    async def compare(self) -> tuple[str, ...]:
        """Compare some of the reads of this process with what the store that is moved to says;
        the packs that differ, which are copied again before anybody can cut over.

        A pack that is not there yet is no difference, nor is a store that does not answer.
        """
        now, wrong = await self.catalog.placement(), set[str]()
        if now is None or now.target is None or not now.degrades:
            return ()
        store = self.stores.store(now.target)
        for shadow in self.stores.shadows():
            if not shadow.key.startswith(PACK_PREFIX):
                continue
            with suppress(StoreError):
                data = await store.get(shadow.key, shadow.span)
                if digest_of(data) != shadow.digest:
                    wrong.add(shadow.key)
        keys = tuple(digest_from_hex(key.removeprefix(PACK_PREFIX)) for key in sorted(wrong))
        if keys:
            await self._step(steps.NoteLost(now.target, keys))
        return tuple(sorted(wrong))

    async def _is_complete(self, now: Placement, name: str) -> bool:
        counts = await self.catalog.copy_counts(name)
        return counts.there == counts.packs and not await self.catalog.unread(name, now.level)

    async def advance(self) -> None:
        """Go on to the phase that follows by itself, if enough is copied.

        That is all of it on the way back; to have packs put into both stores, all but one in a
        hundred: as long as that is not so, more of them may come than are copied. Raises `Blocked`.
        """
        now = await self._placement()
        following = {Phase.COPYING: (Command.DUAL, ALMOST), Phase.REVERSING: (Command.REVERSED, 0)}
        if now.copies is None or now.paused or now.phase not in following:
            return
        command, share = following[now.phase]
        counts = await self.catalog.copy_counts(now.copies[1])
        if counts.packs - counts.there > counts.packs * share:
            return
        try:
            await self.follow(command, now.epoch)
        except Blocked:
            raise
        except Conflict:
            if (await self._placement()).epoch == now.epoch:  # else somebody else did that
                raise

    async def _copy_one(self, pack: Claimed, copies: tuple[str, str], progress: Progress) -> None:
        """Copy a pack, and note what became of it.

        One that an error or a cancellation kept from being copied is anybody's at once.
        """
        noted: tuple[tuple[int, int, str | None], ...] = ()
        put_off: tuple[tuple[int, str], ...] = ((pack.number, BROKEN_OFF),)
        try:
            await self._copy(pack, *map(self.stores.store, copies))
        except StoreError as error:
            if error.retryable:
                put_off = ((pack.number, error.message),)
                self.answering = False
            else:
                noted, put_off = ((pack.number, 0, error.message),), ()
        else:
            noted, put_off = ((pack.number, 1, None),), ()
        finally:
            await self._note(steps.NoteCopied(copies[1], noted, pack.since, put_off))
        lanes = self._at_once.total_tokens
        if noted and noted[0][1]:
            progress(pack.size)
            self._at_once.total_tokens = min(MOST, lanes + 1)
        else:
            self._at_once.total_tokens = max(LEAST, lanes // 2)

    async def _note(self, step: steps.NoteCopied) -> None:
        """Note what became of claims, cancelled or not, and again if the catalog was busy.

        What is noted twice is as if it had been once; what is not is nobody's for as long as
        claims last. Raises what the catalog raised last.
        """
        with anyio.CancelScope(shield=True):
            for pause in NOTE_AGAIN_AFTER:
                try:
                    await self._step(step)
                except (Busy, CatalogUnavailable, OutcomeUnknown):
                    await anyio.sleep(pause)
                else:
                    return
            await self._step(step)

    async def _copy(self, pack: Claimed, source: ObjectStore, target: ObjectStore) -> None:
        """Copy a pack, seen to be right. Raises a `StoreError` with what is wrong."""
        key = pack_key(pack.key)
        data = await source.get(key)
        if await to_thread.run_sync(digest_of, data, limiter=self.workers) != pack.key:
            raise _damaged(source, key)
        try:
            await target.put(key, data)
        except ObjectExists:
            if await self._digest_in(target, key) != pack.key:
                await target.put(key, data, mode=PutMode.OVERWRITE)
        await self._see(target, pack)

    async def _see(self, target: ObjectStore, pack: Claimed) -> None:
        """Compare what the store says of a pack with what it has to be."""
        info = await target.head(pack_key(pack.key))
        crc32c = dict(info.digests).get("crc32c")
        wrong = (
            crc32c is not None
            and pack.crc32c is not None
            and int.from_bytes(crc32c, "big") != pack.crc32c
        )
        if info.size != pack.size or wrong:
            raise _damaged(target, pack_key(pack.key))

    async def _digest_in(self, store: ObjectStore, key: str) -> bytes:
        try:
            data = await store.get(key)
        except ObjectNotFound:
            return b""
        return await to_thread.run_sync(digest_of, data, limiter=self.workers)

    async def _read_some_back(self, now: Placement, name: str) -> bool:
        """Read back some of what the level wants read back; whether there was any."""
        if now.level not in {Level.SAMPLE, Level.ALL}:
            return False
        if not await self.catalog.unread(name, now.level):
            return False
        at_us = micros(self.clock.now())
        wanted = await self.catalog.to_read_back(name, READ_BACK, at_us)
        if not wanted:
            return False
        target, left = self.stores.store(name), {pack.number: BROKEN_OFF for pack in wanted}
        noted: list[tuple[int, int, str | None]] = []
        try:
            for pack in wanted:
                noted.append((pack.number, READ_BACK, await self._problem_in(target, pack)))
                del left[pack.number]
        finally:
            step = steps.NoteCopied(name, tuple(noted), wanted[0].since, tuple(left.items()))
            await self._note(step)
        return True

    async def _problem_in(self, store: ObjectStore, pack: Claimed) -> str | None:
        """What is wrong with a pack that is read back."""
        try:
            good = await self._digest_in(store, pack_key(pack.key)) == pack.key
        except StoreError as error:
            return error.message
        return None if good else "what was read back is damaged"

    async def _copy_loose(self, *names: str) -> None:
        """Have the second store hold what the first has and no rows: backups.

        Before the cutover, and before the way back is complete: wherever else a phase ends, both
        were written. So nobody needs a store that is down to go away from it.
        """
        source, target = map(self.stores.store, names)
        for prefix in LOOSE:
            async with aclosing(source.list(prefix)) as found:
                async for info in found:
                    await self._copy_object(info.key, source, target)

    async def _copy_object(self, key: str, source: ObjectStore, target: ObjectStore) -> None:
        try:
            await target.head(key)
        except ObjectNotFound:
            try:
                await target.put(key, await source.get(key))
            except (ObjectNotFound, ObjectExists):  # removed, or put by somebody, meanwhile
                return

    async def _empty(self, name: str) -> int:
        """Delete what the vault has in a store, the marker last.

        As long as the store is given up: who did that at the same time, and was faster, may have
        begun to move there again. Raises `Conflict` then.
        """
        store, gone = self.stores.store(name), 0
        for prefix in EMPTIED:
            async with aclosing(store.list(prefix)) as found:
                keys = [info.key async for info in found]
            for start in range(0, len(keys), 256):
                now = await self._placement()
                if (now.phase, now.source) != (Phase.RETIRED, name):
                    raise Conflict(f"the migration is {now.phase}: somebody else was faster")
                for outcome in await store.delete_many(keys[start : start + 256]):
                    if outcome.error is not None:
                        raise outcome.error
                    gone += 1
        return gone


def _damaged(store: ObjectStore, key: str) -> StoreError:
    return IntegrityError("does not have its digest", backend=store.name, operation="copy", key=key)

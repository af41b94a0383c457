"""Locks to wait for: the lock table's decisions turned into waiting, time-outs and errors.

    async with locks.hold(owner, tree, {path: Mode.X, other: Mode.S}, timeout=5) as held:
        ...                                     # held.presented goes with writes
        await held.upgrade(other, Mode.X)

What is asked for in one call is had whole or not at all, so owners that ask once cannot
deadlock each other. A call that fails, is cancelled or times out leaves nothing: a request
that waits is taken back, and a grant that comes at the same moment is given back.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio import get_cancelled_exc_class
from attrs import define

from vaultfs.domain.errors import (
    LeaseExpired,
    LockMisuse,
    WouldBlock,
)
from vaultfs.domain.intervals import Range
from vaultfs.domain.lockitems import MAX_LOCKS
from vaultfs.domain.lockmodes import Mode, Resource, covers
from vaultfs.domain.locknodes import (
    Answer,
    Grant,
    Owner,
    Waiting,
)
from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import TreeId, User
from vaultfs.domain.services.holds import Hold
from vaultfs.domain.services.lockchanges import (
    grant_of,
    modes_of,
    not_held,
    ranges_of,
    refuse,
    release,
    take_back,
    unconvert,
)
from vaultfs.domain.services.lockview import Held, Snapshot, held_of, snapshot_of
from vaultfs.domain.services.lockwaits import LockWaits
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.clock import Clock
from vaultfs.ports.locks import LockStore

T = TypeVar("T")
Undo = Callable[[TreeLocks, tuple[Answer, int]], None]

NO_PATHS: Final[Mapping[Path, Mode]] = {}
NO_RANGES: Final[Mapping[Path, tuple[Range, ...]]] = {}


@define(eq=False)
class Locks(LockWaits):
    """One of these serves all tasks of a process. Made by `open_locks`."""

    def start(self) -> None:
        """Let other processes know that this one lives, as long as the task group does."""
        self._tasks.start_soon(self.store.live)

    # Scoped

    def hold(
        self,
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, Mode],
        *,
        ranges: Mapping[Path, tuple[Range, ...]] = NO_RANGES,
        timeout: float | None = None,
    ) -> "Hold":
        """Have `items` inside `async with`; see `acquire` for what entering it raises."""
        return Hold(self, owner, tree, items, ranges, timeout)

    def lock_file_for_user(self, user: User, path: Path, *, timeout: float | None = None) -> "Hold":
        """Have that file of the user alone, inside `async with`."""
        return self.lock_user_files(user, (path,), timeout=timeout)

    def lock_user_files(
        self, user: User, paths: Iterable[Path] | None = None, *, timeout: float | None = None
    ) -> "Hold":
        """Have those files of the user alone, or the whole tree, inside `async with`."""
        wanted = dict.fromkeys(((),) if paths is None else paths, Mode.X)
        return Hold(self, self.new_owner(), user.tree, wanted, NO_RANGES, timeout)

    def new_owner(self) -> Owner:
        """An owner that nobody else is."""
        return Owner(self.clock.new_id())

    # Unscoped

    async def acquire(
        self,
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, Mode] = NO_PATHS,
        *,
        ranges: Mapping[Path, tuple[Range, ...]] = NO_RANGES,
        timeout: float | None = None,
        ttl: float | None = None,
    ) -> int:
        """Have all of `items` and `ranges`; the token. Whoever has it has to release it.

        Waits up to `timeout` seconds: 0 is now or not at all, None for ever. With `ttl` it is
        a lease, which ends so many seconds later unless it is renewed, and else with this
        process. Raises `InvalidName` and `LockMisuse` (none, or more than 1,000 paths and
        ranges), with nothing done; `WouldBlock`, `LockTimedOut`, `DeadlockFound`,
        `LockOwnerBusy`, and `LeaseExpired` if the lease ran out while it was waited for.
        """
        wanted, spans = modes_of(tree, items), ranges_of(tree, ranges) if ranges else {}
        count = len(wanted) + sum(map(len, spans.values())) if spans else len(wanted)
        if not 0 < count <= MAX_LOCKS:
            raise LockMisuse(f"{count} paths and ranges: 1 to {MAX_LOCKS} can be locked")
        wait = timeout is None or timeout > 0
        table = self.store.at_once(tree, timed=ttl is not None)
        if table is None:
            answer = await self._ask(owner, tree, (wanted, spans), ttl, wait=wait)
        else:
            expires = None if ttl is None else table.now + ttl
            answer = table.request(owner, wanted, ranges=spans, expires=expires, wait=wait)
            if table.passed:
                self._pass_on(tree, table)
        if isinstance(answer, Grant):
            return answer.id
        if not isinstance(answer, Waiting):
            refuse(answer, wanted, spans)
        token = await self._wait(tree, answer.id, timeout)
        if ttl is not None:
            await self._begin_lease(owner, tree, token, ttl)
        return token

    async def _ask(
        self,
        owner: Owner,
        tree: TreeId,
        wanted: tuple[dict[Resource, Mode], dict[Resource, tuple[Range, ...]]],
        ttl: float | None,
        *,
        wait: bool,
    ) -> Answer:
        """The table's answer to a request, where others share the table."""
        items, ranges = wanted
        session = self.store.session

        def ask(locks: TreeLocks) -> tuple[Answer, int]:
            table = locks.table
            expires = None if ttl is None else table.now + ttl
            answer = table.request(owner, items, ranges=ranges, expires=expires, wait=wait)
            locks.note(answer, session)
            return answer, answer.id if isinstance(answer, Grant | Waiting) else 0

        undo: Undo = partial(take_back, owner)
        return (await self._queued(tree, ask, undo))[0]

    def _pass_on(self, tree: TreeId, table: LockTable) -> None:
        """Tell those who wait in this process, which has the table alone, what they got."""
        for request, got in table.take_passed():
            self._settle((tree, request), None if got is None else got.id)

    async def _begin_lease(self, owner: Owner, tree: TreeId, token: int, ttl: float) -> None:
        """Count the time of a lease that was waited for from now on."""
        try:
            await self.renew(owner, tree, token, ttl)
        except BaseException:
            await self.let_go(owner, tree, token)
            raise

    async def try_hold(
        self,
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, Mode],
        *,
        ttl: float | None = None,
    ) -> int | None:
        """As `acquire`, but None if it cannot be had now."""
        try:
            return await self.acquire(owner, tree, items, timeout=0, ttl=ttl)
        except WouldBlock:
            return None

    async def release(self, owner: Owner, tree: TreeId, token: int) -> None:
        """Give a grant back. Raises `NotHeld`."""
        if not await self.store.change(tree, partial(release, owner, token)):
            raise not_held(owner, token)

    async def renew(self, owner: Owner, tree: TreeId, token: int, ttl: float) -> None:
        """Let a lease end `ttl` seconds from now. Raises `LeaseExpired`."""

        def extend(locks: TreeLocks) -> bool:
            grant = locks.table.grants.get(token)
            if grant is None or grant.owner != owner:
                return False
            locks.table.renew(token, locks.table.now + ttl)
            locks.changed = True
            return True

        if not await self.store.change(tree, extend):
            raise LeaseExpired(
                f"the lease {owner}.{token} ran out, was broken or never was: take it anew"
            )

    async def upgrade(
        self,
        owner: Owner,
        tree: TreeId,
        token: int,
        items: Mapping[Path, Mode],
        *,
        timeout: float | None = None,
    ) -> None:
        """Give the grant stronger modes for what it has; waits as `acquire` does.

        Meanwhile it keeps what it has, and if it fails it has just that. Raises as `acquire`,
        `NotHeld`, and `LockMisuse` for modes that are not as strong as those that it has.
        """
        wanted = modes_of(tree, items)
        session = self.store.session
        wait = timeout is None or timeout > 0

        def ask(locks: TreeLocks) -> tuple[Answer, int, dict[Resource, Mode]]:
            grant = grant_of(locks, owner, token, wanted)
            before = {each: grant.items[each] for each in wanted}
            if not all(covers(mode, before[each]) for each, mode in wanted.items()):
                raise LockMisuse("an upgrade is to modes that are stronger: downgrade instead")
            answer = locks.table.convert(token, wanted, wait=wait)
            locks.changed = True
            if session and isinstance(answer, Waiting):
                locks.note(answer, session)
            return answer, answer.id if isinstance(answer, Waiting) else 0, before

        def undo(locks: TreeLocks, done: tuple[Answer, int, dict[Resource, Mode]]) -> None:
            unconvert(locks, done[1], token, done[2])

        answer, number, before = await self._queued(tree, ask, undo)
        if isinstance(answer, Grant):
            return
        if not isinstance(answer, Waiting):
            refuse(answer, wanted)
        await self._wait(tree, number, timeout, before)

    async def downgrade(
        self, owner: Owner, tree: TreeId, token: int, items: Mapping[Path, Mode]
    ) -> None:
        """Give the grant weaker modes for what it has, at once.

        Raises `NotHeld`, and `LockMisuse` for modes that are not weaker.
        """
        wanted = modes_of(tree, items)

        def ask(locks: TreeLocks) -> None:
            grant = grant_of(locks, owner, token, wanted)
            if not all(covers(grant.items[each], mode) for each, mode in wanted.items()):
                raise LockMisuse("a downgrade is to modes that are weaker: upgrade instead")
            locks.table.convert(token, wanted)
            locks.changed = True

        await self.store.change(tree, ask)

    async def find(self, owner: Owner, tree: TreeId, token: int) -> Held | None:
        """The grant with that token, if it is held."""

        def look(locks: TreeLocks) -> Held | None:
            grant = locks.table.grants.get(token)
            return (
                None if grant is None or grant.owner != owner else held_of(grant, locks.table.now)
            )

        return await self.store.look(tree, look)

    async def snapshot(self, tree: TreeId) -> Snapshot:
        """Who holds what, who waits for whom, and in which order, for people and tests."""
        return await self.store.look(tree, snapshot_of)

    async def let_go(self, owner: Owner, tree: TreeId, token: int) -> None:
        """Give a grant back, if it is still there; not to be cancelled.

        Raises nothing: where the store cannot do it now, it is tried until it can.
        """
        table = self.store.at_once(tree)
        if table is not None:
            grant = table.grants.get(token)
            if grant is not None and grant.owner == owner:
                table.release(token)
            if table.passed:  # also where it had run out
                self._pass_on(tree, table)
            return
        give_back = partial(self.store.change, tree, partial(release, owner, token))
        try:
            await self._now_or_later(give_back)
        except get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._now_or_later(give_back)
            raise


@asynccontextmanager
async def open_locks(store: LockStore, clock: Clock) -> AsyncGenerator[Locks, None]:
    """The locks that `store` keeps, which stays the caller's to close."""
    async with task_group() as tasks:
        locks = Locks(store, clock, tasks)
        locks.start()
        try:
            yield locks
        finally:
            tasks.cancel_scope.cancel()

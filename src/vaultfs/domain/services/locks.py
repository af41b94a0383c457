"""Locks to wait for: the lock table's decisions turned into waiting, time-outs and errors.

    async with locks.hold(owner, tree, {path: Mode.X, other: Mode.S}, timeout=5) as held:
        ...                                     # held.presented goes with writes
        await held.upgrade(other, Mode.X)

What is asked for in one call is had whole or not at all, so owners that ask once cannot
deadlock each other. A call that fails, is cancelled or times out leaves nothing: a request
that waits is taken back, and a grant that comes at the same moment is given back.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar

import anyio
from anyio import from_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken, current_token
from attrs import define, field, frozen

from vaultfs.domain.errors import (
    DeadlockFound,
    LeaseExpired,
    LockMisuse,
    LockOwnerBusy,
    LockTimedOut,
    NotHeld,
    VaultError,
    WouldBlock,
    listed,
)
from vaultfs.domain.intervals import Range
from vaultfs.domain.lockitems import MAX_LOCKS, path_of, resource, told, who
from vaultfs.domain.lockmodes import Mode, Resource, covers
from vaultfs.domain.locknodes import (
    NOTHING,
    Answer,
    Blocked,
    Blocker,
    Deadlock,
    Grant,
    Link,
    Owner,
    OwnerBusy,
    Presented,
    Waiting,
)
from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import News, TreeLocks
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import TreeId, User
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.clock import Clock
from vaultfs.ports.locks import LockStore

T = TypeVar("T")
Undo = Callable[[TreeLocks, tuple[Answer, int]], None]

NO_PATHS: Final[Mapping[Path, Mode]] = {}
NO_RANGES: Final[Mapping[Path, tuple[Range, ...]]] = {}
RETRY_EVERY: Final = 1.0
"""Seconds between tries to give back what could not be given back."""


class Waiter:
    """A request of this process that waits."""

    __slots__ = ("error", "event", "grant", "settled")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.settled = False
        self.grant: int | None = None
        self.error: VaultError | None = None

    def settle(self, grant: int | None) -> None:
        """It became `grant`, or nothing."""
        self.settled, self.grant = True, grant
        self.event.set()

    def fail(self, error: VaultError) -> None:
        """Nobody can tell any more what becomes of it."""
        self.error = error
        self.event.set()

    def check(self) -> None:
        """Raise why nobody can tell, if that is so."""
        if self.error is not None and not self.settled:
            raise self.error


@frozen
class Held:
    """A grant, for people and programs."""

    owner: Owner
    token: int
    items: Mapping[Resource, Mode]
    ranges: Mapping[Resource, tuple[Range, ...]]
    expires_in: float | None
    """Seconds until its lease runs out; None: it has none."""


@frozen
class Queued:
    """A request that waits, and who keeps it waiting."""

    owner: Owner
    items: Mapping[Resource, Mode]
    ranges: Mapping[Resource, tuple[Range, ...]]
    blockers: tuple[Blocker, ...]
    """The edges of the wait-for graph from its owner."""


@frozen
class Snapshot:
    """All locks of a tree at one moment."""

    held: tuple[Held, ...]
    queued: tuple[Queued, ...]
    queues: Mapping[Resource, tuple[Owner, ...]]
    """For each resource that somebody waits for, who, in order."""


@define(eq=False)
class Locks:
    """One of these serves all tasks of a process. Made by `open_locks`."""

    store: LockStore
    clock: Clock
    _tasks: TaskGroup
    _waiters: dict[tuple[TreeId, int], Waiter] = field(factory=dict[tuple[TreeId, int], Waiter])
    _early: dict[tuple[TreeId, int], int | None] = field(
        factory=dict[tuple[TreeId, int], int | None]
    )
    """What became of requests whose callers do not know yet that they wait."""
    _asking: int = 0
    """Callers that may be about to learn that they wait."""
    _watching: bool = False

    def __attrs_post_init__(self) -> None:
        self.store.listen(self._hear)

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
        process. Raises `InvalidName` and `LockMisuse` (more than 1,000 paths, none), with nothing
        done; `WouldBlock`, `LockTimedOut`, `DeadlockFound`, `LockOwnerBusy`, and
        `LeaseExpired` if the lease ran out while it was waited for.
        """
        wanted, spans = _normal(tree, items), _normal(tree, ranges)
        if not 0 < len(wanted) + len(spans) <= MAX_LOCKS:
            raise LockMisuse(f"{len(wanted) + len(spans)} paths: 1 to {MAX_LOCKS} can be locked")
        wait = timeout is None or timeout > 0
        self._asking += 1
        try:
            table = self.store.at_once(tree)
            if table is None:
                answer = await self._ask(owner, tree, (wanted, spans), ttl, wait=wait)
            else:
                expires = None if ttl is None else table.now + ttl
                answer = table.request(owner, wanted, ranges=spans, expires=expires, wait=wait)
                self._pass_on(tree, table)
            if isinstance(answer, Grant):
                return answer.id
            if not isinstance(answer, Waiting):
                _refuse(answer, wanted, spans)
            waiter = self._queue_up(tree, answer.id)
        finally:
            self._asking -= 1
        token = await self._wait((tree, answer.id), waiter, timeout)
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

        undo: Undo = partial(_undo, owner)
        return (await self.store.change(tree, ask, undo))[0]

    def _pass_on(self, tree: TreeId, table: LockTable) -> None:
        """Tell those who wait in this process, which has the table alone, what they got."""
        passed = table.take_passed()
        if passed is not NOTHING:
            dropped = ((request, None) for request in passed.dropped)
            self._hear(tree, (*((request, got.id) for request, got in passed.granted), *dropped))

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
        if not await self.store.change(tree, partial(_release, owner, token)):
            raise _not_held(owner, token)

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
            raise LeaseExpired(f"the lease {owner}.{token} has run out, or never was: take it anew")

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
        wanted = _normal(tree, items)
        session = self.store.session
        wait = timeout is None or timeout > 0

        def ask(locks: TreeLocks) -> tuple[Answer, int, dict[Resource, Mode]]:
            grant = _grant(locks, owner, token, wanted)
            before = {each: grant.items[each] for each in wanted}
            if not all(covers(mode, before[each]) for each, mode in wanted.items()):
                raise LockMisuse("an upgrade is to modes that are stronger: downgrade instead")
            answer = locks.table.convert(token, wanted, wait=wait)
            locks.changed = True
            if session and isinstance(answer, Waiting):
                locks.note(answer, session)
            return answer, answer.id if isinstance(answer, Waiting) else 0, before

        def undo(locks: TreeLocks, done: tuple[Answer, int, dict[Resource, Mode]]) -> None:
            _unconvert(locks, done[1], token, done[2])

        self._asking += 1
        try:
            answer, number, before = await self.store.change(tree, ask, undo)
            if isinstance(answer, Grant):
                return
            if not isinstance(answer, Waiting):
                _refuse(answer, wanted)
            waiter = self._queue_up(tree, number)
        finally:
            self._asking -= 1
        await self._wait((tree, number), waiter, timeout, before)

    async def downgrade(
        self, owner: Owner, tree: TreeId, token: int, items: Mapping[Path, Mode]
    ) -> None:
        """Give the grant weaker modes for what it has, at once.

        Raises `NotHeld`, and `LockMisuse` for modes that are not weaker.
        """
        wanted = _normal(tree, items)

        def ask(locks: TreeLocks) -> None:
            grant = _grant(locks, owner, token, wanted)
            if not all(covers(grant.items[each], mode) for each, mode in wanted.items()):
                raise LockMisuse("a downgrade is to modes that are weaker: upgrade instead")
            locks.table.convert(token, wanted)
            locks.changed = True

        await self.store.change(tree, ask)

    async def find(self, owner: Owner, tree: TreeId, token: int) -> Held | None:
        """The grant with that token, if it is held."""

        def look(locks: TreeLocks) -> Held | None:
            grant = locks.table.grants.get(token)
            return None if grant is None or grant.owner != owner else _held(grant, locks.table.now)

        return await self.store.look(tree, look)

    async def snapshot(self, tree: TreeId) -> Snapshot:
        """Who holds what, who waits for whom, and in which order, for people and tests."""
        return await self.store.look(tree, _snapshot)

    async def let_go(self, owner: Owner, tree: TreeId, token: int) -> None:
        """Give a grant back, if it is still there; not to be cancelled.

        Raises nothing: where the store cannot do it now, it is tried until it can.
        """
        table = self.store.at_once(tree)
        if table is not None:
            grant = table.grants.get(token)
            if grant is not None and grant.owner == owner:
                table.release(token)
                self._pass_on(tree, table)
            return
        with anyio.CancelScope(shield=True):
            try:
                await self.store.change(tree, partial(_release, owner, token))
            except VaultError:
                self._tasks.start_soon(self._let_go_later, owner, tree, token)

    async def _let_go_later(self, owner: Owner, tree: TreeId, token: int) -> None:
        """Give back what could not be given back now: nobody else would, while we live."""
        while True:
            await anyio.sleep(RETRY_EVERY)
            with suppress(VaultError):
                await self.store.change(tree, partial(_release, owner, token))
                return

    # Waiting

    def _hear(self, tree: TreeId, news: News) -> None:
        if not self._asking:
            self._early.clear()  # of callers who have gone
        for request, grant in news:
            waiter = self._waiters.get((tree, request))
            if waiter is not None:
                waiter.settle(grant)
            elif self._asking:
                self._early[tree, request] = grant

    def _queue_up(self, tree: TreeId, request: int) -> Waiter:
        """Be told what becomes of `request`."""
        key = (tree, request)
        waiter = self._waiters[key] = Waiter()
        if key in self._early:
            waiter.settle(self._early.pop(key))
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._look_around)
        return waiter

    async def _wait(
        self,
        key: tuple[TreeId, int],
        waiter: Waiter,
        timeout: float | None,
        before: dict[Resource, Mode] | None = None,
    ) -> int:
        """The token of the grant that a request becomes; `before` if it converts one."""
        try:
            if timeout is None:
                await waiter.event.wait()
            else:
                with anyio.move_on_after(timeout):
                    await waiter.event.wait()
            waiter.check()
            if not waiter.settled:
                await self._give_up(key, waiter, timeout)
        except BaseException:
            if not waiter.settled or waiter.grant is not None:
                await self._take_back(key, waiter, before)
            raise
        finally:
            del self._waiters[key]
        if waiter.grant is None:
            raise LeaseExpired("the lease ran out, or what was to be changed, while it waited")
        return waiter.grant

    async def _give_up(
        self, key: tuple[TreeId, int], waiter: Waiter, timeout: float | None
    ) -> None:
        """Raise that the time is over, unless it was granted in the last moment."""

        def leave(locks: TreeLocks) -> tuple[Blocker, ...] | None:
            request = locks.table.waiting.get(key[1])
            if request is None:
                return None
            blockers = tuple(locks.table.blockers(request))
            locks.table.cancel(key[1])
            locks.changed = True
            return blockers

        with anyio.CancelScope(shield=True):
            blockers = await self.store.change(key[0], leave)
            if blockers is not None:
                waiter.settled = True
                raise LockTimedOut(
                    f"not had in {timeout:g} seconds: {who(blockers)}", blockers=blockers
                )
            await waiter.event.wait()  # it is on its way
            waiter.check()

    async def _take_back(
        self, key: tuple[TreeId, int], waiter: Waiter, before: dict[Resource, Mode] | None
    ) -> None:
        """Have neither the request nor what it became."""

        def leave(locks: TreeLocks) -> bool:
            """Whether it had become something that this process is yet to be told."""
            if key[1] in locks.table.waiting:
                locks.table.cancel(key[1])
                locks.changed = True
                return False
            return not waiter.settled

        with anyio.CancelScope(shield=True):
            if await self.store.change(key[0], leave):
                await waiter.event.wait()
            if waiter.grant is not None:
                token = waiter.grant
                if before is None:
                    undo = partial(_drop, token)
                else:
                    undo = partial(_unconvert, request=0, token=token, before=before)
                await self.store.change(key[0], undo)

    async def _look_around(self) -> None:
        """See that those who wait hear of what others do, and of leases that run out."""
        try:
            while self._waiters:
                await self.store.news({tree for tree, _ in self._waiters})
                for tree in {tree for tree, _ in self._waiters}:
                    await self._look_at(tree)
        except VaultError as error:
            for waiter in self._waiters.values():
                waiter.fail(error)
        finally:
            self._watching = False

    async def _look_at(self, tree: TreeId) -> None:
        known = [key for key in self._waiters if key[0] == tree]
        waiting = await self.store.change(tree, _waiting)
        for key in known:
            waiter = self._waiters.get(key)
            if waiter is not None and not waiter.settled and key[1] not in waiting:
                waiter.settle(None)  # this process was taken for dead


class Hold:
    """What is held inside `async with`."""

    __slots__ = ("_items", "_locks", "_ranges", "_timeout", "owner", "token", "tree")

    def __init__(
        self,
        locks: Locks,
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, Mode],
        ranges: Mapping[Path, tuple[Range, ...]],
        timeout: float | None,
    ) -> None:
        self._locks = locks
        self._items = items
        self._ranges = ranges
        self._timeout = timeout
        self.owner = owner
        self.tree = tree
        self.token = 0

    async def __aenter__(self) -> Self:
        """Raises as `Locks.acquire`."""
        self.token = await self._locks.acquire(
            self.owner, self.tree, self._items, ranges=self._ranges, timeout=self._timeout
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._locks.let_go(self.owner, self.tree, self.token)

    @property
    def presented(self) -> tuple[Presented, ...]:
        """What goes with writes that this hold covers."""
        return (Presented(self.owner, self.token),)

    async def upgrade(self, path: Path, mode: Mode, *, timeout: float | None = None) -> None:
        """See `Locks.upgrade`."""
        change = {path: mode}
        await self._locks.upgrade(self.owner, self.tree, self.token, change, timeout=timeout)

    async def downgrade(self, path: Path, mode: Mode) -> None:
        """See `Locks.downgrade`."""
        await self._locks.downgrade(self.owner, self.tree, self.token, {path: mode})


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


# What is done to the locks of a tree


def _normal(tree: TreeId, items: Mapping[Path, T]) -> dict[Resource, T]:
    return {resource(tree, path): each for path, each in items.items()}


def _waiting(locks: TreeLocks) -> frozenset[int]:
    """Who waits, after the time was told and dead sessions buried, as for every change."""
    return frozenset(locks.table.waiting)


def _grant(locks: TreeLocks, owner: Owner, token: int, items: Mapping[Resource, Mode]) -> Grant:
    grant = locks.table.grants.get(token)
    if grant is None or grant.owner != owner:
        raise _not_held(owner, token)
    missing = [each for each in items if each not in grant.items]
    if missing:
        raise NotHeld(f"the lock {owner}.{token} does not have {listed(map(path_of, missing))}")
    return grant


def _not_held(owner: Owner, token: int) -> NotHeld:
    return NotHeld(f"the lock {owner}.{token} is not held: it ran out or was given back")


def _release(owner: Owner, token: int, locks: TreeLocks) -> bool:
    """Give a grant back; whether it was there."""
    grant = locks.table.grants.get(token)
    if grant is None or grant.owner != owner:
        return False
    _drop(token, locks)
    return True


def _drop(token: int, locks: TreeLocks) -> None:
    if token in locks.table.grants:
        locks.table.release(token)
        locks.sessions.pop(token, None)
        locks.changed = True


def _undo(owner: Owner, locks: TreeLocks, done: tuple[Answer, int]) -> None:
    """Take back a request, or what it became: its owner asked for nothing since."""
    number = done[1]
    if number in locks.table.waiting:
        locks.table.cancel(number)
        locks.changed = True
    elif number:
        for token in list(locks.table.owned.get(owner, ())):
            if token >= number:
                _drop(token, locks)


def _unconvert(locks: TreeLocks, request: int, token: int, before: dict[Resource, Mode]) -> None:
    """Take back a conversion: what waits for it, or what came of it."""
    locks.changed = True
    if request in locks.table.waiting:
        locks.table.cancel(request)
        return
    grant = locks.table.grants.get(token)
    if grant is not None:
        there = {each: mode for each, mode in before.items() if each in grant.items}
        locks.table.convert(token, there)


def _held(grant: Grant, now: float) -> Held:
    left = None if grant.expires is None else grant.expires - now
    return Held(grant.owner, grant.token, dict(grant.items), dict(grant.ranges), left)


def _snapshot(locks: TreeLocks) -> Snapshot:
    table = locks.table
    return Snapshot(
        tuple(_held(grant, table.now) for grant in table.grants.values()),
        tuple(
            Queued(each.owner, dict(each.items), dict(each.ranges), tuple(table.blockers(each)))
            for each in table.waiting.values()
        ),
        {
            place: tuple(each.owner for each in node.queue)
            for place, node in table.nodes.items()
            if node.queue is not None
        },
    )


def _refuse(answer: Answer, *wanted: Iterable[Resource]) -> NoReturn:
    """Raise why something was not granted."""
    paths = listed(path_of(each) for some in wanted for each in some)
    match answer:
        case Blocked(blockers=blockers):
            raise WouldBlock(f"{paths} cannot be had now: {who(blockers)}", blockers=blockers)
        case Deadlock(circle=circle):
            steps = "; ".join(map(_step, circle))
            raise DeadlockFound(f"waiting for {paths} would never end: {steps}", circle=circle)
        case OwnerBusy():
            raise LockOwnerBusy(f"{paths}: the owner waits for another lock already")
        case _:
            raise AssertionError(answer)


def _step(link: Link) -> str:
    where = path_of(link.resource)
    holds = told(Blocker(link.holder, link.resource, link.held))
    return f"{link.owner} waits for {where} ({link.wanted.name}), which {holds}"


@frozen
class ThreadLocks:
    """The same locks for code in threads, which blocks while it waits.

    Made by `from_threads` on the event loop. The waiting is a task on the loop; a thread
    that waits cannot be cancelled, so give a `timeout`.
    """

    locks: Locks
    _loop: EventLoopToken

    @contextmanager
    def lock_file_for_user(
        self, user: User, path: Path, *, timeout: float | None = None
    ) -> Generator[Hold, None, None]:
        """See `Locks.lock_file_for_user`."""
        with self.lock_user_files(user, (path,), timeout=timeout) as held:
            yield held

    @contextmanager
    def lock_user_files(
        self, user: User, paths: Iterable[Path] | None = None, *, timeout: float | None = None
    ) -> Generator[Hold, None, None]:
        """See `Locks.lock_user_files`."""
        held = self.locks.lock_user_files(user, paths, timeout=timeout)
        from_thread.run(held.__aenter__, token=self._loop)
        try:
            yield held
        finally:
            from_thread.run(held.__aexit__, None, None, None, token=self._loop)


def from_threads(locks: Locks) -> ThreadLocks:
    """The bridge for threads to `locks`, which belong to the loop that this is called on."""
    return ThreadLocks(locks, current_token())

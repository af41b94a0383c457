"""What locks must do, whatever keeps them.

A store's test module subclasses `LockContract` and supplies `locks`; who shares a store
with another process subclasses `SharedLockContract` and supplies `pair`.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import define, field

from vaultfs.domain.errors import (
    DeadlockFound,
    InvalidName,
    LeaseExpired,
    LockMisuse,
    LockOwnerBusy,
    LockTimedOut,
    NotHeld,
    WouldBlock,
)
from vaultfs.domain.intervals import byte_range
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import TreeId
from vaultfs.domain.services.locks import Locks

TREE: Final = TreeId(1)
A, B, C = Owner("a"), Owner("b"), Owner("c")
F, G, D = ("d", "f"), ("d", "g"), ("d",)


@define(eq=False)
class Actor:
    """An owner whose calls run one after another, each started without being waited for."""

    locks: Locks
    owner: Owner
    tasks: anyio.abc.TaskGroup
    tokens: list[int] = field(factory=list[int])
    state: str = "idle"
    error: Exception | None = None

    async def _run(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await call()
            self.state = "granted"
        except (DeadlockFound, WouldBlock, LockTimedOut, LeaseExpired, LockOwnerBusy) as error:
            self.state, self.error = type(error).__name__, error

    async def do(self, action: str) -> str:
        """`lock F X`, `try F X`, `up F X`, `down F S`, `drop`: what came of it so far."""
        word, *rest = action.split()
        items = {PLACES[name]: Mode[mode] for name, mode in zip(rest[::2], rest[1::2], strict=True)}

        async def call() -> None:
            if word in {"lock", "try"}:
                timeout = 0 if word == "try" else None
                token = await self.locks.acquire(self.owner, TREE, items, timeout=timeout)
                self.tokens.append(token)
            elif word == "up":
                await self.locks.upgrade(self.owner, TREE, self.tokens[-1], items)
            elif word == "down":
                await self.locks.downgrade(self.owner, TREE, self.tokens[-1], items)
            else:
                await self.locks.release(self.owner, TREE, self.tokens.pop())

        self.state = "waits"
        self.tasks.start_soon(self._run, call)
        await self.settled()
        return self.state

    async def settled(self) -> None:
        """Wait until it is granted or refused, or waits in the table."""
        while self.state == "waits":
            snapshot = await self.locks.snapshot(TREE)
            if any(each.owner == self.owner for each in snapshot.queued):
                return
            await anyio.sleep(0.001)


PLACES: Final = {"F": F, "G": G, "D": D, "R": ()}

TABLES: Final[dict[str, str]] = {
    "readers share, a writer waits for all": """
        a: lock F S -> granted
        b: lock F S -> granted
        c: lock F X -> waits
        a: drop -> granted
        c? waits
        b: drop -> granted
        c? granted""",
    "no reader passes a writer that waits": """
        a: lock F S -> granted
        b: lock F X -> waits
        c: lock F S -> waits
        a: drop -> granted
        b? granted
        c? waits
        b: drop -> granted
        c? granted""",
    "a folder is locked with what is below": """
        a: lock D X -> granted
        b: lock F S -> waits
        c: try G S -> WouldBlock
        a: drop -> granted
        b? granted""",
    "a file keeps its folder from being locked": """
        a: lock F X -> granted
        b: try D S -> WouldBlock
        b: lock G X -> granted
        c: lock D X -> waits
        a: drop -> granted
        c? waits
        b: drop -> granted
        c? granted""",
    "the tree is locked with everything": """
        a: lock R X -> granted
        b: try F S -> WouldBlock
        a: down R S -> granted
        b: try F S -> granted""",
    "of two that upgrade the second is told": """
        a: lock F S -> granted
        b: lock F S -> granted
        a: up F X -> waits
        b: up F X -> DeadlockFound
        a? waits
        b: drop -> granted
        a? granted""",
    "one at a time has U, so upgrades wait but never for each other": """
        a: lock F U -> granted
        b: lock F U -> waits
        a: up F X -> granted
        a: drop -> granted
        b? granted""",
    "an upgrade holds back newcomers": """
        a: lock F S -> granted
        b: lock F S -> granted
        a: up F X -> waits
        c: lock F S -> waits
        b: drop -> granted
        a? granted
        c? waits
        a: drop -> granted
        c? granted""",
    "a downgrade lets others in": """
        a: lock F X -> granted
        b: lock F S -> waits
        a: down F S -> granted
        b? granted""",
    "a circle is told to whom closes it, who keeps what it had": """
        a: lock F X -> granted
        b: lock G X -> granted
        a: lock G X -> waits
        b: lock F X -> DeadlockFound
        a? waits
        b: drop -> granted
        a? granted""",
    "a batch is had whole or waits holding nothing": """
        a: lock F X -> granted
        b: lock F X G X -> waits
        c: lock G S -> waits
        a: drop -> granted
        b? granted
        c? waits
        b: drop -> granted
        c? granted""",
    "one owner does not stand in its own way": """
        a: lock F S -> granted
        a: lock F X -> granted
        a: lock D X -> granted
        a: drop -> granted
        a: drop -> granted
        b: lock F S -> granted""",
}


async def play(text: str, seats: dict[str, Locks]) -> None:
    """Run the steps of a table, each owner on the locks of `seats`."""
    async with anyio.create_task_group() as tasks:
        actors = {name: Actor(locks, Owner(name), tasks) for name, locks in seats.items()}
        for line in filter(None, map(str.strip, text.splitlines())):
            if "?" in line:
                name, _, expected = line.partition("? ")
                with anyio.move_on_after(5):
                    while actors[name].state != expected:
                        await anyio.sleep(0.001)
                assert actors[name].state == expected, line
            else:
                step, _, expected = line.partition(" -> ")
                name, _, action = step.partition(": ")
                assert await actors[name].do(action) == expected, line
        tasks.cancel_scope.cancel()


async def clear(locks: Locks) -> None:
    """Give everything back, and see that nothing is left."""
    for each in (await locks.snapshot(TREE)).held:
        await locks.release(each.owner, TREE, each.token)
    snapshot = await locks.snapshot(TREE)
    assert (snapshot.held, snapshot.queued, dict(snapshot.queues)) == ((), (), {})
    assert not await locks.store.look(TREE, lambda tree: list(tree.table.nodes))


class LockContract:
    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[Locks]:
        raise NotImplementedError("a store's tests supply their own locks")

    @pytest.fixture
    async def locks(
        self, opened: AbstractAsyncContextManager[Locks]
    ) -> AsyncGenerator[Locks, None]:
        async with opened as locks:
            yield locks
            await clear(locks)

    @pytest.mark.parametrize("name", TABLES)
    async def test_steps(self, locks: Locks, name: str) -> None:
        await play(TABLES[name], {"a": locks, "b": locks, "c": locks})

    async def test_a_hold_ends_with_its_block_however_that_ends(self, locks: Locks) -> None:
        with pytest.raises(ZeroDivisionError):
            async with locks.hold(A, TREE, {F: Mode.X}) as held:
                assert held.presented == ((A, held.token),)
                assert await locks.try_hold(B, TREE, {F: Mode.S}) is None
                raise ZeroDivisionError
        assert await locks.try_hold(B, TREE, {F: Mode.S}) is not None

    async def test_a_hold_is_changed_inside(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.S}) as held:
            await held.upgrade(F, Mode.X)
            assert await locks.try_hold(B, TREE, {F: Mode.S}) is None
            await held.downgrade(F, Mode.S)
            async with locks.hold(B, TREE, {F: Mode.S}):
                with pytest.raises(LockTimedOut):
                    await held.upgrade(F, Mode.X, timeout=0.01)

    async def test_tokens_only_grow(self, locks: Locks) -> None:
        seen: list[int] = []
        for number in range(5):
            async with locks.hold(Owner(str(number)), TREE, {F: Mode.X}) as held:
                seen.append(held.token)
        assert seen == sorted(set(seen))

    async def test_who_does_not_wait_is_told_who_is_in_the_way(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.X}):
            with pytest.raises(WouldBlock, match="a holds /d") as caught:
                await locks.acquire(B, TREE, {D: Mode.S}, timeout=0)
        assert {each.owner for each in caught.value.blockers} == {A}

    async def test_a_time_out_leaves_nothing_and_wakes_those_behind(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.S}), anyio.create_task_group() as tasks:
            got = anyio.Event()

            async def read() -> None:
                async with locks.hold(C, TREE, {F: Mode.S}):
                    got.set()

            async def write() -> None:
                with pytest.raises(LockTimedOut, match="a holds /d/f"):
                    await locks.acquire(B, TREE, {F: Mode.X}, timeout=0.05)

            tasks.start_soon(write)
            await queued(locks, B)
            tasks.start_soon(read)
            with anyio.fail_after(5):
                await got.wait()

    async def test_a_cancellation_leaves_nothing_and_wakes_those_behind(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.S}), anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def write() -> None:
                with scope:
                    await locks.acquire(B, TREE, {F: Mode.X})

            tasks.start_soon(write)
            await queued(locks, B)
            scope.cancel()
            with anyio.fail_after(5):
                async with locks.hold(C, TREE, {F: Mode.S}):
                    pass

    async def test_the_circle_is_told_in_order(self, locks: Locks) -> None:
        one = await locks.acquire(A, TREE, {F: Mode.X})
        async with anyio.create_task_group() as tasks:
            await locks.acquire(B, TREE, {G: Mode.X})
            tasks.start_soon(lambda: locks.acquire(A, TREE, {G: Mode.S}))
            await queued(locks, A)
            with pytest.raises(DeadlockFound, match="never end") as caught:
                await locks.acquire(B, TREE, {F: Mode.S})
            assert [link.owner for link in caught.value.circle] == [B, A]
            assert [link.holder for link in caught.value.circle] == [A, B]
            snapshot = await locks.snapshot(TREE)
            [waits] = snapshot.queued
            assert [each.owner for each in waits.blockers] == [B]
            assert snapshot.queues[("1", *G)] == (A,)
            tasks.cancel_scope.cancel()
        await locks.release(A, TREE, one)

    async def test_an_owner_waits_for_one_thing_at_a_time(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.X}), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: locks.acquire(B, TREE, {F: Mode.X}))
            await queued(locks, B)
            with pytest.raises(LockOwnerBusy):
                await locks.acquire(B, TREE, {G: Mode.X})
            tasks.cancel_scope.cancel()

    async def test_a_lease_runs_out_by_itself_and_wakes_who_waits(self, locks: Locks) -> None:
        token = await locks.acquire(A, TREE, {F: Mode.X}, ttl=0.1)
        held = await locks.find(A, TREE, token)
        assert held is not None
        assert 0 < (held.expires_in or 0) <= 0.1
        with anyio.fail_after(5):
            async with locks.hold(B, TREE, {F: Mode.X}):
                assert await locks.find(A, TREE, token) is None
        with pytest.raises(LeaseExpired):
            await locks.renew(A, TREE, token, 10)
        with pytest.raises(NotHeld):
            await locks.release(A, TREE, token)

    async def test_a_lease_that_ran_out_cannot_be_renewed_even_if_nobody_took_it(
        self, locks: Locks
    ) -> None:
        token = await locks.acquire(A, TREE, {F: Mode.X}, ttl=0.05)
        await locks.renew(A, TREE, token, 0.1)
        await anyio.sleep(0.15)
        with pytest.raises(LeaseExpired):
            await locks.renew(A, TREE, token, 10)

    async def test_who_waits_longer_than_its_lease_is_dropped(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {F: Mode.X}):
            with pytest.raises(LeaseExpired), anyio.fail_after(5):
                await locks.acquire(B, TREE, {F: Mode.X}, ttl=0.05)
        assert not (await locks.snapshot(TREE)).held

    async def test_ranges_of_one_file(self, locks: Locks) -> None:
        first, second = (byte_range(0, 10, exclusive=True),), (byte_range(5, 20, exclusive=False),)
        token = await locks.acquire(A, TREE, ranges={F: first})
        with pytest.raises(WouldBlock):
            await locks.acquire(B, TREE, ranges={F: second}, timeout=0)
        after = (byte_range(10, None, exclusive=True),)
        await locks.acquire(B, TREE, ranges={F: after}, timeout=0)
        assert await locks.try_hold(C, TREE, {F: Mode.X}) is None
        await locks.release(A, TREE, token)

    async def test_ways_to_write_a_path_are_one_path(self, locks: Locks) -> None:
        async with locks.hold(A, TREE, {("cafe\u0301",): Mode.X}):
            assert await locks.try_hold(B, TREE, {("caf\u00e9",): Mode.S}) is None
            assert await locks.try_hold(B, TREE, {("caf\u00e9e",): Mode.S}) is not None

    async def test_of_ways_to_write_a_path_the_stronger_mode_counts(self, locks: Locks) -> None:
        both: dict[Path, Mode] = {("cafe\u0301",): Mode.X, ("caf\u00e9",): Mode.S}
        async with locks.hold(A, TREE, both):
            assert await locks.try_hold(B, TREE, {("caf\u00e9",): Mode.S}) is None
        ranges = {path: (byte_range(n, n + 1, exclusive=True),) for n, path in enumerate(both)}
        async with locks.hold(A, TREE, {}, ranges=ranges):
            for each in ranges.values():
                with pytest.raises(WouldBlock):
                    await locks.acquire(B, TREE, ranges={("caf\u00e9",): each}, timeout=0)

    @pytest.mark.parametrize("path", [("..",), ("a", ""), ("a\0",), (".", "b"), ("a/b",)])
    async def test_a_bad_path_locks_nothing(self, locks: Locks, path: tuple[str, ...]) -> None:
        with pytest.raises(InvalidName):
            await locks.acquire(A, TREE, {F: Mode.X, path: Mode.X})
        assert not (await locks.snapshot(TREE)).held

    async def test_what_is_no_lock_is_refused(self, locks: Locks) -> None:
        with pytest.raises(LockMisuse):
            await locks.acquire(A, TREE, {})
        with pytest.raises(ValueError, match="1000"):
            await locks.acquire(A, TREE, {(str(n),): Mode.S for n in range(1001)})
        token = await locks.acquire(A, TREE, {F: Mode.S})
        with pytest.raises(ValueError, match="upgrade instead"):
            await locks.downgrade(A, TREE, token, {F: Mode.X})
        with pytest.raises(NotHeld):
            await locks.upgrade(A, TREE, token, {G: Mode.X})
        with pytest.raises(NotHeld):
            await locks.release(B, TREE, token)
        with pytest.raises(LeaseExpired):
            await locks.renew(B, TREE, token, 10)
        with pytest.raises(ValueError, match="downgrade instead"):
            await locks.upgrade(A, TREE, token, {F: Mode.IS})

    async def test_a_batch_of_a_thousand(self, locks: Locks) -> None:
        paths: dict[tuple[str, ...], Mode] = {("d", str(n)): Mode.X for n in range(1000)}
        async with locks.hold(A, TREE, paths):
            assert await locks.try_hold(B, TREE, {("d", "999"): Mode.S}) is None

    async def test_counters_guarded_by_locks_lose_nothing(self, locks: Locks) -> None:
        counts = dict.fromkeys(range(3), 0)

        async def add(number: int) -> None:
            for turn in range(5):
                path = (number + turn) % 3
                async with locks.hold(Owner(f"t{number}"), TREE, {("n", str(path)): Mode.X}):
                    seen = counts[path]
                    await checkpoint()
                    counts[path] = seen + 1

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(add, number)
        assert sum(counts.values()) == 40

    async def test_cancelled_at_any_moment_nothing_stays(self, locks: Locks) -> None:
        """Owners that ask, change and give back while they are cancelled at random."""
        from random import Random

        dice = Random(7)

        async def one(number: int) -> None:
            with anyio.move_on_after(dice.random() * 0.02):
                while True:
                    paths = dice.sample([F, G, D, ("h",)], dice.randint(1, 3))
                    modes = {path: dice.choice([Mode.S, Mode.U, Mode.X]) for path in paths}
                    try:
                        async with locks.hold(Owner(f"{number}"), TREE, modes) as held:
                            await anyio.sleep(dice.random() * 0.002)
                            await held.upgrade(paths[0], Mode.X, timeout=0.005)
                            await anyio.sleep(dice.random() * 0.002)
                            await held.downgrade(paths[0], Mode.S)
                    except (DeadlockFound, LockTimedOut):
                        await checkpoint()

        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(one, number)
            snapshot = await locks.snapshot(TREE)
            assert (snapshot.held, snapshot.queued) == ((), ())


async def queued(locks: Locks, owner: Owner) -> None:
    """Return when `owner` waits."""
    with anyio.fail_after(5):
        while not any(each.owner == owner for each in (await locks.snapshot(TREE)).queued):
            await anyio.sleep(0.001)


class SharedLockContract:
    """Of two processes, each with its own `Locks`, on one store."""

    FAIR: ClassVar[int] = 3
    """So many times as often as one gets its turn, the other may at the most."""

    @pytest.fixture
    def opened(self) -> AbstractAsyncContextManager[tuple[Locks, Locks]]:
        raise NotImplementedError("a store's tests supply their own locks")

    @pytest.fixture
    async def pair(
        self, opened: AbstractAsyncContextManager[tuple[Locks, Locks]]
    ) -> AsyncGenerator[tuple[Locks, Locks], None]:
        async with opened as pair:
            yield pair
            await clear(pair[0])

    @pytest.mark.parametrize("name", TABLES)
    async def test_steps(self, pair: tuple[Locks, Locks], name: str) -> None:
        await play(TABLES[name], {"a": pair[0], "b": pair[1], "c": pair[0]})

    @pytest.mark.parametrize("name", TABLES)
    async def test_steps_from_the_other_side(self, pair: tuple[Locks, Locks], name: str) -> None:
        await play(TABLES[name], {"a": pair[1], "b": pair[1], "c": pair[0]})

    async def test_both_get_their_turns(self, pair: tuple[Locks, Locks]) -> None:
        counts = [0, 0]

        async def take(side: int, number: int) -> None:
            while not done.cancel_called:
                async with pair[side].hold(Owner(f"{side}{number}"), TREE, {F: Mode.X}):
                    counts[side] += 1
                if sum(counts) >= 1500:  # a busy disk may stop one of them for a while
                    done.cancel()

        with anyio.move_on_after(20) as done:
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(take, 0, number)
                    tasks.start_soon(take, 1, number)
        assert min(counts) * self.FAIR > max(counts), counts


@asynccontextmanager
async def both(
    one: AbstractAsyncContextManager[Locks], other: AbstractAsyncContextManager[Locks]
) -> AsyncGenerator[tuple[Locks, Locks], None]:
    async with one as first, other as second:
        yield first, second

"""Task groups whose callers want to see the error, not a group of one; and turns."""

from collections.abc import AsyncGenerator, Hashable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, field

K = TypeVar("K", bound=Hashable)


@asynccontextmanager
async def task_group() -> AsyncGenerator[TaskGroup, None]:
    """A task group that raises the first error of its tasks by itself.

    The others are cancelled by it, so theirs are mostly consequences of the first. If its
    tasks are cancelled from outside, so is the caller, even one that waits for nothing more:
    what they left undone must not look done.
    """
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
        await checkpoint_if_cancelled()
    except BaseExceptionGroup as group:
        raise next(_leaves(group)) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield error


@define(eq=False)
class _Turn:
    lock: anyio.Lock = field(factory=anyio.Lock)
    wanted: int = 0
    """How many have it or wait for it."""


@define(eq=False)
class OneByOne(Generic[K]):
    """Those who work on the same thing do so one after the other."""

    _turns: dict[K, _Turn] = field(factory=dict[K, _Turn])

    @asynccontextmanager
    async def turn(self, key: K) -> AsyncGenerator[None, None]:
        """Nobody else has the turn of `key` meanwhile."""
        turn = self._turns.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[key]


@define(eq=False)
class InOrder:
    """Those who work do so one at a time; of those who wait, the one of the lowest number goes on.

    So what was begun early is finished early, however often it had to wait for something else.
    """

    _taken: bool = False
    _waiting: dict[int, anyio.Event] = field(factory=dict[int, anyio.Event])

    @asynccontextmanager
    async def turn(self, number: int) -> AsyncGenerator[None, None]:
        """Nobody else has a turn meanwhile. No two who wait have the same number."""
        if self._taken:
            await self._wait(number)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, number: int) -> None:
        called = self._waiting[number] = anyio.Event()
        try:
            await called.wait()
        except BaseException:
            if called.is_set():
                self._pass_on()
            else:
                del self._waiting[number]
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.pop(min(self._waiting)).set()
        else:
            self._taken = False

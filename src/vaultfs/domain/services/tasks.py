"""Task groups whose callers want to see the error, not a group of one."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled


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

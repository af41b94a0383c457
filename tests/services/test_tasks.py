"""Turns: one after the other, also where somebody gives up waiting."""

from collections import Counter

import anyio
from anyio.lowlevel import checkpoint

from vaultfs.domain.services.tasks import OneByOne


async def test_who_gives_up_waiting_lets_nobody_in_beside_others() -> None:
    turns, inside, left = OneByOne[str](), Counter[str](), anyio.Event()
    together: list[int] = []

    async def first() -> None:
        async with turns.turn("a"):
            await left.wait()

    async def another() -> None:
        async with turns.turn("a"):
            inside["a"] += 1
            together.append(inside["a"])
            for _ in range(5):
                await checkpoint()
            inside["a"] -= 1

    async with anyio.create_task_group() as tasks, anyio.create_task_group() as impatient:
        tasks.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        impatient.start_soon(another)
        await anyio.wait_all_tasks_blocked()
        left.set()
        tasks.start_soon(another)
        impatient.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await checkpoint()
            tasks.start_soon(another)
    assert together == [1, 1]
    assert not turns._turns  # pyright: ignore[reportPrivateUsage]

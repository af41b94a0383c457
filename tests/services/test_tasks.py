"""Turns: one after the other, also where somebody gives up waiting."""

from collections import Counter

import anyio
from anyio.lowlevel import checkpoint

from vaultfs.domain.services.tasks import InOrder, OneByOne


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


async def test_of_those_who_wait_the_lowest_number_goes_on_one_at_a_time() -> None:
    turns, done = InOrder(), list[int]()
    inside = 0

    async def work(number: int) -> None:
        nonlocal inside
        async with turns.turn(number):
            inside += 1
            assert inside == 1
            await checkpoint()
            inside -= 1
            done.append(number)

    async with anyio.create_task_group() as tasks, turns.turn(0):
        for number in (5, 3, 4, 1, 2):
            tasks.start_soon(work, number)
            await anyio.wait_all_tasks_blocked()
    assert done == [1, 2, 3, 4, 5]


async def test_a_turn_that_somebody_gave_up_is_not_lost() -> None:
    turns, done = InOrder(), list[int]()
    waiting: dict[int, anyio.CancelScope] = {}

    async def work(number: int) -> None:
        with anyio.CancelScope() as waiting[number]:
            async with turns.turn(number):
                done.append(number)

    async with anyio.create_task_group() as tasks, turns.turn(0):
        for number in (1, 2, 3, 4):
            tasks.start_soon(work, number)
        await anyio.wait_all_tasks_blocked()
        waiting[2].cancel()  # while it waits
        await anyio.wait_all_tasks_blocked()
        waiting[1].cancel()  # and is called before it knows
    assert done == [3, 4]

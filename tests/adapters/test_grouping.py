"""Who executes the calls that wait for a writer, whatever becomes of the callers."""

import asyncio
from collections.abc import Sequence

import anyio
import pytest
from attrs import define, field

from vaultfs.adapters.sql.grouping import GroupCommit, Job
from vaultfs.domain.errors import NotFound, OutcomeUnknown


@define(eq=False)
class Slow(GroupCommit):
    """Notes its rounds, each of which lasts until it is let on."""

    rounds: list[list[Job]] = field(factory=list[list[Job]])
    on: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(0))
    fails: bool = False

    async def execute(self, jobs: Sequence[Job]) -> None:
        self.rounds.append(list(jobs))
        await self.on.acquire()
        if self.fails:
            raise ZeroDivisionError


@pytest.fixture
def writer() -> Slow:
    return Slow()


async def test_those_who_come_meanwhile_go_together(writer: Slow) -> None:
    jobs = [Job() for _ in range(10)]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(writer.do, job)
            await anyio.wait_all_tasks_blocked()
            assert writer.rounds == [jobs[:1]]
            writer.on.release()
            await anyio.wait_all_tasks_blocked()
            assert writer.rounds == [jobs[:1], jobs[1:]]
            writer.on.release()


async def _within(scope: anyio.CancelScope, writer: Slow, job: Job) -> None:
    with scope:
        await writer.do(job)


@pytest.mark.parametrize("first", [True, False], ids=["the first", "another"])
async def test_one_that_leaves_before_it_begins_holds_up_nobody(writer: Slow, first: bool) -> None:
    jobs, scopes = [Job(), Job()], [anyio.CancelScope(), anyio.CancelScope()]
    leaves = 0 if first else 1
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            async with writer.turn:  # as for a reindexing
                for job, scope in zip(jobs, scopes, strict=True):
                    tasks.start_soon(_within, scope, writer, job)
                    await anyio.wait_all_tasks_blocked()
                scopes[leaves].cancel()
                await anyio.wait_all_tasks_blocked()
            writer.on.release()
    assert writer.rounds == [[jobs[1 - leaves]]]
    assert not jobs[leaves].begun


async def test_a_round_that_fails_lets_all_of_it_go_and_the_next_begin(writer: Slow) -> None:
    writer.fails = True
    with anyio.fail_after(5):
        for _ in range(2):
            writer.on.release()
            with pytest.raises(ZeroDivisionError):
                await writer.do(Job())


async def test_who_goes_with_one_that_asyncio_cancels_is_not_told_that_it_succeeded(
    writer: Slow,
) -> None:
    first, leader, other = (asyncio.create_task(writer.do(Job())) for _ in range(3))
    with anyio.fail_after(5):
        await anyio.wait_all_tasks_blocked()
        writer.on.release()
        await first
        await anyio.wait_all_tasks_blocked()
        leader.cancel()
        with pytest.raises(OutcomeUnknown):
            await other
        assert len(writer.rounds[-1]) == 2
        writer.on.release()
        await writer.do(Job())


async def test_each_hears_of_its_own_error(writer: Slow) -> None:
    good, bad = Job(), Job(error=NotFound("gone"))
    heard: list[str] = []

    async def call(job: Job) -> None:
        try:
            await writer.do(job)
        except NotFound as error:
            heard.append(error.message)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for job in (Job(), good, bad):
                tasks.start_soon(call, job)
            writer.on.release()
            writer.on.release()
    assert heard == ["gone"]

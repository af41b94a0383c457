"""Batches that are cut in the middle, and batches that meet: all or nothing, and no deadlock.

A process is killed before a statement of a batch of 50: by default at a sample of them, at
all with VAULTFS_CRASH_ALL=1. Rounds of batches that overlap: VAULTFS_ROUNDS, 40 by default.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest
from tests import batch_child
from tests.batch_child import batch_of, fifty, open_catalog, prepare
from tests.contracts.callers import add_user, state_of
from tests.faults import ALL
from tests.postgres import Postgres

from vaultfs.adapters.sql import batches
from vaultfs.ports.catalog import Catalog

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = int(os.environ.get("VAULTFS_ROUNDS", "40"))
SAMPLE: Final = 8
PROCESSES: Final = 4


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a catalog can be made."""
    if request.param == "sqlite":
        yield str(tmp_path / "catalog.db")
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield url


@pytest.fixture
async def catalog(where: str) -> AsyncIterator[Catalog]:
    catalog = await open_catalog(where, create=True)
    await prepare(catalog, await add_user(catalog, "me"))
    yield catalog
    await catalog.aclose()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_batch_that_fails_at_any_statement_leaves_nothing(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, before = await catalog.user("me"), await state_of(catalog)
    execute, number = batches.execute, 0
    while True:
        number += 1

        def step(at: int, deadly: int = number) -> None:
            if at == deadly:
                raise RuntimeError("the disk is gone")

        monkeypatch.setattr(batches, "execute", execute)
        batch_child.watched(step)
        try:
            await catalog.batch(batch_of(user, fifty(), "the batch"))
        except RuntimeError:
            assert await state_of(catalog) == before
        else:
            break
    assert number > 100
    assert await state_of(catalog) != before
    assert await catalog.check() == []


@pytest.mark.slow
@pytest.mark.timeout(3600 if ALL else 300)
async def test_a_batch_whose_process_is_killed_leaves_nothing_or_all(
    where: str, catalog: Catalog
) -> None:
    before = await state_of(catalog)
    numbers = range(1, 1000) if ALL else sorted(Random("batches").sample(range(1, 180), SAMPLE))
    for number in numbers:
        done = subprocess.run(
            [sys.executable, "-m", "tests.batch_child", "once", where, str(number)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        after = await state_of(catalog)
        if done.returncode == 0:  # it had no such statement
            assert done.stdout == "done True\n"
            assert after != before
            assert number > 100
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert done.stdout == ""
        assert after == before
    assert await catalog.check() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_batches_of_several_processes_that_overlap_meet_in_no_deadlock(
    where: str, catalog: Catalog
) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.batch_child", "many", where, str(seed), str(ROUNDS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    said = Counter[str]()
    for child in children:
        out, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors
        said.update(json.loads(out))
    assert said.total() == PROCESSES * ROUNDS
    assert {"atomic done", "atomic refused", "best_effort done"} <= said.keys()
    assert await catalog.check() == []

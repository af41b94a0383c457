"""Rows that are kept: as long as nobody commits, and no longer."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import define, field

from vaultfs.adapters.sql.connections import connect
from vaultfs.adapters.sql.recent import MOST, Recent
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.errors import NotFound
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import AddUser, Unit

READ = "SELECT value FROM things WHERE value >= $1 ORDER BY value"
ADD = "INSERT INTO things VALUES (?)"


@define
class Reading:
    """A connection that reads through `Recent`, and the one of a writer."""

    path: Path
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    recent: Recent = field(factory=Recent)
    asked: list[str] = field(factory=list[str])

    def rows(self, least: int = 0) -> list[int]:
        return [row[0] for row in self.recent.fetch(READ, (least,), self.reader)]

    @property
    def queries(self) -> int:
        """Times that the database was asked for rows."""
        return sum("things" in text for text in self.asked)


@pytest.fixture
def reading(tmp_path: Path) -> Generator[Reading, None, None]:
    path = tmp_path / "things.db"
    with closing(connect(path)) as writer, closing(connect(path)) as reader:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE things(value INTEGER)")
        writer.execute(ADD, (1,))
        found = Reading(path, writer, reader)
        reader.set_trace_callback(found.asked.append)
        yield found


def test_rows_are_read_once_while_nobody_writes(reading: Reading) -> None:
    assert [reading.rows() for _ in range(3)] == [[1]] * 3
    assert reading.queries == 1
    assert reading.rows(least=2) == []
    assert reading.queries == 2


def test_what_is_committed_is_seen_at_once(reading: Reading) -> None:
    for value in range(2, 5):
        assert reading.rows() == list(range(1, value))
        reading.writer.execute(ADD, (value,))
    assert reading.rows() == [1, 2, 3, 4]


def test_what_another_process_commits_is_seen_at_once(reading: Reading) -> None:
    assert reading.rows() == [1]
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2], (7,))"
    subprocess.run([sys.executable, "-c", f"{program}; c.commit()", reading.path, ADD], check=True)
    assert reading.rows() == [1, 7]


def test_what_is_not_committed_is_not_seen(reading: Reading) -> None:
    assert reading.rows() == [1]
    reading.writer.execute("BEGIN")
    reading.writer.execute(ADD, (2,))
    assert reading.rows() == [1]
    reading.writer.execute("ROLLBACK")
    assert reading.rows() == [1]
    assert reading.queries == 1


def test_a_commit_between_the_look_and_the_rows_is_not_kept_as_older(reading: Reading) -> None:
    added: list[int] = []

    def add_once(text: str) -> None:
        if "data_version" not in text and not added:
            added.append(2)
            reading.writer.execute(ADD, (2,))

    reading.reader.set_trace_callback(add_once)
    first = reading.rows()
    assert first in ([1], [1, 2])
    reading.writer.execute(ADD, (3,))
    assert reading.rows() == [1, 2, 3]


def test_no_more_than_so_many_rows_are_kept(reading: Reading) -> None:
    reading.writer.executemany(ADD, [(value,) for value in range(2, 101)])
    different = MOST // 100 + 2
    for least in range(different):
        reading.rows(-least)
    assert reading.queries == different
    reading.rows()
    assert reading.queries == different + 1, "the first is forgotten by now"


@pytest.mark.anyio
async def test_what_another_commits_is_seen_in_the_next_turn_of_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = await SqliteCatalog.open(path, create=True)
    other = await SqliteCatalog.open(path)
    try:
        for number in range(1, 4):
            with pytest.raises(NotFound):
                await catalog.user(f"user-{number}")
            await other.apply(
                [Unit(UserId(0), 0, f"op-{number}", (AddUser(f"user-{number}", None),))]
            )
            assert (await catalog.user(f"user-{number}")).name == f"user-{number}"
    finally:
        await catalog.aclose()
        await other.aclose()


@pytest.mark.anyio
async def test_many_looks_in_a_turn_of_the_loop_ask_once_whether_anybody_wrote(
    tmp_path: Path,
) -> None:
    catalog = await SqliteCatalog.open(tmp_path / "catalog.db", create=True)
    try:
        await catalog.apply([Unit(UserId(0), 0, "op", (AddUser("ann", None),))])
        await catalog.user("ann")
        asked: list[str] = []
        near = catalog._near  # pyright: ignore[reportPrivateUsage]
        assert near is not None
        near.set_trace_callback(asked.append)
        for turn in range(1, 3):
            await asyncio.sleep(0)
            for _ in range(5):
                await catalog.user("ann")
            assert sum("data_version" in text for text in asked) == turn
    finally:
        await catalog.aclose()

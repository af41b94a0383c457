"""The catalog on PostgreSQL: the contract of all catalogs, and what only this one has."""

import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import asyncpg
import pytest
from tests.contracts.callers import Caller, add_user, pack_of, pieces_of, state_of
from tests.contracts.catalog import CatalogContract
from tests.contracts.catalog_collections import OutOfLease
from tests.contracts.catalog_stock import dump_of
from tests.postgres import Postgres

from vaultfs.adapters.sql import postgres_copies
from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.postgres_connections import Database, Readers
from vaultfs.adapters.sql.postgres_driver import FEW, Driver, Ids
from vaultfs.adapters.sql.schema import MIGRATIONS, SCHEMA
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.statements import Program, Run, RunMany
from vaultfs.domain.errors import (
    Busy,
    CatalogUnavailable,
    Exists,
    InvalidField,
    NotAVault,
    Unsupported,
)
from vaultfs.domain.nodes import Origin, Preconditions
from vaultfs.domain.operations import AddUser, Done, Outcome, Refused, Unit
from vaultfs.ports.catalog import Catalog


class TestContract(CatalogContract):
    @pytest.fixture
    async def catalog(self, database: str) -> AsyncIterator[Catalog]:
        catalog = await PostgresCatalog.open(database, create=True)
        yield catalog
        await catalog.aclose()

    @pytest.fixture
    def out_of_lease(self, postgres: Postgres, database: str) -> OutOfLease:
        async def wait(_: Caller) -> None:
            name = database.rpartition("/")[2]
            postgres.run("UPDATE collections SET seen = 0", name)
            postgres.run("UPDATE rewrites SET claimed = 0", name)

        return wait

    @pytest.fixture
    async def empty(self, postgres: Postgres) -> AsyncIterator[Catalog]:
        with postgres.database() as url:
            catalog = await PostgresCatalog.open(url, create=True)
            yield catalog
            await catalog.aclose()


@pytest.fixture
async def me(database: str) -> AsyncIterator[Caller]:
    catalog = await PostgresCatalog.open(database, create=True)
    yield Caller(catalog, await add_user(catalog, "me"))
    await catalog.aclose()


@pytest.fixture
async def other(me: Caller, database: str) -> AsyncIterator[Caller]:
    """The same user at another server."""
    catalog = await PostgresCatalog.open(database)
    yield Caller(catalog, await catalog.user("me"), now=10**12)
    await catalog.aclose()


# Opening


async def test_everything_is_there_after_closing(me: Caller, database: str) -> None:
    await me.do(me.put_op("/a/f", parents=True), pack_of("p", "abc", me.user.id))
    before, number = await state_of(me.catalog), await me.catalog.vault_id()
    await me.catalog.aclose()
    again = await PostgresCatalog.open(database)
    assert await state_of(again) == before
    assert await again.vault_id() == number
    await again.aclose()


async def test_one_database_is_made_by_many_at_once(database: str) -> None:
    ids: list[str] = []

    async def make() -> None:
        catalog = await PostgresCatalog.open(database, create=True)
        ids.append(await catalog.vault_id())
        await catalog.aclose()

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(make)
    assert len(ids) == 8
    assert len(set(ids)) == 1


async def test_a_newer_schema_is_refused(me: Caller, database: str, postgres: Postgres) -> None:
    postgres.run("UPDATE meta SET value = '99' WHERE key = 'schema'", name_of(database))
    with pytest.raises(Unsupported, match="schema 99"):
        await PostgresCatalog.open(database)


@pytest.mark.parametrize("schema", range(1, SCHEMA))
async def test_a_database_of_an_older_release_is_led_forward(
    database: str, monkeypatch: pytest.MonkeyPatch, schema: int
) -> None:
    from vaultfs.adapters.sql import postgres_connections

    with monkeypatch.context() as older:
        older.setattr(postgres_connections, "MIGRATIONS", MIGRATIONS[:schema])
        older.setattr(postgres_connections, "SCHEMA", schema)
        catalog = await PostgresCatalog.open(database, create=True)
        number = await catalog.vault_id()
        await catalog.aclose()
    catalog = await PostgresCatalog.open(database)
    assert await catalog.vault_id() == number
    me = Caller(catalog, await add_user(catalog, "me"))
    await me.put("/a")
    assert await catalog.check() == []
    await catalog.aclose()


async def test_nothing_is_made_unless_wanted(database: str, postgres: Postgres) -> None:
    with pytest.raises(NotAVault, match="vaultfs init"):
        await PostgresCatalog.open(database)
    made = postgres.run(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name_of(database)
    )
    assert made == "0"


async def test_a_database_of_something_else(database: str, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE recipes(name text)", name_of(database))
    with pytest.raises(NotAVault, match="something else"):
        await PostgresCatalog.open(database, create=True)


async def test_a_database_of_another_encoding(postgres: Postgres) -> None:
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(Unsupported, match="createdb -E UTF8"):
        await PostgresCatalog.open(postgres.url("latin"), create=True)


async def test_a_server_that_is_not_there() -> None:
    with pytest.raises(CatalogUnavailable, match="cannot be reached"):
        await PostgresCatalog.open("postgresql://127.0.0.1:1/none")


async def test_a_database_that_is_not_there(postgres: Postgres) -> None:
    with pytest.raises(NotAVault, match="createdb"):
        await PostgresCatalog.open(postgres.url("nothing"))


async def test_a_role_that_may_not_come_in(database: str) -> None:
    stranger = database.replace("vaultfs@", "stranger:hunter2@")
    with pytest.raises(CatalogUnavailable, match="user or the password") as refused:
        await PostgresCatalog.open(stranger)
    assert "hunter2" not in refused.value.message


async def test_a_role_that_may_not_make_tables(database: str, postgres: Postgres) -> None:
    postgres.run("CREATE ROLE guest LOGIN")
    with pytest.raises(CatalogUnavailable, match="own the database"):
        await PostgresCatalog.open(database.replace("vaultfs@", "guest@"), create=True)


def name_of(database: str) -> str:
    return database.rpartition("/")[2]


# Many servers


async def test_two_servers_see_each_other(me: Caller, other: Caller) -> None:
    for number in range(10):
        made = await me.put(f"/{number}")
        assert await other.find(f"/{number}") == made
        made = await other.put(f"/{number}", "new")
        assert await me.find(f"/{number}") == made
    assert len(await me.feed()) == 20


async def test_two_servers_write_at_once(me: Caller, other: Caller) -> None:
    async def write(caller: Caller, prefix: str) -> None:
        for number in range(50):
            await caller.do(caller.put_op(f"/{prefix}{number}"), caller.put_op("/same", prefix))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, me, "a")
        tasks.start_soon(write, other, "b")
    assert len(await me.names()) == 101
    assert await me.feed() == await other.feed()
    assert await me.catalog.check() == []


async def test_one_of_two_servers_wins_a_version(me: Caller, other: Caller) -> None:
    outcomes: list[Outcome] = []
    for number in range(20):
        node = await me.put("/f", f"{number}")
        wanted = Preconditions(if_version=node.version)

        async def write(caller: Caller, text: str, wanted: Preconditions) -> None:
            operation = caller.put_op("/f", text, preconditions=wanted)
            outcomes.append(await caller.outcome(operation))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, me, f"mine {number}", wanted)
            tasks.start_soon(write, other, f"theirs {number}", wanted)
    assert len([outcome for outcome in outcomes if isinstance(outcome, Done)]) == 20


async def test_one_of_two_servers_makes_a_user(me: Caller, other: Caller) -> None:
    outcomes: list[Outcome] = []

    async def make(caller: Caller, number: int) -> None:
        unit = Unit(caller.user.id, 1, f"{caller.now}-{number}", (AddUser(f"user {number}"),))
        outcomes.extend(await caller.catalog.apply([unit]))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(make, me, number)
            tasks.start_soon(make, other, number)
    refused = [outcome.error for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(refused) == 10
    assert all(isinstance(error, Exists) for error in refused)
    assert len(await me.catalog.users()) == 11


async def test_two_servers_record_the_same_packs(me: Caller, other: Caller) -> None:
    async def record(caller: Caller, numbers: range) -> None:
        units = [caller.unit(pack_of(f"{n}", f"{n}", caller.user.id)) for n in numbers]
        assert all(isinstance(each, Done) for each in await caller.catalog.apply(units))

    for start in range(0, 100, 10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record, me, range(start, start + 10))
            tasks.start_soon(record, other, range(start + 9, start - 1, -1))
    assert len(await me.catalog.packs()) == 100
    assert await me.catalog.check() == []


async def test_writers_wait_while_another_server_builds_an_index(me: Caller, other: Caller) -> None:
    written = anyio.Event()

    async def write() -> None:
        await other.put("/f")
        written.set()

    async with anyio.create_task_group() as tasks, me.catalog.reindex() as index:
        await index.add_pack(pack_of("p", "ab"))
        tasks.start_soon(write)
        await anyio.sleep(0.2)
        assert not written.is_set()
        assert await other.names() == []
        await index.claim(me.user.id, [])
    assert await me.names() == ["f"]
    await other.do(pack_of("q", "cd", other.user.id))
    assert len(await me.catalog.packs()) == 2


async def test_a_writer_that_waits_too_long_is_told_so(
    me: Caller, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaultfs.adapters.sql import postgres_writer

    monkeypatch.setattr(postgres_writer, "BUSY_AFTER", 0.1)
    monkeypatch.setattr(postgres_copies, "BUSY_AFTER", 0.1)
    catalog = await PostgresCatalog.open(database)
    late = Caller(catalog, await catalog.user("me"), now=10**12)
    blocker = await asyncpg.connect(database)
    async with blocker.transaction():
        await blocker.execute("SELECT 1 FROM epochs FOR UPDATE")
        with pytest.raises(Busy, match="another process") as caught:
            await late.put("/a")
        assert "postgresql" not in caught.value.message  # clients of a server are told
        with pytest.raises(Busy):
            async with late.catalog.reindex():
                pytest.fail("somebody else is writing")
        assert await late.names() == []
    await late.put("/a")
    await blocker.close()
    await catalog.aclose()


async def test_the_dump_of_one_database_is_that_of_the_other(
    me: Caller, tmp_path: Path, postgres: Postgres
) -> None:
    await me.do(me.put_op("/a/f", parents=True))
    await me.put("/a/f", "new")
    await me.delete("/a", recursive=True)
    data = await dump_of(me.catalog)
    there = await SqliteCatalog.open(tmp_path / "catalog.db", create=True)
    await there.load(pieces_of(data))
    between = await dump_of(there)
    await there.aclose()
    with postgres.database() as url:
        back = await PostgresCatalog.open(url, create=True)
        await back.load(pieces_of(between))
        assert await state_of(back) == await state_of(me.catalog)
        assert await back.check() == []
        await back.aclose()


@pytest.mark.parametrize("count", [6, 2 * FEW])
async def test_a_value_that_does_not_fit_is_the_fault_of_its_unit(me: Caller, count: int) -> None:
    late = Origin(mtime_us=1 << 70)
    units = [me.unit(me.put_op(f"/{n}", origin=late if n == 3 else None)) for n in range(count)]
    outcomes = await me.catalog.apply(units)
    assert [isinstance(each, Done) for each in outcomes] == [n != 3 for n in range(count)]
    assert isinstance(outcomes[3], Refused)
    assert isinstance(outcomes[3].error, InvalidField)
    assert await me.catalog.check() == []


async def test_a_program_goes_on_while_many_rows_are_written(database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TEMP TABLE numbers(n BIGINT)")
    driver = Driver(connection, Ids(Readers(Database(database)).reserve))
    rows = [(number,) for number in range(2 * FEW)]

    def count(*, refused: bool) -> Program[int]:
        yield RunMany("INSERT INTO numbers VALUES ($1)", rows)
        if refused:
            raise Exists("as it has to be")
        return int((yield Run("SELECT count(*) FROM numbers"))[0][0])

    async with connection.transaction():
        assert await driver.drive(count(refused=False)) == len(rows)
        with pytest.raises(Exists):  # and the statement under way is not cut off
            await driver.drive(count(refused=True))
        assert await driver.drive(count(refused=False)) == 3 * len(rows)
    await connection.close()


async def test_whose_value_does_not_fit_is_not_told_of_the_database(me: Caller) -> None:
    root = await me.catalog.node(me.user.tree, ())
    assert root is not None
    with pytest.raises(InvalidField, match="cannot hold") as caught:
        await me.catalog.children(root.id, after="\0", limit=1)
    assert "postgresql" not in caught.value.message


# Other processes


WRITER = """
import sys

import anyio

from tests.contracts.callers import Caller
from vaultfs.adapters.sql.postgres import PostgresCatalog


async def main(url, prefix):
    catalog = await PostgresCatalog.open(url)
    me = Caller(catalog, await catalog.user("me"), now=hash(prefix))
    number = 0
    while True:
        op_id = f"{prefix}-{number}"
        operation = me.put_op(f"/{prefix}/{number}", parents=True)
        await me.do(operation, me.put_op("/same", op_id), op_id=op_id)
        number += 1
        print(number, flush=True)


anyio.run(main, *sys.argv[1:])
"""
"""Writes until it is stopped, with a line for each unit that was acknowledged."""


@contextmanager
def writing(database: str, prefix: str) -> Generator["subprocess.Popen[bytes]", None, None]:
    command = [sys.executable, "-c", WRITER, database, prefix]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the other process did not begin"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
async def test_what_a_killed_process_was_told_is_there(me: Caller, database: str) -> None:
    for number in range(3):
        with writing(database, f"{number}") as process:
            assert process.stdout is not None
            for _ in range(10 + 10 * number):
                process.stdout.readline()
            process.kill()
            acknowledged = 10 + 10 * number + process.stdout.read().count(b"\n")
        await me.put("/mine", f"{number}")
        names = await me.names(f"/{number}")
        assert len(names) in {acknowledged, acknowledged + 1}
        assert await me.catalog.check() == []
    await me.feed()

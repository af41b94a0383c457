import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import cast

import anyio
import pytest
from tests.contracts.callers import Caller, add_user, pack_of, state_of
from tests.contracts.catalog import CatalogContract

from vaultfs.adapters.sql import connections
from vaultfs.adapters.sql.connections import open_writer
from vaultfs.adapters.sql.schema import MIGRATIONS, SCHEMA
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.writer import Writer
from vaultfs.domain.errors import Busy, CatalogUnavailable, NotAVault, Unsupported
from vaultfs.domain.nodes import Preconditions
from vaultfs.domain.operations import Done, Operation, Outcome
from vaultfs.ports.catalog import Catalog


class TestInMemory(CatalogContract):
    @pytest.fixture
    async def catalog(self) -> AsyncIterator[Catalog]:
        catalog = await SqliteCatalog.open(None)
        yield catalog
        await catalog.aclose()

    @pytest.fixture
    async def empty(self) -> AsyncIterator[Catalog]:
        catalog = await SqliteCatalog.open(None)
        yield catalog
        await catalog.aclose()


class TestInAFile(CatalogContract):
    @pytest.fixture
    async def catalog(self, tmp_path: Path) -> AsyncIterator[Catalog]:
        catalog = await SqliteCatalog.open(tmp_path / "catalog.db", create=True)
        yield catalog
        await catalog.aclose()

    @pytest.fixture
    async def empty(self, tmp_path: Path) -> AsyncIterator[Catalog]:
        catalog = await SqliteCatalog.open(tmp_path / "empty.db", create=True)
        yield catalog
        await catalog.aclose()


async def _opened(path: Path) -> Caller:
    """The user `me` of the catalog at `path`."""
    catalog = await SqliteCatalog.open(path)
    return Caller(catalog, await catalog.user("me"))


class TestFile:
    """What only a catalog in a file has: other processes, a disk, a yesterday."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "catalog.db"

    @pytest.fixture
    async def me(self, path: Path) -> AsyncIterator[Caller]:
        catalog = await SqliteCatalog.open(path, create=True)
        yield Caller(catalog, await add_user(catalog, "me"))
        await catalog.aclose()

    async def test_everything_is_there_after_closing(self, me: Caller, path: Path) -> None:
        await me.do(me.put_op("/a/f", parents=True), pack_of("p", "abc", me.user.id))
        before, number = await state_of(me.catalog), await me.catalog.vault_id()
        await me.catalog.aclose()
        again = await _opened(path)
        assert await state_of(again.catalog) == before
        assert await again.catalog.vault_id() == number
        await again.put("/a/g")
        await again.catalog.aclose()

    async def test_what_was_acknowledged_is_there_without_closing(
        self, me: Caller, path: Path, tmp_path: Path
    ) -> None:
        await me.put("/a")
        copy = tmp_path / "copy.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
        again = await _opened(copy)
        assert await again.names() == ["a"]
        await again.catalog.aclose()

    async def test_two_catalogs_on_one_file_see_each_other(self, me: Caller, path: Path) -> None:
        other = await _opened(path)
        for number in range(10):
            made = await me.put(f"/{number}")
            assert await other.find(f"/{number}") == made
            made = await other.put(f"/{number}", "new")
            assert await me.find(f"/{number}") == made
        assert len(await me.feed()) == 20
        await other.catalog.aclose()

    async def test_two_catalogs_on_one_file_write_at_once(self, me: Caller, path: Path) -> None:
        other = await _opened(path)
        other.now = 10**12

        async def write(caller: Caller, prefix: str) -> None:
            for number in range(50):
                await caller.do(caller.put_op(f"/{prefix}{number}"), caller.put_op("/same", prefix))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, me, "a")
            tasks.start_soon(write, other, "b")
        assert len(await me.names()) == 101
        assert await me.feed() == await other.feed()
        assert await me.catalog.check() == []
        await other.catalog.aclose()

    async def test_one_of_two_catalogs_wins_a_version(self, me: Caller, path: Path) -> None:
        other = await _opened(path)
        other.now = 10**12
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
        await other.catalog.aclose()

    async def test_one_file_is_made_by_many_at_once(self, path: Path) -> None:
        ids: list[str] = []

        async def make() -> None:
            catalog = await SqliteCatalog.open(path, create=True)
            ids.append(await catalog.vault_id())
            await catalog.aclose()

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(make)
        assert len(ids) == 8
        assert len(set(ids)) == 1

    # What is no catalog

    async def test_a_newer_schema_is_refused(self, me: Caller, path: Path) -> None:
        await me.catalog.aclose()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
        with pytest.raises(Unsupported, match="schema 99"):
            await SqliteCatalog.open(path)

    async def test_a_database_that_is_refused_is_left_as_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "other.db"
        for number, error in ((0, NotAVault), (99, Unsupported)):
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS theirs(number)")
                connection.execute(f"PRAGMA user_version = {number}")
            before = file.read_bytes()
            with pytest.raises(error):
                await SqliteCatalog.open(file, create=True)
            assert file.read_bytes() == before
            assert [each.name for each in tmp_path.iterdir()] == ["other.db"]

    async def test_a_catalog_is_led_forward_all_the_way_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "older.db"
        with monkeypatch.context() as older:
            older.setattr(connections, "MIGRATIONS", MIGRATIONS[:1])
            older.setattr(connections, "SCHEMA", 1)
            await (await SqliteCatalog.open(file, create=True)).aclose()
        with monkeypatch.context() as halfway:
            halfway.setattr(
                connections, "MIGRATIONS", (*MIGRATIONS[:-1], ("CREATE TABLE packs(x)",))
            )
            with pytest.raises(CatalogUnavailable):
                await SqliteCatalog.open(file)
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        catalog = await SqliteCatalog.open(file)
        assert await catalog.check() == []
        await catalog.aclose()

    @pytest.mark.parametrize("schema", range(1, SCHEMA))
    async def test_a_catalog_of_an_older_release_is_led_forward(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: int
    ) -> None:
        file = tmp_path / "older.db"
        with monkeypatch.context() as older:
            older.setattr(connections, "MIGRATIONS", MIGRATIONS[:schema])
            older.setattr(connections, "SCHEMA", schema)
            catalog = await SqliteCatalog.open(file, create=True)
            number = await catalog.vault_id()
            await catalog.aclose()
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (schema,)
        catalog = await SqliteCatalog.open(file)
        assert await catalog.vault_id() == number
        me = Caller(catalog, await add_user(catalog, "me"))
        await me.put("/a")
        assert await catalog.uploads(me.user.id) == []
        assert await catalog.check() == []
        await catalog.aclose()

    async def test_a_missing_file_is_not_made(self, path: Path) -> None:
        with pytest.raises(NotAVault):
            await SqliteCatalog.open(path)
        assert not path.exists()

    async def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogUnavailable):
            await SqliteCatalog.open(tmp_path / "no" / "catalog.db", create=True)

    @pytest.mark.parametrize("create", [True, False])
    async def test_a_file_that_is_no_database(self, path: Path, create: bool) -> None:
        path.write_bytes(b"all work and no play " * 500)
        before = path.read_bytes()
        with pytest.raises(CatalogUnavailable):
            await SqliteCatalog.open(path, create=create)
        assert path.read_bytes() == before

    async def test_a_database_of_something_else(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE recipes(name)")
        with pytest.raises(NotAVault):
            await SqliteCatalog.open(path, create=True)

    async def test_a_damaged_file_is_found_out(self, me: Caller, path: Path) -> None:
        for number in range(200):
            await me.put(f"/{number:0250}")
        await me.catalog.aclose()
        data = bytearray(path.read_bytes())
        for page in range(4096, len(data), 4096):
            data[page : page + 8] = b"\xff" * 8
        path.write_bytes(data)
        with pytest.raises(CatalogUnavailable):
            await (await SqliteCatalog.open(path)).check()

    # Failures

    async def test_a_bug_fails_its_own_call_alone(self, me: Caller) -> None:
        unknown = cast("Operation", object())
        bugs: list[Exception] = []

        async def call(number: int) -> None:
            operations = (unknown,) if number == 3 else (me.put_op(f"/{number}/f", parents=True),)
            try:
                await me.do(*operations)
            except KeyError as error:
                bugs.append(error)

        with suppress(LookupError):
            async with anyio.create_task_group() as tasks, me.catalog.reindex():
                for number in range(6):
                    tasks.start_soon(call, number)
                await anyio.wait_all_tasks_blocked()  # so that all wait for one transaction
        assert len(bugs) == 1
        assert await me.names() == ["0", "1", "2", "4", "5"]
        assert len(await me.feed()) == 10
        assert await me.catalog.check() == []

    async def test_a_full_disk_leaves_the_old_state(self, path: Path) -> None:
        connection, number = open_writer(path, create=True)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")
        catalog = SqliteCatalog(path, Writer(connection, str(path)), number)
        me = Caller(catalog, await add_user(catalog, "me"))
        before, made = await state_of(catalog), 0

        async def index() -> None:
            async with catalog.reindex() as index:
                for name in range(100):
                    await index.add_pack(pack_of(f"{name}", [f"{name}-{n}" for n in range(50)]))

        async def fill() -> None:
            nonlocal before, made
            while True:
                await me.do(*(me.put_op(f"/{made}-{n:0200}") for n in range(20)))
                before, made = await state_of(catalog), made + 1

        with pytest.raises(CatalogUnavailable, match="full"):
            await fill()
        assert made
        assert await state_of(catalog) == before
        with pytest.raises(CatalogUnavailable, match="full"):
            await index()
        assert await state_of(catalog) == before
        connection.execute("PRAGMA max_page_count = 100000")
        await me.put("/f")
        assert await catalog.check() == []
        await catalog.aclose()

    async def test_a_writer_that_waits_too_long_is_told_so(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "BUSY_AFTER", 0.1)
        catalog = await SqliteCatalog.open(path, create=True)
        me = Caller(catalog, await add_user(catalog, "me"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Busy, match="another process") as caught:
                await me.put("/a")
            assert str(path.parent) not in caught.value.message  # clients of a server are told
            with pytest.raises(Busy):
                async with catalog.reindex():
                    pytest.fail("somebody else is writing")
            assert await me.names() == []
        await me.put("/a")
        await catalog.aclose()

    # Other processes

    @pytest.mark.slow
    async def test_two_processes_write_at_once(self, me: Caller, path: Path) -> None:
        with _writing(path, "theirs") as process:
            assert process.stdout is not None
            stop = anyio.current_time() + 2
            mine = 0
            while anyio.current_time() < stop:
                await me.do(
                    me.put_op(f"/mine/{mine}", parents=True), me.put_op("/same", f"mine {mine}")
                )
                mine += 1
            process.terminate()
            theirs = process.stdout.read().count(b"\n")
        assert theirs > 10
        assert mine > 10
        assert len(await me.names("/mine")) == mine
        assert len(await me.names("/theirs")) in {theirs, theirs + 1}
        assert len(await me.feed()) == 2 * mine + 2 * len(await me.names("/theirs")) + 2
        assert await me.catalog.check() == []

    @pytest.mark.slow
    async def test_what_a_killed_process_was_told_is_there(self, me: Caller, path: Path) -> None:
        for number in range(5):
            with _writing(path, f"{number}") as process:
                assert process.stdout is not None
                for _ in range(10 + 10 * number):
                    process.stdout.readline()
                process.kill()
                acknowledged = 10 + 10 * number + process.stdout.read().count(b"\n")
            names = await me.names(f"/{number}")
            assert len(names) in {acknowledged, acknowledged + 1}
            assert await me.catalog.check() == []
        await me.feed()


WRITER = """
import sys
from pathlib import Path

import anyio

from tests.contracts.callers import Caller
from vaultfs.adapters.sql.sqlite import SqliteCatalog


async def main(path, prefix):
    catalog = await SqliteCatalog.open(Path(path))
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
def _writing(path: Path, prefix: str) -> Generator["subprocess.Popen[bytes]", None, None]:
    command = [sys.executable, "-c", WRITER, str(path), prefix]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the other process did not begin"
            yield process
        finally:
            process.kill()


async def test_an_empty_file_is_not_taken_for_a_new_catalog(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.touch()
    with pytest.raises(NotAVault, match="from-backup"):
        await SqliteCatalog.open(path)
    assert path.stat().st_size == 0

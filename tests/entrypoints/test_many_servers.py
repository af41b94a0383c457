"""Several server processes over one PostgreSQL and one store, and what befalls them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import define, field, frozen
from tests.entrypoints.cli_calls import Called, call
from tests.faults import MIB, random_bytes
from tests.postgres import Postgres, serving

from vaultfs.domain.services.accounts import KNOWN_FOR

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@frozen
class Running:
    process: "subprocess.Popen[bytes]"
    address: str
    token: str | None

    def client(self, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=30)


@frozen
class Place:
    """Where a shared vault is."""

    database: str
    store: str
    log: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--database", self.database, "--store", self.store)

    def cli(self, *words: object) -> Called:
        return call(*self.flags, *words)

    @contextmanager
    def serve(self) -> Generator[Running, None, None]:
        words = ("serve", "--port", "0", "--json", "--rate", "100000")
        command = [sys.executable, "-m", "vaultfs", *words, *self.flags]
        with (
            self.log.open("ab") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT) as process,
        ):
            try:
                assert process.stdout is not None
                told: dict[str, Any] = json.loads(process.stdout.readline())
                yield Running(process, told["address"], told["token"])
            finally:
                process.terminate()
                process.wait(timeout=40)


@frozen
class Pair:
    """Two servers, and a token for both."""

    place: Place
    one: Running
    other: Running
    token: str

    def clients(self) -> tuple[httpx.Client, httpx.Client]:
        return self.one.client(self.token), self.other.client(self.token)


@pytest.fixture
def place(database: str, tmp_path: Path) -> Place:
    return Place(database, (tmp_path / "objects").as_uri(), tmp_path / "log")


@contextmanager
def two(place: Place) -> Generator[Pair, None, None]:
    """Two servers that are the first ones, one after the other."""
    with place.serve() as one, place.serve() as other:
        assert one.token is not None
        assert other.token is None, "a token for everything is shown at the very first start"
        yield Pair(place, one, other, one.token)


@pytest.fixture
def pair(place: Place) -> Iterator[Pair]:
    with two(place) as pair:
        yield pair


@define(eq=False)
class Load:
    """Writers that put small files through a server until they are told to stop."""

    token: str
    kept: dict[str, bytes] = field(factory=dict[str, bytes])
    """What a server has acknowledged, by its path."""
    maybe: set[str] = field(factory=set[str])
    """Puts whose answer never came, or which the server does not know of itself."""
    refused: Counter[tuple[int, str]] = field(factory=Counter[tuple[int, str]])
    _stop: threading.Event = field(factory=threading.Event)
    _errors: list[BaseException] = field(factory=list[BaseException])

    def write(self, server: Running, name: str) -> None:
        try:
            self._write(server, name)
        except BaseException as error:  # noqa: BLE001 the test raises it
            self._errors.append(error)

    def _write(self, server: Running, name: str) -> None:
        number = 0
        with server.client(self.token) as client:
            while not self._stop.is_set():
                path, content = f"/v1/files/me/{name}/{number}", os.urandom(2000)
                number += 1
                try:
                    answer = client.put(path, params={"parents": "true"}, content=content)
                except httpx.TransportError:
                    self.maybe.add(path)
                    if server.process.poll() is not None:
                        return
                    continue
                if answer.status_code == 201:
                    self.kept[path] = content
                    continue
                code = answer.json()["code"]
                self.refused[answer.status_code, code] += 1
                if code == "outcome_unknown":
                    self.maybe.add(path)
                time.sleep(0.05)

    @contextmanager
    def on(self, *servers: Running, writers: int = 3) -> Generator[None, None, None]:
        with ExitStack() as stack:
            for index, server in enumerate(servers):
                for writer in range(writers):
                    name = f"{index}-{writer}"
                    thread = threading.Thread(target=self.write, args=(server, name))
                    thread.start()
                    stack.callback(thread.join)
            stack.callback(self._stop.set)
            yield
        assert not self._errors, self._errors

    def until(self, holds: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.refused
            time.sleep(0.02)

    def more(self, count: int, at: str = "") -> Callable[[], bool]:
        """Whether so many more puts have been acknowledged since, under names like `at`."""

        def acknowledged() -> int:
            return sum(path.startswith(f"/v1/files/me/{at}") for path in list(self.kept))

        before = acknowledged()
        return lambda: acknowledged() >= before + count

    def check(self, place: Place, server: Running) -> None:
        """Nothing that was acknowledged is lost, and nothing is there that was refused."""
        with server.client(self.token) as client:
            for path, content in self.kept.items():
                assert client.get(path).content == content, path
            for path in self.maybe:
                assert client.get(path).status_code in {200, 404}
        assert place.cli("--json", "verify").value["clean"]
        stats = place.cli("--json", "stats").value
        assert len(self.kept) <= stats["files"] <= len(self.kept) + len(self.maybe)


def test_two_servers_are_one_vault(pair: Pair) -> None:
    content = random_bytes(20 * MIB, "shared")
    here, there = pair.clients()
    with here, there:
        assert here.put("/v1/files/me/a", content=content).status_code == 201
        assert there.get("/v1/files/me/a").content == content
        etag = there.get("/v1/files/me/a").headers["etag"]
        assert there.put("/v1/files/me/a", content=b"new").status_code == 200
        stale = here.put("/v1/files/me/a", content=b"late", headers={"If-Match": etag})
        assert stale.status_code == 412
        assert here.get("/v1/files/me/a").content == b"new"
        assert here.get("/v1/files/me/a", params={"version": 1}).content == content
        for client in (here, there):
            assert client.get("/readyz").json()["status"] == "ok"
    stored = pair.place.cli("--json", "stats").value["bytes_stored"]
    with pair.other.client(pair.token) as client:
        client.put("/v1/files/me/b", content=content)
    assert pair.place.cli("--json", "stats").value["bytes_stored"] - stored < MIB


def test_two_servers_take_in_the_same_at_the_same_time(pair: Pair) -> None:
    """Both may store the same pack under the same name, and record it."""
    contents = [os.urandom(3000) for _ in range(30)]

    def put(server: Running, name: str) -> None:
        with server.client(pair.token) as client:
            for number, content in enumerate(contents):
                gate.wait(timeout=20)
                path = f"/v1/files/me/{name}{number}"
                assert client.put(path, content=content).status_code == 201

    gate = threading.Barrier(2)
    threads = [
        threading.Thread(target=put, args=(server, name))
        for name, server in (("a", pair.one), ("b", pair.other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pair.one.client(pair.token) as client:
        for number, content in enumerate(contents):
            assert client.get(f"/v1/files/me/a{number}").content == content
            assert client.get(f"/v1/files/me/b{number}").content == content
    assert pair.place.cli("--json", "verify").value["clean"]
    stats = pair.place.cli("--json", "stats").value
    assert stats["files"] == 60
    assert stats["packs"] <= 60


def test_what_one_server_is_told_of_users_and_tokens_holds_at_the_other(pair: Pair) -> None:
    here, there = pair.clients()
    with here, there:
        assert here.post("/v1/users", json={"name": "bob", "quota": 1000}).status_code == 201
        made = there.post(
            "/v1/users/bob/tokens", json={"name": "x", "scopes": ["read", "write"]}
        ).json()
    bob = made["token"]
    with pair.one.client(bob) as here, pair.other.client(bob) as there:
        assert here.put("/v1/files/bob/a", content=b"x" * 900).status_code == 201
        assert there.put("/v1/files/bob/b", content=b"x" * 900).status_code == 507
        assert there.get("/v1/files/bob/a").status_code == 200
        assert here.delete(f"/v1/users/bob/tokens/{made['id']}").status_code == 204
        assert here.get("/v1/whoami").status_code == 401
        time.sleep(KNOWN_FOR)
        assert there.get("/v1/whoami").status_code == 401


def test_servers_that_begin_together_make_one_vault(place: Place) -> None:
    ready: list[Running] = []

    def run(stack: ExitStack) -> None:
        ready.append(stack.enter_context(place.serve()))

    with ExitStack() as stack:
        threads = [threading.Thread(target=run, args=(stack,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ready) == 3
        [token] = [each.token for each in ready if each.token]
        for number, server in enumerate(ready):
            with server.client(token) as client:
                assert client.put(f"/v1/files/me/{number}", content=b"x").status_code == 201


def test_one_of_two_servers_is_killed_under_load(pair: Pair) -> None:
    load = Load(pair.token)
    with load.on(pair.one, pair.other):
        load.until(load.more(30, "0-"))
        pair.one.process.send_signal(signal.SIGKILL)
        pair.one.process.wait()
        load.until(load.more(50, "1-"))
    assert not load.refused
    load.check(pair.place, pair.other)
    with pair.place.serve() as again:  # and another one takes its place
        load.check(pair.place, again)


def _lock(client: httpx.Client, path: str, *, ttl: float, wait: float = 0) -> httpx.Response:
    body = {"paths": [{"path": path}], "ttl_seconds": ttl, "wait_seconds": wait}
    return client.post("/v1/locks", json=body, timeout=60)


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
def test_a_lock_that_ran_out_while_its_server_stood_still_is_none(pair: Pair, taken: bool) -> None:
    one, other = pair.clients()
    with one, other:
        mine = _lock(one, "/a", ttl=2).json()
        shown = {"VaultFS-Lock-Token": mine["lock"]}
        put = partial(one.put, "/v1/files/me/a")
        assert put(content=b"first", headers=shown).status_code == 201
        pair.one.process.send_signal(signal.SIGSTOP)
        try:
            theirs = _lock(other, "/a", ttl=30, wait=20)
            assert theirs.status_code == 201
            if not taken:
                lease = theirs.json()["lock"]
                assert other.delete(f"/v1/locks/{lease}").status_code == 204
        finally:
            pair.one.process.send_signal(signal.SIGCONT)
        late = put(content=b"from the grave", headers=shown)
        assert (late.status_code, late.json()["code"]) == (412, "stale_token")
        plain = put(content=b"and without")
        assert plain.status_code == (423 if taken else 200)
        found = other.get("/v1/files/me/a").content
        assert found == (b"first" if taken else b"and without")


def test_who_waits_at_a_server_that_stands_still_holds_up_nobody(pair: Pair) -> None:
    one, other = pair.clients()
    answers: list[httpx.Response] = []

    def wait_at_one() -> None:
        answers.append(_lock(one, "/a", ttl=5, wait=50))

    with one, other:
        held = _lock(other, "/a", ttl=60).json()
        waiting = threading.Thread(target=wait_at_one)
        waiting.start()
        while not other.get("/v1/locks").json()["waiting"]:
            time.sleep(0.05)
        pair.one.process.send_signal(signal.SIGSTOP)
        try:
            assert other.delete(f"/v1/locks/{held['lock']}").status_code == 204
            begun = time.monotonic()
            mine = _lock(other, "/a", ttl=30, wait=40)
            assert mine.status_code == 201
            assert time.monotonic() - begun < 20
        finally:
            pair.one.process.send_signal(signal.SIGCONT)
        waiting.join()
        [told] = answers
        assert told.status_code in {201, 410}  # it was taken for dead, and is told so
        assert other.delete(f"/v1/locks/{mine.json()['lock']}").status_code == 204
        if told.status_code == 201:  # it came once the other had given it back
            assert told.json()["token"] > mine.json()["token"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_postgres_is_restarted_under_load(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped in order, and as if it had crashed; it flushes what it commits."""
    with serving(durable=True) as postgres, postgres.database() as url:
        place = Place(url, (tmp_path / "objects").as_uri(), tmp_path / "log")
        with two(place) as pair:
            load = Load(pair.token)
            with load.on(pair.one, pair.other):
                load.until(load.more(30))
                postgres.stop(number)
                load.until(lambda: bool(load.refused[503, "catalog_unavailable"]))
                _check_meanwhile(pair)
                time.sleep(0.5)
                postgres.start()
                load.until(load.more(20, "0-"))
                load.until(load.more(20, "1-"))
            known = {(503, "catalog_unavailable"), (503, "outcome_unknown")}
            assert set(load.refused) <= known, load.refused
            load.check(place, pair.one)
            load.check(place, pair.other)
        _check_log(place)


def _check_meanwhile(pair: Pair) -> None:
    """What a server answers while its database is away."""
    with pair.one.client(pair.token) as client:
        assert client.get("/healthz").status_code == 200
        time.sleep(2.1)  # `READY_FOR`
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["checks"]["catalog"] == "CatalogUnavailable"
        answer = client.get("/v1/nodes/me/")
        assert answer.status_code == 503
        assert "127.0.0.1" not in answer.text, "addresses are for the log"


def _check_log(place: Place) -> None:
    """No bug was logged."""
    assert "Traceback" not in place.log.read_text()


def test_a_catalog_is_brought_back_while_a_server_runs(pair: Pair, postgres: Postgres) -> None:
    here, there = pair.clients()
    with here, there:
        assert here.put("/v1/files/me/a", content=b"before").status_code == 201
        made = pair.place.cli("--json", "backup").value["name"]
        assert here.put("/v1/files/me/b", content=b"after").status_code == 201
        assert (
            pair.place.cli("--json", "rebuild", "--from-backup", "latest").value["backup"] == made
        )
        for client in (here, there):
            assert client.get("/v1/files/me/a").content == b"before"
            assert client.get("/v1/files/me/b").status_code == 404
        assert here.put("/v1/files/me/b", content=b"again").status_code == 201
        assert there.get("/v1/files/me/b").content == b"again"
    name = pair.place.database.rpartition("/")[2]
    assert postgres.run(f'SELECT count(*) FROM "before-{made}".nodes', name) == "3"
    assert pair.place.cli("--json", "verify").value["clean"]


# The command line


def test_a_shared_vault_from_the_command_line(place: Place, tmp_path: Path) -> None:
    assert place.cli("ls", "/").code == 1
    assert place.cli("--json", "init").value["vault"] == place.database.replace("vaultfs@", "")
    assert place.cli("init").code == 1
    (tmp_path / "f").write_bytes(b"hello")
    assert place.cli("put", tmp_path / "f", "/").code == 0
    environment: dict[str, str | None] = {
        "VAULTFS_DATABASE": place.database,
        "VAULTFS_STORE": place.store,
    }
    assert call("cat", "/f", env=environment).bytes_out == b"hello"
    assert call("user", "add", "bob", env=environment).code == 0
    assert call("token", "add", "x", "--user", "bob", env=environment).code == 0
    named = ("--database", place.database, "--store", place.store)
    assert "bob" in call("user", "ls", *named).out
    assert call("token", "ls", "--user", "bob", *named).code == 0
    assert call("maintain", env=environment).code == 0
    file = tmp_path / "vaultfs.toml"
    file.write_text(f'database = "{place.database}"\nstore = "{place.store}"\n')
    assert call("cat", "/f", env={"VAULTFS_CONFIG": str(file)}).bytes_out == b"hello"
    assert call("--vault", tmp_path, "ls", "/", env=environment).code == 1  # the flag is nearer


def test_a_store_goes_with_its_own_database(place: Place, postgres: Postgres) -> None:
    place.cli("init")
    with postgres.database() as another:
        wrong = Place(another, place.store, place.log)
        assert "rebuild --from-backup" in wrong.cli("init").errors
        assert wrong.cli("ls", "/").code == 1
        fresh = Place(another, f"{place.store}-other", place.log)
        assert fresh.cli("init").code == 0
        crossed = Place(another, place.store, place.log)
        assert "belongs to vault" in crossed.cli("put", ROOT / "README.md", "/").errors


def test_a_database_is_not_served_with_an_empty_store(place: Place, tmp_path: Path) -> None:
    place.cli("init")
    place.cli("put", ROOT / "README.md", "/")
    wrong = Place(place.database, (tmp_path / "elsewhere").as_uri(), place.log)
    assert "no marker" in wrong.cli("init").errors
    assert not list((tmp_path / "elsewhere").glob("marker*"))


def test_a_lost_database_is_brought_back(place: Place, postgres: Postgres) -> None:
    place.cli("init")
    place.cli("put", ROOT / "README.md", "/")
    place.cli("backup")
    with postgres.database() as another:
        new = Place(another, place.store, place.log)
        assert new.cli("--json", "rebuild").value["versions"] == 1
        assert new.cli("cat", "/README.md").bytes_out == (ROOT / "README.md").read_bytes()
        assert new.cli("--json", "verify").value["clean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--database", "postgresql://x/y"), "both: --database and --store"),
        (("--store", "file:///x"), "both: --database and --store"),
        (("--database", "mysql://x/y", "--store", "file:///x"), "postgresql://"),
        (("--database", "postgresql://x/y", "--store", "ftp://x"), "file://"),
        (("--database", "postgresql://x/y", "--store", "file://x/y"), "file:///FOLDER"),
        (("--vault", "/x", "--database", "postgresql://x/y", "--store", "file:///x"), "two vaults"),
    ],
)
def test_what_names_no_vault_is_refused(words: tuple[str, ...], message: str) -> None:
    called = call(*words, "ls", "/")
    assert called.code in {1, 2}
    assert message in called.errors


def test_a_password_is_not_shown() -> None:
    url = "postgresql://me:hunter2@localhost:1/v"
    shown = call("config", "--database", url, "--store", "file:///x")
    assert "postgresql://me:***@localhost:1/v" in shown.out
    tried = call("--database", url, "--store", "file:///tmp", "ls", "/")
    assert "localhost:1" in tried.errors
    assert "hunter2" not in shown.out + tried.errors

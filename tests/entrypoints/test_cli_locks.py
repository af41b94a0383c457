"""`vaultfs lock`, and locks in the SDK."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import anyio
import pytest
from tests.contracts.locks import TREE, A, F
from tests.entrypoints.cli_calls import Cli, command
from tests.entrypoints.test_http_server import Running
from tests.services.test_locks import FailingStore

import vaultfs
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.errors import Locked, LockTimedOut, WouldBlock
from vaultfs.domain.intervals import byte_range
from vaultfs.domain.lockmodes import READ, UPDATE, WRITE
from vaultfs.domain.services.locks import open_locks
from vaultfs.entrypoints.cli import locking
from vaultfs.entrypoints.cli.session import Session
from vaultfs.entrypoints.renewing import renew_always


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def start(cli: Cli, *words: object, told: int | None = None) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "VAULTFS_TOKEN": cli.token}
    return subprocess.Popen(command(*cli.words, *words), env=env, stderr=told)


def errors_of(running: "subprocess.Popen[bytes]") -> str:
    """What it has told when it has ended."""
    return running.communicate(timeout=30)[1].decode()


def test_a_command_runs_while_a_path_is_locked(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"mine")
    running = start(cli, "lock", "run", "/d", "--", "sleep", "60")
    try:
        until(lambda: cli.json("lock", "ls")["held"])
        [held] = cli.json("lock", "ls")["held"]
        assert held["paths"] == [{"path": "/d", "mode": "X"}]
        assert 0 < held["expires_in"] <= 30
        assert "/d (X)" in cli("lock", "ls").out
        assert cli.refused("put", source, "/d/a") == "locked"
        told = cli("put", source, "/d/a", code=1).errors
        assert told.startswith("vaultfs: /d/a is locked: ")
        assert "`vaultfs lock ls` has the token" in told
        told = cli("mv", "/d", "/e", code=1).errors
        assert told.startswith("vaultfs: /d is locked: ")
        assert cli.refused("lock", "run", "--wait", "0", "/d/a", "--", "true") != ""
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    assert cli.json("lock", "ls") == {"held": [], "waiting": []}
    cli("put", source, "/d/a")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_is_gone_ends_the_command_too(cli: Cli, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    running = start(cli, "lock", "run", "/d", "--", sys.executable, "-c", script)
    until(lambda: started.is_file() and started.read_text())
    running.send_signal(signal.SIGHUP)
    assert running.wait(20) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert cli.json("lock", "ls")["held"] == []


def test_the_command_writes_with_the_lock_and_gives_its_exit_code(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"mine")
    put = command(*cli.words, "put", source, "/d/a")
    words = ("lock", "run", "/d", "--", *put)
    assert start(cli, *words).wait(30) == 0
    assert cli.read("/d/a") == b"mine"
    assert start(cli, "lock", "run", "/d", "--", sys.executable, "-c", "exit(7)").wait(30) == 7
    kill = "import os; os.kill(os.getpid(), 9)"
    assert start(cli, "lock", "run", "/d", "--", sys.executable, "-c", kill).wait(30) == 137
    assert start(cli, "lock", "run", "/d", "--", "no-such-command").wait(30) == 2
    assert cli.json("lock", "ls")["held"] == []


def held_by(cli: Cli) -> int:
    """The token of the one lock, once it is there."""
    until(lambda: cli.json("lock", "ls")["held"])
    return int(cli.json("lock", "ls")["held"][0]["token"])


def user_of(cli: Cli) -> str:
    request = Request(f"{cli.server}/v1/whoami")
    request.add_header("Authorization", f"Bearer {cli.token}")
    with urlopen(request) as answer:
        return str(json.load(answer)["user"]["name"])


def break_lock(cli: Cli, hub: Running, token: int) -> None:
    """As whoever may: an admin, or who has the folder."""
    if cli.server:
        admin = Cli(hub.folder, hub.address, hub.token)
        admin("lock", "break", "--user", user_of(cli), token)
    else:
        cli("lock", "break", token)


@pytest.mark.parametrize(("own", "code"), [(0, 3), (5, 5)])
def test_a_lock_that_was_lost_is_told_at_the_end(
    cli: Cli, hub: Running, tmp_path: Path, own: int, code: int
) -> None:
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.05; done; exit {own}"
    words = ("lock", "run", "/d", "--", "sh", "-c", script)
    running = start(cli, *words, told=subprocess.PIPE)
    break_lock(cli, hub, held_by(cli))
    go.touch()
    told = errors_of(running)
    assert running.returncode == code
    assert told.startswith("the lock is lost, and the command's writes are refused: the lease ")
    assert "ran out, was broken or never was" in told


@pytest.mark.parametrize(
    "words",
    [
        ("lock", "ls"),
        ("lock", "break", 1),
        ("token", "add", "laptop"),
        ("token", "ls"),
        ("token", "rotate", "00"),
        ("token", "revoke", "00"),
    ],
)
def test_an_empty_name_is_nobodys(cli: Cli, words: tuple[object, ...]) -> None:
    assert cli.refused(*words, "--user", "", code=2) == "usage"
    assert "a name is not empty" in cli(*words, "--user", "", code=2).errors


def test_who_waits_is_told_for_whom(cli: Cli) -> None:
    first = start(cli, "lock", "run", "/d/a", "--", "sleep", "60")
    token = held_by(cli)
    second = start(cli, "lock", "run", "/d/", "--", "true", told=subprocess.PIPE)
    assert second.stderr is not None
    line = second.stderr.readline().decode()
    [held] = cli.json("lock", "ls")["held"]
    assert held["token"] == token
    assert line == f"waiting for /d (X): {held['owner']} has /d/a (X); Ctrl-C gives up\n"
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    assert errors_of(second) == ""
    assert second.returncode == 0


def test_who_waits_quietly_is_told_nothing(embedded: Cli) -> None:
    first = start(embedded, "lock", "run", "/d", "--", "sleep", "60")
    held_by(embedded)
    words = ("lock", "run", "-q", "--wait", "1.5", "/d", "--", "true")
    told = errors_of(start(embedded, *words, told=subprocess.PIPE))
    first.send_signal(signal.SIGINT)
    assert told.startswith("vaultfs: not had in 1.5 seconds: ")
    assert first.wait(20) == 130


RANGES = (
    byte_range(0, 10, exclusive=True),
    byte_range(10, 20, exclusive=False),
    byte_range(20, None, exclusive=True),
)
LISTED = [
    {"path": "/d/g", "mode": "U"},
    {"path": "/d/f", "mode": "S", "ranges": [[10, 20]]},
    {"path": "/d/f", "mode": "X", "ranges": [[0, 10], [20, None]]},
]
SHOWN = "/d/g (U), /d/f (S, bytes 10 to 20), /d/f (X, bytes 0 to 10, 20 on)"


def test_ranges_are_listed_in_a_folder(embedded: Cli) -> None:
    async def take() -> None:
        async with vaultfs.open(embedded.vault) as vault:
            locks, tree = vault.vault.locks, vault.vault.user.tree
            await locks.acquire(A, tree, {("d", "g"): UPDATE}, ranges={F: RANGES}, ttl=60)

    anyio.run(take)
    assert embedded.json("lock", "ls")["held"][0]["paths"] == LISTED
    assert SHOWN in embedded("lock", "ls").out


def test_ranges_are_listed_of_a_server(served: Cli) -> None:
    spans = [
        {"path": "/d/f", "ranges": [{"start": 0, "stop": 10}, {"start": 20}]},
        {"path": "/d/f", "mode": "shared", "ranges": [{"start": 10, "stop": 20}]},
    ]
    body = json.dumps({"paths": [{"path": "/d/g", "mode": "update"}, *spans]}).encode()
    request = Request(f"{served.server}/v1/locks", body, method="POST")
    request.add_header("Authorization", f"Bearer {served.token}")
    request.add_header("Content-Type", "application/json")
    with urlopen(request) as answer:
        assert answer.status == 201
    assert served.json("lock", "ls")["held"][0]["paths"] == LISTED
    assert SHOWN in served("lock", "ls").out


async def test_a_busy_catalog_does_not_end_the_command() -> None:
    clock = SystemClock()
    store = FailingStore(clock)
    async with open_locks(store, clock) as locks, anyio.create_task_group() as tasks:
        token = await locks.acquire(A, TREE, {F: WRITE}, ttl=0.6)
        store.failures = 2
        lost = locking._Lost(Session())  # pyright: ignore[reportPrivateUsage]
        tasks.start_soon(renew_always, partial(locks.renew, A, TREE, token, 0.3), 0.3, lost)
        await anyio.sleep(1)
        assert await locks.find(A, TREE, token)
        tasks.cancel_scope.cancel()


def test_a_broken_lock_is_audited_and_its_writes_are_refused(embedded: Cli, tmp_path: Path) -> None:
    cli = embedded
    source = tmp_path / "a"
    source.write_bytes(b"mine")
    go = tmp_path / "go"
    put = " ".join(command(*cli.words, "put", source, "/d"))
    script = f"while [ ! -e {go} ]; do sleep 0.05; done; exec {put}"
    running = start(cli, "lock", "run", "/d", "--", "sh", "-c", script)
    until(lambda: cli.json("lock", "ls")["held"])
    [held] = cli.json("lock", "ls")["held"]
    cli("lock", "break", held["token"])
    assert cli.refused("lock", "break", held["token"]) == "not_found"
    assert cli.refused("lock", "ls", "--user", "nobody") == "not_found"
    with closing(sqlite3.connect(cli.vault / "catalog.db")) as catalog:
        rows = catalog.execute("SELECT subject FROM audit WHERE kind = 'break-lock'").fetchall()
    assert rows == [(f"tree 1: {held['owner']}.{held['token']}: /d",)]
    cli("put", source, "/d")
    go.touch()
    assert running.wait(30) != 0


def test_an_admin_breaks_locks_on_a_server(hub: Running, served: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    running = start(served, "lock", "run", "/d", "--", "sleep", "60")
    try:
        until(lambda: served.json("lock", "ls")["held"])
        [held] = served.json("lock", "ls")["held"]
        assert "/d (X)" in served("lock", "ls").out
        assert served.refused("lock", "break", held["token"]) == "forbidden"
        user = user_of(served)
        admin = Cli(hub.folder, hub.address, hub.token)
        assert admin.json("lock", "ls", "--user", user)["held"][0]["token"] == held["token"]
        assert served.refused("lock", "ls", "--user", "nobody") == "not_found"
        admin("lock", "break", "--user", user, held["token"])
        assert admin.refused("lock", "break", "--user", user, held["token"]) == "not_found"
        assert served.json("lock", "ls")["held"] == []
        served("put", tmp_path / "a", "/d/a")
    finally:
        running.terminate()
        assert running.wait(20) == 130


async def test_the_sdk_locks(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "x").write_bytes(b"x")
    async with vaultfs.open(tmp_path / "vault", create=True) as vault:
        await vault.put("/a", b"one")
        async with vault.lock("/a", "/b") as locked:
            await locked.put("/a", b"two")
            await locked.put_tree(local, "/b")
            assert await locked.get("/b/x") == b"x"
            with pytest.raises(Locked):
                await vault.put("/a", b"three")
            with pytest.raises(WouldBlock):
                async with vault.lock(timeout=0):
                    pass
            with pytest.raises(LockTimedOut):
                async with vault.lock("/a", mode=READ, timeout=0.05):
                    pass
        async with vault.lock(mode=READ), vault.lock("/a", mode=READ):
            assert await vault.get("/a") == b"two"


def test_plain_code_locks(tmp_path: Path) -> None:
    with vaultfs.open_sync(tmp_path / "vault", create=True) as vault:
        with vault.lock("/a") as locked:
            locked.put("/a", b"one")
            with pytest.raises(Locked):
                vault.put("/a", b"two")
        vault.put("/a", b"two")


async def test_two_vaults_on_one_folder_see_each_others_locks(tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    async with vaultfs.open(folder, create=True) as one, vaultfs.open(folder) as two:
        async with one.lock("/a"):
            with pytest.raises(Locked):
                await two.put("/a", b"x")
            async with anyio.create_task_group() as tasks:
                got = anyio.Event()

                async def wait() -> None:
                    async with two.lock("/a"):
                        got.set()

                tasks.start_soon(wait)
                await anyio.sleep(0.1)
                assert not got.is_set()
                tasks.cancel_scope.cancel()
        async with two.lock("/a", timeout=5):
            pass

"""The command line against a server: what has no counterpart in a folder.

`test_cli_nodes.py` and `test_cli_contents.py` run each of their tests against both.
"""

import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli, call, clean_env, command, noise
from tests.entrypoints.conftest import new_user
from tests.entrypoints.test_cli_process import loaded
from tests.entrypoints.test_http_server import Running, serve
from tests.faults import read_tree


@pytest.fixture
def cli(served: Cli) -> Cli:
    return served


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str | None]:
    """An environment in which nobody has logged in."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "VAULTFS_TOKEN": None}


def text_of(home: dict[str, str | None]) -> dict[str, str]:
    return {key: text for key, text in home.items() if text is not None}


# The vault as a whole, users and tokens


def test_the_address_can_stand_in_the_environment(cli: Cli) -> None:
    env = {**cli.env, "VAULTFS_VAULT": cli.server}
    cli("mkdir", "/here")
    assert call("ls", env=env).out == "here/\n"
    assert call("ls", "--vault", cli.server + "/", env=env).out == "here/\n"


def test_a_flag_goes_before_an_address_in_the_environment(cli: Cli, tmp_path: Path) -> None:
    env: dict[str, str | None] = {**cli.env, "VAULTFS_VAULT": cli.server}
    store = ("--store", tmp_path.as_uri())
    nowhere = call("--database", "mysql://x/y", *store, "ls", env=env)
    assert (nowhere.code, nowhere.out) == (1, "")
    assert "--database mysql: this release knows postgresql://" in nowhere.errors
    alone = call(*store, "ls", env=env)
    assert alone.code == 2
    assert "is a server, which has a store itself" in alone.errors
    both = call("--vault", cli.server, "--database", "postgresql://x/y", *store, "ls", env=env)
    assert both.code == 2
    assert "--vault and --database name two vaults" in both.errors


def test_a_file_can_name_the_server(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "vaultfs.toml"
    file.write_text(f'vault = "{cli.server}"')
    cli("mkdir", "/named")
    assert "named/\n" in call("ls", env={**cli.env, "VAULTFS_CONFIG": str(file)}).out


def test_put_says_how_much_travelled(cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, size in (("small", 1000), ("middle", 900_000), ("large", 20_000_000)):
        (tree / name).write_bytes(noise(size, size))
    for source, size in ((tree / "small", 1000), (tree / "large", 20_000_000), (tree, 900_000)):
        first = cli.json("put", source, "/travelled/")
        assert size <= first["travelled"] < size + 200_000
    again = cli("put", tree, "/travelled/")
    assert again.out.startswith("put 3 files, 19.9 MiB; 0 new versions; ")
    assert again.out.endswith(" KiB travelled\n")


def test_retention(cli: Cli, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "f").write_text(str(number))
        cli("put", tmp_path / "f", "/f")
    assert "all versions" in cli("retention").out
    assert cli.json("retention", "--keep", "2")["last"] == 2
    assert cli.json("retention", "--apply")["pruned"] == 2
    assert [each["number"] for each in cli.json("versions", "/f")] == [4, 3]
    assert cli.json("retention", "--keep", "30d")["age_days"] == 30
    assert cli.refused("retention", "--keep", "0", code=2) == "invalid_field"
    assert cli.json("retention", "--keep", "all")["last"] is None


def test_figures_of_the_whole_are_for_admins(cli: Cli, hub: Running) -> None:
    admin = Cli(hub.folder, hub.address, hub.token)
    assert admin.json("stats")["vault"] == hub.address
    assert admin.json("stats")["users"] >= 2
    called = cli("stats", code=1)
    assert "scope admin" in called.errors


def test_users_and_tokens(hub: Running, cli: Cli) -> None:
    admin = Cli(hub.folder, hub.address, hub.token)
    made = admin.json("user", "add", "carol", "--quota", "1K")
    assert made == {"name": "carol", "quota": 1024, "used": 0}
    assert admin.refused("user", "add", "carol") == "exists"
    assert "carol" in admin("user", "ls").out
    assert admin.json("user", "quota", "carol", "2K")["quota"] == 2048
    token = admin.json("token", "add", "laptop", "--user", "carol", "--days", "3")
    assert token["scopes"] == ["read", "write"]
    carol = Cli(hub.folder, hub.address, token["token"])
    assert [each["id"] for each in carol.json("token", "ls")] == [token["id"]]
    rotated = carol.json("token", "rotate", token["id"], "--overlap", "0")
    assert "was rotated" in carol("ls", code=1).errors
    carol = Cli(hub.folder, hub.address, rotated["token"])
    assert carol.refused("user", "ls") == "forbidden"
    assert carol.refused("token", "ls", "--user", "me") == "not_found"
    carol("token", "revoke", token["id"])
    assert "was revoked" in carol("ls", code=1).errors


def test_the_audit_is_the_same_at_the_server_and_at_hand(hub: Running, cli: Cli) -> None:
    admin = Cli(hub.folder, hub.address, hub.token)
    admin("user", "add", "dave")
    admin("user", "quota", "dave", "2K")
    rows = admin.json("audit")
    last = rows[-1]
    assert (last["kind"], last["user"], last["tree"]) == ("set-quota", "me", "dave")
    assert call("--vault", hub.folder, "--json", "audit").value == rows
    assert "me set-quota of dave" in " ".join(admin("audit").out.splitlines()[-1].split())
    assert cli.refused("audit") == "forbidden"


def test_a_token_of_another_user_says_how_to_name_that_user(cli: Cli, hub: Running) -> None:
    admin = Cli(hub.folder, hub.address, hub.token)
    [token] = cli.json("token", "ls")
    for change in ("revoke", "rotate"):
        told = admin("token", change, token["id"], code=1).errors
        assert told == f"vaultfs: me has no token {token['id']}: --user NAME says whose it is\n"


def test_an_address_without_a_scheme_says_how_they_begin() -> None:
    told = call("login", "127.0.0.1:8333", "--token-stdin").errors
    assert "begin with https:// or http://" in told


@pytest.mark.parametrize("change", ["cp", "mv"])
def test_nothing_goes_from_tree_to_tree(
    cli: Cli, hub: Running, tmp_path: Path, change: str
) -> None:
    (tmp_path / "f").write_text("x")
    other = Cli(hub.folder, hub.address, hub.token)
    other("put", tmp_path / "f", f"/{change}/shown")
    other("put", tmp_path / "f", f"/{change}/hidden")
    cli("mkdir", "/own")
    other("grant", f"/{change}/shown", cli.json("grant", "/own", "me")[0]["owner"])
    shown, hidden = f"me:/{change}/shown", f"me:/{change}/hidden"
    assert "stays in the tree of one user: get it" in cli(change, shown, "/mine", code=1).errors
    both = cli(change, shown, hidden, "/own", code=1)
    assert "stays in the tree of one user: get it" in both.errors
    for path in (hidden, f"me:/{change}/nothing", "nobody:/hidden"):
        refused = cli(change, path, "/mine", code=1)
        assert refused.errors == f"vaultfs: nothing is at {path.partition(':')[2]}\n"


def test_what_is_for_the_folder_alone_says_so(cli: Cli) -> None:
    names = ("verify", "rebuild", "backup", "maintain", "serve", "gc", "repack", "scrub")
    for words in (*((name,) for name in names), ("reconcile",), ("migrate", "status")):
        called = cli(*words, code=2)
        assert "run it where that is, with --vault DIR" in called.errors, words
        told = call(*words, "--help").out
        assert "The vault's folder." in told, words
        assert "URL  The vault" not in told, words
    assert "or its server" in call("ls", "--help").out


# Logging in


def login(cli: Cli, home: dict[str, str | None], token: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("login", cli.server, "--token-stdin"),
        input=f"{token}\n",
        env=clean_env(**text_of(home)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kept(home: dict[str, str | None]) -> Path:
    [path] = (Path(str(home["XDG_CONFIG_HOME"])) / "vaultfs" / "tokens").iterdir()
    return path


def test_a_token_is_kept_for_its_owner_alone(cli: Cli, home: dict[str, str | None]) -> None:
    done = login(cli, home, cli.token)
    assert done.returncode == 0, done.stderr
    assert "logged in" in done.stdout
    assert cli.token not in done.stdout + done.stderr
    path = kept(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    cli("mkdir", "/d")
    assert call("--vault", cli.server, "ls", env=home).out == "d/\n"
    # The environment goes before it.
    wrong = {**home, "VAULTFS_TOKEN": f"{cli.token}x"}
    assert "no such token" in call("--vault", cli.server, "ls", env=wrong).errors
    path.chmod(0o640)
    refused = call("--vault", cli.server, "ls", env=home)
    assert (refused.code, "chmod 600" in refused.errors) == (1, True)
    assert cli.token not in refused.errors
    path.chmod(0o600)
    elsewhere = path.rename(path.with_name("elsewhere"))
    path.symlink_to(elsewhere)
    assert "cannot be read" in call("--vault", cli.server, "ls", env=home).errors
    elsewhere.rename(path)
    assert call("logout", cli.server, env=home).code == 0
    refused = call("--vault", cli.server, "ls", env=home)
    assert refused.code == 1
    assert f"vaultfs login {cli.server}" in refused.errors
    assert "none was kept" in call("logout", cli.server, env=home).out


def test_what_no_server_accepts_is_not_kept(cli: Cli, home: dict[str, str | None]) -> None:
    for token in (f"{cli.token}x", "nonsense", "", "vfs_a_b c"):
        done = login(cli, home, token)
        assert done.returncode in {1, 2}
        assert not token or token not in done.stderr + done.stdout
    assert not Path(str(home["XDG_CONFIG_HOME"])).exists()


def test_a_token_is_asked_for_without_being_shown(cli: Cli, home: dict[str, str | None]) -> None:
    words, env = command("login", cli.server), clean_env(**text_of(home))
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child is another program before it needs any lock
        os.execve(words[0], words, env)
    shown = b""
    sent = False
    while select.select([terminal], [], [], 30)[0]:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        shown += data
        if b"not shown" in shown and not sent:
            time.sleep(0.2)  # until the echo is off
            os.write(terminal, f"{cli.token}\n".encode())
            sent = True
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert b"logged in" in shown
    assert cli.token.encode() not in shown
    assert kept(home).read_text().strip() == cli.token


def test_without_a_terminal_nobody_is_asked(cli: Cli, home: dict[str, str | None]) -> None:
    done = subprocess.run(
        command("login", cli.server),
        stdin=subprocess.DEVNULL,
        env=clean_env(**text_of(home)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--token-stdin" in done.stderr


# What is wrong with a server


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://user:secret@127.0.0.1:1", "no name or password"),
        ("http://127.0.0.1:99999", "is no URL"),
        ("http://", "is no address of a server"),
    ],
)
def test_addresses_that_are_none(address: str, told: str) -> None:
    called = call("--vault", address, "ls", env={"VAULTFS_TOKEN": "vfs_a_b"})
    assert called.code == 2
    assert told in called.errors
    assert "secret" not in called.errors


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    called = call("--vault", address, "ls", env={"VAULTFS_TOKEN": "vfs_a_b"})
    assert called.code == 1
    assert "cannot be reached" in called.errors
    assert "vaultfs serve" in called.errors


@contextmanager
def other_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Generator[str, None, None]:
    """Something that speaks HTTP and is no vaultfs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name above
            """Nobody wants to know."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _page(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"<html>welcome</html>")


def _not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def _moved(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "https://elsewhere.example/")
    request.end_headers()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (_page, "{address} is no vaultfs server"),
        (_not_found, "{address} is no vaultfs server"),
        (_moved, "https://elsewhere.example/"),
    ],
)
def test_another_kind_of_server(
    answer: Callable[[BaseHTTPRequestHandler], None], told: str
) -> None:
    with other_server(answer) as address:
        called = call("--vault", address, "ls", env={"VAULTFS_TOKEN": "vfs_a_b"})
    assert called.code == 1
    assert told.format(address=address) in called.errors
    assert "vfs_a_b" not in called.errors


def made_certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that is signed by itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    made = (*make, *subject, "-keyout", key, "-out", certificate)
    subprocess.run(list(map(str, made)), check=True, capture_output=True)
    return certificate, key


def test_tls(hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    env = {"VAULTFS_TOKEN": hub.token}
    plain = call("--vault", hub.address.replace("http://", "https://"), "ls", env={**env})
    assert (plain.code, "is it http://" in plain.errors) == (1, True)
    certificate, key = made_certificate(tmp_path)
    with serve(tmp_path / "vault", "", "--tls-cert", certificate, "--tls-key", key) as running:
        env = {"VAULTFS_TOKEN": running.token}
        called = call("--vault", running.address, "ls", env={**env})
        assert called.code == 1
        assert "SSL_CERT_FILE" in called.errors
        trusting = clean_env(VAULTFS_TOKEN=running.token, SSL_CERT_FILE=str(certificate))
        words = command("--vault", running.address, "stat", "/")
        done = subprocess.run(words, env=trusting, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        unsafe = call("--vault", running.address.replace("https", "http"), "ls", env={**env})
        assert (unsafe.code, "is it https://" in unsafe.errors) == (1, True)


def test_a_token_that_may_not_says_which_may(hub: Running) -> None:
    admin = Cli(hub.folder, hub.address, hub.token)
    looking = admin.json("token", "add", "--scopes", "read")["token"]
    called = Cli(hub.folder, hub.address, looking)("mkdir", "/d", code=1)
    assert "scope write" in called.errors
    assert "vaultfs token add" in called.errors


# Processes


def test_a_look_at_a_server_loads_nothing_that_serving_takes(cli: Cli) -> None:
    modules = loaded(*cli.words, "ls", token=cli.token)
    assert "aiohttp" in modules
    assert not modules & {"uvicorn", "prometheus_client", "sqlite3", "rich", "rich.progress"}


def test_a_put_to_a_server_loads_nothing_that_putting_into_a_vault_takes(
    cli: Cli, tmp_path: Path
) -> None:
    tree(tmp_path / "local", 2, 0)
    modules = loaded(*cli.words, "put", str(tmp_path / "local"), "/loads", token=cli.token)
    assert "vaultfs.domain.cutting" in modules
    assert not modules & {"vaultfs.domain.operations", "vaultfs.domain.services.transfer"}


@pytest.mark.parametrize(("scheme", "count"), [("http", 0), ("https", 1)])
def test_certificates_are_read_for_https_alone(scheme: str, count: int, tmp_path: Path) -> None:
    """aiohttp reads them when it is imported. What the environment says of them stays."""
    certificate, _ = made_certificate(tmp_path)
    program = (
        "import os, sys\n"
        "from vaultfs.entrypoints.cli.session import connected\n"
        "connected(sys.argv[1])\n"
        "from aiohttp import connector\n"
        "found = connector._SSL_CONTEXT_VERIFIED.cert_store_stats()['x509']\n"
        "print(found, os.environ.get('SSL_CERT_FILE'))\n"
    )
    plain = {key: value for key, value in clean_env().items() if key != "SSL_CERT_FILE"}
    for env, told in (
        (plain | {"SSL_CERT_FILE": str(certificate)}, f"{count} {certificate}\n"),
        (plain, " None\n"),
    ):
        words = [sys.executable, "-c", program, f"{scheme}://vault.example"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.endswith(told)


def tree(top: Path, files: int, large: int) -> Path:
    for number in range(files):
        (top / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (top / f"d{number % 7}" / str(number)).write_bytes(noise(3000, number))
    for number in range(large):
        (top / f"large{number}").write_bytes(noise(20_000_000, number))
    return top


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_put_that_is_interrupted_can_be_repeated(
    cli: Cli, tmp_path: Path, number: signal.Signals
) -> None:
    local = tree(tmp_path / "local", 300, 3)
    with subprocess.Popen(
        command(*cli.words, "put", local, "/in/"),
        stderr=subprocess.PIPE,
        env=clean_env(VAULTFS_TOKEN=cli.token),
    ) as putting:
        time.sleep(1.2)
        putting.send_signal(number)
        _, errors = putting.communicate(timeout=30)
    assert putting.returncode in {130, 0, -number}
    assert b"Traceback" not in errors
    cli("put", local, "/in/")
    cli("get", "/in/local", tmp_path / "back")
    assert read_tree(tmp_path / "back") == read_tree(local)


@pytest.mark.slow
def test_a_server_that_is_killed_during_a_put_loses_nothing_it_acknowledged(
    tmp_path: Path,
) -> None:
    local = tree(tmp_path / "local", 1500, 2)
    with serve(tmp_path / "vault") as running:
        token = running.token
        words = ("--json", "--vault", running.address, "put", local, "/in/")
        with subprocess.Popen(
            command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_env(VAULTFS_TOKEN=token),
        ) as putting:
            while not list((tmp_path / "vault/objects").rglob("*pack*/*/*/*")):
                time.sleep(0.005)
            running.process.kill()
            out, errors = putting.communicate(timeout=60)
        assert putting.returncode == 1
        assert b"server" in out
        assert b"Traceback" not in errors
    with serve(tmp_path / "vault", token) as running:
        cli = Cli(running.folder, running.address, token)
        for node in cli.json("tree", "/"):
            if node["kind"] == "file":
                path = local / Path(node["path"]).relative_to("/in/local")
                assert node["size"] == path.stat().st_size
        report = cli.json("put", local, "/in/")
        assert (report["files"], report["failed"]) == (1502, [])
        cli("get", "/in/local", tmp_path / "back")
        assert read_tree(tmp_path / "back") == read_tree(local)
        again = cli.json("put", local, "/in/")
        assert again["changed"] == 0
    assert Cli(tmp_path / "vault").json("verify")["clean"] is True


def test_nothing_of_one_user_is_there_for_another(hub: Running, tmp_path: Path) -> None:
    one, other = new_user(hub), new_user(hub)
    one("mkdir", "/mine")
    name = hub.folder  # not a user: as unknown as a user of somebody else
    assert other.refused("ls", "me:/") == "not_found"
    assert other.refused("ls", f"{name.name}:/") == "not_found"
    assert other.ls() == []

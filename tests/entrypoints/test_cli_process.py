"""What only a process of its own shows: signals, pipes, what is loaded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli, clean_env, command, copy_of, new_vault, noise, process


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_vault(tmp_path_factory.mktemp("empty") / "vault").vault


@pytest.fixture
def cli(empty: Path, tmp_path: Path) -> Cli:
    return copy_of(empty, tmp_path / "vault")


# What is loaded


def loaded(*words: object, token: str = "") -> set[str]:
    """The modules that a process has loaded when the command is done."""
    program = (
        "import sys, json, atexit\n"
        "from vaultfs.__main__ import main\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, "VAULTFS_TOKEN": token},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    return set(json.loads(done.stderr))


HEAVY = {"anyio", "asyncio", "sqlite3", "zstandard", "blake3", "pyfastcdc", "crc32c", "aiofiles"}


def test_the_version_loads_no_more_than_itself() -> None:
    assert not loaded("--version") & {"typer", "attrs", "attr", "rich", *HEAVY}


def test_help_loads_nothing_that_only_work_takes() -> None:
    assert not loaded("--help") & {"rich", "rich.progress", "vaultfs.domain.services", *HEAVY}


def test_a_listing_loads_nothing_that_writing_takes(cli: Cli) -> None:
    modules = loaded("--vault", cli.vault, "ls")
    assert "sqlite3" in modules
    unwanted = {"zstandard", "pyfastcdc", "crc32c", "aiofiles", "rich", "rich.progress"}
    assert not modules & {*unwanted, "vaultfs.domain.services.ingest", "vaultfs.adapters.local"}


# Starting


def test_both_ways_to_ask_for_the_version() -> None:
    first, second = process("--version"), process("--quiet", "--version")
    assert first.stdout == second.stdout
    assert first.stdout.startswith(b"vaultfs ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_given(shell: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("vaultfs")],
        env={**os.environ, "_VAULTFS_COMPLETE": f"source_{shell}"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"_VAULTFS_COMPLETE" in done.stdout


def test_commands_are_completed() -> None:
    words = {"_VAULTFS_COMPLETE": "complete_bash", "COMP_WORDS": "vaultfs ve", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("vaultfs")],
        env={**os.environ, **words},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [b"verify", b"versions"]


# Pipes


@pytest.fixture(scope="module")
def crowded(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A vault with more names than a pipe holds, and with a large file."""
    top = tmp_path_factory.mktemp("crowded")
    cli, large = copy_of(empty, top / "vault"), top / "large"
    large.write_bytes(noise(3_000_000))
    cli("put", large, "/large")
    names = [f"/{number:0200}" for number in range(900)]
    cli("mkdir", *names)
    return cli


@pytest.mark.parametrize(
    "words", [("ls",), ("--json", "ls"), ("tree",), ("stat", "/large"), ("cat", "/large")]
)
def test_a_reader_that_goes_away_is_no_news(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "large").write_bytes(noise(3_000_000))
    cli("put", tmp_path / "large", "/large")
    reading, writing = os.pipe()
    with subprocess.Popen(
        command("--vault", cli.vault, *words), stdout=writing, stderr=subprocess.PIPE
    ) as running:
        os.close(writing)
        os.close(reading)
        _, errors = running.communicate(timeout=30)
    assert errors == b""
    assert running.returncode == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("ls", "-l"), ("tree",), ("--json", "tree"), ("cat", "/large")])
def test_a_reader_that_goes_away_in_the_middle_is_seen(
    crowded: Cli, words: tuple[str, ...], unbuffered: str
) -> None:
    env = clean_env(PYTHONUNBUFFERED=unbuffered)
    running = subprocess.Popen(
        command("--vault", crowded.vault, *words), stdout=subprocess.PIPE, env=env
    )
    assert running.stdout is not None
    os.read(running.stdout.fileno(), 10)
    time.sleep(0.5)  # more than a pipe holds is being written
    running.stdout.close()
    assert running.wait(30) == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["ls", "ls -l", "tree", "--json ls", "cat /large"])
def test_an_output_that_is_full_is_named(crowded: Cli, words: str, unbuffered: str) -> None:
    script = f'"$0" -m vaultfs --vault "$1" {words} >/dev/full'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, crowded.vault],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_env(PYTHONUNBUFFERED=unbuffered),
    )
    assert done.returncode == 1
    assert done.stderr == "vaultfs: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("redirection", "words", "told"),
    [
        (">/dev/full", "ls", "No space left on device"),
        (">&-", "ls", "Bad file descriptor"),
        ("<&-", "put - /x", "Bad file descriptor"),
        ("2>&-", "ls /nope", ""),
    ],
)
def test_a_stream_that_is_full_or_closed(cli: Cli, redirection: str, words: str, told: str) -> None:
    cli("mkdir", "/d")
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'"$0" -m vaultfs --vault "$1" {words} {redirection}',
            sys.executable,
            cli.vault,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "bug" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert cli.ls() == ["d/"]


# Interruptions


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_wait_for_a_pipe_can_be_interrupted(cli: Cli, number: signal.Signals) -> None:
    with subprocess.Popen(
        command("--vault", cli.vault, "put", "-", "/x"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as waiting:
        time.sleep(1.2)
        waiting.send_signal(number)
        code = waiting.wait(timeout=10)
        assert waiting.stderr is not None
        errors = waiting.stderr.read()
    assert code == 130
    assert b"interrupted" in errors
    assert cli.ls() == []


def test_what_nohup_starts_outlives_its_terminal(cli: Cli) -> None:
    put = command("--vault", cli.vault, "put", "-", "/x")
    with subprocess.Popen(
        ["nohup", *put], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as putting:
        time.sleep(1.2)
        putting.send_signal(signal.SIGHUP)
        putting.communicate(b"all of it", timeout=20)
        assert putting.returncode == 0
    assert cli.read("/x") == b"all of it"


def test_a_wait_for_a_reader_can_be_interrupted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(noise(3_000_000))
    cli("put", tmp_path / "large", "/large")
    with subprocess.Popen(
        command("--vault", cli.vault, "cat", "/large"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.read(1)
        time.sleep(0.3)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=10) == 130


def test_reading_a_large_file_can_be_interrupted(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "large").open("wb") as large:
        large.truncate(1 << 40)
    with subprocess.Popen(
        command("--vault", cli.vault, "sync", folder, "/d"), stderr=subprocess.PIPE
    ) as reading:
        time.sleep(1.2)
        reading.send_signal(signal.SIGINT)
        assert reading.wait(timeout=10) == 130
    assert cli.ls() == []


def test_an_interruption_while_starting_shows_no_traceback(cli: Cli) -> None:
    for delay in (0.1, 0.2, 0.3):
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                "print(end='.', flush=True)\nfrom vaultfs.__main__ import main\nmain()",
                "--vault",
                str(cli.vault),
                "verify",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as starting:
            assert starting.stdout is not None
            starting.stdout.read(1)
            time.sleep(delay)
            starting.send_signal(signal.SIGINT)
            _, errors = starting.communicate(timeout=10)
        # Once its work is done Python lets go of signals: then one simply ends it.
        assert starting.returncode in {0, 130, -signal.SIGINT}
        assert b"Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.3, 0.9])
def test_a_large_put_that_is_interrupted_can_be_repeated(
    cli: Cli, tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for seed in range(3):
        (local / f"{seed}").write_bytes(noise(50_000_000, seed))
    with subprocess.Popen(
        command("--vault", cli.vault, "put", local, "/big/"), stderr=subprocess.PIPE
    ) as putting:
        while not list((cli.vault / "objects").rglob("*pack*/*")) and putting.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        putting.send_signal(number)
        _, errors = putting.communicate(timeout=30)
    assert putting.returncode in {130, 0, -number}
    assert b"Traceback" not in errors
    assert cli.json("verify")["clean"] is True
    cli("put", local, "/big/")
    cli("get", "/big/local", tmp_path / "back")
    for path in local.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert cli.json("verify")["clean"] is True


# A folder that cannot be written


POWERLESS = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
"""Makes of the superuser somebody whom modes of files bind."""


@pytest.mark.skipif(
    bool(POWERLESS) and shutil.which("setpriv") is None, reason="the superuser may write anywhere"
)
@pytest.mark.parametrize(("folder", "file"), [(0o555, 0o644), (0o555, 0o444)])
def test_a_vault_that_cannot_be_written_says_so(cli: Cli, folder: int, file: int) -> None:
    (cli.vault / "catalog.db").chmod(file)
    cli.vault.chmod(folder)
    try:
        done = subprocess.run(
            [*POWERLESS, *command("--vault", cli.vault, "ls")],
            env=clean_env(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        cli.vault.chmod(0o755)
    assert done.returncode == 1
    assert f"the vault's folder {cli.vault} cannot be written: " in done.stderr.decode()

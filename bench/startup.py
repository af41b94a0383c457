"""Claim: `vaultfs --version` and `--help` start nearly as fast as a bare Typer program of one
command, and `vaultfs ls` of a small embedded vault takes at most half as long again.

Contestants: `python -c pass`; that Typer program, by the release that whoever begins today gets,
which loads pydantic, and by the one that this project is set up with, which does not; ours. The
claims are about the former. One run of each before the first that counts warms the caches. The
verdict needs an otherwise idle machine.
"""

import subprocess
import sys
from pathlib import Path

import typer
from bench.contestants import vaultfs
from bench.harness import Command, Contestant, Plan, Step, available, compete, fresh_folder
from bench.report import Claim, Scenario, Within, parser, publish

START = "start-up"

NEWEST = "0.29.2"
HELLO = f"typer {NEWEST} hello"

CLAIMS: tuple[Claim, ...] = (
    Within(START, "vaultfs --version", HELLO, "start", 1.15),
    Within(START, "vaultfs --help", HELLO, "start", 1.15),
    Within(START, "vaultfs ls", HELLO, "start", 1.5),
)

PROGRAM = '''
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    """Greet someone."""
    print(f"hello {name}")


app()
'''


def contestants(folder: Path) -> tuple[Contestant, ...]:
    """`folder` gets the Typer program, its release of Typer, and a vault of three small files."""
    python = folder / "typer" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"typer=={NEWEST}"], check=True)
    program, vault, files = folder / "hello.py", folder / "vault", folder / "files"
    program.write_text(PROGRAM)
    files.mkdir()
    for name in ("one", "two", "three"):
        (files / name).write_text(name)
    env = {"HOME": str(folder / "home")}

    def timed(name: str, command: Command, *before: Command) -> Contestant:
        plan = Plan((), (Step("start", command),))
        return Contestant(name, lambda _: plan, (*before, command))

    return (
        timed("python -c pass", Command((sys.executable, "-c", "pass"), folder, env)),
        timed(HELLO, Command((str(python), str(program)), folder, env)),
        timed(
            f"typer {typer.__version__} hello",
            Command((sys.executable, str(program)), folder, env),
        ),
        timed("vaultfs --version", vaultfs("--version", folder=folder)),
        timed("vaultfs --help", vaultfs("--help", folder=folder)),
        timed(
            "vaultfs ls",
            vaultfs("--vault", str(vault), "ls", "/", folder=folder),
            vaultfs("init", str(vault), folder=folder),
            vaultfs("--vault", str(vault), "put", str(files), "/files", folder=folder),
        ),
    )


def main() -> int:
    options = parser(__doc__, runs=15)
    chosen = options.parse_args()
    with fresh_folder(chosen.work) as folder:
        racing = available(contestants(folder), chosen.only, chosen.work)
        outcome = compete(START, racing, runs=chosen.runs, work=chosen.work, memory=False)
    return publish([Scenario(START, (HELLO,))], CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

"""Runs contestants side by side and measures the wall time and peak memory of each.

Contestants take turns, run by run (A, B, C, A, B, C ...), so that a slow minute of the machine
hits all of them alike. Each turn gets a fresh folder with a HOME of its own, deleted afterwards;
`sync` comes before every timed command, so that nobody pays for another's writes. The input is
read before every turn: all read it from the page cache, also after borg, which takes what it has
read out of there.

Wall time is that from starting the command to reaping it. Peak memory is resident memory, so it
includes the file pages a process has mapped. It is the largest of three figures:

- the high-water mark of any one process in the command's tree (`VmHWM`), read every 20 ms;
- the sum of resident sizes over that tree at one such moment, in which pages that two processes
  share count twice;
- `ru_maxrss` from `wait4`, the highest of any one process among the command and the descendants
  it waited for. The kernel starts that figure at the size of the process that started the
  command, so it counts only where it is above this process's own high-water mark (some 30 MB),
  or where the command ended before the first look.

Our byte code is compiled first, as an installer leaves it: where Python is kept from writing it,
every command would compile what it loads.
"""

import compileall
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import field, frozen

SAMPLE_EVERY = 0.02
"""Seconds between two looks at the memory of a command; a look costs some 0.1 ms."""

BLOCK = 4 << 20


@frozen
class Command:
    """A program to run in `cwd`; it sees `env` and this process's PATH, and nothing else."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(factory=dict[str, str])

    def __str__(self) -> str:
        return shlex.join(self.argv)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **self.env}


class CommandError(Exception):
    """A command ended with another exit code than 0, or did not do what it should."""


@frozen
class Sample:
    """What one command took; `peak` is in bytes, 0 where memory was not measured."""

    seconds: float
    peak: int


@frozen
class Step:
    """One timed command."""

    name: str
    command: Command


@frozen
class Plan:
    """One turn of one contestant.

    `before` is run untimed, then `steps` in order; at last each pair of `equal` (files or trees)
    must hold the same bytes.
    """

    before: tuple[Command, ...]
    steps: tuple[Step, ...]
    equal: tuple[tuple[Path, Path], ...] = ()


@frozen
class Contestant:
    """`plan` makes a turn inside a fresh folder; `once` is run untimed before the first turn."""

    name: str
    plan: Callable[[Path], Plan]
    once: tuple[Command, ...] = ()


@frozen
class Run:
    """One timed step: a raw result."""

    scenario: str
    contestant: str
    step: str
    number: int
    seconds: float
    peak: int


@frozen
class Failure:
    """Why a contestant dropped out."""

    scenario: str
    contestant: str
    reason: str


@frozen
class Outcome:
    runs: tuple[Run, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.runs + other.runs, self.failures + other.failures)


class _Meter:
    """Watches the memory of a process and its descendants from a thread of its own."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY):
            sizes = [resident(pid) for pid in _tree(self._pid)]
            at_once = sum(now for now, _ in sizes)
            self.peak = max(self.peak, at_once, *(highest for _, highest in sizes))


def _tree(pid: int) -> Iterator[int]:
    """`pid` and its descendants, as far as they still run."""
    yield pid
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = listing.read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in children:
            yield from _tree(int(child))


def resident(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, now and at its highest; zeros if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return (0, 0)
    now = highest = 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            now = int(line.split()[1]) * 1024
        elif line.startswith("VmHWM:"):
            highest = int(line.split()[1]) * 1024
    return (now, highest)


def run(command: Command, *, memory: bool = True) -> Sample:
    """Run a command to its end.

    Raises `CommandError` unless it exits with 0; its standard error is then in the message.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env=command.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        except OSError as error:
            raise CommandError(f"{command}: {error}") from error
        try:
            if memory:
                with _Meter(child.pid) as meter:
                    _, status, usage = os.wait4(child.pid, 0)
                    seconds = time.perf_counter() - start
                peak = _peak(meter.peak, usage.ru_maxrss * 1024)
            else:
                _, status, usage = os.wait4(child.pid, 0)
                seconds = time.perf_counter() - start
                peak = 0
        except BaseException:
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            raise CommandError(f"{command}: exit code {child.returncode}\n{text[-2000:]}")
    return Sample(seconds, peak)


def _peak(sampled: int, reaped: int) -> int:
    """The peak from what the meter saw and what `wait4` said; see the module's docstring."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if reaped > own:
        return max(sampled, reaped)
    return sampled or reaped  # too short to be sampled: then `reaped` is an upper bound


def compete(
    scenario: str,
    contestants: Iterable[Contestant],
    *,
    runs: int,
    work: Path,
    source: Path | None = None,
    memory: bool = True,
) -> Outcome:
    """Let the contestants take turns, `runs` each; one that fails is left out from then on.

    `source` is what they read.
    """
    racing = list(contestants)
    results: list[Run] = []
    failures: list[Failure] = []
    for number in range(runs + 1):  # turn 0 is `once`
        for contestant in tuple(racing):
            turn = f"run {number} of {runs}" if number else "set-up"
            _say(f"{scenario}: {contestant.name}, {turn}")
            try:
                if number == 0:
                    for command in contestant.once:
                        run(command, memory=False)
                else:
                    if source is not None:
                        warm(source)
                    results += _turn(scenario, contestant, number, work, memory=memory)
            except CommandError as error:
                _say(f"FAILED: {error}")
                failures.append(Failure(scenario, contestant.name, str(error)))
                racing.remove(contestant)
    return Outcome(tuple(results), tuple(failures))


def _turn(
    scenario: str, contestant: Contestant, number: int, work: Path, *, memory: bool
) -> list[Run]:
    results: list[Run] = []
    with fresh_folder(work) as folder:
        plan = contestant.plan(folder)
        for command in plan.before:
            run(command, memory=False)
        for step in plan.steps:
            os.sync()
            sample = run(step.command, memory=memory)
            _say(f"    {step.name}: {sample.seconds:.3f} s, {sample.peak / 1e6:.0f} MB")
            results.append(
                Run(scenario, contestant.name, step.name, number, sample.seconds, sample.peak)
            )
        for one, other in plan.equal:
            run(Command(("diff", "--recursive", "--brief", str(one), str(other)), folder))
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def fresh_folder(inside: Path) -> Generator[Path, None, None]:
    """An empty folder with an empty `home` in it, deleted afterwards."""
    _compile()
    folder = Path(tempfile.mkdtemp(prefix="vaultfs-bench-", dir=inside))
    try:
        (folder / "home").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder)


@cache
def _compile() -> None:
    compileall.compile_dir(Path(__file__).parents[1] / "src", quiet=1)


def warm(path: Path) -> None:
    """Read a file, or all files of a tree, so that the page cache holds them."""
    buffer = bytearray(BLOCK)
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def require_space(folder: Path, size: int) -> None:
    """Exit with a message unless `size` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, this needs {size / 1e9:.1f} GB: "
            "name another folder with --work"
        )


def available(contestants: Sequence[Contestant], only: str, work: Path) -> tuple[Contestant, ...]:
    """Those of the contestants named in `only` (comma-separated; all if it is empty).

    Leaves out, with a word about it, those whose program is not installed.
    """
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(wanted) - {contestant.name for contestant in contestants})
    if unknown:
        names = ", ".join(contestant.name for contestant in contestants)
        raise SystemExit(f"no contestant is called {', '.join(unknown)}; there are: {names}")
    found: list[Contestant] = []
    for contestant in contestants:
        if wanted and contestant.name not in wanted:
            continue
        with fresh_folder(work) as folder:
            program = contestant.plan(folder).steps[0].command.argv[0]
        if shutil.which(program):
            found.append(contestant)
        else:
            _say(f"{program} is not installed: left out")
    return tuple(found)

"""What a benchmark says about its runs: tables, and a verdict on each claim.

All figures are medians over the runs of one contestant; a ratio is one of two medians. MB are
10^6 bytes.
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import assert_never

from attrs import asdict, frozen
from bench.harness import Outcome

OURS = "vaultfs"


@frozen
class Scenario:
    """What one table is about.

    A step handles `amount` things counted in `unit` ("MB", "files"); its speed is given in
    those. Without an amount the table shows milliseconds, and ratios of time instead of speed.
    `against` names the contestants that get a column of ratios.
    """

    name: str
    against: tuple[str, ...]
    amount: float = 0
    unit: str = ""


@frozen
class Faster:
    """Our speed is at least `times` that of `than`."""

    scenario: str
    step: str
    than: str
    times: float


@frozen
class Within:
    """Our time is at most `times` that of `than`, whose step may be another."""

    scenario: str
    ours: str
    than: str
    step: str
    times: float


@frozen
class Lighter:
    """No run of ours had a peak of `limit` bytes or more."""

    scenario: str
    step: str
    limit: int


@frozen
class Flat:
    """Our median peak in scenario `large` is at most `times` that in scenario `small`."""

    small: str
    large: str
    step: str
    times: float


Claim = Faster | Within | Lighter | Flat


class Figures:
    """What was measured by scenario, contestant and step; nothing of those that ever failed."""

    def __init__(self, outcome: Outcome) -> None:
        failed = {(failure.scenario, failure.contestant) for failure in outcome.failures}
        self.seconds: dict[tuple[str, str, str], list[float]] = {}
        self.peaks: dict[tuple[str, str, str], list[int]] = {}
        for run in outcome.runs:
            if (run.scenario, run.contestant) in failed:
                continue
            key = (run.scenario, run.contestant, run.step)
            self.seconds.setdefault(key, []).append(run.seconds)
            self.peaks.setdefault(key, []).append(run.peak)

    def ratio(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> float | None:
        """Median time of `one` over that of `other`; None unless both were measured."""
        if one not in self.seconds or other not in self.seconds:
            return None
        return median(self.seconds[one]) / median(self.seconds[other])


def judge(claim: Claim, figures: Figures) -> tuple[str, str, str]:
    """The claim in words, what was measured, and PASS, short or "not measured"."""
    match claim:
        case Faster(scenario, step, than, times):
            ratio = figures.ratio((scenario, than, step), (scenario, OURS, step))
            words = f"{step}, {scenario}: >= {times:g} x {than}"
            return (words, *_verdict(ratio, "x", at_least=times))
        case Within(scenario, ours, than, step, times):
            ratio = figures.ratio((scenario, ours, step), (scenario, than, step))
            words = f"{ours}: <= {times:g} x the time of {than}"
            return (words, *_verdict(ratio, "x", below=times))
        case Lighter(scenario, step, limit):
            peaks = figures.peaks.get((scenario, OURS, step))
            words = f"{step}, {scenario}: peak memory < {limit / 1e6:g} MB"
            return (words, *_verdict(max(peaks) / 1e6 if peaks else None, "MB", below=limit / 1e6))
        case Flat(small, large, step, times):
            low = figures.peaks.get((small, OURS, step))
            high = figures.peaks.get((large, OURS, step))
            ratio = median(high) / median(low) if low and high else None
            words = f"{step}: peak memory at {large} <= {times:g} x that at {small}"
            return (words, *_verdict(ratio, "x", below=times))
        case _:
            assert_never(claim)


def _verdict(
    value: float | None, unit: str, *, at_least: float = float("-inf"), below: float = float("inf")
) -> tuple[str, str]:
    if value is None:
        return ("", "not measured")
    return (f"{value:.2f} {unit}", "PASS" if at_least <= value <= below else "short")


def _table(scenario: Scenario, outcome: Outcome, figures: Figures) -> list[list[str]]:
    timed = bool(scenario.amount)
    label = "x {}" if timed else "time / {}"
    head = ["step", "contestant", "median", "min - max"]
    head += [f"{scenario.unit}/s"] if timed else []
    head += ["peak MB", *(label.format(peer) for peer in scenario.against)]
    rows = [head]
    keys = [key for key in figures.seconds if key[0] == scenario.name]
    steps = list(dict.fromkeys(step for _, _, step in keys))
    for key in sorted(keys, key=lambda key: steps.index(key[2])):
        _, contestant, step = key
        times = figures.seconds[key]
        row = [step, contestant, _time(median(times)), f"{_time(min(times))} - {_time(max(times))}"]
        row += [f"{scenario.amount / median(times):,.0f}"] if timed else []
        peak = median(figures.peaks[key])
        row.append(f"{peak / 1e6:.0f}" if peak else "")
        for peer in scenario.against:
            ratio = figures.ratio(key, (scenario.name, peer, step))
            shown = ratio if ratio is None or not timed else 1 / ratio
            row.append("" if shown is None else f"{shown:.2f}")
        rows.append(row)
    rows += [
        ["", failure.contestant, "FAILED", *[""] * (len(head) - 3)]
        for failure in outcome.failures
        if failure.scenario == scenario.name
    ]
    return rows


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _format(rows: Sequence[Sequence[str]], *, left: int, markdown: bool) -> str:
    """Rows, the first of them the head, in columns, of which the first `left` are flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = [
        "-" * width if column < left else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def machine() -> dict[str, str | int]:
    """Where and with what the figures were measured."""
    facts: dict[str, str | int] = {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
    }
    for argv in (["restic", "version"], ["borg", "--version"], ["zstd", "--version"]):
        try:
            told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        facts[argv[0]] = told.strip("* \n").removeprefix(f"{argv[0]} ")
    return facts


def publish(
    scenarios: Sequence[Scenario],
    claims: Sequence[Claim],
    outcome: Outcome,
    options: argparse.Namespace,
) -> int:
    """Print the tables and the verdicts, dump the raw runs; the exit status to end with.

    That is 1 if a contestant failed or a claim fell short, else 0.
    """
    figures = Figures(outcome)
    markdown: bool = options.markdown
    facts = machine()
    print("; ".join(f"{name} {fact}" for name, fact in facts.items()))
    for scenario in scenarios:
        print(f"\n{'### ' if markdown else ''}{scenario.name}\n")
        print(_format(_table(scenario, outcome, figures), left=2, markdown=markdown))
    judged = [judge(claim, figures) for claim in claims]
    if judged:
        print(f"\n{'### ' if markdown else ''}must reach\n")
        head = ("claim", "measured", "verdict")
        print(_format([head, *judged], left=1, markdown=markdown))
    for failure in outcome.failures:
        print(f"\n{failure.scenario}, {failure.contestant} failed: {failure.reason}")
    if options.json:
        _dump(options.json, facts, judged, outcome)
    return int(bool(outcome.failures) or any(verdict == "short" for _, _, verdict in judged))


def _dump(
    file: Path,
    facts: dict[str, str | int],
    judged: Sequence[tuple[str, str, str]],
    outcome: Outcome,
) -> None:
    document = {
        "machine": facts,
        "argv": sys.argv,
        "claims": [dict(zip(("claim", "measured", "verdict"), row, strict=True)) for row in judged],
        "runs": [asdict(run) for run in outcome.runs],
        "failures": [asdict(failure) for failure in outcome.failures],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def parser(documentation: str | None, *, runs: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `runs` is the default of `--runs`."""
    options = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=runs, help=f"runs of each ({runs})")
    options.add_argument("--only", default="", help="contestants to run, separated by commas")
    options.add_argument(
        "--work",
        type=lambda text: Path(text).resolve(),
        default=Path(os.environ.get("TMPDIR", "/tmp")).resolve(),
        help="folder to make temporary folders in ($TMPDIR or /tmp)",
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write the raw runs there")
    options.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    return options


def size_of(text: str) -> int:
    """Bytes from "64M", "1Gi" and the like: powers of ten, with an i powers of two."""
    number, binary = (text[:-1], True) if text.endswith("i") else (text, False)
    exponent = "KMG".find(number[-1:].upper()) + 1
    digits = number[:-1] if exponent else number
    scale: int = (1024 if binary else 1000) ** exponent
    return int(digits) * scale

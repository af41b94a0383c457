"""Claims: end to end over loopback, a change of a file travels in fewer bytes than rsync sends,
and takes no longer.

The pairs of `bench.delta`. `push`: the server has the old version, and the client the new file
alone, so that differences are found by signatures; bytes are those of all bodies, both ways.
`pull`: the client has the old file. rsync goes through a daemon with `-z --no-whole-file`, and
its bytes are those that it says it sent and received. Files are replaced durably by us; rsync
does not flush them.
"""

import argparse
import re
import shutil
import subprocess
import time
from math import exp, log
from pathlib import Path

from bench.corpora import add_cache_option
from bench.delta import PAIRS
from bench.harness import fresh_folder
from bench.http import serve
from bench.sync import daemon

import vaultfs

_STATS = re.compile(r"Total bytes (?:sent|received): ([\d,]+)")


def ours(old: Path, new: Path, folder: Path) -> dict[str, tuple[int, float]]:
    """Bytes and seconds of a push and of a pull."""
    with (
        serve(folder / "vault") as server,
        vaultfs.connect_sync(server.address, token=server.token) as vault,
    ):
        first = vault.push("/f", old)
        start = time.perf_counter()
        pushed = vault.push("/f", new, base=first.node.version)
        push = pushed.travelled, time.perf_counter() - start
        shutil.copy(old, folder / "copy")
        start = time.perf_counter()
        pulled = vault.pull("/f", folder / "copy", base=first.node.version)
        pull = pulled.travelled, time.perf_counter() - start
        same = subprocess.run(["cmp", folder / "copy", new], check=False).returncode == 0
        assert same, "what was pulled is not what was pushed"
    return {"push": push, "pull": pull}


def rsync(old: Path, new: Path, folder: Path) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    with daemon(folder / "in") as address:
        for way in ("push", "pull"):
            there, here = folder / "in" / "f", folder / "here"
            shutil.copy(old if way == "push" else new, there)
            shutil.copy(new if way == "push" else old, here)
            ends = (here, f"{address}f") if way == "push" else (f"{address}f", here)
            words = ["rsync", "-z", "--no-whole-file", "--ignore-times", "--stats"]
            start = time.perf_counter()
            told = subprocess.run([*words, *map(str, ends)], check=True, capture_output=True)
            took = time.perf_counter() - start
            counts = _STATS.findall(told.stdout.decode())
            found[way] = sum(int(count.replace(",", "")) for count in counts), took
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--work", type=Path, default=Path("/tmp"))
    options.add_argument("--pairs", nargs="*", default=list(PAIRS))
    add_cache_option(options)
    chosen = options.parse_args()
    shares: dict[str, list[float]] = {}
    print(
        f"{'pair':14} {'way':5} {'our bytes':>12} {'s':>7} {'rsync -z':>12} {'s':>7}  bytes  time"
    )
    for name in chosen.pairs:
        with fresh_folder(chosen.work) as folder:
            old, new = folder / "old", folder / "new"
            PAIRS[name](old, new)
            mine, theirs = ours(old, new, folder), rsync(old, new, folder)
        for way in ("push", "pull"):
            (size, took), (their_size, their_time) = mine[way], theirs[way]
            figures = f"{size:12,} {took:7.2f} {their_size:12,} {their_time:7.2f}"
            share, pace = size / their_size, took / their_time
            print(f"{name:14} {way:5} {figures}  {share:5.2f} {pace:5.2f}", flush=True)
            shares.setdefault(way, []).append(share)
    for way, found in shares.items():
        print(f"{way}: {exp(sum(map(log, found)) / len(found)):.2f} x the bytes in the mean")


if __name__ == "__main__":
    main()

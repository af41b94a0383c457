"""Claim: putting 10,000 files of 10 KB into an embedded vault with one command takes at most two
thirds of borg's time and half of restic's.

The files are pieces of source text, no two the same, a hundred to a folder. Contestants: `cp -r`;
the same with an fsync of every file; restic; borg (lz4, no encryption); `git add` (put only);
`vaultfs put` and `get` of the whole tree.
"""

import sys
from pathlib import Path

from bench.contestants import (
    borg_contestant,
    our_contestant,
    restic_contestant,
    there_and_back,
)
from bench.corpora import SOURCE_SIZE, add_cache_option, small_files, source_tar
from bench.harness import (
    Command,
    Contestant,
    Plan,
    Step,
    available,
    compete,
    fresh_folder,
    require_space,
)
from bench.report import Claim, Faster, Lighter, Scenario, parser, publish, size_of

FILES = "small files"

CLAIMS: tuple[Claim, ...] = (
    Faster(FILES, "put", "borg", 1.5),
    Faster(FILES, "put", "restic", 2),
    Lighter(FILES, "put", 256_000_000),
)

COPY_AND_SYNC = """
import os, sys
source, target = sys.argv[1:]
for folder, _, names in os.walk(source):
    into = os.path.join(target, os.path.relpath(folder, source))
    os.makedirs(into, exist_ok=True)
    for name in names:
        with open(os.path.join(folder, name), "rb") as old:
            data = old.read()
        with open(os.path.join(into, name), "wb", buffering=0) as new:
            new.write(data)
            os.fsync(new.fileno())
"""


def git_contestant(source: Path) -> Contestant:
    def plan(folder: Path) -> Plan:
        repository = f"--git-dir={folder / 'repo'}"
        env = {"HOME": str(folder / "home")}
        add = ("git", repository, f"--work-tree={source}", "add", "--all", ".")
        return Plan(
            (Command(("git", "init", "--quiet", "--bare", str(folder / "repo")), folder, env),),
            (Step("put", Command(add, source, env)),),
        )

    return Contestant("git", plan)


def contestants(tree: Path) -> tuple[Contestant, ...]:
    copy = (sys.executable, "-I", "-S", "-c", COPY_AND_SYNC)
    return (
        there_and_back(
            "cp", tree, ("cp", "-r", "{source}", "{there}"), ("cp", "-r", "{there}", "{back}")
        ),
        there_and_back(
            "cp-fsync", tree, (*copy, "{source}", "{there}"), (*copy, "{there}", "{back}")
        ),
        restic_contestant(tree),
        borg_contestant(tree),
        git_contestant(tree),
        our_contestant(tree),
    )


def main() -> int:
    options = parser(__doc__, runs=5)
    options.add_argument("--count", type=int, default=10_000, help="of files (10000)")
    options.add_argument("--size", type=size_of, default=10_000, help="of each file (10K)")
    options.add_argument(
        "--source-size", type=size_of, default=SOURCE_SIZE, help="of the source tar (690M)"
    )
    add_cache_option(options)
    chosen = options.parse_args()
    require_space(chosen.work, 6 * chosen.count * max(chosen.size, 4096))
    with fresh_folder(chosen.work) as folder:
        tree = folder / "tree"
        small_files(tree, source_tar(chosen.cache, chosen.source_size), chosen.count, chosen.size)
        racing = available(contestants(tree), chosen.only, chosen.work)
        outcome = compete(FILES, racing, runs=chosen.runs, work=chosen.work, source=tree)
    scenario = Scenario(FILES, ("restic", "borg", "cp-fsync"), chosen.count, "files")
    return publish([scenario], CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

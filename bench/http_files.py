"""Claim: putting 10,000 files of 10 KB with one command through a server, on this machine, takes
no longer than borg needs for a local archive of them, in little memory.

The files are those of `bench.small_files`: pieces of source text, no two the same. `served` is
`vaultfs put` and `get` with `--vault http://...`, and the peaks are the server's; `embedded` is
the same without a server. What comes back is compared.
"""

import os
import subprocess
import sys
from pathlib import Path

from bench.corpora import SOURCE_SIZE, add_cache_option, small_files, source_tar
from bench.harness import Outcome, Run, fresh_folder, require_space, warm
from bench.http import serve, timed
from bench.report import OURS, Claim, Faster, Lighter, Scenario, parser, publish, size_of

FILES = "small files over HTTP"
CLAIMS: tuple[Claim, ...] = (
    Faster(FILES, "put", "borg", 1.0),
    Lighter(FILES, "put", 256_000_000),
    Lighter(FILES, "get", 256_000_000),
)


def compared(tree: Path, back: Path) -> None:
    subprocess.run(("diff", "--recursive", "--brief", tree, back), check=True)


def embedded(folder: Path, tree: Path, number: int) -> list[Run]:
    ours = Path(sys.executable).with_name("vaultfs")
    with fresh_folder(folder) as place:
        vault, back = place / "vault", place / "back"
        timed((ours, "init", vault))
        put = timed((ours, "--quiet", "--vault", vault, "put", tree, "/tree"))
        get = timed((ours, "--quiet", "--vault", vault, "get", "/tree", back))
        compared(tree, back)
    seconds = {"put": put, "get": get}
    return [Run(FILES, "embedded", step, number, took, 0) for step, took in seconds.items()]


def served(folder: Path, tree: Path, number: int) -> list[Run]:
    ours = Path(sys.executable).with_name("vaultfs")
    runs: list[Run] = []
    with fresh_folder(folder) as place, serve(place / "vault") as server:
        env = {**os.environ, "VAULTFS_TOKEN": server.token}
        back = place / "back"
        for step, words in (("put", (tree, "/tree")), ("get", ("/tree", back))):
            command = (ours, "--quiet", "--vault", server.address, step, *words)
            runs.append(Run(FILES, OURS, step, number, timed(command, env=env), server.peak))
        compared(tree, back)
    return runs


def borg(folder: Path, tree: Path, number: int) -> list[Run]:
    with fresh_folder(folder) as place:
        env = {"BORG_BASE_DIR": str(place), "PATH": os.environ["PATH"]}
        timed(("borg", "init", "--encryption=none", place / "repo"), env=env)
        words = ("borg", "create", "--compression", "lz4", f"{place / 'repo'}::one", tree)
        return [Run(FILES, "borg", "put", number, timed(words, env=env), 0)]


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
    outcome = Outcome()
    with fresh_folder(chosen.work) as folder:
        tree = folder / "tree"
        small_files(tree, source_tar(chosen.cache, chosen.source_size), chosen.count, chosen.size)
        for number in range(1, chosen.runs + 1):
            print(f"run {number} of {chosen.runs}", file=sys.stderr)
            for contestant in (embedded, served, borg):
                warm(tree)  # borg takes what it has read out of the page cache
                outcome += Outcome(tuple(contestant(folder, tree, number)))
    scenario = Scenario(FILES, ("embedded", "borg"), chosen.count, "files")
    return publish([scenario], CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

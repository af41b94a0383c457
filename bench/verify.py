"""Claim: a full verification, which reads every stored byte and checks it against its digest, is
at least half as fast again as those of restic and borg.

Contents: a file of incompressible bytes and source text as one tar, put into one repository or
vault of each contestant. Contestants: `restic check --read-data`; `borg check --verify-data`;
`vaultfs verify --depth full`. All runs of one contestant verify the same repository. The speed
given is that of the contents' original bytes.
"""

import sys
from pathlib import Path

from bench.contestants import borg, restic, vaultfs
from bench.corpora import SOURCE_SIZE, add_cache_option, incompressible, source_tar
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

VERIFY = "full verification"

CLAIMS: tuple[Claim, ...] = (
    Faster(VERIFY, "verify", "restic", 1.5),
    Faster(VERIFY, "verify", "borg", 1.5),
    Lighter(VERIFY, "verify", 256_000_000),
)


def contestants(folder: Path, inputs: tuple[Path, ...]) -> tuple[Contestant, ...]:
    """Each with its repository in a folder of its own inside `folder`."""
    paths = [str(path) for path in inputs]

    def place(name: str) -> Path:
        (folder / name / "home").mkdir(parents=True)
        return folder / name

    def timed(name: str, command: Command, *before: Command) -> Contestant:
        plan = Plan((), (Step("verify", command),))
        return Contestant(name, lambda _: plan, before)

    one, two, three = place("restic"), place("borg"), place("vaultfs")
    vault = str(three / "vault")
    return (
        timed(
            "restic",
            restic("check", "--read-data", folder=one),
            restic("init", folder=one),
            restic("backup", *paths, folder=one),
        ),
        timed(
            "borg",
            borg("check", "--verify-data", folder=two),
            borg("init", "--encryption=none", folder=two),
            borg("create", "--compression", "lz4", "::one", *paths, folder=two),
        ),
        timed(
            "vaultfs",
            vaultfs("--vault", vault, "verify", "--depth", "full", folder=three),
            vaultfs("init", vault, folder=three),
            vaultfs("--vault", vault, "put", *paths, "/", folder=three),
        ),
    )


def main() -> int:
    options = parser(__doc__, runs=5)
    options.add_argument("--size", type=size_of, default=1 << 30, help="incompressible (1Gi)")
    options.add_argument(
        "--source-size", type=size_of, default=SOURCE_SIZE, help="of the source tar (690M)"
    )
    add_cache_option(options)
    chosen = options.parse_args()
    total = chosen.size + chosen.source_size
    require_space(chosen.work, 4 * total)
    with fresh_folder(chosen.work) as folder:
        noise = folder / "noise.bin"
        incompressible(noise, chosen.size)
        tar = source_tar(chosen.cache, chosen.source_size)
        racing = available(contestants(folder, (noise, tar)), chosen.only, chosen.work)
        outcome = compete(VERIFY, racing, runs=chosen.runs, work=chosen.work)
    return publish(
        [Scenario(VERIFY, ("restic", "borg"), total / 1e6, "MB")], CLAIMS, outcome, chosen
    )


if __name__ == "__main__":
    sys.exit(main())

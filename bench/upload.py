"""Claim: putting a large file into an embedded vault, and getting it back, is several times
faster than with restic and borg, near the speed of the disk or of `zstd -1`, in little memory.

Inputs: a file of incompressible bytes, and source text as one tar. Contestants: `cp`; `dd` with
a final fsync, in both directions; `zstd -1 -T2` into a file; restic backup and restore; borg
create (lz4, no encryption) and extract; `vaultfs put` and `get`. Neither restic nor borg syncs
what it restores.
"""

import sys
from pathlib import Path

from bench.contestants import (
    borg_contestant,
    our_contestant,
    restic_contestant,
    there_and_back,
)
from bench.corpora import SOURCE_SIZE, add_cache_option, incompressible, source_tar
from bench.harness import (
    Contestant,
    Outcome,
    available,
    compete,
    fresh_folder,
    require_space,
)
from bench.report import Claim, Faster, Lighter, Scenario, parser, publish, size_of

NOISE, SOURCE = "incompressible", "source tar"

MEMORY = 256_000_000

CLAIMS: tuple[Claim, ...] = (
    Faster(NOISE, "put", "restic", 3.5),
    Faster(NOISE, "put", "borg", 3),
    Faster(NOISE, "put", "dd", 0.6),
    Faster(NOISE, "get", "restic", 2),
    Faster(NOISE, "get", "borg", 2),
    Faster(SOURCE, "put", "restic", 2),
    Faster(SOURCE, "put", "borg", 1.6),
    Faster(SOURCE, "put", "zstd", 0.75),
    Faster(SOURCE, "get", "restic", 2),
    Faster(SOURCE, "get", "borg", 2),
    *(Lighter(corpus, step, MEMORY) for corpus in (NOISE, SOURCE) for step in ("put", "get")),
)


def contestants(source: Path) -> tuple[Contestant, ...]:
    def dd(one: str, other: str) -> tuple[str, ...]:
        return ("dd", f"if={one}", f"of={other}", "bs=4M", "conv=fsync", "status=none")

    compress = ("zstd", "-1", "-T2", "--quiet", "{source}", "-o", "{there}")
    decompress = ("zstd", "-d", "-T2", "--quiet", "{there}", "-o", "{back}")
    return (
        there_and_back("cp", source, ("cp", "{source}", "{there}"), ("cp", "{there}", "{back}")),
        there_and_back("dd", source, dd("{source}", "{there}"), dd("{there}", "{back}")),
        there_and_back("zstd", source, compress, decompress),
        restic_contestant(source),
        borg_contestant(source),
        our_contestant(source),
    )


def main() -> int:
    options = parser(__doc__, runs=5)
    options.add_argument("--size", type=size_of, default=1 << 30, help="incompressible (1Gi)")
    options.add_argument(
        "--source-size", type=size_of, default=SOURCE_SIZE, help="of the source tar (690M)"
    )
    add_cache_option(options)
    chosen = options.parse_args()
    require_space(chosen.work, 3 * max(chosen.size, chosen.source_size) + chosen.size)
    outcome = Outcome()
    with fresh_folder(chosen.work) as folder:
        noise = folder / "noise.bin"
        incompressible(noise, chosen.size)
        inputs = {NOISE: noise, SOURCE: source_tar(chosen.cache, chosen.source_size)}
        for name, source in inputs.items():
            racing = available(contestants(source), chosen.only, chosen.work)
            outcome += compete(name, racing, runs=chosen.runs, work=chosen.work, source=source)
        scenarios = [
            Scenario(name, ("restic", "borg", "dd", "zstd"), source.stat().st_size / 1e6, "MB")
            for name, source in inputs.items()
        ]
    return publish(scenarios, CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

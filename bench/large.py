"""Claim: putting and getting a file takes less than 256 MB of memory, whatever its size.

Only ours runs: incompressible files of 1, 5 and 10 GB are put into a fresh vault each and got
back. Flat means that the median peak for the largest is at most 1.2 times that for the smallest.
Needs disk space of three times the largest.
"""

import sys

from bench.contestants import our_contestant
from bench.corpora import incompressible
from bench.harness import Outcome, available, compete, fresh_folder, require_space
from bench.report import Claim, Flat, Lighter, Scenario, parser, publish, size_of

MEMORY = 256_000_000

GROWTH = 1.2


def main() -> int:
    options = parser(__doc__, runs=1)
    options.add_argument(
        "--sizes",
        type=lambda text: sorted(size_of(part) for part in text.split(",")),
        default=[10**9, 5 * 10**9, 10**10],
        help="sizes separated by commas (1G,5G,10G)",
    )
    chosen = options.parse_args()
    sizes: list[int] = chosen.sizes
    require_space(chosen.work, 3 * sizes[-1] + 10**8)
    outcome = Outcome()
    scenarios: list[Scenario] = []
    for size in sizes:
        name = f"{size / 1e9:g} GB"
        scenarios.append(Scenario(name, (), size / 1e6, "MB"))
        with fresh_folder(chosen.work) as folder:
            source = folder / "noise.bin"
            incompressible(source, size)
            racing = available((our_contestant(source),), chosen.only, chosen.work)
            outcome += compete(name, racing, runs=chosen.runs, work=chosen.work)
    names = [scenario.name for scenario in scenarios]
    steps = ("put", "get")
    claims: list[Claim] = [Lighter(name, step, MEMORY) for step in steps for name in names]
    claims += [Flat(names[0], names[-1], step, GROWTH) for step in steps]
    return publish(scenarios, claims, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

"""Claim: a file of 1 KB to 9.9 MB is put over HTTP in at most 1.1 times the time of a client that
reads it whole and sends one PUT, at the median and at the 95th percentile.

`vault.put(path, file)` of the SDK and a plain aiohttp client with the same server, turns
alternating put by put; every content is new to the server, and does not compress.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import anyio
from bench.harness import fresh_folder
from bench.http import serve

import vaultfs

SIZES = {"1 KB": 1_000, "100 KB": 100_000, "1 MB": 1_000_000, "9.9 MB": 9_900_000}
WANTED = 1.1


def renewed(source: Path, size: int) -> None:
    source.write_bytes(os.urandom(size))


def whole(source: Path) -> bytes:
    return source.read_bytes()


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await call()
    return time.perf_counter() - begun


async def compare(
    address: str, token: str, source: Path, size: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of our puts, and of plain ones."""
    ours: list[float] = []
    theirs: list[float] = []
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        vaultfs.connect(address, token=token) as vault,
        aiohttp.ClientSession(address, headers=headers) as session,
    ):

        async def plain(number: int) -> None:
            async with session.put(f"/v1/files/me/plain-{number}", data=whole(source)) as told:
                told.raise_for_status()

        async def both(number: int) -> None:
            ways = [
                (ours, lambda: vault.put(f"/ours-{number}", source)),
                (theirs, lambda: plain(number)),
            ]
            for times, call in ways if number % 2 else ways[::-1]:
                renewed(source, size)
                times.append(await timed(call))

        for number in range(rounds):
            await both(number)
    return ours[2:], theirs[2:]  # connections are made at first


def percentile(times: list[float], share: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[share - 1]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, default=Path("/tmp"))
    options.add_argument("--rounds", type=int, default=100)
    chosen = options.parse_args()
    well = True
    with fresh_folder(chosen.work) as folder, serve(folder / "vault") as server:
        for name, size in SIZES.items():
            ours, theirs = anyio.run(
                compare, server.address, server.token, folder / "file", size, chosen.rounds
            )
            ratios = [percentile(ours, share) / percentile(theirs, share) for share in (50, 95)]
            well &= max(ratios) <= WANTED
            middle = percentile(ours, 50) * 1000
            print(f"{name}: {middle:.1f} ms, p50 {ratios[0]:.2f} x, p95 {ratios[1]:.2f} x one PUT")
    print(f"wanted: {WANTED} x: {'PASS' if well else 'short'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

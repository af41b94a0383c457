"""Claim: a vault's packs are copied from a folder to S3, every one verified on the way, at least as
fast as `rclone copy --checksum` copies the same objects between the same places, in less than
256 MB of memory; and back.

Beside a migration that is throttled, puts and gets through the server take 1.5 times as long as
without it or less, at the 95th percentile.

The S3 server is Ceph's radosgw on this machine, which keeps objects in memory. Turns alternate;
each copies into an empty bucket, or folder, and begins with all of the disk's caches written.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from random import Random

import anyio
from bench.contestants import vaultfs
from bench.corpora import incompressible
from bench.harness import Command, Sample, fresh_folder, require_space, run
from bench.http import serve
from tests.ceph import Bucket, Ceph, serving

import vaultfs as product

FILE = 256 << 20
PACE = "20"
"""MB a second of a migration beside which others work."""


def rclone(ceph: Ceph, *words: str, folder: Path) -> Command:
    given = {
        "RCLONE_CONFIG_RGW_TYPE": "s3",
        "RCLONE_CONFIG_RGW_PROVIDER": "Ceph",
        "RCLONE_CONFIG_RGW_ENDPOINT": ceph.endpoint,
        "RCLONE_CONFIG_RGW_ACCESS_KEY_ID": ceph.environment["AWS_ACCESS_KEY_ID"],
        "RCLONE_CONFIG_RGW_SECRET_ACCESS_KEY": ceph.environment["AWS_SECRET_ACCESS_KEY"],
        "HOME": str(folder),
        "RCLONE_CONFIG": os.devnull,
    }
    return Command(("rclone", "copy", "--checksum", *words), folder, given)


def url(bucket: Bucket) -> str:
    return f"s3://{bucket.name}/vault?endpoint={bucket.ceph.endpoint}"


def made(folder: Path, size: int) -> Path:
    """A vault with `size` bytes of packs."""
    vault = folder / "vault"
    run(vaultfs("init", str(vault), folder=folder))
    for number in range(size // FILE):
        file = folder / f"{number}.bin"
        incompressible(file, FILE, f"migrate-{number}")
        run(vaultfs("--vault", str(vault), "put", str(file), "/", folder=folder))
        file.unlink()
    return vault


def ours(ceph: Ceph, vault: Path, *words: str, folder: Path) -> Command:
    command = vaultfs("--vault", str(vault), "--quiet", "migrate", *words, folder=folder)
    return Command(command.argv, command.cwd, {**command.env, **ceph.environment})


def there(ceph: Ceph, folder: Path, size: int) -> tuple[list[float], int]:
    """Seconds of rclone and of ours from a folder to S3, and our peak of memory."""
    vault = made(folder, size)
    with ceph.bucket() as bucket:
        objects = str(vault / "objects" / "packs")
        theirs = timed(rclone(ceph, objects, f"rgw:{bucket.name}/packs", folder=folder))
    with ceph.bucket() as bucket:
        begin = ("start", "--verify", "V1", "--to")
        run(ours(ceph, vault, *begin, f"s3={url(bucket)}", folder=folder))
        sample = timed(ours(ceph, vault, "watch", folder=folder))
        back = folder / "back"
        back.mkdir()
        other = timed(rclone(ceph, f"rgw:{bucket.name}/vault/packs", str(back), folder=folder))
        shutil.rmtree(back)
        for word in (("cutover",), ("detach",), ("retire", "local")):
            run(ours(ceph, vault, *word, folder=folder))
        home = folder / "home-again"
        home.mkdir()
        run(ours(ceph, vault, *begin, f"again={home.as_uri()}", folder=folder))
        again = timed(ours(ceph, vault, "watch", folder=folder))
    seconds = [theirs.seconds, sample.seconds, other.seconds, again.seconds]
    return seconds, max(sample.peak, again.peak)


def timed(command: Command) -> Sample:
    """A turn, which does not have to write what was there before it."""
    os.sync()
    return run(command)


async def traffic(address: str, token: str, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of puts and gets of 256 KiB, one after another."""
    random, puts, gets = Random(1), list[float](), list[float]()
    until = time.monotonic() + seconds
    async with product.connect(address, token=token) as vault:
        while time.monotonic() < until:
            data = random.randbytes(256 << 10)
            begun = time.perf_counter()
            await vault.put("/traffic", data)
            middle = time.perf_counter()
            await vault.get("/traffic")
            puts.append(middle - begun)
            gets.append(time.perf_counter() - middle)
    return puts, gets


def latency(work: Path, turns: int) -> bool:
    """Puts and gets to a server, with and without a throttled migration to S3 beside them."""
    found: dict[str, tuple[list[float], list[float]]] = {"idle": ([], []), "copying": ([], [])}
    with serving() as ceph, ceph.bucket() as bucket, fresh_folder(work) as folder:
        vault = made(folder, 1 << 30)
        os.environ.update(ceph.environment)
        with serve(vault) as server:
            begin = ("start", "--verify", "V1", "--rate", PACE, "--to", f"s3={url(bucket)}")
            run(ours(ceph, vault, *begin, folder=folder))
            for turn in range(2 * turns):
                kind = "idle" if turn % 2 else "copying"
                run(ours(ceph, vault, "pause" if turn % 2 else "resume", folder=folder))
                time.sleep(2)
                some = anyio.run(traffic, server.address, server.token, 6.0)
                for all_, new in zip(found[kind], some, strict=True):
                    all_.extend(new)
            peak = server.peak / 1e6
    good = peak < 256
    for name, idle, busy in zip(("put", "get"), found["idle"], found["copying"], strict=True):
        one, other = (statistics.quantiles(each, n=20)[18] * 1e3 for each in (idle, busy))
        print(f"{name} p95: {one:.1f} ms, while copying {other:.1f} ms: {other / one:.2f} x (1.5)")
        good &= other / one <= 1.5
    print(f"peak of the server {peak:.0f} MB (256)")
    return good


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, default=Path("/tmp"))
    options.add_argument("--gigabytes", type=int, default=5)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--only", choices=("rate", "latency"))
    chosen = options.parse_args()
    well = chosen.only == "rate" or latency(chosen.work, 3)
    return 0 if (chosen.only == "latency" or rate(chosen)) and well else 1


def rate(chosen: argparse.Namespace) -> bool:
    size = chosen.gigabytes << 30
    require_space(chosen.work, 4 * size)
    found: list[list[float]] = []
    peaks: list[int] = []
    for _ in range(chosen.runs):
        with serving(room=3 * size) as ceph, fresh_folder(chosen.work) as folder:
            seconds, peak = there(ceph, folder, size)
            found.append(seconds)
            peaks.append(peak)
            print([round(each, 2) for each in seconds], f"{peak / 1e6:.0f} MB", flush=True)
    out = statistics.median(row[0] / row[1] for row in found)
    back = statistics.median(row[2] / row[3] for row in found)
    most = max(peaks) / 1e6
    print(f"to S3: rclone / ours {out:.2f} x (1), back {back:.2f} x (1), {most:.0f} MB (256)")
    return out >= 1 and back >= 1 and most < 256


if __name__ == "__main__":
    sys.exit(main())

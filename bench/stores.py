"""Claims: an adapter of a store in a cloud takes at most 1.3 times the CPU time of the plain client
library that it uses, and at most 1.2 times its wall time, for objects of 16 MiB, 8 at once.

The servers are those of the tests: Ceph's radosgw, Azurite, fake-gcs-server. Adapter and library
take turns; each turn has a server and a process of its own, which puts 64 objects, gets them, and
compares what came. CPU time is that of this process, user and system. Peaks are its high-water
mark, after the puts (at most 256 MB) and at the end; 16 MiB of it are the object that is put.
Ratios are those of medians.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import asdict, frozen
from bench.harness import resident
from tests import azurite, ceph, fakegcs

MIB: Final = 1 << 20
SIZE: Final = 16 * MIB
KINDS: Final = ("s3", "azure", "gs")
OURS, PLAIN = "adapter", "library"
MOST_CPU, MOST_WALL, MOST_MEMORY = 1.3, 1.2, 256_000_000

Put = Callable[[str, bytes], Awaitable[Any]]
Get = Callable[[str], Awaitable[bytes]]


@frozen
class Taken:
    """Seconds of one turn, and peaks in bytes."""

    put_wall: float
    put_cpu: float
    get_wall: float
    get_cpu: float
    put_peak: int
    get_peak: int


# The contestants


@asynccontextmanager
async def adapter(url: str) -> AsyncGenerator[tuple[Put, Get], None]:
    from vaultfs.entrypoints.stores import open_store

    store = await open_store(url)
    try:
        yield store.put, store.get
    finally:
        await store.aclose()


@asynccontextmanager
async def s3_library(url: str) -> AsyncGenerator[tuple[Put, Get], None]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    from vaultfs.adapters.s3 import S3Address

    where = S3Address.parse(url)
    config = AioConfig(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session: Any = get_session()  # its types are those of all services
    making = session.create_client(
        "s3", region_name="us-east-1", endpoint_url=where.endpoint, config=config
    )
    async with making as client:

        async def put(key: str, data: bytes) -> None:
            await client.put_object(Bucket=where.bucket, Key=key, Body=data)

        async def get(key: str) -> bytes:
            found = await client.get_object(Bucket=where.bucket, Key=key)
            async with found["Body"] as body:
                content: bytes = await body.read()
            return content

        yield put, get


@asynccontextmanager
async def azure_library(url: str) -> AsyncGenerator[tuple[Put, Get], None]:
    from azure.core.credentials import AzureNamedKeyCredential
    from azure.storage.blob.aio import ContainerClient

    from vaultfs.adapters.clouds import parsed_url

    where = parsed_url(url, "azure", frozenset({"account", "endpoint"}))
    credential = AzureNamedKeyCredential(azurite.ACCOUNT, azurite.KEY)
    endpoint = where.fields["endpoint"]
    async with ContainerClient(endpoint, where.bucket, credential=credential) as client:

        async def put(key: str, data: bytes) -> None:
            await client.upload_blob(key, data)

        async def get(key: str) -> bytes:
            return await (await client.download_blob(key)).readall()

        yield put, get


@asynccontextmanager
async def gs_library(url: str) -> AsyncGenerator[tuple[Put, Get], None]:
    from gcloud.aio.storage import Storage

    from vaultfs.adapters.clouds import parsed_url

    where = parsed_url(url, "gs", frozenset({"endpoint"}))
    async with Storage(api_root=where.fields["endpoint"]) as storage:

        async def put(key: str, data: bytes) -> None:
            await storage.upload(
                where.bucket, key, data, metadata={}, force_resumable_upload=False, timeout=120
            )

        async def get(key: str) -> bytes:
            return await storage.download(where.bucket, key, timeout=120)

        yield put, get


LIBRARIES: Final = {"s3": s3_library, "azure": azure_library, "gs": gs_library}


# One turn, in a process of its own


async def turn(kind: str, who: str, url: str, objects: int, at_once: int) -> Taken:
    data = os.urandom(SIZE)
    opened = adapter(url) if who == OURS else LIBRARIES[kind](url)
    async with opened as (put, get):

        async def get_it(key: str) -> None:
            if await get(key) != data:
                raise SystemExit(f"{kind} {who}: {key} came back as something else")

        put_wall, put_cpu = await timed(lambda key: put(key, data), objects, at_once)
        _, put_peak = resident(os.getpid())
        await timed(get_it, objects, at_once)  # else who needed less memory to put pays for it now
        get_wall, get_cpu = await timed(get_it, objects, at_once)
    _, get_peak = resident(os.getpid())
    return Taken(put_wall, put_cpu, get_wall, get_cpu, put_peak, get_peak)


async def timed(
    work: Callable[[str], Awaitable[Any]], objects: int, at_once: int
) -> tuple[float, float]:
    """Seconds that `work` takes for all keys, by the clock and of CPU."""
    keys = iter([f"packs/{number:04}" for number in range(objects)])
    start, before = time.perf_counter(), _cpu()

    async def run() -> None:
        for key in keys:
            await work(key)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(run)
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# All turns


@contextmanager
def server(kind: str, folder: Path, room: int) -> Generator[tuple[str, dict[str, str]], None, None]:
    """The address of an empty store that has `room` bytes, and what opens it."""
    if kind == "s3":
        with ceph.serving() as gateway, gateway.bucket() as bucket:
            yield bucket.url(), gateway.environment
    elif kind == "azure":
        with (
            azurite.serving(folder, room=room // MIB) as emulator,
            emulator.container() as container,
        ):
            yield container.url(), {"AZURE_STORAGE_KEY": azurite.KEY}
    else:
        with fakegcs.serving(folder) as fake:
            yield fake.bucket().url(), {"STORAGE_EMULATOR_HOST": fake.endpoint}


def run(kind: str, who: str, objects: int, at_once: int) -> Taken:
    """One turn on a fresh server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(kind, Path(folder), objects * SIZE + 256 * MIB) as (url, environment),
    ):
        words = ["--turn", kind, who, url, "--objects", str(objects), "--at-once", str(at_once)]
        done = subprocess.run(
            [sys.executable, "-m", "bench.stores", *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            check=True,
        )
    return Taken(**json.loads(done.stdout))


def told(kind: str, taken: dict[str, list[Taken]]) -> bool:
    """Print what one kind of store took; whether the claims hold."""
    holds = True
    for field, most in (
        ("put_wall", MOST_WALL),
        ("put_cpu", MOST_CPU),
        ("get_wall", MOST_WALL),
        ("get_cpu", MOST_CPU),
    ):
        ours, plain = (
            statistics.median(getattr(each, field) for each in taken[who]) for who in (OURS, PLAIN)
        )
        good = ours <= most * plain
        holds = holds and good
        print(
            f"{kind:6} {field.replace('_', ' '):9} {ours:6.2f} s  {plain:6.2f} s"
            f"  {ours / plain:5.2f} x  (<= {most} x) {'' if good else 'MISSED'}"
        )
    for field in ("put_peak", "get_peak"):
        ours, plain = (max(getattr(each, field) for each in taken[who]) for who in (OURS, PLAIN))
        good = ours <= MOST_MEMORY or field == "get_peak"
        holds = holds and good
        print(
            f"{kind:6} {field.replace('_', ' '):9} {ours / 1e6:5.0f} MB  {plain / 1e6:5.0f} MB"
            f"  {ours / plain:5.2f} x  {'' if good else 'MISSED'}",
            flush=True,
        )
    return holds


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", choices=("", *KINDS))
    options.add_argument("--runs", type=int, default=3, help="turns of each")
    options.add_argument("--objects", type=int, default=64)
    options.add_argument("--at-once", type=int, default=8)
    options.add_argument("--turn", nargs=3, metavar=("KIND", "WHO", "URL"), help=argparse.SUPPRESS)
    wanted = options.parse_args()
    if wanted.turn:
        kind, who, url = map(str, wanted.turn)
        taken = anyio.run(turn, kind, who, url, wanted.objects, wanted.at_once)
        print(json.dumps(asdict(taken)))
        return 0
    print(f"{'':16} {OURS:>8}  {PLAIN:>8}")
    good = True
    for kind in [wanted.only] if wanted.only else KINDS:
        turns: dict[str, list[Taken]] = {OURS: [], PLAIN: []}
        for number in range(wanted.runs):
            for who in (OURS, PLAIN) if number % 2 else (PLAIN, OURS):
                turns[who].append(run(kind, who, wanted.objects, wanted.at_once))
        good = told(kind, turns) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

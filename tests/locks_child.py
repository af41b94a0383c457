"""A process that takes locks in a vault, to be stopped or killed.

python -m tests.locks_child hold VAULT PATH TTL     take a lease (TTL 0: none), say its name,
                                                    and write with it on each line of input
python -m tests.locks_child add VAULT PATH NAME N GUARD  add N things to a set, read and written
"""

import json
import sys
from pathlib import Path

import anyio
from anyio import to_thread

import vaultfs
from vaultfs.domain.errors import LockError, NotFound
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Presented
from vaultfs.domain.names import parse_path
from vaultfs.entrypoints.sdk import Vault


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def hold(folder: Path, path: str, ttl: float) -> None:
    async with vaultfs.open(folder) as vault:
        opened = vault.vault
        owner, tree = opened.locks.new_owner(), opened.user.tree
        wanted = {parse_path(path): Mode.X}
        token = await opened.locks.acquire(owner, tree, wanted, ttl=ttl or None)
        say(f"{owner}.{token}")
        from attrs import evolve

        mine = evolve(vault, vault=opened.presenting(Presented(owner, token)))
        while line := await to_thread.run_sync(sys.stdin.readline):
            try:
                await mine.put(path, line.encode())
                say("stored")
            except LockError as error:
                say(type(error).__name__)


async def add(folder: Path, path: str, name: str, count: int, guard: str) -> None:
    async with vaultfs.open(folder) as vault:
        for number in range(count):
            if guard == "guarded":
                async with vault.lock(path) as locked:
                    await _add(locked, path, f"{name}-{number}")
            else:
                await _add(vault, path, f"{name}-{number}")
            say(f"{name}-{number}")


async def _add(vault: Vault, path: str, name: str) -> None:
    try:
        there = json.loads(await vault.get(path))
    except NotFound:
        there = []
    await anyio.sleep(0.002)
    await vault.put(path, json.dumps([*there, name]).encode())


def main(what: str, folder: str, path: str, *rest: str) -> None:
    if what == "hold":
        anyio.run(hold, Path(folder), path, float(rest[0]))
    else:
        anyio.run(add, Path(folder), path, rest[0], int(rest[1]), rest[2])


if __name__ == "__main__":
    main(*sys.argv[1:])

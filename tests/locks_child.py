"""A process that takes locks in the vault of its environment, to be stopped or killed.

python -m tests.locks_child hold PATH TTL        take a lease (TTL 0: none), say its name,
                                                 and write with it on each line of input
python -m tests.locks_child add PATH NAME N GUARD    add N things to a set, read and written:
                                                 `guarded` by a lock, by a lease of so many
                                                 seconds, or `plain`
"""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio import to_thread
from attrs import evolve

from vaultfs.domain.errors import LockError, NotFound
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Presented
from vaultfs.domain.names import parse_path
from vaultfs.entrypoints.sdk import Vault, as_client
from vaultfs.entrypoints.settings import Settings, read_settings
from vaultfs.entrypoints.vault import open_vault


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Vault, None]:
    async with open_vault(settings) as vault, as_client(vault) as client:
        yield client


async def hold(path: str, ttl: float) -> None:
    async with opened(read_settings()) as vault, _lease(vault, path, ttl or None) as (mine, name):
        say(name)
        while line := await to_thread.run_sync(sys.stdin.readline):
            try:
                await mine.put(path, line.encode())
                say("stored")
            except LockError as error:
                say(type(error).__name__)


@asynccontextmanager
async def _lease(
    vault: Vault, path: str, ttl: float | None
) -> AsyncGenerator[tuple[Vault, str], None]:
    """The vault whose changes come with a lock on `path`, and the name of that lock."""
    own = vault.vault
    owner, tree = own.locks.new_owner(), own.user.tree
    token = await own.locks.acquire(owner, tree, {parse_path(path): Mode.X}, ttl=ttl)
    try:
        presenting = own.presenting(Presented(owner, token))
        yield evolve(vault, vault=presenting), f"{owner}.{token}"
    finally:
        await own.locks.let_go(owner, tree, token)


async def add(path: str, name: str, count: int, guard: str) -> None:
    async with opened(read_settings()) as vault:
        for number in range(count):
            await _add(vault, path, f"{name}-{number}", guard)
            say(f"{name}-{number}")


async def _add(vault: Vault, path: str, name: str, guard: str) -> None:
    if guard == "plain":
        await _write(vault, path, name)
    elif guard == "guarded":
        async with vault.lock(path) as locked:
            await _write(locked, path, name)
    else:
        while not await _add_with_lease(vault, path, name, float(guard)):
            pass


async def _add_with_lease(vault: Vault, path: str, name: str, ttl: float) -> bool:
    """Whether it is there: not if the lease has run out meanwhile."""
    with suppress(LockError):
        async with _lease(vault, path, ttl) as (mine, _):
            await _write(mine, path, name)
            return True
    return False


async def _write(vault: Vault, path: str, name: str) -> None:
    try:
        there = json.loads(await vault.get(path))
    except NotFound:
        there = []
    await anyio.sleep(0.002)
    await vault.put(path, json.dumps([*there, name]).encode())


def main(what: str, path: str, *rest: str) -> None:
    if what == "hold":
        anyio.run(hold, path, float(rest[0]))
    else:
        anyio.run(add, path, rest[0], int(rest[1]), rest[2])


if __name__ == "__main__":
    main(*sys.argv[1:])

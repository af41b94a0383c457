"""A process that pulls a file by a delta, and kills itself before a step of applying it.

python -m tests.apply_child SERVER TOKEN LOCAL BASE NUMBER    dies before step NUMBER

Steps are what the file system is told: to open for writing, write, set, flush, rename, remove.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import anyio

import vaultfs
from vaultfs.domain.nodes import VersionId

STEPS: Final = ("write", "fsync", "rename", "unlink", "utime", "fchmod", "ftruncate")


import_module("vaultfs.adapters.replacing")  # before anything is counted


def watch(deadly: int) -> None:
    """Die before step `deadly`; `open` counts where it makes a file."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            step()
            return function(*words, **more)

        return call

    def opened(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            step()
        return open_(path, flags, *words, **more)

    open_ = os.open
    os.open = opened
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


async def pull(server: str, token: str, local: str, base: int, deadly: int) -> None:
    async with vaultfs.connect(server, token=token) as vault:
        watch(deadly)
        done = await vault.pull("/f", local, base=VersionId(base))
    sys.stdout.write(f"done {done.way}\n")


if __name__ == "__main__":
    where, secret, file, number, last = sys.argv[1:]
    anyio.run(pull, where, secret, file, int(number), int(last))

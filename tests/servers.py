"""Servers of others for the tests: started once, on a port of their own, stopped by pid."""

import os
import re
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream
from attrs import define, field

STARTS_WITHIN: Final = 30.0
BUILD: Final = Path(__file__).parents[1] / "build"


@define(eq=False)
class Server:
    """A process, and its output in `log`."""

    command: Sequence[str]
    log: Path
    environ: Mapping[str, str] = field(factory=dict[str, str])
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self, ready: Callable[[], bool]) -> None:
        """Start it and wait until it is `ready`, which may raise while nobody listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env={**os.environ, **self.environ},
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not _is(ready):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(self.log.read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None


def _is(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except httpx.TransportError:
        return False


@define
class Scripted:
    """A server that gives everybody the same `answer`, and hangs up."""

    answer: bytes
    port: int = 0
    asked: int = 0
    """How many requests there were."""

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            await _request(stream)
            self.asked += 1
            if self.answer:
                await stream.send(self.answer)


async def _request(stream: SocketStream) -> None:
    """Take a whole request: what is not read would cut the answer off."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += await stream.receive()
    head, _, body = found.partition(b"\r\n\r\n")
    size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    left = int(size[1]) - len(body) if size else 0
    while left > 0:
        left -= len(await stream.receive())


@asynccontextmanager
async def answering(answer: bytes) -> AsyncGenerator[Scripted, None]:
    """A `Scripted` server on a port of its own; one with no `answer` hangs up at once."""
    script = Scripted(answer)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    script.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, script.serve)
        yield script
        tasks.cancel_scope.cancel()


def refuse(reason: str) -> None:
    """Skip what needs a server that there cannot be; with `CI=true`, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

"""Claims: over HTTP a large file goes in and out at 0.6 times the embedded speed or more, in
little memory; small files that many put at once are not much slower than borg's local archive of
them, and several times as fast as without grouping; a look at a node or folder takes no more
than twice as long as the least that Starlette can answer.

The server is `vaultfs serve` with logs off, in a process of its own. Large files go through
curl, small ones through plain sockets of this process, which is the load; looks through wrk.
`ungrouped` is the same server with a pack and a transaction for each put. `bare` is a Starlette
route that answers a constant in JSON, under the same uvicorn. Peaks are the server's.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen
from bench.corpora import incompressible
from bench.harness import Outcome, Run, fresh_folder, require_space
from bench.report import OURS, Claim, Faster, Lighter, Scenario, parser, publish, size_of

LARGE, SMALL, LOOKS = "1 GiB", "10 KB at once", "requests"
MEMORY = 256_000_000
FILES, AT_ONCE = 2000, 64
REQUESTS, CLIENTS, LOOKING = 2000, 16, 2
"""Requests that times are given for; connections of wrk; seconds that it runs."""
CLAIMS: tuple[Claim, ...] = (
    Faster(LARGE, "put", "embedded", 0.6),
    Faster(LARGE, "get", "embedded", 0.6),
    Lighter(LARGE, "put", MEMORY),
    Lighter(LARGE, "get", MEMORY),
    Faster(SMALL, "put", "borg", 0.5),
    Faster(SMALL, "put", "ungrouped", 3.0),
    Faster(LOOKS, "stat", "bare", 0.5),
    Faster(LOOKS, "list of 10", "bare", 0.5),
)
BARE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def answer(request): return JSONResponse({"path": "/a", "size": 5})
app = Starlette(routes=[Route("/bare", answer)])
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", loop="asyncio", log_level="error")
"""
SERVE = "from vaultfs.__main__ import main; main()"
UNGROUPED = f"""
from vaultfs.adapters.sql import grouping
from vaultfs.domain.services.packer import Packer
def poke(packer):
    if packer._open is not None and (packer._open.builder.full or packer._open.wanted):
        packer._seal()
grouping.ROUND, Packer._poke = 1, poke
{SERVE}
"""


@frozen
class Server:
    process: "subprocess.Popen[bytes]"
    port: int
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def peak(self) -> int:
        """Bytes that the process has held at the most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if "VmHWM" in line).split()[1]) * 1024


@contextmanager
def serve(*where: object, program: str = SERVE) -> Generator[Server, None, None]:
    """A server of a vault, in a folder or as flags name it."""
    words = ("serve", *map(str, where), "--port", "0", "--json", "--quiet", "--rate", "100000000")
    words = (*words, "--gc-hours", "0", "--scrub-days", "0")
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        try:
            yield Server(process, int(told["address"].rpartition(":")[2]), told["token"])
        finally:
            process.terminate()


@contextmanager
def bare(port: int) -> Generator[None, None, None]:
    with subprocess.Popen([sys.executable, "-c", BARE, str(port)]) as process:
        try:
            time.sleep(1.5)
            yield
        finally:
            process.terminate()


def timed(argv: Sequence[object], **rest: object) -> float:
    os.sync()
    start = time.perf_counter()
    subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.DEVNULL, **rest)  # type: ignore[call-overload]
    return time.perf_counter() - start


def large(folder: Path, source: Path, number: int) -> list[Run]:
    """One put and one get, embedded and through a server."""
    ours = Path(sys.executable).with_name("vaultfs")
    runs: list[Run] = []
    with fresh_folder(folder) as place:
        vault = place / "embedded"
        timed((ours, "init", vault))
        for step, words in (("put", ("put", source, "/f")), ("get", ("cat", "/f"))):
            seconds = timed((ours, "--quiet", "--vault", vault, *words))
            runs.append(Run(LARGE, "embedded", step, number, seconds, 0))
    with fresh_folder(folder) as place, serve(place / "served") as server:
        url = f"{server.address}/v1/files/me/f"
        curl = ("curl", "--silent", "--fail", "-H", f"Authorization: Bearer {server.token}")
        transfers: dict[str, tuple[object, ...]] = {
            "put": ("-T", source, url),
            "get": (url, "-o", "/dev/null"),
        }
        for step, given in transfers.items():
            seconds = timed((*curl, *given))
            runs.append(Run(LARGE, OURS, step, number, seconds, server.peak))
    return runs


async def send(port: int, requests: Iterable[bytes], at_once: int) -> None:
    """Send `requests` over `at_once` connections; every answer has to be a success."""
    queue = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in queue:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head[9:10] == b"2", head
            at = head.lower().index(b"content-length:") + 15
            await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(client())


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def measure(work: Callable[[], Awaitable[None]]) -> float:
    async def run() -> float:
        start = time.perf_counter()
        await work()
        return time.perf_counter() - start

    return asyncio.run(run())


def small(folder: Path, number: int) -> list[Run]:
    """Many single durable puts of 10 KB at the same time, and borg with the same files."""
    runs: list[Run] = []
    contents = [os.urandom(10_240) for _ in range(FILES)]
    for name, program in ((OURS, SERVE), ("ungrouped", UNGROUPED)):
        with fresh_folder(folder) as place, serve(place / "served", program=program) as server:
            puts = [
                request("PUT", f"/v1/files/me/{index}", server.token, data)
                for index, data in enumerate(contents)
            ]
            seconds = measure(lambda: send(server.port, puts, AT_ONCE))  # noqa: B023 called here
            runs.append(Run(SMALL, name, "put", number, seconds, server.peak))
    with fresh_folder(folder) as place:
        files = place / "files"
        files.mkdir()
        for index, data in enumerate(contents):
            (files / str(index)).write_bytes(data)
        quiet = {"BORG_BASE_DIR": str(place), "PATH": os.environ["PATH"]}
        timed(("borg", "init", "--encryption=none", place / "repo"), env=quiet)
        words = ("borg", "create", "-C", "lz4", f"{place / 'repo'}::a", files)
        runs.append(Run(SMALL, "borg", "put", number, timed(words, env=quiet), 0))
    return runs


def looks(folder: Path, number: int) -> list[Run]:
    """Requests that read the catalog, and one that reads nothing."""
    runs: list[Run] = []
    with fresh_folder(folder) as place, serve(place / "served") as server:
        setup = [
            request("PUT", f"/v1/files/me/d/d/{index}?parents=true", server.token, b"x")
            for index in range(10)
        ]
        asyncio.run(send(server.port, setup, 1))
        paths = {"stat": "/v1/nodes/me/d/d/0", "list of 10": "/v1/folders/me/d/d"}
        port = server.port + 1 if server.port < 65_000 else server.port - 1
        with bare(port):
            for step, path in paths.items():
                seconds = looking(server.address + path, server.token)
                runs.append(Run(LOOKS, OURS, step, number, seconds, server.peak))
                seconds = looking(f"http://127.0.0.1:{port}/bare", "")
                runs.append(Run(LOOKS, "bare", step, number, seconds, 0))
    return runs


def looking(url: str, token: str) -> float:
    """Seconds that `REQUESTS` answers take, by wrk."""
    words = ("wrk", "-t1", f"-c{CLIENTS}", f"-d{LOOKING}s", "-H", f"Authorization: Bearer {token}")
    told = subprocess.run([*words, url], check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in told, told
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found is not None, told
    return REQUESTS / float(found[1])


def main() -> int:
    options = parser(__doc__, runs=5)
    options.add_argument("--size", type=size_of, default=1 << 30, help="of the large file (1Gi)")
    chosen = options.parse_args()
    require_space(chosen.work, 4 * chosen.size)
    outcome = Outcome()
    with fresh_folder(chosen.work) as folder:
        source = folder / "noise.bin"
        incompressible(source, chosen.size)
        for number in range(1, chosen.runs + 1):
            print(f"run {number} of {chosen.runs}", file=sys.stderr)
            runs = (*large(folder, source, number), *small(folder, number), *looks(folder, number))
            outcome += Outcome(tuple(runs))
    tables = (
        Scenario(LARGE, ("embedded",), chosen.size / 1e6, "MB"),
        Scenario(SMALL, ("borg", "ungrouped"), FILES, "files"),
        Scenario(LOOKS, ("bare",), REQUESTS, "requests"),
    )
    return publish(tables, CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

"""Claims: a server of a million nodes that was killed while it wrote serves again in less than
5 s; 10 GB go in and out, and eight large files at once, with less than 256 MB of memory in the
server and in each client.

The server is `vaultfs serve` in a process of its own, the clients are `vaultfs put` and `get`.
The time of a restart is that from the start of the process to the first answer that the catalog
is needed for; in the meantime nothing but the system's page cache has kept anything. Of several
clients at once the highest peak counts. What comes back is compared.
"""

import asyncio
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

from bench.corpora import incompressible
from bench.harness import Command, Outcome, Run, fresh_folder, require_space, run
from bench.http import Server, request, send, serve
from bench.metadata import LISTED, Shape, file_name, fill
from bench.report import OURS, Claim, Faster, Lighter, Scenario, parser, publish, size_of

from vaultfs.adapters.sql.connections import connect

RESTART, ONE, MANY = "restart", "one file", "eight at once"
MEMORY = 256_000_000
LIMIT = 5.0
"""Seconds in which a server has to serve again."""
AT_ONCE = 8
STRIDE = 16 << 10
"""Bytes: no chunk of a large file is smaller."""
STEPS = ("put", "get")
CLAIMS: tuple[Claim, ...] = (
    Faster(RESTART, "serving again", "limit", 1.0),
    *(
        Lighter(scenario, f"{step}, {whose}", MEMORY)
        for scenario in (ONE, MANY)
        for step in STEPS
        for whose in ("server", "client")
    ),
)


def restart(folder: Path, nodes: int) -> list[Run]:
    """A server that is killed under load, and the next one of the same vault."""
    with fresh_folder(folder) as place:
        vault = place / "vault"
        with serve(vault) as server:
            token = server.token
        with closing(connect(vault / "catalog.db")) as connection:
            fill(connection, Shape(nodes))
        with serve(vault) as server:
            killed_writing(server, token)
        start = time.perf_counter()
        with serve(vault) as server:
            ask(server, f"/v1/nodes/me/{LISTED}/{file_name(1)}", token)
            seconds = time.perf_counter() - start
            peak = server.peak
    return [
        Run(RESTART, OURS, "serving again", 1, seconds, peak),
        Run(RESTART, "limit", "serving again", 1, LIMIT, 0),
    ]


def killed_writing(server: Server, token: str) -> None:
    """Kill a server in the middle of many puts."""
    puts = (
        request("PUT", f"/v1/files/me/new-{index}", token, os.urandom(10_240)) for index in count()
    )

    async def load() -> None:
        with suppress(ExceptionGroup):  # the connections break, as they should
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                tasks.create_task(send(server.port, puts, AT_ONCE))
                await asyncio.sleep(3)
                server.process.send_signal(signal.SIGKILL)

    asyncio.run(load())
    if server.process.wait() != -signal.SIGKILL:
        raise SystemExit("the server ended before it was killed")


def ask(server: Server, path: str, token: str) -> None:
    asked = urllib.request.Request(
        server.address + path, headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()


def transfers(folder: Path, scenario: str, size: int, clients: int) -> list[Run]:
    """Files of `size` bytes, each put and got by a client of its own, all at once."""
    ours = str(Path(sys.executable).with_name("vaultfs"))
    runs: list[Run] = []
    with fresh_folder(folder) as place, serve(place / "vault") as server:
        env = {"VAULTFS_TOKEN": server.token, "HOME": str(place / "home")}
        sources = [place / f"source-{number}" for number in range(clients)]
        for number, source in enumerate(sources):
            incompressible(source, size)
            unlike(source, number)
        for step in STEPS:
            begin = (ours, "--quiet", "--vault", server.address, step)
            commands = [
                Command((*begin, *ends(step, source, f"/{number}")), place, env)
                for number, source in enumerate(sources)
            ]
            seconds, peak = at_once(commands)
            runs.append(Run(scenario, OURS, f"{step}, client", 1, seconds, peak))
            runs.append(Run(scenario, OURS, f"{step}, server", 1, seconds, server.peak))
        for source in sources:
            run(Command(("cmp", str(source), str(back(source))), place))
    return runs


def ends(step: str, source: Path, path: str) -> tuple[str, str]:
    """From where to where."""
    return (str(source), path) if step == "put" else (path, str(back(source)))


def back(source: Path) -> Path:
    return source.with_suffix(".back")


def unlike(path: Path, number: int) -> None:
    """Make a file share no chunk with others: two bytes in each `STRIDE` are its own."""
    with path.open("r+b") as file:
        for start in range(0, path.stat().st_size, STRIDE):
            file.seek(start)
            file.write(number.to_bytes(2, "big"))


def at_once(commands: Sequence[Command]) -> tuple[float, int]:
    """Seconds until all have ended, and the highest peak among them."""
    os.sync()
    start = time.perf_counter()
    with ThreadPoolExecutor(len(commands)) as threads:
        peak = max(sample.peak for sample in threads.map(run, commands))
    return time.perf_counter() - start, peak


def main() -> int:
    options = parser(__doc__, runs=1)
    options.add_argument("--nodes", type=int, default=1_000_000, help="of the catalog (1,000,000)")
    options.add_argument("--size", type=size_of, default=10**10, help="of the one file (10G)")
    options.add_argument("--each", type=size_of, default=300 << 20, help="of the eight (300Mi)")
    chosen = options.parse_args()
    require_space(chosen.work, 3 * max(chosen.size, AT_ONCE * chosen.each))
    outcome = Outcome()
    with fresh_folder(chosen.work) as folder:
        for number in range(1, chosen.runs + 1):
            print(f"run {number} of {chosen.runs}", file=sys.stderr)
            outcome += Outcome(tuple(restart(folder, chosen.nodes)))
            outcome += Outcome(tuple(transfers(folder, ONE, chosen.size, 1)))
            outcome += Outcome(tuple(transfers(folder, MANY, chosen.each, AT_ONCE)))
    tables = (
        Scenario(RESTART, ("limit",)),
        Scenario(ONE, (), chosen.size / 1e6, "MB"),
        Scenario(MANY, (), AT_ONCE * chosen.each / 1e6, "MB"),
    )
    return publish(tables, CLAIMS, outcome, chosen)


if __name__ == "__main__":
    sys.exit(main())

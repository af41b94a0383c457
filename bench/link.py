"""Claims: an upload to `vaultfs serve` over a slow link moves its bytes at 0.95 times the speed of
a plain socket over the same link, or more.

The content is incompressible and new to the server, so that every byte has to travel. `socket`
is a connection that sends the same bytes to somebody who reads and acknowledges them at the end.
The time is that of the transfer alone, without the start of the programs. Needs root.
"""

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from bench.corpora import incompressible
from bench.harness import Outcome, Run, fresh_folder
from bench.http import SERVE
from bench.report import OURS, Claim, Faster, Scenario, parser, publish
from bench.shaped import TWO, Link, tunnel, wire

SLOW, FAST = "100 Mbit/s, 20 ms", "1 Gbit/s"
MIB = 1 << 20
SIZES = {SLOW: 100 * MIB, FAST: 600 * MIB}
CLAIMS: tuple[Claim, ...] = (
    Faster(SLOW, "put", "socket", 0.95),
    Faster(FAST, "put", "socket", 0.95),
)

SINK = """
import socket, sys
with socket.create_server(("0.0.0.0", 9)) as listener:
    print("up", flush=True)
    connection, _ = listener.accept()
    buffer, total = bytearray(1 << 20), 0
    while size := connection.recv_into(buffer): total += size
    connection.sendall(str(total).encode())
    connection.close()
"""
SOCKET = """
import socket, sys, time
where, source = sys.argv[1:]
with socket.create_connection((where, 9)) as connection, open(source, "rb") as file:
    start = time.perf_counter()
    connection.sendfile(file)
    connection.shutdown(socket.SHUT_WR)
    assert int(connection.recv(100)) == file.tell()
    print(time.perf_counter() - start)
"""
PUT = """
import resource, sys, time, vaultfs
where, token, source = sys.argv[1:]
with vaultfs.connect_sync(where, token=token) as vault:
    from pathlib import Path
    vault.put("/first", b"x")
    start = time.perf_counter()
    vault.put("/f", Path(source))
    print(time.perf_counter() - start)
"""


def _output(command: list[str]) -> float:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def by_socket(link: Link, source: Path) -> float:
    command = link.at_server(sys.executable, "-c", SINK)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return _output(link.at_client(sys.executable, "-c", SOCKET, TWO, source))


def by_vaultfs(link: Link, source: Path, folder: Path) -> float:
    words = ("serve", folder, "--host", "0.0.0.0", "--port", "8000", "--json", "--quiet")
    command = link.at_server(sys.executable, "-c", SERVE, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        token = json.loads(process.stdout.readline())["token"]
        try:
            where = f"http://{TWO}:8000"
            return _output(link.at_client(sys.executable, "-c", PUT, where, token, source))
        finally:
            process.terminate()


def measured(name: str, work: Path, source: Path, number: int) -> list[Run]:
    links: dict[str, AbstractContextManager[Link]] = {
        SLOW: tunnel(100e6, 0.010),
        FAST: wire("1gbit"),
    }
    with links[name] as link, fresh_folder(work) as folder:
        plain = by_socket(link, source)
        ours = by_vaultfs(link, source, folder / "vault")
    return [Run(name, "socket", "put", number, plain, 0), Run(name, OURS, "put", number, ours, 0)]


def main() -> int:
    options = parser(__doc__, runs=3).parse_args()
    runs: list[Run] = []
    sources: dict[str, Path] = {}
    with fresh_folder(options.work) as place:
        for name, size in SIZES.items():
            sources[name] = place / f"{size}.bin"
            incompressible(sources[name], size)
        for number in range(1, options.runs + 1):
            for name, source in sources.items():
                runs += measured(name, options.work, source, number)
    scenarios = [Scenario(name, ("socket",), size / 1e6, "MB") for name, size in SIZES.items()]
    return publish(scenarios, CLAIMS, Outcome(tuple(runs)), options)


if __name__ == "__main__":
    sys.exit(main())

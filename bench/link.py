"""Claims: an upload to `vaultfs serve` over a slow link moves its bytes at 0.95 times the speed of
a plain socket over the same link, or more.

The third one is an upload over a fast link to a server whose object store, Ceph's radosgw, is at
the other end of a slow one.

The content is incompressible and new to the server, so that every byte has to travel. `socket`
is a connection that sends the same bytes to somebody who reads and acknowledges them at the end.
The time is that of the transfer alone, without the start of the programs. Needs root.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench.corpora import incompressible
from bench.harness import Outcome, Run, fresh_folder
from bench.http import SERVE
from bench.report import OURS, Claim, Faster, Scenario, parser, publish
from bench.shaped import TWO, Link, tunnel, wire
from tests.ceph import serving

SLOW, FAST, STORE = "100 Mbit/s, 20 ms", "1 Gbit/s", "100 Mbit/s, 20 ms, to the store"
MIB = 1 << 20
CLONE_NEWNET = 0x40000000
SIZES = {SLOW: 100 * MIB, FAST: 600 * MIB, STORE: 100 * MIB}
RATE, DELAY = 100e6, 0.010
CLAIMS: tuple[Claim, ...] = (
    Faster(SLOW, "put", "socket", 0.95),
    Faster(FAST, "put", "socket", 0.95),
    Faster(STORE, "put", "socket", 0.95),
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
RELAY = """
import socket, sys, threading
def pump(one, other):
    while data := one.recv(1 << 16): other.sendall(data)
    other.shutdown(socket.SHUT_WR)
with socket.create_server(("0.0.0.0", 9000), backlog=128) as listener:
    print("up", flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        for each in (near, far): each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()
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


@contextmanager
def inside(space: str) -> Generator[None, None, None]:
    """What this thread starts is in the network namespace `space`."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{space}") as there:
        if setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), space)
        try:
            yield
        finally:
            setns(home.fileno(), CLONE_NEWNET)


@contextmanager
def relayed(link: Link, port: int) -> Generator[None, None, None]:
    """What listens at `port` of the server's loopback, at port 9000 of its end of the link."""
    command = link.at_server(sys.executable, "-c", RELAY, port)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.terminate()


def by_store(link: Link, source: Path, folder: Path) -> float:
    """Client and server at one end of the link, the store at the other."""
    with ExitStack() as stack:
        stack.enter_context(inside(link.server))
        ceph = stack.enter_context(serving())
        bucket = stack.enter_context(ceph.bucket())
        with relayed(link, int(ceph.endpoint.rpartition(":")[2])):
            store = f"s3://{bucket.name}/vault?endpoint=http://{TWO}:9000"
            words = ("init", folder, "--store", store)
            environment = {**os.environ, **ceph.environment}
            program = Path(sys.executable).with_name("vaultfs")
            subprocess.run(link.at_client(program, *words), check=True, env=environment)
            serve = ("serve", folder, "--port", "8000", "--json", "--quiet")
            command = link.at_client(program, *serve)
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
                assert process.stdout is not None
                token = json.loads(process.stdout.readline())["token"]
                try:
                    where = "http://127.0.0.1:8000"
                    command = link.at_client(sys.executable, "-c", PUT, where, token, source)
                    return _output(command)
                finally:
                    process.terminate()


def measured(name: str, work: Path, source: Path, number: int) -> list[Run]:
    links: dict[str, AbstractContextManager[Link]] = {
        SLOW: tunnel(RATE, DELAY),
        FAST: wire("1gbit"),
        STORE: tunnel(RATE, DELAY),
    }
    with links[name] as link, fresh_folder(work) as folder:
        plain = by_socket(link, source)
        put = by_store if name == STORE else by_vaultfs
        ours = put(link, source, folder / "vault")
    return [Run(name, "socket", "put", number, plain, 0), Run(name, OURS, "put", number, ours, 0)]


def main() -> int:
    known = parser(__doc__, runs=3)
    known.add_argument("--link", choices=tuple(SIZES), help="that one alone")
    options = known.parse_args()
    runs: list[Run] = []
    sources: dict[str, Path] = {}
    sizes = {name: size for name, size in SIZES.items() if options.link in {None, name}}
    with fresh_folder(options.work) as place:
        for name, size in sizes.items():
            sources[name] = place / f"{size}.bin"
            incompressible(sources[name], size)
        for number in range(1, options.runs + 1):
            for name, source in sources.items():
                runs += measured(name, options.work, source, number)
    scenarios = [Scenario(name, ("socket",), size / 1e6, "MB") for name, size in sizes.items()]
    return publish(scenarios, CLAIMS, Outcome(tuple(runs)), options)


if __name__ == "__main__":
    sys.exit(main())

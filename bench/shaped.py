"""Links between two network namespaces of this machine, as slow as they are asked to be.

`wire` is a pair of virtual Ethernet devices with a token bucket: a rate, no delay. `tunnel` is a
pair of tunnel devices with a process between them that holds every packet back, for kernels
without `netem`. Both need root.
"""

import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from attrs import frozen

ONE, TWO = "10.77.0.1", "10.77.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
QUEUE = 2 << 20
"""Bytes that wait at a link before packets are dropped."""


def run(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)


@frozen
class Link:
    """Two namespaces: the client's at `ONE`, the server's at `TWO`."""

    client: str
    server: str

    def at_client(self, *words: object) -> list[str]:
        """A command, run on the client's side."""
        return ["ip", "netns", "exec", self.client, *map(str, words)]

    def at_server(self, *words: object) -> list[str]:
        """The same on the server's."""
        return ["ip", "netns", "exec", self.server, *map(str, words)]


@contextmanager
def _spaces() -> Generator[Link, None, None]:
    link = Link(f"vfs{os.getpid()}a", f"vfs{os.getpid()}b")
    for name in (link.client, link.server):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    try:
        yield link
    finally:
        for name in (link.client, link.server):
            run("ip", "netns", "del", name)


@contextmanager
def wire(rate: str) -> Generator[Link, None, None]:
    """A link of `rate`, such as `1gbit`, in both directions."""
    with _spaces() as link:
        run("ip", "link", "add", "one", "netns", link.client, "type", "veth", "peer", "two")
        run("ip", "link", "set", "two", "netns", link.server)
        for name, device, address in (
            (link.client, "one", ONE),
            (link.server, "two", TWO),
        ):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            bucket = ("tbf", "rate", rate, "burst", "128kb", "latency", "20ms")
            run("tc", "-n", name, "qdisc", "add", "dev", device, "root", *bucket)
        yield link


@contextmanager
def tunnel(bits: float, delay: float) -> Generator[Link, None, None]:
    """A link of `bits` a second and `delay` seconds, each way."""
    with _spaces() as link:
        command = [sys.executable, "-m", "bench.shaped", link.client, link.server]
        with subprocess.Popen([*command, str(bits), str(delay)], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
                yield link
            finally:
                process.terminate()


def _tun(space: str, address: str) -> int:
    """A tunnel device in the namespace `space`; what is read from it was sent through it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"vt{os.getpid() % 10000}{address[-1]}"
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    run("ip", "link", "set", name, "netns", space)
    run("ip", "-n", space, "address", "add", f"{address}/24", "dev", name)
    run("ip", "-n", space, "link", "set", name, "up", "txqueuelen", "2000")
    return descriptor


def forward(one: int, two: int, bits: float, delay: float) -> None:
    """Pass packets from each to the other, for ever, no faster than the link."""
    other = {one: two, two: one}
    free_at = {one: 0.0, two: 0.0}
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(waiting)
            os.write(target, packet)
        rest = max(0.0, waiting[0][0] - now) if waiting else 1.0
        readable, _, _ = select.select([one, two], [], [], rest)
        for source in readable:
            for _ in range(64):
                try:
                    packet = os.read(source, 65536)
                except BlockingIOError:
                    break
                now = time.monotonic()
                if (free_at[source] - now) * bits / 8 > QUEUE:
                    continue
                free_at[source] = max(now, free_at[source]) + len(packet) * 8 / bits
                count += 1
                heapq.heappush(waiting, (free_at[source] + delay, count, other[source], packet))


def main() -> None:
    client, server, bits, delay = sys.argv[1:]
    one, two = _tun(client, ONE), _tun(server, TWO)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    forward(one, two, float(bits), float(delay))


if __name__ == "__main__":
    main()

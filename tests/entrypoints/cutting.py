"""A proxy between a client and a server that cuts connections, or lets only so much through."""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from attrs import define, field


@define(eq=False)
class Cutter:
    """Passes on what comes to `address`, to `port` of this machine."""

    port: int
    after: int | None = None
    """A connection is cut when so many bytes of requests have passed through it."""
    rate: int | None = None
    """Bytes of requests that pass in a second."""
    cuts: int = 0
    passed: int = 0
    """Bytes of requests."""
    _listener: socket.socket = field(init=False)
    _ended: bool = False

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _listen(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.port), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for one, other, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(one, other, counted), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, counted: bool) -> None:
        size = 0
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
                if not counted:
                    continue
                size += len(data)
                self.passed += len(data)
                if self.rate is not None:
                    time.sleep(len(data) / self.rate)
                if self.after is not None and size >= self.after:
                    self.cuts += 1
                    break
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

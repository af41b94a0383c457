"""The stores of clouds behind one face: a place for one vault in each, and what breaks there."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

KINDS: Final = ("s3", "azure", "gs")
PREFIX: Final = "vault/"


class Box(Protocol):
    """A bucket or container, looked at past the port."""

    @property
    def name(self) -> str: ...

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, data: bytes, /) -> None: ...

    def names(self) -> list[str]: ...


@frozen
class Wrong:
    """Credentials that nobody accepts, by their names in the environment."""

    environment: dict[str, str]
    secrets: tuple[str, ...]
    """What no output may show."""
    remedy: str
    """What an error has to name."""


@frozen
class Cloud:
    """A store with nothing in it, for one vault; its credentials are in the environment."""

    kind: str
    box: Box = field(repr=False)
    port: int
    _url: Callable[[str], str] = field(repr=False)
    """Addresses of stores under a prefix."""

    def at(self, prefix: str) -> str:
        """The address of another store in the same box."""
        return self._url(prefix)

    @property
    def url(self) -> str:
        return self.at(PREFIX.rstrip("/"))

    def through(self, port: int) -> str:
        """The same store, for who goes through a proxy."""
        return self.url.replace(str(self.port), str(port))

    def keys(self, start: str = "") -> list[str]:
        """What the store holds, of the keys that start so."""
        names = [name.removeprefix(PREFIX) for name in self.box.names()]
        return sorted(name for name in names if name.startswith(start))

    def read(self, key: str) -> bytes | None:
        return self.box.read(PREFIX + key)

    def write(self, key: str, data: bytes) -> None:
        """Put an object, or replace it."""
        self.box.write(PREFIX + key, data)

    def wrong(self, folder: Path) -> Wrong:
        """Bad credentials; a file that they take is made in `folder`."""
        if self.kind == "s3":
            secret = "a-secret-that-is-not-the-right-one"
            return Wrong({"AWS_SECRET_ACCESS_KEY": secret}, (secret,), "AWS_SECRET_ACCESS_KEY")
        if self.kind == "azure":
            secret = "YSBrZXkgdGhhdCBpcyBub3QgdGhlIHJpZ2h0IG9uZQ=="
            return Wrong({"AZURE_STORAGE_KEY": secret}, (secret,), "AZURE_STORAGE_KEY")
        account = folder / "account.json"
        key = generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        # The emulator takes any token, so it is the issuer that has to refuse: here, with 404.
        issuer = f"http://127.0.0.1:{self.port}/no-such-issuer"
        fields = {"type": "service_account", "client_email": "me@there", "token_uri": issuer}
        account.write_text(
            json.dumps({**fields, "private_key": key.decode(), "private_key_id": "1"})
        )
        name = "GOOGLE_APPLICATION_CREDENTIALS"
        return Wrong({name: str(account)}, tuple(key.decode().splitlines()[1:-1]), name)


@define(eq=False)
class Outage:
    """A proxy to `port` of this machine, behind which a server can go away and come back.

    While it is away, connections are broken and new ones refused.
    """

    port: int
    _listener: socket.socket = field(init=False)
    _own: int = 0
    _open: set[socket.socket] = field(factory=set[socket.socket])
    _lock: threading.Lock = field(factory=threading.Lock)
    _left: dict[str, int] = field(factory=dict[str, int])
    """Bytes that pass, by direction, before it goes away."""
    _away: threading.Event = field(factory=threading.Event)

    def __enter__(self) -> Self:
        self.back()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go_away()

    @property
    def listens(self) -> int:
        """The port to go to."""
        return self._own

    @property
    def is_away(self) -> bool:
        return self._away.is_set()

    def went_away(self) -> bool:
        """Whether it is away, or is so soon: connections end a moment before."""
        return self._away.wait(10)

    def go_away(self) -> None:
        """Break all connections, and take no new ones."""
        with self._lock:
            self._left.clear()
            for each in (self._listener, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._open.clear()
            self._away.set()

    def go_away_after(self, *, sent: int | None = None, answered: int | None = None) -> None:
        """The same, when so many more bytes have been sent to the server, or answered by it."""
        with self._lock:
            limits = {"sent": sent, "answered": answered}
            self._left = {way: size for way, size in limits.items() if size is not None}

    def back(self) -> None:
        """Be there, on the same port as before."""
        with self._lock:
            self._listener = socket.create_server(("127.0.0.1", self._own))
            self._own = self._listener.getsockname()[1]
            self._away.clear()
        threading.Thread(target=self._listen, args=(self._listener,), daemon=True).start()

    def _listen(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.port))
        with self._lock:
            if self._away.is_set():
                client.close()
                server.close()
                return
            self._open |= {client, server}
        for one, other, way in ((client, server, "sent"), (server, client, "answered")):
            threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if self._spent(way, len(data)):
                    self.go_away()
                    break
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        with self._lock:
            self._open -= {one, other}

    def _spent(self, way: str, size: int) -> bool:
        with self._lock:
            if way not in self._left:
                return False
            self._left[way] -= size
            return self._left[way] < 0

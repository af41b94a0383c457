"""Running the API: uvicorn around it, logs, the first token, and a clean end."""

import asyncio  # uvicorn's protocols and transports are asyncio's
import errno
import logging
import socket
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import uvicorn
from attrs import field, frozen
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vaultfs.domain.chains import MAX_CHAIN_DEPTH
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import Exists, InvalidField
from vaultfs.domain.rates import Rate
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.upkeep import Plan
from vaultfs.domain.tokens import ALL_SCOPES, Identity
from vaultfs.entrypoints.http.app import DEFAULT_RATE, Api, JsonLines, Server
from vaultfs.entrypoints.http.aside import work_aside
from vaultfs.entrypoints.http.joining import Joining
from vaultfs.entrypoints.vault import Vault

log = logging.getLogger("vaultfs.server")

GRACE: Final = 30
"""Seconds that requests under way have, once the server is told to stop."""
KEEP_ALIVE: Final = 75
MAX_HEAD: Final = 256 << 10
"""Bytes of a request's line and headers, or of its trailers, that are not yet whole."""
MOST_PIPELINED: Final = 32
"""Requests of one connection that wait for those before them."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
FIRST_TOKEN: Final = "first start"  # noqa: S105 its name


@frozen
class Listening:
    """Where and how a server listens."""

    host: str = "127.0.0.1"
    port: int = 8333
    """0 takes any that is free."""
    certificate: Path | None = None
    key: Path | None = None
    rate: Rate = DEFAULT_RATE
    max_chain_depth: int = MAX_CHAIN_DEPTH
    """See `domain.chains`."""
    plan: Plan = field(factory=Plan)
    """What is done beside requests."""
    log: bool = True

    def __attrs_post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidField("TLS takes a certificate and its key: --tls-cert and --tls-key")
        if not 0 <= self.port < 1 << 16:
            raise InvalidField(f"{self.port} is no port")


async def first_token(vault: Vault) -> str | None:
    """A token for everything, if the vault's owner has none yet; None if there are some.

    Of several servers that start at once, one makes it: its id is the same for all.
    """
    accounts, name = Accounts(vault.catalog, vault.clock), vault.user.name
    owner = Identity(vault.user, ALL_SCOPES)
    number: str | None = digest_of((await vault.catalog.vault_id()).encode()).hex()[:16]
    while not await accounts.tokens(owner, name):
        with suppress(Exists):
            made = await accounts.add_token(owner, name, FIRST_TOKEN, ALL_SCOPES, number=number)
            return made.secret
        number = None  # that one was revoked, unless somebody has just made it
    return None


@asynccontextmanager
async def serving(vault: Vault, where: Listening) -> AsyncGenerator[str, None]:
    """Serve `vault` until the context is left; the server's address.

    At the end no new requests are taken; those under way have `GRACE` seconds, then they
    are cut, which stores nothing of them. Raises `InvalidField` where nobody can listen, and
    for a certificate or key that is none.
    """
    shared = Server(vault, where.rate)
    server, metrics = _Server(_config(shared, where)), shared.metrics
    listener = _bind(where)
    port = listener.getsockname()[1]
    scheme = "http" if where.certificate is None else "https"
    host = f"[{where.host}]" if ":" in where.host else where.host
    with listener:
        async with task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            address = f"{scheme}://{host}:{port}"
            aside = anyio.CancelScope()
            tasks.start_soon(work_aside, vault, where.plan, address, aside, metrics)
            try:
                while not server.started:  # noqa: ASYNC110 uvicorn has no event for it
                    await anyio.sleep(0.005)
                yield address
            finally:
                log.info("stopping: what is under way may finish")
                # The task group waits until uvicorn has finished what is under way.
                server.should_exit = True
                aside.cancel()


class BoundedHead(HttpToolsProtocol):
    """Reads a request's line and headers up to `MAX_HEAD` bytes: the parser knows no end."""

    _head = 0
    """Bytes since a request began or the last of its body came: of a head, or of trailers."""

    # uvicorn narrows the type of the transport, and so does this.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self.transport = Joining(transport, self.loop)

    def on_message_begin(self) -> None:
        """Another request, perhaps before those in front of it are answered."""
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many requests before the first is answered")
        self._head = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What follows is another request."""
        self._head = 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            cycle = getattr(self, "cycle", None)  # None, whatever its type, until a head was whole
            if cycle is None or cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without handlers of its own for signals: the command has them."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop; a second cancellation cuts what is under way."""
        try:
            with anyio.CancelScope(shield=True):
                await self._serve(sockets)
        finally:
            self.force_exit = True


def _bind(where: Listening) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((where.host, where.port))
    except OSError as error:
        listener.close()
        taken = error.errno in {errno.EADDRINUSE, errno.EACCES}
        raise InvalidField(
            f"cannot listen on {where.host}:{where.port}: {error.strerror or error}:"
            f" name another {'--port' if taken else '--host'}"
        ) from error
    return listener


def _config(shared: Server, where: Listening) -> uvicorn.Config:
    configure_log(where)
    if where.max_chain_depth != MAX_CHAIN_DEPTH:
        shared.vault.deltas.max_depth = where.max_chain_depth
    config = uvicorn.Config(
        Api(shared),
        loop="asyncio",
        http=BoundedHead,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=where.certificate,
        ssl_keyfile=where.key,
    )
    check_tls(where)
    config.load()
    return config


def check_tls(where: Listening) -> None:
    """Raise `InvalidField` for a certificate or a key that is none."""
    if where.certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(where.certificate, where.key)
    except OSError as error:  # what OpenSSL says is one, too
        raise InvalidField(
            f"no TLS with {where.certificate} and {where.key}: {error.strerror or error}"
        ) from error


LOGGERS: Final = {"vaultfs": logging.INFO, "asyncio": logging.WARNING, "uvicorn": logging.CRITICAL}
"""Whose records there are, and from which level on: what uvicorn says our own log does, too."""


def configure_log(where: Listening) -> None:
    """Requests, and all else, as lines of JSON on standard error, unless nobody wants them."""
    handler: logging.Handler = logging.NullHandler()
    if where.log:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
    for name, level in LOGGERS.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = False
        logger.addHandler(handler)
        logger.setLevel(level if where.log else logging.CRITICAL)

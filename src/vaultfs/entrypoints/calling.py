"""Requests to a server: repeated where that does no harm, their refusals raised as errors.

What can be repeated is repeated when the connection fails: reads, and anything of which
the server has seen nothing. Redirects are not followed: a token goes to nobody but the
server that it is for.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import quote

import aiohttp
import anyio
import msgspec
from attrs import frozen
from multidict import CIMultiDict
from yarl import URL

from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import parse_address
from vaultfs.entrypoints.answers import LONGEST_WAIT, ServerError, refuse
from vaultfs.entrypoints.http.wire import LOCK_HEADER

TRIES: Final = 5
FIRST_WAIT: Final = 0.2
"""Seconds before the second try; each wait is twice the one before."""
PIECE: Final = 1 << 20
AGAIN: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
"""What may be another way the next time."""
_TLS: Final = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)


@frozen
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@frozen
class Slices(AsyncIterable[bytes]):
    """Bytes as a body that can be sent again."""

    data: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), PIECE):
            yield self.data[start : start + PIECE]


@frozen
class Calls:
    """A server, and the connections to it."""

    address: str
    http: aiohttp.ClientSession
    locks: tuple[str, ...] = ()
    """`<lease>.<token>` of the locks that requests come with."""

    def headers(self, given: Mapping[str, str] | None = None) -> CIMultiDict[str]:
        """`given`, and those that all requests have."""
        found = CIMultiDict(given or {})
        for lock in self.locks:
            found.add(LOCK_HEADER, lock)
        return found

    def url(self, rest: str) -> URL:
        """The address of a resource whose names are encoded already."""
        return URL(f"{self.address}/v1/{rest}", encoded=True)

    def url_of(self, kind: str, path: str, own: str, query: Mapping[str, str]) -> URL:
        """The address of what is at a path: `kind` is the route's first name."""
        where = parse_address(path, own=own)
        names = "/".join(quote(name, safe="") for name in where.path)
        return self.url(f"{kind}/{quote(where.tree, safe='')}/{names}").with_query(dict(query))

    async def ask(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        again: bool = True,
        taken: frozenset[int] = frozenset(),
    ) -> Answer:
        """The answer to a request; `again`: it may be repeated though it may have been done.

        `taken` are statuses of refusals that the caller looks at itself. Raises what the
        server refuses it with, and `ServerError`.
        """
        repeatable = data is None or isinstance(data, bytes | Slices)
        for number in range(1, TRIES + 1):
            last = not repeatable or number == TRIES
            try:
                found = await self._once(method, url, headers, data)
            except aiohttp.ClientConnectorError as error:  # nothing was sent
                if last or isinstance(error, _TLS):
                    self.fail(error)
            except AGAIN as error:
                if last or not again:
                    self.fail(error)
            else:
                busy = found.status == 429 or (found.status == 503 and again)
                if not busy or last:
                    return found if found.status in taken else self._checked(found)
                await anyio.sleep(wait(number, found.headers.get("Retry-After")))
                continue
            await anyio.sleep(wait(number))
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, method: str, url: URL, headers: Mapping[str, str] | None, data: Any
    ) -> Answer:
        async with self.http.request(
            method, url, headers=self.headers(headers), data=data, allow_redirects=False
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    def _checked(self, found: Answer) -> Answer:
        if found.status >= 400:
            refuse(self.address, found.status, found.data, found.headers)
        if 300 <= found.status < 400 and found.status != 304:
            where = found.headers.get("Location", "somewhere else")
            raise ServerError(f"{self.address} sends on to {where}: name that address instead")
        return found

    async def refuse(self, answer: aiohttp.ClientResponse) -> NoReturn:
        """Raise what a refusal stands for."""
        refuse(self.address, answer.status, await answer.read(), answer.headers)

    def fail(self, error: Exception) -> NoReturn:
        """Raise `ServerError` for a request that got no answer, or why its body broke off."""
        if isinstance(error.__cause__, VaultError):
            raise error.__cause__
        raise ServerError(self._explained(error)) from error

    def _explained(self, error: Exception) -> str:
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return (
                    f"the certificate of {self.address} is not trusted"
                    f" ({error.certificate_error}):"
                    " SSL_CERT_FILE=FILE names the one that it is signed with"
                )
            case aiohttp.ClientConnectorSSLError():
                return f"{self.address} does not speak TLS: is it http://?"
            case aiohttp.ClientConnectorError():
                reason = error.os_error.strerror or error.os_error
                return (
                    f"{self.address} cannot be reached ({reason}):"
                    " is `vaultfs serve` running there, and is this its address?"
                )
            case aiohttp.ServerDisconnectedError():
                return f"{self.address} broke off without an answer: is it https://?"
            case _:
                return f"{self.address} broke off: {str(error) or type(error).__name__}"

    def decode(self, answer: Answer, kind: type[Any]) -> Any:
        """The JSON of an answer. Raises `ServerError` if it is not what vaultfs answers."""
        try:
            return msgspec.json.decode(answer.data, type=kind)
        except msgspec.DecodeError as error:
            raise ServerError(
                f"{self.address} is no vaultfs server, or one of another release"
            ) from error


def wait(number: int, told: str | None = None) -> float:
    """Seconds to wait before try `number` + 1."""
    if told is not None and told.isdecimal():
        return min(float(told), LONGEST_WAIT)
    return min(FIRST_WAIT * 2.0 ** (number - 1), LONGEST_WAIT)

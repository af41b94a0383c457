"""The Python SDK against a server: `vaultfs.connect` gives a vault with the methods of `sdk.Vault`.

    async with vaultfs.connect("https://vault.example", token=...) as vault:
        await vault.put("/a.txt", b"hello")

What can be repeated without harm is repeated when the connection fails: reads, and
anything of which the server has seen nothing. A download that breaks off goes on
where it ended, as long as the content is still the same one, and what is read whole
is compared with the digest that the server vouches for.
"""

import os
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from os import PathLike
from pathlib import Path as LocalPath
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import anyio
import msgspec
from attrs import define, frozen
from blake3 import blake3
from yarl import URL

from vaultfs.adapters.files import LocalSource, LocalTarget, open_source
from vaultfs.domain import errors
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Corrupt, InvalidField, NotAuthenticated, VaultError
from vaultfs.domain.metadata import Json, format_metadata, parse_metadata
from vaultfs.domain.names import Path, format_path, parse_address
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Preconditions,
    Version,
)
from vaultfs.domain.operations import MAX_METADATA
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.transfer import FILE_ERRORS, Report
from vaultfs.entrypoints.answers import (
    LONGEST_WAIT,
    ServerError,
    conditions,
    origin_headers,
    origin_of,
    refuse,
    to_node,
    to_trashed,
    to_version,
)
from vaultfs.entrypoints.http import wire
from vaultfs.ports.catalog import Trashed
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Item, Skipped, Source

TRIES: Final = 5
FIRST_WAIT: Final = 0.2
"""Seconds before the second try; each wait is twice the one before."""
PIECE: Final = 1 << 20
FILES_AT_ONCE: Final = 16
"""Files of a tree that are on their way at the same time."""
SMALL: Final = 1 << 20
"""Files of so many bytes are read whole before they are sent, and can be sent again."""
T = TypeVar("T")
Content = bytes | bytearray | memoryview | AsyncIterable[bytes] | PathLike[str]
_AGAIN: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


@frozen
class _Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes


@define(eq=False)
class RemoteVault:
    """A vault on a server, as the owner of a token sees it. Made by `connect`."""

    address: str
    user: str
    _http: aiohttp.ClientSession

    # Contents

    async def put(
        self,
        path: str,
        content: Content,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = True,
        progress: Progress = no_progress,
    ) -> Node:
        """Store `content` as the newest version of the file at `path`; durable on return.

        Raises `Conflict` for unmet preconditions or a folder in the way, `QuotaExceeded`,
        `ServerError` if it broke off: then it may have been stored all the same.
        """
        headers = conditions(preconditions)
        if isinstance(content, PathLike):
            async with open_source(content) as (source, item):
                headers |= origin_headers(item.origin)
                body = _Body(source, progress)
                return (await self._put(path, body, item.size, headers, parents=parents))[0]
        if isinstance(content, str):
            raise TypeError("content is text: encode it, or name a local file by a pathlib.Path")
        if isinstance(content, AsyncIterable):
            return (await self._put(path, content, None, headers, parents=parents))[0]
        data = bytes(content)
        headers["Content-Digest"] = f"blake3=:{b64encode(blake3(data).digest()).decode()}:"
        sent = data if len(data) <= SMALL else _Slices(data)
        node, _ = await self._put(path, sent, len(data), headers, parents=parents)
        progress(len(data))
        return node

    async def _put(
        self, path: str, body: Any, size: int | None, headers: dict[str, str], *, parents: bool
    ) -> tuple[Node, bool]:
        """The node, and whether it has a new version."""
        if size is not None:
            headers["Content-Length"] = str(size)
        query = {"parents": "true"} if parents else {}
        url = self._url("files", path, query)
        # The same bytes twice make one version, but somebody else's may stand between them.
        answer = await self._ask("PUT", url, headers=headers, data=body, again=False)
        return self._node(answer), answer.headers.get("Vaultfs-Changed") != "0"

    async def get(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> bytes:
        """The bytes of a file, or those from `start` to `stop`: all in memory at once."""
        async with self.stream(path, version=version, start=start, stop=stop) as pieces:
            return b"".join([piece async for piece in pieces])

    @asynccontextmanager
    async def stream(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[Buffer], None]:
        """The bytes of a file piece by piece; goes on by itself where a connection breaks off.

        Raises `NotFound`, `IsAFolder`, `DamagedContent` and, once all is read and is not what
        the server vouches for, `Corrupt`.
        """
        if start < 0 or (stop is not None and stop < start):
            raise InvalidField(f"bytes {start} to {stop} are no range")
        query = {} if version is None else {"version": str(version)}
        pieces = self._pieces(self._url("files", path, query), start, stop)
        try:
            yield pieces
        finally:
            await pieces.aclose()

    async def _pieces(self, url: URL, start: int, stop: int | None) -> AsyncGenerator[Buffer, None]:
        head = await self._ask("HEAD", url)
        size = int(head.headers["Content-Length"])
        end = size if stop is None else min(stop, size)
        whole = blake3() if start == 0 and end == size else None
        etag, at, tries = head.headers["ETag"], start, 0
        while at < end:
            headers = {"Range": f"bytes={at}-{end - 1}", "If-Match": etag}
            try:
                async with self._http.get(url, headers=headers) as answer:
                    if answer.status not in {200, 206}:
                        refuse(answer.status, await answer.read(), answer.headers)
                    async for piece in answer.content.iter_chunked(PIECE):
                        if whole is not None:
                            whole.update(piece)
                        at, tries = at + len(piece), 0
                        yield piece
            except _AGAIN as error:
                tries += 1
                if tries >= TRIES:
                    raise ServerError(f"{url.host} broke off at byte {at}: {error}") from error
                await anyio.sleep(_wait(tries))
        vouched = head.headers.get("Repr-Digest")
        if whole is not None and vouched is not None:
            found = f"blake3=:{b64encode(whole.digest()).decode()}:"
            if found != vouched:
                raise Corrupt("what came is not what the server vouches for: read it again")

    # Trees

    async def put_tree(
        self, local: str | PathLike[str], path: str, *, progress: Progress = no_progress
    ) -> Report:
        """Store a local folder and all below it as the folder `path`."""
        source, report = LocalSource(LocalPath(local)), Report()
        await self.mkdir(path, parents=True, exist_ok=True)
        room = anyio.Semaphore(FILES_AT_ONCE)
        top = path.rstrip("/")

        async def send(item: Item) -> None:
            try:
                changed = await self._send(source, item, f"{top}{format_path(item.path)}", progress)
            except FILE_ERRORS as error:
                report.failed.append(Skipped(format_path(item.path), error.message))
            else:
                report.files += 1
                report.size += item.size
                report.changed += changed
            finally:
                room.release()

        async with task_group() as tasks:
            async for batch in source.walk():
                for item in batch:
                    if isinstance(item, Skipped):
                        report.skipped.append(item)
                    elif item.kind == "folder":
                        await self.mkdir(f"{top}{format_path(item.path)}", exist_ok=True)
                        report.folders += 1
                    else:
                        await room.acquire()
                        tasks.start_soon(send, item)
        return report

    async def _send(self, source: LocalSource, item: Item, path: str, progress: Progress) -> bool:
        """Put one file of a tree; whether it got a new version."""
        headers = origin_headers(item.origin)
        if item.size <= SMALL:
            [data] = await source.load([item])
            if isinstance(data, VaultError):
                raise data
            _, changed = await self._put(path, data, item.size, headers, parents=True)
            progress(item.size)
            return changed
        async with source.open(item) as opened:
            body = _Body(opened, progress)
            return (await self._put(path, body, item.size, headers, parents=True))[1]

    async def get_tree(
        self, path: str, local: str | PathLike[str], *, progress: Progress = no_progress
    ) -> Report:
        """Write the folder `path` and all below it into a local folder."""
        target, report = LocalTarget(LocalPath(local)), Report()
        room = anyio.Semaphore(FILES_AT_ONCE)
        top = path.rstrip("/")

        async def fetch(where: Path) -> None:
            try:
                size = await self._fetch(top + format_path(where), where, target, progress)
            except FILE_ERRORS as error:
                report.failed.append(Skipped(format_path(where), error.message))
            else:
                report.files += 1
                report.size += size
            finally:
                room.release()

        folders: list[Path] = [()]
        async with task_group() as tasks:
            while folders:
                folder = folders.pop()
                [refused] = await target.make_folders([folder])
                if refused is not None:
                    report.failed.append(Skipped(format_path(folder), refused.message))
                    continue
                async for node in self.list(f"{top}{format_path(folder)}"):
                    where = (*folder, node.name)
                    if node.is_folder:
                        folders.append(where)
                        report.folders += 1
                    else:
                        await room.acquire()
                        tasks.start_soon(fetch, where)
        return report

    async def _fetch(self, path: str, where: Path, target: LocalTarget, progress: Progress) -> int:
        head = await self._ask("HEAD", self._url("files", path, {}))
        size = 0
        async with (
            target.create(where, origin_of(head.headers)) as sink,
            self.stream(path) as pieces,
        ):
            async for piece in pieces:
                await sink.write([piece])
                size += len(piece)
                progress(len(piece))
        return size

    # Nodes

    async def stat(self, path: str) -> Node:
        """The node at `path`. Raises `NotFound`."""
        return self._node(await self._ask("GET", self._url("nodes", path, {})))

    async def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""
        with suppress(errors.NotFound):
            await self.stat(path)
            return True
        return False

    async def list(self, path: str = "/") -> AsyncGenerator[Node, None]:
        """The nodes of a folder, by name."""
        async for found in self._lists("folders", path, wire.NodeList):
            for entry in found.entries:
                yield to_node(entry)

    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        """Make a folder."""
        query = {"parents": str(parents).lower(), "exist_ok": str(exist_ok).lower()}
        url = self._url("folders", path, query)
        return self._node(await self._ask("PUT", url, again=exist_ok))

    async def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Give a node another path."""
        body = wire.Transfer(source, target, replace)
        return self._node(await self._post("move", body, conditions(preconditions)))

    async def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        """Copy a node and all below it; no bytes are copied."""
        return self._node(await self._post("copy", wire.Transfer(source, target, replace, version)))

    async def delete(
        self,
        path: str,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Send a node to the trash."""
        url = self._url("nodes", path, {"recursive": str(recursive).lower()})
        headers = conditions(preconditions)
        return self._node(await self._ask("DELETE", url, headers=headers, again=False))

    async def trash(self) -> AsyncGenerator[Trashed, None]:
        """What is in the trash, oldest node first."""
        async for found in self._lists("trash", "/", wire.TrashList):
            for entry in found.entries:
                yield to_trashed(entry)

    async def restore(self, node: NodeId, target: str | None = None) -> Node:
        """Bring a node back from the trash, to where it was or to `target`."""
        return self._node(await self._post(f"trash/{self._me}/{node}", wire.RestoreIn(target)))

    async def purge(self, node: NodeId) -> None:
        """Forget a node in the trash, for ever."""
        url = self._plain(f"trash/{self._me}/{node}")
        await self._ask("DELETE", url, again=False)

    # Versions and metadata

    async def versions(self, path: str) -> AsyncGenerator[Version, None]:
        """The versions of a file, newest first; without their manifests."""
        async for found in self._lists("versions", path, wire.VersionList):
            for entry in found.entries:
                yield to_version(entry)

    async def restore_version(self, path: str, number: int) -> Node:
        """Make an old content the newest version."""
        url = self._url("versions", path, {})
        data = msgspec.json.encode(wire.VersionIn(number))
        return self._node(await self._ask("POST", url, data=data, again=False))

    async def metadata(self, path: str) -> dict[str, Json]:
        """The metadata of a node."""
        return parse_metadata((await self.stat(path)).metadata)

    async def set_metadata(self, path: str, patch: dict[str, Json]) -> dict[str, Json]:
        """Change metadata by a JSON merge patch: a value of None removes its key."""
        text = format_metadata(patch, most=MAX_METADATA)
        url = self._url("nodes", path, {})
        answer = await self._ask("PATCH", url, data=text.encode(), again=False)
        return parse_metadata(self._node(answer).metadata)

    async def who_am_i(self) -> wire.WhoAmI:
        """Who the token belongs to, and what it allows."""
        answer = await self._ask("GET", self._plain("whoami"))
        return msgspec.json.decode(answer.data, type=wire.WhoAmI)

    # Requests

    @property
    def _me(self) -> str:
        return quote(self.user, safe="")

    def _plain(self, rest: str) -> URL:
        return URL(f"{self.address}/v1/{rest}", encoded=True)

    def _url(self, kind: str, path: str, query: Mapping[str, str]) -> URL:
        where = parse_address(path, own=self.user)
        names = "/".join(quote(name, safe="") for name in where.path)
        tree = quote(where.tree, safe="")
        tail = "" if kind == "trash" else f"/{names}"
        return self._plain(f"{kind}/{tree}{tail}").with_query(dict(query))

    def _node(self, answer: _Answer) -> Node:
        return to_node(msgspec.json.decode(answer.data, type=wire.NodeOut))

    async def _post(
        self, rest: str, value: msgspec.Struct, headers: dict[str, str] | None = None
    ) -> _Answer:
        data = msgspec.json.encode(value)
        return await self._ask("POST", self._plain(rest), headers=headers, data=data, again=False)

    async def _lists(self, kind: str, path: str, what: type[T]) -> AsyncGenerator[T, None]:
        cursor: str | None = None
        while True:
            query = {"limit": "1000", **({} if cursor is None else {"cursor": cursor})}
            answer = await self._ask("GET", self._url(kind, path, query))
            found: Any = msgspec.json.decode(answer.data, type=what)
            yield found
            cursor = found.next_cursor
            if cursor is None:
                return

    async def _ask(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        again: bool = True,
    ) -> _Answer:
        """The answer to a request; `again`: it may be repeated though it may have been done."""
        repeatable = data is None or isinstance(data, bytes | _Slices)
        for number in range(1, TRIES + 1):
            try:
                async with self._http.request(method, url, headers=headers, data=data) as answer:
                    found = _Answer(answer.status, answer.headers, await answer.read())
            except aiohttp.ClientConnectorError as error:  # nothing was sent
                if not repeatable or number == TRIES:
                    raise ServerError(f"{self.address} cannot be reached: {error}") from error
            except _AGAIN as error:
                if not (again and repeatable) or number == TRIES:
                    raise ServerError(f"{self.address} broke off: {error!r}") from error
            else:
                if found.status < 400:
                    return found
                busy = found.status == 429 or (found.status == 503 and again)
                if not (busy and repeatable) or number == TRIES:
                    refuse(found.status, found.data, found.headers)
                await anyio.sleep(_wait(number, found.headers.get("Retry-After")))
                continue
            await anyio.sleep(_wait(number))
        raise AssertionError("the last try returns or raises")


def _wait(number: int, told: str | None = None) -> float:
    """Seconds to wait before try `number` + 1."""
    if told is not None and told.isdecimal():
        return min(float(told), LONGEST_WAIT)
    return min(FIRST_WAIT * 2.0 ** (number - 1), LONGEST_WAIT)


@frozen
class _Slices(AsyncIterable[bytes]):
    """Bytes as a body that can be sent again."""

    data: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), PIECE):
            yield self.data[start : start + PIECE]


class _Body(AsyncIterable[bytes]):
    """A source as the body of a request."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self._source, self._progress = source, progress

    async def __aiter__(self) -> AsyncIterator[bytes]:
        ended = False
        while not ended:
            buffer = bytearray(PIECE)
            filled = await self._source.readinto(memoryview(buffer))
            ended = filled < PIECE
            self._progress(filled)
            if filled:
                yield bytes(memoryview(buffer)[:filled])


@asynccontextmanager
async def connect(address: str, *, token: str | None = None) -> AsyncGenerator[RemoteVault, None]:
    """The vault at `address`, such as `https://vault.example`, for whoever has `token`.

    Without one, `VAULTFS_TOKEN` is taken. Raises `NotAuthenticated` and `ServerError`.
    """
    secret = token or os.environ.get("VAULTFS_TOKEN", "")
    if not secret:
        raise NotAuthenticated("a token is needed: give one, or set VAULTFS_TOKEN")
    if not address.startswith(("http://", "https://")):
        raise InvalidField(f"{address} is no address of a server: they begin with https://")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    connector = aiohttp.TCPConnector(limit=2 * FILES_AT_ONCE)
    headers = {"Authorization": f"Bearer {secret}"}
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, auto_decompress=False
    ) as http:
        vault = RemoteVault(address.rstrip("/"), "", http)
        vault.user = (await vault.who_am_i()).user.name
        yield vault

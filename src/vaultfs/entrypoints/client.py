"""The Python SDK against a server: `vaultfs.connect` gives a vault with the methods of `sdk.Vault`.

    async with vaultfs.connect("https://vault.example", token=...) as vault:
        await vault.put("/a.txt", b"hello")

A download that breaks off goes on where it ended, as long as the content is still the
same one, and what is read whole is compared with the digest that the server vouches for.
"""

from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from os import PathLike
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import anyio
import msgspec
from anyio.lowlevel import current_token
from attrs import define, evolve
from blake3 import blake3
from yarl import URL

from vaultfs.adapters.files import (
    FileSource,
    IterableSource,
    LocalSource,
    LocalTarget,
    open_source,
    read_small,
)
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import (
    Corrupt,
    InvalidField,
    NotAuthenticated,
    TooLarge,
    Unsupported,
    VaultError,
)
from vaultfs.domain.lockmodes import WRITE, Mode
from vaultfs.domain.names import parse_address
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Preconditions,
    Version,
    VersionId,
)
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.tasks import task_group
from vaultfs.entrypoints.answers import (
    ServerError,
    conditions,
    origin_headers,
    to_node,
    to_retention,
    to_trashed,
    to_usage,
    to_version,
    version_of,
)
from vaultfs.entrypoints.calling import AGAIN, PIECE, TRIES, Answer, Calls, Slices, wait
from vaultfs.entrypoints.credentials import check_address, find_token
from vaultfs.entrypoints.fileobjects import Loop
from vaultfs.entrypoints.http import wire
from vaultfs.entrypoints.surface import Content, Stored, Surface
from vaultfs.ports.catalog import Trashed, Usage
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Item, Report, Source

if TYPE_CHECKING:
    from vaultfs.domain.access import Role
    from vaultfs.entrypoints.batching import BatchMode, Op
    from vaultfs.entrypoints.changes import Changes
    from vaultfs.entrypoints.comparing import Compared
    from vaultfs.entrypoints.http.wire import BatchOut
    from vaultfs.entrypoints.pulling import Expected, Pulled, Pushed

SMALL: Final = 1 << 20
"""Contents of so many bytes are sent in one piece."""
RESUMED: Final = 16 << 20
"""Local files of more bytes are sent chunk by chunk, so that what breaks off can be resumed."""
CONNECTIONS: Final = 32
T = TypeVar("T")


@define(eq=False)
class RemoteVault(Surface):
    """A vault on a server, as the owner of a token sees it. Made by `connect`."""

    calls: Calls
    user: str
    """The name of the token's user, whose tree `/` is."""
    _loop: Loop

    @property
    def loop(self) -> Loop:
        return self._loop

    @property
    def folder(self) -> None:
        return None

    @property
    def place(self) -> str:
        return self.calls.address

    # Contents

    async def store(
        self,
        path: str,
        content: Content,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = True,
        progress: Progress = no_progress,
    ) -> Stored:
        headers = conditions(preconditions)
        if isinstance(content, str):
            raise TypeError("content is text: encode it, or name a local file by a pathlib.Path")
        if isinstance(content, PathLike):
            small = await read_small(content, SMALL)
            if small is not None:  # a body in pieces takes longer than all of it
                data, origin = small
                return await self._send_whole(
                    path, data, headers | origin_headers(origin), parents, progress
                )
            async with open_source(content) as (source, item):
                if item.size > RESUMED:
                    return await self.upload(
                        path, source, item, headers, parents=parents, progress=progress
                    )
                headers |= origin_headers(item.origin)
                body = Body(source, no_progress)
                stored = await self.send(path, body, item.size, headers, parents=parents)
                progress(item.size)
                return stored
        if isinstance(content, Buffer):
            return await self._send_whole(path, bytes(content), headers, parents, progress)
        if isinstance(content, AsyncIterable):
            content = IterableSource(_each(content))
        return await self.send(path, Body(content, progress), None, headers, parents=parents)

    async def _send_whole(
        self,
        path: str,
        data: bytes,
        headers: dict[str, str],
        parents: bool,  # noqa: FBT001 as in `store`
        progress: Progress,
    ) -> Stored:
        """Put bytes that are all there, with their digest."""
        headers["Content-Digest"] = f"blake3=:{b64encode(blake3(data).digest()).decode()}:"
        sent = data if len(data) <= SMALL else Slices(data)
        stored = await self.send(path, sent, len(data), headers, parents=parents)
        progress(len(data))
        return stored

    async def have(self, digests: list[Digest], *, upload: str | None = None) -> set[Digest]:
        """Those of at most 8,192 chunks that need not be sent, for a day or for `upload`."""
        url = self.calls.url("have").with_query({} if upload is None else {"upload": upload})
        headers = {"Content-Type": "application/octet-stream"}
        answer = await self.calls.ask("POST", url, headers=headers, data=b"".join(digests))
        bits = int.from_bytes(answer.data, "little")
        return {each for index, each in enumerate(digests) if bits >> index & 1}

    async def upload(
        self,
        path: str,
        source: FileSource,
        item: Item,
        headers: dict[str, str],
        *,
        parents: bool,
        progress: Progress,
    ) -> Stored:
        """Put a large local file: only chunks that the server lacks travel, and what breaks
        off goes on where it ended. `progress` is told bytes as they become durable there.
        """
        from vaultfs.entrypoints.uploading import Uploading

        if not self.is_own(path):  # sessions go to one's own tree
            headers |= origin_headers(item.origin)
            return await self.send(
                path, Body(source, progress), item.size, headers, parents=parents
            )
        return await Uploading(self, path, source, item, headers, parents, progress).run()

    def is_own(self, path: str) -> bool:
        """Whether a path is in the caller's tree."""
        return parse_address(path, own=self.user).tree == self.user

    async def send(
        self, path: str, body: Any, size: int | None, headers: dict[str, str], *, parents: bool
    ) -> Stored:
        """Put a body, of `size` bytes if that is known."""
        if size is not None:
            headers["Content-Length"] = str(size)
        query = {"parents": "true"} if parents else {}
        url = self.url("files", path, query)
        # The same bytes twice make one version, but somebody else's may stand between them.
        answer = await self.calls.ask("PUT", url, headers=headers, data=body, again=False)
        node = self.node_of(answer)
        changed = int(answer.headers.get("Vaultfs-Changed") != "0")
        return Stored(node, changed, node.size if size is None else size)

    @asynccontextmanager
    async def content(
        self, path: str, version: Version, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[list[Buffer]], None]:
        url = self.url("files", path, {"version": str(version.number)})
        async with aclosing(self._parts(url, version, start, stop)) as parts:
            yield parts

    async def _parts(
        self, url: URL, version: Version, start: int, stop: int | None
    ) -> AsyncGenerator[list[Buffer], None]:
        end = version.size if stop is None else min(stop, version.size)
        whole = blake3() if start == 0 and end == version.size else None
        at, tries = start, 0
        while at < end:
            headers = {"Range": f"bytes={at}-{end - 1}", "If-Match": f'"v{version.id}"'}
            try:
                async with self.calls.http.get(
                    url, headers=headers, allow_redirects=False
                ) as answer:
                    if answer.status not in {200, 206}:
                        await self.calls.refuse(answer)
                    if answer.status == 200 and (at > 0 or end < version.size):
                        raise ServerError(f"{self.place} gives all where a range is asked for")
                    async for piece in answer.content.iter_chunked(PIECE):
                        if whole is not None:
                            whole.update(piece)
                        at, tries = at + len(piece), 0
                        yield [piece]
            except AGAIN as error:
                tries += 1
                if tries >= TRIES:
                    broke = f"{self.place} broke off at byte {at}: {error}"
                    raise ServerError(broke) from error
                await anyio.sleep(wait(tries))
        if whole is not None and version.verified is not None:
            check_digest(whole.digest(), version)

    # Locks

    @asynccontextmanager
    async def lock(
        self, *paths: str, mode: Mode = WRITE, timeout: float | None = None
    ) -> AsyncGenerator["RemoteVault", None]:
        from vaultfs.entrypoints.remote_locks import leased

        async with leased(self.calls, self.user, paths or ("/",), mode, timeout) as lease:
            yield evolve(self, calls=evolve(self.calls, locks=(*self.calls.locks, lease)))

    async def pull(
        self,
        path: str,
        local: str | PathLike[str],
        *,
        base: VersionId | None = None,
        expected: "Expected" = "any",
        progress: Progress = no_progress,
    ) -> "Pulled":
        from vaultfs.entrypoints.pulling import Pull

        return await Pull(self, path, LocalPath(local), base, expected, progress).run()

    async def push(
        self,
        path: str,
        local: str | PathLike[str],
        *,
        base: VersionId | None = None,
        progress: Progress = no_progress,
    ) -> "Pushed":
        from vaultfs.entrypoints.pulling import Pushed
        from vaultfs.entrypoints.uploading import Uploading

        wanted = Preconditions(if_version=base, if_absent=base is None)
        asked = 0
        async with open_source(LocalPath(local)) as (source, item):
            if base is None and item.size <= SMALL:  # a session would take three requests
                headers = conditions(wanted) | origin_headers(item.origin)
                body = Body(source, no_progress)
                stored = await self.send(path, body, item.size, headers, parents=True)
                progress(item.size)
                return Pushed(stored.node, stored.changed, item.size)
            if base is not None:
                from vaultfs.entrypoints.pushing import Difference

                change = Difference(self, path, source, item, wanted, progress)
                done = None
                with suppress(Corrupt, InvalidField, TooLarge, Unsupported):  # the whole file, then
                    done = await change.run()
                asked = change.sent
                if done is not None:
                    return Pushed(done.node, done.changed, asked)
                await source.rewind(0)
            headers = conditions(wanted)
            if not self.is_own(path):
                stored = await self.upload(
                    path, source, item, headers, parents=True, progress=progress
                )
                return Pushed(stored.node, stored.changed, asked + item.size)
            sending = Uploading(self, path, source, item, headers, parents=True, progress=progress)
            stored = await sending.run()
        return Pushed(stored.node, stored.changed, asked + sending.sent)

    async def push_new(
        self, folder: LocalPath, items: Sequence[Item], path: str
    ) -> "list[Pushed | VaultError]":
        from vaultfs.entrypoints.remote_trees import push_new

        return await push_new(self, LocalSource(folder), items, path)

    async def changes(self, cursor: str | None = None, *, wait: float = 0) -> "Changes":
        from vaultfs.entrypoints.changes import changes_there

        return await changes_there(self, cursor, wait)

    async def compare(
        self, one: str, other: str, *, first: int | None = None, second: int | None = None
    ) -> "Compared":
        from vaultfs.entrypoints.comparing import compare_there

        if parse_address(one, own=self.user) != parse_address(other, own=self.user):
            raise Unsupported("a server compares versions of one file: name it twice")
        return await compare_there(self, other, await self.version(one, first), second)

    # Trees

    async def put_tree(
        self, local: str | PathLike[str], path: str, *, progress: Progress = no_progress
    ) -> Report:
        from vaultfs.entrypoints.remote_trees import PutTree

        return await PutTree(self, LocalSource(LocalPath(local)), path, progress).run()

    async def get_tree(
        self, path: str, local: str | PathLike[str], *, progress: Progress = no_progress
    ) -> Report:
        from vaultfs.entrypoints.remote_gets import GetTree

        return await GetTree(self, path, LocalTarget(LocalPath(local)), progress).run()

    # Nodes

    async def stat(self, path: str) -> Node:
        return self.node_of(await self.calls.ask("GET", self.url("nodes", path)))

    async def list(self, path: str = "/") -> AsyncGenerator[Node, None]:
        async for found in self.pages(self.url("folders", path), wire.NodeList):
            for entry in found.entries:
                yield to_node(entry)

    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        query = {"parents": str(parents).lower(), "exist_ok": str(exist_ok).lower()}
        url = self.url("folders", path, query)
        return self.node_of(await self.calls.ask("PUT", url, again=exist_ok))

    async def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        body = wire.Transfer(source, target, replace)
        return await self._changed("POST", "move", body, conditions(preconditions))

    async def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        return await self._changed("POST", "copy", wire.Transfer(source, target, replace, version))

    async def delete(
        self,
        path: str,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        url = self.url("nodes", path, {"recursive": str(recursive).lower()})
        headers = conditions(preconditions)
        return self.node_of(await self.calls.ask("DELETE", url, headers=headers, again=False))

    async def trash(self) -> AsyncGenerator[Trashed, None]:
        async for found in self.pages(self.calls.url(f"trash/{self._me}"), wire.TrashList):
            for entry in found.entries:
                yield to_trashed(entry)

    async def restore(self, node: NodeId, target: str | None = None) -> Node:
        return await self._changed("POST", f"trash/{self._me}/{node}", wire.RestoreIn(target))

    async def purge(self, node: NodeId) -> None:
        url = self.calls.url(f"trash/{self._me}/{node}")
        await self.calls.ask("DELETE", url, again=False)

    # Versions and metadata

    async def version(self, path: str, number: int | None = None) -> Version:
        url = self.url("files", path, {} if number is None else {"version": str(number)})
        try:
            head = await self.calls.ask("HEAD", url)
        except VaultError:  # the answer to HEAD does not say why, that to GET does
            head = await self.calls.ask("GET", url, headers={"Range": "bytes=0-0"})
        return version_of(head.headers)

    async def versions(self, path: str) -> AsyncGenerator[Version, None]:
        async for found in self.pages(self.url("versions", path), wire.VersionList):
            for entry in found.entries:
                yield to_version(entry)

    async def restore_version(self, path: str, number: int) -> Node:
        data = msgspec.json.encode(wire.VersionIn(number))
        url = self.url("versions", path)
        return self.node_of(await self.calls.ask("POST", url, data=data, again=False))

    async def patch_metadata(
        self, path: str, patch: str, *, preconditions: Preconditions = NO_PRECONDITIONS
    ) -> Node:
        answer = await self.calls.ask(
            "PATCH",
            self.url("nodes", path),
            headers=conditions(preconditions),
            data=patch.encode("utf-8", "surrogateescape"),
            again=False,
        )
        return self.node_of(answer)

    # The whole of it

    async def retention(self) -> Retention:
        answer = await self.calls.ask("GET", self.calls.url(f"retention/{self._me}"))
        return to_retention(self.calls.decode(answer, wire.RetentionBody))

    async def set_retention(self, retention: Retention) -> None:
        seconds = None if retention.age is None else round(retention.age.total_seconds())
        data = msgspec.json.encode(wire.RetentionBody(retention.last, seconds))
        await self.calls.ask("PUT", self.calls.url(f"retention/{self._me}"), data=data)

    async def prune(self) -> int:
        answer = await self.calls.ask("POST", self.calls.url(f"prune/{self._me}"))
        pruned: int = self.calls.decode(answer, wire.Pruned).versions
        return pruned

    async def usage(self) -> Usage:
        answer = await self.calls.ask("GET", self.calls.url("usage"))
        return to_usage(self.calls.decode(answer, wire.UsageOut))

    async def who_am_i(self) -> wire.WhoAmI:
        """Who the token belongs to, and what it allows."""
        return await who_am_i(self.calls)

    # Many changes at once, and sharing

    async def run_batch(
        self,
        ops: "Sequence[Op]",
        *,
        mode: "BatchMode" = "atomic",
        dry_run: bool = False,
        wait: float = 5.0,
        key: str | None = None,
    ) -> "BatchOut":
        from vaultfs.entrypoints.remote_batches import run_there

        return await run_there(self.calls, ops, mode, dry_run=dry_run, wait=wait, key=key)

    async def access(self, path: str) -> "Sequence[wire.GrantOut]":
        answer = await self.calls.ask("GET", self.url("access", path))
        found: Sequence[wire.GrantOut] = self.calls.decode(answer, wire.GrantList).entries
        return found

    async def grant(self, path: str, user: str, role: "Role") -> None:
        data = msgspec.json.encode(wire.GrantIn(user, str(role)))
        await self.calls.ask("PUT", self.url("access", path), data=data)

    async def revoke(self, path: str, user: str) -> None:
        url = self.url("access", path, {"grantee": user})
        await self.calls.ask("DELETE", url, again=False)

    async def shared(self) -> "Sequence[wire.GrantOut]":
        pages = self.pages(self.calls.url("shared"), wire.SharedList)
        return [entry async for page in pages for entry in page.entries]

    # Requests

    @property
    def _me(self) -> str:
        return quote(self.user, safe="")

    def url(self, kind: str, path: str, query: dict[str, str] | None = None) -> URL:
        """The address of what is at `path`."""
        return self.calls.url_of(kind, path, self.user, query or {})

    def node_of(self, answer: Answer) -> Node:
        """The node that an answer tells."""
        return to_node(self.calls.decode(answer, wire.NodeOut))

    async def _changed(
        self,
        method: str,
        rest: str,
        value: msgspec.Struct,
        headers: dict[str, str] | None = None,
    ) -> Node:
        data = msgspec.json.encode(value)
        url = self.calls.url(rest)
        return self.node_of(
            await self.calls.ask(method, url, headers=headers, data=data, again=False)
        )

    async def pages(self, url: URL, what: type[T]) -> AsyncGenerator[T, None]:
        """A list, a part of it at a time."""
        cursor: str | None = None
        while True:
            query = {"limit": "1000", **({} if cursor is None else {"cursor": cursor})}
            answer = await self.calls.ask("GET", url.with_query(query))
            found: Any = self.calls.decode(answer, what)
            yield found
            cursor = found.next_cursor
            if cursor is None:
                return


async def who_am_i(calls: Calls) -> wire.WhoAmI:
    """Who the token of `calls` belongs to."""
    found: wire.WhoAmI = calls.decode(await calls.ask("GET", calls.url("whoami")), wire.WhoAmI)
    return found


def check_digest(digest: bytes, version: Version) -> None:
    """Raise `Corrupt` unless `digest` is what the server vouches for."""
    if digest != version.digest:
        raise Corrupt("what came is not what the server vouches for: read it again")


async def _each(content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    async for piece in content:
        yield piece


class Body(AsyncIterable[bytes]):
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
async def calling(address: str, token: str) -> AsyncGenerator[Calls, None]:
    """The server at `address`, for whoever has `token`; nothing is asked yet."""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise NotAuthenticated("this is no token of a vault: they look like vfs_..._...")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=timeout,
        connector=aiohttp.TCPConnector(limit=CONNECTIONS),
        auto_decompress=False,
    ) as http:
        session: Any = http  # else it sends PUT and DELETE a second time by itself
        session._retry_connection = False  # noqa: SLF001 there is no other way
        yield Calls(check_address(address), http)


@asynccontextmanager
async def connect(
    address: str, *, token: str | None = None, locks: Sequence[str] = ()
) -> AsyncGenerator[RemoteVault, None]:
    """The vault at `address`, such as `https://vault.example`, for whoever has `token`.

    Without one, `VAULTFS_TOKEN` is taken, or what `vaultfs login` has stored. `locks` are
    leases, `<lease>.<token>`, that changes come with. Raises `NotAuthenticated` and
    `ServerError`.
    """
    where = check_address(address)
    async with calling(where, token or find_token(where)) as calls, task_group() as tasks:
        user = (await who_am_i(calls)).user.name
        try:
            shown = evolve(calls, locks=tuple(locks))
            yield RemoteVault(shown, user, Loop(tasks, current_token()))
        finally:
            tasks.cancel_scope.cancel()  # nobody closes the files that are still being written

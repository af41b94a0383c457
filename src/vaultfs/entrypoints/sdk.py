"""The Python SDK: a vault as an object, asynchronous or not.

    async with vaultfs.open("vault") as vault:          with vaultfs.open_sync("vault") as vault:
        await vault.put("/a.txt", b"hello")                 vault.put("/a.txt", b"hello")

`Vault` has the use cases as coroutines. `SyncVault` has the same methods for plain
code: it runs a `Vault` in a thread of its own. Paths are texts such as `/a/b`, or
`user:/a/b` for another user's tree.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path as LocalPath
from typing import Any, Literal, TypeVar, overload

from anyio import from_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken, current_token
from attrs import evolve, frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import InvalidField, NotFound, listed
from vaultfs.domain.integrity import EVERYTHING, Depth, Findings, Subset
from vaultfs.domain.lockmodes import WRITE, Mode
from vaultfs.domain.metadata import Json, format_metadata, parse_metadata
from vaultfs.domain.names import Address, key_of, parse_address
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Preconditions,
    Version,
)
from vaultfs.domain.operations import MAX_METADATA
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.recovery import Backup, Rebuilt, Usage
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.transfer import Report
from vaultfs.entrypoints.fileobjects import ReadFile, WriteFile
from vaultfs.entrypoints.opening import catalog_file
from vaultfs.entrypoints.settings import read_settings
from vaultfs.entrypoints.vault import Vault as OpenVault
from vaultfs.entrypoints.vault import init_vault, open_vault
from vaultfs.ports.catalog import Trashed
from vaultfs.ports.progress import Progress, no_progress

T = TypeVar("T")
Content = bytes | bytearray | memoryview | AsyncIterable[bytes] | PathLike[str]
"""What can be put: bytes, an asynchronous stream of them, or a local file."""


@frozen
class Vault:
    """An open vault, as its owner sees it. Made by `open_client`."""

    vault: OpenVault
    """The services below, for what has no method here."""
    _tasks: TaskGroup
    _token: EventLoopToken

    def _at(self, path: str) -> Address:
        return parse_address(path, own=self.vault.user.name)

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

        Missing folders are made unless `parents` is false. Nothing is visible before all
        of it is. Raises `Conflict` for unmet preconditions or a folder in the way.
        """
        from vaultfs.adapters.files import IterableSource, open_source

        files, user, address = self.vault.files, self.vault.user, self._at(path)
        if isinstance(content, PathLike):
            async with open_source(content) as (source, item):
                result = await files.put(
                    user,
                    address,
                    source,
                    size=item.size,
                    origin=item.origin,
                    preconditions=preconditions,
                    parents=parents,
                    progress=progress,
                )
        else:
            size = len(content) if isinstance(content, Buffer) else None
            result = await files.put(
                user,
                address,
                IterableSource(_pieces(content)),
                size=size,
                preconditions=preconditions,
                parents=parents,
                progress=progress,
            )
        assert result.node is not None
        return result.node

    async def get(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> bytes:
        """The bytes of a file, or those from `start` to `stop`: all in memory at once.

        Raises `NotFound`, `IsAFolder`, `DamagedContent`.
        """
        async with self.stream(path, version=version, start=start, stop=stop) as pieces:
            return b"".join([piece async for piece in pieces])

    @asynccontextmanager
    async def stream(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[Buffer], None]:
        """The bytes of a file piece by piece, in bounded memory.

        Raises as `get` does; a damaged file ends the stream with `DamagedContent`.
        """
        _, found = await self.vault.files.version(self.vault.user, self._at(path), version)
        if start < 0 or (stop is not None and stop < start):
            raise InvalidField(f"bytes {start} to {stop} are no range")
        async with self.vault.files.read(self.vault.user, found, start, stop) as pieces:
            yield _flat(pieces)

    @overload
    async def open(
        self, path: str, mode: Literal["rb"] = "rb", *, version: int | None = None
    ) -> ReadFile: ...
    @overload
    async def open(self, path: str, mode: Literal["wb"]) -> WriteFile: ...
    async def open(
        self, path: str, mode: Literal["rb", "wb"] = "rb", *, version: int | None = None
    ) -> ReadFile | WriteFile:
        """A binary file object, for code that blocks: use it in a worker thread.

        Read, it is seekable. Written, it becomes a version when it is closed, and nothing
        if the `with` block is left by an exception.
        """
        address = self._at(path)
        if mode == "wb":
            return await WriteFile.start(self.vault, address, self.run_in_loop, self._tasks)
        _, found = await self.vault.files.version(self.vault.user, address, version)
        return ReadFile(self.vault, found, self.run_in_loop, path)

    def run_in_loop(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine function of this vault from a worker thread."""
        return from_thread.run(call, *arguments, token=self._token)

    # Locks

    @asynccontextmanager
    async def lock(
        self,
        *paths: str,
        mode: Mode = WRITE,
        timeout: float | None = None,
    ) -> AsyncGenerator["Vault", None]:
        """Have `paths`, or the whole tree if none are named, inside `async with`.

        Yields the vault whose changes come with the lock; those of others are refused there.
        Waits up to `timeout` seconds: 0 is now or not at all, None for ever. Raises
        `LockTimedOut`, `WouldBlock`, `DeadlockFound`. See `docs/locks.md`.
        """
        places = [self._at(path) for path in paths or ("/",)]
        if any(place.tree != self.vault.user.name for place in places):
            raise NotFound(f"nothing of {listed(place.tree for place in places)} can be locked")
        locks, tree = self.vault.locks, self.vault.user.tree
        wanted = {place.path: mode for place in places}
        async with locks.hold(locks.new_owner(), tree, wanted, timeout=timeout) as held:
            yield evolve(self, vault=self.vault.presenting(*held.presented))

    # Trees

    async def put_tree(
        self, local: str | PathLike[str], path: str, *, progress: Progress = no_progress
    ) -> Report:
        """Store a local folder and all below it as the folder `path`."""
        from vaultfs.adapters.files import LocalSource

        source = LocalSource(LocalPath(local), self.vault.settings.folder)
        return await self.vault.transfer.put(
            self.vault.user, source, self._at(path), progress=progress
        )

    async def get_tree(
        self, path: str, local: str | PathLike[str], *, progress: Progress = no_progress
    ) -> Report:
        """Write the folder `path` and all below it into a local folder."""
        from vaultfs.adapters.files import LocalTarget

        target = LocalTarget(LocalPath(local), self.vault.settings.folder)
        return await self.vault.transfer.get(
            self.vault.user, self._at(path), target, progress=progress
        )

    # Nodes

    async def stat(self, path: str) -> Node:
        """The node at `path`. Raises `NotFound`."""
        return await self.vault.files.stat(self.vault.user, self._at(path))

    async def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""
        address = self._at(path)
        tree = await self.vault.files.tree(self.vault.user, address.tree)
        chain = await self.vault.catalog.resolve(tree, address.path)
        return len(chain) == len(address.path) + 1

    async def list(self, path: str = "/") -> AsyncGenerator[Node, None]:
        """The nodes of a folder, by name; fetched a thousand at a time."""
        after = ""
        address = self._at(path)
        while nodes := await self.vault.files.children(self.vault.user, address, after=after):
            for node in nodes:
                yield node
            after = key_of(nodes[-1].name)

    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        """Make a folder."""
        return await self.vault.files.mkdir(
            self.vault.user, self._at(path), parents=parents, exist_ok=exist_ok
        )

    async def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Give a node another path; nothing below it is touched."""
        return await self.vault.files.move(
            self.vault.user,
            self._at(source),
            self._at(target),
            replace=replace,
            preconditions=preconditions,
        )

    async def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        """Copy a node and all below it; no bytes are copied."""
        result = await self.vault.files.copy(
            self.vault.user,
            self._at(source),
            self._at(target),
            number=version,
            replace=replace,
        )
        assert result.node is not None
        return result.node

    async def delete(
        self,
        path: str,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Send a node to the trash."""
        return await self.vault.files.delete(
            self.vault.user, self._at(path), recursive=recursive, preconditions=preconditions
        )

    async def trash(self) -> AsyncGenerator[Trashed, None]:
        """What is in the trash, oldest node first."""
        after, user = 0, self.vault.user
        while found := await self.vault.files.trash(user, user.name, after=after):
            for each in found:
                yield each
            after = found[-1].node.id

    async def restore(self, node: NodeId, target: str | None = None) -> Node:
        """Bring a node back from the trash, to where it was or to `target`."""
        user = self.vault.user
        address = None if target is None else self._at(target)
        return await self.vault.files.restore(user, user.name, node, address)

    async def purge(self, node: NodeId) -> None:
        """Forget a node in the trash, for ever."""
        await self.vault.files.purge(self.vault.user, self.vault.user.name, node)

    # Versions

    async def versions(self, path: str) -> AsyncGenerator[Version, None]:
        """The versions of a file, newest first."""
        before: int | None = None
        address = self._at(path)
        while found := await self.vault.files.versions(self.vault.user, address, before=before):
            for version in found:
                yield version
            before = found[-1].number

    async def restore_version(self, path: str, number: int) -> Node:
        """Make an old content the newest version."""
        return await self.vault.files.restore_version(self.vault.user, self._at(path), number)

    async def set_retention(self, retention: Retention) -> None:
        """Say which old versions are kept; `prune` forgets the others."""
        await self.vault.files.set_retention(self.vault.user, self.vault.user.name, retention)

    async def prune(self) -> int:
        """Forget the old versions that need not be kept; how many."""
        return await self.vault.files.prune(self.vault.user, self.vault.user.name)

    # Metadata

    async def metadata(self, path: str) -> dict[str, Json]:
        """The metadata of a node."""
        return parse_metadata((await self.stat(path)).metadata)

    async def set_metadata(self, path: str, patch: dict[str, Json]) -> dict[str, Json]:
        """Change metadata by a JSON merge patch: a value of None removes its key."""
        text = format_metadata(patch, most=MAX_METADATA)
        node = await self.vault.files.set_metadata(self.vault.user, self._at(path), text)
        return parse_metadata(node.metadata)

    # The vault itself

    async def verify(
        self,
        depth: Depth = Depth.FULL,
        *,
        subset: Subset = EVERYTHING,
        progress: Progress = no_progress,
    ) -> Findings:
        """Look for damage."""
        return await self.vault.integrity.verify(depth, subset=subset, progress=progress)

    async def rebuild(self, *, check: bool = False) -> Rebuilt:
        """Make the chunk index anew from the packs; with `check`, of what is sound in them."""
        return await self.vault.recovery.rebuild(check=check)

    async def backup(self) -> Backup:
        """Copy the catalog into the store."""
        return await self.vault.recovery.backup()

    async def usage(self) -> Usage:
        """What the vault holds."""
        return await self.vault.recovery.usage()


async def _pieces(content: Buffer | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(content, str):
        raise TypeError("content is text: encode it, or name a local file by a pathlib.Path")
    if isinstance(content, AsyncIterable):
        async for piece in content:
            yield piece
    else:
        yield bytes(content)


async def _flat(pieces: AsyncIterator[list[Buffer]]) -> AsyncIterator[Buffer]:
    async for part in pieces:
        for piece in part:
            yield piece


@asynccontextmanager
async def open_client(
    folder: str | PathLike[str], *, create: bool = False
) -> AsyncGenerator[Vault, None]:
    """The vault in a local folder, made first if `create` and there is none.

    Raises `NotAVault`, `Unsupported`, `WrongStore`.
    """
    path = LocalPath(folder)
    if create and not catalog_file(path).exists():
        await init_vault(path)
    async with open_vault(read_settings(path)) as vault, task_group() as tasks:
        try:
            yield Vault(vault, tasks, current_token())
        finally:
            tasks.cancel_scope.cancel()  # nobody closes the files that are still being written

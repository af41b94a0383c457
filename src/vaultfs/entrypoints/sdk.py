"""The Python SDK: a vault in a local folder as an object, asynchronous or not.

    async with vaultfs.open("vault") as vault:          with vaultfs.open_sync("vault") as vault:
        await vault.put("/a.txt", b"hello")                 vault.put("/a.txt", b"hello")

`Vault` has the use cases as coroutines. `SyncVault` has the same methods for plain
code: it runs a `Vault` in a thread of its own. What both share with a vault behind a
server is `surface.Surface`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING

from anyio.lowlevel import current_token
from attrs import evolve, frozen

from vaultfs.domain.access import Role
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import InvalidField, NotFound, Unsupported, listed
from vaultfs.domain.integrity import EVERYTHING, Depth, Findings, Subset
from vaultfs.domain.lockmodes import WRITE, Mode
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    UNKNOWN_ORIGIN,
    Node,
    NodeId,
    Origin,
    Preconditions,
    Version,
)
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.recovery import Backup, Rebuilt
from vaultfs.domain.services.tasks import task_group
from vaultfs.entrypoints.embedded import EmbeddedLook
from vaultfs.entrypoints.fileobjects import Loop
from vaultfs.entrypoints.opening import catalog_file
from vaultfs.entrypoints.settings import is_server, read_settings
from vaultfs.entrypoints.surface import Content, Stored, Surface
from vaultfs.entrypoints.vault import Vault as OpenVault
from vaultfs.entrypoints.vault import init_vault, open_vault
from vaultfs.ports.catalog import Usage
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Report, Source

if TYPE_CHECKING:
    from vaultfs.entrypoints.batching import BatchMode, Op
    from vaultfs.entrypoints.changes import Changes
    from vaultfs.entrypoints.comparing import Compared
    from vaultfs.entrypoints.http.wire import BatchOut, GrantOut


@frozen
class Vault(EmbeddedLook, Surface):
    """An open vault, as its owner sees it. Made by `open_client`."""

    vault: OpenVault
    """The services below, for what has no method here."""
    _loop: Loop

    @property
    def loop(self) -> Loop:
        return self._loop

    @property
    def folder(self) -> LocalPath | None:
        return self.vault.settings.folder

    @property
    def place(self) -> str:
        return self.vault.settings.name

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
        if isinstance(content, PathLike):
            from vaultfs.adapters.files import refuse_inside

            refuse_inside(self.folder, LocalPath(content))
        async with opened_content(content) as (source, size, origin):
            result = await self.vault.files.put(
                self.user,
                self.at(path),
                source,
                size=size,
                origin=origin,
                preconditions=preconditions,
                parents=parents,
                progress=progress,
            )
        assert result.node is not None
        return Stored(result.node, result.count)

    @asynccontextmanager
    async def content(
        self,
        path: str,
        version: Version,
        start: int = 0,
        stop: int | None = None,
    ) -> AsyncGenerator[AsyncIterator[list[Buffer]], None]:
        tree = await self.vault.files.tree(self.user, self.at(path).tree)
        async with self.vault.files.read(tree, version, start, stop) as parts:
            yield parts

    # Locks

    @asynccontextmanager
    async def lock(
        self,
        *paths: str,
        mode: Mode = WRITE,
        timeout: float | None = None,
    ) -> AsyncGenerator["Vault", None]:
        places = [self.at(path) for path in paths or ("/",)]
        if any(place.tree != self.vault.user.name for place in places):
            raise NotFound(f"nothing of {listed(place.tree for place in places)} can be locked")
        locks, tree = self.vault.locks, self.vault.user.tree
        wanted = {place.path: mode for place in places}
        async with locks.hold(locks.new_owner(), tree, wanted, timeout=timeout) as held:
            yield evolve(self, vault=self.vault.presenting(*held.presented))

    async def changes(self, cursor: str | None = None, *, wait: float = 0) -> "Changes":
        from vaultfs.entrypoints.changes import changes_here

        return await changes_here(self.vault.files, self.user, cursor, wait)

    async def compare(
        self, one: str, other: str, *, first: int | None = None, second: int | None = None
    ) -> "Compared":
        from vaultfs.entrypoints.comparing import compare_here

        if self.at(one).tree != self.at(other).tree:
            raise Unsupported("versions of two users' files cannot be compared")
        base, target = await self.version(one, first), await self.version(other, second)
        tree = await self.vault.files.tree(self.user, self.at(one).tree)
        return await compare_here(self.vault.deltas, self.user, tree, base, target)

    # Trees

    async def put_tree(
        self, local: str | PathLike[str], path: str, *, progress: Progress = no_progress
    ) -> Report:
        from vaultfs.adapters.files import LocalSource

        source = LocalSource(LocalPath(local), self.vault.settings.folder)
        return await self.vault.transfer.put(self.user, source, self.at(path), progress=progress)

    async def get_tree(
        self, path: str, local: str | PathLike[str], *, progress: Progress = no_progress
    ) -> Report:
        from vaultfs.adapters.files import LocalTarget

        target = LocalTarget(LocalPath(local), self.vault.settings.folder)
        return await self.vault.transfer.get(self.user, self.at(path), target, progress=progress)

    # Nodes

    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        return await self.vault.files.mkdir(
            self.user, self.at(path), parents=parents, exist_ok=exist_ok
        )

    async def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        return await self.vault.files.move(
            self.user,
            self.at(source),
            self.at(target),
            replace=replace,
            preconditions=preconditions,
        )

    async def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        result = await self.vault.files.copy(
            self.user,
            self.at(source),
            self.at(target),
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
        return await self.vault.files.delete(
            self.user, self.at(path), recursive=recursive, preconditions=preconditions
        )

    async def restore(self, node: NodeId, target: str | None = None) -> Node:
        user = self.user
        address = None if target is None else self.at(target)
        return await self.vault.files.restore(user, user.name, node, address)

    async def purge(self, node: NodeId) -> None:
        await self.vault.files.purge(self.user, self.user.name, node)

    # Versions

    async def restore_version(self, path: str, number: int) -> Node:
        return await self.vault.files.restore_version(self.user, self.at(path), number)

    async def set_retention(self, retention: Retention) -> None:
        await self.vault.files.set_retention(self.user, self.user.name, retention)

    async def prune(self) -> int:
        return await self.vault.files.prune(self.user, self.user.name)

    async def patch_metadata(
        self, path: str, patch: str, *, preconditions: Preconditions = NO_PRECONDITIONS
    ) -> Node:
        return await self.vault.files.set_metadata(
            self.user, self.at(path), patch, preconditions=preconditions
        )

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
        from vaultfs.entrypoints.batching import run_here

        batches = self.vault.batches()
        return await run_here(batches, self.user, ops, mode, dry_run=dry_run, wait=wait, key=key)

    async def access(self, path: str) -> "Sequence[GrantOut]":
        from vaultfs.entrypoints.http.wire import grant_out

        found = await self.vault.files.access(self.user, self.at(path))
        return [grant_out(where, each) for where, each in found]

    async def grant(self, path: str, user: str, role: Role) -> None:
        await self.vault.files.grant(self.user, self.at(path), user, role)

    async def revoke(self, path: str, user: str) -> None:
        await self.vault.files.revoke(self.user, self.at(path), user)

    async def shared(self) -> "Sequence[GrantOut]":
        from vaultfs.entrypoints.http.wire import grant_out

        found = await self.vault.files.shared(self.user)
        return [grant_out(where, each) for where, each in found]

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
        return await self.vault.recovery.usage()


@asynccontextmanager
async def opened_content(
    content: Content,
) -> AsyncGenerator[tuple[Source, int | None, Origin], None]:
    """`content` to be read, its size if that is known, and where it came from."""
    from vaultfs.adapters.files import IterableSource, open_source

    if isinstance(content, str):
        raise TypeError("content is text: encode it, or name a local file by a pathlib.Path")
    if isinstance(content, PathLike):
        async with open_source(content) as (source, item):
            yield source, item.size, item.origin
    elif isinstance(content, Buffer | AsyncIterable):
        size = len(content) if isinstance(content, Buffer) else None
        yield IterableSource(_pieces(content)), size, UNKNOWN_ORIGIN
    else:
        yield content, None, UNKNOWN_ORIGIN


async def _pieces(content: Buffer | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(content, AsyncIterable):
        async for piece in content:
            yield piece
    else:
        yield bytes(content)


@asynccontextmanager
async def open_client(
    folder: str | PathLike[str], *, create: bool = False
) -> AsyncGenerator[Vault, None]:
    """The vault in a local folder, made first if `create` and there is none.

    Raises `InvalidField` (a server's address), `NotAVault`, `Unsupported`, `WrongStore`.
    """
    path = LocalPath(folder)
    if is_server(str(folder)):
        raise InvalidField(
            f"{folder} is a server: vaultfs.connect, or vaultfs.connect_sync, is for those"
        )
    if create and not catalog_file(path).exists():
        await init_vault(path)
    async with open_vault(read_settings(path)) as vault, as_client(vault) as client:
        yield client


@asynccontextmanager
async def as_client(vault: OpenVault) -> AsyncGenerator[Vault, None]:
    """`vault` as its owner sees it."""
    async with task_group() as tasks:
        try:
            yield Vault(vault.files, vault.user, vault, Loop(tasks, current_token()))
        finally:
            tasks.cancel_scope.cancel()  # nobody closes the files that are still being written

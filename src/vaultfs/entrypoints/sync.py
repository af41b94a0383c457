"""The SDK for plain code: the methods of `sdk.Vault` and `client.RemoteVault`, without `await`.

A vault runs in an event loop in a thread of its own; each call waits for its answer.
What is here may be used from several threads.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.integrity import EVERYTHING, Depth, Findings, Subset
from vaultfs.domain.lockmodes import WRITE, Mode
from vaultfs.domain.metadata import Json
from vaultfs.domain.nodes import NO_PRECONDITIONS, Node, NodeId, Preconditions, Version, VersionId
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.recovery import Backup, Rebuilt
from vaultfs.entrypoints.fileobjects import ReadFile, WriteFile
from vaultfs.entrypoints.sdk import Vault, open_client
from vaultfs.entrypoints.surface import Surface
from vaultfs.ports.catalog import Trashed, Usage
from vaultfs.ports.trees import Report

if TYPE_CHECKING:
    from vaultfs.domain.access import Role
    from vaultfs.entrypoints.batching import BatchBuilder, BatchMode, Op
    from vaultfs.entrypoints.changes import Changes
    from vaultfs.entrypoints.comparing import Compared
    from vaultfs.entrypoints.http.wire import BatchOut, GrantOut
    from vaultfs.entrypoints.pulling import Pulled, Pushed
    from vaultfs.entrypoints.syncing import Summary

T = TypeVar("T")
V = TypeVar("V", bound=Surface)


async def _next(things: AsyncIterator[T]) -> T:
    return await anext(things)


@frozen
class SyncSurface(Generic[V]):
    """An open vault; each method does what the one of `Surface` with its name does."""

    vault: V
    _portal: BlockingPortal

    def _call(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        answer: T = self._portal.call(call)
        return answer

    def _all(self, things: AsyncIterator[T]) -> Iterator[T]:
        while True:
            try:
                yield self._portal.call(_next, things)
            except StopAsyncIteration:
                return

    def put(
        self,
        path: str,
        content: Buffer | PathLike[str],
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = True,
    ) -> Node:
        """Store bytes or a local file."""
        return self._call(
            lambda: self.vault.put(path, content, preconditions=preconditions, parents=parents)
        )

    def get(
        self, path: str, *, version: int | None = None, start: int = 0, stop: int | None = None
    ) -> bytes:
        """The bytes of a file."""
        return self._call(lambda: self.vault.get(path, version=version, start=start, stop=stop))

    @overload
    def open(
        self, path: str, mode: Literal["rb"] = "rb", *, version: int | None = None
    ) -> ReadFile: ...
    @overload
    def open(self, path: str, mode: Literal["wb", "xb"]) -> WriteFile: ...
    def open(
        self, path: str, mode: Literal["rb", "wb", "xb"] = "rb", *, version: int | None = None
    ) -> ReadFile | WriteFile:
        """A binary file object, seekable when reading."""
        if mode == "rb":
            return self._call(lambda: self.vault.open(path, "rb", version=version))
        return self._call(lambda: self.vault.open(path, mode))

    @contextmanager
    def lock(
        self, *paths: str, mode: Mode = WRITE, timeout: float | None = None
    ) -> Generator[Self, None, None]:
        """Have `paths` inside `with`; yields the vault whose changes come with the lock."""
        held = self.vault.lock(*paths, mode=mode, timeout=timeout)
        with self._portal.wrap_async_context_manager(held) as vault:
            yield type(self)(vault, self._portal)

    def pull(
        self, path: str, local: str | PathLike[str], *, base: VersionId | None = None
    ) -> "Pulled":
        """Make a local file what is at `path`; from a server only the difference travels."""
        return self._call(lambda: self.vault.pull(path, local, base=base))

    def push(
        self, path: str, local: str | PathLike[str], *, base: VersionId | None = None
    ) -> "Pushed":
        """Store a local file at `path`, where `base` has to be the newest version."""
        return self._call(lambda: self.vault.push(path, local, base=base))

    def compare(
        self, one: str, other: str, *, first: int | None = None, second: int | None = None
    ) -> "Compared":
        """How much of a version another does not have."""
        return self._call(lambda: self.vault.compare(one, other, first=first, second=second))

    def changes(self, cursor: str | None = None, *, wait: float = 0) -> "Changes":
        """What has changed since `cursor`, and the next cursor."""
        return self._call(lambda: self.vault.changes(cursor, wait=wait))

    def sync(self, local: str | PathLike[str], path: str, *, force: bool = False) -> "Summary":
        """Bring a local folder and one of the vault in step, both ways."""
        return self._call(lambda: self.vault.sync(local, path, force=force))

    def put_tree(self, local: str | PathLike[str], path: str) -> Report:
        """Store a local folder."""
        return self._call(lambda: self.vault.put_tree(local, path))

    def get_tree(self, path: str, local: str | PathLike[str]) -> Report:
        """Write a folder into a local one."""
        return self._call(lambda: self.vault.get_tree(path, local))

    def stat(self, path: str) -> Node:
        """The node at `path`."""
        return self._call(lambda: self.vault.stat(path))

    def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""
        return self._call(lambda: self.vault.exists(path))

    def list(self, path: str = "/") -> Iterator[Node]:
        """The nodes of a folder."""
        return self._all(self.vault.list(path))

    def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        """Make a folder."""
        return self._call(lambda: self.vault.mkdir(path, parents=parents, exist_ok=exist_ok))

    def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Give a node another path."""
        return self._call(
            lambda: self.vault.move(source, target, replace=replace, preconditions=preconditions)
        )

    def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        """Copy a node and all below it."""
        return self._call(lambda: self.vault.copy(source, target, version=version, replace=replace))

    def delete(
        self,
        path: str,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Send a node to the trash."""
        return self._call(
            lambda: self.vault.delete(path, recursive=recursive, preconditions=preconditions)
        )

    def trash(self) -> Iterator[Trashed]:
        """What is in the trash."""
        return self._all(self.vault.trash())

    def restore(self, node: NodeId, target: str | None = None) -> Node:
        """Bring a node back from the trash."""
        return self._call(lambda: self.vault.restore(node, target))

    def purge(self, node: NodeId) -> None:
        """Forget a node in the trash."""
        self._call(lambda: self.vault.purge(node))

    def versions(self, path: str) -> Iterator[Version]:
        """The versions of a file, newest first."""
        return self._all(self.vault.versions(path))

    def restore_version(self, path: str, number: int) -> Node:
        """Make an old content the newest version."""
        return self._call(lambda: self.vault.restore_version(path, number))

    def retention(self) -> Retention:
        """Which old versions are kept."""
        return self._call(self.vault.retention)

    def set_retention(self, retention: Retention) -> None:
        """Say which old versions are kept."""
        self._call(lambda: self.vault.set_retention(retention))

    def prune(self) -> int:
        """Forget the old versions that need not be kept."""
        return self._call(self.vault.prune)

    def metadata(self, path: str) -> dict[str, Json]:
        """The metadata of a node."""
        return self._call(lambda: self.vault.metadata(path))

    def set_metadata(self, path: str, patch: dict[str, Json]) -> dict[str, Json]:
        """Change metadata by a JSON merge patch."""
        return self._call(lambda: self.vault.set_metadata(path, patch))

    @contextmanager
    def batch(
        self,
        *,
        mode: "BatchMode" = "atomic",
        dry_run: bool = False,
        wait: float = 5.0,
        check: bool = True,
    ) -> "Generator[BatchBuilder, None, None]":
        """Changes collected inside `with`, and executed at its end; raises `BatchFailed`."""
        building = self.vault.batch(mode=mode, dry_run=dry_run, wait=wait, check=check)
        with self._portal.wrap_async_context_manager(building) as batch:
            yield batch

    def run_batch(
        self,
        ops: "Sequence[Op]",
        *,
        mode: "BatchMode" = "atomic",
        dry_run: bool = False,
        wait: float = 5.0,
        key: str | None = None,
    ) -> "BatchOut":
        """Execute up to 1,000 changes in one transaction; what became of each."""
        return self._call(
            lambda: self.vault.run_batch(ops, mode=mode, dry_run=dry_run, wait=wait, key=key)
        )

    def grant(self, path: str, user: str, role: "Role") -> None:
        """Let a user read, or read and write, a node and all below it."""
        self._call(lambda: self.vault.grant(path, user, role))

    def revoke(self, path: str, user: str) -> None:
        """Take back what a user was granted on a node itself."""
        self._call(lambda: self.vault.revoke(path, user))

    def access(self, path: str) -> "Sequence[GrantOut]":
        """What users were granted on a node, and on those above it."""
        return self._call(lambda: self.vault.access(path))

    def shared(self) -> "Sequence[GrantOut]":
        """What others have granted."""
        return self._call(self.vault.shared)

    def usage(self) -> Usage:
        """What the vault holds."""
        return self._call(self.vault.usage)


@frozen
class SyncVault(SyncSurface[Vault]):
    """A vault in a local folder."""

    def verify(self, depth: Depth = Depth.FULL, *, subset: Subset = EVERYTHING) -> Findings:
        """Look for damage."""
        return self._call(lambda: self.vault.verify(depth, subset=subset))

    def rebuild(self, *, check: bool = False) -> Rebuilt:
        """Make the chunk index anew; with `check`, of what is sound in the packs."""
        return self._call(lambda: self.vault.rebuild(check=check))

    def backup(self) -> Backup:
        """Copy the catalog into the store."""
        return self._call(self.vault.backup)


@frozen
class SyncRemoteVault(SyncSurface[Surface]):
    """A vault behind a server."""


@contextmanager
def open_sync(
    folder: str | PathLike[str], *, create: bool = False
) -> Generator[SyncVault, None, None]:
    """The vault in a local folder, for plain code: see `sdk.open_client`."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_client(folder, create=create)) as vault,
    ):
        yield SyncVault(vault, portal)


@contextmanager
def connect_sync(
    address: str, *, token: str | None = None
) -> Generator[SyncRemoteVault, None, None]:
    """The vault behind a server, for plain code: see `client.connect`."""
    from vaultfs.entrypoints.client import connect

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connect(address, token=token)) as vault,
    ):
        yield SyncRemoteVault(vault, portal)

"""What a vault can be asked for, whether it is in a folder here or behind a server.

The command line and the blocking SDK know nothing else of a vault, so that there is one
of each command. Paths are texts such as `/a/b`, or `user:/a/b` for another user's tree.
"""

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from os import PathLike
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, overload

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Exists, InvalidField, VaultError
from vaultfs.domain.lockmodes import WRITE, Mode
from vaultfs.domain.metadata import Json, format_metadata, parse_metadata
from vaultfs.domain.names import format_path
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Preconditions,
    Version,
    VersionId,
)
from vaultfs.domain.retention import Retention
from vaultfs.entrypoints.look import Look
from vaultfs.ports.catalog import Usage
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Item, Source

if TYPE_CHECKING:
    from vaultfs.domain.access import Role
    from vaultfs.entrypoints.batching import BatchBuilder, BatchMode, Op
    from vaultfs.entrypoints.changes import Changes
    from vaultfs.entrypoints.comparing import Compared
    from vaultfs.entrypoints.fileobjects import Loop, ReadFile, WriteFile
    from vaultfs.entrypoints.http.wire import BatchOut, GrantOut
    from vaultfs.entrypoints.pulling import Expected, Pulled, Pushed
    from vaultfs.entrypoints.syncing import Summary
    from vaultfs.ports.trees import Report

Content = Buffer | AsyncIterable[bytes] | PathLike[str] | Source
"""What can be put: bytes, an asynchronous stream of them, a local file, or a source."""


class Stored(NamedTuple):
    """What a put came to."""

    node: Node
    changed: int
    """Versions made: 0 or 1."""
    travelled: int = 0
    """Bytes that were sent to a server."""


class Surface(Look):
    """A vault to work with."""

    __slots__ = ()

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the vault is, for people: its folder, or the address of its server."""

    @property
    @abstractmethod
    def folder(self) -> LocalPath | None:
        """The local folder that the vault is in, which nothing is put from or got into."""

    @property
    @abstractmethod
    def loop(self) -> "Loop":
        """The event loop that the vault lives in."""

    # Contents

    @abstractmethod
    async def store(
        self,
        path: str,
        content: Content,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = True,
        progress: Progress = no_progress,
    ) -> Stored:
        """As `put`; also tells whether there is a new version."""

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
        of it is. `progress` is told bytes as they become durable; those of a stream to a
        server, whose size nobody knows before, as they are sent. Raises `Conflict` for unmet
        preconditions or a folder in the way, `QuotaExceeded`, and over a network
        `ServerError` if it broke off: then it may have been stored all the same.
        """
        stored = await self.store(
            path, content, preconditions=preconditions, parents=parents, progress=progress
        )
        return stored.node

    @abstractmethod
    def content(
        self, path: str, version: Version, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator["list[Buffer]"]]:
        """The bytes `start` to `stop` of what `version` gave for `path`, in bounded memory.

        Raises `NotFound`, `DamagedContent`; over a network `VersionMismatch` if another file
        has the path by now.
        """

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
        found = await self.version(path, version)
        if start < 0 or (stop is not None and stop < start):
            raise InvalidField(f"bytes {start} to {stop} are no range")
        async with self.content(path, found, start, stop) as parts:
            yield _flat(parts)

    @overload
    async def open(
        self, path: str, mode: Literal["rb"] = "rb", *, version: int | None = None
    ) -> "ReadFile": ...
    @overload
    async def open(self, path: str, mode: Literal["wb", "xb"]) -> "WriteFile": ...
    async def open(
        self, path: str, mode: Literal["rb", "wb", "xb"] = "rb", *, version: int | None = None
    ) -> "ReadFile | WriteFile":
        """A binary file object, for code that blocks: use it in a worker thread.

        Read, it is seekable. Written, it becomes a version when it is closed, and nothing
        if the `with` block is left by an exception. `xb` is for a file that is not there yet:
        it raises `Exists`, or when it is closed `Conflict` if somebody else was faster. Any
        other mode raises `InvalidField`.
        """
        from vaultfs.entrypoints.fileobjects import ReadFile, WriteFile

        if mode == "rb":
            return ReadFile(self, path, await self.version(path, version))
        if mode not in {"wb", "xb"}:  # least of all may one that is not known replace the file
            raise InvalidField(f"mode {mode!r}: rb, wb and xb are known")
        if mode == "xb" and await self.exists(path):
            raise Exists(f"{path} is there already")
        wanted = Preconditions(if_absent=mode == "xb")
        return await WriteFile.start(self, path, wanted)

    @abstractmethod
    def lock(
        self, *paths: str, mode: Mode = WRITE, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Self]:
        """Have `paths`, or the whole tree if none are named, inside `async with`.

        Yields the vault whose changes come with the lock; those of others are refused there.
        Waits up to `timeout` seconds: 0 is now or not at all, None for ever. Raises
        `LockTimedOut`, `WouldBlock`, `DeadlockFound`. On a server it is a lease that is
        renewed meanwhile. See `docs/locks.md`.
        """

    # One file in step with a local one

    async def pull(
        self,
        path: str,
        local: str | PathLike[str],
        *,
        base: VersionId | None = None,
        expected: "Expected" = "any",
        progress: Progress = no_progress,
    ) -> "Pulled":
        """Make the local file what is at `path`; `base` is the version that it is now, if one.

        It is replaced at one moment, durable, unless it is not what was `expected` there any
        more: then `SourceChanged` is raised. From a server only the difference travels. Raises
        `Conflict` for a file in the vault's own folder.
        """
        from vaultfs.adapters.files import refuse_inside
        from vaultfs.entrypoints.pulling import copy_to

        refuse_inside(self.folder, LocalPath(local))
        return await copy_to(self, path, LocalPath(local), base, expected, progress)

    async def push(
        self,
        path: str,
        local: str | PathLike[str],
        *,
        base: VersionId | None = None,
        progress: Progress = no_progress,
    ) -> "Pushed":
        """Store a local file at `path`, where `base` has to be the newest version.

        None: there must be nothing. To a server only chunks travel that it lacks. Raises
        `VersionMismatch` if somebody else was first.
        """
        from vaultfs.entrypoints.pulling import Pushed

        wanted = Preconditions(if_version=base, if_absent=base is None)
        stored = await self.store(path, LocalPath(local), preconditions=wanted, progress=progress)
        return Pushed(stored.node, stored.changed, 0)

    async def push_new(
        self, folder: LocalPath, items: "Sequence[Item]", path: str
    ) -> "list[Pushed | VaultError]":
        """`push` of small files of a folder that are not below `path` yet; what became of each.

        To a server they go together.
        """
        done: list[Pushed | VaultError] = []
        for item in items:
            where = path.rstrip("/") + format_path(item.path)
            try:
                done.append(await self.push(where, folder.joinpath(*item.path)))
            except VaultError as error:
                done.append(error)
        return done

    async def sync(
        self, local: str | PathLike[str], path: str, *, force: bool = False
    ) -> "Summary":
        """Bring a local folder and the folder `path` in step, both ways; see `docs/sync.md`.

        Raises `Conflict` where more than half of the files, or all, are gone on one side, unless
        `force`, or where the folder is in step with another.
        """
        from vaultfs.entrypoints.syncing import Syncing, this_device

        return await Syncing(self, LocalPath(local), path, this_device(), force).run()

    @abstractmethod
    async def changes(self, cursor: str | None = None, *, wait: float = 0) -> "Changes":
        """What has changed since `cursor`, and the next cursor; waits for it up to 60 seconds.

        Without one from the first change on; `"now"` gives none, and a cursor for what comes.

        Raises `CursorReset` where the feed is not the one that the cursor is of.
        """

    @abstractmethod
    async def compare(
        self, one: str, other: str, *, first: int | None = None, second: int | None = None
    ) -> "Compared":
        """How much of the file `other` the file `one` does not have: of their versions numbered
        `first` and `second`, the current ones by default. On a server they are of one file.
        """

    # Trees

    @abstractmethod
    async def put_tree(
        self, local: str | PathLike[str], path: str, *, progress: Progress = no_progress
    ) -> "Report":
        """Store a local folder and all below it, but for what its `.vaultignore` names, as the
        folder `path`.
        """

    @abstractmethod
    async def get_tree(
        self, path: str, local: str | PathLike[str], *, progress: Progress = no_progress
    ) -> "Report":
        """Write the folder `path` and all below it into a local folder."""

    # Nodes

    @abstractmethod
    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Node:
        """Make a folder."""

    @abstractmethod
    async def move(
        self,
        source: str,
        target: str,
        *,
        replace: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Give a node another path; nothing below it is touched."""

    @abstractmethod
    async def copy(
        self, source: str, target: str, *, version: int | None = None, replace: bool = False
    ) -> Node:
        """Copy a node and all below it; no bytes are copied."""

    @abstractmethod
    async def delete(
        self,
        path: str,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Send a node to the trash."""

    @abstractmethod
    async def restore(self, node: NodeId, target: str | None = None) -> Node:
        """Bring a node back from the trash, to where it was or to `target`."""

    @abstractmethod
    async def purge(self, node: NodeId) -> None:
        """Forget a node in the trash, for ever."""

    @abstractmethod
    async def restore_version(self, path: str, number: int) -> Node:
        """Make an old content the newest version."""

    @abstractmethod
    async def patch_metadata(
        self, path: str, patch: str, *, preconditions: Preconditions = NO_PRECONDITIONS
    ) -> Node:
        """Change metadata by the text of a JSON merge patch (RFC 7396)."""

    async def set_metadata(self, path: str, patch: dict[str, Json]) -> dict[str, Json]:
        """Change metadata by a JSON merge patch: a value of None removes its key."""
        from vaultfs.domain.operations import MAX_METADATA

        text = format_metadata(patch, most=MAX_METADATA)
        return parse_metadata((await self.patch_metadata(path, text)).metadata)

    # Many changes at once

    @abstractmethod
    async def run_batch(
        self,
        ops: "Sequence[Op]",
        *,
        mode: "BatchMode" = "atomic",
        dry_run: bool = False,
        wait: float = 5.0,
        key: str | None = None,
    ) -> "BatchOut":
        """Execute up to 1,000 changes in one transaction; what became of each.

        `ops` are written as the HTTP API has them: `docs/batches.md`. What an operation is
        refused for is told in its place; raised are `InvalidField`, `TooLarge`, and
        `KeyReused` for a `key` that came within a day with other operations.
        """

    def batch(
        self,
        *,
        mode: "BatchMode" = "atomic",
        dry_run: bool = False,
        wait: float = 5.0,
        check: bool = True,
    ) -> "AbstractAsyncContextManager[BatchBuilder]":
        """Changes collected inside `async with`, and executed at its end; see `batching`.

        With `check`, raises `BatchFailed` there if any of them was refused: then nothing was
        done if the mode is `atomic`, and the others were if it is `best_effort`.
        """
        from vaultfs.entrypoints.batching import building

        run = partial(self.run_batch, mode=mode, dry_run=dry_run, wait=wait)
        return building(run, check=check)

    # Sharing

    @abstractmethod
    async def access(self, path: str) -> "Sequence[GrantOut]":
        """What users were granted on a node, and on those above it."""

    @abstractmethod
    async def grant(self, path: str, user: str, role: "Role") -> None:
        """Let a user read, or read and write, a node and all below it."""

    @abstractmethod
    async def revoke(self, path: str, user: str) -> None:
        """Take back what a user was granted on a node itself."""

    @abstractmethod
    async def shared(self) -> "Sequence[GrantOut]":
        """What others have granted; their paths are written `user:/path`."""

    # The whole of it

    @abstractmethod
    async def set_retention(self, retention: Retention) -> None:
        """Say which old versions are kept; `prune` forgets the others."""

    @abstractmethod
    async def prune(self) -> int:
        """Forget the old versions that need not be kept; how many."""

    @abstractmethod
    async def usage(self) -> "Usage":
        """What the vault holds."""


async def _flat(parts: AsyncIterator[list[Buffer]]) -> AsyncIterator[Buffer]:
    async for part in parts:
        for piece in part:
            yield piece

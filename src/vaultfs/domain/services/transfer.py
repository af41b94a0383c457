"""Whole trees in and out: many files at a time, small ones in groups.

A file of 10 KB costs less to store than to hand to a thread, so small files travel
in groups of about a block: one hop reads a group, one cuts and hashes it, one
compresses it, and their versions are committed with the pack they are in. Large files
go one by one, a few at a time. Each file is committed by itself: an interruption
leaves whole files, and running the same again continues, since what is there
already is found by its chunks.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from vaultfs.domain.cutting import SMALL
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import (
    FILE_ERRORS,
    DamagedContent,
    InvalidName,
    NotAFolder,
    VaultError,
)
from vaultfs.domain.names import Address, Path, check_path, format_path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, User, UserId, Version, owner_of
from vaultfs.domain.operations import MakeFolder, PutFile, Refused
from vaultfs.domain.services.budget import BLOCK, GROUP_FILES, Budget, Use
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.ingest import Ingested
from vaultfs.domain.services.reader import Reader, Wanted
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Item, Report, Skipped, SourceTree, TargetTree

GROUPS: Final = 3
"""Groups under way at the same time."""
LARGE: Final = 2
"""Large files under way at the same time."""
T = TypeVar("T")


@define(eq=False)
class Transfer:
    """Puts and gets trees; one serves all callers."""

    files: Files
    reader: Reader
    budget: Budget

    async def put(
        self,
        caller: User,
        source: SourceTree,
        target: Address,
        *,
        progress: Progress = no_progress,
    ) -> Report:
        """Store everything in `source` below `target`, which becomes a folder if it is none.

        What is there under other names stays. A file that cannot be read or stored is in
        the report; only a failure of the vault itself is raised, and `NotAFolder` where a
        file is in the way of all of them.
        """
        job = _Put(self, caller, source, target, progress)
        await job.run()
        return job.report

    async def get(
        self,
        caller: User,
        source: Address,
        target: TargetTree,
        *,
        progress: Progress = no_progress,
    ) -> Report:
        """Write the folder at `source` and everything below into `target`.

        Files that are there under those names are replaced, one by one, whole; others
        stay. A damaged file is in the report and is not written. Raises `NotFound` and
        `NotAFolder`.
        """
        job = _Get(self, caller, source, target, progress)
        await job.run()
        return job.report


@define(eq=False)
class _Countdown:
    """How many are still at it."""

    count: int = 0
    _zero: anyio.Event = field(factory=anyio.Event)

    def add(self) -> None:
        self.count += 1

    def done(self) -> None:
        self.count -= 1
        if not self.count:
            self._zero.set()
            self._zero = anyio.Event()

    async def zero(self) -> None:
        """Wait until nobody is."""
        if self.count:
            await self._zero.wait()


@define(eq=False)
class _Put:
    transfer: Transfer
    caller: User
    source: SourceTree
    target: Address
    progress: Progress
    report: Report = field(factory=Report)
    groups: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(GROUPS))
    loading: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(1))
    """Reading a small file gives the interpreter's lock away four times: two readers would mostly
    wait for it.
    """
    large: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(LARGE))
    taken_in: _Countdown = field(factory=_Countdown)
    owner: UserId = field(init=False)

    async def run(self) -> None:
        files = self.transfer.files
        tree = await files.tree(self.caller, self.target.tree)
        await files.check_writable(self.caller, tree, self.target.path)
        await self._check_no_file(tree)
        self.owner = owner_of(tree)
        folders: list[Path] = []
        group: list[Item] = []
        size = 0
        async with task_group() as tasks, aclosing(self.source.walk()) as batches:
            async for item in _each(batches):
                if isinstance(item, Skipped):
                    self.report.skipped.append(item)
                elif (refused := self._too_long(item.path)) is not None:
                    self._fail(item.path, refused)
                elif item.kind == "folder":
                    folders.append(item.path)
                elif item.size > SMALL:
                    await self._start(self.large, tasks, self._large, [item])
                else:
                    group.append(item)
                    size += item.size
                    if size > BLOCK - SMALL or len(group) >= GROUP_FILES:
                        await self._start(self.groups, tasks, self._small, group)
                        group, size = [], 0
            if group:
                await self._start(self.groups, tasks, self._small, group)
            await self._make([(), *folders])
            await self.taken_in.zero()
            self.transfer.files.packer.flush()
        self.report.folders = len(folders)

    async def _check_no_file(self, tree: TreeId) -> None:
        """Say once, before anything is read, what each of the files would be refused for."""
        nodes = await self.transfer.files.catalog.resolve(tree, self.target.path)
        if nodes and not nodes[-1].is_folder:
            where = format_path(self.target.path[: len(nodes) - 1])
            raise NotAFolder(f"{where} is a file, not a folder")

    def _too_long(self, path: Path) -> InvalidName | None:
        """Why the vault has no room for such a path, if it has none."""
        try:
            check_path((*self.target.path, *path))
        except InvalidName as error:
            return error
        return None

    async def _start(
        self,
        room: anyio.Semaphore,
        tasks: TaskGroup,
        take_in: Callable[[Sequence[Item]], Awaitable[list[tuple[Item, Ingested]]]],
        items: Sequence[Item],
    ) -> None:
        """Take in `items` and commit them in a task of its own, when there is room."""
        await room.acquire()
        self.taken_in.add()
        tasks.start_soon(self._run, room, take_in, items)

    async def _run(
        self,
        room: anyio.Semaphore,
        take_in: Callable[[Sequence[Item]], Awaitable[list[tuple[Item, Ingested]]]],
        items: Sequence[Item],
    ) -> None:
        try:
            ingested = await take_in(items)
        finally:
            room.release()
            self.taken_in.done()
        await self._commit(ingested)

    async def _small(self, items: Sequence[Item]) -> list[tuple[Item, Ingested]]:
        size = sum(item.size for item in items)
        charge = await self.transfer.budget.charge(Use.WRITE, size)
        try:
            async with self.loading:
                loaded = await self.source.load(items)
        except BaseException:
            charge.release()
            raise
        found: list[tuple[Item, bytes]] = []
        for item, data in zip(items, loaded, strict=True):
            if isinstance(data, VaultError):
                self._fail(item.path, data)
            else:
                found.append((item, data))
        contents = [data for _, data in found]
        ingested = await self.transfer.files.ingest.small(self.owner, contents, charge)
        if ingested:  # they share their packs
            ingested[0].placed.when_recorded(partial(self.progress, sum(map(len, contents))))
        return [(item, each) for (item, _), each in zip(found, ingested, strict=True)]

    async def _large(self, items: Sequence[Item]) -> list[tuple[Item, Ingested]]:
        [item] = items
        try:
            async with self.source.open(item) as source:
                ingested = await self.transfer.files.ingest.stream(
                    self.owner, source, size=item.size, progress=self.progress
                )
        except FILE_ERRORS as error:
            self._fail(item.path, error)
            return []
        return [(item, ingested)]

    async def _commit(self, ingested: Sequence[tuple[Item, Ingested]]) -> None:
        files = self.transfer.files
        tree = await files.tree(self.caller, self.target.tree)
        puts = [
            (
                PutFile(
                    tree, (*self.target.path, *item.path), each.content, item.origin, parents=True
                ),
                each,
            )
            for item, each in ingested
        ]
        outcomes = await files.commit(self.caller, puts, wait=False) if puts else []
        for (item, each), outcome in zip(ingested, outcomes, strict=True):
            if isinstance(outcome, Refused):
                self._fail(item.path, outcome.error)
            else:
                self.report.files += 1
                self.report.size += each.size
                self.report.changed += outcome.results[-1].count

    async def _make(self, folders: Sequence[Path]) -> None:
        """Make the folders: those that hold no file are made by nothing else."""
        files = self.transfer.files
        tree = await files.tree(self.caller, self.target.tree)
        stem = files.clock.new_id()
        units = [
            files.unit(self.caller, f"{stem}-{index}", (operation,))
            for index, operation in enumerate(
                MakeFolder(tree, (*self.target.path, *path), parents=True, exist_ok=True)
                for path in folders
            )
        ]
        for outcome, path in zip(await files.catalog.apply(units), folders, strict=True):
            if isinstance(outcome, Refused):
                self._fail(path, outcome.error)

    def _fail(self, path: Path, error: VaultError) -> None:
        self.report.failed.append(Skipped(format_path(path), error.message))


async def _each(batches: AsyncGenerator[list[T], None]) -> AsyncGenerator[T, None]:
    async for batch in batches:
        for item in batch:
            yield item


class _File(NamedTuple):
    """A file on its way out."""

    path: Path
    version: Version


@define(eq=False)
class _Get:
    transfer: Transfer
    caller: User
    source: Address
    target: TargetTree
    progress: Progress
    report: Report = field(factory=Report)
    groups: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(GROUPS))
    large: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(LARGE))
    owner: UserId = field(init=False)

    async def run(self) -> None:
        top = await self.transfer.files.stat(self.caller, self.source)
        self.owner = owner_of(top.tree)
        if not top.is_folder:
            raise NotAFolder(f"{self.source} is a file, not a folder")
        group: list[_File] = []
        size = 0
        async with task_group() as tasks, aclosing(self._walk(top)) as found:
            async for file in found:
                if file.version.size > SMALL:
                    await self.large.acquire()
                    tasks.start_soon(self._run, self.large, self._large, [file])
                    continue
                group.append(file)
                size += file.version.size
                if size > BLOCK - SMALL or len(group) >= GROUP_FILES:
                    await self.groups.acquire()
                    tasks.start_soon(self._run, self.groups, self._small, group)
                    group, size = [], 0
            await self._small(group)

    async def _walk(self, top: Node) -> AsyncGenerator[_File, None]:
        """All files below `top`; makes their folders in the target."""
        folders: list[tuple[NodeId, Path]] = [(top.id, ())]
        while folders:
            folder, path = folders.pop()
            [refused] = await self.target.make_folders([path])
            if refused is not None:
                self._fail(path, refused)
                continue
            below: list[tuple[NodeId, Path]] = []
            async for nodes in self._children(folder):
                files = [node.id for node in nodes if not node.is_folder]
                versions = await self.transfer.files.catalog.current_versions(files)
                for node in nodes:
                    if node.is_folder:
                        below.append((node.id, (*path, node.name)))
                    elif node.id in versions:
                        yield _File((*path, node.name), versions[node.id])
            self.report.folders += len(below)
            folders += reversed(below)

    async def _children(self, folder: NodeId) -> AsyncGenerator[list[Node], None]:
        after = ""
        while nodes := await self.transfer.files.catalog.children(folder, after=after):
            yield nodes
            after = key_of(nodes[-1].name)

    async def _run(
        self,
        room: anyio.Semaphore,
        get: Callable[[Sequence[_File]], Awaitable[None]],
        files: Sequence[_File],
    ) -> None:
        try:
            await get(files)
        finally:
            room.release()

    async def _large(self, files: Sequence[_File]) -> None:
        [(path, version)] = files
        try:
            async with (
                self.target.create(path, version.origin) as sink,
                self.transfer.reader.content(self.owner, version.manifest) as pieces,
            ):
                async for part in pieces:
                    await sink.write(part)
                    self.progress(sum(map(len, part)))
        except FILE_ERRORS as error:
            self._fail(path, error)
        else:
            self._arrived(version)

    async def _small(self, files: Sequence[_File]) -> None:
        """Read `files` as one stream of chunks: neighbours in the vault share their gets."""
        try:
            contents = await self._contents(files)
        except DamagedContent as error:
            if len(files) == 1:
                self._fail(files[0].path, error)
                return
            for file in files:
                await self._small([file])
            return
        stored = await self.target.store(
            [
                (file.path, pieces, file.version.origin)
                for file, pieces in zip(files, contents, strict=True)
            ]
        )
        for file, refused in zip(files, stored, strict=True):
            if refused is None:
                self._arrived(file.version)
                self.progress(file.version.size)
            else:
                self._fail(file.path, refused)

    async def _contents(self, files: Sequence[_File]) -> list[list[Buffer]]:
        """The pieces of each file."""
        reader = self.transfer.reader

        async def wanted() -> AsyncGenerator[Wanted, None]:
            for file in files:
                for digest, length in file.version.manifest.entries:
                    yield Wanted(digest, length, 0, length)

        pieces: list[Buffer] = []
        async with reader.chunks(self.owner, wanted()) as stream:
            async for part in stream:
                pieces += part
        each = iter(pieces)
        return [list(islice(each, len(file.version.manifest.entries))) for file in files]

    def _arrived(self, version: Version) -> None:
        self.report.files += 1
        self.report.size += version.size

    def _fail(self, path: Path, error: VaultError) -> None:
        self.report.failed.append(Skipped(format_path(path), error.message))

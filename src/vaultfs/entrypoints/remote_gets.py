"""Whole trees from a server: one stream of everything, small files in it (`docs/format.md`)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import define, field

from vaultfs.adapters.files import LocalTarget
from vaultfs.domain.cutting import SMALL
from vaultfs.domain.digests import Buffer, digest_of
from vaultfs.domain.errors import (
    FILE_ERRORS,
    Corrupt,
    InvalidName,
    NotAFolder,
    Unsupported,
    VaultError,
)
from vaultfs.domain.frames import HEAD_SIZE, End, Entry, check_head, read_frame
from vaultfs.domain.manifests import INLINE_ENTRIES
from vaultfs.domain.names import Path, format_path, parse_path
from vaultfs.domain.packs import StoredChunk, contents_of
from vaultfs.domain.services.budget import BLOCK, GROUP_FILES
from vaultfs.domain.services.tasks import task_group
from vaultfs.entrypoints.answers import ServerError
from vaultfs.entrypoints.calling import AGAIN, PIECE, TRIES, wait
from vaultfs.entrypoints.client import RemoteVault
from vaultfs.ports.progress import Progress
from vaultfs.ports.trees import Report, Skipped

PARSED: Final = 2 << 20
"""Bytes that are parsed with one hop to a thread."""
GROUPS: Final = 3
"""Groups of small files that are decoded and written at the same time."""
LARGE: Final = 4
"""Large files that are on their way at the same time."""


class Arrived(NamedTuple):
    """A file or a folder that a server told, with the chunks that stood in front of it."""

    path: Path
    entry: Entry
    chunks: tuple[StoredChunk, ...]

    @property
    def is_folder(self) -> bool:
        return self.entry.manifest is None

    @property
    def length(self) -> int:
        """Bytes of the content that came with it, decoded."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def size(self) -> int:
        """Bytes of its content."""
        manifest = self.entry.manifest
        return 0 if manifest is None else manifest.size

    @property
    def whole(self) -> bool:
        """Whether its content came with it."""
        return len(self.chunks) > 0 or not self.size

    def content(self) -> list[Buffer]:
        """Its content, verified. CPU work. Raises `Corrupt`."""
        pieces = contents_of(self.chunks)
        claimed = self.entry.digest
        if claimed is not None and self._digest(pieces) != claimed:
            raise Corrupt(f"{self.entry.path} is not what the server vouches for")
        return pieces

    def _digest(self, pieces: Sequence[Buffer]) -> bytes:
        return self.chunks[0].digest if len(pieces) == 1 else digest_of(b"".join(pieces))


@define(eq=False)
class Parser:
    """Takes a stream of frames apart; used in threads, by one at a time."""

    last: Path = ()
    """The path that came last."""
    ended: bool = False
    _rest: bytes = b""
    _begun: bool = False
    _chunks: list[StoredChunk] = field(factory=list[StoredChunk])
    """Those whose entry has not come yet."""
    _counts: list[int] = field(factory=lambda: [0, 0])

    def take(self, data: Sequence[bytes]) -> list[Arrived]:
        """What `data` ends. Raises `Corrupt`, `Unsupported`, `InvalidName`."""
        view = memoryview(b"".join((self._rest, *data)))
        at, found = 0, list[Arrived]()
        if not self._begun:
            if len(view) < HEAD_SIZE:
                self._rest = bytes(view)
                return found
            check_head(view[:HEAD_SIZE])
            at, self._begun = HEAD_SIZE, True
        while not self.ended and (read := read_frame(view, at)) is not None:
            frame, at = read
            match frame:
                case StoredChunk():
                    self._chunk(frame)
                case Entry():
                    found.append(self._entry(frame))
                case End():
                    self._end(frame)
                case _:
                    raise Corrupt("a chunk is named that should have been sent")
        self._rest = bytes(view[at:])
        return found

    def _chunk(self, chunk: StoredChunk) -> None:
        if len(self._chunks) == INLINE_ENTRIES:
            raise Corrupt("more chunks than a small file has")
        self._chunks.append(chunk)
        self._counts[0] += 1

    def _entry(self, entry: Entry) -> Arrived:
        arrived = Arrived(parse_path(entry.path), entry, tuple(self._chunks))
        told = [(chunk.digest, chunk.length) for chunk in self._chunks]
        manifest = entry.manifest
        if told and (manifest is None or manifest.level or tuple(told) != manifest.entries):
            raise Corrupt(f"the chunks of {entry.path} are not those of its manifest")
        if arrived.length > SMALL or not arrived.path:
            raise Corrupt(f"{entry.path} is nothing that comes as a small file")
        self._chunks.clear()
        self._counts[1] += 1
        self.last = arrived.path
        return arrived

    def _end(self, end: End) -> None:
        if self._chunks or list(end) != self._counts:
            raise Corrupt("the stream of files does not hold what its end says")
        self.ended = True


@define(eq=False)
class GetTree:
    """One folder of a server on its way to this machine.

    An interruption leaves whole files.
    """

    vault: RemoteVault
    path: str
    target: LocalTarget
    progress: Progress
    report: Report = field(factory=Report)
    groups: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(GROUPS))
    large: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(LARGE))
    _refused: set[Path] = field(factory=set[Path])
    """Folders that could not be made: nothing below them is."""

    async def run(self) -> Report:
        """Fetch it all. Raises `NotFound`, `NotAFolder`, and failures of the server itself."""
        if not (await self.vault.stat(self.path)).is_folder:
            raise NotAFolder(f"{self.path} is a file, not a folder")
        await self._make([()])
        self.report.folders = 0  # those below it are told
        async with task_group() as tasks, aclosing(self._arrivals()) as arrivals:
            async for arrived in arrivals:
                await self._make([each.path for each in arrived if each.is_folder])
                await self._start(tasks, [each for each in arrived if not each.is_folder])
        return self.report

    async def _make(self, folders: Sequence[Path]) -> None:
        wanted = [path for path in folders if not self._is_refused(path)]
        self.report.folders += len(wanted)
        for path, refused in zip(wanted, await self.target.make_folders(wanted), strict=True):
            if refused is not None and not self._is_refused(path):
                self._fail(path, refused)
                self._refused.add(path)

    def _is_refused(self, path: Path) -> bool:
        """Whether it is one of them, or is below one."""
        if not self._refused:
            return False
        return any(path[:depth] in self._refused for depth in range(len(path) + 1))

    async def _start(self, tasks: TaskGroup, files: Sequence[Arrived]) -> None:
        group: list[Arrived] = []
        size = 0
        for file in files:
            if self._is_refused(file.path):
                continue
            if not file.whole:
                await self.large.acquire()
                tasks.start_soon(self._run_large, file)
                continue
            if group and (size + file.length > BLOCK or len(group) >= GROUP_FILES):
                await self.groups.acquire()
                tasks.start_soon(self._run_group, group)
                group, size = [], 0
            group.append(file)
            size += file.length
        if group:
            await self.groups.acquire()
            tasks.start_soon(self._run_group, group)

    async def _arrivals(self) -> AsyncGenerator[list[Arrived], None]:
        """All that the server tells, in order; goes on where a connection broke off."""
        last: Path = ()
        tries = 0
        while True:
            parser = Parser(last)
            try:
                async with aclosing(self._once(parser)) as arrivals:
                    async for arrived in arrivals:
                        tries = 0
                        yield arrived
                if parser.ended:
                    return
                reason: Exception = EOFError("the stream was cut short")
            except AGAIN as error:
                reason = error
            except (Corrupt, Unsupported, InvalidName) as error:
                raise ServerError(f"{self.vault.place} sent what is no tree: {error}") from error
            last = parser.last
            tries += 1
            if tries >= TRIES:
                broke = f"{self.vault.place} broke off behind {format_path(last)}: {reason}"
                raise ServerError(broke) from reason
            await anyio.sleep(wait(tries))

    async def _once(self, parser: Parser) -> AsyncGenerator[list[Arrived], None]:
        query = {"after": format_path(parser.last)} if parser.last else {}
        url = self.vault.url("frames", self.path, query)
        async with self.vault.calls.http.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                await self.vault.calls.refuse(answer)
            held: list[bytes] = []
            size = 0
            try:
                async for piece in answer.content.iter_chunked(PIECE):
                    held.append(piece)
                    size += len(piece)
                    if size >= PARSED:
                        data, held, size = held, [], 0
                        yield await to_thread.run_sync(parser.take, data)
            except AGAIN:
                yield await to_thread.run_sync(parser.take, held)
                raise
            yield await to_thread.run_sync(parser.take, held)

    async def _run_large(self, file: Arrived) -> None:
        try:
            await self._large(file.path)
        finally:
            self.large.release()

    async def _large(self, where: Path) -> None:
        path = self.path.rstrip("/") + format_path(where)
        try:
            version = await self.vault.version(path)
            async with (
                self.target.create(where, version.origin) as sink,
                self.vault.content(path, version) as parts,
            ):
                async for part in parts:
                    await sink.write(part)
                    self.progress(sum(map(len, part)))
        except FILE_ERRORS as error:
            self._fail(where, error)
        else:
            self._arrived(version.size)

    async def _run_group(self, files: Sequence[Arrived]) -> None:
        try:
            contents = await to_thread.run_sync(lambda: [_content(file) for file in files])
            good = [
                (file, content)
                for file, content in zip(files, contents, strict=True)
                if content is not None
            ]
            stored = await self.target.store(
                [(file.path, content, file.entry.origin) for file, content in good]
            )
        finally:
            self.groups.release()
        for (file, _), refused in zip(good, stored, strict=True):
            if refused is None:
                self._arrived(file.size)
                self.progress(file.size)
            else:
                self._fail(file.path, refused)
        for file, content in zip(files, contents, strict=True):
            if content is None:  # what is wrong with it is said where it is read by itself
                await self._large(file.path)

    def _arrived(self, size: int) -> None:
        self.report.files += 1
        self.report.size += size

    def _fail(self, path: Path, error: VaultError) -> None:
        self.report.failed.append(Skipped(format_path(path), error.message))


def _content(file: Arrived) -> list[Buffer] | None:
    """The content of a file, or None if it is damaged."""
    try:
        return file.content()
    except (Corrupt, Unsupported):
        return None

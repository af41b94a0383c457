"""Local files and folders as sources and targets of transfers.

Reading never follows a link and takes a file only if it stayed as it was from the
first byte to the last. Writing never leaves the target folder: every folder on the
way down is opened without following links, and files are put in place by a rename
inside their folder, so a crash leaves the old file or the new one and at most a
`.vaultfs-*` file beside it.
"""

import errno
import os
import re
import stat
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from io import FileIO
from itertools import count, islice
from pathlib import Path as FilePath
from typing import Final

from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO
from anyio import from_thread, to_thread
from attrs import define, field, frozen
from blake3 import blake3

from vaultfs.adapters.ignoring import IGNORED, ignored_below
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import (
    Conflict,
    Forbidden,
    InvalidName,
    IsAFolder,
    NotFound,
    SourceChanged,
    VaultError,
)
from vaultfs.domain.names import Path, check_name, key_of
from vaultfs.domain.nodes import Origin
from vaultfs.ports.trees import Item, Sink, Skipped, SourceTree, TargetTree

BATCH: Final = 1000
"""Entries that one step of a walk gives, about."""
IOV_MAX: Final = 1024
HASHED: Final = 4 << 20
"""Bytes that are read at once to be hashed."""
_numbers = count()


class DiskFull(VaultError):
    """The local disk has no room for the file."""


_FULL = (DiskFull, "the disk is full: free some space")
_IN_THE_WAY = (Conflict, "a link or file stands where a folder should")
_NO_NAME = (InvalidName, "this file system cannot have such a name")
_IN_USE = (Conflict, "it is in use")
_ERRNOS: Final[dict[int, tuple[type[VaultError], str]]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.ELOOP: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: _NO_NAME,
    errno.EINVAL: _NO_NAME,
    errno.EILSEQ: _NO_NAME,
    errno.ETXTBSY: _IN_USE,
    errno.EBUSY: _IN_USE,
}


@contextmanager
def translated(what: object) -> Generator[None, None, None]:
    """Raise what the operating system raises as the port promises."""
    try:
        yield
    except OSError as error:
        raise translate(what, error) from error


def translate(what: object, error: OSError) -> VaultError:
    """What the port promises to raise for what the operating system raised."""
    match error:
        case FileNotFoundError():
            return NotFound(f"{what} is not there (any more)")
        case PermissionError():
            return Forbidden(f"{what}: no permission")
        case IsADirectoryError():
            return IsAFolder(f"{what} is a folder")
        case _:
            kind, text = _ERRNOS.get(error.errno or 0, (Conflict, error.strerror))
            return kind(f"{what}: {text}")


def origin_of(status: os.stat_result) -> Origin:
    """Where a file that looks like this comes from."""
    return Origin(status.st_mtime_ns // 1000, stat.S_IMODE(status.st_mode) & 0o777)


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What is another one as soon as a file is written, or another takes its place."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


# Sources


@define(eq=False)
class FileSource:
    """A regular file that is being read; refuses to end if it changed meanwhile."""

    name: str
    file: AsyncFileIO
    before: os.stat_result
    done: int = 0

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        with translated(self.name):
            while filled < len(view):
                read = await self.file.readinto(view[filled:])
                if not read:
                    break
                filled += read
        self.done += filled
        if filled < len(view) or self.done > self.before.st_size:
            self._check()
        return filled

    async def rewind(self, at: int) -> None:
        """Go on reading at byte `at`."""
        with translated(self.name):
            await self.file.seek(at)
        self.done = at

    def _check(self) -> None:
        now = os.fstat(self.file.fileno())
        if identity(now) != identity(self.before) or self.done != now.st_size:
            raise SourceChanged(f"{self.name} changed while it was read: try again")


_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: str) -> int:
    """A descriptor of the regular file at `path`, never of what a link or pipe leads to."""
    descriptor = os.open(path, _READ)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Conflict(f"{path} is not a regular file any more")
    return descriptor


@asynccontextmanager
async def open_source(
    path: str | os.PathLike[str],
) -> AsyncGenerator[tuple[FileSource, Item], None]:
    """The regular file at `path` to be read, and what is known of it.

    Raises `NotFound`, `Forbidden` or `Conflict`; reading raises `SourceChanged`.
    """
    name = os.fspath(path)
    with translated(name):
        descriptor = await to_thread.run_sync(open_regular, name)
        status = os.fstat(descriptor)
    with FileIO(descriptor) as file:  # opened here: a thread's result is lost if this is cancelled
        item = Item((os.path.basename(name),), "file", status.st_size, origin_of(status))
        yield FileSource(name, wrap(file), status), item


def digest_of_file(descriptor: int) -> Digest:
    """The digest of all bytes of an open file.

    Blocking, for a worker thread; ends early if whoever waits for it is cancelled.
    """
    whole, at = blake3(), 0
    while data := os.pread(descriptor, HASHED, at):
        from_thread.check_cancelled()
        whole.update(data)
        at += len(data)
    return Digest(whole.digest())


async def read_small(path: str | os.PathLike[str], most: int) -> tuple[bytes, Origin] | None:
    """The bytes of the regular file at `path`, with one hop to a thread; None if they are more
    than `most`. Raises as `open_source`, and `SourceChanged`.
    """
    return await to_thread.run_sync(_read_small, os.fspath(path), most)


def _read_small(name: str, most: int) -> tuple[bytes, Origin] | None:
    with translated(name):
        descriptor = open_regular(name)
        try:
            before = os.fstat(descriptor)
            if before.st_size > most:
                return None
            data = os.read(descriptor, before.st_size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    if len(data) != before.st_size or identity(before) != identity(after):
        raise SourceChanged(f"{name} changed while it was read: try again")
    return data, origin_of(before)


@frozen
class LocalSource(SourceTree):
    """The folder `top` and everything below it but for what its `.vaultignore` names, and for
    files under way.
    """

    top: FilePath
    """An existing folder."""
    vault: FilePath | None = None
    """A folder that is left out wherever it is met: the vault that all this goes into."""

    async def walk(self) -> AsyncGenerator[list[Item | Skipped], None]:
        refuse_inside(self.vault, self.top)
        steps = self._steps()
        while batch := await to_thread.run_sync(_some, steps):
            yield batch

    def size(self) -> int:
        """Bytes of the files, as far as a quick look shows. Blocking."""
        return sum(item.size for item in self._steps() if isinstance(item, Item))

    def _steps(self) -> Iterator[Item | Skipped]:
        with translated(self.top / IGNORED):
            ignored = ignored_below(self.top)
        folders: list[Path] = [()]
        while folders:
            path = folders.pop()
            below: list[Path] = []
            for item in self._folder(path, ignored):
                if isinstance(item, Item) and item.kind == "folder":
                    below.append(item.path)
                yield item
            folders += reversed(below)

    def _folder(self, path: Path, ignored: Callable[[str], bool]) -> Iterator[Item | Skipped]:
        try:
            with os.scandir(self.top.joinpath(*path)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(self._name(path), f"cannot be read: {error.strerror}")
            return
        taken: set[str] = set()
        for entry in found:
            if is_temporary(entry.name) or ignored(_ignorable(path, entry)):
                continue
            key = key_of(entry.name)
            if key in taken:
                where = self._name((*path, entry.name))
                yield Skipped(where, "another file here has this name, in another Unicode form")
                continue
            taken.add(key)
            yield self._item(path, entry)

    def _item(self, path: Path, entry: os.DirEntry[str]) -> Item | Skipped:
        where = (*path, entry.name)
        try:
            check_name(entry.name)
            status = entry.stat(follow_symlinks=False)
        except InvalidName as error:
            return Skipped(self._name(where), error.message)
        except OSError as error:
            return Skipped(self._name(where), f"cannot be read: {error.strerror}")
        if stat.S_ISDIR(status.st_mode):
            if self._is_vault(status):
                return Skipped(self._name(where), "the vault itself")
            return Item(where, "folder", 0, Origin())
        if stat.S_ISREG(status.st_mode):
            return Item(where, "file", status.st_size, origin_of(status))
        return Skipped(self._name(where), _KINDS.get(stat.S_IFMT(status.st_mode), "not a file"))

    def _is_vault(self, status: os.stat_result) -> bool:
        return self.vault is not None and os.path.samestat(status, self.vault.stat())

    def _name(self, path: Path) -> str:
        """For people: bytes that are no UTF-8 are shown as they are escaped."""
        return os.fsencode(self.top.joinpath(*path)).decode("utf-8", "backslashreplace")

    async def load(self, items: Sequence[Item]) -> list[bytes | VaultError]:
        return await to_thread.run_sync(lambda: [self._load(item) for item in items])

    def _load(self, item: Item) -> bytes | VaultError:
        name = os.path.join(self.top, *item.path)
        try:
            return _read_whole(name, item)
        except VaultError as error:
            return error
        except OSError as error:
            return translate(name, error)

    @asynccontextmanager
    async def open(self, item: Item) -> AsyncGenerator[FileSource, None]:
        async with open_source(self.top.joinpath(*item.path)) as (source, _):
            yield source


_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link: links are not stored",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _ignorable(path: Path, entry: "os.DirEntry[str]") -> str:
    """An entry of the folder `path` as patterns have it: the name of a folder ends in a slash."""
    name = "/".join((*path, entry.name))
    return f"{name}/" if entry.is_dir(follow_symlinks=False) else name


def _some(steps: Iterator[Item | Skipped]) -> list[Item | Skipped]:
    return list(islice(steps, BATCH))


def _read_whole(name: str, item: Item) -> bytes:
    """The bytes of a small file that is as it was when `item` was made."""
    descriptor = os.open(name, _READ)
    try:
        data = os.read(descriptor, item.size + 1)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    same = status.st_mtime_ns // 1000 == item.origin.mtime_us
    if len(data) != item.size or not same or not stat.S_ISREG(status.st_mode):
        raise SourceChanged(f"{name} changed while it was read: try again")
    return data


# Targets


@define(eq=False)
class _FileSink:
    """A temporary file that is being written."""

    name: str
    descriptor: int

    async def write(self, pieces: Sequence[Buffer]) -> None:
        with translated(self.name):
            await to_thread.run_sync(_write_pieces, self.descriptor, pieces)


@define(eq=False)
class LocalTarget(TargetTree):
    """The folder `top`, made if need be, and what is written below it."""

    top: FilePath
    vault: FilePath | None = None
    """A folder that nothing is written into: that of the vault all this comes from."""

    async def make_folders(self, paths: Sequence[Path]) -> list[VaultError | None]:
        return await to_thread.run_sync(lambda: [_caught(self._make, path) for path in paths])

    def _make(self, path: Path) -> None:
        with self._folder(path):
            pass

    @contextmanager
    def _folder(self, path: Path) -> Generator[int, None, None]:
        """A descriptor of the folder `path`, made if need be; no link is followed below the top."""
        where = self.top.joinpath(*path)
        refuse_inside(self.vault, where)
        with translated(where):
            self.top.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in path:
                    below = _open_folder(name, descriptor)
                    os.close(descriptor)
                    descriptor = below
                yield descriptor
            finally:
                os.close(descriptor)

    async def store(
        self, files: Sequence[tuple[Path, Sequence[Buffer], Origin]]
    ) -> list[VaultError | None]:
        return await to_thread.run_sync(self._store, files)

    def _store(
        self, files: Sequence[tuple[Path, Sequence[Buffer], Origin]]
    ) -> list[VaultError | None]:
        outcomes: list[VaultError | None] = []
        at = 0
        while at < len(files):
            folder = files[at][0][:-1]
            same = at
            while same < len(files) and files[same][0][:-1] == folder:
                same += 1
            outcomes += self._store_in(folder, files[at:same])
            at = same
        return outcomes

    def _store_in(
        self, folder: Path, files: Sequence[tuple[Path, Sequence[Buffer], Origin]]
    ) -> list[VaultError | None]:
        try:
            with self._folder(folder) as descriptor:
                return [
                    _caught(_write_whole, descriptor, self.top.joinpath(*path), pieces, origin)
                    for path, pieces, origin in files
                ]
        except VaultError as error:
            return [error] * len(files)

    @asynccontextmanager
    async def create(self, path: Path, origin: Origin) -> AsyncGenerator[Sink, None]:
        where = self.top.joinpath(*path)
        with self._folder(path[:-1]) as folder, translated(where):
            temporary = temporary_name()
            descriptor = _create(folder, temporary)
            try:
                try:
                    yield _FileSink(str(where), descriptor)
                    finish(descriptor, origin)
                finally:
                    os.close(descriptor)
                os.rename(temporary, path[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise


def _caught(call: Callable[..., None], *arguments: object) -> VaultError | None:
    try:
        call(*arguments)
    except VaultError as error:
        return error
    return None


def _open_folder(name: str, parent: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def temporary_name() -> str:
    """A name for a file under way that no other process takes."""
    return f".vaultfs-{os.getpid()}-{next(_numbers)}"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` makes such names."""
    return _TEMPORARY.fullmatch(name) is not None


_TEMPORARY: Final = re.compile(r"\.vaultfs-[0-9]+-[0-9]+")


def _create(folder: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o666, dir_fd=folder)


def finish(descriptor: int, origin: Origin) -> None:
    """Give a written file the mode and time that it had where it came from.

    But never the rights of whoever writes it: anybody may have put it.
    """
    if origin.mode is not None:
        os.fchmod(descriptor, origin.mode & 0o777)
    if origin.mtime_us is not None:
        time = origin.mtime_us * 1000
        os.utime(descriptor, ns=(time, time))


def _write_whole(folder: int, where: FilePath, pieces: Sequence[Buffer], origin: Origin) -> None:
    temporary = temporary_name()
    with translated(where):
        descriptor = _create(folder, temporary)
        try:
            try:
                _write_pieces(descriptor, pieces)
                finish(descriptor, origin)
            finally:
                os.close(descriptor)
            os.rename(temporary, where.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise


def _write_pieces(descriptor: int, pieces: Sequence[Buffer]) -> None:
    for at in range(0, len(pieces), IOV_MAX):
        _write_all(descriptor, pieces[at : at + IOV_MAX])


def _write_all(descriptor: int, pieces: Sequence[Buffer]) -> None:
    written = os.writev(descriptor, pieces)
    if written != sum(map(len, pieces)):
        for view in _rest(pieces, written):
            while view:
                view = view[os.write(descriptor, view) :]  # noqa: PLW2901 what is left of it


def _rest(pieces: Sequence[Buffer], written: int) -> Iterator[memoryview]:
    """What is left of `pieces` behind their first `written` bytes."""
    for piece in pieces:
        yield memoryview(piece)[min(written, len(piece)) :]
        written -= min(written, len(piece))


# Streams


@frozen
class StreamSource:
    """Bytes that come piece by piece, as from a pipe."""

    read: Callable[[int], bytes]
    """Blocking; the next bytes, at most so many, none at the end."""

    async def readinto(self, view: memoryview) -> int:
        return await to_thread.run_sync(self._fill, view, abandon_on_cancel=True)

    def _fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            data = self.read(len(view) - filled)
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled


@define(eq=False)
class IterableSource:
    """Bytes that an async iterator gives."""

    pieces: AsyncGenerator[bytes, None]
    _rest: memoryview = field(factory=lambda: memoryview(b""))

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if not self._rest:
                piece = await anext(self.pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            part = self._rest[: len(view) - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return filled


def refuse_inside(vault: FilePath | None, path: FilePath) -> None:
    """Raise `Conflict` if `path` is the folder `vault`, or leads into it."""
    if vault is not None and path.resolve().is_relative_to(vault.resolve()):
        raise Conflict(f"{path} is in the vault itself: its files are no place for anything else")


def exists_folder(path: FilePath) -> bool:
    """Whether a folder is there (a link to one counts: the user named it)."""
    with suppress(OSError):
        return stat.S_ISDIR(os.stat(path).st_mode)
    return False

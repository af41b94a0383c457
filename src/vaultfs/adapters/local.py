"""Objects as files under one folder of a local disk.

Theory of operation. A key is a path below the root. A last part of 32 characters
and more stands two folders deeper, named by its first two and its next two
characters, so that a million packs make 65,536 folders of a few files each. Parts
of keys have three characters and more, so such a folder is never one of a key.

`put` writes a file in `.tmp`, a name that no key has, flushes it to the disk, gives
it its final name in one step (`link` fails if the name is taken, `replace` does
not), and flushes the folder. A crash before that step leaves a file in `.tmp`, which
nothing shows and `open` removes a day later; a crash after it leaves the object,
and at most a second name of it in `.tmp`. A folder that another writer has just
made may not be on the disk yet, and neither may the name that another writer has
just taken: so the folders above an object are flushed the first time this process
uses them, whoever made them, and `ObjectExists` is raised after a flush as well.

A thread hop costs more than most of the system calls it carries, so each call is
one hop, and a large `put` one more for each block and one to begin.
"""


# to build than most of the calls here take

import errno
import fcntl
import os
import stat
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import merge
from io import BufferedWriter, FileIO
from itertools import islice
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from aiofiles.threadpool import wrap
from anyio import CancelScope
from anyio.to_thread import run_sync
from attrs import frozen

from vaultfs.adapters.probing import PROBES, probe_objects
from vaultfs.domain.digests import Buffer
from vaultfs.ports.objects import (
    MAX_OBJECT,
    Capabilities,
    Deleted,
    IntegrityError,
    InvalidKey,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    OutOfSpace,
    Payload,
    PermissionDenied,
    PutMode,
    Span,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
    StoreUnsupported,
    parts_of,
    size_of,
    valid_key,
)

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedIOBase

_WRITE_BUFFER: Final = 64 << 10
"""Joins small parts into larger writes; what is larger goes through uncopied."""
_SMALL: Final = 256 << 10
_SECTOR: Final = 4096
"""Direct I/O goes by pieces of so many bytes, on every disk."""
_PIECE: Final = 1 << 20
"""Bytes that go to the disk at once where they have to be moved first."""
_FANNED: Final = 32
_PAGE: Final = 512
_LEFTOVER_AGE: Final = 24 * 3600.0
_TEMPORARY: Final = ".tmp"

_ERRORS: Final[dict[int, type[StoreError]]] = {
    errno.ENOENT: ObjectNotFound,
    errno.ENOTDIR: ObjectNotFound,
    errno.EISDIR: ObjectNotFound,
    errno.EEXIST: ObjectExists,
    errno.ENOSPC: OutOfSpace,
    errno.EDQUOT: OutOfSpace,
    errno.EFBIG: OutOfSpace,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENAMETOOLONG: InvalidKey,
    errno.ELOOP: StoreMisconfigured,
    errno.EXDEV: StoreMisconfigured,
    errno.EOPNOTSUPP: StoreUnsupported,
}
_GET_ERRORS: Final = _ERRORS | {errno.EIO: IntegrityError}
_PUT_ERRORS: Final = _ERRORS | {
    errno.ENOENT: StoreMisconfigured,
    errno.ENOTDIR: InvalidKey,
    errno.EISDIR: InvalidKey,
}
_LIST_ERRORS: Final = _ERRORS | {
    errno.ENOENT: StoreUnavailable,
    errno.ENOTDIR: StoreUnavailable,
}
_TABLES: Final = {"get": _GET_ERRORS, "put": _PUT_ERRORS, "list": _LIST_ERRORS}
_MAKE_IT: Final = ": mount its disk, or make it if the store is to be a new one"
_SELF_EXPLAINED: Final = (ObjectNotFound, ObjectExists)


class LocalObjectStore(ObjectStore):
    """A store in the folder `root`, which has to be there and on one file system.

    It has no room for both `abc` and `abc/def`: the second put raises `InvalidKey`.
    Neither has it for parts of more than 255 characters. A delete is not flushed: a
    power cut may bring the object back.
    """

    def __init__(self, root: Path, name: str = "local") -> None:
        self._root = os.fspath(root)
        self._name = name
        self._temporary = os.path.join(self._root, _TEMPORARY)
        self._on_disk = {self._root}
        """Folders whose names this process has flushed."""

    @classmethod
    async def open(cls, root: Path, name: str = "local") -> "LocalObjectStore":
        """The store in `root`, without what crashed processes left more than 24 hours ago.

        Raises `StoreMisconfigured` if `root` is not there, as when a disk is not mounted.
        """
        store = cls(root, name)
        await run_sync(store._remove_leftovers)
        return store

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, delete_batch=1)

    async def head(self, key: str) -> ObjectInfo:
        path = self._path("head", key)
        return await run_sync(self._head, key, path)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        path = self._path("get", key)
        return await run_sync(self._get, key, path, span)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        path = self._path("put", key)
        parts, size = parts_of(data), size_of(data)
        if size > MAX_OBJECT:
            raise ObjectTooLarge(backend=self.name, operation="put", key=key)
        with self._edge("put", key):
            if size <= _SMALL:
                await run_sync(self._put_small, parts, path, mode)
            elif len(parts) == 1:
                await run_sync(self._put_whole, memoryview(parts[0]), path, mode)
            else:
                await self._put_large(parts, path, mode)

    async def delete(self, key: str) -> None:
        path = self._path("delete", key)
        await run_sync(self._delete, "delete", key, path)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await run_sync(lambda: tuple(self._deleted(key) for key in keys))

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        objects = _walk(self._root, "", _Wanted(prefix, start_after))
        while page := await run_sync(self._page, prefix, objects):
            for info in page:
                yield info

    async def probe(self) -> None:
        await probe_objects(self)

    async def room(self) -> int:
        with self._edge("room", ""):
            found = await run_sync(os.statvfs, self._root)
        return found.f_bavail * found.f_frsize

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    # What follows runs in worker threads.

    def _head(self, key: str, path: str) -> ObjectInfo:
        with self._edge("head", key):
            return _info(key, _stat(path))

    def _get(self, key: str, path: str, span: Span | None) -> bytes:
        with self._edge("get", key), _opened(path) as fd:
            size = os.fstat(fd).st_size
            wanted = Span(0, size) if span is None else span
            return _read(fd, wanted.start, min(wanted.stop, size))

    def _delete(self, operation: str, key: str, path: str) -> None:
        with self._edge(operation, key), suppress(ObjectNotFound), self._edge(operation, key):
            os.unlink(path)
            if key.startswith(PROBES):
                self._tidy(os.path.dirname(path))

    def _tidy(self, folder: str) -> None:
        """Leave no empty folders of probes: a store that was only tried is as it was."""
        with suppress(OSError):
            while folder != self._root:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def _deleted(self, key: str) -> Deleted:
        try:
            self._delete("delete_many", key, self._path("delete_many", key))
        except StoreError as error:
            return Deleted(key, error)
        return Deleted(key)

    def _page(self, prefix: str, objects: Iterator[ObjectInfo]) -> tuple[ObjectInfo, ...]:
        with self._edge("list", prefix):
            return tuple(islice(objects, _PAGE))

    def _put_small(self, parts: tuple[Buffer, ...], path: str, mode: PutMode) -> None:
        file = self._new_file()
        try:
            file.writelines(parts)
            self._publish(file, path, mode)
        except BaseException:
            _discard(file)
            raise

    def _put_whole(self, data: memoryview, path: str, mode: PutMode) -> None:
        """Store what is one piece of memory, past the page cache where that can be."""
        file = self._new_file()
        try:
            _write_past_cache(file, data)
            self._publish(file, path, mode)
        except BaseException:
            _discard(file)
            raise

    async def _put_large(self, parts: tuple[Buffer, ...], path: str, mode: PutMode) -> None:
        """Runs in the event loop.

        A cancellation can leave a write going on in its thread; `_discard` waits for the end
        of it, because a `BufferedWriter` closes and writes under one lock.
        """
        file = await run_sync(self._new_file)
        try:
            target: AsyncBufferedIOBase = wrap(file)
            await target.writelines(parts)
            await run_sync(self._publish, file, path, mode)
        except BaseException:
            with CancelScope(shield=True):
                await run_sync(_discard, file)
            raise

    def _new_file(self) -> BufferedWriter:
        name = os.path.join(self._temporary, uuid4().hex)
        try:
            return _create(name)  # `_publish` or `_discard` closes it
        except FileNotFoundError:
            _make_folder(self._temporary)
            return _create(name)

    def _publish(self, file: BufferedWriter, path: str, mode: PutMode) -> None:
        with file:
            file.flush()
            os.fsync(file.fileno())
        try:
            self._place(file.name, path, mode)
        except FileNotFoundError:  # somebody has tidied folders away
            self._on_disk = {self._root}
            self._place(file.name, path, mode)
        if mode is PutMode.CREATE:
            with suppress(OSError):
                os.unlink(file.name)

    def _place(self, temporary: str, path: str, mode: PutMode) -> None:
        folder = os.path.dirname(path)
        self._flush_above(folder)
        if mode is PutMode.OVERWRITE:
            os.replace(temporary, path)
            _flush_folder(folder)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            with suppress(FileNotFoundError):  # deleted since, which is no news
                _stat(path)
            _flush_folder(folder)
            raise
        _flush_folder(folder)

    def _flush_above(self, folder: str) -> None:
        """Have `folder` and those above it, and have their names on the disk."""
        if folder in self._on_disk:
            return
        above = os.path.dirname(folder)
        self._flush_above(above)
        _make_folder(folder)
        _flush_folder(above)
        self._on_disk.add(folder)

    def _remove_leftovers(self) -> None:
        oldest = time.time() - _LEFTOVER_AGE
        with self._edge("open", ""):
            _make_folder(self._temporary)
            for entry in _entries(self._temporary):
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)

    def _path(self, operation: str, key: str) -> str:
        if not valid_key(key):
            raise InvalidKey(backend=self.name, operation=operation, key=key)
        folders, slash, name = key.rpartition("/")
        fan = f"{name[:2]}/{name[2:4]}/" if _is_fanned(name) else ""
        return f"{self._root}/{folders}{slash}{fan}{name}"

    @contextmanager
    def _edge(self, operation: str, key: str) -> Generator[None, None, None]:
        try:
            yield
        except OSError as exc:
            raise self._translated(exc, operation, key) from exc

    def _translated(self, exc: OSError, operation: str, key: str) -> StoreError:
        kind = _TABLES.get(operation, _ERRORS).get(exc.errno or 0, StoreUnavailable)
        detail = "" if kind in _SELF_EXPLAINED else exc.strerror or str(exc)
        if exc.errno in {errno.ENOENT, errno.ENOTDIR} and not os.path.isdir(self._root):
            kind, detail = StoreMisconfigured, f"its folder {self._root} is not there{_MAKE_IT}"
        return kind(detail, backend=self.name, operation=operation, key=key)


@frozen
class _Wanted:
    """The keys that a listing is about."""

    prefix: str
    start_after: str

    def __contains__(self, key: str) -> bool:
        return key > self.start_after and key.startswith(self.prefix)

    def some_below(self, stem: str) -> bool:
        """Whether a key that starts with `stem` may be wanted."""
        related = stem.startswith(self.prefix) or self.prefix.startswith(stem)
        return related and stem >= self.start_after[: len(stem)]


def _walk(folder: str, stem: str, wanted: _Wanted) -> Iterator[ObjectInfo]:
    """The wanted objects in and under `folder`, by key; `stem` is how their keys begin.

    Reads a folder when the listing comes to it. All keys of a folder `abc` begin with
    `abc/`, so sorting it under that name puts them where they belong among files.
    """
    entries = _entries(folder)
    fans = [entry for entry in entries if _is_fan(entry)]
    here = sorted(_named(stem, entries, wanted), key=_by_key)
    for key, entry in merge(here, _fanned(stem, fans, wanted), key=_by_key):
        if key.endswith("/"):
            yield from _walk(entry.path, key, wanted)
        else:
            with suppress(FileNotFoundError):  # deleted since
                yield _info(key, entry.stat(follow_symlinks=False))


def _by_key(item: "tuple[str, os.DirEntry[str]]") -> str:
    return item[0]


def _named(
    stem: str, entries: "Iterable[os.DirEntry[str]]", wanted: _Wanted
) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """The wanted objects and folders of keys that stand in a folder under their own names."""
    for entry in entries:
        key = stem + entry.name
        if not valid_key(key):
            continue
        if entry.is_dir():
            if wanted.some_below(key + "/"):
                yield key + "/", entry
        elif key in wanted and not _is_fanned(entry.name) and _is_object(entry):
            yield key, entry


def _fanned(
    stem: str, fans: "Iterable[os.DirEntry[str]]", wanted: _Wanted
) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """The wanted objects that stand two folders deeper, by key."""
    for first in sorted(fans, key=_by_name):
        if not wanted.some_below(stem + first.name):
            continue
        for second in sorted(filter(_is_fan, _entries(first.path)), key=_by_name):
            start = first.name + second.name
            if wanted.some_below(stem + start):
                for entry in sorted(_entries(second.path), key=_by_name):
                    key = stem + entry.name
                    fits = entry.name.startswith(start) and _is_fanned(entry.name)
                    if fits and key in wanted and valid_key(key) and _is_object(entry):
                        yield key, entry


def _by_name(entry: "os.DirEntry[str]") -> str:
    return entry.name


def _is_fanned(name: str) -> bool:
    # The second folder of `ab..` would be the one above it.
    return len(name) >= _FANNED and name[:4].isalnum()


def _is_fan(entry: "os.DirEntry[str]") -> bool:
    return len(entry.name) == 2 and entry.is_dir()


def _is_object(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file(follow_symlinks=False)


def _entries(folder: str) -> "tuple[os.DirEntry[str], ...]":
    with os.scandir(folder) as found:
        return tuple(found)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, found.st_mtime_ns // 1000)


def _stat(path: str) -> os.stat_result:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link stands where an object should")
    _see_that_it_is_a_file(found)
    return found


def _see_that_it_is_a_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder of other keys stands there")


@contextmanager
def _opened(path: str) -> Generator[int, None, None]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _see_that_it_is_a_file(os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop`, fewer if the file ends before.

    `pread` reads into the very bytes it returns, nearly always all of them at once.
    """
    parts: list[bytes] = []
    while start < stop and (part := os.pread(fd, stop - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _make_folder(path: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(path)


def _flush_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_past_cache(file: BufferedWriter, data: memoryview) -> None:
    """Write `data` to the new `file`; whole sectors to the disk, without a copy in its cache.

    That copy costs as much as all else that is done to the bytes, and more where the cache has to
    grow. What does not begin where a page does goes through memory that does, a piece at a time.
    File systems without direct I/O refuse.
    """
    fd, flags = file.fileno(), fcntl.fcntl(file, fcntl.F_GETFL)
    whole = len(data) - len(data) % _SECTOR
    at = 0
    for write in (_write_directly, _write_by_pieces):
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            at = write(fd, data[:whole])
            break
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    file.seek(at)
    file.write(data[at:])


def _write_directly(fd: int, data: memoryview) -> int:
    at = 0
    while at < len(data):
        at += os.pwrite(fd, data[at:], at)
    return at


def _write_by_pieces(fd: int, data: memoryview) -> int:
    at, room = 0, memoryview(mmap(-1, _PIECE))
    while at < len(data):
        size = min(_PIECE, len(data) - at)
        room[:size] = data[at : at + size]
        at += os.pwrite(fd, room[:size], at)
    return at


def _create(name: str) -> BufferedWriter:
    return BufferedWriter(FileIO(name, "x"), _WRITE_BUFFER)


def _discard(file: BufferedWriter) -> None:
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        os.unlink(file.name)

"""One local file as the base of a delta, and its replacement by what the delta leads to."""

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path as FilePath
from typing import Final

from anyio import to_thread
from attrs import define

from vaultfs.adapters.files import (
    digest_of_file,
    finish,
    identity,
    open_regular,
    temporary_name,
    translated,
)
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import SourceChanged
from vaultfs.domain.nodes import Origin

AT_ONCE: Final = 256 << 10
"""Bytes that are read without a hop to a thread: they were read a moment ago."""


@define(eq=False)
class LocalBase:
    """A local file, its digest known; made by `local_base`."""

    path: FilePath
    before: os.stat_result
    digest: Digest
    _descriptor: int

    @property
    def size(self) -> int:
        return self.before.st_size

    async def read(self, start: int, stop: int) -> bytes:
        """Raises `SourceChanged` if the file has become shorter."""
        if stop - start <= AT_ONCE:
            return self._read(start, stop)
        return await to_thread.run_sync(self._read, start, stop)

    def _read(self, start: int, stop: int) -> bytes:
        with translated(self.path):
            data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise _changed(self.path)
        return data


def _changed(path: FilePath) -> SourceChanged:
    return SourceChanged(f"{path} changed meanwhile: it was left as it is now; try again")


@asynccontextmanager
async def local_base(path: FilePath) -> AsyncGenerator[LocalBase, None]:
    """The regular file at `path`, read once to hash it. Raises `NotFound` and the like."""
    with translated(path):
        descriptor = open_regular(str(path))
    try:
        before = os.fstat(descriptor)
        digest = await to_thread.run_sync(_digest, path, descriptor)
        yield LocalBase(path, before, digest, descriptor)
    finally:
        os.close(descriptor)


def _digest(path: FilePath, descriptor: int) -> Digest:
    with translated(path):
        return digest_of_file(descriptor)


def status_of(path: FilePath) -> os.stat_result | None:
    """What stands at `path`; None if nothing does."""
    with translated(path), suppress(FileNotFoundError):
        return path.lstat()
    return None


@define(eq=False)
class Replacement:
    """A file that is being written beside the one that it replaces."""

    path: FilePath
    _descriptor: int
    status: os.stat_result | None = None
    """What it looks like, once it is written."""

    async def write(self, data: bytes) -> None:
        await to_thread.run_sync(self._write, data)

    def _write(self, data: bytes) -> None:
        with translated(self.path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]


@asynccontextmanager
async def replacing(
    path: FilePath, expected: os.stat_result | None, origin: Origin
) -> AsyncGenerator[Replacement, None]:
    """Write a file that takes the place of `path` at the end, durable, at one moment.

    Raises `SourceChanged` if something else than `expected` stands there by then. A crash,
    or an exception, leaves what was there, and at most a `.vaultfs-*` file beside it.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.parent / temporary_name()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with _closing(descriptor):
            replacement = Replacement(path, descriptor)
            yield replacement
            finish(descriptor, origin)
            replacement.status = os.fstat(descriptor)
            await to_thread.run_sync(os.fsync, descriptor)
        _must_be(path, expected)
        with translated(path):
            beside.rename(path)
            await to_thread.run_sync(_sync_folder, path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def _must_be(path: FilePath, expected: os.stat_result | None) -> None:
    now = status_of(path)
    if (now and identity(now)) != (expected and identity(expected)):
        raise _changed(path)


@contextmanager
def _closing(descriptor: int) -> Generator[None, None, None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: FilePath) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _closing(descriptor):
        os.fsync(descriptor)

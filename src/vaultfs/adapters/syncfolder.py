"""The files of a folder that is kept in step: what is there, and what was changed since."""

import os
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path as FilePath
from typing import Final, NamedTuple

from anyio import from_thread
from attrs import define

from vaultfs.adapters.files import (
    digest_of_file,
    identity,
    is_temporary,
    open_regular,
    translate,
    translated,
)
from vaultfs.adapters.ignoring import IGNORED, ignored_below
from vaultfs.adapters.syncstate import FOLDER, InStep
from vaultfs.domain.errors import SourceChanged, VaultError
from vaultfs.domain.names import Path, check_path
from vaultfs.ports.progress import no_progress

_name: Final = attrgetter("name")
STALE: Final = 3600.0
"""Seconds after which a file under way, which nobody writes to, was left by a crash."""


class Found(NamedTuple):
    """A file of the folder."""

    status: os.stat_result
    edited: bool
    content: bytes
    """Its digest."""


class Scan(NamedTuple):
    """What is in the folder, and what is there but is not looked at: it is not gone."""

    files: dict[Path, Found]
    settled: set[str]
    """Names of files that look as they did when they were in step, and nobody asked about."""
    seen: int
    """The folder's fingerprint, as it was when the files were looked at."""
    skipped: list[tuple[str, str]]
    """What is no file that can be, or cannot be read, and why."""
    ignored: Callable[[str], bool]

    def passed_over(self, paths: Iterable[Path]) -> set[Path]:
        """Those of which nothing is known: what is here under them, or above them."""
        names = {name for name, _ in self.skipped}
        rest = (path for path in paths if path not in self.files)
        return {path for path in rest if self._is_over(path, names)}

    def _is_over(self, path: Path, skipped: set[str]) -> bool:
        above = ["/".join(path[:depth]) for depth in range(1, len(path) + 1)]
        return (
            any(map(_is_own, path))
            or any(name in skipped for name in above)
            or self.ignored(above[-1])
            or any(self.ignored(f"{name}/") for name in above[:-1])
        )


@define
class SyncFolder:
    """A folder here. Blocking, for worker threads; a look at it ends early if whoever waits for it
    is cancelled.
    """

    top: FilePath
    vault: FilePath | None = None
    """The folder of the vault, which is passed over."""
    looked: Callable[[int], None] = no_progress
    """Told of each file that a scan has looked into, in its thread."""

    def scan(self, known: Mapping[str, InStep], asked: Container[str] = ()) -> Scan:
        """All files, each hashed unless it looks as it did when it was in step.

        Of those that do, only the names are told, but for those that are `asked` about.
        `.vaultfs`, what `.vaultignore` names (as `.gitignore` does) and files under way are
        passed over; links and what is no file are skipped, and so is what cannot be read.
        """
        ignored = self._patterns()
        files: dict[Path, Found] = {}
        settled: set[str] = set()
        skipped: list[tuple[str, str]] = []
        seen = 0
        for name, entry in self._walk("", ignored, skipped):
            was = known.get(name)
            try:
                status = entry.stat(follow_symlinks=False)
                seen = _mixed(seen, name, status)
                if was is None or name in asked or not _as_it_was(was, status):
                    path = check_path(tuple(name.split("/")))
                    files[path] = self.found(path, status, was)
                    self.looked(1)
                else:
                    settled.add(name)
            except OSError as error:
                skipped.append((name, translate(entry.path, error).message))
            except VaultError as error:
                skipped.append((name, error.message))
        return Scan(files, settled, seen, skipped, ignored)

    def fingerprint(self) -> int:
        """What is another number as soon as a file of the folder is another one."""
        seen = 0
        for name, entry in self._walk("", self._patterns(), []):
            with suppress(OSError):
                seen = _mixed(seen, name, entry.stat(follow_symlinks=False))
        return seen

    def _patterns(self) -> Callable[[str], bool]:
        with translated(self.top / IGNORED):
            return ignored_below(self.top)

    def _walk(
        self, above: str, ignored: Callable[[str], bool], skipped: list[tuple[str, str]]
    ) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        """Files and their names, below the folder `above`, which is "" or ends with a slash."""
        from_thread.check_cancelled()
        try:
            with translated(self.top / above), os.scandir(self.top / above) as found:
                entries = sorted(found, key=_name)
        except VaultError as error:
            if not above:
                raise
            skipped.append((above[:-1], error.message))
            return
        for entry in entries:
            name = above + entry.name
            if _is_own(entry.name):
                if entry.name != FOLDER:
                    _sweep(entry)
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if ignored(f"{name}/" if is_folder else name):
                continue
            if is_folder and not self._is_vault(entry):
                yield from self._walk(f"{name}/", ignored, skipped)
            elif not is_folder and entry.is_file(follow_symlinks=False):
                yield name, entry
            else:
                skipped.append((name, _kind(entry)))

    def _is_vault(self, entry: "os.DirEntry[str]") -> bool:
        return self.vault is not None and os.path.samefile(entry.path, self.vault)

    def found(self, path: Path, status: os.stat_result, known: InStep | None) -> Found:
        """A file that looks like `status`, hashed unless it did when it was in step."""
        if known is not None and _as_it_was(known, status):
            return Found(status, False, known.content)
        return self._read(path, known)

    def _read(self, path: Path, known: InStep | None) -> Found:
        where = self._name(path)
        with translated(where):
            descriptor = open_regular(where)
            try:
                before = os.fstat(descriptor)
                content = digest_of_file(descriptor)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        if identity(before) != identity(after):
            raise SourceChanged(f"{where} changes while it is read")
        return Found(after, known is None or content != known.content, content)

    def where(self, path: Path) -> FilePath:
        """Where a file of the folder is."""
        return self.top.joinpath(*path)

    def _name(self, path: Path) -> str:
        """The same, for what is asked of each file: in a third of the time."""
        return os.path.join(self.top, *path)

    def remove(self, path: Path, seen: os.stat_result) -> None:
        """Delete a file that is as it was seen, and folders above that it leaves empty."""
        self._must_be(path, seen)
        with translated(self.where(path)):
            self.where(path).unlink()
        self._prune(path[:-1])

    def move(self, path: Path, target: Path, seen: os.stat_result) -> None:
        """Give a file that is as it was seen another name, which nothing may have."""
        self._must_be(path, seen)
        where = self.where(target)
        with translated(where):
            where.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.where(path), where, follow_symlinks=False)  # unlike a rename, never over
            self.where(path).unlink()
        self._prune(path[:-1])

    def is_as_seen(self, path: Path, seen: os.stat_result) -> bool:
        """Whether nobody has written to a file since, as far as a look at it tells."""
        with suppress(VaultError):
            self._must_be(path, seen)
            return True
        return False

    def _must_be(self, path: Path, seen: os.stat_result) -> None:
        where = self._name(path)
        with translated(where):
            now = os.lstat(where)
        same = (now.st_size, now.st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
        if not same or not stat.S_ISREG(now.st_mode):
            raise SourceChanged(f"{where} changed meanwhile: it was left as it is")

    def _prune(self, folder: Path) -> None:
        with suppress(OSError):
            while folder:
                self.where(folder).rmdir()
                folder = folder[:-1]


def _as_it_was(known: InStep, status: os.stat_result) -> bool:
    """Whether a file, whose content is known, looks as it did when it was in step."""
    return bool(known.content) and known.is_as_it_was(status)


def _mixed(seen: int, name: str, status: os.stat_result) -> int:
    return hash((seen, name, status.st_size, status.st_mtime_ns, status.st_ino))


def _is_own(name: str) -> bool:
    """Whether it is a name of what is kept beside the files, or of a file under way."""
    return name.startswith(FOLDER) and (name == FOLDER or is_temporary(name))


def _kind(entry: "os.DirEntry[str]") -> str:
    """What that is, which is not stored."""
    if entry.is_symlink():
        return "a link: links are not stored"
    return "the vault itself" if entry.is_dir(follow_symlinks=False) else "no file"


def _sweep(entry: "os.DirEntry[str]") -> None:
    """Delete a file under way that a crash has left."""
    with suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        if time.time() - status.st_mtime > STALE and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)

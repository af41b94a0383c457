"""An fsspec filesystem over a server: `vaultfs://host:port/path`, for pandas, dask and the like.

    fsspec.open("vaultfs://vault.example/notes/today.txt", token=...)

It speaks https unless `tls=False`. A new instance connects when it is first used, and its
connections live in a thread of their own, so it can be used from any thread; whoever awaits
uses the SDK itself. Nothing is cached but the instance: what is listed is what is there.
"""

# pyright: basic
# fsspec has no types, and what it passes is whatever its users have.

import os
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import anyio
import fsspec
from anyio.from_thread import BlockingPortal
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import infer_storage_options

from vaultfs.domain import errors
from vaultfs.domain.errors import VaultError
from vaultfs.domain.nodes import ABSENT, NO_PRECONDITIONS, Node
from vaultfs.entrypoints.client import connect
from vaultfs.entrypoints.fileobjects import ReadFile, WriteFile
from vaultfs.entrypoints.sync import SyncRemoteVault

_ERRORS: Final[tuple[tuple[type[VaultError], type[OSError]], ...]] = (
    (errors.NotFound, FileNotFoundError),
    (errors.Exists, FileExistsError),
    (errors.IsAFolder, IsADirectoryError),
    (errors.NotAFolder, NotADirectoryError),
    (errors.Forbidden, PermissionError),
    (errors.NotAuthenticated, PermissionError),
)
"""What users of a filesystem expect; others stay what they are."""


@contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except VaultError as error:
        for kind, known in _ERRORS:
            if isinstance(error, kind):
                raise known(error.message) from error
        raise


class VaultFileSystem(fsspec.AbstractFileSystem):
    """Files of the user whom `token`, `VAULTFS_TOKEN` or `vaultfs login` is for."""

    protocol = "vaultfs"
    root_marker = "/"

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        tls: bool = True,
        token: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(host=host, port=port, tls=tls, token=token, **options)
        where = f"[{host}]" if ":" in host else host
        shown = "" if port is None else f":{port}"
        self._address, self._token = f"http{'s' if tls else ''}://{where}{shown}", token

    @cached_property
    def vault(self) -> SyncRemoteVault:
        """The vault itself, for what a filesystem has no word for: versions, trash, metadata."""
        with ExitStack() as stack, _translated():
            portal = stack.enter_context(_portal())
            opened = portal.wrap_async_context_manager(connect(self._address, token=self._token))
            vault = SyncRemoteVault(stack.enter_context(opened), portal)
            weakref.finalize(self, stack.pop_all().close)
            return vault

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path)
        if text.startswith("vaultfs://"):
            text = "/" + text.removeprefix("vaultfs://").partition("/")[2]
        return "/" + text.strip("/") if text.strip("/") else cls.root_marker

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = infer_storage_options(path)
        return {key: found[key] for key in ("host", "port") if found.get(key)}

    def unstrip_protocol(self, name: str) -> str:
        """`name` as a URL."""
        where = self._address.partition("://")[2]
        return f"vaultfs://{where}{self._strip_protocol(name)}"

    # Looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What is at `path`."""
        where = self._strip_protocol(path)
        with _translated():
            return _info(self.vault.stat(where), where)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001,FBT002 fsspec's
        """What is in a folder; a file lists itself."""
        where = self._strip_protocol(path)
        with _translated():
            node = self.vault.stat(where)
            if node.is_folder:
                top = where.rstrip("/")
                found = [_info(each, f"{top}/{each.name}") for each in self.vault.list(where)]
            else:
                found = [_info(node, where)]
        return found if detail else [each["name"] for each in found]

    def created(self, path: str) -> datetime:
        """When it was made."""
        moment: datetime = self.info(path)["created"]
        return moment

    def modified(self, path: str) -> datetime:
        """When it was last changed."""
        moment: datetime = self.info(path)["modified"]
        return moment

    # Contents

    def _open(self, path: str, mode: str = "rb", **options: Any) -> ReadFile | WriteFile:
        if mode not in {"rb", "wb", "xb"}:
            raise ValueError(f"mode {mode}: rb, wb or xb; versions do not grow")
        if mode != "rb" and not options.get("autocommit", True):
            raise NotImplementedError("transactions of several files")
        where = self._strip_protocol(path)
        with _translated():
            if mode == "rb":
                return self.vault.open(where, "rb", version=options.get("version"))
            written = self.vault.open(where, "xb" if mode == "xb" else "wb")
        written.around = _translated
        return written

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or some of them; numbers below 0 count from its end."""
        where = self._strip_protocol(path)
        with _translated():
            if (start or 0) < 0 or (end or 0) < 0:
                size = self.vault.stat(where).size
                start = None if start is None else _from_end(start, size)
                end = None if end is None else _from_end(end, size)
            if end is not None and end < (start or 0):
                return b""
            return self.vault.get(where, start=start or 0, stop=end)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Store `value`; with the mode `create` only if nothing is there."""
        self._put(path, value, mode)

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **_: Any,
    ) -> None:
        """Store a local file; of a folder only itself."""
        if Path(lpath).is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        size = Path(lpath).stat().st_size
        callback.set_size(size)
        self._put(rpath, Path(lpath), mode)
        callback.relative_update(size)

    def _put(self, path: str, content: bytes | Path, mode: str) -> None:
        if self._intrans:
            raise NotImplementedError("transactions of several files")
        wanted = ABSENT if mode == "create" else NO_PRECONDITIONS
        with _translated():
            try:
                self.vault.put(self._strip_protocol(path), content, preconditions=wanted)
            except errors.VersionMismatch as error:
                raise errors.Exists(error.message) from error

    # Folders, and what moves

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: FBT001,FBT002 fsspec's
        """Make a folder."""
        with _translated():
            self.vault.mkdir(self._strip_protocol(path), parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001,FBT002 fsspec's
        """Make a folder, and those above it."""
        where = self._strip_protocol(path)
        with _translated():
            if where != self.root_marker:
                self.vault.mkdir(where, parents=True, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Send an empty folder to the trash."""
        where = self._strip_protocol(path)
        if self.info(where)["type"] != "directory":
            raise NotADirectoryError(f"{where} is no folder")
        self._delete(where, recursive=False)

    def _rm(self, path: str) -> None:
        self._delete(self._strip_protocol(path), recursive=False)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: FBT001,FBT002 fsspec's
        """Send files to the trash; folders with all that they hold if `recursive`."""
        if isinstance(path, str) and recursive and maxdepth is None and "*" not in path:
            self._delete(self._strip_protocol(path), recursive=True)
        else:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)

    def _delete(self, where: str, *, recursive: bool) -> None:
        with _translated():
            self.vault.delete(where, recursive=recursive)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file, without its bytes passing through here; of a folder only itself."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
            return
        self.makedirs(self._parent(target), exist_ok=True)
        with _translated():
            self.vault.copy(source, target, replace=True)

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,  # noqa: FBT001,FBT002 fsspec's
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Give a file or folder another path: at once, whatever it holds."""
        if not isinstance(path1, str) or fsspec.core.has_magic(path1) or maxdepth is not None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        if source != target:
            with _translated():
                self.vault.move(source, target, replace=self.isfile(target))


def _from_end(number: int, size: int) -> int:
    return number if number >= 0 else max(0, size + number)


def _info(node: Node, path: str) -> dict[str, Any]:
    return {
        "name": path,
        "size": node.size,
        "type": "directory" if node.is_folder else "file",
        "created": node.created,
        "modified": node.modified,
        "version": node.number or None,
        "ETag": None if node.version is None else f'"v{node.version}"',
    }


@contextmanager
def _portal() -> Generator[BlockingPortal, None, None]:
    """An event loop in a thread of its own that holds up no end of the program."""
    ready: Future[BlockingPortal] = Future()

    async def live() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    run: Callable[..., Any] = anyio.run
    thread = threading.Thread(target=run, args=(live,), name="vaultfs", daemon=True)
    thread.start()
    portal = ready.result()
    try:
        yield portal
    finally:
        with suppress(RuntimeError):  # it is gone already, with the program
            portal.call(portal.stop)
        thread.join(5)

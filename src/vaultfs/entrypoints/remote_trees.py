"""Whole trees to a server and back: what `domain.services.transfer` does in a vault at hand."""

from typing import Final

import anyio
from attrs import define, field
from blake3 import blake3

from vaultfs.adapters.files import LocalSource, LocalTarget
from vaultfs.domain.errors import NotAFolder, VaultError
from vaultfs.domain.names import Path, format_path
from vaultfs.domain.nodes import DigestState, Node
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.transfer import FILE_ERRORS, Report
from vaultfs.entrypoints.answers import origin_headers, version_of
from vaultfs.entrypoints.client import SMALL, Body, RemoteVault, check_digest
from vaultfs.ports.progress import Progress
from vaultfs.ports.trees import Item, Skipped

AT_ONCE: Final = 16
"""Files that are on their way at the same time."""


@define(eq=False)
class PutTree:
    """One local folder on its way to a server."""

    vault: RemoteVault
    source: LocalSource
    path: str
    progress: Progress
    report: Report = field(factory=Report)
    room: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(AT_ONCE))

    async def run(self) -> Report:
        """Send it all; only a failure of the server itself is raised."""
        await self.vault.mkdir(self.path, parents=True, exist_ok=True)
        async with task_group() as tasks:
            async for batch in self.source.walk():
                for item in batch:
                    if isinstance(item, Skipped):
                        self.report.skipped.append(item)
                    elif item.kind == "folder":
                        await self.vault.mkdir(self._at(item.path), exist_ok=True)
                        self.report.folders += 1
                    else:
                        await self.room.acquire()
                        tasks.start_soon(self._send, item)
        return self.report

    def _at(self, path: Path) -> str:
        return self.path.rstrip("/") + format_path(path)

    async def _send(self, item: Item) -> None:
        try:
            changed = await self._put(item)
        except FILE_ERRORS as error:
            self.report.failed.append(Skipped(format_path(item.path), error.message))
        else:
            self.report.files += 1
            self.report.size += item.size
            self.report.changed += changed
        finally:
            self.room.release()

    async def _put(self, item: Item) -> int:
        """Put one file; how many versions that made."""
        headers, path = origin_headers(item.origin), self._at(item.path)
        if item.size <= SMALL:
            [data] = await self.source.load([item])
            if isinstance(data, VaultError):
                raise data
            stored = await self.vault.send(path, data, item.size, headers, parents=True)
            self.progress(item.size)
        else:
            async with self.source.open(item) as opened:
                body = Body(opened, self.progress)
                stored = await self.vault.send(path, body, item.size, headers, parents=True)
        return stored.changed


@define(eq=False)
class GetTree:
    """One folder of a server on its way to this machine."""

    vault: RemoteVault
    path: str
    target: LocalTarget
    progress: Progress
    report: Report = field(factory=Report)
    room: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(AT_ONCE))

    async def run(self) -> Report:
        """Fetch it all. Raises `NotFound`, `NotAFolder`, and failures of the server itself."""
        if not (await self.vault.stat(self.path)).is_folder:
            raise NotAFolder(f"{self.path} is a file, not a folder")
        folders: list[Path] = [()]
        async with task_group() as tasks:
            while folders:
                folder = folders.pop()
                [refused] = await self.target.make_folders([folder])
                if refused is not None:
                    self._fail(folder, refused)
                    continue
                async for node in self.vault.list(self._at(folder)):
                    where = (*folder, node.name)
                    if node.is_folder:
                        folders.append(where)
                        self.report.folders += 1
                    else:
                        await self.room.acquire()
                        tasks.start_soon(self._fetch, node, where)
        return self.report

    def _at(self, path: Path) -> str:
        return self.path.rstrip("/") + format_path(path)

    def _fail(self, path: Path, error: VaultError) -> None:
        self.report.failed.append(Skipped(format_path(path), error.message))

    async def _fetch(self, node: Node, where: Path) -> None:
        try:
            size = await self._small(where) if 0 < node.size <= SMALL else None
            if size is None:
                size = await self._large(where)
        except FILE_ERRORS as error:
            self._fail(where, error)
        else:
            self.report.files += 1
            self.report.size += size
        finally:
            self.room.release()

    async def _small(self, where: Path) -> int | None:
        """Get a file with one request; None if it is larger by now."""
        url = self.vault.url("files", self._at(where))
        headers = {"Range": f"bytes=0-{SMALL - 1}"}
        answer = await self.vault.calls.ask("GET", url, headers=headers)
        version = version_of(answer.headers)
        if version.size != len(answer.data):
            return None
        if version.digest_state is DigestState.VERIFIED:
            check_digest(blake3(answer.data).digest(), version)
        [refused] = await self.target.store([(where, [answer.data], version.origin)])
        if refused is not None:
            raise refused
        self.progress(version.size)
        return version.size

    async def _large(self, where: Path) -> int:
        path = self._at(where)
        version = await self.vault.version(path)
        async with (
            self.target.create(where, version.origin) as sink,
            self.vault.content(path, version) as parts,
        ):
            async for part in parts:
                await sink.write(part)
                self.progress(sum(map(len, part)))
        return version.size

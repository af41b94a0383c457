"""The demonstration: the main job on real files, with figures, in a folder and over HTTP."""

import json
import random
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from filecmp import cmp
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import to_thread
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import define, field

from vaultfs.domain.errors import VaultError
from vaultfs.domain.integrity import Depth
from vaultfs.domain.quantities import human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.session import Session, table
from vaultfs.entrypoints.client import connect
from vaultfs.entrypoints.sdk import as_client
from vaultfs.entrypoints.settings import read_settings
from vaultfs.entrypoints.surface import Surface
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault
from vaultfs.ports.trees import Report

SEED: Final = 20
SMALL: Final = ("asyncio", "email", "encodings", "html", "http", "json", "logging", "xml")
LEFT_OUT: Final = ("site-packages", "__pycache__")
WHERE: Final = "/demo"
MOST_TOLD: Final = 65_536
"""Bytes of what a server says when it starts."""


@define
class Step:
    """One line of the table."""

    name: str
    files: int
    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds if self.seconds else 0.0


@define(str=False)
class Changes:
    """What was done to the tree, as a user would do it in the vault too; paths are below it."""

    edited: int = 0
    appended: int = 0
    created: int = 0
    renamed: list[tuple[Path, Path]] = field(factory=list[tuple[Path, Path]])
    deleted: list[Path] = field(factory=list[Path])

    def __str__(self) -> str:
        return (
            f"{self.edited} files edited, {self.appended} appended to, {self.created} new,"
            f" {len(self.renamed)} renamed, {len(self.deleted)} deleted"
        )


@define
class Work:
    """The job, done once: in a vault in a folder, or through a server."""

    call: Session
    title: str
    steps: list[Step] = field(factory=list[Step])
    differences: list[str] = field(factory=list[str])
    came: int = 0
    """Bytes that were put."""
    stored: int = 0
    """Bytes of packs that they made."""
    clean: bool = False
    peak: int = 0
    """Bytes of memory, of the process that holds the vault."""

    @property
    def good(self) -> bool:
        """Whether all came back as it went in."""
        return self.clean and not self.differences

    async def run(self, vault: Surface, tree: Path, changed: Path, changes: Changes) -> None:
        """Put `tree`, follow `changes`, put what came of them, get it and compare."""
        first = await self._put(vault, tree, "put")
        await self._follow(vault, tree, changes)
        again = await self._put(vault, changed, "put again")
        self.came = first.size + again.size
        back = changed.with_name(f"{changed.name}-back-{len(self.title)}")
        await self._get(vault, back, again.size)
        self.differences = await to_thread.run_sync(compare, changed, back)
        await to_thread.run_sync(shutil.rmtree, back)

    @asynccontextmanager
    async def _timed(self, name: str) -> AsyncGenerator[Step, None]:
        step = Step(name, 0, 0, 0.0)
        start = time.perf_counter()
        yield step
        step.seconds = time.perf_counter() - start
        self.steps.append(step)

    async def _put(self, vault: Surface, tree: Path, name: str) -> Report:
        total = await to_thread.run_sync(lambda: sum(p.stat().st_size for p in files_in(tree)))
        with self.call.progress(name, total) as bar:
            async with self._timed(name) as step:
                report = await vault.put_tree(tree, WHERE, progress=bar.advance)
                step.files, step.size = report.files, report.size
        if not report.complete:
            raise VaultError(f"not all was stored: {(*report.skipped, *report.failed)[:3]}")
        return report

    async def _follow(self, vault: Surface, tree: Path, changes: Changes) -> None:
        """Rename and delete in the vault what was renamed and deleted in the tree."""

        def at(path: Path) -> str:
            return f"{WHERE}/{path.relative_to(tree).as_posix()}"

        for old, new in changes.renamed:
            await vault.move(at(tree / old), at(tree / new))
        for path in changes.deleted:
            await vault.delete(at(tree / path))

    async def _get(self, vault: Surface, back: Path, total: int) -> None:
        with self.call.progress("get", total) as bar:
            async with self._timed("get") as step:
                report = await vault.get_tree(WHERE, back, progress=bar.advance)
                step.files, step.size = report.files, report.size

    async def verify(self, vault: Vault) -> None:
        """Look for damage, and at how much is stored."""
        self.stored = (await vault.catalog.stats()).packed
        with self.call.progress("verify", self.stored) as bar:
            async with self._timed("verify (full)") as step:
                found = await vault.integrity.verify(Depth.FULL, progress=bar.advance)
                step.files, step.size = found.versions, found.size
        for problem in found.problems:
            self.call.remark(problem)
        self.clean = found.clean

    @property
    def value(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "steps": [
                {
                    "name": step.name,
                    "files": step.files,
                    "bytes": step.size,
                    "seconds": round(step.seconds, 3),
                    "mb_per_second": round(step.rate / 1e6, 1),
                }
                for step in self.steps
            ],
            "bytes_in": self.came,
            "bytes_stored": self.stored,
            "deduplication": round(self.came / self.stored, 2) if self.stored else None,
            "peak_memory": self.peak,
            "differences": self.differences,
            "clean": self.clean,
        }

    @property
    def table(self) -> str:
        """All of it, for people."""
        rows = [(self.title, "files", "bytes", "seconds", "MB/s")]
        rows += [
            (
                step.name,
                f"{step.files:>7}",
                human(step.size).rjust(10),
                f"{step.seconds:>7.2f}",
                f"{step.rate / 1e6:>6.0f}",
            )
            for step in self.steps
        ]
        factor = round(self.came / self.stored, 2) if self.stored else None
        return "\n".join(
            (
                table(rows),
                f"bytes in {human(self.came)}, stored {human(self.stored)}: {factor} to 1",
                f"peak memory {human(self.peak)}",
                "came back byte for byte: " + ("NO" if self.differences else "yes"),
                "vault verified: " + ("clean" if self.clean else "DAMAGED"),
            )
        )


@define
class Demo:
    """A run of the demonstration."""

    call: Session
    also: tuple[Path, ...]
    small: bool

    async def run(self, keep: Path | None) -> ExitCode:
        """Do it all; `FAILED` if anything came back other than it went in."""
        folder = keep or Path(tempfile.mkdtemp(prefix="vaultfs-demo-"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return await self._run(folder)
        finally:
            if keep is None:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(shutil.rmtree, folder, True)

    async def _run(self, folder: Path) -> ExitCode:
        tree, changed = folder / "tree", folder / "changed"
        self.call.remark("gathering the tree ...")
        await to_thread.run_sync(self._gather, tree)
        await to_thread.run_sync(shutil.copytree, tree, changed)
        changes = await to_thread.run_sync(change, changed)
        works = (
            await self._embedded(folder / "vault", tree, changed, changes),
            await self._served(folder / "served", tree, changed, changes),
        )
        self.call.answer(
            {work.title: work.value for work in works},
            lambda: "\n\n".join((works[0].table, works[1].table, f"between the puts: {changes}")),
        )
        return ExitCode.DONE if all(work.good for work in works) else ExitCode.FAILED

    async def _embedded(self, place: Path, tree: Path, changed: Path, changes: Changes) -> Work:
        work = Work(self.call, "embedded")
        await init_vault(place)
        async with open_vault(read_settings(place)) as vault:
            async with as_client(vault) as client:
                await work.run(client, tree, changed, changes)
            await work.verify(vault)
        work.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return work

    async def _served(self, place: Path, tree: Path, changed: Path, changes: Changes) -> Work:
        work = Work(self.call, "over HTTP")
        async with (
            _server(place) as (address, token, number),
            connect(address, token=token) as client,
        ):
            await work.run(client, tree, changed, changes)
            work.peak = _peak_of(number)
        async with open_vault(read_settings(place)) as vault:
            await work.verify(vault)
        return work

    def _gather(self, tree: Path) -> None:
        """A copy of the standard library, without what was installed or compiled."""
        library = Path(sysconfig.get_path("stdlib"))
        ignore = shutil.ignore_patterns(*LEFT_OUT)
        if self.small:
            for name in SMALL:
                shutil.copytree(library / name, tree / "stdlib" / name, ignore=ignore)
        else:
            shutil.copytree(library, tree / "stdlib", ignore=ignore, ignore_dangling_symlinks=True)
        for folder in self.also:
            if not folder.is_dir():
                raise VaultError(f"{folder} is no folder")
            shutil.copytree(folder, tree / folder.name, ignore=ignore)


@asynccontextmanager
async def _server(place: Path) -> AsyncGenerator[tuple[str, str, int], None]:
    """A server of a new vault, in a process of its own: its address, a token, its id."""
    words = ("serve", str(place), "--port", "0", "--json", "--quiet")
    command = (sys.executable, "-m", "vaultfs", *words)
    async with await anyio.open_process(command, stdin=None, stderr=None) as process:
        assert process.stdout is not None
        try:
            told = BufferedByteReceiveStream(process.stdout)
            value = json.loads(await told.receive_until(b"\n", MOST_TOLD))
            if "error" in value:
                raise VaultError(f"no server could be started: {value['error']['message']}")
            yield value["address"], value["token"], process.pid
        finally:
            process.terminate()
            with anyio.CancelScope(shield=True):
                await process.wait()


def _peak_of(number: int) -> int:
    """Bytes that a process has held at the most."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def files_in(tree: Path) -> Iterator[Path]:
    """The regular files below `tree`, in a fixed order."""
    return (path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink())


def change(tree: Path) -> Changes:
    """Change some files of `tree` the way people do; the same ones every time."""
    chance = random.Random(SEED)  # noqa: S311 nothing secret
    files = [path for path in files_in(tree) if path.stat().st_size]
    chosen = chance.sample(files, min(len(files), 100))
    share = len(chosen) // 5
    changes = Changes()
    for path in chosen[:share]:
        _edit(path, chance)
        changes.edited += 1
    for path in chosen[share : 2 * share]:
        path.chmod(0o644)
        with path.open("ab") as file:
            file.write(b"\n# appended\n" * chance.randint(1, 100))
        changes.appended += 1
    for path in chosen[2 * share : 3 * share]:
        new = path.with_name(f"renamed-{path.name}")
        path.rename(new)
        changes.renamed.append((path.relative_to(tree), new.relative_to(tree)))
    for path in chosen[3 * share : 4 * share]:
        path.unlink()
        changes.deleted.append(path.relative_to(tree))
    for path in chosen[4 * share :]:
        path.with_name(f"new-{path.name}").write_bytes(chance.randbytes(chance.randint(1, 50_000)))
        changes.created += 1
    return changes


def _edit(path: Path, chance: random.Random) -> None:
    """Replace a little somewhere in the middle, by something of another length."""
    data = path.read_bytes()
    at = chance.randrange(len(data))
    path.chmod(0o644)
    path.write_bytes(data[:at] + chance.randbytes(chance.randint(1, 200)) + data[at + 20 :])


def compare(tree: Path, back: Path) -> list[str]:
    """What differs between two trees: names, bytes and permissions of files."""
    here = {path.relative_to(tree): path for path in files_in(tree)}
    there = {path.relative_to(back): path for path in files_in(back)}
    differences = [f"{path} is missing" for path in here.keys() - there.keys()]
    differences += [f"{path} is too much" for path in there.keys() - here.keys()]
    for name in sorted(here.keys() & there.keys()):
        if not cmp(here[name], there[name], shallow=False):
            differences.append(f"{name} has other bytes")
        elif (here[name].stat().st_mode ^ there[name].stat().st_mode) & 0o777:
            differences.append(f"{name} has other permissions")
    return sorted(differences)

"""The demonstration: the main job on real files, with figures."""

import random
import resource
import shutil
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
from attrs import define, field

from vaultfs.adapters.files import LocalSource, LocalTarget
from vaultfs.domain.errors import VaultError
from vaultfs.domain.integrity import Depth
from vaultfs.domain.names import Address
from vaultfs.domain.services.transfer import Report
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.session import Session, human, table
from vaultfs.entrypoints.settings import read_settings
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault

SEED: Final = 20
SMALL: Final = ("asyncio", "email", "encodings", "html", "http", "json", "logging", "xml")
LEFT_OUT: Final = ("site-packages", "__pycache__")
WHERE: Final = Address("me", ("demo",))


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
    """What was done to the tree, as a user would do it in the vault too."""

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
class Demo:
    """A run of the demonstration."""

    call: Session
    also: tuple[Path, ...]
    small: bool
    steps: list[Step] = field(factory=list[Step])

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
        tree, back = folder / "tree", folder / "back"
        self.call.remark("gathering the tree ...")
        await to_thread.run_sync(self._gather, tree)
        await init_vault(folder / "vault")
        async with open_vault(read_settings(folder / "vault")) as vault:
            first = await self._put(vault, tree, "put")
            changes = await to_thread.run_sync(change, tree)
            await self._follow(vault, tree, changes)
            again = await self._put(vault, tree, "put again")
            await self._get(vault, back, again.size)
            differences = await to_thread.run_sync(compare, tree, back)
            clean = await self._verify(vault)
            stats = await vault.catalog.stats()
        self._tell(changes, first.size + again.size, stats.packed, differences, clean=clean)
        return ExitCode.DONE if clean and not differences else ExitCode.FAILED

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
    async def _timed(self, name: str) -> AsyncGenerator[Step, None]:
        step = Step(name, 0, 0, 0.0)
        start = time.perf_counter()
        yield step
        step.seconds = time.perf_counter() - start
        self.steps.append(step)

    async def _put(self, vault: Vault, tree: Path, name: str) -> Report:
        total = await to_thread.run_sync(lambda: sum(p.stat().st_size for p in files_in(tree)))
        with self.call.progress(name, total) as bar:
            async with self._timed(name) as step:
                report = await vault.transfer.put(
                    vault.user, LocalSource(tree), WHERE, progress=bar.advance
                )
                step.files, step.size = report.files, report.size
        if not report.complete:
            raise VaultError(f"not all was stored: {(*report.skipped, *report.failed)[:3]}")
        return report

    async def _follow(self, vault: Vault, tree: Path, changes: Changes) -> None:
        """Rename and delete in the vault what was renamed and deleted in the tree."""

        def at(path: Path) -> Address:
            return Address(WHERE.tree, (*WHERE.path, *path.relative_to(tree).parts))

        for old, new in changes.renamed:
            await vault.files.move(vault.user, at(old), at(new))
        for path in changes.deleted:
            await vault.files.delete(vault.user, at(path))

    async def _get(self, vault: Vault, back: Path, total: int) -> None:
        with self.call.progress("get", total) as bar:
            async with self._timed("get") as step:
                report = await vault.transfer.get(
                    vault.user, WHERE, LocalTarget(back), progress=bar.advance
                )
                step.files, step.size = report.files, report.size

    async def _verify(self, vault: Vault) -> bool:
        packed = (await vault.catalog.stats()).packed
        with self.call.progress("verify", packed) as bar:
            async with self._timed("verify (full)") as step:
                found = await vault.integrity.verify(Depth.FULL, progress=bar.advance)
                step.files, step.size = found.versions, found.size
        for problem in found.problems:
            self.call.remark(problem)
        return found.clean

    def _tell(
        self, changes: Changes, came: int, stored: int, differences: list[str], *, clean: bool
    ) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        value: dict[str, Any] = {
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
            "bytes_in": came,
            "bytes_stored": stored,
            "deduplication": round(came / stored, 2) if stored else None,
            "peak_memory": peak,
            "differences": differences,
            "clean": clean,
        }
        self.call.answer(value, lambda: self._table(value, changes))

    def _table(self, value: dict[str, Any], changes: Changes) -> str:
        rows = [("", "files", "bytes", "seconds", "MB/s")]
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
        same = value["differences"] == []
        return "\n".join(
            (
                table(rows),
                "",
                f"between the puts: {changes}",
                (
                    f"bytes in {human(value['bytes_in'])}, stored"
                    f" {human(value['bytes_stored'])}: {value['deduplication']} to 1"
                ),
                f"peak memory {human(value['peak_memory'])}",
                "came back byte for byte: " + ("yes" if same else "NO"),
                "vault verified: " + ("clean" if value["clean"] else "DAMAGED"),
            )
        )


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
        changes.renamed.append((path, new))
    for path in chosen[3 * share : 4 * share]:
        path.unlink()
        changes.deleted.append(path)
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

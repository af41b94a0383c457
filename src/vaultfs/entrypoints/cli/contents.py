"""`put`, `get` and `cat`: bytes into the vault and out of it."""

import os
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import define, field

from vaultfs.domain.errors import (
    Conflict,
    Exists,
    InvalidField,
    IsAFolder,
    NotAFolder,
    NotFound,
    SourceChanged,
    VersionMismatch,
)
from vaultfs.domain.names import Address, check_name
from vaultfs.domain.quantities import counted, human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import address, node_json, written
from vaultfs.entrypoints.cli.session import (
    Bar,
    JsonOption,
    NumberOption,
    QuietOption,
    Session,
    VaultOption,
    run,
    session,
    shown,
    working,
    writing,
)

if TYPE_CHECKING:
    from vaultfs.domain.nodes import Preconditions, Version
    from vaultfs.entrypoints.surface import Content, Surface
    from vaultfs.ports.trees import Report

Sources = Annotated[
    list[str],
    typer.Argument(metavar="/SRC...", show_default=False, help="Files and folders of the vault."),
]
AsCp = Annotated[bool, typer.Option("--recursive", "-r", hidden=True)]
"""What cp needs for folders; here they always go with what they hold."""
Existing = Annotated[
    int | None,
    typer.Option(
        "--if-version",
        metavar="ID",
        help="Only if this is the id of its version, which stat shows as version.",
    ),
]
Revision = Annotated[
    int | None,
    typer.Option(
        "--if-revision", metavar="N", help="Only if this is its revision, which stat shows."
    ),
]


def preconditions(
    if_version: int | None, if_revision: int | None, *, create_only: bool = False
) -> "Preconditions":
    """The preconditions that options name."""
    from vaultfs.domain.nodes import Preconditions, VersionId

    wanted = None if if_version is None else VersionId(if_version)
    return Preconditions(wanted, if_revision, create_only)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (put, get, cat):
        app.command()(command)


@define
class _Outcome:
    """What a put or get of several things came to."""

    files: int = 0
    folders: int = 0
    size: int = 0
    changed: int = 0
    travelled: int = 0
    """Bytes that were sent to a server."""
    skipped: list[dict[str, str]] = field(factory=list[dict[str, str]])
    failed: list[dict[str, str]] = field(factory=list[dict[str, str]])
    nodes: list[dict[str, Any]] = field(factory=list[dict[str, Any]])

    @contextmanager
    def of_one(self, where: str, of: int) -> Generator[None, None, None]:
        """Let what is wrong with one of several stop none of the others."""
        from vaultfs.domain.errors import FILE_ERRORS

        try:
            yield
        except FILE_ERRORS as error:
            if of == 1:
                raise
            self.failed.append({"where": where, "reason": error.message})

    def take(self, report: "Report", top: str) -> None:
        """Add what became of a tree, whose files are below `top`."""
        self.files += report.files
        self.folders += report.folders
        self.size += report.size
        self.changed += report.changed
        self.travelled += report.travelled
        self.skipped += [{"where": each.where, "reason": each.reason} for each in report.skipped]
        above = top.rstrip("/")
        self.failed += [
            {"where": f"{above}{each.where}", "reason": each.reason} for each in report.failed
        ]

    def report(self, call: Session, verb: str) -> ExitCode:
        """Tell what happened; the exit code for it."""
        for each in (*self.skipped, *self.failed):
            call.remark(f"vaultfs: {shown(each['where'])}: {shown(each['reason'])}")
        value = {
            "files": self.files,
            "folders": self.folders,
            "bytes": self.size,
            "changed": self.changed,
            "travelled": self.travelled,
            "skipped": self.skipped,
            "failed": self.failed,
            "nodes": self.nodes,
        }
        text = f"{verb} {counted(self.files, 'file')}, {human(self.size)}"
        if verb == "put":
            text += f"; {counted(self.changed, 'new version')}"
        if self.travelled:
            text += f"; {human(self.travelled)} travelled"
        if self.skipped or self.failed:
            text += f"; {len(self.skipped)} skipped, {len(self.failed)} failed"
        call.answer(value, "" if call.quiet else text)
        return ExitCode.PARTIAL if self.skipped or self.failed else ExitCode.DONE


# put


def put(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="LOCAL...",
            show_default=False,
            help="Files and folders here; - is standard input.",
        ),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="/DEST", show_default=False, help="Where they go in the vault.")
    ],
    if_version: Existing = None,
    if_revision: Revision = None,
    create_only: Annotated[
        bool, typer.Option("--create-only", help="Only if nothing is there yet.")
    ] = False,
    _recursive: AsCp = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Store files and folders; - is standard input.

    As with cp -r: into DEST if that is a folder, ends in / or there are several sources,
    else as DEST itself. Of a folder, what is in its .vaultignore (as in .gitignore) is passed
    over.
    """
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        wanted = preconditions(if_version, if_revision, create_only=create_only)
        async with working(call) as vault:
            outcome = _Outcome()
            targets = await _put_targets(vault, sources, destination)
            _check_sources(vault, sources, wanted)
            with call.progress("put", None) as bar:
                await _expect(sources, bar)
                for source, target in targets:
                    with outcome.of_one(source, len(sources)):
                        await _put_one(vault, source, target, wanted, outcome, bar)
            return outcome.report(call, "put")

    run(call, work)


async def _put_targets(
    vault: "Surface", sources: list[str], destination: str
) -> list[tuple[str, Address]]:
    """Where each source is to go. Raises before anything is stored."""
    target = address(destination)
    kind = await vault.kind(written(target))
    into = len(sources) > 1 or destination.endswith("/") or kind == "folder"
    if into and kind == "file":
        raise NotAFolder(f"{written(target)} is a file, not a folder")
    pairs: list[tuple[str, Address]] = []
    for source in sources:
        if not into:
            pairs.append((source, target))
        elif source == "-":
            raise IsAFolder(f"{destination} is a folder: standard input needs a file's name")
        else:
            pairs.append((source, target.child(check_name(_name(source)))))
    return pairs


def _name(source: str) -> str:
    """The name that a local path ends in: a link's own, and that of the folder for `.`."""
    name = Path(source).name
    return Path(source).resolve().name if name in {"", ".."} else name


def _check_sources(vault: "Surface", sources: list[str], wanted: "Preconditions") -> None:
    """Raises unless each source is there and can be stored."""
    from vaultfs.adapters.files import refuse_inside

    for source in sources:
        if source == "-":
            continue
        path = Path(source)
        refuse_inside(vault.folder, path)
        if path.is_file():
            continue
        if not path.exists():
            raise NotFound(f"{source} is not there")
        if not path.is_dir():
            raise Conflict(f"{source} is not a regular file: let - read it, standard input")
        if wanted.any:
            raise InvalidField(f"{source} is a folder: preconditions are for files")


async def _expect(sources: list[str], bar: Bar) -> None:
    """Tell the bar how much there is, as far as a quick look shows."""
    from anyio import to_thread

    if "-" not in sources and bar.expect is not Bar().expect:
        bar.expect(await to_thread.run_sync(lambda: sum(map(_local_size, sources))))


def _local_size(source: str) -> int:
    from vaultfs.adapters.files import LocalSource

    path = Path(source)
    return LocalSource(path).size() if path.is_dir() else path.stat().st_size


async def _put_one(
    vault: "Surface",
    source: str,
    target: Address,
    wanted: "Preconditions",
    outcome: _Outcome,
    bar: Bar,
) -> None:
    from vaultfs.adapters.files import StreamSource

    if source == "-":
        stream = StreamSource(partial(os.read, sys.stdin.fileno()))
        await _store(vault, stream, target, wanted, outcome, bar)
    elif Path(source).is_dir():
        outcome.take(await vault.put_tree(source, written(target), progress=bar.advance), source)
    else:
        await _put_file(vault, source, target, wanted, outcome, bar)


async def _put_file(
    vault: "Surface",
    source: str,
    target: Address,
    wanted: "Preconditions",
    outcome: _Outcome,
    bar: Bar,
    tries: int = 2,
) -> None:
    try:
        # The user named it: a link stands for what it leads to.
        await _store(vault, Path(source).resolve(), target, wanted, outcome, bar)
    except SourceChanged:
        if tries == 1:
            raise
        await _put_file(vault, source, target, wanted, outcome, bar, tries - 1)


async def _store(
    vault: "Surface",
    content: "Content",
    target: Address,
    wanted: "Preconditions",
    outcome: _Outcome,
    bar: Bar,
) -> None:
    try:
        stored = await vault.store(
            written(target), content, preconditions=wanted, progress=bar.advance
        )
    except VersionMismatch as error:
        if wanted.if_absent:  # what HTTP calls a precondition is a name that is taken
            raise Exists(error.message) from error
        raise
    outcome.files += 1
    outcome.size += stored.node.size
    outcome.changed += stored.changed
    outcome.travelled += stored.travelled
    outcome.nodes.append(node_json(stored.node, target))


# get


def get(
    sources: Sources,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="LOCAL", show_default=False, help="Where they go here; - is standard output."
        ),
    ],
    number: NumberOption = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write files and folders from the vault to LOCAL; - is standard output.

    As with cp -r: into LOCAL if that is a folder, ends in / or there are several sources,
    else as LOCAL itself.
    """
    call = session(vault, as_json=as_json, quiet=quiet or destination == "-")

    async def work() -> ExitCode:
        if destination == "-":
            _leave_output_to_contents(call)
        async with working(call) as vault:
            outcome = _Outcome()
            into = len(sources) > 1 or destination.endswith("/") or Path(destination).is_dir()
            with call.progress("get") as bar:
                for source in map(address, sources):
                    with outcome.of_one(written(source), len(sources)):
                        await _get_one(vault, source, destination, number, outcome, bar, into=into)
            return ExitCode.DONE if destination == "-" else outcome.report(call, "got")

    run(call, work)


async def _get_one(
    vault: "Surface",
    source: Address,
    destination: str,
    number: int | None,
    outcome: _Outcome,
    bar: Bar,
    *,
    into: bool,
) -> None:
    from vaultfs.adapters.files import refuse_inside

    node = await vault.stat(written(source))
    target = Path(destination)
    refuse_inside(vault.folder, target)
    if into and source.path:
        target /= source.path[-1]
    if node.is_folder:
        if destination == "-" or number is not None:
            raise IsAFolder(f"{source} is a folder")
        if target.exists() and not target.is_dir():
            raise NotAFolder(f"{target} is there and no folder")
        report = await vault.get_tree(written(source), target, progress=bar.advance)
        outcome.take(report, written(source))
        return
    version = await vault.version(written(source), number)
    bar.expect(version.size)
    if destination == "-":
        await _write_out(vault, source, version)
        return
    if not into:
        target = _named_file(target)
    await _get_file(vault, source, version, target, bar)
    outcome.files += 1
    outcome.size += version.size
    outcome.nodes.append(node_json(node, source))


def _named_file(target: Path) -> Path:
    """The file that the user means by `target`: a link stands for what it leads to.

    Raises `Conflict` for a device or pipe, which a file in its place would do away with.
    """
    if target.exists() and not target.is_file():
        raise Conflict(f"{target} is not a regular file: get to - and redirect that")
    return target.resolve()


async def _get_file(
    vault: "Surface", source: Address, version: "Version", target: Path, bar: Bar
) -> None:
    from vaultfs.adapters.files import LocalTarget

    async with AsyncExitStack() as stack:
        folder = LocalTarget(target.parent, vault.folder)
        sink = await stack.enter_async_context(folder.create((target.name,), version.origin))
        pieces = await stack.enter_async_context(vault.content(written(source), version))
        async for part in pieces:
            await sink.write(part)
            bar.advance(sum(map(len, part)))


def cat(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="/PATH...", show_default=False, help="Files of the vault."),
    ],
    number: NumberOption = None,
    vault: VaultOption = None,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the contents of files to standard output."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        _leave_output_to_contents(call)
        async with working(call) as vault:
            for source in map(address, paths):
                version = await vault.version(written(source), number)
                await _write_out(vault, source, version)

    run(call, work)


def _leave_output_to_contents(call: Session) -> None:
    if call.json:
        raise InvalidField("--json: standard output is for the contents")


async def _write_out(vault: "Surface", source: Address, version: "Version") -> None:
    from anyio import to_thread

    async with vault.content(written(source), version) as pieces:
        async for part in pieces:
            with writing() as out:
                await to_thread.run_sync(out.buffer.writelines, part, abandon_on_cancel=True)
    with writing() as out:
        out.flush()

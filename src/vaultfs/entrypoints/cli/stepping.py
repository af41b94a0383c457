"""`pull`, `push`, `sync` and `diff`: local files in step with those of the vault."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vaultfs.domain.errors import Conflict, Exists, InvalidField, NotFound, VersionMismatch
from vaultfs.domain.quantities import counted, human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import address, written
from vaultfs.entrypoints.cli.session import (
    Bar,
    JsonOption,
    QuietOption,
    Session,
    VaultOption,
    run,
    server_of,
    session,
    shown,
    working,
    writing,
)

if TYPE_CHECKING:
    import os

    from vaultfs.adapters.syncstate import InStep
    from vaultfs.domain.nodes import Version
    from vaultfs.domain.syncplan import Plan, Problem
    from vaultfs.entrypoints.pulling import Pushed
    from vaultfs.entrypoints.surface import Surface
    from vaultfs.entrypoints.syncing import Summary, Syncing

LOOK: Final = 0.5
"""Seconds between two looks at a folder that is watched."""

OneVersion = Annotated[
    str,
    typer.Argument(
        metavar="/PATH[@N]",
        show_default=False,
        help="A file, and the number of a version: the newest if missing.",
    ),
]
Local = Annotated[Path, typer.Argument(metavar="LOCAL", show_default=False, help="The file here.")]
There = Annotated[
    str | None,
    typer.Argument(metavar="[/VAULT/PATH]", show_default=False, help="Once; then it is known."),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Though that loses what was changed meanwhile.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (pull, push, sync, diff):
        app.command()(command)


class _Place:
    """A local file, what is known of it, and the path it belongs to."""

    def __init__(self, call: Session, local: Path, path: str | None) -> None:
        from vaultfs.adapters.replacing import status_of
        from vaultfs.adapters.syncstate import SyncState

        if local.is_dir():
            raise InvalidField(f"{local} is a folder: name a file")
        self.local = local
        self.vault = server_of(call) or str(call.settings.name)
        self.state: SyncState = SyncState(local.parent)
        known = self.state.get(local.name)
        if path is None and known is None:
            raise InvalidField(f"{local} is in step with nothing yet: name its path in the vault")
        self.path = written(address(path)) if path is not None else known.path if known else ""
        same = known is not None and (known.vault, known.path) == (self.vault, self.path)
        self.known: InStep | None = known if same else None
        self.status = status_of(local)

    @property
    def edited(self) -> bool:
        """Whether the local file has changes of its own."""
        if self.status is None:
            return False
        return self.known is None or not self.known.is_as_it_was(self.status)

    def remember(self, version: int, number: int, written: "os.stat_result | None" = None) -> None:
        """Note that the file is in step, as it was `written`, or looked at."""
        from vaultfs.adapters.syncstate import InStep

        seen = written or self.status
        if seen is not None:
            where = (self.vault, self.path, version, number)
            self.state.set(self.local.name, InStep(*where, seen.st_size, seen.st_mtime_ns))


def pull(
    local: Local,
    path: There = None,
    force: Force = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a local file what it is in the vault; from a server, only what changed travels."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from vaultfs.domain.nodes import VersionId

        place = _Place(call, local, path)
        base = None if place.known is None else VersionId(place.known.version)
        async with working(call) as surface:
            if place.edited and not force:
                newest = await _newest(surface, place.path)
                if newest is None or not await _is_in_step(place, newest):
                    raise Conflict(_unlike(place, newest))
                base = newest.id
            with call.progress("pull", None) as bar:
                done = await surface.pull(
                    place.path, local, base=base, expected=place.status, progress=bar.advance
                )
        place.remember(done.version.id, done.version.number, done.status)
        value = _told(place, done.version.number, done.travelled, done.version.size)
        value |= {"changed": done.changed, "way": done.way}
        what = f"is version {done.version.number}" if done.changed else "is up to date"
        call.answer(value, f"{shown(str(local))} {what}{_travelled(call, value)}")

    run(call, work)


def push(
    local: Local,
    path: There = None,
    force: Force = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Store a local file as the newest version, unless somebody else has; only chunks that a
    server lacks travel.
    """
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        place = _Place(call, local, path)
        if place.status is None:
            raise NotFound(f"{local} is not there")
        async with working(call) as surface:
            if not force and place.known is not None and not place.edited:
                await _must_be_newest(surface, place, place.known)
                _tell_up_to_date(call, place, place.known.number, place.known.size)
                return
            try:
                with call.progress("push", place.status.st_size) as bar:
                    done = await _push(surface, place, bar, force=force)
            except VersionMismatch:
                newest = await _newest(surface, place.path)
                if newest is None or not await _is_in_step(place, newest):
                    raise
                place.remember(newest.id, newest.number)
                _tell_up_to_date(call, place, newest.number, newest.size)
                return
        node = done.node
        place.remember(node.version or 0, node.number)
        value = _told(place, node.number, done.travelled, node.size)
        value |= {"changed": bool(done.changed)}
        call.answer(value, f"{shown(place.path)} is version {node.number}{_travelled(call, value)}")

    run(call, work)


def _tell_up_to_date(call: Session, place: _Place, number: int, size: int) -> None:
    value = _told(place, number, 0, size) | {"changed": False}
    call.answer(value, f"{shown(str(place.local))} is up to date")


async def _is_in_step(place: _Place, newest: "Version") -> bool:
    """Whether the local file has the very bytes of `newest`."""
    from anyio import to_thread

    from vaultfs.adapters.syncfolder import SyncFolder

    if place.status is None or place.status.st_size != newest.size:
        return False
    look = SyncFolder(place.local.parent).found
    found = await to_thread.run_sync(look, (place.local.name,), place.status, None)
    return found.content == newest.verified


async def _must_be_newest(surface: "Surface", place: _Place, known: "InStep") -> None:
    """Raises `VersionMismatch` unless the vault has what the local file was in step with."""
    newest = await _newest(surface, place.path)
    if newest is None or newest.id != known.version:
        raise _not_based(place, newest)


async def _push(surface: "Surface", place: _Place, bar: Bar, *, force: bool) -> "Pushed":
    from vaultfs.domain.nodes import VersionId

    if force:
        newest = await _newest(surface, place.path)
        base = None if newest is None else newest.id
    else:
        base = None if place.known is None else VersionId(place.known.version)
    try:
        return await surface.push(place.path, place.local, base=base, progress=bar.advance)
    except (VersionMismatch, Exists, NotFound) as error:
        if base is None and isinstance(error, NotFound):
            raise
        raise _not_based(place, await _newest(surface, place.path)) from error


def _not_based(place: _Place, newest: "Version | None") -> VersionMismatch:
    """Why a push is refused where `newest` is not what the local file was in step with."""
    expected = None if place.known is None else place.known.version
    return VersionMismatch(_unlike(place, newest), expected=expected, found=newest and newest.id)


def _unlike(place: _Place, newest: "Version | None") -> str:
    """That the local file and what is there are not in step, and the ways out."""
    here, there, known = place.local, place.path, place.known
    if newest is None and known is None:
        return f"nothing is at {there}: push puts {here} there"
    if newest is None:
        return f"{there} was deleted there: push --force puts it again"
    if known is not None and known.version == newest.id:
        return f"{here} has changes that {there} has not: push it, or give them up by pull --force"
    if known is not None and not place.edited:
        return f"{there} is version {newest.number} by now, and {here} has no changes: pull it"
    both = "is there already, as" if known is None else "was changed too, and is"
    return (
        f"{there} {both} version {newest.number}: push --force puts {here} above it, pull --force"
        f" replaces {here} by it, and get {there} OTHER has it beside {here}"
    )


async def _newest(surface: "Surface", path: str) -> "Version | None":
    try:
        return await surface.version(path)
    except NotFound:
        return None


def _told(place: _Place, number: int, travelled: int, size: int) -> dict[str, Any]:
    return {
        "local": str(place.local),
        "path": place.path,
        "number": number,
        "size": size,
        "travelled": travelled,
    }


def _travelled(call: Session, value: dict[str, Any]) -> str:
    if server_of(call) is None:
        return ""
    return f"; {human(value['travelled'])} of {human(value['size'])} travelled"


def sync(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", show_default=False, help="The folder here.")
    ],
    path: Annotated[
        str,
        typer.Argument(
            metavar="/VAULT/FOLDER", show_default=False, help="The folder of the vault."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only tell what would be done.")
    ] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Go on until Ctrl-C, whenever something changes.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Though most files are gone on one side.")
    ] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep a folder and one of the vault in step, both ways; nothing is lost where both changed.

    What is in .vaultignore (as in .gitignore) is passed over.
    """
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        async with working(call) as surface:
            if dry_run:
                syncing = _syncing(surface, folder, path, force=force)
                _tell_plan(call, await syncing.look())
                syncing.state.close()
                return ExitCode.DONE
            while True:
                syncing = _syncing(surface, folder, path, force=force)
                with call.progress("sync", files=True) as bar:
                    syncing.progress, syncing.expect = bar.advance, bar.expect
                    syncing.files.looked = bar.advance
                    done = await syncing.run()
                if not watching or done.changed or done.problems:
                    _tell_summary(call, done)
                if not watching:
                    return ExitCode.PARTIAL if done.problems else ExitCode.DONE
                with writing() as out:
                    out.flush()
                from vaultfs.entrypoints.syncing import news

                await news(syncing, LOOK)

    run(call, work)


def _syncing(surface: "Surface", folder: Path, path: str, *, force: bool) -> "Syncing":
    from vaultfs.entrypoints.syncing import Syncing, this_device

    if folder.exists() and not folder.is_dir():
        raise InvalidField(f"{folder} is no folder")
    return Syncing(surface, folder, written(address(path)), this_device(), force)


def _tell_plan(call: Session, found: "Plan") -> None:
    steps = [
        {
            "action": str(step.action),
            "path": "/".join(step.path),
            "source": None if step.source is None else "/".join(step.source),
        }
        for step in found.steps
    ]
    value = {"steps": steps, "problems": list(map(_problem, found.problems))}
    lines = [f"{each['action']:12} {shown(str(each['path']))}" for each in steps]
    lines += [f"{'left':12} {shown('/'.join(p.path))}: {p.reason}" for p in found.problems]
    call.answer(value, "\n".join(lines) or "both are in step")


def _problem(problem: "Problem") -> dict[str, str]:
    return {"path": "/".join(problem.path), "reason": problem.reason}


def _tell_summary(call: Session, done: "Summary") -> None:
    value = {
        "pulled": done.pulled,
        "pushed": done.pushed,
        "moved": done.moved,
        "deleted_here": done.deleted_here,
        "deleted_there": done.deleted_there,
        "conflicts": done.conflicts,
        "problems": list(map(_problem, done.problems)),
        "travelled": done.travelled,
    }
    for name in done.conflicts:
        call.remark(f"both sides changed it: what was here is kept as {shown(name)}")
    for each in done.problems:
        call.remark(f"{shown('/'.join(each.path))}: {each.reason}")
    call.answer(
        value,
        f"{done.pulled} pulled, {done.pushed} pushed, {done.moved} moved,"
        f" {done.deleted_here} deleted here, {done.deleted_there} there,"
        f" {counted(len(done.conflicts), 'conflict')}"
        + ("" if server_of(call) is None else f"; {human(done.travelled)} travelled"),
    )


def diff(
    one: OneVersion,
    other: OneVersion,
    stat: Annotated[  # noqa: ARG001 it says what is done anyway
        bool, typer.Option("--stat", help="How much is the same: always shown, and nothing else.")
    ] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two versions: how many bytes of the second the first does not have."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        value = await _compared(call, one, other)
        call.answer(
            value,
            f"{human(value['new'])} of {human(value['size'])} are new,"
            f" in {counted(value['places'], 'place')}; a delta has {human(value['delta'])}",
        )

    run(call, work)


async def _compared(call: Session, one: str, other: str) -> dict[str, Any]:
    (first, a), (second, b) = _numbered(one), _numbered(other)
    async with working(call) as surface:
        found = await surface.compare(first, second, first=a, second=b)
    return {"one": one, "other": other, **found._asdict()}


def _numbered(text: str) -> tuple[str, int | None]:
    """A path and the number of a version: `/a@3`. A name that ends so needs its number behind."""
    path, at, number = text.rpartition("@")
    if at and number.isascii() and number.isdecimal() and 0 < len(number) < 19:
        return written(address(path)), int(number)
    return written(address(text)), None

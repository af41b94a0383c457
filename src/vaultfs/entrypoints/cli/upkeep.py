"""`init`, `retention`, `verify`, `rebuild`, `backup`, `stats`, `demo`: the vault as a whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.quantities import counted, human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.session import (
    DatabaseOption,
    FolderOption,
    JsonOption,
    QuietOption,
    Session,
    StoreOption,
    VaultOption,
    opened,
    run,
    session,
    shown,
    table,
    working,
)

if TYPE_CHECKING:
    from vaultfs.domain.integrity import Findings
    from vaultfs.domain.retention import Retention
    from vaultfs.domain.services.recovery import Backup
    from vaultfs.entrypoints.vault import Vault
    from vaultfs.ports.catalog import Usage


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (init, demo, retention, verify, rebuild, backup, stats):
        app.command()(command)


def init(
    folder: Annotated[
        str | None, typer.Argument(metavar="[DIR]", show_default=False, help="Empty, or none yet.")
    ] = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a vault in a folder that is empty or not there yet, or in a database and a store.

    With a folder and a store, the catalog is in the folder, which remembers the store.
    """
    call = session(folder, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from shlex import quote

        from vaultfs.entrypoints.vault import init_database, init_vault

        settings = call.settings
        if settings.database is None:
            number = await init_vault(settings.home, settings.store)
            example = f"--vault {quote(str(settings.home))}"
        else:
            number, example = await init_database(settings), "--database ... --store ..."
        call.answer(
            {"vault": settings.name, "id": number},
            f"made a vault in {shown(settings.name)}; for example:"
            f" vaultfs {shown(example)} put FILE /",
        )

    run(call, work)


def retention(
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="all|N|Nd", help="All, the last N, or those of N days."),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Forget now what need not be kept.")
    ] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show or set which old versions are kept, and forget the others."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with working(call) as vault:
            if keep is not None:
                await vault.set_retention(_parse(keep))
            policy = await vault.retention()
            pruned = await vault.prune() if apply else None
        text = _described(policy) + ("" if pruned is None else f"; {pruned} versions forgotten")
        call.answer(
            {
                "last": policy.last,
                "age_days": None if policy.age is None else policy.age.total_seconds() / 86400,
                "pruned": pruned,
            },
            text,
        )

    run(call, work)


MOST_DIGITS: Final = 8
"""Of a number of versions or days; more days than that do not fit the catalog."""


def _parse(text: str) -> "Retention":
    from datetime import timedelta

    from vaultfs.domain.retention import KEEP_ALL, Retention

    if text == "all":
        return KEEP_ALL
    number = text.removesuffix("d")
    if not number.isdecimal() or len(number) > MOST_DIGITS:
        raise InvalidField(f"--keep {text}: all, a number, or a number of days as in 30d")
    if text.endswith("d"):
        return Retention(age=timedelta(days=int(number)))
    return Retention(last=int(number))


def _described(policy: "Retention") -> str:
    if policy.keeps_all:
        return "all versions are kept"
    if policy.last is not None:
        return f"the last {policy.last} versions are kept"
    days = 0 if policy.age is None else policy.age.days
    return f"versions replaced less than {days} {'day' if days == 1 else 'days'} ago are kept"


def verify(
    depth: Annotated[
        str, typer.Option("--depth", metavar="catalog|packs|digests|full", help="How far.")
    ] = "full",
    subset: Annotated[
        str | None, typer.Option("--subset", metavar="n/t", help="Part n of t of the packs.")
    ] = None,
    vault: FolderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look for damage: 1 is returned if there is any, with all files that are hit."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.domain.integrity import EVERYTHING, Depth, Subset

        if depth not in {each.value for each in Depth}:
            raise InvalidField(f"--depth {depth}: catalog, packs, digests or full")
        part = EVERYTHING if subset is None else Subset.parse(subset)
        async with opened(call) as vault:
            packed = (await vault.catalog.stats()).packed // part.parts
            with call.progress("verify", packed) as bar:
                found = await vault.integrity.verify(
                    Depth(depth), subset=part, progress=bar.advance
                )
        call.answer(_findings_json(found), lambda: _findings(found))
        return ExitCode.DONE if found.clean else ExitCode.FAILED

    run(call, work)


def _findings_json(found: "Findings") -> dict[str, Any]:
    return {
        "clean": found.clean,
        "problems": list(found.problems),
        "files": [
            {
                "path": each.path if each.tree == "me" else f"{each.tree}:{each.path}",
                "version": each.number,
                "reason": each.reason,
            }
            for each in found.files
        ],
        "packs": found.packs,
        "chunks": found.chunks,
        "versions": found.versions,
        "bytes_read": found.size,
    }


def _findings(found: "Findings") -> str:
    lines = [f"problem: {shown(each)}" for each in found.problems]
    lines += [
        f"damaged: {shown(each.path)} version {each.number}: {shown(each.reason)}"
        for each in found.files
    ]
    verdict = "clean" if found.clean else "DAMAGED"
    lines.append(
        f"{verdict}: {counted(found.versions, 'version')}, {counted(found.packs, 'pack')},"
        f" {counted(found.chunks, 'chunk')}, {human(found.size)} read"
    )
    return "\n".join(lines)


def rebuild(
    from_backup: Annotated[
        str | None,
        typer.Option(
            "--from-backup",
            metavar="NAME|latest",
            help="Bring the catalog back from a backup first, setting the present one aside.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read all packs, and leave damaged chunks out of the index."),
    ] = False,
    vault: FolderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make the chunk index anew from the packs; a lost catalog from the newest backup."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        recovered = await _recover(call, from_backup)
        if recovered is not None:
            call.remark(f"the catalog is that of backup {recovered.name}")
        async with opened(call) as vault:
            packed = (await vault.catalog.stats()).packed
            with call.progress("rebuild", packed or None) as bar:
                done = await vault.recovery.rebuild(check=check, progress=bar.advance)
            stores = sorted(vault.objects.placement.write_set)
            idle = _idle_stores(vault) if recovered else {}
        for problem in done.problems:
            call.remark(f"vaultfs: {shown(problem)}")
        call.answer(
            {
                "backup": recovered.name if recovered else None,
                "packs": done.packs,
                "chunks": done.chunks,
                "versions": done.versions,
                "problems": list(done.problems),
                "stores": stores,
                "idle_stores": list(idle),
            },
            f"indexed {counted(done.chunks, 'chunk')} in {counted(done.packs, 'pack')}"
            f" for {counted(done.versions, 'version')}{_forgotten(stores, idle)}",
        )
        return ExitCode.FAILED if done.problems else ExitCode.DONE

    run(call, work)


def _idle_stores(vault: "Vault") -> dict[str, str]:
    """The stores, by name, that are named for a vault and that nothing is put to or read from."""
    import os

    from vaultfs.entrypoints.placing import named_stores

    named = named_stores(vault.settings.folder, os.environ)
    used = vault.objects.placement.stores
    return {name: url for name, url in named.items() if name not in used}


def _forgotten(stores: list[str], idle: dict[str, str]) -> str:
    """What to know where a backup is older than a migration, or than the release that kept it."""
    here = ", ".join(stores)
    return "".join(
        f"\nthe backup knows of no migration to {name}: everything is in {here} by it, and what is"
        f" put goes to {here} alone; `vaultfs migrate start --to {shown(f'{name}={url}')}` begins"
        " one again"
        for name, url in idle.items()
    )


async def _recover(call: Session, name: str | None) -> "Backup | None":
    """Bring the catalog back from a backup if that was asked for, or if it is gone."""
    import os

    from vaultfs.entrypoints.opening import has_catalog
    from vaultfs.entrypoints.placing import named_stores
    from vaultfs.entrypoints.recovering import recover_catalog, recover_database

    settings = call.settings
    nothing = settings.objects is not None and not settings.objects.is_dir()
    nowhere = nothing and not named_stores(settings.folder, os.environ)
    if name is None and (nowhere or await has_catalog(settings)):
        return None
    wanted = None if name in {None, "latest"} else name
    if settings.database is None:
        return await recover_catalog(settings.home, wanted, store=settings.store)
    return await recover_database(settings, wanted)


def backup(
    listed: Annotated[bool, typer.Option("--list", help="List the backups instead.")] = False,
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=1, help="Backups to keep.")] = 7,
    vault: FolderOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy the catalog into the store, so that it can be brought back by `rebuild`."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def look() -> None:
        from vaultfs.entrypoints.recovering import backups_of

        found = await backups_of(call.settings)
        call.answer(
            [_backup_json(each) for each in found] if call.json else None,
            lambda: (
                table([(each.name, human(each.size).rjust(10)) for each in found]) if found else ""
            ),
        )

    async def work() -> None:
        async with opened(call) as vault:
            with call.progress("backup") as bar:
                made = await vault.recovery.backup(keep=keep, progress=bar.advance)
        call.answer(_backup_json(made), f"made backup {made.name}, {human(made.size)}")

    run(call, look if listed else work)


def _backup_json(each: "Backup") -> dict[str, Any]:
    return {
        "name": each.name,
        "created": each.created.isoformat(),
        "bytes": each.size,
        "vault": each.vault_id,
    }


def stats(
    vault: VaultOption = None, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Show how much the vault holds, and what no version needs any more."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with working(call) as vault:
            usage = await vault.usage()
            value = _usage_json(vault.place, usage)
        call.answer(value, lambda: _usage(usage))

    run(call, work)


def _usage_json(place: str, usage: "Usage") -> dict[str, Any]:
    found = usage.catalog
    return {
        "vault": place,
        "users": found.users,
        "folders": found.folders,
        "files": found.files,
        "versions": found.versions,
        "trashed": found.trashed,
        "bytes_all_versions": found.logical,
        "bytes_current": found.current,
        "packs": found.packs,
        "bytes_stored": found.packed,
        "chunks": found.chunks,
        "bytes_live": usage.live,
        "bytes_unreferenced": usage.unreferenced,
        "bytes_condemned": found.condemned,
        "bytes_trash": found.trash,
        "versions_damaged": usage.damaged,
    }


def _usage(usage: "Usage") -> str:
    found = usage.catalog
    factor = found.logical / found.packed if found.packed else 1.0
    return table(
        [
            ("folders, with the trash", f"{found.folders:>12}"),
            ("files, with the trash", f"{found.files:>12}"),
            ("versions, with the trash", f"{found.versions:>12}"),
            ("in the trash", f"{found.trashed:>12}"),
            ("  their versions", human(found.trash).rjust(12)),
            ("current contents", human(found.current).rjust(12)),
            ("all versions", human(found.logical).rjust(12)),
            ("stored", human(found.packed).rjust(12)),
            ("  of it unreferenced", human(usage.unreferenced).rjust(12)),
            ("  of it condemned", human(found.condemned).rjust(12)),
            ("packs", f"{found.packs:>12}"),
            ("chunks", f"{found.chunks:>12}"),
            ("all versions : stored", f"{factor:>12.2f}"),
            *([("damaged versions", f"{usage.damaged:>12}")] if usage.damaged else []),
        ]
    )


def demo(
    also: Annotated[
        list[Path] | None,
        typer.Option("--also", metavar="DIR", help="Put this folder too. Can be repeated."),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Only a part of the standard library.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Work here and leave it there.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the main job on real files, in a folder and over HTTP: put, change, get, compare."""
    call = session(None, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.entrypoints.cli.demo import Demo

        return await Demo(call, tuple(also or ()), small=small).run(keep)

    run(call, work)

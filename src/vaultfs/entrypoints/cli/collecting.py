"""`gc`, `repack`, `scrub`, `reconcile`: what becomes of stored bytes as time goes by."""

from typing import TYPE_CHECKING, Annotated, Any

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
    opened,
    run,
    session,
    shown,
    table,
)

if TYPE_CHECKING:
    from vaultfs.domain.services.collector import Options, Report
    from vaultfs.domain.services.scrub import Scrub

DutyOption = Annotated[
    int, typer.Option("--duty", metavar="PERCENT", help="The part of the time that it works.")
]


BelowOption = Annotated[
    int,
    typer.Option(
        "--repack-below", metavar="PERCENT", help="Rewrite packs of which less is needed; 0: none."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (gc, repack, scrub, reconcile):
        app.command()(command)


def _duty(percent: int) -> float:
    if not 1 <= percent <= 100:
        raise InvalidField(f"--duty {percent}: 1 to 100 percent")
    return percent / 100


def _sparse(percent: int) -> float:
    if not 0 <= percent <= 100:
        raise InvalidField(f"{percent}: 0 to 100 percent")
    return percent / 100


def gc(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")
    ] = False,
    grace: Annotated[
        float, typer.Option("--grace", metavar="HOURS", help="How long packs stay condemned.")
    ] = 24.0,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Even if it is more than a fifth of everything.")
    ] = False,
    repack_below: BelowOption = 50,
    undelete: Annotated[
        bool, typer.Option("--undelete", help="Take all condemnations back, and nothing else.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the last collections.")] = False,
    duty: DutyOption = 100,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let go of contents that no version, no trash and no upload needs any more."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.domain.services.collector import Options

        if not 0 <= grace <= 24 * 366:
            raise InvalidField(f"--grace {grace:g}: 0 or more hours")
        if undelete and dry_run:
            raise InvalidField("--undelete changes something, and --dry-run is to change nothing")
        if show:
            return await _list_collections(call)
        if undelete:
            async with opened(call) as vault:
                count = await vault.collector().undelete(actor=vault.user.id)
            call.answer({"revived": count}, f"{count} packs are condemned no more")
            return ExitCode.DONE
        options = Options(
            grace_us=int(grace * 3600e6),
            dry_run=dry_run,
            confirmed=confirm,
            sparse=_sparse(repack_below),
            duty=_duty(duty),
        )
        return await _collect(call, options)

    run(call, work)


def repack(
    below: Annotated[
        int, typer.Option("--below", metavar="PERCENT", help="Of which less is needed.")
    ] = 50,
    duty: DutyOption = 100,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rewrite packs of which little is needed, and merge tiny ones.

    What is left of them goes with the collections that follow.
    """
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.domain.services.collector import Options

        options = Options(duty=_duty(duty), sparse=_sparse(below), only_repack=True)
        return await _collect(call, options)

    run(call, work)


async def _collect(call: Session, options: "Options") -> ExitCode:
    async with opened(call) as vault:
        packed = (await vault.catalog.stats()).packed
        with call.progress("gc", packed) as bar:
            report = await vault.collector().run(options, actor=vault.user.id, progress=bar.advance)
    call.answer(_report_json(report, options), lambda: _report(report, options))
    return ExitCode.PARTIAL if report.problems else ExitCode.DONE


def _report_json(report: "Report", options: "Options") -> dict[str, Any]:
    from attrs import asdict

    return {"dry_run": options.dry_run, **asdict(report)}


def _report(report: "Report", options: "Options") -> str:
    would = "would be " if options.dry_run else ""
    lines = [*map(shown, report.listed), *(f"problem: {shown(each)}" for each in report.problems)]
    lines.append(
        f"{counted(report.packs, 'pack')}, {human(report.total)},"
        f" {human(report.needed)} of them needed;"
        f" {would}condemned: {report.condemned} ({human(report.condemned_bytes)});"
        f" too young for that: {report.young} ({human(report.young_bytes)});"
        f" discarded: {report.discarded} ({human(report.discarded_bytes)});"
        f" rewritten: {report.rewritten}; back from condemned: {report.revived};"
        f" orphans: {report.orphans}"
    )
    return "\n".join(lines)


async def _list_collections(call: Session) -> ExitCode:
    import json
    from datetime import UTC, datetime

    async with opened(call) as vault:
        found = await vault.catalog.collections()
    rows = [
        {
            "collection": each.number,
            "begun": datetime.fromtimestamp(each.begun_us / 1e6, UTC).isoformat(timespec="seconds"),
            "complete": each.complete,
            **{
                name: value
                for name, value in json.loads(each.report).items()
                if name in {"condemned_bytes", "discarded_bytes", "rewritten", "orphans"}
            },
        }
        for each in found
    ]
    call.answer(
        rows,
        lambda: table(
            [
                (
                    str(row["collection"]),
                    str(row["begun"]),
                    "complete" if row["complete"] else "broken off",
                    f"condemned {human(int(row.get('condemned_bytes', 0)))}",
                    f"discarded {human(int(row.get('discarded_bytes', 0)))}",
                )
                for row in rows
            ]
        ),
    )
    return ExitCode.DONE


def scrub(
    period: Annotated[
        float, typer.Option("--period", metavar="DAYS", help="Read what was not read for so long.")
    ] = 30.0,
    cheap: Annotated[
        bool, typer.Option("--cheap", help="Ask the store for sizes and digests, read nothing.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the last scrubs.")] = False,
    duty: DutyOption = 100,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read stored bytes again and compare them with their digests: 1 if any are damaged."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from datetime import timedelta

        if not 0 <= period <= 3660:
            raise InvalidField(f"--period {period:g}: 0 or more days")
        if show:
            return await _list_scrubs(call)
        async with opened(call) as vault:
            packed = (await vault.catalog.stats()).packed
            with call.progress("scrub", packed) as bar:
                found = await vault.scrubber().run(
                    timedelta(days=period), cheap=cheap, duty=_duty(duty), progress=bar.advance
                )
        call.answer(_scrub_json(found), lambda: _scrub(found))
        return ExitCode.FAILED if found.problems else ExitCode.DONE

    run(call, work)


def _scrub_json(found: "Scrub") -> dict[str, Any]:
    from attrs import asdict

    return {"clean": not found.problems, **asdict(found)}


def _scrub(found: "Scrub") -> str:
    lines = [f"problem: {shown(each)}" for each in found.problems]
    lines += [f"repaired: {shown(each)}" for each in found.repaired]
    lines += [
        f"damaged: {shown(f'{each.tree}:{each.path}')} version {each.number}"
        for each in found.files
    ]
    verdict = "DAMAGED" if found.problems else "clean"
    lines.append(f"{verdict}: {counted(found.packs, 'pack')}, {human(found.size)} read")
    return "\n".join(lines)


async def _list_scrubs(call: Session) -> ExitCode:
    import json
    from datetime import UTC, datetime

    async with opened(call) as vault:
        found = await vault.catalog.scrubs()
    rows: list[dict[str, Any]] = [
        {
            "scrub": each.number,
            "begun": datetime.fromtimestamp(each.begun_us / 1e6, UTC).isoformat(timespec="seconds"),
            "packs": each.packs,
            "bytes_read": each.size,
            "findings": json.loads(each.findings),
        }
        for each in found
    ]
    call.answer(
        rows,
        lambda: table(
            [
                (
                    str(row["scrub"]),
                    str(row["begun"]),
                    f"{row['packs']} packs",
                    f"{human(row['bytes_read'])} read",
                    f"{len(row['findings'])} findings",
                )
                for row in rows
            ]
        ),
    )
    return ExitCode.DONE


def reconcile(
    accept: Annotated[
        bool, typer.Option("--accept", help="Give up what the catalog does not name.")
    ] = False,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare a catalog that came from a backup with its store; needed before `gc`."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from attrs import asdict

        async with opened(call) as vault:
            found = await vault.collector().reconcile(accept=accept, actor=vault.user.id)
        fate = "may be collected now" if accept else "would be collected: --accept allows it"
        lines = [f"missing: {shown(each)}" for each in found.missing]
        lines.append(
            f"{found.named} packs are known; {found.unnamed} are not ({human(found.unnamed_bytes)})"
            f" and {fate}"
        )
        call.answer({"accepted": accept, **asdict(found)}, "\n".join(lines))
        return ExitCode.FAILED if found.missing else ExitCode.DONE

    run(call, work)

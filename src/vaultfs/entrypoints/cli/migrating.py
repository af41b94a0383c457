"""`migrate`: a vault moves to another object store while it is in use."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.quantities import counted, human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.session import (
    Bar,
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
)

if TYPE_CHECKING:
    from vaultfs.domain.migration import Pace, Placement
    from vaultfs.domain.services.migrator import Migrator, Status
    from vaultfs.entrypoints.vault import Vault

migrate = typer.Typer(
    help="Move the vault to another object store while it is in use.", no_args_is_help=True
)
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how far all who copy are."""
RateOption = Annotated[
    float | None,
    typer.Option("--rate", metavar="MB/S", help="Copy no faster than this, on all servers."),
]
ObjectsOption = Annotated[
    int | None, typer.Option("--objects", metavar="N/S", help="The same in packs a second.")
]
EpochOption = Annotated[
    int | None,
    typer.Option("--if-epoch", metavar="N", help="Only if nobody has changed anything since."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(migrate, name="migrate")


def _placement_json(now: "Placement") -> dict[str, Any]:
    return {
        "phase": str(now.phase),
        "epoch": now.epoch,
        "source": now.source,
        "target": now.target,
        "paused": now.paused,
        "level": str(now.level),
        "bytes_per_second": now.pace.bytes_per_second,
        "objects_per_second": now.pace.objects_per_second,
    }


def _pace(rate: float | None, objects: int | None) -> "Pace":
    from vaultfs.domain.migration import MOST_A_SECOND, Pace

    if rate is not None and not 0 < rate < MOST_A_SECOND / 1e6:
        raise InvalidField(f"--rate {rate}: megabytes a second, above 0")
    return Pace(None if rate is None else max(1, round(rate * 1_000_000)), objects)


def _placement(now: "Placement") -> str:
    way = now.source if now.target is None else f"{now.source} -> {now.target}"
    most, packs = now.pace.bytes_per_second, now.pace.objects_per_second
    pace = "" if most is None else f", at most {human(most)} a second"
    pace += "" if packs is None else f", at most {counted(packs, 'pack')} a second"
    paused = ", paused" if now.paused else ""
    return f"{now.phase}{paused} (epoch {now.epoch}): {shown(way)}{pace}"


@migrate.command("start")
def start(
    to: Annotated[
        str, typer.Option("--to", metavar="NAME=URL", help="Or NAME, if it is named already.")
    ],
    level: Annotated[
        str, typer.Option("--verify", metavar="V0|V1|V2|V3", help="What cutover demands.")
    ] = "V2",
    rate: RateOption = None,
    objects: ObjectsOption = None,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Begin to copy everything to another store, which is empty."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from vaultfs.domain.migration import Level

        if level not in list(Level):
            raise InvalidField(f"--verify {level}: {', '.join(Level)}")
        async with opened(call) as opened_vault, _target(opened_vault, to) as (name, mover):
            now = await mover.start(name, Level(level), _pace(rate, objects))
        call.answer(_placement_json(now), _placement(now))

    run(call, work)


@asynccontextmanager
async def _target(vault: "Vault", to: str) -> "AsyncGenerator[tuple[str, Migrator], None]":
    """The name of the store that `to` says, and what moves the vault there."""
    from vaultfs.entrypoints.placing import VARIABLE, naming, parse_store

    if "/" in to and "=" not in to:
        url = to if "://" in to else Path(to).resolve().as_uri()
        raise InvalidField(f"--to {to}: a store has a name: --to NAME={url}")
    if "=" not in to:
        yield to, await vault.migrator()
        return
    name, url = parse_store(to)
    if vault.settings.database is not None:
        raise InvalidField(f"name the store for all servers first: {VARIABLE}='{to}'")
    async with naming(vault.objects, vault.settings.home, name, url) as keep:
        yield name, await vault.migrator(keep)


@migrate.command("status")
def status(
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how far it is."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with opened(call) as opened_vault:
            found = await (await opened_vault.migrator()).status()
        call.answer(_status_json(found), lambda: _status(found))

    run(call, work)


def _status_json(found: "Status") -> dict[str, Any]:
    from attrs import asdict

    return {
        **_placement_json(found.placement),
        "counts": None if found.counts is None else asdict(found.counts),
        "failures": len(found.failures),
        "unread": found.unread,
        "unaware": list(found.unaware),
    }


def _status(found: "Status") -> str:
    lines = [_placement(found.placement)]
    counts = found.counts
    if counts is not None:
        share = counts.there_size / counts.size if counts.size else 1.0
        lines.append(
            f"{counts.there} of {counts.packs} packs, {human(counts.there_size)} of"
            f" {human(counts.size)} ({share:.1%}) are there; {counts.read_back} read back,"
            f" {counts.failed} failed"
        )
        if found.unread:
            lines.append(f"{found.unread} packs are to be read back yet")
    lines.extend(
        f"server {shown(each)} was not told where {found.placement.target} is"
        for each in found.unaware
    )
    return "\n".join(lines)


@migrate.command("watch")
def watch(
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy, with a progress bar, until everything is there; servers that run copy too.

    When all of it is, packs are written to both stores from then on. Breaking it off loses
    nothing: the next `watch` goes on. 3 if it is paused, waits for something, or nothing is copied
    in this phase; 4 if packs failed.
    """
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.adapters.heap import share_one_heap

        share_one_heap()
        async with opened(call) as opened_vault:
            mover = await opened_vault.migrator()
            complete = await _watch(call, mover)
            found = await mover.status()
        call.answer(_status_json(found), lambda: _status(found))
        if found.failures:
            return ExitCode.ROLLED_BACK
        return ExitCode.DONE if complete else ExitCode.PARTIAL

    run(call, work)


async def _watch(call: Session, mover: "Migrator") -> bool:
    """Copy, and show what all who copy have done, until there is no more to do; whether all is."""
    import anyio

    from vaultfs.domain.migration import Blocked
    from vaultfs.domain.services.tasks import task_group

    left = _left(await mover.status())
    with call.progress("migrate", left) as bar:
        async with task_group() as tasks:
            tasks.start_soon(_show, mover, bar, left)
            try:
                while not (complete := await mover.run()) and await _is_under_way(mover):
                    await mover.advance()
                    await anyio.sleep(LOOK_EVERY)
                await mover.advance()
                complete = complete and await mover.run()
            except Blocked:  # by what the status tells
                complete = False
            tasks.cancel_scope.cancel()
    return complete


async def _is_under_way(mover: "Migrator") -> bool:
    """Whether what is missing is being copied by others."""
    found = await mover.status()
    copying = found.placement.copies is not None and not found.placement.paused
    return copying and mover.answering and not found.failures


def _left(found: "Status") -> int:
    """How many bytes are to be copied yet."""
    return found.counts.size - found.counts.there_size if found.counts else 0


async def _show(mover: "Migrator", bar: Bar, left: int) -> None:
    """Have the bar follow the rows, whoever wrote them."""
    import anyio

    while True:
        await anyio.sleep(LOOK_EVERY)
        now = _left(await mover.status())
        bar.advance(max(0, left - now))
        left = min(left, now)


def _changing(
    name: str, text: str, act: "Callable[[Migrator, int | None], Awaitable[Placement]]"
) -> None:
    """Make the command `name`, which changes where packs go by `act`."""

    def command(
        if_epoch: EpochOption = None,
        vault: FolderOption = None,
        database: DatabaseOption = None,
        store: StoreOption = None,
        as_json: JsonOption = False,
        quiet: QuietOption = False,
    ) -> None:
        call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)
        run(call, lambda: _act(call, lambda mover: act(mover, if_epoch)))

    command.__doc__ = text
    migrate.command(name)(command)


def _following(name: str, text: str) -> None:
    async def follow(mover: "Migrator", if_epoch: int | None) -> "Placement":
        from vaultfs.domain.migration import Command

        return await mover.follow(Command(name), if_epoch)

    _changing(name, text, follow)


async def _act(call: Session, act: "Callable[[Migrator], Awaitable[Placement]]") -> ExitCode:
    from vaultfs.domain.migration import Blocked

    async with opened(call) as opened_vault:
        try:
            now = await act(await opened_vault.migrator())
        except Blocked as error:
            call.answer(
                {"blocked": list(error.reasons)},
                "\n".join(f"not yet: {shown(each)}" for each in error.reasons),
            )
            return ExitCode.PARTIAL
    call.answer(_placement_json(now), _placement(now))
    return ExitCode.DONE


for _name, _text in (
    ("dual", "Write to both stores from now on, whatever is not copied yet."),
    ("cutover", "Read from the new store; both are written, and the way back is open."),
    ("rollback", "Read from the old store again."),
    ("detach", "Write to the new store alone; going back takes copying from then on."),
    ("abort", "Give it up: everything is in the old store."),
    ("end", "Forget a migration that was given up."),
):
    _following(_name, _text)


def _pausing(name: str, text: str, *, paused: bool) -> None:
    _changing(name, text, lambda mover, epoch: mover.pause(paused=paused, if_epoch=epoch))


_pausing("pause", "Stop copying; where packs go is the same.", paused=True)
_pausing("resume", "Go on copying.", paused=False)


@migrate.command("throttle")
def throttle(
    rate: RateOption = None,
    objects: ObjectsOption = None,
    if_epoch: EpochOption = None,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy no faster than this, on all servers together; without limits as fast as they can."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)
    run(call, lambda: _act(call, lambda mover: mover.throttle(_pace(rate, objects), if_epoch)))


@migrate.command("retire")
def retire(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the store that is given up.")],
    if_epoch: EpochOption = None,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Delete everything from the old store, whose name has to be said, and be done."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        async with opened(call) as opened_vault:
            gone = await (await opened_vault.migrator()).retire(name, if_epoch)
        call.answer({"deleted": gone}, f"{gone} objects were deleted from {shown(name)}")
        return ExitCode.DONE

    run(call, work)


@migrate.command("failures")
def failures(
    retry: Annotated[bool, typer.Option("--retry", help="Try them all again.")] = False,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the packs that could not be copied, and why: 4 if there are any."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        async with opened(call) as opened_vault:
            mover = await opened_vault.migrator()
            if retry:
                count = await mover.retry()
                call.answer({"retried": count}, f"{count} packs are tried again")
                return ExitCode.DONE
            found = (await mover.status()).failures
        call.answer(
            [{"pack": each.key.hex(), "error": each.error} for each in found],
            lambda: "\n".join(f"packs/{each.key.hex()}: {shown(each.error)}" for each in found),
        )
        return ExitCode.ROLLED_BACK if found else ExitCode.DONE

    run(call, work)


@migrate.command("reconcile")
def reconcile(
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask the new store for every pack that was copied; what it lacks is copied again: then 3."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        async with opened(call) as opened_vault:
            lost = await (await opened_vault.migrator()).reconcile()
        call.answer(
            {"missing": list(lost)},
            lambda: "\n".join((*lost, f"{len(lost)} packs are not there, or not whole")),
        )
        return ExitCode.PARTIAL if lost else ExitCode.DONE

    run(call, work)

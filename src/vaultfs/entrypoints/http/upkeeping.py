"""For operators: collections, scrubs, and the move to another store."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.migration import Command, Level, Pace
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import Call, Route
from vaultfs.entrypoints.http.wire import (
    CollectionList,
    CollectionOut,
    MigrationFailure,
    MigrationIn,
    MigrationOut,
    ScrubList,
    ScrubOut,
)

if TYPE_CHECKING:
    from vaultfs.domain.services.migrator import Migrator, Status

PAUSES: Final = {"pause": True, "resume": False}
FOLLOWED: Final = (
    *(Command.DUAL, Command.CUTOVER, Command.ROLLBACK),
    *(Command.DETACH, Command.ABORT, Command.END),
)
COMMANDS: Final = (
    *("start", *PAUSES, "throttle"),
    *map(str, FOLLOWED),
    *("retire", "retry", "reconcile"),
)


def _when(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC)


async def list_collections(call: Call) -> Response:
    """The newest collections of garbage, newest first."""
    found = await call.server.vault.catalog.collections()
    entries = [
        CollectionOut(
            *(each.number, _when(each.begun_us), _when(each.ended_us), each.complete),
            _read(each.report),
        )
        for each in found
    ]
    return call.json(CollectionList(entries))


async def list_scrubs(call: Call) -> Response:
    """The newest scrubs, newest first."""
    found = await call.server.vault.catalog.scrubs()
    entries = [
        ScrubOut(
            *(each.number, _when(each.begun_us), _when(each.ended_us), each.packs, each.size),
            _read(each.findings),
        )
        for each in found
    ]
    return call.json(ScrubList(entries))


def _read(text: str) -> Any:
    return msgspec.json.decode(text)


async def get_migration(call: Call) -> Response:
    """How far the move to another store is."""
    mover = await call.server.vault.migrator()
    return call.json(migration_out(await mover.status()))


async def change_migration(call: Call) -> Response:
    """Go on with it, or back."""
    wanted = await call.body(MigrationIn)
    if wanted.command not in COMMANDS:
        raise InvalidField(f"command={wanted.command!r}: one of {', '.join(COMMANDS)}")
    mover = await call.server.vault.migrator()
    await _carry_out(mover, wanted)
    return call.json(migration_out(await mover.status()))


async def _carry_out(mover: "Migrator", wanted: MigrationIn) -> None:
    command = wanted.command
    if command == "start":
        if wanted.level not in list(Level):
            raise InvalidField(f"level={wanted.level!r}: one of {', '.join(Level)}")
        await mover.start(_name_in(wanted), Level(wanted.level), _pace_in(wanted))
    elif command == "throttle":
        await mover.throttle(_pace_in(wanted), wanted.if_epoch)
    elif command == "retire":
        await mover.retire(_name_in(wanted), wanted.if_epoch)
    elif command == "retry":
        await mover.retry()
    elif command == "reconcile":
        await mover.reconcile()
    elif command in PAUSES:
        await mover.pause(paused=PAUSES[command], if_epoch=wanted.if_epoch)
    else:
        await mover.follow(Command(command), wanted.if_epoch)


def _pace_in(wanted: MigrationIn) -> Pace:
    return Pace(wanted.bytes_per_second, wanted.objects_per_second)


def _name_in(wanted: MigrationIn) -> str:
    if wanted.store is None:
        raise InvalidField(f"store is missing: the name of the store to {wanted.command}")
    return wanted.store


def migration_out(found: "Status") -> MigrationOut:
    """A migration as it is told."""
    now, counts = found.placement, found.counts
    told = MigrationOut(
        *(str(now.phase), now.epoch, now.source, now.target, now.paused, str(now.level)),
        bytes_per_second=now.pace.bytes_per_second,
        objects_per_second=now.pace.objects_per_second,
        unaware=list(found.unaware),
        failures=[
            MigrationFailure(each.key.hex(), each.attempts, each.error) for each in found.failures
        ],
    )
    if counts is not None:
        told.packs, told.size = counts.packs, counts.size
        told.copied_packs, told.copied_size = counts.there, counts.there_size
        told.read_back, told.failed = counts.read_back, counts.failed
    return told


ROUTES: Final = (
    Route(
        *("GET", "/v1/collections", list_collections, "listCollections"),
        "The last collections of what nothing needs any more.",
        scope=Scope.ADMIN,
        answer=CollectionList,
    ),
    Route(
        *("GET", "/v1/scrubs", list_scrubs, "listScrubs", "The last scrubs, and their findings."),
        scope=Scope.ADMIN,
        answer=ScrubList,
    ),
    Route(
        *("GET", "/v1/migration", get_migration, "getMigration"),
        "How far the move to another store is.",
        scope=Scope.ADMIN,
        answer=MigrationOut,
    ),
    Route(
        *("POST", "/v1/migration", change_migration, "changeMigration"),
        "Begin, pause, go on with, or take back the move to another store.",
        scope=Scope.ADMIN,
        body=MigrationIn,
        answer=MigrationOut,
        failures=(409,),
    ),
)

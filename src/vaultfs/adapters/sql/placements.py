"""What the steps of a migration do to the tables, and what is asked of them."""

from collections.abc import Callable
from typing import Any, Final

from vaultfs.adapters.sql.accounts import audit
from vaultfs.adapters.sql.collections import now_of
from vaultfs.adapters.sql.statements import Program, Run, RunMany
from vaultfs.adapters.sql.stock import PLACEMENT, since, to_placement
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain import migrating as steps
from vaultfs.domain.errors import Conflict, VaultError
from vaultfs.domain.migration import (
    AT_ONCE,
    Command,
    Facts,
    Level,
    Phase,
    Placement,
    follow,
    pause,
    propose,
    throttle,
)
from vaultfs.domain.operations import Unit

THERE: Final = "('present', 'verified')"
"""The states of a pack that is in a store."""
LACKING: Final = (
    "SELECT COUNT(*) FROM packs p WHERE NOT EXISTS (SELECT 1 FROM pack_locations l"
    f" WHERE l.pack = p.id AND l.backend = $1 AND l.state IN {THERE})"
)
LEFT: Final = (
    f"{LACKING} AND EXISTS (SELECT 1 FROM pack_locations l"
    f" WHERE l.pack = p.id AND l.backend = $2 AND l.state IN {THERE})"
)
"""Those of them that another store has."""
READ_BACK: Final = (
    "SELECT COUNT(*) FROM pack_locations WHERE backend = $1 AND state = 'verified'"
    " AND verified_level >= $2"
)
COPIED: Final = "SELECT COUNT(*) FROM pack_locations WHERE backend = $1 AND state = 'verified'"
SERVERS: Final = "SELECT name, stores FROM servers WHERE seen > $1 ORDER BY name"
SAMPLE: Final = 1000
"""Packs that are read back at the least, where a sample is; else one in a hundred."""
CANDIDATES: Final = (
    "SELECT p.id, p.key, p.size, p.crc32c FROM packs p LEFT JOIN pack_locations l"
    " ON l.pack = p.id AND l.backend = $1 WHERE p.id > $5 AND (l.pack IS NULL"
    f" OR l.state NOT IN {THERE} AND l.attempts < $2 AND COALESCE(l.seen, 0) <= $3)"
    " ORDER BY p.id LIMIT $4"
)
CLAIM: Final = (
    "INSERT INTO pack_locations(pack, backend, state, verified_level, attempts, seen)"
    " SELECT id, $2, 'intent', 0, 1, $3 FROM packs WHERE id = $1"
    " ON CONFLICT (pack, backend) DO UPDATE SET state = 'intent', seen = $3,"
    " attempts = pack_locations.attempts + 1"
    f" WHERE pack_locations.state NOT IN {THERE} AND COALESCE(pack_locations.seen, 0) <= $4"
    " RETURNING pack"
)
SINCE: Final = "SELECT COALESCE(MAX(value), 0) FROM epochs WHERE name = $1"
TO_READ: Final = (
    "SELECT p.id, p.key, p.size, p.crc32c FROM pack_locations l JOIN packs p ON p.id = l.pack"
    " WHERE l.backend = $1 AND l.state = 'verified' AND l.verified_level < $2"
    " AND COALESCE(l.seen, 0) <= $3 ORDER BY p.key LIMIT $4"
)
CLAIM_READ: Final = (
    "UPDATE pack_locations SET seen = $3 WHERE pack = $1 AND backend = $2"
    " AND state = 'verified' AND COALESCE(seen, 0) <= $4 RETURNING pack"
)
FAILURES: Final = (
    "SELECT p.key, l.attempts, COALESCE(l.last_error, '') FROM pack_locations l"
    " JOIN packs p ON p.id = l.pack"
    f" WHERE l.backend = $1 AND l.state NOT IN {THERE} AND l.attempts >= $2 ORDER BY p.key LIMIT $3"
)
FAILED: Final = (
    "SELECT COUNT(*) FROM pack_locations"
    f" WHERE backend = $1 AND state NOT IN {THERE} AND attempts >= $2"
)
PACKS_IN: Final = (
    "SELECT p.key, p.size, p.crc32c, l.backend FROM pack_locations l"
    f" JOIN packs p ON p.id = l.pack WHERE l.backend = $1 AND l.state IN {THERE} AND p.key > $2"
    " ORDER BY p.key LIMIT $3"
)
COUNTS: Final = (
    "SELECT COUNT(*), COALESCE(SUM(p.size), 0), COUNT(l.pack),"
    " COALESCE(SUM(CASE WHEN l.pack IS NOT NULL THEN p.size ELSE 0 END), 0),"
    " COALESCE(SUM(CASE WHEN l.verified_level >= 2 THEN 1 ELSE 0 END), 0)"
    " FROM packs p LEFT JOIN pack_locations l"
    f" ON l.pack = p.id AND l.backend = $1 AND l.state IN {THERE}"
)


def execute(step: steps.Step, unit: Unit, tx: Transaction) -> Program[int]:
    """The answer of `step`. Raises what it is refused with."""
    yield Run("SAVEPOINT step")
    try:
        answer = yield from _PROGRAMS[type(step)](tx, unit, step)
    except VaultError:
        yield Run("ROLLBACK TO SAVEPOINT step")
        yield Run("RELEASE SAVEPOINT step")
        raise
    yield Run("RELEASE SAVEPOINT step")
    return answer


def claim(
    store: str, after: int, limit: int, unit: Unit, tx: Transaction
) -> Program[list[steps.Claimed]]:
    """Packs that `store` lacks, claimed for whoever asks; none if nothing is copied there now."""
    now = now_of(tx, unit)
    placement = yield from _copying(store, now)
    if placement is None:
        return []
    [(begun,)] = yield Run(SINCE, (since(store),))
    stale, from_start = now - steps.CLAIM_US, not after
    claimed: list[steps.Claimed] = []
    while len(claimed) < limit:
        rows = yield Run(CANDIDATES, (store, steps.MOST_ATTEMPTS, stale, limit, after))
        if not rows:
            if claimed or from_start:
                break
            after, from_start = 0, True
        for number, key, size, crc32c in rows:
            after = number
            if len(claimed) < limit and (yield Run(CLAIM, (number, store, now, stale))):
                claimed.append(steps.Claimed(number, key, size, crc32c, begun))
    yield from _spend(placement, claimed, now)
    return claimed


def claim_read_back(
    store: str, level: int, limit: int, unit: Unit, tx: Transaction
) -> Program[list[steps.Claimed]]:
    """Packs in `store` that are verified below `level`, claimed for whoever asks."""
    now = now_of(tx, unit)
    placement = yield from _copying(store, now)
    if placement is None:
        return []
    [(begun,)] = yield Run(SINCE, (since(store),))
    stale = now - steps.CLAIM_US
    claimed: list[steps.Claimed] = []
    for number, key, size, crc32c in (yield Run(TO_READ, (store, level, stale, limit))):
        if (yield Run(CLAIM_READ, (number, store, now, stale))):
            claimed.append(steps.Claimed(number, key, size, crc32c, begun))
    yield from _spend(placement, claimed, now)
    return claimed


def waiting(unit: Unit, tx: Transaction) -> Program[int]:
    """For how many microseconds the pace has everybody wait."""
    rows = yield Run(PLACEMENT)
    return (yield from _wait(to_placement(rows[0]), now_of(tx, unit))) if rows else 0


def _copying(store: str, now: int) -> Program[Placement | None]:
    """The placement, if `store` is copied to by it now, and its pace has nobody wait."""
    rows = yield Run(PLACEMENT)
    placement = to_placement(rows[0]) if rows else None
    if placement is None or placement.copies is None or placement.copies[1] != store:
        return None
    if placement.paused:
        return None
    return None if (yield from _wait(placement, now)) else placement


def _wait(placement: Placement, now: int) -> Program[int]:
    """For how long nothing may be copied; until it is committed, nobody else is told."""
    if placement.pace == AT_ONCE:
        return 0
    [(free_at,)] = yield Run(_PACE)
    return max(0, int(free_at) - now)


def _spend(placement: Placement, claimed: list[steps.Claimed], now: int) -> Program[None]:
    """Have all wait as long as the pace says for what was claimed now."""
    took = placement.pace.takes_us(sum(each.size for each in claimed), len(claimed))
    if took:
        yield Run("UPDATE paces SET free_at = $1 WHERE name = 'copies'", (now + took,))


_PACE: Final = (
    "INSERT INTO paces(name, free_at) VALUES ('copies', 0)"
    " ON CONFLICT (name) DO UPDATE SET free_at = paces.free_at RETURNING free_at"
)
"""The row is locked by it, so several who claim do so one after another."""


_NOBODY_WAITS: Final = "DELETE FROM paces WHERE name = 'copies'"
"""As the pace had it that was asked for before."""


def _current() -> Program[Placement]:
    rows = yield Run(PLACEMENT)
    if not rows:
        raise Conflict(
            "there is no migration: begin one with `vaultfs migrate start --to NAME=URL`"
        )
    return to_placement(rows[0])


def _raise_epoch() -> Program[int]:
    """Wait for the commits that go by the placement as it is, and have others wait; the epoch."""
    sql = "UPDATE epochs SET value = value + 1 WHERE name = 'placement' RETURNING value"
    [(epoch,)] = yield Run(sql)
    return int(epoch)


def _write(tx: Transaction, unit: Unit, placement: Placement) -> Program[int]:
    yield Run("UPDATE epochs SET value = $1 WHERE name = 'placement'", (placement.epoch,))
    yield Run("DELETE FROM placement")
    yield Run(
        "INSERT INTO placement(id, epoch, phase, source, target, paused, level, changed,"
        " bytes_a_second, objects_a_second) VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $9)",
        (
            *(placement.epoch, str(placement.phase), placement.source, placement.target),
            *(int(placement.paused), str(placement.level), now_of(tx, unit)),
            *(placement.pace.bytes_per_second, placement.pace.objects_per_second),
        ),
    )
    text = f"{placement.phase}: {placement.source} -> {placement.target}"
    yield from audit(tx, unit, "migrate", text + (", paused" if placement.paused else ""))
    return placement.epoch


def _to_be_changed(if_epoch: int | None) -> Program[Placement]:
    """The placement as it is, with everybody who goes by it waited for."""
    yield from _raise_epoch()
    now = yield from _current()
    _must_be(now, if_epoch)
    return now


def _must_be(placement: Placement, epoch: int | None) -> None:
    if epoch not in {None, placement.epoch}:
        raise Conflict(
            f"the migration is at epoch {placement.epoch}, not {epoch}: somebody else was faster"
        )


def _propose(tx: Transaction, unit: Unit, step: steps.Propose) -> Program[int]:
    epoch = yield from _raise_epoch()
    rows = yield Run(PLACEMENT)
    now = to_placement(rows[0]) if rows else Placement(epoch, Phase.SETTLED, step.source)
    if rows and now.source != step.source:
        raise Conflict(f"everything is in {now.source}, not in {step.source}")
    placement = propose(step.source, step.target, step.level, now, step.pace)
    yield Run("DELETE FROM pack_locations WHERE backend = $1", (step.target,))
    yield Run(_NOBODY_WAITS)
    yield Run(_BEGIN, (since(step.target), placement.epoch))
    return (yield from _write(tx, unit, placement))


_BEGIN: Final = (
    "INSERT INTO epochs(name, value) VALUES ($1, $2)"
    " ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value"
)


def _follow(tx: Transaction, unit: Unit, step: steps.Follow) -> Program[int]:
    now = yield from _to_be_changed(step.if_epoch)
    placement = follow(now, step.command, (yield from _facts(now, now_of(tx, unit))))
    if step.command is Command.END:
        gone = now.source if now.phase is Phase.RETIRED else now.target
        yield Run("DELETE FROM pack_locations WHERE backend = $1", (gone,))
    return (yield from _write(tx, unit, placement))


def _facts(now: Placement, at_us: int) -> Program[Facts]:
    if now.target is None:
        return Facts({now.source: 0})
    [(left,)] = yield Run(LEFT, (now.source, now.target))
    [(missing,)] = yield Run(LACKING, (now.target,))
    lacking = {now.source: int(left), now.target: int(missing)}
    unread = yield from _unread(now.target, now.level)
    return Facts(lacking, unread, (yield from _unaware(now.target, at_us)))


def unaware(store: str, unit: Unit, tx: Transaction) -> Program[tuple[str, ...]]:
    """The names of servers that run and do not know where `store` is."""
    return (yield from _unaware(store, now_of(tx, unit)))


def _unaware(store: str, at_us: int) -> Program[tuple[str, ...]]:
    rows = yield Run(SERVERS, (at_us - steps.ALIVE_US,))
    return tuple(name for name, stores in rows if store not in stores.split())


def _unread(store: str, level: Level) -> Program[int]:
    [(copied,)] = yield Run(COPIED, (store,))
    [(read,)] = yield Run(READ_BACK, (store, 2))
    return still_unread(copied, read, level)


def still_unread(copied: int, read: int, level: Level) -> int:
    """How many of the packs that `level` wants read back were not."""
    if level in {Level.SIZE, Level.DIGEST}:
        return 0
    wanted = copied if level is Level.ALL else min(copied, max(SAMPLE, copied // 100))
    return max(0, wanted - read)


def _pause(tx: Transaction, unit: Unit, step: steps.Pause) -> Program[int]:
    now = yield from _to_be_changed(step.if_epoch)
    return (yield from _write(tx, unit, pause(now, paused=step.paused)))


def _throttle(tx: Transaction, unit: Unit, step: steps.Throttle) -> Program[int]:
    now = yield from _to_be_changed(step.if_epoch)
    yield Run(_NOBODY_WAITS)
    return (yield from _write(tx, unit, throttle(now, step.pace)))


def _settle(tx: Transaction, unit: Unit, step: steps.Settle) -> Program[int]:
    epoch = yield from _raise_epoch()
    return (yield from _write(tx, unit, Placement(epoch, Phase.SETTLED, step.store)))


def _announce(tx: Transaction, unit: Unit, step: steps.Announce) -> Program[int]:
    now = now_of(tx, unit)
    yield Run(
        "DELETE FROM servers WHERE id = $1 OR seen <= $2", (step.server, now - steps.ALIVE_US)
    )
    if not step.gone:
        yield Run(
            "INSERT INTO servers(id, name, stores, seen) VALUES ($1, $2, $3, $4)",
            (step.server, step.name, " ".join(step.stores), now),
        )
    return 0


def _note_copied(_tx: Transaction, _unit: Unit, step: steps.NoteCopied) -> Program[int]:
    # An update, for it has another migration wait until this is done.
    begun = yield Run(_AS_IT_IS, (since(step.store),))
    if step.since != (begun[0][0] if begun else 0):
        return 0
    good = [(level, number, step.store) for number, level, error in step.packs if error is None]
    bad = [(error, number, step.store) for number, _, error in step.packs if error is not None]
    yield RunMany(
        "UPDATE pack_locations SET state = 'verified', verified_level = $1, last_error = NULL,"
        " seen = 0 WHERE pack = $2 AND backend = $3",
        good,
    )
    yield RunMany(
        "UPDATE pack_locations SET state = 'intent', seen = 0, last_error = $1"
        " WHERE pack = $2 AND backend = $3",
        bad,
    )
    yield RunMany(
        "UPDATE pack_locations SET seen = 0, attempts = attempts - 1, last_error = $1"
        " WHERE pack = $2 AND backend = $3 AND state = 'intent' AND attempts > 0",
        [(error, number, step.store) for number, error in step.put_off],
    )
    yield RunMany(
        "UPDATE pack_locations SET seen = 0 WHERE pack = $1 AND backend = $2"
        " AND state = 'verified'",
        [(number, step.store) for number, _ in step.put_off],
    )
    return len(good)


_AS_IT_IS: Final = "UPDATE epochs SET value = value WHERE name = $1 RETURNING value"


def _retry(_tx: Transaction, _unit: Unit, step: steps.Retry) -> Program[int]:
    rows = yield Run(
        "UPDATE pack_locations SET attempts = 0, seen = 0 WHERE backend = $1"
        f" AND state NOT IN {THERE} RETURNING pack",
        (step.store,),
    )
    return len(rows)


def _note_lost(_tx: Transaction, _unit: Unit, step: steps.NoteLost) -> Program[int]:
    yield RunMany(
        "UPDATE pack_locations SET state = 'corrupt', attempts = 0, seen = 0"
        " WHERE backend = $1 AND pack = (SELECT id FROM packs WHERE key = $2)",
        [(step.store, key) for key in step.keys],
    )
    return len(step.keys)


_PROGRAMS: Final[dict[type, Callable[[Transaction, Unit, Any], Program[int]]]] = {
    steps.Propose: _propose,
    steps.Follow: _follow,
    steps.Pause: _pause,
    steps.Throttle: _throttle,
    steps.Settle: _settle,
    steps.Announce: _announce,
    steps.NoteCopied: _note_copied,
    steps.Retry: _retry,
    steps.NoteLost: _note_lost,
}

"""What the steps of collections and scrubs do to the tables.

Each begins by raising the epoch `gc`, which waits for the commits that have read it and has
others wait: so a commit comes before a step or behind it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from vaultfs.adapters.sql.accounts import audit
from vaultfs.adapters.sql.dumps import UNRECONCILED
from vaultfs.adapters.sql.lockview import SHARED_CLOCK
from vaultfs.adapters.sql.statements import Program, Run, RunMany
from vaultfs.adapters.sql.stock import record_pack
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain import collecting as steps
from vaultfs.domain.collection import (
    LEASE_US,
    REWRITE_US,
    PackUse,
    may_condemn,
    may_discard,
)
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Busy, Conflict, Fenced, VaultError
from vaultfs.domain.operations import Unit
from vaultfs.ports.catalog import ScrubRow, ScrubWanted

PACK_USE: Final = (
    "SELECT p.id, p.key, p.size, p.created, p.condemned, COALESCE(p.collection, 0),"
    " EXISTS (SELECT 1 FROM pins i WHERE i.pack = p.id AND i.until > $1) FROM packs p"
)


def execute(step: steps.Step, unit: Unit, tx: Transaction) -> Program[int]:
    """The answer of `step`. Raises what it is refused with."""
    yield Run("SAVEPOINT step")
    try:
        if isinstance(step, steps.MoveChunks):  # it records a pack: see `domain.migration`
            yield Run("UPDATE epochs SET value = value WHERE name = 'placement'")
        yield Run("UPDATE epochs SET value = value + 1 WHERE name = 'gc'")
        answer = yield from _PROGRAMS[type(step)](tx, unit, now_of(tx, unit), step)
    except VaultError:
        yield Run("ROLLBACK TO SAVEPOINT step")
        yield Run("RELEASE SAVEPOINT step")
        raise
    yield Run("RELEASE SAVEPOINT step")
    return answer


def now_of(tx: Transaction, unit: Unit) -> int:
    """Microseconds since 1970: by the database's clock, where several machines share one."""
    return int(tx.locks.now * 1_000_000) if tx.locks.boot == SHARED_CLOCK else unit.at_us


def to_pack_use(row: Sequence[Any]) -> PackUse:
    """A pack from the columns `PACK_USE`."""
    number, key, size, created, condemned, collection, pinned = row
    return PackUse(number, key, size, created, condemned, collection, bool(pinned))


# Collections


def _begin(_tx: Transaction, _unit: Unit, now: int, step: steps.Begin) -> Program[int]:
    if (yield Run("SELECT 1 FROM meta WHERE key = $1", (UNRECONCILED,))):
        raise Conflict(
            "the catalog came from a backup: the store may hold contents that it does not know"
            " of. `vaultfs reconcile` shows them; collect after that"
        )
    rows = yield Run("SELECT id, holder, seen, ended FROM collections ORDER BY id DESC LIMIT 1")
    if rows and rows[0][3] is None:
        number, holder, seen, _ = rows[0]
        if holder == step.holder:
            return int(number)
        if now - seen < LEASE_US:
            raise Busy(f"a collection is under way: {holder}")
        yield Run("UPDATE collections SET ended = $2 WHERE id = $1", (number, now))
    number = rows[0][0] + 1 if rows else 1
    yield Run(
        "INSERT INTO collections(id, holder, begun, seen, complete, report)"
        " VALUES ($1, $2, $3, $3, 0, '{}')",
        (number, step.holder, now),
    )
    return number


def _must_be_newest(number: int, now: int) -> Program[None]:
    """Raise `Fenced` unless the collection is under way; note that it was heard of."""
    rows = yield Run("SELECT id, ended FROM collections ORDER BY id DESC LIMIT 1")
    if not rows or rows[0][0] != number or rows[0][1] is not None:
        raise Fenced(f"collection {number} is over: another one has begun")
    yield Run("UPDATE collections SET seen = $2 WHERE id = $1", (number, now))


def _beat(_tx: Transaction, _unit: Unit, now: int, step: steps.Beat) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    return 0


def _end(tx: Transaction, unit: Unit, now: int, step: steps.End) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    yield Run(
        "UPDATE collections SET ended = $2, complete = $3, report = $4 WHERE id = $1",
        (step.collection, now, int(step.complete), step.report),
    )
    yield from audit(tx, unit, "collect", f"collection {step.collection}: {step.report}"[:2000])
    return 0


def _use(number: int, now: int) -> Program[PackUse | None]:
    rows = yield Run(f"{PACK_USE} WHERE p.id = $2", (now, number))
    return to_pack_use(rows[0]) if rows else None


def _condemn(_tx: Transaction, _unit: Unit, now: int, step: steps.Condemn) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    condemned: list[tuple[int, int, int]] = []
    for number in step.packs:
        pack = yield from _use(number, now)
        if pack is not None and may_condemn(pack):
            condemned.append((now, step.collection, number))
    yield RunMany(_CONDEMN, condemned)
    return len(condemned)


_CONDEMN: Final = "UPDATE packs SET condemned = $1, collection = $2 WHERE id = $3"


def _revive(tx: Transaction, unit: Unit, _now: int, step: steps.Revive) -> Program[int]:
    rows = yield Run("SELECT id FROM packs WHERE condemned IS NOT NULL")
    wanted = [row for row in rows if step.packs is None or row[0] in step.packs]
    yield RunMany("UPDATE packs SET condemned = NULL, collection = NULL WHERE id = $1", wanted)
    if step.packs is None and wanted:
        yield from audit(tx, unit, "undelete", f"{len(wanted)} packs are condemned no more")
    return len(wanted)


def _move(tx: Transaction, unit: Unit, now: int, step: steps.MoveChunks) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    for number in step.sources:
        source = yield from _use(number, now)
        if source is None or source.pinned:  # since it was planned
            return 0
    [pack] = (yield from record_pack(tx, unit, step.record)).packs
    moved = [
        (pack, entry.offset, entry.size, entry.length, entry.digest, source)
        for entry, source in ((step.record.entries[index], source) for index, source in step.moves)
    ]
    yield RunMany(
        "UPDATE chunks SET pack = $1, start = $2, size = $3, length = $4"
        " WHERE digest = $5 AND pack = $6",
        moved,
    )
    sources = [(now, step.collection, number) for number in step.sources if number != pack]
    yield RunMany(
        "UPDATE packs SET condemned = $1, collection = $2, rewritten = 1 WHERE id = $3", sources
    )
    return len(moved)


def _offer(_tx: Transaction, _unit: Unit, now: int, step: steps.OfferRewrites) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    yield Run("DELETE FROM rewrites")
    yield RunMany(
        "INSERT INTO rewrites(id, collection, work, claimed) VALUES ($1, $2, $3, 0)",
        [(number, step.collection, work) for number, work in enumerate(step.work, 1)],
    )
    return len(step.work)


def claim_rewrite(unit: Unit, tx: Transaction) -> Program[steps.Rewrite | None]:
    """Packs that the collection which is under way wants rewritten and nobody is at, claimed."""
    now = now_of(tx, unit)
    stale = now - REWRITE_US
    while free := (yield Run(_FREE, (stale,))):
        rows = yield Run(_CLAIM_REWRITE, (now, free[0][0], stale))
        if rows:  # and not somebody else's meanwhile
            return steps.Rewrite(*rows[0])
    return None


_FREE: Final = (
    "SELECT r.id FROM rewrites r JOIN collections c ON c.id = r.collection"
    " WHERE c.ended IS NULL AND r.done IS NULL AND r.claimed <= $1 ORDER BY r.id LIMIT 1"
)
_CLAIM_REWRITE: Final = (
    "UPDATE rewrites SET claimed = $1 WHERE id = $2 AND claimed <= $3 AND done IS NULL"
    " RETURNING id, collection, work"
)


def _note_rewritten(
    _tx: Transaction, _unit: Unit, now: int, step: steps.NoteRewritten
) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    rows = yield Run(
        "UPDATE rewrites SET done = $1 WHERE id = $2 AND collection = $3 AND done IS NULL"
        " RETURNING 1",
        (step.done, step.rewrite, step.collection),
    )
    return len(rows)


def _discard(_tx: Transaction, _unit: Unit, now: int, step: steps.Discard) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    pack = yield from _use(step.pack, now)
    if pack is None or not may_discard(pack, step.collection, now, step.grace_us):
        return 0
    yield RunMany(
        "DELETE FROM chunks WHERE digest = $1 AND pack = $2",
        [(digest, pack.number) for digest in step.digests],
    )
    yield Run("DELETE FROM pins WHERE pack = $1", (pack.number,))
    yield Run("DELETE FROM pack_locations WHERE pack = $1", (pack.number,))
    yield Run("DELETE FROM packs WHERE id = $1", (pack.number,))
    yield Run(_DOOM, (pack.key, now))
    return 1


_DOOM: Final = (  # again, if somebody has put what was deleted
    "INSERT INTO doomed(key, at) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET deleted = NULL"
)


def _doom(_tx: Transaction, _unit: Unit, now: int, step: steps.Doom) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    doomed: list[tuple[Digest, int]] = []
    for key in step.keys:
        rows = yield Run("SELECT 1 FROM packs WHERE key = $1", (key,))
        if not rows:
            doomed.append((key, now))
    yield RunMany(_DOOM, doomed)
    return len(doomed)


def _note_deleted(_tx: Transaction, _unit: Unit, now: int, step: steps.NoteDeleted) -> Program[int]:
    yield from _must_be_newest(step.collection, now)
    yield RunMany(
        "UPDATE doomed SET deleted = $1 WHERE key = $2", [(now, key) for key in step.keys]
    )
    return len(step.keys)


def _reconcile(tx: Transaction, unit: Unit, _now: int, _step: steps.Reconcile) -> Program[int]:
    rows = yield Run("DELETE FROM meta WHERE key = $1 RETURNING value", (UNRECONCILED,))
    if rows:
        if not rows[0][0]:
            raise Conflict(
                "the catalog came from a backup and does not know what is in the store yet:"
                " `vaultfs rebuild` looks"
            )
        yield from audit(tx, unit, "reconcile", "what the catalog does not name may be collected")
    return len(rows)


# Scrubs


SCRUBBED: Final = "l.state <> 'intent' AND (l.backend = $0 OR NOT EXISTS (SELECT 1 FROM placement))"
"""Which locations are scrubbed: those in the store that is read first, `$0`, by its name; where
there never was but one store, it may have been called otherwise before."""


def _begin_scrub(_tx: Transaction, _unit: Unit, now: int, _step: steps.BeginScrub) -> Program[int]:
    rows = yield Run("SELECT COALESCE(MAX(id), 0) + 1 FROM scrubs")
    number = int(rows[0][0])
    yield Run(
        "INSERT INTO scrubs(id, begun, packs, bytes, findings) VALUES ($1, $2, 0, 0, '[]')",
        (number, now),
    )
    return number


def claim_scrub(want: ScrubWanted, unit: Unit, tx: Transaction) -> Program[list[ScrubRow]]:
    """Packs that are due, claimed for the scrub that asks."""
    now = now_of(tx, unit)
    stale = now - steps.SCRUB_CLAIM_US
    seen = "MAX(COALESCE(l.seen, 0), COALESCE(l.scrubbed, p.created))"
    when = seen if want.cheap else "COALESCE(l.scrubbed, p.created)"
    rows = yield Run(
        "SELECT p.id, p.key, p.size, p.crc32c, p.created, l.scrubbed, l.seen, l.backend"
        f" FROM packs p JOIN pack_locations l ON l.pack = p.id WHERE {when} <= $1"
        f" AND {SCRUBBED.replace('$0', '$2')} AND COALESCE(l.scrub, 0) <> $3"
        f" AND COALESCE(l.claimed, 0) <= $4 ORDER BY {when}, p.id LIMIT $5",
        (want.before_us, want.store, want.scrub, stale, want.limit),
    )
    claimed: list[ScrubRow] = []
    for *row, backend in rows:
        mine = yield Run(_CLAIM_SCRUB, (want.scrub, now, row[0], backend, stale))
        if mine:
            claimed.append(ScrubRow(*row))
    return claimed


_CLAIM_SCRUB: Final = (
    "UPDATE pack_locations SET scrub = $1, claimed = $2 WHERE pack = $3 AND backend = $4"
    " AND COALESCE(claimed, 0) <= $5 RETURNING pack"
)


def _note_scrubbed(
    _tx: Transaction, _unit: Unit, now: int, step: steps.NoteScrubbed
) -> Program[int]:
    # Only who reads a pack can tell that it is damaged no more.
    sound = "state = CASE l.state WHEN 'corrupt' THEN 'present' ELSE l.state END, scrubbed = $1"
    # What is damaged counts as claimed by nobody, so that it can be copied from another store.
    for right, text in (
        (True, sound if step.size else "seen = $1"),
        (False, "state = 'corrupt', scrubbed = $1, seen = 0"),
    ):
        yield RunMany(
            f"UPDATE pack_locations AS l SET {text}, claimed = 0 WHERE l.pack = $2"
            f" AND {SCRUBBED.replace('$0', '$3')}",
            [(now, number, step.store) for number, found in step.packs if found is right],
        )
    yield Run(
        "UPDATE scrubs SET packs = packs + $2, bytes = bytes + $3, findings = $4 WHERE id = $1",
        (step.scrub, len(step.packs), step.size, step.findings),
    )
    return len(step.packs)


def _end_scrub(_tx: Transaction, _unit: Unit, now: int, step: steps.EndScrub) -> Program[int]:
    yield Run(
        "UPDATE scrubs SET ended = $2, findings = $3 WHERE id = $1",
        (step.scrub, now, step.findings),
    )
    return 0


_PROGRAMS: Final[dict[type, Callable[[Transaction, Unit, int, Any], Program[int]]]] = {
    steps.Begin: _begin,
    steps.Beat: _beat,
    steps.End: _end,
    steps.Condemn: _condemn,
    steps.Revive: _revive,
    steps.MoveChunks: _move,
    steps.OfferRewrites: _offer,
    steps.NoteRewritten: _note_rewritten,
    steps.Discard: _discard,
    steps.Doom: _doom,
    steps.NoteDeleted: _note_deleted,
    steps.Reconcile: _reconcile,
    steps.BeginScrub: _begin_scrub,
    steps.NoteScrubbed: _note_scrubbed,
    steps.EndScrub: _end_scrub,
}

"""What the operations on packs and chunks do to the tables."""

# ruff: noqa: D103 - `domain.operations` says what each operation does

from collections.abc import Iterable, Sequence
from typing import Any, Final

from vaultfs.adapters.sql.statements import INSERT_CHUNKS, Program, Run, RunMany
from vaultfs.adapters.sql.transaction import Transaction, next_id
from vaultfs.domain import operations as ops
from vaultfs.domain.errors import Doomed, NotFound, PacksGone, PlacementChanged, listed
from vaultfs.domain.migration import Level, Pace, Phase, Placement
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import Result, Unit
from vaultfs.domain.packs import NO_CIPHER


def rely(tx: Transaction, *units: Unit) -> Program[None]:
    """See that the packs are there that `units` rely on; none is condemned any more then.

    Raises `PacksGone`, also for one that was rewritten: see `domain.collection`.
    """
    for key in {key for unit in units for key in unit.recorded} - tx.recorded:
        raise PacksGone(f"pack {key.hex()} could not be recorded")
    relied = {number for unit in units for number in unit.relies}
    if not relied:
        return
    rows = yield Run(_RELIED, (f"[{','.join(map(str, relied))}]",))
    if len(rows) < len(relied):
        raise PacksGone(
            "chunks that the content was to share with others were collected meanwhile:"
            " send it again"
        )
    yield from rescue(row[0] for row in rows if row[1] is not None)


_RELIED: Final = (
    "SELECT p.id, p.condemned FROM json_each($1) e"
    " JOIN packs p ON p.id = CAST(e.value AS INTEGER) WHERE p.rewritten = 0"
)


def rescue(packs: Iterable[int]) -> Program[None]:
    """Somebody needs `packs` after all."""
    yield RunMany(
        "UPDATE packs SET condemned = NULL, collection = NULL WHERE id = $1",
        [(pack,) for pack in packs],
    )


def record_pack(tx: Transaction, unit: Unit, op: ops.RecordPack) -> Program[Result]:
    pack = yield from _pack_id(tx, unit, op)
    rows = [
        (entry.digest, user, pack, entry.offset, entry.size, entry.length)
        for user, indexes in op.claims
        for entry in map(op.entries.__getitem__, indexes)
    ]
    packs = {pack}
    tx.recorded.add(op.key)
    if rows:
        [(new,)] = yield RunMany(INSERT_CHUNKS, rows)
        if new != len(rows):  # others have put them meanwhile: theirs are what is read
            yield RunMany(_FROM_HERE, [(*row[2:], *row[:2]) for row in rows])
            others = (yield from _packs_of(rows)) - packs
            yield from rescue(others)  # who commits in this transaction cannot say so
            packs |= others
    return Result(count=len(rows), packs=tuple(packs))


_FROM_HERE: Final = (  # but nobody can rely on a pack that was rewritten
    "UPDATE chunks SET pack = $1, start = $2, size = $3, length = $4"
    " WHERE digest = $5 AND user = $6 AND pack IN (SELECT id FROM packs WHERE rewritten = 1)"
)


def _packs_of(chunks: Sequence[tuple[Any, ...]]) -> Program[set[int]]:
    """The packs in which chunks of users are, given as rows."""
    found: set[int] = set()
    for digest, user, *_ in chunks:
        rows = yield Run("SELECT pack FROM chunks WHERE digest = $1 AND user = $2", (digest, user))
        found.update(row[0] for row in rows)
    return found


def _pack_id(tx: Transaction, unit: Unit, op: ops.RecordPack) -> Program[int]:
    """The id of the pack's row, made if need be, with a location in each store."""
    rows = yield Run(
        "SELECT -1, value FROM epochs WHERE name = 'placement'"
        " UNION ALL SELECT id, condemned FROM packs WHERE key = $1 AND rewritten = 0"
        " UNION ALL SELECT 0, 0 FROM packs WHERE key = $1 AND rewritten = 1"
        " UNION ALL SELECT 0, 0 FROM doomed WHERE key = $1",
        (op.key,),
    )
    found: dict[int, int | None] = {row[0]: row[1] for row in rows}
    stores = yield from _stores(op, found.pop(-1))
    if 0 in found:
        raise Doomed(f"pack {op.key.hex()} is being deleted, or was")
    if found:
        [(pack, condemned)] = found.items()
        if condemned is not None:
            yield from rescue((pack,))
    else:
        pack = yield from next_id(tx, "packs")
        yield Run(
            "INSERT INTO packs(id, key, size, crc32c, cipher, created)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            (pack, op.key, op.size, op.crc32c, NO_CIPHER, unit.at_us),
        )
    yield RunMany(_LOCATE, [(pack, store) for store in sorted(stores)])
    return pack


_LOCATE: Final = (
    "INSERT INTO pack_locations(pack, backend, state, verified_level, attempts)"
    " VALUES ($1, $2, 'present', 0, 0) ON CONFLICT (pack, backend) DO UPDATE"
    " SET state = 'present' WHERE pack_locations.state IN ('intent', 'corrupt')"
)
PLACEMENT: Final = (
    "SELECT epoch, phase, source, target, paused, level, bytes_a_second, objects_a_second"
    " FROM placement"
)


def to_placement(row: Sequence[Any]) -> Placement:
    """A placement from the columns `PLACEMENT`."""
    epoch, phase, source, target, paused, level, *most = row
    paced = Pace(*most)
    return Placement(epoch, Phase(phase), source, target, bool(paused), Level(level), paced)


def _stores(op: ops.RecordPack, epoch: int | None) -> Program[frozenset[str]]:
    """Those of the stores that the pack is in where it is to be noted now.

    Raises `PlacementChanged` if it is not in all where it has to be.
    """
    if epoch == op.epoch:
        return op.written
    rows = yield Run(PLACEMENT)
    if not rows:
        return op.written
    placement = to_placement(rows[0])
    written = yield from _kept(op)
    if not placement.covered(written):
        lacking = placement.write_set - written
        raise PlacementChanged(f"the pack is to be in {listed(lacking)} too", stores=lacking)
    return placement.write_set & written


def since(store: str) -> str:
    """What the epoch is called from which on what is put into `store` counts."""
    return f"since {store}"


def _kept(op: ops.RecordPack) -> Program[frozenset[str]]:
    """The stores that the pack is in and that cannot have been emptied since."""
    kept: set[str] = set()
    for store in sorted(op.written):
        emptied = yield Run(_EMPTIED, (since(store), op.epoch))
        if not emptied:
            kept.add(store)
    return frozenset(kept)


_EMPTIED: Final = "SELECT 1 FROM epochs WHERE name = $1 AND value > $2"


def claim_chunks(_tx: Transaction, _unit: Unit, op: ops.ClaimChunks) -> Program[Result]:
    for digest in op.digests:
        yield from claim(op.user, digest)
        rows = yield Run(
            "SELECT p.id, p.condemned FROM chunks c JOIN packs p ON p.id = c.pack"
            " WHERE c.digest = $1 AND c.user = $2",
            (digest, op.user),
        )
        if not rows:
            raise NotFound(f"nobody has chunk {digest.hex()} any more")
        if rows[0][1] is not None:
            yield from rescue((rows[0][0],))
    return Result(count=len(op.digests))


def claim(user: UserId, digest: bytes) -> Program[None]:
    """Give `user` a row for a chunk that anybody has; nothing if nobody does."""
    yield Run(
        "INSERT INTO chunks(digest, user, pack, start, size, length)"
        " SELECT digest, $2, pack, start, size, length FROM chunks WHERE digest = $1 LIMIT 1"
        " ON CONFLICT DO NOTHING",
        (digest, user),
    )


def record_delta(_tx: Transaction, _unit: Unit, op: ops.RecordDelta) -> Program[Result]:
    rows = yield Run(
        "INSERT INTO deltas(target, base, node, literal, digest, steps)"
        " SELECT v.id, $2, n.id, $5, $6, $7 FROM versions v JOIN nodes n ON n.id = v.node"
        " WHERE v.id = $1 AND n.id = $3 AND n.tree = $4 ON CONFLICT DO NOTHING RETURNING 1",
        (op.target, op.base, op.node, op.tree, op.literal, op.base_digest, op.steps),
    )
    return Result(count=len(rows))

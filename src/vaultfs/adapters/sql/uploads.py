"""What the operations on upload sessions do to the tables.

Each reads the row, asks `domain.uploads` what becomes of it, and writes that.
"""

# ruff: noqa: D103 - `domain.operations` says what each operation does

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from vaultfs.adapters.sql.accounts import audit
from vaultfs.adapters.sql.files import put_file
from vaultfs.adapters.sql.statements import RESOLVE, Program, Run, RunMany, to_array, to_node
from vaultfs.adapters.sql.stock import rescue
from vaultfs.adapters.sql.transaction import Transaction, chain_to, tree_row
from vaultfs.adapters.sql.uploadrows import ROW, UPLOAD, to_upload
from vaultfs.domain import operations as ops
from vaultfs.domain import uploads
from vaultfs.domain.errors import ChunksMissing, Exists, NotFound, QuotaExceeded, listed
from vaultfs.domain.manifests import Entry, pack_entries
from vaultfs.domain.names import key_of
from vaultfs.domain.nodes import DigestState, TreeId, UserId
from vaultfs.domain.operations import Result, Unit
from vaultfs.domain.uploads import Upload

PINNED: Final = 512
"""Digests that are looked at in one statement."""
_GET: Final = f"SELECT {UPLOAD} FROM uploads WHERE id = $1 AND tree = $2"
_ENTRIES: Final = "INSERT INTO upload_entries(upload, at, size, entries) VALUES ($1, $2, $3, $4)"


def _load(tree: TreeId, number: str) -> Program[Upload]:
    rows = yield Run(_GET, (number, tree))
    if not rows:
        raise NotFound(f"there is no upload {number}")
    return to_upload(rows[0])


def _save(upload: Upload) -> Program[None]:
    yield Run(
        "UPDATE uploads SET state = $2, fence = $3, size = $4, cut = $5, tail = $6, touched = $7,"
        " node = $8, version = $9 WHERE id = $1",
        (
            *(upload.id, upload.state, upload.fence, upload.size, upload.cut, upload.tail),
            *(upload.touched_us, upload.node, upload.version),
        ),
    )


def create(tx: Transaction, unit: Unit, op: ops.CreateUpload) -> Program[Result]:
    upload = op.upload
    yield from chain_to(tx, unit, op.tree, ())  # whose tree it is
    if (yield Run("SELECT 1 FROM uploads WHERE id = $1", (upload.id,))):
        raise Exists(f"there is an upload {upload.id} already")
    yield from _must_have_room(tx, upload, upload.size or 0)
    path = None if upload.path is None else json.dumps(upload.path, ensure_ascii=False)
    yield Run(
        f"INSERT INTO uploads({UPLOAD})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        (*upload[:3], path, *upload[4:14]),
    )
    return Result(count=upload.fence)


def _must_have_room(tx: Transaction, upload: Upload, size: int) -> Program[None]:
    """Raises `QuotaExceeded` if the tree, with the open sessions, had no room for `size`.

    What may be the file that is there already needs none: it may make no version, and if it is
    another content after all it is refused when it is finished. Parts are also beside those that
    are finished and can be joined; what is joined of them is not, for it is the same bytes.
    """
    tree = yield from tree_row(tx, upload.tree)
    if tree.quota is None:
        return
    beside = "state = 'open'" if upload.path is not None else _HELD
    rows = yield Run(
        "SELECT COALESCE(SUM(cut + tail), 0) FROM uploads WHERE tree = $1 AND id <> $2"
        f" AND ({beside})",
        (upload.tree, upload.id),
    )
    used = tree.used + int(rows[0][0]) + size
    if used > tree.quota and not (yield from _is_as_long(upload)):
        raise QuotaExceeded(
            f"with {size} bytes of this upload there would be {used}; the quota is {tree.quota}:"
            " purge the trash, prune old versions, or give up uploads that are not to be finished"
        )


def _is_as_long(upload: Upload) -> Program[bool]:
    """Whether there is a file where the upload goes, and of its length."""
    if upload.path is None:
        return False
    rows = yield Run(RESOLVE, (upload.tree, to_array(map(key_of, upload.path))))
    there = to_node(rows[-1]) if len(rows) == len(upload.path) + 1 else None
    return there is not None and not there.is_folder and there.size == upload.size


_HELD: Final = "state = 'open' OR state = 'finished' AND path IS NULL"


def attach(_tx: Transaction, unit: Unit, op: ops.AttachUpload) -> Program[Result]:
    upload = yield from _load(op.tree, op.id)
    upload = uploads.attach(upload, unit.at_us)
    yield from _save(upload)
    return Result(count=upload.fence)


def declare(tx: Transaction, unit: Unit, op: ops.DeclareUpload) -> Program[Result]:
    upload = yield from _load(op.tree, op.id)
    upload = uploads.declare(upload, op.size, unit.at_us)
    yield from _must_have_room(tx, upload, op.size)
    yield from _save(upload)
    return Result()


def append(tx: Transaction, unit: Unit, op: ops.AppendUpload) -> Program[Result]:
    before = yield from _load(op.tree, op.id)
    size = sum(length for _, length in op.entries)
    upload = uploads.append(
        before, fence=op.fence, at=op.at, cut=size, tail=len(op.tail), now_us=unit.at_us
    )
    yield from _must_have_room(tx, upload, upload.offset)
    yield from _save(upload)
    yield RunMany(_ENTRIES, list(_rows(op.id, op.at, op.entries)))
    if before.tail:
        yield Run("DELETE FROM upload_tails WHERE upload = $1", (op.id,))
    if op.tail:
        yield Run("INSERT INTO upload_tails(upload, tail) VALUES ($1, $2)", (op.id, op.tail))
    return Result()


def _rows(number: str, at: int, entries: tuple[Entry, ...]) -> Iterable[tuple[Any, ...]]:
    for start in range(0, len(entries), ROW):
        part = entries[start : start + ROW]
        size = sum(length for _, length in part)
        yield number, at, size, pack_entries(part)
        at += size


def finish(tx: Transaction, unit: Unit, op: ops.FinishUpload) -> Program[Result]:
    upload = yield from _load(op.tree, op.id)
    # Refused before the file is put, if it is: what has ended has ended.
    uploads.finish(upload, fence=op.fence, now_us=unit.at_us, node=None, version=None)
    result = Result()
    if op.put is not None:
        result = yield from put_file(tx, unit, op.put)
        yield from _let_go(op.id)
    node = result.node
    upload = uploads.finish(
        upload,
        fence=op.fence,
        now_us=unit.at_us,
        node=node and node.id,
        version=node and node.version,
    )
    yield from _save(upload)
    return result


def abort(_tx: Transaction, unit: Unit, op: ops.AbortUpload) -> Program[Result]:
    upload = yield from _load(op.tree, op.id)
    yield from _save(uploads.abort(upload, unit.at_us))
    yield from _let_go(op.id)
    return Result()


def _let_go(number: str) -> Program[None]:
    """Of the chunks that a session has, and of what it was promised."""
    yield Run("DELETE FROM upload_entries WHERE upload = $1", (number,))
    yield Run("DELETE FROM upload_tails WHERE upload = $1", (number,))
    yield Run("DELETE FROM pins WHERE holder = $1", (number,))


def expire(_tx: Transaction, unit: Unit, op: ops.ExpireUploads) -> Program[Result]:
    now = unit.at_us
    rows = yield Run(
        f"SELECT {UPLOAD} FROM uploads WHERE tree = $1 AND (state = 'open'"
        " AND (touched <= $2 OR created <= $3) OR state <> 'open' AND touched <= $4)"
        " ORDER BY id LIMIT $5",
        (op.tree, now - uploads.IDLE_US, now - uploads.LIFE_US, now - uploads.KEPT_US, op.limit),
    )
    for upload in map(to_upload, rows):
        yield from _let_go(upload.id)
        if uploads.forgettable(upload, now):
            yield Run("DELETE FROM uploads WHERE id = $1", (upload.id,))
        else:
            yield from _save(uploads.expire(upload, now))
    # Those of sessions end with them.
    mine = uploads.holder_of(UserId(op.tree))
    yield Run("DELETE FROM pins WHERE holder = $1 AND until <= $2", (mine, now))
    return Result(count=len(rows))


def pin_chunks(_tx: Transaction, _unit: Unit, op: ops.PinChunks) -> Program[Result]:
    packs: dict[int, None] = {}
    missing: list[bytes] = []
    for digest in op.digests:
        rows = yield Run(
            "SELECT c.pack FROM chunks c JOIN packs p ON p.id = c.pack AND p.rewritten = 0"
            " WHERE c.digest = $1 AND c.user = $2",
            (digest, op.user),
        )
        if rows:
            packs[rows[0][0]] = None
        else:
            missing.append(digest)
    if missing:
        named = listed((digest.hex() for digest in missing), most=2)
        raise ChunksMissing(f"these chunks are not there: {named}", digests=tuple(missing))
    for pack in packs:
        if (yield Run("SELECT 1 FROM packs WHERE id = $1 AND condemned IS NOT NULL", (pack,))):
            yield from rescue((pack,))
    yield RunMany(
        "INSERT INTO pins(holder, pack, until) VALUES ($1, $2, $3) ON CONFLICT (holder, pack)"
        " DO UPDATE SET until = MAX(pins.until, excluded.until)",
        [(op.holder, pack, op.until_us) for pack in packs],
    )
    return Result(count=len(packs))


def set_digest(tx: Transaction, unit: Unit, op: ops.SetDigest) -> Program[Result]:
    rows = yield Run(
        "SELECT v.digest FROM versions v JOIN nodes n ON n.id = v.node"
        " WHERE v.id = $1 AND n.tree = $2 AND v.digest_state <> $3",
        (op.version, op.tree, DigestState.VERIFIED),
    )
    if not rows:
        return Result()
    yield Run(
        "UPDATE versions SET digest = $2, digest_state = $3 WHERE id = $1",
        (op.version, op.digest, DigestState.VERIFIED),
    )
    claimed = rows[0][0]
    if claimed is not None and claimed != op.digest:
        what = f"version {op.version}: {claimed.hex()} was claimed, {op.digest.hex()} is right"
        yield from audit(tx, unit, "false-claim", what)
    return Result(count=1)


PROGRAMS: Final[dict[type, Callable[[Transaction, Unit, Any], Program[Result]]]] = {
    ops.CreateUpload: create,
    ops.AttachUpload: attach,
    ops.DeclareUpload: declare,
    ops.AppendUpload: append,
    ops.FinishUpload: finish,
    ops.AbortUpload: abort,
    ops.ExpireUploads: expire,
    ops.PinChunks: pin_chunks,
    ops.SetDigest: set_digest,
}

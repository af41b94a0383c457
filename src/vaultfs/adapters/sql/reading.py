"""What a catalog in SQL answers: the questions that are one text for every database."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from vaultfs.adapters.sql import queries
from vaultfs.adapters.sql.statements import (
    ACCESS,
    ACCESS_WIDTH,
    CHANGE,
    NODE_WIDTH,
    RESOLVE,
    ROLES,
    USER,
    VERSION,
    Row,
    parse_retention,
    to_array,
    to_change,
    to_location,
    to_node,
    to_user,
    to_version,
)
from vaultfs.domain.access import Role
from vaultfs.domain.chains import Edge
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import NotFound
from vaultfs.domain.manifests import Entry, unpack_entries
from vaultfs.domain.names import Path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, User, UserId, Version, VersionId
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Token
from vaultfs.ports.catalog import (
    Audited,
    Catalog,
    CatalogStats,
    Change,
    Collected,
    Granted,
    Location,
    PackRow,
    Scrubbed,
    ScrubRow,
    ScrubWanted,
    Unverified,
    VersionRef,
)

if TYPE_CHECKING:  # those who only read files need not know what an upload is
    from vaultfs.adapters.sql.grouping import Job
    from vaultfs.adapters.sql.statements import Program
    from vaultfs.adapters.sql.transaction import Transaction
    from vaultfs.domain.batches import Batch
    from vaultfs.domain.batches import Outcome as BatchOutcome
    from vaultfs.domain.collecting import Rewrite
    from vaultfs.domain.collecting import Step as CollectStep
    from vaultfs.domain.collection import ChunkRow, PackUse
    from vaultfs.domain.migrating import Claimed, Counts, Failure
    from vaultfs.domain.migrating import Step as MigrationStep
    from vaultfs.domain.migration import Level, Placement
    from vaultfs.domain.operations import Unit
    from vaultfs.domain.uploads import Upload

T = TypeVar("T")
ROWS_AT_ONCE = 16
"""Rows of a session's entries that are read at once."""


class SqlCatalog(Catalog):
    """A catalog that can run one of our statements and give its rows."""

    __slots__ = ()

    @abstractmethod
    async def _rows(self, sql: str, *parameters: Any) -> list[Row]:
        """The rows of a query."""

    async def _few(self, sql: str, *parameters: Any) -> list[Row]:
        """The same for a query by index that has few rows."""
        return await self._rows(sql, *parameters)

    @abstractmethod
    async def _do(self, job: "Job") -> None:
        """Have `job` executed by the writer."""

    async def batch(self, batch: "Batch") -> "BatchOutcome":
        from vaultfs.adapters.sql.batches import execute  # noqa: PLC0415 only batches need it
        from vaultfs.adapters.sql.grouping import Job  # noqa: PLC0415

        key = "" if batch.key is None else f"{batch.actor}:{batch.key.name}"
        job = Job(
            program=partial(execute, batch),
            operations=batch.operations,
            op_id=batch.op_id,
            key=key,
        )
        await self._do(job)
        outcome: BatchOutcome = job.result
        return outcome

    async def collect(self, step: "CollectStep", actor: UserId, at_us: int) -> int:
        from vaultfs.adapters.sql.collections import execute  # noqa: PLC0415 rare

        answer: int = await self._program(partial(execute, step), actor, at_us)
        return answer

    async def placement(self) -> "Placement | None":
        from vaultfs.adapters.sql.stock import PLACEMENT, to_placement  # noqa: PLC0415 rare

        rows = await self._rows(PLACEMENT)
        return to_placement(rows[0]) if rows else None

    async def migrate(self, step: "MigrationStep", actor: UserId, at_us: int) -> int:
        from vaultfs.adapters.sql.placements import execute  # noqa: PLC0415

        answer: int = await self._program(partial(execute, step), actor, at_us)
        return answer

    async def claim_copies(
        self, store: str, at_us: int, *, after: int = 0, limit: int = 16
    ) -> "list[Claimed]":
        from vaultfs.adapters.sql.placements import claim  # noqa: PLC0415

        program = partial(claim, store, after, limit)
        claimed: list[Claimed] = await self._program(program, UserId(0), at_us)
        return claimed

    async def _program(
        self, program: "Callable[[Unit, Transaction], Program[T]]", actor: UserId, at_us: int
    ) -> T:
        from vaultfs.adapters.sql.grouping import Job  # noqa: PLC0415
        from vaultfs.domain.operations import Unit  # noqa: PLC0415

        unit = Unit(actor, at_us, f"program-{uuid4().hex}", ())
        job = Job(program=partial(program, unit), op_id=unit.op_id)
        await self._do(job)
        result: T = job.result
        return result

    async def copies_wait(self, at_us: int) -> int:
        from vaultfs.adapters.sql.placements import waiting  # noqa: PLC0415

        wait: int = await self._program(waiting, UserId(0), at_us)
        return wait

    async def to_read_back(
        self, store: str, level: int, at_us: int, *, limit: int = 16
    ) -> "list[Claimed]":
        from vaultfs.adapters.sql.placements import claim_read_back  # noqa: PLC0415

        program = partial(claim_read_back, store, level, limit)
        claimed: list[Claimed] = await self._program(program, UserId(0), at_us)
        return claimed

    async def unaware(self, store: str, at_us: int) -> tuple[str, ...]:
        from vaultfs.adapters.sql.placements import unaware  # noqa: PLC0415

        names: tuple[str, ...] = await self._program(partial(unaware, store), UserId(0), at_us)
        return names

    async def unread(self, store: str, level: "Level") -> int:
        from vaultfs.adapters.sql.placements import COPIED, READ_BACK, still_unread  # noqa: PLC0415

        [(copied,)] = await self._rows(COPIED, store)
        [(read,)] = await self._rows(READ_BACK, store, 2)
        return still_unread(copied, read, level)

    async def packs_in(
        self, store: str, *, after: Digest | None = None, limit: int = 1000
    ) -> list[PackRow]:
        from vaultfs.adapters.sql.placements import PACKS_IN  # noqa: PLC0415

        rows = await self._rows(PACKS_IN, store, after or b"", limit)
        return list(map(PackRow._make, rows))

    async def copy_failures(self, store: str, *, limit: int = 1000) -> "list[Failure]":
        from vaultfs.adapters.sql.placements import FAILURES  # noqa: PLC0415
        from vaultfs.domain.migrating import MOST_ATTEMPTS, Failure  # noqa: PLC0415

        return [Failure(*row) for row in await self._rows(FAILURES, store, MOST_ATTEMPTS, limit)]

    async def copy_counts(self, store: str) -> "Counts":
        from vaultfs.adapters.sql.placements import COUNTS, FAILED  # noqa: PLC0415
        from vaultfs.domain.migrating import MOST_ATTEMPTS, Counts  # noqa: PLC0415

        [row] = await self._rows(COUNTS, store)
        packs, size, there, there_size, read_back = map(int, row)
        [(failed,)] = await self._rows(FAILED, store, MOST_ATTEMPTS)
        return Counts(packs, size, there, there_size, int(failed), read_back)

    async def chunk_rows(
        self, *, after: Digest | None = None, limit: int = 8192
    ) -> "Sequence[ChunkRow]":
        rows: Any = await self._rows(queries.CHUNK_ROWS, after or b"", limit)
        if len(rows) == limit:
            digest, owner, *_ = rows[-1]
            rows = [*rows, *await self._rows(queries.MORE_OWNERS, digest, owner)]
        found: Sequence[ChunkRow] = rows  # as good as those: making them takes time
        return found

    async def count_chunks(self) -> int:
        return int((await self._rows("SELECT COUNT(*) FROM chunks"))[0][0])

    async def pack_uses(self, now_us: int, *, after: int = 0, limit: int = 1000) -> "list[PackUse]":
        from vaultfs.adapters.sql.collections import PACK_USE, to_pack_use  # noqa: PLC0415

        sql = f"{PACK_USE} WHERE p.id > $2 ORDER BY p.id LIMIT $3"
        return list(map(to_pack_use, await self._rows(sql, now_us, after, limit)))

    async def doomed(self, *, limit: int = 1000) -> list[Digest]:
        rows = await self._rows(
            "SELECT key FROM doomed WHERE deleted IS NULL ORDER BY key LIMIT $1", limit
        )
        return [Digest(bytes(row[0])) for row in rows]

    async def collections(self, *, limit: int = 20) -> list[Collected]:
        rows = await self._rows(
            "SELECT id, holder, begun, ended, complete = 1, report FROM collections"
            " ORDER BY id DESC LIMIT $1",
            limit,
        )
        return [
            Collected(number, holder, begun, ended, bool(complete), report)
            for number, holder, begun, ended, complete, report in rows
        ]

    async def claim_rewrite(self, at_us: int) -> "Rewrite | None":
        from vaultfs.adapters.sql.collections import claim_rewrite  # noqa: PLC0415

        claimed: Rewrite | None = await self._program(claim_rewrite, UserId(0), at_us)
        return claimed

    async def rewrites(self, collection: int) -> list[str | None]:
        sql = "SELECT done FROM rewrites WHERE collection = $1 ORDER BY id"
        return [row[0] for row in await self._rows(sql, collection)]

    async def scrubs(self, *, limit: int = 20) -> list[Scrubbed]:
        rows = await self._rows(
            "SELECT id, begun, ended, packs, bytes, findings FROM scrubs ORDER BY id DESC LIMIT $1",
            limit,
        )
        return [Scrubbed(*row) for row in rows]

    async def claim_scrub(self, want: ScrubWanted, at_us: int) -> list[ScrubRow]:
        from vaultfs.adapters.sql.collections import claim_scrub  # noqa: PLC0415

        rows: list[ScrubRow] = await self._program(partial(claim_scrub, want), UserId(0), at_us)
        return rows

    async def roles(self, user: UserId, tree: TreeId) -> dict[NodeId, Role]:
        rows = await self._few(ROLES, user, tree)
        return {node: Role(role) for node, role in rows}

    async def grants(self, nodes: Sequence[NodeId]) -> list[Granted]:
        rows: list[Row] = []
        for node in nodes:
            rows += await self._few(f"{_GRANTED} WHERE g.node = $1 ORDER BY u.key", node)
        return list(map(_to_granted, rows))

    async def granted_to(
        self, user: UserId, *, after: NodeId | None = None, limit: int = 1000
    ) -> list[Granted]:
        rows = await self._rows(
            f"{_GRANTED} WHERE g.grantee = $1 AND g.node > $2 AND NOT EXISTS ({_TRASHED})"
            " ORDER BY g.node LIMIT $3",
            *(user, after or 0, limit),
        )
        return list(map(_to_granted, rows))

    async def outcome(self, op_id: str) -> tuple[Change, ...]:
        rows = await self._rows(
            f"SELECT {CHANGE} FROM changes WHERE op_id = $1 ORDER BY tree, seq", op_id
        )
        return tuple(map(to_change, rows))

    async def user(self, name: str) -> User:
        rows = await self._few(
            f"SELECT {USER} FROM users u JOIN trees t ON t.id = u.id WHERE u.key = $1",
            key_of(name),
        )
        if not rows:
            raise NotFound(f"there is no user {name}")
        return to_user(rows[0])

    async def users(self) -> list[User]:
        rows = await self._rows(
            f"SELECT {USER} FROM users u JOIN trees t ON t.id = u.id ORDER BY u.key"
        )
        return list(map(to_user, rows))

    async def token(self, number: str) -> tuple[Token, User] | None:
        rows = await self._few(
            f"SELECT {ACCESS}, {USER} FROM tokens k JOIN users u ON u.id = k.owner"
            " JOIN trees t ON t.id = u.id WHERE k.id = $1",
            number,
        )
        if not rows:
            return None
        return Token._make(rows[0][:ACCESS_WIDTH]), to_user(rows[0][ACCESS_WIDTH:])

    async def tokens(self, owner: UserId) -> list[Token]:
        rows = await self._rows(
            f"SELECT {ACCESS} FROM tokens k WHERE k.owner = $1 AND k.revoked IS NULL ORDER BY k.id",
            owner,
        )
        return list(map(Token._make, rows))

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[Audited]:
        rows = await self._rows(
            "SELECT id, at, actor, kind, subject, op_id FROM audit WHERE id > $1"
            " ORDER BY id LIMIT $2",
            *(after, limit),
        )
        return list(map(Audited._make, rows))

    async def retention(self, tree: TreeId) -> Retention:
        rows = await self._rows("SELECT retention FROM trees WHERE id = $1", tree)
        if not rows:
            raise NotFound("there is no such tree")
        return parse_retention(rows[0][0])

    async def resolve(self, tree: TreeId, path: Path) -> tuple[Node, ...]:
        rows = await self._few(RESOLVE, tree, _keys(path))
        return tuple(map(to_node, rows))

    async def node(self, tree: TreeId, path: Path) -> Node | None:
        if len(path) > queries.NESTED:
            chain = await self.resolve(tree, path)
            return chain[-1] if len(chain) == len(path) + 1 else None
        rows = await self._few(queries.node_at(len(path)), tree, *map(key_of, path))
        return to_node(rows[0]) if rows else None

    async def file(
        self, tree: TreeId, path: Path, number: int | None = None
    ) -> tuple[tuple[Node, ...], Version | None]:
        rows = await self._few(queries.FILE, tree, _keys(path), number, len(path))
        nodes = tuple(to_node(row[:NODE_WIDTH]) for row in rows)
        if len(nodes) != len(path) + 1 or rows[-1][NODE_WIDTH] is None:
            return nodes, None
        return nodes, to_version(rows[-1][NODE_WIDTH:])

    async def versions(
        self, node: NodeId, *, before: int | None = None, limit: int = 1000
    ) -> list[Version]:
        rows = await self._rows(
            f"SELECT {VERSION} FROM versions v WHERE v.node = $1 AND v.number < $2"
            " ORDER BY v.number DESC LIMIT $3",
            *(node, 1 << 62 if before is None else before, limit),
        )
        return list(map(to_version, rows))

    async def node_path(self, node: NodeId) -> tuple[TreeId, Path]:
        found = await self.node_paths([node])
        if not found:
            raise NotFound(f"there is no node {node}")
        return found[node]

    async def node_paths(self, nodes: Sequence[NodeId]) -> dict[NodeId, tuple[TreeId, Path]]:
        paths = to_paths(await self._rows(queries.PATHS, json.dumps(nodes)))
        return {node: paths[node] for node in nodes if node in paths}

    async def files_with_history(
        self, tree: TreeId, *, after: int = 0, limit: int = 1000
    ) -> list[NodeId]:
        rows = await self._rows(
            "SELECT n.id FROM nodes n WHERE n.tree = $1 AND n.id > $2 AND n.number > 1 AND EXISTS"
            " (SELECT 1 FROM versions v WHERE v.node = n.id AND v.id <> n.version)"
            " ORDER BY n.id LIMIT $3",
            *(tree, after, limit),
        )
        return [row[0] for row in rows]

    async def newest_change(self, tree: TreeId) -> Change | None:
        rows = await self._rows(
            f"SELECT {CHANGE} FROM changes WHERE tree = $1 ORDER BY seq DESC LIMIT 1", tree
        )
        return to_change(rows[0]) if rows else None

    async def changes(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Change]:
        rows = await self._rows(
            f"SELECT {CHANGE} FROM changes WHERE tree = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            *(tree, after, limit),
        )
        return list(map(to_change, rows))

    async def packs(self, *, after: Digest | None = None, limit: int = 1000) -> list[PackRow]:
        rows = await self._rows(
            "SELECT p.key, p.size, p.crc32c, MIN(l.backend) FROM packs p"
            " JOIN pack_locations l ON l.pack = p.id WHERE p.key > $1"
            " GROUP BY p.key, p.size, p.crc32c ORDER BY p.key LIMIT $2",
            *(after or b"", limit),
        )
        return list(map(PackRow._make, rows))

    async def has_pack(self, key: Digest) -> bool:
        return bool(await self._rows("SELECT 1 FROM packs WHERE key = $1", key))

    async def index(
        self, *, after: Digest | None = None, limit: int = 1000
    ) -> list[tuple[Digest, Location]]:
        rows = await self._rows(queries.INDEX, after or b"", limit)
        return list(map(to_location, rows))

    async def all_versions(self, *, after: int = 0, limit: int = 1000) -> list[VersionRef]:
        rows = await self._rows(
            "SELECT v.id, v.node, n.tree, v.number, v.manifest FROM versions v"
            " JOIN nodes n ON n.id = v.node WHERE v.id > $1 ORDER BY v.id LIMIT $2",
            *(after, limit),
        )
        return list(map(VersionRef._make, rows))

    async def deltas(self, node: NodeId) -> list[Edge]:
        rows = await self._rows(
            "SELECT base, target, literal FROM deltas WHERE node = $1 ORDER BY target, base", node
        )
        return list(map(Edge._make, rows))

    async def delta(self, base: VersionId, target: VersionId) -> tuple[Digest, bytes] | None:
        rows = await self._rows(
            "SELECT digest, steps FROM deltas WHERE target = $1 AND base = $2", target, base
        )
        return (Digest(rows[0][0]), rows[0][1]) if rows else None

    async def unverified(self, *, after: int = 0, limit: int = 1000) -> list[Unverified]:
        rows = await self._rows(
            "SELECT v.id, n.tree, v.manifest, v.digest FROM versions v"
            " JOIN nodes n ON n.id = v.node WHERE v.id > $1 AND v.digest_state <> 'verified'"
            " ORDER BY v.id LIMIT $2",
            *(after, limit),
        )
        return list(map(Unverified._make, rows))

    async def upload(self, number: str) -> "Upload":
        from vaultfs.adapters.sql.uploadrows import UPLOAD, to_upload  # noqa: PLC0415 as above

        rows = await self._few(f"SELECT {UPLOAD} FROM uploads WHERE id = $1", number)
        if not rows:
            raise NotFound(f"there is no upload {number}")
        return to_upload(rows[0])

    async def uploads(self, owner: UserId, *, after: str = "", limit: int = 1000) -> "list[Upload]":
        from vaultfs.adapters.sql.uploadrows import UPLOAD, to_upload  # noqa: PLC0415 as above

        rows = await self._rows(
            f"SELECT {UPLOAD} FROM uploads WHERE owner = $1 AND state = 'open' AND id > $2"
            " ORDER BY id LIMIT $3",
            *(owner, after, limit),
        )
        return list(map(to_upload, rows))

    async def upload_entries(self, number: str, *, at: int = 0) -> list[Entry]:
        rows = await self._rows(
            "SELECT at, entries FROM upload_entries WHERE upload = $1 AND at + size > $2"
            " ORDER BY at LIMIT $3",
            *(number, at, ROWS_AT_ONCE),
        )
        entries = [entry for _, packed in rows for entry in unpack_entries(packed)]
        skipped = at - rows[0][0] if rows else 0
        first = 0
        while skipped > 0:
            skipped -= entries[first][1]
            first += 1
        return entries[first:]

    async def upload_tail(self, number: str) -> bytes:
        rows = await self._rows("SELECT tail FROM upload_tails WHERE upload = $1", number)
        return rows[0][0] if rows else b""

    async def stats(self) -> CatalogStats:
        rows = await self._rows(queries.STATS)
        return CatalogStats(*map(int, rows[0]))


def to_paths(rows: Iterable[Row]) -> dict[NodeId, tuple[TreeId, Path]]:
    """The tree and path of each node, from the rows of `queries.PATHS`."""
    found = {number: (tree, name, parent) for number, tree, name, parent in rows}
    paths: dict[NodeId, tuple[TreeId, Path]] = {}
    for number in found:
        below: list[NodeId] = []
        at = number
        while at not in paths:
            tree, _, parent = found[at]
            if parent is None:  # a root, whose name is none
                paths[at] = tree, ()
            else:
                below.append(at)
                at = parent
        for each in reversed(below):
            tree, name, parent = found[each]
            paths[each] = tree, (*paths[parent][1], name)
    return paths


def _keys(path: Path) -> str:
    return to_array(map(key_of, path))


_GRANTED: Final = (
    "SELECT g.node, g.tree, u.name, o.name, g.role, g.at FROM grants g"
    " JOIN users u ON u.id = g.grantee JOIN users o ON o.id = g.tree"
)

_TRASHED: Final = """
    WITH RECURSIVE above(parent, trashed) AS (
        SELECT n.parent, n.trashed FROM nodes n WHERE n.id = g.node
        UNION ALL
        SELECT n.parent, n.trashed FROM above JOIN nodes n ON n.id = above.parent
    )
    SELECT 1 FROM above WHERE trashed IS NOT NULL
"""
"""Whether what is granted, or a folder above it, is in the trash."""


def _to_granted(row: Row) -> Granted:
    granted = Granted._make(row)
    return granted._replace(role=Role(granted.role))

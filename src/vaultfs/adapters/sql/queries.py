"""The longer queries of the SQLite catalog, and looking digests up in bulk."""

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Final

from vaultfs.adapters.sql.statements import NODE, VERSION, Row
from vaultfs.domain.digests import Digest

NESTED: Final = 8
"""Names that `node_at` takes: the parser of SQLite 3.40 overflows at eleven."""
VARIABLES: Final = 512
"""Digests that one statement looks up."""


def by_digest(
    sql: str, user: int, digests: Sequence[Digest], connection: sqlite3.Connection
) -> list[Row]:
    """The rows that `sql` has for `digests`, asked for in bulk.

    The number of variables is one of few, so that statements are prepared once.
    """
    rows: list[Row] = []
    for start in range(0, len(digests), VARIABLES):
        part = digests[start : start + VARIABLES]
        width = 1 << (len(part) - 1).bit_length()
        padded = (*part, *(part[-1],) * (width - len(part)))
        rows += connection.execute(_wide(sql, width), (user, *padded)).fetchall()
    return rows


@cache
def _wide(sql: str, width: int) -> str:
    """`sql` with `width` variables, behind the first."""
    return sql.format(",".join("?" * width))


KNOWN: Final = (
    "SELECT c.digest, MAX(CASE WHEN c.user = ? THEN c.pack END) FROM chunks c"
    " WHERE c.digest IN ({}) AND c.pack NOT IN (SELECT id FROM packs WHERE rewritten = 1)"
    " GROUP BY c.digest"
)
LOCATE: Final = (
    "SELECT c.digest, p.key, c.start, c.size, c.length, c.pack FROM chunks c"
    " JOIN packs p ON p.id = c.pack WHERE c.user = ? AND c.digest IN ({})"
)


@cache
def node_at(depth: int) -> str:
    """A query for the node at the end of `depth` names: tree, then the key of each.

    Each name is looked up in the folder above it, and of the last one alone is more read
    than the id.
    """
    found = "n.id = (SELECT root FROM trees WHERE id = $1)"
    for number in range(2, depth + 2):
        above = f"(SELECT n.id FROM nodes n WHERE {found})"
        found = f"n.parent = {above} AND n.key = ${number} AND n.trashed IS NULL"
    return f"SELECT {NODE} FROM nodes n WHERE {found}"


FILE = f"""
    WITH RECURSIVE walk(depth, id) AS (
        SELECT 0, root FROM trees WHERE id = $1
        UNION ALL
        SELECT walk.depth + 1, nodes.id FROM walk JOIN nodes
            ON nodes.parent = walk.id AND nodes.key = ($2 ->> walk.depth)
            AND nodes.trashed IS NULL
    )
    SELECT {NODE}, {VERSION} FROM walk JOIN nodes n ON n.id = walk.id
        LEFT JOIN versions v ON walk.depth = $4 AND v.node = n.id
            AND v.number = COALESCE($3, n.number)
    ORDER BY walk.depth
"""
PATHS = """
    WITH RECURSIVE above(id) AS (
        SELECT CAST(e.value AS INTEGER) FROM json_each($1) e
        UNION
        SELECT n.parent FROM above JOIN nodes n ON n.id = above.id WHERE n.parent IS NOT NULL
    )
    SELECT n.id, n.tree, n.name, n.parent FROM above JOIN nodes n ON n.id = above.id
"""
"""What the paths of nodes are made of: those given as JSON and all above them, each once."""
TRASH = (
    f"SELECT {NODE} FROM nodes n WHERE n.tree = $1 AND n.id > $2"
    " AND n.trashed IS NOT NULL ORDER BY n.id LIMIT $3"
)
CHUNKS_OF = """
    SELECT DISTINCT c.digest, p.key, c.start, c.size, c.length
    FROM packs p JOIN chunks c ON c.pack = p.id
    WHERE hex(p.key) IN (SELECT upper(value) FROM json_each(?))
"""
STATS = """
    WITH RECURSIVE live(id) AS (
        SELECT root FROM trees
        UNION ALL
        SELECT n.id FROM live JOIN nodes n ON n.parent = live.id AND n.trashed IS NULL
    )
    SELECT
        (SELECT COUNT(*) FROM users),
        (SELECT COUNT(*) FROM nodes WHERE kind = 'folder'),
        (SELECT COUNT(*) FROM nodes WHERE kind = 'file'),
        (SELECT COUNT(*) FROM versions),
        (SELECT COUNT(*) FROM nodes WHERE trashed IS NOT NULL),
        (SELECT COALESCE(SUM(size), 0) FROM versions),
        (SELECT COALESCE(SUM(n.size), 0) FROM live JOIN nodes n ON n.id = live.id),
        (SELECT COUNT(*) FROM packs),
        (SELECT COALESCE(SUM(size), 0) FROM packs),
        (SELECT COUNT(DISTINCT digest) FROM chunks),
        (SELECT COALESCE(SUM(v.size), 0) FROM versions v
            WHERE v.node NOT IN (SELECT id FROM live)),
        (SELECT COALESCE(SUM(size), 0) FROM packs WHERE condemned IS NOT NULL)
"""

INDEX = """
    SELECT DISTINCT c.digest, p.key, c.start, c.size, c.length
    FROM chunks c JOIN packs p ON p.id = c.pack
    WHERE c.digest IN (
        SELECT DISTINCT digest FROM chunks WHERE digest > $1 ORDER BY digest LIMIT $2
    )
    ORDER BY c.digest
"""

CHUNK_ROWS: Final = (
    "SELECT digest, user, pack, size FROM chunks WHERE digest > $1 ORDER BY digest, user LIMIT $2"
)
MORE_OWNERS: Final = (
    "SELECT digest, user, pack, size FROM chunks WHERE digest = $1 AND user > $2 ORDER BY user"
)
VERSIONS_NAMING: Final = (
    "SELECT n.tree, v.manifest, NULL FROM versions v JOIN nodes n ON n.id = v.node"
)
UPLOADS_NAMING: Final = (
    "SELECT u.owner, NULL, e.entries FROM upload_entries e JOIN uploads u ON u.id = e.upload"
)

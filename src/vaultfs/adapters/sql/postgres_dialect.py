"""Where PostgreSQL says differently what SQLite says: all of it is here.

Statements are written once, for SQLite's taste, with `$1`, `$2` ... for parameters;
`native` turns the few words that PostgreSQL has another form for into its own.
"""

import re
from functools import cache
from typing import Final

from vaultfs.adapters.sql.statements import NODE, VERSION

_BELOW: Final = (
    r"SELECT (n\.id[^;]*?) FROM below JOIN nodes n ON n\.parent = below\.id"
    r"\s+WHERE n\.trashed IS NULL\s+UNION ALL\s+SELECT \1 FROM below JOIN nodes n"
    r" ON n\.parent = below\.id\s+WHERE n\.trashed IS NOT NULL"
)
_CHILDREN: Final = r"FROM below JOIN nodes n\s+ON (n\.parent = below\.id AND [^\n]*)\n"
_BY_CHILDREN: Final = (  # a fence: else a planner may begin with all nodes that there are
    r"FROM below CROSS JOIN LATERAL (SELECT * FROM nodes n WHERE \1 OFFSET 0) n\n"
)
_LATERAL: Final = (
    r"SELECT \1 FROM below CROSS JOIN LATERAL ("
    "SELECT id FROM nodes WHERE parent = below.id AND trashed IS NULL UNION ALL "
    "SELECT id FROM nodes WHERE parent = below.id AND trashed IS NOT NULL) n"
)
_WORDS: Final = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r'(?<!")\buser\b', '"user"'),  # a word of the language there
        (r"\(\$(\d) ->> ", r"($\1::jsonb ->> "),
        (r"json_each\(\$(\d)\) e\b", r"jsonb_array_elements_text($\1::jsonb) e(value)"),
        (r"LENGTH\(CAST\(([\w.]+) AS BLOB\)\)", r"OCTET_LENGTH(\1)"),
        (r"lower\(hex\(([\w.]+)\)\)", r"encode(\1, 'hex')"),
        (r"\bMAX\((pins\.until|COALESCE\(l\.seen, 0\)), ", r"GREATEST(\1, "),
        (r"\bSELECT \$1, 0\b", "SELECT $1::bigint, 0"),
        (r"CAST\(([\w.]+) AS INTEGER\)", r"\1::bigint"),
        (_CHILDREN, _BY_CHILDREN),
        (_BELOW, _LATERAL),  # one arm of a recursion may look at the rows so far, not two
    )
)
_TYPES: Final = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\bINTEGER\b", "BIGINT"),
        (r"\bBLOB\b", "BYTEA"),
        (r"\bREAL\b", "DOUBLE PRECISION"),  # as exact as those of SQLite
        (r"\bTEXT\b", 'TEXT COLLATE "C"'),  # in the order of bytes, as names are listed
        (r"\) WITHOUT ROWID", ")"),
    )
)


@cache
def native(sql: str) -> str:
    """A statement as PostgreSQL wants it."""
    for pattern, text in _WORDS:
        sql = pattern.sub(text, sql)
    return sql


def native_table(sql: str) -> str:
    """A statement of a migration as PostgreSQL wants it."""
    for pattern, text in _TYPES:
        sql = pattern.sub(text, sql)
    return native(sql)


KNOWN: Final = (
    'SELECT digest, max(pack) FILTER (WHERE "user" = $1) FROM chunks'
    " WHERE digest = ANY($2::bytea[])"
    " AND pack NOT IN (SELECT id FROM packs WHERE rewritten = 1) GROUP BY digest"
)
LOCATE: Final = (
    "SELECT c.digest, p.key, c.start, c.size, c.length, c.pack FROM chunks c"
    ' JOIN packs p ON p.id = c.pack WHERE c."user" = $1 AND c.digest = ANY($2::bytea[])'
)
CHUNKS_OF: Final = (
    "SELECT DISTINCT c.digest, p.key, c.start, c.size, c.length"
    " FROM packs p JOIN chunks c ON c.pack = p.id WHERE p.key = ANY($1::bytea[])"
)
INSERT_MANY_CHUNKS: Final = (
    'INSERT INTO chunks(digest, "user", pack, start, size, length)'
    " SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bigint[],"
    " $5::bigint[], $6::bigint[]) ON CONFLICT DO NOTHING RETURNING 1"
)
"""`INSERT_CHUNKS` for many at once; a row for each that was not there."""
CHILDREN: Final = (
    f"SELECT {NODE} FROM nodes n WHERE n.parent = $1 AND n.key > $2"
    " AND n.trashed IS NULL ORDER BY n.key LIMIT $3"
)
CURRENT: Final = (
    f"SELECT {VERSION} FROM nodes n JOIN versions v ON v.id = n.version"
    " WHERE n.id = ANY($1::bigint[])"
)

"""What SQL programs and their drivers exchange, and texts that several use.

Parameters are written `$1`, `$2` ...; each driver turns them into its own form.
"""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import timedelta
from json.encoder import encode_basestring
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from vaultfs.domain.digests import Digest
from vaultfs.domain.nodes import DigestState, Node, User, Version
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Token
from vaultfs.ports.catalog import Change, Known, Location

Row = tuple[Any, ...]
T = TypeVar("T")


class Run(NamedTuple):
    """Execute a statement; its rows are the answer."""

    sql: str
    parameters: Sequence[Any] = ()


class RunMany(NamedTuple):
    """Execute a statement once for each set of parameters.

    The answer is of no use, but for `INSERT_CHUNKS`: one row, how many there were not before.
    """

    sql: str
    rows: Sequence[Sequence[Any]]


Program = Generator[Run | RunMany, list[Row], T]
"""Statements in the order they are to run, decided by the rows of those before.

A program does no I/O, so one text serves a driver that blocks and one that awaits.
"""

NODE = (
    "n.id, n.tree, n.parent, n.name, n.kind, n.revision, n.version, n.number, n.size,"
    " n.metadata, n.created, n.modified, n.trashed"
)
NODE_WIDTH = len(Node._fields)
VERSION = (
    "v.id, v.node, v.number, v.size, v.digest, v.digest_state, v.manifest, v.created,"
    " v.author, v.mtime, v.mode"
)
USER = "u.id, u.name, t.quota, t.used"
ACCESS = (
    "k.id, k.owner, k.name, k.scopes, k.digest, k.previous, k.previous_until, k.created,"
    " k.expires, k.used, k.revoked"
)
ACCESS_WIDTH = len(Token._fields)
CHANGE = "seq, node, kind, revision, version, actor, at, op_id"


class _Direct(tuple[Any, ...]):
    """Made by C alone; named tuples are made by a function in Python.

    In front of `Node` it has nodes made in this way, in four fifths of the time that the shortest
    detour takes. A listing of a thousand nodes feels the difference.
    """

    __slots__ = ()
    __new__ = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def __reduce__(self) -> tuple[type[Node], Row]:
        """A copy, and what comes out of a pickle, is any other node."""
        return Node, tuple(self)


to_node: Callable[[Row], Node] = type("Node", (_Direct, Node), {"__slots__": ()})
_ALL: Callable[[Row], Row] = itemgetter(slice(None))
to_user: Callable[[Row], User] = User._make
to_change: Callable[[Row], Change] = Change._make


def to_nodes(rows: Iterable[Row]) -> list[Node]:
    """Each of `rows` as `to_node` has it. Of a row that is no tuple a slice is, and quickly."""
    return list(map(to_node, map(_ALL, rows)))


def to_version(row: Row) -> Version:
    """A version from the columns `VERSION`."""
    version = Version._make(row)
    return version._replace(digest_state=DigestState(version.digest_state))


def to_location(row: Row) -> tuple[Digest, Location]:
    """A located chunk from (digest, pack key, start, size, length), and maybe the pack's number."""
    return row[0], Location(*row[1:])


def to_known(rows: Iterable[Row]) -> Known:
    """What is known of digests, from (digest, number of the user's pack or None)."""
    own: dict[Digest, int] = {}
    foreign: list[Digest] = []
    for digest, pack in rows:
        if pack is None:
            foreign.append(digest)
        else:
            own[digest] = pack
    return Known(own, frozenset(foreign))


RESOLVE = f"""
    WITH RECURSIVE walk(depth, id) AS (
        SELECT 0, root FROM trees WHERE id = $1
        UNION ALL
        SELECT walk.depth + 1, (
            SELECT nodes.id FROM nodes WHERE nodes.parent = walk.id
                AND nodes.key = ($2 ->> walk.depth) AND nodes.trashed IS NULL
        ) FROM walk WHERE walk.id IS NOT NULL
    )
    SELECT {NODE} FROM walk JOIN nodes n ON n.id = walk.id ORDER BY walk.depth
"""
"""The nodes along a path: tree, JSON array of the names' keys.

A question for one row in each step, not a join: no planner can begin it at the wrong end.
"""

ABOVE = f"""
    WITH RECURSIVE above(id, depth) AS (
        SELECT $1, 0
        UNION ALL
        SELECT (SELECT nodes.parent FROM nodes WHERE nodes.id = above.id), above.depth + 1
        FROM above WHERE above.id IS NOT NULL
    )
    SELECT {NODE} FROM above JOIN nodes n ON n.id = above.id ORDER BY above.depth
"""
"""A node and those above it, up to the root, trashed or not."""

ROLES = "SELECT node, role FROM grants WHERE grantee = $1 AND tree = $2"
"""What a user was granted in a tree."""


INSERT_CHUNKS = (
    "INSERT INTO chunks(digest, user, pack, start, size, length)"
    " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
)


def to_array(texts: Iterable[str]) -> str:
    """A JSON array of strings, in a fraction of the time that `json.dumps` takes."""
    return f"[{','.join(map(encode_basestring, texts))}]"


_LONGEST: Final = timedelta.max // timedelta(seconds=1)
"""Seconds; as a float the longest age of all is rounded to one that is none."""


def format_retention(retention: Retention) -> str:
    """A retention as the trees' rows keep it."""
    age = None if retention.age is None else retention.age.total_seconds()
    return json.dumps({"last": retention.last, "age": age})


def parse_retention(text: str) -> Retention:
    """The opposite of `format_retention`."""
    value = json.loads(text)
    age = None if value["age"] is None else timedelta(seconds=min(value["age"], _LONGEST))
    return Retention(value["last"], age)

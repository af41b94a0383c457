"""The tables of a catalog, and how a database of an older release becomes one of this.

Times are microseconds since 1970, UTC; sizes are bytes; digests are 32 raw bytes.
A migration is a list of statements that lead from one schema version to the next;
it is never changed once released.
"""

from typing import Final

# Keyed by user as well: that somebody has a chunk tells nobody else anything.
CHUNKS: Final = """
CREATE TABLE chunks(
    digest BLOB NOT NULL,
    user INTEGER NOT NULL,
    pack INTEGER NOT NULL,
    start INTEGER NOT NULL,
    size INTEGER NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (digest, user)
) WITHOUT ROWID
"""

TABLES: Final = (
    """
    CREATE TABLE meta(
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    # The next unused id of each kind. Ids are never used twice, so that an ETag or a
    # cursor that somebody kept can never mean another thing.
    """
    CREATE TABLE counters(
        name TEXT PRIMARY KEY,
        next INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    # `gc`: raised when a collection begins; a commit reads it in its transaction.
    """
    CREATE TABLE epochs(
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE users(
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE,
        created INTEGER NOT NULL
    )
    """,
    # A tree's row is what its writers lock; it carries the feed counter.
    """
    CREATE TABLE trees(
        id INTEGER PRIMARY KEY REFERENCES users(id),
        root INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        used INTEGER NOT NULL,
        quota INTEGER,
        retention TEXT NOT NULL
    )
    """,
    # Paths are never stored. `trashed` is set on the node that was deleted alone: what
    # is below it is in the trash because nothing leads to it.
    """
    CREATE TABLE nodes(
        id INTEGER PRIMARY KEY,
        tree INTEGER NOT NULL,
        parent INTEGER,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('folder', 'file')),
        revision INTEGER NOT NULL,
        version INTEGER,
        number INTEGER NOT NULL,
        size INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        trashed INTEGER
    )
    """,
    "CREATE UNIQUE INDEX nodes_by_name ON nodes(parent, key) WHERE trashed IS NULL",
    "CREATE INDEX nodes_in_trash ON nodes(tree, id) WHERE trashed IS NOT NULL",
    "CREATE INDEX nodes_in_trash_by_parent ON nodes(parent) WHERE trashed IS NOT NULL",
    """
    CREATE TABLE versions(
        id INTEGER PRIMARY KEY,
        node INTEGER NOT NULL,
        number INTEGER NOT NULL,
        size INTEGER NOT NULL,
        digest BLOB,
        digest_state TEXT NOT NULL,
        manifest BLOB NOT NULL,
        created INTEGER NOT NULL,
        author INTEGER NOT NULL,
        mtime INTEGER,
        mode INTEGER,
        UNIQUE (node, number)
    )
    """,
    """
    CREATE TABLE changes(
        tree INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        node INTEGER NOT NULL,
        kind TEXT NOT NULL,
        revision INTEGER NOT NULL,
        version INTEGER,
        actor INTEGER NOT NULL,
        at INTEGER NOT NULL,
        op_id TEXT NOT NULL,
        PRIMARY KEY (tree, seq)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX changes_by_op ON changes(op_id)",
    # `crc32c`, `sha256` and `md5` are those digests that stores can give back by themselves.
    """
    CREATE TABLE packs(
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        crc32c INTEGER,
        sha256 BLOB,
        md5 BLOB,
        cipher INTEGER NOT NULL,
        created INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE pack_locations(
        pack INTEGER NOT NULL REFERENCES packs(id),
        backend TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intent', 'present', 'verified', 'corrupt')),
        verified_level INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        last_error TEXT,
        PRIMARY KEY (pack, backend)
    ) WITHOUT ROWID
    """,
    CHUNKS,
    """
    CREATE TABLE uploads(
        id TEXT PRIMARY KEY,
        tree INTEGER NOT NULL,
        owner INTEGER NOT NULL,
        state TEXT NOT NULL,
        created INTEGER NOT NULL,
        touched INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    # What an open session was promised: these packs outlive it.
    """
    CREATE TABLE pins(
        holder TEXT NOT NULL,
        pack INTEGER NOT NULL REFERENCES packs(id),
        until INTEGER NOT NULL,
        PRIMARY KEY (holder, pack)
    ) WITHOUT ROWID
    """,
    (
        "INSERT INTO counters(name, next) VALUES ('users', 1), ('nodes', 1), ('versions', 1),"
        " ('packs', 1)"
    ),
    "INSERT INTO epochs(name, value) VALUES ('gc', 0)",
)

ACCOUNTS: Final = (
    """
    CREATE TABLE tokens(
        id TEXT PRIMARY KEY,
        owner INTEGER NOT NULL REFERENCES users(id),
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        digest BLOB NOT NULL,
        previous BLOB,
        previous_until INTEGER,
        created INTEGER NOT NULL,
        expires INTEGER,
        used INTEGER,
        revoked INTEGER
    ) WITHOUT ROWID
    """,
    "CREATE INDEX tokens_by_owner ON tokens(owner, id)",
    # What was done that changes no node: nodes have the feed of their tree.
    """
    CREATE TABLE audit(
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        actor INTEGER NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        op_id TEXT NOT NULL
    )
    """,
    "INSERT INTO counters(name, next) VALUES ('audit', 1)",
)

# `placement`: raised when the places of objects change; a commit reads it in its transaction.
PLACEMENT: Final = ("INSERT INTO epochs(name, value) VALUES ('placement', 0)",)

LOCKS: Final = (
    # All locks of a tree and all who wait for them, as `domain.locktrees` writes them. Not
    # in dumps: who held a lock before a catalog was lost holds it no longer.
    """
    CREATE TABLE lock_state(
        tree INTEGER PRIMARY KEY,
        version INTEGER NOT NULL,
        state TEXT NOT NULL
    )
    """,
    # Processes that hold locks without a lease, and when they were last heard of: seconds
    # since the start `boot` of the machine.
    """
    CREATE TABLE lock_sessions(
        id TEXT PRIMARY KEY,
        boot TEXT NOT NULL,
        seen REAL NOT NULL
    ) WITHOUT ROWID
    """,
    # Tokens of a tree that has no locks yet begin here: a load moves it ahead as all others.
    "INSERT INTO counters(name, next) VALUES ('locks', 1)",
)

# Not in dumps: an upload that was under way when a catalog was lost is begun anew.
UPLOADS: Final = (
    "DROP TABLE uploads",
    """
    CREATE TABLE uploads(
        id TEXT PRIMARY KEY,
        tree INTEGER NOT NULL,
        owner INTEGER NOT NULL,
        path TEXT,
        state TEXT NOT NULL CHECK (state IN ('open', 'finished', 'aborted', 'expired')),
        fence INTEGER NOT NULL,
        size INTEGER,
        cut INTEGER NOT NULL,
        tail INTEGER NOT NULL,
        notes TEXT NOT NULL,
        created INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        node INTEGER,
        version INTEGER
    ) WITHOUT ROWID
    """,
    "CREATE INDEX uploads_by_tree ON uploads(tree, state)",
    "CREATE INDEX uploads_by_owner ON uploads(owner, id) WHERE state = 'open'",
    # The chunks of a session in order: `size` bytes from byte `at` on, 40 bytes for each
    # chunk as in a page of a manifest.
    """
    CREATE TABLE upload_entries(
        upload TEXT NOT NULL,
        at INTEGER NOT NULL,
        size INTEGER NOT NULL,
        entries BLOB NOT NULL,
        PRIMARY KEY (upload, at)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE upload_tails(
        upload TEXT PRIMARY KEY,
        tail BLOB NOT NULL
    )
    """,
    "CREATE INDEX versions_unverified ON versions(id) WHERE digest_state <> 'verified'",
)

DELTAS: Final = (
    # Where the bytes of `target` come from in `base`, which may be pruned by now.
    """
    CREATE TABLE deltas(
        target INTEGER NOT NULL,
        base INTEGER NOT NULL,
        node INTEGER NOT NULL,
        literal INTEGER NOT NULL,
        digest BLOB NOT NULL,
        steps BLOB NOT NULL,
        PRIMARY KEY (target, base)
    )
    """,
    "CREATE INDEX deltas_by_node ON deltas(node)",
)

BATCHES: Final = (
    # What users may do with nodes of others, and with all below those.
    """
    CREATE TABLE grants(
        node INTEGER NOT NULL,
        grantee INTEGER NOT NULL REFERENCES users(id),
        tree INTEGER NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('reader', 'writer')),
        actor INTEGER NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (node, grantee)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX grants_by_grantee ON grants(grantee, tree, node)",
    # Answers to requests that came with an idempotency key. Not in dumps: they are of a day.
    """
    CREATE TABLE answers(
        owner INTEGER NOT NULL,
        key TEXT NOT NULL,
        request BLOB NOT NULL,
        answer BLOB NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (owner, key)
    )
    """,
    "CREATE INDEX answers_by_time ON answers(at)",
    # How deep a folder is below takes no look at the files in it.
    "CREATE INDEX nodes_folders ON nodes(parent) WHERE kind = 'folder' AND trashed IS NULL",
)

COLLECTIONS: Final = (
    # When a collection found that nothing needs the pack, and which: it is still there.
    "ALTER TABLE packs ADD COLUMN condemned INTEGER",
    "ALTER TABLE packs ADD COLUMN collection INTEGER",
    # What was needed of it was put into another: chunks of it may be anywhere.
    "ALTER TABLE packs ADD COLUMN rewritten INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX packs_condemned ON packs(id) WHERE condemned IS NOT NULL",
    "CREATE INDEX packs_rewritten ON packs(id) WHERE rewritten = 1",
    # One row for each collection. Not in dumps.
    """
    CREATE TABLE collections(
        id INTEGER PRIMARY KEY,
        holder TEXT NOT NULL,
        begun INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        ended INTEGER,
        complete INTEGER NOT NULL,
        report TEXT NOT NULL
    )
    """,
    # Objects that no row of `packs` names any more: to be deleted, or deleted. Nothing is ever
    # recorded under such a key again. Not in dumps.
    """
    CREATE TABLE doomed(
        key BLOB PRIMARY KEY,
        at INTEGER NOT NULL,
        deleted INTEGER
    )
    """,
    # When all bytes of a pack were last read and found right.
    "ALTER TABLE pack_locations ADD COLUMN scrubbed INTEGER",
    "ALTER TABLE pack_locations ADD COLUMN seen INTEGER",
    """
    CREATE TABLE scrubs(
        id INTEGER PRIMARY KEY,
        begun INTEGER NOT NULL,
        ended INTEGER,
        packs INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        findings TEXT NOT NULL
    )
    """,
)

PLACEMENTS: Final = (
    # Where packs are put and looked for; no row: in the one store that there is. Not in dumps.
    """
    CREATE TABLE placement(
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        phase TEXT NOT NULL,
        source TEXT NOT NULL,
        target TEXT,
        paused INTEGER NOT NULL,
        level TEXT NOT NULL,
        changed INTEGER NOT NULL
    )
    """,
)

WORKERS: Final = (
    "ALTER TABLE placement ADD COLUMN bytes_a_second INTEGER",
    "ALTER TABLE placement ADD COLUMN objects_a_second INTEGER",
    # When so much of something was done that no more of it may be done before. Not in dumps.
    """
    CREATE TABLE paces(
        name TEXT PRIMARY KEY,
        free_at INTEGER NOT NULL
    )
    """,
    # Which scrub has looked at the pack, or is about to, and when it said so.
    "ALTER TABLE pack_locations ADD COLUMN scrub INTEGER",
    "ALTER TABLE pack_locations ADD COLUMN claimed INTEGER",
    # Servers that run, what people call them, and which stores they know, by names with spaces
    # between. Not in dumps.
    """
    CREATE TABLE servers(
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        stores TEXT NOT NULL,
        seen INTEGER NOT NULL
    )
    """,
    # Packs that a collection wants rewritten, for whoever has time. Not in dumps.
    """
    CREATE TABLE rewrites(
        id INTEGER PRIMARY KEY,
        collection INTEGER NOT NULL,
        work BLOB NOT NULL,
        claimed INTEGER NOT NULL,
        done TEXT
    )
    """,
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    *(TABLES, ACCOUNTS, PLACEMENT, LOCKS, UPLOADS),
    *(DELTAS, BATCHES, COLLECTIONS, PLACEMENTS, WORKERS),
)
"""`[n]` leads from schema version n to n + 1; version 0 is an empty database."""

SCHEMA: Final = len(MIGRATIONS)

DUMPED: Final[dict[str, tuple[str, ...]]] = {
    "counters": ("name", "next"),
    "epochs": ("name", "value"),
    "users": ("id", "name", "key", "created"),
    "trees": ("id", "root", "seq", "used", "quota", "retention"),
    "nodes": (
        *("id", "tree", "parent", "name", "key", "kind", "revision", "version", "number"),
        *("size", "metadata", "created", "modified", "trashed"),
    ),
    "versions": (
        *("id", "node", "number", "size", "digest", "digest_state", "manifest", "created"),
        *("author", "mtime", "mode"),
    ),
    "tokens": (
        *("id", "owner", "name", "scopes", "digest", "previous", "previous_until", "created"),
        *("expires", "used", "revoked"),
    ),
    "deltas": ("target", "base", "node", "literal", "digest", "steps"),
    "grants": ("node", "grantee", "tree", "role", "actor", "at"),
    "audit": ("id", "at", "actor", "kind", "subject", "op_id"),
    "changes": ("tree", "seq", "node", "kind", "revision", "version", "actor", "at", "op_id"),
    "placement": (
        *("id", "epoch", "phase", "source", "target", "paused", "level", "changed"),
        *("bytes_a_second", "objects_a_second"),
    ),
}
"""The tables that a dump holds, with their columns. Packs and chunks are not among them:
the packs themselves say what is in them, and each store which it has."""

BLOBS: Final = frozenset(
    {
        *(("versions", "digest"), ("versions", "manifest")),
        *(("tokens", "digest"), ("tokens", "previous")),
        *(("deltas", "digest"), ("deltas", "steps")),
    }
)
"""The dumped columns that hold bytes."""

"""What must be true of the tables, as queries that find where it is not."""

from typing import Final

CHECKS: Final = (
    (
        "node {0} ({1}) stands in folder {2}, which is not there",
        (
            "SELECT n.id, n.name, n.parent FROM nodes n LEFT JOIN nodes p ON p.id = n.parent"
            " WHERE n.parent IS NOT NULL AND (p.id IS NULL OR p.kind <> 'folder')"
        ),
    ),
    (
        "node {0} ({1}) is in another tree than its folder",
        "SELECT n.id, n.name FROM nodes n JOIN nodes p ON p.id = n.parent WHERE p.tree <> n.tree",
    ),
    (
        "node {0} ({1}) is in a circle: no root leads to it",
        (
            "WITH RECURSIVE below(id) AS (SELECT root FROM trees UNION ALL"
            " SELECT n.id FROM below JOIN nodes n ON n.parent = below.id"
            "  WHERE n.trashed IS NULL UNION ALL"
            " SELECT n.id FROM below JOIN nodes n ON n.parent = below.id"
            "  WHERE n.trashed IS NOT NULL)"
            " SELECT n.id, n.name FROM nodes n JOIN nodes p ON p.id = n.parent"
            " WHERE n.id NOT IN (SELECT id FROM below)"
        ),
    ),
    (
        "file {0} ({1}) has no current version, or it does not agree with its node",
        (
            "SELECT n.id, n.name FROM nodes n LEFT JOIN versions v ON v.id = n.version"
            " WHERE n.kind = 'file' AND (v.id IS NULL OR v.node <> n.id OR v.number <> n.number"
            " OR v.size <> n.size)"
        ),
    ),
    (
        "version {0} belongs to file {1}, which is not there",
        (
            "SELECT v.id, v.node FROM versions v LEFT JOIN nodes n ON n.id = v.node"
            " WHERE n.id IS NULL OR n.kind <> 'file'"
        ),
    ),
    (
        "tree {0} counts {1} bytes and has {2}",
        (
            "SELECT t.id, t.used, COALESCE(s.size, 0) FROM trees t LEFT JOIN"
            " (SELECT n.tree tree, SUM(v.size) size FROM versions v JOIN nodes n ON n.id = v.node"
            "  GROUP BY n.tree) s ON s.tree = t.id WHERE t.used <> COALESCE(s.size, 0)"
        ),
    ),
    (
        "the feed of tree {0} ends at {1} and has {2} entries",
        (
            "SELECT t.id, t.seq, COUNT(c.seq) FROM trees t LEFT JOIN changes c ON c.tree = t.id"
            " GROUP BY t.id HAVING COUNT(c.seq) <> t.seq"
        ),
    ),
    (
        "chunk {0} is said to be in pack number {1}, which is not there",
        (
            "SELECT lower(hex(c.digest)), c.pack FROM chunks c LEFT JOIN packs p ON p.id = c.pack"
            " WHERE p.id IS NULL"
        ),
    ),
    (
        "pack {0} is said to be nowhere",
        (
            "SELECT lower(hex(p.key)) FROM packs p LEFT JOIN pack_locations l ON l.pack = p.id"
            " WHERE l.pack IS NULL"
        ),
    ),
)
"""A sentence for each row that its query returns."""

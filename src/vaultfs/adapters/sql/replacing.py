"""Putting another database in the place of a catalog that others may have open."""

import os
import sqlite3
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Final

from vaultfs.adapters.sql.connections import connect
from vaultfs.domain.errors import Busy

FILES: Final = ("", "-wal", "-shm")
"""What SQLite adds to the name of a database for its files."""


def remove(path: Path) -> None:
    """Remove the database at `path`, if one is there."""
    for suffix in FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def replace(fresh: Path, path: Path, aside: Path) -> Path | None:
    """Give `fresh`, closed and so in one file, the name `path`; set aside what has it.

    Where that went, or None: `aside`, or a name like it that is free. Nobody writes to the
    old database meanwhile, unless it is too damaged to be locked; who has it open is told
    at the next call (`SqliteCatalog`). A crash leaves the old catalog or, for a moment,
    none. Raises `Busy`.
    """
    if not path.exists():
        _move(fresh, path)
        return None
    with closing(connect(path)) as old:
        _lock(old, path)
        kept = _set_aside(path, aside)
        _move(fresh, path)
    return kept


def _move(fresh: Path, path: Path) -> None:
    # The log of the old database is gone before the new one comes, which must not see it.
    fresh.rename(path)
    _flush(path.parent)


def _lock(old: sqlite3.Connection, path: Path) -> None:
    try:
        old.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise Busy(f"{path}: another process is writing: try again later") from error
    except sqlite3.DatabaseError:
        return  # too damaged to be locked: then nobody can write to it either


def _set_aside(path: Path, aside: Path) -> Path:
    names = (aside if number == 1 else Path(f"{aside}-{number}") for number in count(1))
    kept = next(name for name in names if not name.exists())
    for suffix in reversed(FILES):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    return kept


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

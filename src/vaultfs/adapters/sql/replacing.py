"""Putting another database in the place of a catalog that others may have open."""

import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import Final

from vaultfs.adapters.sql.connections import begin, connect
from vaultfs.domain.errors import Busy

FILES: Final = ("", "-wal", "-shm")
"""What SQLite adds to the name of a database for its files."""


def remove(path: Path) -> None:
    """Remove the database at `path`, if one is there."""
    for suffix in FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def replace(fresh: Path, path: Path, aside: Path) -> None:
    """Give `fresh`, closed and so in one file, the name `path`; set aside what has it.

    What was there gets the name `aside`, or one like it that is free. Nobody writes to it
    meanwhile, unless it is too damaged to be locked, and nobody afterwards: who has it open
    looks at each call whether it is still in its place (`connections.Place`). A crash leaves
    the old catalog or, for a moment, none. Raises `Busy`.
    """
    if path.exists():
        # Closed before the new one comes: the last to close a database removes the log that
        # has its name.
        with ExitStack() as stack:
            sound = _lock(path, stack)
            kept = _set_aside(path, aside)
        if sound:
            _join(kept)
    else:
        _set_aside(path, aside)  # a log without its database, which the new one must not see
    fresh.rename(path)
    flush_folder(path.parent)


def _lock(path: Path, stack: ExitStack) -> bool:
    """Keep others from writing until `stack` ends; whether the database is sound enough for that.

    Already a connection reads the first page, which may be the damaged one.
    """
    try:
        begin(stack.enter_context(closing(connect(path))))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise Busy(f"{path}: another process is writing: try again later") from error
        return False
    except sqlite3.DatabaseError:
        return False  # too damaged to be locked: then nobody can write to it either
    return True


def _join(path: Path) -> None:
    """Have the database at `path` in one file, unless somebody still has it open."""
    with suppress(sqlite3.DatabaseError), closing(connect(path)) as kept:
        kept.execute("PRAGMA busy_timeout = 0")
        kept.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _set_aside(path: Path, aside: Path) -> Path:
    """Rename the files of the database at `path`; what it is called now.

    The database comes first: without it its log is nothing, but it without its log would be
    another, older one.
    """
    names = (aside if number == 1 else Path(f"{aside}-{number}") for number in count(1))
    free = next(name for name in names if not any(Path(f"{name}{end}").exists() for end in FILES))
    for end in FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{free}{end}")
    return free


def flush_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Settings: the one place that looks at the environment and the machine."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import field, frozen

from vaultfs.domain.errors import InvalidField, Unsupported
from vaultfs.entrypoints.configuration import (
    PLACE,
    Named,
    named,
    read_configuration,
    without_password,
)
from vaultfs.entrypoints.stores import check_remembered, folder_of, remembered

if TYPE_CHECKING:
    from vaultfs.domain.locknodes import Presented

CATALOG: Final = "catalog.db"
LOCK_TOKENS: Final = "VAULTFS_LOCK_TOKENS"
MIB: Final = 1 << 20
LEAST_BUDGET: Final = 64 * MIB
"""Four packs: with less, packs would be sealed half full all the time."""
MOST_BUDGET: Final = 96 * MIB
"""More does not make anything faster on a disk."""
MOST_DIGITS: Final = 9
"""Of a number of MiB; no machine has as many."""
_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@frozen
class Settings:
    """Where a vault is and what it may use."""

    folder: Path | None
    """That of the vault, or of its store if the catalog is in a database; None if neither
    is in a folder."""
    budget: int
    """Bytes that all transfers of the process together may hold."""
    workers: int
    """Threads that cut, hash and compress."""
    database: str | None = field(default=None, repr=False)
    """The address of the database that many servers share, with whatever secret is in it."""
    presented: "tuple[Presented, ...]" = ()
    """Locks that all changes come with."""
    store: str | None = None
    """The address of a store that is in no folder."""

    @property
    def home(self) -> Path:
        """The folder of a vault that has one, or of its store."""
        assert self.folder is not None
        return self.folder

    @property
    def objects(self) -> Path | None:
        """The folder of the object store; None if it is in none."""
        if self.store is not None:
            return None
        return self.home / "objects" if self.database is None else self.folder

    @property
    def store_name(self) -> str:
        """The object store, for messages."""
        return self.store or str(self.objects)

    @property
    def name(self) -> str:
        """The vault, for messages."""
        if self.database is None:
            return str(self.home)
        parts = urlsplit(self.database)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read_settings(
    folder: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    database: str | None = None,
    store: str | None = None,
) -> Settings:
    """The settings for the vault in `folder`, or in `database` and `store`; with `folder` and
    `store`, that for a vault whose catalog is in the folder and whose objects are not.

    If none is named, the environment (`VAULTFS_VAULT`, or `VAULTFS_DATABASE` and
    `VAULTFS_STORE`) or the file that `VAULTFS_CONFIG` names says which. `VAULTFS_BUDGET_MIB`
    sets the budget, `VAULTFS_LOCK_TOKENS` has the locks that changes come with, separated by
    spaces. Raises `InvalidField` if no vault is named, or more than one.
    """
    return settings_of(read_place(folder, environment, database=database, store=store), environment)


def read_place(
    folder: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    database: str | None = None,
    store: str | None = None,
) -> Named:
    """Which vault is meant, by the same rules; a server stands where a folder does."""
    given = os.environ if environment is None else environment
    flags = {"vault": folder and str(folder), "database": database, "store": store}
    if folder and not (database or store):  # then no file need be read
        return Named(str(folder), None, None)
    return named(read_configuration(flags, given, None, PLACE))


def settings_of(place: Named, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings for the vault that was named. Raises `InvalidField` if none was."""
    given = os.environ if environment is None else environment
    if place.database is not None and place.store is not None:
        _check_database(place.database)
        folder = folder_of(place.store)
        store = place.store if folder is None else None
    else:
        folder = _own_folder(place.vault)
        store = _store_of(folder, place.store)
    workers = max(2, len(os.sched_getaffinity(0)))
    return Settings(folder, _budget(given), workers, place.database, _presented(given), store)


def _own_folder(name: str | None) -> Path:
    """The folder of a vault that has one."""
    if name is None:
        raise InvalidField(
            "which vault? name it with --vault DIR or VAULTFS_VAULT, or, for many servers, with"
            " --database and --store"
        )
    if is_server(name):
        raise InvalidField(
            f"{name} is a server, and this works on the vault's folder:"
            " run it where that is, with --vault DIR"
        )
    if "://" in name:
        raise InvalidField(
            f"{name}: a vault is a folder, or at http:// or https://; for one in a database there"
            " are --database and --store"
        )
    return Path(name)


def _store_of(folder: Path, store: str | None) -> str | None:
    """Where the vault in `folder` has its objects, if not there."""
    if store is None:
        return remembered(folder)
    check_remembered(folder, store, catalog=folder / CATALOG)
    return store


def shown_locks(given: Mapping[str, str] | None = None) -> list[str]:
    """The locks that changes come with, as `VAULTFS_LOCK_TOKENS` names them."""
    return (os.environ if given is None else given).get(LOCK_TOKENS, "").split()


def _presented(given: Mapping[str, str]) -> "tuple[Presented, ...]":
    shown = shown_locks(given)
    if not shown:
        return ()
    from vaultfs.domain.locknodes import parse_presented

    return tuple(map(parse_presented, shown))


def _check_database(url: str) -> None:
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in {"postgresql", "postgres"}:
        shown = scheme if colon else url
        raise Unsupported(f"--database {shown}: this release knows postgresql://")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidField(_NO_DATABASE) from None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if "@" in parts.path + parts.fragment or not all(map(_HOST.fullmatch, hosts)):
        raise InvalidField(_NO_DATABASE)


_HOST: Final = re.compile(r"(\[[^]]*\]|[^:\[\]]*)(:[0-9]*)?")
_NO_DATABASE: Final = (
    "--database is no postgresql://USER@HOST/NAME: a password in it has %2F, %3F, %23 and %40 for"
    " / ? # and @; better put it in ~/.pgpass"
)
"""And nothing of the address, for it has a password in it."""

SCHEMES: Final = ("http://", "https://")


def is_server(name: str) -> bool:
    """Whether a vault of that name is behind a server."""
    return name.lower().startswith(SCHEMES)


def server_named(place: Named) -> str | None:
    """The server's address, if the vault is behind one. Raises `InvalidField` for a store of it."""
    if place.vault is None or not is_server(place.vault):
        return None
    if place.store is not None:
        shown = without_password(place.store)
        raise InvalidField(f"--store {shown}: {place.vault} is a server, which has a store itself")
    return place.vault


def token_given(environment: Mapping[str, str] | None = None) -> str:
    """The token that `VAULTFS_TOKEN` holds, or nothing."""
    given = os.environ if environment is None else environment
    return given.get("VAULTFS_TOKEN", "").strip()


def config_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where a user's own settings are (XDG base directories)."""
    given = os.environ if environment is None else environment
    top = given.get("XDG_CONFIG_HOME", "")
    # The specification: a relative path is to be ignored.
    base = Path(top) if top.startswith("/") else Path(given.get("HOME") or "~").expanduser()
    return base / "vaultfs" if top.startswith("/") else base / ".config" / "vaultfs"


def _budget(given: Mapping[str, str]) -> int:
    text = given.get("VAULTFS_BUDGET_MIB", "")
    if not text:
        return min(MOST_BUDGET, max(LEAST_BUDGET, memory_limit() // 8))
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) < LEAST_BUDGET // MIB:
        shown = text[:20]
        raise InvalidField(f"VAULTFS_BUDGET_MIB={shown}: a number from {LEAST_BUDGET // MIB} on")
    return int(text) * MIB


def memory_limit() -> int:
    """Bytes that this process may use: its control group's limit, or the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total

"""Settings: the one place that looks at the environment and the machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from vaultfs.domain.errors import InvalidField

MIB: Final = 1 << 20
LEAST_BUDGET: Final = 64 * MIB
"""Four packs: with less, packs would be sealed half full all the time."""
MOST_BUDGET: Final = 96 * MIB
"""More does not make anything faster on a disk."""
_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@frozen
class Settings:
    """Where a vault is and what it may use."""

    folder: Path
    budget: int
    """Bytes that all transfers of the process together may hold."""
    workers: int
    """Threads that cut, hash and compress."""


def read_settings(
    folder: str | Path | None, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings for the vault in `folder`, or in the one that `VAULTFS_VAULT` names.

    `VAULTFS_BUDGET_MIB` sets the budget. Raises `InvalidField` if no folder is named.
    """
    given = os.environ if environment is None else environment
    where = folder or given.get("VAULTFS_VAULT")
    if not where:
        raise InvalidField("which vault? name it with --vault DIR or VAULTFS_VAULT")
    if is_server(str(where)):
        raise InvalidField(
            f"{where} is a server, and this works on the vault's folder:"
            " run it where that is, with --vault DIR"
        )
    return Settings(Path(where), _budget(given), max(2, len(os.sched_getaffinity(0))))


SCHEMES: Final = ("http://", "https://")


def is_server(name: str) -> bool:
    """Whether a vault of that name is behind a server."""
    return name.lower().startswith(SCHEMES)


def server_named(name: str | None, environment: Mapping[str, str] | None = None) -> str | None:
    """The server's address, if `name` or `VAULTFS_VAULT` is one; None for a folder."""
    given = os.environ if environment is None else environment
    where = name or given.get("VAULTFS_VAULT") or ""
    return where if is_server(where) else None


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
    if not text.isdecimal() or int(text) < LEAST_BUDGET // MIB:
        raise InvalidField(f"VAULTFS_BUDGET_MIB={text}: a number from {LEAST_BUDGET // MIB} on")
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

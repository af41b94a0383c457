"""Settings: the one place that looks at the environment and the machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from vaultfs.domain.errors import InvalidField

if TYPE_CHECKING:
    from vaultfs.domain.locknodes import Presented

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
    presented: "tuple[Presented, ...]" = ()
    """Locks that all changes come with."""


def read_settings(
    folder: str | Path | None, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings for the vault in `folder`, or in the one that `VAULTFS_VAULT` names.

    `VAULTFS_BUDGET_MIB` sets the budget, `VAULTFS_LOCK_TOKENS` has the locks that changes come
    with, separated by spaces. Raises `InvalidField` if no folder is named.
    """
    given = os.environ if environment is None else environment
    where = folder or given.get("VAULTFS_VAULT")
    if not where:
        raise InvalidField("which vault? name it with --vault DIR or VAULTFS_VAULT")
    workers = max(2, len(os.sched_getaffinity(0)))
    return Settings(Path(where), _budget(given), workers, _presented(given))


def _presented(given: Mapping[str, str]) -> "tuple[Presented, ...]":
    shown = given.get("VAULTFS_LOCK_TOKENS", "").split()
    if not shown:
        return ()
    from vaultfs.domain.locknodes import parse_presented

    return tuple(map(parse_presented, shown))


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

"""`vaultfs serve`, which may kill itself in the middle.

    python -m tests.serve_child NUMBER FLAG...    `vaultfs serve FLAG...`, until effect NUMBER

Says at the end of its errors how many effects there were.
"""

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.faults import CountingCatalog

from vaultfs.adapters.wrappers.counting import CountingObjectStore
from vaultfs.entrypoints import vault as vaults
from vaultfs.entrypoints.cli import main
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import ObjectStore


def count_effects(deadly: int) -> list[str]:
    """Have what every vault does noted in the list, and the process die at number `deadly`."""
    seen: list[str] = []
    plain = vaults.compose

    def effect(what: str) -> None:
        seen.append(what)
        if len(seen) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    @asynccontextmanager
    async def counted(
        settings: Settings, store: ObjectStore, catalog: Catalog, clock: Clock
    ) -> AsyncGenerator[Vault, None]:
        parts = CountingObjectStore(store, effect), CountingCatalog(catalog, effect)
        async with plain(settings, *parts, clock) as vault:
            yield vault

    vaults.compose = counted
    return seen


def run(deadly: int, flags: list[str]) -> None:
    seen = count_effects(deadly)
    sys.argv[1:] = ["serve", *flags]
    try:
        main()
    finally:
        sys.stderr.write(f"\neffects {len(seen)}\n")


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2:])

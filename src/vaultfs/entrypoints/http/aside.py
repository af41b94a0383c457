"""What a server does beside answering requests: upkeep, and its part in a migration.

Whatever goes wrong here is logged and tried again: it is no reason to serve nobody.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final
from uuid import uuid4

import anyio
from attrs import asdict, define

from vaultfs.domain.errors import VaultError
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.upkeep import Plan
from vaultfs.entrypoints.http.operating import Metrics
from vaultfs.entrypoints.vault import Vault

log = logging.getLogger("vaultfs.server")

UPKEEP_EVERY: Final = 3600
FOLLOW_EVERY: Final = 1.0
"""Seconds between two looks at how a migration goes."""
COPY_EVERY: Final = 5.0
"""Seconds between two looks for something to copy: it is counted, so in proportion to packs."""
ANNOUNCE_EVERY: Final = 30.0
"""Seconds; well below `migrating.ALIVE_US`."""
GOODBYE: Final = 2.0
"""Seconds that a server which is told to stop takes to say so at the most."""


async def work_aside(
    vault: Vault, plan: Plan, name: str, scope: anyio.CancelScope, metrics: Metrics
) -> None:
    """Do all of it until `scope` is cancelled; `name` is what people call this server."""
    with scope:
        async with task_group() as tasks:
            tasks.start_soon(_keep_up, vault, plan, metrics)
            tasks.start_soon(_follow, vault, name)
            tasks.start_soon(_copy, vault, metrics)


@define
class Troubles:
    """Logs what goes wrong with something, once for as long as it is the same."""

    text: str
    _last: str = ""

    @contextmanager
    def logged(self) -> Generator[None, None, None]:
        """Whatever is raised inside is logged, unless it was the last time too."""
        try:
            yield
        except VaultError as error:
            told = f"{type(error).__name__}: {error}"
            if told != self._last:
                log.warning(self.text, extra={"error": told})
            self._last = told
        except Exception:
            log.exception(self.text)
        else:
            self._last = ""


async def _keep_up(vault: Vault, plan: Plan, metrics: Metrics) -> None:
    """Do what is due, now and then."""
    upkeep, troubles = vault.upkeep(), Troubles("upkeep failed")
    while True:
        with troubles.logged():
            done = await upkeep.run(plan)
            log.info("upkeep", extra=asdict(done))
            metrics.upkeep["gc_condemned_packs"] += done.condemned
            metrics.upkeep["gc_freed_bytes"] += done.freed
            metrics.upkeep["scrubbed_bytes"] += done.scrubbed
            metrics.upkeep["upkeep_problems"] += len(done.problems)
        await anyio.sleep(UPKEEP_EVERY)


async def _follow(vault: Vault, name: str) -> None:
    """Learn soon which store is for what by now; have others know that this server runs, and
    which stores it knows.
    """
    mover, server = await vault.migrator(), uuid4().hex
    unknown, unheard = Troubles("placement unknown"), Troubles("others do not know of this server")
    told: tuple[str, ...] = ()
    due = 0.0
    try:
        while True:
            with unknown.logged():
                await vault.objects.refresh()
            if anyio.current_time() >= due or told != mover.stores.names:
                with unheard.logged():
                    told = mover.stores.names
                    await mover.announce(server, name)
                due = anyio.current_time() + ANNOUNCE_EVERY
            await anyio.sleep(FOLLOW_EVERY)
    finally:
        with suppress(VaultError), anyio.move_on_after(GOODBYE, shield=True):
            await mover.announce(server, name, gone=True)


async def _copy(vault: Vault, metrics: Metrics) -> None:
    """Copy what a migration wants copied, beside other servers that do."""
    more = False

    def copied(size: int) -> None:
        nonlocal more
        metrics.upkeep["migration_copied_bytes"] += size
        more = True

    mover = await vault.migrator()
    troubles, waits = Troubles("copying failed"), Troubles("a migration waits")
    while True:
        seen, more = vault.objects.placement, False
        if seen.copies is not None:
            with troubles.logged():
                if wrong := await mover.compare():
                    log.error("reads differ between stores", extra={"packs": wrong})
                    metrics.upkeep["shadow_differences"] += len(wrong)
                await mover.run(progress=copied)
            with waits.logged():
                await mover.advance()
        with anyio.move_on_after(FOLLOW_EVERY if more else COPY_EVERY):
            while vault.objects.placement.epoch == seen.epoch:  # noqa: ASYNC110 a value changes
                await anyio.sleep(FOLLOW_EVERY)

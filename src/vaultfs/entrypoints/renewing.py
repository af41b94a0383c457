"""A lease that is renewed as long as it is wanted, in a folder here or on a server."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from vaultfs.domain.errors import LockError, VaultError
from vaultfs.domain.services.tasks import task_group

Renew = Callable[[], Awaitable[object]]
Lost = Callable[[VaultError], None]


@asynccontextmanager
async def renewed(renew: Renew, ttl: float, lost: Lost | None) -> AsyncGenerator[None, None]:
    """Renew a lease of `ttl` seconds by `renew` meanwhile.

    `lost` is told when it is found out that the lease is lost, and at the end if it is not
    known to have been held until then: so maybe twice.
    """
    async with task_group() as tasks:
        tasks.start_soon(renew_always, renew, ttl, lost or _nobody)
        yield
        tasks.cancel_scope.cancel()
    if lost is not None:
        try:
            await renew()
        except VaultError as error:
            lost(error)


async def renew_always(renew: Renew, ttl: float, lost: Lost) -> None:
    """Renew a lease until it is lost."""
    while True:
        await anyio.sleep(ttl / 3)
        try:
            await renew()
        except LockError as error:
            lost(error)  # writes that come with it are refused
            return
        except VaultError:
            continue  # the catalog, or the server, may be there again in time


def _nobody(_: VaultError) -> None:
    """Where nobody is to be told."""

"""Locks on a server: leases that are renewed as long as they are wanted."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final
from urllib.parse import quote

import anyio
import msgspec

from vaultfs.domain.errors import LockTimedOut, NotFound, VaultError, WouldBlock
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.names import format_path, parse_address
from vaultfs.entrypoints.calling import Calls
from vaultfs.entrypoints.http.locks import NAMES, LockedPath, LockIn, LockList, LockOut, RenewIn
from vaultfs.entrypoints.renewing import Lost, renewed

TTL: Final = 30.0
"""Seconds that a lease lasts without being renewed: what a client that died keeps it for."""
ASKED: Final = 30.0
"""Seconds that one request waits for a lock; then it is asked for anew."""


@asynccontextmanager
async def leased(
    calls: Calls,
    own: str,
    paths: Sequence[str],
    mode: Mode,
    timeout: float | None,
    lost: Lost | None = None,
) -> AsyncGenerator[str, None]:
    """Have `paths` of the tree of `own` meanwhile; `<lease>.<token>`.

    A lease that is lost, since somebody broke it or the server could not be reached for as
    long as it lasts, is told by the first write that comes with it, and to `lost`: when that
    is found out, and at the end. Raises what `POST /v1/locks` is refused with.
    """
    names: list[str] = []
    for path in paths:
        where = parse_address(path, own=own)
        if where.tree != own:
            raise NotFound(f"nothing of {where.tree} can be locked")
        names.append(format_path(where.path))
    lease = await _take(calls, [LockedPath(name, NAMES[mode]) for name in names], timeout)
    try:
        async with renewed(partial(_renew, calls, lease), TTL, lost):
            yield lease
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5), suppress(VaultError):
            await calls.ask("DELETE", calls.url(f"locks/{_quoted(lease)}"))


async def _take(calls: Calls, paths: list[LockedPath], timeout: float | None) -> str:
    """A lease on `paths`: waits at the end of the queue again every `ASKED` seconds."""
    end = anyio.current_time() + timeout if timeout is not None else float("inf")
    while True:
        left = end - anyio.current_time()
        wait = max(0.0, min(ASKED, left))
        data = msgspec.json.encode(LockIn(paths, TTL, wait))
        try:
            # Not again: a lease that nobody knows of stands in the way of the second try.
            answer = await calls.ask("POST", calls.url("locks"), data=data, again=False)
        except (LockTimedOut, WouldBlock) as error:
            if timeout == 0:
                raise
            if timeout is not None and left <= ASKED:  # the server knows of the last wait only
                blockers = error.message.partition(": ")[2]
                raise LockTimedOut(f"not had in {timeout:g} seconds: {blockers}") from error
        else:
            found: LockOut = calls.decode(answer, LockOut)
            return found.lock


async def _renew(calls: Calls, lease: str) -> None:
    data = msgspec.json.encode(RenewIn(TTL))
    await calls.ask("POST", calls.url(f"locks/{_quoted(lease)}/renew"), data=data)


async def list_locks(calls: Calls, user: str) -> LockList:
    """All locks of the tree of `user`, and who waits. Raises `NotFound`."""
    answer = await calls.ask("GET", calls.url(f"users/{_quoted(user)}/locks"))
    found: LockList = calls.decode(answer, LockList)
    return found


async def break_lock(calls: Calls, user: str, token: int) -> None:
    """Take a lock away from whoever has it. Raises `NotFound`, `Forbidden`."""
    url = calls.url(f"users/{_quoted(user)}/locks/{token}")
    await calls.ask("DELETE", url, again=False)


def _quoted(name: str) -> str:
    return quote(name, safe="")

"""The change feed of a tree, for clients that want to know what is new.

A cursor is the number of the last change that was seen, and a few letters of the unit that
made it. So a catalog that was brought back from a backup is noticed: where it has another
change by that number, or none, the client is told to begin anew.
"""

from typing import Final, NamedTuple

import anyio
from attrs import define

from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import CursorReset, InvalidField, TooLarge
from vaultfs.domain.names import Address, Path
from vaultfs.domain.nodes import User
from vaultfs.domain.services.browse import PAGE, Browse
from vaultfs.ports.catalog import Change

LONGEST: Final = 60.0
"""Seconds that a call may wait."""
SOONEST: Final = 0.05
NOW: Final = "now"
"""A cursor for those who want to hear of what happens from now on."""
LATEST: Final = 0.5
"""Seconds between two looks while nothing happens."""


class Seen(NamedTuple):
    """A change, and where its node stands by now; None if it is gone for good."""

    change: Change
    path: Path | None


class News(NamedTuple):
    """Changes in order, and the cursor behind the last."""

    changes: list[Seen]
    cursor: str


@define(eq=False)
class Feed:
    """One of these serves all callers of a process."""

    browse: Browse

    async def since(
        self, caller: User, tree: str, cursor: str | None, *, wait: float = 0, limit: int = PAGE
    ) -> News:
        """Up to `limit` changes of a tree behind `cursor`; from the first on without one.

        With `NOW` for a cursor, none, and the cursor behind the last one that there is. If
        there are none, waits for some up to `wait` seconds. Raises `CursorReset`,
        `InvalidField`, `NotFound`, `TooLarge`.
        """
        if not 0 < limit <= PAGE:
            raise TooLarge(f"a list of {limit} entries: 1 to {PAGE} can be asked for")
        root = await self.browse.stat(caller, Address(tree, ()))
        catalog = self.browse.catalog
        if cursor == NOW:
            return News([], _written(await catalog.newest_change(root.tree)))
        after, mark = _parsed(cursor)
        if after:
            last = await catalog.changes(root.tree, after=after - 1, limit=1)
            if not last or last[0].seq != after or _mark(last[0]) != mark:
                raise CursorReset("the feed is another one than before: begin without a cursor")
        end, pause = anyio.current_time() + wait, SOONEST
        while not (found := await catalog.changes(root.tree, after=after, limit=limit)):
            left = end - anyio.current_time()
            if left <= 0:
                return News([], cursor or _written(None))
            await anyio.sleep(min(pause, left))
            pause = min(2 * pause, LATEST)
        paths = await catalog.node_paths(list({each.node for each in found}))
        seen = [Seen(each, paths[each.node][1] if each.node in paths else None) for each in found]
        return News(seen, _written(found[-1]))


def _written(change: Change | None) -> str:
    return "0." if change is None else f"{change.seq}.{_mark(change)}"


def _mark(change: Change) -> str:
    return digest_of(change.op_id.encode()).hex()[:12]


def _parsed(cursor: str | None) -> tuple[int, str]:
    number, dot, mark = ("0", ".", "") if cursor is None else cursor.partition(".")
    if not dot or not (number.isascii() and number.isdecimal()) or len(number) > 18:
        raise InvalidField("this cursor was not made by this feed: begin without one")
    return int(number), mark

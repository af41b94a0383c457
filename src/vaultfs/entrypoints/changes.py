"""What has changed in a tree, for programs that keep something in step with it."""

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from vaultfs.domain.names import format_path
from vaultfs.domain.nodes import NodeId, VersionId, moment
from vaultfs.domain.services.feed import LONGEST, Feed

if TYPE_CHECKING:
    from vaultfs.domain.nodes import User
    from vaultfs.domain.services.browse import Browse
    from vaultfs.entrypoints.client import RemoteVault


class ChangeOf(NamedTuple):
    """A change of a node."""

    seq: int
    """Dense from 1 on."""
    kind: str
    node: NodeId
    path: str | None
    """Where the node stands by now; None if it is gone for good."""
    revision: int
    version: VersionId | None
    at: datetime


class Changes(NamedTuple):
    """Changes in order, and the cursor to ask with for what comes next."""

    entries: list[ChangeOf]
    cursor: str


async def changes_here(browse: "Browse", user: "User", cursor: str | None, wait: float) -> Changes:
    """Those of a vault at hand."""
    news = await Feed(browse).since(user, user.name, cursor, wait=min(wait, LONGEST))
    entries = [
        ChangeOf(
            *(change.seq, change.kind, change.node),
            None if path is None else format_path(path),
            *(change.revision, change.version, moment(change.at_us)),
        )
        for change, path in news.changes
    ]
    return Changes(entries, news.cursor)


async def changes_there(vault: "RemoteVault", cursor: str | None, wait: float) -> Changes:
    """Those of a server."""
    from vaultfs.entrypoints.http.wire import ChangeList

    query = {} if cursor is None else {"cursor": cursor}
    if wait >= 1:
        query["wait"] = str(int(min(wait, LONGEST)))
    url = vault.calls.url(f"changes/{quote(vault.user, safe='')}").with_query(query)
    found: ChangeList = vault.calls.decode(await vault.calls.ask("GET", url), ChangeList)
    entries = [
        ChangeOf(
            *(each.seq, each.kind, NodeId(each.node), each.path, each.revision),
            None if each.version is None else VersionId(each.version),
            each.at,
        )
        for each in found.entries
    ]
    return Changes(entries, found.cursor)

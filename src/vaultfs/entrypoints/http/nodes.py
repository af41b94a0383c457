"""Folders, nodes, versions and the trash."""

from functools import partial
from typing import Final

from starlette.responses import Response

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.names import key_of, parse_address
from vaultfs.domain.nodes import Node, NodeId
from vaultfs.domain.services.feed import LONGEST, Feed
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import (
    CURSOR,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    WITH_LOCK,
    Call,
    Parameter,
    Route,
    listed,
    whole,
    write_cursor,
)
from vaultfs.entrypoints.http.wire import (
    ChangeList,
    NodeList,
    NodeOut,
    RestoreIn,
    Transfer,
    TrashList,
    VersionIn,
    VersionList,
    change_out,
    entries_out,
    node_etag,
    node_out,
    trashed_out,
    version_out,
)


def _answer(call: Call, node: Node, path: tuple[str, ...], status: int = 200) -> Response:
    return call.json(node_out(node, path), status, {"ETag": node_etag(node)})


async def get_node(call: Call) -> Response:
    """A file or folder, as JSON."""
    node = await call.files.stat(call.user, call.address)
    if listed(call.header("if-none-match"), node_etag(node)):
        return Response(status_code=304, headers={"ETag": node_etag(node)})
    return _answer(call, node, call.address.path)


async def patch_node(call: Call) -> Response:
    """Change metadata by a JSON merge patch."""
    patch = (await call.raw_body()).decode("utf-8", "surrogateescape")
    node = await call.files.set_metadata(
        call.user, call.address, patch, preconditions=await call.preconditions(call.address)
    )
    return _answer(call, node, call.address.path)


async def delete_node(call: Call) -> Response:
    """Send it to the trash."""
    node = await call.files.delete(
        call.user,
        call.address,
        recursive=call.flag("recursive"),
        preconditions=await call.preconditions(call.address),
    )
    return _answer(call, node, call.address.path)


async def list_folder(call: Call) -> Response:
    """A part of a folder."""
    address, limit = call.address, call.limit
    nodes = await call.files.children(
        call.user, address, after=call.cursor("name") or "", limit=limit
    )
    more = write_cursor("name", key_of(nodes[-1].name)) if len(nodes) == limit else None
    return call.json(NodeList(entries_out(nodes, address.path), more))


async def list_changes(call: Call) -> Response:
    """What has changed in a tree."""
    wait = call.number("wait", most=int(LONGEST)) or 0
    feed = Feed(call.files)
    cursor = call.query.get("cursor")
    asked = partial(feed.since, call.user, call.tree, cursor, wait=wait, limit=call.limit)
    news = await call.unless_gone(asked, wait)
    return call.json(ChangeList(list(map(change_out, news.changes)), news.cursor))


async def make_folder(call: Call) -> Response:
    """Make a folder."""
    wanted = await call.preconditions(call.address)
    if wanted.any and not wanted.if_absent:
        raise InvalidField("a folder is made, not changed: If-None-Match: * is all that it knows")
    exist_ok = call.flag("exist_ok") and not wanted.if_absent
    node = await call.files.mkdir(
        call.user, call.address, parents=call.flag("parents"), exist_ok=exist_ok
    )
    return _answer(call, node, call.address.path, 201)


async def list_versions(call: Call) -> Response:
    """A part of a file's versions."""
    before, limit = call.number_cursor("number"), call.limit
    found = await call.files.versions(call.user, call.address, before=before, limit=limit)
    more = write_cursor("number", found[-1].number) if len(found) == limit else None
    return call.json(VersionList(list(map(version_out, found)), more))


async def restore_version(call: Call) -> Response:
    """Make an old version the newest again."""
    wanted = await call.body(VersionIn)
    node = await call.files.restore_version(
        call.user,
        call.address,
        _fitting(wanted.number),
        preconditions=await call.preconditions(call.address),
    )
    return _answer(call, node, call.address.path)


async def move(call: Call) -> Response:
    """Give a node another path."""
    wanted = await call.body(Transfer)
    if wanted.version is not None:
        raise InvalidField("a move takes the whole file: version is for copies")
    source, target = call.at(wanted.source), call.at(wanted.target)
    node = await call.files.move(
        call.user,
        source,
        target,
        preconditions=await call.preconditions(source),
        replace=wanted.replace,
    )
    return _answer(call, node, target.path)


async def copy(call: Call) -> Response:
    """Copy a node with all below it; no bytes are copied."""
    wanted = await call.body(Transfer)
    source, target = call.at(wanted.source), call.at(wanted.target)
    result = await call.files.copy(
        call.user,
        source,
        target,
        number=None if wanted.version is None else _fitting(wanted.version),
        preconditions=await call.preconditions(source),
        replace=wanted.replace,
    )
    assert result.node is not None
    return _answer(call, result.node, target.path, 201)


async def list_trash(call: Call) -> Response:
    """A part of the trash."""
    limit = call.limit
    found = await call.files.trash(
        call.user, call.tree, after=call.number_cursor("id") or 0, limit=limit
    )
    more = write_cursor("id", found[-1].node.id) if len(found) == limit else None
    return call.json(TrashList(list(map(trashed_out, found)), more))


async def restore(call: Call) -> Response:
    """Bring a node back from the trash."""
    wanted = await call.body(RestoreIn)
    target = None if wanted.target is None else parse_address(wanted.target, own=call.tree)
    node = await call.files.restore(call.user, call.tree, _trashed(call), target)
    _, path = await call.server.vault.catalog.node_path(node.id)
    return _answer(call, node, path)


async def purge(call: Call) -> Response:
    """Forget a node in the trash, for ever."""
    await call.files.purge(call.user, call.tree, _trashed(call))
    return Response(status_code=204)


def _trashed(call: Call) -> NodeId:
    return NodeId(whole(call.params["node"], "node"))


def _fitting(number: int) -> int:
    if not 0 < number < 1 << 63:
        raise InvalidField(f"{number} is no number of anything: they begin at 1")
    return number


_NODE, _FOLDER = "/v1/nodes/{user}/{path:path}", "/v1/folders/{user}/{path:path}"
_FILE, _VERSIONS = "/v1/files/{user}/{path:path}", "/v1/versions/{user}/{path:path}"
_PATCH = "application/merge-patch+json"
_RECURSIVE = Parameter("recursive", "A folder with all that is in it.", "boolean")
_PARENTS = Parameter("parents", "Make missing folders above it.", "boolean")

ROUTES: Final = (
    Route(
        *("GET", _NODE, get_node, "getNode", "Look at a file or folder."),
        scope=Scope.READ,
        answer=NodeOut,
        parameters=(
            Parameter("If-None-Match", "Entity tags that the client has.", where="header"),
        ),
        failures=(304,),
    ),
    Route(
        *("PATCH", _NODE, patch_node, "patchNode", "Change metadata (RFC 7396)."),
        scope=Scope.WRITE,
        body=_PATCH,
        answer=NodeOut,
        parameters=(IF_MATCH, WITH_LOCK),
        failures=(412,),
    ),
    Route(
        *("DELETE", _NODE, delete_node, "deleteNode", "Send a file or folder to the trash."),
        scope=Scope.WRITE,
        answer=NodeOut,
        parameters=(_RECURSIVE, IF_MATCH, WITH_LOCK),
        failures=(409, 412),
    ),
    Route(
        *("PATCH", _FILE, patch_node, "patchFile", "Change a file's metadata (RFC 7396)."),
        scope=Scope.WRITE,
        body=_PATCH,
        answer=NodeOut,
        parameters=(IF_MATCH, WITH_LOCK),
        failures=(412,),
    ),
    Route(
        *("DELETE", _FILE, delete_node, "deleteFile", "Send a file to the trash."),
        scope=Scope.WRITE,
        answer=NodeOut,
        parameters=(_RECURSIVE, IF_MATCH, WITH_LOCK),
        failures=(409, 412),
    ),
    Route(
        *("GET", _FOLDER, list_folder, "listFolder", "List a folder."),
        scope=Scope.READ,
        answer=NodeList,
        parameters=(LIMIT, CURSOR),
        failures=(409,),
    ),
    Route(
        *("PUT", _FOLDER, make_folder, "makeFolder", "Make a folder."),
        scope=Scope.WRITE,
        answer=NodeOut,
        status=201,
        parameters=(
            _PARENTS,
            IF_NONE_MATCH,
            WITH_LOCK,
            Parameter("exist_ok", "Accept one that is there.", "boolean"),
        ),
        failures=(409,),
    ),
    Route(
        *("GET", _VERSIONS, list_versions, "listVersions", "List a file's versions."),
        scope=Scope.READ,
        answer=VersionList,
        parameters=(LIMIT, CURSOR),
        failures=(409,),
    ),
    Route(
        *("POST", _VERSIONS, restore_version, "restoreVersion", "Make an old version the newest."),
        scope=Scope.WRITE,
        body=VersionIn,
        answer=NodeOut,
        parameters=(IF_MATCH, WITH_LOCK),
        failures=(409, 412, 507),
    ),
    Route(
        *("GET", "/v1/changes/{user}", list_changes, "listChanges", "What has changed in a tree."),
        scope=Scope.READ,
        answer=ChangeList,
        parameters=(
            LIMIT,
            Parameter(
                "cursor",
                "`cursor` of the answer before; `now` for what comes; else from the first on.",
            ),
            Parameter(
                "wait",
                "Seconds to wait for changes if there are none.",
                "integer",
                most=int(LONGEST),
            ),
        ),
        failures=(410,),
    ),
    Route(
        *("POST", "/v1/move", move, "move", "Give a node another path."),
        scope=Scope.WRITE,
        body=Transfer,
        answer=NodeOut,
        parameters=(IF_MATCH, WITH_LOCK),
        failures=(409, 412),
    ),
    Route(
        *("POST", "/v1/copy", copy, "copy", "Copy a node; no bytes are copied."),
        scope=Scope.WRITE,
        body=Transfer,
        answer=NodeOut,
        status=201,
        parameters=(IF_MATCH, WITH_LOCK),
        failures=(409, 412, 507),
    ),
    Route(
        *("GET", "/v1/trash/{user}", list_trash, "listTrash", "List the trash."),
        scope=Scope.READ,
        answer=TrashList,
        parameters=(LIMIT, CURSOR),
    ),
    Route(
        *("POST", "/v1/trash/{user}/{node}", restore, "restore", "Bring a node back."),
        scope=Scope.WRITE,
        parameters=(WITH_LOCK,),
        body=RestoreIn,
        answer=NodeOut,
        failures=(409,),
    ),
    Route(
        *("DELETE", "/v1/trash/{user}/{node}", purge, "purge", "Forget a node for ever."),
        scope=Scope.WRITE,
        status=204,
    ),
)

"""What users grant each other on their nodes."""

from typing import Final

from starlette.responses import Response

from vaultfs.domain.access import Role
from vaultfs.domain.errors import InvalidField
from vaultfs.domain.names import check_user
from vaultfs.domain.nodes import NodeId
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import CURSOR, LIMIT, Call, Parameter, Route, write_cursor
from vaultfs.entrypoints.http.wire import GrantIn, GrantList, SharedList, grant_out


async def list_access(call: Call) -> Response:
    """Who may do what with a node."""
    found = await call.files.access(call.user, call.address)
    return call.json(GrantList([grant_out(path, each) for path, each in found]))


async def grant(call: Call) -> Response:
    """Let a user read or write a node and all below it."""
    wanted = await call.body(GrantIn)
    if wanted.role not in set(Role):
        raise InvalidField(f"role={wanted.role!r}: one of {', '.join(Role)}")
    await call.files.grant(call.user, call.address, check_user(wanted.user), Role(wanted.role))
    return await list_access(call)


async def revoke(call: Call) -> Response:
    """Take back what a user was granted on a node."""
    user = call.query.get("grantee")
    if not user:
        raise InvalidField("grantee=NAME is missing: from whom it is taken back")
    await call.files.revoke(call.user, call.address, check_user(user))
    return await list_access(call)


async def list_shared(call: Call) -> Response:
    """What others have granted the caller."""
    limit, after = call.limit, call.number_cursor("node")
    found = await call.files.shared(
        call.user, after=None if after is None else NodeId(after), limit=limit
    )
    more = write_cursor("node", found[-1][1].node) if len(found) == limit else None
    return call.json(SharedList([grant_out(path, each) for path, each in found], more))


_ACCESS = "/v1/access/{user}/{path:path}"

ROUTES: Final = (
    Route(
        *("GET", _ACCESS, list_access, "listAccess", "Who may do what with a file or folder?"),
        scope=Scope.READ,
        answer=GrantList,
    ),
    Route(
        *("PUT", _ACCESS, grant, "grant", "Let a user read or write it and all below it."),
        scope=Scope.WRITE,
        body=GrantIn,
        answer=GrantList,
    ),
    Route(
        *("DELETE", _ACCESS, revoke, "revoke", "Take back what a user was granted on it."),
        scope=Scope.WRITE,
        answer=GrantList,
        parameters=(Parameter("grantee", "The user's name."),),
    ),
    Route(
        *("GET", "/v1/shared", list_shared, "listShared", "What have others granted?"),
        scope=Scope.READ,
        answer=SharedList,
        parameters=(LIMIT, CURSOR),
    ),
)

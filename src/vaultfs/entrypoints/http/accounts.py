"""Users, quotas, tokens, the audit."""

from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.responses import Response

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.services.accounts import LONGEST_OVERLAP
from vaultfs.domain.tokens import Scope
from vaultfs.entrypoints.http.calls import (
    CURSOR,
    LIMIT,
    Call,
    Route,
    own,
    write_cursor,
)
from vaultfs.entrypoints.http.wire import (
    AuditList,
    QuotaIn,
    RotateIn,
    TokenIn,
    TokenList,
    TokenOut,
    UserIn,
    UserList,
    UserOut,
    WhoAmI,
    audit_out,
    token_out,
    user_out,
)


async def who_am_i(call: Call) -> Response:
    """Who the token belongs to."""
    identity = call.identity
    user = await call.server.accounts.user(identity, call.user.name)
    return call.json(WhoAmI(user_out(user), identity.token, sorted(identity.scopes)))


async def list_users(call: Call) -> Response:
    """All users."""
    users = await call.server.accounts.users(call.identity)
    return call.json(UserList(list(map(user_out, users))))


async def add_user(call: Call) -> Response:
    """Make a user."""
    wanted = await call.body(UserIn)
    user = await call.server.accounts.add_user(call.identity, wanted.name, wanted.quota)
    return call.json(user_out(user), 201)


async def get_user(call: Call) -> Response:
    """One user."""
    return call.json(user_out(await call.server.accounts.user(call.identity, own(call))))


async def set_quota(call: Call) -> Response:
    """Say how many bytes a user may have."""
    wanted = await call.body(QuotaIn)
    name: str = call.params["user"]
    return call.json(
        user_out(await call.server.accounts.set_quota(call.identity, name, wanted.quota))
    )


async def list_tokens(call: Call) -> Response:
    """The tokens of a user, without their secrets."""
    tokens = await call.server.accounts.tokens(call.identity, own(call))
    return call.json(TokenList([token_out(each) for each in tokens]))


async def add_token(call: Call) -> Response:
    """Make a token; its secret is in the answer, once."""
    wanted = await call.body(TokenIn)
    issued = await call.server.accounts.add_token(
        call.identity, own(call), wanted.name, frozenset(wanted.scopes), _aware(wanted.expires)
    )
    return _secret(call, token_out(issued.token, issued.secret), 201)


async def rotate_token(call: Call) -> Response:
    """Give a token a new secret; the one before stays good for a while."""
    wanted = await call.body(RotateIn)
    most = round(LONGEST_OVERLAP.total_seconds())
    if not 0 <= wanted.overlap_seconds <= most:
        raise InvalidField(f"overlap_seconds: 0 to {most}")
    issued = await call.server.accounts.rotate_token(
        call.identity,
        own(call),
        call.params["token"],
        overlap=timedelta(seconds=wanted.overlap_seconds),
        expires=_aware(wanted.expires),
    )
    return _secret(call, token_out(issued.token, issued.secret), 200)


def _aware(moment: datetime | None) -> datetime | None:
    """`moment`, in UTC if it says nothing else."""
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


def _secret(call: Call, value: TokenOut, status: int) -> Response:
    return call.json(value, status, {"Cache-Control": "no-store"})


async def revoke_token(call: Call) -> Response:
    """Make a token useless, for ever."""
    await call.server.accounts.revoke_token(call.identity, own(call), call.params["token"])
    return Response(status_code=204)


async def list_audit(call: Call) -> Response:
    """A part of the audit."""
    limit = call.limit
    rows = await call.server.accounts.audit(
        call.identity, after=call.number_cursor("audit") or 0, limit=limit
    )
    more = write_cursor("audit", rows[-1].id) if len(rows) == limit else None
    names = {user.id: user.name for user in await call.server.accounts.users(call.identity)}
    return call.json(AuditList([audit_out(row, names) for row in rows], more))


_TOKENS, _TOKEN = "/v1/users/{user}/tokens", "/v1/users/{user}/tokens/{token}"

ROUTES: Final = (
    Route(
        *("GET", "/v1/whoami", who_am_i, "whoAmI", "Who the token belongs to."),
        scope=Scope.READ,
        admin_too=True,
        answer=WhoAmI,
    ),
    Route(
        *("GET", "/v1/users", list_users, "listUsers", "List all users."),
        scope=Scope.ADMIN,
        answer=UserList,
    ),
    Route(
        *("POST", "/v1/users", add_user, "addUser", "Make a user."),
        scope=Scope.ADMIN,
        body=UserIn,
        answer=UserOut,
        status=201,
        failures=(409,),
    ),
    Route(
        *("GET", "/v1/users/{user}", get_user, "getUser", "Look at a user."),
        scope=Scope.READ,
        admin_too=True,
        answer=UserOut,
    ),
    Route(
        *("PUT", "/v1/users/{user}/quota", set_quota, "setQuota", "Set or lift a quota."),
        scope=Scope.ADMIN,
        body=QuotaIn,
        answer=UserOut,
    ),
    Route(
        *("GET", _TOKENS, list_tokens, "listTokens", "List a user's tokens."),
        scope=Scope.READ,
        admin_too=True,
        answer=TokenList,
    ),
    Route(
        *("POST", _TOKENS, add_token, "addToken", "Make a token; its secret is shown once."),
        scope=Scope.WRITE,
        admin_too=True,
        body=TokenIn,
        answer=TokenOut,
        status=201,
    ),
    Route(
        *("POST", _TOKEN, rotate_token, "rotateToken", "Give a token a new secret."),
        scope=Scope.WRITE,
        admin_too=True,
        body=RotateIn,
        answer=TokenOut,
    ),
    Route(
        *("DELETE", _TOKEN, revoke_token, "revokeToken", "Make a token useless."),
        scope=Scope.WRITE,
        admin_too=True,
        status=204,
    ),
    Route(
        *("GET", "/v1/audit", list_audit, "listAudit", "What was done to users and tokens."),
        scope=Scope.ADMIN,
        answer=AuditList,
        parameters=(LIMIT, CURSOR),
    ),
)

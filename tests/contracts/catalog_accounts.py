"""What every catalog must do with tokens and with what is done to users."""

from attrs import evolve
from tests.contracts.callers import BOOT, Caller, add_user

from vaultfs.domain.errors import Exists, NotFound
from vaultfs.domain.nodes import TreeId, UserId
from vaultfs.domain.operations import (
    AddToken,
    RevokeToken,
    RotateToken,
    SetQuota,
    TouchToken,
)
from vaultfs.domain.tokens import Token
from vaultfs.ports.catalog import Catalog

MINUTE = 60_000_000


def token_of(owner: UserId, number: str = "abc") -> Token:
    return Token(number, owner, "laptop", "read write", b"x" * 32, None, None, 5, 99, None, None)


class AccountContract:
    """Tokens, quotas, audit."""

    async def test_a_token_is_kept_with_its_owner(self, catalog: Catalog, me: Caller) -> None:
        token = token_of(me.user.id)
        assert await catalog.token("abc") is None
        await me.do(AddToken(token))
        assert await catalog.token("abc") == (token, await catalog.user("me"))
        assert await catalog.tokens(me.user.id) == [token]
        assert isinstance(await me.refused(AddToken(token)), Exists)
        assert isinstance(await me.refused(AddToken(token_of(UserId(99), "def"))), NotFound)
        assert await me.feed() == []

    async def test_a_rotated_token_keeps_its_old_secret_for_a_time(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(AddToken(token_of(me.user.id)))
        await me.do(RotateToken(me.user.id, "abc", b"y" * 32, 1000, None))
        found = await catalog.token("abc")
        assert found is not None
        assert found[0][4:7] == (b"y" * 32, b"x" * 32, 1000)
        assert found[0].expires_us is None

    async def test_a_revoked_token_stays_revoked(self, catalog: Catalog, me: Caller) -> None:
        await me.do(AddToken(token_of(me.user.id)))
        await me.do(RevokeToken(me.user.id, "abc"))
        when = me.now
        await me.do(RevokeToken(me.user.id, "abc"))
        found = await catalog.token("abc")
        assert found is not None
        assert found[0].revoked_us == when
        assert await catalog.tokens(me.user.id) == []
        rotate = RotateToken(me.user.id, "abc", b"y" * 32, 1000, None)
        assert isinstance(await me.refused(rotate), NotFound)

    async def test_the_tokens_of_others_are_not_there(self, catalog: Catalog, me: Caller) -> None:
        other = await add_user(catalog, "other")
        await me.do(AddToken(token_of(me.user.id)))
        assert await catalog.tokens(other.id) == []
        assert isinstance(await me.refused(RevokeToken(other.id, "abc")), NotFound)
        rotate = RotateToken(other.id, "abc", b"y" * 32, 1000, None)
        assert isinstance(await me.refused(rotate), NotFound)

    async def test_the_last_use_is_noted_to_the_minute(self, catalog: Catalog, me: Caller) -> None:
        await me.do(AddToken(token_of(me.user.id)))
        uses: list[int | None] = []
        for passed in (0, MINUTE // 2, MINUTE):
            unit = evolve(me.unit(TouchToken("abc")), at_us=MINUTE * 100 + passed)
            await catalog.apply([unit])
            found = await catalog.token("abc")
            assert found is not None
            uses.append(found[0].used_us)
        assert uses == [MINUTE * 100, MINUTE * 100, MINUTE * 101]
        await me.do(TouchToken("not there"))

    async def test_what_changes_no_node_is_in_the_audit(self, catalog: Catalog, me: Caller) -> None:
        await me.do(SetQuota(me.tree, 1000))
        await me.do(AddToken(token_of(me.user.id)))
        await me.do(RevokeToken(me.user.id, "abc"))
        rows = await catalog.audit()
        assert [(row.actor, row.kind) for row in rows] == [
            (BOOT, "add-user"),
            (me.user.id, "set-quota"),
            (me.user.id, "add-token"),
            (me.user.id, "revoke-token"),
        ]
        assert [row.id for row in rows] == sorted({row.id for row in rows})
        assert await catalog.audit(after=rows[1].id, limit=1) == rows[2:3]

    async def test_what_is_refused_is_not_in_the_audit(self, catalog: Catalog, me: Caller) -> None:
        before = await catalog.audit()
        assert isinstance(await me.refused(SetQuota(TreeId(99), 5)), NotFound)
        assert await catalog.audit() == before

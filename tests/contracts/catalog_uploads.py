"""What every catalog must do with upload sessions, pins, and digests that are found later."""

from attrs import evolve
from tests.contracts.callers import Caller, add_user, content, digest, pack_of

from vaultfs.domain.errors import (
    ChunksMissing,
    Exists,
    Fenced,
    IsAFolder,
    NotFound,
    OffsetMismatch,
    QuotaExceeded,
    TooLarge,
    UploadExpired,
    UploadGone,
)
from vaultfs.domain.manifests import Entry
from vaultfs.domain.names import parse_path
from vaultfs.domain.nodes import DigestState
from vaultfs.domain.operations import (
    AbortUpload,
    AppendUpload,
    AttachUpload,
    CreateUpload,
    DeclareUpload,
    Done,
    ExpireUploads,
    FinishUpload,
    MakeFolder,
    PinChunks,
    PutFile,
    SetDigest,
    SetQuota,
)
from vaultfs.domain.uploads import IDLE_US, LIFE_US, Upload, UploadState
from vaultfs.ports.catalog import Catalog


def session(
    me: Caller, number: str = "u", *, size: int | None = 30, path: str | None = "/f"
) -> Upload:
    now = me.now + 1_000_000  # when the next unit of `me` is
    return Upload(
        number,
        me.tree,
        me.user.id,
        None if path is None else parse_path(path),
        UploadState.OPEN,
        1,
        size,
        0,
        0,
        '{"a": "é"}',
        now,
        now,
    )


def entries(count: int, start: int = 0, size: int = 10) -> tuple[Entry, ...]:
    return tuple((digest(f"e{number}"), size) for number in range(start, start + count))


class UploadContract:
    """Upload sessions."""

    async def test_a_session_is_kept_as_it_is(self, catalog: Catalog, me: Caller) -> None:
        upload = session(me, path="/a/é")
        await me.do(CreateUpload(upload))
        assert await catalog.upload("u") == upload
        assert await catalog.uploads(me.user.id) == [upload]
        assert isinstance(await me.refused(CreateUpload(session(me))), Exists)
        other = await add_user(catalog, "other")
        assert await catalog.uploads(other.id) == []
        assert isinstance(await me.refused(AttachUpload(other.tree, "u")), NotFound)
        for number in ("v", "w"):
            await me.do(CreateUpload(session(me, number, path=None)))
        assert [each.id for each in await catalog.uploads(me.user.id, limit=2)] == ["u", "v"]
        assert [each.id for each in await catalog.uploads(me.user.id, after="v")] == ["w"]
        assert (await catalog.upload("v")).path is None

    async def test_the_latest_writer_alone_appends(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me)))
        assert (await me.do(AttachUpload(me.tree, "u"))).count == 2
        late = AppendUpload(me.tree, "u", 1, 0, entries(1))
        assert isinstance(await me.refused(late), Fenced)
        await me.do(evolve(late, fence=2))
        found = await catalog.upload("u")
        assert (found.cut, found.tail, found.fence, found.touched_us) == (10, 0, 2, me.now)
        for at in (0, 5, 20):
            wrong = AppendUpload(me.tree, "u", 2, at, entries(1))
            assert isinstance(await me.refused(wrong), OffsetMismatch)
        long = AppendUpload(me.tree, "u", 2, 10, entries(3))
        assert isinstance(await me.refused(long), TooLarge)
        assert (await catalog.upload("u")) == found

    async def test_tails_take_each_others_place(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me, size=None)))
        await me.do(AppendUpload(me.tree, "u", 1, 0, (), b"abc"))
        assert await catalog.upload_tail("u") == b"abc"
        assert (await catalog.upload("u")).offset == 3
        shorter = AppendUpload(me.tree, "u", 1, 0, (), b"ab")
        assert isinstance(await me.refused(shorter), OffsetMismatch)
        await me.do(AppendUpload(me.tree, "u", 1, 0, entries(1), b"tail"))
        assert await catalog.upload_tail("u") == b"tail"
        assert (await catalog.upload("u")).offset == 14
        await me.do(AppendUpload(me.tree, "u", 1, 10, entries(1, 1)))
        assert await catalog.upload_tail("u") == b""

    async def test_entries_come_back_from_wherever_one_begins(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(CreateUpload(session(me, size=None)))
        every: list[Entry] = []
        for count in (1, 3, 5000, 2):
            more = entries(count, len(every))
            await me.do(AppendUpload(me.tree, "u", 1, 10 * len(every), more))
            every += more
        for start in (0, 1, 2, 3, 4, 2052, 5003, 5004, 5005, 5006):
            found: list[Entry] = []
            while some := await catalog.upload_entries("u", at=10 * (start + len(found))):
                found += some
            assert found == every[start:]
        assert await catalog.upload_entries("none") == []

    async def test_a_session_ends_as_a_version(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me)))
        await me.do(pack_of("p", "abc", me.user.id))
        await me.do(PinChunks(me.user.id, "u", (digest("a"),), 10**18))
        put = PutFile(me.tree, parse_path("/f"), content("x", 30))
        finish = FinishUpload(me.tree, "u", 1, put)
        assert isinstance(await me.refused(finish), OffsetMismatch)
        await me.do(AppendUpload(me.tree, "u", 1, 0, entries(2), b"0123456789"))
        assert isinstance(await me.refused(finish), OffsetMismatch)  # the tail is not cut
        await me.do(AppendUpload(me.tree, "u", 1, 20, entries(1, 2)))
        assert isinstance(await me.refused(evolve(finish, fence=0)), Fenced)
        folder = evolve(put, path=parse_path("/d"))
        await me.do(MakeFolder(me.tree, parse_path("/d")))
        assert isinstance(await me.refused(evolve(finish, put=folder)), IsAFolder)
        assert (await catalog.upload("u")).state is UploadState.OPEN
        result = await me.do(finish)
        assert result.node is not None
        assert result.count == 1
        found = await catalog.upload("u")
        assert (found.state, found.node, found.version) == (
            *(UploadState.FINISHED, result.node.id, result.node.version),
        )
        assert await catalog.upload_entries("u") == []
        assert await catalog.uploads(me.user.id) == []
        for late in (finish, AttachUpload(me.tree, "u"), AbortUpload(me.tree, "u")):
            assert isinstance(await me.refused(late), UploadGone)
        await me.do(PinChunks(me.user.id, "u", (digest("a"),), 10**18))

    async def test_a_part_keeps_its_entries(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me, path=None)))
        await me.do(AppendUpload(me.tree, "u", 1, 0, entries(3)))
        await me.do(FinishUpload(me.tree, "u", 1))
        assert (await catalog.upload("u")).state is UploadState.FINISHED
        assert await catalog.upload_entries("u") == list(entries(3))

    async def test_a_size_is_said_once(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me, size=None)))
        await me.do(AppendUpload(me.tree, "u", 1, 0, entries(2)))
        assert isinstance(await me.refused(DeclareUpload(me.tree, "u", 19)), TooLarge)
        await me.do(DeclareUpload(me.tree, "u", 20))
        await me.do(DeclareUpload(me.tree, "u", 20))
        assert isinstance(await me.refused(DeclareUpload(me.tree, "u", 21)), OffsetMismatch)
        assert (await catalog.upload("u")).complete

    async def test_what_is_given_up_is_let_go_of(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me)))
        await me.do(AppendUpload(me.tree, "u", 1, 0, entries(2), b"tail"))
        await me.do(AbortUpload(me.tree, "u"))
        await me.do(AbortUpload(me.tree, "u"))
        assert (await catalog.upload("u")).state is UploadState.ABORTED
        assert await catalog.upload_entries("u") == []
        assert await catalog.upload_tail("u") == b""
        append = AppendUpload(me.tree, "u", 1, 20, entries(1, 2))
        assert isinstance(await me.refused(append), UploadGone)
        assert isinstance(await me.refused(AbortUpload(me.tree, "none")), NotFound)

    async def test_time_ends_sessions(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me, "idle", size=None)))
        await me.do(CreateUpload(session(me, "busy", size=None)))
        await me.do(AppendUpload(me.tree, "idle", 1, 0, entries(1), b"x"))
        began = me.now
        for day in range(1, 7):
            me.now = began + day * (IDLE_US - 10_000_000)
            await me.do(AppendUpload(me.tree, "busy", 1, 10 * (day - 1), entries(1, day)))
            if day == 2:
                late = AppendUpload(me.tree, "idle", 1, 10, entries(1, 1))
                assert isinstance(await me.refused(late), UploadExpired)
                assert (await me.do(ExpireUploads(me.tree))).count == 1
                assert (await catalog.upload("idle")).state is UploadState.EXPIRED
                assert await catalog.upload_entries("idle") == []
        assert (await me.do(ExpireUploads(me.tree))).count == 1  # what was idle is forgotten
        try:
            await catalog.upload("idle")
        except NotFound:
            pass
        else:
            raise AssertionError
        me.now = began + LIFE_US
        late = AppendUpload(me.tree, "busy", 1, 60, entries(1, 9))
        assert isinstance(await me.refused(late), UploadExpired)
        assert (await me.do(ExpireUploads(me.tree))).count == 1
        assert (await me.do(ExpireUploads(me.tree))).count == 0
        assert await catalog.uploads(me.user.id) == []

    async def test_open_sessions_count_against_the_quota(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(SetQuota(me.tree, 100))
        assert isinstance(await me.refused(CreateUpload(session(me, size=101))), QuotaExceeded)
        await me.do(CreateUpload(session(me, "a", size=None)))
        await me.do(CreateUpload(session(me, "b", size=60)))
        await me.do(AppendUpload(me.tree, "b", 1, 0, entries(6)))
        more = AppendUpload(me.tree, "a", 1, 0, entries(4), b"!")
        assert isinstance(await me.refused(more), QuotaExceeded)
        assert isinstance(await me.refused(DeclareUpload(me.tree, "a", 41)), QuotaExceeded)
        await me.do(evolve(more, tail=b""))
        await me.do(AbortUpload(me.tree, "b"))
        await me.do(AppendUpload(me.tree, "a", 1, 40, entries(6, 4)))
        await me.do(DeclareUpload(me.tree, "a", 100))
        put = PutFile(me.tree, parse_path("/f"), content("x", 100))
        await me.do(FinishUpload(me.tree, "a", 1, put))
        assert (await catalog.user("me")).used == 100

    async def test_what_may_be_there_already_needs_no_room(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(SetQuota(me.tree, 100))
        path = parse_path("/d/f")
        put = PutFile(me.tree, path, content("x", 100), parents=True)
        await me.do(put)
        for number, size, where in (("other", 100, "/d"), ("more", 101, "/d/f"), ("n", 100, "/f")):
            there = session(me, number, size=size)._replace(path=parse_path(where))
            assert isinstance(await me.refused(CreateUpload(there)), QuotaExceeded)
        for number, name, made in (("same", "x", 0), ("other", "y", 1)):
            there = session(me, number, size=None)._replace(path=path)
            await me.do(CreateUpload(there), DeclareUpload(me.tree, number, 100))
            await me.do(AppendUpload(me.tree, number, 1, 0, entries(10)))
            finish = FinishUpload(me.tree, number, 1, evolve(put, content=content(name, 100)))
            if made:
                assert isinstance(await me.refused(finish), QuotaExceeded)
            else:
                assert (await me.do(finish)).count == 0
        assert (await catalog.user("me")).used == 100

    async def test_parts_count_against_the_quota_of_parts_until_they_are_given_up(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(SetQuota(me.tree, 100))
        for name in "ab":
            await me.do(CreateUpload(session(me, name, size=50)._replace(path=None)))
            await me.do(AppendUpload(me.tree, name, 1, 0, entries(5)))
            await me.do(FinishUpload(me.tree, name, 1, None))
        third = CreateUpload(session(me, "c", size=1)._replace(path=None))
        assert isinstance(await me.refused(third), QuotaExceeded)
        await me.do(CreateUpload(session(me, "whole", size=100)))
        await me.do(AbortUpload(me.tree, "a"))
        await me.do(AbortUpload(me.tree, "a"))
        assert await catalog.upload_entries("a") == []
        await me.do(third)

    async def test_pins_are_of_what_the_user_has(self, catalog: Catalog, me: Caller) -> None:
        other = await add_user(catalog, "other")
        await me.do(pack_of("p", "ab", me.user.id), pack_of("q", "c", other.id))
        pin = PinChunks(me.user.id, "h", (digest("a"), digest("b")), 50)
        assert (await me.do(pin)).count == 1
        await me.do(evolve(pin, until_us=40))
        missing = await me.refused(evolve(pin, digests=(digest("a"), digest("c"), digest("d"))))
        assert isinstance(missing, ChunksMissing)
        assert missing.digests == (digest("c"), digest("d"))

    async def test_a_digest_is_found_later(self, catalog: Catalog, me: Caller) -> None:
        claims = (
            (DigestState.ABSENT, None),
            (DigestState.CLAIMED, digest("right")),
            (DigestState.CLAIMED, digest("wrong")),
            (DigestState.VERIFIED, digest("right")),
        )
        for number, (state, claimed) in enumerate(claims):
            what = evolve(content(f"c{number}"), digest=claimed, digest_state=state)
            await me.do(PutFile(me.tree, parse_path(f"/f{number}"), what))
        found = await catalog.unverified()
        assert [(each.owner, each.claimed) for each in found] == [
            (me.user.id, None),
            (me.user.id, digest("right")),
            (me.user.id, digest("wrong")),
        ]
        assert [each.manifest.size for each in found] == [10, 10, 10]
        assert await catalog.unverified(after=found[0].id, limit=1) == [found[1]]
        for each in found:
            change = SetDigest(me.tree, each.id, digest("right"))
            assert (await me.do(change)).count == 1
            assert (await me.do(change)).count == 0
        assert await catalog.unverified() == []
        audited = [row for row in await catalog.audit() if row.kind == "false-claim"]
        assert len(audited) == 1
        assert digest("wrong").hex() in audited[0].subject
        versions = (await catalog.file(me.tree, parse_path("/f2")))[1]
        assert versions is not None
        assert (versions.digest, versions.digest_state) == (digest("right"), DigestState.VERIFIED)

    async def test_two_who_attach_get_two_numbers(self, catalog: Catalog, me: Caller) -> None:
        await me.do(CreateUpload(session(me)))
        units = [me.unit(AttachUpload(me.tree, "u")) for _ in range(5)]
        outcomes = await catalog.apply(units)
        fences = [each.results[0].count for each in outcomes if isinstance(each, Done)]
        assert fences == [2, 3, 4, 5, 6]

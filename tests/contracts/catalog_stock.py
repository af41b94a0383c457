"""What every catalog must do with packs and chunks, and with copies of itself."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
import pytest
from attrs import evolve
from tests.contracts.callers import Caller, add_user, digest, pack_of, pieces_of, state_of

from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Conflict, Corrupt, NotFound, Unsupported
from vaultfs.domain.nodes import UserId
from vaultfs.domain.operations import Done, Refused, SetMetadata, SetRetention
from vaultfs.domain.retention import Retention
from vaultfs.ports.catalog import Catalog, Known, Location, PackRow


def digests(names: str) -> list[Digest]:
    return [digest(name) for name in names]


async def located(catalog: Catalog, user: UserId) -> dict[Digest, Location]:
    """Where a user's chunks are, but for the numbers of the packs."""
    found = await catalog.locate(user, digests("abcd"))
    return {name: place._replace(number=0) for name, place in found.items()}


async def dump_of(catalog: Catalog) -> bytes:
    async with aclosing(catalog.dump()) as pieces:
        return b"".join([piece async for piece in pieces])


class StockContract:
    """Packs and chunks."""

    @pytest.fixture
    async def other(self, catalog: Catalog, me: Caller) -> Caller:
        return Caller(catalog, await add_user(catalog, "other"))

    async def test_a_pack_is_recorded(self, catalog: Catalog, me: Caller) -> None:
        pack = pack_of("p", "abc", me.user.id)
        assert not await catalog.has_pack(pack.key)
        recorded = await me.do(pack)
        assert recorded.count == 3
        [number] = recorded.packs
        assert await catalog.has_pack(pack.key)
        assert await catalog.packs() == [PackRow(pack.key, 1000, 7, "local")]
        assert (await catalog.stats()).chunks == 3
        places = {
            e.digest: Location(pack.key, e.offset, e.size, e.length, number) for e in pack.entries
        }
        assert await catalog.locate(me.user.id, digests("abcx")) == places
        where = sorted((name, place._replace(number=0)) for name, place in places.items())
        assert sorted(await catalog.chunks_of([pack.key])) == where
        assert await catalog.index() == where
        stats = await catalog.stats()
        assert (stats.packs, stats.packed, stats.chunks) == (1, 1000, 3)
        assert await me.feed() == []

    async def test_a_pack_recorded_again_adds_what_is_new(
        self, catalog: Catalog, me: Caller, other: Caller
    ) -> None:
        pack = pack_of("p", "abc", me.user.id)
        await me.do(evolve(pack, claims=((me.user.id, (0,)),)))
        await me.do(pack, pack)
        await me.do(evolve(pack, claims=((other.user.id, (1, 2)),)))
        assert len(await catalog.packs()) == 1
        assert (await catalog.stats()).chunks == 3
        assert len(await catalog.locate(me.user.id, digests("abc"))) == 3
        assert set(await catalog.locate(other.user.id, digests("abc"))) == set(digests("bc"))
        assert len(await catalog.chunks_of([pack.key])) == 3

    async def test_a_chunk_stays_where_it_was_first(self, catalog: Catalog, me: Caller) -> None:
        first, second = pack_of("p", "ab", me.user.id), pack_of("q", "bc", me.user.id)
        await me.do(first)
        await me.do(second)
        places = await catalog.locate(me.user.id, digests("abc"))
        assert [places[name].pack for name in digests("abc")] == [
            *(first.key, first.key),
            second.key,
        ]
        assert len(await catalog.chunks_of([first.key, second.key])) == 3

    async def test_what_is_known_is_told_apart_by_user(
        self, catalog: Catalog, me: Caller, other: Caller
    ) -> None:
        await me.do(pack_of("p", "ab", me.user.id), pack_of("q", "bc", other.user.id))
        theirs = digests("abcx")
        a, b, c, _ = theirs
        p = (await catalog.locate(me.user.id, [a]))[a].number
        q = (await catalog.locate(other.user.id, [c]))[c].number
        assert await catalog.known(me.user.id, theirs) == Known({a: p, b: p}, frozenset([c]))
        assert await catalog.known(other.user.id, theirs) == Known({b: q, c: q}, frozenset([a]))
        assert set(await catalog.locate(me.user.id, theirs)) == set(digests("ab"))
        stranger = await catalog.known(UserId(99), theirs)
        assert stranger == Known({}, frozenset(digests("abc")))

    async def test_any_number_of_digests_is_looked_up(self, catalog: Catalog, me: Caller) -> None:
        names = [f"chunk {number}" for number in range(1500)]
        await me.do(pack_of("p", names, me.user.id))
        wanted = [digest(name) for name in names]
        for count in (0, 1, 3, 511, 512, 513, 1500):
            assert (await catalog.known(me.user.id, wanted[:count])).own.keys() == set(
                wanted[:count]
            )
            assert set(await catalog.locate(me.user.id, wanted[:count])) == set(wanted[:count])
        assert (await catalog.known(me.user.id, wanted[:2] * 600)).own.keys() == set(wanted[:2])

    async def test_chunks_are_claimed(self, catalog: Catalog, me: Caller, other: Caller) -> None:
        await me.do(pack_of("p", "abc", me.user.id))
        assert isinstance(await other.claim("a", "c", "a"), Done)
        assert set(await catalog.locate(other.user.id, digests("abc"))) == set(digests("ac"))
        assert (await catalog.stats()).chunks == 3

    async def test_what_nobody_has_cannot_be_claimed(
        self, catalog: Catalog, me: Caller, other: Caller
    ) -> None:
        await me.do(pack_of("p", "abc", me.user.id))
        refused = await other.claim("a", "x", "c")
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, NotFound)
        assert await catalog.locate(other.user.id, digests("ac")) == {}

    async def test_packs_are_listed_by_key(self, catalog: Catalog, me: Caller) -> None:
        packs = [pack_of(name, "a", me.user.id, crc32c=None) for name in "pqrst"]
        await me.do(*packs)
        keys = sorted(pack.key for pack in packs)
        assert [row.key for row in await catalog.packs()] == keys
        page = await catalog.packs(after=keys[1], limit=2)
        assert page == [PackRow(key, 1000, None, "local") for key in keys[2:4]]
        assert await catalog.chunks_of([]) == []
        assert await catalog.chunks_of([digest("no such pack")]) == []

    async def test_the_index_is_listed_by_digest(
        self, catalog: Catalog, me: Caller, other: Caller
    ) -> None:
        assert await catalog.index() == []
        mine, theirs = pack_of("p", "abcd", me.user.id), pack_of("q", "cdef", other.user.id)
        await me.do(mine, theirs)
        await other.claim("a")
        places = {
            (entry.digest, Location(pack.key, entry.offset, entry.size, entry.length))
            for pack in (mine, theirs)
            for entry in pack.entries
        }
        assert sorted(await catalog.index()) == sorted(places)
        found: list[tuple[Digest, Location]] = []
        while page := await catalog.index(after=found[-1][0] if found else None, limit=2):
            found += page
        assert [name for name, _ in found] == sorted(name for name, _ in found)
        assert len(found) == len(set(found)) == 8
        assert set(found) == places

    # Reindexing

    async def test_an_index_built_anew_is_equal(
        self, catalog: Catalog, me: Caller, other: Caller
    ) -> None:
        packs = [pack_of("p", "ab", me.user.id), pack_of("q", "cd", other.user.id)]
        await me.do(*packs)
        await other.claim("a")
        users = (me.user.id, other.user.id)
        before = [await located(catalog, user) for user in users]
        rows, chunks = await catalog.packs(), await catalog.chunks_of([p.key for p in packs])
        async with catalog.reindex() as index:
            for pack in packs:
                await index.add_pack(pack)
            places = await index.locate(digests("abcdx"))
            assert set(places) == set(digests("abcd"))
            await index.claim(me.user.id, digests("abx"))
            await index.claim(other.user.id, digests("acd"))
        assert [await located(catalog, user) for user in users] == before
        assert await catalog.packs() == rows
        assert sorted(await catalog.chunks_of([p.key for p in packs])) == sorted(chunks)
        assert await catalog.check() == []
        await me.put("/f")

    async def test_an_index_holds_only_what_was_added(self, catalog: Catalog, me: Caller) -> None:
        old, new = pack_of("old", "ab", me.user.id), pack_of("new", "bc", me.user.id)
        await me.do(old)
        async with catalog.reindex() as index:
            await index.add_pack(new)
            await index.claim(me.user.id, digests("ab"))
        assert [row.key for row in await catalog.packs()] == [new.key]
        assert set(await catalog.locate(me.user.id, digests("abc"))) == set(digests("b"))
        assert await catalog.known(UserId(99), digests("abc")) == (
            Known({}, frozenset(digests("b")))
        )
        assert await catalog.check() == []

    async def test_an_index_that_was_not_finished_is_not_used(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(pack_of("p", "ab", me.user.id))
        before = await state_of(catalog)

        async def fail() -> None:
            async with catalog.reindex() as index:
                await index.add_pack(pack_of("q", "cd", me.user.id))
                raise RuntimeError("the disk is on fire")

        with pytest.raises(RuntimeError, match="the disk is on fire"):
            await fail()
        assert await state_of(catalog) == before
        with anyio.CancelScope() as scope:
            async with catalog.reindex() as index:
                await index.add_pack(pack_of("q", "cd", me.user.id))
                scope.cancel()
                await anyio.sleep(1)
        assert await state_of(catalog) == before
        await me.put("/f")

    async def test_others_read_while_an_index_is_built_and_writes_wait(
        self, catalog: Catalog, me: Caller
    ) -> None:
        await me.do(pack_of("p", "ab", me.user.id))
        before = await state_of(catalog)
        written = anyio.Event()

        async def write() -> None:
            await me.put("/f")
            written.set()

        async with anyio.create_task_group() as tasks:
            async with catalog.reindex() as index:
                await index.add_pack(pack_of("q", "cd", me.user.id))
                tasks.start_soon(write)
                for _ in range(3):
                    with anyio.fail_after(5):
                        assert await state_of(catalog) == before
                assert not written.is_set()
            with anyio.fail_after(5):
                await written.wait()
        assert [row.key for row in await catalog.packs()] == [digest("q")]
        assert await me.names() == ["f"]

    async def test_packs_are_added_to_an_index_by_many_tasks(
        self, catalog: Catalog, me: Caller
    ) -> None:
        async with catalog.reindex() as index, anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(index.add_pack, pack_of(f"{number % 10}", "abc"))
        assert len(await catalog.packs()) == 10
        assert await catalog.check() == []

    # Dumps

    async def test_a_dump_loads_into_an_empty_catalog(
        self, catalog: Catalog, empty: Catalog, me: Caller, other: Caller
    ) -> None:
        await self._fill(me, other)
        data = await dump_of(catalog)
        await empty.load(pieces_of(data, 7))
        assert await empty.vault_id() == await catalog.vault_id()
        assert await dump_without_counters(empty) == await dump_without_counters(catalog)
        for ours, theirs in ((catalog, empty), (empty, catalog)):
            assert await ours.users() == await theirs.users()
            assert await ours.changes(me.tree) == await theirs.changes(me.tree)
            assert await ours.trash(me.tree) == await theirs.trash(me.tree)
            assert await ours.all_versions() == await theirs.all_versions()
            assert await ours.retention(me.tree) == await theirs.retention(me.tree)
        assert await empty.packs() == []
        assert await empty.check() == []

    async def _fill(self, me: Caller, other: Caller) -> None:
        await me.do(me.put_op("/a/b/f", parents=True), pack_of("p", "a", me.user.id))
        await me.put("/a/b/f", "new")
        await me.do(SetMetadata(me.tree, ("a",), '{"k":"\u00e9\u2028"}'))
        await me.do(SetRetention(me.tree, Retention(3)))
        await me.copy("/a", "/caf\u00e9 'n' \"b\"")
        await me.delete("/a", recursive=True)
        await other.mkdir("/x")

    async def test_no_id_is_used_twice_after_a_load(
        self, catalog: Catalog, empty: Catalog, me: Caller
    ) -> None:
        await me.put("/a")
        data = await dump_of(catalog)
        later = [await me.put(f"/{number}", f"{number}") for number in range(50)]
        await empty.load(pieces_of(data))
        there = evolve(me, catalog=empty)
        new = [await there.put(f"/{number}", f"{number}") for number in range(50)]
        assert {node.id for node in new}.isdisjoint(node.id for node in later)
        assert {node.version for node in new}.isdisjoint(node.version for node in later)

    async def test_a_catalog_that_holds_something_loads_nothing(
        self, catalog: Catalog, empty: Catalog, me: Caller
    ) -> None:
        await me.put("/a")
        data = await dump_of(catalog)
        with pytest.raises(Conflict):
            await catalog.load(pieces_of(data))
        assert await me.names() == ["a"]
        await me.put("/b")
        await empty.load(pieces_of(data))
        with pytest.raises(Conflict):
            await empty.load(pieces_of(data))

    async def test_a_damaged_dump_is_refused_and_nothing_is_loaded(
        self, catalog: Catalog, empty: Catalog, me: Caller, other: Caller
    ) -> None:
        await self._fill(me, other)
        data = await dump_of(catalog)
        before, number = await dump_of(empty), await empty.vault_id()
        step = max(1, len(data) // 150)
        for at in (*range(0, len(data), step), *range(len(data) - 100, len(data))):
            with pytest.raises(Corrupt):
                await empty.load(pieces_of(data[:at], 1 << 20))
            flipped = bytearray(data)
            flipped[at] ^= 1 << at % 8
            # a head that has another number may be what a newer release writes
            with pytest.raises((Corrupt, Unsupported) if at < data.index(b"\n") else Corrupt):
                await empty.load(pieces_of(bytes(flipped), 1 << 20))
        for more in (b"\n", b"{", b'{"table":"nodes","rows":[]}\n', data.splitlines(True)[-1]):
            with pytest.raises(Corrupt):
                await empty.load(pieces_of(data + more))
        assert (await dump_of(empty), await empty.vault_id()) == (before, number)
        await empty.load(pieces_of(data))
        assert await empty.check() == []

    async def test_a_dump_of_a_newer_release_is_refused(
        self, catalog: Catalog, empty: Catalog
    ) -> None:
        head, _, rest = (await dump_of(catalog)).partition(b"\n")
        for key in ("vaultfs-dump", "schema"):
            newer = json.dumps({**json.loads(head), key: 99}).encode()
            with pytest.raises(Unsupported):
                await empty.load(pieces_of(newer + b"\n" + rest))

    async def test_a_dump_that_cannot_be_read_to_its_end_loads_nothing(
        self, catalog: Catalog, empty: Catalog, me: Caller
    ) -> None:
        await me.put("/a")
        data = await dump_of(catalog)

        async def broken() -> AsyncGenerator[bytes, None]:
            yield data[:-10]
            raise OSError("the cable is out")

        before = await dump_of(empty)
        with pytest.raises(OSError, match="cable"):
            await empty.load(broken())
        assert await dump_of(empty) == before

    async def test_others_go_on_while_a_dump_is_taken(self, catalog: Catalog, me: Caller) -> None:
        await me.put("/a")
        parts: list[bytes] = []
        async with aclosing(catalog.dump()) as pieces:
            parts.append(await anext(pieces))
            parts.append(await anext(pieces))
            with anyio.fail_after(5):
                await me.put("/b", "another")
                assert await me.names() == ["a", "b"]
            parts += [piece async for piece in pieces]
        assert digest("another").hex().encode() not in b"".join(parts)
        async with aclosing(catalog.dump()) as pieces:
            await anext(pieces)  # and one that is given up
        assert digest("another").hex().encode() in await dump_of(catalog)


async def dump_without_counters(catalog: Catalog) -> list[bytes]:
    lines = (await dump_of(catalog)).splitlines()[:-1]
    return [line for line in lines if b'"table":"counters"' not in line]

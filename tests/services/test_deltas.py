"""Deltas between versions: from the vault to whoever has the base, and back to the bytes."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from itertools import pairwise
from random import Random

import anyio
import pytest
from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.domain.test_matching import edited
from tests.domain.test_zipimages import words, zipped
from tests.faults import MIB, BytesSource, at, open_memory_vault, random_bytes

from vaultfs.domain import deltacodec
from vaultfs.domain.chains import Reason, Way
from vaultfs.domain.deltacodec import (
    IMAGES,
    Block,
    Header,
    ReadBase,
    Region,
    encode_block,
    write_end,
    write_header,
)
from vaultfs.domain.deltas import Copy, Literal, delta_of, encode
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported, VaultError, VersionMismatch
from vaultfs.domain.matching import Difference
from vaultfs.domain.nodes import DigestState, Node, Version
from vaultfs.domain.operations import Prune, PutFile, RecordDelta, Refused
from vaultfs.domain.retention import Retention
from vaultfs.domain.services import deltas, differ
from vaultfs.domain.services.deltas import Offer
from vaultfs.domain.services.digests import Digests
from vaultfs.domain.services.packer import pack_key
from vaultfs.domain.services.rebuilding import Rebuilding
from vaultfs.domain.services.upkeep import Plan
from vaultfs.entrypoints.vault import Vault
from vaultfs.ports.catalog import Unverified


@define
class Bytes:
    """Bytes as a base."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> Digest:
        return digest_of(self.data)

    async def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


async def versions(vault: Vault, *contents: bytes) -> tuple[Node, list[Version]]:
    for content in contents:
        await vault.files.put(vault.user, at("/f"), BytesSource(content), size=len(content))
    found = [
        await vault.files.version(vault.user, at("/f"), number + 1)
        for number in range(len(contents))
    ]
    return found[-1][0], [version for _, version in found]


async def told(
    vault: Vault, node: Node, base: Version, target: Version
) -> tuple[Offer, bytes | None]:
    async with vault.deltas.offer(vault.user, node, base.id, target) as offer:
        if offer.pieces is None:
            return offer, None
        data = b"".join([piece async for piece in offer.pieces])
        assert offer.size in {None, len(data)}
        return offer, data


async def rebuilt(base: bytes, delta: bytes, piece: int = 1 << 16, *, images: bool = True) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(delta), piece):
            yield delta[start : start + piece]

    async with aclosing(Rebuilding(Bytes(base), images).run(pieces())) as made:
        return b"".join([each async for each in made])


def noise(size: int, seed: str = "delta") -> bytes:
    return random_bytes(size, seed)


def sparse(old: bytes) -> bytes:
    new = bytearray(old)
    for place in range(len(new) // 3, len(new) - 30, max(1, len(new) // 9)):
        new[place : place + 30] = b"edited here, and nowhere else "
    return bytes(new)


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "sparse edits": sparse,
    "an append": lambda old: old + noise(70_000, "tail"),
    "a cut at the front": lambda old: old[len(old) // 7 :],
    "an insertion": lambda old: old[: len(old) // 2] + noise(999, "in") + old[len(old) // 2 :],
    "two halves changed round": lambda old: old[len(old) // 2 :] + old[: len(old) // 2],
    "many small edits": lambda old: bytes(
        each ^ 1 if place % 4001 == 17 else each for place, each in enumerate(old)
    ),
}


async def named(
    vault: Vault, *contents: bytes, claimed: Digest | None = None
) -> tuple[Node, list[Version]]:
    """Versions whose chunks were named, not sent: nobody has seen their bytes in order."""
    state = DigestState.ABSENT if claimed is None else DigestState.CLAIMED
    for content in contents:
        ingested = await vault.files.ingest.stream(vault.user.id, BytesSource(content))
        as_named = evolve(ingested.content, digest=claimed, digest_state=state)
        put = PutFile(vault.user.tree, ("f",), as_named)
        [outcome] = await vault.files.commit(
            vault.user, [(put, evolve(ingested, content=as_named))]
        )
        assert not isinstance(outcome, Refused)
    found = [
        await vault.files.version(vault.user, at("/f"), number + 1)
        for number in range(len(contents))
    ]
    assert all(version.digest_state is state for _, version in found)
    return found[-1][0], [version for _, version in found]


@pytest.mark.parametrize("claimed", [None, digest_of(b"something else")])
async def test_digests_that_nobody_has_found_yet_are_found_for_a_delta(
    claimed: Digest | None,
) -> None:
    old = noise(3 * MIB)
    new = sparse(old)
    async with open_memory_vault() as vault:
        node, (one, two) = await named(vault, old, new, claimed=claimed)
        offer, delta = await told(vault, node, one, two)
        assert offer.plan.way is Way.DIRECT
        assert delta is not None
        assert len(delta) < 10_000
        assert await rebuilt(old, delta) == new
        for number, content in ((1, old), (2, new)):
            _, version = await vault.files.version(vault.user, at("/f"), number)
            assert (version.digest, version.digest_state) == (
                digest_of(content),
                DigestState.VERIFIED,
            )
        assert await vault.catalog.unverified() == []


async def test_a_digest_is_found_once_for_all_who_want_a_delta(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = noise(2 * MIB)
    news = [old + noise(1000, str(number)) for number in range(3)]
    read: list[int] = []
    original = Digests._digest  # pyright: ignore[reportPrivateUsage]

    async def counted(self: Digests, version: Unverified) -> Digest:
        read.append(version.id)
        return await original(self, version)

    monkeypatch.setattr(Digests, "_digest", counted)
    async with open_memory_vault() as vault:
        node, all_of_them = await named(vault, *news, old)
        target = all_of_them[-1]
        async with anyio.create_task_group() as tasks:
            for base in (*all_of_them[:-1], *all_of_them[:-1]):
                tasks.start_soon(told, vault, node, base, target)
        assert sorted(read) == sorted(version.id for version in all_of_them)


async def test_a_digest_that_takes_long_to_find_is_left_to_the_upkeep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deltas, "FOUND_AT_ONCE", MIB)
    old = noise(2 * MIB)
    async with open_memory_vault() as vault:
        node, (one, two) = await named(vault, old, sparse(old))
        offer, delta = await told(vault, node, one, two)
        assert (offer.plan.reason, delta) == (Reason.UNVERIFIED, None)
        await vault.upkeep().run(Plan(backup=None, collect=None, scrub=None))
        _, two = await vault.files.version(vault.user, at("/f"), 2)
        offer, delta = await told(vault, node, one, two)
        assert offer.plan.way is not Way.FULL
        assert delta is not None


async def test_a_digest_is_not_found_where_the_content_is_damaged() -> None:
    old = noise(2 * MIB)
    async with open_memory_vault() as vault:
        node, (one, two) = await named(vault, old, noise(MIB, "lost"))
        for pack in await vault.catalog.packs():
            for info in [info async for info in vault.objects.list(pack_key(pack.key))]:
                await vault.objects.delete(info.key)
        offer, delta = await told(vault, node, one, two)
        assert (offer.plan.reason, delta) == (Reason.UNVERIFIED, None)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("size", [1000, 64 << 10, MIB, 9 * MIB])
async def test_a_delta_leads_to_the_target_in_both_directions(size: int, edit: str) -> None:
    old = noise(size)
    new = EDITS[edit](old)
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, new)
        for base, target, before, after in ((one, two, old, new), (two, one, new, old)):
            offer, data = await told(vault, node, base, target)
            if data is None:  # nothing but new bytes
                assert offer.plan.reason is Reason.NOT_SMALLER
                assert size == 1000
                continue
            assert len(data) < len(after)
            assert await rebuilt(before, data) == after
            again, same = await told(vault, node, base, target)
            assert same == data
            assert again.plan == offer.plan


async def test_a_delta_is_about_as_long_as_what_is_new() -> None:
    old = noise(3 * MIB)
    async with open_memory_vault() as vault:
        node, (one, two, three) = await versions(vault, old, sparse(old), old[100_000:])
        _, data = await told(vault, node, one, two)
        assert data is not None
        assert len(data) < 700
        _, data = await told(vault, node, two, three)
        assert data is not None
        assert len(data) < 700


async def test_of_unlike_contents_the_file_is_sent() -> None:
    async with open_memory_vault() as vault:
        node, (one, two, three) = await versions(vault, noise(5 * MIB), noise(6 * MIB, "x"), b"")
        offer, data = await told(vault, node, one, two)
        assert (offer.plan.way, offer.plan.reason, data) == (Way.FULL, Reason.NOT_SMALLER, None)
        offer, data = await told(vault, node, three, two)
        assert (offer.plan.way, offer.plan.reason, data) == (Way.FULL, Reason.NOT_SMALLER, None)
        offer, _ = await told(vault, node, two, two)
        assert offer.plan.way is not Way.FULL  # a delta from a version to itself


async def test_no_more_of_unlike_contents_is_worked_on_than_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 30 * MIB
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, noise(size), noise(size, "x"))
        blocks: list[Block] = []

        def counted(block: Block, read_base: ReadBase) -> bytes:
            blocks.append(block)
            return encode_block(block, read_base)

        monkeypatch.setattr("vaultfs.domain.services.differ.encode_block", counted)
        offer, _ = await told(vault, node, one, two)
        assert (offer.plan.way, offer.plan.reason) == (Way.FULL, Reason.NOT_SMALLER)
        assert len(blocks) == 1


async def test_a_long_delta_is_sent_as_it_is_made() -> None:
    old = noise(24 * MIB)
    new = old[: 12 * MIB] + noise(12 * MIB, "half") + old[20 * MIB :]
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, new)
        async with vault.deltas.offer(vault.user, node, one.id, two) as offer:
            assert (offer.plan.way, offer.size) == (Way.DIRECT, None)
            assert offer.pieces is not None
            data = b"".join([piece async for piece in offer.pieces])
        assert len(data) < len(new) * 0.55
        assert await rebuilt(old, data) == new
        assert len(await vault.catalog.deltas(node.id)) == 1


async def test_equal_requests_at_once_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise(4 * MIB)
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, sparse(old))
        differ = vault.deltas.differ
        runs: list[int] = []
        plain = type(differ).steps

        async def counted(*given: object) -> object:
            runs.append(1)
            return await plain(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(type(differ), "steps", counted)
        answers: set[bytes | None] = set()

        async def ask() -> None:
            answers.add((await told(vault, node, one, two))[1])

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
        assert len(answers) == 1
        assert len(runs) == 1


async def chain_of(vault: Vault, count: int) -> tuple[Node, list[Version], list[bytes]]:
    """A file with an edge from each version to the next, all but the last pruned."""
    contents = [noise(300_000)]
    for number in range(count):
        contents.append(contents[-1] + b"one more line %d\n" % number)
    node, found = await versions(vault, *contents)
    for base, target in pairwise(found):
        await vault.deltas.connect(vault.user, base, target)
    gone = tuple(each.id for each in found[:-1])
    await vault.files.change(vault.user, Prune(vault.user.tree, node.id, gone))
    return node, found, contents


@pytest.mark.parametrize(
    ("depth", "most", "reason"),
    [(16, 16, Reason.CHEAPEST), (17, 16, Reason.TOO_DEEP), (17, 20, Reason.CHEAPEST)],
)
async def test_pruned_versions_lead_on_by_a_chain(depth: int, most: int, reason: Reason) -> None:
    async with open_memory_vault() as vault:
        node, found, contents = await chain_of(vault, depth)
        vault.deltas.max_depth = most
        offer, data = await told(vault, node, found[0], found[-1])
        assert offer.plan.reason is reason
        if data is None:
            assert (offer.plan.way, offer.plan.depth) == (Way.FULL, 0)
            return
        assert (offer.plan.way, offer.plan.depth) == (Way.CHAIN, depth)
        assert await rebuilt(contents[0], data) == contents[-1]
        assert len(data) < 1000
        near, data = await told(vault, node, found[-2], found[-1])
        assert near.plan.depth == 1
        assert data is not None
        assert await rebuilt(contents[-2], data) == contents[-1]


async def test_upkeep_links_versions_and_keeps_long_histories_shallow() -> None:
    contents = [noise(100_000) + b"one more line\n" * number for number in range(71)]
    async with open_memory_vault() as vault:
        node, found = await versions(vault, *contents)
        await vault.files.set_retention(vault.user, "me", Retention(last=1))
        done = await vault.upkeep().run(Plan(backup=None))
        assert (done.pruned, done.linked) == (70, 70 + 34 + 16 + 7 + 3 + 1)
        assert (await vault.upkeep().run(Plan(backup=None))).linked == 0
        for index in (0, 1, 13, 69):
            offer, data = await told(vault, node, found[index], found[-1])
            assert offer.plan.way is Way.CHAIN
            assert offer.plan.depth <= 12
            assert data is not None
            assert await rebuilt(contents[index], data) == contents[-1]


async def test_a_missing_link_means_the_whole_file() -> None:
    async with open_memory_vault() as vault:
        node, (one, two, three) = await versions(
            vault, *(noise(90_000) + b"x" * n for n in range(3))
        )
        await vault.deltas.connect(vault.user, two, three)
        gone = Prune(vault.user.tree, node.id, (one.id, two.id))
        await vault.files.change(vault.user, gone)
        offer, _ = await told(vault, node, one, three)
        assert (offer.plan.way, offer.plan.reason) == (Way.FULL, Reason.UNKNOWN_BASE)


async def test_the_chain_is_taken_where_it_reads_less() -> None:
    old = noise(2 * MIB)
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, sparse(old))
        await vault.deltas.connect(vault.user, one, two)
        offer, data = await told(vault, node, one, two)
        assert (offer.plan.way, offer.plan.depth) == (Way.CHAIN, 1)
        assert data is not None
        assert await rebuilt(old, data) == sparse(old)


# What somebody else wrote


async def sample() -> tuple[bytes, bytes, bytes]:
    old = noise(200_000)
    new = edited(sparse(old), Random(3)) + b"some text that compresses, " * 40
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, new)
        _, data = await told(vault, node, one, two)
    assert data is not None
    return old, new, data


SAMPLE = anyio.run(sample)


async def test_pieces_of_any_size_lead_to_the_same() -> None:
    old, new, data = SAMPLE
    for piece in (1, 13, 1000):
        assert await rebuilt(old, data, piece) == new


async def test_another_base_is_told_before_anything_is_made() -> None:
    old, _, data = SAMPLE
    for base in (b"", old[:-1], old[:-1] + b"?", old + b"?"):
        made: list[bytes] = []

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        with pytest.raises(VersionMismatch):
            made += [piece async for piece in Rebuilding(Bytes(base)).run(pieces())]
        assert made == []


async def assert_counted(places: Iterable[int], old: bytes, new: bytes, data: bytes) -> None:
    """A delta that ends at one of `places`, or has a bit flipped there, is refused."""
    for place in places:
        with pytest.raises((Corrupt, Unsupported, VersionMismatch)):
            await rebuilt(old, data[:place])
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        with pytest.raises((Corrupt, Unsupported, VersionMismatch)):
            assert await rebuilt(old, bytes(flipped)) != new


async def test_every_byte_counts() -> None:
    """A delta that is cut short, or has one byte changed, leads to nothing that counts."""
    old, new, data = SAMPLE
    step = max(1, len(data) // 150)
    places = [*range(40), *range(40, len(data), step), len(data) - 1]
    await assert_counted(places, old, new, data)
    with pytest.raises(Corrupt):
        await rebuilt(old, data + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE[2]) - 1), st.binary(max_size=9)), max_size=4))
async def test_whatever_comes_leads_to_the_target_or_is_refused(
    changes: list[tuple[int, bytes]],
) -> None:
    old, new, data = SAMPLE
    sent = bytearray(data)
    for place, part in changes:
        sent[place : place + len(part)] = part
    try:
        assert await rebuilt(old, bytes(sent)) == new
    except VaultError:
        return


# Zip files


DOCUMENT = {
    "[Content_Types].xml": b"<types/>",
    **{f"part-{number}.xml": words(number, 5000) for number in range(12)},
    "media/picture": noise(150_000, "picture"),
}
CHANGED = {**DOCUMENT, "part-3.xml": words(3, 5000).replace(b"lease", b"fence", 2)}


async def zip_delta(old: bytes, new: bytes) -> bytes:
    async with open_memory_vault() as vault:
        node, (one, two) = await versions(vault, old, new)
        offer, data = await told(vault, node, one, two)
        assert offer.plan.way is Way.DIRECT
    assert data is not None
    assert await rebuilt(old, data) == new
    return data


async def test_a_change_of_a_document_is_as_long_as_the_change_of_its_text() -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    data = await zip_delta(old, new)
    assert data[4] == IMAGES
    assert len(data) < 500
    assert len(zipped({"part-3.xml": CHANGED["part-3.xml"]})) > 2000, "as it is packed"
    assert len(await zip_delta(new, old)) < 500


async def test_zip_files_of_others_are_sent_as_all_files_are() -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    for base, target in (
        (old, b"?" + new),
        (noise(1000) + old, new),
        (old, old + new[-22:]),  # two directories' ends
        (old[:-30] + old[-22:], new),
    ):
        data = await zip_delta(base, target)
        assert len(data) < len(target)


async def test_a_server_takes_no_images() -> None:
    data = await zip_delta(zipped(DOCUMENT), zipped(CHANGED))
    with pytest.raises(Unsupported):
        await rebuilt(zipped(DOCUMENT), data, images=False)


async def test_every_byte_of_images_counts() -> None:
    old, new = zipped(DOCUMENT), zipped(CHANGED)
    data = await zip_delta(old, new)
    for piece in (1, 7):
        assert await rebuilt(old, data, piece) == new
    await assert_counted(range(len(data)), old, new, data)
    with pytest.raises(VersionMismatch):
        await rebuilt(new, data)
    with pytest.raises(Corrupt):
        await rebuilt(old, data + b"?")


async def test_a_header_is_believed_for_no_more_than_it_says() -> None:
    """A delta that lays out more than it says, or nothing, is refused."""
    old, new, _ = SAMPLE
    lie = Header.of(len(old), digest_of(old), 5, digest_of(new))
    with pytest.raises(Corrupt):
        await rebuilt(old, write_header(lie) + write_end(0))
    empty = Header.of(len(old), digest_of(old), 0, digest_of(b""))
    assert await rebuilt(old, write_header(empty) + write_end(0)) == b""
    with pytest.raises(Corrupt):
        await rebuilt(old, write_header(empty) + write_end(1))


def _nothing(start: int, stop: int) -> bytes:
    raise AssertionError(f"{start} to {stop}")


@pytest.mark.parametrize("kind", [Copy, Difference, Region])
@pytest.mark.parametrize("place", [0, 2 * MIB])
async def test_a_step_that_lays_out_nothing_is_refused(
    kind: type[Copy | Difference | Region], place: int
) -> None:
    """Nor does it cost anything: a few bytes can name many of them."""
    base = noise(2 * MIB)
    block = Block((kind(place, 0),) * 100_000, b"", b"")
    head = write_header(Header.of(len(base), digest_of(base), 0, digest_of(b"")))
    with pytest.raises(Corrupt, match="empty"):
        await rebuilt(base, head + encode_block(block, _nothing) + write_end(1))


async def test_no_block_has_more_steps_than_one_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain, say, whose copies come in any order."""
    old = noise(300_000)
    places = [(7919 * number) % 299 * 1000 for number in range(299)]
    new = b"".join(old[place : place + 1000] for place in places)
    coarse = delta_of(len(old), [Copy(place, 1000) for place in places])
    monkeypatch.setattr(differ, "MOST_PARTS", 50)
    monkeypatch.setattr(deltacodec, "MAX_NUMBERS", 1000)
    async with open_memory_vault() as vault:
        _, (one, two) = await versions(vault, old, new)
        blocks = vault.deltas.differ.blocks(vault.user.id, one.manifest, two.manifest, coarse)
        data = [block async for block, _ in blocks]
    head = write_header(Header.of(len(old), digest_of(old), len(new), digest_of(new)))
    assert await rebuilt(old, b"".join((head, *data, write_end(len(data))))) == new


async def test_a_recorded_delta_that_is_damaged_means_another_way() -> None:
    contents = [noise(90_000) + b"x" * n for n in range(3)]
    async with open_memory_vault() as vault:
        node, (one, two, three) = await versions(vault, *contents)
        for base, target, data in (
            (one, two, encode(delta_of(90_000, [Copy(0, 90_000), Literal(1)]))),
            (two, three, b"\x01damaged"),
        ):
            assert base.digest is not None
            ids = (vault.user.tree, node.id, base.id, target.id)
            await vault.files.change(vault.user, RecordDelta(*ids, base.digest, 1, data))
        offer, found = await told(vault, node, one, three)
        assert offer.plan.way is Way.DIRECT
        assert found is not None
        assert await rebuilt(contents[0], found) == contents[2]
        gone = Prune(vault.user.tree, node.id, (one.id, two.id))
        await vault.files.change(vault.user, gone)
        offer, found = await told(vault, node, two, three)
        assert (offer.plan.way, offer.plan.reason) == (Way.FULL, Reason.UNKNOWN_BASE)
        assert found is None

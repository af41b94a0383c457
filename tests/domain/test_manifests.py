from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported
from vaultfs.domain.manifests import (
    EMPTY,
    INLINE_ENTRIES,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    MIN_PAGE,
    Entry,
    Manifest,
    ManifestBuilder,
    Page,
    overlapping,
    parse_page,
)


def entries_of(count: int, seed: int = 0) -> list[Entry]:
    random = Random(seed)
    return [(Digest(random.randbytes(32)), random.randrange(1, 1 << 19)) for _ in range(count)]


def uncut(count: int) -> list[Entry]:
    """Entries none of which ends a page."""
    return [(Digest(b"\x01\0\0\0" + n.to_bytes(28, "little")), 1) for n in range(count)]


def build(entries: Sequence[Entry]) -> tuple[Manifest, dict[Digest, Page]]:
    builder, pages = ManifestBuilder(), list[Page]()
    for entry in entries:
        pages += builder.add(entry)
    manifest, rest = builder.finish()
    return manifest, {page.digest: page for page in (*pages, *rest)}


def walk(manifest: Manifest, pages: dict[Digest, Page]) -> list[Entry]:
    """The chunks that a manifest leads to."""
    level = list(manifest.entries)
    for depth in range(manifest.level, 0, -1):
        level = [
            entry
            for digest, size in level
            for entry in parse_page(pages[digest].data, level=depth, size=size)
        ]
    return level


@given(
    st.one_of(
        st.integers(0, 40),
        st.integers(0, 3000),
        st.sampled_from((INLINE_ENTRIES, INLINE_ENTRIES + 1, MIN_PAGE, MIN_PAGE + 1)),
    ),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=50)
def test_a_manifest_leads_to_the_chunks_it_was_made_of(count: int, seed: int) -> None:
    entries = entries_of(count, seed)
    manifest, pages = build(entries)
    assert walk(manifest, pages) == entries
    assert manifest.size == sum(size for _, size in entries)
    assert build(entries) == (manifest, pages)
    assert Manifest.decode(manifest.encode()) == manifest
    assert (manifest.level == 0) == (count <= INLINE_ENTRIES)


@pytest.mark.parametrize(
    ("count", "level", "pages"),
    [
        (INLINE_ENTRIES, 0, 0),
        (INLINE_ENTRIES + 1, 1, 1),
        (MAX_PAGE - 1, 1, 1),
        (MAX_PAGE, 1, 1),
        (MAX_PAGE + 1, 2, 3),
        (3 * MAX_PAGE, 2, 4),
    ],
)
def test_pages_end_at_their_maximum(count: int, level: int, pages: int) -> None:
    manifest, found = build(uncut(count))
    assert (manifest.level, len(found)) == (level, pages)
    assert walk(manifest, found) == uncut(count)
    assert max((len(page.data) for page in found.values()), default=0) <= MAX_PAGE_BYTES


def test_a_large_manifest_has_pages_of_pages() -> None:
    entries = entries_of(20_000)
    manifest, pages = build(entries)
    assert manifest.level == 2
    assert walk(manifest, pages) == entries
    leaves = [page for page in pages.values() if page.data[5] == 1]
    counts = [(len(page.data) - 12) // 40 for page in leaves]
    assert all(MIN_PAGE <= count <= MAX_PAGE for count in counts[:-1])
    assert len(leaves) + 1 == len(pages)


@pytest.mark.parametrize(("removed", "added"), [(1, 1), (0, 1), (1, 0), (50, 3)])
def test_a_change_in_the_middle_leaves_all_but_a_few_pages_equal(removed: int, added: int) -> None:
    entries = entries_of(20_000)
    changed = entries[:10_000] + entries_of(added, seed=1) + entries[10_000 + removed :]
    _, before = build(entries)
    _, after = build(changed)
    assert len(before) > 15
    assert len(after.keys() - before.keys()) <= 4


def test_pages_are_given_out_as_they_become_complete() -> None:
    builder, given_out = ManifestBuilder(), 0
    for entry in entries_of(5000):
        given_out += len(builder.add(entry))
    manifest, rest = builder.finish()
    assert given_out > 0
    assert manifest.level == 2
    assert 1 <= len(rest) <= 2


def test_an_empty_content_has_an_empty_manifest() -> None:
    assert build([]) == (EMPTY, {})
    assert EMPTY.size == 0
    assert EMPTY.encode() == b"\x01\x01\x00\x00"


def test_a_manifest_is_laid_out_as_it_always_was() -> None:
    digest = digest_of(b"abc")
    assert Manifest(0, ((digest, 3),)).encode() == (
        b"\x01\x01\x00\x01" + digest + b"\x03\0\0\0\0\0\0\0"
    )
    _, pages = build(uncut(17))
    [page] = pages.values()
    assert page.data[:12] == b"VFMP\x01\x01\x01\0" + b"\x11\0\0\0"
    assert page.digest == digest_of(page.data)
    assert page.size == 17


# Damage


def test_a_manifest_has_its_bounds() -> None:
    for level, count in ((0, INLINE_ENTRIES + 1), (1, 2), (9, 1), (-1, 0)):
        with pytest.raises(Corrupt):
            Manifest(level, tuple(uncut(count)))


def test_a_damaged_manifest_is_refused_or_another() -> None:
    data = Manifest(0, tuple(uncut(3))).encode()
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            Manifest.decode(data[:size])
    with pytest.raises(Corrupt):
        Manifest.decode(data + b"\0")
    with pytest.raises(Unsupported):
        Manifest.decode(b"\x02" + data[1:])


def test_a_damaged_page_is_refused() -> None:
    _, pages = build(uncut(20))
    [page] = pages.values()
    data = page.data
    assert len(parse_page(data, level=1, size=20)) == 20
    for size in (*range(50), *range(len(data) - 50, len(data))):
        with pytest.raises(Corrupt):
            parse_page(data[:size], level=1, size=20)
    for level, size in ((2, 20), (0, 20), (1, 19), (1, 21)):
        with pytest.raises(Corrupt):
            parse_page(data, level=level, size=size)
    for at in (0, 1, 2, 3, 5, 8, 9, 10, 11, 44, 51):  # magic, level, count, sizes
        damaged = bytearray(data)
        damaged[at] ^= 0x80
        with pytest.raises(Corrupt):
            parse_page(damaged, level=1, size=20)
    with pytest.raises(Unsupported):
        parse_page(data[:4] + b"\x02" + data[5:], level=1, size=20)
    with pytest.raises(Corrupt):
        parse_page(bytes(MAX_PAGE_BYTES + 1), level=1, size=0)


# Ranges


@given(st.lists(st.integers(0, 9), max_size=10), st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None, max_examples=200)
def test_what_overlaps_a_range(sizes: list[int], start: int, stop: int) -> None:
    entries = tuple((Digest(bytes([n]) * 32), size) for n, size in enumerate(sizes))
    found = list(overlapping(entries, start, stop))
    content = [n for n, size in enumerate(sizes) for _ in range(size)]
    expected = dict.fromkeys(content[start:stop])
    if start < stop:
        assert [digest[0] for _, (digest, size) in found if size] == list(expected)
    for at, (digest, size) in found:
        assert at == sum(sizes[: digest[0]])
        assert size == sizes[digest[0]]

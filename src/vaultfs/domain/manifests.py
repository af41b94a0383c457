"""Manifests: which chunks, in which order, make up a content.

A manifest of up to 16 chunks is the list itself and stands in the version's row.
A longer one is a tree of pages: an entry is (digest, bytes under it), a page of
level 1 lists chunks, one of level n + 1 lists pages of level n, until one page is
left. Pages are chunks like any other. A page is cut where the digest of its last
entry says so (as the cut points of contents are, and for the same reason), so two
versions of a large file share all pages but those around a change.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import frozen

from vaultfs.domain.chunks import DEFAULT_CHUNKING
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported

Entry = tuple[Digest, int]
"""A chunk or page, and how many bytes of content are under it. A plain tuple: a
terabyte has six million of them."""

INLINE_ENTRIES: Final = 16
"""A manifest of at most this many chunks needs no page."""
MIN_PAGE: Final = 256
MAX_PAGE: Final = 4096
_CUT_ONE_IN: Final = 768
"""Behind the minimum one entry in so many ends a page: 1,024 entries in the mean."""
MAX_LEVEL: Final = 8

FORMAT: Final = 1
_MANIFEST = struct.Struct("<BBBB")
_PAGE = struct.Struct("<4sBBBxI")
_ENTRY = struct.Struct("<32sQ")
_MAGIC = b"VFMP"

MAX_PAGE_BYTES: Final = _PAGE.size + MAX_PAGE * _ENTRY.size


@frozen
class Manifest:
    """A content: its chunks (`level` 0), or the one page that leads to them.

    `level` counts the pages between the root and a chunk.
    """

    level: int
    entries: tuple[Entry, ...]
    chunker: int = DEFAULT_CHUNKING.id

    def __attrs_post_init__(self) -> None:
        least, most = (1, 1) if self.level else (0, INLINE_ENTRIES)
        if not 0 <= self.level <= MAX_LEVEL or not least <= len(self.entries) <= most:
            raise Corrupt(f"a manifest of level {self.level} has {len(self.entries)} entries")

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(size for _, size in self.entries)

    def encode(self) -> bytes:
        """The bytes that a version's row keeps."""
        head = _MANIFEST.pack(FORMAT, self.chunker, self.level, len(self.entries))
        return head + pack_entries(self.entries)

    @staticmethod
    def decode(data: Buffer) -> "Manifest":
        """Raises `Corrupt` or `Unsupported`."""
        if len(data) < _MANIFEST.size:
            raise Corrupt("a manifest is cut short")
        form, chunker, level, count = _MANIFEST.unpack_from(data)
        if form != FORMAT:
            raise Unsupported(f"manifest format {form} is of a newer release: upgrade vaultfs")
        return Manifest(level, _entries(data, _MANIFEST.size, count), chunker)


EMPTY = Manifest(0, ())


@frozen
class Page:
    """One page of a manifest as it is stored."""

    digest: Digest
    data: bytes
    size: int
    """Bytes of content under it."""


def _entries(data: Buffer, start: int, count: int) -> tuple[Entry, ...]:
    if len(data) != start + count * _ENTRY.size:
        raise Corrupt(f"{count} manifest entries do not take {len(data) - start} bytes")
    return tuple(_ENTRY.iter_unpack(memoryview(data)[start:]))


def parse_page(data: Buffer, *, level: int, size: int) -> tuple[Entry, ...]:
    """The entries of a page that is to have `level` and `size` bytes under it.

    Raises `Corrupt` or `Unsupported`.
    """
    if len(data) < _PAGE.size or len(data) > MAX_PAGE_BYTES:
        raise Corrupt(f"a manifest page cannot have {len(data)} bytes")
    magic, form, found, _, count = _PAGE.unpack_from(data)
    if magic != _MAGIC:
        raise Corrupt("a manifest page does not begin as one does")
    if form != FORMAT:
        raise Unsupported(f"page format {form} is of a newer release: upgrade vaultfs")
    entries = _entries(data, _PAGE.size, count)
    if found != level or sum(length for _, length in entries) != size:
        raise Corrupt("a manifest page is of another level or size than its parent says")
    return entries


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """`entries` as a page has them, without its head."""
    return b"".join(_ENTRY.pack(digest, size) for digest, size in entries)


def unpack_entries(data: Buffer) -> list[Entry]:
    """The opposite of `pack_entries`."""
    return list(_ENTRY.iter_unpack(data))


def _encode_page(level: int, chunker: int, entries: list[Entry]) -> Page:
    head = _PAGE.pack(_MAGIC, FORMAT, level, chunker, len(entries))
    data = head + pack_entries(entries)
    return Page(digest_of(data), data, sum(size for _, size in entries))


class ManifestBuilder:
    """Makes a manifest of chunks that come one after another; holds a few pages at most.

    `add` and `finish` return the pages that became complete, which the caller stores.
    The manifest depends on the list of chunks alone.
    """

    def __init__(self, chunker: int = DEFAULT_CHUNKING.id) -> None:
        self._chunker = chunker
        self._levels: list[list[Entry]] = [[]]
        """`[n]` is what the unfinished page of level n + 1 holds so far."""
        self._paged = [False]
        """`[n]`: whether level n + 1 has finished a page already."""

    def add(self, entry: Entry) -> list[Page]:
        """The pages that `entry` completed, lowest level first; mostly none."""
        pages: list[Page] = []
        index = 0
        while True:
            level = self._levels[index]
            level.append(entry)
            if not _page_ends(entry[0], len(level)):
                return pages
            page = self._close(index)
            pages.append(page)
            entry, index = (page.digest, page.size), index + 1

    def add_all(self, entries: Iterable[Entry]) -> list[Page]:
        """The same for several, one after another."""
        return [page for entry in entries for page in self.add(entry)]

    def _close(self, index: int) -> Page:
        """Finish the page under way at `index`."""
        page = _encode_page(index + 1, self._chunker, self._levels[index])
        self._levels[index], self._paged[index] = [], True
        if index + 1 == len(self._levels):
            self._levels.append([])
            self._paged.append(False)
        return page

    def finish(self) -> tuple[Manifest, list[Page]]:
        """The manifest, and the pages not yet returned. The builder is spent."""
        if not self._paged[0] and len(self._levels[0]) <= INLINE_ENTRIES:
            return Manifest(0, tuple(self._levels[0]), self._chunker), []
        pages: list[Page] = []
        index = 0
        while True:
            level = self._levels[index]
            if index and not self._paged[index] and len(level) == 1:
                return Manifest(index, (level[0],), self._chunker), pages
            if level:
                page = self._close(index)
                pages.append(page)
                self._levels[index + 1].append((page.digest, page.size))
            index += 1


def _page_ends(digest: Digest, count: int) -> bool:
    """Whether a page ends behind its entry number `count`, which has this digest."""
    if count < MIN_PAGE:
        return False
    return count >= MAX_PAGE or int.from_bytes(digest[:4], "little") % _CUT_ONE_IN == 0


def overlapping(entries: tuple[Entry, ...], start: int, stop: int) -> Iterator[tuple[int, Entry]]:
    """The entries that hold bytes of `start` to `stop`, each with its own first offset.

    Offsets are relative to the first entry's first byte.
    """
    at = 0
    for entry in entries:
        if at >= stop:
            return
        if at + entry[1] > start:
            yield at, entry
        at += entry[1]

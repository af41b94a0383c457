"""Bytes as chunks: cut, hashed and compressed. CPU work, for threads if it is much."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attrs import define

from vaultfs.domain.chunks import DEFAULT_CHUNKING, Chunker
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.manifests import INLINE_ENTRIES, Manifest, Page
from vaultfs.domain.packs import Kind, StoredChunk, encode_chunks, raw_chunk

SMALL: Final = INLINE_ENTRIES * DEFAULT_CHUNKING.minimum
"""A content of so many bytes never needs a page: it is taken in whole."""
TRY_EVERY: Final = 16
"""Of chunks of a stream that does not compress, one in so many is tried again."""
GIVE_UP_AFTER: Final = 8
"""So many chunks in a row that did not shrink mean that a stream does not compress."""


class Cut(NamedTuple):
    """A chunk: its digest and its bytes."""

    digest: Digest
    data: Buffer
    kind: Kind = Kind.DATA


@define
class Compressibility:
    """Whether it is worth trying to compress the chunks of a stream."""

    failures: int = 0
    """Chunks in a row that did not shrink by at least a sixteenth."""
    skipped: int = 0

    def worth_it(self) -> bool:
        """Asked once for each chunk."""
        if self.failures < GIVE_UP_AFTER:
            return True
        self.skipped += 1
        return self.skipped % TRY_EVERY == 0

    def learn(self, chunk: StoredChunk) -> None:
        """What came of a try."""
        shrank = len(chunk.stored) < chunk.length - chunk.length // 16
        self.failures = 0 if shrank else self.failures + 1


def encode(
    chunks: Sequence[Cut], stream: Compressibility, *, prove: bool = True
) -> list[StoredChunk]:
    """`chunks` as they go into a pack. CPU work: call it in a thread.

    Without `prove` for one who verifies them before they do, as `Intake` and uploads do.
    """
    tried = [stream.worth_it() for _ in chunks]
    worthy = [cut for cut, worth in zip(chunks, tried, strict=True) if worth]
    encoded = iter(encode_chunks(worthy, prove=prove))
    stored: list[StoredChunk] = []
    for cut, worth in zip(chunks, tried, strict=True):
        if worth:
            stored.append(next(encoded))
            stream.learn(stored[-1])
        else:
            stored.append(raw_chunk(*cut))
    return stored


def cut_piece(chunker: Chunker, data: memoryview, *, last: bool) -> tuple[list[Cut], memoryview]:
    """The chunks at the head of `data`, and what is left uncut."""
    cuts: list[Cut] = []
    at = 0
    for length in chunker.cut(data, last=last):
        part = data[at : at + length]
        cuts.append(Cut(digest_of(part), part))
        at += length
    return cuts, data[at:]


def cut_each(contents: Sequence[bytes]) -> list[tuple[list[Cut], Digest]]:
    """For each content its chunks and its own digest."""
    chunker = Chunker()
    return [cut_content(data, chunker) for data in contents]


def cut_content(data: bytes, chunker: Chunker) -> tuple[list[Cut], Digest]:
    """The chunks of a whole content, and its own digest."""
    cuts, _ = cut_piece(chunker, memoryview(data), last=True)
    # The digest of a content of one chunk is the chunk's.
    return cuts, cuts[0].digest if len(cuts) == 1 else digest_of(data)


def manifest_of(cuts: Sequence[Cut]) -> Manifest:
    """The manifest of a content that is too small to need pages."""
    return Manifest(0, tuple((cut.digest, len(cut.data)) for cut in cuts))


def as_cuts(pages: Sequence[Page]) -> list[Cut]:
    """Pages of a manifest as the chunks that they are."""
    return [Cut(page.digest, page.data, Kind.PAGE) for page in pages]

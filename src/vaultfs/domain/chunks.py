"""Cutting contents into chunks, by content.

FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
Deduplication Based Storage Systems", IEEE TPDS 31(9)) through `pyfastcdc`. Cut
points depend on the bytes since the cut before and on nothing else, so cutting
can be resumed at any cut. A chunker's parameters never change once released:
they are named by an id that every manifest keeps.
"""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Unsupported

KIB = 1 << 10
MAX_CHUNK: Final = 1 << 20
"""No chunk of any chunker has more bytes than this: what a reader must be ready to hold."""


@frozen
class Chunking:
    """The parameters that decide where contents are cut; sizes in bytes."""

    id: int
    minimum: int
    average: int
    maximum: int


DEFAULT_CHUNKING = Chunking(1, 32 * KIB, 128 * KIB, 512 * KIB)
"""Chunks of 160 KiB in the mean (`docs/decisions/0002-chunk-size.md`)."""

CHUNKINGS = {DEFAULT_CHUNKING.id: DEFAULT_CHUNKING}


def chunking(number: int) -> Chunking:
    """The parameters named `number`. Raises `Unsupported` for one this release lacks."""
    try:
        return CHUNKINGS[number]
    except KeyError:
        raise Unsupported(f"chunker {number} is of a newer release: upgrade vaultfs") from None


class Chunker:
    """Cuts one content; used by one thread at a time (`FastCDC` keeps state while it cuts)."""

    def __init__(self, chunking: Chunking = DEFAULT_CHUNKING) -> None:
        from pyfastcdc import FastCDC  # noqa: PLC0415 its import takes 30 ms; readers cut nothing

        self.chunking = chunking
        self._fastcdc = FastCDC(
            chunking.average, min_size=chunking.minimum, max_size=chunking.maximum
        )

    def cut(self, data: Buffer, *, last: bool) -> list[int]:
        """The lengths of the chunks at the head of `data`, which begins at a cut.

        Unless these are the `last` bytes, what might still grow is left uncut:
        put it in front of the bytes that follow. At most `maximum` bytes are left.
        """
        if len(data) <= self.chunking.minimum:
            return [len(data)] if last and len(data) else []
        lengths = [chunk.length for chunk in self._fastcdc.cut_buf(data)]
        if not last:
            lengths.pop()
        return lengths

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The chunks of a whole content."""
        at = 0
        for length in self.cut(data, last=True):
            yield data[at : at + length]
            at += length

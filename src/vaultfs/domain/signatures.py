"""Signatures: what a content is made of, told to somebody who has another one.

A unit is a chunk, or a piece of about 4 KiB or half a KiB or less that is cut by content inside
a range: its length, and the first bytes of its digest. So a client that has only the new file
finds out which of its bytes the server has. Short digests may lead it astray once in a
great while; the digest of the whole, which the server computes itself, tells.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from vaultfs.domain.chunks import Chunker, Chunking
from vaultfs.domain.digests import Buffer, digest_of
from vaultfs.domain.errors import Corrupt

SHORT: Final = 8
"""Bytes of a chunk's digest that are told."""
SHORTER: Final = 5
"""And of a piece's: with its length, some 48 bits."""
MOST_RANGES: Final = 4096
"""That pieces are asked of with one request."""
FINEST: Final = Chunking(0, 64, 256, 2 << 10)
FINE: Final = Chunking(0, 128, 512, 4 << 10)
MEDIUM: Final = Chunking(0, 1 << 10, 4 << 10, 32 << 10)
"""How ranges are cut; no manifest names it."""
PIECES: Final = {each.average: each for each in (FINEST, FINE, MEDIUM)}
_UNIT = struct.Struct(f"<I{SHORT}s")
_PIECE = struct.Struct(f"<H{SHORTER}s")

Unit = tuple[bytes, int]
"""A short digest, and the length of what has it."""


def write_units(units: Iterable[tuple[bytes, int]]) -> bytes:
    """Units as they travel, 12 bytes each; digests are cut short."""
    return b"".join(_UNIT.pack(length, digest[:SHORT]) for digest, length in units)


def read_units(data: Buffer) -> list[Unit]:
    """The opposite. Raises `Corrupt`."""
    if len(data) % _UNIT.size:
        raise Corrupt("a signature is cut short")
    return [(digest, length) for length, digest in _UNIT.iter_unpack(data)]


def pieces_of(data: bytes, cut: Chunking = FINE) -> Sequence[Unit]:
    """The pieces of a range. CPU work."""
    return [(digest_of(piece)[:SHORTER], len(piece)) for piece in Chunker(cut).pieces(data)]


def write_pieces(pieces: Iterable[Unit]) -> bytes:
    """Pieces as they travel, 7 bytes each: there are many, and they are short."""
    return b"".join(_PIECE.pack(length, digest) for digest, length in pieces)


def read_pieces(data: Buffer) -> list[Unit]:
    """The opposite. Raises `Corrupt`."""
    if len(data) % _PIECE.size:
        raise Corrupt("a signature is cut short")
    return [(digest, length) for length, digest in _PIECE.iter_unpack(data)]

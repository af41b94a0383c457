"""Packs: immutable objects of many chunks that describe themselves.

    head | chunk header, stored bytes | chunk header, stored bytes | ... | table | tail

The table at the end repeats every header, so that one ranged read indexes a
pack; the headers let a scan salvage a pack whose end is gone. `docs/format.md`
gives every byte. A pack's key is the BLAKE3 digest of all its bytes.

This module knows bytes, not stores: which pack a chunk goes to, and when a pack
is sealed, is decided by `domain.services.packer`.
"""

import struct
from collections.abc import Iterable, Iterator, KeysView, Sequence
from contextlib import suppress
from enum import IntEnum
from threading import local
from typing import Final, NamedTuple

import zstandard
from attrs import field, frozen

from vaultfs.domain.chunks import MAX_CHUNK
from vaultfs.domain.digests import Buffer, Digest, digest_of, digest_of_parts
from vaultfs.domain.errors import Corrupt, Unsupported

MIB = 1 << 20
PACK_TARGET: Final = 16 * MIB
"""A pack that has reached this many bytes is sealed."""
MAX_PACK: Final = 32 * MIB
"""No pack is larger; a reader refuses one that is."""
MAX_ENTRIES: Final = 1 << 16
"""No pack has more chunks, so that its table fits in memory: 3 MiB."""

FORMAT: Final = 1
NO_CIPHER: Final = 0

_HEAD = struct.Struct("<4sB3x")
_CHUNK = struct.Struct("<4sBBBB32sII")
_ENTRY = struct.Struct("<32sIIIBBBx")
_TAIL = struct.Struct("<32sIIB3x4s")

HEAD_SIZE: Final = _HEAD.size
HEADER_SIZE: Final = _CHUNK.size
ENTRY_SIZE: Final = _ENTRY.size
TAIL_SIZE: Final = _TAIL.size
CHUNK_EXTRA: Final = HEADER_SIZE + ENTRY_SIZE
"""Bytes that a chunk takes in a pack besides its own."""
PACK_EXTRA: Final = HEAD_SIZE + TAIL_SIZE
"""Bytes of a pack without chunks."""

_HEAD_MAGIC, _CHUNK_MAGIC, _TAIL_MAGIC = b"VFPK", b"VFCH", b"VFPE"

_ZSTD: Final = zstandard.ZstdCompressionParameters.from_level(  # pyright: ignore[reportUnknownMemberType]
    1, source_size=MAX_CHUNK, min_match=7, hash_log=15
)
"""Level 1, but for longer matches: a tenth faster on text, and no larger."""


LARGE: Final = 64 << 10
"""Chunks of so many bytes in the mean are proved one by one."""


class Codec(IntEnum):
    """How a chunk's bytes are stored."""

    RAW = 0
    ZSTD = 1


class Kind(IntEnum):
    """What a chunk's bytes are, for a person who looks at a pack; readers know already."""

    DATA = 0
    PAGE = 1


class StoredChunk(NamedTuple):
    """A chunk as it goes into a pack: `stored` is `length` bytes of content, encoded."""

    digest: Digest
    length: int
    codec: Codec
    kind: Kind
    stored: Buffer


class PackEntry(NamedTuple):
    """Where a chunk is in its pack: `offset` is that of its header, `size` that of its
    stored bytes behind it, `length` that of its content.
    """

    digest: Digest
    offset: int
    size: int
    length: int
    codec: Codec
    kind: Kind


@frozen
class SealedPack:
    """A finished pack: its bytes, their digests, and what is where in them."""

    key: Digest
    size: int
    parts: tuple[Buffer, ...] = field(repr=lambda parts: f"<{len(parts)} parts>")
    """Its bytes, as they were added, not copied."""
    crc32c: int
    entries: tuple[PackEntry, ...]


class _Coders(local):
    """A compressor and decompressor a thread: both are reusable, neither is shareable."""

    def __init__(self) -> None:
        compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
        decompressor = zstandard.ZstdDecompressor(max_window_size=4 * MAX_CHUNK)
        self.compress = compressor.multi_compress_to_buffer
        self.expand = decompressor.multi_decompress_to_buffer
        self.decompress = decompressor.decompress
        self.read = decompressor.stream_reader
        self.scratch = bytearray()


_coders = _Coders()

Piece = tuple[Digest, Buffer, Kind]
"""A chunk of content: its digest, its bytes, and what they are."""


def encode_chunks(pieces: Sequence[Piece], *, prove: bool = True) -> list[StoredChunk]:
    """`pieces` compressed and proved to decompress to themselves, or raw where that is no longer.

    None of them is empty. All in one call: for small chunks the interpreter's lock costs as
    much as the work. Without `prove` somebody else has to, before a pack is sealed.
    """
    if not pieces:
        return []
    frames = _segments(_coders.compress([data for _, data, _ in pieces]))
    goods = _proved(pieces, frames) if prove else [True] * len(frames)
    chunks: list[StoredChunk] = []
    for (digest, data, kind), frame, good in zip(pieces, frames, goods, strict=True):
        if good and len(frame) < len(data):
            chunks.append(StoredChunk(digest, len(data), Codec.ZSTD, kind, frame))
        else:
            chunks.append(raw_chunk(digest, data, kind))
    return chunks


def _segments(results: zstandard.BufferWithSegmentsCollection) -> list[bytes]:
    """`results`, copied out of the one block of memory that has room for the worst case."""
    return [results[index].tobytes() for index in range(len(results))]


def _proved(pieces: Sequence[Piece], frames: Sequence[bytes]) -> list[bool]:
    """Which of `frames` decompress to their pieces; not said of those that are no shorter."""
    if sum(len(data) for _, data, _ in pieces) < LARGE * len(pieces):
        given: list[Buffer] = [*frames]
        with suppress(zstandard.ZstdError, ValueError):  # which it is, is found one by one
            proofs = _coders.expand(given)
            return [  # each copy is gone when the next is made, and costs next to nothing
                len(data) == len(proofs[index]) and proofs[index].tobytes().startswith(data)
                for index, (_, data, _) in enumerate(pieces)
            ]
    return [
        len(frame) < len(data) and _holds(frame, data)
        for (_, data, _), frame in zip(pieces, frames, strict=True)
    ]


def _holds(frame: bytes, data: Buffer) -> bool:
    """Whether `frame` decompresses to `data`; into memory that is used again each time.

    For large chunks fresh memory would cost more than decompressing; for small ones this
    call for each would.
    """
    scratch = _coders.scratch
    if len(scratch) <= len(data):
        scratch = _coders.scratch = bytearray(len(data) + 1)
    try:
        size = _coders.read(frame).readinto(scratch)  # pyright: ignore[reportUnknownMemberType]
    except zstandard.ZstdError:
        return False
    # `startswith` compares memory; `==` of a view would go byte by byte.
    return size == len(data) and scratch.startswith(data)


def encode_chunk(digest: Digest, data: Buffer, kind: Kind = Kind.DATA) -> StoredChunk:
    """One chunk as `encode_chunks` encodes it."""
    return encode_chunks([(digest, data, kind)])[0] if data else raw_chunk(digest, data, kind)


def raw_chunk(digest: Digest, data: Buffer, kind: Kind = Kind.DATA) -> StoredChunk:
    """`data` as it is, not copied."""
    return StoredChunk(digest, len(data), Codec.RAW, kind, data)


def decode_chunk(pack_part: Buffer, digest: Digest) -> Buffer:
    """The content of the chunk whose header and stored bytes are `pack_part`, verified.

    Never takes more memory than the header claims, and that is bounded. Raises
    `Corrupt` for anything but the chunk `digest`, `Unsupported` for a format,
    cipher or codec of a newer release.
    """
    codec, _, found, length, size = _parse_header(pack_part, 0)
    stored = memoryview(pack_part)[HEADER_SIZE:]
    if found != digest or size != len(stored):
        raise Corrupt(f"another chunk stands where {digest.hex()} should be")
    data = _decode(codec, stored, length)
    if digest_of(data) != digest:
        raise Corrupt(f"the bytes of chunk {digest.hex()} do not have its digest")
    return data


def read_chunk(data: Buffer, at: int) -> tuple[StoredChunk, int] | None:
    """The chunk whose header is at `at`, a view of `data`, and where what follows it begins.

    None if its end is not in `data`. Nothing is verified but the header's own bounds: see
    `contents_of`. Raises `Corrupt`, `Unsupported`.
    """
    if len(data) - at < HEADER_SIZE:
        return None
    codec, kind, digest, length, size = _parse_header(data, at)
    start, stop = at + HEADER_SIZE, at + HEADER_SIZE + size
    if len(data) < stop:
        return None
    return StoredChunk(digest, length, codec, kind, memoryview(data)[start:stop]), stop


def contents_of(chunks: Sequence[StoredChunk]) -> list[Buffer]:
    """The content of each of `chunks`, verified; in one go, for the reason of `encode_chunks`.

    Takes as much memory as their lengths together, which the caller bounds. Raises `Corrupt`.
    """
    framed = [chunk for chunk in chunks if chunk.codec is Codec.ZSTD]
    try:
        for chunk in framed:
            if zstandard.frame_content_size(chunk.stored) != chunk.length:
                raise Corrupt("a zstd frame does not hold what the chunk's header says")
        results = _coders.expand([chunk.stored for chunk in framed]) if framed else ()
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame is damaged: {error}") from error
    expanded = iter(results[index].tobytes() for index in range(len(results)))
    contents: list[Buffer] = []
    for chunk in chunks:
        data = chunk.stored if chunk.codec is Codec.RAW else next(expanded)
        if len(data) != chunk.length or digest_of(data) != chunk.digest:
            raise Corrupt(f"the bytes of chunk {chunk.digest.hex()} do not have its digest")
        contents.append(data)
    return contents


def _decode(codec: Codec, stored: memoryview, length: int) -> Buffer:
    if codec is Codec.RAW:
        if len(stored) != length:
            raise Corrupt(f"a raw chunk of {length} bytes has {len(stored)} stored ones")
        return stored
    try:
        if zstandard.frame_content_size(stored) != length:
            raise Corrupt("a zstd frame does not hold what the chunk's header says")
        return _coders.decompress(stored, max_output_size=length)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame is damaged: {error}") from error


def _parse_header(data: Buffer, at: int) -> tuple[Codec, Kind, Digest, int, int]:
    """Codec, kind, digest, length and stored size of the chunk header at `at`."""
    if len(data) - at < HEADER_SIZE:
        raise Corrupt("a chunk header is cut short")
    magic, form, cipher, codec, kind, digest, length, size = _CHUNK.unpack_from(data, at)
    if magic != _CHUNK_MAGIC:
        raise Corrupt("no chunk header stands where one should")
    _check_known(form, cipher)
    if length > MAX_CHUNK or size > MAX_CHUNK:
        raise Corrupt(f"a chunk claims {max(length, size)} bytes; {MAX_CHUNK} is the most")
    return _codec(codec), _kind(kind), Digest(digest), length, size


def _check_known(form: int, cipher: int) -> None:
    if form != FORMAT:
        raise Unsupported(f"pack format {form} is of a newer release: upgrade vaultfs")
    if cipher != NO_CIPHER:
        raise Unsupported(f"cipher {cipher} is not known to this release: upgrade vaultfs")


def _codec(number: int) -> Codec:
    try:
        return Codec(number)
    except ValueError:
        raise Unsupported(f"codec {number} is of a newer release: upgrade vaultfs") from None


def _kind(number: int) -> Kind:
    return Kind.PAGE if number == Kind.PAGE else Kind.DATA


class PackBuilder:
    """Collects chunks; holds references to their stored bytes, not copies, until sealed."""

    def __init__(self) -> None:
        self._parts: list[Buffer] = [_HEAD.pack(_HEAD_MAGIC, FORMAT)]
        self._entries: list[PackEntry] = []
        self._indexes: dict[Digest, int] = {}
        self.size = HEAD_SIZE + TAIL_SIZE
        """Bytes that the pack would have if it were sealed now."""

    def __len__(self) -> int:
        """Chunks in it."""
        return len(self._entries)

    def index(self, digest: Digest) -> int:
        """The place of the chunk `digest` among the entries."""
        return self._indexes[digest]

    @property
    def digests(self) -> KeysView[Digest]:
        """Of the chunks in it."""
        return self._indexes.keys()

    @property
    def full(self) -> bool:
        """Whether it is to be sealed before anything more is added."""
        return self.size >= PACK_TARGET or len(self._entries) >= MAX_ENTRIES

    def add(self, chunk: StoredChunk) -> None:
        """Put `chunk` last. A pack that is not `full` always has room for one more."""
        self._indexes[chunk.digest] = len(self._entries)
        offset = self.size - TAIL_SIZE - ENTRY_SIZE * len(self._entries)
        size = len(chunk.stored)
        entry = PackEntry(chunk.digest, offset, size, chunk.length, chunk.codec, chunk.kind)
        self._parts += (header_of(entry), chunk.stored)
        self._entries.append(entry)
        self.size += HEADER_SIZE + size + ENTRY_SIZE

    def seal(self, room: memoryview | None = None) -> SealedPack:
        """The finished pack; the builder is spent. CPU work: call it in a thread.

        Its bytes are gathered in `room` if they fit, and the chunks let go of.
        """
        entries = tuple(self._entries)
        table = b"".join(
            _ENTRY.pack(e.digest, e.offset, e.size, e.length, e.codec, NO_CIPHER, e.kind)
            for e in entries
        )
        tail = _TAIL.pack(
            digest_of(table), len(entries), self.size - len(table) - TAIL_SIZE, FORMAT, _TAIL_MAGIC
        )
        parts = (*self._parts, table, tail)
        self._parts.clear()
        if room is not None and self.size <= len(room):
            parts = (_gathered(parts, room[: self.size]),)
        return SealedPack(digest_of_parts(parts), self.size, parts, crc32c_of(parts), entries)


def _gathered(parts: Iterable[Buffer], room: memoryview) -> memoryview:
    """`room`, filled with `parts`: what then takes one piece needs the interpreter's lock once."""
    at = 0
    for part in parts:
        room[at : at + len(part)] = part
        at += len(part)
    return room


def header_of(entry: PackEntry) -> bytes:
    """The header that stands before the chunk of `entry`."""
    return _CHUNK.pack(
        *(_CHUNK_MAGIC, FORMAT, NO_CIPHER, entry.codec, entry.kind),
        *(entry.digest, entry.length, entry.size),
    )


def check_head(head: Buffer) -> None:
    """Raises `Corrupt` or `Unsupported` unless a pack begins with `head`."""
    if len(head) != HEAD_SIZE or bytes(head[:4]) != _HEAD_MAGIC:
        raise Corrupt("a pack does not begin as a pack does")
    _check_known(head[4], NO_CIPHER)
    if bytes(head) != _HEAD.pack(_HEAD_MAGIC, FORMAT):
        raise Corrupt("a pack does not begin as a pack does")


def crc32c_of(parts: Iterable[Buffer]) -> int:
    """CRC-32C (Castagnoli), which object stores can give back without a download."""
    from crc32c import crc32c  # noqa: PLC0415 its import takes 40 ms, and only writers need it

    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value


def table_span(tail: Buffer, pack_size: int) -> tuple[int, int]:
    """Where the table of a pack of `pack_size` bytes stands, from its last `TAIL_SIZE` bytes.

    Raises `Corrupt` or `Unsupported`.
    """
    if len(tail) != TAIL_SIZE or not HEAD_SIZE + TAIL_SIZE <= pack_size <= MAX_PACK:
        raise Corrupt(f"a pack of {pack_size} bytes is too short or too long")
    _, count, start, form, magic = _TAIL.unpack(tail)
    if magic != _TAIL_MAGIC:
        raise Corrupt("a pack does not end as a pack does: it is cut short or damaged")
    _check_known(form, NO_CIPHER)
    stop = pack_size - TAIL_SIZE
    if start + count * ENTRY_SIZE != stop or count > MAX_ENTRIES or start < HEAD_SIZE:
        raise Corrupt("a pack's table is not where its tail says")
    return start, stop


def parse_table(table: Buffer, tail: Buffer) -> tuple[PackEntry, ...]:
    """The entries of a pack. Raises `Corrupt` or `Unsupported`."""
    if digest_of(table) != _TAIL.unpack(tail)[0]:
        raise Corrupt("a pack's table does not have its digest")
    return tuple(_entries(table))


def _entries(table: Buffer) -> Iterator[PackEntry]:
    for digest, offset, size, length, codec, cipher, kind in _ENTRY.iter_unpack(table):
        _check_known(FORMAT, cipher)
        yield PackEntry(Digest(digest), offset, size, length, _codec(codec), _kind(kind))


def parse_pack(data: Buffer) -> tuple[PackEntry, ...]:
    """The entries of a whole pack. Raises `Corrupt` or `Unsupported`."""
    tail = data[max(0, len(data) - TAIL_SIZE) :]
    start, stop = table_span(tail, len(data))
    return parse_table(data[start:stop], tail)


def scan_pack(data: Buffer) -> Iterator[PackEntry]:
    """The entries that headers alone give, up to the first that is not one.

    For a pack whose end is lost; nothing is verified but the headers' own bounds.
    """
    at = HEAD_SIZE
    while len(data) - at >= HEADER_SIZE:
        try:
            codec, kind, digest, length, size = _parse_header(data, at)
        except (Corrupt, Unsupported):
            return
        if at + HEADER_SIZE + size > len(data):
            return
        yield PackEntry(digest, at, size, length, codec, kind)
        at += HEADER_SIZE + size

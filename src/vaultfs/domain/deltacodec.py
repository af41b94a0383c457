"""Deltas on the wire: `docs/format.md`, "Deltas", has every byte.

    header | block | block | ... | end

A block lays out a stretch of the target, in steps: copies of the base, differences to
bytes of the base, literals. Its literals are one zstd frame, compressed against a prefix
that both sides take from the base: of each region that the block names, what no copy or
difference of the block has used. So what was edited is compressed with what was there
before. A block is bounded, and so is the memory of both sides; its checksum is compared
before anything in it is looked at.

This is zstd's `--patch-from` for one block (RFC 8878, and zstd's manual on prefixes), with
long-distance matching.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from attrs import define

from vaultfs.domain.deltas import MAX_SIZE, Copy, Literal, Varints, write_varint, zigzag
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported
from vaultfs.domain.matching import Difference, FineStep

FORMAT: Final = 1
IMAGES: Final = 2
"""The format of a delta between images of zip files: see `domain.zipimages`."""
MAX_CODES: Final = 1 << 16
MEDIA_TYPE: Final = "application/vnd.vaultfs.delta"
MAGIC: Final = b"VFDL"
CHECK: Final = 8
"""Bytes of the digests of base and target that a header has."""
BLOCK_CHECK: Final = 4
MAX_BYTES: Final = 16 << 20
"""Bytes of literals, and of differences, in a block."""
MAX_NUMBERS: Final = 1 << 20
"""Bytes of a block's steps."""
MOST_PARTS: Final = 100_000
"""Steps of a block, for who writes one: they take less than `MAX_NUMBERS` then."""
MAX_PREFIX: Final = 16 << 20
MAX_HEAD: Final = 1 + 6 * 9 + BLOCK_CHECK
LEAST_PREFIX: Final = 8
"""zstd takes none that is shorter."""
_BLOCK, _END = ord("B"), ord("E")
_LITERAL, _COPY, _DIFFERENCE, _REGION = range(4)
_WINDOW_LOG: Final = 25
LEVELS: Final = ((256 << 10, 12), (4 << 20, 9), (1 << 62, 3))
"""Up to so many bytes, literals and a quarter of their prefix: this level of zstd."""


class Header(NamedTuple):
    """What a delta is between."""

    base_size: int
    target_size: int
    base: bytes
    """The first bytes of the digest."""
    target: bytes

    @staticmethod
    def of(base_size: int, base: Digest, target_size: int, target: Digest) -> "Header":
        return Header(base_size, target_size, base[:CHECK], target[:CHECK])


class Region(NamedTuple):
    """Bytes of the base that are worth comparing literals with."""

    at: int
    length: int


Part = FineStep | Region


class Block(NamedTuple):
    """A stretch of the target; `changes` and `literals` are those of its steps, in order."""

    parts: tuple[Part, ...]
    changes: bytes
    literals: bytes


ReadBase = Callable[[int, int], bytes]
"""The bytes of the base from one offset to another."""


def write_header(header: Header, form: int = FORMAT) -> bytes:
    """The head of a stream."""
    sizes = write_varint(header.base_size) + write_varint(header.target_size)
    return MAGIC + bytes([form]) + sizes + header.base + header.target


def _read_header(data: bytes) -> tuple[Header, int] | None:
    """The head of a stream of either format, and where it ends; None if there is more to come."""
    numbers = _try_numbers(data[len(MAGIC) + 1 :], 2)
    if numbers is None:
        return None
    (base_size, target_size), at = numbers
    at += len(MAGIC) + 1
    if len(data) < at + 2 * CHECK:
        return None
    if max(base_size, target_size) > MAX_SIZE:
        raise Corrupt("no content is as large as a delta says")
    base, target = data[at : at + CHECK], data[at + CHECK : at + 2 * CHECK]
    return Header(base_size, target_size, base, target), at + 2 * CHECK


class Images(NamedTuple):
    """The head of a delta between images: of the files, and how their images are made."""

    header: Header
    base_codes: bytes
    target_codes: bytes


def write_images(images: Images) -> bytes:
    """The head of a delta between images; a delta of `FORMAT` between these follows it."""
    head = write_header(images.header, IMAGES)
    for codes in (images.base_codes, images.target_codes):
        packed = _packed(codes)
        head += write_varint(len(codes)) + write_varint(len(packed)) + packed
    return head


def read_images(data: bytes) -> tuple[Images, int] | None:
    """Such a head, and where it ends; None if there is more to come. Raises `Corrupt`."""
    begun = _read_header(data)
    if begun is None:
        return None
    header, at = begun
    codes: list[bytes] = []
    for _ in range(2):
        found = _try_numbers(data[at:], 2)
        if found is None:
            return None
        (size, stored), read = found
        if not stored <= size <= MAX_CODES:
            raise Corrupt("a delta has more codes than a zip file can have members")
        at += read
        if len(data) < at + stored:
            return None
        codes.append(_unpacked(data[at : at + stored], size))
        at += stored
    return Images(header, *codes), at


def write_end(blocks: int) -> bytes:
    """The end of a stream with so many blocks."""
    return bytes([_END]) + write_varint(blocks)


def encode_block(block: Block, read_base: ReadBase) -> bytes:
    """A block as it travels. CPU work; `read_base` is asked for bytes of its regions."""
    numbers = _numbers(block.parts)
    prefix = _prefix(block.parts, read_base) if block.literals else b""
    packed = [_packed(numbers), _packed(block.changes), _packed(block.literals, prefix)]
    raw = (numbers, block.changes, block.literals)
    head = bytearray([_BLOCK])
    for whole, stored in zip(raw, packed, strict=True):
        head += write_varint(len(whole)) + write_varint(len(stored))
    body = b"".join(packed)
    return bytes(head) + _check(head, body) + body


def _numbers(parts: Sequence[Part]) -> bytes:
    found = bytearray()
    pointer = 0
    for part in parts:
        match part:
            case Literal(length):
                found += write_varint(length << 2 | _LITERAL)
            case Copy(at, length):
                found += write_varint(length << 2 | _COPY) + write_varint(zigzag(at - pointer))
                pointer = at + length
            case Difference(at, length):
                found += write_varint(length << 2 | _DIFFERENCE)
                found += write_varint(zigzag(at - pointer))
                pointer = at + length
            case Region(at, length):
                found += write_varint(length << 2 | _REGION) + write_varint(zigzag(at - pointer))
    return bytes(found)


def _parts(data: bytes, base_size: int) -> Iterator[Part]:
    numbers = Varints(data)
    pointer = 0
    while not numbers.ended:
        head = numbers.next()
        kind, length = head & 3, head >> 2
        if not length:
            raise Corrupt("a step of a delta is empty")
        if kind == _LITERAL:
            yield Literal(length)
            continue
        at = pointer + numbers.signed()
        if not 0 <= at <= at + length <= base_size:
            raise Corrupt("a delta names bytes that its base does not have")
        if kind == _REGION:
            yield Region(at, length)
            continue
        pointer = at + length
        yield Copy(at, length) if kind == _COPY else Difference(at, length)


def prefix_ranges(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """What of the regions no step has used, as ranges of the base, `MAX_PREFIX` bytes at most."""
    ranges: list[tuple[int, int]] = []
    left = MAX_PREFIX
    starts = [index for index, part in enumerate(parts) if isinstance(part, Region)]
    for begin, end in pairwise([*starts, len(parts)]):
        region = parts[begin]
        assert isinstance(region, Region)
        used = sorted(
            (part.at, part.at + part.length)
            for part in parts[begin + 1 : end]
            if isinstance(part, Copy | Difference)
        )
        for start, stop in _unused(region, used):
            taken = min(stop - start, left)
            if taken:
                ranges.append((start, start + taken))
                left -= taken
    return ranges


def _unused(region: Region, used: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at, end = region.at, region.at + region.length
    for start, stop in used:
        if at < min(start, end):
            yield at, min(start, end)
        at = max(at, stop)
    if at < end:
        yield at, end


def _prefix(parts: Sequence[Part], read_base: ReadBase) -> bytes:
    return b"".join(read_base(start, stop) for start, stop in prefix_ranges(parts))


def _zstd() -> Any:
    """Zstd with prefixes, which the `zstandard` that packs chunks does not have."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 for those who make or read deltas
    else:
        from backports import zstd  # noqa: PLC0415 as above
    return zstd


def _packed(data: bytes, prefix: bytes = b"") -> bytes:
    """As a zstd frame, unless that is not shorter."""
    if not data:
        return data
    zstd = _zstd()

    size = len(data) + len(prefix) // 4
    level = next(level for most, level in LEVELS if size <= most)
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: 0,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    if size > LEVELS[0][0]:
        options |= {
            zstd.CompressionParameter.window_log: _WINDOW_LOG,
            zstd.CompressionParameter.enable_long_distance_matching: 1,
        }
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=_as_prefix(prefix))
    packed: bytes = compressor.compress(data, mode=compressor.FLUSH_FRAME)
    return packed if len(packed) < len(data) else data


def _unpacked(packed: bytes, size: int, prefix: bytes = b"") -> bytes:
    """The `size` bytes that were packed. Raises `Corrupt`."""
    if len(packed) == size:
        return packed
    zstd = _zstd()

    limits: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    expander = zstd.ZstdDecompressor(options=limits, zstd_dict=_as_prefix(prefix))
    try:
        data: bytes = expander.decompress(packed, max_length=size)
        if not expander.eof and len(data) == size:  # its end may be all that is left of it
            data += expander.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise Corrupt(f"a block of a delta is damaged: {error}") from error
    if len(data) != size or not expander.eof or expander.unused_data:
        raise Corrupt("a block of a delta does not hold what its head says")
    return data


def _as_prefix(prefix: bytes) -> Any:
    zstd = _zstd()

    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= LEAST_PREFIX else None


def _check(head: Buffer, body: Buffer) -> bytes:
    return digest_of(b"".join((head, body)))[:BLOCK_CHECK]


@define(eq=False)
class Parser:
    """Takes a stream apart that somebody else wrote; never holds more than a block."""

    header: Header | None = None
    ended: bool = False
    _rest: bytes = b""
    _blocks: int = 0

    def feed(self, data: Buffer) -> Iterator["Sealed"]:
        """The blocks that `data` ends. Raises `Corrupt`, `Unsupported`."""
        self._rest += bytes(data)
        if self.header is None and not self._begin():
            return
        while not self.ended and (block := self._next()) is not None:
            yield block
        if self.ended and self._rest:
            raise Corrupt("there is more behind the end of a delta")

    def close(self) -> None:
        """Raises `Corrupt` unless the stream has come to its end."""
        if not self.ended:
            raise Corrupt("a delta was cut short")

    def _begin(self) -> bool:
        data = self._rest
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise Corrupt("this is no delta")
        if len(data) > len(MAGIC) and data[len(MAGIC)] != FORMAT:
            raise Unsupported(
                f"delta format {data[len(MAGIC)]} is of a newer release: upgrade vaultfs"
            )
        found = _read_header(data)
        if found is None:
            return False
        self.header, at = found
        self._rest = data[at:]
        return True

    def _next(self) -> "Sealed | None":
        data = self._rest
        if not data:
            return None
        if data[0] not in {_BLOCK, _END}:
            raise Corrupt("no block of a delta begins so")
        numbers = _try_numbers(data[1:MAX_HEAD], 6 if data[0] == _BLOCK else 1)
        if numbers is None:
            return None
        found, at = numbers
        at += 1
        if data[0] == _END:
            if found[0] != self._blocks:
                raise Corrupt("a delta does not have as many blocks as its end says")
            self.ended, self._rest = True, data[at:]
            return None
        _check_sizes(found)
        stop = at + BLOCK_CHECK + found[1] + found[3] + found[5]
        if len(data) < stop:
            return None
        body = data[at + BLOCK_CHECK : stop]
        if _check(data[:at], body) != data[at : at + BLOCK_CHECK]:
            raise Corrupt("a block of a delta is damaged")
        self._rest, self._blocks = data[stop:], self._blocks + 1
        return Sealed(tuple(found), body)


class Sealed(NamedTuple):
    """A block as it came, its checksum compared."""

    sizes: tuple[int, ...]
    body: bytes

    @property
    def takes_prefix(self) -> bool:
        """Whether bytes of the base are needed to open it."""
        return self.sizes[5] < self.sizes[4]

    def steps(self, header: Header) -> tuple[Part, ...]:
        """Its steps. CPU work. Raises `Corrupt`."""
        numbers = _unpacked(self.body[: self.sizes[1]], self.sizes[0])
        return tuple(_parts(numbers, header.base_size))

    def open(self, parts: tuple[Part, ...], read_base: ReadBase) -> Block:
        """Its steps, which `steps` gave, with their bytes; `read_base` has those of the prefix.

        CPU work; memory as bounded as blocks are. Raises `Corrupt`.
        """
        _, a, changes_size, b, literals_size, c = self.sizes
        changes = _unpacked(self.body[a : a + b], changes_size)
        prefix = _prefix(parts, read_base) if self.takes_prefix else b""
        literals = _unpacked(self.body[a + b : a + b + c], literals_size, prefix)
        for kind, found in ((Difference, changes), (Literal, literals)):
            if sum(part.length for part in parts if isinstance(part, kind)) != len(found):
                raise Corrupt("a block of a delta has more or fewer bytes than its steps")
        return Block(parts, changes, literals)


def _check_sizes(sizes: Sequence[int]) -> None:
    most = (MAX_NUMBERS, MAX_NUMBERS, MAX_BYTES, MAX_BYTES, MAX_BYTES, MAX_BYTES)
    if any(size > limit for size, limit in zip(sizes, most, strict=True)):
        raise Corrupt("a block of a delta claims more bytes than one can have")
    if any(stored > raw for raw, stored in zip(sizes[::2], sizes[1::2], strict=True)):
        raise Corrupt("a block of a delta is longer than what it holds")


def _try_numbers(data: bytes, count: int) -> tuple[list[int], int] | None:
    """That many varints at the head of `data`, and where they end; None if there is too little."""
    numbers = Varints(data)
    try:
        return [numbers.next() for _ in range(count)], numbers.at
    except Corrupt:
        if len(data) >= count * 9:
            raise
        return None

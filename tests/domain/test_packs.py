import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from random import Random

import pytest
import zstandard
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.chunks import MAX_CHUNK
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported
from vaultfs.domain.packs import (
    ENTRY_SIZE,
    HEAD_SIZE,
    HEADER_SIZE,
    MAX_ENTRIES,
    MAX_PACK,
    PACK_TARGET,
    TAIL_SIZE,
    Codec,
    Kind,
    PackBuilder,
    PackEntry,
    StoredChunk,
    check_head,
    crc32c_of,
    decode_chunk,
    encode_chunk,
    encode_chunks,
    parse_pack,
    parse_table,
    raw_chunk,
    scan_pack,
    table_span,
)

CHUNKS = (b"", b"a", b"to be or not to be " * 20, Random(1).randbytes(50))
chunks = st.lists(st.binary(max_size=200) | st.builds(bytes, st.integers(0, 5000)), max_size=12)


@frozen
class Pack:
    """A sealed pack, its bytes in one piece."""

    key: Digest
    data: bytes
    crc32c: int
    entries: tuple[PackEntry, ...]


def sealed(builder: PackBuilder) -> Pack:
    pack = builder.seal()
    data = b"".join(pack.parts)
    assert len(data) == pack.size
    return Pack(pack.key, data, pack.crc32c, pack.entries)


def pack_of(contents: Iterable[bytes]) -> Pack:
    builder = PackBuilder()
    for data in contents:
        builder.add(encode_chunk(digest_of(data), data))
    return sealed(builder)


def chunk_at(data: bytes, entry: PackEntry) -> bytes:
    part = data[entry.offset : entry.offset + HEADER_SIZE + entry.size]
    return bytes(decode_chunk(part, entry.digest))


def header(
    digest: Digest,
    length: int,
    size: int,
    *,
    magic: bytes = b"VFCH",
    form: int = 1,
    cipher: int = 0,
    codec: int = Codec.RAW,
) -> bytes:
    return struct.pack("<4sBBBB32sII", magic, form, cipher, codec, 0, digest, length, size)


@given(chunks)
@settings(deadline=None, max_examples=50)
def test_a_pack_describes_itself(contents: list[bytes]) -> None:
    pack = pack_of(contents)
    assert parse_pack(pack.data) == pack.entries
    assert tuple(scan_pack(pack.data))[: len(contents)] == pack.entries
    assert [chunk_at(pack.data, entry) for entry in pack.entries] == contents
    assert pack.key == digest_of(pack.data)
    assert pack.crc32c == crc32c_of((pack.data,))


def test_a_pack_is_laid_out_as_it_always_was() -> None:
    builder = PackBuilder()
    builder.add(raw_chunk(digest_of(b"abc"), b"abc", Kind.PAGE))
    pack = sealed(builder)
    digest = digest_of(b"abc")
    table = struct.pack("<32sIIIBBBx", digest, 8, 3, 3, 0, 0, 1)
    assert pack.data == b"".join(
        (
            b"VFPK\x01\0\0\0",
            b"VFCH\x01\0\0\x01" + digest + struct.pack("<II", 3, 3) + b"abc",
            table,
            digest_of(table) + struct.pack("<IIB3x4s", 1, 59, 1, b"VFPE"),
        )
    )


def test_sizes_are_known_before_sealing() -> None:
    builder = PackBuilder()
    assert builder.size == len(sealed(PackBuilder()).data) == HEAD_SIZE + TAIL_SIZE
    for number, data in enumerate(CHUNKS):
        builder.add(encode_chunk(digest_of(data), data))
        assert builder.index(digest_of(data)) == number
    assert len(builder) == len(builder.digests) == len(CHUNKS)
    size = builder.size
    assert len(sealed(builder).data) == size


def test_a_pack_is_full_at_its_target() -> None:
    builder, number = PackBuilder(), 0
    while not builder.full:
        builder.add(raw_chunk(Digest(number.to_bytes(32, "little")), bytes(MAX_CHUNK)))
        number += 1
    assert PACK_TARGET <= builder.size <= MAX_PACK
    assert number == 16


def test_a_pack_is_full_at_its_count_of_chunks() -> None:
    builder = PackBuilder()
    for number in range(MAX_ENTRIES):
        assert not builder.full
        builder.add(raw_chunk(Digest(number.to_bytes(32, "little")), b""))
    assert builder.full
    assert len(parse_pack(sealed(builder).data)) == MAX_ENTRIES


def test_the_end_of_a_pack_tells_where_its_table_is() -> None:
    pack = pack_of(CHUNKS)
    tail = pack.data[-TAIL_SIZE:]
    start, stop = table_span(tail, len(pack.data))
    assert stop - start == ENTRY_SIZE * len(CHUNKS)
    assert parse_table(pack.data[start:stop], tail) == pack.entries


# Damage


def test_every_truncation_is_found_and_what_is_left_can_be_salvaged() -> None:
    pack = pack_of(CHUNKS)
    ends = [entry.offset + HEADER_SIZE + entry.size for entry in pack.entries]
    for size in range(len(pack.data)):
        cut = pack.data[:size]
        with pytest.raises(Corrupt):
            parse_pack(cut)
        whole = sum(end <= size for end in ends)
        found = tuple(scan_pack(cut))
        assert found[:whole] == pack.entries[:whole]
        assert len(found) == whole


def test_no_flipped_bit_gives_wrong_bytes() -> None:
    pack = pack_of(CHUNKS)
    contents = dict(zip((entry.digest for entry in pack.entries), CHUNKS, strict=True))

    def undamaged(_: bytes) -> tuple[PackEntry, ...]:
        return pack.entries

    for at in range(len(pack.data)):
        for bit in (1, 16, 128):
            damaged = bytearray(pack.data)
            damaged[at] ^= bit
            for entries in (parse_pack, scan_pack, undamaged):
                check_damaged(bytes(damaged), entries, contents)


def check_damaged(
    damaged: bytes,
    find: Callable[[bytes], Iterable[PackEntry]],
    contents: Mapping[Digest, bytes],
) -> None:
    """Whatever entries are found, none leads to bytes that it should not."""
    with suppress(Corrupt, Unsupported):
        for entry in tuple(find(damaged)):
            with suppress(Corrupt, Unsupported):
                assert chunk_at(damaged, entry) == contents[entry.digest]


def test_a_damaged_table_is_found() -> None:
    pack = pack_of(CHUNKS)
    start = len(pack.data) - TAIL_SIZE - ENTRY_SIZE * len(CHUNKS)
    for at in range(start, len(pack.data)):
        damaged = bytearray(pack.data)
        damaged[at] ^= 1
        if len(pack.data) - 7 <= at < len(pack.data) - 4:
            assert parse_pack(damaged) == pack.entries  # these bytes mean nothing
            continue
        with pytest.raises((Corrupt, Unsupported)):
            parse_pack(damaged)


@pytest.mark.parametrize("data", [b"", b"x", bytes(HEAD_SIZE + TAIL_SIZE), bytes(5000)])
def test_what_is_no_pack(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_pack(data)
    assert list(scan_pack(data)) == []


def test_a_pack_that_is_too_large_is_refused_by_its_size_alone() -> None:
    with pytest.raises(Corrupt):
        table_span(pack_of(CHUNKS).data[-TAIL_SIZE:], MAX_PACK + 1)


def test_a_pack_begins_as_one_does() -> None:
    head = pack_of(CHUNKS).data[:HEAD_SIZE]
    check_head(head)
    for at in range(HEAD_SIZE):
        damaged = bytearray(head)
        damaged[at] ^= 1
        with pytest.raises(Unsupported if at == 4 else Corrupt):
            check_head(damaged)
    with pytest.raises(Corrupt):
        check_head(head[:-1])


# Chunks


@given(st.binary(max_size=5000) | st.builds(bytes, st.integers(0, MAX_CHUNK)))
@settings(deadline=None, max_examples=50)
def test_a_chunk_is_decoded_to_what_was_encoded(data: bytes) -> None:
    stored = encode_chunk(digest_of(data), data)
    assert len(stored.stored) <= len(data)
    part = header(stored.digest, len(data), len(stored.stored), codec=stored.codec)
    assert bytes(decode_chunk(part + bytes(stored.stored), stored.digest)) == data


def test_what_does_not_compress_is_stored_as_it_is() -> None:
    data = Random(1).randbytes(1000)
    assert encode_chunk(digest_of(data), data) == StoredChunk(
        digest_of(data), 1000, Codec.RAW, Kind.DATA, data
    )


def nothing(_: bytes) -> bytes:
    return b""


def cut_short(frame: bytes) -> bytes:
    return frame[:-1]


def flipped(frame: bytes) -> bytes:
    return frame[:-4] + bytes([frame[-4] ^ 1]) + frame[-3:]


def other_content(_: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(b"not to be or to be " * 20)


@pytest.mark.parametrize("size", [380, 100_000])
@pytest.mark.parametrize("fault", [nothing, cut_short, flipped, other_content])
def test_what_a_faulty_compressor_made_is_stored_as_it_is(
    size: int, fault: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, hit = ((word * size)[:size] for word in (b"to be or not to be ", b"to have or not to "))
    pieces = [(digest_of(data), data, Kind.DATA) for data in (good, hit, good)]
    frames = [zstandard.ZstdCompressor().compress(data) for _, data, _ in pieces]
    frames[1] = fault(frames[1])

    def compress(_: object) -> list[memoryview]:
        return [memoryview(frame) for frame in frames]

    monkeypatch.setattr("vaultfs.domain.packs._coders.compress", compress)
    chunks = encode_chunks(pieces)
    assert [chunk.codec for chunk in chunks] == [Codec.ZSTD, Codec.RAW, Codec.ZSTD]
    assert [chunk.stored for chunk in chunks] == [frames[0], hit, frames[2]]
    believed = encode_chunks(pieces, prove=False)
    assert [chunk.stored for chunk in believed] == frames


def test_another_chunk_is_not_taken_for_the_one_wanted() -> None:
    part = header(digest_of(b"abc"), 3, 3) + b"abc"
    with pytest.raises(Corrupt):
        decode_chunk(part, digest_of(b"abd"))
    lie = header(digest_of(b"abd"), 3, 3) + b"abc"
    with pytest.raises(Corrupt):
        decode_chunk(lie, digest_of(b"abd"))


@pytest.mark.parametrize("claim", [0, 1, 99_999, 100_001, MAX_CHUNK, MAX_CHUNK + 1, 2**32 - 1])
@pytest.mark.parametrize("write_content_size", [True, False])
def test_a_frame_holds_what_the_header_says(claim: int, write_content_size: bool) -> None:
    data = bytes(100_000)
    compressor = zstandard.ZstdCompressor(write_content_size=write_content_size)
    frame = compressor.compress(data)
    part = header(digest_of(data), claim, len(frame), codec=Codec.ZSTD) + frame
    with pytest.raises(Corrupt):
        decode_chunk(part, digest_of(data))


def test_a_bomb_is_not_set_off() -> None:
    data = bytes(1 << 30)
    frame = zstandard.ZstdCompressor(level=1).compress(data)
    assert len(frame) < MAX_CHUNK
    for claim in (MAX_CHUNK, 1 << 30):
        part = header(digest_of(b""), claim, len(frame), codec=Codec.ZSTD) + frame
        with pytest.raises(Corrupt):
            decode_chunk(part, digest_of(b""))


def test_a_frame_that_lies_about_its_own_size() -> None:
    data = bytes(100_000)
    frame = bytearray(zstandard.ZstdCompressor().compress(data))
    assert frame[4] >> 6 == 2  # four bytes of content size follow
    at = 5 if frame[4] & 0x20 else 6
    assert int.from_bytes(frame[at : at + 4], "little") == 100_000
    for claim in (1000, 99_999, 100_001, 1_000_000):
        frame[at : at + 4] = claim.to_bytes(4, "little")
        part = header(digest_of(data), claim, len(frame), codec=Codec.ZSTD) + frame
        with pytest.raises(Corrupt):
            decode_chunk(part, digest_of(data))


def test_a_frame_with_something_behind_it_gives_no_other_bytes() -> None:
    data = bytes(1000)
    frame = zstandard.ZstdCompressor().compress(data)
    for more in (b"x", frame):
        part = header(digest_of(data), 1000, len(frame + more), codec=Codec.ZSTD) + frame + more
        with suppress(Corrupt):
            assert decode_chunk(part, digest_of(data)) == data


@pytest.mark.parametrize(("form", "cipher", "codec"), [(2, 0, 0), (1, 1, 0), (1, 0, 2)])
def test_what_a_newer_release_wrote_is_said_to_be_that(form: int, cipher: int, codec: int) -> None:
    digest = digest_of(b"abc")
    part = header(digest, 3, 3, form=form, cipher=cipher, codec=codec) + b"abc"
    with pytest.raises(Unsupported):
        decode_chunk(part, digest)


def test_a_table_of_a_newer_release_is_said_to_be_that() -> None:
    for at in (0, 1):  # codec, cipher
        table = bytearray(struct.pack("<32sIIIBBBx", digest_of(b""), 8, 0, 0, 0, 0, 0))
        table[44 + at] = 9
        tail = digest_of(table) + struct.pack("<IIB3x4s", 1, 8, 1, b"VFPE")
        with pytest.raises(Unsupported):
            parse_table(table, tail)
    tail = digest_of(b"") + struct.pack("<IIB3x4s", 0, 8, 2, b"VFPE")
    with pytest.raises(Unsupported):
        table_span(tail, 8 + TAIL_SIZE)


def test_what_is_cut_short_or_not_a_chunk() -> None:
    digest = digest_of(b"abc")
    whole = header(digest, 3, 3) + b"abc"
    for size in range(len(whole)):
        with pytest.raises(Corrupt):
            decode_chunk(whole[:size], digest)
    with pytest.raises(Corrupt):
        decode_chunk(header(digest, 3, 3, magic=b"VFCX") + b"abc", digest)
    with pytest.raises(Corrupt):
        decode_chunk(header(digest, 4, 3) + b"abc", digest)

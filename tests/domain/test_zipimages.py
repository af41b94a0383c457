"""Images of zip files: laid open and packed again to the very same bytes, or refused."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain import zipimages
from vaultfs.domain.errors import Corrupt
from vaultfs.domain.zipimages import MAX_IMAGE, MAX_VAIN, MAX_ZIP, closed, codes_of, members, opened


class Unseekable(io.BytesIO):
    """A file that is only written on: sizes come behind members then."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation


def zipped(
    contents: Mapping[str, bytes],
    *,
    level: int = 6,
    stored: frozenset[str] = frozenset(),
    streamed: bool = False,
) -> bytes:
    target: io.BytesIO = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))
            info.compress_type = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(info, content, compresslevel=level)
    return target.getvalue()


def words(seed: int, count: int = 400) -> bytes:
    random = Random(seed)
    return b" ".join(random.choice((b"fold", b"chunk", b"pack", b"lease")) for _ in range(count))


ONE = {f"member-{number}": words(number) for number in range(5)}
OTHER = {**ONE, "member-2": words(2) + b"!", "new": words(99)}


def check(base: bytes, target: bytes) -> tuple[bytes, bytes]:
    """The images of both, which lead back to them."""
    codes = codes_of(base, target)
    assert codes is not None
    images = opened(base, codes[0]), opened(target, codes[1])
    assert closed(images[1], codes[1], len(target)) == target
    return images


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_laid_open_is_packed_to_the_same_bytes(level: int, *, streamed: bool) -> None:
    base, target = (zipped(each, level=level, streamed=streamed) for each in (ONE, OTHER))
    _, image = check(base, target)
    assert words(2) + b"!" in image
    assert words(99) in image
    assert words(3) not in image, "what both have stays packed"


def test_members_that_are_stored_stay_as_they_are() -> None:
    base = zipped(ONE, stored=frozenset({"member-1"}))
    _, image = check(base, zipped(OTHER, stored=frozenset({"member-1"})))
    assert words(1) in image


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=8), st.binary(max_size=3000), max_size=6),
    st.dictionaries(st.text("abc/", min_size=1, max_size=8), st.binary(max_size=3000), max_size=6),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_two_zip_files(
    one: dict[str, bytes], other: dict[str, bytes], level: int, streamed: bool
) -> None:
    base, target = zipped(one, streamed=streamed), zipped(other, level=level)
    codes = codes_of(base, target)
    if codes is not None:
        assert closed(opened(target, codes[1]), codes[1], len(target)) == target


def test_nothing_is_gained_where_nothing_changed() -> None:
    assert codes_of(zipped(ONE), zipped(ONE)) is None


def test_what_zlib_has_not_packed_stays_closed() -> None:
    target = bytearray(zipped({"only": words(7)}))
    [member] = members(bytes(target), len(target))
    assert member.size == len(words(7))
    codes = codes_of(zipped(ONE), bytes(target))
    assert codes is not None
    stored = struct.pack("<BHH", 1, 5, 0xFFFF ^ 5) + b"hello"  # a block that is not compressed
    other = zipped({"only": b"hello"})
    [small] = members(other, len(other))
    if small.packed == len(stored):
        at = other.index(b"only") + 4
        other = other[:at] + stored + other[at + len(stored) :]
        assert codes_of(zipped(ONE), other) is None


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x05\x06", bytes(100), words(1)])
def test_what_is_no_zip_file_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        members(data, len(data))
    with pytest.raises(Corrupt):
        codes_of(data, zipped(ONE))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8))
def test_whatever_is_wrong_with_a_zip_file_is_told(place: int, part: bytes) -> None:
    data = bytearray(zipped(ONE))
    place %= len(data)
    data[place : place + len(part)] = part
    codes = b"\x06" * len(ONE)
    for work in (
        lambda: opened(bytes(data), codes),
        lambda: closed(bytes(data), codes, len(data)),
        lambda: codes_of(bytes(data), zipped(OTHER)),
    ):
        try:
            work()
        except Corrupt:
            continue


def test_a_member_that_claims_too_much_is_not_expanded() -> None:
    data = bytearray(zipped({"bomb": bytes(2 * MAX_IMAGE)}))
    with pytest.raises(Corrupt, match="too large"):
        opened(bytes(data), b"\x06")
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="does not hold"):
        opened(bytes(data), b"\x06")


def test_codes_have_to_fit() -> None:
    data = zipped(ONE)
    for codes in (b"", b"\x06" * 4, b"\x06" * 6, b"\x14\x06\x06\x06\x06", b"\xff" * 5):
        with pytest.raises(Corrupt):
            opened(data, codes)
    image = opened(data, b"\x06" * 5)
    with pytest.raises(Corrupt):
        closed(image, b"\x01" * 5, len(data))
    with pytest.raises(Corrupt):
        closed(image[:-1], b"\x06" * 5, len(data))
    assert closed(image, b"\x06" * 5, len(data)) == data


# What somebody made to do harm


def packed_by(content: bytes, *, memory: int = 8, level: int = 6) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory)
    return packer.compress(content) + packer.flush()


def made(
    some: Sequence[tuple[bytes, int]],
    *,
    places: Mapping[int, int] | None = None,
    flags: int = 0,
    extra: int = 0,
    count: int | None = None,
) -> bytes:
    """A zip file of members that are packed already, of which each claims to have a size.

    `places` are where the directory says that some are; `extra` is what local headers claim.
    """
    local, directory = b"", b""
    for number, (packed, size) in enumerate(some):
        at = (places or {}).get(number, len(local))
        head = (20, flags, 8, 0, 0, 0, len(packed), size, 1)
        local += struct.pack("<4s5H3I2H", b"PK\x03\x04", *head, extra) + b"m" + packed
        directory += struct.pack("<4sH5H3I5H2I", b"PK\x01\x02", 20, *head, 0, 0, 0, 0, 0, at) + b"m"
    number = len(some) if count is None else count
    end = (0, 0, number, number, len(directory), len(local), 0)
    return local + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", *end)


SMALL = (packed_by(words(1)), len(words(1)))
GIB = 1 << 30
HOSTILE = {
    "two at one place": made([SMALL] * 2, places={1: 0}),
    "one inside another": made([SMALL] * 2, places={1: 3}),
    "in the directory": made([SMALL] * 2, places={1: 2 * (31 + len(SMALL[0])) - 3}),
    "beyond the end": made([SMALL] * 2, places={1: 1 << 31}),
    "where zip64 tells more": made([SMALL] * 2, places={1: 0xFFFFFFFF}),
    "a size of zip64": made([(SMALL[0], 0xFFFFFFFF)]),
    "gigabytes": made([(SMALL[0], GIB)]),
    "gigabytes, in all": made([(SMALL[0], GIB // 64)] * 64),
    "encrypted": made([SMALL], flags=1),
    "names that are longer than the file": made([SMALL], extra=0xFFFF),
    "names that reach into the next": made([SMALL] * 2, extra=40),
    "more members than there are": made([SMALL], count=2),
    "fewer members than there are": made([SMALL] * 2, count=1),
    "65,535 members": made([SMALL], count=0xFFFF),
    "nothing packed": made([(b"", 0)]),
    "many at one place with nothing packed": made(
        [(b"", 0)] * 9, places=dict.fromkeys(range(9), 0)
    ),
    "a bomb that says so": made([(packed_by(bytes(2 * MAX_IMAGE)), 2 * MAX_IMAGE)]),
    "a bomb that does not": made([(packed_by(bytes(2 * MAX_IMAGE)), 1000)]),
    "none": made([]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_directory_claims_is_not_believed(name: str) -> None:
    data, good = HOSTILE[name], zipped(OTHER)
    for codes in (*(b"\x06" * count for count in range(10)), b"\x00\x06", b"\x06\x00"):
        with suppress(Corrupt):
            assert len(opened(data, codes)) <= MAX_IMAGE
        for size in (len(data), len(data) - 1, MAX_IMAGE):
            with suppress(Corrupt):
                assert len(closed(data, codes, size)) == size
    for one, other in ((data, good), (good, data)):
        try:
            found = codes_of(one, other)
        except Corrupt:
            continue
        assert found is None or closed(opened(other, found[1]), found[1], len(other)) == other


def test_what_data_descriptors_say_is_not_looked_at() -> None:
    base, target = bytearray(zipped(ONE, streamed=True)), bytearray(zipped(OTHER, streamed=True))
    for data in (base, target):
        place = 0
        while (place := data.find(b"PK\x07\x08", place + 1)) > 0:
            data[place + 4 : place + 16] = b"\xff" * 12
    check(bytes(base), bytes(target))


def test_a_zip_file_in_a_zip_file_is_opened_once() -> None:
    inner = [zipped({**ONE, "n": words(n)}) for n in (50, 51)]
    _, image = check(*(zipped({"inner": each, "b": words(3)}) for each in inner))
    assert inner[1] in image


@pytest.mark.parametrize(
    ("size", "count", "succeed"), [(20 << 20, 12, 0), (1 << 20, 60, 0), (1000, 2000, 5)]
)
def test_no_more_is_tried_than_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, size: int, count: int, succeed: int
) -> None:
    """Members that are packed otherwise, some of them only in their last byte."""
    tried = 0
    deflated = zipimages.deflated

    def counted(content: Any, code: int) -> Any:
        nonlocal tried
        for piece in deflated(content, code):
            tried += min(len(content), 64 << 10)
            yield piece

    monkeypatch.setattr(zipimages, "deflated", counted)
    some = [(packed_by(bytes(size)), size)] * count
    for place in range(count):
        if not succeed or place % succeed:
            packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 8)
            head = packer.compress(bytes(size - 1)) + packer.flush(zlib.Z_FULL_FLUSH)
            some[place] = (head + packer.compress(bytes([place % 255])) + packer.flush(), size)
    codes_of(made([SMALL]), made(some))
    assert 0 < tried < MAX_VAIN + 2 * (MAX_IMAGE - MAX_ZIP) + (1 << 20)

"""Images of zip files: laid open and packed again to the very same bytes, or refused."""

import io
import struct
import zipfile
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.errors import Corrupt
from vaultfs.domain.zipimages import MAX_IMAGE, closed, codes_of, members, opened


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

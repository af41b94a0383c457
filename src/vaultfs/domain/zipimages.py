"""Images of zip files: the same bytes with what deflate has packed laid open.

    zip:    raw | deflated | raw | deflated | raw
    image:  raw | content  | raw | content  | raw

A small change to a document changes most of the bytes that deflate makes of it, and few of
its image. So a delta between two zip files may lead from image to image. Which members are
open in an image say its *codes*, a byte for each deflated member in the order of the file: 0
for one that stays as it is, else how zlib packs its content to the very same bytes. Where
members are is not told: the directory at the end of a zip file, which is never packed, says
so to both sides (PKWARE's APPNOTE, 4.3).

Only whole, small files are taken: both sides hold a file and its image in memory.
"""

import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from vaultfs.domain.chunks import Chunker
from vaultfs.domain.digests import digest_of
from vaultfs.domain.errors import Corrupt
from vaultfs.domain.signatures import SHORT, Unit

MAGIC: Final = b"PK\x03\x04"
MAX_ZIP: Final = 16 << 20
"""Bytes of a file that is laid open at the most."""
MAX_IMAGE: Final = 40 << 20
"""Bytes of its image at the most."""
CLOSED: Final = 0
_MEMORY: Final = (8, 9)
"""zlib's `memLevel`; a code is 10 times the place in here, and the level."""
_LEVELS: Final = (6, 9, 1, 5, 4, 3, 2, 7, 8)
CODES: Final = frozenset(
    10 * place + level for place in range(len(_MEMORY)) for level in range(1, 10)
)
GIVE_UP_AFTER: Final = 8
"""So many members in a row that zlib packs otherwise, and somebody else has made the file."""
MAX_VAIN: Final = 16 << 20
"""Bytes that are packed in vain: at the worst, zlib packs 300 KB in a second."""
_TRY: Final = 1 << 10
"""What to try costs besides, in such bytes."""
_STEP: Final = 64 << 10
"""Bytes that are packed before they are compared."""
_END: Final = struct.Struct("<4s4H2IH")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<26x2H")
_DEFLATED, _ENCRYPTED = 8, 1


Tired = Callable[[], bool]
"""Whether to go on with what takes long."""


def never() -> bool:
    """For whoever has time."""
    return False


class Member(NamedTuple):
    """A deflated member of a zip file, as the directory has it."""

    at: int
    """Where its local header is in the file."""
    packed: int
    """Bytes."""
    size: int
    """Bytes of its content."""


PackedMember = tuple[Unit, Member, memoryview]
"""What the packed bytes of a member are known by, where it is, and those bytes."""


def members(end: bytes, size: int) -> tuple[Member, ...]:
    """The deflated members of a zip file of `size` bytes that ends with `end`, in order.

    `end` is all of it, or of its image. Raises `Corrupt` for what is no zip file, or one of
    several parts, encrypted, or larger than 4 GiB.
    """
    place = end.rfind(b"PK\x05\x06", max(0, len(end) - (1 << 16) - _END.size))
    if place < 0 or place + _END.size > len(end):
        raise Corrupt("this is no zip file")
    _, disk, first, here, count, length, at, _ = _END.unpack_from(end, place)
    begin = len(end) - (size - at)
    if disk or first or here != count or not 0 <= begin <= begin + length <= place:
        raise Corrupt("the directory of a zip file is not where its end says")
    found = sorted(_entries(end, begin, count, begin + length))
    last = 0
    for member in found:
        if member.at < last or member.at + member.packed > at:
            raise Corrupt("members of a zip file overlap")
        last = member.at + member.packed
    if sum(member.size for member in found) > 16 * MAX_IMAGE:
        raise Corrupt("a zip file claims to hold more than it can")
    return tuple(found)


def _entries(end: bytes, at: int, count: int, stop: int) -> Iterator[Member]:
    for _ in range(count):
        if at + _ENTRY.size > stop:
            raise Corrupt("the directory of a zip file is cut short")
        fields = _ENTRY.unpack_from(end, at)
        magic, flags, method, packed, size, start = (fields[each] for each in (0, 3, 4, 8, 9, 16))
        if magic != b"PK\x01\x02" or flags & _ENCRYPTED or 0xFFFFFFFF in {packed, size, start}:
            raise Corrupt("the directory of a zip file has an entry of another kind")
        if method == _DEFLATED:
            yield Member(start, packed, size)
        at += _ENTRY.size + sum(fields[10:13])


def _data_at(header: bytes, at: int) -> int:
    """Where the bytes of a member are, from the local header at `at`."""
    if header[at : at + 4] != MAGIC or at + _LOCAL.size > len(header):
        raise Corrupt("a member of a zip file is not where its directory says")
    name, extra = _LOCAL.unpack_from(header, at)
    return at + _LOCAL.size + int(name) + int(extra)


def codes_of(base: bytes, target: bytes) -> tuple[bytes, bytes] | None:
    """The codes by which both are worth laying open; None if that gains nothing.

    Members that both have as they are stay closed. CPU work: packs what only the target has,
    once if zlib made it. Raises `Corrupt`.
    """
    olds = packed_members(base)
    codes = codes_against([unit for unit, _, _ in olds], packed_members(target))
    if codes is None or _is_much([member for _, member, _ in olds], codes[0]):
        return None
    return codes


def packed_units(data: bytes) -> list[Unit]:
    """The members of a zip file as they are packed, in order. CPU work. Raises `Corrupt`."""
    return [unit for unit, _, _ in packed_members(data)]


def codes_against(
    olds: Collection[Unit], news: Sequence[PackedMember]
) -> tuple[bytes, bytes] | None:
    """As `codes_of`, where of the base only its members are known, as `packed_units` has them,
    and of the target those that `packed_members` gives.

    Whether the base's image would be too large has to be seen by whoever has it.
    """
    shared = {unit for unit, _, _ in news}.intersection(olds)
    after = bytes(_target_codes([(data, m) for unit, m, data in news if unit not in shared]))
    left = iter(after)
    target_codes = bytes(CLOSED if unit in shared else next(left) for unit, _, _ in news)
    base_codes = bytes(CLOSED if unit in shared else _LEVELS[0] for unit in olds)
    if not any(target_codes) or not any(base_codes):
        return None
    if _is_much([member for _, member, _ in news], target_codes):
        return None
    return base_codes, target_codes


def _is_much(some: Sequence[Member], codes: bytes) -> bool:
    """Whether an image may be too large."""
    opened = sum(member.size for member, code in zip(some, codes, strict=True) if code)
    return opened + MAX_ZIP > MAX_IMAGE


def packed_members(data: bytes) -> list[PackedMember]:
    """The members of a zip file, in order. CPU work. Raises `Corrupt`."""
    found: list[PackedMember] = []
    view = memoryview(data)
    for member in members(data, len(data)):
        at = _data_at(data, member.at)
        packed = view[at : at + member.packed]
        found.append(((digest_of(packed)[:SHORT], member.packed), member, packed))
    return found


def _target_codes(some: Sequence[tuple[memoryview, Member]]) -> Iterator[int]:
    last, failures, vain, left = _LEVELS[0], 0, 0, MAX_IMAGE - MAX_ZIP
    for packed, member in some:
        code = CLOSED
        if failures < GIVE_UP_AFTER and member.size <= left and vain < MAX_VAIN:
            content = _inflated(packed, member.size)
            code, more = _code_of(bytes(packed), content, last, MAX_VAIN - vain)
            vain += more
        failures = 0 if code else failures + 1
        last, left = code or last, left - (member.size if code else 0)
        yield code


def _code_of(packed: bytes, content: bytes, likely: int, most: int) -> tuple[int, int]:
    """How zlib packs `content` to `packed`, `likely` tried first; `CLOSED` if it does not.

    And what was packed in vain for that: no more than `most`, but for the first that is tried.
    """
    vain = 0
    others = [10 * place + level for place in range(len(_MEMORY)) for level in _LEVELS]
    for code in dict.fromkeys((likely, *others)):
        if vain and vain + len(content) > most:
            break
        differs = _differs(packed, content, code)
        if not differs:
            return code, vain
        vain += differs + _TRY
    return CLOSED, vain


def _differs(packed: bytes, content: bytes, code: int) -> int:
    """How many bytes were packed until it was seen to be otherwise; 0 if it is not."""
    at = tried = 0
    for piece in deflated(content, code):
        tried = min(tried + _STEP, len(content) + 1)
        if not packed.startswith(piece, at):
            return tried
        at += len(piece)
    return 0 if at == len(packed) else tried


def deflated(content: memoryview | bytes, code: int) -> Iterator[bytes]:
    """The content as it is packed, a piece at a time: on both sides in the same steps."""
    place, level = divmod(code, 10)
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY[place])
    view = memoryview(content)
    for start in range(0, len(content), _STEP):
        yield packer.compress(view[start : start + _STEP])
    yield packer.flush()


def _inflated(packed: memoryview, size: int) -> bytes:
    """The content of a member. Raises `Corrupt` unless it has `size` bytes."""
    expander = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = expander.decompress(packed, size + 1)
    except zlib.error as error:
        raise Corrupt(f"a member of a zip file is damaged: {error}") from error
    if len(content) != size or not expander.eof or expander.unused_data:
        raise Corrupt("a member of a zip file does not hold what its directory says")
    return content


def opened(data: bytes, codes: bytes) -> bytes:
    """The image of a zip file. CPU work. Raises `Corrupt`, also where it is too large."""
    view, at = memoryview(data), 0
    parts: list[memoryview | bytes] = []
    for member in _open_members(data, len(data), codes):
        start = _data_at(data, member.at)
        stop = start + member.packed
        if not at <= start <= stop <= len(data):
            raise Corrupt("members of a zip file overlap")
        parts += [view[at:start], _inflated(view[start:stop], member.size)]
        at = stop
    parts.append(view[at:])
    return b"".join(parts)


def image_units(image: bytes, codes: bytes, size: int) -> list[Unit]:
    """The units of the image of a zip file of `size` bytes: each member has its own, and what
    stands between two.

    So what both of two images have is found, though all the headers say another time. CPU work.
    Raises `Corrupt`.
    """
    chunker, units = Chunker(), list[Unit]()
    for start, stop in pairwise([0, *_seams(image, codes, size), len(image)]):
        pieces = chunker.pieces(image[start:stop])
        units += ((digest_of(piece)[:SHORT], len(piece)) for piece in pieces)
    return units


def _seams(image: bytes, codes: bytes, size: int) -> Iterator[int]:
    """Where in an image the bytes of members begin and end."""
    at = place = 0
    for member, code in zip(members(image, size), codes, strict=True):
        header = place + member.at - at
        if header < place:
            raise Corrupt("members of a zip file overlap")
        start = _data_at(image, header)
        at, place = (
            member.at + (start - header) + member.packed,
            start + (member.size if code else member.packed),
        )
        yield start
        yield place


def closed(image: bytes, codes: bytes, size: int, tired: Tired = never) -> bytes:
    """The zip file of `size` bytes that has the image, packed as `codes` say.

    CPU work: at the worst, minutes. Raises `Corrupt`, also where this zlib packs otherwise than
    the one that was used to find the codes, and as soon as somebody is `tired` of it.
    """
    view, at, place = memoryview(image), 0, 0
    parts: list[memoryview | bytes] = []
    for member, code in zip(_open_members(image, size, codes), filter(None, codes), strict=True):
        header = place + member.at - at
        if header < place:
            raise Corrupt("members of a zip file overlap")
        start = _data_at(image, header)
        content = view[start : start + member.size]
        packed = b"".join(_unless(tired, deflated(content, code)))
        if len(content) != member.size or len(packed) != member.packed:
            raise Corrupt("a member cannot be packed as it was: get the whole file")
        parts += [view[place:start], packed]
        at, place = member.at + (start - header) + member.packed, start + member.size
    parts.append(view[place:])
    data = b"".join(parts)
    if len(data) != size:
        raise Corrupt("a zip file that was made of its image has another size")
    return data


def _unless(tired: Tired, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if tired():
            raise Corrupt("a zip file takes too long to be packed again: send the whole file")
        yield piece


def _open_members(end: bytes, size: int, codes: bytes) -> list[Member]:
    """The members that are open. Raises `Corrupt` where codes and directory do not fit."""
    if max(size, len(end)) > MAX_IMAGE or set(codes) - CODES - {CLOSED}:
        raise Corrupt("no image of a zip file is made so")
    found = members(end, size)
    if len(found) != len(codes):
        raise Corrupt("a zip file has another number of members than there are codes")
    some = [member for member, code in zip(found, codes, strict=True) if code]
    if sum(member.size for member in some) > MAX_IMAGE:
        raise Corrupt("an image of a zip file is too large")
    return some

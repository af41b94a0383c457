"""Which parts of a content are in another: by equal units, then byte by byte.

Two rounds. The first takes the chunks (or whole pages) of two manifests as units, and
leaves gaps: stretches of the target with no equal unit in the base, each with the stretch
of the base that stands where it stands. The second, inside one gap, does the same with
content-defined pieces of about a KiB, lets each match grow as far as the bytes agree, and
where old and new line up and mostly agree keeps their difference instead of the new bytes
(bsdiff's step: C. Percival, "Naive differences of executable code", 2003).

All of it depends on the bytes alone: the same two contents give the same steps.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from vaultfs.domain.chunks import Chunker, Chunking
from vaultfs.domain.deltas import Copy, Literal, Step

PIECE: Final = 1024
PIECES: Final = Chunking(0, PIECE // 4, PIECE, 8 * PIECE)
"""How the second round cuts; no manifest names it."""
LEAST: Final = 32
"""Bytes of a stretch that is worth looking into."""
WINDOW: Final = 32
"""Bytes of which half have to agree for a difference to go on."""
MOSTLY: Final = (7, 8)
"""The share of bytes that have to agree for a difference to be kept."""
CONTEXT: Final = 64 << 10
"""Bytes of the base in front of a gap that are kept with one that has little of its own."""
K = TypeVar("K", bound=Hashable)


class Difference(NamedTuple):
    """`length` bytes that mostly are those of the base from byte `at` on."""

    at: int
    length: int


FineStep = Copy | Literal | Difference


class Gap(NamedTuple):
    """A stretch of the target, and the one of the base that stands in its place; half-open."""

    start: int
    stop: int
    base_start: int
    base_stop: int


def match_units(
    base: Sequence[tuple[K, int]], target: Sequence[tuple[K, int]]
) -> tuple[list[Step], int]:
    """The target's units, each a key and a length, as joined steps; and the base's length.

    Of several equal units of the base the next in order is taken, so that runs stay whole.
    """
    places: dict[K, int] = {}
    equal: dict[K, list[int]] = {}
    at = 0
    for key, length in base:
        if key in places:
            equal.setdefault(key, [places[key]]).append(at)
        else:
            places[key] = at
        at += length
    steps: list[Step] = []
    start = end = unknown = 0  # of the copy under way, and of the literal
    for key, length in target:
        place = places.get(key)
        if place is None:
            unknown += length
            continue
        if place != end and key in equal:
            place = _next_of(equal[key], end)
        if unknown or place != end:
            steps += _ended(start, end, unknown)
            start, unknown = place, 0
        end = place + length
    return [*steps, *_ended(start, end, unknown)], at


def _next_of(places: Sequence[int], at: int) -> int:
    index = bisect_left(places, at)
    return places[index] if index < len(places) else places[0]


def _ended(start: int, end: int, unknown: int) -> list[Step]:
    """A copy, and the literal behind it, so far as there are any."""
    copy: list[Step] = [Copy(start, end - start)] if end > start else []
    return [*copy, Literal(unknown)] if unknown else copy


def gaps_of(steps: Iterable[Step], base: int, context: int = CONTEXT) -> list[Gap]:
    """The literals of joined steps, each with what stands between its neighbours in the base.

    Where the neighbours do not follow each other there, it is what follows the first. In front
    of it are up to `context` bytes where it is much less than the literal.
    """
    every = list(steps)
    gaps: list[Gap] = []
    at = pointer = 0
    for index, step in enumerate(every):
        if isinstance(step, Copy):
            pointer = step.at + step.length
        else:
            after = every[index + 1] if index + 1 < len(every) else None
            stop = after.at if isinstance(after, Copy) else base
            if not pointer <= stop <= pointer + 4 * step.length + CONTEXT:
                stop = min(base, pointer + 2 * step.length)
            start = min(pointer, max(0, stop - min(context, 16 * step.length + 256)))
            gaps.append(Gap(at, at + step.length, start, stop))
        at += step.length
    return gaps


def refine(old: bytes, new: bytes) -> list[FineStep]:
    """The steps of the second round, from `old` to `new`. CPU work, about linear."""
    most = min(len(old), len(new))
    front = common_prefix(old, 0, new, 0, most)
    back = common_suffix(old, len(old), new, len(new), most - front)
    end = len(new) - back
    middle = _inside(old[front : len(old) - back], new[front:end], front)
    steps: list[FineStep] = [Copy(0, front), *middle, Copy(len(old) - back, back)]
    return [step for step in steps if step.length]


def _inside(old: bytes, new: bytes, offset: int) -> list[FineStep]:
    """The same for what neither begins nor ends alike; `offset` is where `old` begins."""
    if min(len(old), len(new)) < LEAST:
        return [Literal(len(new))]
    steps, _ = match_units(_pieces(old), _pieces(new))
    found: list[FineStep] = []
    at = pointer = 0
    for start, copy in _grown(old, new, steps):
        found += _between(old, new[at:start], pointer, copy.at, offset)
        found.append(Copy(copy.at + offset, copy.length))
        at, pointer = start + copy.length, copy.at + copy.length
    found += _between(old, new[at:], pointer, len(old), offset)
    return found


def _pieces(data: bytes) -> list[tuple[bytes, int]]:
    return [(piece, len(piece)) for piece in Chunker(PIECES).pieces(data)]


def _grown(old: bytes, new: bytes, steps: Sequence[Step]) -> list[tuple[int, Copy]]:
    """The copies of `steps`, joined and as long as the bytes agree, with where they go."""
    grown: list[tuple[int, Copy]] = []
    at = 0
    for step in steps:
        start, at = at, at + step.length
        if isinstance(step, Literal):
            continue
        free, (place, length) = 0, step
        if grown:
            before, last = grown[-1]
            free = before + last.length
            if free >= start + length:  # the one before has grown over it
                continue
            taken = max(0, free - start)
            start, place, length = start + taken, place + taken, length - taken
        back = common_suffix(old, place, new, start, min(place, start - free))
        stop, end = place + length, start + length
        ahead = common_prefix(old, stop, new, end, min(len(old) - stop, len(new) - end))
        start, copy = start - back, Copy(place - back, back + length + ahead)
        if grown and grown[-1][0] + grown[-1][1].length == start:
            before, last = grown[-1]
            if last.at + last.length == copy.at:
                grown[-1] = (before, Copy(last.at, last.length + copy.length))
                continue
        grown.append((start, copy))
    return grown


def _between(old: bytes, new: bytes, start: int, stop: int, offset: int) -> list[FineStep]:
    """`new`, which no piece of `old` is equal to, by what is left of `old[start:stop]`."""
    size = min(len(new), max(0, stop - start))
    if size < LEAST:
        return [Literal(len(new))] if new else []
    if len(new) == stop - start and _agreeing(old[start:stop], new) * MOSTLY[1] >= size * MOSTLY[0]:
        return [Difference(start + offset, size)]
    front = _aligned(old[start : start + size], new[:size])
    back = 0
    if front < size:
        left = size - front
        back = _aligned(old[stop - left : stop][::-1], new[len(new) - left :][::-1])
    steps: list[FineStep] = [
        Difference(start + offset, front),
        Literal(len(new) - front - back),
        Difference(stop - back + offset, back),
    ]
    return [step for step in steps if step.length]


def _aligned(old: bytes, new: bytes) -> int:
    """How far `new` mostly is `old`, from the first byte on."""
    changed = difference(old, new)
    agreeing = reach = best = 0
    while reach < len(changed):
        window = changed[reach : reach + WINDOW]
        same = window.count(0)
        if same * 2 < len(window):
            break
        reach, agreeing = reach + len(window), agreeing + same
        if agreeing * MOSTLY[1] >= reach * MOSTLY[0]:
            best = reach
    return best if best >= LEAST else 0


def _agreeing(old: bytes, new: bytes) -> int:
    return difference(old, new).count(0)


def difference(old: bytes, new: bytes) -> bytes:
    """`new` minus `old`, byte by byte modulo 256; they are of one length.

    All bytes at once, as one number: the high bits are kept apart so that nothing is
    carried from a byte to the next.
    """
    high, low = _halves(len(new))
    a, b = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    return (((a | high) - (b & low)) ^ ((a ^ ~b) & high)).to_bytes(len(new), "little")


def total(old: bytes, change: bytes) -> bytes:
    """`old` plus a difference: the opposite of `difference`."""
    high, low = _halves(len(old))
    a, b = int.from_bytes(old, "little"), int.from_bytes(change, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(len(old), "little")


def _halves(size: int) -> tuple[int, int]:
    return int.from_bytes(b"\x80" * size, "little"), int.from_bytes(b"\x7f" * size, "little")


def common_prefix(one: bytes, at: int, other: bytes, start: int, most: int) -> int:
    """How many bytes, `most` at most, are alike in one from `at` and in the other from `start`."""
    return _alike(
        lambda low, high: one[at + low : at + high] == other[start + low : start + high], most
    )


def common_suffix(one: bytes, at: int, other: bytes, start: int, most: int) -> int:
    """How many bytes, `most` at most, are alike before `at` in one and `start` in the other."""
    return _alike(
        lambda low, high: one[at - high : at - low] == other[start - high : start - low], most
    )


def _alike(same: Callable[[int, int], bool], most: int) -> int:
    """Up to which number, `most` at most, everything is the same: by growing steps, then halves."""
    done, step = 0, 32
    while done < most:
        upto = min(done + step, most)
        if not same(done, upto):
            break
        done, step = upto, min(step * 4, 1 << 20)
    else:
        return done
    low, high = done, upto - 1
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low

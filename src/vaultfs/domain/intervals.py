"""Byte ranges that one owner has locked in one file, as POSIX record locks go.

Ranges are half-open, `[start, stop)`, in bytes. Locking a range replaces what the owner
had in it, in whatever mode; unlocking cuts a hole. Neighbours in the same mode join, so
a set never has two ranges where one says the same.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from attrs import define, field

from vaultfs.domain.errors import InvalidField

END: Final = 1 << 63
"""The `stop` of a range that has no end."""


class Range(NamedTuple):
    """Bytes `start` to `stop`, the last not included, and whether nobody else may have any."""

    start: int
    stop: int
    exclusive: bool

    def meets(self, other: "Range") -> bool:
        """Whether two owners cannot have both."""
        overlap = self.start < other.stop and other.start < self.stop
        return overlap and (self.exclusive or other.exclusive)


def byte_range(start: int, stop: int | None, *, exclusive: bool) -> Range:
    """The range, without an end if `stop` is None. Raises `InvalidField` if it is empty."""
    end = END if stop is None else stop
    if not 0 <= start < end <= END:
        wrong = "it ends behind all files" if end > END else "it is empty or negative"
        raise InvalidField(f"bytes {start} to {stop} are not a range: {wrong}")
    return Range(start, end, exclusive)


@define(eq=False)
class Ranges:
    """A set of ranges that do not overlap, ascending."""

    _ranges: list[Range] = field(factory=list[Range])

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def meets(self, wanted: Range) -> bool:
        """Whether another owner cannot have `wanted` beside these."""
        return any(wanted.meets(held) for held in self._ranges)

    def lock(self, wanted: Range) -> None:
        """Have `wanted`, in its mode, whatever was there."""
        self.unlock(wanted.start, wanted.stop)
        self._ranges = _joined(sorted((*self._ranges, wanted)))

    def unlock(self, start: int, stop: int) -> None:
        """Have nothing of bytes `start` to `stop`."""
        kept: list[Range] = []
        for held in self._ranges:
            if held.stop <= start or stop <= held.start:
                kept.append(held)
                continue
            if held.start < start:
                kept.append(Range(held.start, start, held.exclusive))
            if stop < held.stop:
                kept.append(Range(stop, held.stop, held.exclusive))
        self._ranges = kept


def weakened(held: Iterable[Range], wanted: Iterable[Range]) -> tuple[Range, ...]:
    """`held` once its owner has `wanted` too: what it asks to share is exclusive no longer."""
    spans, left = tuple(held), Ranges()
    for each in spans:
        left.lock(each)
    for each in wanted:
        if not each.exclusive:
            for mine in spans:
                if mine.meets(each):
                    both = max(mine.start, each.start), min(mine.stop, each.stop)
                    left.lock(Range(*both, exclusive=False))
    return tuple(left)


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for each in ranges:
        last = joined[-1] if joined else None
        if last is not None and (last.stop, last.exclusive) == (each.start, each.exclusive):
            joined[-1] = Range(last.start, each.stop, each.exclusive)
        else:
            joined.append(each)
    return joined

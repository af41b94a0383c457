"""Deltas: where each byte of one content comes from, of another or from nowhere.

A delta is a list of steps that lay out the target from its first byte to its last: a
`Copy` of a range of the base, or a `Literal`, bytes that are not known from the base. It
holds no bytes, so it is small whatever the sizes are, and deltas compose by arithmetic on
their ranges: with `apply(delta, base, target)` for the bytes that a delta stands for,

    apply(compose(ab, bc)) == apply(bc) after apply(ab)
    compose(compose(ab, bc), cd) == compose(ab, compose(bc, cd))

What a copy of the second takes from a literal of the first is a literal of the result.
Steps are kept in one form: none is empty, and none continues the one before, so equal
deltas are equal values.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from attrs import frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Corrupt, Unsupported

FORMAT: Final = 1
MAX_SIZE: Final = 1 << 62
"""No content has more bytes."""
MOST_STEPS: Final = 2 << 20
"""Steps of a composed delta: what is repeated in each of a few can be so any number of times."""


class Copy(NamedTuple):
    """`length` bytes of the base, from byte `at` on."""

    at: int
    length: int


class Literal(NamedTuple):
    """`length` bytes of the target that are not known from the base."""

    length: int


Step = Copy | Literal


@frozen
class Delta:
    """From a base of `base` bytes to a target of `target` bytes."""

    base: int
    target: int
    steps: tuple[Step, ...]

    def __attrs_post_init__(self) -> None:
        if sum(step.length for step in self.steps) != self.target:
            raise Corrupt("the steps of a delta do not make up its target")
        for step in self.steps:
            outside = isinstance(step, Copy) and not 0 <= step.at <= self.base - step.length
            if step.length <= 0 or outside:
                raise Corrupt("a step of a delta is empty, or outside of the base")

    @property
    def literal(self) -> int:
        """Bytes of the target that are not known from the base."""
        return sum(step.length for step in self.steps if isinstance(step, Literal))


def delta_of(base: int, steps: Iterable[Step]) -> Delta:
    """The delta with those steps, whose empty ones are left out and whose runs are joined."""
    joined: list[Step] = []
    for step in steps:
        if not step.length:
            continue
        last = joined[-1] if joined else None
        match step, last:
            case Literal(length), Literal(before):
                joined[-1] = Literal(before + length)
            case Copy(at, length), Copy(start, before) if start + before == at:
                joined[-1] = Copy(start, before + length)
            case _:
                joined.append(step)
    return Delta(base, sum(step.length for step in joined), tuple(joined))


def identity(size: int) -> Delta:
    """From a content to itself."""
    return delta_of(size, [Copy(0, size)])


def apply(delta: Delta, base: Buffer, target: Buffer) -> bytes:
    """The bytes that the delta stands for: of `base`, and where it has literals of `target`."""
    old, new, at = memoryview(base), memoryview(target), 0
    parts: list[Buffer] = []
    for step in delta.steps:
        if isinstance(step, Copy):
            parts.append(old[step.at : step.at + step.length])
        else:
            parts.append(new[at : at + step.length])
        at += step.length
    return b"".join(parts)


def compose(first: Delta, second: Delta) -> Delta:
    """From the base of `first` to the target of `second`; linear in the steps of the result.

    Raises `Corrupt` unless the target of the first is as long as the base of the second, and
    for more steps than are worth it.
    """
    if first.target != second.base:
        raise Corrupt("deltas that do not follow each other cannot be composed")
    starts = [0, *accumulate(step.length for step in first.steps)]
    steps: list[Step] = []
    for step in second.steps:
        if isinstance(step, Literal):
            steps.append(step)
        else:
            steps += _through(first.steps, starts, step)
        if len(steps) > MOST_STEPS:
            raise Corrupt("a delta that is composed has too many steps")
    return delta_of(first.base, steps)


def _through(steps: Sequence[Step], starts: Sequence[int], copy: Copy) -> Iterable[Step]:
    """Where the bytes of `copy` come from, which copies from what `steps` lay out."""
    at, stop = copy.at, copy.at + copy.length
    index = bisect_right(starts, at) - 1
    while at < stop:
        step, start = steps[index], starts[index]
        until = min(stop, start + step.length)
        if isinstance(step, Copy):
            yield Copy(step.at + at - start, until - at)
        else:
            yield Literal(until - at)
        at, index = until, index + 1


# As bytes


def write_varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


class Varints:
    """Reads varints of at most 63 bits from bytes that somebody else wrote."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at == len(self._data)

    def next(self) -> int:
        """Raises `Corrupt` where there is none."""
        number = shift = 0
        while shift < 63 and self.at < len(self._data):
            byte = self._data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
        raise Corrupt("a number in a delta is cut short, or too large")

    def signed(self) -> int:
        """The opposite of `zigzag`."""
        number = self.next()
        return (number >> 1) ^ -(number & 1)


def zigzag(number: int) -> int:
    """A signed number as an unsigned one that is small where it is near 0."""
    return number << 1 if number >= 0 else (-number << 1) - 1


def encode(delta: Delta) -> bytes:
    """The steps as the catalog keeps them."""
    numbers = [FORMAT, delta.base, len(delta.steps)]
    at = 0
    for step in delta.steps:
        if isinstance(step, Copy):
            numbers += (step.length << 1 | 1, zigzag(step.at - at))
            at = step.at + step.length
        else:
            numbers.append(step.length << 1)
    return b"".join(map(write_varint, numbers))


def decode(data: Buffer) -> Delta:
    """The opposite of `encode`. Raises `Corrupt`, `Unsupported`."""
    numbers = Varints(data)
    if (form := numbers.next()) != FORMAT:
        raise Unsupported(f"delta format {form} is of a newer release: upgrade vaultfs")
    base, count = numbers.next(), numbers.next()
    steps: list[Step] = []
    at = 0
    for _ in range(count):
        head = numbers.next()
        if head & 1:
            start = at + numbers.signed()
            steps.append(Copy(start, head >> 1))
            at = start + (head >> 1)
        else:
            steps.append(Literal(head >> 1))
    if not numbers.ended:
        raise Corrupt("there is more behind the end of a delta")
    return Delta(base, sum(step.length for step in steps), tuple(steps))

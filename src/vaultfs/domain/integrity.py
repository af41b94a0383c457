"""What a verification looks at, and what it found."""

from enum import Enum
from typing import Final

from attrs import field, frozen

from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import InvalidField


class Depth(Enum):
    """How far a verification goes; each depth includes those before it."""

    CATALOG = "catalog"
    """The catalog agrees with itself, and knows a place for every chunk it names in line."""
    PACKS = "packs"
    """Every pack is in the store and has its size, and the digests that the store gives."""
    DIGESTS = "digests"
    """The bytes of every pack have the digest that is its key."""
    FULL = "full"
    """Every chunk decodes to its digest, and the index says where each one is."""

    def includes(self, other: "Depth") -> bool:
        """Whether a verification of this depth does what `other` does."""
        depths = list(Depth)
        return depths.index(self) >= depths.index(other)


MAX_SUBSET: Final = 20
"""Characters of a subset as it is written."""


@frozen
class Subset:
    """Part `number` of `parts` of all packs: a share of the work, the same every time."""

    number: int
    parts: int

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise InvalidField(f"subset {self.number}/{self.parts}: as in 1/7 up to 7/7")

    @staticmethod
    def parse(text: str) -> "Subset":
        """The subset written as `n/t`. Raises `InvalidField`."""
        number, _, parts = text.partition("/")
        if not (number.isdecimal() and parts.isdecimal()) or len(text) > MAX_SUBSET:
            raise InvalidField(f"subset {text!r}: as in 1/7 up to 7/7")
        return Subset(int(number), int(parts))

    def __contains__(self, pack: Digest) -> bool:
        return int.from_bytes(pack[:8], "big") % self.parts == self.number - 1


EVERYTHING = Subset(1, 1)


@frozen
class DamagedFile:
    """A version of a file that cannot be read back whole."""

    tree: str
    path: str
    number: int
    reason: str


@frozen
class Findings:
    """What a verification found and how much it looked at."""

    problems: tuple[str, ...] = ()
    """What is wrong, a sentence each, damaged files not repeated."""
    files: tuple[DamagedFile, ...] = ()
    """Every version of every file that is hit."""
    packs: int = 0
    chunks: int = 0
    versions: int = 0
    size: int = 0
    """Bytes read from the store."""
    bad_packs: tuple[Digest, ...] = field(default=(), repr=False)

    @property
    def clean(self) -> bool:
        return not self.problems and not self.files

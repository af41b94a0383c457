from collections.abc import Iterable
from itertools import accumulate, pairwise
from random import Random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.chunks import DEFAULT_CHUNKING, KIB, MAX_CHUNK, Chunker, chunking
from vaultfs.domain.errors import Unsupported

MINIMUM, MAXIMUM = DEFAULT_CHUNKING.minimum, DEFAULT_CHUNKING.maximum
DATA = blake3(b"vaultfs golden cut points").digest(4 << 20)
GOLDEN = [
    *(50698, 139820, 229190, 161719, 134988, 167911, 126990, 424138),
    *(135596, 127211, 112977, 163960, 333729, 113487, 237857, 140466),
    *(260948, 162271, 88023, 177870, 136887, 36419, 140285, 207261),
    *(146448, 37155),
]
"""Never to change: all that was ever stored was cut so."""


def cut(blocks: Iterable[bytes]) -> list[int]:
    """The lengths of the chunks of `blocks`, what was left carried to the next."""
    chunker, lengths, rest = Chunker(), list[int](), b""
    for block in blocks:
        rest += block
        found = chunker.cut(rest, last=False)
        assert len(rest) - sum(found) <= MAXIMUM
        rest = rest[sum(found) :]
        lengths += found
    return lengths + chunker.cut(rest, last=True)


def test_contents_are_cut_where_they_always_were() -> None:
    assert Chunker().cut(DATA, last=True) == GOLDEN
    assert Chunker().cut(memoryview(DATA), last=True) == GOLDEN
    assert Chunker().cut(bytearray(DATA), last=True) == GOLDEN


@given(st.lists(st.integers(0, len(DATA)), max_size=12))
@settings(deadline=None, max_examples=25)
def test_it_does_not_matter_in_which_blocks_a_content_comes(at: list[int]) -> None:
    ends = sorted([0, *at, len(DATA)])
    blocks = [DATA[start:stop] for start, stop in pairwise(ends)]
    assert cut(blocks) == GOLDEN


def test_cutting_goes_on_at_any_cut() -> None:
    for index, start in enumerate(accumulate(GOLDEN)):
        assert Chunker().cut(DATA[start:], last=True) == GOLDEN[index + 1 :]


@given(st.integers(0, 3 * MAXIMUM), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_chunks_have_their_bounds(size: int, seed: int) -> None:
    lengths = Chunker().cut(Random(seed).randbytes(size), last=True)
    assert sum(lengths) == size
    assert all(MINIMUM < length <= MAXIMUM for length in lengths[:-1])
    assert all(0 < length <= MAXIMUM for length in lengths)


@pytest.mark.parametrize("size", [0, 1, MINIMUM - 1, MINIMUM, MINIMUM + 1, MAXIMUM, MAXIMUM + 1])
def test_zeros_are_cut_at_the_maximum(size: int) -> None:
    expected = [length for length in (min(size, MAXIMUM), size - MAXIMUM) if length > 0]
    assert Chunker().cut(bytes(size), last=True) == expected


def test_what_may_still_grow_is_left() -> None:
    assert Chunker().cut(b"", last=False) == []
    assert Chunker().cut(bytes(MINIMUM), last=False) == []
    assert Chunker().cut(DATA, last=False) == GOLDEN[:-1]


def test_a_change_is_felt_for_a_few_chunks_only() -> None:
    changed = DATA[:1_000_000] + b"something new" + DATA[1_000_000:]
    lengths = Chunker().cut(changed, last=True)
    assert lengths[:3] == GOLDEN[:3]
    assert lengths[-10:] == GOLDEN[-10:]


def test_parameters_are_known_by_number() -> None:
    assert chunking(1) == DEFAULT_CHUNKING
    assert (MINIMUM, DEFAULT_CHUNKING.average, MAXIMUM) == (32 * KIB, 128 * KIB, 512 * KIB)
    assert MAXIMUM <= MAX_CHUNK
    with pytest.raises(Unsupported):
        chunking(2)

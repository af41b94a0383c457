"""Range maps: the laws of composition, and their bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.domain import deltas
from vaultfs.domain.deltas import (
    Copy,
    Delta,
    Literal,
    Step,
    Varints,
    apply,
    compose,
    decode,
    delta_of,
    encode,
    identity,
    write_varint,
    zigzag,
)
from vaultfs.domain.errors import Corrupt, Unsupported, VaultError


@st.composite
def edits(draw: st.DrawFn, base: bytes) -> tuple[Delta, bytes]:
    """A delta from `base`, and the target that it leads to."""
    steps: list[Step] = []
    target = bytearray()
    for _ in range(draw(st.integers(0, 8))):
        if base and draw(st.booleans()):
            at = draw(st.integers(0, len(base) - 1))
            length = draw(st.integers(1, len(base) - at))
            steps.append(Copy(at, length))
            target += base[at : at + length]
        else:
            new = draw(st.binary(max_size=5))
            steps.append(Literal(len(new)))
            target += new
    return delta_of(len(base), steps), bytes(target)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[bytes], list[Delta]]:
    """Four contents, and the deltas from each to the next."""
    contents = [draw(st.binary(max_size=40))]
    deltas: list[Delta] = []
    for _ in range(3):
        delta, target = draw(edits(contents[-1]))
        contents.append(target)
        deltas.append(delta)
    return contents, deltas


@given(chains())
def test_composing_is_applying_one_after_the_other(chain: tuple[list[bytes], list[Delta]]) -> None:
    contents, deltas = chain
    for base, target, delta in zip(contents, contents[1:], deltas, strict=False):
        assert apply(delta, base, target) == target
    both = compose(deltas[0], deltas[1])
    assert apply(both, contents[0], contents[2]) == contents[2]
    known = bytes(len(contents[2]))  # where the target is not asked, its bytes do not matter
    copied = apply(both, contents[0], known)
    after = apply(deltas[1], apply(deltas[0], contents[0], bytes(len(contents[1]))), known)
    assert copied == after


@given(chains())
def test_composing_is_associative_and_has_an_identity(
    chain: tuple[list[bytes], list[Delta]],
) -> None:
    _, (ab, bc, cd) = chain
    assert compose(compose(ab, bc), cd) == compose(ab, compose(bc, cd))
    assert compose(identity(ab.base), ab) == ab == compose(ab, identity(ab.target))


@given(chains())
def test_the_bytes_of_a_delta_are_read_again(chain: tuple[list[bytes], list[Delta]]) -> None:
    for delta in chain[1]:
        assert decode(encode(delta)) == delta


@given(st.integers(0, (1 << 63) - 1), st.integers(-(1 << 61), 1 << 61))
def test_varints(number: int, signed: int) -> None:
    assert Varints(write_varint(number)).next() == number
    assert Varints(write_varint(zigzag(signed))).signed() == signed


@given(st.binary(max_size=60))
def test_whatever_is_read_is_a_delta_or_refused(data: bytes) -> None:
    try:
        delta = decode(b"\x01" + data)
    except VaultError:
        return
    assert isinstance(delta, Delta)


def test_what_is_no_delta() -> None:
    assert delta_of(9, [Copy(0, 2), Literal(0), Copy(2, 1), Literal(1), Literal(2)]) == Delta(
        9, 6, (Copy(0, 3), Literal(3))
    )
    for steps in ((Copy(8, 2),), (Copy(-1, 1),), (Literal(0),), (Copy(0, 0),)):
        with pytest.raises(Corrupt):
            Delta(9, sum(step.length for step in steps), steps)
    with pytest.raises(Corrupt):
        Delta(9, 5, (Copy(0, 4),))
    with pytest.raises(Corrupt):
        compose(identity(4), identity(5))
    with pytest.raises(Unsupported):
        decode(b"\x02")
    with pytest.raises(Corrupt):
        decode(encode(identity(5)) + b"\0")
    with pytest.raises(Corrupt):
        decode(b"\x01\x05\x01" + b"\xff" * 10)


def test_what_is_repeated_again_and_again_is_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = delta_of(3000, [step for at in range(1000) for step in (Copy(3 * at, 1), Literal(1))])
    second = delta_of(2000, [Copy(0, 2000)] * 100)
    assert len(compose(first, second).steps) == 200_000
    monkeypatch.setattr(deltas, "MOST_STEPS", 100_000)
    with pytest.raises(Corrupt, match="too many steps"):
        compose(first, second)

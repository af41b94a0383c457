"""Hypothesis strategies that more than one test module uses."""

from attrs import frozen
from hypothesis import strategies as st

from vaultfs.ports.objects import PutMode, Span

KEYS: tuple[str, ...] = (
    "abc-def",
    "abc.def",
    "abc/def",
    "abc/def-ghi",
    "abc0",
    "packs/abc",
    "packs/abcd-short",
    "packs/abcd/long-" + "f" * 40,
    "packs/ab..-not-in-folders-of-two-characters",
    "packs/" + "abcd" * 15,
    "packs/" + "abce" * 15,
    "packs/" + "0" * 31,
    "packs/" + "0" * 32,
    "packs/" + "0" * 33 + "/below",
    "packs/zzz/" + "9" * 60,
    "tmp/key",
    "z" * 64,
)
"""Keys that lie close together in order, in folders, and in folders of folders; no digests."""


@frozen
class Put:
    key: str
    data: bytes
    mode: PutMode


@frozen
class Delete:
    key: str


@frozen
class DeleteMany:
    keys: tuple[str, ...]


@frozen
class Get:
    key: str
    span: Span | None


@frozen
class List:
    prefix: str
    start_after: str


Step = Put | Delete | DeleteMany | Get | List

keys = st.sampled_from(KEYS)
cut_keys = st.tuples(keys, st.integers(0, 12)).map(lambda cut: cut[0][: cut[1]])
spans = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
    lambda ends: Span(min(ends), max(ends))
)
puts = st.builds(Put, keys, st.binary(max_size=40), st.sampled_from(PutMode))
deletes = st.builds(Delete, keys)
batches = st.builds(DeleteMany, st.lists(keys, max_size=4).map(tuple))
gets = st.builds(Get, keys, st.none() | spans)
lists = st.builds(List, cut_keys, keys | cut_keys)
store_steps: st.SearchStrategy[tuple[Step, ...]] = st.lists(
    st.one_of(puts, puts, puts, deletes, batches, gets, lists), min_size=3, max_size=25
).map(tuple)

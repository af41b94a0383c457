"""Which packs go: mark and sweep, decided in pure functions.

Theory of operation
===================

A chunk is *needed* if the manifest of a version names it (the trash is made of versions),
or an upload session does. A *mark* looks at all of those as they are at one moment, walks
each page of a manifest once, and notes every chunk in `Marks`. A pack of which no chunk is
needed is *condemned*: it can still be read, and nothing else is done to it. A later
collection whose mark finds it needed takes that back; if it does not, and the pack has been
condemned for the grace period, the pack is *discarded*: first its rows, in one transaction,
then its bytes.

What a mark cannot see are contents that are on their way: chunks in packs, and no version
yet that names them. So whoever commits a version says in which packs its chunks were found
or put (`Unit.relies`). In the transaction of the commit each of them must be there still,
and is condemned no more if it was; else the commit is refused, and the bytes are sent anew.
A pack that was rewritten is as good as gone, for its chunks may be elsewhere and have no
fate in common with it: whoever relies on one looks for the chunks again. Commits share a
lock with each other that condemning, moving and discarding take alone. So of a pack and a
commit there are these orders:

    commit, mark, condemn       the mark has seen the version
    mark, commit, condemn       condemned by mistake; the next mark has seen the version,
                                for it begins behind the condemnation
    condemn, commit             the commit takes the condemnation back
    discard, commit             the commit is refused

That is why two complete marks stand before a discard, and the second begins after the
condemnation. Copies and restored versions name what a version named that was there in the
same transaction: a mark of one moment has seen that, or it relied on its packs itself.
The key of a pack that was let go of is never used again: a store may delete late, and a writer
that stored the same bytes may have been paused before it recorded them. It gives them another
key.

The grace period and the clock have no part in this: they are for people who change their
minds, and for transfers that would have to begin anew.

`Marks` is a Bloom filter (Bloom 1970): it may take a chunk for needed that is not, one in
100,000 or less, another one each time, and never the opposite. A pack may have thousands of
chunks, and one of them keeps it, so it has to be that few. Memory: 4 to 8 bytes a chunk. Where
there are few chunks, `ExactMarks` notes whole digests instead.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple

from attrs import define, field, frozen

from vaultfs.domain.digests import Digest
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import CHUNK_EXTRA, PACK_EXTRA

DAY_US: Final = 24 * 3600 * 1_000_000
GRACE_US: Final = DAY_US
"""Microseconds for which a pack is condemned before it is discarded."""
BREAKER: Final = 0.2
"""Of the bytes of all packs, what may be condemned at once without being confirmed."""
NO_BREAKER: Final = 64 << 20
"""Bytes that are never too much to be condemned."""
SPARSE: Final = 0.5
"""A pack of which less is needed is rewritten."""
TINY: Final = 1 << 20
"""Smaller packs are merged, once there are `MERGED` of them."""
MERGED: Final = 16
FULL: Final = 16 << 20
"""Bytes of a pack that is made of others, about."""
LEASE_US: Final = 600 * 1_000_000
"""A collection that was not heard of for so long is over."""
REWRITE_US: Final = 60 * 1_000_000
"""Packs that somebody began to rewrite so long ago may be rewritten by others: twice is fine."""
CHUNK_BITS: Final = 32
MOST_EXACT: Final = 1 << 18
"""Chunks up to which they are noted by their whole digests: 26 MB, 16 GiB of contents."""
HASHES: Final = 8
"""Bits that a chunk sets, but fewer where there are too many chunks for `CHUNK_BITS`."""
_MOST_BITS: Final = 1 << 29
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIXING: Final = 0xD6E8FEB86659FD93
_WORD: Final = (1 << 64) - 1


@define(eq=False)
class Marks:
    """Chunks of users that are needed, and a few that are not: 64 MiB at the most."""

    chunks: int
    """About how many are to be noted."""
    salt: int = 0
    """Another one makes other mistakes."""
    owners: set[UserId] = field(factory=set[UserId], init=False)
    """Who needs anything."""
    _shift: int = field(init=False)
    _hashes: int = field(init=False)
    _bits: bytearray = field(init=False)

    def __attrs_post_init__(self) -> None:
        wanted = min(max(self.chunks * CHUNK_BITS, 1 << 16), _MOST_BITS)
        width = (wanted - 1).bit_length()
        self._shift = 64 - width
        self._hashes = max(1, min(HASHES, (1 << width) * 7 // (10 * max(self.chunks, 1))))
        self._bits = bytearray((1 << width) // 8)

    # Parts of a digest, which is as good as random, are multiplied by an odd number (Dietzfelbinger
    # 1997), which makes others collide for each user and salt, and added (Kirsch and Mitzenmacher
    # 2006). The two loops are written out: they run for every chunk that there is.

    def add(self, owner: UserId, digests: Iterable[bytes]) -> None:
        """Note that `owner` needs the chunks `digests`. CPU work: 2 microseconds for each."""
        self.owners.add(owner)
        bits, shift, factor, hashes = self._bits, self._shift, self._factor(owner), self._hashes
        for digest in digests:
            at = int.from_bytes(digest[:8], "little") * factor & _WORD
            step = int.from_bytes(digest[8:16], "little") * factor & _WORD
            for _ in range(hashes):
                place = at >> shift
                bits[place >> 3] |= 1 << (place & 7)
                at = at + step & _WORD

    def has(self, owner: UserId, digest: bytes) -> bool:
        """Whether it was noted, or seems so."""
        bits, shift, factor = self._bits, self._shift, self._factor(owner)
        at = int.from_bytes(digest[:8], "little") * factor & _WORD
        step = int.from_bytes(digest[8:16], "little") * factor & _WORD
        for _ in range(self._hashes):
            place = at >> shift
            if not bits[place >> 3] >> (place & 7) & 1:
                return False
            at = at + step & _WORD
        return True

    def needed(self, rows: Sequence["ChunkRow"]) -> Iterator["ChunkRow"]:
        """Those of `rows` that are needed, or seem so."""
        return (row for row in rows if self.has(row[1], row[0]))

    def _factor(self, owner: UserId) -> int:
        return ((owner + 1) * _GOLDEN + self.salt * _MIXING) & _WORD | 1


@define(eq=False)
class ExactMarks:
    """The same without mistakes, in some 100 bytes a chunk, and three times as fast."""

    _noted: dict[UserId, set[bytes]] = field(factory=dict[UserId, set[bytes]])

    @property
    def owners(self) -> set[UserId]:
        """Who needs anything."""
        return {*self._noted}

    def add(self, owner: UserId, digests: Iterable[bytes]) -> None:
        """Note that `owner` needs the chunks `digests`."""
        self._noted.setdefault(owner, set()).update(digests)

    def has(self, owner: UserId, digest: bytes) -> bool:
        """Whether it was noted."""
        return digest in self._noted.get(owner, ())

    def needed(self, rows: Sequence["ChunkRow"]) -> list["ChunkRow"]:
        """Those of `rows` that are needed."""
        noted, none = self._noted, set[bytes]()
        return [row for row in rows if row[0] in noted.get(row[1], none)]


AnyMarks = Marks | ExactMarks


def marks_of(chunks: int, salt: int) -> AnyMarks:
    """Where to note about so many chunks."""
    return ExactMarks() if chunks <= MOST_EXACT else Marks(chunks, salt)


class ChunkRow(NamedTuple):
    """That a user has a chunk, and where: `size` bytes behind its header."""

    digest: Digest
    owner: UserId
    pack: int
    size: int


def count_needed(marks: AnyMarks, rows: Sequence[ChunkRow], needed: dict[int, int]) -> None:
    """Add to `needed` the bytes of each pack that are needed.

    `rows` are some of all rows, in the order of digests, none of a digest left out. Users have a
    chunk in common where it is in the same pack.
    """
    last: bytes | None = None
    counted: list[int] = []
    for digest, _, pack, size in marks.needed(rows):
        if digest != last:
            last, counted = digest, []
        if pack not in counted:
            counted.append(pack)
            needed[pack] = needed.get(pack, 0) + CHUNK_EXTRA + size


@frozen
class PackUse:
    """A pack as a collection finds it."""

    number: int
    key: Digest
    size: int
    created_us: int
    condemned_us: int | None = None
    collection: int = 0
    """By which it was condemned."""
    pinned: bool = False
    """Somebody was promised that it stays, and that has not run out."""
    needed: int = 0
    """Bytes of it that are needed, with what the pack says of them."""


def may_condemn(pack: PackUse) -> bool:
    """Whether a pack that nothing needs can be condemned."""
    return pack.condemned_us is None and not pack.pinned


def may_discard(pack: PackUse, collection: int, now_us: int, grace_us: int) -> bool:
    """Whether `collection`, whose mark is complete and found nothing that needs the pack, may
    let go of it: an earlier one has condemned it, long enough ago.
    """
    return (
        pack.condemned_us is not None
        and pack.collection < collection
        and now_us - pack.condemned_us >= grace_us
        and not pack.pinned
    )


@frozen
class Plan:
    """What a collection is to do."""

    condemn: tuple[PackUse, ...]
    revive: tuple[PackUse, ...]
    """Condemned ones that are needed after all."""
    discard: tuple[PackUse, ...]
    rewrite: tuple[tuple[PackUse, ...], ...]
    """Groups of packs of which one new pack each is to be made of what is needed."""
    total: int
    """Bytes of all packs."""
    young: tuple[PackUse, ...] = ()
    """Those that would be condemned if they were older."""

    @property
    def condemned_bytes(self) -> int:
        """Of what is to be condemned now."""
        return sum(pack.size for pack in self.condemn)

    @property
    def rewritten_bytes(self) -> int:
        """Of the packs that are to be made of others."""
        return sum(map(_size_of, self.rewrite))

    @property
    def trips(self) -> bool:
        """Whether so much is to be condemned that somebody should have a look first."""
        return self.condemned_bytes > max(NO_BREAKER, BREAKER * self.total)


def plan(
    packs: Iterable[PackUse],
    collection: int,
    now_us: int,
    *,
    grace_us: int = GRACE_US,
    young_us: int | None = None,
    sparse: float = SPARSE,
) -> Plan:
    """What is to become of `packs`, of which a complete mark says what is needed.

    Packs younger than `young_us`, by default the grace period, are left alone: a transfer may
    be about to name them. Those of which a smaller part than `sparse` is needed are rewritten;
    none is, and none is merged, where that is 0.
    """
    young_us = grace_us if young_us is None else young_us
    fates: dict[_Fate, list[PackUse]] = {fate: [] for fate in _Fate}
    total = 0
    for pack in packs:
        total += pack.size
        young = now_us - pack.created_us < young_us
        fate = _fate(pack, collection, now_us, grace_us, sparse, young=young)
        fates[fate].append(pack)
    emptyish, tiny = fates[_Fate.REWRITE], fates[_Fate.MERGE]
    groups = _groups(emptyish + (tiny if len(tiny) >= MERGED else [])) if sparse else ()
    return Plan(
        tuple(fates[_Fate.CONDEMN]),
        tuple(fates[_Fate.REVIVE]),
        tuple(fates[_Fate.DISCARD]),
        tuple(group for group in groups if _pays(group, sparse)),
        total,
        tuple(fates[_Fate.YOUNG]),
    )


class _Fate(Enum):
    STAY = "stay"
    YOUNG = "young"
    CONDEMN = "condemn"
    REVIVE = "revive"
    DISCARD = "discard"
    REWRITE = "rewrite"
    MERGE = "merge"


def _fate(
    pack: PackUse, collection: int, now_us: int, grace_us: int, sparse: float, *, young: bool
) -> _Fate:
    if pack.condemned_us is not None:
        if pack.needed:
            return _Fate.REVIVE
        discarded = may_discard(pack, collection, now_us, grace_us)
        return _Fate.DISCARD if discarded else _Fate.STAY
    if pack.pinned or (young and pack.needed):
        return _Fate.STAY
    if not pack.needed:
        return _Fate.YOUNG if young else _Fate.CONDEMN
    if _is_sparse(pack, sparse):
        return _Fate.REWRITE
    return _Fate.MERGE if pack.size < TINY else _Fate.STAY


def _is_sparse(pack: PackUse, sparse: float) -> bool:
    return pack.needed < sparse * pack.size


def _pays(group: Sequence[PackUse], sparse: float) -> bool:
    """Whether there are fewer packs, or bytes, once `group` is rewritten: else it would be, again
    and again.
    """
    first, *more = group
    return bool(more) or (_is_sparse(first, sparse) and _size_of(group) < first.size)


def _size_of(group: Sequence[PackUse]) -> int:
    """Bytes of a pack that is made of what is needed of `group`."""
    return PACK_EXTRA + sum(pack.needed for pack in group)


def _groups(packs: Iterable[PackUse]) -> Iterator[tuple[PackUse, ...]]:
    """`packs` in groups that fill a pack each with what is needed of them."""
    group: list[PackUse] = []
    size = 0
    for pack in sorted(packs, key=lambda pack: pack.number):  # neighbours in time stay so
        if group and size + pack.needed > FULL:
            yield tuple(group)
            group, size = [], 0
        group.append(pack)
        size += pack.needed
    if group:
        yield tuple(group)

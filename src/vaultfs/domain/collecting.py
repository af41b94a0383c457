"""The steps of collections and scrubs that change a catalog, each a transaction of its own.

`Catalog.collect` executes them. What they promise to commits that are under way is said in
`domain.collection`. Each but `Begin`, `BeginScrub` and `Revive` belongs to a run, and is
refused with `Fenced` once that is over, or a newer one has begun.
"""

from typing import Final

from attrs import field, frozen

from vaultfs.domain.digests import Digest
from vaultfs.domain.operations import RecordPack

SCRUB_CLAIM_US: Final = 120 * 1_000_000
"""A pack that a scrub said it would look at so long ago is any other scrub's again."""


@frozen
class Begin:
    """Have `holder` collect what nothing needs; the answer is the collection's number.

    Refused with `Busy` while another one is under way and was heard of in the last ten
    minutes, and with `Conflict` where a catalog came from a backup and was not reconciled
    with the store. The same holder is given the same number again.
    """

    holder: str


@frozen
class Beat:
    """The collection is still under way."""

    collection: int


@frozen
class End:
    """The collection is over; `complete` if nothing went wrong."""

    collection: int
    complete: bool
    report: str
    """JSON, for people to read again."""


@frozen
class Condemn:
    """A complete mark has found nothing that needs these packs; how many are condemned by it."""

    collection: int
    packs: tuple[int, ...]


@frozen
class Revive:
    """Packs are condemned no more, all there are if `packs` is None; how many were."""

    packs: tuple[int, ...] | None = None


@frozen
class MoveChunks:
    """Chunks that were copied into the pack `record` are read from there, whoever has them.

    `moves` are indexes of entries of `record`, each with the number of a pack that it is in so
    far. All packs in `sources` are condemned, and rewritten: what is left in them is as good as
    unknown, and nobody can rely on it. Nothing happens if one of them is pinned, or gone; the
    answer is how many chunks were moved. Refused with `Doomed`.
    """

    collection: int
    record: RecordPack
    moves: tuple[tuple[int, int], ...] = field(repr=lambda moves: f"<{len(moves)} chunks>")
    sources: tuple[int, ...]


@frozen
class OfferRewrites:
    """Have packs rewritten by whoever claims them; `work` says which, in the collector's words.

    What was offered before is forgotten. The answer is how many pieces of work there are.
    """

    collection: int
    work: tuple[bytes, ...] = field(repr=lambda work: f"<{len(work)} pieces>")


@frozen
class NoteRewritten:
    """A piece of work that was offered is done; nothing if somebody else was faster."""

    collection: int
    rewrite: int
    done: str
    """JSON: what came of it."""


@frozen
class Rewrite:
    """A piece of work, for whoever has claimed it."""

    number: int
    collection: int
    work: bytes = field(repr=lambda work: f"<{len(work)} bytes>")


@frozen
class Discard:
    """Let go of a pack, its rows and those of its chunks, and doom its object; 1 if so.

    `digests` are those of its chunks. Nothing happens unless `collection.may_discard`.
    """

    collection: int
    pack: int
    digests: tuple[Digest, ...] = field(repr=lambda digests: f"<{len(digests)} digests>")
    grace_us: int


@frozen
class Doom:
    """Objects of packs that no row names, and none is to; how many of `keys` are doomed by it."""

    collection: int
    keys: tuple[Digest, ...] = field(repr=lambda keys: f"<{len(keys)} keys>")


@frozen
class NoteDeleted:
    """The objects of doomed packs were deleted, as the store says. Their keys stay doomed."""

    collection: int
    keys: tuple[Digest, ...] = field(repr=lambda keys: f"<{len(keys)} keys>")


@frozen
class Reconcile:
    """The catalog was compared with its store: what it does not name may be collected.

    Refused with `Conflict` where a catalog came from a backup and has no new index yet.
    """


@frozen
class BeginScrub:
    """A scrub begins; the answer is its number."""


@frozen
class NoteScrubbed:
    """Packs were looked at: for each its number, and whether it was found right."""

    scrub: int
    packs: tuple[tuple[int, bool], ...]
    size: int
    """Bytes that were read; none if only sizes and the store's own digests were compared."""
    store: str
    """Where they were looked at."""
    findings: str = "[]"
    """JSON of all that it has found so far: it may be killed before it ends, and the next one
    goes on behind what was noted.
    """


@frozen
class EndScrub:
    """A scrub is over; `findings` is JSON, for people to read again."""

    scrub: int
    findings: str


Step = (
    Begin
    | Beat
    | End
    | Condemn
    | Revive
    | MoveChunks
    | OfferRewrites
    | NoteRewritten
    | Discard
    | Doom
    | NoteDeleted
    | Reconcile
    | BeginScrub
    | NoteScrubbed
    | EndScrub
)

"""The steps of a migration that change a catalog, each a transaction of its own.

`Catalog.migrate` executes them. Those that change the placement raise its epoch first, which
waits for commits that go by the one before; `if_epoch` refuses them with `Conflict` where
somebody else was faster.
"""

from attrs import field, frozen

from vaultfs.domain.digests import Digest
from vaultfs.domain.migration import AT_ONCE, Command, Level, Pace

MOST_ATTEMPTS = 5
"""To copy a pack; it is listed as failed then, and blocks the cutover."""
CLAIM_US = 300 * 1_000_000
"""A pack that somebody began to copy so long ago is anybody's again."""
ALIVE_US = 90 * 1_000_000
"""A server that was not heard of for so long is not running."""


@frozen
class Propose:
    """Begin a migration in its first phase. Answers the epoch."""

    source: str
    target: str
    level: Level
    pace: Pace = AT_ONCE


@frozen
class Follow:
    """Go on to the phase that `command` leads to. Answers the epoch."""

    command: Command
    if_epoch: int | None = None


@frozen
class Pause:
    """Stop copying, or go on. Answers the epoch."""

    paused: bool
    if_epoch: int | None = None


@frozen
class Throttle:
    """Copy at this pace, all processes together. Answers the epoch."""

    pace: Pace
    if_epoch: int | None = None


@frozen
class Settle:
    """Have everything be in one store, in a catalog that knows no pack yet. Answers the epoch."""

    store: str


@frozen
class Announce:
    """A server is running, and knows where these stores are; or it is not any more."""

    server: str
    """Its id."""
    name: str
    """What people call it: its address."""
    stores: tuple[str, ...]
    gone: bool = False


@frozen
class NoteCopied:
    """What became of packs that were claimed for the store `store`: number, level, error.

    One that is there no longer is passed over, and so are all of them if another migration to
    the store began after they were claimed: it may have been emptied. Answers how many are
    there now.
    """

    store: str
    packs: tuple[tuple[int, int, str | None], ...]
    since: int
    """As `Claimed` says it."""
    put_off: tuple[tuple[int, str], ...] = ()
    """Those that a store did not answer about, and what it said: that is no attempt."""


@frozen
class Retry:
    """Give packs that could not be copied as many attempts again. Answers how many."""

    store: str


@frozen
class NoteLost:
    """Packs are not in the store `store`, whatever their rows say: they are to be copied again."""

    store: str
    keys: tuple[Digest, ...] = field(repr=lambda keys: f"<{len(keys)} keys>")


Step = Propose | Follow | Pause | Throttle | Settle | Announce | NoteCopied | Retry | NoteLost


@frozen
class Claimed:
    """A pack to be copied, by whoever claimed it."""

    number: int
    key: Digest
    size: int
    crc32c: int | None
    since: int = 0
    """The epoch from which on what is put into the store counts: see `domain.migration`."""


@frozen
class Failure:
    """A pack that could not be copied."""

    key: Digest = field(repr=lambda key: key.hex()[:12])
    attempts: int
    error: str


@frozen
class Counts:
    """How far a migration is, in packs and bytes: counted, never guessed."""

    packs: int
    size: int
    """Bytes of all packs."""
    there: int
    """Packs that are in the store that is copied to."""
    there_size: int
    failed: int
    read_back: int

"""The catalog port: which nodes and versions there are, and where their chunks stand.

The write side is `apply`: units of operations (`domain.operations`), executed whole.
There is no open write transaction, so nothing outside can hold one up.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple

from attrs import frozen

from vaultfs.domain.access import Role
from vaultfs.domain.chains import Edge
from vaultfs.domain.digests import Digest
from vaultfs.domain.manifests import Entry, Manifest
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import Node, NodeId, TreeId, User, UserId, Version, VersionId
from vaultfs.domain.retention import Retention
from vaultfs.domain.tokens import Token

if TYPE_CHECKING:  # readers of a catalog need not load the operations and all they know
    from vaultfs.domain.batches import Batch
    from vaultfs.domain.batches import Outcome as BatchOutcome
    from vaultfs.domain.collecting import Rewrite
    from vaultfs.domain.collecting import Step as CollectStep
    from vaultfs.domain.collection import ChunkRow, PackUse
    from vaultfs.domain.migrating import Claimed, Counts, Failure
    from vaultfs.domain.migrating import Step as MigrationStep
    from vaultfs.domain.migration import Level, Placement
    from vaultfs.domain.operations import Outcome, RecordPack, Unit
    from vaultfs.domain.uploads import Upload
    from vaultfs.ports.locks import LockStore


class Location(NamedTuple):
    """Where a chunk's header and stored bytes are."""

    pack: Digest
    offset: int
    """Of the header."""
    size: int
    """Of the stored bytes behind the header."""
    length: int
    """Of the content."""
    number: int = 0
    """Of the pack: see `Unit.relies`."""


@frozen
class Known:
    """What a catalog knows of some digests, as seen by one user."""

    own: Mapping[Digest, int]
    """The user has sent these before; with the number of the pack that each is in."""
    foreign: frozenset[Digest]
    """Only others have: to be used once the user has proved to hold the bytes."""


class Change(NamedTuple):
    """An entry of a tree's change feed."""

    seq: int
    """Dense from 1 on within the tree."""
    node: NodeId
    kind: str
    """The operation: `put`, `mkdir`, `move`, `copy`, `delete`, `restore`, `purge`, ..."""
    revision: int
    version: VersionId | None
    actor: UserId
    at_us: int
    op_id: str


class Audited(NamedTuple):
    """Something that was done to users, tokens or limits."""

    id: int
    """Ascending."""
    at_us: int
    actor: UserId
    kind: str
    """`add-user`, `set-quota`, `add-token`, ..."""
    subject: str
    op_id: str


class Granted(NamedTuple):
    """What somebody was granted on a node and all below it."""

    node: NodeId
    tree: TreeId
    user: str
    """The name of who was granted it."""
    owner: str
    """The name of the tree's owner."""
    role: Role
    at_us: int


class Naming(NamedTuple):
    """Something that names chunks: a version's manifest, or some entries of an upload session."""

    owner: UserId
    """Whose chunks they are."""
    manifest: bytes | None
    entries: bytes | None


class Collected(NamedTuple):
    """A collection: see `domain.collecting`."""

    number: int
    holder: str
    begun_us: int
    ended_us: int | None
    complete: bool
    report: str
    """JSON."""


class Scrubbed(NamedTuple):
    """A scrub, and what it found."""

    number: int
    begun_us: int
    ended_us: int | None
    packs: int
    size: int
    """Bytes that were read."""
    findings: str
    """JSON."""


class ScrubRow(NamedTuple):
    """A pack, and when it was last looked at; None for never."""

    number: int
    key: Digest
    size: int
    crc32c: int | None
    created_us: int
    scrubbed_us: int | None
    seen_us: int | None


class ScrubWanted(NamedTuple):
    """What a scrub wants to look at next."""

    scrub: int
    """Its number."""
    before_us: int
    """What was not read since then."""
    store: str
    cheap: bool = False
    """What was not looked at since then."""
    limit: int = 100


class Trashed(NamedTuple):
    """A node in the trash and the path it would be restored to."""

    node: Node
    path: Path


class PackRow(NamedTuple):
    """A pack as the catalog knows it."""

    key: Digest
    size: int
    crc32c: int | None
    backend: str


class VersionRef(NamedTuple):
    """A version of any tree, for walks over all contents."""

    id: VersionId
    node: NodeId
    owner: UserId
    number: int
    manifest_bytes: bytes

    @property
    def manifest(self) -> Manifest:
        """Raises `Corrupt` or `Unsupported`."""
        return Manifest.decode(self.manifest_bytes)


class Unverified(NamedTuple):
    """A version whose digest nobody has found to be right yet."""

    id: VersionId
    owner: UserId
    manifest_bytes: bytes
    claimed: Digest | None

    @property
    def manifest(self) -> Manifest:
        """Raises `Corrupt` or `Unsupported`."""
        return Manifest.decode(self.manifest_bytes)


@frozen
class CatalogStats:
    """Counts of what there is; bytes unless said otherwise.

    Folders, among them the tops of trees, files and versions are counted with the trash.
    """

    users: int
    folders: int
    files: int
    versions: int
    trashed: int
    """Nodes that were deleted and can be restored, what is below them not counted."""
    logical: int
    """Bytes of all versions, as if nothing were deduplicated or compressed."""
    current: int
    """Bytes of the current versions outside the trash."""
    packs: int
    packed: int
    """Bytes of all packs."""
    chunks: int
    trash: int
    """Bytes of all versions that are in the trash, as if nothing were shared or compressed."""
    condemned: int
    """Bytes of packs that nothing needs, until the grace period is over."""


@frozen
class Usage:
    """What a vault holds; bytes unless said otherwise."""

    catalog: CatalogStats
    live: int
    """Stored bytes of chunks that some version needs, headers included."""
    unreferenced: int
    """Bytes of packs that no version needs: purged contents and interrupted puts."""
    damaged: int = 0
    """Versions whose chunks are not all known, because a part of their manifest is lost."""


class Reindexing(ABC):
    """A chunk index under construction; nobody sees it before it is finished."""

    __slots__ = ()

    @abstractmethod
    async def add_pack(self, pack: "RecordPack") -> None:
        """Take in a pack's chunks. `claims` are ignored: owners come from `claim`."""

    @abstractmethod
    async def locate(self, digests: Sequence[Digest]) -> dict[Digest, Location]:
        """Where those of `digests` are that an added pack holds."""

    @abstractmethod
    async def claim(self, user: UserId, digests: Sequence[Digest]) -> None:
        """Say that `user` has these; those that no pack holds are passed over."""


class Catalog(ABC):
    """What every catalog promises; `tests/contracts/catalog.py` holds it to it.

    Safe for many tasks at once, and for many processes where several open one
    database. Reads see everything that was acknowledged before they began. Lists go
    by key, never by offset, so their cost does not depend on how much lies before.
    Any method raises `CatalogUnavailable`, or `Busy` when another process holds
    the database for longer than it should.
    """

    __slots__ = ()

    @abstractmethod
    async def apply(self, units: "Sequence[Unit]") -> "list[Outcome]":
        """Execute `units` one after another; an outcome for each, in their order.

        A refused unit changes nothing and does not hold up the others. When this
        returns, every `Done` is durable. It raises only if the database fails, and
        then no unit was executed, unless it raises `OutcomeUnknown`. A call that is
        cancelled before the units were begun leaves nothing; later, they are executed
        all the same, and `outcome` tells.
        """

    @abstractmethod
    async def batch(self, batch: "Batch") -> "BatchOutcome":
        """Execute a batch in one transaction; what became of each of its operations.

        Durable when it returns, if it says `committed`. An answer that is kept for the key of
        the batch is given instead of doing anything; one with the same key waits until this
        one is over. Raises `KeyReused`, and what `apply` raises; cancelled as that is.
        """

    @abstractmethod
    async def roles(self, user: UserId, tree: TreeId) -> dict[NodeId, Role]:
        """What `user` was granted on nodes of `tree`, which is another's."""

    @abstractmethod
    async def grants(self, nodes: Sequence[NodeId]) -> list[Granted]:
        """What was granted on `nodes`, by node and user name; at most 64 nodes."""

    @abstractmethod
    async def granted_to(
        self, user: UserId, *, after: NodeId | None = None, limit: int = 1000
    ) -> list[Granted]:
        """Up to `limit` grants to `user` on nodes with ids above `after`, by node."""

    @abstractmethod
    async def outcome(self, op_id: str) -> tuple[Change, ...]:
        """The feed entries of the unit `op_id`; empty if it was not executed.

        Units that change no node (`RecordPack` and the like) leave no entry.
        """

    @abstractmethod
    async def user(self, name: str) -> User:
        """The user of that name. Raises `NotFound`."""

    @abstractmethod
    async def users(self) -> list[User]:
        """All users, by name."""

    @abstractmethod
    async def token(self, number: str) -> tuple[Token, User] | None:
        """The token of that id and its owner, good or not: one round trip."""

    @abstractmethod
    async def tokens(self, owner: UserId) -> list[Token]:
        """All tokens of a user that were not revoked, by id."""

    @abstractmethod
    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[Audited]:
        """Up to `limit` audit rows, in order, with ids above `after`."""

    @abstractmethod
    async def retention(self, tree: TreeId) -> Retention:
        """Which old versions of the tree are kept. Raises `NotFound`."""

    @abstractmethod
    async def resolve(self, tree: TreeId, path: Path) -> tuple[Node, ...]:
        """The nodes along `path` from the root, as far as they exist: one round trip.

        The path exists if there is one more node than names. Empty if there is no
        such tree. Nodes in the trash are not there.
        """

    @abstractmethod
    async def node(self, tree: TreeId, path: Path) -> Node | None:
        """The last of what `resolve` gives, if the path exists; in a fraction of its time."""

    @abstractmethod
    async def file(
        self, tree: TreeId, path: Path, number: int | None = None
    ) -> tuple[tuple[Node, ...], Version | None]:
        """As `resolve`, and the file's current version, or version `number`: one round trip.

        No version for a folder, for a path that does not exist, or if `number` is gone.
        """

    @abstractmethod
    async def children(self, folder: NodeId, *, after: str = "", limit: int = 1000) -> list[Node]:
        """Up to `limit` nodes of a folder, ascending by the key of their names (`key_of`),
        beginning above the key `after`.
        """

    @abstractmethod
    async def versions(
        self, node: NodeId, *, before: int | None = None, limit: int = 1000
    ) -> list[Version]:
        """Up to `limit` versions of a file, newest first, with numbers below `before`."""

    @abstractmethod
    async def current_versions(self, nodes: Sequence[NodeId]) -> dict[NodeId, Version]:
        """The current versions of those of `nodes` that are files."""

    @abstractmethod
    async def node_path(self, node: NodeId) -> tuple[TreeId, Path]:
        """Where a node stands, or would if nothing above it were in the trash.

        Raises `NotFound`.
        """

    @abstractmethod
    async def node_paths(self, nodes: Sequence[NodeId]) -> dict[NodeId, tuple[TreeId, Path]]:
        """The same for those of `nodes` that there are, as they are at one moment."""

    @abstractmethod
    async def trash(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Trashed]:
        """Up to `limit` nodes that were deleted, ascending by id, with ids above `after`."""

    @abstractmethod
    async def files_with_history(
        self, tree: TreeId, *, after: int = 0, limit: int = 1000
    ) -> list[NodeId]:
        """Up to `limit` files with more than one version, ascending by id, above `after`."""

    @abstractmethod
    async def changes(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Change]:
        """Up to `limit` entries of the tree's feed, in order, with `seq` above `after`."""

    @abstractmethod
    async def newest_change(self, tree: TreeId) -> Change | None:
        """The last entry of the tree's feed, if it has any."""

    @abstractmethod
    async def known(self, user: UserId, digests: Sequence[Digest]) -> Known:
        """Which of `digests` need not be stored again: see `Unit.relies`."""

    @abstractmethod
    async def locate(self, user: UserId, digests: Sequence[Digest]) -> dict[Digest, Location]:
        """Where those of `digests` are that `user` has."""

    @abstractmethod
    async def packs(self, *, after: Digest | None = None, limit: int = 1000) -> list[PackRow]:
        """Up to `limit` packs, ascending by key, above `after`."""

    @abstractmethod
    async def has_pack(self, key: Digest) -> bool:
        """Whether the pack is recorded."""

    @abstractmethod
    async def chunks_of(self, packs: Sequence[Digest]) -> list[tuple[Digest, Location]]:
        """The chunks that the index says are in `packs`, each once; linear in the index."""

    @abstractmethod
    async def index(
        self, *, after: Digest | None = None, limit: int = 1000
    ) -> list[tuple[Digest, Location]]:
        """The chunk index by digest, above `after`: all places of about `limit` digests.

        A digest whose users have it in several places comes once for each place.
        """

    @abstractmethod
    async def collect(self, step: "CollectStep", actor: UserId, at_us: int) -> int:
        """Execute a step of a collection or a scrub; what it answers (`domain.collecting`).

        Durable on return. Raises what the step is refused with, and what `apply` raises.
        """

    @abstractmethod
    async def placement(self) -> "Placement | None":
        """Where packs are put and looked for; None where there never was but one store."""

    @abstractmethod
    async def migrate(self, step: "MigrationStep", actor: UserId, at_us: int) -> int:
        """Execute a step of a migration; what it answers (`domain.migrating`).

        Durable on return. Raises what the step is refused with, and what `apply` raises.
        """

    @abstractmethod
    async def claim_copies(
        self, store: str, at_us: int, *, after: int = 0, limit: int = 16
    ) -> "list[Claimed]":
        """Up to `limit` packs that `store` lacks, for the caller to copy: nobody else is given
        them for `migrating.CLAIM_US`. None as long as `copies_wait` is more than 0.

        Those with numbers above `after` are looked at first, the others if none of them is to be
        copied: who claims one pack after another need not pass over all that are copied.
        """

    @abstractmethod
    async def copies_wait(self, at_us: int) -> int:
        """For how many microseconds the pace of the migration has everybody wait."""

    @abstractmethod
    async def to_read_back(
        self, store: str, level: int, at_us: int, *, limit: int = 16
    ) -> "list[Claimed]":
        """Up to `limit` packs that were copied to `store` and verified below `level`, by key,
        claimed as by `claim_copies`.
        """

    @abstractmethod
    async def unaware(self, store: str, at_us: int) -> tuple[str, ...]:
        """The names of servers that run and do not know where `store` is."""

    @abstractmethod
    async def unread(self, store: str, level: "Level") -> int:
        """How many packs are to be read back from `store` yet, as `level` has it."""

    @abstractmethod
    async def packs_in(
        self, store: str, *, after: Digest | None = None, limit: int = 1000
    ) -> list[PackRow]:
        """Up to `limit` packs that are in `store`, as the rows say, by key, above `after`."""

    @abstractmethod
    async def copy_failures(self, store: str, *, limit: int = 1000) -> "list[Failure]":
        """Packs that could not be copied to `store`, by key."""

    @abstractmethod
    async def copy_counts(self, store: str) -> "Counts":
        """How many packs there are, and how many of them are in `store`; linear in them."""

    @abstractmethod
    def namings(self) -> AsyncGenerator["Sequence[Naming]", None]:
        """All that names chunks, as it is at one moment, some at a time.

        The caller closes the generator, and soon: a database keeps that moment for it.
        """

    @abstractmethod
    async def chunk_rows(
        self, *, after: Digest | None = None, limit: int = 8192
    ) -> "Sequence[ChunkRow]":
        """All rows of about `limit` chunks, by digest, above `after`."""

    @abstractmethod
    async def count_chunks(self) -> int:
        """How many rows `chunk_rows` has."""

    @abstractmethod
    async def pack_uses(self, now_us: int, *, after: int = 0, limit: int = 1000) -> "list[PackUse]":
        """Up to `limit` packs, by number, above `after`; what is needed of them is not told."""

    @abstractmethod
    async def doomed(self, *, limit: int = 1000) -> list[Digest]:
        """Keys of up to `limit` packs whose objects are to be deleted."""

    @abstractmethod
    async def collections(self, *, limit: int = 20) -> list[Collected]:
        """The newest collections, newest first."""

    @abstractmethod
    async def claim_rewrite(self, at_us: int) -> "Rewrite | None":
        """Packs that the collection which is under way wants rewritten, for the caller to do.

        Nobody else is given them for `collection.REWRITE_US`. None if there are no more, now.
        """

    @abstractmethod
    async def rewrites(self, collection: int) -> list[str | None]:
        """What came of each piece of work that `collection` offered last; None: not done yet."""

    @abstractmethod
    async def scrubs(self, *, limit: int = 20) -> list[Scrubbed]:
        """The newest scrubs, newest first."""

    @abstractmethod
    async def claim_scrub(self, want: ScrubWanted, at_us: int) -> list[ScrubRow]:
        """Packs for a scrub to look at; no other scrub is given them until they are noted, or
        `collecting.SCRUB_CLAIM_US` is over, and this one never again.

        Those first that were not looked at for longest; one that never was counts from when it
        was made.
        """

    @abstractmethod
    async def all_versions(self, *, after: int = 0, limit: int = 1000) -> list[VersionRef]:
        """Up to `limit` versions of all trees, trash included, ascending by id, above `after`."""

    @abstractmethod
    async def deltas(self, node: NodeId) -> list[Edge]:
        """The deltas that are recorded between versions of a file, by target and base."""

    @abstractmethod
    async def delta(self, base: VersionId, target: VersionId) -> tuple[Digest, bytes] | None:
        """The digest of the base, and the steps (`domain.deltas.decode`), if it is recorded."""

    @abstractmethod
    async def unverified(self, *, after: int = 0, limit: int = 1000) -> list[Unverified]:
        """Up to `limit` versions with a digest that is claimed or absent, by id, above `after`.

        By an index: what is verified costs nothing.
        """

    @abstractmethod
    async def upload(self, number: str) -> "Upload":
        """The session with that id, as it is stored: it may have expired. Raises `NotFound`."""

    @abstractmethod
    async def uploads(self, owner: UserId, *, after: str = "", limit: int = 1000) -> "list[Upload]":
        """Up to `limit` sessions of a user that are open, by id, above `after`."""

    @abstractmethod
    async def upload_entries(self, number: str, *, at: int = 0) -> list[Entry]:
        """Entries of a session from byte `at` on, where one begins; some of them, in order.

        Empty at the end, and for a session that has none (any more).
        """

    @abstractmethod
    async def upload_tail(self, number: str) -> bytes:
        """The bytes of a session behind its last cut."""

    @abstractmethod
    async def stats(self) -> CatalogStats:
        """Counts of what there is, all of one moment. Takes time linear in the catalog."""

    @abstractmethod
    async def check(self) -> list[str]:
        """What is wrong with the catalog itself, a sentence each; linear in its size."""

    @abstractmethod
    def reindex(self) -> AbstractAsyncContextManager[Reindexing]:
        """Build the chunk index and the pack rows anew, in one transaction.

        On a clean exit the new index takes the place of the old; on an exception or a
        crash the old one stays. Meanwhile others can read, and writes wait. Raises
        `Busy` when somebody else is writing for long.
        """

    @abstractmethod
    def dump(self) -> AsyncGenerator[bytes, None]:
        """A consistent copy of everything but the chunk index, which `reindex` makes anew.

        In pieces of about a MiB; the same text for every kind of catalog.
        """

    @abstractmethod
    async def load(self, pieces: AsyncGenerator[bytes, None]) -> None:
        """Fill this catalog, which has to be empty, with what `dump` gave.

        All or nothing. Ids given out later do not repeat any that were given out after
        the dump was made. Raises `Unsupported` for a dump of a newer release,
        `Corrupt` for one that is damaged, `Conflict` if the catalog is not empty.
        """

    @abstractmethod
    def lock_store(self) -> "LockStore":
        """Where the locks of the trees in this catalog are kept: one for each catalog that is open.

        `apply` compares every unit with them in its transaction.
        """

    @abstractmethod
    async def vault_id(self) -> str:
        """The id of the installation, made with the catalog."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was handed over and let go of the database."""

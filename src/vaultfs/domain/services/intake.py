"""Taking in frames: chunks that a client has cut, and the files that it makes of them.

Nothing that the client says is believed. Every chunk is decoded and hashed before it
goes into a pack; a file is committed only if each chunk that it names came in the same
stream or is the caller's already, with the length that it says. Knowing a digest is not
having its chunk. The commits of a stream go into one group, with the pack that holds
their chunks; nothing is committed before the end of the stream has come. A stream that
is cut short, or a crash, leaves chunks that no version names.

The digest of a whole file is verified where its chunks came right in front of it, in
their order, for then they pass through here as the file does; what was claimed has to
match. Otherwise it stays a claim.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import anyio
from anyio import to_thread
from attrs import define, field, frozen
from blake3 import blake3

from vaultfs.domain.access import Role
from vaultfs.domain.chunks import chunking
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.errors import (
    ChunksMissing,
    Corrupt,
    InvalidField,
    TooLarge,
    Unsupported,
    VaultError,
    listed,
)
from vaultfs.domain.frames import (
    HEAD_SIZE,
    MAX_FRAME,
    End,
    Entry,
    Frame,
    Named,
    check_head,
    read_frame,
)
from vaultfs.domain.manifests import INLINE_ENTRIES, Manifest
from vaultfs.domain.names import parse_path
from vaultfs.domain.nodes import Content, DigestState, TreeId, User, owner_of
from vaultfs.domain.operations import MakeFolder, Outcome, PutFile, Refused, Result
from vaultfs.domain.packs import Codec, Kind, StoredChunk, contents_of
from vaultfs.domain.services.budget import BLOCK, Budget, Use
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.ingest import Ingested
from vaultfs.domain.services.packer import Placed
from vaultfs.ports.trees import Source

MOST_ENTRIES: Final = 1000
"""Files and folders of one stream."""
MOST_CHUNKS: Final = MOST_ENTRIES * INLINE_ENTRIES
MOST_BYTES: Final = 64 << 20
"""Of one stream."""


class Taken(NamedTuple):
    """What became of an entry."""

    entry: Entry
    result: Result | VaultError


@frozen
class _Parsed:
    """What a block of a stream holds."""

    chunks: list[StoredChunk]
    rest: bytes
    """The beginning of a frame whose end is in the next block."""


@define(eq=False)
class _Reader:
    """Parses and verifies a stream, block by block; used in threads, by one at a time."""

    lengths: dict[Digest, int] = field(factory=dict[Digest, int])
    """Of the contents of all chunks so far."""
    entries: list[tuple[Entry, Digest | None]] = field(factory=list[tuple[Entry, Digest | None]])
    """With their digests, where those are verified."""
    ended: bool = False
    _chunks: int = 0
    _begun: bool = False
    _run: list[Digest] = field(factory=list[Digest])
    """Chunks since the last entry."""
    _first: Buffer | None = None
    """The content of the first of them, until it is hashed: mostly it is the only one."""
    _whole: blake3 = field(factory=blake3)
    """Of the contents of the run."""

    def read(self, data: memoryview) -> _Parsed:
        """What is in `data`. Raises `InvalidField`, `Unsupported`, `TooLarge`."""
        try:
            return self._read(data)
        except Corrupt as error:  # not of the vault, but of the request
            raise InvalidField(f"{error.message}: nothing was committed") from error

    def _read(self, data: memoryview) -> _Parsed:
        at, chunks = 0, list[StoredChunk]()
        if not self._begun:
            check_head(data[:HEAD_SIZE])
            at, self._begun = HEAD_SIZE, True
        held: list[Frame] = []
        size = 0
        while not self.ended:
            found = read_frame(data, at)
            if found is None:
                break
            frame, at = found
            held.append(frame)
            if isinstance(frame, StoredChunk):
                self._check(frame)
                size += frame.length
            if size > BLOCK or isinstance(frame, End):
                self._take(held, chunks)
                held, size = [], 0
        self._take(held, chunks)
        self._hash_first()  # it may be a view of the block
        if self.ended and at < len(data):
            raise Corrupt("something stands behind the end of the frames")
        return _Parsed(chunks, bytes(data[at:]))

    def _check(self, chunk: StoredChunk) -> None:
        """Refuse what is not to be decoded at all."""
        self._chunks += 1
        if self._chunks > MOST_CHUNKS:
            raise TooLarge(f"more than {MOST_CHUNKS} chunks in one request")
        if chunk.kind is not Kind.DATA:
            raise Unsupported("pages of manifests are not taken yet: put large files by themselves")
        if not chunk.length or (chunk.codec is not Codec.RAW and len(chunk.stored) >= chunk.length):
            raise Corrupt(f"chunk {chunk.digest.hex()} is empty, or longer than its content")

    def _take(self, frames: Sequence[Frame], chunks: list[StoredChunk]) -> None:
        """Verify `frames` in their order, and add what is new of them to `chunks`."""
        contents = iter(contents_of([each for each in frames if isinstance(each, StoredChunk)]))
        for frame in frames:
            match frame:
                case StoredChunk():
                    self._take_chunk(frame, next(contents), chunks)
                case Named():
                    raise Corrupt("chunks are named by the entries here")
                case Entry():
                    self._take_entry(frame)
                case End():
                    self._finish(frame)

    def _take_chunk(self, chunk: StoredChunk, content: Buffer, chunks: list[StoredChunk]) -> None:
        if not self._run:
            self._first = content
        elif len(self._run) <= INLINE_ENTRIES:
            self._hash_first()
            self._whole.update(content)
        self._run.append(chunk.digest)
        if chunk.digest in self.lengths:
            return
        self.lengths[chunk.digest] = chunk.length
        if chunk.codec is not Codec.RAW:  # a view would keep all of the block
            chunk = chunk._replace(stored=bytes(chunk.stored))
        chunks.append(chunk)

    def _hash_first(self) -> None:
        if self._first is not None:
            self._whole.update(self._first)
            self._first = None

    def _take_entry(self, entry: Entry) -> None:
        if len(self.entries) >= MOST_ENTRIES:
            raise TooLarge(f"more than {MOST_ENTRIES} entries in one request")
        self.entries.append((entry, self._verified(entry.manifest)))
        self._run.clear()
        self._first = None
        self._whole.reset()

    def _verified(self, manifest: Manifest | None) -> Digest | None:
        """The digest of the content that `manifest` is, if it has passed through here."""
        if manifest is None or manifest.level:
            return None
        names = [digest for digest, _ in manifest.entries]
        if not names:
            return digest_of(b"")
        if len(names) == 1:
            return names[0]
        return Digest(self._whole.digest()) if names == self._run else None

    def _finish(self, end: End) -> None:
        if end != (self._chunks, len(self.entries)):
            raise Corrupt("the end of the frames counts others than have come")
        self.ended = True


@define(eq=False)
class Intake:
    """One of these serves all callers of a process."""

    files: Files
    budget: Budget
    workers: anyio.CapacityLimiter
    _streams: anyio.Semaphore = field(init=False)
    """Bounds the rests that streams keep between two blocks, which nobody charges for."""

    def __attrs_post_init__(self) -> None:
        self._streams = anyio.Semaphore(max(1, self.budget.total // 4 // MAX_FRAME))

    async def take(
        self,
        caller: User,
        tree: str,
        source: Source,
        *,
        size: int | None = None,
        files: Files | None = None,
    ) -> list[Taken]:
        """Take in the frames that `source` gives, `size` bytes if that is known.

        `files` are those to commit with, where the caller presents locks.
        What became of each entry, in their order; durable on return. Raises, and commits
        nothing, `InvalidField` for what are no frames, `Unsupported` for those of a newer
        release, `TooLarge`, and what `source` raises. Memory: one block, charged, and the
        rest of one frame; some 5 MiB of decoded chunks beside it, in the thread that verifies.
        """
        where = await self.files.tree(caller, tree)
        holder = where
        if where != caller.tree:
            roles = await self.files.catalog.roles(caller.id, where)
            if Role.WRITER not in roles.values():  # each entry will be refused
                holder = caller.tree
        if size is not None and _bounded(size) < BLOCK:
            reader, placed = await self._read(holder, source, size + 1)
        else:
            async with self._streams:
                reader, placed = await self._read(holder, source, BLOCK)
        return await self._commit(files or self.files, caller, where, reader, placed)

    async def _read(self, tree: TreeId, source: Source, block: int) -> tuple[_Reader, Placed]:
        reader, placed = _Reader(), Placed()
        rest, total, last = b"", 0, False
        while not last:
            charge = await self.budget.charge(Use.WRITE, block)
            try:
                buffer = bytearray(block)
                buffer[: len(rest)] = rest
                room = memoryview(buffer)[len(rest) :]
                filled = await source.readinto(room)
                total, last = _bounded(total + filled), filled < len(room)
                data = memoryview(buffer)[: len(rest) + filled]
                parsed = await to_thread.run_sync(reader.read, data, limiter=self.workers)
            except BaseException:
                charge.release()
                raise
            rest = parsed.rest
            placed.take(await self.files.ingest.encoded(owner_of(tree), parsed.chunks, charge))
        if not reader.ended:
            raise InvalidField("the frames were cut short: nothing was committed")
        return reader, placed

    async def _commit(
        self, files: Files, caller: User, tree: TreeId, reader: _Reader, placed: Placed
    ) -> list[Taken]:
        # What is put into the tree of another has to be sent: what the owner has is no secret
        # to be asked about, and what the caller has is not the owner's.
        lengths, relies = reader.lengths, placed.relies
        if tree == caller.tree:
            lengths, found = await self._named(caller, reader)
            relies = relies | found
        foreign = set(placed.foreign)
        results: list[Result | VaultError | None] = [None] * len(reader.entries)
        puts: dict[int, tuple[PutFile, Ingested]] = {}
        folders: dict[int, MakeFolder] = {}
        for index, (entry, verified) in enumerate(reader.entries):
            try:
                path = parse_path(entry.path)
                if entry.manifest is None:
                    folders[index] = MakeFolder(tree, path, parents=True, exist_ok=True)
                    continue
                content = _content(entry, entry.manifest, verified, lengths)
            except VaultError as error:
                results[index] = error
                continue
            operation = PutFile(tree, path, content, entry.origin, entry.preconditions, True)
            own = [digest for digest, _ in entry.manifest.entries if digest in foreign]
            puts[index] = (operation, Ingested(content, Placed(placed.packs, own, relies)))
        for index, outcome in zip(folders, await _make(files, caller, folders), strict=True):
            results[index] = _result(outcome)
        outcomes = await files.commit(caller, list(puts.values())) if puts else []
        for index, outcome in zip(puts, outcomes, strict=True):
            results[index] = _result(outcome)
        return [
            Taken(entry, result)
            for (entry, _), result in zip(reader.entries, results, strict=True)
            if result is not None
        ]

    async def _named(self, caller: User, reader: _Reader) -> tuple[dict[Digest, int], set[int]]:
        """The lengths of the chunks that the caller may name, and the packs of those not sent."""
        lengths = reader.lengths
        others = {
            digest
            for entry, _ in reader.entries
            if entry.manifest is not None
            for digest, _ in entry.manifest.entries
            if digest not in lengths
        }
        if not others:
            return lengths, set()
        found = await self.files.catalog.locate(caller.id, list(others))
        known = lengths | {digest: location.length for digest, location in found.items()}
        return known, {location.number for location in found.values()}


async def _make(files: Files, caller: User, folders: dict[int, MakeFolder]) -> list[Outcome]:
    stem = files.clock.new_id()
    units = [
        files.unit(caller, f"{stem}-{index}", (operation,)) for index, operation in folders.items()
    ]
    return await files.catalog.apply(units) if units else []


def _bounded(size: int) -> int:
    """`size` itself. Raises `TooLarge`."""
    if size > MOST_BYTES:
        raise TooLarge(f"more than {MOST_BYTES} bytes in one request")
    return size


def _content(
    entry: Entry, manifest: Manifest, verified: Digest | None, lengths: dict[Digest, int]
) -> Content:
    """What `entry` says its content is, held against what there is."""
    if manifest.level:
        raise Unsupported("files of more than 16 chunks are put by themselves")
    chunking(manifest.chunker)
    missing = tuple(digest for digest, _ in manifest.entries if digest not in lengths)
    if missing:
        named = listed((digest.hex() for digest in missing), most=2)
        raise ChunksMissing(f"these chunks were not sent: {named}", digests=missing)
    if any(size != lengths[digest] for digest, size in manifest.entries):
        raise InvalidField("the manifest says of a chunk that it has another length than it has")
    if verified is not None:
        if entry.digest is not None and entry.digest != verified:
            raise InvalidField("the content does not have the digest that was claimed for it")
        return Content(manifest, verified, DigestState.VERIFIED)
    state = DigestState.ABSENT if entry.digest is None else DigestState.CLAIMED
    return Content(manifest, entry.digest, state)


def _result(outcome: Outcome) -> Result | VaultError:
    return outcome.error if isinstance(outcome, Refused) else outcome.results[-1]

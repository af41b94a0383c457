"""Ingest: a stream of bytes becomes chunks in packs and a manifest, in bounded memory.

    charge -> read -> cut, hash (in order) -> look up -> compress -> pack -> store

The stages of one stream overlap: while a block is compressed the next one is cut and
the one after that is read. What goes from stage to stage is a block of 4 MiB. Cutting
and the digest of the whole file need the bytes in order; compressing does not, so as
many blocks of one stream are compressed at a time as there are workers.

Nothing is visible before the commit. A crash, a cancellation or an error leaves at
most chunks in packs that no version names.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream
from attrs import define, field, frozen
from blake3 import blake3

from vaultfs.domain.chunks import DEFAULT_CHUNKING, Chunker
from vaultfs.domain.cutting import (
    SMALL,
    Compressibility,
    Cut,
    as_cuts,
    cut_each,
    cut_piece,
    encode,
    manifest_of,
)
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.manifests import ManifestBuilder, Page
from vaultfs.domain.nodes import Content, DigestState, UserId
from vaultfs.domain.packs import StoredChunk
from vaultfs.domain.services.budget import BLOCK, Budget, Charge, Use
from vaultfs.domain.services.buffers import Buffers
from vaultfs.domain.services.packer import TINY, Packer, Placed
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.catalog import Catalog
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Source

BLOCKS_AHEAD: Final = 3
"""Blocks of one stream that are between the cutter and the packs at one time."""

T = TypeVar("T")


class Block(NamedTuple):
    """Bytes as they were read: `size` of them at `head` of a buffer.

    In front of `head` is room for what was left uncut of the block before.
    """

    buffer: bytearray
    head: int
    size: int
    charge: Charge
    last: bool


def _settle_memory(chunks: list[StoredChunk], charge: Charge) -> list[StoredChunk]:
    """Charge for what `chunks` keep alive: copies of what is raw, where little of it is.

    A raw chunk is a view that keeps its whole block alive.
    """
    raw = sum(chunk.length for chunk in chunks if isinstance(chunk.stored, memoryview))
    if raw * 2 < charge.size:
        chunks = [
            StoredChunk(c.digest, c.length, c.codec, c.kind, bytes(c.stored))
            if isinstance(c.stored, memoryview)
            else c
            for c in chunks
        ]
        charge.shrink(sum(len(chunk.stored) for chunk in chunks))
    return chunks


@frozen
class Ingested:
    """A content whose chunks are all in packs, and what a commit of it has to wait for."""

    content: Content
    placed: Placed

    @property
    def size(self) -> int:
        return self.content.manifest.size


class _Continued:
    """A source of which the beginning was read already."""

    def __init__(self, beginning: memoryview, rest: Source) -> None:
        self._beginning, self._rest = beginning, rest

    async def readinto(self, view: memoryview) -> int:
        first = min(len(self._beginning), len(view))
        view[:first] = self._beginning[:first]
        self._beginning = self._beginning[first:]
        return first + (await self._rest.readinto(view[first:]) if first < len(view) else 0)


@define(eq=False)
class Passing:
    """The digest of a content whose bytes pass by in order, as long as they do."""

    whole: blake3 = field(factory=blake3)
    seen: int = 0
    """Bytes."""
    live: bool = True
    """Whether what comes next is what follows those."""

    def see(self, data: Buffer) -> None:
        """The next bytes, if they are. In a thread if they are many."""
        if self.live:
            self.whole.update(data)
            self.seen += len(data)

    @property
    def digest(self) -> Digest:
        return Digest(self.whole.digest())


class Cutter:
    """Cuts a stream of blocks and hashes chunks and whole; used in threads, by one at a time.

    Bytes in front of the stream may be given as `tail`, which `passing` has seen. Unless it is
    `final`, more comes after the stream: what is uncut at its end stays in `tail`.
    """

    def __init__(self, passing: Passing, tail: Buffer = b"", *, final: bool = True) -> None:
        self._chunker = Chunker()
        self._passing = passing
        self._final = final
        self.tail = tail

    def cut(self, block: Block) -> list[Cut]:
        """The chunks that end in `block`."""
        head, stop = block.head, block.head + block.size
        buffer = memoryview(block.buffer)
        self._passing.see(buffer[head:stop])
        start = head - len(self.tail)
        buffer[start:head] = self.tail
        cuts, uncut = cut_piece(self._chunker, buffer[start:stop], last=block.last and self._final)
        self.tail = bytes(uncut)
        return cuts


@define(eq=False)
class Ingest:
    """One of these serves all uploads of a process."""

    catalog: Catalog
    packer: Packer
    budget: Budget
    workers: anyio.CapacityLimiter
    buffers: Buffers = field(factory=lambda: Buffers(DEFAULT_CHUNKING.maximum + BLOCK))
    streams: anyio.Semaphore = field(init=False)
    """Bounds the tails that streams keep between two blocks, which nobody charges for."""

    def __attrs_post_init__(self) -> None:
        tails = self.budget.total // 4 // DEFAULT_CHUNKING.maximum
        self.streams = anyio.Semaphore(max(1, tails))

    async def stream(
        self,
        user: UserId,
        source: Source,
        *,
        size: int | None = None,
        progress: Progress = no_progress,
    ) -> Ingested:
        """Take in all of `source`, which is about `size` bytes long if that is known.

        Memory: at most `BLOCKS_AHEAD` + 2 blocks, charged to the budget, and one tail of
        a chunk. `progress` is told bytes as they become durable, block by block; the last of
        them with the commit.
        """
        if size is not None and size <= SMALL:
            return await self._whole(user, source, size, progress)
        if size is not None and size < BLOCK:
            return await self._one(user, progress).run(source, size + 1)
        async with self.streams:
            return await self._one(user, progress).run(source, BLOCK)

    def _one(self, user: UserId, progress: Progress) -> "_Whole":
        passing = Passing()
        return _Whole(self, user, progress, Cutter(passing), passing=passing)

    async def _whole(self, user: UserId, source: Source, size: int, progress: Progress) -> Ingested:
        """Take in `source` in one piece, unless it is longer than `size` after all."""
        charge = await self.budget.charge(Use.WRITE, size + 1)
        try:
            buffer = bytearray(size + 1)
            filled = await source.readinto(memoryview(buffer))
        except BaseException:
            charge.release()
            raise
        if filled > size:
            charge.release()
            longer = _Continued(memoryview(buffer), source)
            return await self._one(user, progress).run(longer, BLOCK)
        charge.shrink(filled)
        [ingested] = await self.small(user, [bytes(memoryview(buffer)[:filled])], charge)
        ingested.placed.when_recorded(partial(progress, filled))
        return ingested

    async def small(
        self, user: UserId, contents: Sequence[bytes], charge: Charge
    ) -> list[Ingested]:
        """Take in `contents` of at most `SMALL` bytes each, together about a block, in one go.

        Takes over `charge`.
        """
        try:
            cut = await self._compute(sum(map(len, contents)), cut_each, contents)
        except BaseException:
            charge.release()
            raise
        placed = await self.store(user, [cut for cuts, _ in cut for cut in cuts], charge)
        return [
            Ingested(Content(manifest_of(cuts), digest, DigestState.VERIFIED), placed)
            for cuts, digest in cut
        ]

    async def store(
        self,
        user: UserId,
        cuts: Sequence[Cut],
        charge: Charge,
        stream: Compressibility | None = None,
    ) -> Placed:
        """Put those of `cuts` into packs that the vault lacks. Takes over `charge`."""
        try:
            placed, missing = await self._sift(user, cuts)
            if not missing:
                charge.release()
                return placed
            size = sum(len(cut.data) for cut in missing)
            chunks = await self._compute(size, encode, missing, stream or Compressibility())
            chunks = _settle_memory(chunks, charge)
        except BaseException:
            charge.release()
            raise
        placed.take(self.packer.add(user, chunks, charge))
        return placed

    async def encoded(self, user: UserId, chunks: Sequence[StoredChunk], charge: Charge) -> Placed:
        """Put those of `chunks` into packs that the vault lacks; they have been verified.

        Takes over `charge`.
        """
        try:
            placed, missing = await self._sift(
                user, [Cut(chunk.digest, chunk.stored, chunk.kind) for chunk in chunks]
            )
            lacking = {cut.digest for cut in missing}
            kept = _settle_memory([each for each in chunks if each.digest in lacking], charge)
        except BaseException:
            charge.release()
            raise
        placed.take(self.packer.add(user, kept, charge))
        return placed

    async def pages(self, user: UserId, pages: Sequence[Page]) -> Placed:
        """Store pages of a manifest: a few tens of KB, which nobody waits for budget with."""
        return await self.store(user, as_cuts(pages), Charge(self.budget, Use.WRITE, 0))

    async def _compute(self, size: int, call: Callable[..., T], *arguments: object) -> T:
        """What `call` returns, which works on `size` bytes: in a thread if that is worth it."""
        if size <= TINY:
            return call(*arguments)
        return await to_thread.run_sync(call, *arguments, limiter=self.workers)

    async def _sift(self, user: UserId, cuts: Sequence[Cut]) -> tuple[Placed, list[Cut]]:
        """What is on its way or stored already, and the chunks that are not, each once."""
        placed = Placed()
        unknown: dict[Digest, Cut] = {}
        for cut in cuts:
            pack = self.packer.pending(cut.digest)
            if pack is None:
                unknown[cut.digest] = cut
            else:
                self.packer.own(placed, pack, user, cut.digest)
        if unknown:
            known = await self.catalog.known(user, list(unknown))
            placed.foreign += known.foreign
            placed.relies.update(known.own.values())
            for digest in (*known.own, *known.foreign):
                del unknown[digest]
        return placed, list(unknown.values())


@define(eq=False)
class Stream(ABC):
    """One stream on its way in, block by block; what is done with its chunks is said below."""

    ingest: Ingest
    user: UserId
    progress: Progress
    cutter: Cutter
    first_head: int = 0
    """Room in front of the first block, for the tail that the cutter begins with."""
    compressible: Compressibility = field(factory=Compressibility)
    ahead: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(BLOCKS_AHEAD))
    held: set[Charge] = field(factory=set[Charge])
    """Charges that nobody else has taken over yet."""

    @abstractmethod
    def listed(self, cuts: Sequence[Cut]) -> tuple[Sequence[Cut], Callable[[Placed], None]]:
        """Called for the chunks of each block in their order: those that are to be stored with
        them, and what is to be told where all of them are, in any order.
        """

    @property
    def buffers(self) -> Buffers:
        return self.ingest.buffers

    async def take_in(self, source: Source, size: int) -> None:
        """Take in all of `source`, read in blocks of `size` bytes."""
        send, receive = anyio.create_memory_object_stream[Block](0)
        try:
            async with task_group() as tasks, receive:
                tasks.start_soon(self._read, source, size, send)
                async for block in receive:
                    await self._cut(block, tasks)
        finally:
            for charge in self.held:
                charge.release()

    async def _read(self, source: Source, size: int, blocks: MemoryObjectSendStream[Block]) -> None:
        head, last = self.first_head, False
        # Nobody takes blocks any more: whoever stopped says why.
        with suppress(anyio.BrokenResourceError):
            async with blocks:
                while not last:
                    charge = await self.ingest.budget.charge(Use.WRITE, size)
                    self.held.add(charge)
                    buffer = self.buffers.take() if size == BLOCK else bytearray(head + size)
                    filled = await source.readinto(memoryview(buffer)[head : head + size])
                    last = filled < size
                    charge.shrink(filled)
                    if filled < size // 2:
                        buffer = self._fitting(buffer, head, filled)
                    await blocks.send(Block(buffer, head, filled, charge, last))
                    # From here on in whole blocks, also if there is more than `size` led to expect.
                    head, size = DEFAULT_CHUNKING.maximum, BLOCK

    def _fitting(self, buffer: bytearray, head: int, size: int) -> bytearray:
        """A copy with room for no more: a whole block would be kept alive by a few bytes."""
        copy = bytearray(head + size)
        copy[head:] = memoryview(buffer)[head : head + size]
        self.buffers.give(buffer)
        return copy

    async def _cut(self, block: Block, tasks: TaskGroup) -> None:
        workers = self.ingest.workers
        cuts = await to_thread.run_sync(self.cutter.cut, block, limiter=workers)
        more, tell = self.listed(cuts)
        size = sum(len(cut.data) for cut in cuts)  # the block's tail goes with the next one
        await self.ahead.acquire()
        tasks.start_soon(self._store, block, [*cuts, *more], size, tell)

    async def _store(
        self, block: Block, cuts: list[Cut], size: int, tell: Callable[[Placed], None]
    ) -> None:
        charge, kept = block.charge, block.charge.size
        self.held.discard(charge)
        charge.on_release = partial(self.buffers.give, block.buffer)
        placed = await self.ingest.store(self.user, cuts, charge, self.compressible)
        placed.when_recorded(partial(self.progress, size))
        tell(placed)
        if charge.size < kept:  # what is stored is copies: the block can be used again at once
            charge.let_go()
        self.ahead.release()


@define(eq=False)
class _Whole(Stream):
    """A content that comes in one stream."""

    passing: Passing = field(kw_only=True)
    placed: Placed = field(factory=Placed)
    manifest: ManifestBuilder = field(factory=ManifestBuilder)

    def listed(self, cuts: Sequence[Cut]) -> tuple[Sequence[Cut], Callable[[Placed], None]]:
        pages = self.manifest.add_all((cut.digest, len(cut.data)) for cut in cuts)
        return as_cuts(pages), self.placed.take

    async def run(self, source: Source, size: int) -> Ingested:
        """Take in all of `source`, read in blocks of `size` bytes."""
        await self.take_in(source, size)
        manifest, pages = self.manifest.finish()
        if pages:
            self.placed.take(await self.ingest.pages(self.user, pages))
        content = Content(manifest, self.passing.digest, DigestState.VERIFIED)
        return Ingested(content, self.placed)

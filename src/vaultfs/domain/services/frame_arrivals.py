"""Frames of an upload session on their way into packs: chunks that the client has cut.

    blocks -> parsed, decoded, hashed -> chunks in packs, or found where they are -> entries

Nothing that the client says is believed: every chunk that is sent is decoded and hashed,
and one that is only named has to be the caller's, with the length that it says. Where the
client cut is its own affair: it decides what its content shares with others, no more.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectSendStream
from attrs import define, field

from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import ChunksMissing, Corrupt, InvalidField, Unsupported, listed
from vaultfs.domain.frames import HEAD_SIZE, MAX_FRAME, Named, check_head, read_frame
from vaultfs.domain.manifests import ManifestBuilder
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import Codec, Kind, StoredChunk, contents_of
from vaultfs.domain.services.arrivals import Arriving, Parts
from vaultfs.domain.services.budget import BLOCK, Charge, Use
from vaultfs.domain.services.ingest import Ingest, Passing
from vaultfs.domain.services.packer import Placed
from vaultfs.domain.services.tasks import task_group

DECODED: Final = BLOCK
"""Bytes of contents that are decoded at one time."""


class _Block(NamedTuple):
    data: memoryview
    charge: Charge
    last: bool


@define(eq=False)
class FrameReader:
    """Parses and verifies frames block by block; used in threads, by one at a time."""

    passing: Passing
    rest: bytes = b""
    """The beginning of a frame whose end is in the next block."""
    _begun: bool = False

    def read(self, data: memoryview) -> list[StoredChunk | Named]:
        """The chunks in `data`, which begins with `rest`. Raises `InvalidField`, `Unsupported`."""
        try:
            return self._read(data)
        except Corrupt as error:  # not of the vault, but of the request
            raise InvalidField(error.message) from error

    def _read(self, data: memoryview) -> list[StoredChunk | Named]:
        at, frames, size = 0, list[StoredChunk | Named](), 0
        if not self._begun:
            check_head(data[:HEAD_SIZE])
            at, self._begun = HEAD_SIZE, True
        fresh = 0
        while (found := read_frame(data, at)) is not None:
            frame, at = found
            if not isinstance(frame, StoredChunk | Named):
                raise Corrupt("only chunks belong into an upload")
            if isinstance(frame, StoredChunk):
                _check(frame)
                size += frame.length
            frames.append(frame)
            if size > DECODED:
                self._verify(frames, fresh)
                fresh, size = len(frames), 0
        self._verify(frames, fresh)
        self.rest = bytes(data[at:])
        return frames

    def _verify(self, frames: list[StoredChunk | Named], start: int) -> None:
        """Decode `frames` from `start` on, and keep what is compressed as copies."""
        sent = [frame for frame in frames[start:] if isinstance(frame, StoredChunk)]
        contents = iter(contents_of(sent))
        for index in range(start, len(frames)):
            frame = frames[index]
            if isinstance(frame, StoredChunk):
                self.passing.see(next(contents))
                if frame.codec is not Codec.RAW:  # a view would keep all of the block
                    frames[index] = frame._replace(stored=bytes(frame.stored))
            else:
                self.passing.live = False


def _check(chunk: StoredChunk) -> None:
    """Refuse what is not to be decoded at all."""
    if chunk.kind is not Kind.DATA:
        raise Unsupported("pages of manifests are made by the server")
    if not chunk.length or (chunk.codec is not Codec.RAW and len(chunk.stored) >= chunk.length):
        raise Corrupt(f"chunk {chunk.digest.hex()} is empty, or longer than its content")


@define(eq=False)
class FrameArrival:
    """Frames of one append."""

    ingest: Ingest
    user: UserId
    parts: Parts
    manifest: ManifestBuilder | None
    passing: Passing
    reader: FrameReader = field(init=False)
    _held: set[Charge] = field(factory=set[Charge])
    """Charges that nobody else has taken over yet."""

    def __attrs_post_init__(self) -> None:
        self.reader = FrameReader(self.passing)

    async def take_in(self, source: Arriving, length: int | None) -> None:
        """Take in all of `source`. Raises `InvalidField`, `Unsupported`, `ChunksMissing`."""
        size = BLOCK if length is None else min(length + 1, BLOCK)
        send, receive = anyio.create_memory_object_stream[_Block](0)
        try:
            async with task_group() as tasks, receive:
                tasks.start_soon(self._load, source, size, send)
                async for block in receive:
                    await self._take(block)
        finally:
            for charge in self._held:
                charge.release()
        if self.reader.rest and source.broken is None:
            raise InvalidField("the frames were cut short in the middle of one")

    async def _load(
        self, source: Arriving, size: int, blocks: MemoryObjectSendStream[_Block]
    ) -> None:
        last = False
        # Nobody takes blocks any more: whoever stopped says why.
        with suppress(anyio.BrokenResourceError):
            async with blocks:
                while not last:
                    charge = await self.ingest.budget.charge(Use.WRITE, size)
                    self._held.add(charge)
                    buffer = bytearray(MAX_FRAME + size)
                    filled = await source.readinto(memoryview(buffer)[MAX_FRAME:])
                    last = filled < size
                    charge.shrink(filled)
                    await blocks.send(
                        _Block(memoryview(buffer)[: MAX_FRAME + filled], charge, last)
                    )

    async def _take(self, block: _Block) -> None:
        rest = self.reader.rest
        start = MAX_FRAME - len(rest)
        block.data[start:MAX_FRAME] = rest
        workers = self.ingest.workers
        frames = await to_thread.run_sync(self.reader.read, block.data[start:], limiter=workers)
        entries = [(frame.digest, frame.length) for frame in frames]
        pages = [] if self.manifest is None else self.manifest.add_all(entries)
        tell = self.parts.add(entries)
        placed = await self._found([frame for frame in frames if isinstance(frame, Named)])
        chunks = [frame for frame in frames if isinstance(frame, StoredChunk)]
        self._held.discard(block.charge)
        placed.take(await self.ingest.encoded(self.user, chunks, block.charge))
        if pages:
            placed.take(await self.ingest.pages(self.user, pages))
        tell(placed)

    async def _found(self, named: Sequence[Named]) -> Placed:
        """Where those chunks are that the caller says it has sent. Raises `ChunksMissing`."""
        placed = Placed()
        unknown: dict[Digest, int] = {}
        for chunk in named:
            pack = self.ingest.packer.sent(self.user, chunk.digest)
            if pack is None:
                unknown[chunk.digest] = chunk.length
            else:
                placed.packs.add(pack)
        if not unknown:
            return placed
        places = await self.ingest.catalog.locate(self.user, list(unknown))
        missing = tuple(digest for digest in unknown if digest not in places)
        if missing:
            named_ones = listed((digest.hex() for digest in missing), most=2)
            raise ChunksMissing(f"these chunks were not sent: {named_ones}", digests=missing)
        if any(places[digest].length != length for digest, length in unknown.items()):
            raise InvalidField("a chunk that is named has another length than it is said to have")
        placed.relies.update(place.number for place in places.values())
        return placed

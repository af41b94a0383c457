"""Joining contents by their chunks: only what is around a seam is cut anew.

Where a content is cut depends on the bytes since the cut before alone. So behind a seam
the chunks of the joined content are soon those of its second part again: as soon as a new
cut falls on one that was there. Up to that point they are read, cut and stored; if it does
not come within `MOST` chunks, an odd chunk is left there, which costs nothing but that it is
no chunk of anything else.
"""

from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate
from typing import Final

from anyio import to_thread
from attrs import define, field

from vaultfs.domain.chunks import Chunker
from vaultfs.domain.cutting import Cut, cut_piece
from vaultfs.domain.manifests import Entry
from vaultfs.domain.nodes import UserId
from vaultfs.domain.services.budget import Use
from vaultfs.domain.services.ingest import Ingest
from vaultfs.domain.services.packer import Placed
from vaultfs.domain.services.reader import Reader, Wanted

MOST: Final = 16
"""Chunks behind a seam that are cut anew."""
BATCH: Final = 8192
"""Entries that are given at a time."""


@define(eq=False)
class Joiner:
    """Joins the contents of upload sessions."""

    ingest: Ingest
    reader: Reader
    user: UserId
    _chunker: Chunker = field(factory=Chunker)
    relies: set[int] = field(factory=set[int])
    """Numbers of the packs that the chunks of the parts are in."""
    _end: Entry | bytes | None = None
    """What may have to be cut anew: the last chunk so far, or bytes that are in none yet."""

    async def joined(
        self, uploads: Sequence[str]
    ) -> AsyncGenerator[tuple[list[Entry], Placed], None]:
        """The entries of the joined content, in order, and where those chunks are that are new.

        Memory: the chunks around one seam, charged.
        """
        for number in uploads:
            entries = self._entries(number)
            if self._end is not None:
                yield await self._seam(entries)
            batch: list[Entry] = []
            async for entry in entries:
                if isinstance(self._end, tuple):
                    batch.append(self._end)
                self._end = entry
                if len(batch) >= BATCH:
                    yield batch, Placed()
                    batch = []
            if batch:
                yield batch, Placed()
        if isinstance(self._end, tuple):
            yield [self._end], Placed()
        elif self._end is not None:
            yield await self._cut(self._end, len(self._end), [])

    async def _entries(self, number: str) -> AsyncGenerator[Entry, None]:
        at = 0
        while entries := await self.ingest.catalog.upload_entries(number, at=at):
            known = await self.ingest.catalog.known(self.user, [digest for digest, _ in entries])
            self.relies.update(known.own.values())
            for entry in entries:
                yield entry
            at += sum(size for _, size in entries)

    async def _seam(self, entries: AsyncGenerator[Entry, None]) -> tuple[list[Entry], Placed]:
        """What stands around the seam in front of `entries`, of which it takes the first."""
        end = self._end
        data = bytearray(await self._content(end) if isinstance(end, tuple) else end or b"")
        bounds = [len(data)]
        taken: list[Entry] = []
        at_end = False
        while not (common := await self._common(data, bounds)) and len(taken) < MOST:
            entry = await anext(entries, None)
            if entry is None:
                at_end = True
                break
            taken.append(entry)
            data += await self._content(entry)
            bounds.append(len(data))
        if at_end:  # all of this part is in `data`: what is uncut belongs to what follows
            lengths = self._chunker.cut(data, last=False)
            stop = sum(lengths)
            self._end = bytes(data[stop:]) or None
            return await self._cut(bytes(data[:stop]), stop, [])
        stop = min(common) if common else len(data)
        rest = taken[bounds.index(stop) :]
        self._end = None
        found, placed = await self._cut(bytes(data[:stop]), stop, rest)
        self._end = found.pop()
        return found, placed

    async def _common(self, data: bytearray, bounds: Sequence[int]) -> set[int]:
        """Cuts of `data` that fall on one that was there."""
        lengths = await to_thread.run_sync(
            lambda: self._chunker.cut(data, last=False), limiter=self.ingest.workers
        )
        return set(accumulate(lengths)) & set(bounds)

    async def _cut(
        self, data: bytes, size: int, rest: Sequence[Entry]
    ) -> tuple[list[Entry], Placed]:
        """The entries of `data`, stored, and then `rest`."""
        cuts: list[Cut] = []
        if data:
            cuts, _ = cut_piece(self._chunker, memoryview(data), last=True)
        charge = await self.ingest.budget.charge(Use.WRITE, size)
        placed = await self.ingest.store(self.user, cuts, charge)
        return [*((cut.digest, len(cut.data)) for cut in cuts), *rest], placed

    async def _content(self, entry: Entry) -> bytes:
        digest, length = entry
        pieces: list[bytes] = []
        for fetch in await self.reader.plan(self.user, [Wanted(digest, length, 0, length)]):
            pieces += map(bytes, await self.reader.fetch(self.user, fetch))
        return b"".join(pieces)

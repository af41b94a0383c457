"""One append to an upload session: bytes or frames that arrive, and how they become durable.

    blocks -> cut (or decoded), hashed -> chunks in packs -> entries of the session

The entries of a block can be in the session once the packs that hold its chunks are
recorded, and those of all blocks before it. A task of its own watches the packs and
appends what has become durable, so the session follows the packs: what a crash leaves
uncounted is what was not yet in a pack, and what was behind that.

What is left at the end of the bytes is for whoever began to make durable.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Protocol

import anyio
from attrs import define, field

from vaultfs.domain.cutting import Cut, as_cuts
from vaultfs.domain.errors import VaultError
from vaultfs.domain.manifests import Entry, ManifestBuilder
from vaultfs.domain.services.ingest import Stream
from vaultfs.domain.services.packer import Placed
from vaultfs.domain.services.tasks import task_group
from vaultfs.ports.trees import Source


class Arriving(Source, Protocol):
    """Bytes that may end before they should."""

    @property
    def broken(self) -> VaultError | None:
        """Why they ended, if that was not their end."""
        ...


@define(eq=False)
class Part:
    """The entries of a block."""

    entries: tuple[Entry, ...]
    placed: Placed | None = None
    """Where their chunks are; None until they are on their way."""

    @property
    def durable(self) -> bool:
        return self.placed is not None and all(pack.recorded for pack in self.placed.packs)


@define(eq=False)
class Parts:
    """What has arrived and is not in the session yet, in order."""

    append: Callable[[Sequence[Part]], Awaitable[None]]
    """Puts parts whose chunks are durable into the session."""
    _parts: deque[Part] = field(factory=deque[Part])
    _changed: anyio.Event = field(factory=anyio.Event)

    def add(self, entries: Sequence[Entry]) -> Callable[[Placed], None]:
        """The next block's entries; where they are is to be told with what is returned."""
        part = Part(tuple(entries))
        self._parts.append(part)

        def tell(placed: Placed) -> None:
            part.placed = placed
            self._changed.set()
            self._changed = anyio.Event()

        return tell

    @asynccontextmanager
    async def followed(self) -> AsyncGenerator[None, None]:
        """Append what becomes durable as long as the context lasts."""
        async with task_group() as tasks:
            tasks.start_soon(self._follow)
            yield
            tasks.cancel_scope.cancel()

    async def _follow(self) -> None:
        while True:
            while not self._parts or self._parts[0].placed is None:
                await self._changed.wait()
            for pack in tuple(self._parts[0].placed.packs):
                await pack.wait()
            ready = list(takewhile(lambda part: part.durable, self._parts))
            with anyio.CancelScope(shield=True):  # or nobody knew whether it is in
                await self.append(ready)
                for _ in ready:  # if it is refused they stay: what follows them does not go alone
                    self._parts.popleft()

    def rest(self) -> tuple[list[Entry], Placed, bool]:
        """What is left at the end, where its chunks are, and whether it is all that arrived."""
        entries, placed = list[Entry](), Placed()
        for part in self._parts:
            if part.placed is None:  # cancelled on its way: what follows it does not follow
                return entries, placed, False
            entries += part.entries
            placed.take(part.placed)
        self._parts.clear()
        return entries, placed, True


@define(eq=False)
class Arrival(Stream):
    """Bytes of a session on their way into packs."""

    parts: Parts = field(kw_only=True)
    manifest: ManifestBuilder | None = field(kw_only=True)
    """Of all entries from the first on, if this process has seen them all."""

    def listed(self, cuts: Sequence[Cut]) -> tuple[Sequence[Cut], Callable[[Placed], None]]:
        entries = [(cut.digest, len(cut.data)) for cut in cuts]
        pages = [] if self.manifest is None else self.manifest.add_all(entries)
        return as_cuts(pages), self.parts.add(entries)

"""One store made of two while a vault moves from one to the other.

What is put goes to all stores that the placement says, what is read comes from the first of
them that has it. Packs are put by whoever asks for `targets`, for a commit has to know in
which stores they are; what else is put, backups and the like, has to be in all of them.
"""

import heapq
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final, TypeVar

import anyio

from vaultfs.domain.digests import digest_of
from vaultfs.domain.migration import Placement
from vaultfs.ports.objects import (
    Capabilities,
    Deleted,
    IntegrityError,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    Payload,
    PutMode,
    Span,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    Targets,
)
from vaultfs.ports.stores import Shadow

T = TypeVar("T")
PASSED_OVER = (
    *(ObjectNotFound, IntegrityError),
    *(StoreUnavailable, StoreTimeout, StoreMisconfigured),
)
"""What leads to the next store."""


SHADOWED: Final = 32
"""One read of so many is compared, in the phase in which packs go to both stores."""
SHADOW: Final = 64 << 10
"""Bytes of it at the most: that is a fraction of a millisecond of the reader's."""
SHADOWS: Final = 64
"""Reads that wait to be compared; older ones are let go of."""


async def nowhere(name: str) -> ObjectStore | None:  # noqa: ARG001
    """No store was named since."""
    return None


async def trusted(store: ObjectStore) -> ObjectStore:
    """What was named is what was meant."""
    return store


class PlacedObjectStore(ObjectStore):
    """The stores of a vault, by name, and which of them are to be used for what.

    `load` gives the placement as it is in the catalog; `refresh` asks for it. `find` opens a
    store that was named since, or gives None. `see` gives a store as it is to be used, and raises
    for one that is not the vault's.
    """

    def __init__(
        self,
        stores: Mapping[str, ObjectStore],
        placement: Placement,
        load: Callable[[], Awaitable[Placement]],
        find: Callable[[str], Awaitable[ObjectStore | None]] = nowhere,
        see: Callable[[ObjectStore], Awaitable[ObjectStore]] = trusted,
    ) -> None:
        self.stores = dict(stores)
        self.placement = placement
        self.fallbacks = 0
        """Reads that another store than the first one answered."""
        self.foreign = set[str]()
        """The names of stores that were seen not to be the vault's."""
        self.shadows = deque[Shadow](maxlen=SHADOWS)
        """Reads that are to be compared with the store that is moved to: the newest ones."""
        self._reads = 0
        self._load = load
        self._find = find
        self._see = see
        self._finding = anyio.Lock()
        self._check(placement)

    def _check(self, placement: Placement) -> None:
        for name in sorted(placement.stores - self.stores.keys()):
            raise StoreMisconfigured(
                f"the vault keeps objects in a store called {name}, and nothing says where that"
                f" is: name it with VAULTFS_STORES='{name}=URL'",
                backend=name,
                operation="open",
            )

    async def refresh(self) -> None:
        """Go by what the catalog says now.

        Raises `StoreMisconfigured` for an unknown store, and `WrongStore` for one that was named
        here, but is not the vault's: what is put there is not where others look for it.
        """
        placement = await self._load()
        if placement.epoch > self.placement.epoch:
            for name in placement.stores:
                await self.find(name)
            self._check(placement)
            for name in sorted(placement.stores - self.placement.stores):
                self.foreign.add(name)
                self.stores[name] = await self._see(self.stores[name])
                self.foreign.discard(name)
            self.placement = placement

    async def find(self, name: str) -> ObjectStore | None:
        """The store of that name, opened if it was named since; None if it was not."""
        async with self._finding:
            if name not in self.stores:
                found = await self._find(name)
                if found is None:
                    return None
                self.stores[name] = found
        return self.stores[name]

    def targets(self) -> Targets:
        now = self.placement
        stores = {name: self.stores[name] for name in now.write_set}
        return Targets(now.epoch, stores, now.primary, degrades=now.degrades)

    def readable(self) -> tuple[ObjectStore, ...]:
        return tuple(self.stores[name] for name in self.placement.read_order)

    @property
    def _first(self) -> ObjectStore:
        return self.stores[self.placement.primary]

    @property
    def name(self) -> str:
        return self.placement.primary

    @property
    def capabilities(self) -> Capabilities:
        return self._first.capabilities

    async def _any(self, call: Callable[[ObjectStore], Awaitable[T]]) -> T:
        """What the first store answers that can; else why the first one could not.

        What is nowhere is looked for again where it may be by now: a process may have stood
        still while a migration went on.
        """
        epoch = self.placement.epoch
        try:
            return await self._first_of(call)
        except ObjectNotFound:
            await self.refresh()
            if self.placement.epoch == epoch:
                raise
        return await self._first_of(call)

    async def _first_of(self, call: Callable[[ObjectStore], Awaitable[T]]) -> T:
        first: Exception | None = None
        for store in self.readable():
            try:
                answer = await call(store)
            except PASSED_OVER as error:
                first = first or error
            else:
                self.fallbacks += first is not None
                return answer
        assert first is not None
        raise first

    async def head(self, key: str) -> ObjectInfo:
        return await self._any(lambda store: store.head(key))

    async def get(self, key: str, span: Span | None = None) -> bytes:
        data = await self._any(lambda store: store.get(key, span))
        if self.placement.degrades and data:
            self._shadow(key, 0 if span is None else span.start, data)
        return data

    def _shadow(self, key: str, start: int, data: bytes) -> None:
        """Have one read in `SHADOWED` compared, or its beginning."""
        self._reads += 1
        if self._reads % SHADOWED == 0:
            seen = memoryview(data)[:SHADOW]
            span = Span(start, start + len(seen))
            self.shadows.append(Shadow(key, span, digest_of(seen)))

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        exists: ObjectExists | None = None
        for store in self.targets().stores.values():
            try:
                await store.put(key, data, mode=mode)
            except ObjectExists as error:
                exists = error
        if exists is not None:
            raise exists

    async def delete(self, key: str) -> None:
        for store in self._all():
            await store.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        outcomes: tuple[Deleted, ...] = ()
        for store in self._all():
            found = await store.delete_many(keys)
            pairs = (
                zip(outcomes, found, strict=True) if outcomes else ((each, each) for each in found)
            )
            outcomes = tuple(other if one.error is None else one for one, other in pairs)
        return outcomes

    def _all(self) -> tuple[ObjectStore, ...]:
        return tuple(self.stores[name] for name in sorted(self.placement.stores))

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        """What is in any of the stores, each key once; the store that is read first is believed."""
        async with AsyncExitStack() as stack:
            listings = [
                await stack.enter_async_context(
                    aclosing(store.list(prefix, start_after=start_after))
                )
                for store in self.readable()
            ]
            heads: list[tuple[str, int, ObjectInfo]] = []
            for order, listing in enumerate(listings):
                info = await anext(listing, None)
                if info is not None:
                    heapq.heappush(heads, (info.key, order, info))
            last = ""
            while heads:
                key, order, info = heapq.heappop(heads)
                if key != last:
                    yield info
                last = key
                following = await anext(listings[order], None)
                if following is not None:
                    heapq.heappush(heads, (following.key, order, following))

    async def probe(self) -> None:
        for store in self._all():
            await store.probe()

    async def aclose(self) -> None:
        for store in self.stores.values():
            await store.aclose()

"""At most so many calls to a store at once."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from anyio import CapacityLimiter

from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.ports.objects import Deleted, ObjectInfo, ObjectStore, Payload, PutMode, Span


class LimitedObjectStore(StoreAround):
    """`inner`, with at most `at_once` calls going on; the others wait in line.

    A listing counts only while it waits for its next object, not while its reader works.
    """

    def __init__(self, inner: ObjectStore, at_once: int) -> None:
        super().__init__(inner)
        self._limiter = CapacityLimiter(at_once)

    async def head(self, key: str) -> ObjectInfo:
        async with self._limiter:
            return await self.inner.head(key)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        async with self._limiter:
            return await self.inner.get(key, span)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        async with self._limiter:
            await self.inner.put(key, data, mode=mode)

    async def delete(self, key: str) -> None:
        async with self._limiter:
            await self.inner.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        async with self._limiter:
            return await self.inner.delete_many(keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:
            while (info := await self._next(objects)) is not None:
                yield info

    async def _next(self, objects: AsyncGenerator[ObjectInfo, None]) -> ObjectInfo | None:
        async with self._limiter:
            return await anext(objects, None)

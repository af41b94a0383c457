"""A store that does not answer when a vault is opened which has another that does."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

import anyio

from vaultfs.ports.objects import (
    Capabilities,
    Deleted,
    ObjectInfo,
    ObjectStore,
    Payload,
    PutMode,
    Span,
    StoreError,
)

AGAIN_AFTER: Final = 2.0
"""Seconds in which a store that could not be opened is not tried again."""


class LateObjectStore(ObjectStore):
    """The store that `opening` gives, asked for it when it is used first, and until it does."""

    def __init__(self, name: str, opening: Callable[[], Awaitable[ObjectStore]]) -> None:
        self._name = name
        self._opening = opening
        self._inner: ObjectStore | None = None
        self._error: StoreError | None = None
        self._again = 0.0
        self._one = anyio.Lock()

    async def _opened(self) -> ObjectStore:
        async with self._one:
            if self._inner is None:
                if self._error is not None and anyio.current_time() < self._again:
                    raise self._error
                try:
                    self._inner = await self._opening()
                except StoreError as error:
                    self._error, self._again = error, anyio.current_time() + AGAIN_AFTER
                    raise
        return self._inner

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        if self._inner is None:
            return Capabilities(create_if_absent=False, delete_batch=1)
        return self._inner.capabilities

    async def head(self, key: str) -> ObjectInfo:
        return await (await self._opened()).head(key)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        return await (await self._opened()).get(key, span)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await (await self._opened()).put(key, data, mode=mode)

    async def delete(self, key: str) -> None:
        await (await self._opened()).delete(key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await (await self._opened()).delete_many(keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        store = await self._opened()
        async with aclosing(store.list(prefix, start_after=start_after)) as found:
            async for info in found:
                yield info

    async def probe(self) -> None:
        await (await self._opened()).probe()

    async def room(self) -> int | None:
        return await (await self._opened()).room()

    async def aclose(self) -> None:
        if self._inner is not None:
            await self._inner.aclose()

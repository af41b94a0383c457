"""What a store is asked to do, counted."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final

from attrs import evolve, frozen

from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import (
    Deleted,
    ObjectInfo,
    ObjectStore,
    Payload,
    PutMode,
    Span,
    StoreError,
    size_of,
)

OPERATIONS: Final = ("head", "get", "put", "delete", "delete_many", "list")


@frozen
class Usage:
    """One operation's totals since the store was opened."""

    operation: str
    calls: int = 0
    errors: int = 0
    """Calls that raised a `StoreError`, of whatever kind."""
    bytes_in: int = 0
    """Bytes that came from the store."""
    bytes_out: int = 0
    """Bytes that went to the store, in calls that succeeded."""
    seconds: float = 0.0
    """Time spent in calls; those going on at the same time all count."""


class MeteredObjectStore(StoreAround):
    """`inner`, counted. A listing is one call; its reader's time is not part of it."""

    def __init__(self, inner: ObjectStore, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock
        self._usage = {operation: Usage(operation) for operation in OPERATIONS}

    def snapshot(self) -> tuple[Usage, ...]:
        """The totals so far, one for each of `OPERATIONS`, in that order."""
        return tuple(self._usage.values())

    async def head(self, key: str) -> ObjectInfo:
        with self._measured("head"):
            return await self.inner.head(key)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        with self._measured("get"):
            data = await self.inner.get(key, span)
        self._add("get", bytes_in=len(data))
        return data

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        with self._measured("put"):
            await self.inner.put(key, data, mode=mode)
        self._add("put", bytes_out=size_of(data))

    async def delete(self, key: str) -> None:
        with self._measured("delete"):
            await self.inner.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        with self._measured("delete_many"):
            return await self.inner.delete_many(keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        self._add("list", calls=1)
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:
            while (info := await self._next(objects)) is not None:
                yield info

    async def _next(self, objects: AsyncGenerator[ObjectInfo, None]) -> ObjectInfo | None:
        with self._measured("list", calls=0):
            return await anext(objects, None)

    @contextmanager
    def _measured(self, operation: str, *, calls: int = 1) -> Generator[None, None, None]:
        started = self._clock.monotonic()
        errors = 0
        try:
            yield
        except StoreError:
            errors = 1
            raise
        finally:
            seconds = self._clock.monotonic() - started
            self._add(operation, calls=calls, errors=errors, seconds=seconds)

    def _add(
        self,
        operation: str,
        *,
        calls: int = 0,
        errors: int = 0,
        bytes_in: int = 0,
        bytes_out: int = 0,
        seconds: float = 0.0,
    ) -> None:
        so_far = self._usage[operation]
        self._usage[operation] = evolve(
            so_far,
            calls=so_far.calls + calls,
            errors=so_far.errors + errors,
            bytes_in=so_far.bytes_in + bytes_in,
            bytes_out=so_far.bytes_out + bytes_out,
            seconds=so_far.seconds + seconds,
        )

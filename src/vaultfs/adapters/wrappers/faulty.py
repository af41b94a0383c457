"""A store that fails when and how a test says. For tests only."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar, assert_never

import anyio
from attrs import frozen

from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.ports.objects import (
    Deleted,
    ObjectInfo,
    ObjectStore,
    Payload,
    PutMode,
    Span,
    StoreError,
    StoreUnavailable,
)

T = TypeVar("T")

ErrorFactory = Callable[..., StoreError]
"""A subclass of `StoreError`, or a `partial` of one."""


@frozen
class Before:
    """Raise, and do nothing."""

    error: ErrorFactory = StoreUnavailable


@frozen
class After:
    """Do it, and raise all the same, with `outcome_unknown`."""

    error: ErrorFactory = StoreUnavailable


@frozen
class Truncate:
    """Return only the first `size` bytes."""

    size: int


@frozen
class FlipBit:
    """Return the bytes with bit `bit` the other way: bit 8 is the lowest of the second byte."""

    bit: int


@frozen
class Delay:
    """Wait so many seconds, then do it."""

    seconds: float


Fault = Before | After | Truncate | FlipBit | Delay


class FaultyObjectStore(StoreAround):
    """`inner`, with the faults of `plan`, keyed by operation and number of its call, from 1.

    For `list` each step to the next object is a call, over all listings. `plan` may be
    changed at any time, and `calls` tells how often each operation was called.
    """

    def __init__(self, inner: ObjectStore, plan: Mapping[tuple[str, int], Fault]) -> None:
        super().__init__(inner)
        self.plan = dict(plan)
        self.calls = Counter[str]()

    async def head(self, key: str) -> ObjectInfo:
        return await self._carry_out("head", key, lambda: self.inner.head(key))

    async def get(self, key: str, span: Span | None = None) -> bytes:
        fault = self.plan.get(("get", self.calls["get"] + 1))
        data = await self._carry_out("get", key, lambda: self.inner.get(key, span))
        return _damaged(data, fault)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await self._carry_out("put", key, lambda: self.inner.put(key, data, mode=mode))

    async def delete(self, key: str) -> None:
        await self._carry_out("delete", key, lambda: self.inner.delete(key))

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await self._carry_out("delete_many", "", lambda: self.inner.delete_many(keys))

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        async with aclosing(self.inner.list(prefix, start_after=start_after)) as objects:

            async def step() -> ObjectInfo | None:
                return await anext(objects, None)

            while (info := await self._carry_out("list", prefix, step)) is not None:
                yield info

    async def _carry_out(self, operation: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls[operation] += 1
        fault = self.plan.get((operation, self.calls[operation]))
        match fault:
            case Before(error):
                raise error(backend=self.name, operation=operation, key=key)
            case After(error):
                await call()
                late = error(backend=self.name, operation=operation, key=key)
                late.outcome_unknown = True
                raise late
            case Delay(seconds):
                await anyio.sleep(seconds)
                return await call()
            case Truncate() | FlipBit() | None:
                return await call()
            case _:
                assert_never(fault)


def _damaged(data: bytes, fault: Fault | None) -> bytes:
    match fault:
        case Truncate(size):
            return data[:size]
        case FlipBit(bit):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            return bytes(damaged)
        case _:
            return data

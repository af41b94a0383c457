"""Failures that pass, waited out.

Every call of the port may be repeated: reading changes nothing, deleting twice is
deleting once, and an object that is put again is the same object. Only a CREATE
whose first try may have been carried out cannot take the second try's answer as it
is: `ObjectExists` is then perhaps about our own object. It counts as ours if it has
our size and its key is a digest, or if it has our very bytes.
"""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import Final, TypeVar

import anyio
from attrs import frozen

from vaultfs.adapters.wrappers.around import StoreAround, digest_in
from vaultfs.adapters.wrappers.window import Window
from vaultfs.ports.objects import (
    Deleted,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    Payload,
    PutMode,
    Span,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    Throttled,
    parts_of,
    size_of,
)

T = TypeVar("T")


@frozen
class RetryPolicy:
    """How long to go on. Times are in seconds.

    The n-th wait is random, up to `first_wait * 2 ** (n - 1)` and never above `longest_wait`
    (full jitter), or what the store asked for if that is longer.
    """

    attempts: int = 6
    """Tries of one call, the first included."""
    budget: float = 60.0
    """For all tries of one call and the waits between them; none begins after it."""
    try_limit: float = 30.0
    """For one try."""
    first_wait: float = 0.1
    longest_wait: float = 10.0

    def __attrs_post_init__(self) -> None:
        if self.attempts < 1 or min(self.budget, self.try_limit) <= 0:
            raise ValueError(f"{self} allows not even one try")

    def wait(self, attempt: int, error: StoreError, chance: float) -> float:
        """Seconds between try `attempt`, which raised `error`, and the next."""
        asked = (error.retry_after or 0.0) if isinstance(error, Throttled) else 0.0
        ceiling = min(self.longest_wait, self.first_wait * (1 << min(attempt - 1, 60)))
        return max(asked, chance * ceiling)


class RetryingObjectStore(StoreAround):
    """`inner`, with errors that are `retryable` tried again as `policy` allows.

    The last error is raised as it is, with `outcome_unknown` if any try's was. A listing
    goes on behind the last key it gave, and counts its tries anew from each key. `window`
    says how many calls go on at once; waiting for a place is no part of a call's time. The
    seams (`sleep`, `chance`: 0 to 1, `now`: seconds) are there for tests.
    """

    def __init__(
        self,
        inner: ObjectStore,
        policy: RetryPolicy | None = None,
        *,
        window: Window | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: Callable[[], float] = random.random,
        now: Callable[[], float] = anyio.current_time,
    ) -> None:
        super().__init__(inner)
        self._policy = policy or RetryPolicy()
        self._window = window or Window()
        self._sleep = sleep
        self._chance = chance
        self._now = now

    async def head(self, key: str) -> ObjectInfo:
        return await self._persist("head", key, lambda _: self.inner.head(key))

    async def get(self, key: str, span: Span | None = None) -> bytes:
        return await self._persist("get", key, lambda _: self.inner.get(key, span))

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        async def once(doubtful: bool) -> None:  # noqa: FBT001 - called by `_persist` only
            try:
                await self.inner.put(key, data, mode=mode)
            except ObjectExists:
                if not doubtful or not await self._is_ours(key, data):
                    raise

        await self._persist("put", key, once)

    async def delete(self, key: str) -> None:
        await self._persist("delete", key, lambda _: self.inner.delete(key))

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        """As the port says; only the keys that failed for a while are tried again."""
        outcomes: dict[str, Deleted] = {}

        async def once(_: bool) -> None:  # noqa: FBT001
            left = [key for key in dict.fromkeys(keys) if not _is_settled(outcomes.get(key))]
            outcomes.update(
                {outcome.key: outcome for outcome in await self.inner.delete_many(left)}
            )
            for outcome in outcomes.values():
                if outcome.error is not None and outcome.error.retryable:
                    raise outcome.error

        try:
            await self._persist("delete_many", "", once)
        except StoreError:
            if not outcomes:
                raise
        return tuple(outcomes[key] for key in keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        last = start_after
        objects: AsyncGenerator[ObjectInfo, None] | None = None

        async def step(_: bool) -> ObjectInfo | None:  # noqa: FBT001
            nonlocal objects
            listing = objects or self.inner.list(prefix, start_after=last)
            objects = None  # a generator that has raised is over
            info = await anext(listing, None)
            objects = listing
            return info

        try:
            while (info := await self._persist("list", prefix, step)) is not None:
                last = info.key
                yield info
        finally:
            if objects is not None:
                await objects.aclose()

    async def _is_ours(self, key: str, data: Payload) -> bool:
        try:
            if (await self.inner.head(key)).size != size_of(data):
                return False
            return digest_in(key) is not None or await self.inner.get(key) == b"".join(
                parts_of(data)
            )
        except ObjectNotFound:
            return False

    async def _persist(self, operation: str, key: str, call: Callable[[bool], Awaitable[T]]) -> T:
        """What `call` returns in the end; it is told whether an earlier try may have worked."""
        until = self._now() + self._policy.budget
        doubtful = False
        for attempt in count(1):
            asked = self._now()
            async with self._window.place() as place:  # each try: else halved room is of no use
                until += self._now() - asked
                try:
                    found = await self._once(operation, key, until, partial(call, doubtful))
                except StoreError as error:
                    doubtful = error.outcome_unknown = doubtful or error.outcome_unknown
                    if isinstance(error, _OVERBURDENED):
                        self._window.failed(place)
                    wait = self._policy.wait(attempt, error, self._chance())
                    spent = attempt >= self._policy.attempts or self._now() + wait >= until
                    if spent or not error.retryable:
                        raise
                else:
                    self._window.succeeded()
                    return found
            await self._sleep(wait)
        raise AssertionError("count() ends")

    async def _once(
        self, operation: str, key: str, until: float, call: Callable[[], Awaitable[T]]
    ) -> T:
        limit = max(0.0, min(self._policy.try_limit, until - self._now()))
        with anyio.move_on_after(limit):
            return await call()
        raise StoreTimeout(
            f"nothing came back in {limit:.1f} s", backend=self.name, operation=operation, key=key
        )


_OVERBURDENED: Final = (Throttled, StoreUnavailable, StoreTimeout)
"""Errors that fewer calls at once may spare."""


def _is_settled(outcome: Deleted | None) -> bool:
    return outcome is not None and (outcome.error is None or not outcome.error.retryable)

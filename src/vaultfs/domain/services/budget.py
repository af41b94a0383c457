"""One byte budget for all transfers of a process.

A transfer asks for the bytes of a block before it reads them, in one piece, and the
bytes stay charged until they are durable (or handed out); while it waits it holds
none, so no circle of transfers can wait for each other. Three kinds of charge share
the total, each with a ceiling, so that none can starve the one it depends on:

* WRITE: blocks on their way into packs. They wait for their source as well, which may be
  a read of this very process; so
* READ, the bytes that a consumer is waiting for right now, may use everything, and an
  eighth of the total is left to it. It is given back when they are handed out, for
  their consumer may then go and wait for a WRITE: a READ waits for nobody but the store.
* AHEAD, bytes fetched before anybody asks, only takes what is free, and little of it.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

import anyio
from attrs import define, field

MIB = 1 << 20


class Use(Enum):
    """What bytes are charged for, and the share of the total that it may take, in eighths."""

    WRITE = 6
    READ = 8
    AHEAD = 2


@define(eq=False)
class Charge:
    """Some bytes of the budget. Whoever holds it gives it back, once."""

    budget: "Budget"
    use: Use
    size: int
    on_release: Callable[[], None] | None = None
    """Called once, when it is given back."""

    def shrink(self, size: int) -> None:
        """Give back all but `size` bytes; nothing if it is smaller already."""
        if size < self.size:
            self.budget.give_back(self.use, self.size - size)
            self.size = size

    def release(self) -> None:
        """Give it back; doing so again changes nothing."""
        self.shrink(0)
        self.let_go()

    def let_go(self) -> None:
        """Call `on_release` now, if it is yet to be called."""
        if self.on_release is not None:
            call, self.on_release = self.on_release, None
            call()


@define(eq=False)
class _Waiter:
    use: Use
    size: int
    granted: anyio.Event = field(factory=anyio.Event)


@define(eq=False)
class Budget:
    """`total` bytes, shared first come, first served within each use.

    Used by one event loop. A block larger than its share is granted when nothing else
    of its use is charged, so that nobody waits for ever.
    """

    total: int
    on_short: Callable[[], None] = lambda: None
    """Called when a WRITE has to wait: something that holds bytes may let go of them early."""
    used: dict[Use, int] = field(factory=lambda: dict.fromkeys(Use, 0))
    peak: int = 0
    _waiters: dict[Use, deque[_Waiter]] = field(
        factory=lambda: {use: deque[_Waiter]() for use in Use}
    )

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.total - sum(self.used.values())

    @property
    def writers_wait(self) -> bool:
        """Whether a WRITE is waiting for bytes."""
        return bool(self._waiters[Use.WRITE])

    def try_charge(self, use: Use, size: int) -> Charge | None:
        """`size` bytes if they are free and nobody waits for them."""
        if self._waiters[use] or not self._fits(use, size):
            return None
        return self._grant(use, size)

    async def charge(self, use: Use, size: int) -> Charge:
        """`size` bytes, when they are free. Cancelled, it takes none."""
        charge = self.try_charge(use, size)
        if charge is not None:
            return charge
        waiter = _Waiter(use, size)
        self._waiters[use].append(waiter)
        if use is Use.WRITE:
            self.on_short()
        try:
            await waiter.granted.wait()
        except BaseException:
            if waiter.granted.is_set():
                self.give_back(use, size)
            else:
                self._waiters[use].remove(waiter)
                self._serve()
            raise
        return Charge(self, use, size)

    def _fits(self, use: Use, size: int) -> bool:
        limit = self.total * use.value // 8
        used = self.used[use]
        return used == 0 if size > limit else used + size <= limit and size <= self._free_for(use)

    def _free_for(self, use: Use) -> int:
        if use is Use.READ:
            return self.free
        return self.free - max(0, self.total // 8 - self.used[Use.READ])

    def _grant(self, use: Use, size: int) -> Charge:
        self.used[use] += size
        self.peak = max(self.peak, sum(self.used.values()))
        return Charge(self, use, size)

    def give_back(self, use: Use, size: int) -> None:
        """For `Charge`."""
        self.used[use] -= size
        self._serve()

    def _serve(self) -> None:
        """Grant what waits and fits; readers first, since writers may depend on them."""
        for use in (Use.READ, Use.WRITE):
            waiters = self._waiters[use]
            while waiters and self._fits(use, waiters[0].size):
                waiter = waiters.popleft()
                self._grant(use, waiter.size)
                waiter.granted.set()


BLOCK: Final = 4 * MIB
"""Bytes that go from stage to stage in one piece: a hop to a thread costs as much as
hashing 300 KB, so fewer and larger is better; more than this gains nothing."""
GROUP_FILES: Final = 500
"""Files that go from stage to stage together, however small they are."""

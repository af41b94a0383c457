"""How many calls to a store may go on at once: as many as it bears.

Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and
Decrease Algorithms for Congestion Avoidance in Computer Networks", 1989): each call that
succeeds while all places are taken makes room for a little more, so that a round of them
makes room for one; a call that fails because the store is overburdened halves the room, once
for all calls that were under way when it was halved last.
"""

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from attrs import define, field

LEAST: Final = 1.0


@define(eq=False)
class Place:
    """A call that is under way."""

    begun: int
    """How often the room had been halved when it began."""


@define(eq=False)
class Window:
    """Room for calls; used by one event loop."""

    room: float = 8.0
    most: int = 64
    taken: int = 0
    _halved: int = 0
    _waiting: deque[anyio.Event] = field(factory=deque[anyio.Event])

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Place, None]:
        """A place for one call, first come, first served."""
        if self._waiting or self.taken >= int(self.room):
            await self._wait()
        else:
            self.taken += 1
        try:
            yield Place(self._halved)
        finally:
            self.taken -= 1
            self._admit()

    async def _wait(self) -> None:
        admitted = anyio.Event()
        self._waiting.append(admitted)
        try:
            await admitted.wait()
        except BaseException:
            if admitted.is_set():
                self.taken -= 1
                self._admit()
            else:
                self._waiting.remove(admitted)
            raise

    def _admit(self) -> None:
        while self._waiting and self.taken < int(self.room):
            self.taken += 1
            self._waiting.popleft().set()

    def succeeded(self) -> None:
        """A call has done what it was to do."""
        if self.taken >= int(self.room):
            self.room = min(float(self.most), self.room + 1 / self.room)
            self._admit()

    def failed(self, place: Place) -> None:
        """The store was overburdened by the call at `place`, or by those beside it."""
        if place.begun == self._halved:
            self.room = max(LEAST, self.room / 2)
            self._halved += 1
        place.begun = self._halved

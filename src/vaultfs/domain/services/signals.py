"""What one task waits for until another calls it."""

import asyncio  # anyio has no word for a future


class Signal:
    """An event that one task waits for, at a third of what an `anyio.Event` costs.

    Where a lock is handed from task to task, that is a fifth of all.
    """

    __slots__ = ("_future", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Let the task go on that waits, or will."""
        self.is_set = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Until it is set; not for two tasks at a time."""
        if not self.is_set:
            self._future = asyncio.get_running_loop().create_future()
            await self._future

"""What is held inside a `with` block, by tasks and by threads."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Self

from anyio import from_thread
from anyio.lowlevel import EventLoopToken, current_token
from attrs import field, frozen

from vaultfs.domain.intervals import Range
from vaultfs.domain.lockmodes import Mode
from vaultfs.domain.locknodes import Owner, Presented
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import TreeId, User

if TYPE_CHECKING:
    from vaultfs.domain.services.locks import Locks


class Hold:
    """What is held inside `async with`."""

    __slots__ = ("_items", "_locks", "_ranges", "_timeout", "owner", "token", "tree")

    def __init__(
        self,
        locks: "Locks",
        owner: Owner,
        tree: TreeId,
        items: Mapping[Path, Mode],
        ranges: Mapping[Path, tuple[Range, ...]],
        timeout: float | None,
    ) -> None:
        self._locks = locks
        self._items = items
        self._ranges = ranges
        self._timeout = timeout
        self.owner = owner
        self.tree = tree
        self.token = 0

    async def __aenter__(self) -> Self:
        """Raises as `Locks.acquire`."""
        self.token = await self._locks.acquire(
            self.owner, self.tree, self._items, ranges=self._ranges, timeout=self._timeout
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._locks.let_go(self.owner, self.tree, self.token)

    @property
    def presented(self) -> tuple[Presented, ...]:
        """What goes with writes that this hold covers."""
        return (Presented(self.owner, self.token),)

    async def upgrade(self, path: Path, mode: Mode, *, timeout: float | None = None) -> None:
        """See `Locks.upgrade`."""
        change = {path: mode}
        await self._locks.upgrade(self.owner, self.tree, self.token, change, timeout=timeout)

    async def downgrade(self, path: Path, mode: Mode) -> None:
        """See `Locks.downgrade`."""
        await self._locks.downgrade(self.owner, self.tree, self.token, {path: mode})


@frozen
class ThreadLocks:
    """The same locks for code in threads, which blocks while it waits.

    Made by `from_threads` on the event loop. The waiting is a task on the loop; a thread
    that waits cannot be cancelled, so give a `timeout`. Raises `RuntimeError` on the thread of
    the loop, which would wait for itself.
    """

    locks: "Locks"
    _loop: EventLoopToken
    _loop_thread: int = field(factory=get_ident)

    @contextmanager
    def lock_file_for_user(
        self, user: User, path: Path, *, timeout: float | None = None
    ) -> Generator[Hold, None, None]:
        """See `Locks.lock_file_for_user`."""
        with self.lock_user_files(user, (path,), timeout=timeout) as held:
            yield held

    @contextmanager
    def lock_user_files(
        self, user: User, paths: Iterable[Path] | None = None, *, timeout: float | None = None
    ) -> Generator[Hold, None, None]:
        """See `Locks.lock_user_files`."""
        if get_ident() == self._loop_thread:
            raise RuntimeError("this is for other threads: on the event loop use `async with`")
        held = self.locks.lock_user_files(user, paths, timeout=timeout)
        from_thread.run(held.__aenter__, token=self._loop)
        try:
            yield held
        finally:
            from_thread.run(held.__aexit__, None, None, None, token=self._loop)


def from_threads(locks: "Locks") -> ThreadLocks:
    """The bridge for threads to `locks`, which belong to the loop that this is called on."""
    return ThreadLocks(locks, current_token())

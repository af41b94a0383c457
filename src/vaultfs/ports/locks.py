"""The lock store port: where the locks of each tree are kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import TypeVar

from vaultfs.domain.locks import LockTable
from vaultfs.domain.locktrees import News, TreeLocks
from vaultfs.domain.nodes import TreeId

T = TypeVar("T")
Listener = Callable[[TreeId, News], None]


class LockStore(ABC):
    """What every lock store promises; `tests/contracts/locks.py` holds it to it.

    Safe for many tasks at once, and for many processes where several share what it keeps
    things in. Any method raises `CatalogUnavailable` or `Busy` as a `Catalog` does.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def session(self) -> str:
        """What grants without a lease end with: this process; empty if it has the store alone.

        A process that is not heard of for ten seconds is taken for dead by the others, and
        what it held is given back, whether it comes back or not.
        """

    @abstractmethod
    def listen(self, listener: Listener) -> None:
        """Have `listener` told what became of requests of this process that waited.

        Once of each, after it is durable, on the event loop; perhaps before the `change`
        that made one wait returns. There is one listener.
        """

    @abstractmethod
    def at_once(self, tree: TreeId, *, timed: bool = False) -> LockTable | None:
        """The table of `tree` if this process has it alone; else None.

        The time is told if that could change anything, or if it is to be `timed`.
        What is done to it is kept with that. Who does it tells those to whom it passes
        something on. It is what `change` costs that is spared.
        """

    @abstractmethod
    async def change(
        self,
        tree: TreeId,
        work: Callable[[TreeLocks], T],
        undo: Callable[[TreeLocks, T], None] | None = None,
    ) -> T:
        """What `work` returns, once what it did to the locks of `tree` is kept.

        It is given them as they are, the time told, dead sessions buried, and must only
        compute: it may be called again, with the locks as they then are, if something
        else was in the way of keeping its changes. It says so by `changed`. It may be run
        in another thread, and together with other changes in one transaction, in the order
        of the calls. A `VaultError` that it raises before it has changed anything is passed on.

        If the caller is cancelled when `work` has been kept already, `undo` is kept too
        before the cancellation goes on.
        """

    @abstractmethod
    async def look(self, tree: TreeId, work: Callable[[TreeLocks], T]) -> T:
        """What `work` returns, which changes nothing."""

    @abstractmethod
    async def news(self, trees: Collection[TreeId]) -> None:
        """Return when another process may have changed one of `trees`, or some time has passed.

        Not later than half a second after a lease in them has run out.
        """

    @abstractmethod
    async def live(self) -> None:
        """Let others know that this process lives; runs until it is cancelled."""

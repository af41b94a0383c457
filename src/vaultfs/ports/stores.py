"""The port to the object stores of a vault, by the names that its catalog calls them by."""

from abc import ABC, abstractmethod

from attrs import frozen

from vaultfs.domain.digests import Digest
from vaultfs.ports.objects import ObjectStore, Span


@frozen
class Shadow:
    """A read of a pack that is to be compared with what the store that is moved to answers."""

    key: str
    span: Span
    digest: Digest
    """Of the bytes that were read."""


class Stores(ABC):
    """The stores that the settings of a process name."""

    __slots__ = ()

    @property
    @abstractmethod
    def primary(self) -> str:
        """The name of the store that a vault has by its settings alone."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of all of them."""

    @abstractmethod
    def store(self, name: str) -> ObjectStore:
        """The store of that name. Raises `StoreMisconfigured` where none was named so."""

    @abstractmethod
    async def find(self, name: str) -> ObjectStore:
        """The same, even if it was named after the process began.

        Raises `InvalidField` where none was named so, and what it does not open with.
        """

    @abstractmethod
    async def claim(self, name: str) -> None:
        """Say in a store whose it is, and have whoever opens the vault find it from then on.

        Raises `WrongStore` if it says another vault already.
        """

    @abstractmethod
    def shadows(self) -> tuple[Shadow, ...]:
        """Some of the reads since this was last asked, while packs go to both stores."""

    @abstractmethod
    async def refresh(self) -> None:
        """Go by what the catalog says now of where packs are."""

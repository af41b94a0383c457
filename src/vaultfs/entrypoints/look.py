"""What the catalog of a vault alone answers, whether it is here or behind a server.

Apart from `surface`, for a look is to start as fast as it can.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from vaultfs.domain.errors import NotFound
from vaultfs.domain.metadata import Json, parse_metadata
from vaultfs.domain.nodes import Kind, Node, Version
from vaultfs.domain.retention import Retention
from vaultfs.ports.catalog import Trashed


class Look(ABC):
    """A vault to look at."""

    __slots__ = ()

    @abstractmethod
    async def stat(self, path: str) -> Node:
        """The node at `path`. Raises `NotFound`."""

    @abstractmethod
    async def version(self, path: str, number: int | None = None) -> Version:
        """The current version of a file, or version `number`; its manifest may be empty.

        Raises `NotFound`, `IsAFolder`.
        """

    @abstractmethod
    def list(self, path: str = "/") -> AsyncGenerator[Node, None]:
        """The nodes of a folder, by name; fetched a thousand at a time."""

    @abstractmethod
    def versions(self, path: str) -> AsyncGenerator[Version, None]:
        """The versions of a file, newest first."""

    @abstractmethod
    def trash(self) -> AsyncGenerator[Trashed, None]:
        """What is in the trash, oldest node first."""

    @abstractmethod
    async def retention(self) -> Retention:
        """Which old versions are kept."""

    async def kind(self, path: str) -> Kind | None:
        """What is at `path`; None if nothing is."""
        try:
            return (await self.stat(path)).kind
        except NotFound:
            return None

    async def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""
        return await self.kind(path) is not None

    async def metadata(self, path: str) -> dict[str, Json]:
        """The metadata of a node."""
        return parse_metadata((await self.stat(path)).metadata)

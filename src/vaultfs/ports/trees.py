"""The ports for trees of files outside the vault: where files come from and go to."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from attrs import define, field

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import VaultError
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import Kind, Origin


class Source(Protocol):
    """Where the bytes of one file come from; read by one task."""

    async def readinto(self, view: memoryview, /) -> int:
        """Fill `view` from its start; fewer bytes than it has only at the end of the file."""
        ...


class Sink(Protocol):
    """Where the bytes of one file go to; written by one task."""

    async def write(self, pieces: Sequence[Buffer], /) -> None:
        """Append `pieces`."""
        ...


class Item(NamedTuple):
    """A folder or regular file of a tree; `path` begins below the tree's top."""

    path: Path
    kind: Kind
    size: int
    """Bytes when it was looked at; 0 for a folder."""
    origin: Origin


class Skipped(NamedTuple):
    """Something in a tree that is not taken, and why."""

    where: str
    reason: str


@define
class Report:
    """What became of a tree."""

    files: int = 0
    """Files that arrived, changed or not."""
    folders: int = 0
    size: int = 0
    """Bytes of those files."""
    changed: int = 0
    """Files that got a new version; only for a put."""
    travelled: int = 0
    """Bytes that were sent to a server."""
    skipped: list[Skipped] = field(factory=list[Skipped])
    """What was not taken because it is no file that can be, by design."""
    failed: list[Skipped] = field(factory=list[Skipped])
    """What went wrong, and how."""

    @property
    def complete(self) -> bool:
        """Whether everything arrived."""
        return not self.skipped and not self.failed


class SourceTree(ABC):
    """A tree to read. What is read is what `walk` saw, or `SourceChanged` is raised."""

    __slots__ = ()

    @abstractmethod
    def walk(self) -> AsyncGenerator[list[Item | Skipped], None]:
        """Everything in the tree, in batches: folders before what they hold, names in order.

        Links are not followed. Links, sockets, devices, what cannot be read and names
        that no vault can hold are `Skipped`. The caller closes it.
        """

    @abstractmethod
    async def load(self, items: Sequence[Item]) -> list[bytes | VaultError]:
        """The bytes of each of `items`, small files, or why they cannot be had."""

    @abstractmethod
    def open(self, item: Item) -> AbstractAsyncContextManager[Source]:
        """The bytes of a file. Raises, then or while reading, `SourceChanged`, `NotFound`
        or `Forbidden`.
        """


class TargetTree(ABC):
    """A tree to write. Nothing is ever written outside of it, wherever links lead."""

    __slots__ = ()

    @abstractmethod
    async def make_folders(self, paths: Sequence[Path]) -> list[VaultError | None]:
        """Make each of `paths`, those above it included; fine if it is there."""

    @abstractmethod
    async def store(
        self, files: Sequence[tuple[Path, Sequence[Buffer], Origin]]
    ) -> list[VaultError | None]:
        """Write whole small files, replacing what has their names; why not, for each.

        A reader sees the old file or the new one; so does whoever comes after a crash.
        """

    @abstractmethod
    def create(self, path: Path, origin: Origin) -> AbstractAsyncContextManager[Sink]:
        """Write one file: it is at `path` once the context is left without an exception,
        and until then what was there. Raises `Forbidden`, `IsAFolder` or `Conflict`.
        """

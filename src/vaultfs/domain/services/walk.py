"""Walking the manifests of all versions, each page once."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from attrs import define, field

from vaultfs.domain.digests import Digest
from vaultfs.domain.manifests import Entry
from vaultfs.domain.nodes import UserId
from vaultfs.ports.catalog import Catalog, VersionRef

LoadPage = Callable[[UserId, Entry, int], Awaitable[tuple[Entry, ...]]]


async def every_version(catalog: Catalog) -> AsyncGenerator[VersionRef, None]:
    """All versions of all trees, by id."""
    after = 0
    while page := await catalog.all_versions(after=after):
        for version in page:
            yield version
        after = page[-1].id


@define(eq=False)
class PageWalk:
    """Gives the digests under manifests; a page that was walked before is not walked again.

    Memory: a digest for each page there is, one for every thousand chunks.
    """

    load: LoadPage
    _done: set[tuple[UserId, Digest]] = field(factory=set[tuple[UserId, Digest]])
    _fresh: set[tuple[UserId, Digest]] = field(factory=set[tuple[UserId, Digest]])

    def keep(self) -> None:
        """What was walked since the last call need not be walked again."""
        self._done |= self._fresh
        self._fresh.clear()

    def drop(self) -> None:
        """What was walked since the last call has to be walked again by whoever needs it."""
        self._fresh.clear()

    async def digests(
        self, owner: UserId, level: int, entries: Sequence[Entry]
    ) -> AsyncGenerator[list[Digest], None]:
        """The digests of the chunks and pages under `entries`, a page's worth at a time.

        Those of a page come before those under it. Raises what `load` raises.
        """
        stack: list[tuple[int, Sequence[Entry]]] = [(level, entries)]
        while stack:
            level, entries = stack.pop()
            yield [digest for digest, _ in entries]
            if not level:
                continue
            for entry in reversed(entries):
                page = owner, entry[0]
                if page not in self._done and page not in self._fresh:
                    self._fresh.add(page)
                    stack.append((level - 1, await self.load(owner, entry, level)))

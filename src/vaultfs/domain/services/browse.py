"""The use cases that only look: what is in a tree. They need a catalog and no store."""

from attrs import define, field

from vaultfs.domain.access import Action, may, nothing_at
from vaultfs.domain.errors import IsAFolder, NotAFolder, NotFound, TooLarge
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import Node, TreeId, User, Version
from vaultfs.ports.catalog import Catalog, Trashed

PAGE = 1000
"""The most entries that a list gives at once."""
NOWHERE = TreeId(0)
"""The tree of nobody."""
MOST = 1 << 63
"""No number in a catalog is as high."""


@define(eq=False)
class Browse:
    """One of these serves all callers of a process."""

    catalog: Catalog
    _trees: dict[str, TreeId] = field(init=False, factory=dict[str, TreeId])

    async def tree(self, caller: User, name: str) -> TreeId:
        """The tree of the user `name`: one that holds nothing if there is no such user.

        Whether there is one is not for everybody to know.
        """
        if name == caller.name:
            return caller.tree
        if name not in self._trees:
            try:
                self._trees[name] = (await self.catalog.user(name)).tree
            except NotFound:
                return NOWHERE
        return self._trees[name]

    async def stat(self, caller: User, address: Address) -> Node:
        """The node at `address`. Raises `NotFound`."""
        node = await self.catalog.node(await self.tree(caller, address.tree), address.path)
        return _readable(caller, address, node)

    async def version(
        self, caller: User, address: Address, number: int | None = None
    ) -> tuple[Node, Version]:
        """A file and its current version, or version `number`.

        Raises `NotFound` or `IsAFolder`.
        """
        tree = await self.tree(caller, address.tree)
        if number is not None and not 0 < number < MOST:
            raise NotFound(f"{address} has no version {number}: they count from 1")
        chain, version = await self.catalog.file(tree, address.path, number)
        whole = len(chain) == len(address.path) + 1
        node = _readable(caller, address, chain[-1] if whole else None)
        if node.is_folder:
            raise IsAFolder(f"{address} is a folder")
        if version is None:
            raise NotFound(f"{address} has no version {number}: see its versions")
        return node, version

    async def children(
        self, caller: User, address: Address, *, after: str = "", limit: int = PAGE
    ) -> list[Node]:
        """Up to `limit` nodes of a folder whose name's key is above `after`, by key.

        Raises `NotFound`, `NotAFolder`, and `TooLarge` for a limit above 1,000.
        """
        if not 0 < limit <= PAGE:
            raise TooLarge(f"a list of {limit} entries: 1 to {PAGE} can be asked for")
        folder = await self.stat(caller, address)
        if not folder.is_folder:
            raise NotAFolder(f"{address} is a file, not a folder")
        return await self.catalog.children(folder.id, after=after, limit=limit)

    async def versions(
        self, caller: User, address: Address, *, before: int | None = None, limit: int = PAGE
    ) -> list[Version]:
        """Up to `limit` versions of a file, newest first, numbered below `before`."""
        node, _ = await self.version(caller, address)
        return await self.catalog.versions(node.id, before=before, limit=min(limit, PAGE))

    async def trash(
        self, caller: User, tree: str, *, after: int = 0, limit: int = PAGE
    ) -> list[Trashed]:
        """Up to `limit` nodes in the trash of a tree, with ids above `after`."""
        root = await self.stat(caller, Address(tree, ()))
        return await self.catalog.trash(root.tree, after=after, limit=min(limit, PAGE))


def _readable(caller: User, address: Address, node: Node | None) -> Node:
    """`node`, which is at `address`. Raises `NotFound` if it is not there for the caller."""
    if node is None or not may(caller.id, Action.READ, node.tree):
        raise nothing_at(address)
    return node

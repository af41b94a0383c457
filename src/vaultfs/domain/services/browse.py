"""The use cases that only look: what is in a tree. They need a catalog and no store."""

from collections.abc import Sequence

from attrs import define, field

from vaultfs.domain.access import Action, Role, nothing_at, require, role_on
from vaultfs.domain.errors import IsAFolder, NotAFolder, NotFound, TooLarge
from vaultfs.domain.names import Address, Path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, User, Version
from vaultfs.ports.catalog import Catalog, Granted, Trashed

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
        tree = await self.tree(caller, address.tree)
        if tree == caller.tree:
            node = await self.catalog.node(tree, address.path)
        else:
            node = await self._end_of(
                caller, address, await self.catalog.resolve(tree, address.path)
            )
        if node is None:
            raise nothing_at(address)
        return node

    async def role(self, caller: User, tree: TreeId, chain: Sequence[Node]) -> Role | None:
        """What the caller was granted on the last of `chain`; nothing in the caller's own tree."""
        if tree == caller.tree:
            return None
        granted = await self.catalog.roles(caller.id, tree)
        return role_on((node.id for node in chain), granted)

    async def _end_of(self, caller: User, address: Address, chain: Sequence[Node]) -> Node:
        """The node at `address`, which `chain` leads to. Raises `NotFound` if it does not, or if
        it is not the caller's to read.
        """
        if len(chain) != len(address.path) + 1:
            raise nothing_at(address)
        tree = chain[0].tree
        require(caller.id, Action.READ, tree, await self.role(caller, tree, chain), str(address))
        return chain[-1]

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
        node = await self._end_of(caller, address, chain)
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

    async def access(self, caller: User, address: Address) -> list[tuple[Path, Granted]]:
        """Who may do what with the node at `address`, and on which path that was granted.

        The owner sees all, others what they were granted themselves. Raises `NotFound`.
        """
        tree = await self.tree(caller, address.tree)
        chain = await self.catalog.resolve(tree, address.path)
        await self._end_of(caller, address, chain)
        depth = {node.id: index for index, node in enumerate(chain)}
        found = await self.catalog.grants([node.id for node in chain])
        return [
            (address.path[: depth[each.node]], each)
            for each in found
            if tree == caller.tree or key_of(each.user) == key_of(caller.name)
        ]

    async def shared(
        self, caller: User, *, after: NodeId | None = None, limit: int = PAGE
    ) -> list[tuple[Path, Granted]]:
        """Up to `limit` nodes of others that the caller was granted something on, by id.

        Those in the trash are left out.
        """
        found = await self.catalog.granted_to(caller.id, after=after, limit=min(limit, PAGE))
        paths = await self.catalog.node_paths([each.node for each in found])
        return [(paths[each.node][1], each) for each in found if each.node in paths]

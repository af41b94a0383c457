"""A look at a vault in a local folder: all that its catalog answers, without its store."""

from collections.abc import AsyncGenerator

from attrs import frozen

from vaultfs.domain.names import Address, key_of, parse_address
from vaultfs.domain.nodes import Node, User, Version
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.browse import Browse
from vaultfs.entrypoints.look import Look
from vaultfs.ports.catalog import Trashed


@frozen
class EmbeddedLook(Look):
    """What `user` sees of a catalog."""

    browse: Browse
    user: User

    def at(self, path: str) -> Address:
        """The address that `path` names."""
        return parse_address(path, own=self.user.name)

    async def stat(self, path: str) -> Node:
        return await self.browse.stat(self.user, self.at(path))

    async def version(self, path: str, number: int | None = None) -> Version:
        return (await self.browse.version(self.user, self.at(path), number))[1]

    async def list(self, path: str = "/") -> AsyncGenerator[Node, None]:
        address, after = self.at(path), ""
        while nodes := await self.browse.children(self.user, address, after=after):
            for node in nodes:
                yield node
            after = key_of(nodes[-1].name)

    async def versions(self, path: str) -> AsyncGenerator[Version, None]:
        address, before = self.at(path), None
        while found := await self.browse.versions(self.user, address, before=before):
            for version in found:
                yield version
            before = found[-1].number

    async def trash(self) -> AsyncGenerator[Trashed, None]:
        after = 0
        while found := await self.browse.trash(self.user, self.user.name, after=after):
            for each in found:
                yield each
            after = found[-1].node.id

    async def retention(self) -> Retention:
        return await self.browse.catalog.retention(self.user.tree)

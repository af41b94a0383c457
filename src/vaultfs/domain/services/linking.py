"""Edges between the versions of files, before any of them is forgotten.

A client that has a version which is pruned by then still gets a delta, along the edges
that lead from it. Each version is linked with the next, and every second, fourth, ... with
the second, fourth, ... before it, composed of what is there: a history of n versions is
about 2 log2(n) links deep. A crash leaves some edges out, and the next run adds them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from attrs import define

from vaultfs.domain.chains import Edge
from vaultfs.domain.deltas import Delta, compose, decode
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Corrupt, DamagedContent, Unsupported
from vaultfs.domain.nodes import NodeId, User, Version, VersionId
from vaultfs.domain.services.deltas import Deltas

MOST: Final = 4 << 30
"""Bytes of versions that one run links."""
FANOUT: Final = 2
"""So many links of one length are joined to one of the next."""


@define(eq=False)
class Linking:
    """One of these serves a process."""

    deltas: Deltas

    async def run(self, user: User, most: int = MOST) -> int:
        """Link the versions of a user's files, until about `most` bytes of them are; how many
        edges. What cannot be read is passed over: `verify` names it.
        """
        count = after = done = 0
        catalog = self.deltas.files.catalog
        while done < most and (nodes := await catalog.files_with_history(user.tree, after=after)):
            for node in nodes:
                after = node
                try:
                    made, size = await self._link(user, node)
                except (Corrupt, DamagedContent, Unsupported):
                    continue
                count, done = count + made, done + size
                if done >= most:
                    break
        return count

    async def _link(self, user: User, node: NodeId) -> tuple[int, int]:
        """How many edges were made between the versions of a file, and of how many bytes."""
        versions = await self._versions(node)
        known = {(edge.base, edge.target) for edge in await self.deltas.files.catalog.deltas(node)}
        made = size = 0
        for base, target in pairwise(versions):
            if (base.id, target.id) not in known and _linkable(base, target):
                await self.deltas.connect(user, base, target)
                made, size = made + 1, size + target.size
        if made:
            made += await self._skip(user, versions)
        return made, size

    async def _versions(self, node: NodeId) -> list[Version]:
        """Those of a file, oldest first."""
        found: list[Version] = []
        catalog = self.deltas.files.catalog
        while more := await catalog.versions(node, before=found[-1].number if found else None):
            found += more
        return found[::-1]

    async def _skip(self, user: User, versions: Sequence[Version]) -> int:
        """Join links to longer ones, by the numbers of the versions; how many."""
        numbered = {version.number: version for version in versions}
        last = versions[-1].number
        made, length = 0, FANOUT
        while length < last:
            edges = await self.deltas.files.catalog.deltas(versions[0].node)
            known = {(edge.base, edge.target): edge for edge in edges}
            for number in range(length, last + 1, length):
                base, target = numbered.get(number - length), numbered.get(number)
                if base is None or target is None or (base.id, target.id) in known:
                    continue
                steps = range(number - length, number + 1, length // FANOUT)
                path = [numbered.get(each) for each in steps]
                whole = await self._composed(path, known)
                if whole is not None:
                    await self.deltas.record(user, user.tree, base, target, whole.steps)
                    made += 1
            length *= FANOUT
        return made

    async def _composed(
        self, path: Sequence[Version | None], known: dict[tuple[VersionId, VersionId], Edge]
    ) -> Delta | None:
        """The delta along `path`; None if a link is missing."""
        whole: Delta | None = None
        for base, target in pairwise(path):
            if base is None or target is None or (base.id, target.id) not in known:
                return None
            found: tuple[Digest, bytes] | None = await self.deltas.files.catalog.delta(
                base.id, target.id
            )
            if found is None:
                return None
            delta = decode(found[1])
            whole = delta if whole is None else compose(whole, delta)
        return whole


def _linkable(base: Version, target: Version) -> bool:
    return base.verified is not None and target.size > 0

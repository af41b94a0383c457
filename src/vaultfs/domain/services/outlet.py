"""Whole trees on their way out, as frames: the counterpart of `domain.services.intake`.

    walk -> groups of small files -> chunks as they are stored -> frames

Everything below a folder comes in one stream, each folder before what it holds, names by
their keys: so the path that came last says where a stream that broke off goes on. A
chunk leaves as it lies in its pack; it is the receiver who decodes and verifies it. The
chunks of a file stand right in front of its entry, all of them, in order. There are none
in front of a file that is not small, or that cannot be read: it is asked for by itself.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Final, NamedTuple

from attrs import define

from vaultfs.domain.cutting import SMALL
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import DamagedContent, NotAFolder
from vaultfs.domain.frames import HEAD, End, write_end, write_entry
from vaultfs.domain.frames import Entry as EntryFrame
from vaultfs.domain.manifests import Entry
from vaultfs.domain.names import Address, Path, format_path, key_of
from vaultfs.domain.nodes import Node, NodeId, User, UserId, Version, owner_of
from vaultfs.domain.services.budget import GROUP_FILES
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.reader import Reader, Wanted, stored

GROUP_SIZE: Final = 2 << 20
"""Bytes of contents that are read together: what a slow receiver holds."""
PAGE: Final = 500
"""Nodes of a folder that are held at once; a walk holds as many for each folder it is in."""


class _Found(NamedTuple):
    """A node on its way out; its path begins below the top."""

    path: Path
    node: NodeId
    version: Version | None
    """None for a folder."""
    chunks: tuple[Entry, ...]
    """What is sent in front of it."""


@define(eq=False)
class Outlet:
    """One of these serves all callers of a process."""

    files: Files
    reader: Reader

    async def frames(
        self, caller: User, top: Address, *, after: Path = ()
    ) -> AsyncGenerator[list[Buffer], None]:
        """The frames of everything below the folder `top` that comes after the path `after`.

        A list holds some 2 MiB, 2.5 at the most. What changes meanwhile is sent as it was or
        as it is. Raises `NotFound`, `NotAFolder`, and failures of the vault itself.
        """
        folder = await self.files.stat(caller, top)
        if not folder.is_folder:
            raise NotAFolder(f"{top} is a file, not a folder")
        owner = owner_of(folder.tree)
        chunks = entries = size = 0
        group: list[_Found] = []
        yield [HEAD]
        async with AsyncExitStack() as stack:
            walk = self._walk(folder, top.path, after)
            stack.push_async_callback(walk.aclose)
            async for found in walk:
                group.append(found)
                size += sum(length for _, length in found.chunks)
                if size >= GROUP_SIZE or len(group) >= GROUP_FILES:
                    parts, sent = await self._framed(owner, group)
                    yield parts
                    chunks, entries = chunks + sent, entries + len(group)
                    group, size = [], 0
        parts, sent = await self._framed(owner, group)
        yield [*parts, write_end(End(chunks + sent, entries + len(group)))]

    async def _walk(self, top: Node, path: Path, after: Path) -> AsyncGenerator[_Found, None]:
        """All nodes below `top`, a folder before what is in it, beginning behind `after`."""
        chain = (await self.files.catalog.resolve(top.tree, (*path, *after)))[len(path) :]
        levels = [
            self._nodes(
                folder.id, after[:depth], key_of(after[depth]) if depth < len(after) else ""
            )
            for depth, folder in enumerate(chain)
            if folder.is_folder
        ]
        async with AsyncExitStack() as stack:
            for level in levels:
                stack.push_async_callback(level.aclose)
            while levels:
                found = await anext(levels[-1], None)
                if found is None:
                    levels.pop()
                    continue
                yield found
                if found.version is None:
                    levels.append(self._nodes(found.node, found.path, ""))

    async def _nodes(self, folder: NodeId, path: Path, after: str) -> AsyncGenerator[_Found, None]:
        """What is in one folder, above the key `after`."""
        catalog = self.files.catalog
        more = True
        while more:
            nodes = await catalog.children(folder, after=after, limit=PAGE)
            files = [node.id for node in nodes if not node.is_folder]
            versions = await catalog.current_versions(files) if files else {}
            for node in nodes:
                if node.is_folder or node.id in versions:
                    version = versions.get(node.id)
                    yield _Found((*path, node.name), node.id, version, _small(version))
            more = len(nodes) == PAGE
            after = key_of(nodes[-1].name) if nodes else after

    async def _framed(self, user: UserId, group: Sequence[_Found]) -> tuple[list[Buffer], int]:
        """The frames of a group, and how many are chunks."""
        parts: list[Buffer] = []
        count = 0
        for found, chunks in zip(group, await self._chunks(user, group), strict=True):
            parts += chunks
            count += len(chunks)
            parts.append(write_entry(_entry(found)))
        return parts, count

    async def _chunks(self, user: UserId, group: Sequence[_Found]) -> list[list[Buffer]]:
        """The frames of the chunks of each file; none for one that cannot be read."""
        try:
            return await self._read(user, group)
        except DamagedContent:
            if len(group) == 1:
                return [[]]
            return [chunks for each in group for chunks in await self._chunks(user, [each])]

    async def _read(self, user: UserId, group: Sequence[_Found]) -> list[list[Buffer]]:
        async def wanted() -> AsyncGenerator[Wanted, None]:
            for found in group:
                for digest, length in found.chunks:
                    yield Wanted(digest, length, 0, length)

        frames: list[Buffer] = []
        async with self.reader.chunks(user, wanted(), take=stored) as stream:
            async for part in stream:
                frames += part
        each = iter(frames)
        return [list(islice(each, len(found.chunks))) for found in group]


def _small(version: Version | None) -> tuple[Entry, ...]:
    """The chunks of a small file; none of anything else."""
    if version is None or version.size > SMALL:
        return ()
    manifest = version.manifest
    return () if manifest.level else manifest.entries


def _entry(found: _Found) -> EntryFrame:
    version, path = found.version, format_path(found.path)
    if version is None:
        return EntryFrame(path, None)
    return EntryFrame(path, version.manifest, version.origin, version.verified)

"""Somebody who calls a catalog: what the tests of catalogs are written in terms of."""

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from attrs import define, field

from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import VaultError
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.names import Path, key_of, parse_path
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Content,
    DigestState,
    Node,
    Origin,
    Preconditions,
    TreeId,
    User,
    UserId,
    Version,
)
from vaultfs.domain.operations import (
    AddUser,
    ClaimChunks,
    Copy,
    Delete,
    Done,
    MakeFolder,
    Move,
    Operation,
    Outcome,
    PutFile,
    RecordPack,
    Refused,
    Result,
    Unit,
)
from vaultfs.domain.packs import Codec, Kind, PackEntry
from vaultfs.ports.catalog import Catalog, Change

BOOT = UserId(0)
"""Who adds users."""


def digest(text: str) -> Digest:
    return digest_of(text.encode())


def content(text: str, size: int = 10) -> Content:
    """A content of one chunk, told from others by `text`."""
    return Content(Manifest(0, ((digest(text), size),)), digest(text), DigestState.VERIFIED)


def pack_of(
    name: str,
    chunks: Iterable[str],
    *users: UserId,
    backend: str = "local",
    crc32c: int | None = 7,
) -> RecordPack:
    """A pack of chunks that all of `users` sent."""
    entries = tuple(
        PackEntry(digest(chunk), 8 + 100 * index, 52, 10, Codec.RAW, Kind.DATA)
        for index, chunk in enumerate(chunks)
    )
    everything = tuple(range(len(entries)))
    claims = tuple((user, everything) for user in users)
    return RecordPack(digest(name), 1000, crc32c, backend, entries, claims)


async def add_user(catalog: Catalog, name: str, quota: int | None = None) -> User:
    unit = Unit(BOOT, 1, f"add-{name}"[:64], (AddUser(name, quota),))
    [outcome] = await catalog.apply([unit])
    assert isinstance(outcome, Done), outcome
    return await catalog.user(name)


async def state_of(catalog: Catalog) -> list[str]:
    """All that a catalog says of itself, ids not yet given out aside."""
    async with aclosing(catalog.dump()) as pieces:
        lines = b"".join([piece async for piece in pieces]).splitlines()
    kept = [line for line in map(json.loads, lines[1:-1]) if line["table"] != "counters"]
    digests = [digest(str(number)) for number in range(10)]
    stock = [await catalog.packs(), await catalog.known(UserId(1), digests)]
    return [*map(repr, kept), *map(repr, stock)]


async def pieces_of(data: bytes, size: int = 1000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@define
class Caller:
    """A user of a catalog, and shorter ways to say what the user does. Paths are text."""

    catalog: Catalog
    user: User
    now: int = field(default=1_000_000)
    """The time of the last unit; each is a second later than the one before."""

    @property
    def tree(self) -> TreeId:
        return self.user.tree

    def unit(self, *operations: Operation, op_id: str = "") -> Unit:
        self.now += 1_000_000
        return Unit(self.user.id, self.now, op_id or f"{self.user.name}-{self.now}", operations)

    async def outcome(self, *operations: Operation, op_id: str = "") -> Outcome:
        [outcome] = await self.catalog.apply([self.unit(*operations, op_id=op_id)])
        return outcome

    async def do(self, *operations: Operation, op_id: str = "") -> Result:
        """What the last of `operations`, which are one unit, led to."""
        outcome = await self.outcome(*operations, op_id=op_id)
        assert isinstance(outcome, Done), outcome
        return outcome.results[-1]

    async def made(self, *operations: Operation) -> Node:
        """The node that the last of `operations` led to."""
        node = (await self.do(*operations)).node
        assert node is not None
        return node

    async def refused(self, *operations: Operation) -> VaultError:
        """Why a unit is refused, once it is certain that it changed nothing."""
        before = await state_of(self.catalog)
        outcome = await self.outcome(*operations)
        assert isinstance(outcome, Refused), outcome
        assert await state_of(self.catalog) == before
        return outcome.error

    # Operations

    def put_op(
        self,
        path: str,
        text: str = "a",
        size: int = 10,
        *,
        origin: Origin | None = None,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = False,
    ) -> PutFile:
        where = (self.tree, parse_path(path))
        origin = origin or Origin()
        return PutFile(*where, content(text, size), origin, preconditions, parents)

    def mkdir_op(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> MakeFolder:
        return MakeFolder(self.tree, parse_path(path), parents, exist_ok)

    def move_op(self, source: str, target: str, *, replace: bool = False) -> Move:
        return Move(self.tree, parse_path(source), parse_path(target), replace=replace)

    def copy_op(
        self, source: str, target: str, *, replace: bool = False, number: int | None = None
    ) -> Copy:
        ends = (parse_path(source), parse_path(target))
        return Copy(self.tree, *ends, replace=replace, number=number)

    def delete_op(self, path: str, *, recursive: bool = False) -> Delete:
        return Delete(self.tree, parse_path(path), recursive=recursive)

    async def put(self, path: str, text: str = "a", size: int = 10) -> Node:
        return await self.made(self.put_op(path, text, size))

    async def mkdir(self, path: str) -> Node:
        return await self.made(self.mkdir_op(path))

    async def move(self, source: str, target: str, *, replace: bool = False) -> Node:
        return await self.made(self.move_op(source, target, replace=replace))

    async def copy(self, source: str, target: str, *, replace: bool = False) -> Node:
        return await self.made(self.copy_op(source, target, replace=replace))

    async def delete(self, path: str, *, recursive: bool = False) -> Node:
        return await self.made(self.delete_op(path, recursive=recursive))

    async def claim(self, *chunks: str) -> Outcome:
        return await self.outcome(ClaimChunks(self.user.id, tuple(map(digest, chunks))))

    # Questions

    async def find(self, path: str) -> Node | None:
        """The node at `path`."""
        names = parse_path(path)
        chain = await self.catalog.resolve(self.tree, names)
        return chain[-1] if len(chain) == len(names) + 1 else None

    async def node(self, path: str) -> Node:
        node = await self.find(path)
        assert node is not None, path
        return node

    async def names(self, path: str = "/") -> list[str]:
        """The names in the folder at `path`, as they are listed."""
        folder, names, after = await self.node(path), list[str](), ""
        while page := await self.catalog.children(folder.id, after=after):
            names += [node.name for node in page]
            after = key_of(page[-1].name)
        return names

    async def versions(self, path: str) -> list[Version]:
        return await self.catalog.versions((await self.node(path)).id)

    async def trash(self) -> list[tuple[int, Path]]:
        """Ids and paths of what was deleted."""
        return [(node.id, path) for node, path in await self.catalog.trash(self.tree)]

    async def feed(self) -> list[tuple[str, int]]:
        """Kinds and nodes of the feed's entries, once it is certain that it is dense."""
        changes: list[Change] = []
        while page := await self.catalog.changes(self.tree, after=len(changes)):
            changes += page
        assert [change.seq for change in changes] == list(range(1, len(changes) + 1))
        return [(change.kind, change.node) for change in changes]

    async def used(self) -> int:
        return (await self.catalog.user(self.user.name)).used

"""Vaults that can be made to fail, and what has to hold of them afterwards."""

import os
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path as FilePath
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import anyio
from attrs import define, field, frozen

from vaultfs.adapters.memory import ManualClock, MemoryObjectStore
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.wrappers.counting import CountingObjectStore, Effect
from vaultfs.domain.access import Role
from vaultfs.domain.batches import Batch
from vaultfs.domain.batches import Outcome as BatchOutcome
from vaultfs.domain.chains import Edge
from vaultfs.domain.collecting import Rewrite
from vaultfs.domain.collecting import Step as CollectStep
from vaultfs.domain.collection import ChunkRow, PackUse
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.errors import CatalogUnavailable, NotFound, OutcomeUnknown, VaultError
from vaultfs.domain.integrity import Depth
from vaultfs.domain.manifests import Entry, Manifest
from vaultfs.domain.migrating import Claimed, Counts, Failure
from vaultfs.domain.migrating import Step as MigrationStep
from vaultfs.domain.migration import Level, Placement
from vaultfs.domain.names import Address, Path, parse_address, parse_path
from vaultfs.domain.nodes import Node, NodeId, Origin, TreeId, User, UserId, Version, VersionId
from vaultfs.domain.operations import AddUser, Done, Outcome, Unit
from vaultfs.domain.retention import Retention
from vaultfs.domain.services.reader import Wanted
from vaultfs.domain.services.uploads import Purpose
from vaultfs.domain.tokens import Token
from vaultfs.domain.uploads import Upload, UploadState
from vaultfs.entrypoints.opening import OWNER
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import Vault, compose
from vaultfs.ports.catalog import (
    Audited,
    Catalog,
    CatalogStats,
    Change,
    Collected,
    Granted,
    Known,
    Location,
    Naming,
    PackRow,
    Reindexing,
    Scrubbed,
    ScrubRow,
    ScrubWanted,
    Trashed,
    Unverified,
    VersionRef,
)
from vaultfs.ports.locks import LockStore
from vaultfs.ports.objects import ObjectStore, StoreUnavailable
from vaultfs.ports.trees import Item, Skipped, Source, SourceTree

MIB: Final = 1 << 20
FOUR_PACKS: Final = 64 * MIB


def random_bytes(size: int, seed: int | str = 0) -> bytes:
    """Bytes that do not compress; the same for the same seed."""
    return Random(f"{seed}-{size}").randbytes(size)


def at(path: str) -> Address:
    """The address of `path` in the owner's tree."""
    return parse_address(path, own=OWNER)


# Catalogs and vaults


class CatalogAround(Catalog):
    """A catalog that passes every call on to `inner`."""

    def __init__(self, inner: Catalog) -> None:
        self.inner = inner

    def lock_store(self) -> LockStore:
        return self.inner.lock_store()

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        return await self.inner.apply(units)

    async def outcome(self, op_id: str) -> tuple[Change, ...]:
        return await self.inner.outcome(op_id)

    async def collect(self, step: CollectStep, actor: UserId, at_us: int) -> int:
        return await self.inner.collect(step, actor, at_us)

    async def placement(self) -> Placement | None:
        return await self.inner.placement()

    async def migrate(self, step: MigrationStep, actor: UserId, at_us: int) -> int:
        return await self.inner.migrate(step, actor, at_us)

    async def claim_copies(
        self, store: str, at_us: int, *, after: int = 0, limit: int = 16
    ) -> list[Claimed]:
        return await self.inner.claim_copies(store, at_us, after=after, limit=limit)

    async def copies_wait(self, at_us: int) -> int:
        return await self.inner.copies_wait(at_us)

    async def to_read_back(
        self, store: str, level: int, at_us: int, *, limit: int = 16
    ) -> list[Claimed]:
        return await self.inner.to_read_back(store, level, at_us, limit=limit)

    async def unaware(self, store: str, at_us: int) -> tuple[str, ...]:
        return await self.inner.unaware(store, at_us)

    async def unread(self, store: str, level: Level) -> int:
        return await self.inner.unread(store, level)

    async def packs_in(
        self, store: str, *, after: Digest | None = None, limit: int = 1000
    ) -> list[PackRow]:
        return await self.inner.packs_in(store, after=after, limit=limit)

    async def copy_failures(self, store: str, *, limit: int = 1000) -> list[Failure]:
        return await self.inner.copy_failures(store, limit=limit)

    async def copy_counts(self, store: str) -> Counts:
        return await self.inner.copy_counts(store)

    async def namings(self) -> AsyncGenerator[Sequence[Naming], None]:
        async with aclosing(self.inner.namings()) as namings:
            async for some in namings:
                yield some

    async def chunk_rows(
        self, *, after: Digest | None = None, limit: int = 8192
    ) -> Sequence[ChunkRow]:
        return await self.inner.chunk_rows(after=after, limit=limit)

    async def count_chunks(self) -> int:
        return await self.inner.count_chunks()

    async def pack_uses(self, now_us: int, *, after: int = 0, limit: int = 1000) -> list[PackUse]:
        return await self.inner.pack_uses(now_us, after=after, limit=limit)

    async def doomed(self, *, limit: int = 1000) -> list[Digest]:
        return await self.inner.doomed(limit=limit)

    async def collections(self, *, limit: int = 20) -> list[Collected]:
        return await self.inner.collections(limit=limit)

    async def claim_rewrite(self, at_us: int) -> Rewrite | None:
        return await self.inner.claim_rewrite(at_us)

    async def rewrites(self, collection: int) -> list[str | None]:
        return await self.inner.rewrites(collection)

    async def scrubs(self, *, limit: int = 20) -> list[Scrubbed]:
        return await self.inner.scrubs(limit=limit)

    async def claim_scrub(self, want: ScrubWanted, at_us: int) -> list[ScrubRow]:
        return await self.inner.claim_scrub(want, at_us)

    async def user(self, name: str) -> User:
        return await self.inner.user(name)

    async def users(self) -> list[User]:
        return await self.inner.users()

    async def token(self, number: str) -> tuple[Token, User] | None:
        return await self.inner.token(number)

    async def tokens(self, owner: UserId) -> list[Token]:
        return await self.inner.tokens(owner)

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[Audited]:
        return await self.inner.audit(after=after, limit=limit)

    async def retention(self, tree: TreeId) -> Retention:
        return await self.inner.retention(tree)

    async def resolve(self, tree: TreeId, path: Path) -> tuple[Node, ...]:
        return await self.inner.resolve(tree, path)

    async def node(self, tree: TreeId, path: Path) -> Node | None:
        return await self.inner.node(tree, path)

    async def file(
        self, tree: TreeId, path: Path, number: int | None = None
    ) -> tuple[tuple[Node, ...], Version | None]:
        return await self.inner.file(tree, path, number)

    async def children(self, folder: NodeId, *, after: str = "", limit: int = 1000) -> list[Node]:
        return await self.inner.children(folder, after=after, limit=limit)

    async def versions(
        self, node: NodeId, *, before: int | None = None, limit: int = 1000
    ) -> list[Version]:
        return await self.inner.versions(node, before=before, limit=limit)

    async def current_versions(self, nodes: Sequence[NodeId]) -> dict[NodeId, Version]:
        return await self.inner.current_versions(nodes)

    async def node_path(self, node: NodeId) -> tuple[TreeId, Path]:
        return await self.inner.node_path(node)

    async def node_paths(self, nodes: Sequence[NodeId]) -> dict[NodeId, tuple[TreeId, Path]]:
        return await self.inner.node_paths(nodes)

    async def trash(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Trashed]:
        return await self.inner.trash(tree, after=after, limit=limit)

    async def files_with_history(
        self, tree: TreeId, *, after: int = 0, limit: int = 1000
    ) -> list[NodeId]:
        return await self.inner.files_with_history(tree, after=after, limit=limit)

    async def newest_change(self, tree: TreeId) -> Change | None:
        return await self.inner.newest_change(tree)

    async def changes(self, tree: TreeId, *, after: int = 0, limit: int = 1000) -> list[Change]:
        return await self.inner.changes(tree, after=after, limit=limit)

    async def known(self, user: UserId, digests: Sequence[Digest]) -> Known:
        return await self.inner.known(user, digests)

    async def locate(self, user: UserId, digests: Sequence[Digest]) -> dict[Digest, Location]:
        return await self.inner.locate(user, digests)

    async def packs(self, *, after: Digest | None = None, limit: int = 1000) -> list[PackRow]:
        return await self.inner.packs(after=after, limit=limit)

    async def has_pack(self, key: Digest) -> bool:
        return await self.inner.has_pack(key)

    async def chunks_of(self, packs: Sequence[Digest]) -> list[tuple[Digest, Location]]:
        return await self.inner.chunks_of(packs)

    async def index(
        self, *, after: Digest | None = None, limit: int = 1000
    ) -> list[tuple[Digest, Location]]:
        return await self.inner.index(after=after, limit=limit)

    async def all_versions(self, *, after: int = 0, limit: int = 1000) -> list[VersionRef]:
        return await self.inner.all_versions(after=after, limit=limit)

    async def batch(self, batch: Batch) -> BatchOutcome:
        return await self.inner.batch(batch)

    async def roles(self, user: UserId, tree: TreeId) -> dict[NodeId, Role]:
        return await self.inner.roles(user, tree)

    async def grants(self, nodes: Sequence[NodeId]) -> list[Granted]:
        return await self.inner.grants(nodes)

    async def granted_to(
        self, user: UserId, *, after: NodeId | None = None, limit: int = 1000
    ) -> list[Granted]:
        return await self.inner.granted_to(user, after=after, limit=limit)

    async def deltas(self, node: NodeId) -> list[Edge]:
        return await self.inner.deltas(node)

    async def delta(self, base: VersionId, target: VersionId) -> tuple[Digest, bytes] | None:
        return await self.inner.delta(base, target)

    async def unverified(self, *, after: int = 0, limit: int = 1000) -> list[Unverified]:
        return await self.inner.unverified(after=after, limit=limit)

    async def upload(self, number: str) -> Upload:
        return await self.inner.upload(number)

    async def uploads(self, owner: UserId, *, after: str = "", limit: int = 1000) -> list[Upload]:
        return await self.inner.uploads(owner, after=after, limit=limit)

    async def upload_entries(self, number: str, *, at: int = 0) -> list[Entry]:
        return await self.inner.upload_entries(number, at=at)

    async def upload_tail(self, number: str) -> bytes:
        return await self.inner.upload_tail(number)

    async def stats(self) -> CatalogStats:
        return await self.inner.stats()

    async def check(self) -> list[str]:
        return await self.inner.check()

    @asynccontextmanager
    async def reindex(self) -> AsyncGenerator[Reindexing, None]:
        async with self.inner.reindex() as index:
            yield index

    async def dump(self) -> AsyncGenerator[bytes, None]:
        async for piece in self.inner.dump():
            yield piece

    async def load(self, pieces: AsyncGenerator[bytes, None]) -> None:
        await self.inner.load(pieces)

    async def vault_id(self) -> str:
        return await self.inner.vault_id()

    async def aclose(self) -> None:
        await self.inner.aclose()


class CountingCatalog(CatalogAround):
    """`inner`, with `effect` called around everything that changes it.

    A call that fails is announced before only.
    """

    def __init__(self, inner: Catalog, effect: Effect) -> None:
        super().__init__(inner)
        self._effect = effect

    async def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        kinds = " ".join(type(each).__name__ for unit in units for each in unit.operations)
        self._effect(f"before catalog apply {kinds[:80]}")
        outcomes = await super().apply(units)
        self._effect(f"after catalog apply {kinds[:80]}")
        return outcomes

    async def batch(self, batch: Batch) -> BatchOutcome:
        self._effect("before catalog batch")
        outcome = await super().batch(batch)
        self._effect("after catalog batch")
        return outcome

    async def collect(self, step: CollectStep, actor: UserId, at_us: int) -> int:
        kind = type(step).__name__
        self._effect(f"before catalog collect {kind}")
        answer = await super().collect(step, actor, at_us)
        self._effect(f"after catalog collect {kind}")
        return answer

    async def migrate(self, step: MigrationStep, actor: UserId, at_us: int) -> int:
        kind = type(step).__name__
        self._effect(f"before catalog migrate {kind}")
        answer = await super().migrate(step, actor, at_us)
        self._effect(f"after catalog migrate {kind}")
        return answer

    async def claim_copies(
        self, store: str, at_us: int, *, after: int = 0, limit: int = 16
    ) -> list[Claimed]:
        self._effect("before catalog claim_copies")
        claimed = await super().claim_copies(store, at_us, after=after, limit=limit)
        self._effect("after catalog claim_copies")
        return claimed

    @asynccontextmanager
    async def reindex(self) -> AsyncGenerator[Reindexing, None]:
        self._effect("before catalog reindex")
        async with super().reindex() as index:
            self._effect("before catalog reindex is filled")
            yield index
            self._effect("before catalog reindex is committed")
        self._effect("after catalog reindex")

    async def load(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._effect("before catalog load")
        await super().load(pieces)
        self._effect("after catalog load")


@define(eq=False)
class Effects:
    """Counts effects and raises what the world would raise at number `fail_at`, from 1."""

    fail_at: int | None = None
    seen: list[str] = field(factory=list[str])

    def start(self, fail_at: int | None) -> None:
        """Count from the beginning again."""
        self.fail_at, self.seen = fail_at, []

    def __call__(self, effect: str) -> None:
        self.seen.append(effect)
        if len(self.seen) == self.fail_at:
            raise _failure(effect)


def _failure(effect: str) -> VaultError:
    if " catalog " not in effect:
        return StoreUnavailable(effect, backend="memory", operation="put")
    if effect.startswith("before"):
        return CatalogUnavailable(effect)
    return OutcomeUnknown(effect, op_id="unknown")


async def add_user(catalog: Catalog, name: str) -> User:
    unit = Unit(UserId(0), 0, f"add-{name}", (AddUser(name),))
    [outcome] = await catalog.apply([unit])
    assert isinstance(outcome, Done), outcome
    return await catalog.user(name)


@asynccontextmanager
async def open_memory_vault(
    *,
    store: ObjectStore | None = None,
    catalog: Catalog | None = None,
    effect: Effect | None = None,
    budget: int = FOUR_PACKS,
) -> AsyncGenerator[Vault, None]:
    """A vault in memory; `catalog`, if given, stays open and has its owner.

    `effect` is called around every change from when the vault is open.
    """
    clock = ManualClock()
    objects = store or MemoryObjectStore(clock=clock)
    own = await SqliteCatalog.open(None) if catalog is None else None
    try:
        index = catalog or own
        assert index is not None
        if own is not None:
            await add_user(own, OWNER)
        if effect is not None:
            objects = CountingObjectStore(objects, effect)
            index = CountingCatalog(index, effect)
        settings = Settings(FilePath("memory"), budget, 2)
        async with compose(settings, objects, index, clock) as vault:
            yield vault
    finally:
        if own is not None:
            await own.aclose()


async def upload(vault: Vault, path: str, data: bytes, part: int) -> None:
    """Put `data` by an upload session in parts; one that is under way is gone on with."""
    address = at(path)
    found = await vault.catalog.uploads(vault.user.id)
    under_way = [each for each in found if each.path == address.path]
    session = under_way[0] if under_way else None
    if session is None:
        session = await vault.uploads.create(vault.user, Purpose(address), size=len(data))
    while session.state is UploadState.OPEN:
        start = session.offset
        source = BytesSource(data[start : start + part])
        session = await vault.uploads.append(vault.user, session.id, source, at=start)


# Sources


@define(eq=False)
class BytesSource:
    """`data`, with a `pause` behind every `step` bytes."""

    data: bytes
    step: int = 1 << 30
    pause: Callable[[], Awaitable[object]] | None = None
    broken: VaultError | None = None
    """What is told at the end, if the data is not all that there should be."""
    at: int = 0
    """Bytes that were read."""

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view) and self.at < len(self.data):
            part = self.data[self.at : self.at + min(self.step, len(view) - filled)]
            view[filled : filled + len(part)] = part
            filled += len(part)
            self.at += len(part)
            if self.pause is not None:
                await self.pause()
        return filled


@frozen
class MemoryTree(SourceTree):
    """Files by path, such as `a/b`, and the folders above them."""

    contents: Mapping[str, bytes]

    async def walk(self) -> AsyncGenerator[list[Item | Skipped], None]:
        paths = {parse_path("/" + name): data for name, data in self.contents.items()}
        folders = {path[:depth] for path in paths for depth in range(1, len(path))}
        found: list[Item | Skipped] = [
            *(Item(path, "folder", 0, Origin()) for path in sorted(folders)),
            *(Item(path, "file", len(data), Origin()) for path, data in sorted(paths.items())),
        ]
        yield found

    async def load(self, items: Sequence[Item]) -> list[bytes | VaultError]:
        return [self._data(item) for item in items]

    @asynccontextmanager
    async def open(self, item: Item) -> AsyncGenerator[Source, None]:
        yield BytesSource(self._data(item))

    def _data(self, item: Item) -> bytes:
        return self.contents["/".join(item.path)]


# What a vault holds


async def put(vault: Vault, path: str, data: bytes) -> Node:
    result = await vault.files.put(
        vault.user, at(path), BytesSource(data), size=len(data), parents=True
    )
    assert result.node is not None
    return result.node


async def read_manifest(vault: Vault, user: UserId, manifest: Manifest) -> bytes:
    pieces: list[Buffer] = []
    async with vault.reader.content(user, manifest) as parts:
        async for part in parts:
            pieces += part
    return b"".join(pieces)


async def read(vault: Vault, path: str, number: int | None = None) -> bytes:
    _, version = await vault.files.version(vault.user, at(path), number)
    return await read_manifest(vault, vault.user.id, version.manifest)


async def files_of(vault: Vault, path: str = "/") -> list[str]:
    """The paths of all files below `path`."""
    found: list[str] = []
    for node in await vault.files.children(vault.user, at(path)):
        below = f"{path.rstrip('/')}/{node.name}"
        found += await files_of(vault, below) if node.is_folder else [below]
    return found


State = dict[str, tuple[Digest, ...]]
"""The digests of all versions of every file, oldest first; trash under `trash:`."""


async def state_of(vault: Vault) -> State:
    """What `vault` holds, read from its packs."""
    held: dict[str, list[Version]] = {}
    await _add_folder(vault, (await vault.files.stat(vault.user, at("/"))).id, "", held)
    for node, path in await vault.catalog.trash(vault.user.tree):
        name = "trash:/" + "/".join(path)
        if node.is_folder:
            await _add_folder(vault, node.id, name, held)
        else:
            held[name] = await _history(vault, node)
    found = iter(await _digests(vault, [each for versions in held.values() for each in versions]))
    return {path: tuple(islice(found, len(versions))) for path, versions in held.items()}


async def _add_folder(
    vault: Vault, folder: NodeId, prefix: str, held: dict[str, list[Version]]
) -> None:
    nodes = await vault.catalog.children(folder)
    assert len(nodes) < 1000
    current = await vault.catalog.current_versions([node.id for node in nodes])
    for node in nodes:
        if node.is_folder:
            await _add_folder(vault, node.id, f"{prefix}/{node.name}", held)
        elif node.number == 1:
            held[f"{prefix}/{node.name}"] = [current[node.id]]
        else:
            held[f"{prefix}/{node.name}"] = await _history(vault, node)


async def _history(vault: Vault, node: Node) -> list[Version]:
    return (await vault.catalog.versions(node.id))[::-1]


async def _digests(vault: Vault, versions: Sequence[Version]) -> list[Digest]:
    """Of the bytes of each of `versions`, which are what their rows say."""

    async def wanted() -> AsyncGenerator[Wanted, None]:
        for version in versions:
            manifest = version.manifest
            async with aclosing(
                vault.reader.wanted(vault.user.id, manifest, 0, manifest.size)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk

    held: list[Buffer] = []
    async with vault.reader.chunks(vault.user.id, wanted()) as parts:
        async for part in parts:
            held += part
    data, start = memoryview(b"".join(held)), 0
    found: list[Digest] = []
    for version in versions:
        found.append(digest_of(data[start : start + version.size]))
        assert found[-1] == version.digest
        start += version.size
    assert start == len(data)
    return found


def digests(*contents: bytes) -> tuple[Digest, ...]:
    return tuple(map(digest_of, contents))


async def is_there(vault: Vault, path: str) -> bool:
    try:
        await vault.files.stat(vault.user, at(path))
    except NotFound:
        return False
    return True


async def settle(vault: Vault) -> None:
    """Wait until nobody holds any of the budget.

    What a transfer put into the open pack before it failed goes with that pack.
    """
    vault.files.packer.flush()
    with anyio.fail_after(10):
        while any(vault.budget.used.values()):
            await anyio.sleep(0.001)


async def assert_sound(vault: Vault) -> None:
    """All bytes are there, and nobody holds any of the budget."""
    await settle(vault)
    findings = await vault.integrity.verify(Depth.FULL)
    assert findings.clean, findings
    assert not any(vault.budget.used.values())
    assert not vault.budget.writers_wait


def assert_between(found: State, before: State, after: State) -> None:
    """Every path is as it was or as it was to become, and nothing else is there."""
    for path in {*found, *before, *after}:
        assert found.get(path) in {before.get(path), after.get(path)}, path


ALL: Final = os.environ.get("VAULTFS_CRASH_ALL") == "1"
"""Whether processes are killed at all effects, not at a sample of them."""


def struck(effects: int, seed: str, sample: int) -> list[int]:
    """The numbers of the effects at which a process is killed: one of each stretch, or all."""
    if ALL:
        return list(range(1, effects + 1))
    random, stretch = Random(seed), effects / sample
    return [1 + int(stretch * (index + random.random())) for index in range(sample)]


def small_files(count: int, *, seed: str = "small", size: int = 3000) -> dict[str, bytes]:
    """Files in a few folders: some compress, some do not, sizes up to twice `size`."""
    random = Random(f"{seed}-{count}")
    return {
        f"folder-{number % 3}/{seed}-{number:04}": _content(random, number, size)
        for number in range(count)
    }


def _content(random: Random, number: int, size: int) -> bytes:
    length = random.randrange(2 * size)
    return b"line %d\n" % number * (length // 8) if number % 2 else random.randbytes(length)


@contextmanager
def quick_folder() -> Generator[FilePath, None, None]:
    """A folder in memory where there is one: to a killed process it is as good as a disk."""
    memory = "/dev/shm"
    with TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as folder:
        yield FilePath(folder)


def write_tree(folder: FilePath, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_tree(folder: FilePath) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def below(prefix: str, contents: Mapping[str, bytes]) -> State:
    """The state that `contents` make when put below `prefix` for the first time."""
    return {f"{prefix}/{name}": digests(data) for name, data in contents.items()}


def without(state: State, paths: Iterable[str]) -> State:
    gone = set(paths)
    return {path: held for path, held in state.items() if path not in gone}

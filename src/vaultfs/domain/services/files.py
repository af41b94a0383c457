"""The use cases on files and folders.

Every method takes the caller and an address, asks `may`, and leaves the decision
about a change to the catalog, which makes it in one transaction.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from attrs import define, evolve

from vaultfs.domain.access import Action, Role, one_tree, require
from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import Locked, NotFound, PacksGone, VaultError
from vaultfs.domain.names import Address, Path, format_path
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    UNKNOWN_ORIGIN,
    Node,
    NodeId,
    Origin,
    Preconditions,
    TreeId,
    User,
    Version,
    VersionId,
    micros,
    owner_of,
)
from vaultfs.domain.operations import (
    ClaimChunks,
    Copy,
    Delete,
    Grant,
    MakeFolder,
    Move,
    Operation,
    Outcome,
    Prune,
    Purge,
    PutFile,
    Refused,
    Restore,
    RestoreVersion,
    Result,
    Revoke,
    SetMetadata,
    SetRetention,
    Unit,
)
from vaultfs.domain.retention import Retention, expired
from vaultfs.domain.services.browse import Browse
from vaultfs.domain.services.ingest import Ingest, Ingested
from vaultfs.domain.services.packer import Packer
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.relying import rely_anew
from vaultfs.ports.clock import Clock
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Source

if TYPE_CHECKING:  # most changes come with no locks
    from vaultfs.domain.locknodes import Presented

PAGE = 1000
"""The most entries that a list gives at once."""


@define(eq=False)
class Files(Browse):
    """One of these serves all callers of a process."""

    packer: Packer
    ingest: Ingest
    reader: Reader
    clock: Clock
    presented: "tuple[Presented, ...]" = ()
    """The locks that all changes come with: see `Unit.presented`."""

    def presenting(self, *presented: "Presented") -> "Files":
        """The same, for a caller that holds these locks."""
        return evolve(self, presented=(*self.presented, *presented))

    def unit(
        self,
        caller: User,
        op_id: str,
        operations: tuple[Operation, ...],
        relies: tuple[int, ...] = (),
    ) -> Unit:
        """A unit of `caller`'s, made now, that comes with the locks."""
        now = micros(self.clock.now())
        return Unit(caller.id, now, op_id, operations, self.presented, relies)

    @asynccontextmanager
    async def read(
        self, tree: TreeId, version: Version, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[list[Buffer]], None]:
        """The bytes `start` to `stop` of a version in `tree`: see `Reader.content`.

        That the caller may read it was seen when `version` gave it.
        """
        owner = owner_of(tree)
        async with self.reader.content(owner, version.manifest, start, stop) as pieces:
            yield pieces

    # Changing

    async def put(
        self,
        caller: User,
        address: Address,
        source: Source,
        *,
        size: int | None = None,
        origin: Origin = UNKNOWN_ORIGIN,
        preconditions: Preconditions = NO_PRECONDITIONS,
        parents: bool = False,
        wait: bool = True,
        progress: Progress = no_progress,
    ) -> Result:
        """Store what `source` gives as the newest version of the file at `address`.

        Durable when it returns. Refused as `PutFile` is; raises what `source` raises. A
        crash or a cancellation before the commit leaves nothing that anybody can see.
        `wait=False` is for many files one after another: see `Packer.commit`.
        """
        tree = await self.tree(caller, address.tree)
        await self.check_writable(caller, tree, address.path)
        if preconditions.any:
            await self.forecast(caller, address, preconditions)
        owner = owner_of(tree)
        ingested = await self.ingest.stream(owner, source, size=size, progress=progress)
        operation = PutFile(tree, address.path, ingested.content, origin, preconditions, parents)
        [outcome] = await self.commit(caller, [(operation, ingested)], wait=wait)
        return _result(outcome)

    async def check_writable(self, caller: User, tree: TreeId, path: Path) -> None:
        """See that something can be put at `path`, before its bytes become the owner's.

        Raises `NotFound` and `Forbidden`, for trees of others alone: the commit looks again.
        """
        if tree == caller.tree:
            return
        role = await self.role(caller, tree, await self.catalog.resolve(tree, path))
        require(caller.id, Action.WRITE, tree, role, format_path(path))

    async def forecast(self, caller: User, address: Address, preconditions: Preconditions) -> None:
        """Refuse before a byte is read what the commit would refuse anyhow."""
        node = await self.catalog.node(await self.tree(caller, address.tree), address.path)
        preconditions.check(node, str(address))

    async def commit(
        self, caller: User, puts: Sequence[tuple[PutFile, Ingested]], *, wait: bool = True
    ) -> list[Outcome]:
        """Commit files whose contents were taken in; an outcome for each."""
        now, stem = micros(self.clock.now()), self.clock.new_id()
        locks = self.presented
        units: list[Unit] = []
        for index, (operation, ingested) in enumerate(puts):
            foreign = ingested.placed.foreign
            owner = owner_of(operation.tree)
            claims = (ClaimChunks(owner, tuple(foreign)),) if foreign else ()
            relies = tuple(ingested.placed.relies)
            number = f"{stem}-{index}"
            units.append(Unit(caller.id, now, number, (*claims, operation), locks, relies))
        needs = {pack for _, ingested in puts for pack in ingested.placed.packs}
        outcomes = await self.packer.commit(units, needs, wait=wait)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Refused) and isinstance(outcome.error, PacksGone):
                outcomes[index] = await self._commit_again(units[index], puts[index][0])
        return outcomes

    async def _commit_again(self, unit: Unit, put: PutFile) -> Outcome:
        """Commit what was refused with `PacksGone`, if its chunks are elsewhere by now."""
        try:
            again = await rely_anew(self.catalog, self.reader, unit, put)
        except VaultError as error:
            return Refused(error, 0)
        [outcome] = await self.catalog.apply([again])
        return outcome

    async def change(self, caller: User, *operations: Operation) -> tuple[Result, ...]:
        """Execute `operations` as one unit. Raises why it was refused."""
        unit = self.unit(caller, self.clock.new_id(), tuple(operations))
        [outcome] = await self.catalog.apply([unit])
        if isinstance(outcome, Refused):
            raise outcome.error
        return outcome.results

    async def mkdir(
        self, caller: User, address: Address, *, parents: bool = False, exist_ok: bool = False
    ) -> Node:
        """Make a folder. Refused as `MakeFolder` is."""
        tree = await self.tree(caller, address.tree)
        operation = MakeFolder(tree, address.path, parents, exist_ok)
        return _node(await self.change(caller, operation))

    async def move(
        self,
        caller: User,
        source: Address,
        target: Address,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
        replace: bool = False,
    ) -> Node:
        """Give a node another path, in one row. Refused as `Move` is.

        Within one tree: raises `NotFound` for another.
        """
        tree = await self.tree(caller, source.tree)
        if source.tree != target.tree:
            await self.stat(caller, source)
            raise one_tree()
        operation = Move(tree, source.path, target.path, preconditions, replace)
        return _node(await self.change(caller, operation))

    async def copy(
        self,
        caller: User,
        source: Address,
        target: Address,
        *,
        number: int | None = None,
        preconditions: Preconditions = NO_PRECONDITIONS,
        replace: bool = False,
    ) -> Result:
        """Copy a node with all below it; no bytes are copied. Refused as `Copy` is."""
        tree = await self.tree(caller, source.tree)
        if source.tree != target.tree:
            await self.stat(caller, source)
            raise one_tree()
        operation = Copy(tree, source.path, target.path, preconditions, replace, number)
        return (await self.change(caller, operation))[0]

    async def delete(
        self,
        caller: User,
        address: Address,
        *,
        recursive: bool = False,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Send a node to the trash. Refused as `Delete` is."""
        tree = await self.tree(caller, address.tree)
        operation = Delete(tree, address.path, preconditions, recursive)
        return _node(await self.change(caller, operation))

    async def restore(
        self, caller: User, tree: str, node: NodeId, target: Address | None = None
    ) -> Node:
        """Bring a node back from the trash. Refused as `Restore` is."""
        if target is not None and target.tree != tree:
            raise one_tree()
        path = None if target is None else target.path
        operation = Restore(await self.tree(caller, tree), node, path)
        return _node(await self.change(caller, operation))

    async def purge(self, caller: User, tree: str, node: NodeId) -> None:
        """Forget a node in the trash, for ever. Refused as `Purge` is.

        In several transactions if it holds much; an interrupted purge can be repeated.
        """
        operation = Purge(await self.tree(caller, tree), node)
        while (await self.change(caller, operation))[0].count:
            pass

    async def restore_version(
        self,
        caller: User,
        address: Address,
        number: int,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Make an old content the newest version. Refused as `RestoreVersion` is."""
        tree = await self.tree(caller, address.tree)
        operation = RestoreVersion(tree, address.path, number, preconditions)
        return _node(await self.change(caller, operation))

    async def grant(self, caller: User, address: Address, user: str, role: Role) -> None:
        """Let a user read, or read and write, a node. Refused as `Grant` is."""
        tree = await self.tree(caller, address.tree)
        await self.change(caller, Grant(tree, address.path, user, role))

    async def revoke(self, caller: User, address: Address, user: str) -> None:
        """Take back what a user was granted on a node. Refused as `Revoke` is."""
        tree = await self.tree(caller, address.tree)
        await self.change(caller, Revoke(tree, address.path, user))

    async def set_metadata(
        self,
        caller: User,
        address: Address,
        patch: str,
        *,
        preconditions: Preconditions = NO_PRECONDITIONS,
    ) -> Node:
        """Change metadata by a JSON merge patch. Refused as `SetMetadata` is."""
        tree = await self.tree(caller, address.tree)
        return _node(
            await self.change(caller, SetMetadata(tree, address.path, patch, preconditions))
        )

    # Keeping and forgetting

    async def set_retention(self, caller: User, tree: str, retention: Retention) -> None:
        """Say which old versions of a tree are kept."""
        await self.change(caller, SetRetention(await self.tree(caller, tree), retention))

    async def prune(self, caller: User, tree: str, *, around_locks: bool = False) -> int:
        """Forget the old versions that the tree's retention does not keep; how many.

        Raises `Locked` for a file that is, unless `around_locks` leaves it as it is. A file
        that is purged meanwhile has nothing left to forget.
        """
        passed_over = (NotFound, Locked) if around_locks else (NotFound,)
        root = await self.stat(caller, Address(tree, ()))
        policy = await self.catalog.retention(root.tree)
        if policy.keeps_all:
            return 0
        count, after = 0, 0
        while nodes := await self.catalog.files_with_history(root.tree, after=after):
            for node in nodes:
                gone = await self._expired(node, policy)
                if gone:
                    with suppress(*passed_over):
                        [result] = await self.change(caller, Prune(root.tree, node, gone))
                        count += result.count
            after = nodes[-1]
        return count

    async def _expired(self, node: NodeId, policy: Retention) -> tuple[VersionId, ...]:
        versions: list[Version] = []
        while page := await self.catalog.versions(
            node, before=versions[-1].number if versions else None
        ):
            versions += page
        return expired(policy, versions, self.clock.now())


def _result(outcome: Outcome) -> Result:
    if isinstance(outcome, Refused):
        raise outcome.error
    return outcome.results[-1]


def _node(results: tuple[Result, ...]) -> Node:
    node = results[-1].node
    assert node is not None
    return node

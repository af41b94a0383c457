"""Which locks a change to a tree needs: what its writer would have to hold.

A plain write takes no lock. Its commit asks whether anybody else holds what clashes with
what it would have had to lock, and whether what it says it holds is held.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import assert_never

from vaultfs.domain import operations as ops
from vaultfs.domain.errors import Locked, NotHeld, StaleToken, listed
from vaultfs.domain.lockmodes import Mode, Resource, covers
from vaultfs.domain.locknodes import Blocker, Grant, Presented
from vaultfs.domain.locks import LockTable
from vaultfs.domain.names import Path, check_path, format_path, key_of
from vaultfs.domain.nodes import TreeId

MAX_LOCKS = 1000
"""Paths, and ranges of bytes, that one request may lock."""


@lru_cache(maxsize=4096)
def resource(tree: TreeId, path: Path) -> Resource:
    """The resource that `path` in `tree` is, the same for all ways to write the path.

    Raises `InvalidName`.
    """
    return (str(tree), *map(key_of, check_path(path)))


def path_of(of: Resource) -> str:
    """A resource as people know it."""
    return format_path(of[1:])


def told(blocker: Blocker) -> str:
    """A blocker for a message."""
    does = "waits for" if blocker.waits else "holds"
    return f"{blocker.owner} {does} {path_of(blocker.resource)} ({blocker.mode.name})"


def who(blockers: Iterable[Blocker]) -> str:
    """The first few of `blockers`, for a message."""
    return listed(list(dict.fromkeys(map(told, blockers))), most=3)


def needs(  # noqa: PLR0911 a case for each kind of operation
    operation: ops.Operation, place: Path | None = None
) -> dict[Resource, Mode]:
    """What has to be held for `operation`; nothing for those that change no path.

    `place` is where the node stands, or stood, of an operation that names it by id.
    A folder that is moved, deleted or replaced is locked with all below it.
    """
    match operation:
        case (
            ops.PutFile(tree=tree, path=path)
            | ops.RestoreVersion(tree=tree, path=path)
            | ops.Delete(tree=tree, path=path)
            | ops.SetMetadata(tree=tree, path=path)
            | ops.Grant(tree=tree, path=path)
            | ops.Revoke(tree=tree, path=path)
        ):
            return {resource(tree, path): Mode.X}
        case ops.MakeFolder(tree=tree, path=path):  # whoever has names below is not in its way
            return {resource(tree, path): Mode.IX}
        case ops.Move(tree=tree, source=source, target=target):
            return {resource(tree, source): Mode.X, resource(tree, target): Mode.X}
        case ops.Copy(tree=tree, source=source, target=target):
            return {resource(tree, source): Mode.S, resource(tree, target): Mode.X}
        case ops.Restore(tree=tree, target=target):
            where = place if target is None else target
            return {} if where is None else {resource(tree, where): Mode.X}
        case ops.Prune(tree=tree):
            return {} if place is None else {resource(tree, place): Mode.X}
        case (
            ops.Purge()  # no path leads to it
            | ops.AddUser()
            | ops.SetRetention()
            | ops.SetQuota()
            | ops.AddToken()
            | ops.RotateToken()
            | ops.RevokeToken()
            | ops.TouchToken()
            | ops.BreakLock()
            | ops.CreateUpload()
            | ops.AttachUpload()
            | ops.DeclareUpload()
            | ops.AppendUpload()
            | ops.FinishUpload()  # its put is looked at for itself
            | ops.AbortUpload()
            | ops.ExpireUploads()
            | ops.RecordPack()
            | ops.ClaimChunks()
            | ops.PinChunks()
            | ops.SetDigest()
            | ops.RecordDelta()
        ):
            return {}
        case _:  # pragma: no cover
            assert_never(operation)


def leaves(operation: ops.Operation) -> Resource | None:
    """The resource from which `operation` takes away what is there, and what it is locked by."""
    if isinstance(operation, ops.Move):
        return resource(operation.tree, operation.source)
    if isinstance(operation, ops.Delete):
        return resource(operation.tree, operation.path)
    return None


def check_presented(table: LockTable, presented: Iterable[Presented]) -> tuple[Grant, ...]:
    """The grants that a writer says it holds. Raises `StaleToken` if it does not."""
    found: list[Grant] = []
    for owner, token in presented:
        grant = table.grants.get(token)
        if grant is None or grant.owner != owner:
            raise StaleToken(
                f"the lock {owner}.{token} is held no longer: it ran out, was broken or was"
                " given back; take it anew and look what changed meanwhile"
            )
        found.append(grant)
    return tuple(found)


def check_write(
    table: LockTable, wanted: Mapping[Resource, Mode], grants: tuple[Grant, ...]
) -> None:
    """See that a write that needs `wanted` may be done by whoever holds `grants`.

    Raises `Locked` if somebody else holds what clashes, and `NotHeld` if it came with
    grants and they do not cover it.
    """
    owners = frozenset(grant.owner for grant in grants)
    blockers = table.in_the_way(wanted, owners)
    if blockers:
        met = [each for each, mode in wanted.items() if table.in_the_way({each: mode}, owners)]
        are = "is" if len(met) == 1 else "are"
        raise Locked(
            f"{listed(map(path_of, met))} {are} locked: {who(blockers)}", blockers=blockers
        )
    for each, mode in wanted.items() if grants else ():
        if not any(_covered(grant, each, mode) for grant in grants):
            raise NotHeld(
                f"the locks that came with the write do not cover {path_of(each)}: lock it"
                f" ({mode.name}) or write without them"
            )


def _covered(grant: Grant, wanted: Resource, mode: Mode) -> bool:
    """Whether `grant` has `wanted`, or something above it, in a mode as strong."""
    for depth in range(1, len(wanted) + 1):
        held = grant.plan.get(wanted[:depth])
        if held is not None and (covers(held, mode) if depth == len(wanted) else _all(held, mode)):
            return True
    return False


def _all(held: Mode, mode: Mode) -> bool:
    """Whether `held` on a folder is as good as `mode` on everything below."""
    return held is Mode.X or (mode is Mode.S and held in {Mode.S, Mode.U, Mode.SIX})


def below(grant: Grant, of: Resource) -> list[Resource]:
    """What `grant` has at or below `of`."""
    return [each for each in (*grant.items, *grant.ranges) if each[: len(of)] == of]

"""What is done to the locks of a tree in one change of its state."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import add
from typing import NoReturn, TypeVar

from vaultfs.domain.errors import DeadlockFound, LockOwnerBusy, NotHeld, WouldBlock, listed
from vaultfs.domain.intervals import Range
from vaultfs.domain.lockitems import path_of, resource, told, who
from vaultfs.domain.lockmodes import LUB, Mode, Resource
from vaultfs.domain.locknodes import (
    Answer,
    Blocked,
    Blocker,
    Deadlock,
    Grant,
    Link,
    Owner,
    OwnerBusy,
)
from vaultfs.domain.locktrees import TreeLocks
from vaultfs.domain.names import Path
from vaultfs.domain.nodes import TreeId

T = TypeVar("T")


def normal(tree: TreeId, items: Mapping[Path, T], both: Callable[[T, T], T]) -> dict[Resource, T]:
    """`items` by resource; where two ways to write a path are one, `both`. Raises `InvalidName`."""
    found = {resource(tree, path): each for path, each in items.items()}
    if len(found) < len(items):
        found.clear()
        for path, each in items.items():
            of = resource(tree, path)
            found[of] = both(found[of], each) if of in found else each
    return found


def modes_of(tree: TreeId, items: Mapping[Path, Mode]) -> dict[Resource, Mode]:
    """The modes by resource. Raises `InvalidName`."""
    if len(items) == 1:
        ((path, mode),) = items.items()
        return {resource(tree, path): mode}
    return normal(tree, items, _stronger)


def _stronger(one: Mode, other: Mode) -> Mode:
    return LUB[one][other]


def ranges_of(
    tree: TreeId, items: Mapping[Path, tuple[Range, ...]]
) -> dict[Resource, tuple[Range, ...]]:
    """The ranges by resource. Raises `InvalidName`."""
    return normal(tree, items, add)


def who_waits(locks: TreeLocks) -> frozenset[int]:
    """Who waits, after the time was told and dead sessions buried, as for every change."""
    return frozenset(locks.table.waiting)


def grant_of(locks: TreeLocks, owner: Owner, token: int, items: Mapping[Resource, Mode]) -> Grant:
    """The owner's grant, which has to have `items`. Raises `NotHeld`."""
    grant = locks.table.grants.get(token)
    if grant is None or grant.owner != owner:
        raise not_held(owner, token)
    missing = [each for each in items if each not in grant.items]
    if missing:
        raise NotHeld(f"the lock {owner}.{token} does not have {listed(map(path_of, missing))}")
    return grant


def not_held(owner: Owner, token: int) -> NotHeld:
    """What is raised for a grant that is none, or none any more."""
    return NotHeld(
        f"the lock {owner}.{token} is not held: it ran out, was broken or was given back"
    )


def release(owner: Owner, token: int, locks: TreeLocks) -> bool:
    """Give a grant back; whether it was there."""
    grant = locks.table.grants.get(token)
    if grant is None or grant.owner != owner:
        return False
    drop(token, locks)
    return True


def drop(token: int, locks: TreeLocks) -> None:
    """Give a grant back, if it is there."""
    if token in locks.table.grants:
        locks.table.release(token)
        locks.sessions.pop(token, None)
        locks.changed = True


def take_back(owner: Owner, locks: TreeLocks, done: tuple[Answer, int]) -> None:
    """Take back a request, or what it became, and nothing else of its owner."""
    answer, number = done
    if number in locks.table.waiting:
        locks.table.cancel(number)
        locks.changed = True
    elif isinstance(answer, Grant):
        drop(number, locks)
    elif number:  # while it waited its owner could have nothing new but what it became
        later = [token for token in locks.table.owned.get(owner, ()) if token > number]
        drop(min(later, default=0), locks)


def unconvert(locks: TreeLocks, request: int, token: int, before: dict[Resource, Mode]) -> None:
    """Take back a conversion: what waits for it, or what came of it."""
    locks.changed = True
    if request in locks.table.waiting:
        locks.table.cancel(request)
        return
    grant = locks.table.grants.get(token)
    if grant is not None:
        there = {each: mode for each, mode in before.items() if each in grant.items}
        locks.table.convert(token, there)


def refuse(answer: Answer, *wanted: Iterable[Resource]) -> NoReturn:
    """Raise why something was not granted."""
    paths = listed(chain.from_iterable(wanted), tell=path_of)
    match answer:
        case Blocked(blockers=blockers):
            raise WouldBlock(f"{paths} cannot be had now: {who(blockers)}", blockers=blockers)
        case Deadlock(circle=circle):
            steps = listed(circle, tell=_step, between="; ")
            raise DeadlockFound(f"waiting for {paths} would never end: {steps}", circle=circle)
        case OwnerBusy():
            raise LockOwnerBusy(f"{paths}: the owner waits for another lock already")
        case _:
            raise AssertionError(answer)


def _step(link: Link) -> str:
    where = path_of(link.resource)
    holds = told(Blocker(link.holder, link.resource, link.held))
    return f"{link.owner} waits for {where} ({link.wanted.name}), which {holds}"

"""Batches: up to 1,000 changes of trees in one request, all of them or as many as can be.

    order       as if executed one after another; each operation sees those before it
    atomic      all or nothing; if nothing, every operation says what is wrong with it
    best effort each by itself, in one transaction

An operation is one of `domain.operations`. What only batches have stands around it in a
`Step`: its id, references to nodes that earlier operations made, and what to do where
the name is taken. A step that was not understood carries its error and fails with it, so
that its neighbours are judged all the same.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attrs import evolve, field, frozen

from vaultfs.domain.errors import (
    BadReference,
    DependencyFailed,
    NotFound,
    VaultError,
)
from vaultfs.domain.lockitems import needs
from vaultfs.domain.lockmodes import Mode as LockMode
from vaultfs.domain.lockmodes import Resource
from vaultfs.domain.names import MAX_NAME, Path, format_path, key_of
from vaultfs.domain.nodes import Node, NodeId, TreeId, UserId
from vaultfs.domain.operations import (
    Copy,
    Delete,
    Grant,
    MakeFolder,
    Move,
    Operation,
    Restore,
    Revoke,
    SetMetadata,
)

if TYPE_CHECKING:
    from vaultfs.domain.locknodes import Presented

MAX_STEPS: Final = 1000
"""Operations that one batch may have."""
MAX_BYTES: Final = 4 << 20
"""Bytes of JSON that one batch may have."""
MAX_STEP: Final = 16 << 10
"""Bytes of JSON that one operation may have."""
MAX_ERRORS: Final = 100
"""Errors that an atomic batch collects before it stops looking for more."""
MAX_ID: Final = 64
"""Characters of an operation's id."""
MAX_KEY: Final = 255
"""Characters of an idempotency key."""
KEPT_US: Final = 24 * 3600 * 1_000_000
"""Microseconds for which the answer to a key is kept."""
LOCK_OWNER: Final = "batch-"
"""What the owners of the locks that batches wait for begin with."""

Change = MakeFolder | Move | Copy | Delete | Restore | SetMetadata | Grant | Revoke


class Mode(StrEnum):
    """What becomes of a batch of which something is refused."""

    ATOMIC = "atomic"
    BEST_EFFORT = "best_effort"


class OnConflict(StrEnum):
    """What becomes of an operation that wants a name which is taken."""

    FAIL = "fail"
    REPLACE = "replace"
    """The new one takes the name: see `Move` and `Copy`."""
    RENAME = "rename"
    """The new one gets the first free name of the kind `name (2).ext`."""
    SKIP = "skip"
    """Nothing is done, and that is no failure."""


class Ref(NamedTuple):
    """The node that an earlier operation made or changed, or what is below it."""

    id: str
    below: Path = ()


def with_fields(operation: Change, fields: Mapping[str, Any]) -> Change:
    """`operation` with other values in some of its fields."""
    changed: Change = evolve(operation, **fields)
    return changed


@frozen
class Step:
    """One operation of a batch."""

    operation: Change | None
    """As it is to be executed, but for the fields in `refs`; None if it was not understood."""
    id: str = ""
    """Unique in the batch; empty if it has none."""
    on_conflict: OnConflict = OnConflict.FAIL
    refs: Mapping[str, Ref] = field(factory=dict[str, Ref])
    """By the fields of the operation that they give: paths, and the node of a `Restore`."""
    error: VaultError | None = None
    """Why it was not understood."""
    meant: MakeFolder | None = None
    """What stands for one that was not understood: it would have made or put a node there."""

    @property
    def target(self) -> tuple[TreeId, Path] | None:
        """Where it would make or put a node, if that is said by a path."""
        match self.operation or self.meant:
            case MakeFolder(tree=tree, path=path):
                return tree, path
            case Move(tree=tree, target=path) | Copy(tree=tree, target=path):
                return tree, path
            case Restore(tree=tree, target=path) if path is not None:
                return tree, path
            case _:
                return None

    def aimed(self, path: Path) -> "Step":
        """The same with another place for what it makes."""
        assert self.operation is not None
        name = "path" if isinstance(self.operation, MakeFolder) else "target"
        return evolve(self, operation=with_fields(self.operation, {name: path}))


class Status(StrEnum):
    """What became of an operation."""

    OK = "ok"
    SKIPPED = "skipped"
    """The name was taken, and that was to be left so."""
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    """It would have succeeded, had the others."""
    NOT_ATTEMPTED = "not_attempted"
    """It needs what failed, or too much had failed before it."""
    WOULD_SUCCEED = "would_succeed"
    WOULD_FAIL = "would_fail"


@frozen
class Ended:
    """What became of one operation."""

    status: Status
    node: Node | None = None
    """As it was when the operation was done."""
    path: Path = ()
    """Of the node."""
    renamed: bool = False
    """The server chose the name."""
    error: VaultError | None = None


@frozen
class Outcome:
    """What became of a batch."""

    committed: bool
    """Whether what is `ok` happened, durably."""
    ended: tuple[Ended, ...]
    """For each operation, in order."""
    kept: bytes | None = None
    """The answer to an earlier request with the same key: there is nothing else then."""


class Key(NamedTuple):
    """What makes a request that is sent twice happen once."""

    name: str
    request: bytes
    """A digest of the request."""


@frozen
class Batch:
    """Operations to be executed by `Catalog.batch`."""

    actor: UserId
    at_us: int
    op_id: str
    """Of all feed entries."""
    steps: tuple[Step, ...] = field(repr=lambda steps: f"<{len(steps)} steps>")
    mode: Mode = Mode.ATOMIC
    dry_run: bool = False
    """Do all that can be refused, and take it back."""
    presented: "tuple[Presented, ...]" = ()
    """See `Unit.presented`."""
    key: Key | None = None
    answer: "Callable[[Outcome], bytes] | None" = None
    """What is kept for `key`, made of the outcome."""
    patient: bool = False
    """Do nothing at all if a lock stands in the way: the caller will wait for it."""

    @property
    def operations(self) -> tuple[Change, ...]:
        """Those that were understood."""
        return tuple(step.operation for step in self.steps if step.operation is not None)

    @property
    def atomic(self) -> bool:
        return self.mode is Mode.ATOMIC


class Made(NamedTuple):
    """What a reference leads to."""

    tree: TreeId
    node: NodeId
    path: Path | None = None
    """Where it still is, if nothing has been moved or deleted since."""


class Memory:
    """What the operations of a batch have done so far, for those behind them."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Made, int]] = {}
        """With how many moves there had been."""
        self._failed: set[str] = set()
        self._lost: dict[tuple[TreeId, Path], str] = {}
        self._next: dict[tuple[TreeId, Path], int] = {}
        self._moves = 0

    def keep(self, step: Step, node: Node | None, path: Path) -> None:
        """`step` is done, and `node`, which is at `path`, is what it was about."""
        operation = step.operation
        replaced = step.on_conflict is OnConflict.REPLACE
        if replaced or isinstance(operation, Move | Delete | Restore):
            self._moves += 1
        if node is None or isinstance(operation, Delete):
            self.find(step, node, None)
            return
        self.find(step, node, path)
        keys = tuple(map(key_of, path))
        for depth in range(1, len(keys) + 1) if self._lost else ():  # whatever failed before
            self._lost.pop((node.tree, keys[:depth]), None)

    def find(self, step: Step, node: Node | None, path: Path | None) -> None:
        """References to `step` lead to `node`, which nothing was done to."""
        if step.id and node is not None:
            self._made[step.id] = Made(node.tree, node.id, path), self._moves

    def lose(self, index: int, step: Step, above: int = 0) -> None:
        """`step` failed: what it would have made is not there.

        Nor are the last `above` of the folders above it, which it would have made too.
        """
        if step.id:
            self._failed.add(step.id)
        if step.target is not None:
            tree, path = step.target
            keys = tuple(map(key_of, path))
            for depth in range(len(keys) - above, len(keys) + 1):
                self._lost[tree, keys[:depth]] = step.id or f"#{index}"

    def made(self, ref: Ref) -> Made:
        """Raises `DependencyFailed`, `BadReference`."""
        if ref.id in self._failed:
            raise DependencyFailed(f"{ref.id} failed", depends_on=ref.id)
        if ref.id not in self._made:
            raise BadReference(f"{ref.id} has no node to refer to")
        made, moves = self._made[ref.id]
        return made if moves == self._moves else made._replace(path=None)

    def reason(self, step: Step, error: VaultError) -> VaultError:
        """Why `step` really failed: what it did not find may be what an earlier one was to make."""
        if not isinstance(error, NotFound) or step.operation is None or not self._lost:
            return error
        for tree, path in _places(step.operation):
            keys = tuple(map(key_of, path))
            for depth in range(len(keys), 0, -1):
                name = self._lost.get((tree, keys[:depth]))
                if name is not None:
                    return DependencyFailed(
                        f"{format_path(path)} needs what {name} would have made", depends_on=name
                    )
        return error

    def names(self, tree: TreeId, path: Path) -> Iterable[Path]:
        """Paths beside `path` to try: those that were given out before are not tried again."""
        place = (tree, tuple(map(key_of, path)))
        first = self._next.get(place, 2)
        for number in range(first, first + MAX_STEPS + 1):
            self._next[place] = number + 1
            yield (*path[:-1], numbered(path[-1], number))


def numbered(name: str, number: int) -> str:
    """`a (2).txt` for `a.txt`; cut where it would be longer than a name may be."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending) > 16:
        stem, dot, ending = name, "", ""
    tail = f" ({number}){dot}{ending}"
    room = MAX_NAME - len(tail.encode())
    while len(stem.encode()) > room or len(key_of(stem).encode()) > room:
        stem = stem[:-1]
    return stem + tail


def _places(operation: Change) -> list[tuple[TreeId, Path]]:
    """The paths that `operation` looks for."""
    match operation:
        case Move() | Copy():
            return [(operation.tree, operation.source), (operation.tree, operation.target[:-1])]
        case MakeFolder():
            return [(operation.tree, operation.path[:-1])]
        case Restore():
            return [] if operation.target is None else [(operation.tree, operation.target[:-1])]
        case _:
            return [(operation.tree, operation.path)]


# Locks


def lock_items(steps: Iterable[Step], *, most: int) -> dict[TreeId, dict[Path, LockMode]]:
    """What the steps have to hold of each tree, were it waited for; at most `most` paths.

    The folder that a name is chosen in is locked, and so is what a reference leads to, by
    the folder where it was made. Too many paths are locked by the folders that they are in.
    """
    wanted: dict[TreeId, dict[Path, LockMode]] = {}
    for step in steps:
        if step.operation is None:
            continue
        for resource, mode in _needs(step, step.operation).items():
            tree, path = TreeId(int(resource[0])), resource[1:]
            items = wanted.setdefault(tree, {})
            items[path] = LockMode.X if mode is LockMode.X or path in items else mode
    for items in wanted.values():
        while len(items) > most:
            deepest = max(map(len, items))
            for path in [path for path in items if len(path) == deepest]:
                del items[path]
                items[path[:-1]] = LockMode.X
    return wanted


def _needs(step: Step, operation: Operation) -> Mapping[Resource, LockMode]:
    found = needs(operation)
    if step.on_conflict is OnConflict.RENAME and step.target is not None:
        tree, path = step.target
        return {**found, (str(tree), *map(key_of, path[:-1])): LockMode.X}
    return found


def check_refs(steps: Iterable[Step]) -> list[Step]:
    """`steps`, with an error where a reference leads nowhere: they point backwards only."""
    seen: set[str] = set()
    checked: list[Step] = []
    for step in steps:
        for ref in step.refs.values():
            if ref.id not in seen and step.error is None:
                error = BadReference(f"no operation before it has the id {ref.id!r}")
                step = evolve(step, error=error)  # noqa: PLW2901
        seen.add(step.id)
        checked.append(step)
    return checked

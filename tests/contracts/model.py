"""A tree as simple as can be, which says what a catalog should do with each operation.

Things hold their children, trashed ones among them. The ids of nodes and versions
are the catalog's business: a model learns each when it first sees it.
"""

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal, assert_never, cast

from attrs import define, field
from tests.contracts.callers import content

from vaultfs.domain.errors import (
    Cycle,
    Exists,
    FolderNotEmpty,
    IsAFolder,
    NotAFolder,
    NotFound,
    ParentNotFound,
    QuotaExceeded,
)
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.metadata import Json, merged
from vaultfs.domain.names import ROOT, Path, key_of
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Origin,
    Preconditions,
    TreeId,
    VersionId,
)
from vaultfs.domain.operations import (
    Copy,
    Delete,
    FileOperation,
    Grant,
    MakeFolder,
    Move,
    Prune,
    Purge,
    PutFile,
    Restore,
    RestoreVersion,
    Revoke,
    SetMetadata,
    SetQuota,
)

Step = FileOperation | SetQuota


@define(eq=False)
class Held:
    """A version."""

    number: int
    manifest: Manifest
    id: VersionId | None = None


@define(eq=False)
class Thing:
    """A file or folder."""

    name: str
    kind: Literal["folder", "file"]
    parent: "Thing | None"
    children: list["Thing"] = field(factory=list["Thing"])
    versions: list[Held] = field(factory=list[Held])
    """Oldest first."""
    metadata: dict[str, Json] = field(factory=dict[str, Json])
    revision: int = 0
    trashed: bool = False
    id: NodeId | None = None

    @property
    def path(self) -> Path:
        return (*self.parent.path, self.name) if self.parent else ROOT

    @property
    def current(self) -> Held:
        return self.versions[-1]

    def child(self, name: str) -> "Thing | None":
        alike = (each for each in self.live() if key_of(each.name) == key_of(name))
        return next(alike, None)

    def live(self) -> list["Thing"]:
        """What is in the folder, as it is listed."""
        there = (each for each in self.children if not each.trashed)
        return sorted(there, key=lambda each: key_of(each.name))

    def below(self) -> Iterator["Thing"]:
        """This and everything under it."""
        yield self
        for each in self.children:
            yield from each.below()

    def put_into(self, folder: "Thing", name: str) -> None:
        if self.parent:
            self.parent.children.remove(self)
        self.parent, self.name = folder, name
        folder.children.append(self)


@define
class Model:
    """A user's tree. An operation that is refused raises, and may leave a mess."""

    root: Thing = field(factory=lambda: Thing("", "folder", None, revision=1, id=NodeId(1)))
    quota: int | None = None
    feed: list[str] = field(factory=list[str])

    @property
    def used(self) -> int:
        return sum(held.manifest.size for each in self.root.below() for held in each.versions)

    def trash(self) -> list[Thing]:
        return [each for each in self.root.below() if each.trashed]

    def apply(self, step: Step) -> None:  # noqa: C901, PLR0912 a case for each operation
        match step:
            case PutFile():
                self.put(step)
            case MakeFolder():
                self.mkdir(step)
            case Move():
                self.move(step)
            case Copy():
                self.copy(step)
            case Delete():
                self.delete(step)
            case Restore():
                self.restore(step)
            case Purge():
                thing = self.in_trash(step.node)
                self.log("purge")
                cast("Thing", thing.parent).children.remove(thing)
            case Prune():
                self.prune(step)
            case RestoreVersion():
                self.restore_version(step)
            case SetMetadata():
                thing = self.at(step.path)
                self.check(thing, step.preconditions)
                patched = merged(cast("Json", thing.metadata), json.loads(step.patch))
                thing.metadata = cast("dict[str, Json]", patched)
                self.revise(thing, "metadata")
            case SetQuota():
                self.quota = step.quota
            case Grant() | Revoke():
                raise AssertionError("a model of one user has nobody to share with")
            case _:
                assert_never(step)

    # What several operations need

    def log(self, kind: str) -> None:
        self.feed.append(kind)

    def revise(self, thing: Thing, kind: str) -> None:
        thing.revision += 1
        self.log(kind)

    def find(self, path: Path) -> tuple[Thing, int]:
        """The last thing on the way that exists, and how many names lead to it."""
        thing = self.root
        for depth, name in enumerate(path):
            child = thing.child(name)
            if child is None:
                return thing, depth
            thing = child
        return thing, len(path)

    def at(self, path: Path) -> Thing:
        thing, depth = self.find(path)
        if depth < len(path):
            raise NotFound("")
        return thing

    def folder(self, path: Path, *, make: bool = False) -> Thing:
        thing, depth = self.find(path)
        if thing.kind == "file":
            raise NotAFolder("")
        if depth < len(path) and not make:
            raise ParentNotFound("")
        for name in path[depth:]:
            thing = self.new(thing, name, "folder")
            self.revise(thing, "mkdir")
        return thing

    def new(self, folder: Thing, name: str, kind: Literal["folder", "file"]) -> Thing:
        thing = Thing(name, kind, folder)
        folder.children.append(thing)
        return thing

    def check(self, thing: Thing | None, wanted: Preconditions) -> None:
        """As for a node that has what preconditions look at."""
        if wanted is NO_PRECONDITIONS:
            return
        node = None
        if thing is not None:
            version = thing.current.id if thing.versions else None
            fields = (thing.id, 1, None, thing.name, thing.kind, thing.revision, version)
            node = Node._make((*fields, 0, 0, "{}", 0, 0, None))
        wanted.check(node, "")

    def add_version(self, thing: Thing, manifest: Manifest, kind: str) -> None:
        if manifest.size and self.quota is not None and self.used + manifest.size > self.quota:
            raise QuotaExceeded("")
        number = thing.current.number + 1 if thing.versions else 1
        thing.versions.append(Held(number, manifest))
        self.revise(thing, kind)

    def version(self, thing: Thing, number: int | None) -> Held:
        for held in thing.versions:
            if held.number == (thing.current.number if number is None else number):
                return held
        raise NotFound("")

    def free_place(self, path: Path, *, replace: bool, keep: Thing | None) -> Thing:
        if not path:
            raise Exists("")
        folder = self.folder(path[:-1])
        there = folder.child(path[-1])
        if there is not None and there is not keep:
            if not replace:
                raise Exists("")
            there.trashed = True
            self.revise(there, "delete")
        return folder

    def is_inside(self, path: Path, thing: Thing) -> bool:
        above: Thing | None = self.find(path[:-1])[0]
        while above is not None and above is not thing:
            above = above.parent
        return above is thing

    def by_id(self, number: NodeId) -> Thing:
        for thing in self.root.below():
            if thing.id == number:
                return thing
        raise NotFound("")

    def in_trash(self, number: NodeId) -> Thing:
        thing = self.by_id(number)
        if not thing.trashed:
            raise NotFound("")
        return thing

    # Operations

    def put(self, step: PutFile) -> None:
        if not step.path:
            raise IsAFolder("")
        folder = self.folder(step.path[:-1], make=step.parents)
        thing = folder.child(step.path[-1])
        self.check(thing, step.preconditions)
        if thing is not None and thing.kind == "folder":
            raise IsAFolder("")
        if thing is not None and thing.current.manifest == step.content.manifest:
            return
        thing = thing or self.new(folder, step.path[-1], "file")
        self.add_version(thing, step.content.manifest, "put")

    def mkdir(self, step: MakeFolder) -> None:
        thing, depth = self.find(step.path)
        if depth < len(step.path):
            self.folder(step.path[:-1], make=step.parents)
            self.folder(step.path, make=True)
        elif not step.exist_ok:
            raise Exists("")
        elif thing.kind == "file":
            raise NotAFolder("")

    def move(self, step: Move) -> None:
        thing = self.at(step.source)
        if thing is self.root:
            raise Cycle("")
        self.check(thing, step.preconditions)
        if self.is_inside(step.target, thing):
            raise Cycle("")
        folder = self.free_place(step.target, replace=step.replace, keep=thing)
        thing.put_into(folder, step.target[-1])
        self.revise(thing, "move")

    def copy(self, step: Copy) -> None:
        thing = self.at(step.source)
        self.check(thing, step.preconditions)
        if thing.kind == "folder":
            self.copy_folder(thing, step)
            return
        held = self.version(thing, step.number)
        if not step.target:
            raise Exists("")
        folder = self.folder(step.target[:-1])
        there = folder.child(step.target[-1])
        if there is None:
            there = self.new(folder, step.target[-1], "file")
            there.metadata = thing.metadata
        elif not step.replace:
            raise Exists("")
        elif there.kind == "folder":
            raise IsAFolder("")
        self.add_version(there, held.manifest, "copy")

    def copy_folder(self, thing: Thing, step: Copy) -> None:
        if step.number is not None:
            raise IsAFolder("")
        if self.is_inside(step.target, thing):
            raise Cycle("")
        if step.replace and self.find(step.target)[0] is thing:
            raise Cycle("")
        folder = self.free_place(step.target, replace=step.replace, keep=None)
        self.copy_into(folder, thing, step.target[-1])
        self.log("copy")
        if self.quota is not None and self.used > self.quota:
            raise QuotaExceeded("")

    def copy_into(self, folder: Thing, thing: Thing, name: str) -> None:
        copy = self.new(folder, name, thing.kind)
        copy.revision, copy.metadata = 1, thing.metadata
        copy.versions = [Held(1, held.manifest) for held in thing.versions[-1:]]
        for child in thing.live():
            self.copy_into(copy, child, child.name)

    def delete(self, step: Delete) -> None:
        thing = self.at(step.path)
        if thing is self.root:
            raise FolderNotEmpty("")
        self.check(thing, step.preconditions)
        if thing.live() and not step.recursive:
            raise FolderNotEmpty("")
        thing.trashed = True
        self.revise(thing, "delete")

    def restore(self, step: Restore) -> None:
        thing = self.in_trash(step.node)
        if step.target is None:
            folder = above = cast("Thing", thing.parent)
            while above.parent:
                if above.trashed:
                    raise ParentNotFound("")
                above = above.parent
            if folder.child(thing.name):
                raise Exists("")
            name = thing.name
        else:
            folder = self.free_place(step.target, replace=False, keep=None)
            name = step.target[-1]
        thing.put_into(folder, name)
        thing.trashed = False
        self.revise(thing, "restore")

    def prune(self, step: Prune) -> None:
        thing = self.by_id(step.node)
        kept = [held for held in thing.versions[:-1] if held.id not in step.versions]
        kept += thing.versions[-1:]
        if len(kept) < len(thing.versions):
            self.log("prune")
        thing.versions = kept

    def restore_version(self, step: RestoreVersion) -> None:
        thing = self.at(step.path)
        if thing.kind == "folder":
            raise IsAFolder("")
        self.check(thing, step.preconditions)
        self.add_version(thing, self.version(thing, step.number).manifest, "put")


# Steps at random, most of which mean something where the model stands

TREE = TreeId(1)
NAMES = ("a", "b", "\u00e9", "e\u0301")
PATCHES = ('{"a":1}', '{"a":null}', '{"b":{"c":[1]}}', '{"b":{"c":null}}', "{}")


@define
class Chooser:
    """Chooses what to do next."""

    model: Model
    random: Random

    def step(self) -> Step:
        make: Callable[[], Step] = self.random.choice(
            (
                *(self.put, self.put, self.put, self.put, self.mkdir, self.mkdir),
                *(self.move, self.move, self.move, self.copy, self.copy, self.delete, self.delete),
                *(self.restore, self.purge, self.prune, self.old_one, self.patch, self.quota),
            )
        )
        return make()

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def live(self) -> list[Thing]:
        return [thing for thing in self.model.root.below() if not is_gone(thing)]

    def stray(self) -> Path:
        return tuple(self.random.choices(NAMES, k=self.random.randrange(4)))

    def old(self) -> Path:
        """Mostly a path where something is."""
        path = self.stray() if self.chance(15) else self.random.choice(self.live()).path
        return path if path or self.chance(20) else self.random.choice(self.live()).path

    def place(self) -> Path:
        """Mostly a path where something could be."""
        if self.chance(25):
            return self.old()
        folders = [thing.path for thing in self.live() if thing.kind == "folder"]
        return (*self.random.choice(folders), self.random.choice(NAMES))

    def id(self) -> NodeId:
        things = self.live() if self.chance(10) else self.model.trash() or self.live()
        return self.random.choice(things).id or NodeId(99)

    def version(self) -> VersionId:
        things = self.model.root.below()
        held = [held.id for thing in things for held in thing.versions if held.id]
        return self.random.choice([*held, VersionId(99)])

    def wanted(self) -> Preconditions:
        if self.chance(85):
            return NO_PRECONDITIONS
        revision = self.random.randrange(1, 4)
        return self.random.choice(
            (
                Preconditions(if_version=self.version()),
                Preconditions(if_revision=revision),
                Preconditions(if_absent=True),
            )
        )

    def number(self) -> int:
        return self.random.choice((0, 1, 1, 1, 2, 2, 3))

    def put(self) -> PutFile:
        what = content(self.random.choice("xyz"), self.random.choice((0, 1, 10)))
        return PutFile(TREE, self.place(), what, Origin(), self.wanted(), self.chance(50))

    def mkdir(self) -> MakeFolder:
        return MakeFolder(TREE, self.place(), self.chance(50), self.chance(50))

    def move(self) -> Move:
        return Move(TREE, self.old(), self.place(), self.wanted(), self.chance(60))

    def copy(self) -> Copy:
        number = self.number() if self.chance(20) else None
        return Copy(TREE, self.old(), self.place(), self.wanted(), self.chance(60), number)

    def delete(self) -> Delete:
        return Delete(TREE, self.old(), self.wanted(), self.chance(70))

    def restore(self) -> Restore:
        return Restore(TREE, self.id(), self.place() if self.chance(50) else None)

    def purge(self) -> Purge:
        return Purge(TREE, self.id())

    def prune(self) -> Prune:
        thing = self.random.choice([*self.model.root.below()])
        held = tuple(each.id for each in thing.versions if each.id)
        return Prune(TREE, thing.id or NodeId(99), (*held[:2], *held[-1:], self.version()))

    def old_one(self) -> RestoreVersion:
        return RestoreVersion(TREE, self.old(), self.number(), self.wanted())

    def patch(self) -> SetMetadata:
        return SetMetadata(TREE, self.old(), self.random.choice(PATCHES), self.wanted())

    def quota(self) -> SetQuota:
        return SetQuota(TREE, self.random.choice((None, None, 200, 60)))


def is_gone(thing: Thing) -> bool:
    """Whether it, or anything above it, is in the trash."""
    return thing.trashed or (thing.parent is not None and is_gone(thing.parent))

"""Batches as they are written: JSON objects turned into `batches.Step`s.

    {"id": "m1", "op": "move", "src": "/a", "dst": "/b", "on_conflict": "rename"}

A path is `/a/b` in the caller's tree, `user:/a/b` in another's, or `{"ref": "m1"}` for the
node that an earlier operation made, with `"path": "c/d"` for what is below it. Nothing is
guessed: an unknown field is an error. What is wrong with one operation is kept in its step.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, cast

from attrs import define, field

from vaultfs.domain.access import Role, one_tree
from vaultfs.domain.batches import MAX_ID, Change, OnConflict, Ref, Step, check_refs
from vaultfs.domain.errors import (
    BadReference,
    DuplicateId,
    InvalidField,
    UnknownOp,
    VaultError,
    listed,
)
from vaultfs.domain.metadata import format_metadata
from vaultfs.domain.names import Path, check_path, check_user, key_of, parse_address
from vaultfs.domain.nodes import NodeId, Preconditions, TreeId, VersionId
from vaultfs.domain.operations import (
    MAX_METADATA,
    Copy,
    Delete,
    Grant,
    MakeFolder,
    Move,
    Restore,
    Revoke,
    SetMetadata,
)

Fields = dict[str, Any]
_COMMON: Final = frozenset({"op", "id", "if_version", "if_revision"})
_MADE: Final = frozenset({"if_absent", "on_conflict"})
"""Of operations that want a name."""
_PLACES: Final = ("path", "dst", "target", "src")
"""Fields that may be addresses."""
_MOST: Final = (1 << 63) - 1
NOBODY: Final = TreeId(0)
"""The tree of a user that there is none of."""


def trees_named(values: Iterable[object]) -> set[str]:
    """The users whose trees are named in operations as they are written; more than is needed."""
    found: set[str] = set()
    for value in values:
        fields = cast("Fields", value) if isinstance(value, dict) else {}
        for each in map(fields.get, _PLACES):
            if isinstance(each, str) and ":/" in each:
                found.add(each.partition(":/")[0])
        user = fields.get("user")
        if isinstance(user, str) and fields.get("op") == "restore":
            found.add(user)
    return found


def parse_steps(values: Iterable[object], own: str, trees: Mapping[str, TreeId]) -> list[Step]:
    """The steps that are written in `values`, of a caller called `own`.

    A value may be the error that it could not be read for.

    `trees` has the trees of those that `trees_named` gives, and the caller's.
    """
    parser = _Parser(own, trees)
    return check_refs(list(map(parser.step, values)))


@define(eq=False)
class _Parser:
    own: str
    trees: Mapping[str, TreeId]
    places: dict[str, tuple[str, Path] | None] = field(factory=dict[str, tuple[str, Path] | None])
    """Where the nodes of operations with an id are to be; None if that cannot be told."""

    def step(self, value: object) -> Step:
        name, fields = "", Fields()
        try:
            if isinstance(value, VaultError):
                raise value
            if not isinstance(value, dict):
                raise InvalidField("an operation is a JSON object")
            fields = cast("Fields", value)
            name = self._id(fields)
            kind = fields.get("op")
            if not isinstance(kind, str) or kind not in OPERATIONS:
                raise UnknownOp(f"op={_short(kind)}: there are {', '.join(OPERATIONS)}")
            known, parse = OPERATIONS[kind]
            unknown = sorted(fields.keys() - known)
            if unknown:
                raise InvalidField(
                    f"{kind} has no field {listed(map(_short, unknown))}: it has"
                    f" {', '.join(sorted(known))}"
                )
            return parse(_Reader(self, fields), name)
        except VaultError as error:
            return Step(None, name, error=error, meant=self._meant(name, fields))

    def _meant(self, name: str, fields: Fields) -> MakeFolder | None:
        """Where an operation that is not understood would have made or put a node."""
        written = fields.get("path", fields.get("dst"))
        try:
            address = parse_address(written, own=self.own) if isinstance(written, str) else None
        except VaultError:
            address = None
        if address is None:
            return None
        if name:
            self.places[name] = address.tree, address.path
        tree = self.trees.get(address.tree, NOBODY)
        return MakeFolder(tree, address.path, parents=fields.get("parents") is True)

    def _id(self, fields: Fields) -> str:
        name: object = fields.get("id", "")
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or len(name) > MAX_ID
            or ("id" in fields and not name)
        ):
            raise InvalidField(f"id={_short(name)}: a text of 1 to {MAX_ID} characters")
        if name in self.places:
            raise DuplicateId(f"two operations have the id {name!r}")
        if name:
            self.places[name] = None
        return name


@define(eq=False)
class _Reader:
    """The fields of one operation."""

    parser: _Parser
    fields: Fields
    refs: dict[str, Ref] = field(factory=dict[str, Ref])
    tree: TreeId = NOBODY
    user: str = ""

    def place(self, name: str, as_field: str) -> Path:
        """The path in field `name`; a reference is noted for the operation's field `as_field`."""
        value = self.fields.get(name)
        if isinstance(value, dict):
            ref = self.ref(name, cast("Fields", value))
            self.refs[as_field] = ref
            above = self.parser.places.get(ref.id)
            if above is None:  # it fails, or has failed, for another reason
                return ref.below
            user, path = above[0], (*above[1], *ref.below)
        elif isinstance(value, str):
            address = parse_address(value, own=self.parser.own)
            user, path = address.tree, address.path
        else:
            self._wrong(name, "a path, or a reference to an earlier operation")
        if self.user and key_of(user) != key_of(self.user):
            raise one_tree()
        self.user, self.tree = user, self.parser.trees.get(user, NOBODY)
        return path

    def ref(self, name: str, value: Fields) -> Ref:
        """The reference that `value` is."""
        unknown = value.keys() - {"ref", "path"}
        target, below = value.get("ref"), value.get("path", "")
        if unknown or not isinstance(target, str) or not target or not isinstance(below, str):
            self._wrong(name, 'a reference is {"ref": "<id>"}, and "path" for what is below it')
        if target == self.fields.get("id"):
            raise BadReference(f"{target!r} refers to itself")
        return Ref(target, check_path(tuple(below.strip("/").split("/"))) if below else ())

    def flag(self, name: str) -> bool:
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            self._wrong(name, "true or false")
        return value

    def number(self, name: str) -> int | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
            self._wrong(name, "a number from 1 on")
        return value

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str) or not value:
            self._wrong(name, "a text")
        return value

    def choice(self, name: str, default: str, choices: Iterable[str]) -> str:
        value = self.fields.get(name, default)
        if value not in choices:
            self._wrong(name, f"one of {', '.join(choices)}")
        return cast("str", value)

    def wanted(self) -> Preconditions:
        version, revision = self.number("if_version"), self.number("if_revision")
        return Preconditions(None if version is None else VersionId(version), revision)

    def conflict(self, *allowed: OnConflict) -> OnConflict:
        found = OnConflict(self.choice("on_conflict", "fail", tuple(map(str, allowed))))
        if self.flag("if_absent") and found is not OnConflict.FAIL:
            self._wrong("if_absent", "it goes with on_conflict=fail alone")
        return found

    def done(self, operation: Change, name: str, path: Path, conflict: OnConflict) -> Step:
        """The step; its node will be at `path`."""
        if name:
            self.parser.places[name] = (self.user, path)
        return Step(operation, name, conflict, self.refs)

    def _wrong(self, name: str, wanted: str) -> NoReturn:
        if name not in self.fields:
            raise InvalidField(f"{name} is missing: {wanted}")
        raise InvalidField(f"{name}={_short(self.fields[name])}: {wanted}")


def _mkdir(read: _Reader, name: str) -> Step:
    path = read.place("path", "path")
    there = read.choice("if_exists", "fail", ("fail", "ok"))
    conflict = read.conflict(OnConflict.FAIL, OnConflict.RENAME, OnConflict.SKIP)
    if there == "ok" and (conflict is not OnConflict.FAIL or read.flag("if_absent")):
        raise InvalidField("if_exists=ok goes with neither on_conflict nor if_absent")
    made = MakeFolder(read.tree, path, read.flag("parents"), there == "ok")
    return read.done(made, name, path, conflict)


def _move(read: _Reader, name: str) -> Step:
    source, target = read.place("src", "source"), read.place("dst", "target")
    conflict = read.conflict(*OnConflict)
    replace = conflict is OnConflict.REPLACE
    return read.done(
        Move(read.tree, source, target, read.wanted(), replace), name, target, conflict
    )


def _copy(read: _Reader, name: str) -> Step:
    source, target = read.place("src", "source"), read.place("dst", "target")
    conflict = read.conflict(*OnConflict)
    replace = conflict is OnConflict.REPLACE
    made = Copy(read.tree, source, target, read.wanted(), replace, read.number("version"))
    return read.done(made, name, target, conflict)


def _delete(read: _Reader, name: str) -> Step:
    path = read.place("target", "path")
    gone = Delete(read.tree, path, read.wanted(), read.flag("recursive"))
    return read.done(gone, name, path, OnConflict.FAIL)


def _restore(read: _Reader, name: str) -> Step:
    value = read.fields.get("node")
    node = NodeId(0)
    if isinstance(value, dict):
        ref = read.refs["node"] = read.ref("node", cast("Fields", value))
        if ref.below:
            raise InvalidField("node: what is below a node comes back with it, not by itself")
        read.user, above = read.parser.places.get(ref.id) or (read.parser.own, ())
        read.tree = read.parser.trees.get(read.user, NOBODY)
    else:
        number = read.number("node")
        if number is None:
            raise InvalidField("node is missing: the id of a node in the trash, or a reference")
        node = NodeId(number)
        above = ()
        user = read.fields.get("user", read.parser.own)
        if not isinstance(user, str):
            raise InvalidField(f"user={_short(user)}: whose trash it is in")
        read.user, read.tree = user, read.parser.trees.get(user, NOBODY)
    target = read.place("dst", "target") if "dst" in read.fields else None
    conflict = read.conflict(OnConflict.FAIL, OnConflict.RENAME, OnConflict.SKIP)
    if conflict is OnConflict.RENAME and target is None:
        raise InvalidField("on_conflict=rename wants dst: the name to begin with")
    back = Restore(read.tree, node, target)
    return read.done(back, name, above if target is None else target, conflict)


def _set_metadata(read: _Reader, name: str) -> Step:
    path = read.place("target", "path")
    merge = read.fields.get("merge")
    if not isinstance(merge, dict):
        raise InvalidField("merge is a JSON object: a merge patch (RFC 7396)")
    patch = format_metadata(cast("Fields", merge), most=MAX_METADATA)
    return read.done(
        SetMetadata(read.tree, path, patch, read.wanted()), name, path, OnConflict.FAIL
    )


def _grant(read: _Reader, name: str) -> Step:
    path = read.place("target", "path")
    user = check_user(read.text("user"))
    role = Role(read.choice("role", "", tuple(map(str, Role))))
    return read.done(Grant(read.tree, path, user, role, read.wanted()), name, path, OnConflict.FAIL)


def _revoke(read: _Reader, name: str) -> Step:
    path = read.place("target", "path")
    gone = Revoke(read.tree, path, check_user(read.text("user")), read.wanted())
    return read.done(gone, name, path, OnConflict.FAIL)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


OPERATIONS: Final[dict[str, tuple[frozenset[str], Callable[[_Reader, str], Step]]]] = {
    "mkdir": (
        frozenset({"op", "id", "path", "parents", "if_exists"}) | _MADE,
        _mkdir,
    ),
    "move": (_COMMON | _MADE | {"src", "dst"}, _move),
    "copy": (_COMMON | _MADE | {"src", "dst", "version"}, _copy),
    "delete": (_COMMON | {"target", "recursive"}, _delete),
    "restore": (frozenset({"op", "id", "node", "user", "dst"}) | _MADE, _restore),
    "set_metadata": (_COMMON | {"target", "merge"}, _set_metadata),
    "grant": (_COMMON | {"target", "user", "role"}, _grant),
    "revoke": (_COMMON | {"target", "user"}, _revoke),
}
"""The fields of each operation, and what makes a step of them."""

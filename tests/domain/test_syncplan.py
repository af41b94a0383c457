"""The planner: two trees that were in step and were changed are led to one, and nothing is lost."""

from collections.abc import Callable, Mapping
from random import Random
from typing import TypeVar

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.names import Path
from vaultfs.domain.nodes import NodeId, VersionId
from vaultfs.domain.syncplan import Action, Agreed, Here, Plan, Step, There, aside, plan

T = TypeVar("T")
NAMES = [("a",), ("b",), ("d", "a"), ("d", "b"), ("d", "e", "c"), ("x",)]


@define
class World:
    """A folder, a vault and what was agreed; carries steps out as a client would."""

    random: Random
    here: dict[Path, bytes] = field(factory=dict[Path, bytes])
    there: dict[Path, There] = field(factory=dict[Path, There])
    agreed: dict[Path, Agreed] = field(factory=dict[Path, Agreed])
    gone: set[int] = field(factory=set[int])
    """Nodes that the vault says were deleted."""
    edited_here: dict[Path, bytes] = field(factory=dict[Path, bytes])
    """What each file here was when it was in step."""
    number: int = 0
    authored: set[bytes] = field(factory=set[bytes])
    deleted: set[bytes] = field(factory=set[bytes])
    """Contents that somebody deleted, or replaced, knowing them."""

    def fresh(self) -> bytes:
        self.number += 1
        content = b"content %d" % self.number
        self.authored.add(content)
        return content

    def next(self) -> int:
        self.number += 1
        return self.number

    def change_here(self) -> None:
        path = self.random.choice(NAMES)
        match self.random.randrange(4):
            case 0 | 1:
                self.deleted.add(self.here.get(path, b""))
                self.here[path] = self.fresh()
            case 2 if path in self.here:
                self.deleted.add(self.here.pop(path))
            case _ if path in self.here:
                target = self.random.choice(NAMES)
                if target not in self.here:
                    self.here[target] = self.here.pop(path)
            case _:
                pass

    def change_there(self) -> None:
        path = self.random.choice(NAMES)
        old = self.there.get(path)
        match self.random.randrange(4):
            case 0 | 1:
                node = old.node if old else NodeId(self.next())
                self.deleted.add(old.content if old else b"")
                self.there[path] = There(node, VersionId(self.next()), self.fresh())
            case 2 if old:
                del self.there[path]
                self.gone.add(old.node)
                self.deleted.add(old.content)
            case _ if old:
                target = self.random.choice(NAMES)
                if target not in self.there:
                    del self.there[path]
                    self.there[target] = old
            case _:
                pass

    def plan(self) -> Plan:
        here = {
            path: Here(self.edited_here.get(path) != content, content)
            for path, content in self.here.items()
        }
        moved = {each.node for each in self.there.values()}

        def deleted(agreed: Agreed, _: Path) -> bool:
            return agreed.node in self.gone or agreed.node in moved

        found = plan(here, self.there, self.agreed, deleted)
        assert found == self.short_plan(here, deleted)
        return found

    def short_plan(self, here: dict[Path, Here], deleted: Callable[[Agreed, Path], bool]) -> Plan:
        """The same, from what is not settled."""
        settled = {
            path
            for path, each in self.agreed.items()
            if path in here and not here[path].edited and self.there.get(path) == There(*each)
        }

        def left(side: Mapping[Path, T]) -> dict[Path, T]:
            return {path: each for path, each in side.items() if path not in settled}

        names = {"/".join(path) for path in settled}
        return plan(left(here), left(self.there), left(self.agreed), deleted, names)

    def settle(self, path: Path) -> None:
        there = self.there[path]
        self.agreed[path] = Agreed(there.node, there.version, there.content)
        self.edited_here[path] = there.content

    def forget(self, path: Path) -> None:
        self.agreed.pop(path, None)
        self.edited_here.pop(path, None)

    def carry_out(self, step: Step) -> None:  # noqa: C901 a case for each action
        path, source = step.path, step.source
        match step.action:
            case Action.PULL:
                self.here[path] = self.there[path].content
                self.settle(path)
            case Action.PUSH:
                old = self.there.get(path)
                assert (old.version if old else None) == step.base
                node = old.node if old else NodeId(self.next())
                self.there[path] = There(node, VersionId(self.next()), self.here[path])
                self.settle(path)
            case Action.ADOPT:
                assert self.here[path] == self.there[path].content
                self.settle(path)
            case Action.FORGET:
                self.forget(path)
            case Action.DELETE_HERE:
                del self.here[path]
                self.forget(path)
            case Action.DELETE_THERE:
                self.gone.add(self.there.pop(path).node)
                self.forget(path)
            case Action.MOVE_HERE:
                assert source is not None
                self.here[path] = self.here.pop(source)
                self.forget(source)
                self.settle(path)
            case Action.MOVE_THERE:
                assert source is not None
                self.there[path] = self.there.pop(source)
                self.forget(source)
                self.settle(path)
            case Action.SET_ASIDE:
                name = aside(path[-1], "2026-01-02", "here")
                while (*path[:-1], name) in self.here:
                    name += "'"
                self.here[(*path[:-1], name)] = self.here.pop(path)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_whatever_was_changed_both_come_in_step(seed: int, stops: bool) -> None:
    world = World(Random(seed))
    for _ in range(3):
        for _ in range(world.random.randrange(6)):
            world.change_here()
        for _ in range(world.random.randrange(6)):
            world.change_there()
        for _ in range(10):
            found = world.plan()
            assert found.problems == ()
            if not found.steps:
                break
            most = world.random.randrange(len(found.steps)) + 1 if stops else len(found.steps)
            for step in found.steps[:most]:
                world.carry_out(step)
        else:
            pytest.fail("it never comes to an end")
        assert world.here == {path: each.content for path, each in world.there.items()}
        assert world.agreed.keys() == world.here.keys()
        lost = world.authored - set(world.here.values()) - world.deleted
        assert lost == set()


def never(_agreed: Agreed, _path: Path) -> bool:
    """The vault says of nothing that it was deleted."""
    return False


def always(_agreed: Agreed, _path: Path) -> bool:
    """The vault says so of everything."""
    return True


def both(content: bytes = b"x") -> tuple[There, Agreed]:
    return There(NodeId(1), VersionId(1), content), Agreed(NodeId(1), VersionId(1), content)


def test_nothing_is_deleted_because_it_is_absent() -> None:
    there, agreed = both()
    found = plan({("a",): Here(False, b"x")}, {}, {("a",): agreed}, never)
    assert found.steps == ()
    assert [problem.path for problem in found.problems] == [("a",)]
    found = plan({("a",): Here(False, b"x")}, {}, {("a",): agreed}, always)
    assert [step.action for step in found.steps] == [Action.DELETE_HERE]
    found = plan({("a",): Here(True, b"y")}, {}, {("a",): agreed}, always)
    assert [step.action for step in found.steps] == [Action.PUSH]  # an edit beats a deletion
    newer = there._replace(version=VersionId(2))
    found = plan({}, {("a",): newer}, {("a",): agreed}, never)
    assert [step.action for step in found.steps] == [Action.PULL]


def test_a_folder_that_is_gone_is_alarming() -> None:
    paths: list[Path] = [(f"{n}",) for n in range(20)]
    agreed = {p: Agreed(NodeId(n), VersionId(n), b"%d" % n) for n, p in enumerate(paths)}
    there = {p: There(NodeId(n), VersionId(n), b"%d" % n) for n, p in enumerate(paths)}
    assert plan({}, there, agreed, never).alarming
    here = {p: Here(False, b"%d" % n) for n, p in enumerate(paths)}
    assert plan(here, {}, agreed, always).alarming
    few = {path: each for path, each in here.items() if int(path[0]) < 11}
    assert not plan(few, there, agreed, never).alarming
    for count, alarms in ((1, False), (2, True), (4, True)):  # all of several is a folder too
        some = dict(list(agreed.items())[:count])
        assert plan({}, {p: there[p] for p in some}, some, never).alarming == alarms
    moved: dict[Path, Here] = {("m", *p): Here(True, b"%d" % n) for n, p in enumerate(paths)}
    found = plan(moved, there, agreed, never)
    assert {step.action for step in found.steps} == {Action.MOVE_THERE}
    assert not found.alarming


def test_names_that_are_one_elsewhere_are_refused_where_they_are_made() -> None:
    there, agreed = both()
    here: dict[Path, Here] = {
        ("Readme",): Here(False, b"x"),
        ("README",): Here(True, b"y"),
        ("é",): Here(True, b"1"),
        ("e\u0301",): Here(True, b"2"),
    }
    found = plan(here, {("Readme",): there}, {("Readme",): agreed}, never)
    assert [problem.path for problem in found.problems] == [("README",), ("é",)]
    assert [step.path for step in found.steps] == [("e\u0301",)]
    del here["Readme",]
    assert plan(here, {}, {}, never, {"Readme"}) == found


CASES = [("a",), ("A",), ("ab",), ("aB",), ("AB",), ("d", "\u00e9"), ("d", "e\u0301"), ("D", "x")]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_settled_may_be_left_out(seed: int) -> None:
    """Whatever names there are, and whatever else was changed, the plan is the same."""
    random = Random(seed)
    here: dict[Path, Here] = {}
    there: dict[Path, There] = {}
    agreed: dict[Path, Agreed] = {}
    contents = [b"", b"1", b"2", b"3"]
    for number, path in enumerate(CASES):
        each = Agreed(NodeId(number), VersionId(number), random.choice(contents))
        if random.random() < 0.7:
            agreed[path] = each
        if random.random() < 0.7:
            there[path] = There(each.node, each.version, each.content)
        if random.random() < 0.7:
            edited = path not in agreed or random.random() < 0.2
            here[path] = Here(edited, random.choice(contents) if edited else each.content)
        if random.random() < 0.2:
            version = VersionId(random.randrange(9))
            there[path] = There(NodeId(random.randrange(9)), version, random.choice(contents))
    gone = random.random() < 0.5
    settled = {
        path
        for path, each in agreed.items()
        if path in here and not here[path].edited and path in there
        if (there[path].node, there[path].version) == (each.node, each.version)
    }

    def rest(some: dict[Path, T]) -> dict[Path, T]:
        return {path: each for path, each in some.items() if path not in settled}

    whole = plan(here, there, agreed, lambda _agreed, _path: gone)
    names = {"/".join(path) for path in settled}
    assert plan(rest(here), rest(there), rest(agreed), lambda _agreed, _path: gone, names) == whole


def test_a_new_case_of_one_name_is_another_name_all_the_same() -> None:
    kept, old = Agreed(NodeId(1), VersionId(1), b"1"), Agreed(NodeId(2), VersionId(2), b"2")
    here: dict[Path, Here] = {("ab",): Here(False, b"1"), ("AB",): Here(True, b"2")}
    for name in ("aB", "Ab"):
        agreed: dict[Path, Agreed] = {("ab",): kept, (name,): old}
        there: dict[Path, There] = {path: There(*each) for path, each in agreed.items()}
        found = plan(here, there, agreed, never)
        assert [problem.path for problem in found.problems] == [("AB",)]
        del agreed["ab",], there["ab",]
        left: dict[Path, Here] = {("AB",): here["AB",]}
        assert plan(left, there, agreed, never, {"ab"}) == found


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("report.docx", "report (conflict 2026-01-02 box).docx"),
        ("noext", "noext (conflict 2026-01-02 box)"),
        (".profile", ".profile (conflict 2026-01-02 box)"),
        ("a.tar.gz", "a.tar (conflict 2026-01-02 box).gz"),
    ],
)
def test_a_copy_is_kept_aside(name: str, kept: str) -> None:
    assert aside(name, "2026-01-02", "box") == kept


def test_a_long_name_still_fits() -> None:
    name = aside("é" * 120 + ".docx", "2026-01-02", "box")
    assert len(name.encode()) <= 255
    assert name.endswith(" (conflict 2026-01-02 box).docx")

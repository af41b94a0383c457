"""What two trees that were once in step have to do to be so again.

Three trees decide: the one here, the one there, and what both were when they were last in
step. A path that only one side has changed goes to the other. Where both have, the side
that was first, which is the one there, keeps the name, and the content here is kept beside
it under another. An edit beats a deletion. Nothing is deleted because it is absent: here a
file counts as deleted if it was in step before, there if the vault says so (a tombstone).
A file that stands elsewhere with the same content has been moved.

The steps are values; whoever carries them out does so in their order, and may stop after
any of them: planning again from what is there then leads on.
"""

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from vaultfs.domain.names import Path, key_of
from vaultfs.domain.nodes import NodeId, VersionId

MOST_GONE: Final = 0.5
"""Where a larger share of the files that were in step is gone on one side, somebody is asked."""
FEW: Final = 4
"""So many may go from among others."""


class Here(NamedTuple):
    """A file of the folder here."""

    edited: bool
    """Whether it is another than when it was in step; of one that never was, always."""
    content: bytes
    """What is equal for equal contents, and only for them; empty if nobody knows."""


class There(NamedTuple):
    """A file of the vault."""

    node: NodeId
    version: VersionId
    content: bytes
    """As in `Here`."""


class Agreed(NamedTuple):
    """A file when both sides were in step."""

    node: NodeId
    version: VersionId
    content: bytes


class Action(StrEnum):
    """What is done with a path."""

    PULL = "pull"
    PUSH = "push"
    ADOPT = "adopt"
    """Both have it already: only remember."""
    FORGET = "forget"
    """Neither has it any more."""
    DELETE_HERE = "delete-here"
    DELETE_THERE = "delete-there"
    MOVE_HERE = "move-here"
    """From `source`, which is where it was, to `path`."""
    MOVE_THERE = "move-there"
    SET_ASIDE = "set-aside"
    """Give what is here another name; that name is pushed, and what is there pulled."""


class Step(NamedTuple):
    """One thing to do."""

    action: Action
    path: Path
    source: Path | None = None
    base: VersionId | None = None
    """The version that a push replaces; None where there must be none."""


class Problem(NamedTuple):
    """Something that is left as it is."""

    path: Path
    reason: str


class Plan(NamedTuple):
    """What is to be done, and what is not."""

    steps: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    gone_here: int = 0
    """Files that were in step and are not here any more."""
    gone_there: int = 0
    known: int = 0
    """Files that were in step."""

    @property
    def alarming(self) -> bool:
        """Whether so much is gone that it may be a disk that is not there, or a mistake."""
        gone = max(self.gone_here, self.gone_there)
        return gone == self.known > 1 or (gone > FEW and gone > MOST_GONE * self.known)


def plan(
    here: Mapping[Path, Here],
    there: Mapping[Path, There],
    agreed: Mapping[Path, Agreed],
    deleted: Callable[[Agreed, Path], bool],
    settled: Collection[str] = (),
) -> Plan:
    """The steps that bring `here` and `there` in step.

    `deleted` tells whether the vault says of a file that it was deleted, or moved away. Files
    that both sides have as it was agreed may be left out of the three: `settled` has their
    names then, as `a/b`. Most files are, and what is looked up by name costs little.
    """
    steps: list[Step] = []
    moved_there = _moved_there(here, there, agreed)
    moved_here = _moved_here(here, there, agreed, moved_there)
    problems = _clashes(here, there, agreed, moved_here, settled)
    refused = {problem.path for problem in problems}
    taken = {*moved_there.values(), *moved_here.values()}
    for path in sorted(here.keys() | there.keys() | agreed.keys()):
        if path in refused:
            continue
        if path in moved_there:
            steps.append(Step(Action.MOVE_HERE, path, moved_there[path]))
        elif path in moved_here:
            source = moved_here[path]
            steps.append(Step(Action.MOVE_THERE, path, source, agreed[source].version))
        elif path not in taken:
            found = _step(path, here.get(path), there.get(path), agreed.get(path), deleted)
            if isinstance(found, Problem):
                problems.append(found)
            elif found is not None:
                steps.append(found)
    return Plan(
        tuple(sorted(steps, key=_order)),
        tuple(problems),
        sum(path not in here for path in agreed if path not in taken),
        sum(path not in there for path in agreed if path not in taken),
        len(agreed) + len(settled),
    )


def _step(  # noqa: C901, PLR0911 the table of all cases
    path: Path,
    here: Here | None,
    there: There | None,
    agreed: Agreed | None,
    deleted: Callable[[Agreed, Path], bool],
) -> Step | Problem | None:
    if agreed is None:
        if here is None:
            return Step(Action.PULL, path)
        if there is None:
            return Step(Action.PUSH, path)
        return _both(path, here, there)
    edited_there = there is not None and there.version != agreed.version
    match here, there:
        case None, None:
            return Step(Action.FORGET, path)
        case None, There():
            return Step(Action.PULL if edited_there else Action.DELETE_THERE, path)
        case Here(edited), None:
            if not deleted(agreed, path):
                return Problem(
                    path, "the vault has it no more, and does not say that it was deleted"
                )
            return Step(Action.PUSH if edited else Action.DELETE_HERE, path)
        case Here(edited), There():
            if not edited and not edited_there:
                return None
            if not edited:
                return Step(Action.PULL, path)
            if not edited_there:
                return Step(Action.PUSH, path, base=agreed.version)
            return _both(path, here, there)
    raise AssertionError


def _both(path: Path, here: Here, there: There) -> Step:
    same = here.content and here.content == there.content
    return Step(Action.ADOPT if same else Action.SET_ASIDE, path)


def _moved_there(
    here: Mapping[Path, Here], there: Mapping[Path, There], agreed: Mapping[Path, Agreed]
) -> dict[Path, Path]:
    """New paths of files that the vault has moved, and where they are here, unedited."""
    at = {each.node: path for path, each in agreed.items()}
    found: dict[Path, Path] = {}
    for path, each in there.items():
        source = at.get(each.node)
        if source is None or path in agreed or path in here or source in there:
            continue
        old = here.get(source)
        same = old is not None and not old.edited and agreed[source].version == each.version
        if same and not _nested(path, source):
            found[path] = source
    return found


def _moved_here(
    here: Mapping[Path, Here],
    there: Mapping[Path, There],
    agreed: Mapping[Path, Agreed],
    others: Mapping[Path, Path],
) -> dict[Path, Path]:
    """New paths of files that were moved here, by their contents, and where they are there."""
    gone: dict[bytes, list[Path]] = {}
    for path in sorted(agreed, reverse=True):
        each = agreed[path]
        left = there.get(path)
        unchanged = left is not None and (left.node, left.version) == (each.node, each.version)
        if path not in here and unchanged and each.content and path not in others.values():
            gone.setdefault(each.content, []).append(path)
    found: dict[Path, Path] = {}
    for path in sorted(here):
        if path in agreed or path in there or not here[path].content:
            continue
        sources = gone.get(here[path].content, [])
        source = next((each for each in reversed(sources) if not _nested(path, each)), None)
        if source is not None:
            sources.remove(source)
            found[path] = source
    return found


def _nested(one: Path, other: Path) -> bool:
    """Whether one is below the other: a file cannot be moved to where it is a folder."""
    depth = min(len(one), len(other))
    return one[:depth] == other[:depth]


def _clashes(
    here: Mapping[Path, Here],
    there: Mapping[Path, There],
    agreed: Mapping[Path, Agreed],
    moved_here: Mapping[Path, Path],
    settled: Collection[str],
) -> list[Problem]:
    """New files here whose names differ from others only in case, or in how accents are written:
    somewhere both would be one file. What was given such a name stands nowhere else.
    """
    new = sorted(path for path in here if path not in agreed and path not in there)
    if not new:
        return []
    names: dict[tuple[str, ...], list[Path]] = {_folded(path): [] for path in new}
    for path in {*(tuple(name.split("/")) for name in settled), *agreed, *there}:
        names.get(_folded(path), []).append(path)
    found: list[Problem] = []
    for path in new:
        same = names[_folded(path)]
        others = [each for each in same if each != moved_here.get(path)]
        if others:
            shown = "/".join(min(others))
            found.append(
                Problem(path, f"elsewhere it would be the same file as {shown}: rename it")
            )
        else:
            same.append(path)
    return found


def _folded(path: Path) -> tuple[str, ...]:
    return tuple(key_of(name).casefold() for name in path)


_RANKS: Final = {
    Action.ADOPT: 0,
    Action.FORGET: 0,
    Action.SET_ASIDE: 1,
    Action.MOVE_HERE: 2,
    Action.MOVE_THERE: 2,
    Action.PULL: 3,
    Action.PUSH: 3,
    Action.DELETE_HERE: 4,
    Action.DELETE_THERE: 4,
}


def _order(step: Step) -> tuple[int, Path]:
    """Nothing is deleted before everything else is done; deep paths first."""
    rank = _RANKS[step.action]
    return rank, step.path


def aside(name: str, when: str, device: str) -> str:
    """The name under which the content here is kept where both sides have changed a file.

    Names are cut to what a vault takes, their suffix kept.
    """
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 16:
        stem, dot, suffix = name, "", ""
    mark = f" (conflict {when} {device})"
    room = 255 - len((mark + dot + suffix).encode())
    while len(stem.encode()) > room:
        stem = stem[:-1]
    return f"{stem}{mark}{dot}{suffix}"

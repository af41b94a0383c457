"""A folder and one of a vault, kept in step both ways: what `domain.syncplan` plans, done.

What is done is noted file by file in `.vaultfs/state.db`, after the file; so a run that is
interrupted at any point is gone on with by the next. Each change here is of a file that is
as it was looked at, each there is based on the version that was seen: whoever writes
meanwhile is not overwritten, but met by the next round.
"""

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.files import origin_of, refuse_inside
from vaultfs.adapters.syncfolder import Found, Scan, SyncFolder
from vaultfs.adapters.syncstate import InStep, SyncState
from vaultfs.domain.cutting import SMALL
from vaultfs.domain.errors import (
    FILE_ERRORS,
    Conflict,
    CursorReset,
    Exists,
    NotFound,
    VaultError,
    VersionMismatch,
)
from vaultfs.domain.names import Path, check_name, format_path, key_of, parse_path
from vaultfs.domain.nodes import NodeId, VersionId
from vaultfs.domain.services.budget import BLOCK, GROUP_FILES
from vaultfs.domain.services.feed import NOW
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.syncplan import (
    Action,
    Agreed,
    Here,
    Plan,
    Problem,
    Step,
    There,
    aside,
    plan,
)
from vaultfs.entrypoints.changes import ChangeOf
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Item

if TYPE_CHECKING:
    from vaultfs.entrypoints.pulling import Pushed
    from vaultfs.entrypoints.surface import Surface

ROUNDS: Final = 4
"""Times that is planned anew where the last round made something new to do."""
AT_ONCE: Final = 16
"""Files that travel at the same time."""
_CHANGING: Final = {"put", "copy", "move", "restore", "metadata", "delete"}
"""Kinds of changes after which another file is at a path; a new folder holds none."""
_LEAVING: Final = {"move", "delete"}
"""Those after which files, of a folder perhaps, are not where they were."""
GROUPS: Final = 4
"""Groups of small new files that travel at the same time."""
MEANWHILE: Final = "somebody else changed it meanwhile: it is met by the next run"
WAIT: Final = 30.0
"""Seconds that a server is asked to wait for changes."""


@define
class Summary:
    """What became of a run."""

    pulled: int = 0
    pushed: int = 0
    moved: int = 0
    deleted_here: int = 0
    deleted_there: int = 0
    conflicts: list[str] = field(factory=list[str])
    """Copies of what was here, where both sides had changed a file."""
    problems: list[Problem] = field(factory=list[Problem])
    travelled: int = 0
    """Bytes of contents, to and from a server."""

    @property
    def changed(self) -> bool:
        return bool(self.pulled + self.pushed + self.moved + self.deleted_here + self.deleted_there)


@define(eq=False)
class Syncing:
    """One folder, and one of a vault."""

    vault: "Surface"
    folder: LocalPath
    path: str
    """Of the folder there."""
    device: str
    """What this machine is called in the names of copies."""
    force: bool = False
    progress: Progress = no_progress
    """Told of each file that is done."""
    expect: Progress = no_progress
    """Told how many are to be done in a round, before the first of them."""
    summary: Summary = field(factory=Summary)
    state: SyncState = field(init=False)
    files: SyncFolder = field(init=False)
    seen: int = 0
    """The folder's fingerprint at the last look."""
    _nodes: dict[Path, There] = field(factory=dict[Path, There])
    _scan: Scan = field(factory=lambda: Scan({}, set(), 0, [], str.isspace))
    _noted: dict[Path, InStep] = field(factory=dict[Path, InStep])
    """What is known of files that are not settled."""
    _tombstones: set[str] = field(factory=set[str])
    """Paths of the vault that it says were deleted, and ids of nodes."""
    _cursor: str = ""
    _news: list[ChangeOf] | None = None
    """What the feed has told since the last run; None if that cannot be known."""
    _before: dict[str, tuple[int, int]] | None = None
    """The files there at the end of the last run."""
    _remote: dict[str, tuple[int, int]] = field(factory=dict[str, tuple[int, int]])
    """The files there at the cursor."""
    _is_there: bool = True
    """Whether the folder of the vault exists, as far as it was asked for."""
    _failed: bool = False

    def __attrs_post_init__(self) -> None:
        self.state = SyncState(self.folder)
        self.files = SyncFolder(self.folder, self.vault.folder)

    async def look(self) -> Plan:
        """What is to be done; nothing is made or noted. Raises `Conflict` if the folder is in step
        with another, and `NotFound` if neither it nor the one there exists.

        Most files of a large folder are as they were on both sides. They stay names, and only
        of the others more is made.
        """
        self._check_root()
        known = await to_thread.run_sync(self.state.all, self.vault.place, self._above)
        self._cursor = await self._read_feed(anew=not known)
        remote = await self.there()
        here = await to_thread.run_sync(self.folder.exists)
        if not (here or self._is_there):
            raise NotFound(
                f"neither {self.folder} nor {self.path} in the vault is there: make the one to"
                " begin with, by mkdir or vaultfs mkdir"
            )
        changed = {name for name, each in known.items() if remote.get(name) != _at_last(each)}
        if here:
            self._scan = await to_thread.run_sync(self.files.scan, known, changed)
            self.seen = self._scan.seen
        return await self._plan(known, remote)

    async def _plan(
        self, known: Mapping[str, InStep], remote: Mapping[str, tuple[int, int]]
    ) -> Plan:
        settled = self._scan.settled
        noted = {_path(name): each for name, each in known.items() if name not in settled}
        there = {_path(name): name for name in remote if name not in settled}
        over = self._scan.passed_over((*there, *noted))
        self._nodes = {
            path: _there(remote[name]) for path, name in there.items() if path not in over
        }
        self._noted = noted = {path: each for path, each in noted.items() if path not in over}
        here = {path: Here(found.edited, found.content) for path, found in self._files.items()}
        await self._compare(here, noted)
        agreed = {
            path: Agreed(NodeId(each.node), VersionId(each.version), each.content)
            for path, each in noted.items()
        }

        @cache
        def nodes() -> set[int]:
            return {each.node for each in self._nodes.values()} | {remote[n][0] for n in settled}

        return plan(
            *(here, self._nodes, agreed),
            lambda each, path: self._gone(each, path, nodes()),
            settled,
        )

    @property
    def cursor(self) -> str:
        """Where the feed was when the last run looked."""
        return self._cursor

    @property
    def _files(self) -> Mapping[Path, Found]:
        return self._scan.files

    @property
    def _root(self) -> str:
        return f"{self.vault.place} {self.path}"

    def _check_root(self) -> None:
        refuse_inside(self.vault.folder, self.folder)
        noted = self.state.note("root")
        if noted not in {None, self._root}:
            raise Conflict(f"{self.folder} is in step with {noted}: name that, or another folder")

    async def _read_feed(self, *, anew: bool) -> str:
        """Learn what was deleted since the last run; the cursor behind it.

        Who begins `anew` knows of nothing that could have been deleted.
        """
        cursor = self.state.note("cursor")
        self._news = None if cursor is None else []
        if cursor is None and anew:
            return (await self.vault.changes(NOW)).cursor
        try:
            return await self._follow(cursor)
        except CursorReset:
            self._news = None
            return await self._follow(None)

    async def _follow(self, cursor: str | None) -> str:
        while True:
            news = await self.vault.changes(cursor)
            if self._news is not None:
                self._news += news.entries
            for each in news.entries:
                if each.kind in {"delete", "purge"}:
                    self._tombstones.add(str(each.node))
                    if each.path is not None:
                        self._tombstones.add(each.path)
                else:
                    self._tombstones.discard(each.path or "")
            cursor = news.cursor
            if not news.entries:
                return cursor

    def _gone(self, agreed: Agreed, path: Path, nodes: set[int]) -> bool:
        """Whether the vault says that a file was deleted, or moved away."""
        if agreed.node in nodes or str(agreed.node) in self._tombstones:
            return True
        names = (*parse_path(self.path), *path)
        return any(
            format_path(names[:depth]) in self._tombstones for depth in range(1, len(names) + 1)
        )

    async def there(self) -> dict[str, tuple[int, int]]:
        """Node and version of the files below the folder there, by their names: what they were,
        and what the feed has told since.

        They are listed where the feed does not say enough: at first, and when a folder was
        moved, copied, deleted or restored.
        """
        self._before = await to_thread.run_sync(self.state.remote)
        files: dict[str, tuple[int, int]] | None = None
        if self._before is not None and self._news is not None:
            files = self._applied(self._before, self._news)
        if files is None:
            files = await self.list_files()
        if self._before is not None and any(each.kind in _LEAVING for each in self._news or ()):
            were = {node for node, _ in self._before.values()} | {e.node for e in self._news or ()}
            self._tombstones |= {str(node) for node in were - {node for node, _ in files.values()}}
        self._remote = files
        return files

    def _applied(
        self, before: Mapping[str, tuple[int, int]], news: Sequence[ChangeOf]
    ) -> dict[str, tuple[int, int]] | None:
        """The files there after `news`; None if it is about folders."""
        news = [each for each in news if each.kind in _CHANGING]
        if any(each.version is None for each in news):
            return None
        files = dict(before)
        where = {node: name for name, (node, _) in before.items()} if news else {}
        for each in news:
            old = where.pop(each.node, None)
            if old in files and files[old][0] == each.node:  # another may be, or have been
                del files[old]
            path = None if each.path is None else self._inside(parse_path(each.path))
            if each.kind != "delete" and path and each.version is not None:
                name = "/".join(path)
                files[name], where[each.node] = (each.node, each.version), name
        return files

    def _inside(self, path: Path) -> Path | None:
        """A path of the vault as one below the folder; None if it is not below it."""
        top = parse_path(self.path)
        keys = tuple(map(key_of, path[: len(top)]))
        return path[len(top) :] if keys == tuple(map(key_of, top)) else None

    async def list_files(self) -> dict[str, tuple[int, int]]:
        """The files below the folder there, as `there` gives them; none if it is not there."""
        found: dict[str, tuple[int, int]] = {}
        folders: list[Path] = [()]
        try:
            await self.vault.stat(self.path)
        except NotFound:
            if self.state.note("cursor") is not None and not self.force:
                raise  # it was there: somebody may be mistaken
            self._before = None  # that was another folder
            self._is_there = False
            return found
        while folders:
            folder = folders.pop()
            async for node in self.vault.list(self._at(folder)):
                where = (*folder, check_name(node.name))  # a server may say anything
                if node.is_folder:
                    folders.append(where)
                elif node.version is not None:
                    found["/".join(where)] = (node.id, node.version)
        return found

    async def _compare(self, here: Mapping[Path, Here], known: Mapping[Path, InStep]) -> None:
        """Find out contents there where both sides have something new."""
        for path, each in self._nodes.items():
            old, mine = known.get(path), here.get(path)
            if old is not None and old.version == each.version:
                self._nodes[path] = each._replace(content=old.content)
            elif mine is not None and mine.edited:
                version = await self.vault.version(self._at(path))
                if version.id == each.version and version.digest is not None:
                    self._nodes[path] = each._replace(content=bytes(version.digest))

    @property
    def _above(self) -> str:
        """What the paths of all files there begin with."""
        return self.path.rstrip("/")

    def _at(self, path: Path) -> str:
        return self._above + format_path(path) if path else self.path

    # Doing

    async def run(self) -> Summary:
        """Bring both in step. Raises `Conflict` where so much is gone that somebody is to be
        asked, and failures of the vault itself.
        """
        try:
            return await self._run()
        finally:
            self.state.close()

    async def _run(self) -> Summary:
        for _ in range(ROUNDS):
            found = await self.look()
            self.summary.problems = [*found.problems, *map(_skipped, self._scan.skipped)]
            if found.alarming and not self.force:
                raise Conflict(
                    f"{max(found.gone_here, found.gone_there)} of {found.known} files are gone"
                    f" {'here' if found.gone_here >= found.gone_there else 'in the vault'}:"
                    " if that is right, say so with --force"
                )
            await self._make_folders()
            await to_thread.run_sync(self._note_looks)
            if not found.steps:
                break
            await self._carry_out(found.steps)
            if not any(step.action is Action.SET_ASIDE for step in found.steps):
                break
        if not self._failed:  # or what was deleted there would not be told again
            self.state.take_remote(self._cursor, self._remote, self._before)
        return self.summary

    def _note_looks(self) -> None:
        """Note what files look like whose content is what it was, so that they are read once."""
        looks: dict[str, InStep] = {}
        for path, found in self._files.items():
            row, now = self._noted.get(path), found.status
            if row is not None and not found.edited and not row.is_as_it_was(now):
                looks["/".join(path)] = row._replace(size=now.st_size, mtime=now.st_mtime_ns)
        self.state.set_all(looks)

    async def _make_folders(self) -> None:
        """Make the folder that is on one side only, and note what the one here is in step with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state.note("root") is None:
            self.state.take_note("root", self._root)
        if not self._is_there:
            await self.vault.mkdir(self.path, parents=True, exist_ok=True)
            self._is_there = True

    async def _carry_out(self, steps: Sequence[Step]) -> None:
        self.expect(len(steps))
        room, groups = anyio.Semaphore(AT_ONCE), anyio.Semaphore(GROUPS)
        travels = {Action.PULL, Action.PUSH}

        async def one(step: Step) -> None:
            try:
                await self._try(step)
            finally:
                room.release()

        async def several(group: list[Step]) -> None:
            try:
                await self.push_new(group)
            finally:
                groups.release()

        async with task_group() as tasks:
            for step in (each for each in steps if _first(each)):
                await self._try(step)
            for group in self._groups(steps):
                await groups.acquire()
                tasks.start_soon(several, group)
            for step in (each for each in steps if each.action in travels):
                if not self._is_new(step):
                    await room.acquire()
                    tasks.start_soon(one, step)
        for step in (each for each in steps if not _first(each) and each.action not in travels):
            await self._try(step)

    async def _try(self, step: Step) -> None:
        try:
            await self._do(step)
        except VersionMismatch:
            self._problem(step, MEANWHILE)
        except FILE_ERRORS as error:
            self._problem(step, error.message)
        self.progress(1)

    def _problem(self, step: Step, reason: str) -> None:
        self._failed = True
        self.summary.problems.append(Problem(step.path, reason))

    async def _do(self, step: Step) -> None:
        path, summary = step.path, self.summary
        match step.action:
            case Action.PULL:
                await self._pull(path)
            case Action.PUSH:
                await self._push(path, step.base)
            case Action.ADOPT:
                mine = self._files[path]
                self._settle(path, self._nodes[path], mine.content, mine.status)
            case Action.FORGET:
                self.state.forget("/".join(path))
            case Action.DELETE_HERE:
                await to_thread.run_sync(self.files.remove, path, self._files[path].status)
                self.state.forget("/".join(path))
                summary.deleted_here += 1
            case Action.DELETE_THERE:
                await self._delete_there(path)
            case Action.MOVE_HERE | Action.MOVE_THERE:
                await self._move(step)
            case Action.SET_ASIDE:
                await self._set_aside(path)

    async def _pull(self, path: Path) -> None:
        known = self.state.get("/".join(path))
        mine = self._files.get(path)
        base = None if known is None or mine is None or mine.edited else VersionId(known.version)
        seen = None if mine is None else mine.status
        done = await self.vault.pull(
            self._at(path), self.files.where(path), base=base, expected=seen
        )
        there = self._nodes[path]._replace(version=done.version.id)
        self._settle(path, there, done.version.digest or b"", done.status or seen)
        self.summary.pulled += 1
        self.summary.travelled += done.travelled

    def _is_new(self, step: Step) -> bool:
        """Whether it is a small file that the vault does not have."""
        push = step.action is Action.PUSH and step.base is None
        return push and self._files[step.path].status.st_size <= SMALL

    def _groups(self, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Small new files, as many as one request takes."""
        group, size = list[Step](), 0
        for step in filter(self._is_new, steps):
            group.append(step)
            size += self._files[step.path].status.st_size
            if size > BLOCK - 2 * SMALL or len(group) >= GROUP_FILES:
                yield group
                group, size = [], 0
        if group:
            yield group

    async def push_new(self, group: Sequence[Step]) -> None:
        """Push small files that are not there yet, together."""
        items = [
            Item(step.path, "file", status.st_size, origin_of(status))
            for step in group
            for status in (self._files[step.path].status,)
        ]
        done = await self.vault.push_new(self.folder, items, self.path)
        outcomes = list(zip(group, done, strict=True))
        pushed = {step.path: each for step, each in outcomes if not isinstance(each, VaultError)}
        await self._note_pushed(pushed)
        for step, each in outcomes:
            if isinstance(each, VersionMismatch | Exists):
                self._problem(step, MEANWHILE)
            elif isinstance(each, FILE_ERRORS):
                self._problem(step, each.message)
            elif isinstance(each, VaultError):
                raise each
            self.progress(1)

    async def _push(self, path: Path, base: VersionId | None) -> None:
        done = await self.vault.push(self._at(path), self.files.where(path), base=base)
        await self._note_pushed({path: done})

    async def _note_pushed(self, pushed: "Mapping[Path, Pushed]") -> None:
        def note() -> None:
            self.state.set_all(
                {"/".join(path): self._pushed(path, done) for path, done in pushed.items()}
            )

        await to_thread.run_sync(note)
        self.summary.pushed += len(pushed)
        self.summary.travelled += sum(done.travelled for done in pushed.values())

    def _pushed(self, path: Path, done: "Pushed") -> InStep:
        assert done.node.version is not None
        there, mine = There(done.node.id, done.node.version, b""), self._files[path]
        same = self.files.is_as_seen(path, mine.status)  # or nobody knows what went
        return self._row(path, there, mine.content if same else b"", mine.status)

    async def _delete_there(self, path: Path) -> None:
        from vaultfs.domain.nodes import Preconditions

        wanted = Preconditions(if_version=self._nodes[path].version)
        await self.vault.delete(self._at(path), preconditions=wanted)
        self.state.forget("/".join(path))
        self.summary.deleted_there += 1
        await self._make_room(path)

    async def _make_room(self, path: Path) -> None:
        """Delete the folders above `path` there, if they are empty and one is a file here."""
        depth = next((depth for depth in range(1, len(path)) if path[:depth] in self._files), None)
        if depth is not None:
            with suppress(*FILE_ERRORS):
                for upto in range(len(path) - 1, depth - 1, -1):
                    await self.vault.delete(self._at(path[:upto]))

    async def _move(self, step: Step) -> None:
        assert step.source is not None
        if step.action is Action.MOVE_HERE:
            old = self._files[step.source]
            await to_thread.run_sync(self.files.move, step.source, step.path, old.status)
            there = self._nodes[step.path]
        else:
            from vaultfs.domain.nodes import Preconditions

            old, there = self._files[step.path], self._nodes[step.source]
            if step.path[:-1]:
                await self.vault.mkdir(self._at(step.path[:-1]), parents=True, exist_ok=True)
            wanted = Preconditions(if_version=step.base)
            await self.vault.move(self._at(step.source), self._at(step.path), preconditions=wanted)
        self.state.forget("/".join(step.source))
        self._settle(step.path, there, old.content, old.status)
        self.summary.moved += 1

    async def _set_aside(self, path: Path) -> None:
        when = f"{datetime.now():%Y-%m-%d %H.%M.%S}"  # noqa: DTZ005 for people, here
        name = aside(path[-1], when, self.device)
        target = (*path[:-1], name)
        await to_thread.run_sync(self.files.move, path, target, self._files[path].status)
        self.summary.conflicts.append("/".join(target))

    def _settle(
        self, path: Path, there: There, content: bytes, seen: os.stat_result | None
    ) -> None:
        """Note that a file is in step, as it was `seen`: it may have been written since."""
        if seen is not None:
            self.state.set("/".join(path), self._row(path, there, content, seen))

    def _row(self, path: Path, there: There, content: bytes, seen: os.stat_result) -> InStep:
        return InStep(
            *(self.vault.place, self._at(path), there.version, 0, seen.st_size),
            *(seen.st_mtime_ns, there.node, content),
        )


def _path(name: str) -> Path:
    return tuple(name.split("/"))


def _there(row: tuple[int, int]) -> There:
    return There(NodeId(row[0]), VersionId(row[1]), b"")


def _at_last(known: InStep) -> tuple[int, int]:
    """What a file there was when it was in step: its node and version."""
    return known.node, known.version


def this_device() -> str:
    """What this machine is called, as far as a file's name can have it."""
    return re.sub(r"[^\w-]", "", platform.node())[:20] or "here"


def _first(step: Step) -> bool:
    """Whether it is to be done before anything travels."""
    return step.action in {
        *(Action.ADOPT, Action.FORGET, Action.SET_ASIDE, Action.MOVE_HERE, Action.MOVE_THERE)
    }


def _skipped(each: tuple[str, str]) -> Problem:
    return Problem(_path(each[0]), each[1])


async def news(syncing: Syncing, every: float) -> None:
    """Wait until something is new in the folder, or in the vault, since the run of `syncing`."""
    async with task_group() as tasks:

        async def there() -> None:
            cursor = syncing.cursor
            while not (found := await syncing.vault.changes(cursor, wait=WAIT)).entries:
                cursor = found.cursor
            tasks.cancel_scope.cancel()

        async def here() -> None:
            while syncing.seen == await to_thread.run_sync(syncing.files.fingerprint):  # noqa: ASYNC110 nobody tells
                await anyio.sleep(every)
            tasks.cancel_scope.cancel()

        tasks.start_soon(there)
        tasks.start_soon(here)

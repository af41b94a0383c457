"""Whole trees to a server: what `domain.services.transfer` does in a vault at hand."""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Final
from urllib.parse import quote

import anyio
from anyio import to_thread
from attrs import define, field

from vaultfs.adapters.files import LocalSource
from vaultfs.domain.cutting import SMALL as SMALL_FILE
from vaultfs.domain.cutting import Compressibility, Cut, cut_each, encode, manifest_of
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import FILE_ERRORS, InvalidName, VaultError
from vaultfs.domain.frames import (
    HEAD,
    MEDIA_TYPE,
    End,
    Entry,
    write_chunk,
    write_end,
    write_entry,
)
from vaultfs.domain.names import Address, Path, check_path, format_path, parse_address
from vaultfs.domain.nodes import (
    ABSENT,
    NO_PRECONDITIONS,
    Node,
    NodeId,
    Preconditions,
    TreeId,
    VersionId,
)
from vaultfs.domain.services.budget import BLOCK, GROUP_FILES, MIB
from vaultfs.domain.services.tasks import InOrder, task_group
from vaultfs.entrypoints.answers import error_of
from vaultfs.entrypoints.calling import Slices
from vaultfs.entrypoints.client import SMALL, RemoteVault
from vaultfs.entrypoints.http.wire import FrameOut, FramesOut
from vaultfs.entrypoints.pulling import Pushed
from vaultfs.ports.progress import Progress
from vaultfs.ports.trees import Item, Report, Skipped

GROUPS: Final = 6
"""Groups of small files that are on their way to a server at the same time. At one of them this
process works; two would get in each other's way, as the interpreter does one thing at a time.
"""
FIRST: Final = MIB // 2
"""Bytes of the first group: the others grow, so that the server begins soon."""
LARGE: Final = 4
"""Large files."""
MOST_ASKED: Final = 8192
"""Chunks that a server is asked for at once."""
MOST_IN_VAIN: Final = 7
"""Groups that are sent without asking, after so many in a row of which the server had nothing."""
_Found = tuple[Item, bytes | None]
"""A file and its content, or a folder, which has none."""
_Pieces = tuple[list[Cut], Digest]
"""The chunks of a file, and its own digest."""


@define(eq=False)
class PutTree:
    """One local folder on its way to a server.

    Small files go in groups, as frames; each large one by itself. An interruption leaves
    whole files, and running the same again goes on.
    """

    vault: RemoteVault
    source: LocalSource
    path: str
    progress: Progress
    report: Report = field(factory=Report)
    groups: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(GROUPS))
    large: anyio.Semaphore = field(factory=lambda: anyio.Semaphore(LARGE))
    small: "_Sender" = field(init=False)

    def __attrs_post_init__(self) -> None:
        top = parse_address(self.path, own=self.vault.user)
        self.small = _Sender(self.vault, self.source, top)

    async def run(self) -> Report:
        """Send it all; only a failure of the server itself is raised."""
        await self.vault.mkdir(self.path, parents=True, exist_ok=True)
        group: list[Item] = []
        size, most = 0, FIRST
        async with task_group() as tasks, aclosing(self.source.walk()) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, Skipped):
                        self.report.skipped.append(item)
                    elif (refused := self._too_long(item.path)) is not None:
                        self._fail(item.path, refused)
                    elif item.size > SMALL_FILE:
                        await self.large.acquire()
                        tasks.start_soon(self._send_large, item)
                    else:
                        group.append(item)
                        size += item.size
                        if size > most or len(group) >= GROUP_FILES:
                            await self.groups.acquire()
                            tasks.start_soon(self._send_group, group)
                            group, size, most = [], 0, min(2 * most, BLOCK - 2 * SMALL_FILE)
            await self.groups.acquire()
            await self._send_group(group)
        return self.report

    def _at(self, path: Path) -> str:
        return self.path.rstrip("/") + format_path(path)

    def _too_long(self, path: Path) -> InvalidName | None:
        """Why the vault has no room for such a path, if it has none."""
        try:
            check_path((*self.small.top.path, *path))
        except InvalidName as error:
            return error
        return None

    async def _send_large(self, item: Item) -> None:
        where = self._at(item.path)
        try:
            async with self.source.open(item) as opened:
                stored = await self.vault.upload(
                    where, opened, item, {}, parents=True, progress=self.progress
                )
        except FILE_ERRORS as error:
            self._fail(item.path, error)
        else:
            self.report.files += 1
            self.report.size += item.size
            self.report.changed += stored.changed
            self.report.travelled += stored.travelled
        finally:
            self.large.release()

    async def _send_group(self, items: Sequence[Item]) -> None:
        try:
            outcomes, travelled = await self.small.send(items)
            self.report.travelled += travelled
            for item, out in outcomes:
                self._note(item, out)
        finally:
            self.groups.release()

    def _note(self, item: Item, out: FrameOut | VaultError) -> None:
        if isinstance(out, VaultError):
            if not isinstance(out, FILE_ERRORS):
                raise out
            self._fail(item.path, out)
        elif item.kind == "folder":
            self.report.folders += 1
        else:
            self.progress(item.size)
            self.report.files += 1
            self.report.size += item.size
            self.report.changed += out.changed or 0

    def _fail(self, path: Path, error: VaultError) -> None:
        self.report.failed.append(Skipped(format_path(path), error.message))


@define(eq=False)
class _Sender:
    """Sends groups of small files below `top`, and of folders."""

    vault: RemoteVault
    source: LocalSource
    top: Address
    preconditions: Preconditions = NO_PRECONDITIONS
    _computing: InOrder = field(factory=InOrder)
    _sent: int = 0
    _in_vain: int = 0
    """How often in a row the server had nothing of what was asked for."""

    async def send(
        self, items: Sequence[Item]
    ) -> tuple[list[tuple[Item, FrameOut | VaultError]], int]:
        """What became of each of `items`, folders first, and how many bytes were sent for them."""
        number = self._sent = self._sent + 1
        async with self._computing.turn(number):
            loaded = await self._loaded(items)
            found = [(item, data) for item, data in loaded if not isinstance(data, VaultError)]
            pieces = await to_thread.run_sync(cut_each, [data or b"" for _, data in found])
            digests = dict.fromkeys(cut.digest for cuts, _ in pieces for cut in cuts)
            asking = bool(digests) and self._to_be_asked(number)
            body = b"" if asking else await self._framed(found, pieces, set())
        if asking:
            known = await self.vault.have(list(digests)[:MOST_ASKED])
            self._in_vain = 0 if known else min(self._in_vain + 1, MOST_IN_VAIN)
            async with self._computing.turn(number):
                body = await self._framed(found, pieces, known)
        outs = iter(await self._post(body) if found else ())
        outcomes = [
            (item, data if isinstance(data, VaultError) else next(outs)) for item, data in loaded
        ]
        return outcomes, len(body) if found else 0

    async def _loaded(self, items: Sequence[Item]) -> list[tuple[Item, bytes | VaultError | None]]:
        """Folders, which have no content, and then files with theirs, as far as it can be read."""
        files = [item for item in items if item.kind == "file"]
        folders = [(item, None) for item in items if item.kind == "folder"]
        return [*folders, *zip(files, await self.source.load(files), strict=True)]

    def _to_be_asked(self, number: int) -> bool:
        """Whether the server may have some of a group; asked more rarely if it had none."""
        own = self.top.tree == self.vault.user  # of another's, all is sent
        return own and not number % (1 + self._in_vain)

    async def _framed(
        self, found: Sequence[_Found], pieces: Sequence[_Pieces], known: set[Digest]
    ) -> bytes:
        return await to_thread.run_sync(
            _framed, self.top.path, found, pieces, known, self.preconditions
        )

    async def _post(self, body: bytes) -> list[FrameOut | VaultError]:
        """What became of each entry of the frames in `body`."""
        calls = self.vault.calls
        answer = await calls.ask(
            "POST",
            calls.url(f"frames/{quote(self.top.tree, safe='')}"),
            headers={"Content-Type": MEDIA_TYPE},
            data=Slices(body) if len(body) > SMALL else body,
            again=False,  # somebody else's version may stand between a first and a second time
        )
        told: FramesOut = calls.decode(answer, FramesOut)
        return [
            out if out.code is None else error_of(out.code, out.detail or "", "")
            for out in told.entries
        ]


async def push_new(
    vault: RemoteVault, source: LocalSource, items: Sequence[Item], path: str
) -> list[Pushed | VaultError]:
    """See `Surface.push_new`: one request with the frames of all of them."""
    top = parse_address(path, own=vault.user)
    outcomes, travelled = await _Sender(vault, source, top, ABSENT).send(items)
    share = travelled // max(1, len(outcomes))
    return [
        out if isinstance(out, VaultError) else _pushed(item, out, share) for item, out in outcomes
    ]


def _pushed(item: Item, out: FrameOut, travelled: int) -> Pushed:
    assert out.id is not None
    node = Node(
        id=NodeId(out.id),
        tree=TreeId(0),
        parent=None,
        name=item.path[-1],
        kind="file",
        revision=out.revision or 0,
        version=None if out.version is None else VersionId(out.version),
        number=out.number or 0,
        size=item.size,
        metadata="{}",
        created_us=0,
        modified_us=0,
        trashed_us=None,
    )
    return Pushed(node, out.changed or 0, travelled)


def _lacking(pieces: Sequence[_Pieces], known: set[Digest]) -> Iterator[list[Cut]]:
    """For each file the chunks to send: all of them in order, which proves its digest, or none."""
    sent: set[Digest] = set()
    for cuts, _ in pieces:
        digests = {cut.digest for cut in cuts}
        if digests <= known or (len(cuts) == 1 and digests <= sent):
            yield []
        else:
            sent |= digests
            yield cuts


def _framed(
    top: Path,
    items: Sequence[_Found],
    pieces: Sequence[_Pieces],
    known: set[Digest],
    preconditions: Preconditions,
) -> bytes:
    """The frames of small files and of folders, which have no bytes. CPU work."""
    parts: list[Buffer] = [HEAD]
    count = 0
    lacking = list(_lacking(pieces, known))
    sent = [cut for cuts in lacking for cut in cuts]
    encoded = iter(encode(sent, Compressibility(), prove=False))
    for (item, data), (cuts, digest), wanted in zip(items, pieces, lacking, strict=True):
        for _ in wanted:
            parts += write_chunk(next(encoded))
            count += 1
        path = format_path((*top, *item.path))
        manifest = None if data is None else manifest_of(cuts)
        claimed = None if data is None else digest
        entry = Entry(path, manifest, item.origin, claimed, preconditions)
        parts.append(write_entry(entry))
    parts.append(write_end(End(count, len(items))))
    return b"".join(parts)

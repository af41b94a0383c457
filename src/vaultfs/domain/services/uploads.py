"""Upload sessions: contents that arrive in several goes, at several processes, and are resumed.

`domain.uploads` says what a session is. Here bytes, or frames, become its chunks. What a
session has is durable as soon as its offset says so; a crash leaves the session as it was
at its last append, and chunks that no session names. Ending one as a version copies no
byte: the manifest is made of the entries, and committed.

The digest of the whole content is verified while its bytes pass through in order. Of a
session that another process began, or whose chunks were only named, what came before is
read back beside the bytes that arrive; what is missing at the end is made up for if it is
little, and otherwise left to `Digests`, which reads contents whose digest nobody has seen.
"""

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import anyio
from anyio import to_thread
from attrs import define, evolve, field, frozen

from vaultfs.domain.chunks import Chunker
from vaultfs.domain.cutting import cut_piece
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import (
    ChecksumMismatch,
    ChunksMissing,
    Conflict,
    Fenced,
    InvalidField,
    IsAFolder,
    NotFound,
    OffsetMismatch,
    PacksGone,
    SourceChanged,
    TooLarge,
    Unsupported,
    UploadGone,
    VaultError,
)
from vaultfs.domain.frames import HEAD_SIZE
from vaultfs.domain.manifests import Entry, Manifest, ManifestBuilder, Page
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import (
    NO_PRECONDITIONS,
    UNKNOWN_ORIGIN,
    Content,
    DigestState,
    Origin,
    Preconditions,
    User,
    VersionId,
    micros,
)
from vaultfs.domain.operations import (
    AbortUpload,
    AppendUpload,
    AttachUpload,
    ClaimChunks,
    CreateUpload,
    DeclareUpload,
    ExpireUploads,
    FinishUpload,
    Operation,
    PinChunks,
    PutFile,
    Refused,
    Result,
    Unit,
)
from vaultfs.domain.services import hashing
from vaultfs.domain.services.arrivals import Arrival, Arriving, Part, Parts
from vaultfs.domain.services.budget import BLOCK, Use
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.frame_arrivals import FrameArrival
from vaultfs.domain.services.ingest import Cutter, Ingest, Passing
from vaultfs.domain.services.packer import Placed, done
from vaultfs.domain.services.reader import Wanted
from vaultfs.domain.services.relying import packs_of
from vaultfs.domain.services.seams import Joiner
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.uploads import (
    IDLE_US,
    LIFE_US,
    MAX_NOTES,
    Upload,
    UploadState,
    holder_of,
    must_be_open,
)
from vaultfs.ports.progress import Progress, no_progress
from vaultfs.ports.trees import Source

MAX_CHECKED: Final = 64 << 20
"""Bytes that may come with one checksum."""
MAX_HAVE: Final = 8192
"""Digests that may be asked for at once."""
CATCH_UP: Final = 64 << 20
"""Bytes that are read back at the end of a session to verify its digest."""
WARM: Final = 32
"""Sessions of which a process remembers more than their rows say."""
LAST_GASP: Final = 5.0
"""Seconds that a call which is cancelled may take to make durable what has arrived."""


class Checksum(NamedTuple):
    """What the bytes of an append are to come to."""

    name: str
    hasher: hashing.Hasher
    wanted: bytes


@frozen
class Purpose:
    """What a content is for, once it is whole."""

    address: Address | None
    """None: it is a part of another content."""
    origin: Origin = UNKNOWN_ORIGIN
    preconditions: Preconditions = NO_PRECONDITIONS
    parents: bool = True
    digest: Digest | None = None
    """That of the whole content, if the client claims to know it."""
    said: str = ""
    """What the client wants to be told again: kept as it is."""

    def notes(self) -> str:
        """What a session keeps of it, beside the path. Raises `TooLarge`."""
        wanted = self.preconditions
        notes = json.dumps(
            {
                "mtime": self.origin.mtime_us,
                "mode": self.origin.mode,
                "version": wanted.if_version,
                "revision": wanted.if_revision,
                "absent": wanted.if_absent,
                "present": wanted.if_present,
                "parents": self.parents,
                "blake3": self.digest and self.digest.hex(),
                "said": self.said,
            }
        )
        if len(notes) > MAX_NOTES:
            raise TooLarge(f"an upload can remember {MAX_NOTES} bytes of metadata at the most")
        return notes


def _put_of(upload: Upload, content: Content) -> PutFile | None:
    """What finishing `upload` does, if it is not a part."""
    if upload.path is None:
        return None
    notes = json.loads(upload.notes)
    version = notes["version"]
    return PutFile(
        upload.tree,
        upload.path,
        content,
        Origin(notes["mtime"], notes["mode"]),
        Preconditions(
            None if version is None else VersionId(version),
            notes["revision"],
            notes["absent"],
            notes["present"],
        ),
        notes["parents"],
    )


def said(upload: Upload) -> str:
    """What the client wanted to be told again."""
    return str(json.loads(upload.notes)["said"])


def _claimed(upload: Upload) -> Digest | None:
    claimed = json.loads(upload.notes)["blake3"]
    return None if claimed is None else Digest(bytes.fromhex(claimed))


@define(eq=False)
class _Writer:
    """What this process knows of a session that it writes to, beyond the row."""

    upload: Upload
    """As it is durable."""
    manifest: ManifestBuilder | None
    """Of all entries so far, if they all passed through here."""
    relies: set[int] = field(factory=set[int])
    """Numbers of the packs that pages of the manifest are in, among others."""
    passing: Passing = field(factory=Passing)
    taken_over: bool = False
    """Another append has come between."""
    scope: anyio.CancelScope | None = None
    """Of the append that is under way."""
    idle: anyio.Event = field(factory=anyio.Event)
    appended: anyio.Event = field(factory=anyio.Event)

    def is_at(self, upload: Upload) -> bool:
        """Whether nobody, here or elsewhere, has written between what is known and `upload`."""
        return (self.upload.fence, self.upload.offset) == (upload.fence, upload.offset)


@define(eq=False)
class Uploads:
    """One of these serves all callers of a process."""

    files: Files
    _warm: "OrderedDict[str, _Writer]" = field(factory=OrderedDict[str, _Writer])

    @property
    def _ingest(self) -> Ingest:
        return self.files.ingest

    def _now(self) -> int:
        return micros(self.files.clock.now())

    # The life of a session

    async def create(
        self,
        caller: User,
        purpose: Purpose,
        *,
        size: int | None = None,
        files: Files | None = None,
    ) -> Upload:
        """Begin a session, for `size` bytes if that is known; one of none is finished at once.

        Refused at once with what finishing it would be refused with now, as far as can be
        told: a precondition, a path that cannot be, the quota.
        """
        address = purpose.address
        tree = caller.tree
        if address is not None:
            if not address.path:
                raise IsAFolder("/ is a folder; a file needs a name")
            tree = await self.files.tree(caller, address.tree)
            if tree != caller.tree:
                await self.files.check_writable(caller, tree, address.path)
                raise Unsupported("an upload goes to one's own tree: put it in one request")
            if purpose.preconditions.any:
                await self.files.forecast(caller, address, purpose.preconditions)
        now = self._now()
        upload = Upload(
            self.files.clock.new_id(),
            tree,
            caller.id,
            None if address is None else address.path,
            UploadState.OPEN,
            fence=1,
            size=size,
            cut=0,
            tail=0,
            notes=purpose.notes(),
            created_us=now,
            touched_us=now,
        )
        await self.files.change(caller, CreateUpload(upload))
        writer = _Writer(upload, ManifestBuilder())
        self._keep(writer)
        if size == 0:
            async with self.given_up_if_refused(caller, upload.id):
                await _Append(files or self.files, caller, writer, None, no_progress).finish_empty()
            self._forget(writer)
        return writer.upload

    @asynccontextmanager
    async def given_up_if_refused(self, caller: User, number: str) -> AsyncGenerator[None, None]:
        """Give up a session that comes to nothing before its caller is told of it.

        But where the line is cut: who finds it among the sessions under way can go on.
        """
        try:
            yield
        except SourceChanged:
            raise
        except BaseException:
            gasp = anyio.move_on_after(LAST_GASP)
            with anyio.CancelScope(shield=True), gasp, suppress(VaultError):
                await self.abort(caller, number)
            raise

    async def get(self, caller: User, number: str) -> Upload:
        """The session as it is. Raises `NotFound`, also for those of others."""
        upload = await self.files.catalog.upload(number)
        if upload.owner != caller.id:
            raise NotFound(f"there is no upload {number}")
        return upload

    async def open(self, caller: User, number: str) -> Upload:
        """The same, if it can still be gone on with. Raises `UploadGone`, `UploadExpired`."""
        upload = await self.get(caller, number)
        if upload.state is not UploadState.FINISHED:
            must_be_open(upload, self._now())
        return upload

    async def abort(self, caller: User, number: str) -> None:
        """Give the session up. Whoever appends to it right now fails."""
        upload = await self.get(caller, number)
        await self.files.change(caller, AbortUpload(upload.tree, number))
        writer = self._warm.pop(number, None)
        if writer is not None and writer.scope is not None:
            writer.taken_over = True
            writer.scope.cancel()

    async def expire(self, user: User) -> int:
        """End what has run out of a user's sessions; how many."""
        count = 0
        while True:
            [result] = await self.files.change(user, ExpireUploads(user.tree))
            count += result.count
            if not result.count:
                return count

    async def have(
        self, caller: User, digests: Sequence[Digest], *, holder: str | None = None
    ) -> list[bool]:
        """Which of `digests` the caller need not send, and has not to send for a day from now.

        `holder` is the session they are for, if they are for one: as long as it lasts.
        """
        if len(digests) > MAX_HAVE:
            raise TooLarge(f"{len(digests)} digests: {MAX_HAVE} is the most")
        known = await self.files.catalog.known(caller.id, digests)
        own = set(known.own)
        while own:
            until = self._now() + (IDLE_US if holder is None else LIFE_US)
            pin = PinChunks(caller.id, holder or holder_of(caller.id), tuple(own), until)
            try:
                await self.files.change(caller, pin)
            except ChunksMissing as error:  # collected meanwhile
                own -= {Digest(digest) for digest in error.digests}
            else:
                break
        return [digest in own for digest in digests]

    # Appending

    async def append(
        self,
        caller: User,
        number: str,
        source: Arriving,
        *,
        at: int,
        length: int | None = None,
        size: int | None = None,
        checksum: Checksum | None = None,
        frames: bool = False,
        progress: Progress = no_progress,
        files: Files | None = None,
    ) -> Upload:
        """Add what `source` gives, `length` bytes if that is known, from byte `at` on.

        `size` says how many bytes there will be in all. When they are there the session is
        finished, with the locks of `files`; where that is refused, it keeps its bytes and
        stays open. Everything that has arrived is durable on return and, but for a checksum
        that comes with it, also if `source` breaks off: then what broke it is raised.
        `progress` is told bytes as they become durable. Raises `OffsetMismatch`, `Fenced` if
        somebody else goes on with the session meanwhile, `TooLarge`, `ChecksumMismatch`.
        """
        upload = await self.open(caller, number)
        _must_follow(upload, at)
        if upload.state is UploadState.FINISHED:  # the end, told again, and no more
            most = HEAD_SIZE if frames else 0
            if await source.readinto(memoryview(bytearray(most + 1))) > most:
                must_be_open(upload, self._now())
            return upload
        if size is not None and size != upload.size:
            await self.files.change(caller, DeclareUpload(upload.tree, number, size))
            upload = upload._replace(size=size)
        if not frames:  # whose bytes are not those of the content
            _must_fit(upload, length)
        if checksum is not None and (length is None or length > MAX_CHECKED):
            raise TooLarge(
                f"with a checksum {MAX_CHECKED} bytes is the most, and they must be said"
            )
        writer = await self._attach(caller, upload)
        _must_follow(writer.upload, at)
        append = _Append(files or self.files, caller, writer, checksum, progress)
        writer.scope = anyio.CancelScope()
        try:
            with writer.scope:
                await append.run(source, length, frames=frames)
        except BaseException:
            self._forget(writer)
            raise
        finally:
            writer.scope = None
            writer.idle.set()
        if writer.taken_over:
            await self.open(caller, number)  # or it was given up
            raise Fenced(f"upload {number} was taken over by another writer: ask for its offset")
        if writer.upload.state is UploadState.FINISHED:
            self._forget(writer)
        elif source.broken is not None:
            raise source.broken
        return writer.upload

    async def _attach(self, caller: User, upload: Upload) -> _Writer:
        """The session with this process as its only writer, and nobody at it in this process."""
        known = self._warm.get(upload.id)
        if known is not None and known.scope is None and known.is_at(upload):
            known.upload = upload
            known.idle = anyio.Event()
            return known
        [attached] = await self.files.change(caller, AttachUpload(upload.tree, upload.id))
        if known is not None and known.scope is not None:
            known.taken_over = True
            known.scope.cancel()
            await known.idle.wait()
        # Somebody else may have come since: the fence is ours, or the next append says so.
        upload = (await self.files.catalog.upload(upload.id))._replace(fence=attached.count)
        writer = _Writer(upload, ManifestBuilder() if not upload.offset else None)
        self._keep(writer)
        return writer

    def _keep(self, writer: _Writer) -> None:
        self._warm[writer.upload.id] = writer
        self._warm.move_to_end(writer.upload.id)
        for number, each in list(self._warm.items())[: max(0, len(self._warm) - WARM)]:
            if each.scope is None:
                del self._warm[number]

    def _forget(self, writer: _Writer) -> None:
        if self._warm.get(writer.upload.id) is writer:
            del self._warm[writer.upload.id]

    # Joining

    async def concatenate(
        self,
        caller: User,
        numbers: Sequence[str],
        purpose: Purpose,
        *,
        files: Files | None = None,
    ) -> Upload:
        """One content of those of `numbers`, finished parts, in that order.

        Their chunks are used as they are, but for a few behind each seam: see `seams`.
        Raises `NotFound`, `UploadGone`, and `Conflict` for what is no finished part.
        """
        parts = [await self.open(caller, number) for number in numbers]
        for part in parts:
            if not part.joinable:
                raise Conflict(f"upload {part.id} is no part that is finished")
        size = sum(part.offset for part in parts)
        upload = await self.create(caller, purpose, size=size, files=files)
        writer = self._warm.pop(upload.id, None)
        if writer is None:  # of parts that are empty
            return upload
        append = _Append(files or self.files, caller, writer, None, no_progress)
        async with self.given_up_if_refused(caller, upload.id):
            await append.join(parts)
            if writer.upload.state is not UploadState.FINISHED:
                raise UploadGone("a part was forgotten while it was joined")
        return writer.upload


def _must_follow(upload: Upload, at: int) -> None:
    if at != upload.offset:
        raise OffsetMismatch(
            f"upload {upload.id} is at byte {upload.offset}, not {at}", offset=upload.offset
        )


def _must_fit(upload: Upload, length: int | None) -> None:
    """Refuse before a byte is read what would be refused anyhow."""
    if length is not None and upload.size is not None and upload.offset + length > upload.size:
        raise TooLarge(
            f"upload {upload.id} was to have {upload.size} bytes: {upload.offset + length} are more"
        )


@define(eq=False)
class _Summed:
    """Bytes of which the checksum is made as they pass."""

    source: Arriving
    checksum: Checksum

    @property
    def broken(self) -> VaultError | None:
        return self.source.broken

    async def readinto(self, view: memoryview) -> int:
        filled = await self.source.readinto(view)
        await hashing.see(self.checksum.hasher, view[:filled])
        return filled

    def check(self) -> None:
        """Raises `ChecksumMismatch`."""
        if self.checksum.hasher.digest() != self.checksum.wanted:
            raise ChecksumMismatch(f"the bytes do not have the {self.checksum.name} that was said")


@define(eq=False)
class _Append:
    """One append to a session."""

    files: Files
    caller: User
    writer: _Writer
    checksum: Checksum | None
    progress: Progress

    @property
    def upload(self) -> Upload:
        return self.writer.upload

    @property
    def ingest(self) -> Ingest:
        return self.files.ingest

    async def run(self, source: Arriving, length: int | None, *, frames: bool) -> None:
        """Take in what `source` gives, and make it durable."""
        parts = Parts(self._append_parts)
        self.writer.passing.live = self.writer.passing.seen == self.upload.offset
        tail = await self.files.catalog.upload_tail(self.upload.id) if self.upload.tail else b""
        cutter = Cutter(self.writer.passing, tail, final=False)
        take = self._frames if frames else self._bytes
        if self.checksum is not None:
            summed = _Summed(source, self.checksum)
            await take(parts, cutter, summed, length)
            if source.broken is not None:
                raise source.broken
            summed.check()
        else:
            try:
                async with parts.followed(), self._digesting():
                    await take(parts, cutter, source, length)
            except BaseException:
                with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_GASP):
                    await self._rescue(parts, cutter)
                raise
        entries, placed, _ = parts.rest()
        await self._end(entries, placed, bytes(cutter.tail))

    async def _bytes(
        self, parts: Parts, cutter: Cutter, source: Source, length: int | None
    ) -> None:
        arrival = Arrival(
            self.ingest,
            self.caller.id,
            no_progress,
            cutter,
            len(cutter.tail),
            parts=parts,
            manifest=self.writer.manifest,
        )
        if length is not None and length < BLOCK:
            await arrival.take_in(source, length + 1)
        else:
            async with self.ingest.streams:
                await arrival.take_in(source, BLOCK)

    async def _frames(
        self, parts: Parts, cutter: Cutter, source: Arriving, length: int | None
    ) -> None:
        if cutter.tail:
            raise InvalidField("frames cannot follow bytes that are not cut yet: send bytes")
        arrival = FrameArrival(
            self.ingest, self.caller.id, parts, self.writer.manifest, self.writer.passing
        )
        async with self.ingest.streams:
            await arrival.take_in(source, length)

    # The digest of the whole

    @asynccontextmanager
    async def _digesting(self) -> AsyncGenerator[None, None]:
        """Read back what the digest has not seen, unless it goes on with what arrives."""
        async with task_group() as tasks:
            tasks.start_soon(self._read_back)
            yield
            tasks.cancel_scope.cancel()

    async def _read_back(self) -> None:
        while True:
            appended = self.writer.appended
            if self.writer.passing.live or not await self._see_some():
                await appended.wait()

    async def _see_some(self) -> bool:
        """Let the digest see some of what is durable; whether there was any."""
        passing = self.writer.passing
        entries = await self.files.catalog.upload_entries(self.upload.id, at=passing.seen)

        async def wanted() -> AsyncGenerator[Wanted, None]:
            for digest, length in entries:
                yield Wanted(digest, length, 0, length)

        async with self.files.reader.chunks(self.caller.id, wanted()) as pieces:
            async for part in pieces:
                await to_thread.run_sync(_update, passing, part)
        return bool(entries)

    async def _digest(self, upload: Upload) -> tuple[Digest | None, DigestState]:
        """What is known of the digest of all that `upload` has. Raises `InvalidField`."""
        passing, claimed = self.writer.passing, _claimed(upload)
        if upload.cut - passing.seen <= CATCH_UP:
            while passing.seen < upload.cut and await self._see_some():
                pass
        if passing.seen != upload.cut:
            return claimed, DigestState.ABSENT if claimed is None else DigestState.CLAIMED
        if claimed not in {None, passing.digest}:
            raise InvalidField("the content does not have the digest that was claimed for it")
        return passing.digest, DigestState.VERIFIED

    # Making durable

    async def _append_parts(self, parts: Sequence[Part]) -> None:
        placed = Placed()
        for part in parts:
            if part.placed is not None:
                placed.take(part.placed)
        await self._keep([entry for part in parts for entry in part.entries], placed, b"")

    async def _rescue(self, parts: Parts, cutter: Cutter) -> None:
        """Make durable what has arrived at a call that fails or is cancelled."""
        entries, placed, whole = parts.rest()
        with suppress(VaultError):
            await self._keep(entries, placed, bytes(cutter.tail) if whole else b"")

    async def _keep(self, entries: Sequence[Entry], placed: Placed, tail: bytes) -> None:
        """Have the session hold `entries`, and `tail` behind them."""
        if not entries and len(tail) <= self.upload.tail:
            return
        await self._commit(self._append(entries, placed, tail), placed)
        if self.writer.manifest is not None:
            placed.settle()
            self.writer.relies |= placed.relies
        upload = self.upload
        cut = upload.cut + _length(entries)
        self._now_is(upload._replace(cut=cut, tail=len(tail), touched_us=self._now()))

    def _append(
        self, entries: Sequence[Entry], placed: Placed, tail: bytes = b""
    ) -> tuple[Operation, ...]:
        upload, foreign = self.upload, placed.foreign
        claims = (ClaimChunks(self.caller.id, tuple(foreign)),) if foreign else ()
        if not entries and len(tail) == upload.tail:
            return claims
        here = (upload.tree, upload.id, upload.fence, upload.cut)
        return (*claims, AppendUpload(*here, tuple(entries), tail))

    async def _commit(self, operations: tuple[Operation, ...], placed: Placed) -> Result:
        """What the last of `operations` led to. Raises why they were refused."""
        placed.settle()
        relies = tuple(placed.relies)
        unit = self.files.unit(self.caller, self.files.clock.new_id(), operations, relies)
        [outcome] = await self.files.packer.commit([unit], placed.packs)
        if isinstance(outcome, Refused):
            if isinstance(outcome.error, PacksGone) and isinstance(operations[-1], AppendUpload):
                return await self._append_again(unit, operations[-1], placed.foreign)
            raise outcome.error
        return outcome.results[-1]

    async def _append_again(
        self, unit: Unit, append: AppendUpload, claimed: Sequence[Digest]
    ) -> Result:
        """Append what was refused with `PacksGone`. Raises `ChunksMissing` with what is gone."""
        digests = [digest for digest, _ in append.entries]
        relies = await packs_of(self.files.catalog, self.caller.id, digests, set(claimed))
        [outcome] = await self.files.catalog.apply([evolve(unit, relies=tuple(relies))])
        return done(outcome).results[-1]

    def _now(self) -> int:
        return micros(self.files.clock.now())

    def _now_is(self, upload: Upload) -> None:
        """Note what is durable now."""
        more = upload.offset - self.upload.offset
        self.writer.upload = upload
        self.progress(more)
        self.writer.appended.set()
        self.writer.appended = anyio.Event()

    # Finishing

    async def finish_empty(self) -> None:
        """Finish a session that is to have no bytes."""
        await self._end([], Placed(), b"")

    async def _end(self, entries: list[Entry], placed: Placed, tail: bytes) -> None:
        """Make what is left durable, and finish the session if that is all of it."""
        upload = self.upload
        if upload.cut + _length(entries) + len(tail) != upload.size:
            await self._keep(entries, placed, tail)
            return
        if tail:
            entries += await self._cut_tail(placed, tail)
        try:
            await self._finish(entries, placed)
        except InvalidField:  # no other try would end otherwise
            raise
        except VaultError:
            # The bytes are good: what is in the way may go, and an empty append tries again.
            self.writer.manifest = None
            with suppress(VaultError):
                await self._keep(entries, placed, b"")
            raise

    async def _cut_tail(self, placed: Placed, tail: bytes) -> list[Entry]:
        """The entries of the last bytes, whose chunks are stored."""
        cuts, _ = cut_piece(Chunker(), memoryview(tail), last=True)
        charge = await self.ingest.budget.charge(Use.WRITE, len(tail))
        placed.take(await self.ingest.store(self.caller.id, cuts, charge))
        entries = [(cut.digest, len(cut.data)) for cut in cuts]
        if self.writer.manifest is not None:
            pages = self.writer.manifest.add_all(entries)
            placed.take(await self.ingest.pages(self.caller.id, pages))
        return entries

    async def _finish(self, entries: Sequence[Entry], placed: Placed) -> None:
        if self.writer.passing.seen != self.upload.size:  # it sees what is durable only
            await self._keep(entries, placed, b"")
            entries, placed = (), Placed()
        upload = self.upload._replace(cut=self.upload.cut + _length(entries), tail=0)
        warm = self.writer.manifest is not None
        try:
            result = await self._finished(upload, entries, placed)
        except PacksGone:
            if not warm:
                raise
            result = await self._finished(upload, entries, placed)  # its pages made anew
        node = result.node
        self._now_is(
            upload._replace(
                state=UploadState.FINISHED,
                node=node and node.id,
                version=node and node.version,
                touched_us=self._now(),
                made=result.count,
            )
        )

    async def _finished(self, upload: Upload, entries: Sequence[Entry], placed: Placed) -> Result:
        """Finish the session in the catalog, as it is to be, with the last of its entries."""
        put, whole = None, Placed()
        whole.take(placed)
        if upload.path is not None:
            digest, state = await self._digest(upload)
            if self.writer.manifest is not None:
                whole.relies |= self.writer.relies
            manifest = await self._manifest(entries, whole)
            put = _put_of(upload, Content(manifest, digest, state))
        finish = FinishUpload(upload.tree, upload.id, upload.fence, put)
        return await self._commit((*self._append(entries, whole), finish), whole)

    async def _manifest(self, entries: Sequence[Entry], placed: Placed) -> Manifest:
        """The manifest of the whole content, its pages on their way into packs."""
        builder, self.writer.manifest = self.writer.manifest, None
        pages: list[Page] = []
        if builder is None:
            builder, at = ManifestBuilder(), 0
            while found := await self.files.catalog.upload_entries(self.upload.id, at=at):
                pages += await to_thread.run_sync(builder.add_all, found)
                at += _length(found)
            pages += builder.add_all(entries)
        manifest, last = builder.finish()
        if pages or last:
            placed.take(await self.ingest.pages(self.caller.id, [*pages, *last]))
        return manifest

    async def join(self, parts: Sequence[Upload]) -> None:
        """Make the content of `parts` the session's, and finish it."""
        self.writer.manifest = None
        joiner = Joiner(self.ingest, self.files.reader, self.caller.id)
        async for entries, placed in joiner.joined([part.id for part in parts]):
            placed.relies |= joiner.relies
            await self._keep(entries, placed, b"")
        await self._end([], Placed(), b"")


def _length(entries: Sequence[Entry]) -> int:
    return sum(size for _, size in entries)


def _update(passing: Passing, pieces: Sequence[Buffer]) -> None:
    """Let the digest see what is read back."""
    for piece in pieces:
        passing.whole.update(piece)
    passing.seen += sum(map(len, pieces))

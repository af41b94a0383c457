"""Verification: is everything that the catalog promises really there?

Packs are checked first, each once whatever refers to it; then the chunk index is
compared with what the packs were seen to hold; then the manifests of all versions
are walked to name every file that is hit. Nothing is changed, and nothing is read
twice but manifest pages.
"""

from array import array
from bisect import bisect_left
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import anyio
from anyio import to_thread
from attrs import define, evolve, field

from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, DamagedContent, NotFound, Unsupported
from vaultfs.domain.integrity import EVERYTHING, DamagedFile, Depth, Findings, Subset
from vaultfs.domain.names import format_path
from vaultfs.domain.nodes import UserId
from vaultfs.domain.packs import (
    HEAD_SIZE,
    HEADER_SIZE,
    PackEntry,
    check_head,
    decode_chunk,
    header_of,
    parse_pack,
    scan_pack,
)
from vaultfs.domain.services.packer import pack_key
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.tasks import task_group
from vaultfs.domain.services.walk import PageWalk
from vaultfs.ports.catalog import Catalog, Location, PackRow, VersionRef
from vaultfs.ports.objects import (
    IntegrityError,
    ObjectNotFound,
    ObjectStore,
    PutMode,
    StoreError,
)
from vaultfs.ports.progress import Progress, no_progress

AT_ONCE = 3
"""Packs that are being read or checked at the same time: with its bytes, each takes 20 MiB."""
PAGE = 1000


class Checked(NamedTuple):
    """What a pack turned out to hold."""

    problems: list[str]
    sound: list[PackEntry]
    """The chunks that decode to their digest; only looked for by `FULL`."""


@define(eq=False)
class Integrity:
    """One of these serves a process."""

    objects: ObjectStore
    catalog: Catalog
    reader: Reader
    workers: anyio.CapacityLimiter

    async def verify(
        self,
        depth: Depth,
        *,
        subset: Subset = EVERYTHING,
        progress: Progress = no_progress,
    ) -> Findings:
        """Look at everything that `depth` says, in the packs of `subset`.

        `progress` is told bytes of packs. Takes time linear in the bytes from `DIGESTS`
        on. Raises a `StoreError` only where nothing can be said of the pack in hand.
        """
        run = _Run(self, depth, subset, progress)
        run.problems += await self.catalog.check()
        if depth.includes(Depth.PACKS):
            await run.packs()
        if depth is Depth.FULL:
            await run.index()
        elif run.bad:
            run.lose(await self.catalog.chunks_of(list(run.bad)))
        await run.files()
        return evolve(
            run.findings,
            problems=tuple(run.problems),
            files=tuple(run.hit),
            bad_packs=tuple(run.bad),
        )

    async def hit_by(self, packs: Sequence[Digest]) -> tuple[DamagedFile, ...]:
        """The versions that need a chunk of `packs`, which are damaged."""
        if not packs:
            return ()
        run = _Run(self, Depth.DIGESTS, EVERYTHING, no_progress)
        run.lose(await self.catalog.chunks_of(packs))
        await run.files()
        return tuple(run.hit)

    async def check(self, pack: PackRow, depth: Depth) -> "Checked":
        """What is wrong with a pack, as far as `depth` looks, which has to include `PACKS`."""
        try:
            if depth is Depth.PACKS:
                return Checked(await self._head(pack), [])
            data = await self.objects.readable()[0].get(pack_key(pack.key))
        except ObjectNotFound:
            return Checked(["is not in the store"], [])
        except IntegrityError as error:
            return Checked([error.message], [])
        check = check_chunks if depth is Depth.FULL else check_digest
        return await to_thread.run_sync(check, pack, data, limiter=self.workers)

    async def repair(self, pack: Digest) -> bool:
        """Put a damaged pack again from another store that has it right; whether one had."""
        key = pack_key(pack)
        first, *others = self.objects.readable()
        for store in others:
            try:
                data = await store.get(key)
            except StoreError:
                continue
            if await to_thread.run_sync(digest_of, data, limiter=self.workers) == pack:
                await first.put(key, data, mode=PutMode.OVERWRITE)
                return True
        return False

    async def _head(self, pack: PackRow) -> list[str]:
        info = await self.objects.readable()[0].head(pack_key(pack.key))
        if info.size != pack.size:
            return [f"has {info.size} bytes instead of {pack.size}"]
        found = dict(info.digests).get("crc32c")
        if found is not None and pack.crc32c not in {None, int.from_bytes(found, "big")}:
            return ["has another CRC32C than when it was stored"]
        return []


@define(eq=False)
class _Run:
    integrity: Integrity
    depth: Depth
    subset: Subset
    progress: Progress
    problems: list[str] = field(factory=list[str])
    bad: dict[Digest, None] = field(factory=dict[Digest, None])
    """Packs with something wrong."""
    lost: dict[tuple[Digest, Digest], str] = field(factory=dict[tuple[Digest, Digest], str])
    """Chunks, and the packs that they cannot be read back from though the index says so, and why:
    users may have one in packs of their own."""
    hit: list[DamagedFile] = field(factory=list[DamagedFile])
    findings: Findings = field(factory=Findings)
    sound: "array[int]" = field(factory=lambda: array("q"))
    """Hashes of (digest, place) of all chunks seen to be right: 8 bytes each."""
    seen: set[Digest] = field(factory=set[Digest])
    """Packs that were checked, or are being checked."""

    def lose(self, chunks: Sequence[tuple[Digest, Location]]) -> None:
        """Count `chunks` as lost with their packs."""
        self.lost.update({(digest, at.pack): "its pack is damaged" for digest, at in chunks})

    async def packs(self) -> None:
        """Check all packs that were not checked before: somebody may be writing meanwhile."""
        send, receive = anyio.create_memory_object_stream[PackRow](0)
        async with task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(self._work, receive.clone())
            receive.close()
            async with send:
                async for pack in self._listed():
                    if pack.key not in self.seen:
                        self.seen.add(pack.key)
                        await send.send(pack)

    async def _work(self, packs: "anyio.abc.ObjectReceiveStream[PackRow]") -> None:
        async with packs:
            async for pack in packs:
                await self._pack(pack)

    async def _listed(self) -> AsyncGenerator[PackRow, None]:
        after: Digest | None = None
        while page := await self.integrity.catalog.packs(after=after, limit=PAGE):
            for pack in page:
                if pack.key in self.subset:
                    yield pack
            after = page[-1].key

    async def _pack(self, pack: PackRow) -> None:
        checked = await self.integrity.check(pack, self.depth)
        if checked.problems:
            self.bad[pack.key] = None
            self.problems += [f"pack {pack.key.hex()}: {text}" for text in checked.problems]
        for entry in checked.sound:
            self.sound.append(_fingerprint(entry.digest, pack.key, entry))
        read = pack.size if self.depth.includes(Depth.DIGESTS) else 0
        self.findings = evolve(
            self.findings,
            packs=self.findings.packs + 1,
            chunks=self.findings.chunks + len(checked.sound),
            size=self.findings.size + read,
        )
        self.progress(pack.size)

    async def index(self) -> None:
        """Compare the chunk index with what was seen, row by row."""
        newer: list[tuple[Digest, Location]] = []
        rows = [row async for row in self._wrong_rows(self._indexed(), newer)]
        if newer:  # of packs that were recorded since all were listed
            await self.packs()
            rows += [row async for row in self._wrong_rows(_each(newer), [])]
        wrong = 0
        for digest, place in rows:
            self.lost[digest, place.pack] = f"it cannot be read from pack {place.pack.hex()}"
            wrong += place.pack not in self.bad
        if wrong:
            self.problems.append(
                f"the index says of {wrong} chunks that they are where they are not: see"
                " `vaultfs rebuild`"
            )

    async def _wrong_rows(
        self,
        rows: AsyncGenerator[tuple[Digest, Location], None],
        newer: list[tuple[Digest, Location]],
    ) -> AsyncGenerator[tuple[Digest, Location], None]:
        """Those of `rows` that are not as they were seen; of packs nobody looked at, `newer`."""
        known = sorted(self.sound)
        async for digest, place in rows:
            if place.pack not in self.seen:
                newer.append((digest, place))
                continue
            mark = _fingerprint(digest, place.pack, place)
            at = bisect_left(known, mark)
            if at == len(known) or known[at] != mark:
                yield digest, place

    async def _indexed(self) -> AsyncGenerator[tuple[Digest, Location], None]:
        after: Digest | None = None
        while page := await self.integrity.catalog.index(after=after, limit=PAGE):
            for digest, place in page:
                if place.pack in self.subset:
                    yield digest, place
            after = page[-1][0]

    async def files(self) -> None:
        """Name every version that needs a chunk which is lost or unknown."""
        walk = PageWalk(self.integrity.reader.page)
        after = 0
        while versions := await self.integrity.catalog.all_versions(after=after):
            known = await self._located(versions)
            for version in versions:
                reason = await self._what_is_wrong(version, walk, known)
                if reason is None:
                    walk.keep()
                else:
                    walk.drop()
                    await self._name(version, reason)
            after = versions[-1].id
            self.findings = evolve(self.findings, versions=self.findings.versions + len(versions))

    async def _located(self, versions: Sequence[VersionRef]) -> dict[tuple[UserId, Digest], Digest]:
        """In which packs the index knows whose chunks, of those that manifests name in line:
        asked for at once.
        """
        wanted: dict[UserId, list[Digest]] = {}
        for version in versions:
            with suppress(Corrupt, Unsupported):
                entries = version.manifest.entries
                wanted.setdefault(version.owner, []).extend(digest for digest, _ in entries)
        known: dict[tuple[UserId, Digest], Digest] = {}
        for owner, digests in wanted.items():
            places = await self.integrity.catalog.locate(owner, digests)
            known.update(((owner, digest), place.pack) for digest, place in places.items())
        return known

    async def _what_is_wrong(
        self, version: VersionRef, walk: PageWalk, known: Mapping[tuple[UserId, Digest], Digest]
    ) -> str | None:
        try:
            manifest = version.manifest
            level = manifest.level
            if self.depth is Depth.CATALOG:
                level = 0  # the pages are in packs, which this depth does not open
            async for digests in walk.digests(version.owner, level, manifest.entries):
                reason = await self._first_lost(version.owner, digests, known)
                if reason is not None:
                    return reason
        except (Corrupt, DamagedContent, Unsupported) as error:
            return error.message
        return None

    async def _first_lost(
        self, owner: UserId, digests: list[Digest], known: Mapping[tuple[UserId, Digest], Digest]
    ) -> str | None:
        unsure = [digest for digest in digests if (owner, digest) not in known]
        places = await self.integrity.catalog.locate(owner, unsure) if unsure else {}
        packs = {digest: place.pack for digest, place in places.items()}
        for digest in digests:
            pack = known.get((owner, digest)) or packs.get(digest)
            if pack is None:
                return f"chunk {digest.hex()} is in no pack that the index knows"
            if (digest, pack) in self.lost:
                return f"chunk {digest.hex()}: {self.lost[digest, pack]}"
        return None

    async def _name(self, version: VersionRef, reason: str) -> None:
        try:
            tree, path = await self.integrity.catalog.node_path(version.node)
        except NotFound:
            return  # purged meanwhile
        names = {user.tree: user.name for user in await self.integrity.catalog.users()}
        self.hit.append(DamagedFile(names[tree], format_path(path), version.number, reason))


async def _each(
    rows: Sequence[tuple[Digest, Location]],
) -> AsyncGenerator[tuple[Digest, Location], None]:
    for row in rows:
        yield row


def _fingerprint(digest: Digest, pack: Digest, place: PackEntry | Location) -> int:
    return hash((digest, pack, place.offset, place.size, place.length))


def check_digest(pack: PackRow, data: bytes) -> Checked:
    """Whether `data` has the digest that is the pack's key. CPU work."""
    if digest_of(data) == pack.key:
        return Checked([], [])
    return Checked([f"its {len(data)} bytes do not have its digest"], [])


def check_chunks(pack: PackRow, data: bytes) -> Checked:
    """Which chunks of a pack can be read back; every byte of it is looked at. CPU work."""
    problems: list[str] = []
    try:
        check_head(data[:HEAD_SIZE])
        entries = list(parse_pack(data))
    except (Corrupt, Unsupported) as error:
        problems.append(error.message)
        entries = list(scan_pack(data))
    view, end = memoryview(data), HEAD_SIZE
    sound: list[PackEntry] = []
    for entry in entries:
        start, end = end, entry.offset + HEADER_SIZE + entry.size
        chunk, name = view[entry.offset : end], f"chunk {entry.digest.hex()} at {entry.offset}"
        try:
            decode_chunk(chunk, entry.digest)
        except (Corrupt, Unsupported) as error:
            problems.append(f"{name}: {error.message}")
            continue
        sound.append(entry)
        if entry.offset != start or bytes(chunk[:HEADER_SIZE]) != header_of(entry):
            problems.append(f"{name}: its header and the table do not agree")
    # What no reader looks at may be damaged, and a pack may be sound and another one.
    return Checked(problems or check_digest(pack, data).problems, sound)

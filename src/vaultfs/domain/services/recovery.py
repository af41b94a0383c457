"""Coming back from losses: backups of the catalog, rebuilding of the chunk index.

A backup is the catalog's dump, compressed, in objects of the store itself:

    backups/<time>-<id>/part-00000 ...      zstd of the dump, 16 MiB each
    backups/<time>-<id>/manifest.json       written last: without it there is no backup

The packs describe themselves, so a backup need not hold the chunk index: `rebuild`
makes it anew from the packs, and its owners from the manifests.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import zstandard
from anyio import to_thread
from attrs import define, field, frozen

from vaultfs.domain.digests import Digest, digest_from_hex, digest_of
from vaultfs.domain.errors import Corrupt, InvalidField, NotFound, Unsupported
from vaultfs.domain.manifests import Entry, parse_page
from vaultfs.domain.migration import Placement
from vaultfs.domain.nodes import UserId, micros
from vaultfs.domain.operations import RecordPack
from vaultfs.domain.packs import (
    ENTRY_SIZE,
    HEAD_SIZE,
    HEADER_SIZE,
    TAIL_SIZE,
    PackEntry,
    decode_chunk,
    scan_pack,
)
from vaultfs.domain.services.packer import PACK_PREFIX, pack_key
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.tables import read_table
from vaultfs.domain.services.walk import PageWalk, every_version
from vaultfs.ports.catalog import Catalog, Reindexing, Usage
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import IntegrityError, ObjectInfo, ObjectNotFound, ObjectStore, Span
from vaultfs.ports.progress import Progress, no_progress

BACKUPS: Final = "backups/"
PART: Final = 16 << 20
"""Bytes of one object of a backup."""
FORMAT: Final = 1
LEFTOVER_AGE: Final = timedelta(days=1)
SLICE: Final = 256 << 10
"""Compressed bytes that are expanded at a time, so that memory stays bounded."""


@frozen
class Backup:
    """A backup as its manifest describes it."""

    name: str
    created: datetime
    vault_id: str
    parts: tuple[tuple[str, int, Digest], ...] = field(repr=False)
    """Key, size and digest of each part."""

    @property
    def size(self) -> int:
        """Bytes in the store."""
        return sum(size for _, size, _ in self.parts)


@frozen
class Rebuilt:
    """What a rebuild came upon."""

    packs: int
    chunks: int
    versions: int
    problems: tuple[str, ...]
    """Packs and manifests that could not be read whole."""


async def backups_in(objects: ObjectStore) -> list[Backup]:
    """All complete backups in a store, oldest first. A damaged manifest is passed over."""
    found: list[Backup] = []
    async with aclosing(objects.list(BACKUPS)) as infos:
        async for info in infos:
            if info.key.endswith("/manifest.json"):
                try:
                    found.append(_decode(info.key, await objects.get(info.key)))
                except (Corrupt, ObjectNotFound):
                    continue
    return sorted(found, key=lambda backup: backup.created)


async def find_backup(objects: ObjectStore, name: str | None = None) -> Backup:
    """The backup of that name, or the newest. Raises `NotFound`."""
    for backup in reversed(await backups_in(objects)):
        if name in {None, backup.name}:
            return backup
    raise NotFound(
        "the store has no backup of the catalog"
        if name is None
        else f"the store has no backup {name}: see `vaultfs backup --list`"
    )


@define(eq=False)
class Recovery:
    """One of these serves a process."""

    objects: ObjectStore
    catalog: Catalog
    reader: Reader
    clock: Clock

    # Backups

    async def backup(self, *, keep: int = 7, progress: Progress = no_progress) -> Backup:
        """Copy the catalog, as it is at one moment, into the store; keep the newest `keep`.

        A crash leaves parts without a manifest, which a backup a day later removes. `progress`
        is told bytes of the dump.
        """
        if keep < 1:
            raise InvalidField(f"cannot keep {keep} backups: 1 is the least")
        now = self.clock.now()
        name = f"{now.astimezone(UTC):%Y%m%dt%H%M%Sz}-{self.clock.new_id()[-8:].lower()}"
        parts: list[tuple[str, int, Digest]] = []
        async with aclosing(self._compressed(progress)) as pieces:
            async for piece in pieces:
                key = f"{BACKUPS}{name}/part-{len(parts):05}"
                await self.objects.put(key, piece)
                parts.append((key, len(piece), digest_of(piece)))
        backup = Backup(name, now, await self.catalog.vault_id(), tuple(parts))
        await self.objects.put(f"{BACKUPS}{name}/manifest.json", _encode(backup))
        await self._remove_old(keep, name)
        return backup

    async def _compressed(self, progress: Progress) -> AsyncGenerator[bytes, None]:
        """The dump, compressed, in pieces of `PART` bytes."""
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
        held = bytearray()
        async with aclosing(self.catalog.dump()) as dump:
            async for piece in dump:
                held += await to_thread.run_sync(compressor.compress, piece)
                progress(len(piece))
                while len(held) >= PART:
                    yield bytes(held[:PART])
                    del held[:PART]
        held += compressor.flush()
        for start in range(0, len(held), PART):
            yield bytes(held[start : start + PART])

    async def backups(self) -> list[Backup]:
        """All complete backups, oldest first. A damaged manifest is passed over."""
        return await backups_in(self.objects)

    async def _remove_old(self, keep: int, newest: str) -> None:
        """Remove all backups but the newest `keep`, and what crashed ones left."""
        complete = [backup.name for backup in await self.backups()]
        wanted = {*complete[-keep:], newest}
        long_ago = micros(self.clock.now() - LEFTOVER_AGE)
        doomed: list[str] = []
        async with aclosing(self.objects.list(BACKUPS)) as objects:
            async for info in objects:
                name = info.key.removeprefix(BACKUPS).partition("/")[0]
                # Parts without a manifest may be those of a backup that is being made.
                done = name in complete or info.modified_us < long_ago
                if done and name not in wanted:
                    doomed.append(info.key)
        # The manifest goes first: parts without it are no backup.
        for key in sorted(doomed, key=lambda key: not key.endswith("/manifest.json")):
            await self.objects.delete(key)

    async def load(self, backup: Backup, *, progress: Progress = no_progress) -> None:
        """Fill the catalog, which has to be empty, from `backup`; all or nothing.

        `progress` is told bytes in the store. Raises `Corrupt` or `Unsupported`.
        """
        await self.catalog.load(self._expanded(backup, progress))

    async def _expanded(self, backup: Backup, progress: Progress) -> AsyncGenerator[bytes, None]:
        expand = zstandard.ZstdDecompressor(max_window_size=PART).decompressobj().decompress
        for key, size, digest in backup.parts:
            data = await self.objects.get(key)
            if len(data) != size or digest_of(data) != digest:
                raise Corrupt(f"{key} is damaged: try another backup")
            for start in range(0, size, SLICE):
                try:
                    yield await to_thread.run_sync(expand, data[start : start + SLICE])
                except zstandard.ZstdError as error:
                    raise Corrupt(f"{key} is damaged: {error}") from error
            progress(size)

    # The chunk index

    async def rebuild(self, *, check: bool = False, progress: Progress = no_progress) -> Rebuilt:
        """Make the chunk index anew from the packs in the store and the manifests.

        Reads the end of every pack; all of it to `check`, which leaves out chunks that are
        damaged, so that a put of the same content stores them again and heals every version
        that needs them. One transaction: a crash leaves the old index. Puts of other
        processes wait. `progress` is told bytes of packs.

        While there are two stores, both are asked for every pack. What the one that is copied
        to has is left to the copier, who looks at it, unless that one is read first.
        """
        problems: list[str] = []
        packs = chunks = versions = 0
        async with self.catalog.reindex() as index:
            # Where packs go by now, which cannot change until this is done.
            await self.objects.refresh()
            now = await self.catalog.placement()
            async with aclosing(self._packs()) as objects:
                async for info in objects:
                    with suppress(ObjectNotFound):  # it was deleted since it was listed
                        entries = await self._entries(info, problems, check=check)
                        if entries:
                            stores = await self._stores_with(info, now)
                            await index.add_pack(self._record(info, entries, stores))
                            packs, chunks = packs + 1, chunks + len(entries)
                    progress(info.size)
            versions = await self._claim_all(index, problems)
        return Rebuilt(packs, chunks, versions, tuple(problems))

    async def _packs(self) -> AsyncGenerator[ObjectInfo, None]:
        """Packs that the store lists, and those that it has though a listing leaves them out.

        What the new index lacks is named by nobody, and would be collected.
        """
        listed: set[str] = set()
        async with aclosing(self.objects.list(PACK_PREFIX)) as objects:
            async for info in objects:
                listed.add(info.key)
                yield info
        after: Digest | None = None
        while page := await self.catalog.packs(after=after):
            for key in (pack_key(pack.key) for pack in page):
                left_out = None if key in listed else await self._head(key)
                if left_out is not None:
                    yield left_out
            after = page[-1].key

    async def _head(self, key: str) -> ObjectInfo | None:
        try:
            return await self.objects.head(key)
        except ObjectNotFound:
            return None

    def _record(
        self, info: ObjectInfo, entries: Sequence[PackEntry], stores: tuple[str, ...]
    ) -> RecordPack:
        key = digest_from_hex(info.key.removeprefix(PACK_PREFIX))
        epoch = self.objects.targets().epoch
        first, *others = stores
        return RecordPack(key, info.size, None, first, tuple(entries), (), tuple(others), epoch)

    async def _stores_with(self, info: ObjectInfo, now: Placement | None) -> tuple[str, ...]:
        """The stores that a pack is in, without the one where the copier is to look."""
        stores = self.objects.readable()
        if now is None or len(stores) == 1:
            return (self.objects.name,)
        found: list[str] = []
        for name, store in zip(now.read_order, stores, strict=True):
            with suppress(ObjectNotFound):
                if (await store.head(info.key)).size == info.size:
                    found.append(name)
        return tuple(filter(now.relies_on, found)) or tuple(found) or (now.primary,)

    async def _entries(
        self, info: ObjectInfo, problems: list[str], *, check: bool
    ) -> tuple[PackEntry, ...]:
        """What is in a pack, by its table; by its headers where that is damaged."""
        try:
            digest_from_hex(info.key.removeprefix(PACK_PREFIX))
        except InvalidField:
            problems.append(f"{info.key} is no pack: passed over")
            return ()
        reason = "checked"
        try:
            table = await read_table(self.objects, info.key, info.size)
            if not check:
                return table
        except (Corrupt, Unsupported, IntegrityError) as error:
            table, reason = None, error.message
        try:
            data = await self.objects.get(info.key)
        except IntegrityError as error:
            problems.append(f"{error.message}; all its chunks are left out")
            return ()
        saved, lost = await to_thread.run_sync(salvage, data, table)
        if lost or table is None:
            problems.append(
                f"{info.key}: {reason}; {len(saved)} chunks were saved, {lost} left out"
            )
        return saved

    async def _claim_all(self, index: Reindexing, problems: list[str]) -> int:
        async def load(_: UserId, entry: Entry, level: int) -> tuple[Entry, ...]:
            return await self._page(index, entry, level)

        walk = PageWalk(load)
        count = 0
        async for version in every_version(self.catalog):
            count += 1
            try:
                manifest = version.manifest
                async for digests in walk.digests(version.owner, manifest.level, manifest.entries):
                    await index.claim(version.owner, digests)
                walk.keep()
            except (Corrupt, Unsupported) as error:
                walk.drop()
                problems.append(f"version {version.number} of node {version.node}: {error.message}")
        await self._claim_uploads(index)
        return count

    async def _claim_uploads(self, index: Reindexing) -> None:
        """Give those who upload right now the chunks that they have sent."""
        for user in await self.catalog.users():
            after = ""
            while found := await self.catalog.uploads(user.id, after=after):
                for upload in found:
                    at = 0
                    while entries := await self.catalog.upload_entries(upload.id, at=at):
                        await index.claim(user.id, [digest for digest, _ in entries])
                        at += sum(size for _, size in entries)
                after = found[-1].id

    async def _page(self, index: Reindexing, entry: Entry, level: int) -> tuple[Entry, ...]:
        """A manifest page, by the index under construction."""
        digest, size = entry
        place = (await index.locate([digest])).get(digest)
        if place is None:
            raise Corrupt(f"manifest page {digest.hex()} is in no pack")
        span = Span(place.offset, place.offset + HEADER_SIZE + place.size)
        data = await self.objects.get(pack_key(place.pack), span)
        return parse_page(decode_chunk(data, digest), level=level, size=size)

    # Usage

    async def usage(self, *, progress: Progress = no_progress) -> Usage:
        """What the vault holds, and how much of it no version needs.

        Walks every manifest page once; `progress` is told versions.
        """
        stats = await self.catalog.stats()
        live: set[Digest] = set()
        damaged = 0
        walk = PageWalk(self.reader.page)
        async for version in every_version(self.catalog):
            try:
                manifest = version.manifest
                async for digests in walk.digests(version.owner, manifest.level, manifest.entries):
                    live.update(digests)
                walk.keep()
            except (Corrupt, Unsupported):
                walk.drop()
                damaged += 1
            progress(1)
        stored = await self._stored(live)
        frames = stats.packs * (HEAD_SIZE + TAIL_SIZE)
        return Usage(stats, stored, max(0, stats.packed - stored - frames), damaged)

    async def _stored(self, live: set[Digest]) -> int:
        """Bytes of packs that the chunks `live` take."""
        total = 0
        counted: Digest | None = None
        after: Digest | None = None
        while page := await self.catalog.index(after=after):
            for digest, place in page:
                if digest in live and digest != counted:
                    total += HEADER_SIZE + place.size + ENTRY_SIZE
                    counted = digest
            after = page[-1][0]
        return total


def salvage(data: bytes, table: Sequence[PackEntry] | None) -> tuple[tuple[PackEntry, ...], int]:
    """The chunks of a pack that still decode to their digest, and how many do not. CPU work.

    Without a `table` they are looked for by their headers.
    """
    saved: list[PackEntry] = []
    found = list(scan_pack(data)) if table is None else table
    for entry in found:
        try:
            decode_chunk(data[entry.offset : entry.offset + HEADER_SIZE + entry.size], entry.digest)
        except (Corrupt, Unsupported):
            continue
        saved.append(entry)
    return tuple(saved), len(found) - len(saved)


def _encode(backup: Backup) -> bytes:
    value = {
        "format": FORMAT,
        "created": backup.created.isoformat(),
        "vault": backup.vault_id,
        "parts": [[key, size, digest.hex()] for key, size, digest in backup.parts],
    }
    return json.dumps(value, indent=1).encode()


def _decode(key: str, data: bytes) -> Backup:
    try:
        value = cast("dict[str, Any]", json.loads(data))
        if value["format"] > FORMAT:
            raise Corrupt(f"{key} is of a newer release")
        return Backup(
            key.removeprefix(BACKUPS).partition("/")[0],
            datetime.fromisoformat(value["created"]),
            str(value["vault"]),
            tuple((str(k), int(s), digest_from_hex(d)) for k, s, d in value["parts"]),
        )
    except (ValueError, KeyError, TypeError, InvalidField) as error:
        raise Corrupt(f"{key} is damaged") from error

"""Digests of whole contents that nobody has seen in order: found by reading them back.

An upload that was resumed, or of which chunks were only named, may end with a digest that is
claimed, or with none. Here such contents are read, every chunk verified, and the digest is
written down. What was claimed and is not right is reported. A crash loses the work on one
content.
"""

from collections.abc import Sequence
from typing import Final

from anyio import to_thread
from attrs import define, field, frozen
from blake3 import blake3

from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import Corrupt, Unsupported
from vaultfs.domain.nodes import DigestState, TreeId, UserId, Version, VersionId, micros
from vaultfs.domain.operations import Refused, SetDigest, Unit
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.tasks import OneByOne
from vaultfs.ports.catalog import Catalog, Unverified
from vaultfs.ports.clock import Clock

MOST: Final = 8 << 30
"""Bytes that one run reads, but for its last content."""


@frozen
class Found:
    """What a run has found out."""

    verified: int = 0
    """Contents whose digests are known now."""
    false: int = 0
    """Those of them for which another one was claimed."""


@define(eq=False)
class Digests:
    """One of these serves a process."""

    catalog: Catalog
    reader: Reader
    clock: Clock
    _finding: OneByOne[VersionId] = field(factory=OneByOne[VersionId])

    async def find(self, version: Version) -> Version:
        """`version` with its digest verified: found now, unless somebody has it by then.

        As it was if it is gone. Raises `Corrupt` and `Unsupported` for what cannot be read, and
        failures of the vault.
        """
        async with self._finding.turn(version.id):
            for each in await self.catalog.unverified(after=version.id - 1, limit=1):
                if each.id == version.id:
                    digest = await self._digest(each)
                    await self._set(each, digest)
                    return version._replace(digest=digest, digest_state=DigestState.VERIFIED)
            before = version.number + 1
            for now in await self.catalog.versions(version.node, before=before, limit=1):
                if now.id == version.id:
                    return now
            return version

    async def run(self, most: int = MOST) -> Found:
        """Find digests until about `most` bytes are read. What cannot be read is passed over."""
        verified = false = after = read = 0
        while read < most and (versions := await self.catalog.unverified(after=after, limit=100)):
            for version in versions:
                after = version.id
                try:
                    digest = await self._digest(version)
                    read += version.manifest.size
                except (Corrupt, Unsupported):  # `verify` names it
                    continue
                verified += await self._set(version, digest)
                false += version.claimed not in {None, digest}
                if read >= most:
                    break
        return Found(verified, false)

    async def _digest(self, version: Unverified) -> Digest:
        whole = blake3()
        async with self.reader.content(version.owner, version.manifest) as parts:
            async for part in parts:
                await to_thread.run_sync(_update, whole, part, limiter=self.reader.workers)
        return Digest(whole.digest())

    async def _set(self, version: Unverified, digest: Digest) -> int:
        change = SetDigest(TreeId(version.owner), version.id, digest)
        unit = Unit(UserId(0), micros(self.clock.now()), self.clock.new_id(), (change,))
        [outcome] = await self.catalog.apply([unit])
        if isinstance(outcome, Refused):
            raise outcome.error
        return outcome.results[0].count


def _update(whole: blake3, part: Sequence[Buffer]) -> None:
    for piece in part:
        whole.update(piece)

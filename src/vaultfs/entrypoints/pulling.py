"""One file of a vault to a local file, by what is different."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio
from attrs import define
from blake3 import blake3

from vaultfs.domain.errors import Corrupt, NotFound, Unsupported, VersionMismatch
from vaultfs.domain.nodes import Node, Version, VersionId
from vaultfs.ports.progress import Progress

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from vaultfs.adapters.replacing import LocalBase
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.entrypoints.surface import Surface


Expected = os.stat_result | Literal["any"] | None
"""What a local file looked like to whoever decided that it may be replaced; None: not there."""


class Pulled(NamedTuple):
    """What a pull led to."""

    version: Version
    """What the local file is now."""
    changed: bool
    travelled: int
    """Bytes of contents that came over the network."""
    way: str
    """`unchanged`, `copied`, or how the server found it: `direct`, `chain`, `full` and why."""
    status: os.stat_result | None = None
    """What the local file looked like when it was written, if it was."""


class Pushed(NamedTuple):
    """What a push led to."""

    node: Node
    changed: int
    """Versions made: 0 or 1."""
    travelled: int
    """Bytes of bodies that went over the network."""


async def copy_to(
    vault: "Surface",
    path: str,
    local: LocalPath,
    base: VersionId | None,
    expected: Expected,
    progress: Progress,
) -> Pulled:
    """Make `local` the file at `path`, by all of its bytes."""
    from vaultfs.adapters.replacing import replacing, status_of

    before = status_of(local) if expected == "any" else expected
    version = await vault.version(path)
    if version.id == base and before is not None:
        return Pulled(version, False, 0, "unchanged")
    async with (
        replacing(local, before, version.origin) as target,
        vault.content(path, version) as parts,
    ):
        async for part in parts:
            for piece in part:
                await target.write(bytes(piece))
            progress(sum(map(len, part)))
    return Pulled(version, True, 0, "copied", target.status)


@define(eq=False)
class Pull:
    """One file on its way from a server.

    A crash leaves the old file, whole, or the new one.
    """

    vault: "RemoteVault"
    path: str
    local: LocalPath
    base: VersionId | None
    expected: Expected
    progress: Progress
    _travelled: int = 0
    _told: int = 0

    async def run(self) -> Pulled:
        """Get it. Raises what the server refuses it with, `SourceChanged`, `ServerError`."""
        if self.base is None:
            return await self._full("full")
        from vaultfs.adapters.replacing import local_base

        try:
            async with local_base(self.local) as base:
                return await self._from(base, self.base)
        except NotFound:
            if self.local.exists():
                raise
            return await self._full("full; reason=no-local-file")
        except (Corrupt, Unsupported) as error:
            return await self._full(f"full; reason=bad-delta ({error.message})")
        except VersionMismatch:
            return await self._full("full; reason=local-file-is-another")

    async def _full(self, way: str) -> Pulled:
        done = await copy_to(self.vault, self.path, self.local, None, self.expected, self.progress)
        return done._replace(travelled=self._travelled + done.version.size, way=way)

    async def _from(self, base: "LocalBase", number: VersionId) -> Pulled:
        from vaultfs.entrypoints.answers import version_of
        from vaultfs.entrypoints.calling import AGAIN, TRIES, wait

        headers = {"A-IM": "vaultfs-delta", "If-None-Match": f'"v{number}"'}
        url = self.vault.url("files", self.path)
        for tries in range(1, TRIES + 1):
            try:
                async with self.vault.calls.http.get(
                    url, headers=headers, allow_redirects=False
                ) as answer:
                    if answer.status == 304:
                        version = await self.vault.version(self.path)
                        if version.id == number and version.digest in {None, base.digest}:
                            return Pulled(version, False, 0, "unchanged")
                        return await self._full("full; reason=changed-meanwhile")
                    if answer.status not in {200, 226}:
                        await self.vault.calls.refuse(answer)
                    version = version_of(answer.headers)
                    way = answer.headers.get("Vaultfs-Delta", "full")
                    status = await self._take(answer, base, version)
            except AGAIN as error:
                if tries == TRIES:
                    self.vault.calls.fail(error)
                await anyio.sleep(wait(tries))
            else:
                return Pulled(version, True, self._travelled, way, status)
        raise AssertionError("the last try returns or raises")

    async def _take(
        self, answer: "ClientResponse", base: "LocalBase", version: Version
    ) -> os.stat_result | None:
        from vaultfs.adapters.replacing import replacing
        from vaultfs.domain.services.rebuilding import Rebuilding
        from vaultfs.entrypoints.client import check_digest

        rebuilding, whole, told = Rebuilding(base, images=True), blake3(), 0
        came = self._pieces(answer)
        made = rebuilding.run(came) if answer.status == 226 else came
        before = base.before if self.expected == "any" else self.expected
        async with replacing(self.local, before, version.origin) as target, aclosing(made):
            async for piece in made:
                told += len(piece)
                if told > version.size:
                    raise Corrupt("what came is longer than the version")
                whole.update(piece)
                await target.write(piece)
                if told > self._told:  # after a connection broke off, it begins anew
                    self.progress(told - self._told)
                    self._told = told
            if told != version.size:
                raise Corrupt("what came has another length than the version")
            if version.verified is not None:
                check_digest(whole.digest(), version)
        return target.status

    async def _pieces(self, answer: "ClientResponse") -> AsyncGenerator[bytes, None]:
        from vaultfs.entrypoints.calling import PIECE

        async for piece in answer.content.iter_chunked(PIECE):
            self._travelled += len(piece)
            yield piece

"""A local file to a server by what the version there does not have, which nobody here has.

    signature of the version there -> search -> delta

What the server has is known by short digests; it rebuilds the file and compares the whole.
Of two zip files it is the images that are compared, with what differs laid open.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
from anyio import to_thread
from attrs import define, evolve

from vaultfs.domain.chunks import Chunking
from vaultfs.domain.deltacodec import (
    MEDIA_TYPE,
    Header,
    Images,
    write_images,
)
from vaultfs.domain.digests import Digest, digest_from_hex, digest_of
from vaultfs.domain.errors import Corrupt, InvalidField, TooLarge, Unsupported
from vaultfs.domain.nodes import Version
from vaultfs.domain.signatures import (
    Unit,
    read_pieces,
    read_units,
)
from vaultfs.domain.zipimages import MAGIC, MAX_ZIP, codes_against, opened, packed_members
from vaultfs.entrypoints.answers import conditions, origin_headers, version_of
from vaultfs.entrypoints.calling import Slices
from vaultfs.entrypoints.local_contents import LocalFile, LocalImage
from vaultfs.entrypoints.searching import Search, Signed
from vaultfs.entrypoints.surface import Stored
from vaultfs.ports.progress import Progress

if TYPE_CHECKING:
    from vaultfs.adapters.files import FileSource
    from vaultfs.domain.nodes import Preconditions
    from vaultfs.entrypoints.calling import Answer
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.ports.trees import Item

MOST_IMAGES: Final = 4 << 20
"""Bytes of one between images: a server takes no longer ones."""
MUCH_LESS: Final = 4
"""Of a zip file so many times as long as the new one, members alone may take as much as that."""
IMAGE_UNITS: Final = 24
"""Bytes of an image's signature for each member, at the least."""
LITTLE: Final = 50
"""What part of a file may be asked for in vain."""


@define(eq=False)
class Difference:
    """A local file as the difference to a version of a server."""

    vault: "RemoteVault"
    path: str
    source: "FileSource"
    item: "Item"
    preconditions: "Preconditions"
    progress: Progress
    sent: int = 0
    """Bytes of bodies, and of signatures."""

    async def run(self) -> Stored | None:
        """Store it. None if a delta would be no use: then nothing was sent but a question.

        Raises what the server refuses it with, `Corrupt` for signatures that are none, and
        `SourceChanged`.
        """
        headers = conditions(self.preconditions)
        calls = self.vault.calls
        answer = await calls.ask("GET", self.vault.url("signatures", self.path), headers=headers)
        self.sent += len(answer.data)
        base = version_of(answer.headers)
        if base.digest is None:
            return None
        there, here = There(self, base), LocalFile(self.source, self.item)
        data = await self._between_images(base, base.digest, there, here)
        if data is None:
            signed = Signed(read_units(answer.data), base.size, base.digest)
            data = await Search(here, there).delta(signed)
        if data is None or len(data) >= self.item.size:
            return None
        url = self.vault.url("deltas", self.path)
        kind = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(data))}
        headers |= kind | origin_headers(self.item.origin)
        self.sent += len(data)
        stored = await calls.ask("POST", url, headers=headers, data=Slices(data), again=False)
        self.progress(self.item.size)
        changed = int(stored.headers.get("Vaultfs-Changed") != "0")
        return Stored(self.vault.node_of(stored), changed, self.sent)

    async def _between_images(
        self, base: Version, digest: Digest, there: "There", here: "LocalFile"
    ) -> bytes | None:
        """The delta between images of two zip files; None if they are none, or gain nothing."""
        size = self.item.size
        if not len(MAGIC) <= size <= MAX_ZIP or base.size > min(MAX_ZIP, MUCH_LESS * size):
            return None
        if await here.read(0, len(MAGIC)) != MAGIC:
            return None
        with suppress(Corrupt, InvalidField, TooLarge, Unsupported):
            members = await there.members()
            whole = await here.whole()
            codes = await to_thread.run_sync(_codes, members, whole)
            if codes is None:
                return None
            laid_open = await to_thread.run_sync(opened, whole, codes[1])
            image = LocalImage(laid_open, codes[1], len(whole))
            there = evolve(there, codes=codes[0])
            inner = await Search(image, there).delta(await there.image())
            header = Header.of(base.size, digest, len(whole), digest_of(whole))
            data = write_images(Images(header, *codes)) + (inner or b"")
            return data if inner is not None and len(data) <= MOST_IMAGES else None
        return None


def _codes(olds: Sequence[Unit], whole: bytes) -> tuple[bytes, bytes] | None:
    """As `codes_against`, but None too unless the image's signature is little, or sure to pay
    because of what both have.
    """
    news = packed_members(whole)
    shared = sum(length for _, length in {unit for unit, _, _ in news}.intersection(olds))
    if len(olds) * IMAGE_UNITS > max(len(whole) // LITTLE, shared // 2):
        return None
    return codes_against(olds, news)


@define(eq=False)
class There:
    """The version that a server has, or the image of it."""

    asking: Difference
    base: Version
    codes: bytes | None = None
    """How it is laid open."""

    async def members(self) -> list[Unit]:
        """Of the zip file that it is. Raises `InvalidField` if it is none."""
        return read_units((await self._ask("GET", {"members": "true"})).data)

    async def image(self) -> Signed:
        """The image's chunks. Raises `Corrupt`, and `InvalidField` if there is no such image."""
        answer = await self._ask("POST", {}, msgspec.json.encode({"codes": self.codes}))
        try:
            size = int(answer.headers["Vaultfs-Image-Size"])
            vouched = answer.headers["Vaultfs-Image-Digest"].removeprefix("blake3=")
            return Signed(read_units(answer.data), size, digest_from_hex(vouched))
        except (KeyError, ValueError) as error:
            raise Corrupt("a signature does not say of which image it is") from error

    async def pieces(self, ranges: Sequence[tuple[int, int]], cut: Chunking) -> list[list[Unit]]:
        """The pieces of ranges that are in order and do not overlap. Raises `Corrupt`."""
        wanted = {"ranges": ranges, "mean": cut.average, "codes": self.codes}
        answer = await self._ask("POST", {}, msgspec.json.encode(wanted))
        units = iter(read_pieces(answer.data))
        found: list[list[Unit]] = []
        for start, stop in ranges:
            mine: list[Unit] = []
            left = stop - start
            while left > 0:
                unit = next(units, (b"", 0))
                if not 0 < unit[1] <= left:
                    raise Corrupt("a signature is not of the ranges that were asked for")
                mine.append(unit)
                left -= unit[1]
            found.append(mine)
        return found

    async def _ask(self, method: str, query: dict[str, str], body: bytes | None = None) -> "Answer":
        vault, base = self.asking.vault, self.base
        url = vault.url("signatures", self.asking.path, {"version": str(base.number), **query})
        headers = {"If-Match": f'"v{base.id}"'}
        answer = await vault.calls.ask(method, url, headers=headers, data=body)
        self.asking.sent += len(answer.data)
        return answer

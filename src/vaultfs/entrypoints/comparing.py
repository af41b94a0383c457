"""Two versions compared: how much of the second the first does not have."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from anyio import to_thread

from vaultfs.domain.deltacodec import Parser, Part
from vaultfs.domain.deltas import Literal
from vaultfs.domain.errors import Unsupported
from vaultfs.domain.matching import Difference
from vaultfs.domain.nodes import Version

if TYPE_CHECKING:
    from vaultfs.domain.nodes import TreeId, User
    from vaultfs.domain.services.deltas import Deltas
    from vaultfs.entrypoints.client import RemoteVault


class Compared(NamedTuple):
    """What a delta from one version to another is made of; bytes."""

    size: int
    """Of the second."""
    new: int
    """Of it, those that the first does not have."""
    places: int
    """Stretches of such bytes."""
    delta: int
    """Of the delta; of the whole file, where a delta would not be smaller."""


def same(size: int) -> Compared:
    """Two versions of one content."""
    return Compared(size, 0, 0, 0)


def unlike(size: int) -> Compared:
    """Two versions between which there is no delta that is smaller than the second."""
    return Compared(size, size, int(size > 0), size)


async def measured(pieces: AsyncIterator[bytes], size: int) -> Compared:
    """The figures of a delta to a content of `size` bytes. Raises `Corrupt`, `Unsupported`."""
    parser = Parser()
    new = places = travelled = 0
    async for data in pieces:
        travelled += len(data)
        for sealed in parser.feed(data):
            assert parser.header is not None
            parts = await to_thread.run_sync(sealed.steps, parser.header)
            fresh = [part for part in parts if _is_new(part)]
            new += sum(part.length for part in fresh)
            places += len(fresh)
    parser.close()
    return Compared(size, new, places, travelled)


def _is_new(part: Part) -> bool:
    return isinstance(part, Literal | Difference)


async def compare_here(
    deltas: "Deltas", user: "User", tree: "TreeId", one: Version, other: Version
) -> Compared:
    """The figures for two versions of any files of a tree of a vault at hand."""
    if one.manifest_bytes == other.manifest_bytes:
        return same(other.size)
    async with deltas.between(user, tree, one, other) as pieces:
        return await measured(pieces, other.size)


async def compare_there(
    vault: "RemoteVault", path: str, one: Version, number: int | None
) -> Compared:
    """The figures for two versions of one file of a server."""
    url = vault.url("files", path, {} if number is None else {"version": str(number)})
    headers = {"A-IM": "vaultfs-delta", "If-None-Match": f'"v{one.id}"'}
    async with vault.calls.http.get(url, headers=headers, allow_redirects=False) as answer:
        if answer.status == 304:
            return same(one.size)
        from vaultfs.entrypoints.answers import version_of
        from vaultfs.entrypoints.calling import PIECE

        if answer.status >= 400:
            await vault.calls.refuse(answer)
        version = version_of(answer.headers)
        if answer.status == 226:
            return await measured(answer.content.iter_chunked(PIECE), version.size)
        why = answer.headers.get("Vaultfs-Delta", "")
        answer.close()
        if "not-smaller" in why:
            return unlike(version.size)
        unknown = one.verified is None or "unverified" in why
        raise Unsupported(
            "the server does not know the digest of one of them yet: wait for its upkeep"
            if unknown
            else f"the server has no way between them ({why})"
        )

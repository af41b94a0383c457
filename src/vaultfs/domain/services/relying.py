"""Finding chunks again that were moved, or collected, while a content was on its way."""

from collections.abc import Collection, Sequence

from attrs import evolve

from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import ChunksMissing
from vaultfs.domain.nodes import UserId, owner_of
from vaultfs.domain.operations import ClaimChunks, PutFile, Unit
from vaultfs.domain.services.reader import Reader
from vaultfs.domain.services.walk import PageWalk
from vaultfs.ports.catalog import Catalog


async def rely_anew(catalog: Catalog, reader: Reader, unit: Unit, put: PutFile) -> Unit:
    """`unit`, whose `put` was refused with `PacksGone`, relying on where its chunks are now.

    Looks every chunk up, of as many as there are. Raises `ChunksMissing` with those that are
    gone, and `DamagedContent` if one of them is a page of the manifest.
    """
    owner, manifest = owner_of(put.tree), put.content.manifest
    claims = [each for each in unit.operations if isinstance(each, ClaimChunks)]
    claimed = frozenset(digest for claim in claims for digest in claim.digests)
    relies: set[int] = set()
    walk = PageWalk(reader.page)
    async for digests in walk.digests(owner, manifest.level, manifest.entries):
        relies |= await packs_of(catalog, owner, digests, claimed)
    return evolve(unit, relies=tuple(relies))


async def packs_of(
    catalog: Catalog,
    owner: UserId,
    digests: Sequence[Digest],
    claimed: Collection[Digest] = (),
) -> set[int]:
    """Numbers of the packs that `owner` has `digests` in, but for those `claimed` from others.

    Raises `ChunksMissing` with those that are gone.
    """
    known = await catalog.known(owner, digests)
    missing = tuple(each for each in digests if each not in known.own and each not in claimed)
    if missing:
        text = f"{len(missing)} chunks of it were collected meanwhile: send it again"
        raise ChunksMissing(text, digests=missing)
    return set(known.own.values())

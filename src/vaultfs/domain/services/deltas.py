"""Deltas for those who have one version of a file and want another.

    versions, recorded edges -> plan -> steps -> blocks -> bytes, and an edge for next time

A delta is offered only if it is smaller than the file: its beginning is made before
anything is promised, all of it if it is short. Equal requests at the same time are one
piece of work, and short deltas are kept for a while. What was computed is recorded as an
edge; a crash before that costs computing it again.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

from attrs import define, field

from vaultfs.domain.chains import MAX_CHAIN_DEPTH, Edge, Plan, Reason, Way, choose
from vaultfs.domain.deltacodec import Header, write_end, write_header
from vaultfs.domain.deltas import Delta, Step, compose, decode, delta_of, encode
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import Corrupt, Unsupported, VaultError
from vaultfs.domain.matching import gaps_of
from vaultfs.domain.nodes import (
    Node,
    NodeId,
    TreeId,
    User,
    UserId,
    Version,
    VersionId,
    owner_of,
)
from vaultfs.domain.operations import RecordDelta
from vaultfs.domain.services.differ import Differ
from vaultfs.domain.services.digests import Digests
from vaultfs.domain.services.files import Files
from vaultfs.domain.services.rebuilding import chained
from vaultfs.domain.services.tasks import OneByOne

BEGINNING: Final = 4 << 20
"""Bytes of a delta that are made before it is said to be one."""
KEPT: Final = 16 << 20
"""Bytes of short deltas that are kept."""
WORTH_IT: Final = 0.9
"""A long delta whose beginning is this share of what it stands for is none."""
MOST_STEPS: Final = 4 << 20
"""Bytes of an edge's steps; one that has more is not recorded."""
FOUND_AT_ONCE: Final = 1 << 30
"""Bytes that are read to find a digest that a delta needs, which is less work than to send them;
the upkeep finds those of larger versions.
"""
_Key = tuple[VersionId, VersionId]


_UNKNOWN: Final = Plan(Way.FULL, Reason.UNKNOWN_BASE)


class Offer(NamedTuple):
    """A way to a version; `pieces` are the bytes of the delta, if it is one."""

    plan: Plan
    target: Version
    """With its digest, if that is known by now."""
    size: int | None
    """Bytes of the delta, if all of it is there."""
    pieces: AsyncGenerator[bytes, None] | None


class _Short(NamedTuple):
    """A delta that is there as a whole, or none."""

    plan: Plan
    target: Version
    data: bytes | None


@define(eq=False)
class Deltas:
    """One of these serves a process."""

    files: Files
    differ: Differ
    digests: Digests
    max_depth: int = MAX_CHAIN_DEPTH
    """Links of the longest chain that is composed."""
    _kept: OrderedDict[_Key, _Short] = field(factory=OrderedDict[_Key, _Short])
    _size: int = 0
    _under_way: OneByOne[_Key] = field(factory=OneByOne[_Key])

    @asynccontextmanager
    async def offer(
        self,
        caller: User,
        node: Node,
        base: VersionId,
        target: Version,
    ) -> AsyncGenerator[Offer, None]:
        """The way to `target`, a version of `node`, for a client that has the version `base`.

        Raises `DamagedContent` and failures of the vault, at first or while it is iterated.
        """
        making = _Making(self, caller, node.tree, node.id, base, target)
        async with aclosing(making.pieces()) as pieces:
            short = await self._short((base, target.id), making, pieces)
            if short is None:
                yield Offer(making.plan, making.target, None, making.rest(pieces))
            elif short.data is None:
                yield Offer(short.plan, short.target, None, None)
            else:
                yield Offer(short.plan, short.target, len(short.data), chained(short.data))

    async def _short(
        self, key: _Key, making: "_Making", pieces: AsyncGenerator[bytes, None]
    ) -> _Short | None:
        """The delta as a whole, or the news that there is none; None if it is long."""
        async with self._under_way.turn(key):
            short = self._kept.get(key)
            if short is not None:
                self._kept.move_to_end(key)
                return short
            short = await self._begin(making, pieces)
            if short is not None:
                self._keep(key, short)
            return short

    async def _begin(self, making: "_Making", pieces: AsyncGenerator[bytes, None]) -> _Short | None:
        size = making.target.size
        async for piece in pieces:
            making.held.append(piece)
            making.made += len(piece)
            worth_it = making.made < making.laid_out * WORTH_IT
            if making.made >= size or (making.made >= BEGINNING and not worth_it):
                return _Short(Plan(Way.FULL, Reason.NOT_SMALLER), making.target, None)
            if making.made >= BEGINNING:
                return None
        if making.plan.way is Way.FULL:
            return _Short(making.plan, making.target, None)
        await making.record()
        return _Short(making.plan, making.target, b"".join(making.held))

    def _keep(self, key: _Key, short: _Short) -> None:
        if short.data is None and short.plan.reason is not Reason.NOT_SMALLER:
            return  # another version may be recorded at any time
        self._kept[key] = short
        self._size += _weight(short)
        while self._size > KEPT:
            _, gone = self._kept.popitem(last=False)
            self._size -= _weight(gone)

    async def known(self, version: Version) -> Version:
        """`version` with its digest, unless it is damaged, or too large to be read for that now."""
        if version.verified is None and version.size <= FOUND_AT_ONCE:
            with suppress(Corrupt, Unsupported):
                return await self.digests.find(version)
        return version

    @asynccontextmanager
    async def between(
        self, caller: User, tree: TreeId, base: Version, target: Version
    ) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """The delta between two versions in `tree`, of whatever files, computed anew."""
        making = _Making(self, caller, tree, base.node, base.id, target, old=base)
        coarse = await self.differ.steps(making.owner, base.manifest, target.manifest)
        none = Digest(bytes(32))
        pieces = making.encoded(base.digest or none, target.digest or none, coarse)
        async with aclosing(pieces):
            yield pieces

    async def connect(self, caller: User, base: Version, target: Version) -> None:
        """Compute and record the edge from one version to another of the same file."""
        differ = self.differ
        coarse = await differ.steps(caller.id, base.manifest, target.manifest)
        steps: list[Step] = []
        async with aclosing(
            differ.blocks(caller.id, base.manifest, target.manifest, coarse)
        ) as blocks:
            async for _, more in blocks:
                steps += more
        await self.record(caller, caller.tree, base, target, steps)

    async def record(
        self, caller: User, tree: TreeId, base: Version, target: Version, steps: Sequence[Step]
    ) -> None:
        """Keep the exact steps between two versions, if the base is known to the last byte."""
        if base.verified is None:
            return
        delta = delta_of(base.size, steps)
        data = encode(delta)
        if len(data) > MOST_STEPS:
            return
        operation = RecordDelta(
            *(tree, target.node, base.id, target.id, base.verified, delta.literal, data)
        )
        await self.files.change(caller, operation)


def _weight(short: _Short) -> int:
    return 1024 + len(short.data or b"")


@define(eq=False)
class _Making:
    """One delta on its way."""

    deltas: Deltas
    caller: User
    tree: TreeId
    node: NodeId
    base: VersionId
    target: Version
    plan: Plan = _UNKNOWN
    held: list[bytes] = field(factory=list[bytes])
    made: int = 0
    laid_out: int = 0
    """Bytes of the target that what was made stands for."""
    _steps: list[Step] = field(factory=list[Step])
    old: Version | None = None

    @property
    def owner(self) -> UserId:
        """Whose chunks the versions are made of."""
        return owner_of(self.tree)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the delta; none if the file is to be sent, and `plan` says why."""
        target = self.target = await self.deltas.known(self.target)
        vouched = target.verified
        if vouched is None:
            self.plan = Plan(Way.FULL, Reason.UNVERIFIED)
            return
        self.old = await self._version(self.base)
        coarse = None
        if self.old is not None:
            coarse = await self.deltas.differ.steps(self.owner, self.old.manifest, target.manifest)
        choosing = partial(
            choose,
            base=self.base,
            target=target.id,
            size=target.size,
            direct=None if coarse is None else _cost(coarse),
            max_depth=self.deltas.max_depth,
        )
        self.plan = choosing(await self.deltas.files.catalog.deltas(self.node))
        composed = None
        if self.plan.way is Way.CHAIN:
            composed = await self._composed(self.plan.path)
            if composed is None:
                self.plan = choosing([])
        if composed is not None:
            digest, coarse = composed
        elif self.plan.way is Way.DIRECT and self.old is not None and self.old.verified is not None:
            digest = self.old.verified
        else:
            return
        assert coarse is not None
        async with aclosing(self.encoded(digest, vouched, coarse)) as encoded:
            if (images := await self._between_images(digest, vouched)) is None:
                async for piece in encoded:
                    yield piece
            else:
                yield min(b"".join([piece async for piece in encoded]), images, key=len)

    async def _between_images(self, digest: Digest, vouched: Digest) -> bytes | None:
        """The delta between images, where both versions are zip files at hand."""
        old, target = self.old, self.target
        if self.plan.way is not Way.DIRECT or old is None:
            return None
        header = Header.of(old.size, digest, target.size, vouched)
        manifests = (old.manifest, target.manifest)
        return await self.deltas.differ.between_images(self.owner, *manifests, header)

    async def encoded(
        self, digest: Digest, vouched: Digest, coarse: Delta
    ) -> AsyncGenerator[bytes, None]:
        """The delta with the steps of `coarse` or finer ones, between contents of these digests."""
        yield write_header(Header.of(coarse.base, digest, self.target.size, vouched))
        old = None if self.old is None else self.old.manifest
        count = 0
        blocks = self.deltas.differ.blocks(self.owner, old, self.target.manifest, coarse)
        async with aclosing(blocks):
            async for data, steps in blocks:
                self._steps += steps
                self.laid_out += sum(step.length for step in steps)
                count += 1
                yield data
        yield write_end(count)

    async def _version(self, number: VersionId) -> Version | None:
        """A version of the file whose content is known to the last byte, if it is there."""
        before: int | None = None
        catalog = self.deltas.files.catalog
        while found := await catalog.versions(self.node, before=before):
            for version in found:
                if version.id == number:
                    known = await self.deltas.known(version)
                    return None if known.verified is None else known
            before = found[-1].number
        return None

    async def _composed(self, path: Sequence[Edge]) -> tuple[Digest, Delta] | None:
        """The digest of the base of a path of edges, and the one delta that it is.

        None if one is not there any more, is damaged or of another release, or if they make too
        many steps.
        """
        with suppress(Corrupt, Unsupported):
            return await self._followed(path)
        return None

    async def _followed(self, path: Sequence[Edge]) -> tuple[Digest, Delta]:
        digest: Digest | None = None
        whole: Delta | None = None
        for edge in path:
            found = await self.deltas.files.catalog.delta(edge.base, edge.target)
            if found is None:
                raise Corrupt("a delta that is recorded is not there any more")
            first, steps = found
            digest = first if digest is None else digest
            whole = decode(steps) if whole is None else compose(whole, decode(steps))
        assert digest is not None
        assert whole is not None
        if whole.target != self.target.size:
            raise Corrupt("recorded deltas do not lead to a version")
        return digest, whole

    async def record(self) -> None:
        """Keep the exact steps of a delta that was computed, if that can be done now."""
        if self.plan.way is Way.DIRECT and self.old is not None:
            with suppress(VaultError):
                await self.deltas.record(self.caller, self.tree, self.old, self.target, self._steps)

    async def rest(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """What was made, and then the rest as it is made."""
        for piece in self.held:
            yield piece
        async for piece in pieces:
            yield piece
        await self.record()


def _cost(coarse: Delta) -> int:
    """Bytes of contents that the second round reads."""
    return sum(
        gap.stop - gap.start + gap.base_stop - gap.base_start
        for gap in gaps_of(coarse.steps, coarse.base)
    )

"""What the wrappers have in common."""

from collections.abc import AsyncGenerator, Sequence

from vaultfs.domain.digests import DIGEST_SIZE, Digest, digest_from_hex
from vaultfs.domain.errors import InvalidField
from vaultfs.ports.objects import (
    Capabilities,
    Deleted,
    ObjectInfo,
    ObjectStore,
    Payload,
    PutMode,
    Span,
)


class StoreAround(ObjectStore):
    """A store that passes every call on to `inner`; subclasses override what they change."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def head(self, key: str) -> ObjectInfo:
        return await self.inner.head(key)

    async def get(self, key: str, span: Span | None = None) -> bytes:
        return await self.inner.get(key, span)

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await self.inner.put(key, data, mode=mode)

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        return await self.inner.delete_many(keys)

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        return self.inner.list(prefix, start_after=start_after)

    async def probe(self) -> None:
        await self.inner.probe()

    async def room(self) -> int | None:
        return await self.inner.room()

    async def aclose(self) -> None:
        await self.inner.aclose()


def digest_in(key: str) -> Digest | None:
    """The digest that names the object of `key`; None for a key that holds none."""
    last = key.rpartition("/")[2]
    if len(last) != 2 * DIGEST_SIZE:
        return None
    try:
        return digest_from_hex(last)
    except InvalidField:
        return None

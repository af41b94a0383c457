"""Objects that are named by their digest, held to it."""

from typing import Final

from anyio.to_thread import run_sync

from vaultfs.adapters.wrappers.around import StoreAround, digest_in
from vaultfs.domain.digests import Buffer, Digest, digest_of_parts
from vaultfs.ports.objects import IntegrityError, Payload, PutMode, Span, parts_of, size_of

_INLINE: Final = 128 << 10
"""Bytes hashed faster than a thread is reached."""


class CheckedObjectStore(StoreAround):
    """`inner`, where an object whose key ends in a digest has that BLAKE3 digest.

    Checks what is put before any of it is sent, and what a `get` without a span returns.
    A span is not checked: it cannot be. Raises `IntegrityError`.
    """

    async def get(self, key: str, span: Span | None = None) -> bytes:
        data = await self.inner.get(key, span)
        if span is None:
            await self._check("get", key, data)
        return data

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await self._check("put", key, data)
        await self.inner.put(key, data, mode=mode)

    async def _check(self, operation: str, key: str, data: Payload) -> None:
        expected = digest_in(key)
        if expected is None:
            return
        actual = await _hashed(parts_of(data))
        if actual != expected:
            raise IntegrityError(
                f"expected BLAKE3 {expected.hex()}, actual {actual.hex()} of {size_of(data)} bytes",
                backend=self.name,
                operation=operation,
                key=key,
            )


async def _hashed(parts: tuple[Buffer, ...]) -> Digest:
    if size_of(parts) <= _INLINE:
        return digest_of_parts(parts)
    return await run_sync(digest_of_parts, parts)

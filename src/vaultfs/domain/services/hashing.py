"""Digests of bytes as they pass."""

from typing import Any, Final, Protocol

from anyio import to_thread

from vaultfs.domain.digests import Buffer

LIGHT: Final = 128 << 10
"""Bytes that are hashed in less time than a hop to a thread takes: some 0.1 ms."""


class Hasher(Protocol):
    """One of `hashlib`, or BLAKE3's."""

    def update(self, data: Any, /) -> object:
        """See more bytes."""
        ...

    def digest(self) -> bytes:
        """Of all bytes until now."""
        ...


async def see(hasher: Hasher, data: Buffer) -> None:
    """Let `hasher` see more bytes: in a thread if they are many."""
    if len(data) <= LIGHT:
        hasher.update(data)
    else:
        await to_thread.run_sync(hasher.update, data)

"""BLAKE3-256, the one digest by which chunks, packs and files are known."""

from collections.abc import Iterable
from typing import NewType

from blake3 import blake3

from vaultfs.domain.errors import InvalidField

Digest = NewType("Digest", bytes)
"""32 bytes of BLAKE3. A plain `bytes`, because millions of them pass through sets and rows."""

DIGEST_SIZE = 32

Buffer = bytes | bytearray | memoryview


def digest_of(data: Buffer) -> Digest:
    """The digest of `data`. Releases the GIL for all but tiny inputs."""
    return Digest(blake3(data).digest())


def digest_of_parts(parts: Iterable[Buffer]) -> Digest:
    """The digest of all `parts` as if they were one."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return Digest(hasher.digest())


def digest_from_hex(text: str) -> Digest:
    """Raises `InvalidField` for anything but 64 hexadecimal digits."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_SIZE or len(text) != 2 * DIGEST_SIZE:
        raise InvalidField(f"{text!r} is not a digest: 64 hexadecimal digits are")
    return Digest(raw)

"""Frames: many chunks and the list of files made of them, as one stream of bytes.

    head | chunk | chunk | ... | entry | entry | ... | end

A chunk's frame is that of a pack, byte for byte. An entry names a file by its manifest,
or a folder; its chunks stand anywhere in front of it, or are the sender's already. The
end counts both, so that a stream that was cut short is known for one. `docs/format.md`
gives every byte. Nothing here is verified but bounds: that chunks are what they say, and
are all there, is for `domain.services.intake` to see to.
"""

import struct
from typing import Final, NamedTuple

from attrs import frozen

from vaultfs.domain.chunks import MAX_CHUNK
from vaultfs.domain.digests import Buffer, Digest
from vaultfs.domain.errors import Corrupt, Unsupported
from vaultfs.domain.manifests import INLINE_ENTRIES, Manifest
from vaultfs.domain.names import MAX_PATH
from vaultfs.domain.nodes import (
    ABSENT,
    NO_PRECONDITIONS,
    UNKNOWN_ORIGIN,
    Origin,
    Preconditions,
    VersionId,
)
from vaultfs.domain.packs import HEADER_SIZE, PackEntry, StoredChunk, header_of, read_chunk

FORMAT: Final = 1
MEDIA_TYPE: Final = "application/vnd.vaultfs.frames"
MAX_FRAME: Final = HEADER_SIZE + MAX_CHUNK
"""Bytes of the largest frame, which is a chunk's."""

_HEAD = struct.Struct("<4sB3x")
_ENTRY = struct.Struct("<4sBBHHHqQ32s")
_NAMED = struct.Struct("<4sI32s")
_END = struct.Struct("<4sII")
_HEAD_MAGIC, _CHUNK_MAGIC, _NAMED_MAGIC = b"VFUP", b"VFCH", b"VFCN"
_ENTRY_MAGIC, _END_MAGIC = b"VFFE", b"VFUE"
_FILE, _FOLDER = 0, 1
_MTIME, _MODE, _DIGEST, _IF_ABSENT, _IF_VERSION = 1, 2, 4, 8, 16
_FLAGS: Final = _MTIME | _MODE | _DIGEST | _IF_ABSENT | _IF_VERSION
_MAX_MANIFEST: Final = 4 + 40 * INLINE_ENTRIES
_NO_DIGEST: Final = bytes(32)

HEAD: Final = _HEAD.pack(_HEAD_MAGIC, FORMAT)
HEAD_SIZE: Final = _HEAD.size


@frozen
class Entry:
    """A file to be committed, or a folder to be made, as `path` of a tree."""

    path: str
    """As it was sent: `/a/b`; it may be none that a vault can hold."""
    manifest: Manifest | None
    """None for a folder."""
    origin: Origin = UNKNOWN_ORIGIN
    digest: Digest | None = None
    """That of the whole file, if the sender claims to know it."""
    preconditions: Preconditions = NO_PRECONDITIONS


class Named(NamedTuple):
    """A chunk that is not sent, since it is the sender's already, and bytes of its content."""

    digest: Digest
    length: int


class End(NamedTuple):
    """The end of a stream: how many frames of each kind came before it."""

    chunks: int
    """Those that are only named are counted with them."""
    entries: int


Frame = StoredChunk | Named | Entry | End


def write_chunk(chunk: StoredChunk) -> tuple[bytes, Buffer]:
    """The frame of a chunk, in two parts."""
    entry = PackEntry(chunk.digest, 0, len(chunk.stored), chunk.length, chunk.codec, chunk.kind)
    return header_of(entry), chunk.stored


def write_named(chunk: Named) -> bytes:
    """The frame of a chunk that is not sent."""
    return _NAMED.pack(_NAMED_MAGIC, chunk.length, chunk.digest)


def write_entry(entry: Entry) -> bytes:
    """The frame of an entry. Its preconditions name a version, or that nothing is there."""
    path = entry.path.encode()
    manifest = b"" if entry.manifest is None else entry.manifest.encode()
    origin, wanted = entry.origin, entry.preconditions
    flags = (
        (_MTIME if origin.mtime_us is not None else 0)
        | (_MODE if origin.mode is not None else 0)
        | (_DIGEST if entry.digest is not None else 0)
        | (_IF_ABSENT if wanted.if_absent else 0)
        | (_IF_VERSION if wanted.if_version is not None else 0)
    )
    fixed = _ENTRY.pack(
        _ENTRY_MAGIC,
        _FOLDER if entry.manifest is None else _FILE,
        flags,
        origin.mode or 0,
        len(path),
        len(manifest),
        origin.mtime_us or 0,
        wanted.if_version or 0,
        entry.digest or _NO_DIGEST,
    )
    return fixed + path + manifest


def write_end(end: End) -> bytes:
    """The frame of the end."""
    return _END.pack(_END_MAGIC, end.chunks, end.entries)


def check_head(data: Buffer) -> None:
    """Raises `Corrupt` or `Unsupported` unless a stream begins with `data`."""
    if len(data) != HEAD_SIZE or bytes(data[:4]) != _HEAD_MAGIC:
        raise Corrupt("a stream of frames does not begin as one does")
    if data[4] != FORMAT:
        raise Unsupported(f"frames of format {data[4]} are of a newer release: upgrade vaultfs")
    if bytes(data) != HEAD:
        raise Corrupt("a stream of frames does not begin as one does")


def read_frame(data: memoryview, at: int) -> tuple[Frame, int] | None:
    """The frame at `at`, and where what follows it begins; None if its end is not there yet.

    Chunks are views of `data`. Raises `Corrupt`, `Unsupported`.
    """
    if len(data) - at < 4:
        return None
    match bytes(data[at : at + 4]):
        case b"VFCH":
            return read_chunk(data, at)
        case b"VFCN":
            return _read_named(data, at)
        case b"VFFE":
            return _read_entry(data, at)
        case b"VFUE":
            if len(data) - at < _END.size:
                return None
            _, chunks, entries = _END.unpack_from(data, at)
            return End(chunks, entries), at + _END.size
        case magic:
            raise Corrupt(f"no frame begins with {magic.hex()}")


def _read_named(data: memoryview, at: int) -> tuple[Named, int] | None:
    if len(data) - at < _NAMED.size:
        return None
    _, length, digest = _NAMED.unpack_from(data, at)
    if not 0 < length <= MAX_CHUNK:
        raise Corrupt(f"no chunk has {length} bytes")
    return Named(Digest(digest), length), at + _NAMED.size


def _read_entry(data: memoryview, at: int) -> tuple[Entry, int] | None:
    if len(data) - at < _ENTRY.size:
        return None
    _, kind, flags, mode, path_size, manifest_size, mtime, version, digest = _ENTRY.unpack_from(
        data, at
    )
    if kind not in {_FILE, _FOLDER} or flags & ~_FLAGS:
        raise Unsupported("an entry of a kind that this release does not know: upgrade vaultfs")
    if path_size > MAX_PATH or manifest_size > _MAX_MANIFEST or mode > 0o7777:
        raise Corrupt("an entry claims more than any has")
    if kind == _FOLDER and (manifest_size or flags):
        raise Corrupt("a folder has no content and no conditions")
    start = at + _ENTRY.size
    middle, stop = start + path_size, start + path_size + manifest_size
    if len(data) < stop:
        return None
    try:
        path = bytes(data[start:middle]).decode()
    except UnicodeDecodeError:
        raise Corrupt("the path of an entry is no UTF-8") from None
    entry = Entry(
        path,
        Manifest.decode(bytes(data[middle:stop])) if kind == _FILE else None,
        Origin(mtime if flags & _MTIME else None, mode if flags & _MODE else None),
        Digest(digest) if flags & _DIGEST else None,
        _wanted(flags, version),
    )
    return entry, stop


def _wanted(flags: int, version: int) -> Preconditions:
    if not flags & _IF_VERSION:
        return ABSENT if flags & _IF_ABSENT else NO_PRECONDITIONS
    return Preconditions(VersionId(version), if_absent=bool(flags & _IF_ABSENT))

"""Frames: what is written is read, and what is none is refused."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.chunks import MAX_CHUNK
from vaultfs.domain.digests import Buffer, Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported, VaultError
from vaultfs.domain.frames import (
    HEAD,
    HEAD_SIZE,
    MAX_FRAME,
    End,
    Entry,
    Frame,
    Named,
    check_head,
    read_frame,
    write_chunk,
    write_end,
    write_entry,
    write_named,
)
from vaultfs.domain.manifests import Manifest
from vaultfs.domain.nodes import Origin, Preconditions, VersionId
from vaultfs.domain.packs import StoredChunk, encode_chunk, raw_chunk

DOCS = Path(__file__).parents[2] / "docs"
Vector = dict[str, Any]
VECTORS = cast("list[Vector]", json.loads((DOCS / "vectors.json").read_text())["frames"])

digests = st.binary(min_size=32, max_size=32).map(Digest)
origins = st.builds(
    Origin, st.none() | st.integers(-(1 << 63), (1 << 63) - 1), st.none() | st.integers(0, 0o7777)
)
conditions = st.builds(
    Preconditions,
    st.none() | st.integers(0, (1 << 64) - 1).map(VersionId),
    st.none(),
    st.booleans(),
)
manifests = st.builds(
    Manifest,
    st.just(0),
    st.lists(st.tuples(digests, st.integers(0, 1 << 40)), max_size=16).map(tuple),
)
paths = st.text(max_size=100).filter(lambda text: text.isprintable())
files = st.builds(Entry, paths, manifests, origins, st.none() | digests, conditions)
folders = st.builds(Entry, paths, st.none())
chunks = st.binary(min_size=1, max_size=3000).map(lambda data: encode_chunk(digest_of(data), data))
names = st.builds(Named, digests, st.integers(1, MAX_CHUNK))
frames = st.one_of(
    files, folders, chunks, names, st.builds(End, *[st.integers(0, (1 << 32) - 1)] * 2)
)


def written(frame: Frame) -> bytes:
    match frame:
        case StoredChunk():
            return b"".join(write_chunk(frame))
        case Named():
            return write_named(frame)
        case Entry():
            return write_entry(frame)
        case End():
            return write_end(frame)


def plain(frame: Frame) -> Frame:
    """Its bytes as bytes, to be compared."""
    return frame._replace(stored=bytes(frame.stored)) if isinstance(frame, StoredChunk) else frame


@given(st.lists(frames, max_size=5), st.binary(max_size=5))
def test_what_is_written_is_read(wanted: list[Frame], before: bytes) -> None:
    data = memoryview(before + b"".join(map(written, wanted)))
    at, found = len(before), list[Frame]()
    while (got := read_frame(data, at)) is not None:
        found.append(plain(got[0]))
        at = got[1]
    assert found == [plain(frame) for frame in wanted]
    assert at == len(data)


@given(frames, st.data())
def test_a_frame_that_is_not_all_there_is_waited_for(frame: Frame, data: st.DataObject) -> None:
    whole = written(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read_frame(memoryview(whole[:cut]), 0) is None


@settings(max_examples=500)
@given(frames, st.data())
def test_a_frame_with_other_bytes_is_another_one_or_refused(
    frame: Frame, data: st.DataObject
) -> None:
    whole = bytearray(written(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 80)))] = data.draw(st.integers(0, 255))
    try:
        found = read_frame(memoryview(whole), 0)
    except (Corrupt, Unsupported):
        return
    if found is None:
        return  # it claims to be longer, but never than this:
    assert found[1] <= MAX_FRAME
    assert written(found[0]) == bytes(whole[: found[1]]) or isinstance(
        found[0], Entry | StoredChunk
    )


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    data: Buffer = memoryview(noise)
    with pytest.raises(VaultError):
        check_head(data)
    if len(noise) >= 4 and noise[:3] != b"VFU" and noise[:2] != b"VF":
        with pytest.raises(Corrupt):
            read_frame(memoryview(noise), 0)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_the_vectors_are_read_and_built(vector: Vector) -> None:
    data = bytes.fromhex(vector["bytes"])
    if "error" in vector:
        with pytest.raises({"Corrupt": Corrupt, "Unsupported": Unsupported}[vector["error"]]):
            check_head(data[:HEAD_SIZE])
            at = HEAD_SIZE
            while (refused := read_frame(memoryview(data), at)) is not None:
                at = refused[1]
        return
    check_head(data[:HEAD_SIZE])
    built = [HEAD]
    at = HEAD_SIZE
    for told in vector["frames"]:
        found = read_frame(memoryview(data), at)
        assert found is not None
        frame, at = found
        assert plain(frame) == of_vector(told)
        built.append(written(of_vector(told)))
    assert at == len(data)
    assert b"".join(built) == data


def of_vector(told: Vector) -> Frame:
    match told["frame"]:
        case "chunk":
            content = bytes.fromhex(told["content"])
            return raw_chunk(digest_of(content), content)
        case "file":
            manifest = Manifest.decode(bytes.fromhex(told["manifest"]))
            claimed = told["digest"]
            return Entry(
                told["path"],
                manifest,
                Origin(told["mtime_us"], told["mode"]),
                None if claimed is None else Digest(bytes.fromhex(claimed)),
                Preconditions(told["if_version"], if_absent=told["if_absent"]),
            )
        case "named":
            return Named(Digest(bytes.fromhex(told["digest"])), told["length"])
        case "folder":
            return Entry(told["path"], None)
        case _:
            return End(told["chunks"], told["entries"])

"""The code against the vectors of docs/format.md, in both directions."""

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from blake3 import blake3

from vaultfs.domain.chunks import Chunker, chunking
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Corrupt, Unsupported, VaultError
from vaultfs.domain.manifests import Entry, Manifest, ManifestBuilder, parse_page
from vaultfs.domain.packs import (
    HEAD_SIZE,
    HEADER_SIZE,
    Codec,
    Kind,
    PackBuilder,
    PackEntry,
    SealedPack,
    StoredChunk,
    check_head,
    decode_chunk,
    encode_chunk,
    parse_pack,
    scan_pack,
)

Vector = dict[str, Any]

DOCS = Path(__file__).parents[2] / "docs"
VECTORS = cast("dict[str, list[Vector]]", json.loads((DOCS / "vectors.json").read_text()))
TREE = cast("Vector", VECTORS["tree"])
ERRORS: dict[str, type[VaultError]] = {"Corrupt": Corrupt, "Unsupported": Unsupported}


def name(vector: Vector) -> str:
    return str(vector["name"])


def bytes_of(vector: Vector) -> bytes:
    return bytes.fromhex(vector["bytes"])


def digest(text: str) -> Digest:
    return Digest(bytes.fromhex(text))


def stored_chunk(chunk: Vector) -> StoredChunk:
    codec, kind = Codec(chunk["codec"]), Kind(chunk["kind"])
    stored = bytes.fromhex(chunk["stored"])
    return StoredChunk(digest(chunk["digest"]), chunk["length"], codec, kind, stored)


def pack_entry(chunk: Vector) -> PackEntry:
    found = stored_chunk(chunk)
    return PackEntry(
        *(found.digest, chunk["offset"], len(found.stored)),
        *(found.length, found.codec, found.kind),
    )


def entries_of(vector: Vector) -> tuple[Entry, ...]:
    return tuple((digest(text), size) for text, size in vector["entries"])


# Packs


@pytest.mark.parametrize("vector", VECTORS["packs"], ids=name)
def test_a_pack_is_read(vector: Vector) -> None:
    data, chunks = bytes_of(vector), cast("list[Vector]", vector["chunks"])
    expected = tuple(map(pack_entry, chunks))
    check_head(data[:HEAD_SIZE])
    assert digest_of(data) == digest(vector["key"])
    assert parse_pack(data) == expected
    assert tuple(scan_pack(data)) == expected
    for entry, chunk in zip(expected, chunks, strict=True):
        part = data[entry.offset : entry.offset + HEADER_SIZE + entry.size]
        assert bytes(decode_chunk(part, entry.digest)).hex() == chunk["content"]


@pytest.mark.parametrize("vector", VECTORS["packs"], ids=name)
def test_a_pack_is_built(vector: Vector) -> None:
    builder = PackBuilder()
    for chunk in cast("list[Vector]", vector["chunks"]):
        builder.add(stored_chunk(chunk))
    pack = builder.seal()
    data = b"".join(pack.parts)
    assert data.hex() == vector["bytes"]
    expected = SealedPack(
        digest(vector["key"]), len(data), pack.parts, vector["crc32c"], pack.entries
    )
    assert pack == expected


@pytest.mark.parametrize("vector", VECTORS["packs"], ids=name)
def test_chunks_are_encoded_as_they_may_be(vector: Vector) -> None:
    # Another release of zstd may give another frame, so only what it leads to is compared.
    for chunk in cast("list[Vector]", vector["chunks"]):
        content = bytes.fromhex(chunk["content"])
        found = encode_chunk(digest_of(content), content, Kind(chunk["kind"]))
        assert (found.digest.hex(), found.length) == (chunk["digest"], chunk["length"])
        assert found.codec == chunk["codec"]


def test_the_example_in_the_text_is_a_vector() -> None:
    text = (DOCS / "format.md").read_text()
    [dump] = re.findall(r"```\n(   0  .*?)```", text, re.DOTALL)
    lines = re.findall(r"^[ 0-9]{4} ((?: [0-9a-f]{2})+)(?:  |$)", dump, re.MULTILINE)
    [vector] = [each for each in VECTORS["packs"] if name(each) == "one raw chunk"]
    assert bytes.fromhex("".join(lines)) == bytes_of(vector)


# Manifests


@pytest.mark.parametrize("vector", VECTORS["manifests"], ids=name)
def test_a_manifest_is_read_and_built(vector: Vector) -> None:
    manifest = Manifest(vector["level"], entries_of(vector), vector["chunker"])
    assert Manifest.decode(bytes_of(vector)) == manifest
    assert manifest.encode() == bytes_of(vector)


@pytest.mark.parametrize("vector", VECTORS["pages"], ids=name)
def test_a_page_is_read_and_built(vector: Vector) -> None:
    data, entries = bytes_of(vector), entries_of(vector)
    assert parse_page(data, level=vector["level"], size=vector["size"]) == entries
    builder = ManifestBuilder(vector["chunker"])
    pages = [page for entry in entries for page in builder.add(entry)]
    manifest, rest = builder.finish()
    [page] = [*pages, *rest]
    assert page.data == data
    assert page.size == vector["size"]
    assert page.digest == digest_of(data) == digest(vector["digest"])
    assert manifest == Manifest(vector["level"], ((page.digest, page.size),), vector["chunker"])


def test_pages_are_cut_where_the_vector_says() -> None:
    builder = ManifestBuilder()
    pages = [
        page
        for number in range(TREE["count"])
        for page in builder.add((digest_of(b"entry %d" % number), number + 1))
    ]
    manifest, rest = builder.finish()
    found = [
        [page.data[5], int.from_bytes(page.data[8:12], "little"), page.digest.hex()]
        for page in [*pages, *rest]
    ]
    assert found == TREE["pages"]
    assert manifest.encode().hex() == TREE["manifest"]


# Chunkers


@pytest.mark.parametrize("vector", VECTORS["cuts"], ids=lambda vector: str(vector["size"]))
def test_a_stream_is_cut_where_the_vector_says(vector: Vector) -> None:
    data = blake3(vector["seed"].encode()).digest(vector["size"])
    chunker = Chunker(chunking(vector["chunker"]))
    assert chunker.cut(data, last=True) == vector["lengths"]


# What has to be refused


def read(vector: Vector) -> None:
    """Do with the bytes of a vector what a reader does with bytes of its kind."""
    data = bytes_of(vector)
    match vector["kind"]:
        case "head":
            check_head(data)
        case "pack":
            parse_pack(data)
        case "chunk":
            decode_chunk(data, digest(vector["digest"]))
        case "manifest":
            Manifest.decode(data)
        case "page":
            parse_page(data, level=vector["level"], size=vector["size"])
        case kind:
            raise AssertionError(kind)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=name)
def test_a_reader_refuses(vector: Vector) -> None:
    with pytest.raises(ERRORS[vector["error"]]) as caught:
        read(vector)
    assert caught.type is ERRORS[vector["error"]]

"""Claim: a delta between two versions in the vault is smaller than xdelta3's and, in the mean,
than that of zstd -19 --patch-from, and is made and applied faster, in bounded memory.

Pairs: two releases of Django as wheel and as tar, and of numpy unpacked as tar; an SQLite
database with scattered updates; a log with an append; an image with 100 edits; texts. Bytes
are those of the delta; seconds those of making it, from both versions, and of applying it to
the old one. Ours runs in a process of its own over a vault that holds both versions; what is
measured is the delta alone, not the start of the process, and its peak memory is that of all.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.corpora import CACHE, add_cache_option
from bench.harness import fresh_folder

OURS: Final = "vaultfs"
MIB: Final = 1 << 20
WHEELS: Final = {
    "django": ("Django==5.1.1", "Django==5.1.2"),
    "numpy": ("numpy==2.1.1", "numpy==2.1.2"),
}


def wheel(cache: Path, requirement: str) -> Path:
    """A wheel from the registry, kept in the cache."""
    name, _, version = requirement.partition("==")
    folder = cache / "delta-wheels"
    folder.mkdir(parents=True, exist_ok=True)
    found = [each for each in folder.glob("*.whl") if each.name.startswith(f"{name}-{version}-")]
    if not found:
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        subprocess.run((*command, "--dest", folder, requirement), check=True)
        return wheel(cache, requirement)
    return found[0]


def tarred(archive: Path, tar: Path) -> None:
    """A wheel's files as a tar, with the times that they have in it."""
    with zipfile.ZipFile(archive) as members, tarfile.open(tar, "w") as out:
        for each in sorted(members.infolist(), key=lambda info: info.filename):
            entry = tarfile.TarInfo(each.filename)
            entry.size = each.file_size
            entry.mtime = int(time.mktime((*each.date_time, 0, 0, 0)))
            with members.open(each) as content:
                out.addfile(entry, content)


def database(old: Path, new: Path) -> None:
    """Some 190 MB of rows; then 500 scattered updates and 5,000 inserts."""
    draw = random.Random(11)
    words = ["".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(5000)]

    def row(number: int | None) -> tuple[int | None, str, bytes]:
        return number, " ".join(draw.choices(words, k=8)), draw.randbytes(60)

    with sqlite3.connect(old) as rows:
        rows.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, data BLOB)")
        rows.executemany("INSERT INTO t VALUES (?, ?, ?)", map(row, range(1_300_000)))
    shutil.copy(old, new)
    with sqlite3.connect(new) as rows:
        for _ in range(500):
            change = (" ".join(draw.choices(words, k=8)), draw.randrange(1_300_000))
            rows.execute("UPDATE t SET name = ? WHERE id = ?", change)
        rows.executemany("INSERT INTO t VALUES (?, ?, ?)", map(row, [None] * 5000))


def journal(old: Path, new: Path) -> None:
    """256 MiB of lines, and a MiB more."""
    draw = random.Random(12)
    words = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(3000)]
    size = 0
    with old.open("w") as lines:
        while size < 256 * MIB:
            block = "".join(_line(draw, words) for _ in range(10_000))
            size += lines.write(block)
    shutil.copy(old, new)
    with new.open("a") as lines:
        lines.write("".join(_line(draw, words) for _ in range(18_000)))


def _line(draw: random.Random, words: list[str]) -> str:
    host, took = draw.randrange(9), draw.randrange(2000)
    return f"2026-01-07T12:00:{took % 60:02} host{host} {draw.choice(words)}: took {took} ms\n"


def image(old: Path, new: Path) -> None:
    """A GiB that no compressor shortens, and 100 edits of 1 B to 64 KB."""
    from bench.corpora import incompressible

    incompressible(old, 1 << 30)
    shutil.copy(old, new)
    draw = random.Random(13)
    with new.open("r+b") as file:
        for _ in range(100):
            length = draw.choice((1, 16, 500, 4000, 64_000))
            file.seek(draw.randrange((1 << 30) - length))
            file.write(draw.randbytes(length))


def text(size: int) -> Callable[[Path, Path], None]:
    def make(old: Path, new: Path) -> None:
        draw = random.Random(size)
        words = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(900)]
        content = " ".join(draw.choices(words, k=size // 6))[:size].encode()
        old.write_bytes(content)
        new.write_bytes(content[: size // 2] + b"a few more words " + content[size // 2 :])

    return make


def document(old: Path, new: Path) -> None:
    """A text document as office programs keep it: XML parts and pictures, packed by zlib."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(900)]
    text = "".join(f"<w:p>{' '.join(draw.choices(words, k=60))}</w:p>" for _ in range(3000))
    pictures = [draw.randbytes(150_000) for _ in range(7)]
    for file, content in ((old, text), (new, text.replace("<w:p>", "<w:p>A sentence more. ", 1))):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
            for name, part in (
                ("word/document.xml", content.encode()),
                *((f"word/media/{each}.png", data) for each, data in enumerate(pictures)),
            ):
                info = zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))
                info.compress_type = zipfile.ZIP_DEFLATED
                out.writestr(info, part)


def releases(name: str, *, as_tar: bool) -> Callable[[Path, Path], None]:
    def make(old: Path, new: Path) -> None:
        for requirement, file in zip(WHEELS[name], (old, new), strict=True):
            archive = wheel(CACHE, requirement)
            if as_tar:
                tarred(archive, file)
            else:
                shutil.copy(archive, file)

    return make


PAIRS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "text 1 KB": text(1000),
    "text 10 KB": text(10_000),
    "text 100 KB": text(100_000),
    "docx": document,
    "django wheel": releases("django", as_tar=False),
    "django tar": releases("django", as_tar=True),
    "numpy tar": releases("numpy", as_tar=True),
    "sqlite": database,
    "log": journal,
    "image 1 GiB": image,
}


def timed(*command: object) -> float:
    begun = time.perf_counter()
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
    return time.perf_counter() - begun


def peers(old: Path, new: Path, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """What others make of a pair."""
    delta, back = folder / "delta", folder / "back"
    seconds = timed("xdelta3", "-9", "-f", "-e", "-s", old, new, delta)
    applied = timed("xdelta3", "-f", "-d", "-s", old, delta, back)
    yield "xdelta3 -9", {"bytes": delta.stat().st_size, "make": seconds, "apply": applied}
    size = new.stat().st_size
    for level in (3, 19):
        if level == 19 and size > 128 * MIB:
            continue
        flags = ("-q", "-f", f"-{level}", "--long=30")
        seconds = timed("zstd", *flags, "--patch-from", old, new, "-o", delta)
        expand = ("-q", "-f", "-d", "--memory=2048MB", "--long=30")
        applied = timed("zstd", *expand, "--patch-from", old, delta, "-o", back)
        name = f"zstd -{level}"
        yield name, {"bytes": delta.stat().st_size, "make": seconds, "apply": applied}


def ours(old: Path, new: Path, folder: Path) -> dict[str, float]:
    command = (sys.executable, "-m", "bench.delta", "--child", folder / "vault", old, new)
    done = subprocess.run([str(each) for each in command], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def child(vault: Path, old: Path, new: Path) -> None:
    """Make and apply one delta, and tell the figures."""
    import anyio

    async def run() -> dict[str, Any]:
        import vaultfs
        from vaultfs.adapters.replacing import local_base, replacing
        from vaultfs.domain.nodes import Origin
        from vaultfs.domain.services.rebuilding import Rebuilding

        async with vaultfs.open(vault, create=True) as client:
            opened = client.vault
            for content in (b"one" * 9999, b"two" * 9999):  # what is imported is imported now
                await client.put("/before", content)
            node, after = await opened.files.version(client.user, client.at("/before"))
            _, first = await opened.files.version(client.user, client.at("/before"), 1)
            async with opened.deltas.offer(client.user, node, first.id, after) as offer:
                assert offer.pieces is None or [piece async for piece in offer.pieces]
            for file in (old, new):
                await client.put("/f", file)
            node, target = await opened.files.version(client.user, client.at("/f"))
            _, base = await opened.files.version(client.user, client.at("/f"), 1)
            made: list[bytes] = []
            begun = time.perf_counter()
            async with opened.deltas.offer(client.user, node, base.id, target) as offer:
                assert offer.pieces is not None, offer.plan
                made += [piece async for piece in offer.pieces]
            making = time.perf_counter() - begun

            async def pieces() -> AsyncIterator[bytes]:
                for piece in made:
                    yield piece

            begun = time.perf_counter()
            back = vault.parent / "back"
            async with local_base(old) as local, replacing(back, None, Origin()) as out:
                async for piece in Rebuilding(local, images=True).run(pieces()):
                    await out.write(piece)
            applying = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        size = sum(map(len, made))
        return {"bytes": size, "make": making, "apply": applying, "peak": peak}

    found = anyio.run(run)
    subprocess.run(("cmp", new, vault.parent / "back"), check=True)
    print(json.dumps(found))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=3, help="of each (3)")
    options.add_argument(
        "--work", type=Path, default=Path("/tmp"), help="folder for temporary files (/tmp)"
    )
    options.add_argument("--pairs", nargs="*", default=list(PAIRS), help="which of them")
    options.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    add_cache_option(options)
    chosen = options.parse_args()
    if chosen.child:
        child(*chosen.child)
        return
    shares: dict[str, list[float]] = {}
    head = ("bytes", "make s", "apply s", "peak MB")
    print(f"{'pair':14} {'contestant':12} {head[0]:>12}", *(f"{each:>8}" for each in head[1:]))
    for name in chosen.pairs:
        with fresh_folder(chosen.work) as folder:
            old, new = folder / "old", folder / "new"
            PAIRS[name](old, new)
            rows = _measured(old, new, folder, chosen.runs)
        for contestant, row in rows.items():
            peak = f"{row['peak'] / 1e6:8.0f}" if "peak" in row else ""
            figures = f"{row['bytes']:12,.0f} {row['make']:8.2f} {row['apply']:8.2f} {peak}"
            print(f"{name:14} {contestant:12} {figures}", flush=True)
            if contestant != OURS:
                shares.setdefault(contestant, []).append(rows[OURS]["bytes"] / row["bytes"])
    for contestant, found in shares.items():
        mean = exp(sum(map(log, found)) / len(found))
        print(f"bytes against {contestant}: {mean:.2f} x in the mean, {max(found):.2f} x at most")


def _measured(old: Path, new: Path, folder: Path, runs: int) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(runs):
        place = folder / str(number)
        place.mkdir()
        rows.setdefault(OURS, []).append(ours(old, new, place))
        for contestant, row in peers(old, new, place):
            rows.setdefault(contestant, []).append(row)
        shutil.rmtree(place)
        os.sync()
    return {
        name: {key: median(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }


if __name__ == "__main__":
    main()

"""The inputs of the benchmarks, the same bytes every time.

- `incompressible`: a file of pseudo-random bytes (BLAKE3's extendable output, some 800 MB/s);
- `source_tar`: a tar of program text: the running Python's standard library, then pinned wheels
  from PyPI, file by file until it has its size;
- `small_files`: a tree of small files that are pieces of that tar, no two the same piece.

`python -m bench.corpora` builds the tar in the cache and says what is in it. The tar depends on
the version of the running Python, by its standard library.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from bench.report import size_of
from blake3 import blake3

BLOCK = 4 << 20

SOURCE_SIZE = 690_000_000

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vaultfs-bench"

WHEELS = (
    "Django==5.0.6",
    "sympy==1.12",
    "scipy==1.13.0",
    "pandas==2.2.2",
    "scikit-learn==1.4.2",
    "matplotlib==3.9.0",
    "numpy==1.26.4",
    "statsmodels==0.14.2",
    "astropy==6.1.0",
    "networkx==3.3",
    "SQLAlchemy==2.0.30",
    "Twisted==24.3.0",
    "mypy==1.10.0",
    "transformers==4.41.0",
    "diffusers==0.27.2",
    "nltk==3.8.1",
    "pylint==3.2.0",
    "setuptools==69.5.1",
    "Sphinx==7.3.7",
    "notebook==7.2.0",
    "apache-airflow==2.9.1",
    "homeassistant==2024.3.3",
    "ansible==9.5.1",
    "kubernetes==29.0.0",
    "plotly==5.22.0",
    "Faker==25.2.0",
    "google-api-python-client==2.129.0",
    "oci==2.126.0",
)
"""In the order they go into the tar: written by hand first, generated code last."""

TEXT = {
    *(".bat", ".c", ".cfg", ".conf", ".css", ".csv", ".graphql", ".h", ".htm", ".html", ".in"),
    *(".ini", ".j2", ".json", ".md", ".po", ".pot", ".proto", ".ps1", ".psm1", ".py", ".pyi"),
    *(".rst", ".sh", ".sql", ".toml", ".ts", ".tsx", ".txt", ".xml", ".xsl", ".yaml", ".yml"),
}
"""What counts as text; bundled and minified JavaScript does not."""


def incompressible(file: Path, size: int, seed: str = "vaultfs") -> str:
    """Write `size` bytes that no compressor shortens; returns their BLAKE3 in hex.

    Other seeds give other bytes; of one seed, a short file is the beginning of a long one.
    """
    source, digest = blake3(seed.encode()), blake3()
    with file.open("wb", buffering=0) as stream:
        for offset in range(0, size, BLOCK):
            block = source.digest(length=min(BLOCK, size - offset), seek=offset)
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()


def source_tar(cache: Path, size: int = SOURCE_SIZE) -> Path:
    """A tar of about `size` bytes of program text, built in `cache` if it is not there.

    Downloads only the wheels it gets to. What it holds is in a JSON file beside it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    recipe = " ".join((*WHEELS, *sorted(TEXT), platform.python_version()))
    tar = cache / f"source-{size}-{blake3(recipe.encode()).hexdigest()[:12]}.tar"
    if tar.exists():
        return tar
    partial = tar.with_suffix(f".{os.getpid()}.partial")
    try:
        held = _write_tar(partial, size, cache / "wheels")
        tar.with_suffix(".json").write_text(json.dumps(held, indent=1) + "\n")
        partial.rename(tar)
    finally:
        partial.unlink(missing_ok=True)
    return tar


def _write_tar(file: Path, size: int, wheels: Path) -> dict[str, dict[str, int]]:
    """Bytes of text by package and by suffix."""
    packages: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    # Not by `tarfile.TarFile`, which keeps every member it has written in memory.
    with file.open("wb") as tar:
        for package, name, content in _texts(wheels):
            member = tarfile.TarInfo(f"{package}/{name}")
            member.size = len(content)
            member.mtime = 1_700_000_000
            tar.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
            tar.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
            packages[package] += len(content)
            suffixes[PurePosixPath(name).suffix] += len(content)
            if tar.tell() >= size:
                break
        else:
            print(f"all texts together make {tar.tell()} bytes, not {size}", file=sys.stderr)
        tar.write(bytes(2 * tarfile.BLOCKSIZE))
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
    return {
        "packages": dict(packages),
        "suffixes": dict(suffixes.most_common()),
        "total": {"text": packages.total(), "tar": file.stat().st_size},
    }


def _texts(wheels: Path) -> Iterator[tuple[str, str, bytes]]:
    """Package, path in it and bytes of every text, in the tar's order."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"__pycache__", "site-packages", "dist-packages"}
    for file in sorted(library.rglob("*")):
        name = file.relative_to(library)
        if file.suffix in TEXT and file.is_file() and skipped.isdisjoint(name.parts):
            yield f"python-{platform.python_version()}", name.as_posix(), file.read_bytes()
    for requirement in WHEELS:
        with zipfile.ZipFile(_download(requirement, wheels)) as archive:
            for path in sorted(archive.namelist()):
                if PurePosixPath(path).suffix in TEXT:
                    yield requirement.replace("==", "-"), path, archive.read(path)


def _download(requirement: str, wheels: Path) -> Path:
    """The wheel of a requirement, from PyPI by this Python's pip unless it is there already."""
    folder = wheels / requirement
    with suppress(StopIteration):
        return next(folder.glob("*.whl"))
    print(f"downloading {requirement}", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    # None of it is ever run, so it need not fit this Python.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest"]
    subprocess.run([*pip, *options, str(folder), requirement], check=True)
    return next(folder.glob("*.whl"))


def small_files(folder: Path, tar: Path, count: int, size: int, seed: int = 1) -> None:
    """Write `count` files of `size` bytes into `folder`, a hundred in each folder below it.

    Each is another piece of `tar`, which must have `count * size` bytes.
    """
    pieces = random.Random(seed).sample(range(tar.stat().st_size // size), count)
    with tar.open("rb", buffering=0) as source:
        for number, piece in enumerate(pieces):
            source.seek(piece * size)
            file = folder / f"{number // 100:04}" / f"{number:06}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.read(size))


def add_cache_option(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--cache",
        type=lambda text: Path(text).resolve(),
        default=CACHE,
        help=f"folder of downloads and of the source tar ({CACHE})",
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--size", type=size_of, default=SOURCE_SIZE, help="of the tar (690M)")
    add_cache_option(options)
    chosen = options.parse_args()
    tar = source_tar(chosen.cache, chosen.size)
    print(tar)
    held: dict[str, dict[str, int]] = json.loads(tar.with_suffix(".json").read_text())
    for kind, sizes in held.items():
        print(f"\n{kind}")
        for name, size in sizes.items():
            print(f"  {name:35} {size / 1e6:8.1f} MB")


if __name__ == "__main__":
    main()

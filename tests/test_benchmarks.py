"""Benchmarks that fill the catalog's tables by themselves still know them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def measured(name: str, folder: Path) -> str:
    """What `bench.<name>` prints of a small catalog; whether it is fast is not looked at."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"bench.{name}",
            "--scale",
            "0.001",
            "--runs",
            "1",
            "--work",
            folder,
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_catalog_on_sqlite_is_measured(tmp_path: Path) -> None:
    assert "must reach" in measured("metadata", tmp_path)


@pytest.mark.slow
def test_the_catalog_on_postgresql_is_measured(tmp_path: Path, postgres: object) -> None:
    assert "must reach" in measured("postgres", tmp_path)

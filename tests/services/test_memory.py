"""Memory that is bounded: by the system, which refuses what is above it."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tests.faults import MIB

pytestmark = pytest.mark.slow
ROOT: Final = Path(__file__).parents[2]
LIMIT: Final = 256 * MIB
ROOMY: Final = 576 * MIB
"""With pytest itself, a store in memory, and the contents that tests compare."""
SUITE: Final = (
    *("tests/services/test_uploads.py", "tests/services/test_ingest.py"),
    "tests/services/test_transfer.py",
    *("tests/adapters/test_local_objects.py", "tests/adapters/test_wrapped_objects.py"),
)


def _run(scenario: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.memory_child", str(LIMIT), scenario, str(folder)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("scenario", ["one_large", "eight_uploads"])
def test_files_larger_than_memory_pass_through_it(scenario: str, tmp_path: Path) -> None:
    done = _run(scenario, tmp_path / "vault")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_file_that_is_read_whole_is_found_out(tmp_path: Path) -> None:
    done = _run("planted", tmp_path / "vault")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr


def test_the_tests_of_storage_pass_in_little_memory() -> None:
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({ROOMY}, {ROOMY}));"
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "-q", "-x", "-p", "no:cacheprovider", *SUITE]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

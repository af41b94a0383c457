"""The heap that all threads share, seen from a process of its own."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, sys, threading
from vaultfs.adapters.heap import share_one_heap
if sys.argv[1] == "shared":
    assert share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
taken = threading.Barrier(5)
def take():
    libc.malloc(5000)
    taken.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for each in threads:
    each.start()
taken.wait()
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""


def heaps(how: str) -> int:
    told = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, check=True, text=True
    ).stdout
    return told.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_threads_share_one_heap() -> None:
    assert heaps("shared") == 1
    assert heaps("apart") > 1, "the test would not see heaps of threads"

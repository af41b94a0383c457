"""The C library's heap: how the memory of a process that serves many is laid out."""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
"""`mallopt`'s name for it, in glibc's `malloc.h`."""


def share_one_heap() -> bool:
    """Have all threads take memory from one heap; whether the C library can do that.

    glibc gives threads heaps of their own, and what is freed in one of them is no use to
    the others: with 4 MiB blocks that one thread reads and another lets go of, a server came
    to hold half as much again as it needed. Python's lock lets one thread in at a time
    anyway. To be called before there are threads; others than glibc do without it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))

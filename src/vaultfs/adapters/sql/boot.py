"""The clock that all processes of a machine share, which nobody can set back."""

import time
from functools import cache


def since_boot() -> float:
    """Seconds since the machine started, those that it slept included where it can tell."""
    number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(number)


@cache
def boot_id() -> str:
    """Names this start of the machine; the same for ever where there is no name."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"

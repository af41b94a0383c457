"""The time and the ids of the machine this runs on."""

import os
import time
from datetime import UTC, datetime
from uuid import uuid4

from vaultfs.ports.clock import Clock


class SystemClock(Clock):
    """The machine's clocks; ids are random UUIDs."""

    __slots__ = ()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def new_id(self) -> str:
        return uuid4().hex

    def new_secret(self) -> bytes:
        return os.urandom(32)

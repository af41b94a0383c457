"""The clock port."""

from abc import ABC, abstractmethod
from datetime import datetime


class Clock(ABC):
    """Where services get the time from; the core is only ever told it."""

    __slots__ = ()

    @abstractmethod
    def now(self) -> datetime:
        """The time, aware, in UTC. It may stand still or step back between two calls."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds since some moment; never less than in an earlier call."""

    @abstractmethod
    def new_id(self) -> str:
        """An id that nobody else has: at most 64 letters, digits and hyphens."""

    @abstractmethod
    def new_secret(self) -> bytes:
        """32 bytes that nobody can guess."""

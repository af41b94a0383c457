"""The progress callback."""

from typing import Protocol


class Progress(Protocol):
    """Told how far a piece of long work has come; cheap, and never raises.

    Called from the event loop only.
    """

    def __call__(self, done: int, /) -> None:
        """`done` more bytes (or things, as the work says) are finished."""


def no_progress(done: int, /) -> None:
    """For callers who do not care."""

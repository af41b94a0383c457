"""Memory for blocks, used again and again.

A fresh buffer costs a page fault for every 4 KiB, which takes longer than hashing
them. Views of a buffer may outlive the moment it is given back (a thread that has
just finished holds its arguments a little longer), so it is handed out again only
when nothing refers to its memory any more.
"""

from typing import Final

from attrs import define, field

KEPT: Final = 32
"""Buffers that wait to be used again, at the most."""


@define(eq=False)
class Buffers:
    """Buffers of `size` bytes; used by one event loop."""

    size: int
    _given: list[bytearray] = field(factory=list[bytearray])

    def take(self) -> bytearray:
        """A buffer that is nobody else's; what is in it is anything."""
        for index, buffer in enumerate(self._given):
            if _unused(buffer):
                del self._given[index]
                return buffer
        return bytearray(self.size)

    def give(self, buffer: bytearray) -> None:
        """Take `buffer` back; views of it may live on for a moment."""
        if len(buffer) == self.size and len(self._given) < KEPT:
            self._given.append(buffer)


def _unused(buffer: bytearray) -> bool:
    """Whether no view of `buffer` is left: a bytearray refuses to change size while one is."""
    try:
        last = buffer.pop()
    except BufferError:
        return False
    buffer.append(last)
    return True

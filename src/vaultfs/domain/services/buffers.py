"""Memory for blocks, used again and again.

A fresh buffer costs a page fault for every 4 KiB, which takes longer than hashing
them. Views of a buffer may outlive the moment it is given back (a thread that has
just finished holds its arguments a little longer), so it is handed out again only
when nothing refers to its memory any more.
"""

from mmap import mmap
from typing import Final

from attrs import define, field

from vaultfs.domain.packs import MIB, PACK_TARGET

KEPT: Final = 8
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


ROOMS: Final = 2
"""Packs that are gathered at one time; more would be memory that nobody charges for."""
ROOM: Final = PACK_TARGET + MIB
"""Bytes: a full pack has its target, and at most a chunk and its table row more."""


@define(eq=False)
class Rooms:
    """Memory to gather packs in, at page boundaries, as a disk can read it by itself."""

    _free: list[mmap] = field(factory=list[mmap])
    _taken: int = 0

    def take(self) -> mmap | None:
        """Room for a pack, if there is some."""
        if self._free:
            self._taken += 1
            return self._free.pop()
        if self._taken == ROOMS:
            return None
        self._taken += 1
        return mmap(-1, ROOM)

    def give(self, room: mmap) -> None:
        """Take `room` back, of which nobody has a view any more."""
        self._taken -= 1
        self._free.append(room)

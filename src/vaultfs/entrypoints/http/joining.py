"""Writes to a connection: the head of an answer and a short body go out as one."""

import asyncio  # uvicorn's transports are asyncio's
from typing import Any, Final

SHORT: Final = 16 << 10
"""Bytes that are copied rather than sent by themselves: a system call takes as long."""
_HEAD: Final = 2 << 10
"""Bytes of what may be waited for: more is on its way already."""


class Joining(asyncio.Transport):
    """A transport that holds a short write back until the next, or until its turn is over.

    uvicorn writes head and body of an answer one after the other, in two system calls and
    two packets. What is written before the event loop comes around again is one here.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._held = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, behind what is held; alone and short, no later than in the next turn."""
        if self._held:
            if len(data) <= SHORT:
                data = b"".join((self._held, data))
                self._held = b""
            else:
                self._flush()
            self._transport.write(data)
        elif len(data) <= _HEAD:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        """Send what is held, and all before it, and close the connection."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: object = None) -> Any:
        """What the transport knows of the connection."""
        return self._transport.get_extra_info(name, default)

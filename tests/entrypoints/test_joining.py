"""What is written to a connection, and in how many pieces it goes out."""

import asyncio
from typing import Any

from attrs import define, field

from vaultfs.entrypoints.http.joining import SHORT, Joining


@define(eq=False, slots=False)
class Pieces(asyncio.Transport):
    """A transport that keeps what it is to send, each piece by itself."""

    sent: list[bytes] = field(factory=list[bytes])
    closed: bool = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def joining(pieces: Pieces) -> Joining:
    return Joining(pieces, asyncio.get_running_loop())


async def test_head_and_body_of_one_turn_go_out_as_one() -> None:
    pieces = Pieces()
    transport = joining(pieces)
    transport.write(b"head")
    transport.write(b"body")
    assert pieces.sent == [b"headbody"]


async def test_a_head_alone_waits_for_the_next_turn_and_no_longer() -> None:
    pieces = Pieces()
    joining(pieces).write(b"head")
    assert pieces.sent == []
    await asyncio.sleep(0)
    assert pieces.sent == [b"head"]
    await asyncio.sleep(0)
    assert pieces.sent == [b"head"]


async def test_what_is_long_is_not_copied_and_keeps_its_place() -> None:
    pieces = Pieces()
    transport = joining(pieces)
    long = bytes(SHORT + 1)
    transport.write(b"head")
    transport.write(memoryview(long))
    transport.write(long)
    transport.write(b"end")
    await asyncio.sleep(0)
    assert pieces.sent == [b"head", long, long, b"end"]


async def test_a_closed_connection_has_had_all_that_was_written() -> None:
    pieces = Pieces()
    transport = joining(pieces)
    transport.write(b"last words")
    transport.close()
    await asyncio.sleep(0)
    assert (pieces.sent, transport.is_closing()) == ([b"last words"], True)

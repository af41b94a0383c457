"""Reading what a pack holds from its end alone."""

from typing import Final

from vaultfs.domain.packs import ENTRY_SIZE, TAIL_SIZE, PackEntry, parse_table, table_span
from vaultfs.ports.objects import ObjectStore, Span

LIKELY_TABLE: Final = 512 * ENTRY_SIZE + TAIL_SIZE
"""Enough of a pack's end to hold the table of most packs."""


async def read_table(objects: ObjectStore, key: str, size: int) -> tuple[PackEntry, ...]:
    """The entries of the pack at `key`, which has `size` bytes.

    Raises `Corrupt`, `Unsupported` and what a store raises.
    """
    start = max(0, size - LIKELY_TABLE)
    end = await objects.get(key, Span(start, size))
    tail = end[-TAIL_SIZE:]
    first, stop = table_span(tail, size)
    if first < start:
        return parse_table(await objects.get(key, Span(first, stop)), tail)
    return parse_table(end[first - start : stop - start], tail)

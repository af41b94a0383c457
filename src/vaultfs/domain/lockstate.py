"""A lock table as plain values, and back: for a database, where it outlives processes."""

from collections.abc import Iterable, Mapping
from typing import Any

from vaultfs.domain.intervals import Range
from vaultfs.domain.lockmodes import Mode, Resource
from vaultfs.domain.locknodes import Grant, Waiting
from vaultfs.domain.locks import LockTable, whole_plan


def dump(table: LockTable) -> dict[str, Any]:
    """The whole state of `table`, as values that JSON has; the same state gives the same text."""
    queues = [
        [list(node.resource), [request.id for request in node.queue]]
        for node in table.nodes.values()
        if node.queue is not None
    ]
    return {
        "counter": table.counter,
        "now": None if table.now == float("-inf") else table.now,
        "grants": [_plain(each) for each in table.grants.values()],
        "waiting": [
            [*_plain(each), None if each.converts is None else each.converts.id]
            for each in table.waiting.values()
        ],
        "queues": sorted(queues),
    }


def load(state: Mapping[str, Any]) -> LockTable:
    """The table of which `dump` gave `state`."""
    table = LockTable()
    table.counter = state["counter"]
    table.now = float("-inf") if state["now"] is None else state["now"]
    for number, owner, plain_items, plain_ranges, expires in state["grants"]:
        items, ranges = _items(plain_items), _ranges(plain_ranges)
        plan = whole_plan(items, ranges)
        table.admit(Grant(number, owner, items, plan, ranges, expires))
    for number, owner, plain_items, plain_ranges, expires, converts in state["waiting"]:
        items, ranges = _items(plain_items), _ranges(plain_ranges)
        held = None if converts is None else table.grants[converts]
        plan = (
            whole_plan(items, ranges)
            if held is None
            else whole_plan({**held.items, **items}, held.ranges)
        )
        table.line_up(Waiting(number, owner, items, plan, ranges, expires, held))
    for names, numbers in state["queues"]:
        table.nodes[tuple(names)].order(table.waiting[number] for number in numbers)
    return table


def _plain(each: Grant | Waiting) -> list[Any]:
    items = [[list(resource), int(mode)] for resource, mode in each.items.items()]
    ranges = [[list(resource), [list(r) for r in asked]] for resource, asked in each.ranges.items()]
    return [each.id, each.owner, items, ranges, each.expires]


def _items(plain: Iterable[tuple[list[str], int]]) -> dict[Resource, Mode]:
    return {tuple(names): Mode(mode) for names, mode in plain}


def _ranges(plain: Iterable[Any]) -> dict[Resource, tuple[Range, ...]]:
    return {
        tuple(names): tuple(Range(start, stop, bool(exclusive)) for start, stop, exclusive in asked)
        for names, asked in plain
    }

"""Every call of the object store port, for tests of what all of them do alike."""

from collections.abc import Awaitable, Callable

from tests.contracts.objects import listed

from vaultfs.ports.objects import ObjectStore, PutMode, Span

CALLS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "head": lambda store: store.head("key"),
    "get": lambda store: store.get("key"),
    "span": lambda store: store.get("key", Span(1, 2)),
    "put": lambda store: store.put("key", b"."),
    "overwrite": lambda store: store.put("key", b".", mode=PutMode.OVERWRITE),
    "delete": lambda store: store.delete("key"),
    "list": listed,
}

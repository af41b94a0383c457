"""The probe that every backend without better means runs on itself."""

from contextlib import aclosing
from typing import Final
from uuid import uuid4

from vaultfs.ports.objects import (
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    PutMode,
    Span,
    StoreMisconfigured,
)

PROBES: Final = "probe/"
"""What the keys begin with that a store is tried with."""


async def probe_objects(store: ObjectStore) -> None:
    """Put, read, list and delete one object under `probe/`, and try a create that has to fail.

    Some stores accept a create-only put and overwrite all the same. Raises
    `StoreMisconfigured` for what the store does otherwise than the port says.
    """
    key = f"{PROBES}{uuid4().hex[:16]}"
    try:
        await store.put(key, b"first")
        if store.capabilities.create_if_absent:
            await _see_that_create_fails(store, key)
        await store.put(key, b"second", mode=PutMode.OVERWRITE)
        await _see_that_it_reads(store, key, b"second")
    finally:
        await store.delete(key)
    await _see_that_it_is_gone(store, key)


async def _see_that_create_fails(store: ObjectStore, key: str) -> None:
    try:
        await store.put(key, b"other")
    except ObjectExists:
        return
    raise _broken(store, key, "a put that may only create has overwritten an object")


async def _see_that_it_reads(store: ObjectStore, key: str, data: bytes) -> None:
    span = Span(1, 4)
    if await store.get(key) != data or await store.get(key, span) != data[1:4]:
        raise _broken(store, key, "an object does not read back as it was put")
    if (await store.head(key)).size != len(data):
        raise _broken(store, key, "an object has another size than was put")
    async with aclosing(store.list(key)) as listing:
        if [info.key async for info in listing] != [key]:
            raise _broken(store, key, "a listing does not show an object that is there")


async def _see_that_it_is_gone(store: ObjectStore, key: str) -> None:
    try:
        await store.head(key)
    except ObjectNotFound:
        return
    raise _broken(store, key, "an object is there after it was deleted")


def _broken(store: ObjectStore, key: str, what: str) -> StoreMisconfigured:
    return StoreMisconfigured(what, backend=store.name, operation="probe", key=key)

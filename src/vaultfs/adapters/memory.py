"""A store and a clock in memory: for tests and for trying things out."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from anyio.lowlevel import checkpoint

from vaultfs.adapters.probing import probe_objects
from vaultfs.domain.digests import digest_of
from vaultfs.domain.packs import crc32c_of
from vaultfs.ports.clock import Clock
from vaultfs.ports.objects import (
    MAX_OBJECT,
    Capabilities,
    Deleted,
    InvalidKey,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    Payload,
    PutMode,
    Span,
    parts_of,
    valid_key,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MANY: Final = 1000


class ManualClock(Clock):
    """A clock that moves only when told to; its ids count up."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._passed = timedelta()
        self._ids = 0

    def advance(self, by: timedelta) -> None:
        if by < timedelta():
            raise ValueError(f"a clock does not go back {-by}")
        self._passed += by

    def now(self) -> datetime:
        return self._start + self._passed

    def monotonic(self) -> float:
        return self._passed.total_seconds()

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids:08}"

    def new_secret(self) -> bytes:
        return digest_of(self.new_id().encode())


class MemoryObjectStore(ObjectStore):
    """A store in a dictionary, gone with the process.

    Each call gives other tasks a turn and then takes effect at once, so tasks
    interleave here as they do over a network.
    """

    def __init__(self, name: str = "memory", *, clock: Clock | None = None) -> None:
        self._name = name
        self._clock = clock or ManualClock()
        self.objects: dict[str, bytes] = {}
        """What is stored; tests look at it and damage it behind the port's back."""
        self._modified: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            create_if_absent=True, delete_batch=_MANY, digests=frozenset({"crc32c"})
        )

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        data = self._find("head", key)
        digest = crc32c_of((data,)).to_bytes(4, "big")
        return ObjectInfo(key, len(data), self._modified.get(key, 0), (("crc32c", digest),))

    async def get(self, key: str, span: Span | None = None) -> bytes:
        await checkpoint()
        data = self._find("get", key)
        return data if span is None else data[span.start : span.stop]

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        await checkpoint()
        self._check("put", key)
        whole = b"".join(parts_of(data))
        if len(whole) > MAX_OBJECT:
            raise ObjectTooLarge(backend=self.name, operation="put", key=key)
        if mode is PutMode.CREATE and key in self.objects:
            raise ObjectExists(backend=self.name, operation="put", key=key)
        self.objects[key] = whole
        self._modified[key] = (self._clock.now() - _EPOCH) // timedelta(microseconds=1)

    async def delete(self, key: str) -> None:
        await checkpoint()
        self._delete("delete", key)

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        await checkpoint()
        return tuple(self._deleted(key) for key in keys)

    async def list(
        self, prefix: str = "", *, start_after: str = ""
    ) -> AsyncGenerator[ObjectInfo, None]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                await checkpoint()
                if (data := self.objects.get(key)) is not None:
                    yield ObjectInfo(key, len(data), self._modified.get(key, 0))

    async def probe(self) -> None:
        await probe_objects(self)

    async def aclose(self) -> None:
        """Nothing to let go of; the objects stay for whoever holds the store."""

    def _check(self, operation: str, key: str) -> None:
        if not valid_key(key):
            raise InvalidKey(backend=self.name, operation=operation, key=key)

    def _find(self, operation: str, key: str) -> bytes:
        self._check(operation, key)
        if key not in self.objects:
            raise ObjectNotFound(backend=self.name, operation=operation, key=key)
        return self.objects[key]

    def _delete(self, operation: str, key: str) -> None:
        self._check(operation, key)
        self.objects.pop(key, None)
        self._modified.pop(key, None)

    def _deleted(self, key: str) -> Deleted:
        try:
            self._delete("delete_many", key)
        except InvalidKey as error:
            return Deleted(key, error)
        return Deleted(key)

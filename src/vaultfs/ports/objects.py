"""The object store port: whole, immutable byte strings under flat keys."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from enum import Enum
from typing import Final

from attrs import field, frozen

from vaultfs.domain.digests import Buffer
from vaultfs.domain.errors import VaultError

MAX_OBJECT: Final = 32 << 20
"""Bytes; every store takes objects of this size, and no service puts a larger one."""
MAX_KEY: Final = 512
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{2,}(/[a-z0-9][a-z0-9._-]{2,})*")


class StoreError(VaultError):
    """A store did not do what was asked. Subclasses say why.

    `retryable`: the same call may work a little later. `outcome_unknown`: the call
    may have been carried out all the same; `head` tells, as objects never change.
    """

    retryable = False
    outcome_unknown = False
    remedy = ""

    def __init__(
        self,
        detail: str = "",
        *,
        backend: str,
        operation: str,
        key: str = "",
        outcome_unknown: bool | None = None,
    ) -> None:
        what = f"{operation} {key}".strip()
        text = detail or (self.__doc__ or "failed").partition("\n")[0].rstrip(".").lower()
        super().__init__(f"store {backend}: {what}: {text}{self.remedy}")
        self.backend = backend
        self.operation = operation
        self.key = key
        if outcome_unknown is not None:
            self.outcome_unknown = outcome_unknown


class ObjectNotFound(StoreError):
    """No object has that key."""


class ObjectExists(StoreError):
    """The key is taken."""


class PreconditionFailed(StoreError):
    """The object is not in the state that the call demands."""


class IntegrityError(StoreError):
    """The bytes do not have the digest or size they should."""


class Throttled(StoreError):
    """The store asks for fewer requests."""

    retryable = True

    def __init__(
        self,
        detail: str = "",
        *,
        backend: str,
        operation: str,
        key: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail, backend=backend, operation=operation, key=key)
        self.retry_after = retry_after
        """Seconds, when the store said so."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or failed inside."""

    retryable = True
    outcome_unknown = True


class StoreTimeout(StoreError):
    """The store took longer than one try may take."""

    retryable = True
    outcome_unknown = True


class PermissionDenied(StoreError):
    """The store does not allow it."""

    remedy = "; check who owns the folder or what the credentials may do"


class Unauthenticated(StoreError):
    """The store does not accept the credentials."""


class OutOfSpace(StoreError):
    """The store is full."""

    remedy = "; free some space and try again"


class ObjectTooLarge(StoreError):
    """The object is larger than a store has to take."""


class InvalidKey(StoreError):
    """No store has such a key."""


class StoreUnsupported(StoreError):
    """The store cannot do this at all."""


class StoreMisconfigured(StoreError):
    """The store's settings cannot be right."""


class WrongStore(StoreError):
    """The store belongs to another vault."""


Payload = Buffer | tuple[Buffer, ...]
"""The bytes of an object: whole, or in parts that follow each other."""


def parts_of(payload: Payload) -> tuple[Buffer, ...]:
    """`payload` in parts."""
    return payload if isinstance(payload, tuple) else (payload,)


def size_of(payload: Payload) -> int:
    """How many bytes `payload` has."""
    return sum(len(part) for part in parts_of(payload))


@frozen
class Span:
    """Bytes `start` to `stop`, the last not included."""

    start: int
    stop: int

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"{self.start} to {self.stop} is not a span")

    def __len__(self) -> int:
        return self.stop - self.start


class PutMode(Enum):
    """What `put` does when the key is taken."""

    CREATE = "create"
    """Raise `ObjectExists`; the object stays as it is."""
    OVERWRITE = "overwrite"
    """Replace the object, at one moment: a reader gets the old bytes or the new."""


@frozen
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size: int
    modified_us: int
    """When it was put, by the store's clock: microseconds since 1970, UTC."""
    digests: tuple[tuple[str, bytes], ...] = ()
    """Digests that the store itself vouches for, by name (`crc32c`, `sha256`, `md5`)."""


@frozen
class Capabilities:
    """What a store can do; effective = declared, and probed, and not switched off."""

    create_if_absent: bool
    """`CREATE` is decided by the store: of many writers one wins."""
    delete_batch: int
    """Keys that one request deletes; 1 where each takes its own."""
    digests: frozenset[str] = field(default=frozenset[str]())
    """Native digests that `head` gives."""
    ordered_list: bool = True
    largest_object: int = MAX_OBJECT


@frozen
class Deleted:
    """The outcome of one key of `delete_many`: gone (`error` is None) or not."""

    key: str
    error: StoreError | None = None


def valid_key(key: str) -> bool:
    """Whether `key` is one: up to 512 characters, parts of three and more joined by `/`."""
    return len(key) <= MAX_KEY and _KEY.fullmatch(key) is not None


class ObjectStore(ABC):
    """What every backend promises; `tests/contracts/objects.py` holds it to it.

    Keys are ASCII, `valid_key`; a store need not have room for both `abc` and
    `abc/def`, nor for a part of more than 255 characters (`InvalidKey`). Safe for many
    tasks at once. Every failure is a `StoreError`; retries are an adapter of their own,
    so no backend hides its own failures. Methods take no time limit: callers use
    `fail_after`; a cancelled call leaves either nothing or the whole effect. Any method
    raises `InvalidKey`, `PermissionDenied`, `Unauthenticated`, `Throttled`,
    `StoreUnavailable` or `StoreTimeout`.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """What the store is called in errors, metrics and the catalog."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do; after `probe`, what it was seen to do."""

    def targets(self) -> "Targets":
        """Where packs are to be put now, and what that goes by."""
        return Targets(0, {self.name: self}, self.name)

    def readable(self) -> "tuple[ObjectStore, ...]":
        """The stores that this one is made of, in the order in which they are read."""
        return (self,)

    async def refresh(self) -> None:  # noqa: B027 nothing to look at where there is one store
        """Look whether `targets` are others by now."""

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """Size, time and native digests. Raises `ObjectNotFound`."""

    @abstractmethod
    async def get(self, key: str, span: Span | None = None) -> bytes:
        """The object's bytes, or those of `span` that it has.

        Bytes past its end are left out, as is everything for an empty span. Not
        verified: a store may return damaged bytes. Raises `ObjectNotFound`.
        """

    @abstractmethod
    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        """Store `data` under `key`, whole or not at all, and durably.

        When it returns, the object survives a power cut. A crash in the middle
        leaves nothing that `get`, `head` or `list` would show. Raises `ObjectExists`
        (in mode CREATE; the object that is there survives a power cut as well),
        `OutOfSpace`, `ObjectTooLarge` above `largest_object`.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget `key`; fine if it is not there. A power cut may bring the object back."""

    @abstractmethod
    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        """Forget each of `keys`; an outcome for each, in their order.

        Raises only what concerns the call as a whole; an invalid key is an outcome.
        """

    @abstractmethod
    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """The objects whose key starts with `prefix` and is above `start_after`, by key.

        Ascending by code point. An object put or deleted during the listing may or
        may not be in it; every other one is, or the listing raises. Digests may be
        left out. The caller closes the generator (`aclosing`).
        """

    @abstractmethod
    async def probe(self) -> None:
        """See that the store works and does what `capabilities` say, with a few objects
        under `probe/`, removed again. Includes a write that has to fail.

        Raises whatever is wrong with it, `StoreMisconfigured` for a false promise.
        """

    async def room(self) -> int | None:
        """Bytes for which there is room now; None where that cannot be told, as in a cloud."""
        return None

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of connections and threads. Nothing may be called afterwards."""


@frozen
class Targets:
    """The stores that a pack is to be put into: see `domain.migration`."""

    epoch: int
    """What they go by."""
    stores: Mapping[str, ObjectStore]
    primary: str
    degrades: bool = False
    """The primary is enough where others cannot be reached."""

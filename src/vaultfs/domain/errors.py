"""Every error the vault raises on purpose.

Rules: (1) everything deliberate is a `VaultError`; a bug stays a `ValueError`
or an `AssertionError`. (2) A class exists only where some caller reacts to it
differently. (3) Fields carry the facts; `str()` is for a person: lower case,
names the thing, and says the remedy where there is one. (4) Adapters translate
at their edge, once, with `raise ... from`. (5) Exit codes and HTTP statuses are
one table each, in their entry point.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:  # they know errors themselves
    from vaultfs.domain.locknodes import Blocker, Link

T = TypeVar("T")


class VaultError(Exception):
    """Something the vault refuses, or cannot do, and can explain."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(VaultError):
    """Nothing is there, or nothing that the caller may know of."""


class ParentNotFound(NotFound):
    """The folder that was to hold a new name is not there."""


class NotAuthenticated(VaultError):
    """Nobody can tell who the caller is: no token, or one that is good for nothing."""


class RateLimited(VaultError):
    """Too many requests; `retry_after` seconds later there is room for one."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(VaultError):
    """The caller may read this but not do that with it."""


class InvalidName(VaultError):
    """A name or path that no vault can hold."""


class InvalidField(VaultError):
    """A value of the wrong kind or out of its bounds."""

    flaw: tuple[str, str] | None = None
    """Of a JSON body: where it is wrong, as a fragment that points there, and how."""


class Internal(VaultError):
    """A bug of this program; its log has more."""


class WrongMedia(InvalidField):
    """A body of a kind that is not taken here."""


class Conflict(VaultError):
    """The state of the vault does not allow it; another state would."""


class Exists(Conflict):
    """The name is taken."""


class IsAFolder(Conflict):
    """A file was needed and a folder is there."""


class NotAFolder(Conflict):
    """A folder was needed and a file is there."""


class FolderNotEmpty(Conflict):
    """The folder still holds something."""


class Cycle(Conflict):
    """A folder cannot go into itself."""


class VersionMismatch(Conflict):
    """A precondition did not hold: somebody else was first."""

    def __init__(self, message: str, *, expected: int | None, found: int | None) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class ChunksMissing(Conflict):
    """A manifest names chunks that its sender has not sent: with them it would be taken."""

    def __init__(self, message: str, *, digests: tuple[bytes, ...] = ()) -> None:
        super().__init__(message)
        self.digests = digests


class OffsetMismatch(Conflict):
    """Bytes of an upload that do not follow those that are there; the next one goes to `offset`."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Fenced(Conflict):
    """An upload has another writer now. Nothing of this one's last bytes was taken."""


class Doomed(Conflict):
    """An object of that name is being deleted: what has its bytes needs another name."""


class PlacementChanged(Conflict):
    """Packs are to be in other stores than when this one was stored: `stores` lack it."""

    def __init__(self, message: str, *, stores: frozenset[str]) -> None:
        super().__init__(message)
        self.stores = stores


class PacksGone(Conflict):
    """What the content was to share with others was collected meanwhile: send it again."""


class UploadGone(Conflict):
    """An upload has ended and cannot be changed."""


class UploadExpired(UploadGone):
    """Nobody has gone on with an upload for too long, or it has taken too long."""


class ChecksumMismatch(VaultError):
    """Bytes do not have the checksum that came with them. None of them were taken."""


class SourceChanged(Conflict):
    """What was being read changed meanwhile; nothing was stored."""


class TooLarge(VaultError):
    """More than one request may carry or one operation may touch."""


class TooManyNodes(TooLarge):
    """A folder with more below it than one operation may touch: `count` of them."""

    def __init__(self, message: str, *, count: int) -> None:
        super().__init__(message)
        self.count = count


class UnknownOp(InvalidField):
    """A batch names an operation that there is none of."""


class BadReference(InvalidField):
    """An operation of a batch refers to one that is not before it, or that made no node."""


class DuplicateId(InvalidField):
    """Two operations of a batch have the same id."""


class DependencyFailed(Conflict):
    """An operation of a batch needs what an earlier one, `depends_on`, would have made."""

    def __init__(self, message: str, *, depends_on: str) -> None:
        super().__init__(message)
        self.depends_on = depends_on


class TooSlow(VaultError):
    """A request did not arrive in time."""


class KeyReused(InvalidField):
    """An idempotency key came before, with another request."""


class QuotaExceeded(VaultError):
    """The tree would hold more bytes than its quota."""


class Corrupt(VaultError):
    """Bytes are not what they have to be. Nothing of them was handed out."""


class DamagedContent(Corrupt):
    """A chunk that a file needs cannot be read back right, from any location."""

    def __init__(self, message: str, *, digest: bytes) -> None:
        super().__init__(message)
        self.digest = digest


class OutcomeUnknown(VaultError):
    """It may or may not have happened; `op_id` finds out with `Catalog.outcome`."""

    def __init__(self, message: str, *, op_id: str) -> None:
        super().__init__(message)
        self.op_id = op_id


class Unsupported(VaultError):
    """A format, scheme or feature that this release does not know."""


class NotAVault(VaultError):
    """The place holds no vault, or another one than was expected."""


class Busy(VaultError):
    """Somebody else holds what is needed; trying again later may work."""


class CatalogUnavailable(VaultError):
    """The catalog's database cannot be read or written (disk full, no permission, gone)."""


class CursorReset(VaultError):
    """What a feed has told is not what it has now, as after a restore: begin anew."""


class LockError(VaultError):
    """A lock was not had, or is not held as it would have to be. Nothing is left of the call."""


class Blocking(LockError):
    """Others hold what is in the way, or wait for it ahead; `blockers` says who, where and how."""

    blockers: "tuple[Blocker, ...]" = ()

    def __init__(self, message: str, *, blockers: "tuple[Blocker, ...]" = ()) -> None:
        super().__init__(message)
        self.blockers = blockers


class Locked(Blocking):
    """A write touches what somebody else has locked."""


class WouldBlock(Blocking):
    """The lock cannot be had now, and was not to be waited for."""


class LockTimedOut(Blocking):
    """The lock could not be had in time."""


class DeadlockFound(LockError):
    """Waiting would never end: each member of `circle` waits for the next, the last for the first.

    What the owner held before the call it still holds.
    """

    circle: "tuple[Link, ...]" = ()

    def __init__(self, message: str, *, circle: "tuple[Link, ...]") -> None:
        super().__init__(message)
        self.circle = circle


class LeaseExpired(LockError):
    """The lease ran out or was broken, or is not known: it cannot be renewed, only taken anew."""


class StaleToken(LockError):
    """A write came with a lock that is held no longer. Nothing of it was done."""


class NotHeld(LockError):
    """The lock that is named, or one that covers what is to be written, is not held."""


class LockOwnerBusy(LockError):
    """The same owner waits for another lock already, and can wait for one at a time."""


class LockMisuse(InvalidField, ValueError):
    """A lock that nobody can have, or a change of one that is none."""


FILE_ERRORS: Final = (Conflict, DamagedContent, Forbidden, InvalidName, NotFound, QuotaExceeded)
"""What can be wrong with one file while all others are fine."""


def listed(
    things: Iterable[T], *, most: int = 5, between: str = ", ", tell: Callable[[T], str] = str
) -> str:
    """The first few of `things` for a message, and how many more there are."""
    every = list(things)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return between.join(map(tell, every[:most])) + more

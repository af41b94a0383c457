"""Retention: which old versions of a file are kept."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from attrs import frozen

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.nodes import Version, VersionId


@frozen
class Retention:
    """A version is kept if it is current, or among the `last`, or younger than `age`.

    With neither, everything is kept. The age of a version is how long ago it was
    replaced, not made: yesterday's content counts as one day old however long it stood.
    """

    last: int | None = None
    age: timedelta | None = None

    def __attrs_post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise InvalidField(f"cannot keep the last {self.last} versions: 1 is the least")
        if self.age is not None and self.age <= timedelta(0):
            raise InvalidField(f"cannot keep versions for {self.age}")

    @property
    def keeps_all(self) -> bool:
        return self.last is None and self.age is None


KEEP_ALL = Retention()


def expired(policy: Retention, versions: Sequence[Version], now: datetime) -> tuple[VersionId, ...]:
    """Those of a file's `versions`, given newest first and complete, that are not kept."""
    if policy.keeps_all:
        return ()
    gone: list[VersionId] = []
    for rank, version in enumerate(versions):
        if rank == 0 or (policy.last is not None and rank < policy.last):
            continue
        replaced = versions[rank - 1].created
        if policy.age is None or now - replaced > policy.age:
            gone.append(version.id)
    return tuple(gone)

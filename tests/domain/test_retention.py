from datetime import UTC, datetime, timedelta

import pytest

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.nodes import DigestState, NodeId, UserId, Version, VersionId, micros
from vaultfs.domain.retention import KEEP_ALL, Retention, expired

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def versions(*days_ago: float) -> list[Version]:
    """Versions made so many days ago, newest first."""
    count = len(days_ago)
    return [version(count - rank, NOW - ago * DAY) for rank, ago in enumerate(days_ago)]


def version(number: int, made: datetime) -> Version:
    return Version(
        id=VersionId(number),
        node=NodeId(1),
        number=number,
        size=0,
        digest=None,
        digest_state=DigestState.ABSENT,
        manifest_bytes=b"",
        created_us=micros(made),
        author=UserId(1),
        mtime_us=None,
        mode=None,
    )


@pytest.mark.parametrize(
    ("policy", "days_ago", "gone"),
    [
        (KEEP_ALL, (1, 400, 800), ()),
        (Retention(last=2), (0, 1, 2, 3), (2, 1)),
        (Retention(last=1), (0, 1), (1,)),
        (Retention(last=9), (0, 1), ()),
        (Retention(last=1), (0,), ()),
        (Retention(last=1), (), ()),
        # a version is as old as the one that took its place
        (Retention(age=10 * DAY), (1, 400, 800), (1,)),
        (Retention(age=10 * DAY), (11, 400, 800), (2, 1)),
        (Retention(age=10 * DAY), (10, 400), ()),
        (Retention(age=10 * DAY), (400,), ()),
        # kept for either reason
        (Retention(last=2, age=10 * DAY), (11, 12, 13), (1,)),
        (Retention(last=2, age=10 * DAY), (1, 2, 3, 11, 12), (1,)),
    ],
)
def test_what_expires(
    policy: Retention, days_ago: tuple[float, ...], gone: tuple[int, ...]
) -> None:
    assert expired(policy, versions(*days_ago), NOW) == gone


def test_the_current_version_never_expires() -> None:
    for policy in (Retention(last=1), Retention(age=timedelta(microseconds=1))):
        every = versions(*range(1000, 1020))
        assert every[0].id not in expired(policy, every, NOW)


def test_a_clock_set_back_expires_nothing() -> None:
    assert expired(Retention(age=DAY), versions(-5, -4, 3), NOW) == ()


@pytest.mark.parametrize("last", [0, -1])
def test_bad_counts(last: int) -> None:
    with pytest.raises(InvalidField):
        Retention(last=last)


@pytest.mark.parametrize("age", [timedelta(0), -DAY])
def test_bad_ages(age: timedelta) -> None:
    with pytest.raises(InvalidField):
        Retention(age=age)


def test_what_keeps_all() -> None:
    assert KEEP_ALL.keeps_all
    assert not Retention(last=1).keeps_all
    assert not Retention(age=DAY).keeps_all

"""The state machine of upload sessions, against a model that keeps the bytes themselves."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vaultfs.domain.errors import (
    Fenced,
    OffsetMismatch,
    TooLarge,
    UploadExpired,
    UploadGone,
    VaultError,
)
from vaultfs.domain.nodes import NodeId, TreeId, UserId, VersionId
from vaultfs.domain.uploads import (
    IDLE_US,
    KEPT_US,
    LIFE_US,
    MAX_TAIL,
    Upload,
    UploadState,
    abort,
    append,
    attach,
    declare,
    expire,
    finish,
    forgettable,
    must_be_open,
)

sizes = st.sampled_from((0, 1, 2, 5, MAX_TAIL, MAX_TAIL + 1, 3 * MAX_TAIL))


def fresh(size: int | None = None) -> Upload:
    """A session that was just made."""
    return Upload(*("u", TreeId(1), UserId(1), ("a",), UploadState.OPEN, 0, size, 0, 0, "{}", 0, 0))


class Sessions(RuleBasedStateMachine):
    """One session, several writers who each believe what they last saw."""

    @initialize(size=st.none() | sizes)
    def create(self, size: int | None) -> None:
        self.upload = fresh(size)
        self.now = 0
        self.received = 0
        """Bytes that were acknowledged, and that no later writer has replaced."""
        self.writers: list[int] = []
        self.said = size
        self.ended: UploadState | None = None
        self.touched = 0

    def over(self) -> bool:
        return self.now >= min(self.touched + IDLE_US, LIFE_US)

    def expected(self) -> type[VaultError] | None:
        """Why any change has to be refused."""
        if self.ended is UploadState.EXPIRED or (self.ended is None and self.over()):
            return UploadExpired
        return UploadGone if self.ended is not None else None

    def change(self, wrong: type[VaultError] | None, call: Any, **rest: Any) -> bool:
        """Make a change; whether it was one that has to be made."""
        wrong = self.expected() or wrong
        if wrong is None:
            self.upload = call(self.upload, now_us=self.now, **rest)
            return True
        before = self.upload
        with pytest.raises(wrong):
            call(self.upload, now_us=self.now, **rest)
        assert self.upload == before
        return False

    @rule()
    def attach(self) -> None:
        if self.change(None, attach):
            self.writers.append(self.upload.fence)
            assert len(set(self.writers)) == len(self.writers)

    @rule(size=sizes)
    def declare(self, size: int) -> None:
        wrong: type[VaultError] | None = None
        if self.said not in {None, size}:
            wrong = OffsetMismatch
        elif size < self.received:
            wrong = TooLarge
        if self.change(wrong, declare, size=size):
            self.said = size

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), cut=sizes, tail=sizes, late=st.booleans())
    def append(self, data: Any, cut: int, tail: int, late: bool) -> None:
        fence = data.draw(st.sampled_from(self.writers)) if late else self.writers[-1]
        here = self.upload.cut
        at = data.draw(st.sampled_from((here, here, here, here + 1, max(0, here - 1))))
        wrong: type[VaultError] | None = None
        if fence != self.writers[-1]:
            wrong = Fenced
        elif at != self.upload.cut or at + cut + tail < self.received or tail > MAX_TAIL:
            wrong = OffsetMismatch
        elif self.said is not None and at + cut + tail > self.said:
            wrong = TooLarge
        if self.change(wrong, append, fence=fence, at=at, cut=cut, tail=tail):
            self.received = at + cut + tail
            self.touched = self.now

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        fence = data.draw(st.sampled_from(self.writers))
        wrong: type[VaultError] | None = None
        if fence != self.writers[-1]:
            wrong = Fenced
        elif self.received != self.said or self.upload.tail:
            wrong = OffsetMismatch
        made = {"node": NodeId(5), "version": VersionId(6)}
        if self.change(wrong, finish, fence=fence, **made):
            self.ended = UploadState.FINISHED

    @rule(often=st.integers(0, 9))
    def abort(self, often: int) -> None:
        if often:
            return
        if self.ended is UploadState.ABORTED:
            assert abort(self.upload, self.now) == self.upload
        elif self.change(None, abort):
            self.ended = UploadState.ABORTED

    @rule(seconds=st.sampled_from((1, 1, 1, 3600, 23 * 3600, 86_399, 86_400)))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 1_000_000

    @precondition(lambda self: self.writers and self.expected() is None)
    @rule()
    def keep_alive(self) -> None:
        """Nearly a day later, every day of a week."""
        self.now = self.touched + IDLE_US - 1
        if self.expected() is None:
            upload = self.upload
            self.append_now(upload.cut, upload.tail)

    def append_now(self, at: int, tail: int) -> None:
        if self.change(None, append, fence=self.writers[-1], at=at, cut=0, tail=tail):
            self.touched = self.now

    @rule()
    def sweep(self) -> None:
        due = self.ended is None and self.over()
        self.upload = expire(self.upload, self.now)
        if due:
            self.ended = UploadState.EXPIRED

    @invariant()
    def holds(self) -> None:
        upload = self.upload
        assert upload.state == (self.ended or UploadState.OPEN)
        assert self.ended is not None or upload.offset == self.received
        assert upload.size == self.said
        assert 0 <= upload.tail <= MAX_TAIL
        assert upload.size is None or upload.offset <= upload.size
        assert (upload.version is not None) == (self.ended is UploadState.FINISHED)
        if forgettable(upload, self.now):
            assert self.ended is not None
            assert self.now >= upload.touched_us + KEPT_US
        if self.expected() is None:
            must_be_open(upload, self.now)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_late_clock_never_makes_a_session_older() -> None:
    upload = attach(fresh(), 0)
    upload = append(upload, fence=1, at=0, cut=10, tail=0, now_us=1000)
    upload = append(upload, fence=1, at=10, cut=10, tail=0, now_us=500)
    assert upload.touched_us == 1000


def test_how_long_a_session_lives() -> None:
    day = 24 * 3600 * 1_000_000
    upload = fresh()
    assert upload.expires_us == day
    for number in range(1, 7):
        upload = append(upload, fence=0, at=0, cut=0, tail=0, now_us=number * (day - 1))
    assert upload.expires_us == 7 * day - 6
    upload = append(upload, fence=0, at=0, cut=0, tail=0, now_us=7 * day - 7)
    assert upload.expires_us == 7 * day


def test_a_tail_has_bounds() -> None:
    append(fresh(), fence=0, at=0, cut=0, tail=MAX_TAIL, now_us=0)
    upload = append(fresh(), fence=0, at=0, cut=10, tail=5, now_us=0)
    for cut, tail in ((0, MAX_TAIL + 1), (10, -1)):
        with pytest.raises(OffsetMismatch) as refused:
            append(upload, fence=0, at=10, cut=cut, tail=tail, now_us=0)
        assert refused.value.offset == 15  # behind the tail: that is where the client goes on


def test_what_is_not_cut_is_not_finished() -> None:
    upload = append(fresh(15), fence=0, at=0, cut=10, tail=5, now_us=0)
    assert upload.complete
    ended: dict[str, Any] = {"now_us": 1, "node": NodeId(5), "version": VersionId(6)}
    with pytest.raises(OffsetMismatch):
        finish(upload, fence=0, **ended)
    with pytest.raises(OffsetMismatch):
        finish(append(fresh(15), fence=0, at=0, cut=10, tail=0, now_us=0), fence=0, **ended)
    upload = append(upload, fence=0, at=10, cut=5, tail=0, now_us=0)
    assert finish(upload, fence=0, **ended).state is UploadState.FINISHED


@pytest.mark.parametrize("end", ["finished", "aborted", "expired"])
def test_what_has_ended_has_no_tail_and_is_told_of_for_a_day(end: str) -> None:
    upload = append(fresh(), fence=0, at=0, cut=10, tail=5, now_us=7)
    now = upload.expires_us
    assert not forgettable(upload, 10 * now)
    if end == "finished":
        upload = append(declare(upload, 15, now - 1), fence=0, at=10, cut=5, tail=0, now_us=7)
        now -= 1
        ended = finish(upload, fence=0, now_us=now, node=None, version=None)
    elif end == "aborted":
        now -= 1
        ended = abort(upload, now)
    else:
        assert expire(upload, now - 1) == upload
        ended = expire(upload, now)
    assert (ended.state, ended.tail, ended.touched_us) == (UploadState(end), 0, now)
    assert not forgettable(ended, now + KEPT_US - 1)
    assert forgettable(ended, now + KEPT_US)
    assert expire(ended, 10 * now) == ended


def test_no_size_is_less_than_what_has_come() -> None:
    upload = append(fresh(), fence=0, at=0, cut=10, tail=5, now_us=0)
    with pytest.raises(TooLarge):
        declare(upload, 14, 0)
    upload = declare(upload, 15, 0)
    with pytest.raises(OffsetMismatch):
        declare(upload, 16, 0)
    with pytest.raises(TooLarge):
        append(upload, fence=0, at=10, cut=6, tail=0, now_us=0)
    assert declare(upload, 15, 0) == upload


def test_the_earlier_writer_neither_appends_nor_ends() -> None:
    upload = append(attach(fresh(1), 0), fence=1, at=0, cut=1, tail=0, now_us=0)
    upload = attach(upload, 0)
    assert upload.fence == 2
    for fence in (1, 3):
        with pytest.raises(Fenced):
            append(upload, fence=fence, at=1, cut=0, tail=0, now_us=0)
        with pytest.raises(Fenced):
            finish(upload, fence=fence, now_us=0, node=None, version=None)


def test_what_is_appended_follows_what_is_there() -> None:
    upload = append(fresh(), fence=0, at=0, cut=10, tail=5, now_us=0)
    for at, cut, tail in ((9, 20, 0), (11, 20, 0), (0, 20, 0), (10, 0, 4), (10, 4, 0)):
        with pytest.raises(OffsetMismatch):
            append(upload, fence=0, at=at, cut=cut, tail=tail, now_us=0)
    assert append(upload, fence=0, at=10, cut=0, tail=5, now_us=0) == upload
    assert append(upload, fence=0, at=10, cut=5, tail=0, now_us=0).offset == 15


@pytest.mark.parametrize("end", ["finished", "aborted", "expired", "overdue"])
def test_what_has_ended_is_not_changed(end: str) -> None:
    upload = append(fresh(1), fence=0, at=0, cut=1, tail=0, now_us=0)
    now, wrong = 1, UploadGone
    if end == "finished":
        upload = finish(upload, fence=0, now_us=1, node=None, version=None)
    elif end == "aborted":
        upload = abort(upload, 1)
        assert abort(upload, 2) == upload
    else:
        now, wrong = upload.expires_us, UploadExpired
        must_be_open(upload, now - 1)
    if end == "expired":
        upload = expire(upload, now)
    changes: list[Callable[[], Upload]] = [
        lambda: attach(upload, now),
        lambda: declare(upload, 1, now),
        lambda: append(upload, fence=0, at=1, cut=0, tail=0, now_us=now),
        lambda: finish(upload, fence=0, now_us=now, node=None, version=None),
    ]
    if end != "aborted":
        changes.append(lambda: abort(upload, now))
    for change in changes:
        with pytest.raises(UploadGone) as refused:
            change()
        assert type(refused.value) is wrong


def test_a_part_can_be_given_up_although_it_is_finished() -> None:
    part = append(fresh(1)._replace(path=None), fence=0, at=0, cut=1, tail=0, now_us=0)
    part = finish(part, fence=0, now_us=1, node=None, version=None)
    gone = abort(part, 2)
    assert (gone.state, gone.touched_us) == (UploadState.ABORTED, 2)

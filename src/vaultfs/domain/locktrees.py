"""The locks of one tree as several processes share them, whatever they share them through.

Theory of operation
===================

A tree's locks are a `LockTable` and three things that it does not know:

*Sessions.* What a task holds or waits for without a lease ends with its process. So each
request that waits, and each grant without a lease, is noted with the session of its
process; `bury` gives back what belongs to sessions that are no more. A lease has none: it
outlives processes, and ends by its time.

*News.* A change made for one process may grant what another waits for. What became of
such a request is kept in `news` until its session collects it, so that it hears of it even
if nobody could wake it. A lease of which a session that is no more has not heard is given
back with what else was its.

*The boot.* Moments are those of a clock that begins anew when the machine does. State that
is read after a start of the machine is moved to the new clock: leases get the time that they
had left when the state was last written, which is never too little.

Nothing here is shared by itself: a store reads the state, changes it and writes it in one
transaction (`ports.locks`).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from attrs import define, field

from vaultfs.domain import lockstate
from vaultfs.domain.locknodes import Answer, Grant, Waiting
from vaultfs.domain.locks import LockTable

News = tuple[tuple[int, int | None], ...]
"""Requests that waited, and what they got: the number of a grant, or None if nothing."""
MARKS_FOR: Final = 60.0
"""Seconds for which a session may ask whether its last change was written."""


@define(eq=False)
class TreeLocks:
    """The locks of one tree. See the head of this module."""

    table: LockTable = field(factory=LockTable)
    sessions: dict[int, str] = field(factory=dict[int, str])
    """For requests that wait, and grants without a lease: the session that they end with."""
    news: dict[int, tuple[str, int | None]] = field(factory=dict[int, tuple[str, int | None]])
    """Requests that became something, the session to be told, and the grant if there is one."""
    marks: dict[str, tuple[str, float]] = field(factory=dict[str, tuple[str, float]])
    """The mark of the last change of each session, and when that was."""
    boot: str = ""
    """Which start of the machine moments belong to."""
    changed: bool = False
    """Whether something was done to it since it was read or written."""

    def note(self, answer: Answer, session: str) -> None:
        """The request that was answered so ends with `session`."""
        self.changed = True
        if isinstance(answer, Waiting) or (isinstance(answer, Grant) and answer.expires is None):
            self.sessions[answer.id] = session

    def tick(self, now: float, boot: str = "") -> None:
        """It is `now`, in seconds since the start `boot` of the machine."""
        if boot != self.boot:
            self._move_to(boot, now)
        if self.table.tick(now):
            self.changed = True

    def _move_to(self, boot: str, now: float) -> None:
        table, before = self.table, self.table.now
        self.boot, table.now = boot, now
        for each in self._timed():
            if each.expires is not None:
                each.expires += now - before
        self.changed |= bool(table.grants or table.waiting)

    def _timed(self) -> Iterator[Grant | Waiting]:
        yield from self.table.grants.values()
        yield from self.table.waiting.values()

    def others(self, session: str) -> set[str]:
        """The sessions other than `session` that something here ends with, or is kept for."""
        every = {*self.sessions.values(), *(to for to, _ in self.news.values())}
        return every - {session}

    def bury(self, live: Collection[str]) -> None:
        """Give back what belongs to sessions that are not in `live`.

        Among it are leases that those waited for and did not hear of: nobody knows them.
        """
        self._take_passed()
        while dead := [*self._of_dead(live), *self._unheard(live)]:
            self.changed = True
            for number in dead:
                if number in self.table.waiting:
                    self.table.cancel(number)
                elif number in self.table.grants:
                    self.table.release(number)
            self._take_passed()  # one of them may have been granted what another had
            for number in dead:
                self.sessions.pop(number, None)
        self.news = {number: each for number, each in self.news.items() if each[0] in live}

    def _of_dead(self, live: Collection[str]) -> Iterator[int]:
        return (number for number, session in self.sessions.items() if session not in live)

    def _unheard(self, live: Collection[str]) -> Iterator[int]:
        for request, (session, grant) in self.news.items():
            # One that is older than the request was converted: whoever has it knows it.
            if session not in live and grant is not None and grant > request:
                yield from {grant} & self.table.grants.keys()

    def settle(self, session: str) -> News:
        """What became of requests of `session`; that of others is kept for them."""
        self._take_passed()
        if not self.news:
            return ()
        mine = tuple((number, got) for number, (to, got) in self.news.items() if to == session)
        for number, _ in mine:
            del self.news[number]
            self.changed = True
        return mine

    def sign(self, session: str, mark: str, now: float) -> None:
        """What is written next is known by `mark`, whoever else writes after it."""
        self.marks = {
            each: (last, when)
            for each, (last, when) in self.marks.items()
            if abs(now - when) < MARKS_FOR
        }
        self.marks[session] = mark, now

    def _take_passed(self) -> None:
        """Note what became of requests that waited."""
        if self.table.passed:
            self.changed = True
            for request, grant in self.table.take_passed():
                self._settled(request, grant)

    def _settled(self, request: int, grant: Grant | None) -> None:
        session = self.sessions.pop(request, "")
        self.news[request] = session, None if grant is None else grant.id
        if grant is not None and grant.expires is None and session:
            self.sessions[grant.id] = session

    @property
    def next_expiry(self) -> float | None:
        """When something runs out next."""
        times = (each.expires for each in self._timed())
        return min((time for time in times if time is not None), default=None)

    def dump(self) -> dict[str, Any]:
        """All of it, as values that JSON has."""
        alive = self.table.grants.keys() | self.table.waiting.keys()
        self.sessions = {number: each for number, each in self.sessions.items() if number in alive}
        return {
            "boot": self.boot,
            "table": lockstate.dump(self.table),
            "sessions": list(self.sessions.items()),
            "news": [[number, *each] for number, each in self.news.items()],
            "marks": {session: list(each) for session, each in self.marks.items()},
        }


def load(state: Mapping[str, Any]) -> TreeLocks:
    """The locks of which `TreeLocks.dump` gave `state`."""
    news = {number: (session, grant) for number, session, grant in state["news"]}
    marks = {session: (mark, when) for session, (mark, when) in state.get("marks", {}).items()}
    sessions = dict(map(tuple, state["sessions"]))
    return TreeLocks(lockstate.load(state["table"]), sessions, news, marks, state["boot"])


def begin(counter: int) -> TreeLocks:
    """The locks of a tree that had none, whose tokens are to be larger than `counter`."""
    locks = TreeLocks()
    locks.table.counter = counter
    return locks

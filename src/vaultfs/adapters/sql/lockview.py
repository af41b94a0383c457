"""Lock state in a transaction: read once for each tree, and written with what else it does.

A `LockCache` belongs to whatever runs transactions one after another; each of those has a
`LockView` of it. What is cached is compared by its version with the row before it is used, so
another process may change it at any time.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from attrs import define, field

from vaultfs.adapters.sql.boot import boot_id, since_boot
from vaultfs.adapters.sql.statements import Program, Run
from vaultfs.domain import locktrees
from vaultfs.domain.locktrees import News, TreeLocks
from vaultfs.domain.nodes import TreeId

T = TypeVar("T")

BEAT: Final = 3.0
"""Seconds after which a process that holds something says that it lives."""
SHARED_CLOCK: Final = "database"
"""What stands for the start of the clock where the database tells the time."""
DEAD_AFTER: Final = 10.0
"""Seconds of silence after which others give back what it held."""


def _nobody(tree: TreeId, news: News) -> None:
    """Where nobody listens."""


@define(eq=False)
class LockView:
    """What one transaction knows of the locks of trees, and has yet to write."""

    session: str = ""
    now: float = field(factory=since_boot)
    boot: str = field(factory=boot_id)
    """Which start of the clock `now` belongs to."""
    mark: str = ""
    """Noted with what is written, to know it again."""
    known: dict[TreeId, tuple[int, TreeLocks]] = field(factory=dict[TreeId, tuple[int, TreeLocks]])
    """What transactions before it have left, with the versions of the rows."""
    versions: Mapping[TreeId, int] = field(factory=dict[TreeId, int])
    """Of the rows of trees that nobody else can change now, where they were read already."""
    seen: dict[TreeId, tuple[int, TreeLocks]] = field(factory=dict[TreeId, tuple[int, TreeLocks]])
    """What this one has looked at."""
    news: list[tuple[TreeId, News]] = field(factory=list[tuple[TreeId, News]])
    """For those who wait in this process, once it is durable."""
    heard: dict[str, float] = field(factory=dict[str, float])
    """When other sessions were heard of, as far as is known."""
    beat: bool = False
    """Whether it says that this process lives."""

    def after(self, version: int) -> int:
        """The version that follows: of the first locks of a tree one that no row had before.

        For another catalog may be put in the place of the one that was read.
        """
        return version + 1 if version else int(self.now * 1_000_000)


@define(eq=False)
class LockCache:
    """What the transactions of a process leave to those after them."""

    session: str = ""
    """Of this process; empty before it asks for its first lock."""
    beat_at: float = float("-inf")
    """When it last said that it lives."""
    listener: Callable[[TreeId, News], None] = _nobody
    trees: dict[TreeId, tuple[int, TreeLocks]] = field(factory=dict[TreeId, tuple[int, TreeLocks]])
    heard: dict[str, float] = field(factory=dict[str, float])
    """When other sessions were heard of: of who was just now, nobody need ask."""
    _unsure: set[TreeId] = field(factory=set[TreeId])
    """Trees that this process may hold something in, and knows nothing of since a rollback."""
    _view: LockView | None = None
    _news: list[tuple[TreeId, News]] = field(factory=list[tuple[TreeId, News]])

    def view(self) -> LockView:
        """What a transaction that begins now is to use; `settle` ends it."""
        self._view = LockView(self.session, known=self.trees, heard=self.heard)
        return self._view

    def view_at(self, now: float, mark: str, versions: Mapping[TreeId, int]) -> LockView:
        """The same, where the database tells the time."""
        kept = (self.trees, versions)
        self._view = LockView(self.session, now, SHARED_CLOCK, mark, *kept, heard=self.heard)
        return self._view

    def keep(self, view: LockView) -> None:
        """The transaction is durable."""
        for tree, (version, locks) in view.seen.items():
            self.trees[tree] = view.after(version) if locks.changed else version, locks
            locks.changed = False
        self._unsure.difference_update(view.seen)
        self.keep_news(view)
        self._view = None

    def keep_news(self, view: LockView) -> None:
        """The transaction was durable, though it seemed to fail; others may have come since."""
        if view.beat:
            self.beat_at = view.now
        self._news += view.news

    def settle(self) -> None:
        """Forget what a transaction that was rolled back has looked at: it may have changed it."""
        if self._view is not None:
            for tree, (_, locks) in self._view.seen.items():
                self.trees.pop(tree, None)
                if self.session in locks.sessions.values():
                    self._unsure.add(tree)
            self._view = None

    def tell(self) -> None:
        """Tell those who wait in this process; on the event loop, with no transaction open."""
        if self._news:
            news, self._news = self._news, []
            for tree, each in news:
                self.listener(tree, each)

    @property
    def in_use(self) -> bool:
        """Whether anything ends with this process, as far as it knows."""
        trees = tuple(self.trees.values())
        return bool(self._unsure) or any(
            self.session in tuple(locks.sessions.values()) for _, locks in trees
        )


def locks_of(view: LockView, tree: TreeId) -> Program[TreeLocks]:
    """The locks of `tree` as they are now: the time told, the dead buried."""
    found = view.seen.get(tree)
    if found is not None:
        return found[1]
    version = view.versions.get(tree)
    if version is None:
        rows = yield Run("SELECT version FROM lock_state WHERE tree = $1", (tree,))
        version = rows[0][0] if rows else 0
    known = view.known.get(tree)
    if known is not None and known[0] == version:
        locks = known[1]
    else:
        locks = yield from _read(tree)
    view.seen[tree] = version, locks
    locks.tick(view.now, view.boot)
    if (locks.sessions or locks.news) and (others := locks.others(view.session)):
        live = yield from _living(view, others)
        locks.bury(live | {view.session})
    return locks


def _read(tree: TreeId) -> Program[TreeLocks]:
    rows = yield Run("SELECT state FROM lock_state WHERE tree = $1", (tree,))
    if rows:
        return locktrees.load(json.loads(rows[0][0]))
    rows = yield Run("SELECT next FROM counters WHERE name = 'locks'")
    return locktrees.begin(rows[0][0] - 1)


def _living(view: LockView, sessions: set[str]) -> Program[set[str]]:
    """Those of `sessions` that were heard of not long ago."""
    heard, lately = view.heard, view.now - BEAT
    if not all(heard.get(each, lately) > lately for each in sessions):
        rows = yield Run("SELECT id, seen FROM lock_sessions WHERE boot = $1", (view.boot,))
        heard.clear()
        heard.update(dict(map(tuple, rows)))
    since = view.now - DEAD_AFTER
    return {each for each in sessions if heard.get(each, since) > since}


def save(view: LockView) -> Program[None]:
    """Write what has changed; among the last things in a transaction."""
    for tree, (version, locks) in view.seen.items():
        mine = locks.settle(view.session)
        if mine:
            view.news.append((tree, mine))
        if locks.changed:
            if view.mark:
                locks.sign(view.session, view.mark, view.now)
            yield Run(
                "INSERT INTO lock_state(tree, version, state) VALUES ($1, $2, $3)"
                " ON CONFLICT (tree) DO UPDATE"
                " SET version = excluded.version, state = excluded.state",
                (tree, view.after(version), _written(locks)),
            )


def _written(locks: TreeLocks) -> str:
    return json.dumps(locks.dump(), ensure_ascii=False, separators=(",", ":"))


def change(
    view: LockView, cache: LockCache, tree: TreeId, work: Callable[[TreeLocks], T]
) -> Program[T]:
    """What `work` on the locks of `tree` returns."""
    locks = yield from locks_of(view, tree)
    result = work(locks)
    if locks.changed and view.now - cache.beat_at > BEAT:
        yield from beat(view)
    return result


def beat(view: LockView) -> Program[None]:
    """Say that this process lives."""
    yield Run(
        "INSERT INTO lock_sessions(id, boot, seen) VALUES ($1, $2, $3)"
        " ON CONFLICT (id) DO UPDATE SET boot = excluded.boot, seen = excluded.seen",
        (view.session, view.boot, view.now),
    )
    yield Run(
        "DELETE FROM lock_sessions WHERE boot <> $1 OR seen < $2",
        (view.boot, view.now - DEAD_AFTER),
    )
    view.beat = True

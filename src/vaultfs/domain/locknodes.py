"""What the lock table keeps of its grants, its requests that wait, and the nodes of its tree."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, NewType

from attrs import define, field, frozen

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.intervals import Range, Ranges
from vaultfs.domain.lockmodes import CLASH, FIELD, LUB, Mode, Resource, clash, strongest

Owner = NewType("Owner", str)
"""Who locks: an upload, a batch, a client's session. Not a user, who may be several."""
MAX_OWNER: Final = 100
"""Characters that name an owner."""


class Presented(NamedTuple):
    """What a writer says it holds: who it is, and the token that it was given."""

    owner: Owner
    token: int


def parse_presented(text: str) -> Presented:
    """What `<lease>.<token>` says. Raises `InvalidField`."""
    owner, dot, token = text.strip().rpartition(".")
    if not dot or not owner or len(owner) > MAX_OWNER or not _is_token(token):
        raise InvalidField(f"{text[:80]!r} is no lock: those are written <lease>.<token>")
    return Presented(Owner(owner), int(token))


def _is_token(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


NO_RANGES: Final[Mapping[Resource, tuple[Range, ...]]] = {}


@define(eq=False)
class Grant:
    """What an owner holds by one request."""

    id: int
    owner: Owner
    items: dict[Resource, Mode]
    plan: dict[Resource, Mode]
    """The items and the intents above them. Not to be changed."""
    ranges: Mapping[Resource, tuple[Range, ...]]
    expires: float | None
    """When it ends by itself, on the clock of `tick`; None: never."""
    nodes: "dict[Node, Mode]" = field(factory=dict["Node", Mode])
    """The same by node, once it is counted in them."""

    @property
    def token(self) -> int:
        """For fencing: larger than that of every grant before."""
        return self.id


@define(eq=False)
class Waiting:
    """A request in the queues of its nodes."""

    id: int
    owner: Owner
    items: dict[Resource, Mode]
    """Of a conversion only what changes."""
    plan: dict[Resource, Mode]
    ranges: Mapping[Resource, tuple[Range, ...]]
    expires: float | None
    converts: Grant | None
    """The grant whose modes it changes; None: it is to be a new one."""
    wants: "dict[Node, Mode]" = field(factory=dict["Node", Mode])
    """For each node what its owner will have there: with what it has already."""


@frozen
class Blocker:
    """Somebody in the way: what they hold, or wait for further ahead."""

    owner: Owner
    resource: Resource
    mode: Mode
    waits: bool = False


@frozen
class Blocked:
    """It was not to wait, and cannot be granted now."""

    blockers: tuple[Blocker, ...]


@frozen
class Link:
    """A member of a circle: it wants `resource` in `wanted`, which `holder` has in `held`."""

    owner: Owner
    request: int
    resource: Resource
    wanted: Mode
    holder: Owner
    held: Mode


@frozen
class Deadlock:
    """Waiting would never end: each of the circle waits for the next, the last for the first."""

    circle: tuple[Link, ...]


@frozen
class OwnerBusy:
    """The owner waits for something else already, and cannot ask for more until it has that."""

    request: int


FIRST: Final = tuple((FIELD[mode], mode) for mode in Mode)
"""What an owner has who has one grant."""
Answer = Grant | Waiting | Blocked | Deadlock | OwnerBusy


class Node:
    """A resource that somebody holds or waits for. The table's own."""

    __slots__ = ("held", "holds", "queue", "ranges", "resource", "wanted")

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.holds: dict[Owner, tuple[int, Mode]] = {}
        """For each owner the counts of its grants by mode, and their least upper bound."""
        self.held = 0
        """How many owners have it in each effective mode, as `FIELD`s."""
        self.queue: OrderedDict[Waiting, Mode] | None = None
        """Who waits, in order, and what for."""
        self.wanted = 0
        """How many wait for each mode, as `FIELD`s."""
        self.ranges: dict[Owner, Ranges] | None = None

    def add(self, owner: Owner, mode: Mode) -> None:
        """Count one more grant of `owner`."""
        if owner not in self.holds:
            self.holds[owner] = FIRST[mode]
            self.held += FIELD[mode]
            return
        counts, before = self.holds[owner]
        after = LUB[before][mode]
        self.holds[owner] = (counts + FIELD[mode], after)
        self.held += FIELD[after] - FIELD[before]

    def remove(self, owner: Owner, mode: Mode) -> Mode | None:
        """Count one grant less; the owner's effective mode until now, if it has become weaker."""
        counts, before = self.holds[owner]
        counts -= FIELD[mode]
        if not counts:
            del self.holds[owner]
            self.held -= FIELD[before]
            return before
        after = strongest(counts)
        self.holds[owner] = (counts, after)
        if after is before:
            return None
        self.held += FIELD[after] - FIELD[before]
        return before

    def has(self, owner: Owner) -> Mode | None:
        """The effective mode of `owner`."""
        hold = self.holds.get(owner)
        return None if hold is None else hold[1]

    def enter(self, request: Waiting, want: Mode, mine: Mode | None) -> None:
        """Take a place: last, but in front of those who clash with `mine`, which its owner has."""
        queue = self.queue
        if queue is None:
            queue = self.queue = OrderedDict()
        before = None
        if mine is not None and self.wanted & CLASH[mine]:
            before = next((other for other, mode in queue.items() if clash(mode, mine)), None)
        queue[request] = want
        self.wanted += FIELD[want]
        if before is not None:
            self.move(request, before)

    def move(self, request: Waiting, before: Waiting) -> None:
        """Let `request`, which is further back, go in front of `before`."""
        places = [each for each in self.queue or () if each is not request]
        places.insert(places.index(before), request)
        self.order(places)

    def order(self, places: Iterable[Waiting]) -> None:
        """Put the queue in this order."""
        if self.queue is not None:
            for each in places:
                self.queue.move_to_end(each)

    def leave(self, request: Waiting) -> None:
        """Give up a place."""
        queue = self.queue
        if queue is not None:
            self.wanted -= FIELD[queue.pop(request)]
            if not queue:
                self.queue = None

    @property
    def first(self) -> Waiting | None:
        """Who waits at the head of the queue."""
        return None if self.queue is None else next(iter(self.queue))

    def ahead(self, request: Waiting) -> Iterator[tuple[Waiting, Mode]]:
        """Who is in front of `request`."""
        for other, mode in (self.queue or {}).items():
            if other is request:
                return
            yield other, mode

    def unused(self) -> bool:
        """Whether nobody holds it or waits for it."""
        return not self.holds and self.queue is None

    def holders_against(self, request: Waiting, want: Mode) -> Iterator[tuple[Owner, Mode]]:
        """The owners whose hold on it keeps `request` from it."""
        owner = request.owner
        mine = self.has(owner)
        if (
            mine is not want
            and (self.held - (FIELD[mine] if mine is not None else 0)) & CLASH[want]
        ):
            for other, (_, mode) in self.holds.items():
                if other != owner and clash(mode, want):
                    yield other, mode
        if self.ranges:
            asked = request.ranges.get(self.resource, ())
            for other, ranges in self.ranges.items():
                if other != owner and any(ranges.meets(each) for each in asked):
                    yield other, self.holds[other][1]

    def waiters_against(self, request: Waiting, want: Mode) -> Iterator[tuple[Waiting, Mode]]:
        """Who is further ahead in the queue of it and would clash with `request`."""
        asked = request.ranges.get(self.resource)
        covered = self.has(request.owner) is want
        if asked is None and (covered or not (self.wanted - FIELD[want]) & CLASH[want]):
            return
        for other, mode in self.ahead(request):
            clashes = not covered and clash(mode, want)
            if clashes or (asked and _meet(asked, other.ranges.get(self.resource, ()))):
                yield other, mode


def _meet(some: Sequence[Range], others: Sequence[Range]) -> bool:
    return any(one.meets(other) for one in some for other in others)

"""Collections beside writers, in any order: no chunk of a committed version is ever lost.

What decides and what changes the catalog is the product's own: the pure functions of
`domain.collection` and the programs of `adapters.sql`, run on SQLite in memory, a
transaction at a time. Around them several writers, collectors and a store are simulated as
coroutines that stop between two effects; which one goes on, which crashes, and what the
clock says is decided by a seed. Objects may be deleted long after the store said so. With
each rule of safety taken away, a chunk is lost before long.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from random import Random
from typing import Any, Final, TypeVar

import pytest
from attrs import define, evolve, field

from vaultfs.adapters.sql import collections, queries, stock
from vaultfs.adapters.sql.connections import drive, execute, open_writer
from vaultfs.adapters.sql.programs import finish, run_unit
from vaultfs.adapters.sql.statements import Program, Run, to_known
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain import collecting as steps
from vaultfs.domain import collection
from vaultfs.domain import operations as ops
from vaultfs.domain.collection import ChunkRow, Marks, PackUse, count_needed, plan
from vaultfs.domain.digests import Digest, digest_of
from vaultfs.domain.errors import Busy, Doomed, Fenced, PacksGone, VaultError
from vaultfs.domain.manifests import Manifest, unpack_entries
from vaultfs.domain.nodes import Content, DigestState, NodeId, TreeId, UserId
from vaultfs.domain.operations import Operation, Result, Unit
from vaultfs.domain.packs import CHUNK_EXTRA, PACK_EXTRA, Codec, Kind, PackEntry
from vaultfs.domain.uploads import IDLE_US, Upload, UploadState, holder_of

USERS: Final = 3
CHUNKS: Final = 60
NAMES: Final = 4
HOUR: Final = 3600 * 1_000_000
SIZE: Final = 100
STEPS: Final = int(os.environ.get("VAULTFS_SIMULATED", "1000000"))

Actor = Generator[None, None, None]


class Lost(AssertionError):
    """A version, a session or somebody who holds a promise needs what is not there."""


def chunk(number: int) -> Digest:
    return digest_of(b"chunk %d" % number)


def pack_size(part: Sequence[Digest]) -> int:
    return PACK_EXTRA + (CHUNK_EXTRA + SIZE) * len(part)


@define(eq=False)
class World:
    """The catalog, the store, and the clock."""

    random: Random
    now: int = 10**15
    store: dict[Digest, tuple[Digest, ...]] = field(factory=dict[Digest, tuple[Digest, ...]])
    late: list[Digest] = field(factory=list[Digest])
    """Objects that the store has said are deleted, and still has."""
    grace: int = 0
    serial: int = 0
    commits: int = 0
    discards: int = 0
    rescues: int = 0
    connection: sqlite3.Connection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = open_writer(None, create=True)[0]
        self.connection.execute("PRAGMA synchronous = OFF")
        for number in range(1, USERS + 1):
            self.apply(UserId(0), ops.AddUser(f"u{number}"))

    def close(self) -> None:
        self.connection.close()

    # Transactions

    def apply(self, actor: UserId, *operations: Operation, relies: Iterable[int] = ()) -> Result:
        """The result of the last of `operations`. Raises what they are refused with."""
        self.serial += 1
        unit = Unit(actor, self.now, f"op-{self.serial}", operations, (), tuple(set(relies)))
        results: list[Result] = []

        def run(tx: Transaction) -> Program[None]:
            return run_unit(tx, unit, results)

        self._transact(run)
        return results[-1]

    def step(self, step: steps.Step) -> int:
        unit = Unit(UserId(0), self.now, "collector", ())
        answers: list[int] = []

        def run(tx: Transaction) -> Program[None]:
            answers.append((yield from collections.execute(step, unit, tx)))

        self._transact(run)
        return answers[-1]

    def _transact(self, program: Callable[[Transaction], Program[None]]) -> None:
        tx = Transaction()
        self.connection.execute("BEGIN")
        try:
            drive(self.connection, program(tx))
            drive(self.connection, finish(tx))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    # The store

    def put(self, digests: tuple[Digest, ...]) -> Digest:
        """Store a pack; its key is made of what is in it."""
        key = digest_of(b"".join(digests))
        self.store.setdefault(key, digests)
        return key

    def delete(self, key: Digest) -> None:
        if self.random.random() < 0.2:
            self.late.append(key)
        else:
            self.store.pop(key, None)

    # What has to hold

    def check(self) -> None:
        """Everything that is needed can be read."""
        places = {
            (digest, user): key
            for digest, user, key in self.rows(
                "SELECT c.digest, c.user, p.key FROM chunks c JOIN packs p ON p.id = c.pack"
            )
        }
        for owner, manifest, entries in self.rows(
            f"{queries.VERSIONS_NAMING} UNION ALL {queries.UPLOADS_NAMING}"
        ):
            named = (
                Manifest.decode(manifest).entries
                if manifest is not None
                else unpack_entries(entries)
            )
            for digest, _ in named:
                key = places.get((digest, owner))
                if key is None:
                    raise Lost(f"no row for a chunk of user {owner}")
                if digest not in self.store.get(key, ()):
                    raise Lost(f"the pack of a chunk of user {owner} is gone")


# Writers


def writer(world: World, user: UserId) -> Actor:
    """Put a file: look up, put packs, record them, commit; maybe through a session."""
    random = world.random
    digests = [chunk(number) for number in random.sample(range(CHUNKS), random.randint(1, 4))]
    known = to_known(queries.by_digest(queries.KNOWN, user, digests, world.connection))
    relies, foreign = set(known.own.values()), list(known.foreign)
    missing = [each for each in digests if each not in known.own and each not in known.foreign]
    yield
    while missing:
        count = random.randint(1, len(missing))
        part, missing = tuple(missing[:count]), missing[count:]
        relies.update((yield from store(world, user, part)))
        yield
    if random.random() < 0.2:  # a slow one
        for _ in range(random.randrange(300)):
            yield
    entries = tuple((digest, SIZE) for digest in digests)
    claims = (ops.ClaimChunks(user, tuple(foreign)),) if foreign else ()
    put = ops.PutFile(
        TreeId(user),
        (f"f{random.randrange(NAMES)}",),
        Content(Manifest(0, entries), None, DigestState.ABSENT),
    )
    if random.random() < 0.3:
        yield from through_a_session(world, user, put, claims, relies)
    else:
        yield from commit(world, user, (*claims, put), digests, foreign, relies)


def store(world: World, user: UserId, part: tuple[Digest, ...]) -> Generator[None, None, set[int]]:
    """Have a pack of `part` stored and recorded; the packs that its chunks are in."""
    while True:
        key = world.put(part)
        yield
        entries = tuple(
            PackEntry(digest, 16 + 100 * index, SIZE, SIZE, Codec.RAW, Kind.DATA)
            for index, digest in enumerate(part)
        )
        claims = ((user, tuple(i for i, each in enumerate(part) if each[:1] != b"\0" or i < 99)),)
        try:
            done = world.apply(
                UserId(0), ops.RecordPack(key, pack_size(part), None, "store", entries, claims)
            )
        except Doomed:
            world.serial += 1
            part = (*part, digest_of(b"extra %d" % world.serial))
            continue
        return set(done.packs)


def commit(
    world: World,
    user: UserId,
    operations: tuple[Operation, ...],
    digests: list[Digest],
    foreign: list[Digest],
    relies: set[int],
) -> Actor:
    try:
        world.apply(user, *operations, relies=relies)
        world.commits += 1
    except PacksGone:
        yield
        known = to_known(queries.by_digest(queries.KNOWN, user, digests, world.connection))
        if all(each in known.own or each in foreign for each in digests):
            yield
            try:
                world.apply(user, *operations, relies=known.own.values())
                world.commits += 1
            except VaultError:
                return
    except VaultError:  # nobody has a chunk of others any more, a folder is in the way, ...
        return


def through_a_session(
    world: World,
    user: UserId,
    put: ops.PutFile,
    claims: tuple[Operation, ...],
    relies: set[int],
) -> Actor:
    world.serial += 1
    entries = put.content.manifest.entries
    name = f"upload-{world.serial}"
    upload = Upload(
        *(name, TreeId(user), user, put.path, UploadState.OPEN, 1, SIZE * len(entries), 0, 0, "{}"),
        *(world.now, world.now),
    )
    world.apply(user, ops.CreateUpload(upload))
    yield
    try:
        append = ops.AppendUpload(TreeId(user), name, 1, 0, entries, b"")
        world.apply(user, *claims, append, relies=relies)
        yield
        if world.random.random() < 0.3:  # somebody goes away for long
            for _ in range(200):
                yield
        world.apply(user, ops.FinishUpload(TreeId(user), name, 1, put))
        world.commits += 1
    except VaultError:
        with suppress(VaultError):  # it may have expired
            world.apply(user, ops.AbortUpload(TreeId(user), name))


def asker(world: World, user: UserId) -> Actor:
    """Be promised chunks, and rely on that within the time."""
    digests = [chunk(number) for number in world.random.sample(range(CHUNKS), 4)]
    known = to_known(queries.by_digest(queries.KNOWN, user, digests, world.connection))
    mine = tuple(known.own)
    if not mine:
        return
    until = world.now + IDLE_US
    try:
        world.apply(user, ops.PinChunks(user, holder_of(user), mine, until))
    except VaultError:
        return
    for _ in range(world.random.randrange(60)):
        yield
        if world.now >= until:
            return
    found = to_known(queries.by_digest(queries.KNOWN, user, mine, world.connection))
    if set(found.own) != set(mine) and world.now < until:
        raise Lost("what was promised is gone")


def changer(world: World, user: UserId) -> Actor:
    """Move, copy, delete, restore, purge, prune: what needs chunks without looking them up."""
    random, tree = world.random, TreeId(user)
    path, other = ((f"f{random.randrange(NAMES)}",) for _ in range(2))
    trashed = [
        NodeId(int(str(row[0])))
        for row in world.rows("SELECT id FROM nodes WHERE tree = ? AND trashed IS NOT NULL", tree)
    ]
    found: list[Operation] = [
        ops.Copy(tree, path, other, replace=True),
        ops.Delete(tree, path),
        ops.Delete(tree, other),
        ops.RestoreVersion(tree, path, 1),
    ]
    if trashed:
        node = random.choice(trashed)
        found += [ops.Restore(tree, node), *(ops.Purge(tree, node) for _ in range(4))]
    for number, node in world.rows(
        "SELECT v.id, v.node FROM versions v JOIN nodes n ON n.id = v.node"
        " WHERE n.tree = ? AND v.id <> n.version LIMIT 1",
        tree,
    ):
        found += [ops.Prune(tree, node, (number,))] * 4
    found.append(ops.ExpireUploads(tree))
    with suppress(VaultError):
        world.apply(user, random.choice(found))
    yield


# Collectors


def collector(world: World, name: int) -> Actor:
    """As `services.collector`, with everything else happening between its effects."""
    try:
        number = world.step(steps.Begin(f"collector-{name}"))
        yield
        yield from delete_doomed(world, number)
        marks = Marks(CHUNKS * USERS, number)
        note(marks, world)
        yield
        packs = yield from used(world, marks)
        found = plan(packs, number, world.now, grace_us=world.grace, young_us=world.grace)
        if found.revive:
            world.step(steps.Revive(tuple(pack.number for pack in found.revive)))
        yield
        for pack in found.condemn:
            world.step(steps.Condemn(number, (pack.number,)))
            yield
        for pack in found.discard:
            digests = world.store.get(pack.key, ())
            done = world.step(steps.Discard(number, pack.number, digests, world.grace))
            world.discards += done
            yield
        for group in found.rewrite:
            yield from merge(world, number, group, marks)
        yield from delete_doomed(world, number)
        yield from orphans(world, number)
        world.step(steps.End(number, complete=True, report="{}"))
    except (Busy, Fenced):
        return


def note(marks: Marks, world: World) -> None:
    for owner, manifest, entries in world.rows(
        f"{queries.VERSIONS_NAMING} UNION ALL {queries.UPLOADS_NAMING}"
    ):
        named = (
            Manifest.decode(manifest).entries if manifest is not None else unpack_entries(entries)
        )
        marks.add(owner, [digest for digest, _ in named])


def used(world: World, marks: Marks) -> Generator[None, None, list[PackUse]]:
    needed: dict[int, int] = {}
    after: object = b""
    while found := execute(world.connection, queries.CHUNK_ROWS, (after, 40)).fetchall():
        yield
        more = execute(world.connection, queries.MORE_OWNERS, found[-1][:2])
        rows = [ChunkRow(*row) for row in [*found, *more]]
        count_needed(marks, rows, needed)
        after = rows[-1][0]
        yield
    found = execute(world.connection, collections.PACK_USE, (world.now,)).fetchall()
    packs = map(collections.to_pack_use, found)
    return [evolve(pack, needed=needed.get(pack.number, 0)) for pack in packs]


def merge(world: World, number: int, group: tuple[PackUse, ...], marks: Marks) -> Actor:
    """Move what is needed of a group into a new pack."""
    places: dict[Digest, list[int]] = {}
    for pack in group:
        for digest, user in world.rows(
            "SELECT digest, user FROM chunks WHERE pack = ?", pack.number
        ):
            if marks.has(user, digest):
                places.setdefault(digest, []).append(pack.number)
    if not places:
        return
    yield
    part = tuple(places)
    key = world.put(part)
    yield
    entries = tuple(
        PackEntry(digest, 16 + 100 * index, SIZE, SIZE, Codec.RAW, Kind.DATA)
        for index, digest in enumerate(part)
    )
    record = ops.RecordPack(key, pack_size(part), None, "store", entries, ())
    moves = tuple(
        (index, pack) for index, digest in enumerate(part) for pack in set(places[digest])
    )
    try:
        sources = tuple(pack.number for pack in group)
        world.step(steps.MoveChunks(number, record, moves, sources))
    except Doomed:
        return
    yield


def delete_doomed(world: World, number: int) -> Actor:
    keys = [
        Digest(bytes(row[0])) for row in world.rows("SELECT key FROM doomed WHERE deleted IS NULL")
    ]
    for key in keys:
        world.delete(key)
        yield
    world.step(steps.NoteDeleted(number, tuple(keys)))


def orphans(world: World, number: int) -> Actor:
    """What a listing shows, which may be stale, and no row names."""
    listed = [key for key in world.store if world.random.random() < 0.8]
    yield
    named = {row[0] for row in world.rows("SELECT key FROM packs")}
    found = tuple(key for key in listed if key not in named)
    yield
    if found:
        world.step(steps.Doom(number, found))
        yield
        yield from delete_doomed(world, number)


# Running it


def simulate(seed: int, count: int) -> World:
    """`count` effects of writers and collectors. Raises `Lost`."""
    random = Random(seed)
    with closing(World(random, grace=random.choice((0, 0, 2 * HOUR)))) as world:
        run(world, random, count)
    return world


def run(world: World, random: Random, count: int) -> None:
    """`count` effects in `world`. Raises `Lost`."""
    actors: list[Actor] = []
    collectors: list[Actor] = []
    serial = 0
    for index in range(count):
        world.now += random.randrange(20 * 1_000_000)
        if random.random() < 0.001:  # clocks jump, also back
            world.now += random.randrange(-30, 60) * HOUR
        if world.late and random.random() < 0.05:
            world.store.pop(world.late.pop(), None)
        if len(actors) < 8:
            serial += 1
            kind = random.choices((writer, changer, asker), (6, 14, 2))[0]
            actors.append(kind(world, UserId(random.randint(1, USERS))))
        if len(collectors) < 2:
            serial += 1
            collectors.append(collector(world, serial))
        running = actors if random.random() < 0.6 else collectors
        place = random.randrange(len(running))
        actor = running[place]
        if random.random() < 0.004:
            running.pop(place).close()  # a crash
            continue
        before = world.discards
        try:
            next(actor)
        except StopIteration:
            running.pop(place)
        if world.discards != before or not index % 50:
            world.check()
    world.check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_no_chunk_of_a_version_is_ever_lost(seed: int) -> None:
    world = simulate(seed, STEPS // 4)
    assert world.commits > STEPS // 1000
    assert world.discards > STEPS // 2000


# Each rule of safety, taken away


# pyright: reportPrivateUsage=false


def no_reliance(patch: pytest.MonkeyPatch) -> None:
    """Commits do not look whether the packs are there."""

    def rely(_: Transaction, __: Unit) -> Program[None]:
        return
        yield

    patch.setattr(stock, "rely", rely)


def no_rescue(patch: pytest.MonkeyPatch) -> None:
    """Commits leave packs condemned."""

    def rescue(_: Iterable[int]) -> Program[None]:
        return
        yield

    patch.setattr(stock, "rescue", rescue)


def no_pins(patch: pytest.MonkeyPatch) -> None:
    """What was promised is no reason to keep a pack."""

    decide = collections.to_pack_use

    def to_pack_use(row: Sequence[object]) -> PackUse:
        return evolve(decide(row), pinned=False)

    patch.setattr(collections, "to_pack_use", to_pack_use)


def one_mark(patch: pytest.MonkeyPatch) -> None:
    """What a collection condemns it discards itself."""

    decide = plan

    def plan_at_once(
        packs: Iterable[PackUse], number: int, now: int, *, grace_us: int, young_us: int
    ) -> collection.Plan:
        found = decide(packs, number, now, grace_us=grace_us, young_us=young_us)
        return evolve(found, discard=(*found.discard, *found.condemn))

    def may_discard(pack: PackUse, *_: int) -> bool:
        return not pack.pinned

    patch.setattr(sys.modules[__name__], "plan", plan_at_once)
    patch.setattr(collections, "may_discard", may_discard)


def errors_ignored(patch: pytest.MonkeyPatch) -> None:
    """A mark that has not seen all is taken for complete."""

    def note_some(marks: Marks, world: World) -> None:
        if world.random.random() < 0.8:
            note_all(marks, world)

    note_all = note
    patch.setattr(sys.modules[__name__], "note", note_some)


def bytes_before_rows(patch: pytest.MonkeyPatch) -> None:
    """Objects go before their rows."""

    def delete_first(world: World, step: steps.Step) -> int:
        if isinstance(step, steps.Discard):
            for (key,) in world.rows("SELECT key FROM packs WHERE id = ?", step.pack):
                world.store.pop(key, None)
        return world_step(world, step)

    world_step = World.step
    patch.setattr(World, "step", delete_first)


def keys_used_again(patch: pytest.MonkeyPatch) -> None:
    """A key is as good as new once the store says that its object is deleted."""
    note_deleted = World.step

    def forget(world: World, step: steps.Step) -> int:
        answer = note_deleted(world, step)
        if isinstance(step, steps.NoteDeleted):
            world.connection.execute("DELETE FROM doomed WHERE deleted IS NOT NULL")
        return answer

    patch.setattr(World, "step", forget)


def no_doom(patch: pytest.MonkeyPatch) -> None:
    """Packs are recorded under keys that are being deleted."""
    run = stock._pack_id

    def pack_id(tx: Transaction, unit: Unit, op: ops.RecordPack) -> Program[int]:
        yield Run("DELETE FROM doomed WHERE key = $1", (op.key,))
        return (yield from run(tx, unit, op))

    patch.setattr(stock, "_pack_id", pack_id)


MUTANTS = (
    *(no_reliance, no_rescue, no_pins, one_mark),
    *(errors_ignored, bytes_before_rows, keys_used_again, no_doom),
)


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.slow
def test_without_any_rule_a_chunk_is_lost(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(Lost):
        for seed in range(40):
            simulate(seed, 5000)


@pytest.mark.parametrize("rule", [True, False])
def test_a_pack_that_was_rewritten_is_relied_on_no_more(
    *, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks may be elsewhere, and gone from there while the pack itself is kept."""
    if not rule:
        relied = stock._RELIED.replace(" WHERE p.rewritten = 0", "")
        monkeypatch.setattr(stock, "_RELIED", relied)
    with closing(World(Random(1))) as world:
        rely_on_what_was_rewritten(world, rule=rule)


def rely_on_what_was_rewritten(world: World, *, rule: bool) -> None:
    user = UserId(1)
    wanted, other, third = map(chunk, range(3))
    relies = ended(store(world, user, (wanted, other, third)))

    def put(name: str, *chunks: Digest, by: UserId = user) -> ops.PutFile:
        entries = tuple((each, SIZE) for each in chunks)
        content = Content(Manifest(0, entries), None, DigestState.ABSENT)
        return ops.PutFile(TreeId(by), (name,), content)

    world.apply(user, put("first", wanted), relies=relies)
    ended(collector(world, 1))  # moves what is needed
    claim = ops.ClaimChunks(UserId(2), (other, third))
    world.apply(UserId(2), claim, put("kept", other, third, by=UserId(2)))
    gone = world.apply(user, ops.Delete(TreeId(user), ("first",))).node
    assert gone is not None
    world.apply(user, ops.Purge(TreeId(user), gone.id))
    ended(collector(world, 2))
    ended(collector(world, 3))
    assert not world.rows("SELECT 1 FROM chunks WHERE digest = ?", wanted)
    if rule:
        with pytest.raises(PacksGone):
            world.apply(user, put("second", wanted), relies=relies)
        world.check()
        return
    world.apply(user, put("second", wanted), relies=relies)
    with pytest.raises(Lost):
        world.check()


T = TypeVar("T")


def ended(actor: Generator[None, None, T]) -> T:
    """Run `actor` to its end; what it returns."""
    while True:
        try:
            next(actor)
        except StopIteration as end:
            result: T = end.value
            return result

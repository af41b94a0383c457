"""A process that executes batches in a catalog, and may kill itself in the middle of one.

    python -m tests.batch_child once WHERE NUMBER    one batch of 50; dies before statement NUMBER
    python -m tests.batch_child many WHERE SEED ROUNDS    random batches, moves and puts

`WHERE` is the address of a PostgreSQL or a SQLite file that holds the user `me`. `many` says
in the end how often which outcome came, and every error that no batch may lead to.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import anyio
from tests.contracts.callers import content

from vaultfs.adapters.sql import batches
from vaultfs.adapters.sql.postgres import PostgresCatalog
from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.adapters.sql.statements import Program, Run, RunMany
from vaultfs.adapters.sql.transaction import Transaction
from vaultfs.domain.batches import Batch, Mode, Outcome
from vaultfs.domain.batchparsing import parse_steps
from vaultfs.domain.names import Path as VaultPath
from vaultfs.domain.nodes import User
from vaultfs.domain.operations import MakeFolder, Move, Operation, PutFile, Unit
from vaultfs.ports.catalog import Catalog

NAMES: Final = "abcd"
Op = dict[str, Any]
T = TypeVar("T")


async def open_catalog(where: str, *, create: bool = False) -> Catalog:
    if where.startswith("postgresql:"):
        return await PostgresCatalog.open(where, create=create)
    return await SqliteCatalog.open(Path(where), create=create)


def fifty() -> list[Op]:
    """Fifty operations of all kinds, for a tree that `prepare` has made."""
    ops: list[Op] = [
        {"op": "mkdir", "path": f"/new/{number}", "parents": True} for number in (1, 2)
    ]
    for number in range(12):
        ops += [
            {"op": "move", "src": f"/from/{number}", "dst": f"/new/1/{number}", "id": f"m{number}"},
            {
                "op": "copy",
                "src": {"ref": f"m{number}"},
                "dst": "/new/2/c",
                "on_conflict": "rename",
            },
            {"op": "set_metadata", "target": {"ref": f"m{number}"}, "merge": {"n": number}},
            {"op": "delete", "target": f"/gone/{number}", "id": f"d{number}"},
        ]
    return [*ops[:-1], {"op": "restore", "node": {"ref": "d3"}, "dst": "/back"}][:50]


async def prepare(catalog: Catalog, user: User) -> None:
    """What `fifty` works on."""
    puts = [
        PutFile(user.tree, (folder, str(number)), content(f"{folder}{number}"), parents=True)
        for folder in ("from", "gone")
        for number in range(12)
    ]
    await catalog.apply([Unit(user.id, 1, "prepare", tuple(puts))])


def batch_of(user: User, ops: list[Op], number: str, mode: Mode = Mode.ATOMIC) -> Batch:
    steps = parse_steps(ops, user.name, {user.name: user.tree})
    return Batch(user.id, 1_000_000, number, tuple(steps), mode)


def tapped(program: Program[T], told: Callable[[Run | RunMany], None]) -> Program[T]:
    """`program`; `told` is called before each of its statements."""
    answer: Any = None
    while True:
        try:
            asked = program.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        told(asked)
        answer = yield asked


def watched(step: Callable[[int], None]) -> None:
    """Have `step` called before each statement of a batch, with its number."""
    execute = batches.execute

    def counted(batch: Batch, tx: Transaction) -> Program[Outcome]:
        numbers = count(1)
        outcome = yield from tapped(execute(batch, tx), lambda _: step(next(numbers)))
        step(next(numbers))
        return outcome

    batches.execute = counted


async def once(where: str, deadly: int) -> None:
    def step(number: int) -> None:
        if number == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    watched(step)
    catalog = await open_catalog(where)
    user = await catalog.user("me")
    outcome = await catalog.batch(batch_of(user, fifty(), "the batch"))
    sys.stdout.write(f"done {outcome.committed}\n")
    sys.stdout.flush()
    await catalog.aclose()


async def many(where: str, seed: int, rounds: int) -> None:
    """Overlapping batches in any order, and beside them folders that are moved."""
    random, said = Random(seed), Counter[str]()
    catalog = await open_catalog(where)
    user = await catalog.user("me")
    for number in range(rounds):
        name = f"{seed}-{number}"
        if random.random() < 0.3:
            said[await _single(catalog, user, random, name)] += 1
            continue
        ops = [_op(random) for _ in range(random.choice((1, 2, 3, 20)))]
        if random.random() < 0.5:
            ops.reverse()
        mode = random.choice(list(Mode))
        outcome = await catalog.batch(batch_of(user, ops, name, mode))
        said[f"{mode} {'done' if outcome.committed else 'refused'}"] += 1
    await catalog.aclose()
    sys.stdout.write(json.dumps(said) + "\n")


def _path(random: Random) -> VaultPath:
    return tuple(random.choice(NAMES) for _ in range(random.randrange(1, 4)))


def _text(random: Random) -> str:
    return "/" + "/".join(_path(random))


def _op(random: Random) -> Op:
    conflict = random.choice(["fail", "replace", "rename", "skip"])
    match random.randrange(6):
        case 0:
            return {"op": "mkdir", "path": _text(random), "parents": True, "if_exists": "ok"}
        case 1 | 2:
            pair = {"src": _text(random), "dst": _text(random)}
            return {"op": "move", **pair, "on_conflict": conflict}
        case 3:
            pair = {"src": _text(random), "dst": _text(random)}
            return {"op": "copy", **pair, "on_conflict": conflict}
        case 4:
            return {"op": "set_metadata", "target": _text(random), "merge": {"a": 1}}
        case _:
            return {"op": "delete", "target": _text(random), "recursive": True}


async def _single(catalog: Catalog, user: User, random: Random, name: str) -> str:
    tree, path = user.tree, _path(random)
    operations: list[Operation] = [
        PutFile(tree, path, content(name), parents=True),
        MakeFolder(tree, path, parents=True, exist_ok=True),
        Move(tree, path, _path(random), replace=True),
    ]
    operation = random.choice(operations)
    [outcome] = await catalog.apply([Unit(user.id, 1_000_000, name, (operation,))])
    return f"single {type(outcome).__name__}"


if __name__ == "__main__":
    what, place, *numbers = sys.argv[1:]
    if what == "once":
        anyio.run(once, place, int(numbers[0]))
    else:
        anyio.run(many, place, int(numbers[0]), int(numbers[1]))

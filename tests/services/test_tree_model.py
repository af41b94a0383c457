"""A catalog does to a tree what a model of a hundred lines does to a dictionary."""

import json
from copy import deepcopy
from random import Random

import pytest
from tests.contracts.callers import Caller, add_user
from tests.contracts.model import TREE, Chooser, Model, Step, Thing

from vaultfs.adapters.sql.sqlite import SqliteCatalog
from vaultfs.domain.batches import Batch, Change, Mode
from vaultfs.domain.batches import Step as BatchStep
from vaultfs.domain.errors import DependencyFailed, NotFound, VaultError
from vaultfs.domain.nodes import Node
from vaultfs.domain.operations import Refused
from vaultfs.ports.catalog import Trashed


@pytest.mark.parametrize("seed", range(25))
async def test_the_catalog_does_as_the_model_does(seed: int) -> None:
    catalog, random = await SqliteCatalog.open(None), Random(seed)
    try:
        me = Caller(catalog, await add_user(catalog, "me"))
        assert me.tree == TREE
        model = Model()
        for _ in range(40):
            model = await _step(model, me, Chooser(model, random).step())
            await _compare(model, me)
    finally:
        await catalog.aclose()


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(20))
async def test_a_batch_does_as_the_model_does(seed: int, mode: Mode) -> None:
    catalog, random = await SqliteCatalog.open(None), Random(seed)
    try:
        me = Caller(catalog, await add_user(catalog, "me"))
        model = Model()
        for number in range(12):
            for _ in range(4):
                model = await _step(model, me, Chooser(model, random).step())
                await _compare(model, me)
            model = await _batch(model, me, random, mode, dry_run=number % 4 == 3)
            await _compare(model, me)
    finally:
        await catalog.aclose()


async def _batch(model: Model, me: Caller, random: Random, mode: Mode, *, dry_run: bool) -> Model:
    """The model after a batch of steps that are right more often than not."""
    changed, steps, errors = model, list[Change](), list[type | None]()
    while len(steps) < 8:
        step = Chooser(changed, random).step()
        if not isinstance(step, Change):
            continue
        tried = deepcopy(changed)
        try:
            tried.apply(step)
        except VaultError as error:
            if random.random() < 0.7:
                continue
            errors.append(type(error))
        else:
            errors.append(None)
            changed = tried
        steps.append(step)
    me.now += 1_000_000
    batch = Batch(me.user.id, me.now, f"b{me.now}", tuple(map(BatchStep, steps)), mode, dry_run)
    outcome = await me.catalog.batch(batch)
    for ended, expected in zip(outcome.ended, errors, strict=True):
        found = None if ended.error is None else type(ended.error)
        if found is DependencyFailed:
            assert expected is not None
            assert issubclass(expected, NotFound)
        else:
            assert found is expected
    happened = not dry_run and (mode is Mode.BEST_EFFORT or not any(errors))
    assert outcome.committed is happened
    return changed if happened else model


async def _step(model: Model, me: Caller, step: Step) -> Model:
    """The model after a step that both have made or refused."""
    changed, refusal = deepcopy(model), None
    try:
        changed.apply(step)
    except VaultError as error:
        refusal = type(error)
    outcome = await me.outcome(step)
    found = type(outcome.error) if isinstance(outcome, Refused) else None
    assert found is refusal, outcome
    return changed if refusal is None else model


async def _compare(model: Model, me: Caller) -> None:
    await _compare_folder(model.root, me)
    found = await me.catalog.trash(me.tree)
    _learn_ids(model, found)
    trashed = {thing.id: thing for thing in model.trash()}
    for node, path in found:
        thing = trashed.pop(node.id)
        assert path == thing.path
        await _compare_node(thing, node, me)
    assert not trashed
    assert await me.used() == model.used
    assert [kind for kind, _ in await me.feed()] == model.feed
    assert await me.catalog.check() == []


def _learn_ids(model: Model, found: list[Trashed]) -> None:
    """Those of things that came and went within one batch: by their paths, oldest first."""
    known = {thing.id for thing in model.root.below()}
    new = [(node.id, path) for node, path in found if node.id not in known]
    for thing in model.trash():
        if thing.id is None:
            mine = next(each for each in new if each[1] == thing.path)
            new.remove(mine)
            thing.id = mine[0]


async def _compare_folder(folder: Thing, me: Caller) -> None:
    things = folder.live()
    assert folder.id is not None
    nodes = await me.catalog.children(folder.id)
    assert [node.name for node in nodes] == [thing.name for thing in things]
    for thing, node in zip(things, nodes, strict=True):
        await _compare_node(thing, node, me)
        chain, version = await me.catalog.file(me.tree, thing.path)
        assert chain[-1] == node
        assert (version and version.id) == node.version
        if thing.kind == "folder":
            await _compare_folder(thing, me)


async def _compare_node(thing: Thing, node: Node, me: Caller) -> None:
    thing.id = thing.id or node.id
    assert (node.id, node.name, node.kind) == (thing.id, thing.name, thing.kind)
    assert (node.revision, json.loads(node.metadata)) == (thing.revision, thing.metadata)
    if not thing.versions:
        assert (node.number, node.size, node.version) == (0, 0, None)
        return
    versions = (await me.catalog.versions(node.id))[::-1]
    assert (node.number, node.version) == (versions[-1].number, versions[-1].id)
    assert node.size == thing.current.manifest.size
    for held, version in zip(thing.versions, versions, strict=True):
        held.id = held.id or version.id
        assert (version.id, version.number) == (held.id, held.number)
        assert version.manifest == held.manifest

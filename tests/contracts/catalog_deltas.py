"""What every catalog must do with deltas between the versions of a file."""

from tests.contracts.callers import Caller, add_user, digest, pieces_of
from tests.contracts.catalog_stock import dump_of

from vaultfs.domain.chains import Edge
from vaultfs.domain.nodes import Node, VersionId
from vaultfs.domain.operations import Delete, Prune, Purge, RecordDelta
from vaultfs.ports.catalog import Catalog


async def three(me: Caller) -> tuple[Node, list[VersionId]]:
    """A file with three versions, and their ids."""
    nodes = [await me.put("/f", text) for text in "abc"]
    return nodes[-1], [node.version for node in nodes if node.version is not None]


def record(me: Caller, node: Node, base: VersionId, target: VersionId) -> RecordDelta:
    return RecordDelta(me.tree, node.id, base, target, digest("d"), 7, b"steps")


class DeltaContract:
    """Edges from version to version."""

    async def test_deltas_are_recorded_once(self, catalog: Catalog, me: Caller) -> None:
        node, (one, two, three_) = await three(me)
        assert await catalog.deltas(node.id) == []
        assert (await me.do(record(me, node, two, three_))).count == 1
        assert (await me.do(record(me, node, one, two))).count == 1
        assert (await me.do(record(me, node, one, two))).count == 0
        assert await catalog.deltas(node.id) == [Edge(one, two, 7), Edge(two, three_, 7)]
        assert await catalog.delta(one, two) == (digest("d"), b"steps")
        assert await catalog.delta(two, one) is None
        assert await catalog.check() == []

    async def test_only_between_versions_of_a_file_of_the_tree(
        self, catalog: Catalog, me: Caller
    ) -> None:
        node, (one, two, _) = await three(me)
        other = Caller(catalog, await add_user(catalog, "other"))
        assert (await other.do(record(other, node, one, two))).count == 0
        elsewhere = await me.put("/g")
        assert (await me.do(record(me, elsewhere, one, two))).count == 0
        assert (await me.do(record(me, node, one, VersionId(999)))).count == 0
        assert await catalog.deltas(node.id) == []

    async def test_they_outlive_pruned_versions_and_go_with_the_file(
        self, catalog: Catalog, me: Caller
    ) -> None:
        node, (one, two, three_) = await three(me)
        await me.do(record(me, node, one, two), record(me, node, two, three_))
        await me.do(Prune(me.tree, node.id, (one, two)))
        assert await catalog.deltas(node.id) == [Edge(one, two, 7), Edge(two, three_, 7)]
        await me.do(Delete(me.tree, ("f",)))
        assert len(await catalog.deltas(node.id)) == 2
        await me.do(Purge(me.tree, node.id))
        assert await catalog.deltas(node.id) == []

    async def test_a_dump_has_them(self, catalog: Catalog, empty: Catalog, me: Caller) -> None:
        node, (one, two, _) = await three(me)
        await me.do(record(me, node, one, two))
        await empty.load(pieces_of(await dump_of(catalog)))
        assert await empty.deltas(node.id) == [Edge(one, two, 7)]
        assert await empty.delta(one, two) == (digest("d"), b"steps")

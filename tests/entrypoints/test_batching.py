"""Batches in the SDK and on the command line, embedded and against a server."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.cli_calls import Cli
from tests.entrypoints.test_client import served

import vaultfs
from vaultfs.domain.access import Role
from vaultfs.domain.errors import InvalidField, KeyReused, NotFound, TooLarge
from vaultfs.domain.integrity import Depth
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.tokens import ALL_SCOPES, Identity
from vaultfs.entrypoints.batching import BatchFailed
from vaultfs.entrypoints.surface import Surface

FILED = [
    {"id": "mk", "op": "mkdir", "path": "/archive", "if_exists": "ok"},
    {"id": "m1", "op": "move", "src": "/a", "dst": {"ref": "mk", "path": "a"}},
]
PARTLY = [{"op": "delete", "target": "/nope"}, {"op": "mkdir", "path": "/new"}]


@pytest.fixture(params=["embedded", "served"])
async def vault(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Surface, None]:
    if request.param == "embedded":
        async with vaultfs.open(tmp_path / "vault", create=True) as vault:
            yield vault
        return
    async with (
        served(tmp_path / "vault") as (_, address, token),
        vaultfs.connect(address, token=token) as remote,
    ):
        yield remote


async def names(vault: Surface, path: str = "/") -> list[str]:
    return [node.name async for node in vault.list(path)]


async def test_a_block_is_one_request(vault: Surface) -> None:
    for name in ("a", "b", "old"):
        await vault.put(f"/{name}", name.encode())
    async with vault.batch() as batch:
        folder = batch.mkdir("/archive/2026", parents=True)
        moved = batch.move("/a", folder / "a")
        batch.set_metadata(moved, {"status": "filed"})
        batch.copy("/b", folder / "b", on_conflict="rename")
        gone = batch.delete("/old")
        batch.restore(gone, "/back")
        assert await names(vault) == ["a", "b", "old"]
    assert batch.report is not None
    assert [result.status for result in batch.report.results] == ["ok"] * 6
    assert await names(vault) == ["archive", "b", "back"]
    assert await names(vault, "/archive/2026") == ["a", "b"]
    assert await vault.metadata("/archive/2026/a") == {"status": "filed"}
    assert await vault.get("/back") == b"old"


async def test_an_atomic_block_that_fails_raises_with_all_results(vault: Surface) -> None:
    with pytest.raises(BatchFailed, match="1 of 2 operations failed, nothing was done") as failed:
        async with vault.batch() as batch:
            batch.mkdir("/new")
            batch.delete("/nope")
    results = failed.value.report.results
    assert [result.status for result in results] == ["rolled_back", "failed"]
    error = results[1].error
    assert error is not None
    assert error.code == "not_found"
    assert await names(vault) == []


async def test_best_effort_raises_too_unless_told_not_to(vault: Surface) -> None:
    with pytest.raises(BatchFailed, match="the others were done"):
        async with vault.batch(mode="best_effort") as batch:
            batch.mkdir("/new")
            batch.delete("/nope")
    assert await names(vault) == ["new"]
    async with vault.batch(mode="best_effort", check=False) as batch:
        batch.delete("/nope")
    assert batch.report is not None
    assert batch.report.summary.failed == 1


async def test_a_dry_run_and_a_block_that_is_left_by_an_error_do_nothing(vault: Surface) -> None:
    async with vault.batch(dry_run=True) as batch:
        batch.mkdir("/new")
    assert batch.report is not None
    assert (batch.report.committed, batch.report.results[0].status) == (False, "would_succeed")
    with pytest.raises(ZeroDivisionError):
        async with vault.batch() as batch:
            batch.mkdir("/new")
            raise ZeroDivisionError
    async with vault.batch() as batch:
        pass
    assert batch.report is None
    assert await names(vault) == []


async def test_a_key_and_limits(vault: Surface) -> None:
    op = {"op": "mkdir", "path": "/n", "on_conflict": "rename"}
    first = await vault.run_batch([op], key="k")
    assert await vault.run_batch([op], key="k") == first
    with pytest.raises(KeyReused):
        await vault.run_batch([op, op], key="k")
    with pytest.raises(TooLarge):
        await vault.run_batch([op] * 1001)
    with pytest.raises(InvalidField):
        await vault.run_batch([{"op": object()}])
    assert await names(vault) == ["n"]


async def test_grants(vault: Surface) -> None:
    await vault.put("/d/f", b"x")
    with pytest.raises(NotFound):
        await vault.grant("/d", "nobody", Role.READER)
    assert list(await vault.access("/d/f")) == []
    assert list(await vault.shared()) == []


async def test_two_users_share_a_folder(tmp_path: Path) -> None:
    async with served(tmp_path / "vault") as (vault, address, token):
        accounts = Accounts(vault.catalog, vault.clock)
        owner = Identity(vault.user, ALL_SCOPES)
        await accounts.add_user(owner, "bob", None)
        bobs = (await accounts.add_token(owner, "bob", "", ALL_SCOPES)).secret
        large = bytes(range(256)) * (1 << 17)
        (tmp_path / "tree/deep").mkdir(parents=True)
        (tmp_path / "tree/deep/small").write_bytes(b"small")
        (tmp_path / "tree/large").write_bytes(large)
        async with (
            vaultfs.connect(address, token=token) as me,
            vaultfs.connect(address, token=bobs) as bob,
        ):
            await me.put("/shared/f", b"mine")
            with pytest.raises(NotFound):
                await bob.get("me:/shared/f")
            await me.grant("/shared", "bob", Role.WRITER)
            assert [grant.path for grant in await bob.shared()] == ["/shared"]
            assert await bob.get("me:/shared/f") == b"mine"
            await bob.put("me:/shared/f", b"theirs")
            report = await bob.put_tree(tmp_path / "tree", "me:/shared/tree")
            assert report.complete
            assert await me.get("/shared/tree/large") == large
            assert await me.get("/shared/tree/deep/small") == b"small"
            got = await bob.get_tree("me:/shared/tree", tmp_path / "got")
            assert got.complete
            assert (tmp_path / "got/large").read_bytes() == large
            version = (await bob.stat("me:/shared/tree/large")).version
            (tmp_path / "tree/large").write_bytes(large + b"more")
            pushed = await bob.push("me:/shared/tree/large", tmp_path / "tree/large", base=version)
            assert pushed.changed == 1
            await bob.pull("me:/shared/tree/large", tmp_path / "pulled")
            assert (tmp_path / "pulled").read_bytes() == large + b"more"
            assert await me.get("/shared/tree/large") == large + b"more"
            async with bob.batch() as batch:
                batch.move("me:/shared/f", "me:/shared/g")
            await me.revoke("/shared", "bob")
            with pytest.raises(NotFound):
                await bob.get("me:/shared/g")
            assert (await vault.integrity.verify(Depth.FULL)).clean


def test_plain_code_has_batches(tmp_path: Path) -> None:
    with vaultfs.open_sync(tmp_path / "vault", create=True) as vault:
        with vault.batch() as batch:
            batch.mkdir("/a")
        assert vault.exists("/a")
        with pytest.raises(BatchFailed), vault.batch() as batch:
            batch.mkdir("/a")
        assert vault.run_batch([{"op": "mkdir", "path": "/b"}]).committed
        assert list(vault.access("/a")) == list(vault.shared()) == []
        with pytest.raises(NotFound):
            vault.grant("/a", "nobody", Role.READER)
        with pytest.raises(NotFound):
            vault.revoke("/a", "nobody")


# The command line


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def filled(cli: Cli, tmp_path: Path) -> Cli:
    cli("put", "-q", write(tmp_path / "a", "a"), write(tmp_path / "b", "b"), "/")
    return cli


def test_batch(filled: Cli, tmp_path: Path) -> None:
    called = filled("batch", write(tmp_path / "x.json", {"ops": FILED}))
    assert "   2  ok  move   /archive/a" in called.out
    assert "2 operations: 2 done" in called.errors
    assert filled.ls() == ["archive/", "b"]
    lines = "\n".join(map(json.dumps, PARTLY))
    report = filled.json("batch", write(tmp_path / "x.ndjson", lines), "--best-effort", code=3)
    assert report["summary"]["ok"] == report["summary"]["failed"] == 1
    again = filled("batch", write(tmp_path / "x.ndjson", json.dumps(PARTLY[0])), code=4)
    assert "1 operation: 1 failed" in again.errors
    filled("rm", "/new")
    called = filled("batch", write(tmp_path / "y.json", PARTLY), code=4)
    assert "not_found: nothing is at /nope" in called.out
    assert "1 failed, 1 rolled back" in called.errors
    called = filled("batch", tmp_path / "x.json", "--dry-run", code=4)
    assert "would_fail" in called.out


def test_a_batch_with_a_key_is_executed_once(filled: Cli, tmp_path: Path) -> None:
    ops = [{"op": "mkdir", "path": "/k", "on_conflict": "rename"}]
    for _ in range(2):
        filled("batch", write(tmp_path / "x.json", ops), "--key", "once")
    assert filled.ls() == ["a", "b", "k/"]


@pytest.mark.parametrize(
    "text", ["", "{", "3", '{"ops": 3}', '{"operations": []}', '[{"op": "x", "op": "y"}]']
)
def test_what_is_no_batch(cli: Cli, tmp_path: Path, text: str) -> None:
    assert cli.refused("batch", write(tmp_path / "x.json", text), code=2) == "invalid_field"


def test_what_is_no_operation_is_told_in_its_place(filled: Cli, tmp_path: Path) -> None:
    ops = [3, None, "mkdir", {"op": "mkdir", "path": "/x"}]
    called = filled("batch", write(tmp_path / "x.json", ops), "--best-effort", code=3)
    assert called.out.count("invalid_field") == 3
    assert "x/" in filled.ls()


def test_a_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert cli.refused("batch", tmp_path / "none.json", code=2) == "invalid_field"


def test_many_arguments_are_one_batch(filled: Cli) -> None:
    filled("mkdir", "/d", "/e")
    assert filled.refused("mv", "/a", "/nope", "/d") == "batch_failed"
    told = filled("mv", "/a", "/b", "/nope", code=1).errors
    assert told.count("there is no folder /nope") == 1
    assert filled.ls("/d") == []
    assert len(filled.json("mv", "/a", "/b", "/d")) == 2
    assert filled.ls("/d") == ["a", "b"]
    filled("cp", "/d/a", "/d/b", "/e")
    assert filled.refused("cp", "/d/a", "/d/b", "/e") == "batch_failed"
    filled("cp", "--force", "/d/a", "/d/b", "/e")
    assert filled.refused("rm", "/d", "/e") == "batch_failed"
    filled("rm", "-r", "/d", "/e")
    assert filled.ls() == []

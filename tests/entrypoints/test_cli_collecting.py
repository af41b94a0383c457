"""`gc`, `repack`, `scrub` and `reconcile`, as people and programs call them."""

from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli, copy_of, new_vault, noise

SIZE = 2_000_000


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with a file, and what nothing needs any more."""
    folder = tmp_path_factory.mktemp("stock")
    cli = new_vault(folder / "vault")
    for name, seed in (("kept", 1), ("gone", 2)):
        (folder / name).write_bytes(noise(SIZE, seed))
        cli("put", "-q", folder / name, "/")
    cli("rm", "/gone")
    [trashed] = cli.json("trash")
    cli("trash", "--purge", trashed["id"])
    return cli.vault


@pytest.fixture
def cli(stock: Path, tmp_path: Path) -> Cli:
    return copy_of(stock, tmp_path / "vault")


def packs(cli: Cli) -> set[Path]:
    return {path for path in (cli.vault / "objects/packs").rglob("*") if path.is_file()}


def damage(cli: Cli) -> None:
    for pack in packs(cli):
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)


# gc


def test_a_dry_run_lists_what_would_go(cli: Cli) -> None:
    before = packs(cli)
    found = cli.json("gc", "--dry-run", "--grace", "0")
    assert (found["dry_run"], found["condemned"], found["packs"]) == (True, 1, 2)
    assert found["condemned_bytes"] >= SIZE
    [listed] = found["listed"]
    assert "nothing needs it" in listed
    shown = cli("gc", "--dry-run", "--grace", "0").out
    assert listed in shown
    assert "would be condemned: 1" in shown
    assert packs(cli) == before
    assert cli.json("stats")["packs"] == 2


def test_without_a_grace_period_garbage_goes_at_once(cli: Cli) -> None:
    found = cli.json("gc", "--grace", "0")
    assert (found["dry_run"], found["discarded"], found["problems"]) == (False, 1, [])
    assert len(packs(cli)) == 1
    assert cli.read("/kept") == noise(SIZE, 1)
    assert cli.json("verify")["clean"] is True
    assert cli("gc", "--grace", "0").out.startswith("1 pack, ")


def test_within_the_grace_period_nothing_goes(cli: Cli) -> None:
    found = cli.json("gc")
    assert (found["condemned"], found["discarded"]) == (0, 0)
    assert found["young"] == 1
    assert found["young_bytes"] >= SIZE
    assert "condemned: 0 (0 B); too young for that: 1 (" in cli("gc", "--dry-run").out
    assert cli.json("gc", "--dry-run", "--grace", "0")["young"] == 0
    assert len(packs(cli)) == 2


def test_condemnations_are_taken_back(cli: Cli) -> None:
    assert cli.json("gc", "--undelete") == {"revived": 0}
    assert "0 packs" in cli("gc", "--undelete").out


def test_collections_are_listed(cli: Cli) -> None:
    assert cli.json("gc", "--list") == []
    cli("gc", "--grace", "0")
    rows = cli.json("gc", "--list")
    numbers = [row["collection"] for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    assert all(row["complete"] for row in rows)
    assert sum(row["discarded_bytes"] for row in rows) >= SIZE
    assert len(cli("gc", "--list").out.splitlines()) == len(rows)


def test_too_much_at_once_has_to_be_confirmed(tmp_path: Path) -> None:
    cli = new_vault(tmp_path / "vault")
    (tmp_path / "large").write_bytes(noise(70_000_000))
    cli("put", "-q", tmp_path / "large", "/")
    cli("rm", "/large")
    cli("trash", "--purge", cli.json("trash")[0]["id"])
    assert cli.refused("gc", "--grace", "0") == "too_much_garbage"
    told = cli("gc", "--grace", "0", code=1).errors
    assert "66.8 MiB of 66.8 MiB in packs would be condemned" in told
    assert "`vaultfs gc --dry-run --grace 0`, and confirm it with --confirm" in told
    assert cli.json("gc", "--grace", "0", "--confirm")["discarded"] >= 5
    assert packs(cli) == set()


def test_a_pack_that_cannot_be_rewritten_is_told_of(tmp_path: Path) -> None:
    cli = new_vault(tmp_path / "vault")
    for number in range(16):
        (tmp_path / "f").write_bytes(noise(2000, number))
        cli("put", "-q", tmp_path / "f", f"/f{number}")
    damage(cli)
    found = cli.json("gc", "--grace", "0", code=3)
    assert found["problems"]
    assert "problem: " in cli("gc", "--grace", "0", code=3).out
    assert cli.json("gc", "--grace", "0", "--repack-below", "0")["problems"] == []


def test_repack_merges_and_lets_nothing_go(cli: Cli, tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / "f").write_bytes(noise(2000, number))
        cli("put", "-q", tmp_path / "f", f"/f{number}")
    before = packs(cli)
    found = cli.json("repack")
    assert (found["rewritten"], found["condemned"], found["discarded"]) == (16, 0, 0)
    assert len(packs(cli) - before) == 1
    assert before < packs(cli)
    assert "rewritten: 0" in cli("repack").out
    assert cli.read("/f7") == noise(2000, 7)


def test_repack_leaves_a_pack_alone_that_would_become_itself(tmp_path: Path) -> None:
    cli = new_vault(tmp_path / "vault")
    (tmp_path / "f").write_text("a\n")
    cli("put", "-q", tmp_path / "f", "/")
    for percent in ("50", "100"):
        found = cli.json("repack", "--below", percent)
        assert (found["rewritten"], found["rewritten_bytes"]) == (0, 0)
    [pack] = packs(cli)
    assert found["total"] == pack.stat().st_size


# scrub


def test_a_scrub_of_what_is_right(cli: Cli) -> None:
    assert cli.json("scrub") == {
        "clean": True,
        "repaired": [],
        "number": 1,
        "packs": 0,
        "size": 0,
        "problems": [],
        "files": [],
    }
    found = cli.json("scrub", "--period", "0")
    assert (found["clean"], found["packs"]) == (True, 2)
    assert found["size"] >= 2 * SIZE
    assert cli.json("scrub", "--cheap", "--period", "0")["size"] == 0
    assert cli("scrub", "--period", "0").out.startswith("clean: 2 packs")


def test_a_scrub_names_what_is_damaged(cli: Cli) -> None:
    damage(cli)
    found = cli.json("scrub", "--period", "0", code=1)
    assert found["clean"] is False
    assert [each["path"] for each in found["files"]] == ["/kept"]
    shown = cli("scrub", "--period", "0", code=1).out
    assert "damaged: me:/kept version 1" in shown
    assert "DAMAGED" in shown
    rows = cli.json("scrub", "--list")
    assert [row["scrub"] for row in rows] == [2, 1]
    assert {"problem", "file"} <= {key for each in rows[0]["findings"] for key in each}
    assert "2 packs" in cli("scrub", "--list").out


# reconcile


def test_a_catalog_from_a_backup_is_reconciled_before_it_is_collected(
    cli: Cli, tmp_path: Path
) -> None:
    name = cli.json("backup")["name"]
    (tmp_path / "later").write_bytes(noise(SIZE, 3))
    cli("put", "-q", tmp_path / "later", "/")
    cli("rebuild", "--from-backup", name)
    assert cli.refused("gc") == "conflict"
    assert "vaultfs reconcile" in cli("gc", code=1).errors
    found = cli.json("reconcile")
    assert (found["accepted"], found["named"], found["unnamed"], found["missing"]) == (
        *(False, 3, 0),
        [],
    )
    assert cli.refused("gc") == "conflict"
    assert "may be collected now" in cli("reconcile", "--accept").out
    assert cli.json("gc", "--grace", "0")["discarded"] == 2
    assert cli.json("verify")["clean"] is True


def test_reconcile_names_what_is_missing(cli: Cli) -> None:
    lost = min(packs(cli))
    lost.unlink()
    assert cli.json("reconcile", code=1)["missing"] == [f"packs/{lost.name}"]
    assert f"missing: packs/{lost.name}" in cli("reconcile", code=1).out


# Wrong usage


@pytest.mark.parametrize(
    "words",
    [
        ("gc", "--grace", "-1"),
        ("gc", "--grace", "nonsense"),
        ("gc", "--grace", "nan"),
        ("gc", "--grace", "1e9"),
        ("gc", "--duty", "0"),
        ("gc", "--duty", "101"),
        ("gc", "extra"),
        ("gc", "--undelete", "--dry-run"),
        ("repack", "--duty", "0"),
        ("scrub", "--period", "-1"),
        ("scrub", "--period", "nan"),
        ("scrub", "--duty", "0"),
        ("reconcile", "--nonsense"),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    called = cli(*words, code=2)
    assert called.out == ""
    assert "Traceback" not in called.errors
    assert cli.refused(*words, code=2) in {"invalid_field", "usage"}

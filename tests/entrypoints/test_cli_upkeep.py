import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.cli_calls import COMMAND, Called, Cli, call, copy_of, new_vault, noise
from typer.main import get_command

from vaultfs.adapters.sql import connections
from vaultfs.domain import errors
from vaultfs.domain.errors import InvalidField, InvalidName, VaultError
from vaultfs.entrypoints.cli import COMMANDS as MODULES
from vaultfs.entrypoints.cli import app, commands_of
from vaultfs.entrypoints.cli.errors import EPILOG, MEANINGS, ExitCode, error_code, exit_code


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_vault(tmp_path_factory.mktemp("empty") / "vault").vault


@pytest.fixture
def cli(empty: Path, tmp_path: Path) -> Cli:
    return copy_of(empty, tmp_path / "vault")


def put(cli: Cli, path: str, data: bytes) -> None:
    local = cli.vault.parent / "local"
    local.write_bytes(data)
    cli("put", "-q", local, path)


# Making a vault


def test_init_makes_a_vault(tmp_path: Path) -> None:
    done = call("init", tmp_path / "deep/er", "--json")
    assert done.code == 0
    assert done.value["vault"] == str(tmp_path / "deep/er")
    assert Cli(tmp_path / "deep/er").ls() == []
    assert call("init", tmp_path / "text").out.count("--vault") == 1


@pytest.mark.parametrize("what", ["vault", "full", "file"])
def test_init_touches_nothing_that_is_there(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "vault":
        new_vault(place)
    elif what == "full":
        place.mkdir()
        (place / "letter").write_text("dear")
    else:
        place.write_text("dear")
    before = sorted(tmp_path.rglob("*"))
    done = call("--json", "init", place)
    assert (done.code, done.value["error"]["code"]) == (1, "exists")
    assert sorted(tmp_path.rglob("*")) == before


def test_init_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = call("init", tmp_path / "file/sub")
    assert done.code == 1
    assert done.errors == f"vaultfs: {tmp_path}/file/sub: Not a directory\n"


# Naming a vault


def test_the_vault_is_named_before_or_behind_the_command_or_by_the_environment(
    cli: Cli, tmp_path: Path
) -> None:
    cli("mkdir", "/here")
    other = new_vault(tmp_path / "other").vault
    named = {"VAULTFS_VAULT": str(cli.vault)}
    elsewhere = {"VAULTFS_VAULT": str(other)}
    assert call("--vault", cli.vault, "ls").out == "here/\n"
    assert call("ls", "--vault", cli.vault).out == "here/\n"
    assert call("--vault", other, "ls", "--vault", cli.vault).out == "here/\n"
    assert call("ls", env={**named}).out == "here/\n"
    assert call("ls", "--vault", cli.vault, env={**elsewhere}).out == "here/\n"
    assert call("ls").code == 2
    assert "--vault" in call("ls").errors


def test_a_vault_that_is_not_there(tmp_path: Path) -> None:
    missing = Cli(tmp_path / "nope")
    assert "vaultfs init" in missing("ls", code=1).errors
    assert "vaultfs init" in missing("verify", code=1).errors
    assert missing.refused("rebuild") == "not_a_vault"
    assert not missing.vault.exists()


def test_a_catalog_that_is_lost(cli: Cli) -> None:
    (cli.vault / "catalog.db").unlink()
    assert "vaultfs rebuild" in cli("ls", code=1).errors
    assert cli.refused("put", cli.vault / "objects", "/x") == "not_a_vault"
    assert cli.refused("rebuild") == "not_found"  # no backup was made


def test_a_catalog_of_a_newer_release(cli: Cli) -> None:
    with sqlite3.connect(cli.vault / "catalog.db") as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    assert "newer release" in cli("ls", code=1).errors
    assert cli.refused("put", cli.vault / "objects", "/x") == "unsupported"


def test_a_catalog_that_is_no_database(cli: Cli) -> None:
    for suffix in ("-wal", "-shm"):
        (cli.vault / f"catalog.db{suffix}").unlink(missing_ok=True)
    (cli.vault / "catalog.db").write_bytes(b"nonsense" * 1000)
    assert cli("ls", code=1).errors.startswith("vaultfs: ")


def test_the_store_of_another_vault(cli: Cli, tmp_path: Path) -> None:
    other = new_vault(tmp_path / "other")
    shutil.rmtree(cli.vault / "objects")
    shutil.copytree(other.vault / "objects", cli.vault / "objects")
    assert "belongs to vault" in cli("put", tmp_path, "/x", code=1).errors


# Damage


def packs(vault: Path) -> set[Path]:
    return {path for path in (vault / "objects").rglob("*") if path.is_file()}


@pytest.fixture
def damaged(cli: Cli) -> Cli:
    """A vault in which one bit of the contents of `/bad` is another."""
    put(cli, "/good", noise(50_000, 1))
    before = packs(cli.vault)
    put(cli, "/bad", noise(50_000, 2))
    [pack] = packs(cli.vault) - before
    cli("cp", "/bad", "/bad copy")
    put(cli, "/bad", b"newer")  # the damage is in version 1
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    return cli


def test_a_flipped_bit_is_found_with_exactly_the_files_it_hits(damaged: Cli) -> None:
    found = damaged.json("verify", code=1)
    assert not found["clean"]
    assert sorted((each["path"], each["version"]) for each in found["files"]) == [
        ("/bad", 1),
        ("/bad copy", 1),
    ]
    shown = damaged("verify", code=1).out
    assert "damaged: /bad version 1" in shown
    assert "DAMAGED" in shown
    assert damaged.json("verify", "--depth", "digests", code=1)["clean"] is False
    assert damaged.json("verify", "--depth", "catalog")["clean"] is True


def test_damaged_contents_are_not_handed_out(damaged: Cli, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert damaged.refused("get", "/bad copy", target) == "damaged_content"
    assert not target.exists()
    value = damaged.json("get", "/", target, code=3)
    assert [each["where"] for each in value["failed"]] == ["/bad copy"]
    assert sorted(path.name for path in target.iterdir()) == ["bad", "good"]


def test_verify_of_a_sound_vault(cli: Cli) -> None:
    put(cli, "/f", noise(10_000))
    for depth in ("catalog", "packs", "digests", "full"):
        assert cli.json("verify", "--depth", depth)["clean"] is True
    assert sum(cli.json("verify", "--subset", f"{n}/3")["packs"] for n in (1, 2, 3)) == 1
    assert cli("verify").out.startswith("clean: 1 version, 1 pack, ")


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--subset", "0/3"),
        ("verify", "--subset", "4/3"),
        ("verify", "--subset", "1/0"),
        ("verify", "--subset", "nonsense"),
        ("verify", "--depth", "nonsense"),
        ("retention", "--keep", "0"),
        ("retention", "--keep", "0d"),
        ("retention", "--keep", "-1"),
        ("retention", "--keep", "nonsense"),
        ("retention", "--keep", "9" * 30),
        ("retention", "--keep", "9" * 30 + "d"),
        ("backup", "--keep", "0"),
        ("ls", "--nonsense"),
        ("nonsense",),
        ("put", "one"),
        ("rm",),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    called = cli(*words, code=2)
    assert called.out == ""
    assert called.errors
    assert "Traceback" not in called.errors
    assert cli.refused(*words, code=2) in {"invalid_field", "usage"}


# Backups


def test_a_lost_catalog_comes_back_from_a_backup(cli: Cli) -> None:
    put(cli, "/f", b"text")
    assert cli.json("backup", "--list") == []
    made = cli.json("backup")
    assert [each["name"] for each in cli.json("backup", "--list")] == [made["name"]]
    assert made["name"] in cli("backup", "--list").out
    for path in cli.vault.glob("catalog.db*"):
        path.unlink()

    done = cli.json("rebuild")
    assert done["backup"] == made["name"]
    assert cli.read("/f") == b"text"
    assert cli.json("verify")["clean"] is True


def test_a_backup_can_be_named(cli: Cli) -> None:
    first = cli.json("backup")["name"]
    cli("mkdir", "/later")
    cli("rebuild", "--from-backup", first)
    assert cli.ls() == []
    cli("rebuild", "--from-backup", first)
    aside = sorted(each.name for each in cli.vault.glob("catalog.db?*"))
    assert aside == [f"catalog.db.before-{first}", f"catalog.db.before-{first}-2"]
    assert cli.refused("rebuild", "--from-backup", "nonsense") == "not_found"
    assert sorted(each.name for each in cli.vault.glob("catalog.db?*")) == aside


@pytest.mark.parametrize("damage", ["text", "zeros", "short"])
def test_a_catalog_without_its_first_page_is_replaced(cli: Cli, damage: str) -> None:
    put(cli, "/f", b"text")
    name = cli.json("backup")["name"]
    catalog = cli.vault / "catalog.db"
    whole = catalog.read_bytes()
    damaged = {
        "text": b"hello this is text\n",
        "zeros": bytes(4096) + whole[4096:],
        "short": whole[:50],
    }
    catalog.write_bytes(damaged[damage])
    assert cli.json("rebuild", "--from-backup", "latest")["backup"] == name
    assert cli.read("/f") == b"text"
    assert cli.json("verify")["clean"] is True
    aside = cli.vault / f"catalog.db.before-{name}"
    assert aside.read_bytes() == damaged[damage]
    assert not list(cli.vault.glob("catalog.db.new*"))


def test_a_catalog_that_somebody_writes_is_not_replaced(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("backup")
    monkeypatch.setattr(connections, "BUSY_AFTER", 0.1)
    with closing(sqlite3.connect(cli.vault / "catalog.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert cli.refused("rebuild", "--from-backup", "latest") == "busy"
        writer.execute("ROLLBACK")
    assert not list(cli.vault.glob("catalog.db.new*"))
    cli("rebuild", "--from-backup", "latest")


def test_a_damaged_backup_leaves_nothing_behind(cli: Cli) -> None:
    name = cli.json("backup")["name"]
    for part in (cli.vault / "objects").rglob("part-*"):
        part.write_bytes(b"damaged")
    assert cli.refused("rebuild", "--from-backup", name) == "corrupt"
    assert [each.name for each in cli.vault.glob("catalog.db*")] == ["catalog.db"]


def test_only_the_last_backups_are_kept(cli: Cli) -> None:
    last = [cli.json("backup", "--keep", "2")["name"] for _ in range(4)][-1]
    kept = {each["name"] for each in cli.json("backup", "--list")}
    assert last in kept
    assert 2 <= len(kept) <= 3  # which of one second are the newest is not known


def test_the_index_is_made_anew(cli: Cli) -> None:
    put(cli, "/f", b"text")
    done = cli.json("rebuild")
    assert (done["backup"], done["packs"], done["versions"]) == (None, 1, 1)
    assert "1 pack " in cli("rebuild").out


# Figures and retention


def test_stats(cli: Cli) -> None:
    put(cli, "/f", b"text")
    put(cli, "/f", b"other text")
    value = cli.json("stats")
    assert (value["files"], value["versions"], value["bytes_current"]) == (1, 2, 10)
    cli("rm", "/f")
    assert ["files,", "with", "the", "trash", "1"] in map(str.split, cli("stats").out.splitlines())


def test_retention(cli: Cli) -> None:
    for number in range(4):
        put(cli, "/f", str(number).encode())
    assert "all versions" in cli("retention").out
    assert cli.json("retention", "--keep", "2")["last"] == 2
    assert cli.json("retention", "--apply")["pruned"] == 2
    assert [each["number"] for each in cli.json("versions", "/f")] == [4, 3]
    assert cli.json("retention", "--keep", "30d")["age_days"] == 30
    assert "30 days ago" in cli("retention").out
    assert cli.json("retention", "--keep", "all") == {
        "last": None,
        "age_days": None,
        "pruned": None,
    }


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    done = call("--json", "demo", "--small", "--keep", tmp_path / "demo")
    assert done.code == 0
    for title, folder in (("embedded", "vault"), ("over HTTP", "served")):
        assert done.value[title]["clean"] is True
        assert done.value[title]["differences"] == []
        assert len(done.value[title]["steps"]) == 4
        assert Cli(tmp_path / "demo" / folder).json("verify")["clean"] is True


# Options, everywhere


def below(made: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of all commands under `made`."""
    if not hasattr(made, "commands"):
        yield names
        return
    for name in sorted(made.commands):
        yield from below(made.commands[name], *names, name)


@pytest.mark.parametrize("words", [*below(COMMAND)], ids=" ".join)
def test_every_command_can_be_quiet(words: tuple[str, ...]) -> None:
    assert "-q, --quiet" in call(*words, "--help").out


# JSON, everywhere


def prepare(cli: Cli) -> None:
    put(cli, "/f", b"one")
    put(cli, "/f", b"two")
    put(cli, "/gone", b"text")
    cli("mkdir", "/d")
    cli("rm", "/gone")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "vault"
    prepare(new_vault(folder))
    return folder


COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("{tmp}/new",),
    "retention": ("--keep", "3"),
    "verify": (),
    "rebuild": (),
    "backup": (),
    "stats": (),
    "put": ("{tmp}/file", "/"),
    "get": ("/f", "{tmp}/out"),
    "ls": (),
    "tree": (),
    "stat": ("/f",),
    "versions": ("/f",),
    "mkdir": ("/new",),
    "mv": ("/f", "/g"),
    "cp": ("/f", "/g"),
    "rm": ("/f",),
    "trash": (),
    "restore": ("/gone",),
    "meta": ("/f",),
    "maintain": (),
    "pull": ("{tmp}/pulled", "/f"),
    "push": ("{tmp}/file", "/pushed"),
    "diff": ("/f@1", "/f"),
    "sync": ("{tmp}/folder", "/d"),
    "batch": ("{tmp}/batch.json",),
    "access": ("/f",),
    "gc": ("--grace", "0"),
    "repack": (),
    "scrub": ("--period", "0"),
    "reconcile": (),
    "audit": (),
}
WITHOUT_VAULT = {"init"}


def test_the_table_has_every_command() -> None:
    command: Any = get_command(app)
    several = {"user", "token", "lock", "upload", "migrate"}
    rest = {"cat", "demo", "serve", "config", "login", "logout", "grant", "revoke"}
    assert {*COMMANDS, *several, *rest} == set(command.commands)


@pytest.mark.parametrize("module", MODULES)
def test_every_command_of_a_module_can_be_called(module: str) -> None:
    assert tuple(commands_of(module)) == MODULES[module]


def placed(name: str, place: str, tmp_path: Path, vault: Path) -> Called:
    words = [word.format(tmp=tmp_path) for word in COMMANDS[name]]
    options = ["--json"] if name in WITHOUT_VAULT else ["--json", "--vault", str(vault)]
    if place == "before":
        return call(*options, name, *words)
    return call(name, *words, *options)


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_of_success(
    stock: Path, tmp_path: Path, name: str, place: str
) -> None:
    shutil.copytree(stock, tmp_path / "vault")
    (tmp_path / "file").write_text("x")
    (tmp_path / "batch.json").write_text('[{"op": "delete", "target": "/f"}]')
    called = placed(name, place, tmp_path, tmp_path / "vault")
    assert called.code == 0
    assert called.errors == ""
    assert "error" not in called.value


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_of_failure(tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "new").write_text("in the way of init")
    (tmp_path / "batch.json").write_text("[]")
    called = placed(name, place, tmp_path, tmp_path / "no vault")
    assert called.code == 1
    assert called.errors == ""
    assert set(called.value) == {"error"}
    assert set(called.value["error"]) == {"code", "message"}


def test_the_demonstration_fails_in_json_too(tmp_path: Path) -> None:
    called = call("demo", "--json", "--keep", "/dev/null/x")
    assert called.code == 1
    assert called.value["error"]["code"] == "system"


# Exit codes


def every_error(kind: type[VaultError] = VaultError) -> Iterator[type[VaultError]]:
    yield kind
    for below in kind.__subclasses__():
        if not below.__name__.startswith("_"):  # those never leave their module
            yield from every_error(below)


def test_every_error_has_its_exit_code_and_name() -> None:
    seen: dict[str, type[VaultError]] = {}
    for kind in every_error():
        error = kind.__new__(kind)
        usage = issubclass(kind, InvalidName | InvalidField)
        assert exit_code(error) == (ExitCode.USAGE if usage else ExitCode.FAILED), kind
        name = error_code(error)
        assert name.isascii()
        assert name.replace("_", "").islower()
        assert seen.setdefault(name, kind) is kind
    assert len(seen) >= len([each for each in vars(errors).values() if isinstance(each, type)]) - 1


def test_help_names_every_exit_code() -> None:
    assert EPILOG in " ".join(call("--help").out.split())
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for code in ExitCode:
        assert f"{code.value} {MEANINGS[code]}" in EPILOG
        assert f"| {code.value} | {MEANINGS[code]} |" in readme


def every_command(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    for name in list(group.commands):
        found = group.commands[name]
        if hasattr(found, "commands"):
            yield from every_command(found, *words, name)
        else:
            yield " ".join((*words, name)), found


def test_every_argument_and_option_has_a_help_and_a_name() -> None:
    root: Any = get_command(app)
    for name, found in [("", root), *every_command(root)]:
        for each in found.params:
            assert each.help or each.hidden, (name, each.name)
            assert each.metavar or getattr(each, "is_flag", False) or each.hidden, (name, each.name)


@pytest.mark.parametrize(
    ("words", "usage", "missing"),
    [
        (("put", "notes.txt"), "put [OPTIONS] LOCAL... /DEST", "/DEST"),
        (("put",), "put [OPTIONS] LOCAL... /DEST", "LOCAL..."),
        (("get", "/notes.txt"), "get [OPTIONS] /SRC... LOCAL", "LOCAL"),
        (("mv", "/a"), "mv [OPTIONS] /SRC... /DEST", "/DEST"),
        (("lock", "run", "/a"), "run [OPTIONS] /PATH -- COMMAND...", "-- COMMAND..."),
    ],
)
def test_usage_says_what_is_missing(words: tuple[str, ...], usage: str, missing: str) -> None:
    called = call(*words)
    assert called.code == 2
    assert usage in called.errors
    assert f"Missing argument '{missing}'" in called.errors
    assert missing in call("--json", *words).value["error"]["message"]


@pytest.mark.parametrize(
    ("command", "usage"),
    [("init", "[DIR]"), ("access", "[/PATH]"), ("pull", "LOCAL [/VAULT/PATH]")],
)
def test_usage_shows_what_can_be_left_away(command: str, usage: str) -> None:
    assert f"{command} [OPTIONS] {usage}\n" in call(command, "--help").out


def test_what_is_no_vault_is_told_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file: a vault is a folder" in call("--vault", tmp_path / "file", "ls").errors
    other = call("--vault", "foo://x", "ls")
    assert other.code == 2
    assert "foo://x: a vault is a folder, or at http:// or https://" in other.errors
    assert call("init", "foo://x").code == 2
    hint = f"`vaultfs init '{tmp_path}/a b'`"
    assert hint in call("--vault", tmp_path / "a b", "ls").errors


def test_the_hint_after_an_init_can_be_used(tmp_path: Path) -> None:
    assert f"vaultfs --vault '{tmp_path}/a b' put" in call("init", tmp_path / "a b").out


def test_the_hint_after_a_new_user_can_be_used(cli: Cli) -> None:
    assert cli("user", "add", "B b").out.endswith("vaultfs token add --user 'B b'\n")


def test_a_bug_is_told_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ZeroDivisionError("one by none")

    monkeypatch.setattr("vaultfs.entrypoints.cli.looking.node_json", fail)
    called = cli("stat", "/", code=70)
    assert called.errors.startswith("vaultfs: a bug: ZeroDivisionError: one by none")
    assert cli.refused("stat", "/", code=70) == "bug"
    with pytest.raises(ZeroDivisionError):
        call("--debug", "--vault", cli.vault, "stat", "/")


def test_quiet_says_nothing(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "f").write_text("x")
    (tmp_path / "vault").rename(tmp_path.parent / f"{tmp_path.name}-vault")
    moved = Cli(tmp_path.parent / f"{tmp_path.name}-vault")
    called = moved("put", "-q", tmp_path, "/x", code=3)
    assert (called.out, called.errors) == ("", "")
    assert json.loads(moved("put", "-q", "--json", tmp_path, "/x", code=3).out)["files"] == 1


def test_an_address_without_its_scheme_is_told(tmp_path: Path) -> None:
    for name in ("127.0.0.1:8333", "vault.example:443"):
        told = call("--vault", name, "ls", "/")
        assert told.code == 1
        assert f"if it is a server: --vault http://{name}, or https://" in told.errors
    assert "server" not in call("--vault", tmp_path / "a:8", "ls", "/").errors

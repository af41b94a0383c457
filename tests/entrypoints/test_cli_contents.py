import os
import socket
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli, files_below, noise, process


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder with the files `a` and `b` and the folder `d`, which holds `x`."""
    top = tmp_path / "local"
    (top / "d").mkdir(parents=True)
    for name in ("a", "b", "d/x"):
        (top / name).write_text(name)
    return top


def tree_of(cli: Cli, path: str = "/") -> set[str]:
    return {node["path"] for node in cli.json("tree", path)}


# Where things go


PLACES = [
    (["a"], "/", {"/into", "/a"}),
    (["a"], "/new", {"/into", "/new"}),
    (["a"], "/new/", {"/into", "/new", "/new/a"}),
    (["a"], "/new/name", {"/into", "/new", "/new/name"}),
    (["a"], "/into", {"/into", "/into/a"}),
    (["a", "b"], "/new", {"/into", "/new", "/new/a", "/new/b"}),
    (["d"], "/new", {"/into", "/new", "/new/x"}),
    (["d"], "/new/", {"/into", "/new", "/new/d", "/new/d/x"}),
    (["d"], "/into", {"/into", "/into/d", "/into/d/x"}),
    (["d", "a"], "/into", {"/into", "/into/d", "/into/d/x", "/into/a"}),
    (["d/."], "/into", {"/into", "/into/d", "/into/d/x"}),
]


@pytest.mark.parametrize(("sources", "destination", "expected"), PLACES)
def test_put_chooses_the_place_as_cp_does(
    cli: Cli, local: Path, sources: list[str], destination: str, expected: set[str]
) -> None:
    cli("mkdir", "/into")
    cli("put", *(f"{local}/{each}" for each in sources), destination)
    assert tree_of(cli) == expected


@pytest.mark.parametrize(
    ("sources", "destination", "expected"),
    [
        (["/a"], "new", {"into", "new"}),
        (["/a"], "new/", {"into", "new", "new/a"}),
        (["/a"], "into", {"into", "into/a"}),
        (["/a", "/b"], "new", {"into", "new", "new/a", "new/b"}),
        (["/d"], "new", {"into", "new", "new/x"}),
        (["/d"], "into", {"into", "into/d", "into/d/x"}),
        (["/d", "/a"], "into", {"into", "into/d", "into/d/x", "into/a"}),
        (["/"], "into", {"into", "into/a", "into/b", "into/d", "into/d/x"}),
    ],
)
def test_get_chooses_the_place_as_cp_does(
    cli: Cli,
    local: Path,
    tmp_path: Path,
    sources: list[str],
    destination: str,
    expected: set[str],
) -> None:
    cli("put", local / "a", local / "b", local / "d", "/")
    target = tmp_path / "target"
    (target / "into").mkdir(parents=True)
    cli("get", *sources, f"{target}/{destination}")
    assert set(files_below(target)) == expected


def test_a_link_that_is_named_is_followed_and_keeps_its_own_name(cli: Cli, local: Path) -> None:
    (local / "link").symlink_to("a")
    cli("put", local / "link", "/")
    assert cli.ls() == ["link"]
    assert cli.read("/link") == b"a"


def test_a_tree_comes_back_byte_for_byte(cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("empty", "deep/er/still", "späte Übung/日本語"):
        (tree / folder).mkdir(parents=True)
    for index, size in enumerate((0, 1, 4096, 100_000, 3_000_000)):
        (tree / f"deep/er/{size}").write_bytes(noise(size, index))
    for mode in (0o400, 0o600, 0o644, 0o755):
        (tree / f"mode {mode:o}").write_text("x")
        (tree / f"mode {mode:o}").chmod(mode)
    for name in ("späte Übung/é", "späte Übung/日本語/🦊", "-r", "a'b\"c", " spaces ", "x" * 255):
        (tree / name).write_text(name)

    cli("put", tree, "/tree")
    cli("get", "/tree", tmp_path / "back")

    assert files_below(tmp_path / "back") == files_below(tree)
    assert cli.json("put", f"{tree}/", "/tree/../tree", code=2)["error"]["code"] == "invalid_name"


def test_a_second_put_stores_only_what_changed(cli: Cli, local: Path) -> None:
    cli("put", local, "/docs")
    (local / "a").write_text("changed")
    done = cli.json("put", local / "a", local / "b", "/docs")
    assert (done["files"], done["changed"]) == (2, 1)
    assert [node["number"] for node in done["nodes"]] == [2, 1]


def test_an_older_version_can_be_had(cli: Cli, local: Path, tmp_path: Path) -> None:
    for text in ("one", "two"):
        (local / "a").write_text(text)
        cli("put", local / "a", "/a")
    cli("get", "/a", tmp_path / "old", "--version", "1")
    assert (tmp_path / "old").read_text() == "one"
    assert cli("cat", "/a", "--version", "1").out == "one"
    assert cli.refused("cat", "/a", "--version", "3", code=2) == "invalid_field"  # JSON and cat
    assert "no version 3" in cli("cat", "/a", "--version", "3", code=1).errors
    assert cli.refused("get", "/a", tmp_path / "old", "--version", 1 << 70, code=2) == "usage"


# Streams


def test_standard_input_and_output(cli: Cli) -> None:
    data = noise(2_000_000)
    put = process(*cli.words, "put", "-", "/deep/er/file", given=data, token=cli.token)
    assert (put.returncode, put.stderr) == (0, b"")
    for words in (("get", "/deep/er/file", "-"), ("cat", "/deep/er/file")):
        got = process(*cli.words, *words, token=cli.token)
        assert (got.returncode, got.stdout, got.stderr) == (0, data, b"")


def test_several_files_are_written_one_behind_the_other(cli: Cli, local: Path) -> None:
    cli("put", local / "a", local / "b", "/")
    assert cli("cat", "/a", "/b", "/a").out == "aba"
    assert cli("get", "/a", "/b", "-").out == "ab"


def test_standard_input_has_no_name_to_go_by(cli: Cli) -> None:
    assert cli.refused("put", "-", "/") == "is_a_folder"


@pytest.mark.parametrize("words", [("get", "/a", "-"), ("cat", "/a")])
def test_contents_and_json_do_not_share_standard_output(
    cli: Cli, local: Path, words: tuple[str, ...]
) -> None:
    cli("put", local / "a", "/a")
    assert cli.refused(*words, code=2) == "invalid_field"


def test_a_folder_has_no_contents(cli: Cli, tmp_path: Path) -> None:
    cli("mkdir", "/d")
    assert "/d is a folder" in cli("cat", "/d", code=1).errors
    assert "/d is a folder" in cli("get", "/d", "-", code=1).errors
    assert cli.refused("get", "/d", tmp_path / "x", "--version", "1") == "is_a_folder"


# Preconditions


def test_preconditions_of_a_put(cli: Cli, local: Path) -> None:
    cli("put", "--create-only", local / "a", "/f")
    assert cli.refused("put", "--create-only", local / "b", "/f") == "exists"
    node = cli.json("stat", "/f")
    cli("put", "--if-version", node["version"], local / "b", "/f")
    assert cli.refused("put", "--if-version", node["version"], local / "a", "/f") == (
        "version_mismatch"
    )
    told = cli("put", "--if-version", 1, local / "a", "/f", code=1).errors
    assert f"/f has version id {cli.json('stat', '/f')['version']}, not 1: " in told
    assert "stat shows it" in told
    assert cli.refused("put", "--if-revision", node["revision"], local / "a", "/f") == (
        "version_mismatch"
    )
    assert cli.refused("put", "--if-version", 1 << 70, local / "a", "/f") == "version_mismatch"
    assert cli.read("/f") == b"b"


def test_preconditions_are_refused_for_folders(cli: Cli, local: Path) -> None:
    assert cli.refused("put", "--create-only", local / "d", "/d", code=2) == "invalid_field"
    assert cli.ls() == []


# What cannot be stored or written


def test_what_is_no_file_is_skipped_and_listed(
    cli: Cli, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(local / "fifo")
    (local / "link").symlink_to("/etc/passwd")
    (local / "folder link").symlink_to("/etc")
    (local / "esc\x1b[31m").write_text("x")
    with open(os.fsencode(local) + b"/latin-\xe9", "wb"):
        pass
    monkeypatch.chdir(local)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")

        done = cli("put", local, "/d", code=3)
        value = cli.json("put", local, "/d/", code=3)

    assert tree_of(cli, "/d") >= {"/d/a", "/d/b", "/d/d/x"}
    lines = done.errors.splitlines()
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    for part in (
        "fifo: a named pipe",
        "socket: a socket",
        "folder link: a symbolic link",
        r"esc\x1b[31m: ",
        r"latin-\xe9: ",
    ):
        assert any(part in line for line in lines), part
    assert len(value["skipped"]) == 6
    assert value["failed"] == []


def test_what_a_folder_says_is_to_be_ignored_is_passed_over(cli: Cli, local: Path) -> None:
    (local / "link").symlink_to("a")
    (local / "built").mkdir()
    (local / "built/x").write_text("x")
    (local / "d/y.tmp").write_text("y")
    (local / ".vaultignore").write_text("link\n/built/\n*.tmp\n")
    done = cli.json("put", local, "/t")
    assert (done["skipped"], done["failed"]) == ([], [])
    assert tree_of(cli, "/t") == {f"/t/{each}" for each in (".vaultignore", "a", "b", "d", "d/x")}
    (local / ".vaultignore").write_text("[z-a]\n!\n")
    assert cli.refused("put", local, "/u", code=2) == "invalid_field"


def test_what_a_killed_get_has_left_in_a_folder_is_passed_over(cli: Cli, local: Path) -> None:
    (local / ".vaultfs-7-1").write_text("half of it")
    (local / ".vaultfs-mine").write_text("a name like any other")
    done = cli.json("put", local, "/t")
    assert (done["skipped"], done["failed"]) == ([], [])
    assert tree_of(cli, "/t") == {f"/t/{each}" for each in (".vaultfs-mine", "a", "b", "d", "d/x")}


def test_the_option_of_cp_may_be_given(cli: Cli, local: Path) -> None:
    cli("put", "-r", local, "/t")
    cli("cp", "-r", "/t", "/u")
    assert cli.ls("/t") == cli.ls("/u") == ["a", "b", "d/"]


@pytest.mark.parametrize("name", ["fifo", "/dev/null"])
def test_what_is_no_file_is_refused_if_it_is_named(cli: Cli, local: Path, name: str) -> None:
    os.mkfifo(local / "fifo")
    assert cli.refused("put", local / name, "/f") == "conflict"
    assert cli.refused("put", local / "a", local / name, "/new") == "conflict"
    assert cli.ls() == []  # nothing is stored before all are looked at


def test_a_source_that_is_not_there(cli: Cli, local: Path) -> None:
    (local / "dangling").symlink_to("nothing")
    assert cli.refused("put", local / "nope", "/f") == "not_found"
    assert cli.refused("put", local / "dangling", "/f") == "not_found"
    assert cli.refused("get", "/nope", local) == "not_found"


@pytest.mark.parametrize(
    ("sources", "destination"),
    [(["d"], "/f"), (["d"], "/f/"), (["d"], "/f/x"), (["d", "a"], "/f"), (["a"], "/f/")],
)
def test_what_goes_into_a_folder_does_not_go_into_a_file(
    cli: Cli, local: Path, sources: list[str], destination: str
) -> None:
    cli("put", local / "a", "/f")
    called = cli("put", *(local / each for each in sources), destination, code=1)
    assert called.errors == "vaultfs: /f is a file, not a folder\n"
    assert called.out == ""


def test_one_of_several_that_fails_stops_none_of_the_others(cli: Cli, local: Path) -> None:
    cli("mkdir", "-p", "/into/a")
    put = cli.json("put", local / "a", local / "b", "/into", code=3)
    assert [each["where"] for each in put["failed"]] == [f"{local}/a"]
    assert put["files"] == 1
    got = cli.json("get", "/nope", "/into/b", local / "d", code=3)
    assert [each["where"] for each in got["failed"]] == ["/nope"]
    assert (local / "d/b").read_text() == "b"


def test_a_get_leaves_its_folder_by_no_link(cli: Cli, local: Path, tmp_path: Path) -> None:
    cli("put", local, "/docs")
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (target / "docs").mkdir(parents=True)
    (target / "docs/d").symlink_to(outside)
    (target / "docs/a").symlink_to(outside / "file")

    value = cli.json("get", "/docs", target, code=3)

    assert [each["where"] for each in value["failed"]] == ["/docs/d"]
    assert list(outside.iterdir()) == []
    assert (target / "docs/a").read_text() == "a"
    assert not (target / "docs/a").is_symlink()


def test_a_named_link_is_written_through(cli: Cli, local: Path) -> None:
    cli("put", local / "a", "/a")
    (local / "link").symlink_to("b")
    cli("get", "/a", local / "link")
    assert (local / "link").is_symlink()
    assert (local / "b").read_text() == "a"


def test_a_get_does_away_with_nothing_but_files(cli: Cli, local: Path) -> None:
    cli("put", local, "/docs")
    os.mkfifo(local / "fifo")
    assert cli.refused("get", "/docs/a", local / "fifo") == "conflict"
    assert (local / "fifo").is_fifo()
    assert cli.refused("get", "/docs", local / "a") == "not_a_folder"
    assert (local / "a").read_text() == "a"
    (local / "d/a").mkdir()
    assert cli.refused("get", "/docs/a", local / "d") == "is_a_folder"
    assert sorted(path.name for path in (local / "d").iterdir()) == ["a", "x"]  # no leftovers


PATHS = ["relative", "", "/a/../b", "/a/./b", "/a//b", "//a", "/nul\0", "/esc\x1b[31m", "/a\\b"]


@pytest.mark.parametrize("path", [*PATHS, "/" + "x" * 256, "/a" * 65, "/bad\udcff"])
def test_paths_that_no_vault_can_hold(cli: Cli, local: Path, path: str) -> None:
    for words in (("ls", path), ("mkdir", path), ("put", local / "a", path), ("rm", path)):
        called = cli(*words, code=2)
        assert called.errors.startswith("vaultfs: ")
        assert called.errors[:-1].isprintable()
        assert cli.refused(*words, code=2) == "invalid_name"


def test_names_that_could_drive_a_terminal_are_shown_escaped(cli: Cli) -> None:
    cli("mkdir", "/right\u202eto-left")
    for words in (("ls",), ("ls", "-l"), ("tree",), ("stat", "/right\u202eto-left")):
        shown = cli(*words).out
        assert "\u202e" not in shown
        assert r"\u202e" in shown
    assert "\u202e" not in cli("--json", "ls").out
    assert cli.json("ls")[0]["name"] == "right\u202eto-left"
    cli("meta", "/right\u202eto-left", '{"a": "\u009b31m"}')
    assert "\u009b" not in cli("meta", "/right\u202eto-left").out


def test_nothing_is_written_into_the_vault_or_taken_from_it(embedded: Cli, tmp_path: Path) -> None:
    cli = embedded
    (tmp_path / "f").write_text("mine")
    cli("put", tmp_path / "f", "/f")
    cli("mkdir", "/d")
    before = (cli.vault / "catalog.db").read_bytes()
    for words in (
        ("get", "/f", cli.vault / "catalog.db"),
        ("get", "/f", cli.vault / "objects/new"),
        ("get", "/d", cli.vault / "objects/x"),
        ("put", cli.vault, "/self"),
        ("put", cli.vault / "catalog.db", "/cat"),
    ):
        assert "in the vault itself" in cli(*words, code=1).errors
    assert (cli.vault / "catalog.db").read_bytes() == before
    assert [each["name"] for each in cli.json("ls", "/")] == ["d", "f"]


def test_a_vault_in_the_tree_that_is_put_is_left_out(embedded: Cli, tmp_path: Path) -> None:
    cli = embedded
    (tmp_path / "f").write_text("mine")
    called = cli("put", cli.vault.parent, "/all", code=3)
    assert "the vault itself" in called.errors
    assert cli.vault.name not in [each["name"] for each in cli.json("ls", "/all")]


def test_a_vault_in_a_folder_in_step_is_left_out(embedded: Cli, tmp_path: Path) -> None:
    cli = embedded
    (tmp_path / "f").write_text("mine")
    for _ in range(2):
        told = cli("sync", tmp_path, "/all", code=3).errors
        assert told == f"{cli.vault.name}: the vault itself\n"
    assert [each["name"] for each in cli.json("ls", "/all")] == ["f"]
    assert "is in the vault itself" in cli("sync", cli.vault, "/self", code=1).errors


def test_of_two_names_that_are_one_in_the_vault_the_second_is_skipped(
    cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for name in ("e\u0301", "\u00e9"):
        (folder / name).write_text(name)
    called = cli("put", folder, "/twins", code=3)
    assert "another Unicode form" in called.errors
    assert len(cli("ls", "/twins").out.splitlines()) == 1

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import Cli

Put = Callable[..., None]


@pytest.fixture
def put(cli: Cli, tmp_path: Path) -> Put:
    """Puts each text as the next version of a path."""

    def put(path: str, *texts: str) -> None:
        for text in texts:
            (tmp_path / "text").write_text(text)
            cli("put", "-q", tmp_path / "text", path)

    return put


def test_ls(cli: Cli, put: Put) -> None:
    put("/b", "text")
    cli("mkdir", "/a")
    assert cli.ls() == ["a/", "b"]
    assert cli.ls("/b") == ["b"]
    assert cli.ls("/a") == []
    assert "4 B  v1" in cli("ls", "-l").out
    assert [node["kind"] for node in cli.json("ls")] == ["folder", "file"]
    assert cli.refused("ls", "/nope") == "not_found"


def test_a_long_folder_is_listed_whole(cli: Cli) -> None:
    names = [f"f{number:04}" for number in range(1100)]
    cli("mkdir", *(f"/{name}" for name in names))
    assert cli.ls() == [f"{name}/" for name in names]


def test_tree(cli: Cli, put: Put) -> None:
    put("/a/b/c", "x")
    put("/d", "x")
    assert cli("tree").out.splitlines() == ["├── a/", "│   └── b/", "│       └── c", "└── d"]
    assert cli("tree", "--depth", "1").out.splitlines() == ["├── a/", "└── d"]
    assert [node["path"] for node in cli.json("tree", "/a")] == ["/a/b", "/a/b/c"]
    assert cli.refused("tree", "/d") == "not_a_folder"
    assert cli.refused("tree", "--depth", "0", code=2) == "usage"


def test_stat_and_versions(cli: Cli, put: Put) -> None:
    put("/f", "one", "three")
    value = cli.json("stat", "/f")
    assert (value["number"], value["size"], value["content"]["number"]) == (2, 5, 2)
    assert cli.json("stat", "/f", "--version", "1")["content"]["size"] == 3
    assert "number: 2" in cli("stat", "/f").out
    assert "content" not in cli.json("stat", "/")
    assert [version["size"] for version in cli.json("versions", "/f")] == [5, 3]
    assert [line.split()[0] for line in cli("versions", "/f").out.splitlines()] == ["v2", "v1"]
    assert cli.refused("stat", "/f", "--version", "9") == "not_found"
    assert cli.refused("stat", "/f", "--version", 1 << 63, code=2) == "usage"
    assert cli.refused("versions", "/") == "is_a_folder"


def test_mkdir(cli: Cli) -> None:
    cli("mkdir", "/a")
    assert cli.refused("mkdir", "/a") == "exists"
    assert cli.refused("mkdir", "/b/c") == "parent_not_found"
    assert [node["path"] for node in cli.json("mkdir", "-p", "/a", "/b/c")] == ["/a", "/b/c"]


@pytest.mark.parametrize(
    ("sources", "destination", "expected"),
    [
        (["/a"], "/c", {"/c"}),
        (["/a"], "/into", {"/into/a"}),
        (["/a"], "/into/", {"/into/a"}),
        (["/a", "/b"], "/into", {"/into/a", "/into/b"}),
        (["/into"], "/other", {"/other"}),
    ],
)
@pytest.mark.parametrize("verb", ["mv", "cp"])
def test_mv_and_cp_choose_the_place_as_their_namesakes(
    cli: Cli, put: Put, verb: str, sources: list[str], destination: str, expected: set[str]
) -> None:
    put("/a", "a")
    put("/b", "b")
    cli("mkdir", "/into")
    done = cli.json(verb, *sources, destination)
    there = {node["path"] for node in cli.json("tree")}
    assert {node["path"] for node in done} == expected
    assert expected <= there
    assert (verb == "cp") == (set(sources) <= there)


@pytest.mark.parametrize("verb", ["mv", "cp"])
def test_what_is_there_is_replaced_only_by_force(cli: Cli, put: Put, verb: str) -> None:
    put("/a", "a")
    put("/b", "b")
    assert cli.refused(verb, "/a", "/b") == "exists"
    cli(verb, "-f", "/a", "/b")
    assert cli.read("/b") == b"a"


def test_what_cannot_be_moved(cli: Cli) -> None:
    cli("mkdir", "/a")
    assert cli.refused("mv", "/nope", "/b") == "not_found"
    assert cli.refused("mv", "/a", "/a/b") == "cycle"
    assert cli.refused("mv", "/", "/a", code=2) == "invalid_field"
    assert cli.refused("mv", "/a", "/nope/") == "parent_not_found"


def test_an_older_version_is_copied(cli: Cli, put: Put) -> None:
    put("/f", "one", "two")
    cli("cp", "/f", "/old", "--version", "1")
    assert cli.read("/old") == b"one"


def test_preconditions_hold_or_nothing_is_changed(cli: Cli, put: Put) -> None:
    put("/f", "one", "two")
    node = cli.json("stat", "/f")
    for words in (("mv", "/f", "/g"), ("rm", "/f")):
        assert cli.refused(*words, "--if-version", node["version"] + 1) == "version_mismatch"
        assert cli.refused(*words, "--if-revision", node["revision"] + 1) == "version_mismatch"
    patch = ("meta", "/f", '{"a": 1}', "--if-revision")
    assert cli.refused(*patch, node["revision"] + 1) == "version_mismatch"
    cli(*patch, node["revision"])
    cli("mv", "/f", "/g", "--if-version", node["version"])
    cli("rm", "/g", "--if-revision", cli.json("stat", "/g")["revision"])


def test_rm_takes_a_folder_with_all_it_holds_only_if_told(cli: Cli, put: Put) -> None:
    put("/d/f", "x")
    assert cli.refused("rm", "/d") == "folder_not_empty"
    assert "(rm -r)" in cli("rm", "/d", code=1).errors
    cli("rm", "-r", "/d")
    assert cli.ls() == []
    assert cli.refused("rm", "-r", "/") == "folder_not_empty"


def test_the_trash_tells_what_stat_told(cli: Cli, put: Put) -> None:
    put("/f", "x")
    cli("meta", "/f", '{"a": 1}')
    there = cli.json("stat", "/f")
    cli("rm", "/f")
    [gone] = cli.json("trash")
    assert gone["revision"] > there["revision"]
    assert gone["trashed_us"] > 0
    for key in ("path", "kind", "id", "version", "number", "size", "created", "metadata"):
        assert gone[key] == there[key]


def test_mkdir_below_what_is_not_there_names_the_option(cli: Cli) -> None:
    assert "make it first, or use -p" in cli("mkdir", "/x/y/z", code=1).errors


def test_a_batch_that_is_no_json_names_its_file(cli: Cli, tmp_path: Path) -> None:
    for name in ("bad.json", "bad.jsonl"):
        (tmp_path / name).write_text("nonsense")
        told = cli("batch", tmp_path / name, code=2).errors
        assert str(tmp_path / name) in told
        assert "JSON" in told


def test_what_was_deleted_comes_back(cli: Cli, put: Put) -> None:
    for text in ("first", "second"):
        put("/d/f", text)
        cli("rm", "/d/f")
    first, second = cli.json("trash")
    assert first["path"] == second["path"] == "/d/f"
    assert cli("trash").out.count("/d/f") == 2

    cli("restore", "/d/f")  # the last deleted of that path
    assert cli.read("/d/f") == b"second"
    assert cli.refused("restore", first["id"]) == "exists"
    assert cli.json("restore", first["id"], "--to", "/other")["path"] == "/other"
    assert cli.read("/other") == b"first"
    assert cli.json("trash") == []
    assert cli("trash").out == ""
    assert cli.refused("restore", "/d/f") == "not_found"
    assert cli.refused("restore", "9" * 30) == "not_found"
    assert cli.refused("restore", "neither", code=2) == "invalid_name"


def test_an_old_version_becomes_the_newest(cli: Cli, put: Put) -> None:
    put("/f", "one", "two")
    assert cli.json("restore", "/f", "--version", "1")["number"] == 3
    assert cli.read("/f") == b"one"
    assert cli.refused("restore", "/f", "--version", "9") == "not_found"


def test_what_is_purged_is_gone(cli: Cli, put: Put) -> None:
    for name in ("/a", "/b", "/c"):
        put(name, name)
        cli("rm", name)
    ids = [each["id"] for each in cli.json("trash")]
    assert cli.json("trash", "--purge", ids[0]) == {"purged": ids[:1]}
    assert cli.refused("trash", "--purge", ids[0]) == "not_found"
    assert cli.refused("trash", "--purge", 1 << 70) == "not_found"
    assert cli.json("trash", "--purge-all") == {"purged": ids[1:]}


def test_metadata(cli: Cli, put: Put) -> None:
    put("/f", "x")
    assert cli.json("meta", "/f") == {}
    cli("meta", "/f", '{"a": 1, "b": {"c": "ü"}}')
    assert cli.json("meta", "/f", '{"a": null}') == {"b": {"c": "ü"}}
    assert '"ü"' in cli("meta", "/f").out
    for patch in ("nonsense", "[1]", '{"a": NaN}', '{"a": "\\ud800"}'):
        assert cli.refused("meta", "/f", patch, code=2) == "invalid_field", patch


def test_nothing_of_another_user_can_be_reached(cli: Cli) -> None:
    assert cli.refused("ls", "somebody:/") == "not_found"
    assert cli.refused("mkdir", "somebody:/x") == "not_found"


def test_a_restore_of_what_is_no_trash_says_how_to_have_an_old_version(cli: Cli, put: Put) -> None:
    put("/f", "x")
    assert "--version N brings an old content back" in cli("restore", "/f", code=1).errors
    assert "see `vaultfs trash`" in cli("restore", "/nope", code=1).errors
    assert "see `vaultfs trash`" in cli("restore", "12345", code=1).errors


def test_a_role_that_is_none_is_refused(cli: Cli, put: Put) -> None:
    put("/f", "x")
    told = cli("grant", "/f", "bob", "foo", code=2).errors
    assert told == "vaultfs: foo is no role: reader or writer\n"


def test_metadata_that_is_no_json_is_shown_how(cli: Cli) -> None:
    cli("mkdir", "/d")
    told = cli("meta", "/d", "status=filed", code=2).errors
    assert told.startswith('vaultfs: metadata is JSON, as in \'{"key": "value"}\': ')

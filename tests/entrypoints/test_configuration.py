"""Settings of a server: flags before the environment before a file before nothing."""

import re
import tomllib
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import call

from vaultfs.domain.errors import InvalidField, NotFound
from vaultfs.entrypoints.configuration import SETTINGS, Effective, read_configuration

EXAMPLE = Path(__file__).parents[2] / "deploy" / "vaultfs.toml"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "vaultfs.toml"
    path.write_text('host = "0.0.0.0"\nport = 1\nrate = 5\n')
    return str(path)


def test_who_is_nearer_is_heard(file: str) -> None:
    environment = {"VAULTFS_PORT": "2", "VAULTFS_TRASH_DAYS": "7"}
    found = read_configuration({"port": 3, "rate": None}, environment, file)
    assert found["port"] == Effective(3, "--port")
    assert found["trash_days"] == Effective(7, "VAULTFS_TRASH_DAYS")
    assert found["host"] == Effective("0.0.0.0", file)
    assert found["rate"] == Effective(5.0, file)
    assert found["backup_hours"] == Effective(24, "default")
    assert found.keys() == SETTINGS.keys()
    assert read_configuration({}, {"VAULTFS_CONFIG": file}, None)["port"].value == 1


@pytest.mark.parametrize(
    "text", ["prot = 1", 'port = "many"', "port = true", "host = 5", "port = ", "port = 1.5"]
)
def test_what_is_mistyped_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(InvalidField, match=r"x\.toml"):
        read_configuration({}, {}, str(path))
    with pytest.raises(InvalidField, match="VAULTFS_PORT"):
        read_configuration({}, {"VAULTFS_PORT": "x"}, None)
    with pytest.raises(NotFound):
        read_configuration({}, {}, str(tmp_path / "none"))


def test_it_is_shown(file: str) -> None:
    shown = call("config", "--config", file, env={"VAULTFS_PORT": "99"}).out
    assert ["port", "99", "VAULTFS_PORT"] in [line.split() for line in shown.splitlines()]
    value = call("--json", "config", "--config", file).value
    assert value["rate"] == {"value": 5.0, "source": file}
    assert call("config", "--config", file + "x").code == 1


def test_the_file_to_begin_with_has_every_setting() -> None:
    text = EXAMPLE.read_text()
    written = tomllib.loads(text)
    assert written == {name: each.default for name, each in SETTINGS.items() if each.default}
    without = re.findall(r"^# (\w+) = ", text, re.MULTILINE)
    assert sorted([*written, *without]) == sorted(SETTINGS)


def test_bad_values_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for words in (
        ("--port", "70000"),
        ("--rate", "0"),
        ("--tls-cert", "x"),
        ("--trash-days", "-1"),
    ):
        called = call("serve", tmp_path / "vault", *words)
        assert called.code == 2, (words, called.errors)
    assert not (tmp_path / "vault").exists()

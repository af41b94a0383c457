"""Settings of a server: flags before the environment before a file before nothing."""

import re
import tomllib
from pathlib import Path

import pytest
from tests.entrypoints.cli_calls import call

from vaultfs.domain.errors import InvalidField, NotFound
from vaultfs.entrypoints.configuration import SETTINGS, Effective, Named, read_configuration
from vaultfs.entrypoints.settings import read_settings, settings_of

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


def test_what_is_empty_in_the_environment_says_nothing(file: str) -> None:
    empty = {f"VAULTFS_{name.upper()}": "" for name in (*SETTINGS, "config")}
    found = read_configuration({}, empty, None)
    assert found == read_configuration({}, {}, None)
    assert found["host"].value == "127.0.0.1"  # and not all addresses of the machine
    assert read_configuration({}, empty, file)["host"] == Effective("0.0.0.0", file)


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


@pytest.mark.parametrize("password", ["hun/ter2", "hun?ter2", "hun#ter2", "12/ter2", "h@n/ter2"])
def test_no_part_of_a_password_is_shown(password: str) -> None:
    flags = ("--database", f"postgresql://me:{password}@localhost:1/v", "--store", "file:///x")
    refused = call(*flags, "ls")
    assert refused.code == 2
    assert "%2F" in refused.errors
    shown = call(*flags, "config").out
    assert "postgresql://me:***@localhost:1/v" in shown
    assert not re.search("hun|ter2", refused.errors + shown)


def test_no_secret_behind_the_question_mark_is_shown() -> None:
    address = "postgresql://localhost:1/v?user=me&password=hunter2&sslpassword=hunter2"
    shown = call("--database", address, "--store", "file:///x", "config").out
    assert "user=me&password=***&sslpassword=***" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "address",
    [
        *("//localhost/v", "//me:p%2Fw@[::1]:1/v", "//one:1,two:2/v", "///v?host=/run&user=me@x"),
        *("//me@/v", "//localhost:/v"),
    ],
)
def test_addresses_of_databases(address: str) -> None:
    place = Named(None, f"postgresql:{address}", "file:///x")
    assert settings_of(place, {}).database == f"postgresql:{address}"


@pytest.mark.parametrize("text", ["63", "-64", "many", "64.5", "9" * 5000])
def test_a_budget_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="VAULTFS_BUDGET_MIB"):
        read_settings("vault", {"VAULTFS_BUDGET_MIB": text})
    assert read_settings("vault", {"VAULTFS_BUDGET_MIB": "64"}).budget == 64 << 20

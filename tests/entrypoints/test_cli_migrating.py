"""The command `migrate`: what it does, prints and ends with."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from tests.entrypoints.cli_calls import Called, call, new_vault
from tests.faults import random_bytes

DONE, FAILED, USAGE, BLOCKED, LEFT = 0, 1, 2, 3, 4


@frozen
class Moving:
    """A vault in a folder, and where it is to move."""

    vault: Path
    target: Path

    def __call__(self, *words: object) -> Called:
        return call("--json", "--vault", self.vault, "migrate", *words)

    def text(self, *words: object) -> Called:
        return call("--vault", self.vault, "migrate", *words)

    def ok(self, *words: object) -> Any:
        called = self(*words)
        assert (called.code, called.errors) == (DONE, ""), called
        return called.value

    def start(self, level: str = "V3") -> Any:
        return self.ok("start", "--to", f"new={self.target.as_uri()}", "--verify", level)

    @property
    def packs(self) -> list[Path]:
        return sorted(
            each for each in (self.vault / "objects").rglob("packs/**/*") if each.is_file()
        )


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    cli = new_vault(folder / "vault")
    for name in ("one", "two"):
        (folder / name).write_bytes(random_bytes(2000, name))
        assert call("--vault", cli.vault, "put", folder / name, f"/{name}").code == 0
    return folder / "vault"


@pytest.fixture
def moving(stock: Path, tmp_path: Path) -> Moving:
    shutil.copytree(stock, tmp_path / "vault")
    (tmp_path / "new").mkdir()
    return Moving(tmp_path / "vault", tmp_path / "new")


def content(moving: Moving, name: str) -> bytes:
    called = call("--vault", moving.vault, "cat", f"/{name}")
    assert called.code == 0, called
    return called.bytes_out


def test_a_vault_moves(moving: Moving) -> None:
    started = moving.start()
    assert started == {
        "phase": "copying",
        "epoch": started["epoch"],
        "source": "local",
        "target": "new",
        "paused": False,
        "level": "V3",
        "bytes_per_second": None,
        "objects_per_second": None,
    }
    assert moving.ok("status")["counts"]["there"] == 0
    watched = moving.ok("watch")
    assert watched["phase"] == "dual"
    assert watched["counts"]["there"] == watched["counts"]["read_back"] == 2
    assert watched["failures"] == 0
    assert moving.ok("cutover")["phase"] == "soak"
    assert moving.ok("rollback")["phase"] == "rolled-back"
    assert moving.ok("dual")["phase"] == "dual"
    assert moving.ok("cutover")["phase"] == "soak"
    assert moving.ok("detach")["phase"] == "detached"
    assert moving.ok("retire", "local") == {"deleted": 3}
    status = moving.ok("status")
    assert (status["phase"], status["source"], status["target"]) == ("settled", "new", None)
    assert not moving.packs
    for name in ("one", "two"):
        assert content(moving, name) == random_bytes(2000, name)
    assert call("--json", "--vault", moving.vault, "verify").value["clean"]


def test_what_people_read(moving: Moving) -> None:
    moving.start()
    assert moving.text("status").out.splitlines() == [
        f"copying (epoch {moving.ok('status')['epoch']}): local -> new",
        "0 of 2 packs, 0 B of 4.2 KiB (0.0%) are there; 0 read back, 0 failed",
    ]
    assert moving.text("pause").out.startswith("copying, paused (epoch ")
    moving.ok("resume")
    assert "2 of 2 packs" in moving.text("watch", "--quiet").out


def test_what_is_in_the_way_is_said(moving: Moving) -> None:
    moving.start()
    moving.ok("dual")
    called = moving("cutover")
    assert (called.code, called.errors) == (BLOCKED, "")
    assert called.value == {"blocked": ["2 packs are not verified in new"]}
    told = moving.text("cutover")
    assert (told.code, told.out) == (BLOCKED, "not yet: 2 packs are not verified in new\n")


def test_copying_is_slowed_down(moving: Moving) -> None:
    started = moving.ok("start", "--to", f"new={moving.target.as_uri()}", "--rate", "0.01")
    assert started["bytes_per_second"] == 10_000
    assert "at most 9.8 KiB a second" in moving.text("status").out
    assert moving.ok("throttle", "--objects", "1")["objects_per_second"] == 1
    assert "at most 1 pack a second" in moving.text("throttle", "--objects", "1").out
    begun = time.monotonic()
    assert moving.ok("watch")["phase"] == "dual"
    assert time.monotonic() - begun > 1, "two packs, one a second"
    assert moving.ok("throttle")["objects_per_second"] is None
    assert moving("throttle", "--if-epoch", started["epoch"]).code == FAILED


def test_what_is_paused_is_not_complete(moving: Moving) -> None:
    moving.start()
    assert moving.ok("pause")["paused"]
    called = moving("watch")
    assert (called.code, called.value["counts"]["there"]) == (BLOCKED, 0)
    assert not moving.ok("resume")["paused"]
    assert moving.ok("watch")["phase"] == "dual"


def test_packs_that_fail_are_left(moving: Moving) -> None:
    first = moving.packs[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"?" if whole[-1:] != b"?" else whole[:-1] + b"!")
    moving.start()
    called = moving("watch")
    assert (called.code, called.value["failures"]) == (LEFT, 1)
    called = moving("failures")
    [failure] = called.value
    assert called.code == LEFT
    assert failure["pack"] == first.name
    assert "does not have its digest" in failure["error"]
    assert moving.text("failures").out.startswith(f"packs/{first.name}: ")
    first.write_bytes(whole)
    assert moving.ok("failures", "--retry") == {"retried": 1}
    assert moving.ok("watch")["counts"]["there"] == 2
    assert moving.ok("failures") == []


def test_of_two_operators_one_is_too_late(moving: Moving) -> None:
    epoch = moving.start()["epoch"]
    moving.ok("dual", "--if-epoch", epoch)
    called = moving("abort", "--if-epoch", epoch)
    assert called.code == FAILED
    assert "somebody else was faster" in called.value["error"]["message"]


def test_it_is_given_up(moving: Moving) -> None:
    moving.start()
    moving.ok("watch")
    assert moving.ok("abort")["phase"] == "aborted"
    assert moving.ok("end")["phase"] == "settled"
    assert content(moving, "one") == random_bytes(2000, "one")
    assert moving.ok("start", "--to", "new")["phase"] == "copying"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("cutover",), FAILED, "there is no migration"),
        (("start", "--to", "new"), USAGE, "name it with VAULTFS_STORES='new=URL'"),
        (("start", "--to", "/srv/new"), USAGE, "--to NAME=file:///srv/new"),
        (("start", "--to", "s3://b/p"), USAGE, "--to NAME=s3://b/p"),
        (("throttle", "--objects", "0"), USAGE, "0 a second"),
        (("throttle", "--rate", "0"), USAGE, "--rate 0"),
        (("throttle", "--rate", "-5"), USAGE, "--rate -5"),
        (("throttle", "--rate", "nan"), USAGE, "--rate nan"),
        (("throttle", "--rate", "inf"), USAGE, "--rate inf"),
        (("start", "--to", "NEW=file:///x"), USAGE, "NAME=URL"),
        (("start", "--to", "new=ftp://x"), None, "store ftp: this release knows"),
        (("start", "--to", "new=/abc"), None, "store /abc: this release knows"),
        (("start", "--to", "new=file:///x", "--verify", "V9"), USAGE, "--verify V9"),
    ],
)
def test_what_cannot_be_asked_for(
    moving: Moving, words: tuple[str, ...], code: int | None, told: str
) -> None:
    called = moving(*words)
    assert called.code == code or (code is None and called.code in {FAILED, USAGE}), called
    assert told in json.dumps(called.value["error"])


def test_where_there_is_one_store_that_is_the_status(moving: Moving) -> None:
    assert moving.ok("status")["phase"] == "settled"
    assert moving.ok("status")["target"] is None


def test_the_name_of_what_is_given_up_has_to_be_said(moving: Moving) -> None:
    moving.start()
    moving.ok("watch")
    moving.ok("cutover")
    moving.ok("detach")
    called = moving("retire", "new")
    assert called.code == USAGE
    assert "not what is given up" in called.value["error"]["message"]
    assert len(moving.packs) == 2


def test_a_store_that_does_not_open_is_not_kept(moving: Moving) -> None:
    below = moving.target / "there" / "below"
    called = moving("start", "--to", f"new={below.as_uri()}")
    assert called.code == FAILED
    assert called.value["error"]["code"] == "store_misconfigured"
    assert f"store new: open: its folder {below} is not there: " in str(called.value["error"])
    assert content(moving, "one") == random_bytes(2000, "one")
    below.parent.mkdir()
    assert moving.ok("start", "--to", f"new={below.as_uri()}")["phase"] == "copying"


def test_its_folder_is_made(moving: Moving) -> None:
    moving.target.rmdir()
    moving.start()
    assert {each.name for each in moving.target.iterdir()} == {".tmp", "marker"}


def test_what_was_only_tried_is_as_it_was(moving: Moving) -> None:
    own = moving.vault / "objects"
    before = sorted(each.name for each in own.iterdir())
    assert moving("start", "--to", f"new={own.as_uri()}").code == USAGE
    assert sorted(each.name for each in own.iterdir()) == before


def test_a_name_is_kept_only_with_a_store_that_will_do(moving: Moving, tmp_path: Path) -> None:
    other = new_vault(tmp_path / "other")
    for refused in (moving.vault / "objects", other.vault / "objects"):
        assert moving("start", "--to", f"new={refused.as_uri()}").code != DONE
        assert not (moving.vault / "stores").exists()
    moving.start()
    assert (moving.vault / "stores").read_text() == f"new={moving.target.as_uri()}\n"
    moving.ok("abort")
    moving.ok("end")
    again = moving("start", "--to", f"new={tmp_path.as_uri()}")
    assert again.code == USAGE
    assert "choose another name" in again.value["error"]["message"]


def test_neither_is_one_that_is_called_as_the_own_store_is(moving: Moving) -> None:
    called = moving("start", "--to", f"local={moving.target.as_uri()}")
    assert called.code == USAGE
    assert "is what the vault's own store is called" in called.value["error"]["message"]
    assert content(moving, "one") == random_bytes(2000, "one")
    moving.start()


def test_neither_is_an_address_with_a_space(moving: Moving) -> None:
    spaced = moving.target.with_name("new one")
    spaced.mkdir()
    called = moving("start", "--to", f"new=file://{spaced}")
    assert called.code == USAGE
    assert "%20" in called.value["error"]["message"]
    assert content(moving, "one") == random_bytes(2000, "one")
    assert moving.ok("start", "--to", f"new={spaced.as_uri()}")["phase"] == "copying"
    assert moving.ok("watch")["phase"] == "dual"


def test_nor_is_one_needed_that_nothing_is_in(moving: Moving) -> None:
    moving.start()
    moving.ok("abort")
    moving.ok("end")
    shutil.rmtree(moving.target)
    assert content(moving, "one") == random_bytes(2000, "one")
    called = moving("start", "--to", "new")
    assert called.code == FAILED
    assert f"its folder {moving.target} is not there" in called.value["error"]["message"]


def test_the_store_of_another_vault_is_refused(moving: Moving, tmp_path: Path) -> None:
    other = new_vault(tmp_path / "other")
    called = moving("start", "--to", f"new={(other.vault / 'objects').as_uri()}")
    assert called.code != DONE
    assert called.value["error"]["code"] == "wrong_store"
    assert content(moving, "one") == random_bytes(2000, "one")


def test_the_way_back_is_open_while_the_new_store_is_gone(moving: Moving) -> None:
    moving.start()
    moving.ok("watch")
    moving.ok("cutover")
    moving.target.rename(moving.target.with_name("away"))
    assert moving.ok("status")["phase"] == "soak"
    assert content(moving, "one") == random_bytes(2000, "one")
    assert moving.ok("rollback")["phase"] == "rolled-back"
    assert moving.ok("abort")["phase"] == "aborted"
    assert call("--vault", moving.vault, "put", __file__, "/more").code == DONE
    assert moving.ok("end")["phase"] == "settled"


def test_and_while_its_server_does_not_answer(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving.start()
    moving.ok("watch")
    moving.ok("cutover")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    (moving.vault / "stores").write_text("new=s3://bucket/vault?endpoint=http://127.0.0.1:9")
    assert moving.ok("rollback")["phase"] == "rolled-back"
    assert content(moving, "one") == random_bytes(2000, "one")


def test_the_old_store_may_be_down_once_the_new_one_is_read(moving: Moving) -> None:
    moving.start()
    moving.ok("watch")
    moving.ok("cutover")
    moving.ok("detach")
    old = moving.vault / "objects"
    old.rename(old.with_name("away"))
    assert content(moving, "one") == random_bytes(2000, "one")
    assert call("--vault", moving.vault, "put", __file__, "/more").code == DONE
    assert moving("retire", "local").code == FAILED
    old.with_name("away").rename(old)
    assert moving.ok("retire", "local") == {"deleted": 3}
    shutil.rmtree(old)
    assert content(moving, "one") == random_bytes(2000, "one")


def test_a_vault_none_of_whose_stores_answers_is_not_opened(moving: Moving) -> None:
    moving.start()
    shutil.rmtree(moving.target)
    shutil.rmtree(moving.vault / "objects")
    called = moving("status")
    assert called.code == FAILED
    assert f"its folder {moving.vault / 'objects'} is not there" in str(called.value["error"])


# A lost catalog


FOLLOWING = {
    "copying": ("watch",),
    "dual": ("cutover",),
    "soak": ("detach",),
    "detached": ("retire", "local"),
}


def advance(moving: Moving, phase: str) -> None:
    """Have the vault move on as far as `phase`."""
    while (now := moving.ok("status")["phase"]) != phase:
        moving.ok(*FOLLOWING[now])


def put(moving: Moving, name: str) -> None:
    local = moving.vault.parent / name
    local.write_bytes(random_bytes(2000, name))
    assert call("--vault", moving.vault, "put", local, f"/{name}").code == 0


def back_up(moving: Moving) -> str:
    return str(call("--json", "--vault", moving.vault, "backup").value["name"])


def lose_catalog(moving: Moving) -> None:
    for path in moving.vault.glob("catalog.db*"):
        path.unlink()


def rebuild(moving: Moving, *words: str) -> Any:
    called = call("--json", "-q", "--vault", moving.vault, "rebuild", *words)
    assert (called.code, called.errors) == (DONE, ""), called
    return called.value


def check(moving: Moving, *names: str) -> None:
    for name in ("one", "two", *names):
        assert content(moving, name) == random_bytes(2000, name)
    assert call("--json", "--vault", moving.vault, "verify").value["clean"]


@pytest.mark.parametrize("phase", ["dual", "soak", "detached", "settled"])
def test_a_catalog_from_a_backup_knows_how_far_it_was(moving: Moving, phase: str) -> None:
    moving.start()
    advance(moving, phase)
    put(moving, "three")
    before = moving.ok("status")
    name = back_up(moving)
    lose_catalog(moving)
    assert rebuild(moving)["backup"] == name
    after = moving.ok("status")
    assert after.pop("epoch") > before.pop("epoch")
    for each in ("phase", "source", "target", "level"):
        assert after[each] == before[each]
    put(moving, "four")
    check(moving, "three", "four")
    if phase == "dual":
        moving.ok("watch")  # what the new index leaves to the copier
    advance(moving, "settled")
    check(moving, "three", "four")


@pytest.mark.parametrize("phase", ["detached", "settled"])
def test_backups_are_looked_for_in_every_store(moving: Moving, phase: str) -> None:
    old = back_up(moving)
    moving.start()
    advance(moving, phase)
    put(moving, "three")
    new = back_up(moving)
    lose_catalog(moving)
    listed = call("--json", "--vault", moving.vault, "backup", "--list").value
    assert [each["name"] for each in listed] == [old, new]
    assert rebuild(moving, "--from-backup", new)["backup"] == new
    check(moving, "three")
    lose_catalog(moving)
    assert rebuild(moving, "--from-backup", "latest")["backup"] == new
    check(moving, "three")


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("phase", ["copying", "soak", "detached"])
def test_what_a_backup_names_may_have_been_left(moving: Moving, phase: str, gone: bool) -> None:
    old = back_up(moving)
    moving.start()
    advance(moving, phase)
    name = back_up(moving)
    advance(moving, "settled")
    lose_catalog(moving)
    if gone:
        shutil.rmtree(moving.vault / "objects")
    for each in (name, old):
        assert rebuild(moving, "--from-backup", each)["backup"] == each
        status = moving.ok("status")
        assert (status["phase"], status["source"]) == ("settled", "new")
        check(moving)
    put(moving, "three")
    check(moving, "three")


def test_a_backup_from_before_the_migration_says_what_it_does_not_know(moving: Moving) -> None:
    old = back_up(moving)
    moving.start()
    advance(moving, "soak")
    new = back_up(moving)
    called = call("--vault", moving.vault, "rebuild", "--from-backup", new)
    assert (called.code, "migrat" in called.out) == (DONE, False)
    assert rebuild(moving, "--from-backup", new)["idle_stores"] == []

    told = call("--vault", moving.vault, "rebuild", "--from-backup", old).out.splitlines()[-1]
    begin = f"--to new={moving.target.as_uri()}"
    assert told == (
        "the backup knows of no migration to new: everything is in local by it, and what is put"
        f" goes to local alone; `vaultfs migrate start {begin}` begins one again"
    )
    again = rebuild(moving, "--from-backup", old)
    assert (again["stores"], again["idle_stores"]) == (["local"], ["new"])
    assert rebuild(moving)["idle_stores"] == []  # there it is no news
    put(moving, "three")
    moving.ok("start", *begin.split())
    advance(moving, "settled")
    check(moving, "three")


def test_the_newest_backup_may_be_in_a_store_that_does_not_answer(moving: Moving) -> None:
    old = back_up(moving)
    moving.start()
    advance(moving, "detached")
    new = back_up(moving)
    lose_catalog(moving)
    moving.target.rename(moving.target.with_name("away"))
    for wanted in ((), ("--from-backup", new)):
        called = call("--json", "--vault", moving.vault, "rebuild", *wanted)
        assert (called.code, called.value["error"]["code"]) == (FAILED, "store_misconfigured")
        assert not list(moving.vault.glob("catalog.db*"))
    assert rebuild(moving, "--from-backup", old)["stores"] == ["local"]
    check(moving)

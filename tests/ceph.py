"""A real S3 server for the tests: Ceph's radosgw with one monitor and one OSD in memory.

One for the whole session, a bucket for each test. The programs come from Debian; root gets
them installed. Where that cannot be, the tests that need it are skipped by name; with
`CI=true` that is a failure.
"""

import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from attrs import define, field, frozen
from tests.postgres import free_port

STARTS_WITHIN: Final = 60.0
PROGRAMS: Final = ("ceph-mon", "ceph-osd", "radosgw")
INSTALL: Final = (
    ("apt-get", "update", "-qq"),
    ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PROGRAMS),
)
ACCESS: Final = "vaultfs-tests"
SECRET: Final = "no-secret-at-all"
SETTINGS: Final = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
mon initial members = a
keyring = {folder}/keyring
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file =
run dir = {folder}
crash dir = {folder}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.05
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {room}
osd max object name len = 2048
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw data = {folder}/rgw
rgw gc obj min wait = 1
rgw gc processor period = 10
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = test-key={key}
rgw bucket quota ttl = 0
"""
KEYS: Final = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mds", "allow *", "mgr", "allow *"),
    "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"),
}


@define(eq=False)
class Ceph:
    """A cluster of one, with all it has in `folder`."""

    folder: Path
    port: int = field(factory=free_port)
    room: int = 4 << 30
    """Bytes of memory for objects."""
    _processes: "dict[str, subprocess.Popen[bytes]]" = field(
        factory=dict[str, "subprocess.Popen[bytes]"]
    )
    _names: "count[int]" = field(factory=count)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find their credentials by, and nothing else."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A plain client, which knows nothing of the adapter."""
        from botocore.config import Config
        from botocore.session import get_session

        return get_session().create_client(  # pyright: ignore[reportUnknownMemberType]
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}),
        )

    @contextmanager
    def bucket(self) -> "Generator[Bucket, None, None]":
        """A bucket with nothing in it, emptied at the end."""
        client = self.client()
        try:
            bucket = Bucket(self, f"test-{next(self._names)}", client)
            client.create_bucket(Bucket=bucket.name)
            yield bucket
            bucket.empty()
            client.delete_bucket(Bucket=bucket.name)
        finally:
            client.close()

    def start(self) -> None:
        """Make the cluster and start all of it."""
        fsid, mon_v2, mon_v1 = str(uuid4()), free_port(), free_port()
        (self.folder / "ceph.conf").write_text(
            SETTINGS.format(
                fsid=fsid,
                mon_v2=mon_v2,
                mon_v1=mon_v1,
                port=self.port,
                folder=self.folder,
                room=self.room,
                key=b64encode(bytes(32)).decode(),
            )
        )
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        self._make_keys()
        addresses = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        made: tuple[object, ...] = (
            "--create",
            "--addv",
            "a",
            addresses,
            "--fsid",
            fsid,
            self.folder / "monmap",
        )
        self._run("monmaptool", *made)
        where = ("--monmap", self.folder / "monmap", "--keyring", self.folder / "keyring")
        self._run("ceph-mon", "--mkfs", "-i", "a", *where)
        self._launch("ceph-mon", "-i", "a", "-f")
        osd = str(uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._launch("ceph-osd", "-i", "0", "-f")
        words = ("user", "create", "--uid", "tests", "--display-name", "tests")
        self._run("radosgw-admin", *words, "--access-key", ACCESS, "--secret", SECRET)
        self.start_gateway()

    def start_gateway(self) -> None:
        self._launch("radosgw", "-n", "client.rgw", "-f")
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            if self._processes["radosgw"].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self._log("radosgw"))
            time.sleep(0.05)

    def stop_gateway(self) -> None:
        """As if it had crashed."""
        process = self._processes.pop("radosgw")
        process.kill()
        process.wait(timeout=30)

    def stop(self) -> None:
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.kill()
            process.wait(timeout=30)

    def admin(self, *words: object) -> str:
        """What `radosgw-admin` answers."""
        return self._run("radosgw-admin", *words)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _make_keys(self) -> None:
        ring = self.folder / "keyring"
        for name, caps in KEYS.items():
            create = () if ring.exists() else ("--create-keyring",)
            pairs = [
                word for at in range(0, len(caps), 2) for word in ("--cap", *caps[at : at + 2])
            ]
            self._run("ceph-authtool", *create, ring, "--gen-key", "-n", name, *pairs)

    def _command(self, name: str, *words: object) -> list[str]:
        return [name, "-c", str(self.folder / "ceph.conf"), *map(str, words)]

    def _run(self, name: str, *words: object) -> str:
        command = self._command(name, *words)
        if name in {"ceph-authtool", "monmaptool"}:
            command = [name, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _launch(self, name: str, *words: object) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._command(name, *words), stdout=log, stderr=subprocess.STDOUT
            )

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()[-2000:]


@frozen
class Bucket:
    """A bucket, and what is in it behind the adapter's back."""

    ceph: Ceph
    name: str
    client: Any

    def url(self, prefix: str = "", **fields: str) -> str:
        """The address of a store in it."""
        query = urlencode({"endpoint": self.ceph.endpoint, **fields})
        return f"s3://{self.name}/{prefix}?{query}"

    def read(self, name: str) -> bytes | None:
        try:
            content: bytes = self.client.get_object(Bucket=self.name, Key=name)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=name, Body=content)

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def empty(self) -> None:
        names = self.names()
        for at in range(0, len(names), 1000):
            objects = [{"Key": name} for name in names[at : at + 1000]]
            self.client.delete_objects(Bucket=self.name, Delete={"Objects": objects})


@contextmanager
def serving(room: int = 4 << 30) -> Generator[Ceph, None, None]:
    """A server of its own with so much memory for objects, started and stopped again; skips
    where there can be none.
    """
    folder = Path(tempfile.mkdtemp(prefix="vaultfs-s3-"))  # short: sockets are in it
    ceph = Ceph(folder, room=room)
    try:
        try:
            _install()
            ceph.start()
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            _refuse(f"no Ceph for the tests: {error}")
        yield ceph
    finally:
        ceph.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _install() -> None:
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"{', '.join(PROGRAMS)} are not installed")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in INSTALL:
        subprocess.run(command, check=True, capture_output=True, timeout=600, env=environment)


def _refuse(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

"""Claims: a folder of 100,000 files of which 10 were changed is brought in step no slower than by
the best of its peers, and a change is on the other side no later where both are watched.

`vaultfs sync` against a server on this machine, from one folder; `rsync -a` to an rsync daemon,
which only goes one way and has no state; `unison -batch` between two folders, where it is
installed. All files are in the caches of the machine. Latency is from the end of a write in one
folder until the other one, which another `vaultfs sync --watch` follows, has it.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from bench.harness import fresh_folder
from bench.http import serve

CHANGED, RUNS, WRITES = 10, 5, 10


def build(folder: Path, files: int) -> list[Path]:
    random = Random(1)
    paths = [folder / f"d{n % 331:03}" / f"f{n:06}" for n in range(files)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(random.randrange(200, 3000)))
    return paths


def edit(paths: list[Path], run: int) -> None:
    for path in Random(run).sample(paths, CHANGED):
        path.write_bytes(b"%d %s" % (run, path.name.encode()))


def timed(*words: object, env: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    command = list(map(str, words))
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )
    return time.perf_counter() - start


@contextmanager
def daemon(folder: Path) -> Generator[str, None, None]:
    """An rsync daemon that takes files into `folder`; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    folder.mkdir()
    settings = folder.parent / "rsyncd.conf"
    settings.write_text(
        f"use chroot = no\n[in]\npath = {folder}\nread only = no\nuid = root\ngid = root\n"
    )
    words = ("rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}")
    with subprocess.Popen([*words, f"--config={settings}"]) as process:
        try:
            time.sleep(1)
            yield f"rsync://127.0.0.1:{port}/in/"
        finally:
            process.terminate()


def compare(name: str, paths: list[Path], step: Callable[[], float]) -> None:
    print(f"{name:10} first          {step():8.2f} s", flush=True)
    times: list[float] = []
    for run in range(RUNS):
        edit(paths, run)
        times.append(step())
    still = step()
    print(
        f"{name:10} {CHANGED} changed     {statistics.median(times):8.2f} s   none {still:.2f} s",
        flush=True,
    )


def latency(vaultfs: Callable[..., list[str]], env: dict[str, str], one: Path, two: Path) -> None:
    watchers = [
        subprocess.Popen(
            vaultfs("sync", "--watch", "--quiet", folder, "/watched"),
            env={**os.environ, **env},
            stdout=subprocess.DEVNULL,
        )
        for folder in (one, two)
    ]
    try:
        time.sleep(5)
        took: list[float] = []
        for number in range(WRITES):
            text = f"write {number}"
            (one / "note").write_text(text)
            start = time.perf_counter()
            while not (two / "note").exists() or (two / "note").read_text() != text:
                assert time.perf_counter() - start < 60, "it does not arrive"
                time.sleep(0.01)
            took.append(time.perf_counter() - start)
            time.sleep(0.7)
        print(
            f"vaultfs    --watch latency {statistics.median(took):.2f} s, longest {max(took):.2f} s"
        )
    finally:
        for watcher in watchers:
            watcher.terminate()
            watcher.wait()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=100_000)
    options.add_argument("--only", default="")
    wanted = options.parse_args()

    def vaultfs(*words: object) -> list[str]:
        return [sys.executable, "-m", "vaultfs", *map(str, words)]

    with fresh_folder(Path(os.environ.get("TMPDIR", "/tmp"))) as folder:
        paths = build(folder / "files", wanted.files)
        with serve(folder / "vault") as server:
            env = {"VAULTFS_VAULT": server.address, "VAULTFS_TOKEN": server.token}
            words = vaultfs("sync", "--quiet", folder / "files", "/files")
            if wanted.only in {"", "vaultfs"}:
                compare("vaultfs", paths, lambda: timed(*words, env=env))
            if wanted.only in {"", "latency"}:
                for name in ("one", "two"):
                    (folder / name).mkdir()
                latency(vaultfs, env, folder / "one", folder / "two")
        shutil.rmtree(folder / "files/.vaultfs", ignore_errors=True)
        if wanted.only in {"", "rsync"} and shutil.which("rsync"):
            with daemon(folder / "rsynced") as address:
                compare("rsync", paths, lambda: timed("rsync", "-a", f"{folder}/files/", address))
        if wanted.only in {"", "unison"} and shutil.which("unison"):
            words = ["unison", "-batch", "-silent", str(folder / "files"), str(folder / "unison")]
            compare("unison", paths, lambda: timed(*words, env={"UNISON": str(folder / ".unison")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

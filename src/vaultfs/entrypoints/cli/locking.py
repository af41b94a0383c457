"""`lock run`, `lock ls` and `lock break`: locks of a vault, for scripts and people."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from attrs import define

from vaultfs.domain.errors import InvalidField, LockError, NotFound, VaultError, listed
from vaultfs.domain.names import format_path
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import OWN, address
from vaultfs.entrypoints.cli.session import (
    JsonOption,
    QuietOption,
    Session,
    VaultOption,
    connected,
    opened,
    run,
    server_of,
    session,
    shown,
    table,
    user_name,
)

if TYPE_CHECKING:
    from anyio.abc import Process

    from vaultfs.domain.lockmodes import Mode
    from vaultfs.domain.services.lockview import Held, Queued
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.entrypoints.http.locks import LockedPath, LockOut, WaitOut
    from vaultfs.entrypoints.vault import Vault

locks = typer.Typer(no_args_is_help=True, help="Locks: who may write what meanwhile.")

PATIENCE: Final = 1.0
"""Seconds of waiting after which it is told for whom."""
_Told = dict[str, Any]
_Listed = tuple[list[_Told], list[_Told]]
TTL: Final = 30.0
"""Seconds after which the lock of a command whose keeper was killed ends by itself."""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(locks, name="lock")


ModeOption = Annotated[
    str, typer.Option("--mode", metavar="shared|update|exclusive", help="What others may do.")
]
WaitOption = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", min=0, help="Not longer; 0: now or not at all."),
]

UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="Whose tree it is; your own by default.",
        callback=user_name,
    ),
]


@locks.command("run")
def run_locked(
    path: Annotated[
        str,
        typer.Argument(
            metavar="/PATH", show_default=False, help="What is locked, with all below it."
        ),
    ],
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", show_default=False, help="What is run.")
    ],
    mode: ModeOption = "exclusive",
    wait: WaitOption = None,
    vault: VaultOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a command while a path is locked; with its exit code.

    What the command does with this vault's own commands comes with the lock; what
    others do to the path is refused meanwhile. If the command ended with 0, but the lock
    was lost before that, the exit code is 3.
    """
    call = session(vault, as_json=False, quiet=quiet)

    async def work() -> "ExitCode":
        from vaultfs.entrypoints.settings import shown_locks

        lost = _Lost(call)
        async with _leased(call, path, _mode(mode), wait, lost) as name:
            code = await _run(command, " ".join([*shown_locks(), name]))
        return ExitCode.PARTIAL if lost.told and code == ExitCode.DONE else code

    run(call, work)


@define
class _Lost:
    """Tells, once, that the lock is lost."""

    call: Session
    told: bool = False

    def __call__(self, error: VaultError) -> None:
        if not self.told:
            self.told = True
            known = "the lock is lost, and the command's writes are refused"
            unknown = "nobody can tell whether the lock was held to the end"
            what = known if isinstance(error, LockError) else unknown
            self.call.remark(f"{what}: {error.message}")


def _mode(text: str) -> "Mode":
    from vaultfs.domain.lockmodes import READ, UPDATE, WRITE

    modes = {"shared": READ, "update": UPDATE, "exclusive": WRITE}
    if text not in modes:
        raise InvalidField(f"--mode {text}: shared, update or exclusive")
    return modes[text]


@asynccontextmanager
async def _leased(
    call: Session, path: str, mode: "Mode", wait: float | None, lost: _Lost
) -> AsyncGenerator[str, None]:
    """Have a lease on `path` that is renewed all the time, and at the end; its name."""
    server = server_of(call)
    if server is None:
        async with opened(call) as vault:
            lease, look = _leased_here(vault, path, mode, wait, lost), partial(_listed_here, vault)
            async with _had(lease, partial(_tell_wait, call, path, mode, look)) as name:
                yield name
        return
    from vaultfs.entrypoints.remote_locks import leased

    async with connected(server) as remote:
        lease = leased(remote.calls, remote.user, (path,), mode, wait, lost)
        look = partial(_listed_there, remote)
        async with _had(lease, partial(_tell_wait, call, path, mode, look)) as name:
            yield name


@asynccontextmanager
async def _had(
    lease: AbstractAsyncContextManager[str], tell: Callable[[], Awaitable[None]]
) -> AsyncGenerator[str, None]:
    """Have `lease`; `tell` is called if that takes more than a moment."""
    import anyio

    from vaultfs.domain.services.tasks import task_group

    waiting = anyio.CancelScope()

    async def watch() -> None:
        with waiting:
            await anyio.sleep(PATIENCE)
            await tell()

    async with task_group() as tasks:
        tasks.start_soon(watch)
        async with lease as name:
            waiting.cancel()
            yield name


async def _tell_wait(
    call: Session, path: str, mode: "Mode", look: Callable[[], Awaitable[_Listed]]
) -> None:
    """Tell who is in the way, as far as that is known."""
    wanted = [_path(format_path(address(path).path), mode.name, [])]
    blockers: set[str] = set()
    held: list[_Told] = []
    with suppress(VaultError):
        held, waiting = await look()
        blockers.update(*(each["waits_for"] for each in waiting if each["paths"] == wanted))
    has = [f"{each['owner']} has {_text(each)}" for each in held if each["owner"] in blockers]
    who = f": {listed(has, most=3)}" if has else ""
    call.remark(f"waiting for {_text({'paths': wanted})}{who}; Ctrl-C gives up")


@asynccontextmanager
async def _leased_here(
    vault: "Vault", path: str, mode: "Mode", wait: float | None, lost: _Lost
) -> AsyncGenerator[str, None]:
    from vaultfs.entrypoints.renewing import renewed

    where, owner = address(path), vault.locks.new_owner()
    if where.tree not in {OWN, vault.user.name}:
        raise NotFound(f"nothing of {where.tree} can be locked")
    tree = vault.user.tree
    held = await vault.locks.acquire(owner, tree, {where.path: mode}, timeout=wait, ttl=TTL)
    try:
        async with renewed(partial(vault.locks.renew, owner, tree, held, TTL), TTL, lost):
            yield f"{owner}.{held}"
    finally:
        await vault.locks.let_go(owner, tree, held)


async def _run(command: list[str], tokens: str) -> "ExitCode":
    """The exit code of `command`; a signal to us is one to it, and it has ended when we do."""
    import anyio

    from vaultfs.entrypoints.settings import LOCK_TOKENS

    try:
        process = await anyio.open_process(
            command,
            stdin=None,
            stdout=None,
            stderr=None,
            env={**os.environ, LOCK_TOKENS: tokens},
        )
    except OSError as error:
        raise InvalidField(f"{command[0]}: {error.strerror}") from error
    try:
        return _code(await process.wait())
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _stop(process)
        raise


async def _stop(process: "Process") -> None:
    import anyio

    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(5):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _code(code: int) -> "ExitCode":
    """As shells have it: of a command that a signal ended, 128 and its number."""
    return cast("ExitCode", code if code >= 0 else 128 - code)  # the command's own, not ours


@locks.command("ls")
def list_locks(
    user: UserOption = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List who holds what, and who waits for whom."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        held, waiting = await _listed(call, user)
        call.answer(
            {"held": held, "waiting": waiting},
            lambda: (
                table([*map(_held_row, held), *map(_waiting_row, waiting)])
                if held or waiting
                else ""
            ),
        )

    run(call, work)


async def _listed(call: Session, user: str | None) -> _Listed:
    """Who holds what, and who waits, for programs."""
    server = server_of(call)
    if server is None:
        async with opened(call) as vault:
            return await _listed_here(vault, user)
    async with connected(server) as remote:
        return await _listed_there(remote, user)


async def _listed_here(vault: "Vault", user: str | None = None) -> _Listed:
    owner = vault.user if user is None else await vault.catalog.user(user)
    found = await vault.locks.snapshot(owner.tree)
    return list(map(_held, found.held)), list(map(_waits, found.queued))


async def _listed_there(remote: "RemoteVault", user: str | None = None) -> _Listed:
    from vaultfs.entrypoints.remote_locks import list_locks as list_there

    found = await list_there(remote.calls, user or remote.user)
    return list(map(_held_there, found.held)), list(map(_waits_there, found.waiting))


def _paths_there(paths: "list[LockedPath]") -> list[_Told]:
    from vaultfs.entrypoints.http.locks import MODES

    return [
        _path(
            each.path,
            MODES[each.mode].name if each.mode in MODES else each.mode,
            [[span.start, span.stop] for span in each.ranges],
        )
        for each in paths
    ]


def _path(path: str, mode: str, ranges: list[list[int | None]]) -> _Told:
    return {"path": path, "mode": mode} | ({"ranges": ranges} if ranges else {})


def _held_there(held: "LockOut") -> _Told:
    return {
        "owner": held.lock.rpartition(".")[0],
        "token": held.token,
        "paths": _paths_there(held.paths),
        "expires_in": held.expires_in_seconds,
    }


def _waits_there(queued: "WaitOut") -> _Told:
    waits_for = sorted(set(queued.waits_for))
    return {"owner": queued.owner, "paths": _paths_there(queued.paths), "waits_for": waits_for}


def _paths(of: "Held | Queued") -> list[_Told]:
    from vaultfs.domain.intervals import END
    from vaultfs.domain.lockitems import path_of

    told = [_path(path_of(each), mode.name, []) for each, mode in of.items.items()]
    for each, spans in of.ranges.items():
        for mode in "SX":
            ranges: list[list[int | None]] = [
                [start, None if stop == END else stop]
                for start, stop, exclusive in spans
                if exclusive is (mode == "X")
            ]
            told += [_path(path_of(each), mode, ranges)] if ranges else []
    return told


def _held(held: "Held") -> dict[str, Any]:
    return {
        "owner": held.owner,
        "token": held.token,
        "paths": _paths(held),
        "expires_in": held.expires_in,
    }


def _waits(queued: "Queued") -> dict[str, Any]:
    waits_for = sorted({each.owner for each in queued.blockers})
    return {"owner": queued.owner, "paths": _paths(queued), "waits_for": waits_for}


def _text(told: _Told) -> str:
    return shown(", ".join(f"{each['path']} ({_how(each)})" for each in told["paths"]))


def _how(path: _Told) -> str:
    spans = path.get("ranges", ())
    ends = ", ".join(f"{a} on" if b is None else f"{a} to {b}" for a, b in spans)
    return f"{path['mode']}, bytes {ends}" if ends else str(path["mode"])


def _held_row(held: _Told) -> tuple[str, ...]:
    left = "" if held["expires_in"] is None else f"{held['expires_in']:.0f} s"
    return str(held["token"]).rjust(6), left.rjust(6), _text(held), held["owner"]


def _waiting_row(queued: _Told) -> tuple[str, ...]:
    return "waits", "", _text(queued), f"{queued['owner']} for {', '.join(queued['waits_for'])}"


@locks.command("break")
def break_lock(
    token: Annotated[
        int,
        typer.Argument(
            metavar="TOKEN", show_default=False, help="Of the lock, as lock ls shows it."
        ),
    ],
    user: UserOption = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take a lock away from whoever has it; the audit keeps who did."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        await _break(call, user, token)
        call.answer({"broken": token}, f"broken {token}")

    run(call, work)


async def _break(call: Session, user: str | None, token: int) -> None:
    server = server_of(call)
    if server is not None:
        async with connected(server) as remote:
            from vaultfs.entrypoints.remote_locks import break_lock as break_there

            await break_there(remote.calls, user or remote.user, token)
        return
    from vaultfs.domain.services.accounts import Accounts
    from vaultfs.domain.tokens import ALL_SCOPES, Identity

    async with opened(call) as vault:
        accounts = Accounts(vault.catalog, vault.clock)
        owner = Identity(vault.user, ALL_SCOPES)
        await accounts.break_lock(owner, user or vault.user.name, token)

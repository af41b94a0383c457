"""`batch`: many changes at once. `grant`, `revoke`, `access`: who may do what."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaultfs.domain.errors import InvalidField
from vaultfs.domain.quantities import counted
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import address, written
from vaultfs.entrypoints.cli.session import (
    JsonOption,
    QuietOption,
    Session,
    VaultOption,
    run,
    session,
    shown,
    table,
    working,
)

if TYPE_CHECKING:
    from vaultfs.entrypoints.batching import Asked, Op
    from vaultfs.entrypoints.http.wire import BatchOut, GrantOut, ResultOut

PathArgument = Annotated[
    str, typer.Argument(metavar="/PATH", show_default=False, help="A file or folder.")
]
UserArgument = Annotated[
    str, typer.Argument(metavar="USER", show_default=False, help="The name of a user.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (batch, grant, revoke, access):
        app.command()(command)


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            show_default=False,
            help="A JSON file: a list of operations, or an object with `ops`; or NDJSON, one"
            " operation on each line; - reads standard input.",
        ),
    ],
    atomic: Annotated[
        bool | None,
        typer.Option("--atomic/--best-effort", help="All or nothing, or as many as can be."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be done, and do nothing.")
    ] = False,
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="For locks in the way; 5 by default."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Executed once a day, however often it is sent."),
    ] = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Execute up to 1,000 changes at once: mkdir, move, copy, delete, restore, ...

    All or nothing, unless the file or --best-effort says otherwise. The operations are
    written as the HTTP API has them: {"op": "move", "src": "/a", "dst": "/b"}.
    """
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        from vaultfs.entrypoints.batching import failed

        asked = _read(source)
        whole = asked.mode == "atomic" if atomic is None else atomic
        async with working(call) as vault:
            report = await vault.run_batch(
                cast("list[Op]", asked.ops),
                mode="atomic" if whole else "best_effort",
                dry_run=dry_run or asked.dry_run,
                wait=asked.wait if wait is None else wait,
                key=key,
            )
        call.answer(_builtins(report), lambda: table(_rows(asked.ops, report)))
        if not call.json:
            call.remark(_summary(report))
        if not failed(report):
            return ExitCode.DONE
        return ExitCode.ROLLED_BACK if whole else ExitCode.PARTIAL

    run(call, work)


def _read(source: str) -> "Asked":
    from vaultfs.domain.batches import Mode
    from vaultfs.domain.services.batches import WAIT
    from vaultfs.entrypoints.batching import Asked, parse_batch, parse_lines

    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InvalidField(f"{source} cannot be read: {error.strerror or error}") from error
    data = data.strip()
    try:
        if source.endswith((".ndjson", ".jsonl")) or (data.startswith(b"{") and _is_lines(data)):
            asked = Asked(parse_lines(data), Mode.ATOMIC, dry_run=False, wait=WAIT)
        else:
            asked = parse_batch(data if data.startswith(b"{") else b'{"ops": %s}' % (data or b"[]"))
    except InvalidField as error:
        raise InvalidField(f"{source}: {error.message}") from error
    for number, op in enumerate(asked.ops, 1):
        if isinstance(op, InvalidField):
            raise InvalidField(f"operation {number}: {op.message}")
    return asked


def _is_lines(data: bytes) -> bool:
    """Whether the first line is an operation by itself."""
    import json

    try:
        first = json.loads(data.split(b"\n", 1)[0])
    except ValueError:
        return False
    return isinstance(first, dict) and "op" in first


def _builtins(answer: "BatchOut | GrantOut") -> Any:
    import msgspec

    return msgspec.to_builtins(answer)


def _rows(ops: Sequence[object], report: "BatchOut") -> list[tuple[str, ...]]:
    return [_row(op, each) for op, each in zip(ops, report.results, strict=True)]


def _row(asked: object, result: "ResultOut") -> tuple[str, ...]:
    op: Op = cast("Op", asked) if isinstance(asked, dict) else {}
    about = op.get("dst") or op.get("path") or op.get("target") or op.get("node") or ""
    where = result.node.path if result.node is not None else str(about)
    note = "" if result.error is None else f"{result.error.code}: {result.error.detail}"
    if result.renamed:
        note = "renamed"
    kind = str(op.get("op", "?"))
    return str(result.index + 1).rjust(4), result.status, kind, shown(where), shown(note)


def _summary(report: "BatchOut") -> str:
    counts = report.summary
    parts = [
        f"{number} {name}"
        for number, name in (
            (counts.ok, "would succeed" if report.dry_run else "done"),
            (counts.skipped, "skipped"),
            (counts.failed, "would fail" if report.dry_run else "failed"),
            (counts.rolled_back, "rolled back"),
            (counts.not_attempted, "not attempted"),
        )
        if number
    ]
    return f"{counted(counts.total, 'operation')}: {', '.join(parts)}"


# Sharing


def grant(
    path: PathArgument,
    user: UserArgument,
    role: Annotated[
        str, typer.Argument(metavar="[reader|writer]", help="Read, or read and write.")
    ] = "reader",
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let a user read, or read and write, a file or folder and all below it."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from vaultfs.domain.access import Role

        if role not in {*Role}:
            raise InvalidField(f"{role} is no role: {' or '.join(Role)}")
        where = address(path)
        async with working(call) as vault:
            await vault.grant(written(where), user, Role(role))
            found = await vault.access(written(where))
        _answer_grants(call, found)

    run(call, work)


def revoke(
    path: PathArgument,
    user: UserArgument,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take back what a user was granted on a file or folder."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        where = address(path)
        async with working(call) as vault:
            await vault.revoke(written(where), user)
            found = await vault.access(written(where))
        _answer_grants(call, found)

    run(call, work)


def access(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[/PATH]",
            show_default=False,
            help="A file or folder; if missing, what others have shared.",
        ),
    ] = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show who may do what with a file or folder; without a path, what others have granted."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with working(call) as vault:
            if path is None:
                found: Sequence[GrantOut] = [_of_owner(each) for each in await vault.shared()]
            else:
                found = await vault.access(written(address(path)))
        _answer_grants(call, found)

    run(call, work)


def _answer_grants(call: Session, found: "Sequence[GrantOut]") -> None:
    call.answer(
        list(map(_builtins, found)),
        lambda: table(list(map(_grant_row, found))) if found else "",
    )


def _of_owner(grant: "GrantOut") -> "GrantOut":
    import msgspec

    return msgspec.structs.replace(grant, path=f"{grant.owner}:{grant.path}")


def _grant_row(grant: "GrantOut") -> tuple[str, ...]:
    return grant.role, shown(grant.user), shown(grant.path)

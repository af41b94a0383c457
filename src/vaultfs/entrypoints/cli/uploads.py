"""`upload ls` and `upload abort`: uploads that are under way, and what they hold."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaultfs.domain.names import format_path
from vaultfs.domain.quantities import human
from vaultfs.entrypoints.cli.session import (
    JsonOption,
    QuietOption,
    Session,
    VaultOption,
    connected,
    local_time,
    opened,
    run,
    server_of,
    session,
    shown,
    table,
)

if TYPE_CHECKING:
    from vaultfs.domain.uploads import Upload

uploads = typer.Typer(no_args_is_help=True, help="Uploads that are under way, or were left.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(uploads, name="upload")


@uploads.command("ls")
def list_uploads(
    vault: VaultOption = None, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """List uploads that can be gone on with: how far they are and when they expire."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        found = await _found(call)
        call.answer(
            [_json(each) for each in found],
            lambda: table(list(map(_row, found))) if found else "",
        )

    run(call, work)


async def _found(call: Session) -> "list[Upload]":
    server = server_of(call)
    if server is not None:
        async with connected(server) as remote:
            from vaultfs.entrypoints.remote_uploads import open_uploads

            return await open_uploads(remote)
    found: list[Upload] = []
    async with opened(call) as vault:
        while more := await vault.catalog.uploads(
            vault.user.id, after=found[-1].id if found else ""
        ):
            found += more
    return found


def _json(upload: "Upload") -> dict[str, Any]:
    from vaultfs.domain.nodes import moment

    return {
        "id": upload.id,
        "path": None if upload.path is None else format_path(upload.path),
        "offset": upload.offset,
        "size": upload.size,
        "created": moment(upload.created_us).isoformat(),
        "expires": moment(upload.expires_us).isoformat(),
    }


def _row(upload: "Upload") -> tuple[str, ...]:
    size = "?" if upload.size is None else human(upload.size)
    where = "(a part)" if upload.path is None else shown(format_path(upload.path))
    ends = f"until {local_time(upload.expires_us)}"
    return upload.id, human(upload.offset).rjust(10), f"of {size}", ends, where


@uploads.command("abort")
def abort_uploads(
    numbers: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...", show_default=False, help="Of uploads, as upload ls shows them."
        ),
    ],
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give uploads up: what has come of them is forgotten."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        server = server_of(call)
        if server is not None:
            async with connected(server) as remote:
                from vaultfs.entrypoints.remote_uploads import abort_upload

                for number in numbers:
                    await abort_upload(remote, number)
        else:
            async with opened(call) as vault:
                for number in numbers:
                    await vault.uploads.abort(vault.user, number)
        call.answer({"aborted": numbers})

    run(call, work)

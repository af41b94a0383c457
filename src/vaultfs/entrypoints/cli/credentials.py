"""`login` and `logout`: which token is shown to a server."""

import sys
from typing import Annotated, Final

import typer

from vaultfs.domain.errors import InvalidField
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.session import JsonOption, QuietOption, run, session, shown

MOST: Final = 4096
"""Characters of a token on standard input, with what may stand around it."""
Server = Annotated[
    str, typer.Argument(metavar="URL", show_default=False, help="The address of the server.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (login, logout):
        app.command()(command)


def login(
    server: Server,
    from_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the token from standard input.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep a token for a server, for you alone to read, once the server has accepted it.

    It is asked for without being shown. VAULTFS_TOKEN goes before it.
    """
    call = session(None, as_json=as_json, quiet=quiet)
    token = _ask(from_stdin=from_stdin)

    async def work() -> None:
        from vaultfs.entrypoints.client import calling, who_am_i
        from vaultfs.entrypoints.credentials import check_address, store_token

        address = check_address(server)
        if token is None:
            raise InvalidField("there is no terminal to ask for the token: use --token-stdin")
        if not token:
            raise InvalidField("no token was given")
        async with calling(address, token) as calls:
            found = await who_am_i(calls)
        path = store_token(address, token)
        scopes = [str(each) for each in found.scopes]
        call.answer(
            {
                "address": address,
                "user": found.user.name,
                "token": found.token,
                "scopes": scopes,
                "file": str(path),
            },
            f"logged in to {address} as {shown(found.user.name)} ({', '.join(scopes)});"
            f" for example: vaultfs --vault {address} ls",
        )

    run(call, work)


def _ask(*, from_stdin: bool) -> str | None:
    """The token that the user gives, nothing of it shown; None if there is nobody to ask.

    Before the event loop runs, so that Ctrl-C leaves the terminal as it was.
    """
    if from_stdin:
        return sys.stdin.read(MOST).strip()
    if not sys.stdin.isatty():
        return None
    import getpass

    try:
        return getpass.getpass("Token, which is not shown: ").strip()
    except (KeyboardInterrupt, EOFError):
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def logout(server: Server, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Forget the token that is kept for a server; it stays good until it is revoked."""
    call = session(None, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from vaultfs.entrypoints.credentials import check_address, forget_token

        address = check_address(server)
        gone = forget_token(address)
        text = f"the token for {address} is forgotten" if gone else f"none was kept for {address}"
        call.answer({"address": address, "forgotten": gone}, text)

    run(call, work)

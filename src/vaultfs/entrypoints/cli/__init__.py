"""The command line. What a command needs is imported when it runs, not before."""

import os
import sys
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from io import RawIOBase
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from vaultfs.entrypoints.cli import session
from vaultfs.entrypoints.cli.command import plain
from vaultfs.entrypoints.cli.errors import EPILOG, ExitCode
from vaultfs.entrypoints.cli.session import (
    DatabaseOption,
    JsonOption,
    QuietOption,
    StoreOption,
    VaultOption,
)

_UsageError: Final[type[BaseException]] = typer.BadParameter.__mro__[1]
"""The class above it, whose module is another one from release to release of Typer."""


COMMANDS: Final = {
    "upkeep": ("init", "demo", "retention", "verify", "rebuild", "backup", "stats"),
    "contents": ("put", "get", "cat"),
    "looking": ("ls", "tree", "stat", "versions"),
    "nodes": ("mkdir", "mv", "cp", "rm", "trash", "restore", "meta"),
    "batching": ("batch", "grant", "revoke", "access"),
    "stepping": ("pull", "push", "sync", "diff"),
    "locking": ("lock",),
    "uploads": ("upload",),
    "collecting": ("gc", "repack", "scrub", "reconcile"),
    "migrating": ("migrate",),
    "server": ("serve", "maintain", "config", "audit", "user", "token"),
    "credentials": ("login", "logout"),
}
"""The modules of this package that have commands, and those, as help shows them."""


class _Made(UserDict[str, Any]):
    """Commands by their names, made when they are asked for: most of them never are."""

    def __init__(self) -> None:
        super().__init__({name: module for module, names in COMMANDS.items() for name in names})

    def __getitem__(self, name: str) -> Any:
        found = self.data[name]
        if isinstance(found, str):
            self.data.update(commands_of(found))
        return self.data[name]


def commands_of(module: str) -> dict[str, Any]:
    """The commands that a module of this package adds, by name."""
    part = typer.Typer(**_LOOKS)
    part.callback()(lambda: None)  # or one command alone would be no group
    import_module(f"{__name__}.{module}").add_to(part)
    group: Any = get_command(plain(part))
    return dict(group.commands)


_LOOKS: Final[dict[str, Any]] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class Commands(TyperGroup):
    """All commands; a command that is not understood is answered in JSON too, if that is wanted."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Made()

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that `args`, or the arguments of the process, name."""
        words = sys.argv[1:] if args is None else args
        plain = not standalone_mode or "--json" not in words
        try:
            code = super().main(
                args,
                prog_name,
                complete_var,
                plain and standalone_mode,
                windows_expand_args,
                **extra,
            )
        except _UsageError as error:
            if not standalone_mode:
                raise
            session.Session(json=True).refuse("usage", _message(error))
            code = ExitCode.USAGE
        return code if not standalone_mode else sys.exit(code)


def _message(error: BaseException) -> str:
    told: Any = error
    return str(told.format_message())


app = typer.Typer(
    name="vaultfs",
    cls=Commands,
    help="A versioned, deduplicating file vault in a folder of your own, or behind a server.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_LOOKS,
)


def _show_version(value: bool) -> None:
    if value:
        from vaultfs._version import __version__

        typer.echo(f"vaultfs {__version__}")
        raise typer.Exit


@app.callback()
def options(
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="VAULTFS_DEBUG", help="Show where errors come from.")
    ] = False,
    version: Annotated[  # noqa: ARG001 its callback does it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Options that can stand before any command, and most of them behind it too."""
    session.defaults.vault = vault
    session.defaults.database = database
    session.defaults.store = store
    session.defaults.json = as_json
    session.defaults.quiet = quiet
    session.defaults.debug = debug


def main() -> None:
    """Run the command line."""
    _replace_closed_streams()
    _write_whole()
    try:
        app()
    except SystemExit as leaving:
        if leaving.code == ExitCode.INTERRUPTED:
            # A thread may still wait for a pipe, and Python would wait for the thread.
            os._exit(ExitCode.INTERRUPTED)
        raise


def _replace_closed_streams() -> None:
    """Let no file of the vault get the number of a standard stream that is closed.

    Reading or writing such a stream fails, but for messages, which nobody wants then.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_RDWR),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))


def _write_whole() -> None:
    """Let what goes to standard output be written whole, or fail.

    Where the environment has PYTHONUNBUFFERED, Python forgets what a pipe or a disk did not
    take with the first call, as where its reader has gone or there is no more room.
    """
    if isinstance(sys.stdout.buffer, RawIOBase):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        number = sys.stdout.fileno()
        sys.stdout = os.fdopen(number, "w", 1, encoding, errors, closefd=False)

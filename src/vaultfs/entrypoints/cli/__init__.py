"""The command line. What a command needs is imported when it runs, not before."""

from typing import Annotated

import typer

from vaultfs.entrypoints.cli import contents, looking, nodes, session, upkeep
from vaultfs.entrypoints.cli.errors import EPILOG
from vaultfs.entrypoints.cli.session import JsonOption, QuietOption, VaultOption

app = typer.Typer(
    name="vaultfs",
    help="A versioned, deduplicating file vault in a folder of your own.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from vaultfs._version import __version__

        typer.echo(f"vaultfs {__version__}")
        raise typer.Exit


@app.callback()
def options(
    vault: VaultOption = None,
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
    session.defaults.json = as_json
    session.defaults.quiet = quiet
    session.defaults.debug = debug


for module in (upkeep, contents, looking, nodes):
    module.add_to(app)


def main() -> None:
    """Run the command line."""
    app()

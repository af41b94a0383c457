"""`python -m vaultfs` and the `vaultfs` command."""


def main() -> None:
    """Run the command line."""
    from vaultfs.entrypoints.cli import main

    main()

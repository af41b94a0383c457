"""`python -m vaultfs` and the `vaultfs` command."""

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:  # asked for by scripts: not worth loading anything
        from vaultfs._version import __version__

        print(f"vaultfs {__version__}")
        return
    from vaultfs.entrypoints.cli import main

    main()


if __name__ == "__main__":
    main()

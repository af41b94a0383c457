"""`python -m vaultfs` and the `vaultfs` command."""

import gc
import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:  # asked for by scripts: not worth loading anything
        from vaultfs._version import __version__

        print(f"vaultfs {__version__}")
        return
    gc.disable()  # all that is loaded now stays; `session` turns it on for the work itself
    try:
        from vaultfs.entrypoints.cli import main

        main()
    except KeyboardInterrupt:  # while modules were loaded: later ones are `run`'s business
        sys.exit(130)


if __name__ == "__main__":
    main()

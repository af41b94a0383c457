"""`python -m vaultfs` and the `vaultfs` command."""

import gc
import sys
import threading


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
    finally:
        _leave_quietly()


def _leave_quietly() -> None:
    """Let a Ctrl-C from here on end the process at once: all is done, Python only tidies up.

    And not what is about to be given back as a whole: looking for circles takes 10 to 25 ms.
    """
    import signal

    gc.freeze()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()

"""Exit codes: one table from what went wrong to the number a script sees."""

from enum import IntEnum
from typing import Final

from vaultfs.domain.errors import InvalidField, InvalidName, VaultError


class ExitCode(IntEnum):
    """What the command line returns."""

    DONE = 0
    FAILED = 1
    """Refused or failed, or damage was found."""
    USAGE = 2
    """The command was not understood, or names something that cannot be."""
    PARTIAL = 3
    """Some files were skipped or failed; the others are done."""
    ROLLED_BACK = 4
    """An atomic batch was refused: nothing of it was done."""
    BUG = 70
    INTERRUPTED = 130
    UNREAD = 141
    """Whoever read what it prints has gone: as a shell says of others, which SIGPIPE ends."""


EXIT_CODES: Final[tuple[tuple[type[VaultError], ExitCode], ...]] = (
    (InvalidName, ExitCode.USAGE),
    (InvalidField, ExitCode.USAGE),
)
"""Every other error is `FAILED`."""

EPILOG: Final = (
    "Exit codes: 0 done; 1 refused, failed, or damage found; 2 wrong usage; 3 partial: some"
    " files were skipped or failed; 4 a batch was refused as a whole; 70 a bug in vaultfs;"
    " 130 interrupted; 141 nobody reads its output any more."
)


def exit_code(error: VaultError) -> ExitCode:
    """The code for `error`."""
    codes = (code for kind, code in EXIT_CODES if isinstance(error, kind))
    return next(codes, ExitCode.FAILED)


def error_code(error: Exception) -> str:
    """The name of an error for programs: its class in snake case."""
    name = type(error).__name__.removesuffix("Error") or "Error"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

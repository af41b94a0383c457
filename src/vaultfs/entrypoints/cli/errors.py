"""Exit codes: one table from what went wrong to the number a script sees."""

from enum import IntEnum
from typing import Final

from vaultfs.domain.errors import InvalidField, InvalidName, VaultError


class ExitCode(IntEnum):
    """What the command line returns."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    ROLLED_BACK = 4
    BUG = 70
    INTERRUPTED = 130
    UNREAD = 141
    """As a shell says of others, which SIGPIPE ends."""


MEANINGS: Final = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "refused or failed, or damage was found",
    ExitCode.USAGE: "wrong usage, or a name that cannot be",
    ExitCode.PARTIAL: "some files were skipped or failed and the others are done, or not yet, as"
    " `migrate` says, or a lock was lost meanwhile, as `lock run` says",
    ExitCode.ROLLED_BACK: "an atomic batch was refused, or packs that `migrate` could not move"
    " are left",
    ExitCode.BUG: "a bug in vaultfs",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.UNREAD: "whoever read the output has gone",
}
"""For help, and for the table in the README."""

EXIT_CODES: Final[tuple[tuple[type[VaultError], ExitCode], ...]] = (
    (InvalidName, ExitCode.USAGE),
    (InvalidField, ExitCode.USAGE),
)
"""Every other error is `FAILED`."""

EPILOG: Final = (
    f"Exit codes: {'; '.join(f'{code.value} {text}' for code, text in MEANINGS.items())}."
)


def exit_code(error: VaultError) -> ExitCode:
    """The code for `error`."""
    codes = (code for kind, code in EXIT_CODES if isinstance(error, kind))
    return next(codes, ExitCode.FAILED)


def error_code(error: Exception) -> str:
    """The name of an error for programs: its class in snake case."""
    name = type(error).__name__.removesuffix("Error") or "Error"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

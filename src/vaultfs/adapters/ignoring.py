"""`.vaultignore`: what of a folder stays out of a vault, by the rules of `.gitignore`."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Final

from vaultfs.domain.errors import InvalidField

IGNORED: Final = ".vaultignore"


def ignored_below(top: FilePath) -> Callable[[str], bool]:
    """Whether a name below the folder `top` is to be passed over; that of a folder ends in /.

    Blocking. Raises `InvalidField` for patterns that are none, and `OSError` if they cannot be
    read.
    """
    file = top / IGNORED
    lines: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        lines = os.fsdecode(file.read_bytes()).splitlines()
    if not any(map(str.strip, lines)):
        return _nothing
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(lines).match_file
    except (ValueError, re.error) as error:
        raise InvalidField(f"{file}: {error}") from error


def _nothing(_name: str) -> bool:
    """What is ignored where there are no patterns."""
    return False

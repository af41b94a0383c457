"""Names and paths: what may stand in a vault, and when two names are the same.

A name is kept as it was given and compared by its NFC form (Unicode annex 15),
so that `é` typed on one system finds `é` stored by another. A path is a tuple of
names; the empty tuple is the root of a tree. Nothing here knows local files.
"""

import unicodedata
from functools import lru_cache

from attrs import frozen

from vaultfs.domain.errors import InvalidName

MAX_NAME = 255
"""Bytes of UTF-8 in one name."""
MAX_PATH = 4096
"""Bytes of UTF-8 in one path, its slashes included."""
MAX_DEPTH = 64
"""Names in one path."""

Path = tuple[str, ...]
ROOT: Path = ()


@lru_cache(maxsize=4096)
def check_name(name: str) -> str:
    """`name` itself. Raises `InvalidName` for one that no folder may hold."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"the name {name!r} is not valid Unicode: rename it") from None
    if not name or name in {".", ".."}:
        raise InvalidName(f"{name!r} cannot be a name")
    if "/" in name or "\\" in name:
        raise InvalidName(f"the name {name!r} has a slash or backslash in it: rename it")
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        raise InvalidName(f"the name {name!r} has a control character in it: rename it")
    if max(size, len(key_of(name).encode())) > MAX_NAME:
        raise InvalidName(f"the name {name[:40]!r}... has {size} bytes; {MAX_NAME} is the most")
    return name


def key_of(name: str) -> str:
    """What `name` is compared by: two names with one key cannot stand in one folder."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def check_path(path: Path) -> Path:
    """`path` itself. Raises `InvalidName` when a part or the whole is not allowed."""
    for name in path:
        check_name(name)
    if len(path) > MAX_DEPTH:
        raise InvalidName(f"the path is {len(path)} names deep; {MAX_DEPTH} is the most")
    size = len("/".join(path).encode()) + 1
    if size > MAX_PATH:
        raise InvalidName(f"the path has {size} bytes; {MAX_PATH} is the most")
    return path


def parse_path(text: str) -> Path:
    """The path written as `/a/b`; `/` is the root, one slash at the end is allowed.

    Raises `InvalidName` for a relative path and for empty parts as in `/a//b`.
    """
    return check_path(split_path(text))


def split_path(text: str) -> Path:
    """What `parse_path` gives, its names as yet unchecked: `Address` checks them."""
    if not text.startswith("/"):
        raise InvalidName(f"{text!r} is not a path in the vault: those begin with /")
    if text == "/":
        return ROOT
    return tuple(text[1:].removesuffix("/").split("/"))


def format_path(path: Path) -> str:
    """The opposite of `parse_path`."""
    return "/" + "/".join(path)


@frozen
class Address:
    """Where a node is: the tree of a user, and a path in it."""

    tree: str
    path: Path

    def __attrs_post_init__(self) -> None:
        check_path(self.path)

    def __str__(self) -> str:
        """For messages: the path, as it is known to whoever asked for it."""
        return format_path(self.path)

    def child(self, name: str) -> "Address":
        """The address of `name` in the folder that is here."""
        return Address(self.tree, (*self.path, name))


def parse_address(text: str, *, own: str) -> Address:
    """`/path` in the tree of `own`, or `user:/path` in another's.

    Raises `InvalidName`.
    """
    tree, colon, path = text.partition(":/")
    if colon and tree and "/" not in tree:
        return Address(check_user(tree), parse_path("/" + path))
    return Address(own, parse_path(text))


def check_user(name: str) -> str:
    """`name` itself, if it can name a user: as a node's name, without `:`.

    Raises `InvalidName`.
    """
    if ":" in check_name(name):
        raise InvalidName(f"the user name {name!r} has a colon in it")
    return name

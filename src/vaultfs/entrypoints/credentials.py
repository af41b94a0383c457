"""Tokens for servers: where `vaultfs login` keeps them, and which one is taken.

One file for each server, `tokens/<address>` in the user's configuration folder, for its
owner alone to read. The environment (`VAULTFS_TOKEN`) goes before it. No message here
shows a token.
"""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from vaultfs.domain.errors import Forbidden, InvalidField, NotAuthenticated
from vaultfs.domain.tokens import parse_token
from vaultfs.entrypoints.settings import config_folder, is_server, token_given

MOST: Final = 4096
"""Bytes of a file with a token."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def check_address(address: str) -> str:
    """`address` as it is kept: scheme and host in lower case, no slash at the end.

    Raises `InvalidField` for what is no address of a server, and for one with a secret in it.
    """
    if not is_server(address):
        raise InvalidField(
            f"{address} is no address of a server: they begin with https:// or http://"
        )
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidField("the address of the server is no URL: https://HOST[:PORT]") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidField("an address has no name or password in it: use `vaultfs login`")
    if not host or parts.query or parts.fragment:
        raise InvalidField(f"{address} is no address of a server: https://HOST[:PORT]")
    where = f"[{host}]" if ":" in host else host
    shown = "" if port is None else f":{port}"
    return f"{parts.scheme.lower()}://{where}{shown}{parts.path.rstrip('/')}"


def find_token(address: str, environment: Mapping[str, str] | None = None) -> str:
    """The token for the server at `address`.

    Raises `NotAuthenticated` if there is none, `Forbidden` if others can read it.
    """
    token = token_given(environment) or stored_token(address, environment)
    if not token:
        raise NotAuthenticated(
            f"a token is needed for {address}: `vaultfs login {address}`, or set VAULTFS_TOKEN"
        )
    return token


def token_file(address: str, environment: Mapping[str, str] | None = None) -> Path:
    """Where the token for the server at `address` is kept."""
    return config_folder(environment) / "tokens" / quote(address, safe="")


def stored_token(address: str, environment: Mapping[str, str] | None = None) -> str:
    """What `store_token` has kept for `address`, or nothing. Raises `Forbidden`."""
    path = token_file(address, environment)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Forbidden(f"the token in {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in {os.geteuid(), 0}:
            raise Forbidden(f"{path} is no file of yours: remove it and log in again")
        if status.st_mode & _OTHERS:
            raise Forbidden(f"others can read the token in {path}: `chmod 600` it")
        return file.read(MOST).decode("utf-8", "replace").strip()


def store_token(address: str, token: str, environment: Mapping[str, str] | None = None) -> Path:
    """Keep `token` for the server at `address`; the file. A crash leaves the one before.

    Raises `NotAuthenticated` for what is no token, `Forbidden` if it cannot be kept.
    """
    parse_token(token)
    path = token_file(address, environment)
    temporary = path.with_name(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError as error:
        raise Forbidden(f"the token cannot be kept in {path}: {error.strerror}") from error
    return path


def forget_token(address: str, environment: Mapping[str, str] | None = None) -> bool:
    """Remove the token that is kept for `address`; whether there was one."""
    path = token_file(address, environment)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Forbidden(f"{path} cannot be removed: {error.strerror}") from error
    return True

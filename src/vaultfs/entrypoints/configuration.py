"""What a server is told: by flags, by the environment, by a TOML file, in that order.

    host = "0.0.0.0"
    port = 8333
    trash_days = 90

Each setting has one name: `trash_days` in the file, `VAULTFS_TRASH_DAYS` in the
environment, `--trash-days` on the command line. A name that is not known is refused,
for it is a mistyped one.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from vaultfs.domain.errors import InvalidField, NotFound

PREFIX: Final = "VAULTFS_"


class Setting(NamedTuple):
    """A setting: what it is when nobody says anything, and what it is for."""

    default: Any
    kind: type
    text: str


class Effective(NamedTuple):
    """What a setting is, and who said so."""

    value: Any
    source: str


SETTINGS: Final[dict[str, Setting]] = {
    "vault": Setting(None, str, "The vault's folder."),
    "database": Setting(None, str, "For many servers: postgresql://USER@HOST/NAME."),
    "store": Setting(None, str, "The object store: file:///, s3://, azure:// or gs://."),
    "host": Setting("127.0.0.1", str, "The address to listen on."),
    "port": Setting(8333, int, "The port; 0 takes any that is free."),
    "tls_cert": Setting(None, str, "A certificate (PEM), for https."),
    "tls_key": Setting(None, str, "Its private key (PEM)."),
    "rate": Setting(1000.0, float, "Requests a second for each token."),
    "max_chain_depth": Setting(16, int, "Deltas that one is composed of, at the most."),
    "trash_days": Setting(30, int, "Forget what was deleted so long ago; 0: never."),
    "backup_hours": Setting(24, int, "Back the catalog up so often; 0: never."),
    "gc_hours": Setting(24, int, "Collect what nothing needs so often; 0: never."),
    "scrub_days": Setting(30, int, "Read every stored byte again within so long; 0: never."),
}


class Named(NamedTuple):
    """Which vault was named: a folder, or a database and a store; a folder may have a store."""

    vault: str | None
    database: str | None
    store: str | None


_PASSWORDS: Final = re.compile(r"(://[^/?#:@&]*):.*@")
_SECRET_FIELDS: Final = re.compile(r"([?&](?:\w*(?:password|secret|token|credential)|sig)=)[^&]*")

PLACE: Final = Named._fields


def read_configuration(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | None,
    names: Iterable[str] = SETTINGS,
) -> dict[str, Effective]:
    """Every setting in `names` and where it comes from; flags that are None say nothing, nor
    does what is empty in the environment.

    `file`, or what `VAULTFS_CONFIG` names, is read if there is one. Raises `NotFound` and
    `InvalidField`.
    """
    path = file or environment.get(f"{PREFIX}CONFIG")
    written = _read(Path(path)) if path else {}
    found: dict[str, Effective] = {}
    for name in names:
        setting = SETTINGS[name]
        variable = PREFIX + name.upper()
        option = f"--{name.replace('_', '-')}"
        if flags.get(name) is not None:
            found[name] = Effective(_fitting(flags[name], setting, option), option)
        elif environment.get(variable):
            found[name] = Effective(_fitting(environment[variable], setting, variable), variable)
        elif name in written:
            found[name] = Effective(_fitting(written[name], setting, f"{path}: {name}"), str(path))
        else:
            found[name] = Effective(setting.default, "default")
    return found


def named(found: Mapping[str, Effective]) -> Named:
    """The vault that settings name; the nearer one if a folder and a database are named.

    Raises `InvalidField` if both are named in one place, or a database without its store.
    """
    vault, database, store = (found[name] for name in PLACE)
    if vault.value is not None and database.value is not None:
        if _distance(vault) == _distance(database):
            raise InvalidField(
                f"{vault.source} and {database.source} name two vaults: a folder, or a database"
                " and a store"
            )
        if _distance(vault) > _distance(database):
            vault = Effective(None, "")
    if vault.value is not None:
        own = _distance(store) <= _distance(vault)
        return Named(vault.value, None, store.value if own else None)
    if (database.value is None) != (store.value is None):
        raise InvalidField("a vault for many servers takes both: --database and --store")
    return Named(None, database.value, store.value)


def _distance(setting: Effective) -> int:
    """How far from the caller a setting was made: a flag, the environment, a file."""
    if setting.source.startswith("--"):
        return 0
    return 1 if setting.source.startswith(PREFIX) else 2


def without_password(value: Any) -> Any:
    """A setting as it may be shown."""
    if isinstance(value, str) and "://" in value:
        return _SECRET_FIELDS.sub(r"\1***", _PASSWORDS.sub(r"\1:***@", value))
    return value


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        value = tomllib.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidField(f"the configuration {path} is no TOML: {error}") from error
    for name in value:
        if name not in SETTINGS:
            raise InvalidField(f"{path}: there is no setting {name}: see `vaultfs config`")
    return value


def _fitting(value: Any, setting: Setting, where: str) -> Any:
    """`value` as the setting's kind; numbers may be written as text, as in an environment."""
    if isinstance(value, setting.kind) and not isinstance(value, bool):
        return value
    if isinstance(value, str | int) and not isinstance(value, bool) and setting.kind is not str:
        try:
            return setting.kind(value)
        except ValueError:
            pass
    raise InvalidField(f"{where}: {value!r} is no {_NAMES[setting.kind]}")


_NAMES: Final = {str: "text", int: "whole number", float: "number"}

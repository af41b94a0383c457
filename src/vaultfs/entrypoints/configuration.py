"""What a server is told: by flags, by the environment, by a TOML file, in that order.

    host = "0.0.0.0"
    port = 8333
    trash_days = 90

Each setting has one name: `trash_days` in the file, `VAULTFS_TRASH_DAYS` in the
environment, `--trash-days` on the command line. A name that is not known is refused,
for it is a mistyped one.
"""

from collections.abc import Mapping
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
    "host": Setting("127.0.0.1", str, "The address to listen on."),
    "port": Setting(8333, int, "The port; 0 takes any that is free."),
    "tls_cert": Setting(None, str, "A certificate (PEM), for https."),
    "tls_key": Setting(None, str, "Its private key (PEM)."),
    "rate": Setting(1000.0, float, "Requests a second for each token."),
    "trash_days": Setting(30, int, "Forget what was deleted so long ago; 0: never."),
    "backup_hours": Setting(24, int, "Back the catalog up so often; 0: never."),
}


def read_configuration(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: str | None
) -> dict[str, Effective]:
    """Every setting and where it comes from; flags that are None say nothing.

    `file`, or what `VAULTFS_CONFIG` names, is read if there is one. Raises `NotFound` and
    `InvalidField`.
    """
    path = file or environment.get(f"{PREFIX}CONFIG")
    written = _read(Path(path)) if path else {}
    found: dict[str, Effective] = {}
    for name, setting in SETTINGS.items():
        variable = PREFIX + name.upper()
        option = f"--{name.replace('_', '-')}"
        if flags.get(name) is not None:
            found[name] = Effective(_fitting(flags[name], setting, option), option)
        elif variable in environment:
            found[name] = Effective(_fitting(environment[variable], setting, variable), variable)
        elif name in written:
            found[name] = Effective(_fitting(written[name], setting, f"{path}: {name}"), str(path))
        else:
            found[name] = Effective(setting.default, "default")
    return found


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

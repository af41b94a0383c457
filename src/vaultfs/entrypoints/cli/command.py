"""What Typer's commands lack, whichever release it is."""

from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose usage names its arguments as its help does, and whichever is missing."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 as it is called
        """What stands behind the name of the command: `[OPTIONS] LOCAL... /DEST`."""
        return [self.options_metavar or "", *map(_usage, self._arguments)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Understand `args`. Of several paths and a last one, the last is what is missing where
        one is given: the parser, which fills from the end, would say the first.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param and error.param.nargs == -1 and self._ends(ctx, given):
                error.param = self._arguments[-1]
            raise

    @property
    def _arguments(self) -> list[Any]:
        return [each for each in self.params if each.param_type_name == "argument"]

    def _ends(self, ctx: Any, args: list[str]) -> bool:
        """Whether the last argument is among `args`."""
        values, _, _ = self.make_parser(ctx).parse_args(args)
        return isinstance(values.get(self._arguments[-1].name), str)


def _usage(argument: Any) -> str:
    text = str(argument.metavar or argument.name.upper())
    return text if argument.required or text.startswith("[") else f"[{text}]"


def plain(part: typer.Typer) -> typer.Typer:
    """`part`, whose commands, and those of its groups, are made as `Command`s."""
    for info in part.registered_commands:
        info.cls = Command
    for group in part.registered_groups:
        if group.typer_instance is not None:
            plain(group.typer_instance)
    return part

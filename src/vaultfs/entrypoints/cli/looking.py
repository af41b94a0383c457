"""`ls`, `tree`, `stat`, `versions`: what is in the vault."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaultfs.domain.names import Address
from vaultfs.domain.quantities import human
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import address, node_json, version_json, written
from vaultfs.entrypoints.cli.session import (
    JsonOption,
    NumberOption,
    QuietOption,
    Session,
    VaultOption,
    local_time,
    looking,
    run,
    session,
    shown,
    table,
)

if TYPE_CHECKING:
    from vaultfs.domain.nodes import Node
    from vaultfs.entrypoints.look import Look

PathArgument = Annotated[
    str, typer.Argument(metavar="/PATH", help="A file or folder of the vault.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ls, tree, stat, versions):
        app.command()(command)


def _look(call: Session, work: "Callable[[Look], Awaitable[None]]") -> None:
    async def look() -> ExitCode:
        async with looking(call) as vault:
            await work(vault)
        return ExitCode.DONE

    run(call, look)


def ls(
    path: PathArgument = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="With sizes and times.")] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List a folder."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work(vault: "Look") -> None:
        where = address(path)
        node = await vault.stat(written(where))
        if node.is_folder:
            nodes = vault.list(written(where))
            found = [(each, where.child(each.name)) async for each in nodes]
        else:
            found = [(node, where)]
        call.answer(
            [node_json(each, at) for each, at in found] if call.json else None,
            lambda: _listing([each for each, _ in found], long=long),
        )

    _look(call, work)


def _listing(nodes: "list[Node]", *, long: bool) -> str:
    if not long or not nodes:
        return "\n".join(map(_name, nodes))
    return table(
        [
            (
                human(node.size).rjust(10) if not node.is_folder else " " * 10,
                f"v{node.number}" if node.number else "",
                local_time(node.modified_us),
                _name(node),
            )
            for node in nodes
        ]
    )


def _name(node: "Node") -> str:
    return shown(node.name) + ("/" if node.is_folder else "")


def tree(
    path: PathArgument = "/",
    depth: Annotated[int, typer.Option("--depth", metavar="N", min=1, help="Levels to show.")] = 64,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a folder with all below it."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work(vault: "Look") -> None:
        found: list[dict[str, Any]] = []
        await _walk(vault, address(path), depth, "", found, call)
        if call.json:
            call.answer(found)

    _look(call, work)


async def _walk(
    vault: "Look",
    where: Address,
    depth: int,
    indent: str,
    found: list[dict[str, Any]],
    call: Session,
) -> None:
    nodes = [node async for node in vault.list(written(where))]
    for index, node in enumerate(nodes):
        last = index == len(nodes) - 1
        at = where.child(node.name)
        if call.json:
            found.append(node_json(node, at))
        else:
            call.answer(None, f"{indent}{'└── ' if last else '├── '}{_name(node)}")
        if node.is_folder and depth > 1:
            deeper = indent + ("    " if last else "│   ")
            await _walk(vault, at, depth - 1, deeper, found, call)


def stat(
    path: PathArgument,
    number: NumberOption = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show all that is known of a file or folder."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work(vault: "Look") -> None:
        where = address(path)
        node = await vault.stat(written(where))
        value = node_json(node, where)
        if not node.is_folder:
            value["content"] = version_json(await vault.version(written(where), number))
        call.answer(value, lambda: _described(value))

    _look(call, work)


def _described(value: dict[str, Any], indent: str = "") -> str:
    lines: list[str] = []
    for key, each in value.items():
        if isinstance(each, dict) and key != "metadata":
            inner = cast("dict[str, Any]", each)
            lines += [f"{indent}{key}:", _described(inner, indent + "  ")]
        elif each is not None:
            text = json.dumps(each) if isinstance(each, dict) else shown(str(each))
            lines.append(f"{indent}{key}: {text}")
    return "\n".join(lines)


def versions(
    path: PathArgument,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the versions of a file, newest first."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work(vault: "Look") -> None:
        found = [version async for version in vault.versions(written(address(path)))]
        call.answer(
            [version_json(version) for version in found] if call.json else None,
            lambda: table(
                [
                    (
                        f"v{version.number}",
                        human(version.size).rjust(10),
                        local_time(version.created_us),
                        version.digest.hex()[:16] if version.digest else "",
                    )
                    for version in found
                ]
            ),
        )

    _look(call, work)

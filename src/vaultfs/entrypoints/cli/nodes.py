"""`mkdir`, `mv`, `cp`, `rm`, `trash`, `restore`, `meta`: changes to the tree."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaultfs.domain.errors import InvalidField, NotFound, ParentNotFound
from vaultfs.domain.names import Address, format_path, parse_path
from vaultfs.domain.quantities import human
from vaultfs.entrypoints.cli.contents import AsCp, Existing, Revision, Sources, preconditions
from vaultfs.entrypoints.cli.errors import ExitCode
from vaultfs.entrypoints.cli.remote import OWN, address, node_json, written
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
    working,
)

if TYPE_CHECKING:
    from vaultfs.domain.nodes import Node, Preconditions
    from vaultfs.entrypoints.look import Look
    from vaultfs.entrypoints.surface import Surface
    from vaultfs.ports.catalog import Trashed

Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace what is there; it goes to the trash.")
]
Destination = Annotated[
    str,
    typer.Argument(
        metavar="/DEST", show_default=False, help="Where they go; into it, if it is a folder."
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(metavar="/PATH...", show_default=False, help="Files and folders of the vault."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (mkdir, mv, cp, rm, trash, restore, meta):
        app.command()(command)


def _answer_nodes(call: Session, nodes: "list[tuple[Node, Address]]") -> None:
    call.answer([node_json(node, where) for node, where in nodes] if call.json else None)


def mkdir(
    paths: Paths,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="Make missing folders; fine if it is there.")
    ] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make folders."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        made: list[tuple[Node, Address]] = []
        async with working(call) as vault:
            for where in map(address, paths):
                try:
                    node = await vault.mkdir(written(where), parents=parents, exist_ok=parents)
                except ParentNotFound as error:
                    raise ParentNotFound(f"{error.message}, or use -p") from error
                made.append((node, where))
        _answer_nodes(call, made)

    run(call, work)


async def _targets(
    vault: "Surface", sources: list[str], destination: str
) -> list[tuple[Address, Address]]:
    """Where each source is to go: into a folder under its own name, or to the destination."""
    target = address(destination)
    into = (
        len(sources) > 1
        or (destination.endswith("/") and target.path)
        or await vault.kind(written(target)) == "folder"
    )
    found: list[tuple[Address, Address]] = []
    for source in map(address, sources):
        if into and not source.path:
            raise InvalidField("the root of a tree has no name to keep")
        found.append((source, target.child(source.path[-1]) if into else target))
    return found


async def _together(
    vault: "Surface", op: str, pairs: list[tuple[Address, Address]], more: dict[str, Any]
) -> "list[tuple[Node, Address]]":
    """Do the same with many nodes: all or none of every thousand."""
    from vaultfs.domain.batches import MAX_STEPS
    from vaultfs.entrypoints.answers import to_node
    from vaultfs.entrypoints.batching import BatchFailed, failed

    nodes: list[Node] = []
    for start in range(0, len(pairs), MAX_STEPS):
        ops = [
            {"op": op, **_named(op, source, target), **more}
            for source, target in pairs[start : start + MAX_STEPS]
        ]
        report = await vault.run_batch(ops)
        if failed(report):
            raise BatchFailed(report)
        nodes += [to_node(each.node) for each in report.results if each.node is not None]
    return list(zip(nodes, (target for _, target in pairs), strict=True))


def _named(op: str, source: Address, target: Address) -> dict[str, str]:
    if op == "delete":
        return {"target": written(source)}
    return {"src": written(source), "dst": written(target)}


def _demanded(wanted: "Preconditions") -> dict[str, int]:
    """Preconditions as operations of a batch have them."""
    found = {"if_version": wanted.if_version, "if_revision": wanted.if_revision}
    return {name: value for name, value in found.items() if value is not None}


def mv(
    sources: Sources,
    destination: Destination,
    force: Force = False,
    if_version: Existing = None,
    if_revision: Revision = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Move or rename; a folder with all that it holds, at once."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        wanted = preconditions(if_version, if_revision)
        async with working(call) as vault:
            pairs = await _targets(vault, sources, destination)
            if len(pairs) > 1:
                more = {"on_conflict": "replace"} if force else {}
                moved = await _together(vault, "move", pairs, more | _demanded(wanted))
            else:
                [(source, target)] = pairs
                node = await vault.move(
                    written(source), written(target), replace=force, preconditions=wanted
                )
                moved = [(node, target)]
        _answer_nodes(call, moved)

    run(call, work)


def cp(
    sources: Sources,
    destination: Destination,
    force: Force = False,
    number: NumberOption = None,
    _recursive: AsCp = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy within the vault, folders with all that they hold; no bytes are copied."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with working(call) as vault:
            pairs = await _targets(vault, sources, destination)
            if len(pairs) > 1:
                more: dict[str, Any] = {"on_conflict": "replace"} if force else {}
                more |= {} if number is None else {"version": number}
                copied = await _together(vault, "copy", pairs, more)
            else:
                [(source, target)] = pairs
                node = await vault.copy(
                    written(source), written(target), version=number, replace=force
                )
                copied = [(node, target)]
        _answer_nodes(call, copied)

    run(call, work)


def rm(
    paths: Paths,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders with what they hold.")
    ] = False,
    if_version: Existing = None,
    if_revision: Revision = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Send files and folders to the trash."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        wanted = preconditions(if_version, if_revision)
        async with working(call) as vault:
            places = list(map(address, paths))
            if len(places) > 1:
                more = {"recursive": recursive} | _demanded(wanted)
                gone = await _together(vault, "delete", [(each, each) for each in places], more)
            else:
                [where] = places
                node = await vault.delete(written(where), recursive=recursive, preconditions=wanted)
                gone = [(node, where)]
        _answer_nodes(call, gone)

    run(call, work)


# The trash


async def _trashed(vault: "Look") -> "list[Trashed]":
    return [each async for each in vault.trash()]


def trash(
    purge: Annotated[
        list[int] | None,
        typer.Option("--purge", metavar="ID", help="Forget this for ever. Can be repeated."),
    ] = None,
    purge_all: Annotated[
        bool, typer.Option("--purge-all", help="Forget all of it for ever.")
    ] = False,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List what was deleted and can be restored, or purge it."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def look() -> None:
        async with looking(call) as vault:
            found = await _trashed(vault)
        call.answer(
            [_trashed_json(each) for each in found] if call.json else None,
            lambda: table([_trashed_row(each) for each in found]) if found else "",
        )

    async def work() -> None:
        from vaultfs.domain.nodes import NodeId

        async with working(call) as vault:
            there: set[NodeId] = {each.node.id for each in await _trashed(vault)}
            wanted = set(there) if purge_all else set[NodeId]()
            wanted.update(NodeId(number) for number in purge or ())
            for number in sorted(wanted):
                if number not in there:
                    raise NotFound(f"{number} is not in the trash")
                await vault.purge(number)
            call.answer({"purged": sorted(wanted)}, f"purged {len(wanted)}")

    run(call, work if purge or purge_all else look)


def _trashed_json(each: "Trashed") -> dict[str, Any]:
    return node_json(each.node, Address(OWN, each.path)) | {"trashed_us": each.node.trashed_us}


def _trashed_row(each: "Trashed") -> tuple[str, ...]:
    node = each.node
    return (
        str(node.id).rjust(8),
        human(node.size).rjust(10) if not node.is_folder else " " * 10,
        local_time(node.trashed_us or 0),
        shown(format_path(each.path)) + ("/" if node.is_folder else ""),
    )


def restore(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID|/PATH", show_default=False, help="What trash shows, or the path it had."
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="/PATH", help="Restore it to this path.")
    ] = None,
    number: NumberOption = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bring something back from the trash, or an old version of a file.

    Of several things that had one path, that is what was deleted last: the others have IDs.
    """
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with working(call) as vault:
            if number is not None:
                where = address(what)
                node = await vault.restore_version(written(where), number)
            else:
                target = None if to is None else address(to)
                found = await _find_trashed(vault, what)
                where = Address(OWN, found.path) if target is None else target
                node = await vault.restore(found.node.id, None if to is None else written(where))
            call.answer(node_json(node, where), f"restored {shown(written(where))}")

    run(call, work)


async def _find_trashed(vault: "Surface", what: str) -> "Trashed":
    """The node in the trash with that id, or the last deleted that had that path."""
    found = await _trashed(vault)
    if what.isdecimal():
        matching = [each for each in found if each.node.id == int(what)]
    else:
        path = parse_path(what)
        matching = sorted(
            (each for each in found if each.path == path),
            key=lambda each: each.node.trashed_us or 0,
        )
    if not matching:
        raise NotFound(f"{what} is not in the trash: {await _way_out(vault, what)}")
    return matching[-1]


async def _way_out(vault: "Surface", what: str) -> str:
    if not what.isdecimal() and await vault.kind(what) == "file":
        return "it is where it was, and --version N brings an old content back"
    return "see `vaultfs trash`"


# Metadata


def meta(
    path: Annotated[
        str,
        typer.Argument(metavar="/PATH", show_default=False, help="A file or folder of the vault."),
    ],
    patch: Annotated[
        str | None,
        typer.Argument(metavar="[PATCH]", help="A JSON merge patch: null removes a key."),
    ] = None,
    if_revision: Revision = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the metadata of a file or folder, or change it."""
    call = session(vault, as_json=as_json, quiet=quiet)

    async def work() -> ExitCode:
        where = address(path)
        async with working(call) as vault:
            if patch is None:
                node = await vault.stat(written(where))
            else:
                node = await vault.patch_metadata(
                    written(where), patch, preconditions=preconditions(None, if_revision)
                )
        value = json.loads(node.metadata)
        lines = json.dumps(value, ensure_ascii=False, indent=2).split("\n")
        call.answer(value, "\n".join(map(shown, lines)))
        return ExitCode.DONE

    run(call, work)

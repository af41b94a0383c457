"""Paths in the vault as they are written on the command line, and nodes as JSON."""

from typing import TYPE_CHECKING, Any

from vaultfs.domain.names import Address, format_path, parse_address

if TYPE_CHECKING:
    from vaultfs.domain.nodes import Node, Version

OWN = ""
"""The caller's own tree, whoever that is."""


def address(text: str) -> Address:
    """`/path`, or `user:/path`. Raises `InvalidName`."""
    return parse_address(text, own=OWN)


def written(where: Address) -> str:
    """The opposite of `address`."""
    path = format_path(where.path)
    return path if where.tree == OWN else f"{where.tree}:{path}"


def node_json(node: "Node", where: Address) -> dict[str, Any]:
    """A node for programs."""
    import json

    return {
        "path": written(where),
        "name": node.name,
        "kind": node.kind,
        "id": node.id,
        "revision": node.revision,
        "version": node.version,
        "number": node.number or None,
        "size": node.size,
        "created": node.created.isoformat(),
        "modified": node.modified.isoformat(),
        "metadata": json.loads(node.metadata),
    }


def version_json(version: "Version") -> dict[str, Any]:
    """A version for programs."""
    return {
        "number": version.number,
        "version": version.id,
        "size": version.size,
        "created": version.created.isoformat(),
        "blake3": version.digest.hex() if version.digest else None,
        "digest_state": str(version.digest_state),
        "mode": version.mode,
        "mtime_us": version.mtime_us,
    }

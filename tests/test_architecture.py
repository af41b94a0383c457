"""The shape of the code: what the core may not do, and who may know whom."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vaultfs"
CORE = sorted((SOURCE / "domain").glob("*.py"))
SERVICES = sorted((SOURCE / "domain" / "services").glob("*.py"))
PORTS = sorted((SOURCE / "ports").glob("*.py"))

PURE = {
    *("abc", "base64", "bisect", "collections", "contextlib", "datetime", "enum"),
    *("functools", "hashlib", "hmac", "itertools", "json"),
    *("math", "operator", "re", "struct", "threading", "typing", "unicodedata"),
    *("attrs", "blake3", "crc32c", "google_crc32c", "pyfastcdc", "zlib", "zstandard"),
    *("backports", "compression", "sys"),  # zstd, in whichever of the two the version has it
}
"""What the core may import: nothing in it reads a clock, a disk, an environment or dice."""

IMPURE_CALLS = {
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    *("os.environ", "os.getenv", "os.urandom"),
    *("sys.argv", "sys.path", "sys.stdin", "sys.stdout", "sys.exit"),
    *("uuid.uuid1", "uuid.uuid4", "uuid1", "uuid4", "open", "print", "input"),
}
IMPURE_MODULES = {"time", "random", "secrets", "os", "uuid", "socket", "asyncio", "anyio"}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` as it is written; empty for what is no chain of names."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case _:
            return ""


def uses(path: Path) -> Iterator[str]:
    """All names, and chains of names, that a file mentions."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name | ast.Attribute):
            yield dotted(node)


def test_there_is_something_to_look_at() -> None:
    assert len(CORE) > 8
    assert len(SERVICES) > 3
    assert len(PORTS) > 3


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_does_nothing_but_compute(path: Path) -> None:
    waits = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, waits), f"{name(path)} is asynchronous"
    for use in uses(path):
        head, _, rest = use.partition(".")
        assert use not in IMPURE_CALLS, use
        assert not (rest and head in IMPURE_MODULES), use


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_imports_only_what_is_pure(path: Path) -> None:
    for module in imports(path):
        if module.startswith("vaultfs."):
            assert module.startswith("vaultfs.domain."), module
            assert not module.startswith("vaultfs.domain.services"), module
        else:
            assert module.split(".")[0] in PURE, module


@pytest.mark.parametrize("path", SERVICES, ids=name)
def test_services_know_ports_and_not_what_is_behind_them(path: Path) -> None:
    for module in imports(path):
        if module.startswith("vaultfs"):
            assert module.startswith(("vaultfs.domain.", "vaultfs.ports.")), module


@pytest.mark.parametrize("path", PORTS, ids=name)
def test_ports_know_the_core_alone(path: Path) -> None:
    for module in imports(path):
        if module.startswith("vaultfs"):
            assert module.startswith(("vaultfs.domain.", "vaultfs.ports.")), module
            assert not module.startswith("vaultfs.domain.services"), module
        else:
            assert module.split(".")[0] in {*sys.stdlib_module_names, "attrs"}, module


@pytest.mark.parametrize("path", PORTS, ids=name)
def test_ports_say_what_they_promise(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name(path)}: {node.name} has no docstring"


def test_nobody_imports_by_the_links_at_the_root() -> None:
    links = {"domain", "ports", "adapters", "entrypoints"}
    for path in SOURCE.rglob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in links, f"{name(path)} imports {module}"


@pytest.mark.parametrize("link", ["domain", "ports", "adapters", "entrypoints"])
def test_links_at_the_root_lead_to_the_packages(link: str) -> None:
    path = ROOT / link
    assert path.is_symlink()
    assert str(path.readlink()) == f"src/vaultfs/{link}"
    assert path.resolve() == (SOURCE / link).resolve()
    assert (path / "__init__.py").is_file()

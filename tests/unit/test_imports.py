"""Imports inside a package have an order: no file imports, even late or for types alone, one that imports it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import herd

ROOT = Path(herd.__file__).parent


def imports(package: str) -> dict[str, set[str]]:
    """Each module of a package with those of the same package that it names in an import, wherever that stands."""
    modules = {
        ".".join(("herd", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in (ROOT / package).rglob("*.py")
        if path.stem != "__init__"
    }
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[name] = named & modules.keys()
    return found


@pytest.mark.parametrize("package", ["engine", "model", "train"])
def test_no_circle_of_imports(package: str) -> None:
    graph = imports(package)
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))

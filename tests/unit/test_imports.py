"""Imports have an order: no file imports, even in a function or for types alone, one that imports it."""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import herd

ROOT = Path(herd.__file__).parents[1]


@functools.cache
def imports(root: Path) -> dict[str, set[str]]:
    """Each module under `root/herd` with those of them that it names in an import, wherever that stands."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in (root / "herd").rglob("*.py")
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


def test_no_circle_of_imports() -> None:
    graph = imports(ROOT)
    assert "herd.evaluate.long" in graph["herd.evaluate.harness"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "hidden", ["def work():\n    from herd.one import x", "if TYPE_CHECKING:\n    import herd.one"]
)
def test_a_circle_is_found_in_a_function_and_for_types_alone(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "herd").mkdir()
    (tmp_path / "herd" / "one.py").write_text("from herd import two")
    (tmp_path / "herd" / "two.py").write_text(hidden)
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path)).prepare()


def test_the_text_room_knows_no_other_part_of_data() -> None:
    room = "herd.data.text."
    graph = {name: named for name, named in imports(ROOT).items() if name.startswith(room)}
    assert graph
    for name, named in graph.items():
        outside = {other for other in named if other.startswith("herd.data.") and not other.startswith(room)}
        assert not outside, f"{name} imports {outside}"

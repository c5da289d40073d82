"""What a Python source assigns to names of its module and of its classes, without running it.

Strings, f-strings of known names, lists, tuples and sums of those are read; anything else is left out.
"""

import ast
from typing import Any


class _Unknown(Exception):
    """A value that only running the code would tell."""


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in names:
            return names[node.id]
        case ast.JoinedStr():
            return "".join(str(_value(part, names)) for part in node.values)
        case ast.FormattedValue():
            return _value(node.value, names)
        case ast.List() | ast.Tuple():
            return [_value(item, names) for item in node.elts]
        case ast.BinOp(op=ast.Add()):
            return _value(node.left, names) + _value(node.right, names)
    raise _Unknown


def _assigned(body: list[ast.stmt], names: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in body:
        match line:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                try:
                    found[name] = _value(value, names | found)
                except (_Unknown, TypeError):
                    continue
    return found


def class_literals(source: str) -> dict[str, dict[str, Any]]:
    """By class, in the order of the source, what is assigned in its body or in those of its bases in this source."""
    tree = ast.parse(source)
    module = _assigned(tree.body, {})
    classes: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [
                classes[base.id] for base in reversed(node.bases) if isinstance(base, ast.Name) and base.id in classes
            ]
            inherited = {name: value for base in bases for name, value in base.items()}
            classes[node.name] = inherited | _assigned(node.body, module)
    return classes

"""A recipe: one TOML table a stage, its keys the fields of the stage's config. Here it is read, checked and run.

The tables are a graph: a stage begins with the model of the stage that its `from` names, else with that of the nearest
stage before it. A stage whose folder was made with the same config from the same parents is reused. Otherwise it runs
again, and so do the stages after it, as far as what they read has changed; the folder that was there is kept under
another name. That the code has changed is said and no reason to run again: most commits change nothing of what a stage
writes, and hours of training would go with each.

What is wrong is told with the file, the table, the key and the value; a misspelt name with the nearest right one.
Imports no torch and no stage: the caller says which stages there are.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from herd.core.errors import HerdError, unknown
from herd.core.files import alone_in, partial
from herd.core.lineage import code_version, made_by, read_lineage
from herd.core.numbers import whole_number
from herd.core.ranks import rank
from herd.stages.unfinished import (
    Unfinished,
    changes_since,
    move_aside,
    put_in_place,
    request,
    take_up,
    telling_what_is_kept,
    told,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageKind:
    """What a stage is: as recipes, the command line and `--help` know it."""

    name: str
    """Its table in a recipe."""
    config: Callable[[], Any]
    """Gives its config class; a function, so that importing it can wait."""
    function: Callable[..., Path]
    """Does the work: `function(config, *parents, out)` returns the finished folder."""
    reads: tuple[str, ...] = ()
    """The folders that it reads, by what they hold (data, model), in the order in which the function takes them."""
    writes: str
    """What its own folder holds."""
    command: str = ""
    """The words behind `herd`; its name if not given."""
    summary: str = ""
    """Its line of `herd --help`."""
    example: str = ""
    """A command that is complete."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", self.command or self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A stage of a recipe: its settings, and whose folders it reads."""

    kind: StageKind
    config: Any
    parents: Mapping[str, str]
    """What it reads → the table whose folder that is."""


def recipe_path(name: str) -> Path:
    """The file of a recipe given by name (`tiny`) or by path (`my/own.toml`)."""
    package = Path(__file__).parents[1]
    folders = [package.parent / "recipes", package / "recipes"]  # beside the package in a checkout, inside a wheel
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise HerdError(f"there is no recipe at {name}: give a TOML file, or a recipe's name such as tiny")
        return Path(name)
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise unknown("recipe", name, {path.stem for folder in folders for path in folder.glob("*.toml")})


def load_recipe(name: str, kinds: Mapping[str, StageKind]) -> dict[str, Node]:
    """Name of each stage that the recipe has a table for → what is to be done, in the order of `kinds`."""
    path = recipe_path(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HerdError(f"{path} is not valid TOML: {error}") from None
    for table, value in tables.items():
        if table not in kinds:
            raise unknown(f"table in {path}:", table, kinds)
        if not isinstance(value, dict):
            raise HerdError(f"{path}: {table} = {value!r} stands alone, a stage is a table: [{table}]")
    nodes: dict[str, Node] = {}
    for kind in [kind for name, kind in kinds.items() if name in tables]:
        where, values = f"{path} [{kind.name}]", dict(tables[kind.name])
        given = {"model": _given_parent(kind, values.pop("from"), tables, nodes, where)} if "from" in values else {}
        parents = {role: given.get(role) or _nearest(kind, role, nodes, kinds, path) for role in kind.reads}
        config = make_config(kind.config(), values, where=where)
        nodes[kind.name] = Node(kind=kind, config=config, parents=parents)
    return nodes


def _nearest(kind: StageKind, role: str, before: dict[str, Node], kinds: Mapping[str, StageKind], path: Path) -> str:
    """The last stage before this one that writes what it reads."""
    for name, node in reversed(before.items()):
        if node.kind.writes == role:
            return name
    earlier = list(kinds.values())[: list(kinds).index(kind.name)]
    writers = " or ".join(f"[{other.name}]" for other in earlier if other.writes == role)
    raise HerdError(f"{path}: [{kind.name}] reads a {role} folder and no table before it writes one: add {writers}")


def _given_parent(
    kind: StageKind, value: Any, tables: Mapping[str, Any], before: Mapping[str, Node], where: str
) -> str:
    """The stage that `from` names: one before this that writes a model."""
    models = [name for name, node in before.items() if node.kind.writes == "model"]
    if "model" not in kind.reads:
        raise HerdError(f"{where} from = {value!r}: {kind.name} begins with no model, remove the key")
    if not isinstance(value, str) or value not in tables:
        raise unknown(f"table in {where} from =", str(value), models)
    if value not in before:
        raise HerdError(f"{where} from = {value!r}: [{value}] runs later, name one of: {', '.join(models)}")
    if value not in models:
        raise HerdError(f"{where} from = {value!r}: [{value}] writes no model, name one of: {', '.join(models)}")
    return value


def make_config(cls: Any, values: Mapping[str, Any], *, where: str, base: Any = None) -> Any:
    """The dataclass `cls` with `values` in its fields, the others as in `base` or by default."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"key in {where}:", key, fields)
        given[key] = _convert(value, hints[key], fields[key], f"{where} {key}")
    missing = [name for name, field in fields.items() if base is None and name not in given and not _has_default(field)]
    if missing:
        raise HerdError(f"{where} lacks {', '.join(missing)}")
    try:
        return cls(**given) if base is None else dataclasses.replace(base, **given)
    except ValueError as error:  # a config that checks itself names the values; here the place is added
        raise HerdError(f"{where}: {error}") from error


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _convert(value: Any, hint: Any, field: "dataclasses.Field[Any]", where: str) -> Any:
    """What TOML read, as the type that the field asks for."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:  # only `X | None`, and TOML cannot say None
        [hint] = [option for option in inner if option is not type(None)]
        return _convert(value, hint, field, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return make_config(hint, value, where=where, base=_default(field))
    if origin is typing.Literal and value not in inner:
        raise unknown(f"value in {where} =", str(value), map(str, inner))
    if origin is tuple and isinstance(value, list) and (len(value) == len(inner) or inner[1:] == (...,)):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_convert(item, kind, field, where) for item, kind in zip(value, kinds, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is int and isinstance(value, str) and value[-1:].lower() in {"k", "m", "g"}:
        try:
            return whole_number(value)
        except HerdError as error:
            raise HerdError(f"{where} = {error}") from None
    if hint is float and type(value) is int:
        return float(value)
    if origin is not typing.Literal and type(value) is not hint:  # exact, as a bool is an int to isinstance
        kind = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
        raise HerdError(f"{where} = {value!r} must be {kind}, it is {type(value).__name__}")
    return value


def run_stage(
    kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path, unfinished: Unfinished = "resume"
) -> Path:
    """Run one stage. Its unfinished work is gone on with if it was begun for the same; else see `unfinished`."""
    if rank() > 0:  # what is done once is done by the first rank, before it joins the others
        return kind.function(config, *parents.values(), out)
    if out.exists() and not (out / "herd.json").exists():
        raise HerdError(f"{out} is there and no folder of Herd's: move it away, or give another --out")
    wanted = request(config, parents)  # a parent that is not there is told before anything is written
    if unfinished == "restart":
        move_aside(out)
    work = partial(out)
    with alone_in(work), telling_what_is_kept(work):
        take_up(out, config, wanted, unfinished)
        kind.function(config, *parents.values(), out)
    return out


def run_recipe(nodes: Mapping[str, Node], run: Path, *, do: Callable[..., object] = run_stage) -> None:
    """Run the stages in order into `run/STAGE`; those that stand as wanted are reused.

    `do` takes what `run_stage` takes and has it done elsewhere.
    """
    now = code_version()
    for name, node in nodes.items():
        parents = {role: run / parent for role, parent in node.parents.items()}
        out = run / name
        put_in_place(out)
        reused = False
        if not (out / "herd.json").exists():
            print(f"{name:<9} begins")
        elif differ := changes_since(out, node.config, parents):
            print(f"{name:<9} begins again: {told(differ)}")
        else:
            reused = True
        if not reused:
            do(node.kind, node.config, parents, out)
        lineage = read_lineage(out)
        print(f"{name:<9} {'reused' if reused else 'done'} ({lineage['time_s']:.0f} s)", end="")
        if reused and made_by(lineage) != now:
            print(f", made by herd {made_by(lineage)}, this is {now}: remove {out} to make it again", end="")
        print()

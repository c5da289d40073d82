"""A recipe: one TOML table a stage, its keys the fields of the stage's config. Here it is read, checked and run.

A stage whose folder was made with the same config from the same parents is reused. Otherwise it runs again, and so do
the stages after it, as far as what they read has changed. That the code has changed is said and no reason to run again:
most commits change nothing of what a stage writes, and hours of training would go with each.

What is wrong is told with the file, the table, the key and the value; a misspelt name with the nearest right one.
Imports no torch and no stage: the caller says which stages there are.
"""

import dataclasses
import json
import shutil
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.config import HOW_IT_RUNS
from herd.core.errors import HerdError, unknown
from herd.core.files import alone_in, partial, read_json, write_json
from herd.core.lineage import code_version, made_by, read_lineage
from herd.core.numbers import whole_number
from herd.core.ranks import rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One stage as recipes and the command line know it."""

    name: str
    """Its table in a recipe, its folder in a run."""
    config: Callable[[], Any]
    """Gives its config class; a function, so that importing it can wait."""
    function: Callable[..., Path]
    """Does the work: `function(config, *parents, out)` returns the finished folder."""
    parents: Mapping[str, str]
    """The folders that it reads: what it calls each → the step that writes it."""


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


def load_recipe(name: str, steps: Sequence[Step]) -> dict[str, Any]:
    """Name of each stage that the recipe has a table for → its config, in the order of `steps`."""
    path = recipe_path(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HerdError(f"{path} is not valid TOML: {error}") from None
    for table, value in tables.items():
        if table not in {step.name for step in steps}:
            raise unknown(f"table in {path}:", table, (step.name for step in steps))
        if not isinstance(value, dict):
            raise HerdError(f"{path}: {table} = {value!r} stands alone, a stage is a table: [{table}]")
    chosen = [step for step in steps if step.name in tables]
    for step in chosen:
        if absent := [parent for parent in step.parents.values() if parent not in tables]:
            raise HerdError(f"{path}: [{step.name}] reads what [{absent[0]}] writes: add a table [{absent[0]}]")
    return {step.name: make_config(step.config(), tables[step.name], where=f"{path} [{step.name}]") for step in chosen}


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


def run_step(step: Step, config: Any, parents: Mapping[str, Path], out: Path) -> Path:
    """Run one stage. Work begun for another config or other parents is thrown away, not gone on with."""
    work = partial(out)
    if rank() > 0:  # what is done once is done by the first rank, before it joins the others
        return step.function(config, *parents.values(), out)
    with alone_in(work):
        wanted, begun = _request(config, parents), work / ".request.json"
        if any(work.iterdir()) and not (begun.exists() and read_json(begun) == wanted):
            print(f"{work} was begun with another config or other inputs: starting anew")
            for item in work.iterdir():
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        write_json(begun, wanted)
        step.function(config, *parents.values(), out)
        (out / begun.name).unlink()
    return out


def run_recipe(
    configs: Mapping[str, Any], steps: Sequence[Step], run: Path, *, do: Callable[..., object] = run_step
) -> None:
    """Run the stages that `configs` name in order into `run/STAGE`; those that stand as wanted are reused.

    `do` takes what `run_step` takes and has it done elsewhere.
    """
    now = code_version()
    for step in steps:
        if step.name not in configs:
            continue
        parents = {role: run / parent for role, parent in step.parents.items()}
        out = run / step.name
        reused = is_current(out, configs[step.name], parents)
        if not reused:
            print(f"{step.name:<9} begins")
            do(step, configs[step.name], parents, out)
        lineage = read_lineage(out)
        print(f"{step.name:<9} {'reused' if reused else 'done'} ({lineage['time_s']:.0f} s)", end="")
        if reused and made_by(lineage) != now:
            print(f", made by herd {made_by(lineage)}, this is {now}: remove {out} to make it again", end="")
        print()


def is_current(out: Path, config: Any, parents: Mapping[str, Path]) -> bool:
    """Whether `out` is finished and was made with this config from these parents as they are now."""
    if not (out / "herd.json").exists():
        return False
    lineage = read_lineage(out)
    changes = {key: value for key, value in lineage["config"].items() if key not in how_it_runs(config)}
    made = {"config": changes, "parents": {role: of["hash"] for role, of in lineage["parents"].items()}}
    return made == _request(config, parents)


def how_it_runs(config: Any) -> set[str]:
    """The fields that change nothing of what a stage writes: another number of ranks goes on with the same work."""
    return {field.name for field in dataclasses.fields(config) if field.metadata == HOW_IT_RUNS}


def _request(config: Any, parents: Mapping[str, Path]) -> dict[str, Any]:
    request = {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in how_it_runs(config)},
        "parents": {role: read_lineage(folder)["hash"] for role, folder in parents.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(request))  # tuples as the lists that a file gives back
    return plain

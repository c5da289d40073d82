"""A recipe: a TOML file whose tables are the stages of a run. Here it is read and checked; runner.py runs it.

`[sft]` is a stage of the kind sft; `[stage.NAME]` with `kind = "sft"` is one too, under a name of its own, so that a
kind may come more than once. The keys of a table are the fields of the stage's config. `[safety]` is no stage: it adds
to the tables of others (safety_table.py).

A run is a graph. A stage begins with the model that its `from` names, else with that of the nearest table above it; its
data folder likewise (`data`). Either may name a table above, or a folder of the user's. So several stages may begin
with one model, and a run with a model that is there already. The stages run in the order of the file.

Mistakes are reported in one line, before anything is written. Imports no torch and no stage: the caller gives
kinds of stages there are.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.errors import HerdError, unknown
from herd.stages.safety_table import SAFETY, with_safety
from herd.stages.settings import make_config, refuse_renamed

STARTER = "starter"
"""What a model is called in place of a folder that is a small one from PyPI."""
NAMED = "stage"
"""The table of the stages that have names of their own."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a stage may be called: it is the name of its folder too. Names with dots are those of folders moved aside."""
KEYS = {"model": "from", "data": "data", "teacher": "teacher"}
"""What a stage reads → the key that names it."""
SIGNS = {
    "model": ("config.json", "adapter_config.json"),
    "data": ("tokenizer",),
    "selection": ("selection.parquet",),
    "teacher": ("teacher.json", "config.json"),
    "guard": ("config.json",),
}
"""What every such folder has one of."""
SERVES_AS = {"teacher": ("teacher", "model")}
"""What a stage reads → what a folder may hold that is named for it, where that is not the same alone: a student learns
from a teacher's rows, or from a model that reads every batch."""
GOES_ON = "guard"
"""What a stage that writes it may also begin with: a guard that is trained further."""


def no_inputs(config: Any) -> Mapping[str, Path]:
    """Of most stages: all that they read are the folders of others."""
    return {}


def no_check(config: Any, parents: Mapping[str, Any]) -> None:
    """Most stages fit any."""


@dataclass(frozen=True, kw_only=True)
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
    reads_run: bool = False
    """Whether it reads the folders of all stages above it instead; `from` then gives its config's `stage`."""
    inputs: Callable[[Any], Mapping[str, Path]] = no_inputs
    """The files and folders that a config names, by what they are for; the function gets none of them."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Fields of its config that name folders, one or several → what these hold. Recipes may name stages there."""
    positional: str = "model"
    """Which of the folders that it reads is given without an option."""
    takes: tuple[str, ...] = ()
    """The kinds of the user's files that its command takes in place of a data folder."""
    optional: tuple[str, ...] = ()
    """Of the folders that it reads, those that its command may go without: the function then gets None."""
    writes: str
    """What its own folder holds."""
    command: str = ""
    """The words behind `herd`; none if it is no command."""
    summary: str = ""
    """Its line of `herd --help`."""
    example: str = ""
    """A command that is complete."""
    check: Callable[[Any, Mapping[str, Any]], None] = no_check
    """Raises HerdError where its config does not fit those of the stages that it reads, by what they hold."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage of a recipe: its settings, and whose folders it reads."""

    kind: StageKind
    config: Any
    parents: Mapping[str, str | Path]
    """What it reads → the stage of the run whose folder that is, or a folder of the user's."""
    stages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of `StageKind.names` → the stages of the run that they may name."""

    def config_in(self, run: Path) -> Any:
        """The config with the folders of the stages of `run` that it names."""
        config = self.config
        for name, stages in self.stages.items():
            config = with_folders(config, name, {one: run / one for one in stages})
        return config


def with_folders(config: Any, name: str, folders: Mapping[str, Path]) -> Any:
    """The config with the names in a field, one or several, replaced by their folders; others stay."""
    value = getattr(config, name)
    if isinstance(value, tuple):
        return replace(config, **{name: tuple(str(folders.get(one, one)) for one in value)})
    return replace(config, **{name: str(folders.get(value, value))})


@dataclass(frozen=True, kw_only=True)
class Table:
    """A stage as the file has it."""

    kind: StageKind
    values: dict[str, Any]
    where: str
    """The file and the table, for errors."""


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
    """Name of each stage of a recipe → what is to be done, in the order of the file."""
    path = recipe_path(name)
    tables, folders = read_tables(path, kinds)
    nodes: dict[str, Node] = {}
    for stage, table in tables.items():
        kind, where = table.kind, table.where
        refuse_renamed(kind.name, table.values, where=where)
        keys = {role: key for role, key in KEYS.items() if key not in kind.names}
        values = {key: value for key, value in table.values.items() if key not in keys.values()}
        given = {role: named_parent(role, stage, tables, nodes) for role, key in keys.items() if key in table.values}
        parents: dict[str, str | Path] = {}
        if kind.reads_run:
            values |= {"stage": given["model"]} if given else {}
            parents = stages_to_report(nodes)
        for role in kind.reads:
            parents[role] = given.get(role) or nearest_parent(role, table, nodes, folders, kinds)
        config = make_config(kind.config(), values, where=where)
        node = Node(
            kind=kind,
            config=config,
            parents=parents,
            stages={key: tuple(writers_of(role, nodes)) for key, role in kind.names.items()},
        )
        for key, role in kind.names.items():
            for name in names_of(node, key):
                named_folder(role, key, name, stage, tables, nodes)
        nodes[stage] = node
    return nodes


def names_of(node: Node, key: str) -> tuple[str, ...]:
    """The stages or folders that an entry of the config names: none, one or several."""
    value = getattr(node.config, key)
    return value if isinstance(value, tuple) else (value,) if value else ()


def stages_to_report(nodes: Mapping[str, Node]) -> dict[str, str | Path]:
    """The parents of a stage that reads the whole run; other reports are left out."""
    return {name: name for name, node in nodes.items() if not node.kind.reads_run}


def unused_stages(nodes: Mapping[str, Node]) -> list[str]:
    """A line for each stage whose folder a later one reads only if its config names it, and none does: a selection."""
    lines = []
    for name, node in nodes.items():
        readers = {
            other: key for other, one in nodes.items() for key, stages in one.stages.items()
            if name in stages and node.kind.writes not in KEYS
        }  # fmt: skip
        used = any(name in node.parents.values() for node in nodes.values() if not node.kind.reads_run)
        if not used and not any(name in names_of(nodes[other], key) for other, key in readers.items()):
            # A further training of the same kind may begin with it, and need not.
            readers = {other: key for other, key in readers.items() if nodes[other].kind.writes != node.kind.writes}
            lines += [f'[{other}] does not use [{name}]: set {key} = "{name}"' for other, key in readers.items()]
    return lines


def read_tables(path: Path, kinds: Mapping[str, StageKind]) -> tuple[dict[str, Table], dict[str, Path]]:
    """The stages of a recipe by name, in the order of the file; and the folders that replace a stage."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HerdError(f"{path} is not valid TOML: {error}") from None
    order = order_of_tables(text)
    if SAFETY in document:
        models = [kind.name for kind in kinds.values() if kind.writes == "model"]
        document, order = with_safety(document, order, models, str(path))
    tables: dict[str, Table] = {}
    folders: dict[str, Path] = {}
    for name, value in document.items():
        if name in KEYS and isinstance(value, str):
            folders[name] = user_folder(name, value, f"{path}: {name}")
        elif name != NAMED:
            if isinstance(value, dict) and "kind" in value:
                raise HerdError(f"{path} [{name}]: a stage with a kind is written [{NAMED}.{name}]")
            if name not in kinds:
                raise unknown(f"table in {path}:", name, kinds)
            if not isinstance(value, dict):
                raise HerdError(f"{path}: {name} = {value!r} stands alone, a stage is a table: [{name}]")
            tables[name] = Table(kind=kinds[name], values=value, where=f"{path} [{name}]")
    named = document.get(NAMED, {})
    if not isinstance(named, dict) or not all(isinstance(value, dict) for value in named.values()):
        raise HerdError(f'{path}: a stage with a name of its own is a table: [{NAMED}.NAME], with kind = "sft" in it')
    for name, value in named.items():
        where = f"{path} [{NAMED}.{name}]"
        if not NAME.fullmatch(name):
            raise HerdError(f"{where}: the name is that of a folder too: use letters, digits, - and _")
        if name in tables:
            raise HerdError(f"{where}: there is a [{name}] too: give one of them another name")
        if "kind" not in value:
            raise HerdError(f"{where} lacks kind, which is one of: {', '.join(kinds)}")
        if value["kind"] not in kinds:
            raise unknown(f"stage in {where} kind =", str(value["kind"]), kinds)
        values = {key: one for key, one in value.items() if key != "kind"}
        tables[name] = Table(kind=kinds[value["kind"]], values=values, where=where)
    return {name: tables[name] for name in order if name in tables}, folders


def order_of_tables(text: str) -> list[str]:
    """The names of the stages of a recipe in the order in which the file begins their tables: once it is read,
    those under `stage` are grouped, wherever they were."""
    lines, found = text.splitlines(keepends=True), dict[str, None]()
    for end, line in enumerate(lines, 1):
        if end == len(lines) or line.lstrip().startswith("["):
            try:
                document = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue  # not the line of a table: within a string or a list of several lines
            found |= dict.fromkeys(name for name in document if name != NAMED)
            found |= dict.fromkeys(document.get(NAMED, {}))
    return list(found)


def named_parent(role: str, stage: str, tables: Mapping[str, Table], before: Mapping[str, Node]) -> str | Path:
    """What `from` or `data` of a stage names: a stage above it, or a folder of the user's."""
    table, key = tables[stage], KEYS[role]
    value = table.values[key]
    if role not in table.kind.reads and not (table.kind.reads_run and role == "model"):
        raise HerdError(f"{table.where} {key} = {value!r}: {table.kind.name} reads no {role}, remove the key")
    return named_folder(role, key, value, stage, tables, before)


def writers_of(role: str, before: Mapping[str, Node]) -> list[str]:
    """The stages that write what `role` says."""
    return [name for name, node in before.items() if node.kind.writes == role]


def named_folder(
    role: str, key: str, value: Any, stage: str, tables: Mapping[str, Table], before: Mapping[str, Node]
) -> str | Path:
    """What the `value` of a stage's `key` names: a stage above it, or a folder of the user's."""
    table = tables[stage]
    where = f"{table.where} {key} ="
    serves = SERVES_AS.get(role, (role,))
    if role == "model" and table.kind.writes == GOES_ON:
        serves = (role, GOES_ON)
    writers = [name for held in serves for name in writers_of(held, before)]
    names = f"name one of: {', '.join(writers)}" if writers else f"no table above writes a {role}"
    if not isinstance(value, str):
        raise HerdError(f"{where} {value!r} must be the name of a table above or a folder")
    if value in writers:
        return value
    if value in before:
        raise HerdError(f"{where} {value!r}: [{value}] writes no {role}, {names}")
    if value == stage:
        raise HerdError(f"{where} {value!r} is the stage itself: {names}")
    if value in tables:
        if key in KEYS.values() and stage in (line := line_of(value, key, tables)):
            cycle = " → ".join([stage, *line[: line.index(stage) + 1]])
            raise HerdError(f"{where} {value!r} closes a cycle, {cycle}: {names}")
        raise HerdError(f"{where} {value!r}: [{value}] comes later in the file, move it above this table; or {names}")
    if role == "model" and value == STARTER and not Path(value).is_dir():
        return Path(STARTER)  # brought when the run begins
    if not table.kind.reads_run and ("/" in value or Path(value).is_dir()):
        return user_folder(role, value, where.removesuffix(" ="))
    raise unknown(f"table in {where}", value, writers)


def line_of(stage: str, key: str, tables: Mapping[str, Table]) -> list[str]:
    """The stages that `key` leads to, one from the other, beginning with `stage`."""
    line: list[str] = []
    while stage in tables and stage not in line:
        line.append(stage)
        stage = str(tables[stage].values.get(key))
    return line


def user_folder(role: str, value: str, where: str) -> Path:
    """A folder that a recipe names, relative to the working directory."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise HerdError(f"{where} = {value!r}: there is no such folder")
    if not any((folder / sign).exists() for sign in SIGNS[role]):
        raise HerdError(f"{where} = {value!r} is no {role} folder: it has no {SIGNS[role][0]}")
    return folder


def nearest_parent(
    role: str, table: Table, before: Mapping[str, Node], folders: Mapping[str, Path], kinds: Mapping[str, StageKind]
) -> str | Path:
    """The last stage above a table that writes what it reads, else the folder that replaces one."""
    if writers := writers_of(role, before):
        return writers[-1]
    if role in folders:
        return folders[role]
    first = " or ".join(f"[{kind.name}]" for kind in kinds.values() if kind.writes == role and role not in kind.reads)
    folder = f', or {KEYS[role]} = "FOLDER"' if role in KEYS else ""
    raise HerdError(
        f"{table.where} reads a {role} folder and no table above it writes one: add {first} above it{folder}"
    )

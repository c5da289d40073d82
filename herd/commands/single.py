"""The command of a stage: its config's fields are its options, a recipe's table may give their defaults."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from herd.commands.command import DEVICE_HELP, Command, set_device
from herd.commands.own import from_paths, own_data, own_options, starter_or, with_starter
from herd.commands.stages import STAGES
from herd.core.boards import VARIABLE, requested_boards
from herd.core.console import traceback_log
from herd.core.device import DeviceName
from herd.core.ranks import rank, world
from herd.errors import HerdError, Misunderstood, unknown
from herd.stages.recipe import StageKind, load_recipe
from herd.stages.runner import run_stage
from herd.stages.unfinished import changes_since, put_in_place, unfinished_mode

Fields = list[tuple[str, Any] | tuple[str, Any, Any]]


def stage_command(kind: StageKind) -> Command:
    """The command that runs a stage by itself."""
    return Command(
        summary=kind.summary,
        example=kind.example,
        function=partial(do_stage, kind),
        usage=partial(stage_usage, kind),
        place=kind.name,
        computes=kind.computes,
    )


def stage_usage(kind: StageKind, args: Sequence[str]) -> Any:
    """The usage of a stage's command: its parents, --out, --recipe, and each field of its config."""
    from tyro.conf import Positional, arg

    # The recipe's values are the defaults that --help shows, so it is read ahead.
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    ahead.add_argument("--recipe", default="")
    ahead.add_argument("--table", default="")
    given = ahead.parse_known_args(args)[0]
    config = config_of(kind, given.recipe, given.table)
    fields: Fields = []
    for role in kind.reads:
        if role == "data" and kind.takes:
            fields += own_options(kind)
            continue
        if role in kind.optional:
            fields.append((role, Annotated[Path | None, arg(help=f"Folder with the {role}, where it is read.")], None))
            continue
        path = Annotated[Path, arg(help=f"Folder with the {role}.")]
        fields.append((role, Positional[path] if role == kind.positional else path))
    if kind.writes == "data":
        about = "Files, folders or patterns of yours: what each holds is found by looking."
        fields.append(("paths", Annotated[tuple[str, ...], arg(name="from", help=about)], ()))
    fields.append(("out", Annotated[Path, arg(help="Folder to write.")]))
    about = "Recipe whose table gives the defaults below."
    fields.append(("recipe", Annotated[str, arg(help=about, metavar="RECIPE")], given.recipe))
    about = f"Which of the recipe's tables, where it has several of kind {kind.name}."
    fields.append(("table", Annotated[str, arg(help=about, metavar="TABLE")], given.table))
    about = "Show metrics elsewhere too: tensorboard, trackio, or both with a comma."
    fields.append(("track", Annotated[str, arg(help=about, metavar="BOARDS")], os.environ.get(VARIABLE, "")))
    fields += unfinished_options()
    if kind.computes:
        fields.append(device_option())
    fields.append(("config", Annotated[type(config), arg(name="")], config))
    return dataclasses.make_dataclass("Usage", fields, kw_only=True)


def unfinished_options() -> Fields:
    """What to do with unfinished work."""
    from tyro.conf import arg

    about = "Resume unfinished work though settings differ; herd.json records what changed at which step."
    anew = "Move unfinished work aside and start over."
    return [
        ("resume_with_changes", Annotated[bool, arg(help=about)], False),
        ("restart", Annotated[bool, arg(help=anew)], False),
    ]


def device_option() -> tuple[str, Any, Any]:
    """Where a stage computes: no part of its config, as it changes nothing but rounding."""
    from tyro.conf import arg

    return "device", Annotated[DeviceName | None, arg(help=DEVICE_HELP)], None


def config_of(kind: StageKind, recipe: str, table: str) -> Any:
    """The config that a recipe's table gives, or the one by default."""
    if not recipe:
        if table:
            raise HerdError(f"--table {table} is a table of a recipe: give --recipe too")
        return kind.config()()
    configs = {name: node.config for name, node in load_recipe(recipe, STAGES).items() if node.kind.name == kind.name}
    if table and table not in configs:
        raise unknown(f"table of kind {kind.name} in {recipe}:", table, configs)
    if len(configs) > 1 and not table:
        raise HerdError(f"{recipe} has several tables of kind {kind.name}: give --table, one of {', '.join(configs)}")
    return configs[table] if table else next(iter(configs.values()), kind.config()())


def do_stage(kind: StageKind, usage: Any) -> None:
    """Run the stage."""
    if world() > 1 and "parallel" not in {field.name for field in dataclasses.fields(usage.config)}:
        raise HerdError(f"herd {kind.command} works in one process, {world()} were started: run it without torchrun")
    out: Path = usage.out
    if out.exists():
        raise HerdError(f"{out} is there already: give another --out, or remove it first")
    config = with_starter(kind, usage.config)
    if kind.writes == "data" and usage.paths:
        config = from_paths(config, usage.paths)
    parents = {role: getattr(usage, role) for role in kind.reads}
    if "model" in parents:
        parents["model"] = starter_or(parents["model"])
    if kind.takes and parents["data"] is None:
        parents["data"], config = own_data(kind, usage, parents["model"], config)
    elif kind.takes and (given := [f"--{what}" for what in kind.takes if getattr(usage, what)]):
        raise Misunderstood(f"--data is given, and {given[0]} too: give one of them")
    inputs = {**{role: path for role, path in parents.items() if path is not None}, **kind.inputs(config)}
    if rank() == 0 and put_in_place(out) and not changes_since(out, config, inputs):
        print(f"wrote {out}")  # all but its name was done when it was killed
        return
    if out.exists():
        raise HerdError(f"{out} is there already: give another --out, or remove it first")
    unfinished = unfinished_mode(resume_with_changes=usage.resume_with_changes, restart=usage.restart)
    set_device(getattr(usage, "device", None))
    os.environ[VARIABLE] = usage.track
    requested_boards()  # a mistake in it is reported before anything is written
    out.parent.mkdir(parents=True, exist_ok=True)
    traceback_log.set(out.with_name(out.name + ".log"))
    run_stage(kind, config, parents, out, unfinished)
    print(f"wrote {out}")

"""The user's own files on the command line: `herd data build --from`, `herd sft --chats`, `herd pretrain --text`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from herd.commands.command import load_object
from herd.commands.stages import STAGES
from herd.config import DataConfig
from herd.core.ranks import world
from herd.errors import HerdError, Misunderstood
from herd.stages.recipe import STARTER, StageKind, with_folders
from herd.stages.runner import run_stage, run_unless_done

OWN_EPOCHS = 3
"""Passes over the user's chats where neither the option nor a recipe says how many."""


def own_options(kind: StageKind) -> list[Any]:
    """The data folder, or the user's files that one is built from beside the output."""
    from tyro.conf import arg

    about = f"Folder with the data; or give {' and '.join(f'--{what}' for what in kind.takes)}."
    fields: list[Any] = [("data", Annotated[Path | None, arg(help=about)], None)]
    for what in kind.takes:
        about = f"Files or folders of yours with {what}: a data folder is built from them, OUT-data."
        fields.append((what, Annotated[tuple[str, ...], arg(help=about)], ()))
    return fields


def from_paths(config: DataConfig, paths: Sequence[str], *, kind: str = "") -> DataConfig:
    """The config with what is found at `paths`, all of `kind` if given, beside its own sources; prints what each is
    taken for."""
    detect, notes = "herd.data.sources.detect", load_object("herd.data.sources.source:Notes")()
    found = load_object(f"{detect}:detect")(paths, notes, kind=kind)
    for line in (*load_object(f"{detect}:table")(found), *notes.lines()):
        print(line)
    fields: dict[str, Any] = load_object(f"{detect}:sources_of")(found)
    fields = {name: (*getattr(config, name), *sources) for name, sources in fields.items()}
    return dataclasses.replace(config, **fields, found_in=(*config.found_in, *paths))


def own_data(kind: StageKind, usage: Any, model: Path, config: Any) -> tuple[Path, Any]:
    """The data folder of the user's files beside the output, built with the model's tokenizer unless it is there; and
    the stage's config, with what goes without saying for such a folder."""
    given = {what: getattr(usage, what) for what in kind.takes if getattr(usage, what)}
    if kind.takes[0] not in given:
        raise Misunderstood(
            f"herd {kind.command} needs data: give --data FOLDER, or --{kind.takes[0]} with files of yours"
        )
    if world() > 1:
        build = "herd data build --from … --tokenizer MODEL"
        raise HerdError(f"--{kind.takes[0]} builds a data folder in one process, {world()} were started: {build} first")
    data = DataConfig(tokenizer=str(model))
    for what, paths in given.items():
        data = from_paths(data, paths, kind=what)
    out = usage.out.with_name(usage.out.name + "-data")
    out.parent.mkdir(parents=True, exist_ok=True)
    if run_unless_done("data", STAGES["data"], data, {}, out, run_stage):
        print(f"reused {out}: nothing has changed")
    if kind.name == "sft" and not config.max_epochs:
        print(f"max_epochs is {OWN_EPOCHS}: give --max-epochs for another number of passes over the chats")
        config = dataclasses.replace(config, max_epochs=OWN_EPOCHS)
    return out, load_object("herd.stages.dense:keep_dense")(config, model)


def starter_or(model: Path) -> Path:
    """The folder of the starter model where `model` is its name, else `model`."""
    return load_object("herd.stages.starter:named_starter")(model) if str(model) == STARTER else model


def with_starter(kind: StageKind, config: Any) -> Any:
    """The config with the starter model's folder where its tokenizer or a model is asked for by name."""
    fields = ["tokenizer"] if isinstance(config, DataConfig) else [k for k, v in kind.names.items() if v == "model"]
    for name in fields:
        value = getattr(config, name)
        if STARTER in (value if isinstance(value, tuple) else (value,)):
            config = with_folders(config, name, {STARTER: starter_or(Path(STARTER))})
    return config

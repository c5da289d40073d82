"""The stages: the one place where a stage is registered. Recipes and the command line know those of this table.

A stage is a function `(config, *parents, out) -> Path` and a config that imports without torch. Both are named by their
place, `module:name`, and imported when they are used.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from herd.commands.command import named
from herd.stages.recipe import StageKind


def call_at(place: str, *args: Any) -> Any:
    return named(place)(*args)


def stage(name: str, *, config: str, function: str, **facts: Any) -> StageKind:
    """A stage by the places of its config and its function; picklable, for a process of its own."""
    return StageKind(name=name, config=partial(named, config), function=partial(call_at, function), **facts)


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The config of a stage that has nothing to set."""


def report(_: NoSettings, *stages_and_out: Path) -> Path:
    """The report as the last stage of a run: it reads the whole run's folder."""
    out = stages_and_out[-1]
    path: Path = named("herd.evaluate.report:report")(out.parent, out)
    return path


STAGES = {
    kind.name: kind
    for kind in (
        stage(
            "data",
            config="herd.config:DataConfig",
            function="herd.stages.data:build_data",
            writes="data",
            command="data build",
            summary="Make a data folder: documents, pictures, chats, tokenizer",
            example="herd data build --recipe tiny --out runs/mine/data",
        ),
        stage(
            "vision",
            config="herd.config:VisionStageConfig",
            function="herd.stages.vision:vision",
            reads=("data",),
            writes="model",
            summary="Make a new model whose encoder knows pictures by their names",
            example="herd vision --recipe tiny --data runs/tiny/data --out runs/mine/vision",
            computes=True,
        ),
        stage(
            "pretrain",
            config="herd.config:PretrainConfig",
            function="herd.stages.pretrain:pretrain",
            reads=("model", "data"),
            writes="model",
            summary="Train a model on text and pictures together",
            example="herd pretrain runs/tiny/vision --recipe tiny --data runs/tiny/data --out runs/mine/pretrain",
            computes=True,
        ),
        stage(
            "midtrain",
            config="herd.config:MidtrainConfig",
            function="herd.stages.midtrain:midtrain",
            reads=("model", "data"),
            writes="model",
            summary="Let a model read longer and longer documents",
            example="herd midtrain runs/tiny/pretrain --data runs/tiny/data --out runs/mine/midtrain",
            computes=True,
        ),
        stage(
            "sft",
            config="herd.config:SftConfig",
            function="herd.stages.sft:sft",
            reads=("model", "data"),
            writes="model",
            summary="Teach a model to answer",
            example="herd sft runs/tiny/pretrain --recipe tiny --data runs/tiny/data --out runs/mine/sft",
            computes=True,
        ),
        stage(
            "evaluate",
            config="herd.evaluate.harness:EvaluateConfig",
            function="herd.evaluate.harness:evaluate",
            reads=("model", "data"),
            writes="evaluation",
            summary="Measure a model on what it never saw",
            example="herd evaluate runs/tiny/sft --recipe tiny --data runs/tiny/data --out runs/mine/evaluate",
            computes=True,
        ),
    )
}
REPORT = stage(
    "report",
    config="herd.commands.stages:NoSettings",
    function="herd.commands.stages:report",
    writes="report",
    summary="",
    example="",
)
"""The last stage of every run."""

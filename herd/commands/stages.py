"""The stages: the one place where a stage is registered. Recipes and the command line know those of this table.

A stage is a function `(config, *parents, out) -> Path` and a config that imports without torch. Both are named by their
place, `module:name`, and imported when they are used.
"""

from functools import partial
from pathlib import Path
from typing import Any

from herd.commands.command import load_object
from herd.config import DataConfig, DpoConfig, EvaluateConfig, GuardConfig, ReportConfig, SelectConfig, SftConfig
from herd.stages.recipe import StageKind


def call_at(place: str, *args: Any) -> Any:
    return load_object(place)(*args)


def stage(name: str, *, config: str, function: str, command: str | None = None, **facts: Any) -> StageKind:
    """A stage by the places of its config and its function; picklable, for a process of its own. Its command is its
    name if not given."""
    words = name if command is None else command
    return StageKind(
        name=name, config=partial(load_object, config), function=partial(call_at, function), command=words, **facts
    )


def report(config: ReportConfig, *stages_and_out: Path) -> Path:
    """The report as a stage of a run."""
    *stages, out = stages_and_out
    path: Path = load_object("herd.evaluate.report:report")(out.parent, out, stage=config.stage, among=stages)
    return path


def inputs_of(
    config: DataConfig | DpoConfig | EvaluateConfig | GuardConfig | SelectConfig | SftConfig,
) -> dict[str, Path]:
    """The files and folders that a config names, by what they are for."""
    return config.inputs()


ALL = (
    stage(
        "data",
        config="herd.config:DataConfig",
        function="herd.stages.data:build_data",
        inputs=inputs_of,
        writes="data",
        command="data build",
        summary="Make a data folder: documents, pictures, chats, tokenizer",
        example="herd data build --recipe tiny --out runs/mine/data",
    ),
    stage(
        "model",
        config="herd.config:NewModelConfig",
        function="herd.stages.new_model:new_model",
        reads=("data",),
        writes="model",
        summary="Make a new model: a preset's shape, or one changed from it, at random weights",
        example="herd model --preset tiny --num-experts 16 --data runs/tiny/data --out runs/mine/model",
    ),
    stage(
        "vision",
        config="herd.config:VisionStageConfig",
        function="herd.stages.vision:vision",
        reads=("model", "data"),
        inputs=inputs_of,
        names={"encoder": "model"},
        writes="model",
        summary="Train a model's vision encoder on pictures and their names",
        example="herd vision runs/tiny/model --recipe tiny --data runs/tiny/data --out runs/mine/vision",
        computes=True,
    ),
    stage(
        "pretrain",
        config="herd.config:PretrainConfig",
        function="herd.stages.pretrain:pretrain",
        reads=("model", "data"),
        takes=("text",),
        writes="model",
        summary="Train a model on text and pictures together",
        example="herd pretrain runs/tiny/vision --recipe tiny --data runs/tiny/data --out runs/mine/pretrain",
        computes=True,
    ),
    stage(
        "prune",
        config="herd.config:PruneConfig",
        function="herd.stages.prune:prune",
        reads=("model", "data"),
        writes="model",
        summary="Make a smaller model of some of a model's layers and experts",
        example="herd prune runs/tiny/pretrain --data runs/tiny/data --num-experts 4 --out runs/mine/prune",
        computes=True,
    ),
    stage(
        "teach",
        config="herd.config:TeachConfig",
        function="herd.stages.teach:teach",
        reads=("model", "data"),
        writes="teacher",
        summary="Have a teacher read what its students will be trained on",
        example="herd teach runs/tiny/pretrain --data runs/tiny/data --out runs/mine/teach",
        computes=True,
    ),
    stage(
        "distill",
        config="herd.config:DistillConfig",
        function="herd.stages.distill:distill",
        reads=("model", "data", "teacher"),
        check=partial(call_at, "herd.config.distill:check_taught"),
        writes="model",
        summary="Train a model on text, pictures and what a teacher says of them",
        example="herd distill runs/tiny/vision --data runs/tiny/data --teacher runs/mine/teach --out runs/mine/distill",
        computes=True,
    ),
    stage(
        "midtrain",
        config="herd.config:MidtrainConfig",
        function="herd.stages.midtrain:midtrain",
        reads=("model", "data"),
        takes=("text",),
        writes="model",
        summary="Train a model on longer documents",
        example="herd midtrain runs/tiny/pretrain --data runs/tiny/data --out runs/mine/midtrain",
        computes=True,
    ),
    stage(
        "select",
        config="herd.config:SelectConfig",
        function="herd.stages.select:select",
        reads=("data",),
        inputs=inputs_of,
        names={"by": "model", "teacher": "model", "judge": "model"},
        positional="data",
        writes="selection",
        summary="Find the hardest chats that can be learnt, to fine-tune on",
        example="herd select runs/tiny/data --by runs/tiny/sft --keep 0.5 --out runs/mine/selection",
        computes=True,
    ),
    stage(
        "sft",
        config="herd.config:SftConfig",
        function="herd.stages.sft:sft",
        reads=("model", "data"),
        inputs=inputs_of,
        names={"selection": "selection"},
        takes=("chats", "text"),
        writes="model",
        summary="Fine-tune a model on chats",
        example="herd sft runs/tiny/pretrain --recipe tiny --data runs/tiny/data --out runs/mine/sft",
        computes=True,
    ),
    stage(
        "rl",
        config="herd.config:RlConfig",
        function="herd.stages.rl:rl",
        reads=("model", "data"),
        inputs=inputs_of,
        names={"teacher": "model", "guard": "guard"},
        writes="model",
        summary="Train a model on what its own answers are worth",
        example="herd rl runs/tiny/sft --data runs/tiny/data --environments digits --out runs/mine/rl",
        computes=True,
    ),
    stage(
        "dpo",
        config="herd.config:DpoConfig",
        function="herd.stages.dpo:dpo",
        reads=("model",),
        inputs=inputs_of,
        names={"data": "data", "run": "model"},
        writes="model",
        summary="Train a model on pairs of better and worse answers",
        example="herd dpo runs/tiny/sft --pairs pairs.jsonl --out runs/mine/dpo",
        computes=True,
    ),
    stage(
        "guard",
        config="herd.config:GuardConfig",
        function="herd.guard.train:train_guard",
        reads=("model",),
        inputs=inputs_of,
        names={"pictures": "data", "mean_with": "guard"},
        writes="guard",
        command="guard train",
        summary="Make a guard of a model: without its routed experts, it answers safe or unsafe",
        example="herd guard train runs/tiny/sft --out runs/mine/guard",
        computes=True,
    ),
    stage(
        "evaluate",
        config="herd.config:EvaluateConfig",
        function="herd.evaluate.harness:evaluate",
        reads=("model", "data"),
        optional=("data",),
        inputs=inputs_of,
        writes="evaluation",
        summary="Evaluate a model on held-out data",
        example="herd evaluate runs/tiny/sft --recipe tiny --data runs/tiny/data --out runs/mine/evaluate",
        computes=True,
    ),
    stage(
        "report",
        config="herd.config:ReportConfig",
        function="herd.commands.stages:report",
        reads_run=True,
        writes="report",
        command="",  # `herd report` takes any run's folder, in work too
    ),
)
STAGES = {kind.name: kind for kind in ALL}

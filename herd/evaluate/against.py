"""One run beside an earlier one: what was set otherwise (in the stage, and in the model that it wrote), the figures at
the end, the curves in one picture.

Stages are paired by their names, else by what they are (`pretrain`, `sft`, …); two single stages of any kind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.core.files import read_json
from herd.evaluate.charts import line_chart
from herd.evaluate.curves import curve
from herd.evaluate.load import expert_counts, load_facts
from herd.evaluate.run_folder import StageFolder, config_json

END = 0.05
"""Share of the steps, at the end, whose mean is a final figure."""
TITLES = {
    "tokens_per_s": "tokens per second",
    "lr_factor": "factor of the learning rates",
    "grad_norm": "gradient norm",
    "max_vio": "MaxVio of a step",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of both runs; None where one has none."""

    name: str
    ours: float | None
    theirs: float | None
    better: int = 0
    """-1: less is better, 1: more is, 0: neither."""

    @property
    def verdict(self) -> str:
        """`right` where ours is better, `wrong` where it is worse, else nothing: classes of the page."""
        if self.ours is None or self.theirs is None or self.ours == self.theirs or not self.better:
            return ""
        return "right" if (self.ours > self.theirs) == (self.better > 0) else "wrong"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A stage of both runs."""

    name: str
    settings: list[tuple[str, Any, Any]]
    """Fields that differ of the stage's config, and of the model's as `model.…`: name, ours, theirs; None where one has
    no such field."""
    num_shapes: int
    """How many of the two have a model's config.json."""
    figures: list[Figure]
    charts: list[str]


def compare(ours: Sequence[StageFolder], theirs: Sequence[StageFolder], names: tuple[str, str]) -> list[Pair]:
    """The stages that both runs have."""
    if len(ours) == len(theirs) == 1:
        return [_pair(ours[0], theirs[0], names)]
    named, kinds = {stage.name: stage for stage in theirs}, {stage.lineage["stage"]: stage for stage in theirs}
    pairs = [(one, named.get(one.name) or kinds.get(one.lineage["stage"])) for one in ours]
    return [_pair(one, other, names) for one, other in pairs if other is not None]


def _pair(one: StageFolder, other: StageFolder, names: tuple[str, str]) -> Pair:
    both = metric_names(one) & metric_names(other)
    charts = []
    for key in ("loss", *kinds(one), "lr_factor", "grad_norm", *speeds(one), "max_vio"):
        if key in both:
            curves = {name: curve(stage.metrics, key) for name, stage in zip(names, (one, other), strict=True)}
            charts.append(
                line_chart(TITLES.get(key, key.replace("_", " ")), curves, from_zero=not key.endswith("loss"))
            )
    shapes = [shape for stage in (one, other) if (shape := config_json(stage)) is not None]
    settings = list(compare_settings(one.lineage["config"], other.lineage["config"]))
    return Pair(
        name=one.name,
        settings=settings + (list(compare_settings(shapes[0], shapes[1], "model.")) if len(shapes) == 2 else []),
        num_shapes=len(shapes),
        figures=figures(one, other),
        charts=[chart for chart in charts if chart],
    )


def metric_names(stage: StageFolder) -> set[str]:
    return {key for line in stage.metrics for key in line}


def kinds(stage: StageFolder) -> list[str]:
    return sorted(key for key in metric_names(stage) if key.endswith("_loss"))


def speeds(stage: StageFolder) -> list[str]:
    return sorted(key for key in metric_names(stage) if key.endswith("_per_s"))


def compare_settings(
    one: Mapping[str, Any], other: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Fields whose values differ, by their dotted names."""
    for key in sorted({*one, *other}):
        mine, yours = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(yours, Mapping):
            yield from compare_settings(mine, yours, f"{above}{key}.")
        elif mine != yours:
            yield f"{above}{key}", mine, yours


def figures(one: StageFolder, other: StageFolder) -> list[Figure]:
    """Final figures side by side."""
    found = [_facts(stage) for stage in (one, other)]
    names = dict.fromkeys([*found[0], *found[1]])
    nothing = (None, 0)
    rows = []
    for name in names:
        (mine, better), (yours, better_too) = (facts.get(name, nothing) for facts in found)
        rows.append(Figure(name=name, ours=mine, theirs=yours, better=better or better_too))
    return rows


def _facts(stage: StageFolder) -> dict[str, tuple[float | None, int]]:
    facts: dict[str, tuple[float | None, int]] = {}
    if stage.metrics:
        facts["steps"] = (len(stage.metrics), 0)
    for key in ("loss", *kinds(stage)):
        facts[f"{key.replace('_', ' ')}, at the end"] = (_end(stage, key), -1)
    for key in speeds(stage):
        values = [value for _, value in curve(stage.metrics, key)]
        facts[f"{key.replace('_per_s', ' per second')}, median"] = (float(np.median(values)) if values else None, 1)
    steps, count_TLE = expert_counts(stage.metrics)
    if steps:
        load = load_facts(count_TLE)
        facts["MaxVio after the warm-up, over all steps"] = (load["vio"], -1)
        facts["experts without a token after the warm-up"] = (load["dead"], -1)
    facts |= {"seconds": (stage.lineage.get("time_s"), -1), "peak bytes": (stage.lineage.get("peak_memory_bytes"), -1)}
    facts["parameters"] = (stage.lineage.get("parameters", {}).get("total"), 0)
    if (results := stage.path / "results.json").is_file():
        facts |= headlines(read_json(results))
    return {name: fact for name, fact in facts.items() if fact[0] is not None}


def _end(stage: StageFolder, key: str) -> float | None:
    points = curve(stage.metrics, key)
    last = points[-max(1, round(END * len(points))) :]
    return float(np.mean([value for _, value in last])) if last else None


def headlines(results: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """The chief figures of an evaluation, of the sections that it has: value, and whether less (-1) or more (1, a
    share) is better. What was asked of nothing has none."""
    facts: dict[str, tuple[float | None, int]] = {}
    if "bits_per_byte" in results:
        facts["bits per byte"] = (results["bits_per_byte"]["all"]["model"], -1)
    if "naming" in results:
        for split, ways in results["naming"]["splits"].items():
            for way, table in ways.items():
                if table["all"]:
                    facts[f"naming, {split}, {way}: right"] = (table["all"]["share"], 1)
        facts["answers in the language asked"] = (results["naming"]["language"]["all"]["share"], 1)
    if "chat_loss" in results:
        facts["loss on held-out chats, nats a token"] = (results["chat_loss"]["nats"], -1)
    if "tasks" in results:
        facts |= {f"{row['kind']}: right": (row["share"], 1) for row in results["tasks"]["rows"]}
    if "cyber" in results:
        for row in results["cyber"]["rows"]:  # a challenge solved is neither good nor bad
            facts[f"{row['benchmark']}: {row['hits_are']}"] = (row["share"], 0 if "solved" in row["hits_are"] else -1)
    return {name: (value, better) for name, (value, better) in facts.items() if value is not None}

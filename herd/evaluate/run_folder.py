"""The contents of a run's folder: its stages with lineage and curves, the model's size, what is still in work."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.core.files import cache_folder, read_json, work_folder
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.errors import HerdError, unknown

PARTIAL = ".partial"
EVALUATIONS = ("evaluate", "evaluate-long", "evaluate-cyber")
ASIDE = re.compile(r".*\.\d+(\.partial)?")
"""Names of earlier folders of a stage, finished or not, that were moved aside."""


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """A stage, finished or in work. Of one in work the lineage has the config and the hashes of its parents only."""

    path: Path
    lineage: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(PARTIAL)

    @property
    def finished(self) -> bool:
        return self.path.suffix != PARTIAL


def read_stages(run: Path) -> list[StageFolder]:
    """The stages of a run, or the one stage that `run` is: those finished in the order in which they ended, then those
    in work. Reports and what was moved aside are left out."""
    if not run.is_dir() and work_folder(run).is_dir():
        run = work_folder(run)
    if not run.is_dir():
        raise HerdError(f"{run} is not a folder: give the folder of a run, such as runs/tiny")
    inside = [folder for folder in sorted(run.iterdir()) if not ASIDE.fullmatch(folder.name)]
    found = [stage for folder in [run, *inside] if (stage := _read(folder)) is not None]
    if not found:
        raise HerdError(f"{run} has no stage, finished or in work: give the folder of a run, such as runs/tiny")
    return sorted(found, key=lambda stage: (not stage.finished, stage.lineage.get("finished", ""), stage.name))


def _read(folder: Path) -> StageFolder | None:
    metrics = folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.is_file() else []
    if folder.suffix == PARTIAL:
        request = folder / ".request.json"
        begun = read_json(request) if request.is_file() else {}
        if not lines:
            return None
        parents = {role: {"path": "", "hash": digest} for role, digest in begun.get("parents", {}).items()}
        lineage = {"stage": folder.stem, "config": begun.get("config", {}), "parents": parents}
        return StageFolder(path=folder, lineage=lineage, metrics=lines)
    if not (folder / "herd.json").is_file() or (lineage := read_lineage(folder)).get("stage") == "report":
        return None
    return StageFolder(path=folder, lineage=lineage, metrics=lines)


def stages_leading_to(stages: Sequence[StageFolder], name: str) -> list[StageFolder]:
    """The stage called `name`, those that its model was made from, and its evaluations, as far as they are there."""
    named = [one for one in stages if one.name == name]
    if not named:
        raise unknown("stage", name, (one.name for one in stages))
    line = {name}
    while more := {one.name for one in stages for of in stages if of.name in line and _is_parent(of, one)} - line:
        line |= more
    return [one for one in stages if one.name in line or evaluated_model(one, stages) == name]


def _is_parent(stage: StageFolder, parent: StageFolder) -> bool:
    return parent.lineage.get("hash") in {known["hash"] for known in stage.lineage["parents"].values()}


def evaluated_model(stage: StageFolder, stages: Sequence[StageFolder]) -> str | None:
    """The stage whose model an evaluation measured, the path of a folder, or an adopted one's name; None if it is
    no evaluation."""
    model = stage.lineage["parents"].get("model")
    if stage.lineage.get("stage") not in EVALUATIONS or model is None:
        return None
    names = [one.name for one in stages if one.lineage.get("hash") == model["hash"]]
    path = Path(model["path"])
    if path.name in names or (not names and path.parent == cache_folder() / "models"):
        return path.name
    return next(iter(names), str(path))


def unfinished(run: Path) -> list[str]:
    """Stages that were started and have not finished."""
    begun = [path for path in run.glob(f"*{PARTIAL}") if not ASIDE.fullmatch(path.name)]
    return sorted(path.stem for path in begun if path.stem != "report")


def config_json(stage: StageFolder) -> dict[str, Any] | None:
    """The config.json of the model that a stage wrote, of an adapter that of its base; None where it wrote none, or has
    not yet."""
    base = stage.lineage.get("adapter", {}).get("base", {}).get("path")
    path = (stage.path if base is None else Path(base)) / "config.json"
    return dict(read_json(path)) if path.is_file() else None


def model_facts(stage: StageFolder) -> dict[str, int] | None:
    """Counts of parameters and the shape of the model that a stage wrote; None where it wrote none."""
    config = config_json(stage)
    if "parameters" not in stage.lineage or config is None:
        return None
    config = config.get("text_config", config)  # a model of text alone has its fields at the top
    return {
        **stage.lineage["parameters"],
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "experts": config["num_local_experts"],
        "vocabulary": config["vocab_size"],
    }


def machine() -> str:
    """The processor, cores and memory of this machine, as far as Linux reports them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [f"{cores} cores"]
    try:
        facts = Path("/proc/cpuinfo").read_text().splitlines()
        words += [next(line.split(":", 1)[1].strip() for line in facts if line.startswith("model name"))]
        memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        words += [f"{int(memory.split()[1]) / 2**20:.0f} GiB memory"]
    except (OSError, StopIteration):
        pass
    return ", ".join(words)

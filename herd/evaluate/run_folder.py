"""What stands in a run's folder: its stages with lineage and curves, the model's size, what is still in work."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.core.errors import HerdError
from herd.core.files import read_json
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """One finished stage."""

    path: Path
    lineage: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.path.name


def read_stages(run: Path) -> list[StageFolder]:
    """The finished stages of a run in the order in which they ended, reports aside."""
    if not run.is_dir():
        raise HerdError(f"{run} is not a folder: give the folder of a run, such as runs/tiny")
    folders = [folder for folder in [run, *sorted(run.iterdir())] if (folder / "herd.json").is_file()]
    stages = []
    for folder in folders:
        lineage = read_lineage(folder)
        if folder.suffix != ".partial" and lineage.get("stage") != "report":
            metrics = folder / "metrics.jsonl"
            stages.append(
                StageFolder(path=folder, lineage=lineage, metrics=read_metrics(metrics) if metrics.exists() else [])
            )
    if not stages:
        raise HerdError(f"{run} has no finished stage: give the folder of a run, such as runs/tiny")
    return sorted(stages, key=lambda stage: (stage.lineage.get("finished", ""), stage.name))


def unfinished(run: Path) -> list[str]:
    """Stages that were begun and not ended."""
    return sorted(path.stem for path in run.glob("*.partial") if path.stem != "report")


def model_facts(stage: StageFolder) -> dict[str, int] | None:
    """Counts of parameters and the shape of the model that a stage wrote; None where it wrote none."""
    path = stage.path / "config.json"
    if "parameters" not in stage.lineage or not path.is_file():
        return None
    config = read_json(path)["text_config"]
    return {
        **stage.lineage["parameters"],
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "experts": config["num_local_experts"],
        "vocabulary": config["vocab_size"],
    }


def machine() -> str:
    """The processor, cores and memory of this machine, as far as Linux tells them."""
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

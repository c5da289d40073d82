"""Small stages for tests of recipes, and a run of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.stages.recipe import StageKind, load_recipe
from herd.stages.runner import run_recipe, run_stage
from herd.stages.unfinished import Unfinished


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 3
    share: float = 0.5
    fast: bool = True
    languages: tuple[str, ...] = ("en",)
    rule: Literal["muon", "adamw"] = "muon"
    limit: int | None = None
    inner: Inner = field(default_factory=lambda: Inner(rate=0.7))

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise HerdError(f"steps={self.steps} is negative")


@dataclass(frozen=True, kw_only=True)
class Needy:
    path: str


def write_stage(config: Settings, *folders: Path) -> Path:
    """A stage whose file depends on its steps only, not on the share."""
    *parents, out = folders
    roles = {"data": "text"}
    stage = Stage(out.name, out, config=config, parents={roles.get(one.name, "model"): one for one in parents})
    (stage.work / "file").write_text(str(config.steps))
    return stage.finish()


def kinds() -> dict[str, StageKind]:
    common = {"config": lambda: Settings, "function": write_stage}
    every = [
        StageKind(name="data", writes="text", **common),
        StageKind(name="train", reads=("text",), writes="model", **common),
        StageKind(name="talk", reads=("model",), writes="talker", **common),
    ]
    return {kind.name: kind for kind in every}


def recipe(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def run(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Run a recipe; what was said of each stage."""
    run_recipe(load_recipe(recipe(folder, text), kinds()), folder / "run")
    reported = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1] for words in reported if words[1] in {"done", "reused"}}


def run_here(unfinished: Unfinished, kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path) -> None:
    """In place of `herd.commands.run.run_apart`: the stage in this process, as a new one takes seconds to begin."""
    run_stage(kind, config, parents, out, unfinished)


ALL = "[data]\n[train]\n[talk]\n"


LIFE = "[data]\n[model]\n[vision]\n[pretrain]\n"

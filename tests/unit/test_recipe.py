"""herd.stages.recipe: what a recipe may say, and which stages run again after what."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from herd.core.errors import HerdError
from herd.core.files import partial
from herd.core.lineage import Stage
from herd.stages.recipe import StageKind, load_recipe, make_config, recipe_path, run_recipe


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
    kind: Literal["muon", "adamw"] = "muon"
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
    roles = {"data": "text", "train": "model"}
    stage = Stage(out.name, out, config=config, parents={roles[parent.name]: parent for parent in parents})
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
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1] for words in told if words[1] in {"done", "reused"}}


def test_values_take_the_types_of_their_fields(tmp_path: Path):
    text = """
    [data]
    steps = 7
    share = 1
    fast = false
    languages = ["de", "fr"]
    kind = "adamw"
    limit = 5
    [data.inner]
    betas = [0, 1]
    """
    config = load_recipe(recipe(tmp_path, text), kinds())["data"].config
    assert config == Settings(
        steps=7,
        share=1.0,
        fast=False,
        languages=("de", "fr"),
        kind="adamw",
        limit=5,
        inner=Inner(rate=0.7, betas=(0.0, 1.0)),  # the rate as the stage has it, not as Inner would
    )
    assert type(config.share) is float


def test_a_count_may_be_written_short(tmp_path: Path):
    config = load_recipe(recipe(tmp_path, '[data]\nsteps = "200K"\nlimit = "1M"\n'), kinds())["data"].config
    assert (config.steps, config.limit) == (204_800, 1_048_576)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[dta]", r"unknown table in .*own\.toml: 'dta', did you mean 'data'"),
        ("[data]\nstep = 3", r"unknown key in .*own\.toml \[data\]: 'step', did you mean 'steps'"),
        ("[data.inner]\nrat = 3", r"unknown key in .*own\.toml \[data\] inner: 'rat', did you mean 'rate'"),
        ('[data]\nsteps = "3"', r"own\.toml \[data\] steps = '3' must be int, it is str"),
        ('[data]\nsteps = "3.5K"', r"\[data\] steps = '3\.5K' is not a whole number: write it as 8192"),
        ("[data]\nsteps = true", r"\[data\] steps = True must be int, it is bool"),
        ("[data]\nsteps = 3.5", r"\[data\] steps = 3\.5 must be int, it is float"),
        ("[data]\nfast = 1", r"\[data\] fast = 1 must be bool, it is int"),
        ("[data]\nlimit = 1.5", r"\[data\] limit = 1\.5 must be int, it is float"),
        ('[data]\nlanguages = "de"', r"\[data\] languages = 'de' must be tuple\[str, \.\.\.\], it is str"),
        ("[data]\nlanguages = [1]", r"\[data\] languages = 1 must be str, it is int"),
        ("[data.inner]\nbetas = [1]", r"\[data\] inner betas = \[1\] must be tuple\[float, float\], it is list"),
        ("[data]\ninner = 3", r"\[data\] inner = 3 must be Inner, it is int"),
        ('[data]\nkind = "adam"', r"\[data\] kind = 'adam', did you mean 'adamw'"),
        ("[data]\nkind = 3", r"\[data\] kind = '3', known: adamw, muon"),
        ("[data]\nsteps = -1", r"own\.toml \[data\]: steps=-1 is negative"),
        ("data = 3", r"own\.toml: data = 3 stands alone"),
        ("[data", r"own\.toml is not valid TOML: "),
        ("[train]", r"\[train\] reads a text folder and no table before it writes one: add \[data\]"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_value(tmp_path: Path, text: str, told: str):
    with pytest.raises(HerdError, match=told) as error:
        load_recipe(recipe(tmp_path, text), kinds())
    assert "\n" not in str(error.value)


def test_a_field_that_must_be_said_is_missed():
    with pytest.raises(HerdError, match=r"\[needy\] lacks path"):
        make_config(Needy, {}, where="[needy]")


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path):
    assert recipe_path("tiny").name == "tiny.toml"
    with pytest.raises(HerdError, match="unknown recipe 'tinny', did you mean 'tiny'"):
        recipe_path("tinny")
    with pytest.raises(HerdError, match=r"no recipe at .*nowhere\.toml"):
        recipe_path(str(tmp_path / "nowhere.toml"))
    assert recipe_path(recipe(tmp_path, "")) == tmp_path / "own.toml"


ALL = "[data]\n[train]\n[talk]\n"


def test_what_stands_is_reused_and_what_changed_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path, ALL, capsys) == {"data": "done", "train": "done", "talk": "done"}
    assert run(tmp_path, ALL, capsys) == {"data": "reused", "train": "reused", "talk": "reused"}
    # Another config in the middle, another file from it: the stages from there on.
    changed = "[data]\n[train]\nsteps = 4\n[talk]\n"
    assert run(tmp_path, changed, capsys) == {"data": "reused", "train": "done", "talk": "done"}
    # Another config, but the same file from it: nothing after it has to change.
    same = "[data]\nshare = 0.25\n[train]\nsteps = 4\n[talk]\n"
    assert run(tmp_path, same, capsys) == {"data": "done", "train": "reused", "talk": "reused"}
    # A default that is said aloud is the same config.
    said = same.replace("[talk]", "[talk]\nsteps = 3")
    assert run(tmp_path, said, capsys) == {"data": "reused", "train": "reused", "talk": "reused"}


def test_a_stage_that_runs_again_leaves_the_older_folder_under_a_name_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path, ALL, capsys)
    for steps in (4, 5):
        run(tmp_path, f"[data]\n[train]\nsteps = {steps}\n[talk]\n", capsys)
    folders = [tmp_path / "run" / name for name in ("train", "train.1", "train.2")]
    assert [(folder / "file").read_text() for folder in folders] == ["5", "3", "4"]
    assert not list((tmp_path / "run").glob("*.old"))


def test_a_setting_that_a_later_herd_added_or_dropped_makes_nothing_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path, ALL, capsys)
    path = tmp_path / "run" / "train" / "herd.json"
    lineage = json.loads(path.read_text())
    del lineage["config"]["share"], lineage["config"]["inner"]["rate"]
    lineage["config"] |= {"dropped": 3}
    path.write_text(json.dumps(lineage))
    assert run(tmp_path, ALL, capsys) == {"data": "reused", "train": "reused", "talk": "reused"}
    # Where it is not the default that is asked for, it was made without.
    assert run(tmp_path, f"{ALL}steps = 3\n[train.inner]\nrate = 0.5\n", capsys)["train"] == "done"


def test_a_folder_that_is_not_herds_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "thesis").write_text("a user's")
    with pytest.raises(HerdError, match=r"run/data is there and no folder of Herd's"):
        run(tmp_path, ALL, capsys)
    assert (tmp_path / "run" / "data" / "thesis").exists()


LIFE = "[data]\n[vision]\n[pretrain]\n[evaluate]\n"


@pytest.mark.parametrize(
    ("tables", "models"),
    [
        ("", {"pretrain": "vision", "evaluate": "pretrain"}),
        ("[sft]\n", {"pretrain": "vision", "sft": "pretrain", "evaluate": "sft"}),
        ("[midtrain]\n[sft]\n", {"pretrain": "vision", "midtrain": "pretrain", "sft": "midtrain", "evaluate": "sft"}),
        (
            '[midtrain]\n[sft]\nfrom = "pretrain"\n',
            {"pretrain": "vision", "midtrain": "pretrain", "sft": "pretrain", "evaluate": "sft"},
        ),
    ],
)
def test_a_stage_begins_with_the_model_before_it_or_with_the_one_it_names(
    tmp_path: Path, tables: str, models: dict[str, str]
):
    from herd.commands.stages import STAGES

    nodes = load_recipe(recipe(tmp_path, LIFE + tables), STAGES)
    assert {name: node.parents["model"] for name, node in nodes.items() if "model" in node.parents} == models
    assert {node.parents.get("data", "data") for node in nodes.values()} == {"data"}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('[sft]\nfrom = "midtrian"', r"unknown table in .* \[sft\] from = 'midtrian', did you mean 'midtrain'"),
        ("[sft]\nfrom = 3", r"unknown table in .* \[sft\] from = '3', known: midtrain, pretrain, vision"),
        ('[sft]\nfrom = "sft"', r"\[sft\] from = 'sft': \[sft\] runs later, name one of: vision, pretrain, midtrain"),
        ('[sft]\nfrom = "evaluate"', r"\[sft\] from = 'evaluate': \[evaluate\] runs later"),
        ('[sft]\nfrom = "data"', r"\[sft\] from = 'data': \[data\] writes no model"),
    ],
)
def test_a_parent_that_cannot_be_is_refused_in_words(tmp_path: Path, table: str, told: str):
    from herd.commands.stages import STAGES

    with pytest.raises(HerdError, match=told):
        load_recipe(recipe(tmp_path, f"{LIFE}[midtrain]\n{table}\n"), STAGES)


def test_a_stage_without_a_model_takes_no_from(tmp_path: Path):
    with pytest.raises(HerdError, match=r"\[train\] from = 'data': train begins with no model, remove the key"):
        load_recipe(recipe(tmp_path, '[data]\n[train]\nfrom = "data"\n'), kinds())


def test_a_stage_that_other_code_made_is_reused_and_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, ALL, capsys)
    path = tmp_path / "run" / "train" / "herd.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"herd_version": "0.0.1", "commit": "abc"}))
    run_recipe(load_recipe(recipe(tmp_path, ALL), kinds()), tmp_path / "run")
    data, train, talk = capsys.readouterr().out.splitlines()
    assert data == "data      reused (0 s)"
    assert train.startswith("train     reused (0 s), made by herd 0.0.1 (abc), this is ")
    assert train.endswith(f": remove {path.parent} to make it again")
    assert talk == "talk      reused (0 s)"


def test_a_stage_that_is_not_in_the_recipe_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path, "[data]\n", capsys) == {"data": "done"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data"]


def test_a_finished_folder_holds_nothing_of_the_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, "[data]\n", capsys)
    assert sorted(path.name for path in (tmp_path / "run" / "data").iterdir()) == ["file", "herd.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from test_recipe import Settings
from herd.core.lineage import Stage
from herd.stages.recipe import Node, StageKind, run_recipe

def stopped(config, out):
    stage = Stage("data", out, config=config, parents={})
    (stage.work / "half").write_text("1")
    stage.keep_time()
    os.kill(os.getpid(), signal.SIGKILL)

kind = StageKind(name="data", config=lambda: Settings, function=stopped, writes="text")
run_recipe({"data": Node(kind=kind, config=Settings(), parents={})}, Path("run"))
"""


def test_a_killed_stage_goes_on_and_under_another_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    work = partial(tmp_path / "run" / "data")
    assert (work / "half").exists()

    def go(text: str) -> set[str]:
        seen: set[str] = set()

        def look(config: Settings, out: Path) -> Path:
            seen.update(path.name for path in partial(out).iterdir())
            raise KeyboardInterrupt

        kind = StageKind(name="data", config=lambda: Settings, function=look, writes="text")
        with pytest.raises(KeyboardInterrupt):
            run_recipe(load_recipe(recipe(tmp_path, text), {"data": kind}), tmp_path / "run")
        return seen

    assert "half" in go("[data]\n")
    with pytest.raises(HerdError, match=r"begun with other settings: steps 3 → 9\. Give the old ones"):
        go("[data]\nsteps = 9\n")
    assert (work / "half").exists()


def test_a_damaged_lineage_stops_the_run_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, ALL, capsys)
    (tmp_path / "run" / "train" / "herd.json").write_text("{")
    with pytest.raises(HerdError, match=r"train/herd\.json is not valid JSON"):
        run(tmp_path, ALL, capsys)


def test_the_recipes_of_the_house_fit_its_stages():
    from herd.commands.stages import STAGES

    for path in recipe_path("tiny").parent.glob("*.toml"):
        assert load_recipe(path.stem, STAGES), path

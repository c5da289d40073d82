"""herd.stages.runner: which stages of a recipe run again after what."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_world import ALL, Settings, kinds, recipe, run

from herd.commands.stages import STAGES
from herd.core.files import work_folder
from herd.core.lineage import read_lineage
from herd.errors import HerdError
from herd.stages.recipe import StageKind, load_recipe
from herd.stages.runner import run_recipe


def test_what_is_finished_is_reused_and_what_changed_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
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


def test_a_folder_of_the_users_is_a_parent_and_what_is_in_it_decides_what_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/config.json").write_text("1")
    text = '[talk]\nfrom = "mine"\n'
    assert run(tmp_path, text, capsys) == {"talk": "done"}
    assert run(tmp_path, text, capsys) == {"talk": "reused"}
    Path("mine/config.json").write_text("2")
    assert run(tmp_path, text, capsys) == {"talk": "done"}
    assert read_lineage(Path("run/talk"))["parents"]["model"]["path"] == "mine"


def test_branches_run_from_one_stage_and_a_change_in_one_leaves_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = '[data]\n[train]\n[talk]\n[stage.talk-b]\nkind = "talk"\nfrom = "train"\n'
    assert run(tmp_path, text, capsys) == {"data": "done", "train": "done", "talk": "done", "talk-b": "done"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "train", "talk", "talk-b"}
    reused = {"data": "reused", "train": "reused", "talk": "reused", "talk-b": "done"}
    assert run(tmp_path, text + "steps = 9\n", capsys) == reused
    hashes = {name: read_lineage(tmp_path / "run" / name)["parents"]["model"]["hash"] for name in ("talk", "talk-b")}
    assert set(hashes.values()) == {read_lineage(tmp_path / "run" / "train")["hash"]}


def test_a_stage_that_other_code_made_is_reused_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
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
from recipe_world import Settings
from herd.core.lineage import Stage, read_lineage
from herd.stages.recipe import Node, StageKind
from herd.stages.runner import run_recipe

def stopped(config, out):
    stage = Stage("data", out, config=config, parents={})
    (stage.work / "half").write_text("1")
    stage.save_time()
    os.kill(os.getpid(), signal.SIGKILL)

kind = StageKind(name="data", config=lambda: Settings, function=stopped, writes="text")
run_recipe({"data": Node(kind=kind, config=Settings(), parents={})}, Path("run"))
"""


def test_a_killed_stage_resumes_and_under_another_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    work = work_folder(tmp_path / "run" / "data")
    assert (work / "half").exists()

    def go(text: str) -> set[str]:
        seen: set[str] = set()

        def look(config: Settings, out: Path) -> Path:
            seen.update(path.name for path in work_folder(out).iterdir())
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


def test_a_teacher_of_shorter_pieces_is_refused_before_anything_runs(tmp_path: Path) -> None:
    life = "[data]\n[model]\n[pretrain]\n[teach]\ncontext = 256\n[distill]\n"
    with pytest.raises(HerdError, match=r"\[distill\] context=512 of the student is longer than context=256"):
        run_recipe(load_recipe(recipe(tmp_path, life), STAGES), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""A run is killed, or the disk is full: the same command resumes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recipe_world import run_here

from herd.cli import main
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.train.checkpoint import candidates

MODEL = """
[model]
text_only = true
dim = 32
num_layers = 2
nope_every = 2
num_heads = 2
num_kv_heads = 1
head_dim = 16
expert_ffn_dim = 32
"""
VISION = """
[vision]
num_views = 64
batch_pictures = 32
checkpoint.every_s = 0.0
"""
PRETRAIN = """
[pretrain]
num_tokens = 8000
batch_tokens = 400
context = 128
checkpoint.every_s = 0.0
"""


def write_recipe(path: Path, data: Path, tables: str) -> Path:
    """A recipe that finds its data stage done where the folder `data` was copied to."""
    config = {key: value for key, value in read_lineage(data)["config"].items() if isinstance(value, (int, float, str))}
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    path.write_text(f"[data]\n{settings}{tables}")
    return path


def begin(recipe: Path, run: Path) -> "subprocess.Popen[str]":
    """`herd run` as the leader of its own process group."""
    command = [sys.executable, "-m", "herd", "run", str(recipe), "--out", str(run)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ
    )


def go(recipe: Path, run: Path) -> tuple[int, list[str], str]:
    """Exit code of a whole `herd run`, its words about each stage, and its stderr without progress bars."""
    process = begin(recipe, run)
    found = words(*process.communicate(timeout=120))
    return process.returncode, *found


def go_here(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """The same in this process, as a new one takes seconds to begin."""
    capsys.readouterr()
    code = main(["run", str(recipe), "--out", str(run)])
    return code, *words(*capsys.readouterr())


def words(out: str, err: str) -> tuple[list[str], str]:
    reported = [" ".join(line.split()[:2]) for line in out.splitlines() if " s)" in line]
    return reported, "\n".join(line for line in err.splitlines() if "━" not in line and line)


def weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def test_a_run_killed_in_training_resumes_to_the_same_bits(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.commands.run.run_apart", run_here)  # not in the process that is killed
    recipe = write_recipe(tmp_path / "own.toml", tiny_data, MODEL + PRETRAIN)
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(tiny_data, run / "data")
    work = run / "pretrain.partial"
    process = begin(recipe, run)
    while not candidates(work / "state"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = int(candidates(work / "state")[0].name.removeprefix("step-"))
    before = read_metrics(work / "metrics.jsonl")[:resumed]
    assert not (run / "pretrain").exists()

    vanished = (run / "data" / "text.parquet").rename(tmp_path / "text.parquet")
    code, reported, err = go_here(recipe, run, capsys)
    assert (code, reported) == (1, ["data reused", "model reused"])
    assert f"{run}/data/text.parquet is missing" in err and len(err.splitlines()) == 1
    vanished.rename(run / "data" / "text.parquet")

    code, reported, err = go_here(recipe, run, capsys)
    lines = read_metrics(run / "pretrain" / "metrics.jsonl")
    assert (code, err) == (0, f"pretrain: resumes after step {resumed} of {len(lines)}")
    assert reported == ["data reused", "model reused", "pretrain done", "report done"]
    assert 0 < resumed < len(lines)
    assert lines[:resumed] == before  # with their times: what the first attempt did was not done again
    assert [line["step"] for line in lines] == list(range(len(lines)))

    for stage in "data", "model":
        shutil.copytree(run / stage, whole / stage)
    code, reported, err = go_here(recipe, whole, capsys)
    assert (code, reported[:2]) == (0, ["data reused", "model reused"]), err
    assert weights(run / "pretrain") == weights(whole / "pretrain") != []
    assert read_lineage(run / "pretrain")["hash"] == read_lineage(whole / "pretrain")["hash"]


def test_sigterm_saves_and_stops_with_a_code_of_its_own(tiny_data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    tables = f'{VISION}from = "{tiny_folder}"\n'.replace("every_s = 0.0", "every_s = 1000.0").replace(
        "num_views = 64", "num_views = 6400"
    )
    recipe = write_recipe(tmp_path / "own.toml", tiny_data, tables)
    run = tmp_path / "run"
    shutil.copytree(tiny_data, run / "data")
    metrics = run / "vision.partial" / "metrics.jsonl"
    process = begin(recipe, run)
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # to the command and its stage, as a cluster's scheduler does
    _, err = process.communicate(timeout=120)
    [saved] = candidates(run / "vision.partial" / "state")
    step = int(saved.name.removeprefix("step-"))
    assert process.returncode == 75
    reported = f"herd: stopped as asked, the {step} steps of 200 before are saved: re-run the same command to resume"
    assert err.splitlines()[-1] == reported
    assert len(read_metrics(metrics)) == step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, to be made larger with `resize`."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def resize(disk: Path, mebibytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mebibytes}m", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_more_space_fixes_it(
    tiny_data: Path, tiny_folder: Path, tmp_path: Path, small_disk: Path
) -> None:
    recipe = write_recipe(tmp_path / "own.toml", tiny_data, f'{VISION}from = "{tiny_folder}"\n')
    shutil.copytree(tiny_data, small_disk / "data")
    work = small_disk / "vision.partial"
    for mebibytes, place in (4, "state/step-1"), (25, "model-00000.safetensors"):
        resize(small_disk, mebibytes)
        reported = f"herd: the disk is full ({work}/{place}): free some space, then re-run the same command to resume"
        assert go(recipe, small_disk) == (1, ["data reused"], reported)
        assert not (small_disk / "vision").exists()
    assert candidates(work / "state")
    resize(small_disk, 200)
    resumes = "vision: resumes after step 1 of 2"
    assert go(recipe, small_disk) == (0, ["data reused", "vision done", "report done"], resumes)
    steps = [line["step"] for line in read_metrics(small_disk / "vision" / "metrics.jsonl")]
    assert steps == list(range(len(steps)))

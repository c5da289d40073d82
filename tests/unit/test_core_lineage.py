"""herd.core.lineage: a stage's folder, its clock over several attempts, and what herd.json records."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from herd.core import lineage as module
from herd.core.files import folder_hash, work_folder
from herd.core.lineage import Stage, commit_id, hash_of, read_lineage, remove_leftovers
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 3
    names: tuple[str, ...] = ("a", "b")


def test_a_stage_is_absent_until_it_is_finished(tmp_path: Path):
    out = tmp_path / "deep" / "model"
    stage = Stage("pretrain", out, config=Settings(), parents={})
    (stage.work / "weights").write_text("w")
    assert not out.exists()
    assert stage.finish(loss=1.5) == out
    assert not stage.work.exists()
    lineage = read_lineage(out)
    assert lineage["stage"] == "pretrain"
    assert lineage["config"] == {"steps": 3, "names": ["a", "b"]}
    assert lineage["loss"] == 1.5
    assert lineage["hash"] == folder_hash(out)
    assert lineage["peak_memory_bytes"] > 1 << 20
    assert sorted(path.name for path in out.iterdir()) == ["herd.json", "weights"]


def test_parents_are_recorded_by_hash(tmp_path: Path):
    first = Stage("data", tmp_path / "data", config={}, parents={})
    (first.work / "text").write_text("t")
    first.finish()
    Stage("pretrain", tmp_path / "model", config={}, parents={"data": tmp_path / "data"}).finish()
    parent = read_lineage(tmp_path / "model")["parents"]["data"]
    assert parent == {"path": str(tmp_path / "data"), "hash": folder_hash(tmp_path / "data")}


def test_the_hash_of_a_large_folder_is_kept_until_one_of_its_files_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LONG_S", 0.0)
    hashed: list[Path] = []
    monkeypatch.setattr(module, "folder_hash", lambda folder: hashed.append(folder) or folder_hash(folder))
    folder, file = tmp_path / "model", tmp_path / "model" / "weights"
    folder.mkdir()
    file.write_text("one")
    assert hash_of(folder) == hash_of(folder) == folder_hash(folder) and len(hashed) == 2  # just written: not kept
    os.utime(file, (1e9, 1e9))
    assert hash_of(folder) == hash_of(folder) == folder_hash(folder) and len(hashed) == 3
    file.write_text("two")
    os.utime(file, (1e9, 1e9 + 1))
    assert hash_of(folder) == folder_hash(folder) and len(hashed) == 4
    assert (tmp_path / "cache" / "hashes").is_dir()


def test_a_killed_stage_resumes_with_its_files_and_its_clock(tmp_path: Path):
    code = """
import os, signal, time
from pathlib import Path
from herd.core.lineage import Stage
stage = Stage("pretrain", Path("model"), config={}, parents={})
(stage.work / "checkpoint").write_text("half")
time.sleep(0.3)
stage.save_time()
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    start = time.monotonic()
    stage = Stage("pretrain", tmp_path / "model", config={}, parents={})
    assert (stage.work / "checkpoint").read_text() == "half"
    assert 0.3 <= stage.seconds < 2
    stage.finish()
    assert 0.3 <= read_lineage(tmp_path / "model")["time_s"] <= 2 + time.monotonic() - start


def test_a_clock_torn_by_a_kill_does_not_stop_the_stage(tmp_path: Path):
    stage = Stage("pretrain", tmp_path / "model", config={}, parents={})
    stage.save_time()
    for path in stage.work.glob(".*"):
        path.write_text("")  # as a full disk or a kill between truncating and writing leaves it
    assert Stage("pretrain", tmp_path / "model", config={}, parents={}).seconds < 1


@pytest.mark.parametrize("left", [".request.json", "state/step-3/commit.json"])
def test_work_done_in_one_go_never_begins_in_place_of_a_training(tmp_path: Path, left: str):
    """`herd convert`, `adopt` and `convert --quantize` begin so."""
    path = work_folder(tmp_path / "model") / left
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(HerdError, match="is the unfinished work of another command"):
        remove_leftovers(tmp_path / "model")
    assert path.exists()


def test_a_half_written_conversion_is_begun_anew(tmp_path: Path):
    work_folder(tmp_path / "model").mkdir()
    (work_folder(tmp_path / "model") / "model-00001.safetensors").write_text("half")
    remove_leftovers(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_that_of_the_checkout():
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not in a git checkout")
    assert commit_id().removesuffix("-dirty") == head.stdout[:12]


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "PATH", "")
    assert commit_id() == "unknown"

"""herd.core.tracker: lines survive a kill, and a resumed stage writes over what it does again."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core import boards
from herd.core.tracker import Tracker, read_metrics
from herd.errors import HerdError


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_resumed_run_reads_as_if_it_was_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, killed_at: int, checkpoint: int, end: int
):
    checkpoint, end = min(checkpoint, killed_at), max(end, killed_at)
    path = tmp_path_factory.mktemp("tracker") / "metrics.jsonl"
    first = Tracker(path)
    for step in range(killed_at):
        first.log(step, loss=1 / (step + 1))
    again = Tracker(path, start_step=checkpoint)
    for step in range(checkpoint, end):
        again.log(step, loss=1 / (step + 1))
    again.close()
    assert read_metrics(path) == [{"step": step, "loss": 1 / (step + 1)} for step in range(end)]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path):
    tracker = Tracker(tmp_path / "metrics.jsonl")
    tracker.log(0, loss=2.5, load=[1, 2])
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "loss": 2.5, "load": [1, 2]}


def test_what_is_no_number_is_null_so_that_every_reader_of_json_takes_it(tmp_path: Path):
    Tracker(tmp_path / "metrics.jsonl").log(0, loss=float("nan"), load=[1.0, float("inf")])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss": null, "load": [1.0, null]}\n'


def test_a_torn_last_line_is_left_out_and_written_anew(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    assert read_metrics(path) == [{"step": 0, "loss": 1.0}]
    tracker = Tracker(path, start_step=1)
    tracker.log(1, loss=0.5)
    assert [line["step"] for line in read_metrics(path)] == [0, 1]


def test_a_new_run_in_the_place_of_an_old_one_begins_empty(tmp_path: Path):
    Tracker(tmp_path / "metrics.jsonl").log(7, loss=1.0)
    Tracker(tmp_path / "metrics.jsonl").log(0, loss=2.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 2.0}]


def test_a_resume_killed_in_the_middle_loses_no_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(10)))
    code = """
import json, os, signal
from pathlib import Path
from herd.core import tracker
json.dumps = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
tracker.Tracker(Path("metrics.jsonl"), start_step=8)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -signal.SIGKILL
    assert len(read_metrics(path)) == 10


class Shown:
    """A board that keeps what it is given."""

    def __init__(self, run: Path, stage: str, start_step: int):
        self.reported: list[object] = [run.name, stage, start_step]
        made.append(self)

    def log(self, step: int, numbers: dict[str, float]):
        self.reported.append((step, numbers))

    def close(self):
        self.reported.append("closed")


made: list[Shown] = []


def test_boards_are_given_the_numbers_of_each_step_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(boards.BOARDS, "tensorboard", Shown)
    monkeypatch.setenv("HERD_TRACK", "tensorboard")
    work = tmp_path / "run" / "sft.partial"
    work.mkdir(parents=True)
    with Tracker(work / "metrics.jsonl", start_step=3) as tracker:
        tracker.log(3, loss=1.5, max_vio=float("nan"), expert_load=[[1, 2]], skipped="loss")
    assert made[-1].reported == ["run", "sft", 3, (3, {"loss": 1.5}), "closed"]


def test_an_unknown_board_and_one_that_is_not_installed_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HERD_TRACK", "tensorbord")
    with pytest.raises(HerdError, match="did you mean 'tensorboard'"):
        Tracker(tmp_path / "metrics.jsonl")
    monkeypatch.setenv("HERD_TRACK", "trackio")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(HerdError, match="pip install trackio"):
        Tracker(tmp_path / "metrics.jsonl")


def test_tensorboard_reads_what_a_resumed_run_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("HERD_TRACK", "tensorboard")
    work = tmp_path / "run" / "pretrain.partial"
    work.mkdir(parents=True)
    for start, end in ((0, 4), (2, 6)):
        with Tracker(work / "metrics.jsonl", start_step=start) as tracker:
            for step in range(start, end):
                tracker.log(step, loss=float(start * 10 + step))
    found = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "pretrain"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [
        (step, step if step < 2 else 20.0 + step) for step in range(6)
    ]


def test_trackio_keeps_what_it_is_given_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trackio")
    code = """
import sys
from pathlib import Path
from herd.core.tracker import Tracker
with Tracker(Path(sys.argv[1])) as tracker:
    for step in range(3):
        tracker.log(step, loss=float(step), expert_load=[[1]])
"""
    work = tmp_path / "run" / "pretrain.partial"
    work.mkdir(parents=True)
    monkeypatch.setenv("HERD_TRACK", "trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    subprocess.run([sys.executable, "-c", code, str(work / "metrics.jsonl")], capture_output=True, check=True)
    rows = sqlite3.connect(tmp_path / "store" / "run.db").execute("select run_name, step, metrics from metrics")
    assert [(run, step, json.loads(reported)) for run, step, reported in rows] == [
        ("pretrain", step, {"loss": float(step)}) for step in range(3)
    ]

"""herd.core.tracker: lines survive a kill, and a resumed stage writes over what it does again."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.tracker import Tracker, read_metrics


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

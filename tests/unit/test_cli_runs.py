"""herd.cli: what a run prints, and what a user sees of everything that goes wrong."""

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.cli import main
from herd.commands import COMMANDS, Command, single
from herd.commands.stages import STAGES, stage
from herd.core.console import one_line, traceback_log
from herd.core.lineage import Stage
from herd.errors import HerdError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "fail", Command(summary="Fail", example="herd fail", function=fail))


@pytest.mark.parametrize(
    ("error", "code", "reported"),
    [
        (HerdError("top_k=9 is more than 8"), 1, "top_k=9 is more than 8"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "the disk is full (a/b): free some space"),
        (RuntimeError("write failed: No space left on device (os error 28)"), 1, "the disk is full: free some"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "permission denied (/x): choose a folder of yours",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1, "no such file or directory (x)"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyError("lost\nagain"), 1, "KeyError: 'lost\\nagain' (a bug of Herd; the traceback is in "),
    ],
)
def test_every_failure_is_one_line_and_its_traceback_is_in_the_cache(
    error: BaseException, code: int, reported: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing(monkeypatch, error)
    assert main(["fail"]) == code
    out, err = capsys.readouterr()
    assert err.startswith(f"herd: {reported}")
    assert (out, err.count("\n")) == ("", 1)
    log = Path("cache/logs/herd.log").read_text()
    assert "Traceback" in log
    assert type(error).__name__ in log


def test_only_a_bug_leaves_a_log_beside_the_users_files(monkeypatch: pytest.MonkeyPatch):
    for error, left in (HerdError("top_k=9 is more than 8"), False), (MemoryError(), False), (KeyError("x"), True):

        def fail(error: BaseException = error) -> None:
            traceback_log.set(Path("out.log"))
            raise error

        monkeypatch.setitem(COMMANDS, "fail", Command(summary="Fail", example="herd fail", function=fail))
        assert main(["fail"]) == 1
        assert Path("out.log").exists() == left


def test_where_no_log_can_be_written_the_line_reports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("cache").write_text("a file where the folder should be")
    failing(monkeypatch, KeyError("lost"))
    assert main(["fail"]) == 1
    assert "the traceback cannot be written to" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    lines: int = 2


def a_stage(config: Settings, out: Path) -> Path:
    stage = Stage("data", out, config=config, parents={})
    for line in range(config.lines):
        print(f"line {line}")
    if config.lines == 0:
        raise ZeroDivisionError("lines / 0")
    (stage.work / "begun").touch()
    if config.lines < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.lines > 9:
        time.sleep(60)
    return stage.finish()


@pytest.fixture
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stage("data", config="test_cli_runs:Settings", function="test_cli_runs:a_stage", writes="data")
    monkeypatch.setitem(STAGES, "data", kind)
    monkeypatch.setitem(COMMANDS, "data build", single.stage_command(kind))
    Path("own.toml").write_text("[data]\n")


@pytest.mark.usefixtures("one_stage")
def test_a_run_prints_of_each_stage_whether_it_was_reused_and_keeps_a_log(capfd: pytest.CaptureFixture[str]):
    assert main(["run", "own.toml"]) == 0
    first = capfd.readouterr().out
    assert re.search(r"^data      done \(\d+ s\)$", first, re.M)
    assert re.search(r"^report    done \(\d+ s\)$", first, re.M)
    assert "line 1" in first
    assert re.search(r"wrote runs/own in \d+ s\n$", first)
    assert main(["run", "own.toml"]) == 0
    second = capfd.readouterr().out
    assert re.search(r"^data      reused \(\d+ s\)$", second, re.M)
    assert re.search(r"^report    reused \(\d+ s\)$", second, re.M)
    log = Path("runs/own/run.log").read_text()
    assert log.count("run own.toml") == 2
    assert "line 1" in log
    Path("own.toml").write_text("[data]\nlines = 3\n")
    assert main(["run", "own.toml", "--out", "other"]) == 0
    assert Path("other/data/herd.json").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_stage_that_fails_is_one_line_and_the_runs_log_has_the_rest(capfd: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nlines = 0\n")
    assert main(["run", "own.toml"]) == 1
    reported = "herd: ZeroDivisionError: lines / 0 (a bug of Herd; the traceback is in runs/own/run.log)\n"
    assert capfd.readouterr().err == reported
    log = Path("runs/own/run.log").read_text()
    assert "in a_stage" in log
    assert log.count("Traceback") == 1
    assert not Path("runs/own/data").exists()
    assert main(["data", "build", "--recipe", "own.toml", "--out", "x/data"]) == 1
    assert "in a_stage" in Path("x/data.log").read_text()


@pytest.mark.usefixtures("one_stage")
def test_a_run_has_its_stages_in_processes_of_their_own(capfd: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nlines = -1\n")
    assert main(["run", "own.toml"]) == 1
    reported = "most likely out of memory: close other programs, then re-run the same command to resume"
    assert capfd.readouterr().err == f"herd: data was ended by SIGKILL, {reported}\n"
    assert not Path("runs/own/data").exists()
    assert Path("runs/own/data.partial/begun").exists()


LONG_RUN = """
import sys
from herd import cli
from herd.commands.stages import STAGES, stage
STAGES["data"] = stage("data", config="test_cli_runs:Settings", function="test_cli_runs:a_stage", writes="data")
sys.exit(cli.main(["run", "own.toml"]))
"""


def test_ctrl_c_stops_the_stage_in_work_and_is_one_line():
    Path("own.toml").write_text("[data]\nlines = 10\n")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not Path("runs/own/data.partial/begun").exists():
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does
    out, err = run.communicate(timeout=20)
    kept = "what was finished is in runs/own/data.partial: re-run the same command to resume"
    assert (run.returncode, err) == (130, f"herd: stopped; {kept}\n")
    assert out.endswith("line 9\n")
    log = Path("runs/own/run.log").read_text()
    assert "Traceback" not in log
    assert f"herd: stopped; {kept}" in log
    assert Path("runs/own/data.partial/begun").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_stage_command_ends_by_naming_what_it_wrote(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "build", "--out", "x/data", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "line 0\nwrote x/data\n"
    assert Path("x/data/herd.json").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_mistake_in_the_recipe_is_reported_before_anything_is_written(capsys: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nline = 0\n")
    assert main(["run", "own.toml"]) == 1
    assert "'line', did you mean 'lines'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "herd", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")


def test_an_unforeseen_error_has_no_line_of_its_own():
    assert one_line(ValueError("x")) is None

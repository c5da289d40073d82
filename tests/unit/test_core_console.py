"""herd.core.console and herd.core.progress: the log beside the terminal, and the progress bar."""

import io
import sys
from pathlib import Path

import pytest

from herd.core.console import Tee, log_to
from herd.core.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_the_messages_with_the_time_and_no_progress_bars(monkeypatch: pytest.MonkeyPatch):
    terminal, log = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", Tee(terminal, log))
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar("training", 50) as bar:
        for step in range(50):
            bar.advance(note="loss 0.5")
            if step % 20 == 0:
                bar.print(f"[bold]step {step}[/bold]")
    assert "━" in terminal.getvalue()
    lines = [line.split(" ", 1)[1] for line in log.getvalue().splitlines()]
    assert lines == ["step 0", "step 20", "step 40"]
    assert all(line[2] == line[5] == ":" for line in log.getvalue().splitlines())


def test_what_is_printed_in_pieces_is_one_line_of_the_log():
    terminal, log = Terminal(), io.StringIO()
    tee = Tee(terminal, log)
    for piece in ("one ", "two\nth", "ree\n"):
        print(piece, end="", file=tee)
    assert terminal.getvalue() == "one two\nthree\n"
    assert [line.split(" ", 1)[1] for line in log.getvalue().splitlines()] == ["one two", "three"]


def test_a_program_sees_the_terminal_through_it():
    assert Tee(Terminal(), io.StringIO()).isatty()
    assert not Tee(io.StringIO(), io.StringIO()).isatty()


def test_a_log_is_added_to_and_the_streams_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    streams = sys.stdout, sys.stderr
    for word in "first", "second":
        with log_to(tmp_path / "run.log", f"title {word}"):
            print(word)
            print(f"{word} aloud", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr() == ("first\nsecond\n", "first aloud\nsecond aloud\n")
    reported = [line.split(" ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert reported[1:3] == ["first", "first aloud"]
    assert reported[4:] == ["second", "second aloud"]


def test_a_bar_shows_what_is_done_at_which_rate_and_is_quiet_on_other_ranks(capsys: pytest.CaptureFixture[str]):
    with progress_bar("answers", 4, done=1) as bar:
        bar.describe("more answers")
        bar.advance(2, rate="7 tokens/s", note="loss 0.5")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [word in shown.err for word in ("more answers", "3/4", "7 tokens/s", "-:--:--", "loss 0.5")] == [True] * 5
    with progress_bar("answers", 4, quiet=True) as bar:
        bar.advance()
        bar.print("a line")
    assert capsys.readouterr() == ("", "")

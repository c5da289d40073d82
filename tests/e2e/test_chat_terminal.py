"""`herd chat` on a pseudo terminal and over a pipe: with a slow model without weights, then with a whole folder."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_cache import fresh_cache
from PIL import Image

from herd.cli import main

FAKE = Path(__file__).parents[1] / "fake_herd.py"
PROMPT = "> "


class Terminal:
    """A program on a pseudo terminal: type, wait for text, look at what was shown."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=env, start_new_session=True, preexec_fn=_own_terminal
        )
        os.close(side)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def ctrl_c_at_prompt(self) -> None:
        # Python prints the prompt a moment before it listens; a signal in between waits for the next key.
        time.sleep(0.5)
        self.type("\x03")

    def wait(self, pattern: str, *, timeout_s: float = 60) -> str:
        """Read until `pattern` has come since the last wait; returns what came up to its end."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline, f"{pattern!r} never came, only {self.shown!r}"
            self._read(0.1)
        before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return before

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._main], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # the program has closed its side
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def exit_code(self) -> int:
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running, having shown {self.shown!r}"
            self._read(0.1)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


def _own_terminal() -> None:
    """Make the pseudo terminal the one that Ctrl-C is typed on."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    _heed_ctrl_c()


def _heed_ctrl_c() -> None:
    """Tests that run in the background of a shell inherit a Ctrl-C that is ignored; users do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = fresh_cache(tmp_path_factory.mktemp("home") / "cache")
    env = {**os.environ, "HERD_CACHE": str(cache), "NO_COLOR": "1", "TERM": "dumb"}
    env.pop("PYTHONUNBUFFERED", None)  # a pipe is buffered for users, too
    return env


def started(env: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal([sys.executable, str(FAKE), "chat"], env)
    try:
        terminal.wait(PROMPT)
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def terminal(env: dict[str, str]) -> Iterator[Terminal]:
    """One that the test ends."""
    yield from started(env)


@pytest.fixture(scope="module")
def _lasting(env: dict[str, str]) -> Iterator[Terminal]:
    yield from started(env)


@pytest.fixture
def lasting(_lasting: Terminal) -> Terminal:
    """One that the tests share, each from a new conversation: a start takes seconds. The test leaves it at a prompt."""
    _lasting.type("/reset\r")
    _lasting.wait("a new conversation\\r\n" + PROMPT)
    return _lasting


def pipe(env: dict[str, str], text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FAKE), "chat"], input=text, env=env, capture_output=True, text=True, timeout=60
    )


def test_an_answer_is_shown_while_it_grows(lasting):
    lasting.type("count\r")
    lasting.wait("1 2 3 ")
    assert " 1500 " not in lasting.shown
    lasting.type("\x03")
    lasting.wait(PROMPT)


def test_ctrl_c_stops_the_answer_and_the_program_continues(lasting):
    lasting.type("count\r")
    lasting.wait(r"\b5 ")
    lasting.type("\x03")
    lasting.wait("stopped")
    lasting.wait(PROMPT)
    lasting.type("still here\r")
    lasting.wait("\nstill here")
    lasting.wait(PROMPT)
    assert lasting.process.poll() is None


def test_a_second_ctrl_c_at_the_empty_prompt_ends_the_program(terminal):
    terminal.type("count\r")
    terminal.wait(r"\b5 ")
    terminal.type("\x03")
    terminal.wait("stopped")
    terminal.wait(PROMPT)
    terminal.ctrl_c_at_prompt()
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_c_on_a_half_typed_line_only_clears_it(lasting):
    for _ in range(3):
        lasting.type("half a li")
        lasting.wait("half a li")
        lasting.ctrl_c_at_prompt()
        lasting.wait(PROMPT)
    lasting.type("whole\r")
    lasting.wait("\nwhole")
    lasting.wait(PROMPT)


def test_ctrl_d_ends_the_program(terminal):
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.shown


def test_the_rate_and_the_context_used_are_shown_under_an_answer(lasting):
    lasting.type("one two three\r")
    shown = lasting.wait(PROMPT)
    rate, used, context = re.search(r"\(([\d.,]+) tokens/s; ([\d,]+) of ([\d,]+) tokens of context", shown).groups()
    assert 0 < float(rate.replace(",", "")) < 60  # the fake waits 20 ms before each word
    assert context == "2,000"
    lasting.type("four\r")
    assert int(re.search(r"([\d,]+) of 2,000", lasting.wait(PROMPT))[1].replace(",", "")) > int(used)


def test_a_conversation_is_saved_with_its_system_message_and_pictures_and_can_be_asked_again(lasting, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "cat.png")
    for typed, says in [
        ("/system", "no system message"),
        ("/system Be brief.", "system message: Be brief."),
        (f"/image {tmp_path}/cat.png", "attached"),
        ("what is it", re.escape("[30x20]what is it")),
        (f"/save {tmp_path}/talk.jsonl", r"talk.jsonl \(2 messages\)"),
        ("and now", "and now"),
        (f"/save {tmp_path}/talk.jsonl", r"\(4 messages\)"),
        (f"/save {tmp_path}/cat.png", "there already"),
        ("/save", "needs a path"),
        ('/system ""', "no system message"),
    ]:
        lasting.type(f"{typed}\r")
        lasting.wait(says)
        lasting.wait(PROMPT)
    [line] = (tmp_path / "talk.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"][0] == {"type": "image", "image": str(tmp_path / "cat.png")}
    assert messages[3:] == [{"role": "user", "content": "and now"}, {"role": "assistant", "content": "and now"}]


def test_an_unreadable_picture_is_reported_in_one_line_and_the_session_continues(lasting, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    for path, says in [("/nowhere/cat.png", "does not exist"), (str(tmp_path / "notes.png"), "not a readable picture")]:
        lasting.type(f"/image {path}\r")
        answer = lasting.wait(PROMPT)
        assert says in answer
        assert "Traceback" not in answer
    lasting.type("hello\r")
    lasting.wait("\nhello")
    lasting.wait(PROMPT)


def test_attached_pictures_go_with_the_next_message_only(lasting, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a cat.png")
    lasting.type(f"/image '{tmp_path}/a cat.png'\r")
    lasting.wait("attached .*30 x 20")
    lasting.type("what is it\r")
    lasting.wait(re.escape("[30x20]what is it"))
    lasting.wait(PROMPT)
    lasting.type("/reset\r")
    lasting.wait(PROMPT)
    lasting.type("and now\r")
    lasting.wait("\nand now")
    lasting.wait(PROMPT)


def test_an_attached_video_goes_as_its_frames(lasting, tmp_path):
    pytest.importorskip("av")
    from video_files import clip

    (tmp_path / "cat.mp4").write_bytes(clip(30))
    lasting.type(f"/video {tmp_path}/cat.mp4\r")
    lasting.wait(r"cat.mp4 \(3 frames, 2.0 s\)")
    lasting.wait(PROMPT)
    lasting.type("what moves\r")
    lasting.wait(r"\[video of 3\]what moves")
    lasting.wait(PROMPT)


def test_an_unknown_command_is_answered_with_the_nearest(terminal):
    terminal.type("/imgae x\r")
    terminal.wait("unknown command '/imgae', did you mean '/image'")
    terminal.type("/help\r")
    terminal.wait("/quit")
    terminal.wait(PROMPT)
    terminal.type("/quit\r")
    assert terminal.exit_code() == 0


def test_lines_of_an_earlier_session_come_back_with_the_up_arrow(terminal, env):
    terminal.type("remember me\r")
    terminal.wait("\nremember me")
    terminal.wait(PROMPT)
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert (Path(env["HERD_CACHE"]) / "chat_history").stat().st_mode & 0o077 == 0
    again = Terminal([sys.executable, str(FAKE), "chat"], env)
    try:
        again.wait(PROMPT)
        again.type("\x1b[A")
        again.wait("remember me")
        again.type("\r")
        again.wait("\nremember me")
    finally:
        again.close()


def test_control_characters_of_the_model_do_not_reach_the_terminal(lasting):
    lasting.type("a \x16\x1b[31m b\r")  # Ctrl-V takes the escape literally
    answer = lasting.wait(r"\n.*b\r\n")
    assert "␛[31m" in answer
    assert "\n\x1b" not in answer


def test_a_pipe_gets_answers_only_one_line_a_turn(env):
    run = pipe(env, "hello world\n\n/reset\ngrüße 世界\n")
    assert run.stdout == "hello world\ngrüße 世界\n"
    assert run.returncode == 0


def test_a_line_that_is_not_utf8_is_refused_with_its_number_and_the_others_are_answered(env):
    said = "hello\nnaïve\n".encode() + "naïve\n".encode("latin-1") + b"world\n"
    run = subprocess.run([sys.executable, str(FAKE), "chat"], input=said, env=env, capture_output=True, timeout=60)
    assert (run.stdout.decode(), run.returncode) == ("hello\nnaïve\nworld\n", 1)
    assert "line 3 of the input: the text is not Unicode at character 2" in run.stderr.decode()


def test_a_pipe_takes_pictures_and_ends_with_an_error_when_one_was_unreadable(env, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "cat.png")
    run = pipe(env, f"/image {tmp_path}/cat.png\nwhat\n/image {tmp_path}/dog.png\nand this\n")
    assert run.stdout == "[30x20]what\nand this\n"
    assert "dog.png does not exist" in run.stderr
    assert run.returncode != 0


def test_a_pipe_ends_quietly_at_quit_or_when_its_reader_has_enough(env):
    assert pipe(env, "a\n/quit\nb\n").stdout == "a\n"
    run = subprocess.run(
        f"(echo count; echo b) | {sys.executable} {FAKE} chat | head -c 10",
        shell=True,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout == "1 2 3 4 5 "
    assert run.stderr == ""


def test_a_conversation_past_the_context_is_reported_and_can_be_reset(env):
    run = pipe(env, "long " * 500 + "\nshort\n")
    assert run.stdout == "short\n"
    assert "the model's context 2000" in run.stderr


def test_an_interrupted_pipe_ends_without_an_answer_left_running(env):
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "chat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("count\n")
    process.stdin.flush()
    assert process.stdout.read(4) == "1 2 "
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    process.stdin.close()
    process.stdout.close()


def test_herd_chat_answers_from_a_whole_folder(env, tiny_folder, tmp_path):
    from herd.engine.load import load
    from herd.engine.sampler import SamplingParams

    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    command = [sys.executable, "-m", "herd", "chat", str(tiny_folder), "--max-tokens", "12"]
    run = subprocess.run(
        command,
        input=f"/image {tmp_path}/red.png\nthe cat sat on\n",
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    model = load(tiny_folder)
    picture = {"type": "image", "image": Image.new("RGB", (30, 20), "red")}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "the cat sat on"}]}
    engine = model.engine()
    expected = engine.generate_batch([model.render([question])], SamplingParams(max_tokens=12))
    engine.close()
    assert run.stdout == expected[0] + "\n"


def test_herd_chat_on_a_terminal_stops_a_real_answer_and_leaves_without_a_word(env, tiny_folder):
    command = [sys.executable, "-m", "herd", "chat", str(tiny_folder), "--max-tokens", "4000"]
    terminal = Terminal(command, env)
    try:
        terminal.wait(PROMPT)
        terminal.type("the cat sat on\r")  # without training the likeliest words after this go on without an end
        terminal.wait(r"\n.{10}")
        terminal.type("\x03")
        terminal.wait("stopped")
        terminal.wait(PROMPT)
        terminal.ctrl_c_at_prompt()
        assert terminal.exit_code() == 0
        assert "Traceback" not in terminal.shown
    finally:
        terminal.close()


def test_herd_chat_without_a_folder_reports_it_in_one_line(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "nowhere is not a folder" in said
    assert len(said.strip().splitlines()) == 1

"""herd.core.child: what a child gives back, how it is stopped, and that it never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.core.child import INTERRUPTED, run_in_child
from herd.core.lineage import peak_memory_bytes
from herd.errors import HerdError

HERE = str(Path(__file__).parent)


def give(code: int) -> int:
    return code


def take_memory(note: str, num_bytes: int) -> int:
    taken = b"x" * num_bytes
    Path(note).write_text(str(peak_memory_bytes()))
    return len(taken) - num_bytes


def end_by(number: int) -> int:
    os.kill(os.getpid(), number)
    return 0


def wait(note: str) -> int:
    """Until stopped; every KeyboardInterrupt is noted."""
    Path(note).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        with Path(note).open("a") as file:
            file.write(" stopped")
        time.sleep(0.3)  # a second one would come now
        return INTERRUPTED
    return 0


def test_the_code_is_what_the_function_returns():
    assert [run_in_child("stage", give, code) for code in (0, 1)] == [0, 1]


def test_what_one_child_took_is_not_the_nexts_nor_what_the_parent_has(tmp_path: Path):
    note, own = tmp_path / "note", b"x" * (400 << 20)
    peaks = []
    for num_bytes in (400 << 20, 0):
        assert run_in_child("stage", take_memory, str(note), num_bytes) == 0
        peaks.append(int(note.read_text()))
    assert len(own) < peaks[0]
    assert peaks[1] < 200 << 20


@pytest.mark.parametrize(
    ("number", "reported"),
    [
        (signal.SIGKILL, "sft was ended by SIGKILL, most likely out of memory: close other programs, then re-run"),
        (signal.SIGABRT, "sft was ended by SIGABRT: see the messages above, then re-run the same command to resume"),
    ],
)
def test_a_child_that_a_signal_ended_is_reported_with_its_name(number: int, reported: str):
    with pytest.raises(HerdError, match=reported):
        run_in_child("sft", end_by, number)


PARENT = """
import sys
from herd.core.child import run_in_child
from test_core_child import wait
try:
    print(run_in_child("stage", wait, "note"))
except KeyboardInterrupt:
    print("interrupted")
"""


def begin(folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A parent, leader of its own group, and its child's id."""
    path = os.pathsep.join([HERE, *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    note = folder / "note"
    while not (note.exists() and note.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    return parent, int(note.read_text())


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["as the terminal does", "to the parent alone"])
def test_ctrl_c_reaches_the_child_once(tmp_path: Path, send):
    parent, child = begin(tmp_path)
    send(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=20) == (f"{INTERRUPTED}\n", "")
    assert (tmp_path / "note").read_text() == f"{child} stopped"


def test_a_second_ctrl_c_ends_a_child_that_does_not_listen(tmp_path: Path):
    parent, child = begin(tmp_path)
    os.kill(child, signal.SIGSTOP)
    os.kill(parent.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=20) == ("interrupted\n", "")
    assert not is_alive(child)


def test_sigterm_of_the_parent_is_passed_on_to_the_child(tmp_path: Path):
    parent, child = begin(tmp_path)
    parent.terminate()
    assert parent.communicate(timeout=20) == (f"{INTERRUPTED}\n", "")
    assert (tmp_path / "note").read_text() == f"{child} stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_ends_with_its_parent(tmp_path: Path):
    parent, child = begin(tmp_path)
    parent.kill()
    parent.communicate(timeout=20)
    end = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.02)

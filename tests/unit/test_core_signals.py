"""SIGTERM and Ctrl-C are a request, the echo is no second one, and a second one ends what is at work."""

import signal
import subprocess
import sys
import threading

from herd.core.signals import stop_on_signals

SCRIPT = """
import os, signal, time
from herd.core.signals import ECHO_S, stop_on_signals
with stop_on_signals() as request:
    assert not request
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert request
    print("still here", flush=True)
    time.sleep(1.1 * ECHO_S)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never printed")
"""


def test_the_first_is_a_request_its_echo_nothing_and_a_second_one_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("still here\n", "", -signal.SIGTERM)


CTRL_C = """
import os, signal, time
from herd.core.signals import ECHO_S, stop_on_signals
with stop_on_signals() as request:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert request and request.by_ctrl_c
    time.sleep(1.1 * ECHO_S)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        print("at once", flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("as before")
"""


def test_ctrl_c_is_a_request_too_and_a_second_one_a_keyboard_interrupt() -> None:
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("at once\nas before\n", "", 0)


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + CTRL_C.split("    for")[0]
    script += "    os.kill(os.getpid(), signal.SIGINT)\n    assert not request"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_outside_the_main_thread_nothing_is_heard_and_nothing_breaks() -> None:
    heard = []

    def work() -> None:
        with stop_on_signals() as request:
            heard.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]

"""SIGTERM is a request, its echo is no second one, and a second one ends the process."""

import signal
import subprocess
import sys
import threading

from herd.core.signals import asked_to_stop

SCRIPT = """
import os, signal, time
from herd.core.signals import ECHO_S, asked_to_stop
with asked_to_stop() as request:
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


def test_outside_the_main_thread_nothing_is_heard_and_nothing_breaks() -> None:
    heard = []

    def work() -> None:
        with asked_to_stop() as request:
            heard.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]

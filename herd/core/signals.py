"""SIGTERM as a request: what is at work finishes its step, saves and stops. A second one ends the process at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 1.0
"""Signals so near each other are one: a group's reaches a process by itself and through its parent."""


class Request:
    """Whether the process has been asked to stop."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __bool__(self) -> bool:
        return self.at is not None


@contextmanager
def asked_to_stop() -> Iterator[Request]:
    """Within, SIGTERM makes the request true. Only the main thread hears of signals; elsewhere it stays false."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def hear(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if request.at is None:
            request.at = now
        elif now - request.at > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)

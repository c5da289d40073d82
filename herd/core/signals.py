"""SIGTERM and Ctrl-C as a request: what is at work finishes its step, saves and stops. A second one ends it at once:
SIGTERM the process, Ctrl-C by a KeyboardInterrupt.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 1.0
"""Signals so near each other are one: a group's reaches a process by itself and through its parent."""


class StopRequest:
    """Whether the process has been asked to stop, and how."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.by_ctrl_c = False

    def __bool__(self) -> bool:
        return self.at is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGTERM makes the request true, and so does Ctrl-C where it would raise a KeyboardInterrupt. Only the
    main thread gets signals; elsewhere it stays false."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if request.at is None:
            request.at, request.by_ctrl_c = now, number == signal.SIGINT
        elif now - request.at > ECHO_S:
            if number == signal.SIGINT:
                signal.default_int_handler(number, frame)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a child of `herd run` hears through its parent
        before[signal.SIGINT] = signal.signal(signal.SIGINT, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A function in a process of its own: its peak of memory is its own, and what it took is given back when it ends.

The child is spawned, not forked (torch's threads do not survive a fork), and shares the terminal. Of Ctrl-C it hears
through its parent alone and once, as a SIGTERM that is a KeyboardInterrupt where nothing else listens; a SIGTERM of the
parent is passed on to it. It ends with its parent, however that ends: a second try must
never write beside the first.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from herd.errors import HerdError, Interrupted, Stopped

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

INTERRUPTED = Interrupted.exit_code
"""Exit code of a program that Ctrl-C stopped."""


def run_in_child(name: str, function: Callable[..., int], *arguments: Any) -> int:
    """The exit code that `function(*arguments)` returns in a child; all of it must be picklable.

    Raises HerdError when a signal ended the child, and KeyboardInterrupt unless the child returned INTERRUPTED for it.
    """
    import multiprocessing  # not needed for `herd --help`, which is to be fast

    child = multiprocessing.get_context("spawn").Process(target=_child, args=(function, *arguments), name=name)
    sys.stdout.flush()
    sys.stderr.flush()
    # What is ignored now is ignored in the child too, from its first moment on.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        child.terminate()

    handler = signal.signal(signal.SIGTERM, pass_on)
    try:
        child.join()
    except KeyboardInterrupt:
        _stop(child)
        if child.exitcode == Stopped.exit_code:
            return INTERRUPTED
        if child.exitcode != INTERRUPTED:
            raise
    finally:
        signal.signal(signal.SIGTERM, handler)
    code = child.exitcode
    assert code is not None
    if code < 0:
        from rich.console import Console

        Console(stderr=True).show_cursor()  # a progress bar hides it, and could not bring it back
        if asked and code == -signal.SIGTERM:
            return 128 - code  # asked twice, and so ended at once
        killed, resume = code == -signal.SIGKILL, "re-run the same command to resume"
        cause = ", most likely out of memory: close other programs" if killed else ": see the messages above"
        raise HerdError(f"{name} was ended by {signal.Signals(-code).name}{cause}, then {resume}")
    return code


def _stop(child: "SpawnProcess") -> None:
    """Ask the child to end, and wait; a second Ctrl-C ends it at once."""
    child.terminate()
    try:
        child.join()
    except KeyboardInterrupt:
        child.kill()
        child.join()


def _child(function: Callable[..., int], *arguments: Any) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(function(*arguments))


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

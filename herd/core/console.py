"""What a command prints: a run's log beside the terminal, and errors in one line.

The traceback of a bug goes to the log of the work, that of all else to the cache's.
"""

import errno
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from herd.core.child import INTERRUPTED
from herd.core.device import out_of_memory
from herd.core.files import cache_folder, is_disk_full
from herd.errors import HerdError

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile("[━╸╺]")
"""What rich draws progress bars with."""

traceback_log: ContextVar[Path | None] = ContextVar("traceback_log", default=None)
"""Where the traceback of a bug is kept; None: in the cache."""
SMALLER = "close other programs, or take a smaller batch (--batch-tokens)"
"""What to do about memory that ran out."""


class Tee(io.TextIOBase):
    """Writes to the terminal as it is, and to a log line by line, with the time and without progress bars."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log, self._line = terminal, log, ""

    def write(self, text: str) -> int:
        self._terminal.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            line = CONTROL.sub("", line).rstrip().rpartition("\r")[2]  # what a carriage return leaves to be seen
            if line and not BAR.search(line):
                self._log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()
        self._log.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding


@contextmanager
def log_to(path: Path, title: str = "") -> Iterator[None]:
    """Within, what is printed also goes to the end of `path`, under a line with the date and `title` if given."""
    with path.open("a", encoding="utf-8") as log:
        if title:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {title}\n")
        with redirect_stdout(Tee(sys.stdout, log)), redirect_stderr(Tee(sys.stderr, log)):
            yield


def append(path: Path, text: str) -> bool:
    """Add a paragraph to a log, with the time; whether it could be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    except OSError:
        return False
    return True


def one_line(error: BaseException) -> str | None:
    """What a user reads of an error; None for a bug."""
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    match error:
        case KeyboardInterrupt():
            return str(error) or "stopped"
        case HerdError():
            return str(error)
        case MemoryError():
            return f"out of memory: {SMALLER}"
        case _ if is_disk_full(error):
            return f"the disk is full{place}: free some space, then re-run the same command to resume"
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS):
            return f"{str(error.strerror).lower()}{place}: choose a folder of yours"
        case OSError() if error.strerror:
            return f"{error.strerror.lower()}{place}"
    # torch has no MemoryError.
    return f"{what}: {SMALLER}" if (what := out_of_memory(error)) else None


def exit_code(work: Callable[[], None], title: str) -> int:
    """Do the work and give its exit code: 0 done, 1 failed, 2 not understood, 75 stopped by SIGTERM, 130 by Ctrl-C.

    An error is printed in one line. The traceback of a bug is kept under `title` in the log of the work, that of
    all else in the cache: a mistake leaves nothing beside the user's files but the line in a log that is there.
    """
    try:
        work()
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # `herd … | head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        own = traceback_log.get()
        line = one_line(error)
        log = own if own is not None and line is None else cache_folder() / "logs" / "herd.log"
        kept = append(log, f"{title}\n{traceback.format_exc()}")
        if line is None:
            where = f"the traceback is in {log}" if kept else f"the traceback cannot be written to {log}"
            brief = f"{type(error).__name__}: {error}".splitlines()[0]
            line = f"{brief} (a bug of Herd; {where})"
        elif own is not None and own.exists():
            append(own, f"herd: {line}")
        print(f"herd: {line}", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        return error.exit_code if isinstance(error, HerdError) else 1
    return 0

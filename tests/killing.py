"""An evaluation index whose process is killed; in a module of its own, which a new process imports in no time."""

import os
import signal
from pathlib import Path


class Killing:
    """Ends its process the first times that it is asked."""

    def __init__(self, flags: Path, times: int) -> None:
        self.flags, self.times = flags, times

    def find(self, text: str) -> None:
        for number in range(self.times):
            if not (flag := self.flags / str(number)).exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)

"""Who asked what, when, and what it cost: a line of JSON for each request, without contents unless asked for."""

import json
import os
import time
from pathlib import Path
from typing import Any

from herd.errors import HerdError


class AuditLog:
    """Appends to one file, which its owner alone can read. With `contents` the bodies of both sides are in it."""

    def __init__(self, path: Path, *, contents: bool = False) -> None:
        self.contents = contents
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HerdError(f"{path} cannot be written ({error.strerror}): change --audit-log") from None
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    def write(self, **fields: Any) -> None:
        """One line, with the time."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}
        # One write, so that lines of several servers do not mix.
        self._file.write(json.dumps(line, ensure_ascii=True) + "\n")

    def close(self) -> None:
        self._file.close()

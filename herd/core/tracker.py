"""Metrics of a stage as JSON lines: one object a line, always written, readable while the stage runs.

They go to boards too where that is asked for: see herd.core.boards.
"""

import json
import math
from pathlib import Path
from typing import Any

from herd.core.boards import Board, boards
from herd.core.files import write_atomic


class Tracker:
    """Appends `{"step": …, name: value, …}` to `path`. After a resume, lines at or past `start_step` are dropped.

    Of several ranks one has a path; the others write nothing.
    """

    def __init__(self, path: Path | None, *, start_step: int = 0) -> None:
        self._file, self._boards = None, list[Board]()
        if path is None:
            return
        kept = [line for line in read_metrics(path) if line["step"] < start_step] if path.exists() else []
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._boards = boards(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, **metrics: Any) -> None:
        """Write one line; values are numbers, words or lists of numbers. What is no number is null, as in all JSON."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **_finite(metrics)}, allow_nan=False) + "\n")
            self._file.flush()
        if self._boards:
            numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
            for board in self._boards:
                board.log(step, {name: value for name, value in numbers.items() if math.isfinite(value)})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a torn last line (a kill in the middle of a write) is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines

"""Results of an evaluation's finished sections, kept in the unfinished folder: after a kill the same command resumes
with the next section. Another config, model or data folder starts over.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from herd.core.files import read_json, write_json
from herd.core.lineage import Stage, hash_of


class SectionCache:
    """One file for each finished section."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds: dict[str, float] = {}
        request = {"config": stage.config, **{kind: hash_of(folder) for kind, folder in stage.parents.items()}}
        request = json.loads(json.dumps(request))  # as the file gives it back, tuples as lists
        mark = stage.work / ".begun.json"
        if not mark.exists() or read_json(mark) != request:
            self.clear()
            write_json(mark, request)

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The section's result: that of an earlier attempt, or what `work` gives."""
        path = self._stage.work / f".section-{name}.json"
        if not path.exists():
            start = time.monotonic()
            result = work()
            write_json(path, {"seconds": round(time.monotonic() - start, 2), "result": result})
            self._stage.save_time()
        section = read_json(path)
        self.seconds[name] = section["seconds"]
        result = section["result"]
        assert isinstance(result, dict)
        return result

    def clear(self) -> None:
        """Remove all of it; before the folder is finished, too."""
        for path in [*self._stage.work.glob(".section-*.json"), self._stage.work / ".begun.json"]:
            path.unlink(missing_ok=True)

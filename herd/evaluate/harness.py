"""`herd evaluate`: one model folder and one data folder to `results.json`, every figure with the rule it follows.

Sections are written as they are done, so a killed evaluation goes on with the next one. No torch before the work.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.config import EvaluateConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import Stage, hash_of


def evaluate(cfg: EvaluateConfig, model: Path, data: Path, out: Path) -> Path:
    """Evaluate the model folder on the held-out parts of the data folder."""
    if cfg.suite == "long":
        from herd.evaluate.long import evaluate_long

        return evaluate_long(cfg, model, data, out)
    from herd.evaluate.verdicts import read_reasons

    read_reasons(cfg.reasons)  # a misspelt bar is told before the work
    parents = {"model": model, "data": data}
    stage = Stage("evaluate", out, config=cfg, parents=parents)
    sections = Sections(stage)
    results = _results(cfg, model, data, sections)
    write_json(stage.work / "results.json", results)
    sections.clear()
    return stage.finish(metrics=_headline(results))


class Sections:
    """Results of finished parts, kept beside the work until all are there."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds: dict[str, float] = {}
        asked = {"config": stage.config, **{kind: hash_of(folder) for kind, folder in stage.parents.items()}}
        begun = json.loads(json.dumps(asked))  # as the file gives it back, tuples as lists
        mark = stage.work / ".begun.json"
        if not mark.exists() or read_json(mark) != begun:
            self.clear()
            write_json(mark, begun)

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The section's result, from the last attempt where it got that far."""
        path = self._stage.work / f".section-{name}.json"
        if not path.exists():
            start = time.monotonic()
            result = work()
            write_json(path, {"seconds": round(time.monotonic() - start, 2), "result": result})
            self._stage.keep_time()
        kept = read_json(path)
        self.seconds[name] = kept["seconds"]
        result = kept["result"]
        assert isinstance(result, dict)
        return result

    def clear(self) -> None:
        for path in [*self._stage.work.glob(".section-*.json"), self._stage.work / ".begun.json"]:
            path.unlink(missing_ok=True)


def _results(cfg: EvaluateConfig, model: Path, data: Path, sections: Sections) -> dict[str, Any]:
    from herd.evaluate.sections import Evaluation
    from herd.evaluate.verdicts import bits_verdicts, language_verdicts, naming_verdicts, read_reasons

    with Evaluation(cfg, model, data) as evaluation:
        bits = sections.do("bits", evaluation.bits)
        naming = sections.do("naming", evaluation.naming)
        tasks = sections.do("tasks", evaluation.tasks)
        samples = sections.do("samples", evaluation.samples)
    verdicts = [*bits_verdicts(bits), *naming_verdicts(naming), *language_verdicts(naming["language"])]
    reasons = read_reasons(cfg.reasons)
    return {
        "verdicts": [asdict(verdict.because(reasons)) for verdict in verdicts],
        "bits_per_byte": bits,
        "naming": naming,
        "tasks": tasks,
        "samples": samples,
        "seconds": sections.seconds,
    }


def _headline(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that herd.json repeats."""
    splits = results["naming"]["splits"]
    return {
        "bits_per_byte": results["bits_per_byte"]["all"],
        "naming": {
            f"{split}.{way}": table["all"]["share"]
            for split, tables in splits.items()
            for way, table in tables.items()
            if table["all"]
        },
        "tasks": {row["kind"]: row["share"] for row in results["tasks"]["rows"]},
    }

"""`herd evaluate`: one model folder and one data folder to `results.json`, every figure with the rule it follows.

Sections are written as they are done, so a killed evaluation goes on with the next one. No torch before the work.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from herd.config import LANGUAGES
from herd.config.ranges import Checked, Count, Seed, at_least
from herd.core.errors import HerdError, unknown
from herd.core.files import read_json, write_json
from herd.core.lineage import Stage, hash_of


@dataclass(frozen=True, kw_only=True)
class LongConfig(Checked):
    """What the suite for long texts asks."""

    lengths: tuple[Count, ...] = (4096, 16_384, 65_536, 262_144, 1_048_576)
    """Tokens of text before a question; whole chunks of them are taken."""
    trained: Count = 4096
    """Longest document of training: lengths are told in multiples of it, and losses by position go up to it."""
    seeds: Count = 2
    """Needles at each depth and length."""
    asks: Count = 20
    """Questions of each other kind at each length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths:
            raise HerdError("lengths is empty: give the tokens of at least one text, such as 4096")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """How much is asked; the same for every model that is compared."""

    suite: Literal["general", "long"] = "general"
    """`long`: what is found in long texts, as `long` below says, and none of the rest."""
    long: LongConfig = field(default_factory=LongConfig)
    seed: Seed = 0
    """Of samples, and of the confidence intervals."""
    languages: tuple[str, ...] = ("en", "de", "fr", "es", "ru", "ja", "hi", "zh")
    """Languages in which pictures are named."""
    heldout_bytes: Count = 40_000
    """Held-out text for each language."""
    pictures: Count = 60
    """Pictures of each split for each language."""
    closed_pictures: Count = 32
    """Of these, how many are also asked with candidates: each costs as much as reading hundreds of names."""
    candidates: Annotated[int, at_least(2)] = 100
    """Names to choose from."""
    chats: Count = 100
    """Held-out chats of each kind."""
    answer_tokens: Count = 24
    """Longest answer to a question."""
    sample_tokens: Count = 64
    """Longest sample."""
    reasons: tuple[str, ...] = ()
    """Why a bar is missed, as `BAR: why`; shown in the report where that bar fell short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for language in self.languages:
            if language not in LANGUAGES:
                raise unknown("language", language, LANGUAGES)


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

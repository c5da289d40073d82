"""`herd evaluate`: one model folder and one data folder to `results.json`, every figure with the rule it follows.

Which sections there are is decided by what the model and the data folder have (herd.evaluate.sections). Sections are
written as they are done, so a killed evaluation resumes with the next one.
"""

from functools import partial
from pathlib import Path
from typing import Any

from herd.config import EvaluateConfig
from herd.core.files import write_json
from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.evaluate.against import headlines
from herd.evaluate.cyber import evaluate_cyber
from herd.evaluate.evaluation import Evaluation
from herd.evaluate.long import evaluate_long
from herd.evaluate.section_cache import SectionCache
from herd.evaluate.sections import SECTIONS


def evaluate(cfg: EvaluateConfig, model: Path, data: Path | None, out: Path) -> Path:
    """Evaluate the model on the held-out parts of the data folder, which the suite `cyber` does without. `model` is
    whatever `herd.load` opens."""
    if cfg.suite == "cyber":
        return evaluate_cyber(cfg, model, out)
    if data is None:
        raise HerdError(f"suite={cfg.suite} is about held-out data: give --data FOLDER")
    if cfg.suite == "long":
        return evaluate_long(cfg, model, data, out)
    stage = Stage("evaluate", out, config=cfg, parents={"model": model, "data": data, **cfg.inputs()})
    cache = SectionCache(stage)
    with Evaluation(cfg, model, data) as run:
        results = do_sections(run, cache)
    write_json(stage.work / "results.json", results)
    cache.clear()
    out = stage.finish(metrics=headline(results))
    for name, (value, better) in headlines(results).items():
        print(f"{name}: {value:.1%}" if better > 0 else f"{name}: {value:.4f}")
    return out


def do_sections(run: Evaluation, cache: SectionCache) -> dict[str, Any]:
    """results.json: each section's result, what was left out and why, and the seconds. Raises HerdError where the
    model and the data folder have nothing that could be measured."""
    left_out = {section.name: why for section in SECTIONS if (why := section.missing(run))}
    results: dict[str, Any] = {}
    for section in SECTIONS:
        if section.name not in left_out:
            result = cache.do(section.name, partial(section.work, run))
            left_out |= result.pop("left_out")
            results[section.name] = result
    if not headlines(results):
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        fix = "give a data folder with held-out text or chats, or a larger --heldout-pairs where it is built"
        raise HerdError(f"{run.data.path} gives nothing to evaluate ({reasons}): {fix}")
    for name, why in left_out.items():
        print(f"{name}: left out, {why}")
    return {**results, "left_out": left_out, "seconds": cache.seconds}


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that herd.json repeats."""
    figures: dict[str, Any] = {}
    if "bits_per_byte" in results:
        figures["bits_per_byte"] = results["bits_per_byte"]["all"]
    if "naming" in results:
        figures["naming"] = {
            f"{split}.{way}": table["all"]["share"]
            for split, tables in results["naming"]["splits"].items()
            for way, table in tables.items()
            if table["all"]
        }
    if "chat_loss" in results:
        figures["chat_loss"] = results["chat_loss"]["nats"]
    if "tasks" in results:
        figures["tasks"] = {row["kind"]: row["share"] for row in results["tasks"]["rows"]}
    return figures

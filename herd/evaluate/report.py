"""`herd report`: one run as one HTML page that needs nothing else.

Works for any part of a run: a stage that is missing is missing on the page, and named as such. Template and style
stand beside this file; charts are inline SVG, pictures data URIs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from herd.core.files import read_json, write_atomic, write_json
from herd.core.lineage import Stage, commit_id
from herd.evaluate.charts import dot_plot
from herd.evaluate.curves import load_charts, training_charts
from herd.evaluate.run_folder import StageFolder, machine, model_facts, read_stages, unfinished
from herd.evaluate.verdicts import COMPETITOR_NAMES, Verdict, read_reasons, recipe_verdicts

LANGUAGE_NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "ru": "Russian", "ja": "Japanese", "zh": "Chinese", "vi": "Vietnamese", "id": "Indonesian", "hi": "Hindi",
    "ar": "Arabic",
}  # fmt: skip


def report(run: Path, out: Path) -> Path:
    """Write `out/report.html` and `out/verdicts.json` about the run's finished stages."""
    stages = read_stages(run)
    stage = Stage("report", out, config={}, parents={one.name: one.path for one in stages})
    page, verdicts = render(run, stages)
    write_atomic(stage.work / "report.html", page)
    write_json(stage.work / "verdicts.json", [asdict(verdict) for verdict in verdicts])
    return stage.finish()


def render(run: Path, stages: Sequence[StageFolder]) -> tuple[str, list[Verdict]]:
    """The page, and the verdicts at its top."""
    here = Path(__file__).parent
    evaluation = next((one for one in reversed(stages) if one.lineage.get("stage") == "evaluate"), None)
    results = read_json(evaluation.path / "results.json") if evaluation else None
    reasons = read_reasons(evaluation.lineage["config"].get("reasons", [])) if evaluation else {}
    verdicts = [Verdict(**verdict) for verdict in results["verdicts"]] if results else []
    verdicts += [verdict.because(reasons) for verdict in recipe_verdicts([one.lineage for one in stages])]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(
        number=number, percent=percent, size=size, duration=duration, language=language_name, figure=Markup
    )
    page = environment.get_template("report.html.j2").render(
        title=run.resolve().name,
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=commit_id(),
        machine=machine(),
        model=next((found for one in reversed(stages) if (found := model_facts(one))), None),
        verdicts=verdicts,
        unfinished=unfinished(run),
        results=results,
        bits_chart=_bits_chart(results),
        competitors={"model": "this model", **COMPETITOR_NAMES},
        training=_training(stages),
        card=next((one.lineage["card"] for one in stages if "card" in one.lineage), None),
        stages=stages,
        matches=_parents_match(stages),
        facts=facts,
    )
    return page, verdicts


def _bits_chart(results: Mapping[str, Any] | None) -> str:
    if not results or not results["bits_per_byte"]["rows"]:
        return ""
    legend = {"model": "this model", **COMPETITOR_NAMES}
    rows = {row["language"]: {name: row[name] for name in legend} for row in results["bits_per_byte"]["rows"]}
    return dot_plot("Bits per byte of held-out text, less is better", rows, legend=legend, x_label="bits per byte")


def _training(stages: Sequence[StageFolder]) -> list[dict[str, Any]]:
    """Charts of each stage that was measured."""
    found = [
        {"name": one.name, "charts": training_charts(one.metrics), "load": load_charts(one.metrics)} for one in stages
    ]
    return [one for one in found if one["charts"] or one["load"]]


def _parents_match(stages: Sequence[StageFolder]) -> dict[str, bool]:
    """Whether each stage was made from its parents as they now stand in the run."""
    now = {one.path.resolve(): one.lineage["hash"] for one in stages}
    return {
        one.name: all(
            now.get(Path(parent["path"]).resolve(), parent["hash"]) == parent["hash"]
            for parent in one.lineage["parents"].values()
        )
        for one in stages
    }


def number(value: float | None, places: int = 0) -> str:
    """1,234 or 1.23; a dash for nothing."""
    return "–" if value is None else f"{value:,.{places}f}"


def percent(value: float | None, places: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{places}f} %"


def size(value: float | None) -> str:
    """Bytes in the largest fitting unit."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"


def facts(value: Any) -> str:
    """Counts and words of the data card in one line: `train 3, held out 5`."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} ({facts(one)})" if isinstance(one, Mapping) else f"{key} {facts(one)}" for key, one in value.items()
        )
    if isinstance(value, list | tuple):
        return ", ".join(facts(one) for one in value)
    return number(value, 0 if isinstance(value, int) else 2) if isinstance(value, int | float) else str(value)


def language_name(code: str) -> str:
    return LANGUAGE_NAMES.get(code, code)

"""`herd report`: one run as one HTML page that needs nothing else.

Works for any part of a run and for a single stage, also while it runs: a stage that is missing is missing on the page,
and named as such. Template and style are beside this file; charts are inline SVG, pictures data URIs.
"""

import shutil
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from herd.config import ReportConfig
from herd.core.files import read_json, write_atomic
from herd.core.lineage import Stage, commit_id, read_lineage
from herd.errors import HerdError
from herd.evaluate.against import Pair, compare, headlines
from herd.evaluate.bits import BASELINES
from herd.evaluate.charts import dot_plot
from herd.evaluate.curves import load_at_the_end, load_charts, training_charts
from herd.evaluate.load import expert_counts, load_facts
from herd.evaluate.rewards import all_learned
from herd.evaluate.run_folder import (
    PARTIAL,
    StageFolder,
    evaluated_model,
    machine,
    model_facts,
    read_stages,
    stages_leading_to,
    unfinished,
)
from herd.evaluate.safety import WORDS, safety_card, safety_facts
from herd.evaluate.samples import stage_samples

LANGUAGE_NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "ru": "Russian", "ja": "Japanese", "zh": "Chinese", "vi": "Vietnamese", "id": "Indonesian", "hi": "Hindi",
    "ar": "Arabic",
}  # fmt: skip


def report(
    run: Path,
    out: Path | None = None,
    *,
    against: Sequence[Path] = (),
    samples: bool = False,
    stage: str = "",
    among: Sequence[Path] | None = None,
) -> Path:
    """Write `report.html` about a run, or one stage of it, finished or in work; and, where it has a guard or an
    evaluation of refusals, `safety.md`, a section for the model card.

    `against` are other runs or stages to compare with. `samples` has the last finished model of language continue
    held-out texts, where no evaluation did so. `stage` is the one whose model the page is about, with the stages that
    it was made from and its evaluations; all stages if not given. `among` are the folders that are read, all of the run
    if not given. `out` is RUN/report, or beside a single stage STAGE-report.
    """
    found = read_stages(run)
    if among is not None:
        found = [one for one in found if one.name in {folder.name for folder in among}]
    stages = stages_leading_to(found, stage) if stage else found
    alone = len(stages) == 1 and run.name.removesuffix(PARTIAL) == stages[0].name
    if out is None:
        out = run.with_name(f"{stages[0].name}-report") if alone else run / "report"
    if out.exists() and not is_report(out):
        raise HerdError(f"{out} is there and no report: give another --out")
    earlier = {other: read_stages(other) for other in against}
    parents = {one.name: one.path for one in found if one.finished}
    work = Stage("report", out, config=ReportConfig(stage=stage), parents=parents)
    said = stage_samples(stages) if samples else None
    names = {other: (f"{run.name}, this run", f"{other.name}, earlier") for other in against}
    beside = {other: compare(stages, theirs, names[other]) for other, theirs in earlier.items()}
    write_atomic(work.work / "report.html", render(run, stages, beside, said=said, alone=alone))
    if safety := safety_facts([one for one in stages if one.finished]):
        write_atomic(work.work / "safety.md", safety_card(safety))
    if out.exists():
        shutil.rmtree(out)  # it has nothing that this one lacks
    return work.finish()


def is_report(folder: Path) -> bool:
    """Whether a folder was written by `report`."""
    return (folder / "herd.json").is_file() and read_lineage(folder)["stage"] == "report"


def render(
    run: Path,
    every: Sequence[StageFolder],
    beside: Mapping[Path, Sequence[Pair]] | None = None,
    *,
    said: Mapping[str, Any] | None = None,
    alone: bool = False,
) -> str:
    """The page. A single stage (`alone`) is not expected to have been evaluated."""
    stages = [one for one in every if one.finished]

    def newest(name: str) -> StageFolder | None:
        return next((one for one in reversed(stages) if one.lineage.get("stage") == name), None)

    evaluation, long, balance = newest("evaluate"), newest("evaluate-long"), newest("balance")
    cyber = newest("evaluate-cyber")
    models = {one.name: model for one in stages if (model := evaluated_model(one, stages))}
    results = read_json(evaluation.path / "results.json") if evaluation else None
    return render_page(
        "report.html.j2",
        title=run.resolve().name.removesuffix(PARTIAL),
        models=models,
        evaluations=_evaluations(stages),
        shown=[one.name for one in (evaluation, long, cyber) if one],
        **_model(stages, models.get(evaluation.name if evaluation else "")),
        unevaluated=not (evaluation or long or cyber or alone),
        unfinished=unfinished(run),
        results=results,
        long=read_json(long.path / "results.json") if long else None,
        balance=read_json(balance.path / "results.json") if balance else None,
        cyber=read_json(cyber.path / "results.json")["cyber"] if cyber else None,
        recall_map=b64encode((long.path / "recall.svg").read_bytes()).decode() if long else "",
        said=results.get("samples") if results else said,
        bits_chart=_bits_chart(results),
        competitors=_competitors(results),
        training=_training(every),
        rewards=all_learned(every),
        safety=safety_facts(stages),
        **WORDS,
        beside=beside or {},
        card=next((one.lineage["card"] for one in stages if "card" in one.lineage), None),
        stages=stages,
        every=every,
        matches=_parents_match(stages),
        facts=facts,
    )


def render_page(template: str, **values: Any) -> str:
    """A page of this folder's templates, with the style, the date, the commit and the machine."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(
        number=number, percent=percent, size=size, duration=duration, language=language_name, figure=Markup, brief=brief
    )
    return environment.get_template(template).render(
        style=Markup((here / "report.css").read_text(encoding="utf-8")),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=commit_id(),
        machine=machine(),
        **values,
    )


def _evaluations(stages: Sequence[StageFolder]) -> dict[str, Mapping[str, Any]]:
    """The chief figures of each evaluation, where there are several."""
    found = [one for one in stages if one.lineage.get("stage") == "evaluate"]
    return {one.name: headlines(read_json(one.path / "results.json")) for one in found} if len(found) > 1 else {}


def _model(stages: Sequence[StageFolder], evaluated: str | None) -> dict[str, Any]:
    """The name and the facts of the model that is shown: the one that was evaluated, else the last."""
    found = {one.name: model for one in stages if (model := model_facts(one))}
    name = evaluated if evaluated in found else next(reversed(found), None)
    return {"model_name": name, "model": found.get(name or "")}


def _competitors(results: Mapping[str, Any] | None) -> dict[str, str]:
    """The model and the baselines that its bits per byte were compared with."""
    if not results or not results.get("bits_per_byte", {}).get("rows"):
        return {}
    measured = results["bits_per_byte"]["all"]
    return {"model": "this model", **{name: words for name, words in BASELINES.items() if name in measured}}


def _bits_chart(results: Mapping[str, Any] | None) -> str:
    if not (legend := _competitors(results)) or not results:
        return ""
    rows = {row["language"]: {name: row[name] for name in legend} for row in results["bits_per_byte"]["rows"]}
    return dot_plot("Bits per byte of held-out text, less is better", rows, legend=legend, x_label="bits per byte")


def _training(stages: Sequence[StageFolder]) -> list[dict[str, Any]]:
    """Charts of each stage that was measured."""
    found = []
    for one in stages:
        _, count_TLE = expert_counts(one.metrics)
        even = load_facts(count_TLE) if len(count_TLE) else None
        charts = {"charts": training_charts(one.metrics), "load": load_charts(one.metrics)}
        last = {"load_at_the_end": load_at_the_end(one.metrics), "now": None if one.finished else _progress(one)}
        found.append({"name": one.name, "even": even, **last, **charts})
    return [one for one in found if one["charts"] or one["load"]]


def _progress(stage: StageFolder) -> dict[str, Any]:
    """The progress of an unfinished stage."""
    last = stage.metrics[-1]
    return {"steps": last["step"] + 1, "loss": last.get("loss"), "seconds": last.get("seconds")}


def _parents_match(stages: Sequence[StageFolder]) -> dict[str, bool]:
    """Whether each stage was made from its parents as they are in the run now."""
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


def brief(value: Any) -> str:
    """A setting or a figure in a table: few digits, a dash for nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "–" if value is None else str(value)


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

"""What a run says about safety: guards, and harm beside over-refusal of each model that was asked, for the page and as
a section of the model card.

Harm is the share of unsafe requests that are not refused, over-refusal that of benign twins and harmless requests that
are: the wrong answers of the kinds `refusals` and `twins` in evaluations, graded by the words that a reply begins with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from herd.core.files import read_json
from herd.core.statistics import share
from herd.data.tasks.safety.items import pairs
from herd.evaluate.run_folder import StageFolder, evaluated_model
from herd.guard.card import further, guard_card, interval, percent
from herd.guard.taxonomy import HAZARDS

RULE = (
    "Held-out requests, greedy answers, graded by the words that a reply begins with (English). Actions and wordings "
    "are none of the training's; each action comes several times, so that 95 % intervals (Wilson) are too narrow for "
    "new ones. Harm: an unsafe request is not refused; whether the answer would help is not judged. Over-refusal: a "
    "benign twin or a harmless request is refused."
)


def safety_facts(stages: Sequence[StageFolder]) -> dict[str, Any]:
    """`guards` by name, without those that another one was made of, and `models` with `harm` and `over_refusal`; empty
    where the run has neither."""
    trained = [one for one in stages if one.lineage.get("guard", {}).get("heldout")]
    begun = {one.lineage["parents"].get("model", {}).get("hash") for one in trained}
    guards = {one.name: one.lineage["guard"] for one in trained if one.lineage["hash"] not in begun}
    models = []
    for one in stages:
        if one.lineage.get("stage") == "evaluate":
            rows = {row["kind"]: row for row in read_json(one.path / "results.json").get("tasks", {}).get("rows", ())}
            if {"refusals", "twins"} <= rows.keys():
                figures = {"harm": wrong(rows["refusals"]), "over_refusal": wrong(rows["twins"])}
                models.append({"name": evaluated_model(one, stages), **figures})
    return {"guards": guards, "models": models, "rule": RULE} if guards or models else {}


def wrong(row: Mapping[str, Any]) -> dict[str, Any]:
    """The share of wrong answers, with its interval, of that of right ones."""
    return share(row["count"] - row["hits"], row["count"])


def example(guard: Mapping[str, Any], what: str, code: str) -> str:
    """The text of the guard's example of a category, with its score; a dash where there is none."""
    found = [one for one in guard["heldout"]["examples"] if (one["what"], one["code"]) == (what, code)]
    return f"{found[0]['text'] or '(not shown)'} {found[0]['score']:.2f}" if found else "–"


def safety_card(facts: Mapping[str, Any]) -> str:
    """The section of the model card, in Markdown."""
    lines = ["## Safety", ""]
    if facts["models"]:
        lines += [
            "| model | harm | 95 % interval | of | over-refusal | 95 % interval | of |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in facts["models"]:
            cells = [
                f"{percent(one[side])} | {interval(one[side])} | {one[side]['count']}"
                for side in ("harm", "over_refusal")
            ]
            lines.append(f"| {one['name']} | {' | '.join(cells)} |")
        lines += ["", facts["rule"], ""]
    for name, guard in facts["guards"].items():
        lines += [f"### What the guard `{name}` catches, and what it misses", "", guard_card(guard)]
    return "\n".join(lines)


WORDS = {
    "example": example,
    "further": further,
    "category_name": lambda code: HAZARDS[code].name,
    "num_actions": len(pairs("heldout")),
}
"""What the template of the section uses."""

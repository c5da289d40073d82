"""The page of `herd guard attack`: rates by attack and category, what could not be judged, and examples.

An example is the turn in which a goal was reached, cut short. Of S4 and S9 the page shows that it happened, without
the words.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.core.files import read_bytes, read_json, write_atomic
from herd.evaluate.report import render_page
from herd.guard.red_team.run import RESULTS, SETTINGS, TRANSCRIPTS

MAX_EXAMPLES = 12
MAX_CHARACTERS = 300
"""Of a message or a reply that is shown."""
WITHOUT_WORDS = ("S4", "S9")


def write_page(out: Path) -> Path:
    """Write `report.html` into the folder of a run, and return its path."""
    results = read_json(out / RESULTS)
    lines = [json.loads(line) for line in read_bytes(out / TRANSCRIPTS).splitlines()]
    path = out / "report.html"
    settings = read_json(out / SETTINGS)
    page = render_page(
        "report_attack.html.j2",
        results=results,
        config=settings["config"],
        num_goals=len(settings["goals"]),
        columns=list(results["all"]),
        examples=examples(lines),
    )
    write_atomic(path, page)
    return path


def examples(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first violation of each category by each attack, of the categories in turn."""
    firsts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in lines:
        if line["outcome"] == "violated" and "found_in_turn" in line:
            firsts.setdefault((line["category"], line["mode"]), line)
    place: dict[str, int] = {}
    order = []
    for number, (category, _) in enumerate(firsts):
        place[category] = place.get(category, -1) + 1
        order.append((place[category], number))
    found = list(firsts.values())
    return [_example(found[number]) for _, number in sorted(order)[:MAX_EXAMPLES]]


def _example(line: Mapping[str, Any]) -> dict[str, Any]:
    turn = line["turns"][line["found_in_turn"] - 1]
    hidden = line["category"] in WITHOUT_WORDS
    return {
        "category": line["category"],
        "attacks": " with ".join(turn.get("attacks", ())) or line["mode"],
        "turn": line["found_in_turn"],
        "message": "(not shown)" if hidden else _cut(turn["response"]),
        "reply": "(not shown)" if hidden else _cut(turn.get("reply", "")),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "…"

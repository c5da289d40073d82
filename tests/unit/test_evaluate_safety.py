"""Harm, over-refusal and guards on the page and in the model card, from folders with made-up figures."""

from pathlib import Path

import evaluate_world as world
import pytest

from herd.core import files
from herd.core.files import read_json
from herd.core.statistics import share
from herd.data.tasks.safety.items import NAMES_ONLY, make_item, pairs
from herd.evaluate.report import report
from herd.guard.measure import FALSE_ALARMS, heldout_rates
from herd.guard.model_guard import Verdict
from herd.guard.taxonomy import HAZARDS


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value)


class Fake:
    """A guard that knows the items by heart, but for those of a category and a tenth of the rest."""

    def __init__(self, blind: str) -> None:
        self.blind = blind

    def judge_all(self, conversations):
        verdicts = []
        for number in range(len(conversations)):
            codes = make_item(0, "heldout", number).codes
            wrong = number % 10 == 0
            codes = () if self.blind in codes else ("S1",) if wrong and not codes else () if wrong else codes
            verdicts.append(Verdict(unsafe=bool(codes), score=0.97 if codes else 0.03, categories=codes))
        return verdicts


@pytest.fixture(scope="module")
def guard():
    measured = heldout_rates(Fake("S2"), 0, 900)
    drawn = {"combined": share(45, 50), "without": share(25, 50), "shuffled": share(24, 50), "plain": share(40, 41)}
    return {"threshold": 0.5, "context": 512, "languages": ["en"], "heldout": {**measured, "pictures": drawn}}


@pytest.fixture
def run(tmp_path: Path, guard) -> Path:
    folder = tmp_path / "safe"
    models = {"sft": (390, 300, 1), "rl": (399, 380, 3)}
    for name, (refused, answered, when) in models.items():
        finished = f"2026-01-0{when}T00:00:00Z"
        write_json(folder / name / "herd.json", world.lineage(name, finished=finished, hash=name))
        parents = {"model": {"path": str(folder / name), "hash": name}}
        facts = world.lineage("evaluate", finished=finished.replace("T00", "T01"), parents=parents, hash=f"e{name}")
        write_json(folder / f"evaluate-{name}" / "herd.json", facts)
        kinds = {"refusals": refused, "twins": answered, "digits": 1}
        rows = [
            {"kind": kind, "languages": 1, **share(hits, 400), "baseline": share(0, 400)}
            for kind, hits in kinds.items()
        ]
        results = {"seconds": {}, "tasks": {"rule": "", "rows": rows}}
        write_json(folder / f"evaluate-{name}" / "results.json", results)
    write_json(folder / "guard" / "herd.json", world.lineage("guard", hash="g", guard=guard))
    return folder


def test_harm_and_over_refusal_are_the_wrong_answers_of_each_model_in_turn(run: Path):
    page = (report(run) / "report.html").read_text()
    card = (run / "report" / "safety.md").read_text()
    section = page[: page.index("<h2>Evaluations")]  # the first
    rows = [line for line in section.splitlines() if line.startswith(("<tr><td>sft<", "<tr><td>rl<"))]
    assert ["2.5 %" in rows[0], "25.0 %" in rows[0], "0.2 %" in rows[1], "5.0 %" in rows[1]] == [True] * 4
    assert "| sft | 2.5 % | 1.4 – 4.5 % | 400 | 25.0 % | 21.0 – 29.5 % | 400 |" in card
    assert card.index("| sft |") < card.index("| rl |")


def test_what_the_guard_is_blind_to_is_on_the_first_page_and_in_the_card(run: Path, guard):
    page = (report(run) / "report.html").read_text()
    first = page[page.index("<h2>Safety") : page.index("<h2>Evaluations")]
    assert 'S2 Non-Violent Crimes</td><td class="n">0.0 %' in first
    card = (run / "report" / "safety.md").read_text()
    count = guard["heldout"]["by_category"]["S2"]["recall"]["count"]
    assert f"| S2 Non-Violent Crimes | {count} | 0.0 % | 0.0 – " in card
    drawn = "where only both together tell 90.0 % of 50; the same without the drawings 50.0 % of 50;"
    assert drawn in card and drawn in first
    assert card.count("generated only") == 14 and "real messages" in card


def test_no_unsafe_action_and_nothing_of_categories_by_name_alone_is_shown(guard, run: Path):
    examples = guard["heldout"]["examples"]
    assert {one["what"] for one in examples} == {"caught", "missed", "false alarm"}
    assert sum(one["what"] == "false alarm" for one in examples) == FALSE_ALARMS
    assert {one["code"] for one in examples if one["what"] == "caught"} == {*HAZARDS.codes} - {"S2"}
    assert all(one["text"] == "" for one in examples if one["code"] in NAMES_ONLY)
    assert all("[…]" in one["text"] for one in examples if one["code"] and one["code"] not in NAMES_ONLY)
    page = (report(run) / "report.html").read_text().lower()
    for split in ("train", "heldout"):
        assert not any(pair.harmful.lower() in page for pair in pairs(split))
    shown = [item.shown for item in (make_item(1, "train", number) for number in range(3000)) if item.about]
    assert not any(pair.harmful in text for pair in pairs("train") for text in shown)
    hidden = [pair for pair in pairs("train") if not NAMES_ONLY.isdisjoint(pair.codes)]
    assert hidden and not any(pair.benign in text for pair in hidden for text in shown)


def test_a_guard_that_another_one_was_made_of_is_left_out(run: Path, guard):
    parents = {"model": {"path": str(run / "guard"), "hash": "g"}}
    write_json(run / "longer" / "herd.json", world.lineage("guard", hash="l", guard=guard, parents=parents))
    report(run)
    card = (run / "report" / "safety.md").read_text()
    assert "the guard `longer` catches" in card and "the guard `guard`" not in card


def test_an_adopted_model_is_called_by_its_name_and_another_one_by_its_path(run: Path):
    for name, folder in (("starter", files.cache_folder() / "models" / "a-starter"), ("own", run.parent / "own")):
        parents = {"model": {"path": str(folder), "hash": f"another {name}"}}
        write_json(run / f"asked-{name}" / "herd.json", world.lineage("evaluate", parents=parents, hash=f"e{name}"))
        found = read_json(run / "evaluate-sft" / "results.json")
        write_json(run / f"asked-{name}" / "results.json", found)
    report(run)
    card = (run / "report" / "safety.md").read_text()
    assert "| a-starter | " in card and f"| {run.parent / 'own'} | " in card


def test_a_run_without_either_has_no_section(tmp_path: Path):
    write_json(tmp_path / "run" / "sft" / "herd.json", world.lineage("sft"))
    page = (report(tmp_path / "run") / "report.html").read_text()
    assert "<h2>Safety" not in page and not (tmp_path / "run" / "report" / "safety.md").exists()

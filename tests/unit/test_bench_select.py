"""herd.bench.select: the data that it makes, and its figures."""

import json
from pathlib import Path

from herd.bench.select_world import WRONG, questions, write_data, write_selection, wrong_answer
from herd.bench.table import interval
from herd.core.lineage import hash_of
from herd.data.loading import tables
from herd.data.loading.selection import kept_numbers
from herd.data.tasks.digits import solve

PARTS = {"heldout": 6, "data": 20}


def test_no_question_is_in_two_parts_and_each_cell_has_as_many():
    made = questions(0, PARTS)
    texts = [one.text for part in made.values() for one in part]
    assert len(set(texts)) == len(texts) == 15 * 26
    cells = [(one.operation, one.length) for one in made["data"]]
    assert {cells.count(cell) for cell in cells} == {20}
    assert all(len(one.text.split()) == one.length + 1 for one in made["heldout"])


def test_wrong_labels_differ_in_one_digit_and_are_a_twentieth(tmp_path: Path):
    asked = questions(1, PARTS)["data"]
    rows = tables.read(write_data(tmp_path / "data", asked, 1, wrong=True), "chats")
    wrong = [row for row in rows if row["source"] == WRONG]
    assert len(wrong) == len(rows) // 20
    for row in rows:
        said = json.loads(row["messages"])[1]["content"]
        assert said == row["answer"]
        differ = [a != b for a, b in zip(said.split(), str(solve(row["id"])).split(), strict=True)]
        assert sum(differ) == (row["source"] == WRONG)
    assert wrong_answer(asked[0], 1) == wrong_answer(asked[0], 1)


def test_an_arm_is_a_selection_that_fine_tuning_takes(tmp_path: Path):
    data = write_data(tmp_path / "data", questions(2, PARTS)["data"], 2)
    row = {"id": "", "kind": "", "language": "", "prompt": "", "answer": "", "score": "", "why": ""}
    row |= {"passes": 0, "n": 1, "difficulty": 0.5, "low": 0.0, "high": 1.0, "teacher_passes": 0}
    rows = [{**row, "number": number, "kept": number % 3 == 0} for number in range(300)]
    assert kept_numbers(write_selection(tmp_path / "arm", rows, data), data) == set(range(0, 300, 3))
    assert hash_of(data) != hash_of(tmp_path / "arm")


def test_an_interval_is_students():
    # Of R: t.test(c(0.1, 0.2, 0.4)).
    assert interval([0.1, 0.2, 0.4]) == "+0.233 ± 0.379"

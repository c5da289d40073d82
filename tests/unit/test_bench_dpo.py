"""herd.bench.dpo: what counts as a form, which pairs are made, and what a win is."""

import pytest

from herd.bench.dpo import figures, form_of, is_right, pair_rows
from herd.bench.select_world import Question

SORT, COPY = (
    Question(text="sort 3 1 2", operation="sort", length=3),
    Question(text="copy 7 7", operation="copy", length=2),
)


def test_forms_and_right_answers():
    assert [form_of(text) for text in ("1 2 3", "1,2,3", "1,2 3", "1, 2", "12", "", "1,a")] == [" ", ",", *[""] * 5]
    assert is_right(SORT, "1 2 3") and is_right(SORT, "1,2,3") and not is_right(SORT, "1,3,2")


def test_pairs_are_of_right_answers_in_both_forms_and_a_random_winner_has_as_many_of_each():
    drawn = [
        {"texts": ["1 3 2", "1,2,3", "1 2 3", "1 2 3"], "tokens": [6] * 4},
        {"texts": ["7 7", "7 7", "7,8", "7 7"], "tokens": [4] * 4},
    ]
    [(asked, row)] = pair_rows([SORT, COPY], drawn, 0, random=False)
    assert asked == SORT and row == {"prompt": "sort 3 1 2", "chosen": "1,2,3", "rejected": "1 2 3"}
    rows = pair_rows([SORT] * 40, drawn[:1] * 40, 0, random=True)
    assert [row["chosen"] for _, row in rows].count("1,2,3") == 20
    assert all({row["chosen"], row["rejected"]} == {"1,2,3", "1 2 3"} for _, row in rows)


def test_a_tie_counts_half_of_a_win():
    before = [{"texts": ["1 2 3", "1,2,3", "x", "1,2,3"], "tokens": [6, 6, 2, 6]}]
    after = [{"texts": ["1,2,3", "1,2,3", "1 3 2", "1 2 3"], "tokens": [6, 6, 6, 6]}]
    found = figures([SORT], after, before)
    assert found == pytest.approx({"win": 0.5, "commas": 0.5, "right": 0.75, "tokens": 6})
    assert figures([SORT], before[:1], before)["win"] == 0.5

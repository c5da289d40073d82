"""herd.data.loading.selection: from scores to difficulties, and which chats are kept."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.loading import selection


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.025, 0.5, 0.975]))
def test_a_beta_quantile_has_its_share_below_it(a: int, b: int, share: float):
    x = (np.arange(20_000) + 0.5) / 20_000
    log = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    density = np.exp(log - log.max())
    below = density[x < selection.beta_quantile(a, b, share)].sum() / density.sum()
    assert below == pytest.approx(share, abs=2e-3)


def test_difficulty_falls_with_passes_and_lies_within_its_interval():
    found = [selection.of_passes(passes, 32) for passes in range(33)]
    assert all(one.low < one.difficulty < one.high for one in found)
    assert [one.difficulty for one in found] == sorted((one.difficulty for one in found), reverse=True)
    assert found[16].difficulty == 0.5


def test_a_prompt_that_does_not_help_makes_1_and_one_that_says_all_0():
    made = selection.of_losses([[1.0, 3.0], [1.0, 1.0, 0.0]], [[4.0, 2.0], [3.0, 2.0, 1.0]])
    assert made.difficulty == pytest.approx(6 / 12)
    assert made.low < made.difficulty < made.high
    assert selection.of_losses([[2.0, 1.0]], [[2.0, 1.0]]) == selection.Difficulty(difficulty=1.0, low=1.0, high=1.0)
    assert selection.of_losses([[0.0]], [[2.0]]).difficulty == 0
    assert math.isfinite(selection.of_losses([[0.0]], [[0.0]]).high)


def test_the_interval_of_a_ratio_is_that_of_a_bootstrap_over_the_tokens():
    rng = np.random.default_rng(0)
    alone = rng.exponential(2.0, 400)
    given = alone * rng.uniform(0, 1, 400)
    made = selection.of_losses([given.tolist()], [alone.tolist()])
    drawn = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile(given[drawn].sum(1) / alone[drawn].sum(1), [0.025, 0.975])
    assert (made.low, made.high) == (pytest.approx(low, abs=5e-3), pytest.approx(high, abs=5e-3))


def test_a_sure_judge_has_no_spread_and_a_divided_one_the_middle():
    assert selection.of_grades([0, 0, 0, 0, 1]) == selection.Difficulty(difficulty=1.0, low=1.0, high=1.0)
    divided = selection.of_grades([0.5, 0, 0, 0, 0.5])
    assert (divided.low, divided.difficulty, divided.high) == (0.0, 0.5, 1.0)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=9), st.floats(0.01, 1))
def test_quotas_keep_the_mix_to_less_than_one_and_the_share_of_all_to_the_nearest(sizes: dict[str, int], keep: float):
    counts = selection.quotas(sizes, keep)
    assert sum(counts.values()) == round(keep * sum(sizes.values()))
    assert all(abs(counts[key] - keep * size) < 1 for key, size in sizes.items())


ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["en", "de"]),
        st.floats(0, 1),
        st.sampled_from(["", "", "never", "not scored: x"]),
    ),
    min_size=1,
    max_size=40,
)


@given(ROWS, st.floats(0.05, 1), st.integers(0, 3))
def test_the_hardest_of_each_stratum_that_nothing_keeps_out_are_kept(rows: list[Any], keep: float, seed: int):
    made = [
        {"number": i, "kind": kind, "language": language, "score": "pass rate", "difficulty": value, "why": why}
        for i, (kind, language, value, why) in enumerate(rows)
    ]
    chosen = selection.select_hardest(made, keep, seed)
    assert not any(row["kept"] for row in chosen if row["why"] not in (selection.HARD, selection.EASIER))
    scored = [row for row in chosen if not row["why"].startswith("not scored")]
    sizes = Counter(selection.stratum(row) for row in scored)
    for key, most in selection.quotas(sizes, keep).items():
        able = [row for row in scored if selection.stratum(row) == key and row["why"] != "never"]
        kept = sorted(row["difficulty"] for row in able if row["kept"])
        assert kept == sorted(row["difficulty"] for row in able)[len(able) - min(most, len(able)) :]

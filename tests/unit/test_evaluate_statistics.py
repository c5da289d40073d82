"""Intervals and ratios against their definitions."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herd.core.statistics import Z_95, mean_interval, spearman, wilson
from herd.evaluate.statistics import Group, ratio_to_control


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_ends_are_the_shares_at_which_the_score_test_just_rejects(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            distance = abs(hits / count - end) / math.sqrt(end * (1 - end) / count)
            assert math.isclose(distance, Z_95, rel_tol=1e-6) or math.isclose(end, hits / count, abs_tol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_that_of_ranks_counted_one_by_one(pairs: list[tuple[int, int]]) -> None:
    def ranks(values: list[int]) -> list[float]:
        return [sum(one < mine for one in values) + (values.count(mine) + 1) / 2 for mine in values]

    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert spearman(first, second) == 0
    else:
        assert math.isclose(spearman(first, second), np.corrcoef(ranks(first), ranks(second))[0, 1], abs_tol=1e-9)


def test_nothing_asked_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_bits_per_byte_covers_the_truth_in_about_95_of_100_draws() -> None:
    # Documents of many lengths, each with a rate of its own: more bytes of one document are no more evidence.
    rng, truth, covered = np.random.default_rng(0), 1.5, 0
    for seed in range(400):
        sizes = rng.integers(50, 2000, size=60).astype(float)
        rates = truth + rng.normal(0, 0.3, size=60)
        interval = mean_interval((sizes * rates).tolist(), sizes.tolist(), seed=seed)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.91 < covered / 400 < 0.98


def test_one_document_has_no_interval_and_equal_ones_have_a_point() -> None:
    assert mean_interval([8.0], [4.0], seed=0) is None
    assert mean_interval([8.0, 2.0], [4.0, 1.0], seed=0) == (2.0, 2.0)


def group_of(hits: np.ndarray) -> Group:
    return Group(pictures=tuple(f"p{index}" for index in range(len(hits))), hit_PP=hits)


@given(st.integers(2, 7), st.integers(0, 2**32))
def test_control_is_the_mean_over_all_rotations(count: int, seed: int) -> None:
    hits = np.random.default_rng(seed).random((count, count)) < 0.4
    rotations = [[hits[i, (i + shift) % count] for i in range(count)] for shift in range(1, count)]
    assert math.isclose(group_of(hits).control, float(np.mean(rotations)))
    assert math.isclose(ratio_to_control([group_of(hits)], seed=0)["control"], float(np.mean(rotations)))


def test_a_control_without_a_hit_counts_as_one_hit() -> None:
    hits = np.eye(20, dtype=bool)
    hits[5:, 5:] = False
    result = ratio_to_control([group_of(hits)], seed=0)
    assert result["hits"] == 5 and result["control"] == 0
    assert result["ratio"] == 5  # 5 of 20 against 1 of 20
    assert result["ratio_low"] < 5 < result["ratio_high"]


def test_answers_that_do_not_look_at_the_picture_have_a_ratio_of_one() -> None:
    # Every picture is called the same, which is right for a third of them.
    hits = np.repeat((np.arange(60) % 3 == 0)[:, None], 60, axis=1)
    result = ratio_to_control([group_of(hits), group_of(hits)], seed=0)
    assert math.isclose(result["ratio"], 1, rel_tol=0.05)
    assert 0.9 < result["ratio_low"] <= 1 <= result["ratio_high"] < 1.1


def test_the_interval_keeps_all_languages_of_a_picture_together() -> None:
    hits = np.random.default_rng(0).random((40, 40)) < 0.2
    np.fill_diagonal(hits[:30, :30], True)
    once = ratio_to_control([group_of(hits)], seed=0)
    eight_times = ratio_to_control([group_of(hits)] * 8, seed=0)
    # Eight languages that all say the same are no more evidence than one.
    width = [result["ratio_high"] - result["ratio_low"] for result in (once, eight_times)]
    assert math.isclose(width[0], width[1], rel_tol=0.05)

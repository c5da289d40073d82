"""Shares of pairs and shares behind a judge: against published examples, other formulas, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.rates import JudgeErrors, Pairs, holm, least_count, most_hits
from herd.core.statistics import wilson
from herd.errors import HerdError

COUNTS = st.integers(0, 60)


def test_the_interval_of_a_paired_difference_is_that_of_newcombes_table() -> None:
    # Newcombe 1998, Table II, method 10.
    for (both, one, other, neither), low, high in (
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ):
        found = Pairs(both=both, first=other, second=one, neither=neither).interval()
        assert found == pytest.approx((low, high), abs=6e-4)


@given(both=COUNTS, first=COUNTS, second=COUNTS, neither=COUNTS)
def test_exchanging_the_sides_exchanges_the_signs(both: int, first: int, second: int, neither: int) -> None:
    one = Pairs(both=both, first=first, second=second, neither=neither)
    other = Pairs(both=both, first=second, second=first, neither=neither)
    assert one.p_value() == other.p_value()
    assert one.difference == -other.difference
    assert one.interval() == pytest.approx(tuple(-end for end in reversed(other.interval())))
    assert one.interval()[0] <= one.difference <= one.interval()[1]


@given(first=st.integers(0, 40), second=st.integers(0, 40))
def test_the_p_value_is_the_share_of_the_coin_throws_that_are_as_uneven(first: int, second: int) -> None:
    count = first + second
    uneven = sum(math.comb(count, k) for k in range(count + 1) if abs(2 * k - count) >= abs(first - second))
    assert Pairs(both=3, first=first, second=second, neither=7).p_value() == pytest.approx(uneven / 2**count)


def test_thousands_of_pairs_that_differ_have_a_p_value() -> None:
    assert Pairs(both=0, first=2000, second=2000, neither=0).p_value() == 1
    assert 0 < Pairs(both=0, first=1900, second=2100, neither=0).p_value() < 0.002


@pytest.mark.parametrize(("count", "below", "hits"), [(2700, 0.02, 39), (1350, 0.01, 6)])
def test_a_claim_holds_up_to_the_hits_that_the_issue_names(count: int, below: float, hits: int) -> None:
    assert most_hits(count, below) == hits
    assert wilson(hits, count)[1] < below <= wilson(hits + 1, count)[1]


@given(below=st.floats(0.001, 0.9))
def test_the_least_count_is_where_no_hit_begins_to_be_enough(below: float) -> None:
    count = least_count(below)
    assert most_hits(count, below) is not None
    assert most_hits(count - 1, below) is None


@given(st.lists(st.floats(0, 1), max_size=8))
def test_adjusted_p_values_keep_their_order_and_are_between_plain_and_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    assert [adjusted[i] for i in np.argsort(values, kind="stable")] == sorted(adjusted)
    for plain, one in zip(values, adjusted, strict=True):
        assert plain <= one <= max(min(1, (len(values) - rank) * value) for rank, value in enumerate(sorted(values)))


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize(("sensitivity", "specificity", "labels"), [(0.95, 0.97, 80), (0.8, 0.99, 400)])
def test_the_interval_behind_a_judge_has_the_true_share_as_often_as_it_says(
    truth: float, sensitivity: float, specificity: float, labels: int
) -> None:
    rng, count, inside, trials = np.random.default_rng(0), 1000, 0, 1500
    seen = truth * sensitivity + (1 - truth) * (1 - specificity)
    for _ in range(trials):
        judge = JudgeErrors(
            hits=rng.binomial(labels, sensitivity), positives=labels,
            rejections=rng.binomial(labels, specificity), negatives=labels, source="drawn",
        )  # fmt: skip
        _, low, high = judge.share(rng.binomial(count, seen), count)
        inside += low <= truth <= high
    assert inside / trials > 0.94  # 0.95 less the noise of 1500 trials


def test_a_perfect_judge_of_many_labels_changes_little_and_few_labels_widen() -> None:
    few = JudgeErrors(hits=40, positives=40, rejections=40, negatives=40, source="few")
    many = JudgeErrors(hits=10**7, positives=10**7, rejections=10**7, negatives=10**7, source="many")
    share, low, high = many.share(39, 2700)
    assert share == pytest.approx(39 / 2700)
    # Lang and Reiczigel's centre is Agresti and Coull's, near Wilson's.
    assert (low, high) == pytest.approx(wilson(39, 2700), abs=4e-4)
    assert few.share(39, 2700)[2] > high


def test_a_difference_behind_a_judge_is_larger_than_the_observed_one_and_keeps_its_sign() -> None:
    judge = JudgeErrors(hits=80, positives=100, rejections=90, negatives=100, source="drawn")
    value, low, high = judge.difference(0.02, 0.01, 0.03)
    assert value == pytest.approx(0.02 / 0.7)
    assert 0 < low < value < high
    assert low < 0.01 / 0.7 and high > 0.03 / 0.7


@pytest.mark.parametrize("counts", [(5, 4, 1, 1), (0, 0, 1, 1), (1, 10, 9, 10)])
def test_error_rates_that_are_none_are_refused(counts: tuple[int, int, int, int]) -> None:
    hits, positives, rejections, negatives = counts
    with pytest.raises(HerdError):
        JudgeErrors(hits=hits, positives=positives, rejections=rejections, negatives=negatives, source="none")

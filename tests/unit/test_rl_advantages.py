"""herd.rl.advantages: expectations of gradients by enumeration of all that may be drawn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.rl.advantages import ADVANTAGES, maxrl, mean_centred, pass_at_k

REWARDS = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=9).map(np.array)


def expected_gradient(name: str, rate: float, group_size: int) -> float:
    """E[(1/G) sum_i A_i d log pi_i / dz] of a policy that is right with the chance sigmoid(z) = rate."""
    expected = 0.0
    for drawn in itertools.product([0.0, 1.0], repeat=group_size):
        rewards_G = np.array(drawn)
        chance = math.prod(rate if right else 1 - rate for right in drawn)
        expected += chance * float((ADVANTAGES[name](rewards_G) * (rewards_G - rate)).mean())
    return expected


@pytest.mark.parametrize("rate", [0.03, 0.4, 0.9])
@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_the_mean_centred_gradient_is_that_of_the_expected_reward(rate: float, group_size: int):
    expected = (group_size - 1) / group_size * rate * (1 - rate)
    assert expected_gradient("mean_centred", rate, group_size) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rate", [0.03, 0.4, 0.9])
@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_the_maxrl_gradient_is_that_of_pass_at_k_over_k_up_to_the_group(rate: float, group_size: int):
    of_pass = [k * (1 - rate) ** (k - 1) * rate * (1 - rate) for k in range(1, group_size)]
    expected = sum(gradient / k for k, gradient in enumerate(of_pass, 1))
    assert expected_gradient("maxrl", rate, group_size) == pytest.approx(expected, rel=1e-12)


@given(REWARDS)
def test_a_member_is_compared_with_the_mean_of_the_others(rewards_G: np.ndarray):
    size = len(rewards_G)
    for place, advantage in enumerate(mean_centred(rewards_G)):
        others = np.delete(rewards_G, place)
        expected = (rewards_G[place] - others.mean()) * (size - 1) / size if size > 1 else 0.0
        assert advantage == pytest.approx(expected, abs=1e-12)


@given(REWARDS)
def test_maxrl_is_in_proportion_and_free_of_the_scale_of_rewards(rewards_G: np.ndarray):
    if rewards_G.mean() > 0:
        assert maxrl(rewards_G) * rewards_G.mean() == pytest.approx(mean_centred(rewards_G), abs=1e-12)
        assert maxrl(rewards_G * 4) == pytest.approx(maxrl(rewards_G), abs=1e-9)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_are_worth_exactly_nothing(name: str, reward: float, size: int):
    assert (ADVANTAGES[name](np.full(size, reward)) == 0).all()


def test_negative_rewards_have_no_maxrl():
    with pytest.raises(AssertionError):
        maxrl(np.array([-1.0, 1.0]))


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_choices_with_a_right_answer(n: int):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(right, n, k) == sum(map(any, choices)) / len(choices)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_unbiased(k: int):
    rate, n = 0.3, 7
    expected = sum(
        math.comb(n, right) * rate**right * (1 - rate) ** (n - right) * pass_at_k(right, n, k) for right in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - rate) ** k, rel=1e-12)


@pytest.mark.parametrize(("right", "n", "k"), [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_no_pass_at_k_of_more_than_there_are(right: int, n: int, k: int):
    with pytest.raises(AssertionError):
        pass_at_k(right, n, k)

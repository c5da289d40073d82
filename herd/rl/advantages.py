"""What each rollout of a group is worth beside the others, and pass@k. Pure functions of numbers, no torch."""

# G members of a group

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float64

Rewards = Float64[np.ndarray, "G"]
Advantages = Float64[np.ndarray, "G"]


def mean_centred(rewards_G: Rewards) -> Advantages:
    """A_i = r_i - mean(r): Dr. GRPO (Liu et al., 2025, 2503.20783). There is no division by the standard deviation,
    which would give the most weight to prompts that are nearly always or hardly ever passed.

    (1/G) sum_i A_i grad log pi_i has the expectation (G-1)/G of the gradient of E[r]. Equal rewards give exact zeros.
    """
    # From the first, so that equal rewards differ by nothing that rounding of their mean would make.
    from_first_G = rewards_G - rewards_G[0]
    return from_first_G - from_first_G.mean()


def maxrl(rewards_G: Rewards) -> Advantages:
    """A_i = (r_i - mean(r)) / mean(r), 0 where the mean is 0: MaxRL (Tajwar et al., 2026, 2602.02710). Rewards must not
    be negative. A prompt weighs the more, the less often it is passed.

    For rewards of 0 and 1, (1/G) sum_i A_i grad log pi_i has the expectation sum_{k=1}^{G-1} grad pass@k / k, which
    goes to the gradient of log pass@1 for large G.
    """
    assert rewards_G.min() >= 0
    mean = rewards_G.mean()
    return mean_centred(rewards_G) / mean if mean > 0 else np.zeros_like(rewards_G)


ADVANTAGES: Mapping[str, Callable[[Rewards], Advantages]] = {"mean_centred": mean_centred, "maxrl": maxrl}
"""By the name in a config."""


def pass_at_k(num_right: int, n: int, k: int) -> float:
    """The chance that at least one of `k` answers is right, from `n` answers of which `num_right` are: the share of the
    choices of k of them that have a right one, 1 - C(n - right, k) / C(n, k). Unbiased, where 1 - (1 - right/n)^k is
    not (Chen et al., 2021, 2107.03374)."""
    assert 0 <= num_right <= n
    assert 1 <= k <= n
    choices = math.comb(n, k)
    return (choices - math.comb(n - num_right, k)) / choices

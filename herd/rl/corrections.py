"""Corrections of a policy gradient for tokens that another policy drew, as pure functions.

The policy pi is trained on tokens that mu drew: older weights, or the same in another precision. Each correction is a
number c per token, a constant for the gradient, in

    loss = -sum_t w_t A_t c_t log pi_t,    rho_t = pi_t / mu_t,

as every objective below has the gradient c_t A_t * grad log pi_t. So they can be computed in the chunk of the logits
that has log pi_t. `mask` is one more factor, of any of them. Decoupled objectives, with a third policy between mu and
pi, are left out: a step makes one update, and that policy is pi.
"""

# R tokens, S sequences

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from herd.config.rl_loss import CorrectionConfig, CorrectionName

MOST_LOG_RATIO = 20.0
"""Ratios are cut at e to the power of this, so that they and their sums are finite; all bounds are far below."""

CorrectionFunction = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""log rho [R], advantages [R], each token's sequence [R] and the bounds of the ratio to c [R]."""


def none(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """c = 1: the gradient is that of mu's distribution, biased where pi differs from it."""
    return torch.ones_like(log_ratio_R)


def truncated(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """c = min(max(rho, low), high): unbiased but for what is cut off, |bias| <= max|A| max|grad log pi| E_mu[(rho -
    high)+] for low = 0 (Ionides, 2008).

    This is `tis` (Yao et al., 2025: high = 2, on top of PPO's ratio, which is 1 at the first update of a batch), `aipo`
    (LlamaRL, 2505.24034: min(rho, C), mu being the engine that drew, quantised or old), and `cispo` (MiniMax-M1,
    2506.13585: the clipped ratio as a constant, in practice without the lower bound). With one update a batch they
    differ in their usual bounds alone.
    """
    return ratio(log_ratio_R).clamp(low, high)


def clip(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """The gradient of min(rho A, clip(rho, low, high) A): c = rho, and 0 where the clipped branch is the smaller, that
    is where rho > high and A > 0, or rho < low and A < 0. PPO (1707.06347); 0.8 and 1.28 are DAPO's (2503.14476)."""
    return clipped_objective(ratio(log_ratio_R), advantages_R, low, high)


def gspo(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """As `clip` with the ratio of the whole sequence, normalised by its length: s = exp(mean_t log rho_t), c_t = s or 0
    for all its tokens. GSPO (2507.18071); a sequence weighs as many tokens as it has, where the paper's weigh 1."""
    count_S = torch.ones_like(log_ratio_R)
    mean_R = sequence_sums(log_ratio_R, sequences_R) / sequence_sums(count_S, sequences_R)
    return clipped_objective(ratio(mean_R), advantages_R, low, high)


def mis(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """Masked importance sampling: c_t = prod_t rho_t for all tokens of a sequence, and 0 for all where that is outside
    [low, high] (Liu et al., 2025, "When speed kills stability"; TRL's `sequence_mask`)."""
    return within(ratio(sequence_sums(log_ratio_R, sequences_R)), low, high)


def icepop(
    log_ratio_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
    low: float,
    high: float,
) -> Float[Tensor, "r"]:
    """c = rho, and 0 where it is outside [low, high] (IcePop, Ling team, 2025: 0.5 and 5)."""
    return within(ratio(log_ratio_R), low, high)


def mask(
    logprobs_R: Float[Tensor, "r"],
    drawn_logprobs_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    threshold: float,
) -> Bool[Tensor, "r"]:
    """Which tokens are left out: those with pi - mu > threshold and A > 0, or pi - mu < -threshold and A < 0, where the
    probability has moved far enough already. DPPO (2602.04879), by total variation: unlike a bound of the ratio it
    spares rare tokens, whose ratio is large at any small difference."""
    moved_R = logprobs_R.exp() - drawn_logprobs_R.exp()
    return ((moved_R > threshold) & (advantages_R > 0)) | ((moved_R < -threshold) & (advantages_R < 0))


def ratio(log_ratio_R: Tensor) -> Tensor:
    """rho, at most e to the power of MOST_LOG_RATIO."""
    return log_ratio_R.clamp(max=MOST_LOG_RATIO).exp()


def clipped_objective(ratio_R: Tensor, advantages_R: Tensor, low: float, high: float) -> Tensor:
    """The ratio, 0 where the clipped branch of PPO's objective is the smaller."""
    active_R = ((ratio_R > high) & (advantages_R > 0)) | ((ratio_R < low) & (advantages_R < 0))
    return ratio_R.masked_fill(active_R, 0)


def within(ratio_R: Tensor, low: float, high: float) -> Tensor:
    """The ratio, 0 outside the bounds."""
    return ratio_R.masked_fill((ratio_R < low) | (ratio_R > high), 0)


def sequence_sums(values_R: Tensor, sequences_R: Tensor) -> Tensor:
    """The sum over each token's sequence [R]."""
    if not len(values_R):
        return values_R
    sums_S = values_R.new_zeros(int(sequences_R.max()) + 1).index_add(0, sequences_R, values_R)
    return sums_S[sequences_R]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A correction by name."""

    function: CorrectionFunction
    by_sequence: bool = False
    """Whether c depends on all tokens of a sequence."""


CORRECTIONS: dict[CorrectionName, Correction] = {
    "none": Correction(function=none),
    "tis": Correction(function=truncated),
    "aipo": Correction(function=truncated),
    "clip": Correction(function=clip),
    "cispo": Correction(function=truncated),
    "gspo": Correction(function=gspo, by_sequence=True),
    "mis": Correction(function=mis, by_sequence=True),
    "icepop": Correction(function=icepop),
}


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """The correction of some tokens."""

    factors_R: Tensor
    """c, the mask included."""
    clipped_R: Tensor
    """bool, where the bounds of the ratio changed it."""
    masked_R: Tensor
    """bool, what the mask leaves out."""


def correct(
    config: CorrectionConfig,
    logprobs_R: Float[Tensor, "r"],
    drawn_logprobs_R: Float[Tensor, "r"],
    advantages_R: Float[Tensor, "r"],
    sequences_R: Int[Tensor, "r"],
) -> Corrected:
    """The correction that `config` names, of tokens with log pi and log mu; of whole sequences where it needs them."""
    function = CORRECTIONS[config.name].function
    log_ratio_R = logprobs_R - drawn_logprobs_R
    factors_R = function(log_ratio_R, advantages_R, sequences_R, *config.bounds)
    free_R = function(log_ratio_R, advantages_R, sequences_R, 0.0, float("inf"))
    masked_R = mask(logprobs_R, drawn_logprobs_R, advantages_R, config.mask)
    return Corrected(factors_R=factors_R.masked_fill(masked_R, 0), clipped_R=factors_R != free_R, masked_R=masked_R)

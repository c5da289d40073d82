"""Corrections against the objectives of their papers, differentiated literally, and on a bandit."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd.config.rl_loss import BOUNDS, CorrectionConfig, CorrectionName
from herd.errors import HerdError
from herd.rl.corrections import CORRECTIONS, correct, mask, ratio
from herd.train import losses
from herd.train.losses import policy_cross_entropy

Objective = Callable[[Tensor, Tensor, Tensor, list[Tensor], float, float], Tensor]


def by_ratio(now: Tensor, drawn: Tensor, advantages: Tensor, _: list[Tensor], low: float, high: float) -> Tensor:
    rho = (now - drawn).exp()
    return rho.detach().clamp(low, high) * advantages * now


def clipped(rho: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(rho * advantages, rho.clamp(low, high) * advantages)


def by_gspo(now: Tensor, drawn: Tensor, advantages: Tensor, rows: list[Tensor], low: float, high: float) -> Tensor:
    means = [(now[own] - drawn[own]).mean().exp() for own in rows]
    terms = [len(own) * clipped(s, advantages[own[0]], low, high) for s, own in zip(means, rows, strict=True)]
    return torch.stack(terms)


def by_mis(now: Tensor, drawn: Tensor, advantages: Tensor, rows: list[Tensor], low: float, high: float) -> Tensor:
    products = [(now[own] - drawn[own]).exp().prod() for own in rows]
    kept = [low <= float(rho.detach()) <= high for rho in products]
    terms = [rho * advantages[own[0]] * keep for rho, own, keep in zip(products, rows, kept, strict=True)]
    return torch.stack(terms)


def by_icepop(now: Tensor, drawn: Tensor, advantages: Tensor, _: list[Tensor], low: float, high: float) -> Tensor:
    rho = (now - drawn).exp()
    return rho * advantages * ((rho >= low) & (rho <= high))


OBJECTIVES: dict[CorrectionName, Objective] = {
    "none": lambda now, drawn, advantages, rows, low, high: advantages * now,
    "tis": by_ratio,
    "aipo": by_ratio,
    "clip": lambda now, drawn, advantages, rows, low, high: clipped((now - drawn).exp(), advantages, low, high),
    "cispo": by_ratio,
    "gspo": by_gspo,
    "mis": by_mis,
    "icepop": by_icepop,
}
"""As the papers write what is maximised, summed over tokens or sequences."""


def test_every_correction_has_an_objective_and_bounds() -> None:
    assert set(OBJECTIVES) == set(CORRECTIONS) == set(BOUNDS)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    distance=st.sampled_from([0.02, 0.5, 2.0]),
    lengths=st.lists(st.integers(1, 9), min_size=1),
    masks=st.booleans(),
)
def test_the_gradient_in_chunks_is_that_of_the_papers_objective(
    name: CorrectionName, seed: int, distance: float, lengths: list[int], masks: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_tokens = sum(lengths)
    hidden, weight = draw(num_tokens, 6).requires_grad_(), draw(20, 6).requires_grad_()
    targets = torch.randint(0, 20, (num_tokens,), generator=generator)
    sequences = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantages = draw(len(lengths))[sequences]
    config = CorrectionConfig(name=name, mask=0.2 if masks else 1.0)

    now = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    drawn = (now + distance * draw(num_tokens)).detach().clamp(max=0)
    rows = [torch.nonzero(sequences == one)[:, 0] for one in range(len(lengths))]
    moved = (now.exp() - drawn.exp()).detach()
    left_out = ((advantages > 0) & (moved > 0.2)) | ((advantages < 0) & (moved < -0.2))
    literal = now
    if masks:
        literal = torch.where(left_out, now.detach(), now)  # a constant has no gradient
    objective = OBJECTIVES[name](literal, drawn, advantages, rows, *config.bounds)
    wanted = torch.autograd.grad(-objective.sum() / num_tokens, [hidden, weight], allow_unused=True)

    def factors(rows_R: Tensor, nll_R: Tensor) -> Tensor:
        if CORRECTIONS[name].by_sequence:
            return (correct(config, now.detach(), drawn, advantages, sequences).factors_R * advantages)[rows_R]
        chunk = correct(config, -nll_R, drawn[rows_R], advantages[rows_R], sequences[rows_R])
        return chunk.factors_R * advantages[rows_R]

    weights = torch.full((num_tokens,), 1 / num_tokens, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_ROWS", 16)
        loss, _ = policy_cross_entropy(hidden, weight, targets, weights, factors)
    for ours, literal in zip(torch.autograd.grad(loss, [hidden, weight]), wanted, strict=True):
        assert torch.allclose(ours, torch.zeros_like(ours) if literal is None else literal, rtol=1e-6, atol=1e-9)


def test_on_policy_every_correction_is_one_to_the_bit() -> None:
    logprobs, advantages = -torch.rand(50) * 9, torch.randn(50)
    for name in OBJECTIVES:
        found = correct(CorrectionConfig(name=name), logprobs, logprobs.clone(), advantages, torch.arange(50) // 7)
        assert torch.equal(found.factors_R, torch.ones(50)), name
        assert not found.clipped_R.any() and not found.masked_R.any()


def test_shares_of_clipped_and_masked_tokens_are_counted_apart() -> None:
    now, drawn = torch.tensor([0.9, 0.02, 0.3, 0.1]).log(), torch.tensor([0.3, 0.002, 0.3, 0.5]).log()
    found = correct(CorrectionConfig(), now, drawn, torch.tensor([1.0, 1, 1, -1]), torch.zeros(4, dtype=torch.int64))
    assert found.masked_R.tolist() == [True, False, False, True]  # moved by 0.6 up, and by 0.4 down
    assert found.clipped_R.tolist() == [True, True, False, False]
    assert found.factors_R.tolist() == pytest.approx([0, 2, 1, 0])
    opposed = mask(now, drawn, torch.tensor([-1.0, -1, -1, 1]), 0.2)
    assert not opposed.any()  # the gradient brings these back


def test_a_token_that_could_hardly_be_drawn_leaves_all_numbers_finite() -> None:
    now, drawn = torch.tensor([-1e-3] * 200), torch.tensor([-100.0] * 200)
    for name in OBJECTIVES:
        for sign in (-1.0, 1.0):
            advantages, sequences = torch.full((200,), sign), torch.zeros(200, dtype=torch.int64)
            found = correct(CorrectionConfig(name=name, mask=1.0), now, drawn, advantages, sequences)
            assert found.factors_R.isfinite().all(), name


def test_bounds_that_leave_nothing_are_refused() -> None:
    with pytest.raises(HerdError, match=r"low=1\.5 and high=1\.28 of clip leave nothing: lower low"):
        CorrectionConfig(name="clip", low=1.5)
    assert CorrectionConfig(name="clip", low=0.7).bounds == (0.7, 1.28)


# A bandit of three arms: the expectation over what mu draws is a sum, and so is the gradient of pi's expected reward.

REWARDS = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)


def expected_gradient(name: CorrectionName, logits: Tensor, mu: Tensor, high: float | None = None) -> Tensor:
    """What the loss gives of the gradient of the expected reward by the logits, over the arms that mu draws."""
    logits = logits.clone().requires_grad_()
    hidden = logits.expand(3, 3)
    advantages = REWARDS - float(torch.softmax(logits.detach(), -1) @ REWARDS)
    config = CorrectionConfig(name=name, high=high, mask=1.0)

    def factors(rows_R: Tensor, nll_R: Tensor) -> Tensor:
        own = correct(config, -nll_R, mu.log()[rows_R], advantages[rows_R], rows_R)
        return own.factors_R * advantages[rows_R]

    loss, _ = policy_cross_entropy(hidden, torch.eye(3, dtype=torch.float64), torch.arange(3), mu, factors)
    return -torch.autograd.grad(loss, logits)[0]


def true_gradient(logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(torch.softmax(logits, -1) @ REWARDS, logits)[0]


THREE = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))


@given(logits=THREE, drawn=THREE, high=st.floats(1.0, 5.0))
def test_truncation_is_biased_by_no_more_than_what_it_cuts_off(logits: Tensor, drawn: Tensor, high: float) -> None:
    mu, pi = torch.softmax(drawn, -1), torch.softmax(logits, -1)
    bias = float((expected_gradient("tis", logits, mu, high) - true_gradient(logits)).norm())
    advantage = float((REWARDS - pi @ REWARDS).abs().max())
    score = float((torch.eye(3, dtype=torch.float64) - pi).norm(dim=1).max())
    cut_off = float((mu * (pi / mu - high).clamp(min=0)).sum())
    assert bias <= advantage * score * cut_off + 1e-12
    if float((pi / mu).max()) <= high:
        assert bias < 1e-12


def test_without_a_correction_the_bias_is_plain() -> None:
    logits = torch.zeros(3, dtype=torch.float64)
    mu = torch.tensor([0.15, 0.1, 0.75], dtype=torch.float64)  # draws the best arm too rarely
    true = true_gradient(logits)
    left = {name: float((expected_gradient(name, logits, mu) - true).norm() / true.norm()) for name in ("none", "tis")}
    assert left["none"] > 0.4
    assert left["tis"] < 0.5 * left["none"]
    assert float((expected_gradient("tis", logits, mu, 4.0) - true).norm()) < 1e-12


def test_ratios_are_cut_where_fp32_would_overflow() -> None:
    assert float(ratio(torch.tensor([1000.0]))) == pytest.approx(math.exp(20), rel=1e-5)

"""Losses against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.core.batch import Batch
from herd.model.transformer import Transformer
from herd.train import losses
from herd.train.balance import balance_loss, max_violation
from herd.train.losses import (
    cross_entropy,
    language_loss,
    soft_cross_entropy,
    softmax_gradient,
    token_entropy,
    token_logprobs,
)


def test_chunked_cross_entropy_has_the_value_and_gradients_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 8, generator=generator).requires_grad_()
    weight = torch.randn(30, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, 30, (70,), generator=generator)
    weights = torch.rand(70, generator=generator) * (torch.arange(70) % 3 > 0)
    ours, terms = cross_entropy(hidden, weight, targets, weights)
    (2 * ours).backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (2 * (plain * weights).sum()).backward()
    assert torch.allclose(ours, (plain * weights).sum(), atol=1e-5)
    assert torch.allclose(terms, plain * (weights > 0), atol=1e-5)
    assert torch.allclose(gradients[0], hidden.grad, atol=1e-5)
    assert torch.allclose(gradients[1], weight.grad, atol=1e-5)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_token_logprobs_and_their_gradients_are_those_of_whole_logits(
    dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)
    hidden, weight, upstream = random(70, 8, dtype=dtype), random(30, 8, seed=1, dtype=dtype), random(70, dtype=dtype)
    targets = torch.randint(0, 30, (70,), generator=torch.Generator().manual_seed(0))
    plain = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    ours = token_logprobs(hidden, weight, targets)
    assert torch.allclose(ours, plain, atol=near)
    # Signed, and through a function of the log-probability, as a policy's loss has them.
    for one, other in zip(
        gradients((upstream * ours.exp()).sum(), hidden, weight),
        gradients((upstream * plain.exp()).sum(), hidden, weight),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=near)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_token_entropy_and_its_gradients_are_those_of_whole_logits(
    dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)
    hidden, weight, upstream = random(70, 8, dtype=dtype), random(30, 8, seed=1, dtype=dtype), random(70, dtype=dtype)
    log = torch.log_softmax(hidden @ weight.T, -1)
    plain, ours = -(log.exp() * log).sum(-1), token_entropy(hidden, weight)
    assert torch.allclose(ours, plain, atol=near)
    for one, other in zip(
        gradients((upstream * ours).sum(), hidden, weight),
        gradients((upstream * plain).sum(), hidden, weight),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=near)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_soft_targets_of_which_some_repeat_are_those_of_whole_logits(
    dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = random(70, 8, dtype=dtype), random(30, 8, seed=1, dtype=dtype)
    targets = torch.randint(0, 30, (70, 13), generator=generator)  # of 30: most rows have some twice
    targets[0] = 7
    shares = torch.rand(70, 13, generator=generator, dtype=dtype).softmax(-1)
    weights = torch.randn(70, generator=generator, dtype=dtype) * (torch.arange(70) % 3 > 0)
    terms = -(shares * torch.log_softmax(hidden @ weight.T, -1).gather(1, targets)).sum(-1)
    ours, ours_terms = soft_cross_entropy(hidden, weight, targets, shares, weights)
    assert torch.allclose(ours, (weights * terms).sum(), atol=10 * near)
    assert torch.allclose(ours_terms, terms * (weights != 0), atol=near)
    for one, other in zip(
        gradients(2 * ours, hidden, weight), gradients(2 * (weights * terms).sum(), hidden, weight), strict=True
    ):
        assert torch.allclose(one, other, atol=10 * near)


def test_one_soft_target_is_the_hard_one() -> None:
    hidden, weight = random(20, 8, dtype=torch.bfloat16), random(30, 8, seed=1, dtype=torch.bfloat16)
    targets, weights = torch.arange(20), torch.rand(20, generator=torch.Generator().manual_seed(0))
    hard, _ = cross_entropy(hidden, weight, targets, weights)
    soft, _ = soft_cross_entropy(hidden, weight, targets[:, None], torch.ones(20, 1), weights)
    assert torch.equal(hard, soft)
    for one, other in zip(gradients(hard, hidden, weight), gradients(soft, hidden, weight), strict=True):
        assert torch.equal(one, other)


def test_probabilities_are_fp32_without_the_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.native, "why_not", lambda *_: "left out")
    logits = random(64, 500, dtype=torch.float32).detach().mul(4).bfloat16()
    targets = torch.arange(64)
    exact = torch.log_softmax(logits.double(), -1).gather(1, targets[:, None])[:, 0]
    assert (softmax_gradient(logits, targets) + exact).abs().max() < 1e-5  # in bf16 it was 0.4 %


def test_signed_weights_that_sum_to_zero_leave_the_loss_finite_and_its_parts_add_up() -> None:
    class Head(Transformer):
        """The hidden states are the tokens' embeddings."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.embedding = torch.nn.Embedding(30, 8)
            self.unembedding = torch.nn.Linear(8, 30, bias=False)

        def forward(self, tokens_N: Tensor, **_: object) -> Tensor:
            hidden_ND: Tensor = self.embedding(tokens_N)
            return hidden_ND

    torch.manual_seed(0)
    model, weights = Head(), torch.tensor([0.5, -0.5, 1.0, -1.0])
    batch = Batch(
        tokens_N=torch.arange(4),
        targets_N=torch.arange(4) + 1,
        weights_N=weights,
        positions_N=torch.arange(4),
        starts_S=torch.tensor([0, 4], dtype=torch.int32),
        images=None,
        kinds_N=torch.zeros(4, dtype=torch.int8),
    )
    assert batch.total_weight == 3
    loss, metrics = language_loss(0.0)(model, batch)
    terms = F.cross_entropy(model(batch.tokens_N) @ model.unembedding.weight.T, batch.targets_N, reduction="none")
    assert float(loss) == pytest.approx(float((weights * terms).sum()) / 3, abs=1e-6)
    assert metrics["loss"] == pytest.approx(float(loss), abs=1e-6)
    assert metrics["text_loss"].count == 4  # type: ignore[union-attr]


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all() -> None:
    even = torch.zeros(12, 4)
    assert balance_loss(even, torch.full((4,), 0.25)) == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0, 0, 0]]).repeat(12, 1)
    assert balance_loss(one, torch.tensor([1.0, 0, 0, 0])) == pytest.approx(4.0)
    assert max_violation(torch.tensor([1.0, 0, 0, 0])) == pytest.approx(3.0)
    assert max_violation(torch.full((4,), 0.25)) == pytest.approx(0.0)

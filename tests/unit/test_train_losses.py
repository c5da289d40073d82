"""Losses against plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from herd.train import losses
from herd.train.balance import balance_loss, max_violation
from herd.train.losses import cross_entropy


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


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all() -> None:
    even = torch.zeros(12, 4)
    assert balance_loss(even, torch.full((4,), 0.25)) == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0, 0, 0]]).repeat(12, 1)
    assert balance_loss(one, torch.tensor([1.0, 0, 0, 0])) == pytest.approx(4.0)
    assert max_violation(torch.tensor([1.0, 0, 0, 0])) == pytest.approx(3.0)
    assert max_violation(torch.full((4,), 0.25)) == pytest.approx(0.0)

"""Draws from a teacher's softmax, and the loss that learns from them."""

from dataclasses import replace

import pytest
import torch
from parallel_world import RandomBatches, small_model

from herd.core.batch import Images
from herd.model.attention import Sharing
from herd.train.losses import cross_entropy, distillation_cross_entropy, soft_cross_entropy
from herd.train.teacher import BLOCK, Teacher, draw


def chi_square_z(value: float, free: int) -> float:
    """How many standard deviations a sum of squares is above what is expected (Wilson and Hilferty)."""
    spread = 2 / (9 * free)
    return ((value / free) ** (1 / 3) - (1 - spread)) / spread**0.5


def softmax(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return torch.softmax(logits, -1)


def test_draws_are_those_of_the_inverse_of_the_whole_sum() -> None:
    for num_tokens in (5, BLOCK, 3 * BLOCK + 7):
        probs = softmax(40, num_tokens)
        uniforms = torch.rand(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        plain = torch.searchsorted(probs.cumsum(-1), uniforms, right=True)
        assert torch.equal(draw(probs, uniforms), plain)


def test_draws_have_the_teachers_frequencies_in_the_tail_too() -> None:
    probs = softmax(1, 300, scale=3.0)
    uniforms = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    counts = torch.bincount(draw(probs.float(), uniforms)[0], minlength=300).double()
    expected = probs[0] * uniforms.numel()
    rare = expected < 5  # together, as the test asks for it
    pair = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected)]
    value = float(((pair[0] - pair[1]) ** 2 / pair[1]).sum())
    assert abs(chi_square_z(value, len(pair[0]) - 1)) < 3.3


def test_a_token_without_probability_is_never_drawn() -> None:
    probs = torch.zeros(2, 2 * BLOCK)
    probs[0, 3], probs[1, BLOCK + 5] = 1.0, 1.0
    edges = torch.tensor([[0.0, 0.5, 1 - 2**-53]] * 2, dtype=torch.float64)
    assert draw(probs, edges).tolist() == [[3] * 3, [BLOCK + 5] * 3]


def student(tokens: int = 70, width: int = 8, vocab: int = 30) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    draws = torch.randint(0, vocab, (tokens, 6), generator=generator)
    teacher = -torch.rand(tokens, generator=generator, dtype=torch.float64) * 5
    teacher[::4] = torch.nan
    weights = torch.rand(tokens, generator=generator, dtype=torch.float64) * (torch.arange(tokens) % 3 > 0)
    return hidden, weight, targets, draws, teacher, weights


def test_the_distillation_loss_and_its_gradients_are_those_of_whole_logits() -> None:
    hidden, weight, targets, draws, teacher, weights = student()
    for scale in (0.7, None):
        loss, terms = distillation_cross_entropy(
            hidden, weight, targets, draws, teacher, weights, alpha=0.8, confidence_scale=scale
        )
        ours = torch.autograd.grad(loss, (hidden, weight))
        log = torch.log_softmax(hidden @ weight.T, -1)
        hard, soft = -log.gather(1, targets[:, None])[:, 0], -log.gather(1, draws).mean(1)
        factor = torch.ones(70).double() if scale is None else torch.sigmoid((teacher + hard.detach()) / scale)
        alpha = torch.where(teacher.isnan(), 0.0, 0.8 * factor)
        plain = (weights * ((1 - alpha) * hard + alpha * soft)).sum()
        assert torch.allclose(loss, plain, atol=1e-12)
        assert torch.allclose(terms.hard_N, hard.detach() * (weights > 0), atol=1e-12)
        assert torch.allclose(terms.alpha_N, alpha * (weights > 0), atol=1e-12)
        for one, other in zip(ours, torch.autograd.grad(plain, (hidden, weight)), strict=True):
            assert torch.allclose(one, other, atol=1e-12)


def test_without_a_teachers_rows_the_loss_is_the_hard_one() -> None:
    hidden, weight, targets, draws, teacher, weights = student()
    loss, _ = distillation_cross_entropy(
        hidden, weight, targets, draws, torch.full_like(teacher, torch.nan), weights, alpha=0.9, confidence_scale=1.0
    )
    hard, _ = cross_entropy(hidden, weight, targets, weights)
    assert torch.allclose(loss, hard, atol=1e-12)


def gradient_over_caches(kept: str, caches: int = 10_000, draws: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a student with 64 tokens: its gradient by the logits over caches of one position each, less that of the whole
    softmax; mean and standard error."""
    teacher, own = softmax(1, 64, seed=4), softmax(1, 64, seed=5)
    hidden = own.log().expand(caches, -1).contiguous().requires_grad_()
    uniforms = torch.rand(caches, draws, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    drawn = draw(teacher.expand(caches, -1), uniforms)
    if kept == "top":  # the same bytes: the likeliest tokens, each with its share of their sum
        values, drawn = (x.expand(caches, -1) for x in teacher.topk(draws))
    every = torch.zeros(caches, dtype=torch.int64)
    weights = torch.ones(caches, dtype=torch.float64)
    if kept == "top":
        loss, _ = soft_cross_entropy(hidden, torch.eye(64).double(), drawn, values / values.sum(1, True), weights)
    else:
        loss, _ = distillation_cross_entropy(
            hidden, torch.eye(64).double(), every, drawn, torch.zeros(caches), weights, alpha=1.0, confidence_scale=None
        )
    [gradients] = torch.autograd.grad(loss, hidden)
    error = gradients - (own - teacher)
    return error.mean(0), error.std(0) / caches**0.5


def test_the_mean_gradient_over_ten_thousand_caches_is_that_of_the_whole_softmax_and_that_of_the_top_is_not() -> None:
    mean, error = gradient_over_caches("draws")
    assert (mean.abs() < 4 * error).all()
    assert chi_square_z(float(((mean / error) ** 2).sum()), 63) < 3.3
    top, _ = gradient_over_caches("top", caches=128)
    assert float(top.abs().max()) > 20 * float(error.max())


def test_the_kernels_of_bf16_give_the_distillation_loss_of_whole_logits() -> None:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(150, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(512, 64, generator=generator) * 0.2).bfloat16().requires_grad_()
    targets = torch.randint(0, 512, (150,), generator=generator)
    draws = torch.randint(0, 512, (150, 12), generator=generator)
    teacher, weights = torch.full((150,), -2.0), torch.rand(150, generator=generator)
    loss, terms = distillation_cross_entropy(
        hidden, weight, targets, draws, teacher, weights, alpha=0.8, confidence_scale=1.0
    )
    log = torch.log_softmax((hidden.detach() @ weight.detach().T).float(), -1)
    hard, soft = -log.gather(1, targets[:, None])[:, 0], -log.gather(1, draws).mean(1)
    alpha = 0.8 * torch.sigmoid(teacher + hard)
    assert torch.allclose(terms.hard_N, hard, atol=1e-3)
    assert torch.allclose(loss, (weights * ((1 - alpha) * hard + alpha * soft)).sum(), rtol=1e-4)
    loss.backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all() and hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("as_drawn", [False, True])
@pytest.mark.parametrize("pictures", [False, True])
def test_the_engines_forward_reads_what_the_transformers_own_does_beyond_a_chunk_too(
    pictures: bool, as_drawn: bool
) -> None:
    model = small_model().eval().requires_grad_(False)
    batch = RandomBatches(lengths=(150, 1, 9, 70), pictures=pictures).batch(0)
    assert model.config.chunk_size < 70
    uniforms = torch.rand(int((batch.weights_N != 0).sum()), 12, dtype=torch.float64)
    fused, plain = Teacher(model, as_drawn=as_drawn), Teacher(model, shared=True)
    for _ in range(2):  # the cache of the first is used again
        ours, theirs = (teacher.rows(batch, uniforms) for teacher in (fused, plain))
        assert torch.equal(ours.tokens_R, theirs.tokens_R)
        assert torch.allclose(ours.logprobs_R, theirs.logprobs_R, atol=1e-3)
        assert torch.allclose(ours.entropies_R, theirs.entropies_R, atol=1e-3)
        assert (ours.draws_RK == theirs.draws_RK).double().mean() > 0.999


def test_documents_that_begin_alike_are_read_as_if_each_were_read_whole() -> None:
    model = small_model().eval().requires_grad_(False)
    length, common = 90, 70  # more than a chunk, with a picture of two tiles
    assert model.config.chunk_size < common
    batch = RandomBatches(lengths=(length, length), pictures=True).batch(0)
    assert batch.images is not None
    batch.tokens_N[length : length + common] = batch.tokens_N[:common]
    tiles, rows = batch.images.tiles, batch.images.rows
    batch = replace(batch, images=Images(tiles=torch.cat([tiles, tiles]), rows=torch.cat([rows, rows + length])))
    pick_M = torch.cat([torch.arange(length), torch.arange(length + common, 2 * length)])
    expand_N = torch.cat([torch.arange(length), torch.arange(common), torch.arange(length, 2 * length - common)])
    reader, drawn_N = Teacher(model, as_drawn=True), batch.weights_N != 0
    whole_N, once_N = (
        reader.logprobs(batch, one)[drawn_N] for one in (None, Sharing(expand_N=expand_N, pick_M=pick_M))
    )
    assert torch.equal(whole_N, once_N)

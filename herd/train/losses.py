"""Losses over a vocabulary as pure functions; logits exist for some rows at a time and never whole.

`cross_entropy`, its soft forms and that of a policy compute their gradients in the forward, as they know what each row
weighs.
`token_logprobs` and `token_entropy` do not, so their backward computes the logits again: one product more. Logits have
the precision of the hidden states; probabilities and their logarithms are fp32, or fp64 of fp64.
"""

# N tokens, D width, V vocabulary, K targets of a token, R rows of a chunk

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd import native
from herd.core.batch import KINDS, Batch
from herd.core.device import send, sum_dtype
from herd.core.metrics import Mean, Number
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.balance import total_balance_loss

CHUNK_ROWS = 512
"""Tokens whose logits exist at one time."""
ROW_MULTIPLE = 128
"""A chunk is filled up to this: CPU products are compiled for each shape, and so there are few."""


def cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_N: Int[Tensor, "n"],
    weights_N: Float[Tensor, "n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * -log softmax(U h_i)[t_i], in nats, and the unweighted terms (without gradient; 0 where w_i = 0).

    Give weights that sum to 1 for a mean. They may have any sign. On the host they show which rows have a weight
    without waiting for the device.
    """
    return _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_N, None, None, weights_N)


def soft_cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_NK: Int[Tensor, "n k"],
    shares_NK: Float[Tensor, "n k"],
    weights_N: Float[Tensor, "n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * sum_k s_ik * -log softmax(U h_i)[t_ik], in nats, and the unweighted terms, as `cross_entropy` has
    them; no product more than there.

    The shares of a row sum to 1, and a token may come several times.
    """

    def fixed(rows_R: Tensor, _: Tensor) -> Tensor:
        return shares_NK[rows_R]

    return _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_NK, fixed, None, weights_N)


FactorsOf = Callable[[Tensor, Tensor], Tensor]
"""Numbers of tokens [R] and -log p of their targets [R] to what their weights are multiplied by [R]."""


def policy_cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_N: Int[Tensor, "n"],
    weights_N: Float[Tensor, "n"],
    factors: FactorsOf,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * f_i * -log softmax(U h_i)[t_i], in nats, and -log softmax alone, as `cross_entropy` has them; no
    product more than there.

    f_i is a function of the token's own log-probability, as the corrections of a policy gradient are, and a constant
    for the gradient: it is computed in the chunk, before the gradient is scaled. `factors` is called once for each
    chunk, with the tokens that have a weight, in order.
    """
    return _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_N, None, factors, weights_N)


@dataclass(frozen=True, kw_only=True)
class DistillationTerms:
    """What `distillation_loss` records of each token, without gradient; 0 where its weight is 0."""

    hard_N: Tensor
    """-log p_S(y) in nats, y the token of the text: what `cross_entropy` gives."""
    alpha_N: Tensor
    """The share of the teacher's draws; 0 without a teacher's row."""


def distillation_cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_N: Int[Tensor, "n"],
    draws_NK: Int[Tensor, "n k"],
    teacher_logprobs_N: Float[Tensor, "n"],
    weights_N: Float[Tensor, "n"],
    *,
    alpha: float,
    confidence_scale: float | None,
) -> tuple[Float[Tensor, ""], DistillationTerms]:
    """sum_i w_i * [(1 - a_i) * -log p_S(y_i) + a_i * mean_k -log p_S(d_ik)], in nats, with the student's probabilities
    p_S = softmax(U h), the text's token y and K tokens d drawn from the teacher's softmax.

    The draws' mean estimates the cross-entropy with the teacher's whole distribution without bias, and costs no product
    more than `cross_entropy`. Soft and hard targets are weighed token by token, a_i = alpha * sigmoid((log p_T(y_i) -
    log p_S(y_i)) / confidence_scale) without gradient: the teacher counts where it knows the text better than the
    student. Without a scale a_i = alpha. Where the teacher's log-probability is NaN there is no row, and a_i = 0.
    """
    hard_N = torch.zeros(len(hidden_ND), dtype=sum_precision(hidden_ND), device=hidden_ND.device)
    alpha_N, num_draws = torch.zeros_like(hard_N), draws_NK.shape[1]

    def shares(rows_R: Tensor, loss_RK: Tensor) -> Tensor:
        teacher_R = teacher_logprobs_N[rows_R].to(loss_RK.dtype)
        factor_R = torch.ones_like(teacher_R)
        if confidence_scale is not None:
            factor_R = torch.sigmoid((teacher_R + loss_RK[:, 0]) / confidence_scale)
        alpha_R = torch.where(teacher_R.isnan(), 0.0, alpha * factor_R)
        hard_N[rows_R], alpha_N[rows_R] = loss_RK[:, 0], alpha_R
        draws_RK = (alpha_R / num_draws)[:, None].expand(-1, num_draws)
        return torch.cat([(1 - alpha_R)[:, None], draws_RK], dim=1)

    targets_NK = torch.cat([targets_N[:, None], draws_NK], dim=1)
    loss, _ = _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_NK, shares, None, weights_N)
    unlearnt_N = send(weights_N, hidden_ND.device) == 0
    return loss, DistillationTerms(
        hard_N=hard_N.masked_fill_(unlearnt_N, 0), alpha_N=alpha_N.masked_fill_(unlearnt_N, 0)
    )


def token_logprobs(
    hidden_ND: Float[Tensor, "n d"], unembedding_VD: Float[Tensor, "v d"], targets_N: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """log softmax(U h_i)[t_i] of each token, with gradient."""
    return _TokenLogprobs.apply(hidden_ND, unembedding_VD, targets_N)


def token_entropy(hidden_ND: Float[Tensor, "n d"], unembedding_VD: Float[Tensor, "v d"]) -> Float[Tensor, "n"]:
    """-sum_v p_iv log p_iv with p_i = softmax(U h_i), in nats, with gradient."""
    return _TokenEntropy.apply(hidden_ND, unembedding_VD)


SharesOf = Callable[[Tensor, Tensor], Tensor]
"""Numbers of tokens [R] and -log p of each of their targets [R, K] to the targets' shares [R, K]."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets, shares, factors, weights_N):  # type: ignore[no-untyped-def]
        learnt = send(torch.nonzero(weights_N)[:, 0], hidden_ND.device)
        weights_N = send(weights_N, hidden_ND.device)
        if factors is not None:
            weights_N = weights_N.clone()  # multiplied in place
        frozen = not ctx.needs_input_grad[1]
        losses_N, *grads = nll_gradients(
            hidden_ND, weight_VD, targets, shares, weights_N, learnt, factors=factors, frozen=frozen
        )
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, None if grad_weight is None else grad_weight * grad_sum, None, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=sum_precision(hidden_ND))
        for rows, logits_RV in logit_chunks(hidden_ND, weight_VD):
            logprobs_N[rows] = -softmax_gradient(logits_RV, targets_N[rows])
        return logprobs_N

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        learnt = torch.nonzero(grad_N)[:, 0]
        _, grad_hidden, grad_weight = nll_gradients(hidden_ND, weight_VD, targets_N, None, -grad_N, learnt)
        return grad_hidden, grad_weight, None


class _TokenEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD):  # type: ignore[no-untyped-def]
        entropy_N = hidden_ND.new_empty(len(hidden_ND), dtype=sum_precision(hidden_ND))
        for rows, logits_RV in logit_chunks(hidden_ND, weight_VD):
            log_RV = torch.log_softmax(logits_RV, -1, dtype=sum_precision(logits_RV))
            entropy_N[rows] = -(log_RV.exp() * log_RV).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, entropy_N)
        return entropy_N

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        hidden_ND, weight_VD, entropy_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_precision(weight_VD))
        for rows, logits_RV in logit_chunks(hidden_ND, weight_VD):
            log_RV = torch.log_softmax(logits_RV, -1, dtype=sum_precision(logits_RV))
            # d H / d logit_v = -p_v (log p_v + H)
            slope_RV = (log_RV + entropy_N[rows, None]).mul_(log_RV.exp()).mul_(-grad_N[rows, None])
            logits_RV.copy_(slope_RV)
            torch.mm(logits_RV, weight_VD, out=grad_hidden[rows])
            grad_weight += logits_RV.T @ hidden_ND[rows]
        return grad_hidden, grad_weight.to(weight_VD.dtype)


def sum_precision(x: Tensor) -> torch.dtype:
    """The precision of probabilities and sums: fp32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def logit_chunks(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of hidden states and their logits; all chunks share one buffer, which may be written into."""
    # One buffer for all chunks: fresh pages for each would cost more than the softmax.
    most = min(CHUNK_ROWS, len(hidden_ND))
    buffer = hidden_ND.new_empty(most + -most % ROW_MULTIPLE, len(weight_VD))
    for begin in range(0, len(hidden_ND), CHUNK_ROWS):
        rows = slice(begin, min(begin + CHUNK_ROWS, len(hidden_ND)))
        chunk = hidden_ND[rows]
        size = len(chunk)
        if filling := -size % ROW_MULTIPLE:
            chunk = F.pad(chunk, (0, 0, 0, filling))
        yield rows, torch.mm(chunk, weight_VD.T, out=buffer[: len(chunk)])[:size]


def nll_gradients(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    shares: SharesOf | None,
    weights_N: Tensor,
    learnt: Tensor,
    *,
    factors: FactorsOf | None = None,
    frozen: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The terms of a cross-entropy and the gradients of their weighted sum by the hidden states and, unless that is
    `frozen`, the unembedding; only the rows `learnt`, those that weigh something, are computed. Without shares
    `targets` is [N], else [N, K]. With `factors` the weights are multiplied by them, in place."""
    losses_N = torch.zeros(len(hidden_ND), dtype=sum_precision(hidden_ND), device=hidden_ND.device)
    grad_hidden = torch.zeros_like(hidden_ND)
    grad_weight = None if frozen else torch.zeros_like(weight_VD, dtype=sum_precision(weight_VD))
    filling = -len(learnt) % ROW_MULTIPLE

    def learnt_rows(x: Tensor) -> Tensor:
        """The learnt rows, filled up with zeros."""
        return F.pad(x[learnt], (0, 0) * (x.ndim - 1) + (0, filling))

    hidden, target = learnt_rows(hidden_ND), learnt_rows(targets)
    # The weights go on the narrow side of the products.
    weight_1 = learnt_rows(weights_N)[:, None].to(hidden_ND.dtype)
    grad, losses = torch.empty_like(hidden), losses_N.new_empty(len(hidden))
    for rows, logits_RV in logit_chunks(hidden, weight_VD):
        if shares is None:
            losses[rows] = softmax_gradient(logits_RV, target[rows])
        else:
            numbers_R = learnt[rows]  # without the filling, whose gradient is multiplied by 0
            logits_RV[len(numbers_R) :] = 0
            size = slice(rows.start, rows.start + len(numbers_R))
            losses[size] = soft_gradient(logits_RV[: len(numbers_R)], target[size], partial(shares, numbers_R))
        if factors is not None:
            numbers_R = learnt[rows]
            size = slice(rows.start, rows.start + len(numbers_R))
            weights_N[numbers_R] *= factors(numbers_R, losses[size]).to(weights_N.dtype)
            weight_1[size] = weights_N[numbers_R, None].to(weight_1.dtype)
        torch.mm(logits_RV, weight_VD, out=grad[rows])
        if grad_weight is not None:
            grad_weight += logits_RV.T @ (hidden[rows] * weight_1[rows])
    losses_N[learnt] = losses[: len(learnt)]
    grad_hidden[learnt] = (grad * weight_1)[: len(learnt)]
    return losses_N, grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype)


def softmax_gradient(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    """-log softmax(logits)[target]; in place, the logits become its gradient, softmax - onehot(target)."""
    if native.why_not(logits_RV) is None:
        return native.softmax_gradient(logits_RV, target_R)
    target_R1 = target_R[:, None]
    log_RV = torch.log_softmax(logits_RV, -1, dtype=sum_precision(logits_RV))
    losses_R = -log_RV.gather(1, target_R1)[:, 0]
    logits_RV.copy_(log_RV.exp_().scatter_add_(1, target_R1, log_RV.new_full(target_R1.shape, -1)))
    return losses_R


def soft_gradient(logits_RV: Tensor, target_RK: Tensor, shares: Callable[[Tensor], Tensor]) -> Tensor:
    """sum_k share_k * -log softmax(logits)[target_k], the shares being a function of these terms [R, K]; in place, the
    logits become its gradient, softmax - sum_k share_k onehot(target_k), as if the shares were constants."""
    at_RK = logits_RV.gather(1, target_RK).to(sum_precision(logits_RV))
    first_R = softmax_gradient(logits_RV, target_RK[:, 0].contiguous())
    loss_RK = first_R[:, None] + at_RK[:, :1] - at_RK
    share_RK = shares(loss_RK)
    # Set, not added: a sum with what stands there would keep its rounding. Equal targets get the same value.
    same_RKK = target_RK[:, :, None] == target_RK[:, None, :]
    gradient_RK = (-loss_RK).exp() - (same_RKK * share_RK[:, None, :]).sum(-1)
    logits_RV.scatter_(1, target_RK, gradient_RK.to(logits_RV.dtype))
    return (loss_RK * share_RK).sum(-1)


def language_loss(
    balance_coefficient: float, parallel: Parallel = ALONE
) -> Callable[[Transformer, Batch], tuple[Tensor, dict[str, Number | Mean]]]:
    """The loss function of pre-training and fine-tuning: mean cross-entropy of the learnt tokens by their weights, plus
    `balance_coefficient` times the load-balancing loss. Its metrics: the cross-entropy, in all and by kind of token.
    The losses of all parts of a batch, on all ranks, sum to that of the whole batch."""

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Number | Mean]]:
        hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
        mean, losses_N = cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.shares_N)
        if balance_coefficient:
            mean = mean + balance_coefficient * total_balance_loss(model, parallel.sum_counts)
        return mean, cross_entropy_metrics(losses_N, batch)

    return loss_fn


def cross_entropy_metrics(losses_N: Float[Tensor, "n"], batch: Batch) -> dict[str, Number | Mean]:
    """The cross-entropy of the learnt tokens, by their weights in all and as means by kind."""
    # fp64: what is recorded does not depend on how the tokens are dealt out.
    dtype = sum_dtype(losses_N.device)
    exact = losses_N.to(dtype) @ send(batch.shares_N.to(dtype), losses_N.device)
    return {"loss": exact, **losses_by_kind(losses_N, batch)}


def losses_by_kind(losses_N: Float[Tensor, "n"], batch: Batch) -> dict[str, Mean]:
    """Mean loss of the learnt tokens of each kind in the batch."""
    found = {}
    for index, name in enumerate(KINDS):
        rows = torch.nonzero((batch.weights_N != 0) & (batch.kinds_N == index))[:, 0]
        of_kind = losses_N[send(rows, losses_N.device)]
        found[f"{name}_loss"] = Mean(of_kind.to(sum_dtype(of_kind.device)).sum(), len(rows))
    return found

"""Losses over a vocabulary as pure functions; logits exist for some rows at a time and never whole.

`cross_entropy` and `soft_cross_entropy` compute their gradients in the forward, as they know what each row weighs.
`token_logprobs` and `token_entropy` do not, so their backward computes the logits again: one product more. Logits have
the precision of the hidden states; probabilities and their logarithms are fp32, or fp64 of fp64.
"""

# N tokens, D width, V vocabulary, K targets of a token, R rows of a chunk

from collections.abc import Callable, Iterator

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
    return _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_N, None, weights_N)


def soft_cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_NK: Int[Tensor, "n k"],
    shares_NK: Float[Tensor, "n k"],
    weights_N: Float[Tensor, "n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * sum_k s_ik * -log softmax(U h_i)[t_ik], in nats, and the unweighted terms, as `cross_entropy` has
    them; no product more than there.

    The shares of a row sum to 1, and a token may come several times. For distillation with K - 1 tokens drawn from the
    teacher: the token of the text with a share of 1 - alpha, each draw with alpha / (K - 1).
    """
    return _CrossEntropy.apply(hidden_ND, unembedding_VD, targets_NK, shares_NK, weights_N)


def token_logprobs(
    hidden_ND: Float[Tensor, "n d"], unembedding_VD: Float[Tensor, "v d"], targets_N: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """log softmax(U h_i)[t_i] of each token, with gradient."""
    return _TokenLogprobs.apply(hidden_ND, unembedding_VD, targets_N)


def token_entropy(hidden_ND: Float[Tensor, "n d"], unembedding_VD: Float[Tensor, "v d"]) -> Float[Tensor, "n"]:
    """-sum_v p_iv log p_iv with p_i = softmax(U h_i), in nats, with gradient."""
    return _TokenEntropy.apply(hidden_ND, unembedding_VD)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets, shares_NK, weights_N):  # type: ignore[no-untyped-def]
        learnt = send(torch.nonzero(weights_N)[:, 0], hidden_ND.device)
        weights_N = send(weights_N, hidden_ND.device)
        frozen = not ctx.needs_input_grad[1]
        losses_N, *grads = nll_gradients(hidden_ND, weight_VD, targets, shares_NK, weights_N, learnt, frozen=frozen)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, None if grad_weight is None else grad_weight * grad_sum, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=wide(hidden_ND))
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
        entropy_N = hidden_ND.new_empty(len(hidden_ND), dtype=wide(hidden_ND))
        for rows, logits_RV in logit_chunks(hidden_ND, weight_VD):
            log_RV = torch.log_softmax(logits_RV, -1, dtype=wide(logits_RV))
            entropy_N[rows] = -(log_RV.exp() * log_RV).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, entropy_N)
        return entropy_N

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        hidden_ND, weight_VD, entropy_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=wide(weight_VD))
        for rows, logits_RV in logit_chunks(hidden_ND, weight_VD):
            log_RV = torch.log_softmax(logits_RV, -1, dtype=wide(logits_RV))
            # d H / d logit_v = -p_v (log p_v + H)
            slope_RV = (log_RV + entropy_N[rows, None]).mul_(log_RV.exp()).mul_(-grad_N[rows, None])
            logits_RV.copy_(slope_RV)
            torch.mm(logits_RV, weight_VD, out=grad_hidden[rows])
            grad_weight += logits_RV.T @ hidden_ND[rows]
        return grad_hidden, grad_weight.to(weight_VD.dtype)


def wide(x: Tensor) -> torch.dtype:
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
    shares_NK: Tensor | None,
    weights_N: Tensor,
    learnt: Tensor,
    *,
    frozen: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The terms of a cross-entropy and the gradients of their weighted sum by the hidden states and, unless that is
    `frozen`, the unembedding; only the rows `learnt`, those that weigh something, are computed. Without shares
    `targets` is [N], else [N, K]."""
    losses_N = torch.zeros(len(hidden_ND), dtype=wide(hidden_ND), device=hidden_ND.device)
    grad_hidden = torch.zeros_like(hidden_ND)
    grad_weight = None if frozen else torch.zeros_like(weight_VD, dtype=wide(weight_VD))
    filling = -len(learnt) % ROW_MULTIPLE

    def chosen(x: Tensor) -> Tensor:
        """The learnt rows, filled up with zeros."""
        return F.pad(x[learnt], (0, 0) * (x.ndim - 1) + (0, filling))

    hidden, target = chosen(hidden_ND), chosen(targets)
    share = None if shares_NK is None else chosen(shares_NK)
    # The weights go on the narrow side of the products.
    weight_1 = chosen(weights_N)[:, None].to(hidden_ND.dtype)
    scaled = hidden * weight_1
    grad, losses = torch.empty_like(hidden), losses_N.new_empty(len(hidden))
    for rows, logits_RV in logit_chunks(hidden, weight_VD):
        if share is None:
            losses[rows] = softmax_gradient(logits_RV, target[rows])
        else:
            losses[rows] = soft_gradient(logits_RV, target[rows], share[rows])
        torch.mm(logits_RV, weight_VD, out=grad[rows])
        if grad_weight is not None:
            grad_weight += logits_RV.T @ scaled[rows]
    losses_N[learnt] = losses[: len(learnt)]
    grad_hidden[learnt] = (grad * weight_1)[: len(learnt)]
    return losses_N, grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype)


def softmax_gradient(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    """-log softmax(logits)[target]; in place, the logits become its gradient, softmax - onehot(target)."""
    if native.why_not(logits_RV) is None:
        return native.softmax_gradient(logits_RV, target_R)
    target_R1 = target_R[:, None]
    log_RV = torch.log_softmax(logits_RV, -1, dtype=wide(logits_RV))
    losses_R = -log_RV.gather(1, target_R1)[:, 0]
    logits_RV.copy_(log_RV.exp_().scatter_add_(1, target_R1, log_RV.new_full(target_R1.shape, -1)))
    return losses_R


def soft_gradient(logits_RV: Tensor, target_RK: Tensor, share_RK: Tensor) -> Tensor:
    """sum_k share_k * -log softmax(logits)[target_k]; in place, the logits become its gradient,
    softmax - sum_k share_k onehot(target_k)."""
    at_RK = logits_RV.gather(1, target_RK).to(wide(logits_RV))
    first_R = softmax_gradient(logits_RV, target_RK[:, 0])
    loss_RK = first_R[:, None] + at_RK[:, :1] - at_RK
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
        shares_N = batch.shares_N
        mean, losses_N = cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, shares_N)
        # fp64: what is recorded does not depend on how the tokens are dealt out.
        wide = sum_dtype(losses_N.device)
        exact = losses_N.to(wide) @ send(shares_N.to(wide), losses_N.device)
        metrics: dict[str, Number | Mean] = {"loss": exact, **losses_by_kind(losses_N, batch)}
        if balance_coefficient:
            mean = mean + balance_coefficient * total_balance_loss(model, parallel.sum_counts)
        return mean, metrics

    return loss_fn


def losses_by_kind(losses_N: Float[Tensor, "n"], batch: Batch) -> dict[str, Mean]:
    """Mean loss of the learnt tokens of each kind in the batch."""
    found = {}
    for index, name in enumerate(KINDS):
        rows = torch.nonzero((batch.weights_N != 0) & (batch.kinds_N == index))[:, 0]
        chosen = losses_N[send(rows, losses_N.device)]
        found[f"{name}_loss"] = Mean(chosen.to(sum_dtype(chosen.device)).sum(), len(rows))
    return found

"""Losses as pure functions, and the cross-entropy whose logits never exist whole."""

# N tokens, D width, V vocabulary

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.core.batch import KINDS, Batch
from herd.model.transformer import Transformer
from herd.train.balance import expert_load, total_balance_loss

CHUNK_ROWS = 512
"""Tokens whose logits exist at one time."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward computes both gradients chunk by chunk, so that the backward only scales them."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N):  # type: ignore[no-untyped-def]
        losses = torch.zeros(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.zeros_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        # Two buffers for all chunks: fresh pages for each would cost more than the softmax, and so would a copy in fp32
        # (the kernel computes in fp32 inside).
        buffers = hidden_ND.new_empty(2, CHUNK_ROWS, len(weight_VD))
        for rows in torch.nonzero(weights_N)[:, 0].split(CHUNK_ROWS):
            hidden, target = hidden_ND[rows], targets_N[rows, None]
            weight = weights_N[rows, None].to(hidden.dtype)
            logits = torch.mm(hidden, weight_VD.T, out=buffers[0, : len(rows)])
            probability = torch.softmax(logits, -1, out=buffers[1, : len(rows)])
            losses[rows] = -probability.gather(1, target)[:, 0].float().clamp_min(1e-30).log()
            grad = probability.scatter_add_(1, target, hidden.new_full((len(rows), 1), -1))
            # The weights go on the narrow side of the products.
            grad_hidden[rows] = (grad @ weight_VD) * weight
            grad_weight += grad.T @ (hidden * weight)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VD.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * weights_N).sum(), losses

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, grad_weight * grad_sum, None, None


def cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_N: Int[Tensor, "n"],
    weights_N: Float[Tensor, "n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * -log softmax(U h_i)[t_i], in nats, and the unweighted terms (without gradient; 0 where w_i = 0).

    Give weights that sum to 1 for a mean. Probabilities have the precision of `hidden_ND`: in bf16 a term is true to
    0.4 %.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, unembedding_VD, targets_N, weights_N)


def language_loss(balance_coefficient: float) -> Callable[[Transformer, Batch], tuple[Tensor, dict[str, object]]]:
    """The loss function of pre-training and fine-tuning: mean cross-entropy of the learnt tokens plus
    `balance_coefficient` times the load-balancing loss. Its metrics: the cross-entropy, in all and by kind of token,
    and the experts' load."""

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
        mean, losses_N = cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.weights_N)
        metrics = {"loss": mean.item(), **losses_by_kind(losses_N, batch), **expert_load(model)}
        return mean + balance_coefficient * total_balance_loss(model), metrics

    return loss_fn


def losses_by_kind(losses_N: Float[Tensor, "n"], batch: Batch) -> dict[str, float]:
    """Mean loss of the learnt tokens of each kind in the batch."""
    learnt_N = batch.weights_N > 0
    return {
        f"{name}_loss": float(losses_N[chosen].mean())
        for index, name in enumerate(KINDS)
        if (chosen := learnt_N & (batch.kinds_N == index)).any()
    }

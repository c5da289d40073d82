"""Losses as pure functions, and the cross-entropy whose logits never exist whole."""

# N tokens, D width, V vocabulary

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd import native
from herd.core.batch import KINDS, Batch
from herd.core.metrics import Mean
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.balance import total_balance_loss

CHUNK_ROWS = 512
"""Tokens whose logits exist at one time."""
ROW_MULTIPLE = 128
"""The last chunk is filled up to this: CPU products are compiled for each shape, and so there are few."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward computes both gradients chunk by chunk, so that the backward only scales them."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N):  # type: ignore[no-untyped-def]
        losses = torch.zeros(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.zeros_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        learnt = torch.nonzero(weights_N)[:, 0]
        filling = -len(learnt) % ROW_MULTIPLE
        hidden_RD = F.pad(hidden_ND[learnt], (0, 0, 0, filling))
        target_R = F.pad(targets_N[learnt], (0, filling))
        # The weights go on the narrow side of the products.
        weight_R1 = F.pad(weights_N[learnt], (0, filling))[:, None].to(hidden_ND.dtype)
        scaled_RD = hidden_RD * weight_R1
        grad_RD, losses_R = torch.empty_like(hidden_RD), losses.new_empty(len(hidden_RD))
        # One buffer for all chunks: fresh pages for each would cost more than the softmax.
        buffer = hidden_ND.new_empty(CHUNK_ROWS, len(weight_VD))
        for begin in range(0, len(hidden_RD), CHUNK_ROWS):
            rows = slice(begin, begin + CHUNK_ROWS)
            logits = torch.mm(hidden_RD[rows], weight_VD.T, out=buffer[: len(hidden_RD[rows])])
            losses_R[rows] = softmax_gradient(logits, target_R[rows])
            torch.mm(logits, weight_VD, out=grad_RD[rows])
            grad_weight += logits.T @ scaled_RD[rows]
        losses[learnt] = losses_R[: len(learnt)]
        grad_hidden[learnt] = (grad_RD * weight_R1)[: len(learnt)]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VD.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * weights_N).sum(), losses

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, grad_weight * grad_sum, None, None


def softmax_gradient(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    """-log softmax(logits)[target] in fp32; in place, the logits become its gradient, softmax - onehot(target)."""
    if native.available(logits_RV):
        return native.softmax_gradient(logits_RV, target_R)
    target_R1 = target_R[:, None]
    # The kernel computes in fp32 inside: a copy in fp32 would cost more than the softmax.
    probability = torch.softmax(logits_RV, -1)
    losses_R = -probability.gather(1, target_R1)[:, 0].float().clamp_min(1e-30).log()
    logits_RV.copy_(probability).scatter_add_(1, target_R1, logits_RV.new_full(target_R1.shape, -1))
    return losses_R


def cross_entropy(
    hidden_ND: Float[Tensor, "n d"],
    unembedding_VD: Float[Tensor, "v d"],
    targets_N: Int[Tensor, "n"],
    weights_N: Float[Tensor, "n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"]]:
    """sum_i w_i * -log softmax(U h_i)[t_i], in nats, and the unweighted terms (without gradient; 0 where w_i = 0).

    Give weights that sum to 1 for a mean. Logits have the precision of `hidden_ND`, and without the C++ kernels so have
    probabilities: in bf16 a term is then true to 0.4 %.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, unembedding_VD, targets_N, weights_N)


def language_loss(
    balance_coefficient: float, parallel: Parallel = ALONE
) -> Callable[[Transformer, Batch], tuple[Tensor, dict[str, float | Mean]]]:
    """The loss function of pre-training and fine-tuning: mean cross-entropy of the learnt tokens plus
    `balance_coefficient` times the load-balancing loss. Its metrics: the cross-entropy, in all and by kind of token.
    The losses of all ranks sum to that of the whole batch."""

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float | Mean]]:
        hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
        mean, losses_N = cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.weights_N)
        # fp64: what is told does not depend on how the tokens are dealt out.
        exact = float(losses_N.double() @ batch.weights_N.double())
        metrics: dict[str, float | Mean] = {"loss": exact, **losses_by_kind(losses_N, batch)}
        if balance_coefficient:
            mean = mean + balance_coefficient * total_balance_loss(model, parallel.sum_counts)
        return mean, metrics

    return loss_fn


def losses_by_kind(losses_N: Float[Tensor, "n"], batch: Batch) -> dict[str, Mean]:
    """Mean loss of the learnt tokens of each kind in the batch."""
    found = {}
    for index, name in enumerate(KINDS):
        chosen_N = (batch.weights_N > 0) & (batch.kinds_N == index)
        found[f"{name}_loss"] = Mean(float(losses_N[chosen_N].double().sum()), int(chosen_N.sum()))
    return found

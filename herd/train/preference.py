"""Direct preference optimisation: losses on summed log-probabilities of two answers to one prompt.

With pi the model, ref the model that the training began with, y+ and y- the chosen and the rejected answer of x, and
r = log pi(y|x) - log ref(y|x), summed over the answer's tokens with its end token. DPO: 2305.18290.
"""

# N tokens, P pairs, R tokens of answers

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from herd.config.dpo import DpoConfig
from herd.core.batch import Batch
from herd.core.device import send, sum_dtype
from herd.core.metrics import Mean, Number
from herd.data.loading.pair_batches import PairBatch
from herd.errors import HerdError
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.balance import total_balance_loss
from herd.train.losses import token_logprobs

PreferenceLossFunction = Callable[[Transformer, Batch], tuple[Tensor, dict[str, Number | Mean]]]


def sigmoid_loss(chosen_P: Float[Tensor, "p"], rejected_P: Float[Tensor, "p"], beta: float) -> Float[Tensor, "p"]:
    """-log sigmoid(beta (r+ - r-)), from r+ and r-."""
    return -F.logsigmoid(beta * (chosen_P - rejected_P))


def robust_loss(
    chosen_P: Float[Tensor, "p"], rejected_P: Float[Tensor, "p"], beta: float, label_smoothing: float
) -> Float[Tensor, "p"]:
    """((1 - e) l(r+, r-) - e l(r-, r+)) / (1 - 2 e) with l the sigmoid loss: its mean is that of l on the right labels
    where the share e of them is swapped (2403.00409)."""
    clean_P = sigmoid_loss(chosen_P, rejected_P, beta)
    swapped_P = sigmoid_loss(rejected_P, chosen_P, beta)
    return ((1 - label_smoothing) * clean_P - label_smoothing * swapped_P) / (1 - 2 * label_smoothing)


def ipo_loss(mean_chosen_P: Float[Tensor, "p"], mean_rejected_P: Float[Tensor, "p"], beta: float) -> Float[Tensor, "p"]:
    """(r+ - r- - 1 / (2 beta))^2, from r by the token, as the authors of 2310.12036 have it."""
    return (mean_chosen_P - mean_rejected_P - 1 / (2 * beta)).square()


def preference_loss(config: DpoConfig, parallel: Parallel = ALONE) -> PreferenceLossFunction:
    """The loss function of a PairBatch: the mean of the pairs' losses over the step, plus `nll` times the mean negative
    log-probability of the chosen answers' tokens.

    Metrics are means: the loss of the pairs; rewards beta r of chosen and rejected answers, their margin, and the share
    of pairs with a positive one; `chosen_nll`; of the tokens that end the chosen answers the log-probability and its
    change from the reference's; `kl`, an estimate by the token of the divergence from the reference, (log pi - log
    ref)^2 / 2 over both answers: right to the second order, in either direction, if the reference drew them.

    Raises HerdError on ranks that cut answers.
    """
    for axis in ("context", "tensor"):
        if parallel.mesh.sizes[axis] > 1:
            raise HerdError(f"parallel.{axis}={parallel.mesh.sizes[axis]} cuts answers, of which a pair needs both "
                            f"whole: set parallel.{axis}=1")  # fmt: skip

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Number | Mean]]:
        assert isinstance(batch, PairBatch)
        hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
        rows = torch.nonzero(batch.weights_N)[:, 0]
        document_R = torch.bucketize(rows, batch.starts_S[1:], right=True)
        is_last = torch.ones_like(rows, dtype=torch.bool)
        is_last[:-1] = document_R[1:] != document_R[:-1]
        device, num_pairs = hidden_ND.device, (len(batch.starts_S) - 1) // 2
        ends, rows, document_R = (
            send(x, device) for x in (torch.nonzero(is_last & (document_R % 2 == 0))[:, 0], rows, document_R)
        )
        log_R = token_logprobs(hidden_ND[rows], model.unembedding.weight, batch.targets_N[rows])
        ratio_R = log_R - batch.reference_N[rows].to(log_R.dtype)
        chosen_R = document_R % 2 == 0

        def sums(values_R: Tensor) -> tuple[Tensor, Tensor]:
            """Over the chosen and over the rejected answer of each pair."""
            sums_S = values_R.new_zeros(2 * num_pairs).index_add(0, document_R, values_R)
            return sums_S[::2], sums_S[1::2]

        chosen_P, rejected_P = sums(ratio_R)
        loss_P = _loss(config, (chosen_P, rejected_P), sums(torch.ones_like(log_R)))
        chosen_nll = -log_R[chosen_R].sum()
        loss = loss_P.sum() / batch.num_pairs + config.nll * chosen_nll / batch.num_chosen
        if config.balance_coefficient:
            loss = loss + config.balance_coefficient * total_balance_loss(model, parallel.sum_counts)

        margin_P = config.beta * (chosen_P - rejected_P)
        metrics: dict[str, Number | Mean] = {
            "pair_loss": _mean(loss_P),
            "chosen_reward": _mean(config.beta * chosen_P),
            "rejected_reward": _mean(config.beta * rejected_P),
            "margin": _mean(margin_P),
            "accuracy": _mean(margin_P > 0),
            "chosen_nll": _mean(-log_R[chosen_R]),
            "end_logprob": _mean(log_R[ends]),
            "end_change": _mean(ratio_R[ends]),
            "kl": _mean(ratio_R.square() / 2),
        }
        return loss, metrics

    return loss_fn


def _loss(config: DpoConfig, ratios: tuple[Tensor, Tensor], counts: tuple[Tensor, Tensor]) -> Tensor:
    """Of each pair, from summed log-ratios and numbers of tokens."""
    name: Literal["sigmoid", "ipo", "robust"] = config.loss
    match name:
        case "sigmoid":
            return sigmoid_loss(*ratios, config.beta)
        case "robust":
            return robust_loss(*ratios, config.beta, config.label_smoothing)
        case "ipo":
            return ipo_loss(ratios[0] / counts[0], ratios[1] / counts[1], config.beta)


def _mean(values: Tensor) -> Mean:
    return Mean(values.detach().sum(dtype=sum_dtype(values.device)), len(values))

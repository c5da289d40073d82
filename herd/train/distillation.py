"""The loss of a student: hard targets, the tokens of the text, and soft ones, drawn from a teacher's softmax."""

# N tokens, K draws of a token

from collections.abc import Callable

import torch
from torch import Tensor

from herd.config import DistillConfig
from herd.core.batch import Batch
from herd.core.device import send, sum_dtype
from herd.core.metrics import Mean, Number
from herd.data.loading.taught_batches import ScheduledBatch, TaughtBatch
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.balance import total_balance_loss
from herd.train.losses import cross_entropy, cross_entropy_metrics, distillation_cross_entropy
from herd.train.teacher import Teacher

LossAndMetrics = tuple[Tensor, dict[str, Number | Mean]]


def distillation_loss(
    config: DistillConfig, parallel: Parallel = ALONE, teacher: Teacher | None = None
) -> Callable[[Transformer, Batch], LossAndMetrics]:
    """As `language_loss`, with the teacher's rows in the batch, or read from `teacher`. The metric `loss` is the hard
    cross-entropy, as in pre-training; `alpha` is the mean share of the teacher's targets over all learnt tokens, and
    `taught` the share of the tokens that have a row."""

    def loss_fn(model: Transformer, batch: Batch) -> LossAndMetrics:
        hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
        shares_N, weight = batch.shares_N, model.unembedding.weight
        if isinstance(batch, ScheduledBatch) and teacher is not None:
            batch = read_batch(teacher, batch, config.online_draws)
        metrics: dict[str, Number | Mean] = {}
        if isinstance(batch, TaughtBatch) and batch.alpha:
            loss, terms = distillation_cross_entropy(
                hidden_ND,
                weight,
                batch.targets_N,
                batch.draws_NK,
                batch.teacher_logprobs_N,
                shares_N,
                alpha=batch.alpha,
                confidence_scale=config.confidence_scale if config.confidence else None,
            )
            losses_N = terms.hard_N
            learnt = send(torch.nonzero(batch.weights_N)[:, 0], losses_N.device)
            known = ~batch.teacher_logprobs_N[learnt].isnan()
            wide = sum_dtype(losses_N.device)
            metrics["alpha"] = Mean(terms.alpha_N[learnt].to(wide).sum(), len(learnt))
            metrics["taught"] = Mean(known.to(wide).sum(), len(learnt))
        else:  # in the end the targets are hard, and the teacher is not read
            loss, losses_N = cross_entropy(hidden_ND, weight, batch.targets_N, shares_N)
        if config.balance_coefficient:
            loss = loss + config.balance_coefficient * total_balance_loss(model, parallel.sum_counts)
        return loss, cross_entropy_metrics(losses_N, batch) | metrics

    return loss_fn


def read_batch(teacher: Teacher, batch: ScheduledBatch, num_draws: int) -> Batch:
    """A part of a step with the rows of a teacher in memory; as it is once the teacher has no share left. The draws'
    numbers are torch's, which the loop seeds by the step."""
    if not batch.alpha:
        return batch
    device, size = batch.tokens_N.device, len(batch.tokens_N)
    learnt = torch.nonzero(batch.weights_N)[:, 0]
    uniforms = torch.rand(len(learnt), num_draws, dtype=torch.float64)
    rows = teacher.rows(batch, send(uniforms, device))
    places = send(learnt, device)
    logprobs_N = torch.full((size,), torch.nan, device=device).index_copy(0, places, rows.logprobs_R.float())
    draws_NK = torch.zeros(size, num_draws, dtype=torch.int64, device=device).index_copy(0, places, rows.draws_RK)
    return TaughtBatch(**vars(batch), draws_NK=draws_NK, teacher_logprobs_N=logprobs_N)

"""Other models that read what was drawn: the engine's own forward, the reference, a teacher."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from herd.core.batch import Batch
from herd.core.metrics import Mean, Number
from herd.model.transformer import Transformer
from herd.rl.loss import RolloutBatch
from herd.train.loop import LossFunction
from herd.train.sharing import share_prompts
from herd.train.teacher import Teacher


def with_readers(
    loss_fn: LossFunction[Batch],
    *,
    engine: Teacher | None,
    reference: Teacher | None,
    teacher: Teacher | None,
    teacher_weight: float,
) -> LossFunction[Batch]:
    """A loss whose batch has what these say of the drawn tokens: `engine` reads at the weights that are trained.

    On-policy distillation is a term of the advantage, A_t + teacher_weight * (log p_T - log mu_t), whose mean gradient
    is minus that of the divergence KL(student | teacher) at each prefix (Agarwal et al., 2306.13649, with the drawn
    token alone).
    """

    def read(model: Transformer, batch: Batch) -> tuple[Tensor, Mapping[str, Number | Mean]]:
        assert isinstance(batch, RolloutBatch)
        sharing = share_prompts(batch.prompts_N, batch.starts_S, batch.tokens_N.device)
        if engine is not None:
            batch = replace(batch, current_N=engine.logprobs(batch, sharing).clone())
        if reference is not None:
            batch = replace(batch, reference_N=reference.logprobs(batch, sharing).clone())
        if teacher is not None:
            better_N = (teacher.logprobs(batch, sharing) - batch.logprobs_N).nan_to_num(nan=0.0)
            batch = replace(batch, advantages_N=(batch.advantages_N + teacher_weight * better_N).clone())
        return loss_fn(model, batch)

    return read

"""A student's batches with a teacher's rows beside its tokens."""

# N tokens, K draws of a token

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.config import DistillConfig
from herd.core.batch import Batch
from herd.data.loading.pack import pack
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.teacher_rows import TeacherFolder, draws_of

SAMPLED = 8
"""Steps by which the share of tokens with rows is estimated."""


@dataclass(frozen=True, kw_only=True)
class TaughtBatch(Batch):
    """Tokens, and what a teacher says of those that are learnt."""

    draws_NK: Tensor
    """int64, ids drawn from the teacher's softmax; 0 where there is no row."""
    teacher_logprobs_N: Tensor
    """float32, log p_T of the target; NaN where there is no row."""
    alpha: float
    """The share of the teacher's targets in this step."""


@dataclass(frozen=True, kw_only=True)
class ScheduledBatch(Batch):
    """Tokens that a teacher in memory will read."""

    alpha: float
    """As in TaughtBatch."""


class DistillBatches:
    """The batches of pre-training, with the rows of a folder, or without for a teacher in memory."""

    unit = "tokens"

    def __init__(self, student: PretrainBatches, config: DistillConfig, teacher: TeacherFolder | None) -> None:
        self.student, self.config, self.teacher = student, config, teacher
        self.num_steps = student.num_steps

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        plan, places = self.student.step_places(step)
        samples = self.student.samples(step)
        fields = vars(pack(samples, patch_id=self.student.tokenizer.ids.patch))
        alpha = self.config.alpha_at(step, self.num_steps)
        if self.teacher is None:
            return ScheduledBatch(**fields, alpha=alpha)
        size = len(fields["tokens_N"])
        draws_NK = np.zeros((size, self.teacher.num_draws), dtype=np.int64)
        logprobs_N = np.full(size, np.nan, dtype=np.float32)
        begin = 0
        for place, sample in zip(places, samples, strict=True):
            learnt = begin + np.flatnonzero(sample.learnt[1:])
            begin += len(sample.ids)
            stretch = self.student.stretch(plan, place)
            if stretch is None:
                rows = self.teacher.picture(self.student.shown_key(plan, place), len(learnt))
            else:
                rows = self.teacher.text(*stretch, len(learnt))
            if rows is not None:
                draws_NK[learnt], logprobs_N[learnt] = draws_of(rows), rows["logprob"]
        return TaughtBatch(
            **fields,
            draws_NK=torch.from_numpy(draws_NK),
            teacher_logprobs_N=torch.from_numpy(logprobs_N),
            alpha=alpha,
        )

    def share_with_rows(self) -> float:
        """Of the learnt tokens of a few steps over the run."""
        learnt = known = 0
        for step in sorted({self.num_steps * part // SAMPLED for part in range(SAMPLED)}):
            batch = self.batch(step)
            assert isinstance(batch, TaughtBatch)
            rows = batch.weights_N != 0
            learnt += int(rows.sum())
            known += int((rows & ~batch.teacher_logprobs_N.isnan()).sum())
        return known / max(learnt, 1)

"""Settings of teaching and of distillation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from herd.config.ranges import Checked, Context, Count, Positive, Seed, Share
from herd.config.stages import PretrainConfig, PretrainPlan
from herd.config.training import HOW_IT_RUNS, CheckpointConfig, ParallelConfig, TrainingDtype
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class TeachConfig(PretrainPlan):
    """A teacher's rows for what a student will be trained on: give the student's own settings. What of its plan has no
    row is learnt without the teacher."""

    seed: Seed = 0
    """The student's, of the order of its documents; of the draws too."""
    draws: Count = 12
    """Tokens drawn from the teacher's softmax at each position."""
    dtype: TrainingDtype = field(default="auto", metadata=HOW_IT_RUNS)
    """Number format of the teacher. `auto`: bfloat16 where the hardware multiplies it fast, else float32."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=HOW_IT_RUNS)
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Checked):
    """Which part of a model a smaller one keeps."""

    num_layers: Count | None = None
    """Layers that are kept, those that change their input most; all if not given."""
    num_experts: Count | None = None
    """Experts of each mixture that are kept, those that get most tokens; all if not given."""
    num_tokens: Count = 100_000
    """Tokens of training text on which that is measured."""
    context: Context = 512
    """Longest piece of a document, in tokens."""
    seed: Seed = 0
    """Of the choice of the text."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(PretrainConfig):
    """Pre-training that learns from a teacher's distribution beside the text: see docs/distill.md."""

    alpha: Share = 0.75
    """Share of the teacher's targets; the rest is that of the text."""
    alpha_schedule: Literal["constant", "linear"] = "constant"
    """`constant`: it stays; `linear`: it falls to 0 at the step at which the learning rates begin to."""
    confidence: bool = False
    """Multiply it, token by token, by sigmoid((log p_T - log p_S) / confidence_scale) of the text's token: the teacher
    counts where it knows the text better than the student."""
    confidence_scale: Positive = 1.0
    """See `confidence`, in nats."""
    online_draws: Count = 12
    """Tokens drawn at each position from a teacher that is a model folder and reads every batch in training; those of a
    folder of rows are as many as it has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha_schedule == "linear" and self.optimizer.decay == 1:
            raise HerdError(
                "optimizer.decay=1 lets the rates fall from the first step, where alpha_schedule=linear is 0: lower "
                "optimizer.decay, or set alpha_schedule=constant"
            )

    def alpha_at(self, step: int, num_steps: int) -> float:
        """The share at a step of so many."""
        if self.alpha_schedule == "constant":
            return self.alpha
        end = num_steps * (1 - self.optimizer.decay)
        return self.alpha * max(0.0, 1 - step / end)


def check_taught(config: DistillConfig, parents: Mapping[str, Any]) -> None:
    """Raise HerdError where a recipe's teacher reads shorter pieces than its student."""
    teacher = parents.get("teacher")
    if isinstance(teacher, TeachConfig) and config.context > teacher.context:
        raise HerdError(
            f"context={config.context} of the student is longer than context={teacher.context} of its teacher's "
            "pieces: give both the same"
        )

"""Settings that stages which train have in common: optimizer, checkpoints, outliers, ranks."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from herd.config.ranges import (
    Checked,
    Count,
    CountOrNone,
    PartialShare,
    Positive,
    Rate,
    Seconds,
    Seed,
    Share,
    Weight,
    at_least,
)
from herd.errors import HerdError, unknown


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """Muon or AdamW for matrices, AdamW for the rest; warm-up, plateau, linear decay to zero."""

    matrix: Literal["muon", "adamw"] = "muon"
    """What steps the matrices of the layers."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """How AdamW keeps its moments, but for norms and routers: 8 or 2 bytes for each weight."""
    lr_scale: Rate = 1.0
    """Factor on all the rates below."""
    matrix_lr: Rate = 0.02
    """Muon's step, as the root mean square of an update relative to sqrt(max(1, rows / columns))."""
    adamw_lr: Rate = 0.002
    """AdamW's step for the matrices of the layers, where it has them, and for LoRA's adapters."""
    embedding_lr: Rate = 0.03
    """AdamW's step for the embedding."""
    other_lr: Rate = 0.01
    """AdamW's step for norms, biases, positions and the router."""
    unembedding_lr: Rate = 0.008
    """AdamW's step for the unembedding."""
    weight_decay: Rate = 0.01
    """Share of a weight that a step at a learning rate of 1 would remove, of matrices: layers, routers, unembedding."""
    other_weight_decay: Rate = 0.0
    """The same for the embedding, norms, biases and positions."""
    momentum: PartialShare = 0.95
    """Muon's: how much of the last steps' sum is kept."""
    betas: tuple[PartialShare, PartialShare] = (0.9, 0.95)
    """AdamW's: how much of the first and of the second moment is kept."""
    warmup_ratio: Share = 0.02
    """Share of the steps in which the learning rate rises, at the beginning."""
    decay: Share = 0.5
    """Share of the steps in which it falls to zero, at the end."""
    max_grad_norm: Positive = 1.0
    """The gradients of all parameters together are scaled down to this norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_ratio + self.decay > 1 + 1e-9:
            raise HerdError(
                f"warmup_ratio={self.warmup_ratio} and decay={self.decay} are more than all steps: "
                "their sum is at most 1"
            )


HOW_IT_RUNS = {"changes the result": False}
"""Metadata of a field that may differ between the attempts of one stage: what is learnt is the same, but for rounding
where sums are taken in another order (ranks, micro-batches)."""

TrainingDtype = Literal["auto", "bfloat16", "float32"]

PARALLEL_AXES = ("replicate", "shard", "expert", "context", "tensor")
"""In the order in which ranks are numbered: those along the last are neighbours."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Checked):
    """How many ranks share the work along each axis; their product is the number of processes, see docs/train.md."""

    replicate: Count = 1
    """Ranks with all parameters and their own documents."""
    shard: Count = 1
    """Ranks with their own documents that keep a part of every parameter and gather it for use (FSDP)."""
    expert: Count = 1
    """Ranks with their own documents, each keeping some of every layer's experts."""
    context: Count = 1
    """Ranks that share the documents, each taking a part of the tokens."""
    tensor: Count = 1
    """Ranks that share the tokens, each taking a part of the heads and of the hidden widths."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.replicate * self.shard * self.expert * self.context * self.tensor


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """When the state of a training is saved, and what is kept of it."""

    every_s: Seconds = 60.0
    """Seconds from one save to the next; one that is still being written is waited for."""
    keep: Count = 2
    """The newest so many are kept: should one be damaged, the one before serves."""
    keep_every: CountOrNone = 0
    """Every so-many-th is kept too until the stage is done; 0: none."""


@dataclass(frozen=True, kw_only=True)
class LossSpikesConfig(Checked):
    """Which steps of a training are skipped as outliers, see docs/train.md."""

    skip: tuple[Literal["not_finite", "loss", "grad_norm"], ...] = ("not_finite", "loss", "grad_norm")
    """Kinds of outliers whose update is not made: loss or gradient norm not finite, loss too high, norm too high."""
    window: Annotated[int, at_least(16)] = 128
    """Last updates from which the expected values are estimated; no step is judged before the 16th."""
    sigmas: Positive = 6.0
    """A loss or gradient norm so far above its trend is an outlier."""
    patience: Count = 16
    """So many outliers in a row stop the run."""


LoraTarget = Literal["attention", "dense", "shared", "experts"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Low-rank adapters (LoRA): of each target matrix only an update of a low rank is trained, see docs/lora.md."""

    SHORT: ClassVar[str] = "rank"
    """The field that the config's own name stands for: `lora = 16`, `--lora 16`."""
    rank: Count | None = None
    """Rank of the adapters, which alone are trained then; no adapters if not given. Short form: --lora 16."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    targets: tuple[LoraTarget, ...] = LORA_TARGETS
    """Matrices with adapters, as far as the model has them: q, k, v and output of the attention; the feed-forward of
    layers that are no mixtures; the shared expert; the routed experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise unknown("LoRA target", target, LORA_TARGETS)
        if not self.targets:
            raise HerdError(f"targets is empty: name some of {', '.join(LORA_TARGETS)}")

    @property
    def scale(self) -> float:
        """Factor on the product of an adapter's two matrices."""
        assert self.rank is not None
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


ALL_OF_LANGUAGE = ("embedding.*", "layers.*", "norm.*", "unembedding.*")
"""Patterns of all parameters but the vision encoder's."""


@dataclass(frozen=True, kw_only=True)
class LanguageTrainingConfig(Checked):
    """What pre-training, mid-training and fine-tuning have in common."""

    seed: Seed = 0
    """Of the order of the documents, and of everything else that is drawn."""
    dtype: TrainingDtype = "auto"
    """Number format of weights and activations. `auto`: bfloat16 where the hardware multiplies it fast, else float32;
    unfinished work resumes in the format that it was started in."""
    trainable: tuple[str, ...] = ALL_OF_LANGUAGE
    """Parameters that are trained, by patterns of their names such as `layers.*.attention.*`; the others are frozen, by
    default the vision encoder."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    heldout_every: CountOrNone = field(default=0, metadata=HOW_IT_RUNS)
    """Steps between two held-out losses, on a fixed slice of the data folder's held-out text; 0: none."""
    micro_batches: Count = field(default=1, metadata=HOW_IT_RUNS)
    """Parts into which a step's batch is cut between documents, computed one after the other: less memory."""
    recompute: bool = field(default=False, metadata=HOW_IT_RUNS)
    """Keep each layer's input alone and compute the layer again in the backward: far less memory, one more forward."""
    bias_update_rate: Weight = 0.05
    """Step of the bias that balances the experts, in logits, for an expert that got no token; 0: no bias. Without
    effect with LoRA, which leaves the routers as they are."""
    balance_coefficient: Weight = 0.0
    """Weight of the load-balancing loss; 0: none."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=HOW_IT_RUNS)
    loss_spikes: LossSpikesConfig = field(default_factory=LossSpikesConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank is not None and self.trainable != ALL_OF_LANGUAGE:
            raise HerdError(
                f"lora.rank={self.lora.rank} trains adapters alone, trainable={self.trainable} would have no effect: "
                "leave out one of them"
            )

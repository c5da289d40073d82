"""What every stage that trains can be told of its optimizer, its checkpoints, its outliers and its ranks."""

from dataclasses import dataclass
from typing import Literal

from herd.core.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon or AdamW for matrices, AdamW for the rest; warm-up, plateau, linear decay to zero."""

    matrix: Literal["muon", "adamw"] = "muon"
    """What steps the matrices of the layers."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """How AdamW keeps its moments, but for norms and routers: 8 or 2 bytes for each weight."""
    matrix_lr: float = 0.02
    """Muon's step, as the root mean square of an update relative to sqrt(max(1, rows / columns))."""
    adamw_lr: float = 0.002
    """AdamW's step for the matrices of the layers, where it has them."""
    embedding_lr: float = 0.03
    """AdamW's step for the embedding."""
    other_lr: float = 0.01
    """AdamW's step for norms, biases, positions and the router."""
    unembedding_lr: float = 0.008
    """AdamW's step for the unembedding."""
    weight_decay: float = 0.01
    """Share of a weight that a step at a learning rate of 1 would remove."""
    momentum: float = 0.95
    """Muon's: how much of the last steps' sum is kept."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's: how much of the first and of the second moment is kept."""
    warmup: float = 0.02
    """Share of the steps with a rising rate."""
    decay: float = 0.5
    """Share of the steps with a falling rate."""
    max_grad_norm: float = 1.0
    """The gradients of all parameters together are scaled down to this norm."""


HOW_IT_RUNS = {"changes the result": False}
"""Metadata of a field that may differ between the attempts of one stage."""

PARALLEL_AXES = ("replicate", "shard", "expert", "context", "tensor")
"""In the order in which ranks are numbered: those along the last are neighbours."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks share the work along each axis; their product is the number of processes, see docs/train.md."""

    replicate: int = 1
    """Ranks with all parameters and their own documents."""
    shard: int = 1
    """Ranks with their own documents that keep a part of every parameter and gather it for use (FSDP)."""
    expert: int = 1
    """Ranks with their own documents, each keeping some of every layer's experts."""
    context: int = 1
    """Ranks that share the documents, each taking a part of the tokens."""
    tensor: int = 1
    """Ranks that share the tokens, each taking a part of the heads and of the hidden widths."""

    def __post_init__(self) -> None:
        for axis in PARALLEL_AXES:
            if getattr(self, axis) < 1:
                raise HerdError(f"parallel {axis}={getattr(self, axis)} is no number of ranks: at least 1")

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.replicate * self.shard * self.expert * self.context * self.tensor


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a training is saved, and what is kept of it."""

    every_s: float = 60.0
    """Seconds from one save to the next; one that is still being written is waited for."""
    keep: int = 2
    """The newest so many are kept: should one be damaged, the one before serves."""
    keep_every: int = 0
    """Every so-many-th is kept too until the stage is done; 0: none."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise HerdError(f"keep={self.keep} keeps no checkpoint: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Which steps of a training are taken back as outliers, see docs/train.md."""

    window: int = 128
    """Steps that tell what is usual."""
    sigmas: float = 6.0
    """A loss or gradient norm so far above its trend is an outlier; 0: only what is not a number."""
    patience: int = 16
    """So many outliers in a row stop the run."""

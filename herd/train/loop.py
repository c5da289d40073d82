"""The training loop, on one screen, and what it measures."""

import time
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from herd.config import OptimizerConfig
from herd.core.batch import KINDS, Batch
from herd.core.lineage import Stage
from herd.core.tracker import Tracker
from herd.data.loader import Batches, ahead
from herd.model.transformer import Transformer
from herd.train import checkpoint
from herd.train.balance import max_violation, mixtures, total_balance_loss
from herd.train.losses import cross_entropy
from herd.train.optimizer import Optimizer


class TrainConfig(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def balance_coefficient(self) -> float: ...
    @property
    def checkpoint_s(self) -> float: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


def train(model: Transformer, batches: Batches, config: TrainConfig, stage: Stage) -> None:
    """Train `model` in place to the end of `batches`; checkpoints, metrics and the clock live in the stage's folder."""
    optimizer = Optimizer(model, config.optimizer, batches.num_steps)
    start = resume(stage.work, optimizer)
    tracker = Tracker(stage.work / "metrics.jsonl", start_step=start)
    model.train()
    saved = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(stage.name, total=batches.num_steps, completed=start, note="")
        for step, batch in ahead(batches, start):
            began = time.monotonic()
            loss, losses_N = language_loss(model, batch)
            (loss + config.balance_coefficient * total_balance_loss(model)).backward()
            rate, norm = optimizer.schedule(step), optimizer.step(step)
            speed = len(batch.tokens_N) / (time.monotonic() - began)
            tracker.log(
                step,
                **losses_by_kind(losses_N, batch),
                **expert_load(model),
                loss=loss.item(),
                lr=rate,
                grad_norm=norm,
                tokens=len(batch.tokens_N),
                tokens_per_s=round(speed),
                seconds=round(stage.seconds, 2),
            )
            bar.update(task, advance=1, note=f"loss {loss.item():.3f}, {speed:,.0f} tokens/s")
            if time.monotonic() - saved > config.checkpoint_s:
                checkpoint.save(stage.work, step + 1, {"step": step + 1, **optimizer.state_dict()})
                stage.keep_time()
                saved = time.monotonic()
    tracker.close()
    model.eval()


def language_loss(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the learnt tokens, and every token's own."""
    hidden_ND = model(
        batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images
    )
    return cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.weights_N)


def resume(work: Path, optimizer: Optimizer) -> int:
    """Load the newest checkpoint, if there is one; returns the steps that it has behind it."""
    found = checkpoint.newest(work)
    if found is None:
        return 0
    state = {"step": 0, **optimizer.state_dict()}
    checkpoint.load(found, state)
    optimizer.load_state_dict(state)
    return int(state["step"])


def losses_by_kind(losses_N: Tensor, batch: Batch) -> dict[str, float]:
    """Mean loss of the learnt tokens of each kind in the batch."""
    learnt_N = batch.weights_N > 0
    return {
        f"{name}_loss": float(losses_N[chosen].mean())
        for index, name in enumerate(KINDS)
        if (chosen := learnt_N & (batch.kinds_N == index)).any()
    }


def expert_load(model: Transformer) -> dict[str, object]:
    """Each layer's shares by expert in the last forward, and the worst MaxVio."""
    loads = [moe.load_E for moe in mixtures(model) if moe.load_E is not None]
    return {
        "expert_load": [[round(x, 4) for x in load_E.tolist()] for load_E in loads],
        "max_vio": max((max_violation(load_E) for load_E in loads), default=0.0),
    }


def progress_bar() -> Progress:
    """Rate and time left of a stage, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )

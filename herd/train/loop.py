"""The training loop, on one screen, and what it measures."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from herd.config import OptimizerConfig
from herd.core.lineage import Stage
from herd.core.tracker import Tracker
from herd.data.loader import B, Batches, ahead
from herd.model.transformer import Transformer
from herd.train import checkpoint
from herd.train.balance import Balancer
from herd.train.optimizer import Optimizer

LossFunction = Callable[[Transformer, B], tuple[Tensor, dict[str, object]]]


class TrainConfig(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def checkpoint_s(self) -> float: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


def train(
    model: Transformer,
    batches: Batches[B],
    loss_fn: LossFunction[B],
    config: TrainConfig,
    stage: Stage,
    *,
    balance_rate: float = 0.0,
) -> None:
    """Train `model` in place to the end of `batches`; checkpoints, metrics and the clock live in the stage's folder.

    `loss_fn` gives what is minimised and what is recorded; `balance_rate` is how far a step moves the experts' biases.
    """
    optimizer = Optimizer(model, config.optimizer, batches.num_steps)
    balancer = Balancer(model, balance_rate)
    start = resume(stage.work, optimizer, balancer)
    tracker = Tracker(stage.work / "metrics.jsonl", start_step=start)
    model.train()
    saved = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(stage.name, total=batches.num_steps, completed=start, note="")
        for step, batch in ahead(batches, start):
            began = time.monotonic()
            loss, metrics = loss_fn(model, batch)
            loss.backward()
            rate, norm = optimizer.schedule(step), optimizer.step(step)
            load = balancer.step()
            speed = round(batch.size / (time.monotonic() - began))
            metrics = {"loss": loss.item(), **metrics, "lr": rate, "grad_norm": norm, f"{batches.unit}_per_s": speed}
            metrics |= load
            tracker.log(step, **metrics, seconds=round(stage.seconds, 2))
            bar.update(task, advance=1, note=f"loss {metrics['loss']:.3f}, {speed:,} {batches.unit}/s")
            if time.monotonic() - saved > config.checkpoint_s:
                checkpoint.save(stage.work, step + 1, state_of(step + 1, optimizer, balancer))
                stage.keep_time()
                saved = time.monotonic()
    tracker.close()
    model.eval()


def state_of(step: int, optimizer: Optimizer, balancer: Balancer) -> dict[str, Any]:
    """All that a checkpoint holds."""
    return {"step": step, **optimizer.state_dict(), "balance": balancer.state_dict()}


def resume(work: Path, optimizer: Optimizer, balancer: Balancer) -> int:
    """Load the newest checkpoint, if there is one; returns the steps that it has behind it."""
    found = checkpoint.newest(work)
    if found is None:
        return 0
    state = state_of(0, optimizer, balancer)
    checkpoint.load(found, state)
    optimizer.load_state_dict(state)
    balancer.load_state_dict(state["balance"])
    return int(state["step"])


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
